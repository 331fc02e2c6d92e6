"""Laws of cleaning: each step does what it says on the ground, in order, and leaves valid polygons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from pyproj import CRS
from rasterio.transform import Affine
from test_tracing import WORLDS, blobs

from gimseg.cleaning import Cleaned, Cleaning
from gimseg.errors import GridError, TilingError
from gimseg.ground import Ground
from gimseg.round_corners import smoothed
from gimseg.tracing import Traced, trace

PIXEL = 0.5


def ground(pixel: float = PIXEL, crs: str | None = "EPSG:32633") -> Ground:
    wkt = CRS(crs).to_wkt() if crs else None
    return Ground.of(Affine(pixel, 0, 500_000, 0, -pixel, 5_000_000), wkt, (100, 100))


def cleaned(mask: np.ndarray, *, rows: int = 1000, connectivity: int = 4, **steps: Any) -> Cleaned:
    """The polygons of a mask of half-metre pixels."""
    strips = trace(np.split(mask, range(rows, len(mask), rows)), connectivity)
    groups = list(Cleaning(**steps).stream(strips, ground()))
    return Cleaned(*(np.concatenate(parts) for parts in zip(*groups, strict=True)))


def texts(found: Cleaned) -> list[str]:
    return sorted(
        f"{value} {shapely.normalize(one).wkt}" for one, value in zip(found.polygons, found.values, strict=True)
    )


def courtyards() -> np.ndarray:
    """A block with an empty court of 4 m², one of 25 m² with a shed of 1 m², and one of 25 m² with a tower of 9 m²."""
    mask = np.zeros((24, 50), np.uint8)
    mask[2:22, 2:48] = 1
    mask[6:10, 4:8] = 0
    mask[6:16, 12:22] = 0
    mask[10:12, 16:18] = 1
    mask[6:16, 30:40] = 0
    mask[8:14, 32:38] = 2
    return mask


def holes(found: Cleaned) -> int:
    return int(shapely.get_num_interior_rings(found.polygons).sum())


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_holes_are_filled_where_nothing_stands_in_them(rows: int) -> None:
    mask = courtyards()
    assert holes(cleaned(mask, rows=rows)) == 3
    assert holes(cleaned(mask, rows=rows, fill_holes_m2=3.9)) == 3
    filled = cleaned(mask, rows=rows, fill_holes_m2=4.1)
    assert holes(filled) == 2 and len(filled.values) == 3
    # What stands in a hole keeps it open, unless it was left out before.
    assert holes(cleaned(mask, rows=rows, fill_holes_m2=1000)) == 2
    assert holes(cleaned(mask, rows=rows, fill_holes_m2=1000, min_area_m2=2)) == 1
    assert holes(cleaned(mask, rows=rows, fill_holes_m2=1000, min_area_m2=10)) == 0


@pytest.mark.parametrize("name", ["dense noise", "noise of classes", "rings", "spiral"])
@pytest.mark.parametrize("connectivity", [4, 8])
def test_filled_holes_make_no_overlap(name: str, connectivity: int) -> None:
    found = cleaned(WORLDS[name], connectivity=connectivity, fill_holes_m2=2)
    assert shapely.is_valid(found.polygons).all()
    assert shapely.union_all(found.polygons).area == pytest.approx(shapely.area(found.polygons).sum())
    assert shapely.area(found.polygons).sum() >= (WORLDS[name] != 0).sum()


@pytest.mark.parametrize(
    "steps",
    [
        {"min_area_m2": 2.0, "fill_holes_m2": 2.0},
        {"simplify_m": 0.8},
        {"smooth_m": 0.5},
        {"simplify_m": 0.6, "smooth_m": 0.5, "min_area_m2": 3.0},
        {"right_angles": True, "fill_holes_m2": 1.0, "simplify_m": 0.6},
    ],
    ids=str,
)
@pytest.mark.parametrize("connectivity", [4, 8])
def test_what_comes_out_is_valid_of_one_type_and_the_same_for_every_cut(
    steps: dict[str, Any], connectivity: int
) -> None:
    for name in ("blobs", "dense noise", "noise of classes"):
        found = cleaned(WORLDS[name], connectivity=connectivity, **steps)
        assert shapely.is_valid(found.polygons).all() and not shapely.is_empty(found.polygons).any()
        wanted = shapely.GeometryType.POLYGON if connectivity == 4 else shapely.GeometryType.MULTIPOLYGON
        assert set(shapely.get_type_id(found.polygons)) == {wanted}
        assert texts(found) == texts(cleaned(WORLDS[name], connectivity=connectivity, rows=11, **steps))
        if "min_area_m2" in steps:
            assert shapely.area(found.polygons).min() * PIXEL**2 >= steps["min_area_m2"] * 0.999


def test_smoothing_stays_within_its_tolerance_and_keeps_the_area() -> None:
    disc = np.hypot(*(np.indices((80, 80)) - 40)) < 30
    exact = cleaned(disc.astype(np.uint8))
    round_ = cleaned(disc.astype(np.uint8), smooth_m=0.5)
    assert shapely.hausdorff_distance(round_.polygons, exact.polygons)[0] * PIXEL <= 0.5
    assert shapely.area(round_.polygons) == pytest.approx(shapely.area(exact.polygons), rel=0.01)
    circle = shapely.Point(40.5, 40.5).buffer(30, 64)
    away = [shapely.symmetric_difference(found.polygons[0], circle).area for found in (exact, round_)]
    assert away[1] < 0.85 * away[0]


def test_a_corner_is_cut_no_further_than_the_tolerance() -> None:
    box = shapely.box(0, 0, 30, 10)
    (found,) = smoothed(np.array([box]), 2)
    assert found.is_valid and box.contains(found)
    assert found.area >= box.area - 4 * 2**2
    assert max(shapely.Point(corner).distance(found) for corner in box.exterior.coords) <= 2


def test_right_angles_are_told_apart() -> None:
    rows, columns = np.indices((60, 120))
    mask = ((np.abs(rows - 30) < 20) & (np.abs(columns - 30) < 15)).astype(np.uint8)
    star = (np.hypot(rows - 30, columns - 90) < 14 + 9 * np.cos(5 * np.arctan2(rows - 30, columns - 90))).astype(
        np.uint8
    )
    found = cleaned(mask | 2 * star, right_angles=True)
    flags = dict(zip(found.values.tolist(), found.regular.tolist(), strict=True))
    assert flags[1] and not flags[2]
    assert not cleaned(mask).regular.any()


@pytest.mark.parametrize(
    "steps",
    [
        {"min_area_m2": -1},
        {"smooth_m": float("nan")},
        {"coverage": True},
        {"coverage": True, "simplify_m": 1, "smooth_m": 1},
        {"coverage": True, "simplify_m": 1, "right_angles": True},
    ],
    ids=str,
)
def test_steps_that_mean_nothing_are_refused(steps: dict[str, Any]) -> None:
    with pytest.raises(TilingError):
        Cleaning(**steps)


def test_areas_need_a_ground() -> None:
    with pytest.raises(GridError, match=r"mask\.tif has no CRS, so that fill_holes_m2=2"):
        Cleaning(fill_holes_m2=2).check(ground(crs=None), "mask.tif")


def test_no_step_changes_nothing() -> None:
    (some,) = [part for part in trace([blobs(60, 1)]) if len(part.values)][-1:]
    (same,) = Cleaning().stream([Traced(*some)], ground())
    assert same.polygons.tolist() == some.polygons.tolist()
