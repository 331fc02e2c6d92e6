"""Mean probability inside polygons, exact for any outline, in memory that neither they nor the raster decide.

A pixel counts where its centre lies inside. Of one row of pixels a polygon covers what
lies between the edges that cross the line through the centres, so its sum there is a
difference of the row's running sums: one look-up for each edge and row, instead of a
mask for each polygon. So a polygon is whole however the raster is cut into windows, and
polygons that overlap do not disturb one another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import shapely
from pyproj import CRS
from rasterio.transform import Affine

from gimseg.errors import GridError, RasterError
from gimseg.ground import Ground, Ragged
from gimseg.masks import NativeRaster
from gimseg.raster_files import RasterFile

_TILE = 1024  # polygons that begin in one tile, px, are summed from one window
_BAND = 2**21  # pixels summed together at most, as long as they are not one row
_SLACK = 1e-6


@dataclass(frozen=True)
class Probabilities:
    """A raster of probabilities in the CRS of a mask, on the same grid or another one.

    Attributes:
        raster: one band for all classes, or one for each, described by its name.
        to_pixels: from map coordinates to (column, row) of the raster.
        is_asked_for: a mean beyond 0 to 1 is an error; else the raster may hold anything, and there is no mean.
    """

    raster: NativeRaster
    to_pixels: Affine
    is_asked_for: bool = True

    @classmethod
    def of_scores(cls, raster: NativeRaster) -> Probabilities | None:
        """Those of a raster that a threshold was set on; None where it cannot hold probabilities."""
        return cls(raster, ~raster.transform, is_asked_for=False) if _may_be_shares(raster) else None

    @classmethod
    def open(cls, path: str | os.PathLike[str], ground: Ground, shape: tuple[int, int]) -> Probabilities:
        """Describe a raster of probabilities that lies over a mask.

        Args:
            path: the raster.
            ground: of the mask.
            shape: (rows, columns) of the mask.

        Raises:
            RasterError: it cannot be read, or holds no probabilities.
            GridError: it lies elsewhere, or in another CRS.
        """
        raster = NativeRaster.open(path)
        if not _may_be_shares(raster):
            raise RasterError(
                f"{path} holds {raster.file.dtype} and no scale that makes them probabilities: declare it, as in "
                f"gdal_edit.py -scale {1 / 255:.6f} {path}"
            )
        found = cls(raster, ~raster.transform)
        own = None if found.raster.crs_wkt is None else CRS.from_wkt(found.raster.crs_wkt)
        if (own is None) != (ground.crs is None) or (
            own is not None and not own.equals(ground.crs, ignore_axis_order=True)
        ):
            names = [crs.name if crs else "no CRS" for crs in (own, ground.crs)]
            raise GridError(
                f"{path} has {names[0]} and the mask {names[1]}: warp the probabilities to the grid of the mask"
            )
        frame = shapely.transform(shapely.box(0, 0, *shape[::-1]), lambda xy: found._pixels(_placed(xy, ground)))
        if not shapely.box(0, 0, *found.raster.file.shape[::-1]).intersects(frame):
            raise GridError(f"{path} lies beside the mask: give the probabilities that the mask was made from")
        return found

    def check_classes(self, names: tuple[str, ...]) -> None:
        """Refuse, before the work, a raster of several bands of which one is missing for a class.

        Raises:
            RasterError: names the class and the bands.
        """
        for name in names:
            self._of_class(name)

    def means(self, placed: np.ndarray, names: np.ndarray) -> np.ndarray:
        """The mean probability inside each polygon.

        A polygon that holds no centre of a pixel has the probability of the pixel under a point inside it.

        Args:
            placed: polygons (n,) on the map, oriented.
            names: class of each, (n,).

        Returns:
            float64 (n,), NaN where there is no valid pixel.

        Raises:
            RasterError: a window cannot be read, a class has no band, or a value is no probability.
        """
        means = np.full(len(placed), np.nan)
        polygons = shapely.transform(placed, self._pixels)
        for name in np.unique(names.astype(str)):
            chosen = np.flatnonzero(names == name)
            band = self._of_class(str(name))
            raw = _means(band.file, polygons[chosen])
            means[chosen] = raw * band.scales[0] + band.offsets[0]
        odd = np.flatnonzero((means < -_SLACK) | (means > 1 + _SLACK))
        if len(odd) and self.is_asked_for:
            told = f"{self.raster.file.path} holds {means[odd[0]]:g}; probabilities are 0 to 1"
            raise RasterError(f"{told}: give those, or declare the scale")
        means[odd] = np.nan
        return means

    def _of_class(self, name: str) -> NativeRaster:
        return self.raster if len(self.raster.file.bands) == 1 else self.raster.only(name)

    def _pixels(self, points: np.ndarray) -> np.ndarray:
        return np.column_stack(self.to_pixels * tuple(points.T))


def _may_be_shares(raster: NativeRaster) -> bool:
    """Whether a raster has fractions, or whole numbers with a scale."""
    return np.dtype(raster.file.dtype).kind == "f" or set(raster.scales) != {1.0}


def _placed(points: np.ndarray, ground: Ground) -> np.ndarray:
    return np.column_stack(ground.transform * tuple(points.T))


class _Sums(NamedTuple):
    """Of the pixels inside each polygon: their values, how many are valid, how many there are."""

    values: np.ndarray
    valid: np.ndarray
    pixels: np.ndarray


def _means(file: RasterFile, polygons: np.ndarray) -> np.ndarray:
    """Means of stored values, polygons in (column, row)."""
    means = np.full(len(polygons), np.nan)
    for chosen in _groups(polygons):
        sums = _summed(file, polygons[chosen])
        some = sums.valid != 0
        # Both change their sign with the direction of the outline.
        means[chosen[some]] = sums.values[some] / sums.valid[some]
        for thin in chosen[sums.pixels == 0]:
            means[thin] = _under(file, polygons[thin])
    return means


def _groups(polygons: np.ndarray) -> Iterator[np.ndarray]:
    """Indices of polygons that are near one another; large ones alone."""
    bounds = shapely.bounds(polygons)
    tiles = np.floor(bounds[:, :2] / _TILE).astype(np.int64)
    large = (bounds[:, 2:] - bounds[:, :2] > _TILE).any(axis=1)
    keys = np.column_stack([np.where(large, np.arange(len(polygons)), -1), tiles[:, ::-1]])
    _, group = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(group.ravel()[order])) + 1) if len(order) else ()


def _summed(file: RasterFile, polygons: np.ndarray) -> _Sums:
    edges = _Edges.of(polygons)
    left, top, right, bottom = shapely.total_bounds(polygons)
    height, width = file.shape
    cols = slice(*np.clip([int(np.floor(left)), int(np.ceil(right))], 0, width).tolist())
    rows = slice(*np.clip([int(np.floor(top)), int(np.ceil(bottom))], 0, height).tolist())
    total = [np.zeros(len(polygons)) for _ in range(3)]
    step = max(1, _BAND // max(cols.stop - cols.start, 1))
    for start in range(rows.start, rows.stop, step):
        band = slice(start, min(start + step, rows.stop))
        if cols.start == cols.stop:
            break
        data, valid = file.read((band, cols))
        at, inside = edges.crossings(band, cols)
        pixels = edges.sums(at, inside)
        total[0] += edges.sums(at, _running(data[0])[at.rows - start, inside])
        total[1] += pixels if valid.all() else edges.sums(at, _running(valid)[at.rows - start, inside])
        total[2] += pixels
    return _Sums(*total)


def _running(values: np.ndarray) -> np.ndarray:
    """Sums of each row up to each column, (rows, columns + 1)."""
    whole = values.dtype.kind != "f"
    exact = np.float64 if not whole else np.int32 if values.dtype.itemsize == 1 else np.int64
    sums = np.zeros((values.shape[0], values.shape[1] + 1), exact)
    np.cumsum(values, axis=1, dtype=exact, out=sums[:, 1:])
    return sums


class _Crossings(NamedTuple):
    """Where edges cross the lines through the centres of pixels: which edge, which row."""

    edges: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class _Edges:
    """Edges of polygons from (x, y) to (x + dx, y + dy), and the polygon of each; level ones left out."""

    x: np.ndarray
    y: np.ndarray
    dx: np.ndarray
    dy: np.ndarray
    owners: np.ndarray
    count: int

    @classmethod
    def of(cls, polygons: np.ndarray) -> _Edges:
        ragged = Ragged.of(polygons)
        steps = np.diff(ragged.points, axis=0, append=ragged.points[:1])
        steps[ragged.rings[1:] - 1] = 0
        owners = np.repeat(np.arange(len(polygons)), np.diff(ragged.firsts, append=len(ragged.points)))
        kept = np.flatnonzero(steps[:, 1])
        x, y = ragged.points[kept].T
        dx, dy = steps[kept].T
        return cls(x, y, dx, dy, owners[kept], len(polygons))

    def crossings(self, rows: slice, cols: slice) -> tuple[_Crossings, np.ndarray]:
        """The crossings within some rows, and how many of the columns `cols` have their centre left of each."""
        first, last = np.sort(np.ceil([self.y - 0.5, self.y + self.dy - 0.5]), axis=0).astype(np.int64)
        first, last = np.clip(first, rows.start, rows.stop), np.clip(last, rows.start, rows.stop)
        times = last - first
        edges = np.repeat(np.arange(len(times)), times)
        row = np.arange(len(edges)) + np.repeat(first - np.cumsum(times) + times, times)
        x = self.x[edges] + (row + 0.5 - self.y[edges]) * (self.dx[edges] / self.dy[edges])
        inside = np.clip(np.ceil(x - 0.5).astype(np.int64), cols.start, cols.stop) - cols.start
        return _Crossings(edges, row), inside

    def sums(self, at: _Crossings, values: np.ndarray) -> np.ndarray:
        """What lies between the edges, for each polygon: values up to them, added downwards, taken away upwards."""
        signed = np.where(self.dy[at.edges] > 0, values, -values)
        return np.bincount(self.owners[at.edges], signed, minlength=self.count)


def _under(file: RasterFile, polygon: shapely.Geometry) -> float:
    """The value of the pixel under a point inside a polygon, NaN if there is none."""
    point = shapely.point_on_surface(polygon)
    row, col = int(np.floor(point.y)), int(np.floor(point.x))
    data, valid = file.read((slice(row, row + 1), slice(col, col + 1)))
    return float(data[0, 0, 0]) if valid[0, 0] else np.nan
