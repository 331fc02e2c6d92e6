"""Laws of the confusion matrix and its scores."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gimseg.errors import LossError
from gimseg.metrics import Confusion
from gimseg.torchvision_ops import declare_missing_operators

declare_missing_operators()
import torchmetrics.functional as reference  # noqa: E402

CLASSES = 4
masks = arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, 3, 255]))


def brute_force(truth: np.ndarray, prediction: np.ndarray, n: int) -> np.ndarray:
    table = np.zeros((n, n), np.int64)
    for true, predicted in zip(truth.ravel(), prediction.ravel(), strict=True):
        if true != 255 and predicted != 255:
            table[true, predicted] += 1
    return table


@settings(max_examples=50, deadline=None)
@given(masks, masks)
def test_the_table_is_that_of_counting_pixel_by_pixel(truth: np.ndarray, prediction: np.ndarray) -> None:
    expected = brute_force(truth, prediction, CLASSES)
    for kind in (np.uint8, np.int64, np.int16):
        table = Confusion.of(truth.astype(kind), prediction.astype(kind), CLASSES)
        assert table.matrix.dtype == np.int64
        np.testing.assert_array_equal(table.matrix, expected)


@settings(max_examples=50, deadline=None)
@given(masks, masks)
def test_scores_are_those_of_their_definition(truth: np.ndarray, prediction: np.ndarray) -> None:
    table = Confusion.of(truth, prediction, CLASSES)
    counted = (truth != 255) & (prediction != 255)
    for value in range(CLASSES):
        true, predicted = (truth == value) & counted, (prediction == value) & counted
        hits, either = int((true & predicted).sum()), int((true | predicted).sum())
        defined = {
            "iou": (hits, either),
            "f1": (2 * hits, int(true.sum() + predicted.sum())),
            "precision": (hits, int(predicted.sum())),
            "recall": (hits, int(true.sum())),
        }
        for name, (part, whole) in defined.items():
            score = getattr(table, name)[value]
            assert np.isnan(score) if whole == 0 else score == pytest.approx(part / whole), name
        assert table.support[value] == true.sum()
    if counted.any():
        assert table.accuracy == pytest.approx((truth == prediction)[counted].mean())
    f1, iou = table.f1, table.iou
    np.testing.assert_allclose(f1, 2 * iou / (1 + iou))


@settings(max_examples=30, deadline=None)
@given(masks, masks)
def test_tables_of_parts_add_up_to_the_table_of_the_whole(truth: np.ndarray, prediction: np.ndarray) -> None:
    whole = Confusion.of(truth, prediction, CLASSES)
    upper, lower = (Confusion.of(truth[rows], prediction[rows], CLASSES) for rows in (slice(0, 2), slice(2, None)))
    assert upper + lower == lower + upper == whole
    assert whole + Confusion.zeros(CLASSES) == whole
    assert Confusion.zeros(CLASSES).update(truth[:2], prediction[:2]).update(truth[2:], prediction[2:]) == whole


def test_truth_in_rows_prediction_in_columns() -> None:
    table = Confusion.of([1, 1, 1], [0, 1, 2], 3)
    assert table.matrix.tolist() == [[0, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_masks_longer_than_one_chunk_are_counted_whole() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 3, (2, 1500, 1501), dtype=np.uint8)
    table = Confusion.of(truth, prediction, 3)
    assert table.total == truth.size
    assert table.matrix[1, 2] == ((truth == 1) & (prediction == 2)).sum()


def test_torch_tensors_and_bools_count_as_arrays_do() -> None:
    truth, prediction = np.array([0, 1, 1], np.uint8), np.array([0, 0, 1], np.uint8)
    table = Confusion.of(truth, prediction, 2)
    assert Confusion.of(torch.from_numpy(truth), torch.from_numpy(prediction).long(), 2) == table
    assert Confusion.of(truth.astype(bool), prediction.astype(bool), 2) == table


def test_mean_iou_leaves_out_background_and_undefined_classes() -> None:
    table = Confusion.of([0, 0, 1, 1, 2], [0, 0, 1, 0, 2], 4)
    assert table.mean_iou == pytest.approx((0.5 + 1.0) / 2)
    assert np.isnan(Confusion.zeros(3).mean_iou)
    assert np.isnan(Confusion.zeros(3).accuracy)


def test_undefined_scores_warn_of_nothing_and_are_null_in_json(recwarn: pytest.WarningsRecorder) -> None:
    scores = Confusion.of([0, 0], [0, 0], 2).to_dict(["building"])
    assert not recwarn.list
    assert json.loads(json.dumps(scores, allow_nan=False))["classes"]["building"]["iou"] is None
    assert scores["classes"]["background"]["iou"] == 1.0
    assert scores["confusion"] == [[2, 0], [0, 0]]


def test_the_table_cannot_be_changed() -> None:
    given_matrix = np.zeros((2, 2), np.int64)
    table = Confusion(given_matrix)
    given_matrix[0, 0] = 7
    assert table.total == 0
    with pytest.raises(ValueError, match="read-only"):
        table.matrix[0, 0] = 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Confusion.of([0, 3, 254], [0, 0, 0], 2), "truth holds 3, 254"),
        (lambda: Confusion.of([0, 0], [0, 2], 2), "prediction holds 2"),
        (lambda: Confusion.of([0, 0], [0], 2), r"\(2,\).*\(1,\)"),
        (lambda: Confusion.of([0.5], [0], 2), "whole numbers"),
        (lambda: Confusion.of([-1], [0], 2), "-1"),
        (lambda: Confusion.of([256], [0], 2), "256"),
        (lambda: Confusion.zeros(2) + Confusion.zeros(3), "2 and 3"),
        (lambda: Confusion(np.zeros((2, 3), np.int64)), r"\(2, 3\)"),
        (lambda: Confusion(np.array([[-1]])), "0 or above"),
        (lambda: Confusion.zeros(3).to_dict(["a"]), "names"),
        (lambda: Confusion.zeros(3).to_dict(["a", "a"]), "names"),
    ],
)
def test_what_is_no_table_is_refused_with_what_was_given(wrong, words: str) -> None:
    with pytest.raises(LossError, match=words):
        wrong()


def test_metrics_need_no_torch() -> None:
    code = "import sys, gimseg.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@settings(max_examples=30, deadline=None)
@given(masks, masks)
def test_scores_agree_with_torchmetrics(truth: np.ndarray, prediction: np.ndarray) -> None:
    counted = (truth != 255) & (prediction != 255)
    if not counted.any():
        return
    table = Confusion.of(truth, prediction, CLASSES)
    true, given_ = (torch.from_numpy(mask[counted].astype(np.int64)) for mask in (truth, prediction))
    task: dict[str, Any] = {"task": "multiclass", "num_classes": CLASSES}
    specificity = reference.specificity(given_, true, average="none", **task)
    known = ~np.isnan(table.specificity)
    np.testing.assert_allclose(table.specificity[known], specificity.numpy()[known], atol=1e-6)
    if not np.isnan(table.kappa):
        assert table.kappa == pytest.approx(float(reference.cohen_kappa(given_, true, **task)), abs=1e-5)
    micro = reference.f1_score(given_, true, average="micro", **task)
    assert table.average("f1", "micro", background=True) == pytest.approx(float(micro), abs=1e-6)
    for value in range(CLASSES):
        if not np.isnan(table.mcc[value]):
            one = reference.matthews_corrcoef(given_ == value, true == value, task="binary")
            assert table.mcc[value] == pytest.approx(float(one), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(masks, masks)
def test_correlations_are_those_of_scikit_learn(truth: np.ndarray, prediction: np.ndarray) -> None:
    counted = (truth != 255) & (prediction != 255)
    true, given_ = truth[counted], prediction[counted]
    table = Confusion.of(truth, prediction, CLASSES)
    constant = [len(np.unique(plane)) < 2 for plane in (true, given_)]
    # Where one is constant scikit-learn says 0 of what is 0/0.
    if any(constant):
        assert np.isnan(table.mcc_of_all)
    else:
        assert table.mcc_of_all == pytest.approx(sklearn.metrics.matthews_corrcoef(true, given_), abs=1e-12)
    known = [value for value in range(1, CLASSES) if not np.isnan(table.mcc[value])]
    if known:
        of_each = [sklearn.metrics.matthews_corrcoef(true == value, given_ == value) for value in known]
        assert table.average("mcc") == pytest.approx(np.mean(of_each), abs=1e-12)
    binary = Confusion.of(truth == 1, prediction == 1, 2)
    assert binary.mcc_of_all == pytest.approx(binary.mcc[0], nan_ok=True)
    assert binary.mcc_of_all == pytest.approx(binary.average("mcc"), nan_ok=True)


def test_counts_of_a_whole_country_do_not_overflow() -> None:
    table = Confusion(np.array([[10**12, 10**11], [10**11, 10**11]]))
    assert 0 < table.kappa < 1
    assert table.mcc[1] == pytest.approx(table.mcc[0]) == pytest.approx(table.mcc_of_all)


@settings(max_examples=30, deadline=None)
@given(masks, masks)
def test_averages_are_those_of_the_classes(truth: np.ndarray, prediction: np.ndarray) -> None:
    table = Confusion.of(truth, prediction, CLASSES)
    scores = table.iou[1:]
    known = ~np.isnan(scores)
    if known.any():
        assert table.average("iou") == pytest.approx(scores[known].mean()) == pytest.approx(table.mean_iou)
    binary = Confusion.of(truth == 1, prediction == 1, 2)
    for score in ("iou", "f1", "precision", "recall", "specificity"):
        one = getattr(binary, score)[1]
        for how in ("macro", "micro"):
            assert binary.average(score, how) == pytest.approx(one, nan_ok=True)


def test_averages_that_do_not_exist_are_refused() -> None:
    for score, how in (("iou", "median"), ("beauty", "macro"), ("mcc", "micro")):
        with pytest.raises(LossError, match="average"):
            Confusion([[1, 0], [0, 1]]).average(score, how)
