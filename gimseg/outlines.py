"""Outlines on the integer lattice: where they turn, and how turns are linked to polygons.

The outline of a region of equal pixels turns at lattice points only, and whether it
turns there is seen from the four pixels around. Each turn is a *corner* with the two
directions in which the outline goes on. Along each lattice line the corners of a region
pair up, first with second, third with fourth.

Where two pixels of one region touch at a corner only, the outline is linked so that
the rings touch there and none crosses itself: the polygon is valid.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import shapely

# A corner is one int64: row << 34 | column << 3 | right << 2 | down << 1 | leaves vertically.
# So corners sort by row, then column, then the one whose horizontal edge goes left first.
_ROW, _COLUMN = 34, 3
_RIGHT, _DOWN, _VERTICAL = 4, 2, 1
_COLUMN_MASK = (1 << (_ROW - _COLUMN)) - 1


class Outlines(NamedTuple):
    """Polygons as plain arrays, cheap to send to another process.

    Attributes:
        points: (n, 2) float64, x = column, y = row.
        rings: offsets of rings in `points`.
        polygons: offsets of polygons in `rings`; the shell of each is first.
    """

    points: np.ndarray
    rings: np.ndarray
    polygons: np.ndarray

    def geometries(self) -> np.ndarray:
        """(n,) shapely polygons."""
        if len(self.polygons) < 2:
            return np.empty(0, object)
        return shapely.from_ragged_array(shapely.GeometryType.POLYGON, self.points, (self.rings, self.polygons))


def find_corners(block: np.ndarray, same_right: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Where outlines turn, and a pixel (flat index) of the region that turns there.

    Args:
        block: uint8 (rows, width + 2), a column of background on either side.
        same_right: bool like block, a pixel equals the one to its right.
        row: the lattice row between the first two rows of the block.

    Returns:
        corners, int64, and pixels, both (n,): those of the rows - 1 lattice rows inside the block.
    """
    width = block.shape[1]
    rows, columns = np.nonzero(_turning(block, same_right))
    northwest = rows * width + columns
    place = (rows.astype(np.int64) + row) << _ROW | columns.astype(np.int64) << _COLUMN
    flat = block.ravel()
    corners, pixels = [], []
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        here = northwest + right + down * width
        beside = northwest + (1 - right) + down * width
        upright = northwest + right + (1 - down) * width
        across = northwest + (1 - right) + (1 - down) * width
        differs = (flat[here] != flat[beside]) & (flat[here] != flat[upright])
        # The region lies to the left of its outline, as the mask is seen.
        for turns, pixel, vertical in (
            (differs & (flat[here] != 0), here, right == down),
            (differs & (flat[beside] == flat[upright]) & (flat[across] == flat[beside]), across, right != down),
        ):
            turns = turns & (flat[pixel] != 0)
            corners.append(place[turns] | (right * _RIGHT | down * _DOWN | vertical * _VERTICAL))
            pixels.append(pixel[turns])
    return np.concatenate(corners), np.concatenate(pixels)


def find_nodes(block: np.ndarray) -> np.ndarray:
    """Lattice points at which an outline turns, or more than two regions meet.

    Args:
        block: (rows, columns) of pixels.

    Returns:
        bool (rows - 1, columns - 1): the lattice points between them.

    Example:
        >>> find_nodes(np.array([[1, 1, 2], [1, 1, 3], [1, 1, 3]])).tolist()
        [[False, True], [False, False]]
    """
    same_right = np.ones(block.shape, bool)
    np.equal(block[:, 1:], block[:, :-1], out=same_right[:, :-1])
    return _turning(block, same_right)


def _turning(block: np.ndarray, same_right: np.ndarray) -> np.ndarray:
    """Where neither both rows nor both columns of the four pixels around a lattice point are constant."""
    same_below = block[1:] == block[:-1]
    straight = same_right[:-1, :-1] & same_right[1:, :-1]
    straight |= same_below[:, :-1] & same_below[:, 1:]
    return ~straight


def link(corners: np.ndarray, regions: np.ndarray) -> tuple[Outlines, np.ndarray]:
    """Link the corners of whole regions to rings, rings to polygons.

    Args:
        corners: from :func:`find_corners`, in any order.
        regions: the region of each.

    Returns:
        one polygon a region, in the order of their numbers; and those numbers.
    """
    if not len(corners):
        return Outlines(np.empty((0, 2)), np.zeros(1, np.int64), np.zeros(1, np.int64)), np.empty(0, np.int64)
    order = np.lexsort((corners, regions))
    corners, regions = corners[order], regions[order]
    order, ring_starts = _cycles(_following(corners, regions))
    shells = np.flatnonzero(np.diff(regions[order[ring_starts]], prepend=-1))

    lengths = np.diff(ring_starts, append=len(order))
    closed = np.insert(order, ring_starts + lengths, order[ring_starts])
    points = np.column_stack([corners[closed] >> _COLUMN & _COLUMN_MASK, corners[closed] >> _ROW]).astype(float)
    offsets = np.concatenate([[0], np.cumsum(lengths + 1)]), np.append(shells, len(ring_starts))
    return Outlines(points, *offsets), regions[order[ring_starts[shells]]]


def _following(corners: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """The next corner of the outline, for corners sorted by region, row, column."""
    meets = (corners[1:] >> _COLUMN == corners[:-1] >> _COLUMN) & (regions[1:] == regions[:-1])
    # Two pixels of a region touch here: exchange their vertical edges, so that rings touch and do not cross.
    touching = np.append(meets, False) | np.append(False, meets)
    corners = np.where(touching, corners ^ _DOWN, corners)
    rows, columns = corners >> _ROW, corners >> _COLUMN & _COLUMN_MASK
    along_column = np.lexsort((columns << _ROW | rows << _COLUMN | corners & _DOWN, regions))
    following = np.arange(len(corners)) ^ 1
    upright = np.empty_like(following)
    upright[along_column] = along_column[following]
    return np.where(corners & _VERTICAL, upright, following)


def _cycles(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All cycles of a permutation, one after the other, each from its lowest member.

    Returns:
        the members in order, and the index in it at which each cycle starts.

    Example:
        >>> order, starts = _cycles(np.array([2, 3, 0, 1]))
        >>> order.tolist(), starts.tolist()
        ([0, 2, 1, 3], [0, 2])
    """
    after = following.tolist()
    unseen = bytearray(b"\x01") * len(after)
    order: list[int] = []
    starts: list[int] = []
    for first in range(len(after)):
        if unseen[first]:
            starts.append(len(order))
            at = first
            while unseen[at]:
                unseen[at] = 0
                order.append(at)
                at = after[at]
    return np.array(order), np.array(starts)
