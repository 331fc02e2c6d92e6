"""What a corrected model changes in a whole raster: pixels, objects, and where.

Both masks are walked block by block, and their polygons tile by tile: memory depends on
neither.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray

from gimseg.correction.suggestions import Doubt
from gimseg.geopackages import complete_geopackage
from gimseg.legend import UNLABELLED
from gimseg.object_scores import match_objects
from gimseg.outputs import staged
from gimseg.progress import Progress, silent
from gimseg.rasters import RasterView, Roi
from gimseg.styles import outline_style
from gimseg.tiling import chunks
from gimseg.vector_formats import GEOPACKAGE
from gimseg.vectorization import vectorize

APPEARED, VANISHED = "appeared", "vanished"
COLOURS = {APPEARED: "#2ecc40", VANISHED: "#ff3228"}
_BLOCK = 1024
_TILE = 2048  # polygons in one, about
_MAP = 720  # cells of the map along its longer side, at most
# As for a drawing: below it two objects that overlap are two.
_SAME_OBJECT = 0.2
_COLUMNS = ("class", "area_m2", "confidence")


class PixelCounts(NamedTuple):
    """Pixels of some ground."""

    seen: int
    """That both masks tell a class of."""
    gained: int
    """Background before, of a class after."""
    lost: int
    """Of a class before, background after."""
    other: int
    """Of another class after."""

    @property
    def share(self) -> float:
        """Of the pixels that changed; NaN without one."""
        return (self.gained + self.lost + self.other) / self.seen if self.seen else math.nan

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "share_changed": None if math.isnan(self.share) else self.share}


@dataclass(frozen=True, eq=False)
class Changed:
    """What changed in a raster.

    Args:
        drawn: pixels where something was drawn.
        rest: all others.
        map: where: ``gained`` and ``lost`` pixels in square cells.
    """

    drawn: PixelCounts
    rest: PixelCounts
    gained: Doubt
    lost: Doubt


class Objects(NamedTuple):
    """Objects of a raster by what became of them."""

    before: int
    after: int
    appeared: int
    vanished: int


def compare_masks(
    before: RasterView,
    after: RasterView,
    is_drawn: Callable[[Roi], NDArray[np.bool_]],
    *,
    progress: Progress = silent,
) -> Changed:
    """Compare two masks pixel by pixel.

    Args:
        before: class values.
        after: class values on the same grid.
        is_drawn: which pixels of a region were drawn, bool (rows, cols).
        progress: told how much is done.

    Raises:
        RasterError: a mask cannot be read.
    """
    shape = (int(after.geobox.shape[0]), int(after.geobox.shape[1]))
    cell = max(1, math.ceil(max(shape) / _MAP))
    maps = Doubt.zeros(shape, cell), Doubt.zeros(shape, cell)
    totals = np.zeros((2, 4), np.int64)
    whole, done = shape[0] * shape[1] / 1e6, 0.0
    progress("compare", 0, whole, "Mpx")
    for roi in chunks(shape, _BLOCK, _BLOCK):
        old, new = (_classes(view, roi) for view in (before, after))
        seen = (old != UNLABELLED) & (new != UNLABELLED)
        gained, lost = seen & (old == 0) & (new != 0), seen & (old != 0) & (new == 0)
        for plane, values in zip(maps, (gained, lost), strict=True):
            plane.add(roi, values, seen)
        other = seen & (old != new) & ~gained & ~lost
        inside = is_drawn(roi)
        for number, ground in enumerate((inside, ~inside)):
            totals[number] += [(ground & plane).sum() for plane in (seen, gained, lost, other)]
        done += seen.size / 1e6
        progress("compare", done, whole, "Mpx")
    drawn, rest = (PixelCounts(*map(int, row)) for row in totals)
    return Changed(drawn, rest, *maps)


def compare_polygons(
    before: str | os.PathLike[str], after: str | os.PathLike[str], output: Path, *, progress: Progress = silent
) -> Objects:
    """Write the objects that appeared and vanished between two masks: layers of those names.

    An object appeared if none of its class was there that it overlaps by more than a
    fifth (IoU), and vanished likewise.

    Args:
        before: mask of classes.
        after: mask of classes, on the same grid.
        output: GeoPackage; replaced.
        progress: told how far the work is.

    Raises:
        RasterError: a mask cannot be read.
        OutputError: the output cannot be written.
    """
    with staged(output) as part:
        layers = [part.with_name(f"{name}.fgb") for name in ("before", "after")]
        counts = [
            vectorize(mask, layer, progress=progress).count for mask, layer in zip((before, after), layers, strict=True)
        ]
        before_layer, after_layer = layers
        found = [
            _write(part, APPEARED, after_layer, before_layer),
            _write(part, VANISHED, before_layer, after_layer),
        ]
        complete_geopackage(part, (), {name: outline_style(colour) for name, colour in COLOURS.items()})
        for layer in layers:
            for path in layer.parent.glob(f"{layer.stem}.*"):
                path.unlink()
    return Objects(counts[0], counts[1], *found)


def _classes(view: RasterView, roi: Roi) -> NDArray[np.uint8]:
    pixels = view.read_values(roi)
    return np.where(pixels.valid, pixels.data[0], UNLABELLED).astype(np.uint8)


def _only_in(own: Path, other: Path, columns: list[str]) -> Iterator[gpd.GeoDataFrame]:
    """Polygons of one layer that have no partner in the other, tile by tile."""
    info = pyogrio.read_info(own, force_feature_count=True, force_total_bounds=True)
    if info["total_bounds"] is None:
        return
    left, bottom, right, top = info["total_bounds"]
    size = max(right - left, top - bottom) / max(1, math.ceil(math.sqrt(info["features"] / _TILE)))
    for x in np.arange(left, right + size, size):
        for y in np.arange(bottom, top + size, size):
            frame = pyogrio.read_dataframe(own, bbox=(x, y, x + size, y + size), columns=columns)
            # Each polygon is looked at once: in the tile in which one point of it lies.
            points = shapely.get_coordinates(shapely.point_on_surface(frame.geometry.to_numpy()))
            mine = ((points >= (x, y)) & (points < (x + size, y + size))).all(axis=1)
            frame = frame[mine].reset_index(drop=True)
            if len(frame):
                yield frame[~_has_partner(frame, other)]


def _has_partner(frame: gpd.GeoDataFrame, other: Path) -> NDArray[np.bool_]:
    near = pyogrio.read_dataframe(other, bbox=tuple(frame.total_bounds), columns=["class"])
    found = np.zeros(len(frame), bool)
    for name in frame["class"].unique():
        chosen = np.flatnonzero(frame["class"] == name)
        others = near.geometry[near["class"] == name].to_numpy()
        pairs = match_objects(frame.geometry.to_numpy()[chosen], others, least_iou=_SAME_OBJECT)
        found[chosen[pairs.true]] = True
    return found


def _write(part: Path, name: str, own: Path, other: Path) -> int:
    """Write a layer, tile by tile; how many polygons it has."""
    columns = [column for column in _COLUMNS if column in pyogrio.read_info(own)["fields"]]
    empty = pyogrio.read_dataframe(own, max_features=1, columns=columns).iloc[:0]
    count = 0
    for place, frame in enumerate(chain([empty], _only_in(own, other, columns))):
        pyogrio.write_dataframe(
            frame,
            part,
            layer=name,
            driver="GPKG",
            geometry_type="Polygon",
            dataset_options=GEOPACKAGE,
            append=bool(place),
        )
        count += len(frame)
    return count
