"""Laws of coverages: neighbours keep sharing their edges, whatever the tiles and the tolerance."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_tracing import WORLDS, blobs, in_one_pass
from worlds import north_up, write_raster

from gimseg.coverage import Simplifier, cover
from gimseg.tracing import Traced
from gimseg.vectorization import vectorize


class Labels:
    """A mask in memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def read(self, top: int, bottom: int) -> np.ndarray:
        return self.array[top:bottom]


def covered(mask: np.ndarray, tolerance: float, tile: int, scale: tuple[float, float] = (1.0, 1.0)) -> Traced:
    simplifier = Simplifier(Labels(mask), mask.shape, tolerance, scale, tile)
    groups = list(cover(map(simplifier.band, simplifier.tops())))
    return Traced(*(np.concatenate(parts) for parts in zip(*groups, strict=True)))


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("tile", [5, 16, 1000])
def test_it_is_a_coverage_of_the_same_regions(name: str, tile: int) -> None:
    mask = WORLDS[name]
    found = covered(mask, 1.5, tile)
    assert shapely.is_valid(found.polygons).all()
    assert set(shapely.get_type_id(found.polygons)) <= {shapely.GeometryType.POLYGON}
    assert shapely.coverage_is_valid(found.polygons)
    assert sorted(found.values.tolist()) == [value for value, _ in in_one_pass(mask)]


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 2)),
    st.integers(1, 9),
    st.sampled_from([0.5, 1.1, 3.0]),
)
def test_any_small_mask_stays_a_coverage(mask: np.ndarray, tile: int, tolerance: float) -> None:
    found = covered(mask, tolerance, tile)
    assert shapely.is_valid(found.polygons).all()
    assert shapely.coverage_is_valid(found.polygons)
    assert len(found.values) == len(in_one_pass(mask))


def test_without_background_nothing_is_lost_and_nothing_is_twice() -> None:
    mask = blobs(150, 3) + np.uint8(1)
    found = covered(mask, 2.0, 64)
    assert shapely.area(found.polygons).sum() == pytest.approx(mask.size)
    assert shapely.union_all(found.polygons).area == pytest.approx(mask.size)
    exact = sum(len(wkt.split(",")) for _, wkt in in_one_pass(mask))
    assert shapely.get_num_coordinates(found.polygons).sum() < exact / 2


def test_a_small_tolerance_keeps_the_regions_to_the_last_pixel() -> None:
    mask = WORLDS["noise of classes"]
    found = covered(mask, 1e-6, 32)
    areas = sorted(zip(found.values.tolist(), shapely.area(found.polygons).round(2), strict=True))
    assert areas == sorted((value, shapely.from_wkt(wkt).area) for value, wkt in in_one_pass(mask))


def test_the_tolerance_is_on_the_ground() -> None:
    """A pixel twice as wide as high counts so."""
    mask = blobs(100, 5)
    flat, square = covered(mask, 2.0, 50, (2.0, 1.0)), covered(mask, 2.0, 50)
    assert shapely.get_num_coordinates(flat.polygons).sum() > shapely.get_num_coordinates(square.polygons).sum()


def test_the_file_holds_a_coverage_whatever_the_block(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "mask.tif", blobs(150, 3) + np.uint8(1), transform=north_up(0.5))
    layers = []
    for block in (16, 4096):
        vectorize(mask, tmp_path / "out.gpkg", block=block, simplify_m=1.0, coverage=True, overwrite=True)
        layers.append(gpd.read_file(tmp_path / "out.gpkg", layer="polygons"))
    one, other = layers
    assert shapely.coverage_is_valid(one.geometry.values) and one.is_valid.all()
    assert sorted(one.to_wkt()["geometry"]) == sorted(other.to_wkt()["geometry"])
    assert one.area.sum() == pytest.approx(150 * 150 / 4)
