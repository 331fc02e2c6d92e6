"""Scores of a model, or of ready masks, against ground truth."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from gimseg.datasets import Dataset, Datasets
from gimseg.errors import DatasetError, ModelError
from gimseg.inference import Predictor
from gimseg.labelled_scenes import LabelledScene
from gimseg.models import Model
from gimseg.outputs import check_outputs, staged, write_text
from gimseg.pictures import Panel, draw_contact_sheet, outcome_overlay
from gimseg.progress import Progress, silent
from gimseg.radiometry import levelled_by_raster
from gimseg.refined_planes import pixel_sides
from gimseg.refinement import Refinement
from gimseg.sample_lists import check_samples, list_rasters, list_windows, worst_samples, write_samples
from gimseg.scene_predictions import ModelPredictions, Predictions, ReadyMasks, RefinedPredictions
from gimseg.scene_scores import SceneScorer, Score, choose_reach
from gimseg.score_pages import MOST_MAPS, score_page
from gimseg.score_tables import Scores, SplitScores, written

__all__ = ["Request", "Scores", "evaluate"]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Request:
    """What is scored, and what is written of it.

    Args:
        split: only ground of this split; None: each split of its own.
        boundary_m: an outline is hit within this distance, m; None: three pixels.
        output: JSON file to write.
        report: HTML file to write.
        samples: folder to write lists of windows and rasters to, worst first: CSV, GeoPackage, contact sheet.
        plot: PNG file to write: hits, misses and false alarms over the image.
        refine: how predictions are refined before they are compared, as ``"tv(0.1), open(1 m)"``; masks by steps of
            masks; None: not at all. Probabilities stay as they are.
        keep_threshold: write the threshold with the highest IoU into the model's folder; for one class.
        overwrite: replace outputs that exist.

    Raises:
        DatasetError: a distance that is none.
        RefinementError: the steps are not understood.
    """

    split: str | None = None
    boundary_m: float | None = None
    output: PathLike | None = None
    report: PathLike | None = None
    samples: PathLike | None = None
    plot: PathLike | None = None
    refine: Refinement | str | None = None
    keep_threshold: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.boundary_m is not None and not 0 < self.boundary_m < float("inf"):
            raise DatasetError(f"boundary_m is {self.boundary_m}: a distance above 0 m is needed")
        object.__setattr__(self, "refine", Refinement.of(self.refine))

    @property
    def chain(self) -> Refinement:
        """How predictions are refined; without steps where they are not."""
        assert isinstance(self.refine, Refinement)
        return self.refine

    def check(self, inputs: Sequence[PathLike]) -> None:
        """Refuse outputs that cannot be written.

        Raises:
            OutputError: why.
        """
        files = [path for path in (self.output, self.report, self.plot) if path is not None]
        check_outputs(files, inputs, overwrite=self.overwrite)
        if self.samples is not None:
            check_samples(self.samples, overwrite=self.overwrite)


def evaluate(
    predicted: Model | PathLike | Sequence[PathLike],
    datasets: Dataset | Datasets,
    *,
    device: str = "auto",
    progress: Progress = silent,
    **options: Any,
) -> Scores:
    """Compare predictions with ground truth, where this is known.

    A model predicts at its own resolution, with its own bands, where there are labels. Masks
    are read on the grid of the datasets; for each raster the first mask that meets it counts.

    Args:
        predicted: a model or its folder, or GeoTIFFs of class values.
        datasets: images and ground truth.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: told after each block.
        **options: fields of :class:`Request`: ``split``, ``boundary_m``, ``output``, ``report``,
            ``samples``, ``plot``, ``refine``, ``keep_threshold``, ``overwrite``.

    Raises:
        RefinementError: predictions cannot be refined so.
        DatasetError: the legends differ, or no pixel of the split is labelled.
        ModelError: the threshold is to be kept, and the model cannot hold it.
        OutputError: an output cannot be written.
        GimsegError: a raster or the model cannot be read.

    Returns:
        the scores.
    """
    request = Request(**options)
    datasets = datasets if isinstance(datasets, Datasets) else Datasets((datasets,))
    masks, model = _masks_or_model(predicted)
    request.check(masks)
    if request.keep_threshold:
        _check_keeps(model)
    if model is not None:
        _check_legend(model, datasets)
        datasets = datasets.at_resolution(model.recipe.resolution).with_bands(model.recipe.bands)
    scenes = datasets.scenes()
    if model is not None and model.recipe.own_levels:
        scenes = levelled_by_raster(scenes)
    _check_refinement(request.chain, scenes)
    with TemporaryDirectory(prefix="gimseg-evaluate-") as folder:
        if model is None:
            predictions = _ready(masks, scenes, request.chain)
        else:
            predictions = _predicted(Predictor(model, device=device), request.chain, Path(folder), progress)
        scorers = [SceneScorer(scene, n, request.split, Path(folder)) for n, scene in enumerate(scenes)]
        reach = choose_reach(scenes, request.boundary_m)
        rows = [row for scorer in scorers for row in scorer.score(predictions, reach, progress)]
        if not rows:
            told = f" in split {request.split}" if request.split else ""
            raise DatasetError(f"no labelled pixel{told}: nothing can be scored")
        scores = Scores(datasets.legend, tuple(rows), reach)
        _write(request, scores, scorers, _provenance(request, model, masks, datasets))
    if request.keep_threshold and model is not None:
        _keep_threshold(model, scores)
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


def _check_refinement(chain: Refinement, scenes: Sequence[LabelledScene]) -> None:
    """Refuse what cannot be refined before any work."""
    for scene in scenes:
        chain.check_classes(len(scene.legend.classes))
        pixel_sides(chain, scene.geobox)


def _predicted(predictor: Predictor, chain: Refinement, folder: Path, progress: Progress) -> Predictions:
    return RefinedPredictions(predictor, chain, folder, progress) if chain.steps else ModelPredictions(predictor)


def _ready(masks: Sequence[str], scenes: Sequence[LabelledScene], chain: Refinement) -> Predictions:
    ready = ReadyMasks(masks, chain)
    for scene in scenes:
        ready.check(scene)
    return ready


def _write(request: Request, scores: Scores, scorers: Sequence[SceneScorer], provenance: dict[str, Any]) -> None:
    """All that is asked for."""
    if request.output is not None:
        write_text(request.output, json.dumps(scores.to_dict(), indent=1))
    if request.plot is not None:
        with staged(request.plot) as path:
            panels = list(_panels(scores.rows, scorers))
            draw_contact_sheet(path, panels, columns=2, title="hits green, misses blue, false alarms red")
    if request.samples is None and request.report is None:
        return
    samples = worst_samples(scores.rows, scorers)
    if request.samples is not None:
        grids = [scorer.scene.geobox for scorer in scorers]
        lists = list_windows(scores.rows, grids), list_rasters(scores.rows, grids)
        write_samples(request.samples, lists, samples, scores.legend)
    if request.report is not None:
        worst = sorted(scores.rows, key=lambda row: np.nan_to_num(row.confusion.mean_iou, nan=2))[:MOST_MAPS]
        overviews = {row.scene: scorers[row.scene].overview() for row in worst}
        score_page(scores, overviews, samples, provenance).write(request.report)


def _panels(rows: Sequence[Score], scorers: Sequence[SceneScorer]) -> Iterator[Panel]:
    """One of each raster."""
    for scorer in scorers:
        own = [row.confusion for row in rows if row.scene == scorer.number]
        if own:
            overview = scorer.overview()
            title = f"{Path(scorer.scene.path).name}  IoU {written(sum(own[1:], own[0]).mean_iou)}"
            yield Panel(title, overview.image, outcome_overlay(overview.truth, overview.classes))


def _provenance(request: Request, model: Model | None, masks: Sequence[str], datasets: Datasets) -> dict[str, Any]:
    """Settings, and where everything comes from, as people read it."""
    told: dict[str, Any] = {"title": f"Scores of {model.name if model else ', '.join(Path(m).name for m in masks)}"}
    tags = ", ".join(dict.fromkeys(dataset.tag for dataset in datasets))
    told["subtitle"] = f"against {tags}, {'split ' + request.split if request.split else 'all splits'}"
    if model is not None:
        recipe = model.recipe
        told["model"] = f"{model.name}, {model.folder or 'in memory'}, fingerprint {model.fingerprint()}"
        unit = "m" if recipe.crs_unit == "metre" else recipe.crs_unit
        told["recipe"] = (
            f"{recipe.resolution:g} {unit} a pixel, bands {', '.join(map(str, recipe.bands))}, "
            f"window {recipe.window} px, halo {recipe.halo} px, threshold {recipe.threshold:g}"
        )
        told |= {f"model: {name}": _in_lines(value) for name, value in model.provenance.items()}
    else:
        told["masks"] = "\n".join(masks)
    if request.chain.steps:
        told["refinement"] = str(request.chain)
    told["images"] = "\n".join(path for dataset in datasets for path in dataset.images)
    told["ground truth"] = "\n".join(path for dataset in datasets for path in dataset.masks)
    told["areas"] = "\n".join(path for dataset in datasets for path in dataset.aois) or "the whole footprint"
    told["written"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return told


def _in_lines(value: Any) -> str:
    """Plain values as a person reads them."""
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_in_line(part)}" for key, part in value.items())
    return _in_line(value)


def _in_line(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_line(part)}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _check_keeps(model: Model | None) -> None:
    """Refuse, before any work, to keep a threshold where there is no place for it."""
    if model is None:
        raise ModelError("masks have no threshold to keep: give the model that made them")
    model.check_keeps_threshold()


def _keep_threshold(model: Model, scores: Scores) -> None:
    """Write the threshold that is best on the validation split, or where there is none on all, into the model."""
    found = {one.split: one for one in scores.together}
    one = found["val"] if "val" in found else SplitScores("all", scores.legend, scores.rows, scores.reach)
    best = one.best_threshold()
    if not 0 < best < 1:
        raise ModelError(f"the highest IoU is at the threshold {best:g}: no threshold between 0 and 1 can be kept")
    model.keep_threshold(best, f"highest IoU on {one.split}, {one.confusion.total:,} pixels")
