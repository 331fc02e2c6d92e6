"""How sure is a score? Intervals by drawing the rasters, or blocks of ground, again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gimseg.errors import LossError


class Interval(NamedTuple):
    """A score and where it lies with some certainty.

    Example:
        >>> str(Interval(0.5, 0.42, 0.57))
        '0.500 (0.420 to 0.570)'
    """

    score: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.score:.3f} ({self.low:.3f} to {self.high:.3f})"

    @classmethod
    def around(cls, score: float, drawn: ArrayLike, level: float = 0.95) -> Interval:
        """The percentile interval of a score from the scores of draws; NaN ones are left out.

        Example:
            >>> Interval.around(0.5, [0.4, 0.5, 0.6, float("nan")], level=0.5)
            Interval(score=0.5, low=0.45, high=0.55)
        """
        known = np.asarray(drawn, np.float64)
        known = known[~np.isnan(known)]
        if not known.size:
            return cls(score, float("nan"), float("nan"))
        low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
        return cls(score, float(low), float(high))


def resampled(counts: NDArray[Any], *, draws: int = 1000, seed: int = 0) -> NDArray[Any]:
    """Totals of tables drawn again and again with replacement, as many each time as there are.

    Args:
        counts: (tables, ...), counts of rasters or blocks of ground.
        draws: how many totals.
        seed: of the draws.

    Returns:
        (draws, ...); empty for fewer than two tables, which say nothing of each other.
    """
    units = len(counts)
    if units < 2:
        return np.zeros((0, *counts.shape[1:]), counts.dtype)
    rng = np.random.default_rng(seed)
    flat = counts.reshape(units, -1)
    # How often each table is drawn, draw by draw: all draws at once would take units x draws.
    totals = [rng.multinomial(units, np.full(units, 1 / units)) @ flat for _ in range(draws)]
    return np.array(totals).reshape(draws, *counts.shape[1:])


class Addable(Protocol):
    """A table of counts; those of parts add up to that of the whole."""

    def __add__(self, other: Self, /) -> Self: ...


Table = TypeVar("Table", bound=Addable)


def bootstrap(
    tables: Sequence[Table],
    score: Callable[[Table], float],
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """The score of all tables together, and an interval around it.

    What is drawn again, with replacement, are whole tables: those of rasters or of blocks
    of ground. Pixels beside each other are alike, so an interval from drawing pixels
    would be far too narrow. Of few tables (below about ten) it is too narrow still.

    Args:
        tables: one a raster or block.
        score: of tables added up, for example ``lambda table: table.mean_iou``.
        level: share of the draws that lie inside, 0 to 1.
        draws: how many.
        seed: of the draws.

    Returns:
        the score and its percentile interval; NaN bounds for fewer than two tables.
        Draws in which the score is undefined are left out.

    Raises:
        LossError: no table, or a level that is no share.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    if not tables or not 0 < level < 1 or draws < 1:
        raise LossError(f"{len(tables)} tables, level {level}, {draws} draws: needed are 1, 0 to 1, and 1 at least")
    whole = score(_sum(tables))
    if len(tables) < 2:
        return Interval(whole, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    drawn = [score(_sum([tables[i] for i in rng.integers(len(tables), size=len(tables))])) for _ in range(draws)]
    return Interval.around(whole, drawn, level)


def _sum(tables: Sequence[Table]) -> Table:
    total = tables[0]
    for table in tables[1:]:
        total = total + table
    return total
