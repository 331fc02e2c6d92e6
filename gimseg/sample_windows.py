"""Windows of ground, each with its own confusion matrix: samples to look at, and units to draw for intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gimseg.legend import UNLABELLED
from gimseg.metrics import Confusion
from gimseg.tiling import Roi

SIDE = 256
"""Of a window, about, px of the ground resolution: rasters are cut into windows as even as can be."""
FEW_WRONG = 0.01
"""Windows with a smaller share of wrong pixels come last, whatever their IoU."""

# A probability of 0 or 1 is one of up to a quarter of a percent from it: the bytes are steps of 1/250.
_STEPS = 250
_LEAST = 0.25 / _STEPS


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of one scene and split that hold labelled pixels.

    Attributes:
        edges: (n, 4), int64: top, bottom, left and right edge on the scene, px.
        counts: (n, classes, classes), int64: confusion matrices.
        losses: (n,): mean cross-entropy of the labelled pixels, nats; NaN without probabilities.
    """

    edges: NDArray[np.int64]
    counts: NDArray[np.int64]
    losses: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.edges)

    @property
    def total(self) -> Confusion:
        """All windows together."""
        return Confusion(self.counts.sum(0))

    @property
    def pixels(self) -> NDArray[np.int64]:
        """(n,), labelled pixels."""
        return self.counts.sum((1, 2))

    @property
    def iou(self) -> NDArray[np.float64]:
        """(n,), mean IoU of the classes that are there or predicted; NaN where there is background alone."""
        return _mean_iou(self.counts)

    @property
    def wrong(self) -> NDArray[np.float64]:
        """(n,), share of labelled pixels whose class is wrong."""
        right = np.trace(self.counts, axis1=1, axis2=2)
        return 1 - right / self.pixels

    @property
    def loss(self) -> float:
        """Mean cross-entropy of all labelled pixels."""
        return float(np.average(self.losses, weights=self.pixels)) if len(self) else float("nan")

    def roi(self, number: int) -> Roi:
        """Where a window lies on the scene."""
        top, bottom, left, right = self.edges[number].tolist()
        return slice(top, bottom), slice(left, right)


def worst_first(iou: NDArray[np.float64], wrong: NDArray[np.float64], losses: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places by IoU, and where that is equal by loss and wrong pixels, worst first.

    An IoU of 0 is soon reached where there is nearly nothing: places with less than a
    hundredth of their pixels wrong come after all others, those without object and false
    alarm last.

    Args:
        iou: (n,), may be NaN.
        wrong: (n,), share of wrong pixels.
        losses: (n,), may be NaN.

    Example:
        >>> iou, wrong = np.array([0.9, 0.0, 0.3, np.nan]), np.array([0.02, 0.001, 0.1, 0])
        >>> worst_first(iou, wrong, np.full(4, np.nan)).tolist()
        [2, 0, 1, 3]
    """
    known = np.nan_to_num(iou, nan=2.0)
    return np.lexsort((-wrong, -np.nan_to_num(losses, nan=0.0), known, np.isnan(iou), wrong < FEW_WRONG))


class Counted(NamedTuple):
    """What was compared in a region."""

    truth: NDArray[np.uint8]
    """(rows, cols), numbers of classes; 255 unlabelled."""
    classes: NDArray[np.uint8]
    """(rows, cols), predicted."""
    shares: NDArray[np.uint8] | None
    """(classes, rows, cols), probabilities in steps of 1/250, or None."""


class WindowCounter:
    """Counts regions of a scene, of any size and in any order, into windows.

    Args:
        shape: rows and columns of the scene, px.
        classes: the background among them.
    """

    def __init__(self, shape: tuple[int, int], classes: int) -> None:
        self._edges = [np.linspace(0, size, max(1, round(size / SIDE)) + 1).round().astype(np.int64) for size in shape]
        number = math.prod(len(edges) - 1 for edges in self._edges)
        self._counts = np.zeros((number, classes, classes), np.int32)
        self._losses = np.zeros(number)
        self._with_losses = True

    def add(self, roi: Roi, counted: Counted) -> None:
        """Count a region, each pixel of which comes once."""
        losses = None if counted.shares is None else cross_entropy(counted.truth, counted.shares)
        self._with_losses &= losses is not None
        for (row, down), (col, across) in product(*map(self._parts, (0, 1), roi)):
            table = Confusion.of(counted.truth[down, across], counted.classes[down, across], self._counts.shape[1])
            window = row * (len(self._edges[1]) - 1) + col
            self._counts[window] += table.matrix.astype(np.int32)
            if losses is not None:
                self._losses[window] += losses[down, across].sum()

    def windows(self) -> Windows:
        """Those with labelled pixels."""
        pixels = self._counts.sum((1, 2))
        chosen = np.flatnonzero(pixels)
        row, col = np.divmod(chosen, len(self._edges[1]) - 1)
        down, across = self._edges
        edges = np.column_stack([down[row], down[row + 1], across[col], across[col + 1]])
        means = self._losses[chosen] / pixels[chosen]
        losses = means if self._with_losses else np.full(len(chosen), np.nan)
        return Windows(edges, self._counts[chosen].astype(np.int64), losses)

    def _parts(self, axis: int, span: slice) -> list[tuple[int, slice]]:
        """Windows that a span meets along an axis, and where they lie in it."""
        edges = self._edges[axis]
        first, last = np.searchsorted(edges, span.start, "right") - 1, np.searchsorted(edges, span.stop, "left")
        cuts = np.clip(edges[first : last + 1], span.start, span.stop) - span.start
        return [(int(first + n), slice(int(a), int(b))) for n, (a, b) in enumerate(pairwise(cuts))]


def cross_entropy(truth: NDArray[np.uint8], shares: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What each pixel costs, nats: the negative logarithm of the probability of its true class.

    Args:
        truth: (rows, cols), numbers of classes; 255 unlabelled.
        shares: (classes, rows, cols), steps of 1/250 of the classes without the background.

    Returns:
        (rows, cols); 0 where unlabelled or without probabilities.

    Example:
        >>> cross_entropy(np.array([[1, 0, 255]], np.uint8), np.array([[[125, 125, 125]]], np.uint8)).round(3).tolist()
        [[0.6930000185966492, 0.6930000185966492, 0.0]]
    """
    rest = np.clip(_STEPS - shares.sum(0, dtype=np.int32), 0, _STEPS).astype(np.uint8)
    of_true = rest.copy()
    for number, plane in enumerate(shares, 1):
        np.copyto(of_true, plane, where=truth == number)
    costs = _COSTS[of_true]
    costs[(truth == UNLABELLED) | (shares > _STEPS).any(0)] = 0
    return costs


def _mean_iou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    hits = np.diagonal(counts, axis1=1, axis2=2)[:, 1:]
    either = counts.sum(1)[:, 1:] + counts.sum(2)[:, 1:] - hits
    there = either > 0
    shares = np.divide(hits, either, out=np.zeros(hits.shape), where=there)
    number = there.sum(1)
    return np.divide(shares.sum(1), number, out=np.full(len(counts), np.nan), where=number > 0)


_COSTS = -np.log(np.clip(np.minimum(np.arange(256), _STEPS) / _STEPS, _LEAST, 1 - _LEAST)).astype(np.float32)
