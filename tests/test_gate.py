"""Laws of the gate: better where it was corrected, no worse where it was not, and what nobody looked at is said."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks_for_tests import brightness_model
from worlds import noise, write_raster

from gimseg.correction.gate import TOLERANCE, Counts, Pair, Scored, Verdict, compare_models, judge
from gimseg.holdouts import GroundBlocks
from gimseg.inference import Predictor
from gimseg.intervals import bootstrap
from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import Legend
from gimseg.metrics import Confusion
from gimseg.probability_scores import ProbabilityTable
from gimseg.rasters import open_raster

LEGEND = Legend.binary("bright")


def counts(truth: np.ndarray, shares: np.ndarray) -> Counts:
    found = (shares > 0.5).astype(np.uint8)
    return Counts(Confusion.of(truth, found, 2), ProbabilityTable.of(truth, shares[None]))


def pieces(before: float, after: float, *, share: float = 0.3, seed: int = 0, number: int = 12) -> list[Pair]:
    """Blocks on which models are wrong on such shares of the pixels."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        truth = (rng.random((20, 20)) < share).astype(np.uint8)
        wrong = rng.random((2, 20, 20)) < np.array([before, after])[:, None, None]
        sure = 0.6 + 0.4 * rng.random((2, 20, 20))
        made.append(Pair(*(counts(truth, np.where(truth ^ one, s, 1 - s)) for one, s in zip(wrong, sure, strict=True))))
    return made


def scored(before: float, after: float, **given: float) -> Scored:
    found = Scored.of(pieces(before, after, **given))  # type: ignore[arg-type]
    assert found is not None
    return found


def test_scores_are_those_of_all_pieces_and_intervals_those_of_drawing_pieces() -> None:
    pairs = pieces(0.2, 0.1)
    found = Scored.of(pairs)
    assert found is not None and found.measure == "IoU" and found.pieces == 12 and found.pixels == 12 * 400
    tables = [pair.after.confusion for pair in pairs]
    whole = sum(tables[1:], tables[0])
    assert found.deployed.after.score == whole.iou[1] and found.after == whole
    drawn = bootstrap(tables, lambda table: table.mean_iou, draws=500)
    assert found.deployed.after.low == pytest.approx(drawn.low, abs=0.01)
    assert found.deployed.after.high == pytest.approx(drawn.high, abs=0.01)
    # Both models are seen on the same pieces: the difference is surer than two scores apart.
    apart = found.deployed.after.high - found.deployed.before.low
    assert found.deployed.gain.high - found.deployed.gain.low < apart
    rescanned = found.rescanned
    assert rescanned is not None and rescanned.before.score >= found.deployed.before.score


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 0.4), st.floats(0.05, 0.4), st.floats(0.05, 0.2), st.floats(0.05, 0.2))
def test_the_gate_opens_where_it_is_better_and_no_worse(
    seed: int, before: float, after: float, old_before: float, old_after: float
) -> None:
    held, old = scored(before, after, seed=seed), scored(old_before, old_after, seed=seed + 1)
    verdict = judge(held, old)
    better, lost = held.deployed.gain.score > 0, old.deployed.gain.score < -TOLERANCE
    assert verdict.passed == (better and not lost)
    assert ("not better" in verdict.reasons[0]) != better and ("worse by more" in verdict.reasons[1]) == lost
    assert ("luck" in " ".join(verdict.unguarded)) == (better and held.deployed.gain.low <= 0)
    assert Verdict.from_dict(verdict.to_dict()) == verdict


def test_a_loss_within_the_tolerance_is_allowed_and_one_beyond_it_is_not() -> None:
    held, old = scored(0.3, 0.1), scored(0.1, 0.1)
    for loss, passed in ((0.0099, True), (0.0101, False)):
        gain = old.deployed.gain._replace(score=-loss)
        assert judge(held, replace(old, deployed=replace(old.deployed, gain=gain))).passed == passed


def test_what_earlier_corrections_taught_is_guarded_too() -> None:
    held, old = scored(0.3, 0.1), scored(0.2, 0.1)
    kept, lost = scored(0.2, 0.1, seed=3), scored(0.1, 0.3, seed=3)
    assert judge(held, old, kept).passed
    verdict = judge(held, old, lost)
    assert not verdict.passed and "worse by more than 0.01 on what was held out of earlier" in verdict.reasons[2]
    assert "larger --old-share" in verdict.reasons[-1]
    assert not judge(held, None, lost).passed


def test_what_cannot_be_looked_at_is_said() -> None:
    held = scored(0.3, 0.1)
    alone = judge(held, None)
    assert alone.passed and "test set" in alone.unguarded[0]
    nothing = judge(None, scored(0.1, 0.1))
    assert not nothing.passed and "held out" in nothing.reasons[0]
    one = judge(scored(0.3, 0.1, number=1), None)
    assert one.passed and any("one block" in item for item in one.unguarded)
    assert Scored.of([]) is None


def test_false_alarms_that_go_count_where_nothing_is_to_be_found() -> None:
    held = scored(0.3, 0.1, share=0.0)
    assert held.measure == "share right" and held.rescanned is None
    assert held.deployed.before.score == pytest.approx(0.7, abs=0.03)
    assert judge(held, None).passed and not judge(scored(0.1, 0.3, share=0.0), None).passed
    told = held.to_dict(LEGEND)
    assert told["best_threshold"] is None and told["best_thresholds"]["before"]["bright"] is None


def test_pieces_are_the_blocks_of_ground_that_were_held_out(tmp_path: Path) -> None:
    image = noise((90, 110))
    raster = open_raster(write_raster(tmp_path / "image.tif", image))
    left, top = raster.geobox.affine.c, raster.geobox.affine.f
    held = {(math.floor(left / 20) + x, math.floor((top - 1) / 20) - y) for x, y in ((0, 0), (2, 1), (3, 3))}
    # Half of what is bright is called so.
    truth = write_raster(tmp_path / "truth.tif", (image > 190).astype(np.uint8))
    view = raster.on(raster.geobox)
    scene = LabelledScene("x", raster, view, LEGEND, truth_views=(open_raster(truth).on(raster.geobox, "nearest"),))
    scene = replace(scene, holdout=GroundBlocks(20.0, frozenset(held)))
    models = Predictor(brightness_model(127.5)), Predictor(brightness_model(190.5))
    pairs = compare_models([scene], *models, "val")
    assert len(pairs) == 3 and sum(pair.after.confusion.total for pair in pairs) == 3 * 400
    expected = Confusion.zeros(2)
    for x, y in ((0, 0), (2, 1), (3, 3)):
        roi = (slice(20 * y, 20 * y + 20), slice(20 * x, 20 * x + 20))
        expected += Confusion.of(image[roi] > 190, image[roi] > 127, 2)
    assert sum((pair.before.confusion for pair in pairs), Confusion.zeros(2)) == expected
    assert all(pair.after.iou == 1 for pair in pairs)
    whole = compare_models([replace(scene, holdout=None)], *models)
    assert len(whole) == 1 and whole[0].after.confusion.total == 90 * 110


def test_what_a_new_threshold_alone_would_give_is_told() -> None:
    # Shares that are all too low: nothing is found at 0.5, everything at 0.1.
    rng = np.random.default_rng(0)
    made = []
    for _ in range(6):
        truth = (rng.random((20, 20)) < 0.3).astype(np.uint8)
        right = np.where(truth ^ (rng.random(truth.shape) < 0.05), 0.9, 0.05)
        made.append(Pair(counts(truth, right / 4), counts(truth, right)))
    verdict = judge(Scored.of(made), None)
    assert verdict.passed and "another threshold alone (" in verdict.reasons[1]
    assert len(judge(scored(0.3, 0.1), None).reasons) == 1
