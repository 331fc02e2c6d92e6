"""Laws of windows of ground and of objects matched in strips: parts add up to the whole, however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize
from scipy.ndimage import gaussian_filter
from shapely.geometry import box

from gimseg.metrics import Confusion
from gimseg.object_matching import class_of_colours, colours_for, count_objects
from gimseg.object_scores import ObjectTable, match_objects
from gimseg.probability_scores import BINS, ProbabilityTable
from gimseg.products import STEPS
from gimseg.sample_windows import SIDE, Counted, WindowCounter, worst_first
from gimseg.tiling import chunks
from gimseg.tracing import trace

seeds = st.integers(0, 2**31)


def drawn(seed: int, shape: tuple[int, int], classes: int) -> Counted:
    """Truth with unlabelled pixels, prediction, and probabilities in steps."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape).astype(np.uint8)
    truth[rng.random(shape) < 0.2] = 255
    shares = rng.dirichlet(np.ones(classes), shape).transpose(2, 0, 1)[1:]
    return Counted(truth, rng.integers(0, classes, shape).astype(np.uint8), np.round(shares * STEPS).astype(np.uint8))


def test_steps_of_probabilities_are_bins() -> None:
    assert BINS == STEPS


@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(2, 4))
def test_bytes_are_counted_like_probabilities(seed: int, classes: int) -> None:
    counted = drawn(seed, (30, 40), classes)
    assert counted.shares is not None
    table = ProbabilityTable.of_bytes(counted.truth, counted.shares)
    other = ProbabilityTable.of(counted.truth, counted.shares / STEPS)
    assert np.array_equal(table.counts, other.counts) and np.allclose(table.sums, other.sums)


@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(2, 4), st.integers(60, 700), st.integers(60, 700), st.tuples(*[st.integers(1, 900)] * 2))
def test_windows_add_up_to_the_raster_however_it_comes(
    seed: int, classes: int, rows: int, cols: int, blocks: tuple[int, int]
) -> None:
    whole = drawn(seed, (rows, cols), classes)
    counters = [WindowCounter((rows, cols), classes) for _ in range(2)]
    counters[0].add((slice(0, rows), slice(0, cols)), whole)
    assert whole.shares is not None
    for roi in reversed(list(chunks((rows, cols), max(20, blocks[0]), max(20, blocks[1])))):
        counters[1].add(roi, Counted(whole.truth[roi], whole.classes[roi], whole.shares[:, *roi]))
    one, other = (counter.windows() for counter in counters)
    assert np.array_equal(one.counts, other.counts) and np.allclose(one.losses, other.losses)
    assert np.array_equal(one.total.matrix, Confusion.of(whole.truth, whole.classes, classes).matrix)
    for number in range(len(one)):
        roi = one.roi(number)
        own = Confusion.of(whole.truth[roi], whole.classes[roi], classes)
        assert np.array_equal(one.counts[number], own.matrix)
        assert one.iou[number] == pytest.approx(own.mean_iou, nan_ok=True)
        assert one.wrong[number] == pytest.approx(1 - own.accuracy)
        assert all(SIDE * 0.2 < part.stop - part.start < SIDE * 1.51 for part in roi)


def test_the_loss_is_the_cross_entropy() -> None:
    counted = drawn(3, (90, 80), 3)
    assert counted.shares is not None
    counter = WindowCounter((90, 80), 3)
    counter.add((slice(0, 90), slice(0, 80)), counted)
    shares = np.concatenate([1 - counted.shares.sum(0, keepdims=True) / STEPS, counted.shares / STEPS])
    known = counted.truth != 255
    of_true = np.take_along_axis(shares, np.where(known, counted.truth, 0)[None].astype(int), 0)[0][known]
    wanted = -np.log(np.clip(of_true, 0.001, 0.999)).mean()
    assert counter.windows().losses[0] == pytest.approx(wanted, rel=1e-4)


def test_the_worst_come_first_and_trifles_last() -> None:
    iou, wrong = np.array([0.5, 0.0, 0.0, 0.2, np.nan, 0.0]), np.array([0.1, 0.004, 0.2, 0.1, 0.0, 0.3])
    losses = np.array([1.0, 9.0, 0.2, 0.1, 0.0, 0.2])
    assert worst_first(iou, wrong, losses).tolist() == [5, 2, 3, 0, 1, 4]


# Objects


def blobs(seed: int, shape: tuple[int, int] = (180, 90), classes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Two masks that agree in many objects, of all sizes."""
    rng = np.random.default_rng(seed)
    waves = gaussian_filter(rng.normal(0, 1, shape), 2.5)
    values = rng.integers(1, classes + 1, shape) if classes > 1 else 1
    if classes > 1:
        values = (gaussian_filter(rng.normal(0, 1, shape), 9) > 0) + 1
    first = np.where(waves > 0.1, values, 0)
    second = np.where(waves + gaussian_filter(rng.normal(0, 0.5, shape), 1.5) > 0.1, values, 0)
    return first.astype(np.uint8), second.astype(np.uint8)


def at_once(true: np.ndarray, predicted: np.ndarray, value: int) -> ObjectTable:
    sides = []
    for mask in (true, predicted):
        sides.append(np.concatenate([some.polygons for some in trace([np.where(mask == value, mask, 0)])]))
    return ObjectTable.of(shapely.area(sides[0]) * 2.0, shapely.area(sides[1]) * 2.0, match_objects(*sides))


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(1, 60), st.integers(1, 2))
def test_objects_are_matched_alike_in_strips_of_any_height(seed: int, rows: int, classes: int) -> None:
    true, predicted = blobs(seed, classes=classes)
    strips = ((true[top : top + rows], predicted[top : top + rows]) for top in range(0, len(true), rows))
    class_of = np.where(np.arange(256) <= classes, np.arange(256), 0).astype(np.uint8)
    tables = count_objects(strips, class_of, 2.0)
    assert len(tables) == classes
    for number, table in enumerate(tables, 1):
        whole = at_once(true, predicted, number)
        assert np.array_equal(table.counts, whole.counts)
        assert np.allclose(table.areas_m2, whole.areas_m2) and table.iou_sum == pytest.approx(whole.iou_sum)
        # Else there was next to nothing to be told apart.
        assume(whole.counts[:, 1].sum() > 3)


def test_objects_that_touch_are_several() -> None:
    rng = np.random.default_rng(0)
    squares = [box(x, y, x + 10, y + 10) for x in range(0, 100, 10) for y in range(0, 100, 10)]
    geometries = np.array(squares, object)[rng.permutation(100)]
    classes = rng.integers(1, 3, 100).astype(np.uint8)
    values = colours_for(geometries, classes, 2, 1.5)
    assert np.array_equal(class_of_colours(2)[values], classes)
    burnt = rasterize(zip(geometries, values.tolist(), strict=True), (100, 100), dtype="uint8")[::-1]
    assert sum(len(some.polygons) for some in trace([burnt])) == 100
    tables = count_objects([(burnt, class_of_colours(2)[burnt])], class_of_colours(2), 1.0)
    assert sum(table.counts[:, 0].sum() for table in tables) == 100


def test_an_unknown_class_stays_unknown() -> None:
    values = colours_for(np.array([box(0, 0, 1, 1)], object), np.array([255], np.uint8), 3, 1.0)
    assert values.tolist() == [255]
