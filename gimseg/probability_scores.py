"""Scores of probabilities: threshold scan, precision-recall curve, calibration, from one table of counts.

Probabilities are counted in bins, by class and by truth, so that memory is that of the
table at any raster size, and tables of windows, rasters and processes add up. A scan
is exact for thresholds on the edges of the bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gimseg.errors import LossError
from gimseg.legend import UNLABELLED

BINS = 250
"""Bins of equal width between 0 and 1: as fine as the bytes in which probabilities are kept."""


class Scan(NamedTuple):
    """Scores of one class at each threshold; a pixel is of the class if its probability is above."""

    thresholds: NDArray[np.float64]
    """(BINS,), rising from 0."""
    hits: NDArray[np.int64]
    false_alarms: NDArray[np.int64]
    misses: NDArray[np.int64]
    pixels: int
    """All that were counted, those with a probability of 0 among them."""

    @property
    def iou(self) -> NDArray[np.float64]:
        """TP / (TP + FP + FN) at each threshold; NaN where there is neither object nor prediction."""
        return _ratio(self.hits, self.hits + self.false_alarms + self.misses)

    @property
    def f1(self) -> NDArray[np.float64]:
        """2·TP / (2·TP + FP + FN) at each threshold."""
        return _ratio(2 * self.hits, 2 * self.hits + self.false_alarms + self.misses)

    @property
    def precision(self) -> NDArray[np.float64]:
        """TP / (TP + FP) at each threshold; 1 where nothing is predicted."""
        given = self.hits + self.false_alarms
        return np.where(given == 0, 1.0, _ratio(self.hits, given))

    @property
    def recall(self) -> NDArray[np.float64]:
        """TP / (TP + FN) at each threshold; NaN without a true pixel."""
        return _ratio(self.hits, self.hits + self.misses)

    @property
    def best_threshold(self) -> float:
        """Where IoU (and with it F1) is highest, the middle of a plateau; NaN without a true pixel."""
        scores = self.iou
        if not (self.hits + self.misses)[0]:
            return float("nan")
        best = np.flatnonzero(scores >= np.nanmax(scores) - 1e-12)
        return float(self.thresholds[best[len(best) // 2]])

    @property
    def average_precision(self) -> float:
        """Area under precision over recall, as steps; NaN without a true pixel.

        Source: as scikit-learn's ``average_precision_score``: the sum of precision times
        the gain of recall, from the highest threshold down to where all pixels are of the class. Exact up to the
        width of a bin.
        """
        true = (self.hits + self.misses)[0]
        if not true:
            return float("nan")
        # The first step takes all pixels: those of the class whose probability is 0 are found by it alone.
        precision, recall = np.array([true / self.pixels, *self.precision]), np.array([1.0, *self.recall, 0.0])
        return float((precision * (recall[:-1] - recall[1:])).sum())


class Calibration(NamedTuple):
    """Whether probabilities are shares: of pixels with probability p, is the share p of the class?"""

    confidence: NDArray[np.float64]
    """(bins,), the mean probability in each bin; NaN where it is empty."""
    share: NDArray[np.float64]
    """(bins,), the share of pixels that are of the class."""
    pixels: NDArray[np.int64]
    """(bins,)."""

    @property
    def expected_error(self) -> float:
        """Mean distance of share from confidence over pixels (ECE); NaN without a pixel.

        Source: Guo et al. 2017, arXiv 1706.04599.
        """
        known = self.pixels > 0
        gaps = np.abs(self.share[known] - self.confidence[known])
        return float(_ratio((gaps * self.pixels[known]).sum(), self.pixels.sum()))


@dataclass(frozen=True, eq=False)
class ProbabilityTable:
    """Pixels by class, truth and binned probability.

    Attributes:
        counts: (classes, 2, BINS + 1), int64: of each class without the background, the pixels
            that are not of it, and those that are, by their probability.
        sums: (classes, BINS + 1), float64: their probabilities added up.

    Example:
        >>> table = ProbabilityTable.of([[1, 1, 0, 0, 255]], [[[0.9, 0.6, 0.7, 0.1, 0.9]]])
        >>> scan = table.scan(0)
        >>> scan.best_threshold < 0.6, round(float(np.nanmax(scan.iou)), 3)
        (True, 0.667)
    """

    counts: NDArray[np.int64]
    sums: NDArray[np.float64]

    @classmethod
    def zeros(cls, classes: int) -> ProbabilityTable:
        """The empty table of so many classes, the background not among them."""
        return cls(np.zeros((classes, 2, BINS + 1), np.int64), np.zeros((classes, BINS + 1)))

    @classmethod
    def of(cls, truth: ArrayLike, probabilities: ArrayLike) -> ProbabilityTable:
        """Count one mask.

        Args:
            truth: whole numbers (rows, cols): 0 background, class k as k, 255 not counted.
            probabilities: (classes, rows, cols) of classes 1, 2, ... from 0 to 1; pixels
                where one is NaN are not counted.

        Raises:
            LossError: shapes that do not fit, or values that are no probabilities.
        """
        labels, values = np.asarray(truth), np.asarray(probabilities, np.float64)
        if values.ndim != 3 or labels.shape != values.shape[1:]:
            raise LossError(
                f"truth is {labels.shape}, probabilities {values.shape}; needed are (rows, cols) and (classes, rows, "
                "cols)"
            )
        counted = (labels != UNLABELLED) & ~np.isnan(values).any(0)
        labels, values = labels[counted], values[:, counted]
        if values.size and (values.min() < 0 or values.max() > 1):
            raise LossError(f"probabilities go from {values.min():g} to {values.max():g}, needed is 0 to 1")
        if labels.size and labels.max() > len(values):
            raise LossError(f"truth holds class {labels.max()}, there are probabilities of {len(values)} classes")
        # Bin k holds what is above (k - 1) / BINS up to k / BINS, bin 0 what is 0: above a threshold k / BINS lie the
        # bins after k.
        bins = np.ceil(values * BINS - 1e-9).astype(np.int64)
        table = cls.zeros(len(values))
        for number, (places, shown) in enumerate(zip(bins, values, strict=True)):
            true = labels == number + 1
            table.counts[number] = np.bincount(true * (BINS + 1) + places, minlength=2 * (BINS + 1)).reshape(2, -1)
            table.sums[number] = np.bincount(places, weights=shown, minlength=BINS + 1)
        return table

    @classmethod
    def of_bytes(cls, truth: ArrayLike, steps: ArrayLike) -> ProbabilityTable:
        """Count one mask whose probabilities are bytes: the same table, quicker.

        Args:
            truth: as in :meth:`of`.
            steps: uint8 (classes, rows, cols), steps of 1/250; pixels where one is 255 are not counted.

        Raises:
            LossError: shapes that do not fit.

        Example:
            >>> table = ProbabilityTable.of_bytes([[1, 0, 255]], [[[225, 25, 0]]])
            >>> table.scan().hits[100], round(table.calibration().expected_error, 3)
            (np.int64(1), 0.1)
        """
        labels, values = np.asarray(truth, np.uint8), np.asarray(steps, np.uint8)
        if values.ndim != 3 or labels.shape != values.shape[1:]:
            raise LossError(
                f"truth is {labels.shape}, steps are {values.shape}; needed are (rows, cols) and (classes, rows, cols)"
            )
        counted = (labels != UNLABELLED) & (values <= BINS).all(0)
        labels = labels[counted]
        table = cls.zeros(len(values))
        for number, plane in enumerate(values):
            pairs = np.bincount((labels == number + 1) * np.intp(256) + plane[counted], minlength=512)
            table.counts[number] = pairs.reshape(2, 256)[:, : BINS + 1]
            table.sums[number] = table.counts[number].sum(0) * np.arange(BINS + 1) / BINS
        return table

    def __add__(self, other: ProbabilityTable) -> ProbabilityTable:
        if not isinstance(other, ProbabilityTable):
            return NotImplemented
        if self.counts.shape != other.counts.shape:
            raise LossError(f"tables of {len(self.counts)} and {len(other.counts)} classes do not add up")
        return ProbabilityTable(self.counts + other.counts, self.sums + other.sums)

    def scan(self, number: int = 0) -> Scan:
        """Scores of a class at each threshold.

        Args:
            number: of the class, from 0, the background not counted.
        """
        rest, true = self.counts[number]
        hits, false_alarms = (counts[:0:-1].cumsum()[::-1] for counts in (true, rest))
        return Scan(np.arange(BINS) / BINS, hits, false_alarms, true.sum() - hits, int(self.counts[number].sum()))

    def calibration(self, number: int = 0, bins: int = 10) -> Calibration:
        """Probabilities of a class against the share of pixels that are of it.

        Args:
            number: of the class, from 0.
            bins: a divisor of 250.

        Raises:
            LossError: another number of bins.
        """
        if bins < 1 or BINS % bins:
            raise LossError(f"bins is {bins}: a divisor of {BINS} is needed")
        rest, true = (_gathered(counts, bins) for counts in self.counts[number])
        pixels = rest + true
        confidence = _ratio(_gathered(self.sums[number], bins), pixels)
        return Calibration(confidence, _ratio(true, pixels), pixels)


def _gathered(values: NDArray[Any], bins: int) -> NDArray[Any]:
    """Neighbouring bins added up; what is 0 goes with the first."""
    gathered = values[1:].reshape(bins, -1).sum(1)
    gathered[0] += values[0]
    return gathered


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.true_divide(numerator, denominator)
