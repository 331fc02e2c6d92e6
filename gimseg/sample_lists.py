"""The list of samples: windows and rasters by their scores, worst first, as tables, as layers and as pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
from odc.geo.geobox import GeoBox

from gimseg.geopackages import FurtherLayer, complete_geopackage
from gimseg.legend import UNLABELLED, Legend
from gimseg.outputs import check_outputs, staged
from gimseg.pictures import Panel, draw_contact_sheet, label_overlay, outcome_overlay
from gimseg.sample_windows import worst_first
from gimseg.scene_scores import SceneScorer, Score
from gimseg.styles import score_style
from gimseg.vector_output import write_features

FILES = ("windows.csv", "rasters.csv", "samples.gpkg", "worst.png")
"""What is written into the folder of samples."""
SHOWN = 12
"""Windows in the contact sheet and in the report."""

_DEGREES = "EPSG:4326"


@dataclass(frozen=True, eq=False)
class Sample:
    """A window with its picture.

    Args:
        title: what and where it is, and its scores.
        image: float32 (bands, rows, cols).
        truth: uint8 (rows, cols), raster values of the legend.
        classes: uint8 (rows, cols), predicted.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    classes: np.ndarray

    def panels(self, legend: Legend) -> tuple[Panel, ...]:
        """Image, truth, prediction, and where they differ."""
        return (
            Panel(self.title, self.image),
            Panel("truth", self.image, label_overlay(self.truth, legend)),
            Panel("prediction", self.image, label_overlay(_known(self.classes), legend)),
            Panel("hits green, misses blue, false alarms red", self.image, outcome_overlay(self.truth, self.classes)),
        )


def list_windows(rows: Sequence[Score], grids: Sequence[GeoBox]) -> gpd.GeoDataFrame:
    """All windows, worst first, with their footprints.

    Args:
        rows: of the rasters.
        grids: of the scenes.

    Returns:
        a row each: ``rank``, ``dataset``, ``raster``, ``split``, ``iou``, ``loss`` (cross-entropy,
        nats), ``wrong`` (share of labelled pixels), ``labelled``, ``true``, ``predicted`` (px),
        ``row``, ``col`` (px); in the CRS of the rasters, or in degrees if they have several.
    """
    return _ranked([_windows_of(row, grids[row.scene]) for row in rows])


def list_rasters(rows: Sequence[Score], grids: Sequence[GeoBox]) -> gpd.GeoDataFrame:
    """All rasters, worst first, with their footprints; the columns are those of windows but for their place."""
    frames = []
    for row in rows:
        table, grid = row.confusion, grids[row.scene]
        columns = _columns(row, table.matrix[None], np.array([table.mean_iou]), np.array([row.windows.loss]))
        frames.append(gpd.GeoDataFrame(columns, geometry=[grid.extent.geom], crs=_crs(grid)))
    return _ranked(frames)


def worst_samples(rows: Sequence[Score], scorers: Sequence[SceneScorer], count: int = SHOWN) -> list[Sample]:
    """The worst windows of all, with their pictures; those without anything wrong are left out."""
    places = [(row, number) for row in rows for number in range(len(row.windows))]
    scores = [np.concatenate([getattr(row.windows, name) for row in rows]) for name in ("iou", "wrong", "losses")]
    samples = []
    for place in worst_first(*scores)[:count]:
        row, number = places[place]
        if row.windows.wrong[number] > 0:
            samples.append(_sample(row, number, scorers[row.scene]))
    return samples


def write_samples(
    folder: str | os.PathLike[str],
    lists: tuple[gpd.GeoDataFrame, gpd.GeoDataFrame],
    samples: Sequence[Sample],
    legend: Legend,
) -> None:
    """Write the list of windows and that of rasters: CSV, GeoPackage with styles, contact sheet.

    Raises:
        OutputError: the disk refuses.
    """
    folder = Path(folder)
    for name, frame in zip(FILES[:2], lists, strict=True):
        with staged(folder / name) as path:
            frame.drop(columns="geometry").to_csv(path, index=False, float_format="%.5g")
    with staged(folder / FILES[2]) as path:
        _write_geopackage(path, *lists)
    with staged(folder / FILES[3]) as path:
        panels = [panel for sample in samples for panel in sample.panels(legend)]
        told = "" if panels else "no window has a wrong pixel"
        draw_contact_sheet(path, panels or [Panel(told, np.zeros((3, 8, 32), np.float32))], columns=4)


def check_samples(folder: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse, before any work, a folder where samples cannot be written; make it where it is missing.

    Raises:
        OutputError: files are there, or cannot be made.
    """
    folder = Path(folder)
    check_outputs([folder] if not folder.is_dir() else [], overwrite=overwrite)
    folder.mkdir(exist_ok=True)
    check_outputs([folder / name for name in FILES], overwrite=overwrite)


def _windows_of(row: Score, grid: GeoBox) -> gpd.GeoDataFrame:
    windows = row.windows
    columns = _columns(row, windows.counts, windows.iou, windows.losses)
    columns |= {"row": windows.edges[:, 0], "col": windows.edges[:, 2]}
    footprints = [grid[windows.roi(number)].extent.geom for number in range(len(windows))]
    return gpd.GeoDataFrame(columns, geometry=footprints, crs=_crs(grid))


def _columns(row: Score, counts: np.ndarray, iou: np.ndarray, losses: np.ndarray) -> dict[str, Any]:
    pixels = counts.sum((1, 2))
    named = {"dataset": row.tag, "raster": Path(row.path).name, "split": row.split}
    return {name: [text] * len(counts) for name, text in named.items()} | {
        "iou": iou,
        "loss": losses,
        "wrong": 1 - np.trace(counts, axis1=1, axis2=2) / pixels,
        "labelled": pixels,
        "true": counts[:, 1:].sum((1, 2)),
        "predicted": counts[:, :, 1:].sum((1, 2)),
    }


def _ranked(frames: Sequence[gpd.GeoDataFrame]) -> gpd.GeoDataFrame:
    crs = {frame.crs for frame in frames}
    if len(crs) > 1 and None not in crs:
        frames, crs = [frame.to_crs(_DEGREES) for frame in frames], {frames[0].to_crs(_DEGREES).crs}
    # Beside rasters without a CRS all keep their own coordinates, and nothing says what these are.
    joint = crs.pop() if len(crs) == 1 else None
    together = pd.concat([pd.DataFrame(frame) for frame in frames])
    scores = (together[name].to_numpy(np.float64) for name in ("iou", "wrong", "loss"))
    ranked = gpd.GeoDataFrame(together.iloc[worst_first(*scores)].reset_index(drop=True), crs=joint)
    ranked.insert(0, "rank", np.arange(1, len(ranked) + 1))
    return ranked


def _sample(row: Score, number: int, scorer: SceneScorer) -> Sample:
    windows = row.windows
    image, truth, classes = scorer.read(windows.roi(number))
    legend = scorer.scene.legend
    loss = windows.losses[number]
    told = f", loss {loss:.2f}" if np.isfinite(loss) else ""
    top, _, left, _ = windows.edges[number]
    title = f"{Path(row.path).name}, row {top}, column {left}\nIoU {windows.iou[number]:.2f}{told}"
    return Sample(title, image, legend.to_values(truth), legend.to_values(classes))


def _write_geopackage(path: Path, windows: gpd.GeoDataFrame, rasters: gpd.GeoDataFrame) -> None:
    style = score_style("iou")
    fields = {name: _field(windows[name]) for name in windows.columns if name != "geometry"}
    write_features(path, _chunks(windows), fields=fields, crs=windows.crs, geometry_type="Polygon", layer="windows")
    complete_geopackage(path, [FurtherLayer("rasters", rasters, "Polygon", style)], {"windows": style})


def _chunks(frame: gpd.GeoDataFrame, size: int = 10_000) -> Iterator[gpd.GeoDataFrame]:
    for start in range(0, max(len(frame), 1), size):
        yield frame.iloc[start : start + size]


def _field(column: pd.Series) -> str:
    return {"i": "int64", "f": "float64"}.get(column.dtype.kind, "str")


def _crs(grid: GeoBox) -> Any:
    return None if grid.crs is None else grid.crs.proj


def _known(classes: np.ndarray) -> np.ndarray:
    return np.where(classes == UNLABELLED, np.uint8(0), classes)
