"""How many objects were found: polygons of ground truth matched with predicted ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from gimseg.errors import LossError

SIZES_M2 = (50.0, 200.0, 1000.0)
"""Limits of the size classes, m²."""


class Matches(NamedTuple):
    """Pairs of objects, each in one pair at most."""

    true: NDArray[np.int64]
    """(pairs,), index of the true object."""
    predicted: NDArray[np.int64]
    """(pairs,), index of the predicted object."""
    iou: NDArray[np.float64]
    """(pairs,)."""


def match_objects(true: NDArray[Any], predicted: NDArray[Any], *, least_iou: float = 0.5) -> Matches:
    """Pair true with predicted polygons.

    Pairs are formed from the highest IoU down. Where objects of one side do not overlap
    each other and `least_iou` is 0.5 or more, each has one candidate at most, and
    the pairing is the only one there is.

    Args:
        true: (n,) polygons, valid.
        predicted: (m,) polygons, valid, in the same CRS.
        least_iou: a pair has more than this, 0 to 1.

    Raises:
        LossError: an IoU that is no share.

    Source: Kirillov et al. 2019, Panoptic Segmentation, arXiv 1801.00868, section 4.1.
    """
    if not 0 <= least_iou < 1:
        raise LossError(f"least_iou is {least_iou}: needed is 0 to below 1")
    left, right = shapely.STRtree(predicted).query(true, predicate="intersects")
    common = shapely.area(shapely.intersection(true[left], predicted[right]))
    iou = common / np.maximum(shapely.area(true)[left] + shapely.area(predicted)[right] - common, 1e-30)
    chosen: list[int] = []
    taken: tuple[set[int], set[int]] = (set(), set())
    # Ties in the order of the objects, so that the result does not depend on the tree.
    for pair in np.lexsort((right, left, -iou)):
        if iou[pair] <= least_iou:
            break
        if left[pair] not in taken[0] and right[pair] not in taken[1]:
            chosen.append(int(pair))
            taken[0].add(int(left[pair]))
            taken[1].add(int(right[pair]))
    kept = np.array(sorted(chosen, key=lambda pair: left[pair]), np.int64)
    return Matches(left[kept], right[kept], iou[kept])


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """Objects by size: found, true and predicted, as numbers and as areas.

    Attributes:
        limits_m2: between size classes, rising.
        counts: (sizes, 4), float64: true objects, those of them that were found, predicted
            objects, those of them that are true.
        areas_m2: (sizes, 4): the same, as areas.
        iou_sum: of the IoUs of all pairs.
    """

    limits_m2: tuple[float, ...]
    counts: NDArray[np.float64]
    areas_m2: NDArray[np.float64]
    iou_sum: float

    @classmethod
    def zeros(cls, limits_m2: Sequence[float] = SIZES_M2) -> ObjectTable:
        """The empty table."""
        none = np.empty(0, np.int64)
        return cls.of(np.empty(0), np.empty(0), Matches(none, none, np.empty(0)), limits_m2=limits_m2)

    @classmethod
    def of(
        cls,
        true_m2: NDArray[np.float64],
        predicted_m2: NDArray[np.float64],
        matches: Matches,
        *,
        limits_m2: Sequence[float] = SIZES_M2,
    ) -> ObjectTable:
        """Count matched objects.

        Args:
            true_m2: (n,), areas of the true objects, m².
            predicted_m2: (m,), areas of the predicted ones, m².
            matches: of both.
            limits_m2: between size classes, rising, m²; an object on a limit is of the larger class.
        """
        limits = tuple(float(limit) for limit in limits_m2)
        if list(limits) != sorted(set(limits)):
            raise LossError(f"limits_m2 are {limits}: rising areas are needed")
        columns = []
        for areas, chosen in ((true_m2, matches.true), (predicted_m2, matches.predicted)):
            sizes = np.searchsorted(limits, areas, side="right")
            for which in (slice(None), chosen):
                columns.append([_by_size(sizes[which], weights, limits) for weights in (None, areas[which])])
        counts, areas_m2 = np.array(columns).transpose(1, 2, 0)
        return cls(limits, counts, areas_m2, float(matches.iou.sum()))

    def __add__(self, other: ObjectTable) -> ObjectTable:
        if not isinstance(other, ObjectTable):
            return NotImplemented
        if self.limits_m2 != other.limits_m2:
            raise LossError(f"tables with size limits {self.limits_m2} and {other.limits_m2} do not add up")
        return ObjectTable(
            self.limits_m2, self.counts + other.counts, self.areas_m2 + other.areas_m2, self.iou_sum + other.iou_sum
        )

    def scores(self, *, by_area: bool = False) -> ObjectScores:
        """Of all sizes together.

        Args:
            by_area: objects count by their area instead of one each.
        """
        return _scores((self.areas_m2 if by_area else self.counts).sum(0))

    def by_size(self) -> dict[str, ObjectScores]:
        """Of each size class, by its name.

        Example:
            >>> areas = np.array([10.0, 300.0])
            >>> one = Matches(np.array([1]), np.array([0]), np.array([0.8]))
            >>> list(ObjectTable.of(areas, areas[1:], one, limits_m2=(50, 200)).by_size())
            ['below 50 m²', '50 to 200 m²', '200 m² and more']
        """
        limits = [f"{limit:g}" for limit in self.limits_m2]
        names = [f"{low} to {high} m²" for low, high in pairwise(limits)]
        names = [f"below {limits[0]} m²", *names, f"{limits[-1]} m² and more"] if limits else ["all"]
        return {name: _scores(row) for name, row in zip(names, self.counts, strict=True)}

    @property
    def mean_iou(self) -> float:
        """Mean IoU of the pairs; NaN without any."""
        pairs = self.counts[:, 1].sum()
        return float(self.iou_sum / pairs) if pairs else float("nan")


class ObjectScores(NamedTuple):
    """Of objects that were matched; NaN where it is 0/0."""

    precision: float
    recall: float
    f1: float


def _scores(row: NDArray[np.float64]) -> ObjectScores:
    true, found, predicted, right = row
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right / predicted, found / true
        # Areas of the two sides of a pair differ: their F1 is that of precision and recall.
        f1 = (found + right) / (true + predicted) if found == right else 2 * precision * recall / (precision + recall)
    return ObjectScores(float(precision), float(recall), float(f1))


def _by_size(
    sizes: NDArray[np.int64], weights: NDArray[np.float64] | None, limits: tuple[float, ...]
) -> NDArray[np.float64]:
    return np.bincount(sizes, weights, minlength=len(limits) + 1).astype(np.float64)
