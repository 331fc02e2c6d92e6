"""From exact outlines to polygons that an analyst keeps: one step after the other, each optional.

In this order: objects below an area are left out, holes below an area are filled,
outlines are simplified, smoothed, made right-angled. All is measured on the ground.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import shapely

from gimseg.errors import GridError, TilingError
from gimseg.ground import Ground
from gimseg.right_angles import right_angled
from gimseg.round_corners import smoothed
from gimseg.tracing import Traced


class Cleaned(NamedTuple):
    """Polygons as they are written.

    Attributes:
        polygons: (n,) valid polygons, or multipolygons where such were traced, in pixels of
            the mask.
        values: (n,) uint8, the value of each.
        regular: (n,) bool, whether its corners were made right angles.
    """

    polygons: np.ndarray
    values: np.ndarray
    regular: np.ndarray


@dataclass(frozen=True)
class Cleaning:
    """What is done to the outlines; 0 and False leave a step out.

    Args:
        min_area_m2: objects smaller on the ground (ellipsoid) are left out.
        fill_holes_m2: holes smaller on the ground are filled, unless another object that
            is kept stands in them.
        simplify_m: outlines move by this at most and lose vertices, metres at the raster's
            centre (without a CRS: its own unit).
        coverage: neighbours are simplified together and keep sharing their edge.
        smooth_m: corners are rounded; outlines move by this at most.
        right_angles: outlines of buildings get right angles where that fits.

    Raises:
        TilingError: a negative measure, or steps that exclude one another.
    """

    min_area_m2: float = 0.0
    fill_holes_m2: float = 0.0
    simplify_m: float = 0.0
    coverage: bool = False
    smooth_m: float = 0.0
    right_angles: bool = False

    def __post_init__(self) -> None:
        for name in ("min_area_m2", "fill_holes_m2", "simplify_m", "smooth_m"):
            if not 0 <= getattr(self, name) < np.inf:
                raise TilingError(f"{name}={getattr(self, name):g}: 0, which leaves the step out, or more is needed")
        if self.coverage and not self.simplify_m:
            raise TilingError(
                "coverage=True, simplify_m=0: a coverage is simplified: say within how many metres (--simplify)"
            )
        if self.coverage and (self.smooth_m or self.right_angles):
            raise TilingError(
                f"coverage=True with smooth_m={self.smooth_m:g}, right_angles={self.right_angles}: both move outlines "
                "one by one, so that neighbours would part; leave the coverage out, or these"
            )

    def check(self, ground: Ground, raster: object) -> None:
        """Refuse, before the work, what the ground of a raster (its name) cannot measure.

        Raises:
            GridError: an area was asked for and nothing tells square metres.
        """
        for name in ("min_area_m2", "fill_holes_m2"):
            if getattr(self, name) > 0 and not ground.tells_metres:
                raise GridError(
                    f"{raster} {ground.trouble}, so that {name}={getattr(self, name):g} means nothing: "
                    f"set its CRS (gdal_edit.py -a_srs), or leave {name} out"
                )

    def stream(self, traced: Iterable[Traced], ground: Ground) -> Iterator[Cleaned]:
        """Clean finished regions, group by group, as they come.

        Args:
            traced: polygons in pixels; what stands in a hole comes before, or with, what is around it.
            ground: what pixels measure.
        """
        holes = _Holes(self.fill_holes_m2, ground)
        for whole, values in traced:
            if self.min_area_m2 > 0:
                kept = ground.areas_m2(ground.place(whole)) >= self.min_area_m2
                whole, values = whole[kept], values[kept]
            polygons, owners = shapely.get_parts(whole, return_index=True)
            several = shapely.GeometryType.MULTIPOLYGON in shapely.get_type_id(whole)
            if self.fill_holes_m2 > 0:
                polygons = holes.filled(polygons, several)
            polygons, origins, regular = self._outlined(polygons, ground)
            owners = owners[origins]
            if several:
                polygons, owners, regular = _together(polygons, owners, regular)
            yield self._large(Cleaned(polygons, values[owners], regular), ground)

    def _outlined(self, polygons: np.ndarray, ground: Ground) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """New outlines, of which of the polygons each is, and whether it is right-angled."""
        scale = np.array(ground.pixel_m)
        origins, regular = np.arange(len(polygons)), np.zeros(len(polygons), bool)
        made = polygons
        if self.right_angles:
            tolerance = max(self.simplify_m, _STAIRS * scale.max())
            made, regular = right_angled(shapely.transform(polygons, lambda xy: xy * scale), tolerance)
            made = shapely.transform(made, lambda xy: xy / scale)
        rest, from_rest = polygons[~regular], origins[~regular]
        if self.simplify_m > 0 and not self.coverage:
            rest, places = ground.simplify(rest, self.simplify_m)
            from_rest = from_rest[places]
        if self.smooth_m > 0:
            rest = smoothed(shapely.transform(rest, lambda xy: xy * scale), self.smooth_m)
            rest = shapely.transform(rest, lambda xy: xy / scale)
        origins = np.concatenate([origins[regular], from_rest])
        order = np.argsort(origins, kind="stable")
        flags = np.repeat([True, False], [regular.sum(), len(rest)])
        return np.concatenate([made[regular], rest])[order], origins[order], flags[order]

    def _large(self, cleaned: Cleaned, ground: Ground) -> Cleaned:
        """Without what became too small when its outline changed."""
        if self.min_area_m2 > 0 and (self.simplify_m or self.smooth_m or self.right_angles):
            kept = ground.areas_m2(ground.place(cleaned.polygons)) >= self.min_area_m2
            return Cleaned(*(part[kept] for part in cleaned))
        return cleaned


def _together(
    polygons: np.ndarray, owners: np.ndarray, regular: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One valid multipolygon for each owner, ascending; regular if all its parts are."""
    places, index = np.unique(owners, return_inverse=True)
    joined = shapely.multipolygons(polygons, indices=index) if len(places) else np.empty(0, object)
    # Parts that touched at a corner may overlap now.
    broken = np.flatnonzero(~shapely.is_valid(joined))
    for place in broken:
        joined[place] = shapely.multipolygons(shapely.get_parts(shapely.make_valid(joined[place], method="structure")))
    whole = np.ones(len(places), bool)
    np.logical_and.at(whole, index, regular)
    return joined, places, whole


_STAIRS = 1.5  # pixels: the staircase of a slanted edge is lower

CLEANING_NAMES = tuple(field.name for field in fields(Cleaning))
"""The options of :class:`Cleaning`."""


class _Holes:
    """Fills holes in which nothing stands, for polygons that come group by group.

    A point of each polygon that could stand in such a hole is remembered: 16 bytes each.
    """

    def __init__(self, most_m2: float, ground: Ground) -> None:
        self._most_m2 = most_m2
        self._ground = ground
        self._standing = np.empty((0, 2))

    def filled(self, polygons: np.ndarray, several: bool) -> np.ndarray:
        """The next polygons with fewer holes; `several`: they are parts of objects."""
        small = polygons[self._areas(polygons) < self._most_m2]
        self._standing = np.concatenate([self._standing, shapely.get_coordinates(shapely.point_on_surface(small))])
        rings, owners = shapely.get_rings(polygons, return_index=True)
        inner = np.append(False, owners[1:] == owners[:-1])[: len(rings)]
        holes = np.flatnonzero(inner)
        if several:
            holes = np.setdiff1d(holes, _pinched(rings, owners))
        areas = shapely.polygons(rings[holes])
        fits = self._areas(areas) < self._most_m2
        holes, areas = holes[fits], areas[fits]
        occupied = np.unique(shapely.STRtree(areas).query(shapely.points(self._standing), predicate="within")[1])
        kept = np.delete(np.arange(len(rings)), np.delete(holes, occupied))
        return _rebuilt(rings[kept], owners[kept])

    def _areas(self, polygons: np.ndarray) -> np.ndarray:
        return self._ground.areas_m2(self._ground.place(polygons))


def _pinched(rings: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """The rings that touch another ring of their polygon.

    With 8-connectedness an object of another class can reach in there through the corner,
    and is told of only when all of it is known: such a hole cannot be called empty.
    """
    points, ring = shapely.get_coordinates(rings, return_index=True)
    points, ring = points[:-1][ring[1:] == ring[:-1]], ring[:-1][ring[1:] == ring[:-1]]
    placed = np.column_stack([points, owners[ring]])
    _, index, counts = np.unique(placed, axis=0, return_inverse=True, return_counts=True)
    return np.unique(ring[counts[index] > 1])


def _rebuilt(rings: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Polygons of rings, the shell of each owner first."""
    if not len(rings):
        return np.empty(0, object)
    points, ring_of_point = shapely.get_coordinates(rings, return_index=True)
    ring_offsets = np.append(np.flatnonzero(np.diff(ring_of_point, prepend=-1)), len(points))
    offsets = np.append(np.flatnonzero(np.diff(owners, prepend=-1)), len(rings))
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (ring_offsets, offsets))
