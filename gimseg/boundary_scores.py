"""How well outlines fit: boundary F1, boundary IoU, Hausdorff distances, from one table of counts.

Pixels of the two outlines are counted by their distance from the other one. Tables
of regions add up, if each region is looked at with a margin of `reach` around it, so
that memory is that of a region at any raster size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_dilation, distance_transform_edt

from gimseg.errors import LossError
from gimseg.legend import UNLABELLED

STEPS = 256
"""Steps of equal width between no distance and `reach`; one more holds what is farther."""

_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)

Roi = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class BoundaryTable:
    """Pixels of true and predicted outlines by their distance from the other outline.

    An outline pixel is one of the class with a neighbour, along rows or columns, that is
    known and not of the class. Borders of the raster and of unlabelled ground are no outline.
    Scores at a distance are those of a distance at most a step (`reach_m` / 256) longer.

    Attributes:
        reach_m: distances up to this one are told apart, m.
        predicted: (STEPS + 1,), int64: predicted outline pixels by distance from the true outline.
        true: (STEPS + 1,), int64: true ones by distance from the predicted outline.
        bands: (STEPS, 3), int64: pixels at most so deep inside the true object, the
            predicted one, and both.
    """

    reach_m: float
    predicted: NDArray[np.int64]
    true: NDArray[np.int64]
    bands: NDArray[np.int64]

    @classmethod
    def zeros(cls, reach_m: float) -> BoundaryTable:
        """The empty table."""
        if not reach_m > 0:
            raise LossError(f"reach_m is {reach_m}: a distance above 0 m is needed")
        predicted, true = np.zeros((2, STEPS + 1), np.int64)
        return cls(reach_m, predicted, true, np.zeros((STEPS, 3), np.int64))

    @classmethod
    def of(
        cls,
        truth: ArrayLike,
        prediction: ArrayLike,
        *,
        pixel_m: tuple[float, float],
        reach_m: float,
        value: int = 1,
        core: Roi | None = None,
    ) -> BoundaryTable:
        """Count one region.

        Args:
            truth: (rows, cols), whole numbers; 255 is unlabelled.
            prediction: (rows, cols); 255 is not predicted.
            pixel_m: height and width of a pixel, m.
            reach_m: distances up to this one are told apart, m.
            value: of the class.
            core: the pixels to count, of a region that reaches `reach_m` and two pixels beyond them
                (less at the raster's border); None: all.

        Raises:
            LossError: shapes that differ, or no reach.
        """
        table = cls.zeros(reach_m)
        labels, guesses = np.asarray(truth), np.asarray(prediction)
        if labels.shape != guesses.shape or labels.ndim != 2:
            raise LossError(f"truth is {labels.shape}, prediction {guesses.shape}; needed is one (rows, cols)")
        known = (labels != UNLABELLED) & (guesses != UNLABELLED)
        masks = [(plane == value) & known for plane in (labels, guesses)]
        if not (masks[0].any() or masks[1].any()):
            return table
        outlines = [mask & binary_dilation(known & ~mask, _CROSS) for mask in masks]
        core = core or (slice(None), slice(None))
        for counts, own, other in ((table.true, 0, 1), (table.predicted, 1, 0)):
            counts += _histogram(_distance(outlines[other], pixel_m)[core][outlines[own][core]], reach_m)
        depths = [np.where(mask, _distance(known & ~mask, pixel_m), np.inf)[core] for mask in masks]
        for column, depth in enumerate((*depths, np.maximum(*depths))):
            table.bands[:, column] = _histogram(depth[np.isfinite(depth)], reach_m)[:STEPS].cumsum()
        return table

    def __add__(self, other: BoundaryTable) -> BoundaryTable:
        if not isinstance(other, BoundaryTable):
            return NotImplemented
        if self.reach_m != other.reach_m:
            raise LossError(f"tables that reach {self.reach_m:g} m and {other.reach_m:g} m do not add up")
        return BoundaryTable(
            self.reach_m, self.predicted + other.predicted, self.true + other.true, self.bands + other.bands
        )

    def precision(self, distance_m: float) -> float:
        """Share of the predicted outline that lies within a distance of the true one; NaN without one."""
        return _share(self.predicted[: self._steps(distance_m)].sum(), self.predicted.sum())

    def recall(self, distance_m: float) -> float:
        """Share of the true outline that lies within a distance of the predicted one; NaN without one."""
        return _share(self.true[: self._steps(distance_m)].sum(), self.true.sum())

    def f1(self, distance_m: float) -> float:
        """Harmonic mean of precision and recall of the outlines; 0 where only one of them is there.

        Source: Csurka et al. 2013, What is a good evaluation measure for semantic segmentation?
        """
        precision, recall = self.precision(distance_m), self.recall(distance_m)
        if np.isnan(precision) and np.isnan(recall):
            return float("nan")
        precision, recall = np.nan_to_num([precision, recall])
        return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0

    def iou(self, distance_m: float) -> float:
        """IoU of the two rims: the pixels at most so far inside from their object's own outline.

        Source: Cheng et al. 2021, Boundary IoU, arXiv 2103.16562.
        """
        true, predicted, both = self.bands[self._steps(distance_m) - 1]
        return _share(both, true + predicted - both)

    def hausdorff_m(self, share: float = 1.0) -> float:
        """Distance within which so large a share of each outline lies, m: the greater of the two.

        Args:
            share: 1 is the Hausdorff distance, 0.95 its 95th percentile.

        Returns:
            exact to a step, rounded up; infinite beyond `reach_m`, NaN without one of the outlines.
        """
        found = [_quantile(counts, share) for counts in (self.predicted, self.true)]
        if any(np.isnan(found)):
            return float("nan")
        step = max(found)
        return float("inf") if step >= STEPS else self.reach_m * (step + 1) / STEPS

    def _steps(self, distance_m: float) -> int:
        if not 0 < distance_m <= self.reach_m:
            raise LossError(f"a distance of {distance_m:g} m: above 0 and up to {self.reach_m:g} m was counted")
        # Rounded up like the distances counted: what lies just so far is within.
        return int(np.ceil(distance_m / self.reach_m * STEPS - 1e-6))


def _distance(targets: NDArray[np.bool_], pixel_m: tuple[float, float]) -> NDArray[np.float64]:
    """Of each pixel from the next target, m; infinite without any."""
    if not targets.any():
        return np.full(targets.shape, np.inf)
    return distance_transform_edt(~targets, sampling=pixel_m)


def _histogram(distances: NDArray[np.float64], reach_m: float) -> NDArray[np.int64]:
    """Counts by step: step k holds distances up to (k + 1) / STEPS of the reach, the last one what is beyond."""
    # Rounded up, so that a distance of just d counts as within d.
    steps = np.ceil(np.minimum(distances / reach_m, 2) * STEPS - 1e-6) - 1
    return np.bincount(np.clip(steps, 0, STEPS).astype(np.int64), minlength=STEPS + 1)


def _quantile(counts: NDArray[np.int64], share: float) -> float:
    total = counts.sum()
    return float(np.searchsorted(counts.cumsum(), share * total - 1e-9)) if total else float("nan")


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
