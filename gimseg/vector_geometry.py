"""Geometries and extents between a vector layer's CRS, a raster's CRS and its pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyproj
import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

Bounds = tuple[float, float, float, float]
"""left, bottom, right, top."""

_METRES_PER_DEGREE = 111_320.0
# A power of two, so that snapped coordinates less whole pixels stay exact.
_SNAP = 2.0**20


@lru_cache(maxsize=64)
def same_crs(one: CRS, other: CRS) -> bool:
    """Whether coordinates, x first, mean the same in both."""
    return one == other or bool(one.proj.equals(other.proj, ignore_axis_order=True))


def name_of(crs: CRS | None) -> str:
    """A CRS as a person calls it.

    Example:
        >>> name_of(CRS("EPSG:32631")), name_of(None)
        ('EPSG:32631 (WGS 84 / UTM zone 31N)', 'no CRS')
    """
    if crs is None:
        return "no CRS"
    return f"EPSG:{crs.epsg} ({crs.proj.name})" if crs.epsg else f"a CRS without EPSG code ({crs.proj.name})"


@lru_cache(maxsize=64)
def is_convertible(source: CRS, target: CRS) -> bool:
    """Whether PROJ knows a way from one CRS to another; from an undefined Cartesian one it knows none."""
    try:
        return same_crs(source, target) or bool(_transformer(source, target))
    except pyproj.exceptions.ProjError:
        return False


def _transformer(source: CRS, target: CRS) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(source.proj, target.proj, always_xy=True)


def bounds_between(bounds: Sequence[float], source: CRS | None, target: CRS | None) -> Bounds:
    """The extent, in `target`, of a box in `source`; infinite where that has no answer."""
    left, bottom, right, top = map(float, bounds)
    if source is None or target is None or same_crs(source, target):
        return left, bottom, right, top
    box = _transformer(source, target).transform_bounds(left, bottom, right, top, densify_pts=51)
    # A box over the dateline comes back with left > right: both ends of the world then.
    return box if box[0] <= box[2] else (-180.0, box[1], 180.0, box[3])


def widened_bounds(frame: Bounds, source: CRS | None, target: CRS | None) -> Bounds | None:
    """The frame in the layer's CRS, a little wider; None (all features) where that has no answer."""
    box = bounds_between(frame, source, target)
    if not np.isfinite(box).all():
        return None
    wide, high = 0.01 * (box[2] - box[0]), 0.01 * (box[3] - box[1])
    return box[0] - wide, box[1] - high, box[2] + wide, box[3] + high


def units_per_metre(geobox: GeoBox) -> tuple[float, float]:
    """CRS units of one metre along x and y; 1 without a CRS."""
    if geobox.crs is None:
        return 1.0, 1.0
    if geobox.crs.geographic:
        box = geobox.extent.boundingbox
        shrink = max(0.01, float(np.cos(np.radians((box.bottom + box.top) / 2))))
        return 1 / (_METRES_PER_DEGREE * shrink), 1 / _METRES_PER_DEGREE
    factor = geobox.crs.proj.axis_info[0].unit_conversion_factor or 1.0
    return 1 / factor, 1 / factor


def frame_of(geobox: GeoBox, margin_m: float) -> Bounds:
    """The extent of a grid, wider by a ground length on all sides."""
    box = geobox.extent.boundingbox
    wide, high = (margin_m * units for units in units_per_metre(geobox))
    return box.left - wide, box.bottom - high, box.right + wide, box.top + high


def footprint_of(geobox: GeoBox) -> shapely.Polygon:
    """The outline of a grid, rotated as it is, in its own coordinates."""
    return geobox.extent.geom


def to_pixels(geometries: np.ndarray, geobox: GeoBox) -> np.ndarray:
    """Geometries in pixels of a grid, snapped so that every window of a raster sees the same numbers."""
    to_pixel = ~geobox.affine

    def convert(coordinates: np.ndarray) -> np.ndarray:
        x, y = coordinates.T
        cols = to_pixel.a * x + to_pixel.b * y + to_pixel.c
        rows = to_pixel.d * x + to_pixel.e * y + to_pixel.f
        # Edges through pixel centres are common (labels traced on a finer grid), and rounding would decide them.
        return np.round(np.stack([cols, rows], axis=1) * _SNAP) / _SNAP

    return shapely.transform(geometries, convert)


def without_nothing(geometries: np.ndarray, counts: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    """Geometries that are there, and their places; null and empty ones are counted."""
    null, empty = shapely.is_missing(geometries), shapely.is_empty(geometries)
    counts["null"], counts["empty"] = int(null.sum()), int(empty.sum())
    kept = np.flatnonzero(~(null | empty))
    return geometries[kept], kept


def are_finite(geometries: np.ndarray) -> np.ndarray:
    """Which have no coordinate that is NaN or infinite, bool (n,); their extents need not show it."""
    coordinates, places = shapely.get_coordinates(geometries, return_index=True)
    finite = np.ones(len(geometries), bool)
    finite[places[~np.isfinite(coordinates).all(axis=1)]] = False
    return finite


def transformed(
    geometries: np.ndarray, source: CRS | None, target: CRS | None, counts: Counter[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Whole geometries in another CRS, and the places of those that have finite coordinates in both."""
    kept = np.flatnonzero(are_finite(geometries))
    counts["unplaced"] = len(geometries) - len(kept)
    geometries = geometries[kept]
    if source is not None and target is not None and not same_crs(source, target):
        geometries = shapely.transform(geometries, _transformer(source, target).transform, interleaved=False)
    shown = are_finite(geometries)
    counts["unprojectable"] = int((~shown).sum())
    return geometries[shown], kept[shown]


def repaired(geometries: np.ndarray, counts: Counter[str]) -> np.ndarray:
    """Valid geometries of the dimension they had; a polygon that has no area becomes an empty one."""
    geometries = geometries.copy()
    broken = np.flatnonzero(~shapely.is_valid(geometries))
    counts["repaired"] = len(broken)
    if len(broken):
        # Structure keeps parts that overlap as a union; linework would turn the overlap into a hole.
        geometries[broken] = shapely.make_valid(geometries[broken], method="structure", keep_collapsed=False)
    for place in np.flatnonzero(shapely.get_type_id(geometries) == shapely.GeometryType.GEOMETRYCOLLECTION):
        geometries[place] = _main_part(geometries[place])
    counts["collapsed"] = int(shapely.is_empty(geometries).sum())
    return geometries


def _main_part(collection: shapely.GeometryCollection) -> shapely.Geometry:
    """The parts of the highest dimension: lines and points beside polygons are left by repairs."""
    parts = shapely.get_parts(collection)
    return shapely.union_all(parts[shapely.get_dimensions(parts) == shapely.get_dimensions(collection)])


def buffered(geometries: np.ndarray, reach_m: float, scale: tuple[float, float], cap: str) -> np.ndarray:
    """Geometries grown by a ground length; `scale` is CRS units of a metre along x and y."""
    metres = shapely.transform(geometries, lambda xy: xy / scale)
    return shapely.transform(shapely.buffer(metres, reach_m, cap_style=cap), lambda xy: xy * scale)


def touch(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two extents have a point in common."""
    return bool(one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3])
