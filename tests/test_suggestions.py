"""Laws of suggestions: they doubt most, they are spread out, and a fifth know nothing of the doubt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from gimseg.correction.suggestions import Doubt, estimate_iou, suggest, to_frame
from gimseg.errors import CorrectionError
from gimseg.metrics import Confusion

seeds = st.integers(0, 2**31)


def drawn(seed: int, shape: tuple[int, int] = (40, 60), cell: int = 16) -> Doubt:
    rng = np.random.default_rng(seed)
    valid = np.full(shape, cell * cell)
    valid[:10, :20] = 0
    return Doubt(cell, rng.random(shape) * valid, valid)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(2, 20))
def test_squares_do_not_overlap_and_lie_on_valid_ground(seed: int, count: int) -> None:
    doubt = drawn(seed)
    found = suggest(doubt, count, seed=seed)
    assert len(found) == count
    assert sum(one.kind == "random" for one in found) == max(1, round(count / 5))
    for place, one in enumerate(found):
        assert 0 <= one.row <= 40 * 16 - one.side
        assert 0 <= one.col <= 60 * 16 - one.side
        rows, cols = (slice(part.start // 16, part.stop // 16) for part in one.roi)
        assert doubt.valid[rows, cols].sum() >= one.side**2 / 2
        for other in found[:place]:
            assert max(abs(one.row - other.row), abs(one.col - other.col)) >= one.side


def test_the_place_of_greatest_doubt_comes_first() -> None:
    doubt = drawn(0)
    doubt.total[:] *= 0.1
    doubt.total[30:34, 40:44] = 256
    first = suggest(doubt, 6)[0]
    assert (first.row, first.col, first.kind) == (30 * 16, 40 * 16, "doubt")
    assert first.score == pytest.approx(1.0)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_random_squares_know_nothing_of_the_doubt(seed: int) -> None:
    one, other = (
        {(item.row, item.col) for item in suggest(drawn(which), 10, seed=seed) if item.kind == "random"}
        for which in (seed, seed + 1)
    )
    assert one == other


def test_random_squares_are_drawn_from_all_places_alike() -> None:
    doubt = drawn(0, (6, 6), 8)._replace(valid=np.full((6, 6), 64))
    counts = np.zeros((5, 5))
    for seed in range(2000):
        (item,) = [item for item in suggest(doubt, 2, cells=2, seed=seed) if item.kind == "random"]
        counts[item.row // 8, item.col // 8] += 1
    # 80 a place on average, deviation 9.
    assert counts.min() > 40
    assert counts.max() < 120


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 4))
def test_doubt_added_region_by_region_is_that_of_the_whole(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    values, valid = rng.random((70, 50)), rng.random((70, 50)) < 0.8
    whole, pieces = Doubt.zeros((70, 50), 8), Doubt.zeros((70, 50), 8)
    whole.add((slice(0, 70), slice(0, 50)), values, valid)
    for top in range(0, 70, 8 * parts):
        roi = (slice(top, min(top + 8 * parts, 70)), slice(0, 50))
        pieces.add(roi, values[roi], valid[roi])
    np.testing.assert_allclose(whole.total, pieces.total)
    np.testing.assert_array_equal(whole.valid, pieces.valid)
    assert whole.valid.sum() == valid.sum()
    assert whole.total.sum() == pytest.approx(values[valid].sum())


def test_small_rasters_give_what_fits() -> None:
    doubt = Doubt.zeros((20, 20), 16)
    doubt.add((slice(0, 20), slice(0, 20)), np.ones((20, 20)), np.ones((20, 20), bool))
    assert len(suggest(doubt, 10)) == 1
    with pytest.raises(CorrectionError, match="nothing of the raster"):
        suggest(Doubt.zeros((20, 20), 16), 3)
    with pytest.raises(CorrectionError, match="1 at least"):
        suggest(doubt, 0)


def test_a_layer_of_suggestions_lies_on_the_raster() -> None:
    geobox = GeoBox.from_bbox((0, 0, 960, 640), "EPSG:32633", resolution=1)
    frame = to_frame(suggest(drawn(1), 7), geobox)
    assert list(frame["rank"]) == [1, 2, 3, 4, 5, 6, 7]
    assert frame.crs == "EPSG:32633"
    assert (frame.area == 64 * 64).all()
    assert frame.within(geobox.extent.geom.buffer(1e-6)).all()


def test_an_estimate_from_random_squares_is_near_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((640, 960)) < 0.2).astype(np.uint8)
    guess = np.where(rng.random(truth.shape) < 0.1, 1 - truth, truth)
    whole = Confusion.of(truth, guess, 2).mean_iou
    squares = [item for seed in range(20) for item in suggest(drawn(seed), 10, seed=seed) if item.kind == "random"]
    found = estimate_iou([Confusion.of(truth[item.roi], guess[item.roi], 2) for item in squares])
    assert found.score == pytest.approx(whole, abs=0.02)
    assert found.low < found.score < found.high < found.low + 0.05
