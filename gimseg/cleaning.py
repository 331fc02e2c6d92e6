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
from gimseg.tracing import Traced


class Cleaned(NamedTuple):
    """Polygons as they are written.

    Attributes:
        polygons: (n,) valid polygons in pixels of the mask, shells counter-clockwise as
            x and y are counted there.
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
            raise TilingError("coverage=True and simplify_m=0: say within how many metres a coverage is simplified")
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
        standing = np.empty((0, 2))
        for polygons, values in traced:
            if self.min_area_m2 > 0:
                kept = ground.areas_m2(ground.place(polygons)) >= self.min_area_m2
                polygons, values = polygons[kept], values[kept]
            if self.fill_holes_m2 > 0:
                standing = np.concatenate([standing, shapely.get_coordinates(shapely.point_on_surface(polygons))])
                polygons = _filled(polygons, self.fill_holes_m2, standing, ground)
            yield self._outlined(polygons, values, ground)

    def _outlined(self, polygons: np.ndarray, values: np.ndarray, ground: Ground) -> Cleaned:
        if self.simplify_m > 0 and not self.coverage:
            polygons, origins = ground.simplify(polygons, self.simplify_m)
            values = values[origins]
            if self.min_area_m2 > 0:
                kept = ground.areas_m2(ground.place(polygons)) >= self.min_area_m2
                polygons, values = polygons[kept], values[kept]
        return Cleaned(polygons, values, np.zeros(len(values), bool))


CLEANING_NAMES = tuple(field.name for field in fields(Cleaning))
"""The options of :class:`Cleaning`."""


def _filled(polygons: np.ndarray, most_m2: float, standing: np.ndarray, ground: Ground) -> np.ndarray:
    """Polygons without the holes below an area in which no point stands."""
    rings, owners = shapely.get_rings(polygons, return_index=True)
    inner = np.append(False, owners[1:] == owners[:-1])[: len(rings)]
    holes = np.flatnonzero(inner)
    if not len(holes):
        return polygons
    areas = shapely.polygons(rings[holes])
    small = ground.areas_m2(ground.place(areas)) < most_m2
    holes, areas = holes[small], areas[small]
    occupied = np.unique(shapely.STRtree(areas).query(shapely.points(standing), predicate="within")[1])
    dropped = np.delete(holes, occupied)
    kept = np.delete(np.arange(len(rings)), dropped)
    changed = np.unique(owners[dropped])
    polygons = polygons.copy()
    mine = kept[np.isin(owners[kept], changed)]
    polygons[changed] = _rebuilt(rings[mine], owners[mine])
    return polygons


def _rebuilt(rings: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Polygons of rings, the shell of each owner first."""
    points, ring_of_point = shapely.get_coordinates(rings, return_index=True)
    ring_offsets = np.append(np.flatnonzero(np.diff(ring_of_point, prepend=-1)), len(points))
    offsets = np.append(np.flatnonzero(np.diff(owners, prepend=-1)), len(rings))
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (ring_offsets, offsets))
