"""Areas that are worth an analyst's time, and what drawing some of them tells about the whole raster.

Most suggestions are the places where the prediction is doubted most; they improve it. A fifth
are drawn at random, whatever the model thinks of them: only these tell how good the
prediction is everywhere.

How they are drawn: the raster is laid out in squares whose grid begins at a random place, and
some of the squares are drawn, each as likely as any other that holds a valid pixel. A pixel
lies in exactly one of them, at the raster's border too, where they are cut; so every valid
pixel has the same chance to be drawn, and what is counted in the drawn squares (hits, misses,
false alarms) is in the mean, times a factor that all counts share, what a count of the whole
raster would give. A score is a ratio of such totals: :func:`estimate_iou` adds them up first,
and the bias that is left to the ratio falls as one over the number of squares. (The mean of
the squares' own scores would weigh the pixels of small squares more. If squares were drawn at
all places alike, fewer of them would hold ground at the border, and a corner but one.)

Source: Cochran 1977, Sampling Techniques, 3rd edition: chapter 6 on ratio estimates, chapter
9A on clusters of unequal size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import geopandas
import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from gimseg.errors import CorrectionError
from gimseg.intervals import Interval, bootstrap
from gimseg.metrics import Confusion

RANDOM_SHARE = 0.2
"""Share of the suggestions that are drawn at random."""
MOST_OBJECTS = 40
"""In most squares, so that one is drawn in minutes."""
SECONDS_AN_OBJECT = 10
"""That it takes to draw one, taken for the estimate of minutes."""
_SIDES = (16, 12, 8, 6, 4, 3, 2, 1)
_MOSTLY = 0.75
_LEAST_VALID = 0.5


@dataclass(frozen=True)
class Suggestion:
    """A square of ground to draw, or what the raster's border leaves of it.

    Attributes:
        row: of its upper left pixel on the grid.
        col: likewise.
        height: px; of a random one less where the raster's border cuts it.
        width: likewise.
        score: mean doubt in it, 0 to 1; of a random one by the first measure.
        kind: the measure of doubt by which it was chosen, or ``"random"``.
        objects: that are predicted in it, about.
    """

    row: int
    col: int
    height: int
    width: int
    score: float
    kind: str
    objects: int = 0

    @property
    def roi(self) -> tuple[slice, slice]:
        """Rows and columns on the grid."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)


class Doubt(NamedTuple):
    """Doubt, added up in square cells of a grid."""

    cell: int
    """Side of a cell, px."""
    total: NDArray[np.float64]
    """(cells, cells), doubt of all valid pixels added up, each 0 to 1."""
    valid: NDArray[np.int64]
    """(cells, cells), valid pixels."""

    @classmethod
    def zeros(cls, shape: tuple[int, int], cell: int) -> Doubt:
        """Nothing added yet, for a grid of this shape, px."""
        cells = tuple(math.ceil(size / cell) for size in shape)
        return cls(cell, np.zeros(cells), np.zeros(cells, np.int64))

    def add(self, roi: tuple[slice, slice], doubt: NDArray[np.number], valid: NDArray[np.bool_]) -> None:
        """Add a region in place.

        Args:
            roi: rows and columns of the grid.
            doubt: (rows, cols), 0 to 1.
            valid: (rows, cols).
        """
        numbers = [np.arange(axis.start, axis.stop) // self.cell for axis in roi]
        first = [np.flatnonzero(np.diff(axis, prepend=-1)) for axis in numbers]
        place = np.ix_(*(axis[starts] for axis, starts in zip(numbers, first, strict=True)))
        for plane, values in ((self.total, np.where(valid, doubt, 0)), (self.valid, valid)):
            sums = np.add.reduceat(values.astype(np.float64), first[0], axis=0)
            plane[place] += np.add.reduceat(sums, first[1], axis=1).astype(plane.dtype)


def choose_squares(doubts: Mapping[str, Doubt], count: int, *, cells: int = 4, seed: int = 0) -> tuple[Suggestion, ...]:
    """Squares to draw: where the doubt is greatest, spread out, and a fifth at random.

    Squares do not overlap, and those of doubt lie a square apart at least, so that
    ten of them are not ten views of one place. Random ones are drawn first, from a tiling
    of the raster: they know nothing of the doubt, and every valid pixel has the same chance
    to be in one; see above. Several measures of doubt take turns: their scales have nothing
    to do with one another.

    Args:
        doubts: of the raster, by measure; all have cells of one size.
        count: how many; fewer come back where there is no room.
        cells: side of a square, in cells.
        seed: of the random ones.

    Raises:
        CorrectionError: fewer than one is asked for, or nothing of the raster is valid.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> doubt = Doubt(8, rng.random((20, 20)) * 64, np.full((20, 20), 64))
        >>> [one.kind for one in choose_squares({"uncertainty": doubt}, 3)]
        ['uncertainty', 'uncertainty', 'random']
    """
    if count < 1 or not doubts:
        raise CorrectionError(f"{count} suggestions by {len(doubts)} measures: ask for 1 at least")
    doubt = next(iter(doubts.values()))
    valid = _sums(doubt.valid, cells)
    enough = valid >= _LEAST_VALID * (cells * doubt.cell) ** 2
    if not enough.any():
        enough = valid >= max(1, int(valid.max()))
    if not valid.any():
        raise CorrectionError("nothing of the raster is valid: there is no area to suggest")
    scores = {
        name: np.where(enough, _sums(each.total, cells) / np.maximum(valid, 1), -1.0) for name, each in doubts.items()
    }
    random = _at_random(doubt.valid, cells, max(1, round(count * RANDOM_SHARE)) if count > 1 else 0, seed)
    chosen = [(place, "random") for place in random]
    waiting = {name: _by_score(plane) for name, plane in scores.items()}
    while waiting and len(chosen) < count:
        for name in [*waiting][: count - len(chosen)]:
            place = next((place for place in waiting[name] if _is_apart(place, chosen, cells)), None)
            if place is None:
                del waiting[name]
            else:
                chosen.append((place, name))
    made = [_suggestion(place, kind, doubts.get(kind, doubt), cells) for place, kind in chosen]
    order = [*doubts, "random"]
    return tuple(sorted(made, key=lambda one: (order.index(one.kind), -one.score)))


def _suggestion(place: tuple[int, int], kind: str, doubt: Doubt, cells: int) -> Suggestion:
    """The part of a square that lies on the grid, from its upper left cell, which may lie outside."""
    rows, cols = (
        slice(max(start, 0), min(start + cells, size)) for start, size in zip(place, doubt.valid.shape, strict=True)
    )
    score = doubt.total[rows, cols].sum() / max(doubt.valid[rows, cols].sum(), 1)
    height, width = (doubt.cell * (axis.stop - axis.start) for axis in (rows, cols))
    return Suggestion(rows.start * doubt.cell, cols.start * doubt.cell, height, width, float(score), kind)


def _by_score(scores: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """Places, the highest score first; ties in order, so that the same raster gives the same suggestions."""
    for flat in np.argsort(-scores, axis=None, kind="stable"):
        row, col = divmod(int(flat), scores.shape[1])
        if scores[row, col] < 0:
            return
        yield row, col


def _is_apart(place: tuple[int, int], chosen: Sequence[tuple[tuple[int, int], str]], cells: int) -> bool:
    """Whether a square overlaps no other, and lies a square from those of doubt."""
    return all(
        max(abs(place[0] - other[0]), abs(place[1] - other[1])) >= (cells if kind == "random" else 2 * cells)
        for other, kind in chosen
    )


def choose_cells(objects: NDArray[np.int64], valid: NDArray[np.int64], most: int) -> int:
    """Side of a square, in cells: the largest that mostly holds few enough objects to be drawn in minutes.

    Args:
        objects: that begin in each cell.
        valid: pixels of each cell.
        most: cells, at most.
    """
    sides = sorted({min(most, max(1, side)) for side in _SIDES}, reverse=True)
    for side in sides:
        counts = _sums(objects, side)[_sums(valid, side) > 0]
        if not counts.size or np.quantile(counts, _MOSTLY) <= MOST_OBJECTS:
            return side
    return sides[-1]


def to_frame(suggestions: Sequence[Suggestion], geobox: GeoBox) -> geopandas.GeoDataFrame:
    """A layer of squares with ``rank``, ``kind``, ``doubt``, ``objects`` and ``minutes``, in the grid's CRS.

    They are cut at the raster's border. Minutes are those of drawing all objects.
    """
    frame = geobox.extent.geom
    squares = [geobox[one.roi[0], one.roi[1]].extent.geom.intersection(frame) for one in suggestions]
    columns = {
        "rank": np.arange(1, len(squares) + 1, dtype=np.int32),
        "kind": [one.kind for one in suggestions],
        "doubt": [round(one.score, 4) for one in suggestions],
        "objects": np.array([one.objects for one in suggestions], np.int32),
        "minutes": [round(one.objects * SECONDS_AN_OBJECT / 60, 1) for one in suggestions],
    }
    crs = None if geobox.crs is None else geobox.crs.proj
    return geopandas.GeoDataFrame(columns, geometry=np.array(squares, dtype=object), crs=crs)


def estimate_iou(tables: Sequence[Confusion], *, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean IoU over the whole raster, from the squares that were drawn at random, with an interval.

    It is that of all tables added up, a ratio of totals, in which a pixel counts the same in
    a square that the border cut as in a whole one.

    Args:
        tables: of each random square that was drawn, prediction against drawing.
        level: share of such intervals that hold the truth.
        seed: of the draws.

    Raises:
        LossError: no table.
    """
    return bootstrap(tables, lambda table: table.mean_iou, level=level, seed=seed)


def _sums(plane: NDArray[np.generic], cells: int) -> NDArray[np.float64]:
    """Sums over all squares of `cells` x `cells`, by their upper left cell; fewer at the borders of small planes."""
    side = [min(cells, size) for size in plane.shape]
    padded = np.pad(plane.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    top, left = (np.arange(size - wide + 1) for size, wide in zip(plane.shape, side, strict=True))
    bottom, right = top + side[0], left + side[1]
    corners = (padded[np.ix_(rows, cols)] for rows in (bottom, top) for cols in (right, left))
    lower_right, lower_left, upper_right, upper_left = corners
    return lower_right - lower_left - upper_right + upper_left


def lay_out(valid: NDArray[np.int64], cells: int, offset: tuple[int, int]) -> list[tuple[int, int]]:
    """Squares that cover the grid, each cell once: those that hold anything valid, by their upper left cells.

    Args:
        valid: pixels of each cell.
        cells: side of a square, in cells.
        offset: rows and columns, in cells, of which the first squares are cut; 0 to `cells` - 1.

    Example:
        >>> lay_out(np.ones((1, 5), int), 3, (0, 1))
        [(0, -2), (0, 1), (0, 4)]
    """
    tops, lefts = (range(first and first - cells, size, cells) for first, size in zip(offset, valid.shape, strict=True))
    return [
        (top, left)
        for top in tops
        for left in lefts
        if valid[max(top, 0) : top + cells, max(left, 0) : left + cells].any()
    ]


def _at_random(valid: NDArray[np.int64], cells: int, count: int, seed: int) -> list[tuple[int, int]]:
    """Some squares of a tiling that begins at a random place, each as likely as any other."""
    rng = np.random.default_rng(seed)
    squares = lay_out(valid, cells, (int(rng.integers(cells)), int(rng.integers(cells))))
    return [squares[place] for place in rng.permutation(len(squares))[:count]]
