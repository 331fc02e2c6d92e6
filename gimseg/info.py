"""What a dataset file, a raster or a model holds, told to a person."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gimseg.balance import class_balance
from gimseg.datasets import Datasets, read_datasets
from gimseg.errors import DatasetError
from gimseg.labelled_scenes import LabelledScene
from gimseg.labelled_windows import WindowRequest
from gimseg.legend import UNLABELLED
from gimseg.models import Model
from gimseg.outputs import check_outputs, staged
from gimseg.pictures import Panel, draw_contact_sheet, label_overlay
from gimseg.progress import Progress, silent
from gimseg.rasters import Raster, metres_per_unit, open_raster
from gimseg.recipes import Recipe
from gimseg.sampling import Survey, WindowSampler, survey
from gimseg.window_choice import choose_lattice, memory_per_pixel

_LARGE = 40_000


def describe(
    path: str | os.PathLike[str],
    *,
    plot: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> str:
    """Lines of text on a dataset file (.toml), a model folder or a raster.

    Args:
        path: what to look at.
        plot: for datasets: PNG file to write, a contact sheet of windows with labels.
        overwrite: the PNG file may be replaced.
        progress: told while datasets are read.

    Raises:
        GimsegError: the file cannot be read, or there is nothing to plot.
    """
    path = Path(path)
    if path.suffix.lower() == ".toml":
        if plot is not None:
            check_outputs([plot], [path], overwrite=overwrite)
        datasets = read_datasets(path)
        surveys = survey_all(datasets, progress)
        if plot is not None:
            draw_windows(surveys, plot)
        return "\n".join(describe_datasets(datasets, surveys))
    if plot is not None:
        raise DatasetError(f"{path} is no dataset file (.toml): only datasets have windows with labels to plot")
    if path.is_dir():
        return "\n".join(describe_model(Model.load(path)))
    return "\n".join(describe_raster(open_raster(path)))


def survey_all(datasets: Datasets, progress: Progress = silent) -> tuple[Survey, ...]:
    """Every scene surveyed, in each of its splits."""
    return tuple(survey(scene, split, progress) for scene in datasets.scenes() for split in scene.split_names)


@dataclass(frozen=True)
class _Group:
    """Surveys of one dataset in one split."""

    tag: str
    split: str | None
    surveys: tuple[Survey, ...]

    @property
    def counts(self) -> np.ndarray:
        return np.sum([item.counts for item in self.surveys], axis=0)

    @property
    def scenes(self) -> tuple[LabelledScene, ...]:
        return tuple(item.scene for item in self.surveys)


def describe_datasets(datasets: Datasets, surveys: Sequence[Survey]) -> list[str]:
    """Tables of rasters, of classes, and of the balance of each split; warnings."""
    groups = [
        _Group(item.tag, split, tuple(one for one in surveys if one.scene.tag == item.tag and one.split == split))
        for item in datasets
        for split in dict.fromkeys(one.split for one in surveys if one.scene.tag == item.tag)
    ]
    rasters: list[tuple[str, ...]] = [
        ("dataset", "split", "rasters", "Mpx", "resolution", "CRS", "bands", "dtype", "unlabelled")
    ]
    classes = [("dataset", "split", "class", "share of labelled pixels", "pixels", "objects")]
    for group in groups:
        rasters.append(_raster_row(group))
        labelled = int(group.counts[:UNLABELLED].sum())
        for name, value in (("background", 0), *zip(datasets.legend.names, datasets.legend.values, strict=True)):
            count = int(group.counts[value])
            share = f"{count / labelled:.2%}" if labelled else "–"
            objects = f"{sum(scene.count_objects(value, group.split) for scene in group.scenes):,}" if value else ""
            classes.append((group.tag, group.split or "–", name, share, f"{count:,}", objects))
    warnings = list(dict.fromkeys(f"{one.scene.path}: {note}" for one in surveys for note in one.scene.notes))
    warnings += [
        f"{one.scene.path}: no labelled pixel{f' for {one.split}' if one.split else ''}"
        for one in surveys
        if not one.labelled.any()
    ]
    lines = [*_table(rasters), "", *_table(classes), "", *_table(_balance_rows(surveys))]
    return [*lines, "", "Warnings:", *(f"  {warning}" for warning in warnings)] if warnings else lines


def _balance_rows(surveys: Sequence[Survey]) -> list[tuple[str, ...]]:
    """How often each class is there in each split, all datasets together, and what would make them weigh alike."""
    rows: list[tuple[str, ...]] = [("split", "class", "share", "weight auto", "empty windows of 256 px")]
    for balance in class_balance(surveys, 256):
        table = zip(balance.names, balance.shares, balance.weights, strict=True)
        for number, (name, share, weight) in enumerate(table):
            there = "–" if math.isnan(share) else f"{share:.2%}"
            empty = "" if number else f"{balance.empty:.0%} of the labelled ground"
            rows.append((balance.split or "–", name, there, f"{weight:.3g}", empty))
    return rows


def describe_model(model: Model) -> list[str]:
    """What a model needs and what it reached."""
    recipe = model.recipe
    unit = "m" if recipe.crs_unit == "metre" else recipe.crs_unit
    rows = [
        ("network", model.name),
        ("parameters", f"{sum(weights.numel() for weights in model.network.parameters()):,}"),
        ("classes", ", ".join(recipe.legend.names)),
        ("bands", f"{', '.join(map(str, recipe.bands))} ({recipe.dtype})"),
        ("resolution", f"{recipe.resolution:g} {unit} per pixel"),
        ("window, stride", f"{recipe.window}, {recipe.stride} px"),
        ("reach", _reach(recipe)),
        ("prediction", _prediction(model)),
        ("threshold", f"{recipe.threshold:g}" if recipe.legend.is_binary else "highest probability"),
        ("fingerprint", model.fingerprint()),
        *((f"scores, {split}", _scores(values)) for split, values in model.scores.items()),
    ]
    return [f"{name:<22}{value}" for name, value in rows]


def _reach(recipe: Recipe) -> str:
    if recipe.blend:
        return "the whole window: windows are blended where they overlap"
    return f"{recipe.halo} px: what lies further away hardly changes a class; so wide is the halo"


def _prediction(model: Model) -> str:
    """Windows and cost for a large raster on this machine's processor."""
    lattice = choose_lattice((_LARGE, _LARGE), model, torch.device("cpu"))
    memory = memory_per_pixel(model) * lattice.window[0] * lattice.window[1]
    return f"windows of {lattice.window[0]} px, {lattice.cost:.2f} times the pixels, {memory / 1e6:,.0f} MB (CPU)"


def describe_raster(raster: Raster) -> list[str]:
    """Grid, bands and what a person should know of a raster."""
    rows, cols = raster.shape
    rows_of_text = [
        ("size", f"{cols:,} x {rows:,} px ({rows * cols / 1e6:.1f} Mpx)"),
        ("CRS", str(raster.crs) if raster.crs is not None else "none"),
        ("resolution", f"{raster.resolution[1]:g} x {raster.resolution[0]:g} {raster.unit}"),
        ("bounds", ", ".join(f"{edge:.10g}" for edge in raster.bounds)),
        ("bands", f"{', '.join(map(str, raster.bands))} ({raster.dtype})"),
        ("nodata", str(raster.nodata)),
        *(("note", note) for note in raster.notes),
    ]
    return [f"{name:<12}{value}" for name, value in rows_of_text]


def draw_windows(
    surveys: Sequence[Survey], plot: str | os.PathLike[str], *, count: int = 16, window: int = 256
) -> None:
    """Write a contact sheet of windows with their labels drawn on, as many from each dataset.

    Raises:
        DatasetError: no pixel is labelled.
    """
    panels = []
    tags = list(dict.fromkeys(item.scene.tag for item in surveys))
    for tag in tags:
        members = tuple(item for item in surveys if item.scene.tag == tag and item.labelled.any())
        if not members:
            continue
        for request in WindowSampler(members, window, 0.8).draw(max(1, count // len(tags)), seed=0):
            panels.append(_window_panel(members[request.scene], request, window))
    if not panels:
        raise DatasetError("no pixel is labelled: there is no window to draw")
    with staged(plot) as path:
        draw_contact_sheet(path, panels, columns=4, title="labels over windows; hatched: unlabelled")


def _window_panel(item: Survey, request: WindowRequest, window: int) -> Panel:
    top, left = request.row - window // 2, request.col - window // 2
    pixels, labels = item.scene.read((slice(top, top + window), slice(left, left + window)), item.split)
    title = f"{item.scene.tag}{f' ({item.split})' if item.split else ''}"
    return Panel(title, pixels.data, label_overlay(labels, item.scene.legend))


def _raster_row(group: _Group) -> tuple[str, ...]:
    scenes = group.scenes
    unlabelled = group.counts[UNLABELLED] / max(1, int(group.counts.sum()))
    return (
        group.tag,
        group.split or "–",
        str(len(scenes)),
        f"{sum(scene.shape[0] * scene.shape[1] for scene in scenes) / 1e6:.2f}",
        _resolution(scenes[0]),
        ", ".join(dict.fromkeys(str(scene.raster.crs) if scene.raster.crs else "none" for scene in scenes)),
        ", ".join(map(str, scenes[0].raster.bands)),
        ", ".join(dict.fromkeys(scene.raster.dtype for scene in scenes)),
        f"{unlabelled:.1%}",
    )


def _resolution(scene: LabelledScene) -> str:
    """As metres where the CRS tells them."""
    if scene.geobox.crs is None:
        return f"{abs(scene.geobox.transform.e):g} (no CRS)"
    return f"{abs(scene.geobox.transform.e) * metres_per_unit(scene.geobox)[0]:.3g} m"


def _scores(values: object) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) if isinstance(values, dict) else str(values)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
