"""Laws of tracing: the polygons of the whole mask, however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.features import rasterize, shapes

from gimseg.tracing import Tracer, strip_of, trace

Polygons = list[tuple[int, str]]


def in_one_pass(mask: np.ndarray, connectivity: int = 4) -> Polygons:
    """What GDAL gives for the whole mask, in a form that can be compared.

    Where two parts of an 8-connected region touch at a corner, GDAL's ring touches
    itself; made valid, it is the multipolygon of the parts.
    """
    found = list(shapes(mask, mask=mask != 0, connectivity=connectivity))
    outlines = shapely.make_valid([shapely.geometry.shape(outline) for outline, _ in found], method="structure")
    if connectivity == 8:
        outlines = [shapely.multipolygons(shapely.get_parts(outline)) for outline in outlines]
    pairs = zip(found, outlines, strict=True)
    return sorted((int(value), outline.normalize().wkt) for (_, value), outline in pairs)


def in_strips(mask: np.ndarray, cuts: list[int], connectivity: int = 4) -> Polygons:
    found = list(trace(np.split(mask, cuts), connectivity))
    pairs = [(value, polygon) for some in found for value, polygon in zip(some.values, some.polygons, strict=True)]
    assert all(polygon.is_valid for _, polygon in pairs)
    return sorted((int(value), polygon.normalize().wkt) for value, polygon in pairs)


def spiral(side: int) -> np.ndarray:
    """One arm of width 1, wound with a gap of 1."""
    mask = np.zeros((side, side), np.uint8)
    top, left, bottom, right = 0, 0, side - 1, side - 1
    while top <= bottom and left <= right:
        mask[top, max(left - 1, 0) : right + 1] = 1
        mask[top : bottom + 1, right] = 1
        mask[bottom, left : right + 1] = 1
        mask[min(top + 2, bottom) : bottom + 1, left] = 1
        top, left, bottom, right = top + 2, left + 2, bottom - 2, right - 2
    return mask


def rings(side: int) -> np.ndarray:
    """Squares of alternating classes, each around the next."""
    depth = np.minimum.reduce([*np.indices((side, side)), *(side - 1 - np.indices((side, side)))])
    return (depth % 3).astype(np.uint8)


def blobs(side: int, seed: int) -> np.ndarray:
    """Smooth areas of three classes, as a network would find them."""
    coarse = np.random.default_rng(seed).normal(size=(side // 8 + 1,) * 2)
    smooth = np.kron(coarse, np.ones((8, 8)))[:side, :side]
    for axis in (0, 1):
        smooth = np.mean([np.roll(smooth, shift, axis) for shift in range(-5, 6)], axis=0)
    return np.digitize(smooth, [0.0, 0.2, 0.4]).astype(np.uint8)


def noise(side: int, share: float, classes: int) -> np.ndarray:
    rng = np.random.default_rng(round(share * 100) + classes)
    return (rng.integers(1, classes + 1, (side, side)) * (rng.random((side, side)) < share)).astype(np.uint8)


WORLDS = {
    "spiral": spiral(41),
    "rings": rings(40),
    "checkerboard": np.indices((20, 21)).sum(axis=0).astype(np.uint8) % 2,
    "two colours": np.indices((20, 21)).sum(axis=0).astype(np.uint8) % 2 + np.uint8(1),
    "blobs": blobs(150, 3),
    "sparse noise": noise(90, 0.3, 1),
    "noise at the percolation threshold": noise(90, 0.593, 1),
    "dense noise": noise(90, 0.8, 1),
    "noise of classes": noise(90, 0.9, 3),
    "full": np.full((12, 9), 254, np.uint8),
    "empty": np.zeros((12, 9), np.uint8),
    "one pixel": np.ones((1, 1), np.uint8),
    "one row": noise(60, 0.6, 2)[:1],
    "one column": np.ascontiguousarray(noise(60, 0.6, 2)[:, :1]),
}


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
@pytest.mark.parametrize("connectivity", [4, 8])
def test_polygons_are_those_of_one_pass(name: str, rows: int, connectivity: int) -> None:
    mask = WORLDS[name]
    cuts = list(range(rows, len(mask), rows))
    assert in_strips(mask, cuts, connectivity) == in_one_pass(mask, connectivity)


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 2)),
    st.sets(st.integers(1, 8)),
    st.sampled_from([4, 8]),
)
def test_any_small_mask_cut_anywhere(mask: np.ndarray, cuts: set[int], connectivity: int) -> None:
    inside = sorted(cut for cut in cuts if cut < len(mask))
    assert in_strips(mask, inside, connectivity) == in_one_pass(mask, connectivity)


def test_holes_that_touch_the_outside_or_each_other_at_a_point_are_holes() -> None:
    mask = np.array(
        [
            [0, 1, 1, 1, 1],
            [1, 0, 1, 0, 1],
            [1, 1, 0, 1, 1],
            [1, 1, 1, 1, 1],
        ],
        np.uint8,
    )
    (polygon,) = (polygon for some in trace([mask[:2], mask[2:]]) for polygon in some.polygons)
    assert polygon.is_valid
    assert len(polygon.interiors) == 3
    assert polygon.area == mask.sum()


@pytest.mark.parametrize("name", ["blobs", "noise of classes"])
def test_burnt_polygons_are_the_mask(name: str) -> None:
    mask = WORLDS[name]
    pairs = [pair for some in trace([mask[:31], mask[31:]]) for pair in zip(some.polygons, some.values, strict=True)]
    assert np.array_equal(rasterize(pairs, mask.shape, dtype=np.uint8), mask)


def test_a_region_is_given_by_the_strip_that_closes_it() -> None:
    strips = np.array([[1, 0, 2, 2], [0, 0, 2, 0]], np.uint8), np.array([[3, 0, 0, 0], [3, 0, 4, 0]], np.uint8)
    assert [sorted(done.values.tolist()) for done in trace(strips)] == [[1], [2], [3, 4]]


def test_finished_regions_leave_nothing_behind() -> None:
    tracer = Tracer(64)
    for row in range(0, 50 * 65, 65):
        tracer.feed(strip_of(np.kron(np.eye(16), np.ones((4, 4))).astype(np.uint8) * np.uint8(9), row))
        tracer.feed(strip_of(np.zeros((1, 64), np.uint8), row + 64))
        assert tracer._held == []


@pytest.mark.slow
def test_one_object_as_large_as_the_raster_with_a_million_vertices() -> None:
    """Spines that hang from the first row, with a tooth in every other one."""
    rows, columns = np.indices((1600, 1600))
    mask = ((rows == 0) | (columns % 4 == 0) | ((columns % 4 == 1) & (rows % 2 == 0))).astype(np.uint8)
    (polygon,) = (one for some in trace(np.array_split(mask, 9)) for one in some.polygons)
    assert shapely.get_num_coordinates(polygon) > 1_000_000
    assert polygon.bounds == (0, 0, 1600, 1600) and polygon.area == mask.sum()
    ((outline, _),) = shapes(mask, mask=mask != 0)
    assert shapely.equals_exact(shapely.normalize(shapely.geometry.shape(outline)), shapely.normalize(polygon))
