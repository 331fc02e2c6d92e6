"""Outlines simplified together: neighbours keep sharing their edge, no gap, no overlap.

GEOS simplifies a coverage when it has all neighbours at hand, so the mask is worked on
in square tiles, background included. Where outlines meet the edge of a tile they are
fixed, so that tiles fit together however they were simplified, and what one region has
in several tiles is joined again. Tiles lie at multiples of their side, counted from the
raster's upper left corner: the result does not depend on how the mask is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import shapely

from gimseg.outlines import find_nodes
from gimseg.runs import Runs, by_number, padded
from gimseg.tracing import Rows, Seam, Traced, trace

TILE = 1024
"""Side of a tile, px."""

_SHAKE = 1e-4
# Odd, with bits all over: products spread over all 64 bits.
_ODD = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F)


class Band(NamedTuple):
    """Simplified pieces of a row of tiles; its edge regions as in :class:`gimseg.tracing.Strip`.

    Attributes:
        rows: number of rows.
        edges: uint8 (2, width), the first and the last row.
        regions: the edge region of each run of the first row, and of the last.
        values: (n,) uint8 of the edge regions.
        pieces: (m,) polygons of edge regions, several each.
        owners: (m,) the edge region of each.
        done: polygons of all other regions, whole.
    """

    rows: int
    edges: np.ndarray
    regions: tuple[np.ndarray, np.ndarray]
    values: np.ndarray
    pieces: np.ndarray
    owners: np.ndarray
    done: Traced


class Simplifier(NamedTuple):
    """How a mask is simplified.

    Attributes:
        source: the mask.
        shape: (rows, columns).
        tolerance: that of Visvalingam and Whyatt, the root of the least area of a triangle, in ground units.
        scale: ground units of a pixel along x and y.
        tile: side of a tile, px.
    """

    source: Rows
    shape: tuple[int, int]
    tolerance: float
    scale: tuple[float, float]
    tile: int = TILE

    def tops(self) -> range:
        """First rows of the bands."""
        return range(0, self.shape[0], self.tile)

    def band(self, top: int) -> Band:
        """Simplify one row of tiles, alone."""
        height, width = self.shape
        bottom = min(top + self.tile, height)
        around = self.source.read(max(top - 1, 0), min(bottom + 1, height))
        around = np.pad(around, ((top == 0, bottom == height), (1, 1)))
        labels = around[1:-1, 1:-1]
        pieces, firsts = zip(*(self._tile(around, top, left) for left in range(0, width, self.tile)), strict=True)
        return _band_of(labels, _joined(pieces), np.concatenate(firsts) - (0, top))

    def _tile(self, around: np.ndarray, top: int, left: int) -> tuple[Traced, np.ndarray]:
        """The simplified pieces of a tile, without background, and a pixel (column, row) of each."""
        inside, origin = around[:, left : left + self.tile + 2], np.array([left, top])
        traced = _joined(trace([inside[1:-1, 1:-1] + np.uint8(1)]))
        exact = with_nodes(traced.polygons, find_nodes(inside))
        metres = shapely.transform(exact, lambda xy: _shaken(xy + origin) * self.scale)
        simple = shapely.coverage_simplify(metres, self.tolerance, simplify_boundary=False)
        simple = shapely.transform(simple, lambda xy: xy / self.scale)
        kept = traced.values > 1
        firsts = shapely.get_coordinates(shapely.get_point(shapely.get_exterior_ring(traced.polygons[kept]), 0))
        return Traced(simple[kept], traced.values[kept] - np.uint8(1)), firsts.astype(np.int64) + origin


def cover(bands: Iterable[Band]) -> Iterator[Traced]:
    """Whole simplified polygons from the bands of a mask, in order from the top.

    Yields:
        the regions closed by each band, and by the end of the mask; what lies in a hole
        of a region comes before, or with it.
    """
    joiner: _Joiner | None = None
    for band in bands:
        joiner = joiner or _Joiner(band.edges.shape[1])
        yield joiner.feed(band)
    if joiner is not None:
        yield joiner.finish()


class _Joiner:
    """The pieces of open regions, from band to band."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._seam = Seam(width)
        self._held: list[list[np.ndarray]] = []  # open region -> its pieces so far
        self._values = np.empty(0, np.uint8)

    def feed(self, band: Band) -> Traced:
        """Take the next band; give the regions that it closes."""
        crossing = self._seam.cross(band.edges, band.regions, len(band.values))
        values = np.zeros(len(crossing.into), np.uint8)
        values[crossing.label] = np.concatenate([self._values, band.values])
        held: list[list[np.ndarray]] = [[] for _ in crossing.open_labels]
        closed, closed_labels = [], []
        for pieces, label in zip(self._held, crossing.label[: crossing.n_before].tolist(), strict=True):
            if crossing.into[label] >= 0:
                held[crossing.into[label]] += pieces
            else:
                closed += pieces
                closed_labels += [np.full(len(some), label) for some in pieces]
        labels = crossing.label[crossing.n_before + band.owners]
        into = crossing.into[labels]
        for region, chosen in by_number(into, into >= 0):
            held[region].append(band.pieces[chosen])
        self._held, self._values = held, values[crossing.open_labels]
        polygons, whole = _merged(
            np.concatenate([*closed, band.pieces[into < 0]]), np.concatenate([*closed_labels, labels[into < 0]])
        )
        return _joined([band.done, Traced(polygons, values[whole])])

    def finish(self) -> Traced:
        """The regions that the lower edge of the mask closes."""
        nothing, nobody = Traced(np.empty(0, object), np.empty(0, np.uint8)), np.empty(0, np.int64)
        edges = np.zeros((2, self._width), np.uint8)
        return self.feed(Band(1, edges, (nobody, nobody), nothing.values, nothing.polygons, nobody, nothing))


def with_nodes(polygons: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Polygons on the lattice with a vertex wherever their outline passes a node.

    An outline goes straight on where two neighbours of it meet; as parts of a coverage
    all three have a vertex there.

    Args:
        polygons: with edges along rows and columns of the lattice.
        nodes: bool (rows + 1, columns + 1) of lattice points.

    Example:
        >>> square = shapely.box(0, 0, 2, 2)
        >>> nodes = np.zeros((3, 3), bool)
        >>> nodes[0, 1] = True
        >>> shapely.get_num_coordinates(with_nodes(np.array([square]), nodes)).tolist()
        [6]
    """
    kind, points, (rings, parts) = shapely.to_ragged_array(polygons)
    low, high, found = _passed(points, nodes)
    # The step from the end of one ring to the start of the next is no edge.
    between = rings[1:-1] - 1
    high[between] = low[between]
    extra = np.maximum(high - low, 0)
    before = np.concatenate([[0], np.cumsum(extra)])
    edge = np.repeat(np.arange(len(extra)), extra)
    step = np.arange(before[-1]) - before[edge]
    ascending = (points[1:] > points[:-1]).any(axis=1)[edge]
    out = np.empty((len(points) + before[-1], 2))
    out[np.arange(len(points)) + before] = points
    out[edge + before[edge] + step + 1] = found[np.where(ascending, low[edge] + step, high[edge] - 1 - step)]
    return shapely.from_ragged_array(kind, out, (rings + before[np.minimum(rings, len(extra))], parts))


def _passed(points: np.ndarray, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nodes between successive points on one line.

    Returns:
        for each step from point to point the first and the stop of its nodes; and all nodes
        (n, 2), those along rows first, then again along columns.
    """
    start, end = points[:-1].astype(np.int64), points[1:].astype(np.int64)
    level = start[:, 1] == end[:, 1]
    low, high = np.empty(len(start), np.int64), np.empty(len(start), np.int64)
    found: list[np.ndarray] = []
    for along, mine, grid in ((0, level, nodes), (1, ~level, nodes.T)):
        keys = np.flatnonzero(grid)
        offset = sum(map(len, found))
        line = start[mine, 1 - along] * grid.shape[1]
        ends = np.sort(np.stack([start[mine, along], end[mine, along]]), axis=0) + line
        low[mine] = offset + np.searchsorted(keys, ends[0], side="right")
        high[mine] = offset + np.searchsorted(keys, ends[1], side="left")
        across, position = np.divmod(keys, grid.shape[1])
        found.append(np.stack([position, across] if along == 0 else [across, position], axis=1))
    return low, high, np.concatenate(found)


def _band_of(labels: np.ndarray, pieces: Traced, pixels: np.ndarray) -> Band:
    """Sort the pieces of a band by region; `pixels`, (n, 2) column and row, has one of each piece."""
    runs = Runs.of(padded(labels))
    regions = runs.joined(4)
    edge, number, on_edges = runs.edge_regions(regions)
    region_of_piece = regions[runs.at(pixels[:, 1] * runs.block.shape[1] + pixels[:, 0] + 1)]
    values = np.zeros(len(number), np.uint8)
    values[region_of_piece] = pieces.values
    inside = number[region_of_piece] < 0
    done, done_regions = _merged(pieces.polygons[inside], region_of_piece[inside])
    return Band(
        len(labels),
        labels[[0, -1]],
        on_edges,
        values[edge],
        pieces.polygons[~inside],
        number[region_of_piece[~inside]],
        Traced(done, values[done_regions]),
    )


def _merged(pieces: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One polygon for each owner of pieces, and the owners, ascending."""
    whole, counts = np.unique(owners, return_counts=True)
    order = np.argsort(owners, kind="stable")
    starts = np.cumsum(counts) - counts
    polygons = pieces[order[starts]]
    for place in np.flatnonzero(counts > 1):
        polygons[place] = shapely.coverage_union_all(pieces[order[starts[place] : starts[place] + counts[place]]])
    return polygons, whole


def _shaken(points: np.ndarray) -> np.ndarray:
    """Lattice points off their place by less than _SHAKE px, each always by the same.

    On a lattice a shortened outline often runs exactly through a corner of another part
    of it, and GEOS lets it: the polygon would touch itself.
    """
    column, row = points.astype(np.int64).astype(np.uint64).T
    with np.errstate(over="ignore"):
        mixed = (column * np.uint64(_ODD[0]) + row * np.uint64(_ODD[1]))[:, np.newaxis] * np.array(_ODD[2:], np.uint64)
        # Products alone are linear: points in a line would stay in one.
        mixed = (mixed ^ mixed >> np.uint64(31)) * np.uint64(_ODD[0])
        mixed = (mixed ^ mixed >> np.uint64(29)) * np.uint64(_ODD[1])
    return points + ((mixed >> np.uint64(40)) / 2.0**23 - 1) * _SHAKE


def _joined(groups: Iterable[Traced]) -> Traced:
    polygons, values = zip(*groups, strict=True)
    return Traced(np.concatenate(polygons), np.concatenate(values))
