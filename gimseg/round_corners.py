"""Corners rounded by cutting them off, again and again (Chaikin 1974), no further than a tolerance."""

from __future__ import annotations

import numpy as np
import shapely

_ROUNDS = 3
_SHARE = 0.25  # of an edge that is cut off at either end, at most
_SHRINK = 0.4  # from round to round: an arc of three rounds then looks round


def smoothed(polygons: np.ndarray, tolerance: float) -> np.ndarray:
    """Polygons with round corners.

    A corner is cut at most `tolerance` away from it, so that no point of the outline moves
    further. What is cut from convex corners is gained at others; at a corner it is less
    than the square of the tolerance.

    Args:
        polygons: (n,) valid polygons.
        tolerance: in the unit of their coordinates, above 0.

    Returns:
        (n,) valid polygons; one that would not be valid stays as it was.

    Example:
        >>> round_square = smoothed(np.array([shapely.box(0, 0, 10, 10)]), 1)[0]
        >>> shapely.get_num_coordinates(round_square).item(), round(round_square.area, 1)
        (33, 97.5)
    """
    if not len(polygons):
        return polygons
    kind, points, (rings, parts) = shapely.to_ragged_array(polygons)
    ring = np.repeat(np.arange(len(rings) - 1), np.diff(rings) - 1)
    points = np.delete(points, rings[1:] - 1, axis=0)
    most = tolerance
    for _ in range(_ROUNDS):
        points, ring = _cut(points, ring, most)
        most *= _SHRINK
    counts = np.bincount(ring, minlength=len(rings) - 1)
    starts = np.cumsum(counts) - counts
    closed = np.insert(points, starts + counts, points[starts], axis=0)
    offsets = np.concatenate([[0], np.cumsum(counts + 1)])
    found = shapely.from_ragged_array(kind, closed, (offsets, parts))
    return np.where(shapely.is_valid(found), found, polygons)


def _cut(points: np.ndarray, ring: np.ndarray, most: float) -> tuple[np.ndarray, np.ndarray]:
    """Two points for each corner, on the edges before and after it, `most` away at most."""
    counts = np.bincount(ring)
    starts = np.cumsum(counts) - counts
    after = np.arange(1, len(points) + 1)
    after[starts + counts - 1] = starts
    edge = points[after] - points
    length = np.maximum(np.hypot(*edge.T), 1e-12)
    share = np.minimum(_SHARE, most / length)[:, np.newaxis]
    cut = np.empty((2 * len(points), 2))
    cut[::2] = points + share * edge
    cut[1::2] = points[after] - share * edge
    return cut, np.repeat(ring, 2)
