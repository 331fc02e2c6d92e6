"""Scores of a model, or of ready masks, against ground truth."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gimseg.datasets import Dataset, Datasets
from gimseg.errors import DatasetError
from gimseg.inference import Predictor
from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import UNLABELLED, Legend
from gimseg.metrics import Confusion
from gimseg.models import Model
from gimseg.outputs import check_outputs, staged, write_text
from gimseg.pictures import Panel, draw_contact_sheet, outcome_overlay
from gimseg.progress import Progress, silent
from gimseg.rasters import RasterView, Roi, open_raster

_BLOCK = 1024
_PICTURE_SIDE = 900


@dataclass(frozen=True)
class Score:
    """The confusion matrix of one raster in one split.

    Args:
        tag: tag of the dataset.
        path: the raster.
        split: ``train``, ``val``, ``test``, or ``all`` where the ground has no split.
        confusion: classes with the background, in legend order.
    """

    tag: str
    path: str
    split: str
    confusion: Confusion


@dataclass(frozen=True)
class Scores:
    """Scores per raster, per split and of all labelled pixels together."""

    legend: Legend
    rows: tuple[Score, ...]

    def of_split(self, split: str | None = None) -> Confusion:
        """Pixels of all rasters of a split (None: of all splits) together."""
        confusions = [row.confusion for row in self.rows if split in (None, row.split)]
        return sum(confusions, Confusion.zeros(len(self.legend.classes) + 1))

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that were scored, in order."""
        return tuple(dict.fromkeys(row.split for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it: ``splits``, ``rasters``; each with its confusion table."""
        names = ("background", *self.legend.names)
        return {
            "splits": {split: self.of_split(split).to_dict(names) for split in self.splits},
            "rasters": [
                {"dataset": row.tag, "raster": row.path, "split": row.split, **row.confusion.to_dict(names)}
                for row in self.rows
            ],
        }

    def table(self) -> str:
        """Scores as lines of text: one a raster and class, then one a split and class."""
        lines: list[tuple[str, ...]] = [
            ("raster", "split", "class", "IoU", "F1", "precision", "recall", "accuracy", "pixels")
        ]
        for row in self.rows:
            lines += self._lines(os.path.basename(row.path), row.split, row.confusion)
        for split in self.splits:
            if sum(row.split == split for row in self.rows) > 1:
                lines += self._lines("together", split, self.of_split(split))
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if column < 3 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def _lines(self, name: str, split: str, confusion: Confusion) -> list[tuple[str, ...]]:
        lines = []
        for number, class_name in enumerate(self.legend.names, 1):
            scores = [getattr(confusion, score)[number] for score in ("iou", "f1", "precision", "recall")]
            cells = [_format(value) for value in (*scores, confusion.accuracy)]
            lines.append((name, split, class_name, *cells, f"{int(confusion.support[number]):,}"))
        return lines


def evaluate(
    predicted: Model | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    datasets: Dataset | Datasets,
    *,
    split: str | None = None,
    output: str | os.PathLike[str] | None = None,
    plot: str | os.PathLike[str] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Scores:
    """Compare predictions with ground truth, pixel by pixel where this is known.

    A model predicts at its own resolution, with its own bands. Masks are read on the
    grid of the datasets; for each raster the first mask that meets it counts.

    Args:
        predicted: a model or its folder, or GeoTIFFs of class values.
        datasets: images and ground truth.
        split: only ground of this split; None: each split of its own.
        output: JSON file to write.
        plot: PNG file to write: hits, misses and false alarms over the image.
        device: ``auto``, ``cpu`` or ``cuda``.
        overwrite: replace outputs that exist.
        progress: told after each block.

    Raises:
        DatasetError: the legends differ, or no pixel of the split is labelled.
        OutputError: an output cannot be written.
        GimsegError: a raster or the model cannot be read.

    Returns:
        the scores.
    """
    outputs = [path for path in (output, plot) if path is not None]
    datasets = datasets if isinstance(datasets, Datasets) else Datasets((datasets,))
    masks, model = _masks_or_model(predicted)
    check_outputs(outputs, masks, overwrite=overwrite)
    if model is not None:
        _check_legend(model, datasets)
        datasets = datasets.at_resolution(model.recipe.resolution).with_bands(model.recipe.bands)
    scenes = datasets.scenes()
    predictor = Predictor(model, device=device) if model is not None else None
    ready = [_MaskViews(masks, scene) for scene in scenes] if predictor is None else []
    rows, panels = [], []
    for number, scene in enumerate(scenes):
        blocks = predictor.blocks(scene.view) if predictor else ready[number].blocks()
        found, panel = _score_scene(scene, blocks, split, progress)
        rows += found
        panels.append(panel)
    scores = Scores(datasets.legend, tuple(rows))
    if not scores.of_split().total:
        raise DatasetError(f"no labelled pixel{f' in split {split}' if split else ''}: nothing can be scored")
    if output is not None:
        write_text(output, json.dumps(scores.to_dict(), indent=1))
    if plot is not None:
        with staged(plot) as path:
            draw_contact_sheet(path, panels, columns=2, title="hits green, misses blue, false alarms red")
    return scores


def _masks_or_model(predicted: Any) -> tuple[tuple[str, ...], Model | None]:
    if isinstance(predicted, Model):
        return (), predicted
    if not isinstance(predicted, (str, os.PathLike)):
        return tuple(map(str, predicted)), None
    if str(predicted).lower().endswith((".tif", ".tiff")):
        return (str(predicted),), None
    return (), Model.load(predicted)


def _check_legend(model: Model, datasets: Datasets) -> None:
    mine, theirs = model.recipe.legend, datasets.legend
    if len(mine.classes) != len(theirs.classes) or (not mine.is_binary and mine.names != theirs.names):
        raise DatasetError(
            f"the model knows the classes {', '.join(mine.names)}, the ground truth {', '.join(theirs.names)}: "
            "give the datasets the model's legend"
        )


class _MaskViews:
    """Ready masks as blocks of predictions on the grid of a scene."""

    def __init__(self, masks: Sequence[str], scene: LabelledScene) -> None:
        self.scene = scene
        self.view: RasterView | None = None
        for mask in masks:
            raster = open_raster(mask, bands=(1,))
            if raster.crs == scene.raster.crs and raster.geobox.extent.geom.intersects(scene.geobox.extent.geom):
                self.view = raster.on(scene.geobox, "nearest")
                break
        if masks and self.view is None:
            raise DatasetError(f"no mask of {', '.join(masks)} meets {scene.path} in CRS {scene.raster.crs}")

    def blocks(self) -> Iterator[tuple[Roi, np.ndarray]]:
        rows, cols = self.scene.shape
        for top in range(0, rows, _BLOCK):
            for left in range(0, cols, _BLOCK):
                roi = (slice(top, min(top + _BLOCK, rows)), slice(left, min(left + _BLOCK, cols)))
                pixels = self.view.read_values(roi)  # type: ignore[union-attr]
                yield roi, np.where(pixels.valid, pixels.data[0], UNLABELLED).astype(np.uint8)


def _score_scene(
    scene: LabelledScene, blocks: Iterator[tuple[Roi, np.ndarray]], split: str | None, progress: Progress
) -> tuple[list[Score], Panel]:
    """Compare one scene block by block; collect a coarse picture on the way."""
    rows, cols = scene.shape
    step = max(1, math.ceil(max(rows, cols) / _PICTURE_SIDE))
    coarse = (math.ceil(rows / step), math.ceil(cols / step))
    image = np.zeros((len(scene.raster.bands), *coarse), np.float32)
    truth, prediction = (np.full(coarse, UNLABELLED, np.uint8) for _ in range(2))
    keys = (split,) if split else scene.split_names
    legend, done = scene.legend, 0
    totals = {key: Confusion.zeros(len(legend.classes) + 1) for key in keys}
    task = f"score {os.path.basename(scene.path)}"
    progress(task, 0, rows * cols / 1e6, "Mpx")
    for roi, classes in blocks:
        pixels = scene.view.read(roi)
        seen = np.full(classes.shape, UNLABELLED, np.uint8)
        for key in keys:
            labels = scene.read_labels(roi, key)
            labels[~pixels.valid] = UNLABELLED
            # A pixel that the mask leaves out is no prediction: it counts as background.
            given = np.where(classes == UNLABELLED, 0, legend.to_channels(classes))
            totals[key] = totals[key] + Confusion.of(legend.to_channels(labels), given, len(legend.classes) + 1)
            seen = np.where(labels == UNLABELLED, seen, labels)
        thin = tuple(slice(-axis.start % step, None, step) for axis in roi)
        place = tuple(slice(math.ceil(axis.start / step), math.ceil(axis.stop / step)) for axis in roi)
        image[(slice(None), *place)] = pixels.data[(slice(None), *thin)]
        truth[place], prediction[place] = seen[thin], classes[thin]
        done += classes.size
        progress(task, done / 1e6, rows * cols / 1e6, "Mpx")
    found = [Score(scene.tag, scene.path, key or "all", totals[key]) for key in keys if totals[key].total]
    iou = sum((row.confusion for row in found), Confusion.zeros(len(legend.classes) + 1)).mean_iou
    overlay = outcome_overlay(truth, prediction)
    return found, Panel(f"{Path(scene.path).name}  IoU {_format(iou)}", image, overlay)


def _format(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
