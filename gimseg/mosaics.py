"""Rasters that lie side by side, read as one.

Tiles that were cut from one raster lie on one lattice of pixels. They are joined before
anything is resampled, so what is read across their edges is what the whole raster gives.
Each tile keeps its own validity: nodata, masks, alpha. No other library joins that:
GDAL's virtual rasters know one kind of validity for all tiles.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from affine import Affine

from gimseg.errors import GridError, RasterError
from gimseg.raster_files import Pixels, Roi, Source
from gimseg.raster_views import Placement
from gimseg.rasters import Nodata, Raster, north_up_grid, open_raster

_NOTES = 5


@dataclass(frozen=True, eq=False)
class Tiles:
    """Native pixels of several files on one lattice; where tiles overlap, the first that is valid counts.

    Args:
        files: in order of precedence.
        corners: (row, column) of the first pixel of each.
        shape: (rows, columns) of all together.
    """

    files: tuple[Source, ...]
    corners: tuple[tuple[int, int], ...]
    shape: tuple[int, int]

    @property
    def path(self) -> str:
        """As messages name it."""
        return tiles_title([file.path for file in self.files])

    @property
    def bands(self) -> tuple[int, ...]:
        """1-based numbers of the bands that are read."""
        return self.files[0].bands

    @property
    def dtype(self) -> str:
        """Of the pixels."""
        return self.files[0].dtype

    @property
    def in_strips(self) -> bool:
        """Any part of a row of a tile costs all of it; rows of the whole are of several tiles."""
        return False

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that are read as one."""
        return (256, 256)

    def is_there(self) -> bool:
        """Whether all tiles still exist."""
        return all(file.is_there() for file in self.files)

    def is_empty(self, roi: Roi) -> bool:
        """Whether it is known, without reading pixels, that none is valid there."""
        return all(self.files[index].is_empty(self._inside(roi, index)) for index in self._near(roi))

    @cached_property
    def _boxes(self) -> np.ndarray:
        """Top, bottom, left and right of each tile, (tiles, 4)."""
        return np.array(
            [
                (row, row + file.shape[0], col, col + file.shape[1])
                for (row, col), file in zip(self.corners, self.files, strict=True)
            ]
        )

    def read(self, roi: Roi) -> Pixels:
        """Native values, shape (bands, rows, cols) of `dtype`, and their validity.

        Raises:
            RasterError: a tile cannot be read there.
        """
        rows, cols = roi
        shape = (max(rows.stop - rows.start, 0), max(cols.stop - cols.start, 0))
        out = Pixels(np.zeros((len(self.bands), *shape), self.dtype), np.zeros(shape, bool))
        for index in self._near(roi):
            self._fill(out, roi, index)
        return out

    def _near(self, roi: Roi) -> list[int]:
        """The tiles that meet a region, in order."""
        top, bottom, left, right = self._boxes.T
        rows, cols = roi
        near = (top < rows.stop) & (bottom > rows.start) & (left < cols.stop) & (right > cols.start)
        return [int(index) for index in np.flatnonzero(near)]

    def _inside(self, roi: Roi, index: int) -> Roi:
        """The part of a region that lies on a tile, in its own rows and columns."""
        top, bottom, left, right = (int(edge) for edge in self._boxes[index])
        rows = slice(max(roi[0].start, top) - top, min(roi[0].stop, bottom) - top)
        cols = slice(max(roi[1].start, left) - left, min(roi[1].stop, right) - left)
        return rows, cols

    def _fill(self, out: Pixels, roi: Roi, index: int) -> None:
        """Take what a tile holds where no tile before it was valid."""
        inside = self._inside(roi, index)
        place = tuple(
            slice(part.start + int(edge) - start.start, part.stop + int(edge) - start.start)
            for part, edge, start in zip(inside, self._boxes[index][[0, 2]], roi, strict=True)
        )
        missing = ~out.valid[place]
        if not missing.any():
            return
        data, valid = self.files[index].read(inside)
        missing &= valid
        np.copyto(out.data[:, *place], data, where=missing)
        out.valid[place] |= missing


def tiles_title(paths: Sequence[str]) -> str:
    """How messages name several rasters.

    Example:
        >>> tiles_title(["a.tif", "b.tif", "c.tif"])
        'a.tif and 2 more'
    """
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def open_mosaic(
    paths: Sequence[str | os.PathLike[str]],
    *,
    bands: Sequence[int] | None = None,
    crs: Any = None,
    nodata: Nodata = None,
    allow_vrt: bool = False,
) -> Raster:
    """Describe several rasters as one over their union; one alone is :func:`gimseg.rasters.open_raster`'s.

    Args:
        paths: of rasters of one CRS, resolution, pixel lattice and data type. Where they
            overlap, the first that is valid counts.
        bands: see there, as all others; they hold for each raster.

    Raises:
        RasterError: a raster cannot be used, or differs in data type or bands.
        GridError: CRS, resolution or pixel lattice differ.
    """
    if not paths:
        raise RasterError("no raster was given: a mosaic needs one at least")
    rasters = [open_raster(path, bands=bands, crs=crs, nodata=nodata, allow_vrt=allow_vrt) for path in paths]
    first = rasters[0]
    if len(rasters) == 1:
        return first
    corners = [_corner(first, other) for other in rasters]
    top, left = min(row for row, _ in corners), min(col for _, col in corners)
    moved = tuple((row - top, col - left) for row, col in corners)
    rows, cols = (
        max(corner[axis] + raster.file.shape[axis] for corner, raster in zip(moved, rasters, strict=True))
        for axis in (0, 1)
    )
    notes = _notes(rasters)
    placement = Placement(first.placement.crs, transform=_transform(rasters, moved))
    assert placement.transform is not None
    grid_notes: list[str] = []
    geobox = north_up_grid(placement.transform, (rows, cols), placement.crs, grid_notes)
    tiles = Tiles(tuple(raster.file for raster in rasters), moved, (rows, cols))
    return Raster(tiles.path, geobox, first.bands, first.band_names, first.dtype, first.nodata, notes, tiles, placement)


def _corner(first: Raster, other: Raster) -> tuple[int, int]:
    """(row, column) of a raster's first pixel, counted in pixels of the first raster."""
    one, two = first.placement, other.placement
    if one.crs != two.crs:
        raise GridError(
            f"{first.path} has the CRS {_name(one.crs)}, {other.path} {_name(two.crs)}: a mosaic needs one: warp them "
            "to one first (gdalwarp -t_srs), or predict them apart"
        )
    if (first.dtype, first.bands) != (other.dtype, other.bands):
        raise RasterError(
            f"{first.path} holds {first.dtype}, bands {first.bands}, {other.path} {other.dtype}, bands {other.bands}: "
            "a mosaic needs rasters that are alike; say with --bands which to use"
        )
    if one.transform is None or two.transform is None:
        placed = first if one.transform is None else other
        raise GridError(f"{placed.path} is placed by control points or RPCs: warp it first (gdalwarp), for a mosaic")
    a, b, c, d, e, f = tuple(~one.transform * two.transform)[:6]
    extent = max(*first.file.shape, *other.file.shape)
    drift = max(abs(a - 1), abs(e - 1), abs(b), abs(d)) * extent
    if drift > 1e-2 or max(abs(c - round(c)), abs(f - round(f))) > 1e-2:
        raise GridError(
            f"{first.path} and {other.path} do not lie on one lattice of pixels (sizes {first.resolution[1]:.9g} and "
            f"{other.resolution[1]:.9g}, {c % 1:.2g} and {f % 1:.2g} px apart): bring them onto one first "
            "(gdalwarp -tap -tr), or predict them apart"
        )
    return round(f), round(c)


def _transform(rasters: Sequence[Raster], corners: Sequence[tuple[int, int]]) -> Affine:
    """Of the whole: that of the tile in its corner, to the last digit, where there is one."""
    for raster, corner in zip(rasters, corners, strict=True):
        if corner == (0, 0) and raster.placement.transform is not None:
            return raster.placement.transform
    transform = rasters[0].placement.transform
    assert transform is not None
    return transform * Affine.translation(-corners[0][1], -corners[0][0])


def _notes(rasters: Sequence[Raster]) -> tuple[str, ...]:
    """What is to be known of the tiles, each thing once."""
    counts = Counter(note for raster in rasters for note in raster.notes)
    told = [note if count == len(rasters) else f"{count} rasters: {note}" for note, count in counts.most_common()]
    return (*told[:_NOTES], *([f"and {len(told) - _NOTES} more notes"] if len(told) > _NOTES else []))


def _name(crs: Any) -> str:
    if crs is None:
        return "none"
    return f"EPSG:{crs.to_epsg()}" if crs.to_epsg() else str(crs.to_wkt())[:60]
