"""Laws of scores of probabilities, outlines and objects, and of intervals."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
import skimage.measure
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial import cKDTree
from scipy.spatial.distance import directed_hausdorff
from skimage.metrics import hausdorff_distance

from gimseg.boundary_scores import BoundaryTable
from gimseg.errors import LossError
from gimseg.intervals import bootstrap
from gimseg.metrics import Confusion
from gimseg.object_matching import count_objects
from gimseg.object_scores import ObjectTable, match_objects
from gimseg.probability_scores import BINS, ProbabilityTable
from gimseg.torchvision_ops import declare_missing_operators

declare_missing_operators()
import torchmetrics.functional as reference  # noqa: E402

seeds = st.integers(0, 2**31)


def drawn(seed: int, shape: tuple[int, int] = (40, 50)) -> tuple[np.ndarray, np.ndarray]:
    """Truth (rows, cols) with some unlabelled pixels, and probabilities (1, rows, cols) that know something of it."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(shape) < 0.3).astype(np.uint8)
    shown = np.clip(0.25 + 0.4 * truth + rng.normal(0, 0.2, shape), 0, 1)
    truth[rng.random(shape) < 0.1] = 255
    return truth, shown[None]


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(0, BINS - 1))
def test_a_scan_is_the_confusion_at_each_threshold(seed: int, step: int) -> None:
    truth, shown = drawn(seed)
    scan = ProbabilityTable.of(truth, shown).scan()
    table = Confusion.of(truth, (shown[0] > step / BINS).astype(np.uint8), 2)
    for score in ("iou", "f1", "recall"):
        assert getattr(scan, score)[step] == pytest.approx(getattr(table, score)[1], nan_ok=True)


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_curves_agree_with_torchmetrics(seed: int) -> None:
    truth, shown = drawn(seed)
    known = truth != 255
    table = ProbabilityTable.of(truth, shown)
    true, given_ = torch.from_numpy(truth[known].astype(np.int64)), torch.from_numpy(shown[0][known])
    assert table.scan().average_precision == pytest.approx(
        float(reference.average_precision(given_, true, task="binary")), abs=0.01
    )
    # torchmetrics measures confidence in the likelier class; with 0 and 1 swapped nothing else differs.
    calibration = table.calibration(bins=10)
    assert calibration.pixels.sum() == known.sum()
    for low, share, pixels in zip(np.arange(10) / 10, calibration.share, calibration.pixels, strict=True):
        inside = known & (shown[0] > low) & (shown[0] <= low + 0.1 + 1e-12)
        inside |= known & (shown[0] == 0) & (low == 0)
        assert pixels == inside.sum()
        assert share == pytest.approx(truth[inside].mean() if inside.any() else np.nan, nan_ok=True)


@settings(max_examples=15, deadline=None)
@given(seeds, st.sampled_from([1, 5, 10, 25]))
def test_calibration_error_is_that_of_torchmetrics(seed: int, bins: int) -> None:
    truth, shown = drawn(seed)
    # Away from the edges of bins: they count with the lower bin here, with the upper one there.
    shown = (
        np.floor(np.clip(shown, 0, 0.999) * 250) + np.random.default_rng(seed).uniform(0.1, 0.9, shown.shape)
    ) / 250
    known = truth != 255
    given_, true = torch.from_numpy(shown[0][known]), torch.from_numpy(truth[known].astype(np.int64))
    expected = reference.calibration_error(given_, true, task="binary", n_bins=bins, norm="l1")
    found = ProbabilityTable.of(truth, shown).calibration(bins=bins)
    assert found.expected_error == pytest.approx(float(expected), abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_curves_of_bytes_are_exactly_those_of_scikit_learn(seed: int) -> None:
    truth, shown = drawn(seed)
    steps = np.round(shown * BINS).astype(np.uint8)
    known = truth != 255
    true, given_ = truth[known], steps[0][known] / BINS
    scan = ProbabilityTable.of_bytes(truth, steps).scan()
    assert scan.average_precision == pytest.approx(sklearn.metrics.average_precision_score(true, given_), abs=1e-12)
    precision, recall, thresholds = sklearn.metrics.precision_recall_curve(true, given_)
    # There a pixel is of the class from a threshold on, here above it: a step further down.
    places = np.round(thresholds * BINS).astype(int) - 1
    inside = places >= 0
    np.testing.assert_allclose(scan.precision[places[inside]], precision[:-1][inside])
    np.testing.assert_allclose(scan.recall[places[inside]], recall[:-1][inside])


def test_probabilities_that_are_shares_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    shown = rng.random((1, 400, 400))
    table = ProbabilityTable.of((rng.random((400, 400)) < shown[0]).astype(np.uint8), shown)
    assert table.calibration().expected_error < 0.01
    assert ProbabilityTable.of(np.zeros((400, 400), np.uint8), shown).calibration().expected_error > 0.4


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_tables_of_parts_add_up(seed: int) -> None:
    truth, shown = drawn(seed)
    whole = ProbabilityTable.of(truth, shown)
    parts = ProbabilityTable.of(truth[:17], shown[:, :17]) + ProbabilityTable.of(truth[17:], shown[:, 17:])
    np.testing.assert_array_equal(whole.counts, parts.counts)
    np.testing.assert_allclose(whole.sums, parts.sums)


def test_the_best_threshold_is_where_iou_is_highest() -> None:
    truth, shown = drawn(3)
    scan = ProbabilityTable.of(truth, shown).scan()
    at_best = Confusion.of(truth, (shown[0] > scan.best_threshold).astype(np.uint8), 2).iou[1]
    assert at_best == pytest.approx(np.nanmax(scan.iou))
    assert np.isnan(ProbabilityTable.of(np.zeros((3, 3)), np.zeros((1, 3, 3))).scan().best_threshold)


@pytest.mark.parametrize(
    ("truth", "shown"),
    [
        (np.zeros((3, 3)), np.zeros((3, 3))),
        (np.zeros((3, 3)), np.full((1, 3, 3), 1.5)),
        (np.full((3, 3), 2), np.zeros((1, 3, 3))),
    ],
)
def test_what_is_no_probability_is_refused(truth: np.ndarray, shown: np.ndarray) -> None:
    with pytest.raises(LossError, match=r"needed|there are"):
        ProbabilityTable.of(truth, shown)


def blobs(seed: int, shape: tuple[int, int] = (60, 70)) -> np.ndarray:
    """A mask of smooth blobs."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, np.uint8)
    for _ in range(4):
        row, col, radius = rng.integers(5, shape[0] - 5), rng.integers(5, shape[1] - 5), rng.integers(3, 12)
        mask[(rows - row) ** 2 + (cols - col) ** 2 < radius**2] = 1
    return mask


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask beside others, by another way than the code's own; raster borders are none."""
    return (mask == 1) & ~binary_erosion(mask == 1, border_value=1)


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_hausdorff_is_that_of_scikit_image(seed: int) -> None:
    truth, guess = blobs(seed), blobs(seed + 1)
    table = BoundaryTable.of(truth, guess, pixel_m=(1, 1), reach_m=100)
    expected = hausdorff_distance(outline(truth), outline(guess))
    assert expected <= table.hausdorff_m() <= expected + 100 / 256 + 1e-9


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([(1.0, 1.0), (0.5, 0.8)]), st.sampled_from([1.0, 0.95, 0.5]))
def test_distances_between_outlines_are_those_of_scipy(seed: int, pixel_m: tuple[float, float], share: float) -> None:
    truth, guess = blobs(seed), blobs(seed + 1)
    places = [np.argwhere(outline(mask)) * pixel_m for mask in (truth, guess)]
    ways = [cKDTree(places[other]).query(places[own])[0] for own, other in ((0, 1), (1, 0))]
    if share == 1:
        expected = max(directed_hausdorff(*places)[0], directed_hausdorff(*places[::-1])[0])
        assert expected == pytest.approx(max(way.max() for way in ways))
    # The least distance within which so many pixels lie, of the outline that needs the greater one.
    expected = max(np.percentile(way, 100 * share, method="inverted_cdf") for way in ways)
    found = BoundaryTable.of(truth, guess, pixel_m=pixel_m, reach_m=100).hausdorff_m(share)
    assert expected - 1e-6 <= found <= expected + 100 / 256 + 1e-6


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 6))
def test_boundary_iou_is_that_of_masks_less_their_erosion(seed: int, distance: int) -> None:
    """As Cheng et al. define it: of the pixels of each mask that are no farther than d from its outline."""
    truth, guess = blobs(seed), blobs(seed + 1)
    truth[30:33] = 255
    known = truth != 255
    rows, cols = np.mgrid[-distance : distance + 1, -distance : distance + 1]
    disc = rows**2 + cols**2 <= distance**2
    rims = []
    for mask in (truth, guess):
        inside = (mask == 1) & known
        # What is unlabelled, and what lies beyond the raster, is no outside: no outline runs along it.
        rims.append(inside & ~binary_erosion(inside | ~known, disc, border_value=1))
    expected = (rims[0] & rims[1]).sum() / (rims[0] | rims[1]).sum()
    # Steps of a quarter of a pixel: whole distances are on their edges, so the table is exact.
    table = BoundaryTable.of(truth, guess, pixel_m=(1, 1), reach_m=64)
    assert table.iou(distance) == pytest.approx(expected)


@settings(max_examples=15, deadline=None)
@given(seeds, st.floats(0.5, 9.9))
def test_boundary_f1_is_that_of_its_definition(seed: int, distance: float) -> None:
    truth, guess = blobs(seed), blobs(seed + 1)
    places = [np.argwhere(outline(mask)) * 0.5 for mask in (truth, guess)]
    far = np.sqrt(((places[0][:, None] - places[1][None]) ** 2).sum(-1))
    # A step of the table is 10 / 256 m: its scores are those of a distance at most one step longer.
    table = BoundaryTable.of(truth, guess, pixel_m=(0.5, 0.5), reach_m=10)
    low, high = distance - 1e-6, distance + 10 / 256 + 1e-6
    assert (far.min(0) <= low).mean() <= table.precision(distance) <= (far.min(0) <= high).mean()
    assert (far.min(1) <= low).mean() <= table.recall(distance) <= (far.min(1) <= high).mean()


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_outlines_of_regions_with_margins_add_up(seed: int) -> None:
    truth, guess = blobs(seed, (90, 50)), blobs(seed + 1, (90, 50))
    truth[:, 20:23] = 255
    settings_ = {"pixel_m": (1.0, 1.0), "reach_m": 12.0}
    whole = BoundaryTable.of(truth, guess, **settings_)
    upper = BoundaryTable.of(truth[:64], guess[:64], **settings_, core=(slice(0, 50), slice(None)))
    lower = BoundaryTable.of(truth[36:], guess[36:], **settings_, core=(slice(14, None), slice(None)))
    parts = upper + lower
    for distance in (1, 5, 12):
        assert parts.f1(distance) == pytest.approx(whole.f1(distance), nan_ok=True)
        assert parts.iou(distance) == pytest.approx(whole.iou(distance), nan_ok=True)


def test_the_same_outline_fits_and_a_shifted_one_fits_within_its_shift() -> None:
    mask = np.zeros((80, 80), np.uint8)
    mask[20:50, 30:60] = 1
    same = BoundaryTable.of(mask, mask, pixel_m=(0.3, 0.3), reach_m=10)
    assert same.f1(0.3) == same.iou(0.3) == 1
    shifted = BoundaryTable.of(mask, np.roll(mask, 5, 1), pixel_m=(0.3, 0.3), reach_m=10)
    assert shifted.f1(1.55) == 1 > shifted.f1(1.2)
    assert shifted.hausdorff_m() == pytest.approx(1.5, abs=10 / 256 + 1e-9)
    assert shifted.hausdorff_m(0.5) < shifted.hausdorff_m(0.95)


def test_boundary_iou_of_a_wide_rim_is_iou() -> None:
    truth, guess = blobs(1), blobs(2)
    table = BoundaryTable.of(truth, guess, pixel_m=(1, 1), reach_m=60)
    assert table.iou(60) == pytest.approx(Confusion.of(truth, guess, 2).iou[1])
    assert table.iou(1) < table.iou(60)


def test_borders_of_the_raster_and_of_unlabelled_ground_are_no_outline() -> None:
    mask = np.ones((20, 20), np.uint8)
    truth = mask.copy()
    truth[:, 10:] = 255
    table = BoundaryTable.of(truth, mask, pixel_m=(1, 1), reach_m=5)
    assert table.true.sum() == table.predicted.sum() == 0
    assert np.isnan(table.f1(2))
    assert np.isnan(table.hausdorff_m())
    assert BoundaryTable.of(blobs(1), blobs(1) * 0, pixel_m=(1, 1), reach_m=5).f1(2) == 0


def squares(places: list[tuple[float, float, float]]) -> np.ndarray:
    return np.array([shapely.box(x, y, x + side, y + side) for x, y, side in places])


def test_objects_are_matched_one_to_one() -> None:
    true = squares([(0, 0, 10), (20, 0, 10), (40, 0, 10)])
    predicted = squares([(1, 0, 10), (20, 0, 5), (60, 0, 10), (0, 0, 10)])
    matches = match_objects(true, predicted)
    assert matches.true.tolist() == [0]
    assert matches.predicted.tolist() == [3]
    table = ObjectTable.of(shapely.area(true), shapely.area(predicted), matches)
    scores = table.scores()
    assert (scores.precision, scores.recall, scores.f1) == (1 / 4, 1 / 3, 2 / 7)
    by_area = table.scores(by_area=True)
    assert (by_area.precision, by_area.recall) == (100 / 325, 1 / 3)
    assert table.mean_iou == 1
    assert table.by_size()["50 to 200 m²"].recall == 1 / 3


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_matching_is_symmetric_and_does_not_depend_on_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = (squares([(x, y, 4) for x, y in rng.uniform(0, 30, (25, 2))]) for _ in range(2))
    matches, back = match_objects(one, other), match_objects(other, one)
    assert set(zip(matches.true, matches.predicted, strict=True)) == set(zip(back.predicted, back.true, strict=True))
    order = rng.permutation(len(one))
    shuffled = match_objects(one[order], other)
    assert set(zip(order[shuffled.true], shuffled.predicted, strict=True)) == set(
        zip(matches.true, matches.predicted, strict=True)
    )
    assert (matches.iou > 0.5).all()


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 40))
def test_objects_are_those_of_scikit_image_and_pairs_those_of_a_table_of_overlaps(seed: int, strip: int) -> None:
    rng = np.random.default_rng(seed)
    waves = gaussian_filter(rng.normal(0, 1, (3, 90, 70)), (0, 4, 4))
    truth = waves.argmax(0).astype(np.uint8)
    guess = (waves + gaussian_filter(rng.normal(0, 1, waves.shape), (0, 4, 4)) / 2).argmax(0).astype(np.uint8)
    guess[40:44] = truth[40:44] = 0
    strips = [(truth[row : row + strip], guess[row : row + strip]) for row in range(0, 90, strip)]
    class_of = np.zeros(256, np.uint8)
    class_of[:3] = range(3)
    for value, table in enumerate(count_objects(strips, class_of, 2.25), 1):
        labels = [skimage.measure.label(plane == value, connectivity=1) for plane in (truth, guess)]
        areas = [np.bincount(plane.ravel())[1:] for plane in labels]
        common = np.zeros((len(areas[0]) + 1, len(areas[1]) + 1), int)
        np.add.at(common, tuple(labels), 1)
        common = common[1:, 1:]
        iou = common / (areas[0][:, None] + areas[1][None] - common)
        true, predicted = np.nonzero(iou > 0.5)
        expected = [(areas[0], 0), (areas[0][true], 1), (areas[1], 2), (areas[1][predicted], 3)]
        for pixels, column in expected:
            assert table.counts[:, column].sum() == len(pixels)
            assert table.areas_m2[:, column].sum() == pytest.approx(2.25 * pixels.sum())
            sizes = np.searchsorted(table.limits_m2, 2.25 * pixels, side="right")
            assert table.counts[:, column].tolist() == np.bincount(sizes, minlength=4).tolist()
        assert table.iou_sum == pytest.approx(iou[true, predicted].sum())


def test_no_object_at_all_is_no_score() -> None:
    none = np.empty(0, object)
    matches = match_objects(none, none)
    scores = ObjectTable.of(np.empty(0), np.empty(0), matches).scores()
    assert all(np.isnan(score) for score in scores)


def test_an_interval_holds_the_score_and_narrows_with_more_rasters() -> None:
    rng = np.random.default_rng(5)
    tables = [Confusion(np.array([[900, 20], [15, n]])) for n in rng.integers(5, 200, 60)]
    few, many = (bootstrap(tables[:n], lambda table: table.mean_iou) for n in (8, 60))
    for interval in (few, many):
        assert interval.low <= interval.score <= interval.high
    assert many.high - many.low < few.high - few.low
    assert bootstrap(tables[:8], lambda table: table.mean_iou) == few
    assert np.isnan(bootstrap(tables[:1], lambda table: table.mean_iou).low)
    with pytest.raises(LossError, match="needed"):
        bootstrap([], lambda table: table.mean_iou)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of many samples of rasters of known mean score, about 90 % of the 90 % intervals hold it."""
    rng = np.random.default_rng(0)
    held = 0
    for repetition in range(100):
        hits = rng.binomial(100, 0.7, 40)
        tables = [Confusion(np.array([[0, 0], [100 - n, n]])) for n in hits]
        interval = bootstrap(tables, lambda table: float(table.recall[1]), level=0.9, draws=100, seed=repetition)
        held += interval.low <= 0.7 <= interval.high
    assert 78 <= held <= 98
