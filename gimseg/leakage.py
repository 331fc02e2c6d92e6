"""Ground that lies in two splits: a score on it would be a memory of the training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from odc.geo.geom import Geometry
from shapely.geometry.base import BaseGeometry

from gimseg.errors import DatasetError
from gimseg.labelled_scenes import LabelledScene
from gimseg.vectors import Shapes

_TOLERANCE = 1e-3
"""Share of the smaller ground that two may have in common: neighbours are never drawn quite side by side."""
_PARTS = 128
"""Into so many parts the longer side of a ground is cut before it is bent into longitude and latitude."""
_DEGREES = "EPSG:4326"


@dataclass(frozen=True)
class _Ground:
    """Ground of one scene in one split."""

    path: str
    split: str
    area: Geometry


def check_leakage(scenes: Sequence[LabelledScene]) -> None:
    """Refuse ground that lies in two splits, whatever the CRSs of the rasters that show it.

    A scene's ground is its footprint, or where it has AoIs these, as far as they lie in it.
    A scene without a split is trained on, so it counts as ``train`` where another has one.
    A raster without a CRS is compared with its like alone.

    Raises:
        DatasetError: names both rasters and splits, and how much they have in common.
    """
    if not any(scene.splits for scene in scenes):
        return
    grounds = [ground for scene in scenes for ground in _grounds(scene)]
    for one, other, *areas in _touching([ground.area for ground in grounds]):
        if grounds[one].split != grounds[other].split:
            _check_pair(grounds[one], grounds[other], *areas)


def overlapping(scenes: Sequence[LabelledScene]) -> list[tuple[int, int]]:
    """Pairs of numbers of scenes whose footprints overlap on the ground, the lower number first.

    Those of one CRS are compared in it, others in longitude and latitude; one without a
    CRS overlaps with its like alone.
    """
    pairs = _touching([scene.geobox.extent for scene in scenes])
    return [(one, other) for one, other, here, there in pairs if here.intersection(there).area > 0]


def _grounds(scene: LabelledScene) -> Iterator[_Ground]:
    footprint = scene.geobox.extent
    if not scene.areas:
        yield _Ground(scene.path, scene.split or "train", footprint)
    for split, area in scene.areas.items():
        yield _Ground(scene.path, split or scene.split or "train", _union(area, footprint))


def _union(area: Shapes, footprint: Geometry) -> Geometry:
    return Geometry(_polygons_of(shapely.union_all(area.geometries).intersection(footprint.geom)), footprint.crs)


def _polygons_of(area: BaseGeometry) -> BaseGeometry:
    """Without the lines and points that an intersection leaves."""
    parts = shapely.get_parts(area)
    return shapely.union_all(parts[shapely.get_dimensions(parts) == 2])


def _touching(areas: Sequence[Geometry]) -> Iterator[tuple[int, int, BaseGeometry, BaseGeometry]]:
    """Numbers of two areas that touch, the lower first, and both areas in one CRS."""
    for crs in dict.fromkeys(area.crs for area in areas):
        numbers = [number for number, area in enumerate(areas) if area.crs == crs]
        yield from _pairs(numbers, [areas[number].geom for number in numbers])
    placed = [number for number, area in enumerate(areas) if area.crs is not None]
    if len({areas[number].crs for number in placed}) > 1:
        for one, other, *bent in _pairs(placed, [_in_degrees(areas[number]) for number in placed]):
            if areas[one].crs != areas[other].crs:
                yield one, other, *bent


def _pairs(
    numbers: Sequence[int], areas: Sequence[BaseGeometry]
) -> Iterator[tuple[int, int, BaseGeometry, BaseGeometry]]:
    tree = shapely.STRtree(areas)
    for one, other in tree.query(areas, predicate="intersects").T:
        if one < other:
            yield numbers[one], numbers[other], areas[one], areas[other]


def _in_degrees(area: Geometry) -> BaseGeometry:
    """An area in longitude and latitude, where its straight edges bend; cut where 180 degrees east are 180 west."""
    if not area.geom.area:
        return shapely.Polygon()
    left, bottom, right, top = area.geom.bounds
    fine = Geometry(shapely.segmentize(area.geom, max(right - left, top - bottom) / _PARTS), area.crs)
    bent = fine.to_crs(_DEGREES).dropna().geom
    west, _, east, _ = bent.bounds
    if east - west > 180:
        bent = shapely.union_all([_folded(part) for part in shapely.get_parts(bent)])
    return _polygons_of(shapely.make_valid(bent, method="structure", keep_collapsed=False))


def _folded(polygon: shapely.Polygon) -> BaseGeometry:
    """A polygon whose longitudes may jump from 180 to -180 degrees, without the jump."""
    shell, *holes = (_ring_folded(shapely.get_coordinates(ring)) for ring in (polygon.exterior, *polygon.interiors))
    return shell.difference(shapely.union_all(holes))


def _ring_folded(ring: np.ndarray) -> BaseGeometry:
    longitudes = np.unwrap(ring[:, 0], period=360)
    way = np.column_stack([longitudes, ring[:, 1]])
    if abs(longitudes[-1] - longitudes[0]) > 180:
        # It goes around a pole, which is inside.
        pole = np.copysign(90, ring[:, 1].mean())
        way = np.vstack([way, [(longitudes[-1], pole), (longitudes[0], pole)]])
    inside = shapely.make_valid(shapely.Polygon(way), method="structure", keep_collapsed=False)
    turns = [shapely.transform(inside, lambda xy, turn=turn: xy + np.array([turn, 0])) for turn in (-360, 0, 360)]
    return shapely.union_all(shapely.intersection(turns, shapely.box(-180, -90, 180, 90)))


def _check_pair(one: _Ground, other: _Ground, here: BaseGeometry, there: BaseGeometry) -> None:
    smaller = min(here.area, there.area)
    share = here.intersection(there).area / smaller if smaller else 0.0
    if share > _TOLERANCE:
        raise DatasetError(
            f"{one.path} ({one.split}) and {other.path} ({other.split}) overlap in {share:.1%} of the smaller: "
            "what is learned there would be scored there. Put both into one split, or cut one of them with aoi_paths"
        )
