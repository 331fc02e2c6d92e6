"""Outlines of equal-valued regions on the integer lattice, exact and strip by strip.

A region is a set of equal-valued pixels that are 4-connected. Its outline turns at
lattice points only, and whether it turns there is seen from the four pixels around.
So every strip of rows gives its *corners* at once, each with the two directions in
which the outline goes on, and only two things must cross a seam: which region a
corner belongs to (the runs of equal pixels on the last row say so), and the corners
of regions that are still open. When a region closes, its corners are linked: along
each lattice line they pair up, first with second, third with fourth.

Where two pixels of one region touch at a corner only, the outline is linked so that
the rings touch there and none crosses itself: the polygon is valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# A corner is one int64: row << 34 | column << 3 | right << 2 | down << 1 | leaves vertically.
# So corners sort by row, then column, then the one whose horizontal edge goes left first.
_ROW, _COLUMN = 34, 3
_RIGHT, _DOWN, _VERTICAL = 4, 2, 1
_COLUMN_MASK = (1 << (_ROW - _COLUMN)) - 1


class Traced(NamedTuple):
    """Finished regions.

    Attributes:
        polygons: (n,) shapely polygons, x = column, y = row, in pixels from the top-left
            corner of the mask.
        values: (n,) uint8, the value of each region.
    """

    polygons: np.ndarray
    values: np.ndarray


def trace(strips: Iterable[np.ndarray]) -> Iterator[Traced]:
    """Polygons of all regions of a mask that comes as strips of rows, from the top.

    The set of polygons does not depend on how the mask was cut, and is the one of
    ``rasterio.features.shapes``. Each region is given once, after the strip that
    closed it.

    Args:
        strips: uint8 (rows, width), any number of rows each; 0 gives no polygon.

    Yields:
        the regions closed by each strip, and by the end of the mask.

    Example:
        >>> mask = np.array([[7, 7, 0], [7, 0, 0], [7, 7, 7]], "uint8")
        >>> [done.values.tolist() for done in trace([mask[:2], mask[2:]])]
        [[], [], [7]]
    """
    tracer: Tracer | None = None
    for strip in strips:
        tracer = tracer or Tracer(strip.shape[1])
        yield tracer.feed(strip)
    if tracer is not None:
        yield tracer.finish()


class Tracer:
    """The seam between the rows seen and the rows to come.

    Args:
        width: columns of the mask, px.
    """

    def __init__(self, width: int) -> None:
        self._row = 0
        self._last_row = np.zeros(width, np.uint8)
        self._open_of_run = np.empty(0, np.int64)  # the runs of the last row -> open region
        self._held: list[list[np.ndarray]] = []  # open region -> its corners so far

    def feed(self, strip: np.ndarray) -> Traced:
        """Take the next rows; give the regions that they close.

        Args:
            strip: uint8 (rows, width), rows >= 1.
        """
        rows, width = strip.shape
        block = np.zeros((rows + 1, width + 2), np.uint8)
        block[0, 1:-1] = self._last_row
        block[1:, 1:-1] = strip
        same_right = np.ones(block.shape, bool)
        np.equal(block.ravel()[1:], block.ravel()[:-1], out=same_right.ravel()[:-1])
        runs = _Runs.of(block, same_right)
        corners, pixels = _corners(block, same_right, self._row)

        region_of_run, region_of_open = runs.regions(self._open_of_run, len(self._held))
        open_regions, open_of_run = np.unique(region_of_run[runs.starts >= rows * (width + 2)], return_inverse=True)
        values = np.zeros(region_of_run.max(initial=-1) + 1, np.uint8)
        values[region_of_run] = block.ravel()[runs.starts]
        open_of_region = np.full(len(values), -1)
        open_of_region[open_regions] = np.arange(len(open_regions))

        closed = self._hold(corners, region_of_run[runs.at(pixels)], region_of_open, open_of_region)
        self._row += rows
        self._last_row, self._open_of_run = strip[-1].copy(), open_of_run
        return _polygons(*closed, values)

    def finish(self) -> Traced:
        """The regions that the lower edge of the mask closes."""
        return self.feed(np.zeros((1, len(self._last_row)), np.uint8))

    def _hold(
        self, corners: np.ndarray, regions: np.ndarray, region_of_open: np.ndarray, open_of_region: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keep the corners of open regions, give those of closed ones with their region."""
        held: list[list[np.ndarray]] = [[] for _ in range(open_of_region.max(initial=-1) + 1)]
        done_corners, done_regions = [], []
        for chunks, region in zip(self._held, region_of_open.tolist(), strict=True):
            into = open_of_region[region]
            if into >= 0:
                held[into] = held[into] + chunks if held[into] else chunks
            else:
                done_corners += chunks
                done_regions += [np.full(len(chunk), region) for chunk in chunks]
        into = open_of_region[regions]
        done_corners.append(corners[into < 0])
        done_regions.append(regions[into < 0])
        order = np.flatnonzero(into >= 0)
        order = order[np.argsort(into[order], kind="stable")]
        first_of = np.flatnonzero(np.diff(into[order], prepend=-1))
        for chunk, region in zip(np.split(corners[order], first_of[1:]), into[order][first_of].tolist(), strict=False):
            held[region].append(chunk)
        self._held = held
        return np.concatenate(done_corners), np.concatenate(done_regions)


class _Runs(NamedTuple):
    """Horizontal runs of equal pixels, background left out.

    Attributes:
        flat: the padded block, raveled.
        starts: (n,) index in `flat` of the first pixel of each run, ascending.
        width: columns of the padded block.
    """

    flat: np.ndarray
    starts: np.ndarray
    width: int

    @classmethod
    def of(cls, block: np.ndarray, same_right: np.ndarray) -> _Runs:
        starts = np.flatnonzero(~same_right.ravel()) + 1
        return cls(block.ravel(), starts[block.ravel()[starts] != 0], block.shape[1])

    def at(self, pixels: np.ndarray) -> np.ndarray:
        """The run of each pixel (flat index, not background)."""
        return np.searchsorted(self.starts, pixels, side="right") - 1

    def regions(self, open_of_run: np.ndarray, n_open: int) -> tuple[np.ndarray, np.ndarray]:
        """Number the regions: of every run, and of every region that was open above.

        Args:
            open_of_run: the open region of each run of the first row.
            n_open: number of open regions.
        """
        n = len(self.starts)
        ends = [np.arange(len(open_of_run))], [open_of_run + n]
        for step in (-self.width, self.width):
            # Two runs that meet do so at the first pixel of one of them.
            runs = np.flatnonzero((self.starts + step >= 0) & (self.starts + step < len(self.flat)))
            beside = self.starts[runs] + step
            meets = self.flat[beside] == self.flat[self.starts[runs]]
            ends[0].append(runs[meets])
            ends[1].append(self.at(beside[meets]))
        one, other = map(np.concatenate, ends)
        graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(n + n_open, n + n_open))
        labels = connected_components(graph, directed=False)[1] if n + n_open else np.empty(0, np.int32)
        return labels[:n], labels[n:]


def _corners(block: np.ndarray, same_right: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Where outlines turn, and a pixel (flat index) of the region that turns there.

    Args:
        block: uint8 (rows + 1, width + 2), the row above the strip first, a column of
            background on either side.
        same_right: bool like block, a pixel equals the one to its right.
        row: first row of the strip in the mask.
    """
    width = block.shape[1]
    same_below = block[1:] == block[:-1]
    straight = same_right[:-1, :-1] & same_right[1:, :-1]
    straight |= same_below[:, :-1] & same_below[:, 1:]
    rows, columns = np.nonzero(~straight)
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


def _polygons(corners: np.ndarray, regions: np.ndarray, values: np.ndarray) -> Traced:
    """Link the corners of whole regions to rings, rings to polygons."""
    if not len(corners):
        return Traced(np.empty(0, object), np.empty(0, np.uint8))
    order = np.lexsort((corners, regions))
    corners, regions = corners[order], regions[order]
    order, ring_starts = _cycles(_following(corners, regions))
    shells = np.flatnonzero(np.diff(regions[order[ring_starts]], prepend=-1))

    lengths = np.diff(ring_starts, append=len(order))
    closed = np.insert(order, ring_starts + lengths, order[ring_starts])
    points = np.column_stack([corners[closed] >> _COLUMN & _COLUMN_MASK, corners[closed] >> _ROW]).astype(float)
    offsets = np.concatenate([[0], np.cumsum(lengths + 1)]), np.append(shells, len(ring_starts))
    polygons = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, offsets)
    return Traced(polygons, values[regions[order[ring_starts[shells]]]])


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
