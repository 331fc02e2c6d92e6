"""Layers of polygons that a person gives: what of them lies on rasters, and what is to be said of the rest."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import geopandas as gpd
import numpy as np
import shapely
from odc.geo.geobox import GeoBox

from gimseg.errors import CorrectionError
from gimseg.rasters import Raster
from gimseg.vector_formats import find_null, read_columns, read_numbered
from gimseg.vector_geometry import (
    footprint_of,
    frame_of,
    name_of,
    repaired,
    transformed,
    widened_bounds,
    without_nothing,
)
from gimseg.vectors import Layer, extents_text, open_layer

_KINDS = ("points", "lines", "polygons")


@dataclass(frozen=True, eq=False)
class Areas:
    """Polygons of a layer that meet rasters.

    Args:
        on: those on each raster, in its CRS, in the order in which the rasters were given.
        all: each of them once, in the CRS of the first raster that any of them meets.
        notes: what of the layer was left out, repaired or not understood, with counts.
    """

    on: tuple[gpd.GeoDataFrame, ...]
    all: gpd.GeoDataFrame
    notes: tuple[str, ...]


class _Found(NamedTuple):
    """Polygons on one raster."""

    numbers: np.ndarray
    """(n,), of the features."""
    geometries: np.ndarray
    """(n,), in the raster's CRS."""
    repaired: frozenset[int]
    """Numbers of those that were."""
    bare: frozenset[int]
    """Numbers of the features there that have no area."""


def read_areas(
    path: str | os.PathLike[str],
    rasters: Sequence[Raster],
    *,
    resolution: float | None = None,
    vector_crs: str | None = None,
) -> Areas:
    """Read the polygons of a layer that meet one of several rasters.

    Args:
        path: the layer.
        rasters: one at least; all of them with a CRS, or none.
        resolution: of the grids that they have to meet, see :meth:`gimseg.rasters.Raster.grid`.
        vector_crs: declared CRS of the layer.

    Raises:
        CorrectionError: there are none; it says why.
        VectorError: the layer cannot be used.
    """
    layer = open_layer(path, crs=vector_crs)
    grids = [raster.grid(resolution) for raster in rasters]
    found = [_find(layer, grid) for grid in grids]
    if not any(len(one.numbers) for one in found):
        check_polygons(layer)
        raise CorrectionError(_why_none(layer, rasters))
    frames = tuple(
        gpd.GeoDataFrame(geometry=one.geometries, crs=None if grid.crs is None else grid.crs.proj)
        for one, grid in zip(found, grids, strict=True)
    )
    notes = [*layer.notes, *_notes(layer, grids, found)]
    return Areas(frames, _once(frames, found), tuple(f"{layer.path}: {note}" for note in notes))


def check_polygons(layer: Layer, *, alone: bool = False) -> None:
    """Refuse a layer in which nothing has an area.

    Args:
        layer: it.
        alone: points and lines beside polygons are refused, too.

    Raises:
        CorrectionError: says what is in it.
        VectorError: the file is damaged.
    """
    if layer.bounds is None:
        raise CorrectionError(
            f"{layer.path} holds no feature that has a geometry: draw polygons, or give another layer"
        )
    if layer.geometry_types and all(name.startswith(("Polygon", "MultiPolygon")) for name in layer.geometry_types):
        return
    geometries = read_columns(layer.source, (), None)[0]
    geometries, _ = without_nothing(geometries, Counter())
    kinds = Counter(_KINDS[dimension] for dimension in shapely.get_dimensions(geometries).tolist())
    if not kinds["polygons"] or (alone and len(kinds) > 1):
        told = " and ".join(_counted(kinds[kind], kind) for kind in _KINDS if kinds[kind])
        raise CorrectionError(f"{layer.path} holds {told}: polygons are needed, and nothing else; save them as a layer")


def _find(layer: Layer, grid: GeoBox) -> _Found:
    """What of a layer lies on a raster, repaired, by the numbers of its features."""
    nothing = _Found(np.empty(0, int), np.empty(0, object), frozenset(), frozenset())
    if not layer.meets(grid):
        return nothing
    crs = None if grid.crs is None else layer.crs
    numbers, geometries, _ = read_numbered(layer.source, (), widened_bounds(frame_of(grid, 0.0), grid.crs, crs))
    geometries, kept = without_nothing(geometries, Counter())
    numbers = numbers[kept]
    geometries, kept = transformed(geometries, crs, grid.crs, Counter())
    numbers = numbers[kept]
    broken = ~shapely.is_valid(geometries)
    geometries = repaired(geometries, Counter())
    areal, footprint = shapely.area(geometries) > 0, footprint_of(grid)
    # What touches the raster along its border alone has no pixel of it.
    near = shapely.intersects(geometries, footprint) & ~(areal & shapely.touches(geometries, footprint))
    bare = numbers[~areal & (near | shapely.is_empty(geometries))]
    shown = areal & near
    mended = frozenset(numbers[shown & broken].tolist())
    return _Found(numbers[shown], geometries[shown], mended, frozenset(bare.tolist()))


def _once(frames: Sequence[gpd.GeoDataFrame], found: Sequence[_Found]) -> gpd.GeoDataFrame:
    """All areas in the CRS of the first frame that has any, a feature that meets several rasters once."""
    crs = next(frame.crs for frame in frames if len(frame))
    geometries: dict[int, shapely.Geometry] = {}
    for frame, one in zip(frames, found, strict=True):
        same = frame if crs is None else frame.to_crs(crs)
        for number, geometry in zip(one.numbers.tolist(), same.geometry, strict=True):
            geometries.setdefault(number, geometry)
    return gpd.GeoDataFrame(geometry=list(geometries.values()), crs=crs).drop_duplicates(ignore_index=True)


def _notes(layer: Layer, grids: Sequence[GeoBox], found: Sequence[_Found]) -> list[str]:
    used = {number for one in found for number in one.numbers.tolist()}
    bare = {number for one in found for number in one.bare} - used
    mended = {number for one in found for number in one.repaired}
    # Those without a geometry are in the layer's own notes already.
    beyond = layer.count - len(used | bare) - len(find_null(layer.source))
    said = (
        (len(mended), "repaired: invalid"),
        (len(bare), "left out: without an area (points, lines, or polygons that collapse)"),
        (beyond, "left out: beyond the rasters"),
    )
    notes = [f"{_counted(count, 'features')} {text}" for count, text in said if count]
    if grids[0].crs is None and layer.crs is not None:
        notes.append(
            f"the raster has no CRS: coordinates were taken as they are, though the layer is in {name_of(layer.crs)}"
        )
    return notes


def _why_none(layer: Layer, rasters: Sequence[Raster]) -> str:
    """Why no polygon of a layer that has some meets a raster."""
    named, first = ", ".join(raster.path for raster in rasters), rasters[0].geobox
    missed = f"{layer.path}: none of its areas meets {named}"
    if first.crs is None and layer.crs is not None:
        return (
            f"{missed}: no raster has a CRS, so coordinates were taken as they are, and the layer is in "
            f"{name_of(layer.crs)}: declare the rasters' CRS (--crs)"
        )
    if layer.meets(first):
        return f"{missed}: give polygons with an area that lie on them"
    return f"{missed}: {extents_text(layer, first)}; draw others, or declare the layer's CRS (--vector-crs)"


def _counted(count: int, things: str) -> str:
    """A count with its noun.

    Example:
        >>> _counted(1, "lines"), _counted(2, "lines")
        ('1 line', '2 lines')
    """
    return f"{count} {things.removesuffix('s') if count == 1 else things}"
