"""How sure is a score? Intervals by drawing the rasters, or blocks of ground, again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, Self, TypeVar

import numpy as np

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
    drawn = np.array(
        [score(_sum([tables[i] for i in rng.integers(len(tables), size=len(tables))])) for _ in range(draws)]
    )
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        return Interval(whole, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(whole, float(low), float(high))


def _sum(tables: Sequence[Table]) -> Table:
    total = tables[0]
    for table in tables[1:]:
        total = total + table
    return total
