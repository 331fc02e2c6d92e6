"""Whether a corrected model may take the place of the old one: both scored on ground that neither learned.

The corrected ground that was held out says what was gained, the frozen test set of the
old model what was forgotten. The gate opens where the new model is better on the former
and no worse than :data:`TOLERANCE` on the latter; what could not be looked at is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gimseg.errors import CorrectionError
from gimseg.holdouts import GroundBlocks
from gimseg.inference import Predictor
from gimseg.intervals import Interval, resampled
from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import UNLABELLED, Legend
from gimseg.metrics import Confusion
from gimseg.probability_scores import ProbabilityTable
from gimseg.products import Products, to_shares
from gimseg.progress import Progress, silent
from gimseg.rasters import Roi

TOLERANCE = 0.01
"""IoU that may be lost on the old test set."""
_BLOCK = 1024
_DRAWS = 500


@dataclass(frozen=True, eq=False)
class Counts:
    """Pixels of a piece of ground, as a model sees them.

    Attributes:
        confusion: at the model's own threshold.
        probabilities: at any threshold.
    """

    confusion: Confusion
    probabilities: ProbabilityTable

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.confusion + other.confusion, self.probabilities + other.probabilities)

    @property
    def iou(self) -> float:
        """At the model's own threshold; of several classes the mean."""
        return self.confusion.mean_iou

    @property
    def right(self) -> float:
        """Share of the pixels whose class is right, at the model's own threshold."""
        return self.confusion.accuracy

    @property
    def best_iou(self) -> float:
        """At the threshold that is best on this very ground; of several classes the mean."""
        scans = [self.probabilities.scan(number).iou for number in range(len(self.probabilities.counts))]
        best = [float(np.nanmax(scan)) for scan in scans if not np.isnan(scan).all()]
        return float(np.mean(best)) if best else math.nan

    @property
    def best_thresholds(self) -> tuple[float, ...]:
        """Those, of each class; NaN without a pixel of it."""
        numbers = range(len(self.probabilities.counts))
        return tuple(self.probabilities.scan(number).best_threshold for number in numbers)


@dataclass(frozen=True, eq=False)
class Pair:
    """The same ground before and after the correction."""

    before: Counts
    after: Counts

    def __add__(self, other: Pair) -> Pair:
        return Pair(self.before + other.before, self.after + other.after)


@dataclass(frozen=True)
class Comparison:
    """A score before and after, each with its 95 % interval.

    Args:
        before: of the old model.
        after: of the new one.
        gain: the difference, drawn on the same pieces of ground.
    """

    before: Interval
    after: Interval
    gain: Interval

    @classmethod
    def of(cls, whole: Pair, drawn: Sequence[Pair], score: Callable[[Counts], float]) -> Comparison:
        """Of all pieces of ground together, and of draws of them."""
        before, after = score(whole.before), score(whole.after)
        scores = np.array([[score(pair.before), score(pair.after)] for pair in drawn]).reshape(-1, 2)
        return cls(
            Interval.around(before, scores[:, 0]),
            Interval.around(after, scores[:, 1]),
            Interval.around(after - before, scores[:, 1] - scores[:, 0]),
        )

    def text(self, measure: str) -> str:
        """For people, without what is not known."""
        return f"{measure} {_told(self.before)} before, {_told(self.after)} after"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is not known is None."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}


@dataclass(frozen=True)
class Scored:
    """Both models on one kind of ground.

    Args:
        measure: ``"IoU"``; ``"share right"`` of the pixels where nothing of any class is there to be found.
        deployed: each at its own threshold.
        rescanned: IoU of each at the threshold that is best for it on this very ground: what
            a new threshold alone would give, at most; None where nothing is there to be found.
        thresholds: those, of each class, (before, after).
        pieces: of ground, blocks or windows.
        pixels: labelled.
        before: all of it, as the old model sees it.
        after: as the new one does.
    """

    measure: str
    deployed: Comparison
    rescanned: Comparison | None
    thresholds: tuple[tuple[float, ...], tuple[float, ...]]
    pieces: int
    pixels: int
    before: Confusion
    after: Confusion

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Scored | None:
        """Scores of all pieces together; None where nothing is labelled."""
        pairs = [pair for pair in pairs if pair.before.confusion.total]
        if not pairs:
            return None
        whole = sum(pairs[1:], pairs[0])
        before, after = whole.before.confusion, whole.after.confusion
        drawn = _drawn_again(pairs)
        # False alarms on empty ground have the IoU 0, be they many or few.
        is_there = bool(before.support[1:].any())
        return cls(
            measure="IoU" if is_there else "share right",
            deployed=Comparison.of(
                whole, drawn, (lambda counts: counts.iou) if is_there else (lambda counts: counts.right)
            ),
            rescanned=Comparison.of(whole, drawn, lambda counts: counts.best_iou) if is_there else None,
            thresholds=(whole.before.best_thresholds, whole.after.best_thresholds),
            pieces=len(pairs),
            pixels=before.total,
            before=before,
            after=after,
        )

    def text(self) -> str:
        """For people."""
        return self.deployed.text(self.measure)

    def to_dict(self, legend: Legend) -> dict[str, Any]:
        """For JSON."""
        return {
            "measure": self.measure,
            "deployed_threshold": self.deployed.to_dict(),
            "best_threshold": None if self.rescanned is None else self.rescanned.to_dict(),
            "best_thresholds": {
                when: dict(zip(legend.names, map(_number, values), strict=True))
                for when, values in zip(("before", "after"), self.thresholds, strict=True)
            },
            "pieces": self.pieces,
            "pixels": self.pixels,
            "before": self.before.to_dict(legend.names),
            "after": self.after.to_dict(legend.names),
        }


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Args:
        passed: the new model may be deployed.
        reasons: why, or why not.
        unguarded: what could not be looked at.
    """

    passed: bool
    reasons: tuple[str, ...]
    unguarded: tuple[str, ...] = ()

    def text(self) -> str:
        """Lines for people."""
        head = "the new model may take the place of the old one" if self.passed else "the old model stays"
        return "\n".join([f"{head}: {'; '.join(self.reasons)}", *(f"not guarded: {item}" for item in self.unguarded)])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"passed": self.passed, "reasons": list(self.reasons), "unguarded": list(self.unguarded)}

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> Verdict:
        """From what :meth:`to_dict` gave.

        Raises:
            CorrectionError: it is no verdict.
        """
        try:
            return cls(bool(table["passed"]), tuple(table["reasons"]), tuple(table["unguarded"]))
        except (KeyError, TypeError) as error:
            raise CorrectionError(f"no verdict can be read ({error!r}): write the report again") from error


def judge(held: Scored | None, old: Scored | None, earlier: Scored | None = None) -> Verdict:
    """Whether the new model may take the place of the old one.

    Args:
        held: on corrected ground that was held out; None where there is none.
        old: on the frozen test set of the old model; None where there is none.
        earlier: on ground that was held out of earlier corrections; None where there is none.

    Example:
        >>> print(judge(None, None).text())
        the old model stays: nothing of the corrected ground was held out, so nothing shows that it is better: draw \
on more ground
        not guarded: what was learned before: the old model keeps no test set of its own
    """
    reasons, unguarded = [], []
    if held is None:
        reasons.append(
            "nothing of the corrected ground was held out, so nothing shows that it is better: draw on more ground"
        )
        better = False
    else:
        gain = held.deployed.gain
        better = gain.score > 0
        told = "better" if better else "not better"
        reasons.append(f"{told} on corrected ground that was held out: {held.text()}")
        if better:
            reasons += _by_threshold(held)
        if better and gain.low <= 0:
            unguarded.append(f"luck: the gain is {_signed(gain)}, which {held.pieces} blocks do not tell from none")
        if math.isnan(gain.low):
            unguarded.append("luck: one block was held out, which tells of no other")
    if old is None:
        unguarded.append("what was learned before: the old model keeps no test set of its own")
    known = {"the old test set": old, "what was held out of earlier corrections": earlier}
    scored = {name: ground for name, ground in known.items() if ground is not None}
    kept = {name: ground.deployed.gain.score >= -TOLERANCE for name, ground in scored.items()}
    for name, is_kept in kept.items():
        told = "no worse" if is_kept else f"worse by more than {TOLERANCE:g}"
        reasons.append(f"{told} on {name}: {scored[name].text()}")
    if not all(kept.values()):
        reasons.append("with more of the old weights it forgets less: train it with a larger --old-share")
    return Verdict(better and all(kept.values()), tuple(reasons), tuple(unguarded))


def compare_models(
    scenes: Iterable[LabelledScene],
    before: Predictor,
    after: Predictor,
    split: str | None = None,
    *,
    progress: Progress = silent,
) -> list[Pair]:
    """Count what two models see on labelled ground, piece by piece.

    Args:
        scenes: at the resolution of the models.
        before: the old model.
        after: the new one.
        split: only ground of this split; None: all.
        progress: told of each scene.

    Returns:
        one pair for each block of ground where the scenes are divided into blocks, else
        for each scene.

    Raises:
        RasterError: a scene cannot be read.
    """
    scenes = tuple(scenes)
    pairs: list[Pair] = []
    for done, scene in enumerate(scenes, 1):
        counted = [count_pieces(scene, predictor, split) for predictor in (before, after)]
        pairs += [Pair(counted[0][key], counted[1][key]) for key in sorted(counted[0])]
        progress("score", done, len(scenes), "scenes")
    return pairs


def count_pieces(scene: LabelledScene, predictor: Predictor, split: str | None = None) -> dict[tuple[int, int], Counts]:
    """Count what a model sees on a labelled scene.

    Args:
        scene: at the resolution of the model.
        predictor: of the model.
        split: only ground of this split; None: all.

    Returns:
        counts by the numbers of the scene's blocks of ground; all under (0, 0) where it has none.

    Raises:
        RasterError: the scene cannot be read.
    """
    found: dict[tuple[int, int], Counts] = {}
    legend = scene.legend

    def is_labelled(roi: Roi) -> bool:
        return bool((scene.read_labels(roi, split) != UNLABELLED).any())

    products = Products(probabilities=True)
    for roi, planes in predictor.blocks(scene.view, _BLOCK, products=products, wanted=is_labelled):
        labels = scene.read(roi, split)[1]
        # A pixel that is not predicted counts as background, as in every evaluation.
        given = np.where(planes[0] == UNLABELLED, 0, legend.to_channels(planes[0]))
        shares = np.nan_to_num(to_shares(planes[1:]))
        for number, place in _pieces(scene, roi):
            truth = legend.to_channels(labels[place])
            if (truth == UNLABELLED).all():
                continue
            counts = Counts(
                Confusion.of(truth, given[place], len(legend.classes) + 1),
                ProbabilityTable.of(truth, shares[:, *place]),
            )
            found[number] = found[number] + counts if number in found else counts
    return found


def _drawn_again(pairs: Sequence[Pair]) -> list[Pair]:
    """All pieces of ground together, drawn with replacement again and again, whole pieces each time."""
    counts = [[pair.before, pair.after] for pair in pairs]
    # One seed: the same pieces are drawn for all three.
    matrices, bins, sums = (
        resampled(np.array([[part(one) for one in both] for both in counts]), draws=_DRAWS)
        for part in (
            lambda one: one.confusion.matrix,
            lambda one: one.probabilities.counts,
            lambda one: one.probabilities.sums,
        )
    )
    return [
        Pair(*(Counts(Confusion(matrix[i]), ProbabilityTable(count[i], total[i])) for i in (0, 1)))
        for matrix, count, total in zip(matrices, bins, sums, strict=True)
    ]


def _pieces(scene: LabelledScene, roi: Roi) -> Iterator[tuple[tuple[int, int], Roi]]:
    """Blocks of ground in a region, by their numbers, and where in the region they lie."""
    blocks = scene.holdout
    if not isinstance(blocks, GroundBlocks):
        yield (0, 0), (slice(0, None), slice(0, None))
        return
    x, y = blocks.numbers(scene.geobox[roi])
    rows, cols = ([(int(part[0]), _span(axis, part[0])) for part in _runs(axis)] for axis in (y, x))
    for row, down in rows:
        for col, across in cols:
            yield (row, col), (down, across)


def _runs(numbers: np.ndarray) -> list[np.ndarray]:
    return np.split(numbers, np.flatnonzero(np.diff(numbers)) + 1)


def _span(numbers: np.ndarray, number: int) -> slice:
    places = np.flatnonzero(numbers == number)
    return slice(int(places[0]), int(places[-1]) + 1)


def _by_threshold(held: Scored) -> list[str]:
    """What a new threshold alone would have given, where that is more than half of the gain."""
    best, one = held.rescanned, held.deployed
    if best is None or best.before.score < (one.before.score + one.after.score) / 2:
        return []
    named = ", ".join(f"{value:.3g}" for value in held.thresholds[0])
    return [f"another threshold alone ({named}) would give the old model {best.before.score:.3f} there"]


def _told(interval: Interval) -> str:
    return f"{interval.score:.3f}" if math.isnan(interval.low) else str(interval)


def _signed(gain: Interval) -> str:
    return f"{gain.score:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _plain(interval: Interval) -> dict[str, float | None]:
    return {name: _number(value) for name, value in interval._asdict().items()}
