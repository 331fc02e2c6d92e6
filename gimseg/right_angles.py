"""Outlines of buildings with right angles: one main direction, edges along it, across it, and diagonal.

The traced outline of a building is a staircase. It is cut into edges (Douglas-Peucker);
the main direction is the one that most of their length follows, modulo 90 degrees; each
edge gets the nearest direction, and the line in that direction that balances the
staircase: its offset is the mean of the traced outline along the edge, not that of the
two vertices that Douglas-Peucker kept, which stick out. Neighbours that are parallel are
merged or get a step between them, edges that are left too short go. All polygons of a
chunk are worked on at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import shapely

LEAST_IOU = 0.9
"""Intersection over union with the traced polygon below which right angles do not fit."""

_MOST_AWAY = 4.0  # tolerances that an outline may be off at any place
_ATTEMPTS = (1.0, 0.6)  # of the tolerance: what does not fit coarsely may fit finely
_DIAGONAL = np.radians(30)  # an edge that is this far off the main directions may be a diagonal
_LEAST_DIAGONAL = 3.0  # shorter ones are corners that were cut, in tolerances
_MOST_MISFIT = np.radians(11)  # mean turn of the outline above which a shape has no main direction: round ones
_ROUNDS = 30
_CANDIDATES = np.radians(np.arange(0, 90, 1.0))
_OUTLIER = np.radians(12)


def right_angled(polygons: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Give polygons right angles where that fits.

    Args:
        polygons: (n,) valid polygons as traced, in metres.
        tolerance: of the outline, metres; steps and edges that are shorter go. 1.5 pixels and
            more, or the staircase itself counts.

    Returns:
        polygons (n,): right-angled, or as they were; and bool (n,), which ones are right-angled:
        valid, with as many holes, no vertex further than four tolerances off, and an IoU of
        :data:`LEAST_IOU` or more.

    Example:
        >>> steps = shapely.from_wkt("POLYGON ((0 0, 0 20, 9 20, 9 19, 19 19, 19 20, 30 20, 30 0, 0 0))")
        >>> found, regular = right_angled(np.array([steps]), 2)
        >>> shapely.get_num_coordinates(found).tolist(), regular.tolist()
        ([5], [True])
    """
    found, regular = polygons.copy(), np.zeros(len(polygons), bool)
    for share in _ATTEMPTS:
        rest = np.flatnonzero(~regular)
        if len(rest):
            built, places = _fitted(polygons[rest], share * tolerance, _MOST_AWAY * tolerance)
            found[rest[places]], regular[rest[places]] = built, True
    return found, regular


def _fitted(polygons: np.ndarray, tolerance: float, most_away: float) -> tuple[np.ndarray, np.ndarray]:
    """Right-angled polygons, and of which of the given ones: only where they fit."""
    edges, owner_of_ring, misfit = _edges(polygons, tolerance)
    edges = _settled(edges, tolerance)
    counts = np.bincount(edges.ring, minlength=len(owner_of_ring))
    lost = np.bincount(owner_of_ring, weights=counts < 4, minlength=len(polygons)) > 0
    whole = ~lost & (misfit <= _MOST_MISFIT)
    mine = whole[owner_of_ring[edges.ring]]
    built, places = _built(_crossings(edges)[mine], edges.ring[mine], owner_of_ring), np.flatnonzero(whole)
    # Of a large polygon a whole corner is a small share.
    good = shapely.is_valid(built) & (shapely.hausdorff_distance(built, polygons[places]) <= most_away)
    built, places = built[good], places[good]
    common = shapely.area(shapely.intersection(built, polygons[places]))
    good = common >= LEAST_IOU * (shapely.area(built) + shapely.area(polygons[places]) - common)
    return built[good], places[good]


class _Edges(NamedTuple):
    """Edges of rings, in their order; `ring` is ascending.

    Attributes:
        ring: (n,) to which it belongs.
        angle: (n,) of the main direction of its polygon, radians.
        kind: (n,) its direction, in eighths of a turn from the main one.
        offset: (n,) of its line along the normal.
        weight: (n,) length of traced outline that it stands for.
        end: (n, 2) about where it meets the next one.
    """

    ring: np.ndarray
    angle: np.ndarray
    kind: np.ndarray
    offset: np.ndarray
    weight: np.ndarray
    end: np.ndarray

    @property
    def direction(self) -> np.ndarray:
        """(n,) radians."""
        return self.angle + self.kind * (np.pi / 4)

    @property
    def after(self) -> np.ndarray:
        """(n,) the next edge of the ring."""
        starts, counts = _spans(self.ring)
        after = np.arange(1, len(self.ring) + 1)
        after[starts + counts - 1] = starts
        return after

    @property
    def before(self) -> np.ndarray:
        """(n,) the previous edge of the ring."""
        starts, counts = _spans(self.ring)
        before = np.arange(-1, len(self.ring) - 1)
        before[starts] = starts + counts - 1
        return before

    def take(self, chosen: np.ndarray) -> _Edges:
        """Those that are chosen: places, or a mask."""
        return _Edges(*(part[chosen] for part in self))


def _edges(polygons: np.ndarray, tolerance: float) -> tuple[_Edges, np.ndarray, np.ndarray]:
    """The edges of simplified polygons with their directions and offsets.

    Returns:
        edges; the polygon of each ring; how much the outline of each polygon turns on average, radians.
    """
    rings, owner_of_ring = shapely.get_rings(polygons, return_index=True)
    simple = shapely.get_rings(shapely.simplify(polygons, tolerance))
    ring, end, middle, angle, length = _stretches(rings, simple)
    owner = owner_of_ring[ring]
    main = _main_direction(angle, length, owner, len(polygons))
    off = angle - main[owner]
    quarter, eighth = np.rint(off / (np.pi / 2)), np.rint((off - np.pi / 4) / (np.pi / 2))
    turn = np.abs(off - quarter * (np.pi / 2))
    diagonal = (turn > _DIAGONAL) & (length >= _LEAST_DIAGONAL * tolerance)
    kind = np.where(diagonal, 2 * eighth + 1, 2 * quarter).astype(np.int64) % 8
    turn = np.where(diagonal, np.abs(turn - np.pi / 4), turn)
    total = np.bincount(owner, length, len(polygons))
    misfit = np.bincount(owner, turn * length, len(polygons)) / np.maximum(total, 1e-12)
    direction = main[owner] + kind * (np.pi / 4)
    offset = (middle * _normal(direction)).sum(axis=1)
    return _Edges(ring, main[owner], kind, offset, length, end), owner_of_ring, misfit


class _Stretches(NamedTuple):
    """Pieces of outlines between two corners that are kept.

    Attributes:
        ring: (n,) to which it belongs.
        end: (n, 2) the corner at its end.
        middle: (n, 2) mean point of the traced outline.
        angle: (n,) direction of the line that fits it best, radians.
        length: (n,) of the traced outline.
    """

    ring: np.ndarray
    end: np.ndarray
    middle: np.ndarray
    angle: np.ndarray
    length: np.ndarray


def _stretches(rings: np.ndarray, simple: np.ndarray) -> _Stretches:
    """What the edges of simplified rings stand for."""
    points, ring = shapely.get_coordinates(rings, return_index=True)
    corners, ring_of_corner = shapely.get_coordinates(simple, return_index=True)
    starts, counts = _spans(ring)
    # Around the first point of each ring: sums over long coordinates would lose their last digits.
    own = points - np.repeat(points[starts], counts, axis=0)
    step = np.diff(own, axis=0)
    length = np.where(np.diff(ring) == 0, np.hypot(*step.T), 0.0)
    x, y = (own[:-1] + step / 2).T
    along, across = step.T / np.sqrt(12)
    moments = [np.ones(len(x)), x, y, x * x + along * along, x * y + along * across, y * y + across * across]
    parts = length[:, np.newaxis] * np.column_stack(moments)
    place = _places(points, ring, corners, ring_of_corner)
    is_edge = np.diff(ring_of_corner) == 0
    one, other = place[:-1][is_edge], place[1:][is_edge]
    ring_of_edge = ring_of_corner[:-1][is_edge]
    # Each stretch is summed by itself, so that a polygon does not depend on those beside it.
    cuts = np.unique(np.concatenate([one, starts]))
    sums = np.add.reduceat(np.append(parts, np.zeros((1, 6)), axis=0), cuts, axis=0)
    covered = sums[np.searchsorted(cuts, one)]
    # An edge over the place where the ring begins and ends.
    over = (other < one) & (other != starts[ring_of_edge])
    covered[over] += sums[np.searchsorted(cuts, starts[ring_of_edge[over]])]
    weight = np.maximum(covered[:, 0], 1e-12)
    x, y, xx, xy, yy = covered[:, 1:].T / weight
    lean = np.arctan2(2 * (xy - x * y), xx - x * x - yy + y * y) / 2
    chord = points[other] - points[one]
    back = np.cos(lean) * chord[:, 0] + np.sin(lean) * chord[:, 1] < 0
    middle = np.column_stack([x, y]) + points[starts][ring_of_edge]
    return _Stretches(ring_of_edge, points[other], middle, lean + np.pi * back, weight)


def _places(points: np.ndarray, ring: np.ndarray, corners: np.ndarray, ring_of_corner: np.ndarray) -> np.ndarray:
    """Where corners stand among the points of their rings (the first of a ring is also its last: the first)."""
    first = np.append(True, np.diff(ring) != 0)
    last = np.append(np.diff(ring) != 0, True)
    candidates = np.flatnonzero(~last | first)
    x, y = np.concatenate([points[candidates], corners]).T
    rows = np.concatenate([ring[candidates], ring_of_corner])
    order = np.lexsort((np.arange(len(rows)), y, x, rows))
    fresh = np.append(True, (np.diff(x[order]) != 0) | (np.diff(y[order]) != 0) | (np.diff(rows[order]) != 0))
    group = np.empty(len(rows), np.int64)
    group[order] = np.cumsum(fresh) - 1
    place_of_group = np.zeros(group.max() + 1, np.int64)
    place_of_group[group[: len(candidates)]] = candidates
    return place_of_group[group[len(candidates) :]]


def _main_direction(angle: np.ndarray, length: np.ndarray, owner: np.ndarray, n: int) -> np.ndarray:
    """(n,) the direction modulo 90 degrees that most of the length of each polygon follows, radians."""
    cost = np.empty((len(_CANDIDATES), n))
    for place, candidate in enumerate(_CANDIDATES):
        cost[place] = np.bincount(owner, length * np.minimum(np.abs(_turn(angle - candidate)), _OUTLIER), n)
    main = _CANDIDATES[cost.argmin(axis=0)]
    for _ in range(2):
        off = _turn(angle - main[owner])
        # The direction of an edge is as sure as it is long.
        weight = np.where(np.abs(off) < _OUTLIER, length**2, 0.0)
        main = main + np.bincount(owner, weight * off, n) / np.maximum(np.bincount(owner, weight, n), 1e-12)
    return main


def _turn(angle: np.ndarray) -> np.ndarray:
    """To the nearest multiple of 90 degrees, signed radians."""
    return angle - np.rint(angle / (np.pi / 2)) * (np.pi / 2)


def _normal(direction: np.ndarray) -> np.ndarray:
    return np.column_stack([-np.sin(direction), np.cos(direction)])


def _settled(edges: _Edges, least: float) -> _Edges:
    """Edges of which no two neighbours are parallel and none is shorter than `least`, where that can be had."""
    for _ in range(_ROUNDS):
        edges = _with_steps(_merged(edges, least))
        short = _removable(edges, least)
        if not short.any():
            break
        # The neighbours meet in the middle of what goes.
        before = edges.before[short]
        middle = (edges.end[short] + edges.end[before]) / 2
        edges.end[before] = middle
        edges = edges.take(~short)
    return edges


def _merged(edges: _Edges, least: float) -> _Edges:
    """Neighbours of one direction on nearly the same line become one edge."""
    while len(edges.ring):
        after = edges.after
        same = (edges.kind == edges.kind[after]) & (np.abs(edges.offset - edges.offset[after]) < least)
        same &= after != np.arange(len(after))
        pair = np.flatnonzero(same & ~same[edges.before])
        if not len(pair):
            return edges
        other = after[pair]
        weight = edges.weight[pair] + edges.weight[other]
        edges.offset[pair] = (
            edges.offset[pair] * edges.weight[pair] + edges.offset[other] * edges.weight[other]
        ) / np.maximum(weight, 1e-12)
        edges.weight[pair] = weight
        edges.end[pair] = edges.end[other]
        kept = np.ones(len(after), bool)
        kept[other] = False
        edges = edges.take(kept)
    return edges


def _with_steps(edges: _Edges) -> _Edges:
    """An edge across between neighbours that are parallel: a step, or the end of a narrow part."""
    if not len(edges.ring):
        return edges
    after = edges.after
    place = np.flatnonzero((edges.kind - edges.kind[after]) % 4 == 0)
    across = (edges.kind[place] + 2) % 8
    direction = edges.angle[place] + across * (np.pi / 4)
    along = _normal(edges.direction[place])
    # The outline goes on to the side on which the next line lies.
    back = edges.kind[place] != edges.kind[after[place]]
    rise = (edges.end[after[place]] * along).sum(axis=1) - edges.offset[place]
    rise = np.where(back, rise, edges.offset[after[place]] - edges.offset[place])
    across = np.where(rise < 0, (across + 4) % 8, across)
    direction = edges.angle[place] + across * (np.pi / 4)
    offset = (edges.end[place] * _normal(direction)).sum(axis=1)
    steps = _Edges(edges.ring[place], edges.angle[place], across, offset, np.abs(rise), edges.end[place])
    where = place + 1
    return _Edges(*(np.insert(mine, where, new, axis=0) for mine, new in zip(edges, steps, strict=True)))


def _removable(edges: _Edges, least: float) -> np.ndarray:
    """Edges that are too short, no two of them neighbours, and the shortest first."""
    if not len(edges.ring):
        return np.zeros(0, bool)
    before, after = edges.before, edges.after
    points = _crossings(edges)
    direction = edges.direction
    length = ((points - points[before]) * np.column_stack([np.cos(direction), np.sin(direction)])).sum(axis=1)
    short = length < least
    rank = np.where(short, np.argsort(np.argsort(length, kind="stable"), kind="stable"), len(length))
    counts = _spans(edges.ring)[1]
    enough = np.repeat(counts > 4, counts)
    return short & enough & (rank < rank[before]) & (rank < rank[after])


def _crossings(edges: _Edges) -> np.ndarray:
    """(n, 2) where the line of each edge meets that of the next."""
    if not len(edges.ring):
        return np.empty((0, 2))
    after, direction = edges.after, edges.direction
    one, other = _normal(direction), _normal(direction[after])
    first, second = edges.offset, edges.offset[after]
    det = one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]
    parallel = np.abs(det) < 1e-9
    det = np.where(parallel, 1.0, det)
    x = (first * other[:, 1] - second * one[:, 1]) / det
    y = (second * one[:, 0] - first * other[:, 0]) / det
    return np.where(parallel[:, np.newaxis], edges.end, np.column_stack([x, y]))


def _built(points: np.ndarray, ring: np.ndarray, owner_of_ring: np.ndarray) -> np.ndarray:
    """Polygons of the vertices of whole rings."""
    if not len(points):
        return np.empty(0, object)
    starts, counts = _spans(ring)
    closed = np.insert(points, starts + counts, points[starts], axis=0)
    rings = np.concatenate([[0], np.cumsum(counts + 1)])
    parts = np.append(_spans(owner_of_ring[ring[starts]])[0], len(starts))
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, closed, (rings, parts))


def _spans(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and length of each stretch of equal numbers."""
    starts = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1])[: len(numbers)])
    return starts, np.diff(starts, append=len(numbers))
