"""Ground that lies in two splits: a score on it would be a memory of the training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import shapely
from odc.geo.geom import Geometry
from shapely.geometry.base import BaseGeometry

from gimseg.errors import DatasetError
from gimseg.labelled_scenes import LabelledScene
from gimseg.vectors import Shapes

_TOLERANCE = 1e-3
"""Share of the smaller ground that two may have in common: neighbours are never drawn quite side by side."""


@dataclass(frozen=True)
class _Ground:
    """Ground of one scene in one split; in longitude and latitude where it has a CRS."""

    path: str
    split: str
    area: BaseGeometry
    has_crs: bool


def check_leakage(scenes: Sequence[LabelledScene]) -> None:
    """Refuse ground that lies in two splits.

    A scene's ground is its footprint, or where an attribute of the AoI layer tells the
    split, the AoIs of each split. A scene without a split is trained on, so it counts as
    ``train`` where another has one.

    Raises:
        DatasetError: names both rasters and splits, and how much they have in common.
    """
    if not any(scene.splits for scene in scenes):
        return
    grounds = [ground for scene in scenes for ground in _grounds(scene)]
    tree = shapely.STRtree([ground.area for ground in grounds])
    for one, other in tree.query([ground.area for ground in grounds], predicate="intersects").T:
        if one < other:
            _check_pair(grounds[one], grounds[other])


def overlapping(scenes: Sequence[LabelledScene]) -> list[tuple[int, int]]:
    """Pairs of numbers of scenes of one CRS whose footprints overlap."""
    footprints = [scene.geobox.extent for scene in scenes]
    tree = shapely.STRtree([footprint.geom for footprint in footprints])
    near = tree.query([footprint.geom for footprint in footprints], predicate="intersects").T
    return [
        (int(one), int(other))
        for one, other in near
        if one < other
        and footprints[one].crs == footprints[other].crs
        and footprints[one].geom.intersection(footprints[other].geom).area > 0
    ]


def _grounds(scene: LabelledScene) -> Iterator[_Ground]:
    footprint = scene.geobox.extent
    areas = {split: area for split, area in scene.areas.items() if split and len(area)}
    if scene.split or not areas:
        yield _ground(scene, scene.split or "train", footprint)
        return
    for split, area in areas.items():
        yield _ground(scene, split, _union(area, footprint))


def _ground(scene: LabelledScene, split: str, area: Geometry) -> _Ground:
    there = area if area.crs is None else area.to_crs("EPSG:4326")
    return _Ground(scene.path, split, there.geom, area.crs is not None)


def _union(area: Shapes, footprint: Geometry) -> Geometry:
    return Geometry(shapely.union_all(area.geometries).intersection(footprint.geom), footprint.crs)


def _check_pair(one: _Ground, other: _Ground) -> None:
    smaller = min(one.area.area, other.area.area)
    if one.split == other.split or one.has_crs != other.has_crs or not smaller:
        return
    share = one.area.intersection(other.area).area / smaller
    if share > _TOLERANCE:
        raise DatasetError(
            f"{one.path} ({one.split}) and {other.path} ({other.split}) overlap in {share:.1%} of the smaller: "
            "what is learned there would be scored there. Put both into one split, or cut one of them with aoi_paths"
        )
