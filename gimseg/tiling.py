"""Where blocks and windows lie: integers only, on one lattice of the whole raster.

A window keeps its middle, a *cell*, and throws its border, the *halo*, away. Cells
lie at multiples of their side, counted from the raster's upper left corner, so which
pixels a window sees depends on the raster and the model alone. A *block*, the unit of
memory and of resuming, is a whole number of cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gimseg.errors import TilingError

Roi = tuple[slice, slice]
"""Rows and columns; a start may be negative and a stop beyond the raster."""


def crop(window: int, halo: int) -> slice:
    """The part of a window that is kept, along one axis.

    Args:
        window: side of a window, px.
        halo: border thrown away on each side, px, 0 <= halo < window / 2.

    Returns:
        slice of length window - 2 * halo.

    Raises:
        TilingError: the halo leaves nothing.

    Example:
        >>> crop(1024, 64)
        slice(64, 960, None)

    Source: Huang et al. 2018, arXiv 1805.12219, recommend cropping over averaging.
    """
    if not 0 <= 2 * halo < window:
        raise TilingError(f"a halo of {halo} px on each side of a window of {window} px: less than half is needed")
    return slice(halo, window - halo)


@dataclass(frozen=True)
class Window:
    """One input of the network.

    Args:
        read: pixels that the network sees; may reach beyond the raster.
        core: pixels of the raster that it answers for, inside `read`.
    """

    read: Roi
    core: Roi


@dataclass(frozen=True)
class Block:
    """A part of the raster that is read, predicted and written as one.

    Args:
        row: from the top, counted in blocks.
        col: from the left, counted in blocks.
        core: pixels of the raster that it answers for.
        read: pixels that its windows see; may reach beyond the raster.
    """

    row: int
    col: int
    core: Roi
    read: Roi

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the core, px."""
        return roi_shape(self.core)


@dataclass(frozen=True)
class Lattice:
    """The cells of a raster.

    At the right and bottom edges a window is cut to what its cell still needs, in
    steps of the stride, so that a small raster does not cost a large window.

    Args:
        shape: of the raster, px.
        window: side of a window, px.
        halo: border of a window that is thrown away, px.
        stride: of the network, px; origins and sides of windows are multiples of it.
        smallest: least side of a window at an edge, px; `window`: windows are never cut.

    Raises:
        TilingError: numbers that do not fit together.

    Example:
        >>> lattice = Lattice((1000, 300), window=256, halo=32, stride=32)
        >>> lattice.cell, lattice.counts
        (192, (6, 2))
    """

    shape: tuple[int, int]
    window: int
    halo: int
    stride: int = 1
    smallest: int = 1

    def __post_init__(self) -> None:
        crop(self.window, self.halo)
        if min(self.shape) < 1:
            raise TilingError(f"a raster of {self.shape[0]} x {self.shape[1]} px has no pixel")
        for name, size in (("window", self.window), ("halo", self.halo)):
            if self.stride < 1 or size % self.stride:
                raise TilingError(
                    f"{name} of {size} px: a multiple of the network's stride, {self.stride} px, is needed"
                )
        if not 1 <= self.smallest <= self.window:
            raise TilingError(f"smallest window of {self.smallest} px: 1 to {self.window} px, the window, is needed")

    @property
    def cell(self) -> int:
        """Side of a cell, px."""
        return self.window - 2 * self.halo

    @property
    def counts(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return _ceil(self.shape[0], self.cell), _ceil(self.shape[1], self.cell)

    @property
    def cost(self) -> float:
        """Pixels computed for each pixel kept, where no edge is near."""
        return (self.window / self.cell) ** 2

    def sides(self) -> tuple[int, ...]:
        """All sides that windows of this raster have, px."""
        last = (self._span(axis, self.counts[axis] - 1)[1] for axis in (0, 1))
        return tuple(
            sorted({read.stop - read.start for read in last} | ({self.window} if max(self.counts) > 1 else set()))
        )

    def window_at(self, row: int, col: int) -> Window:
        """The window of the cell at this row and column, counted in cells."""
        (core_rows, rows), (core_cols, cols) = self._span(0, row), self._span(1, col)
        return Window(read=(rows, cols), core=(core_rows, core_cols))

    def _span(self, axis: int, index: int) -> tuple[slice, slice]:
        """What a cell keeps and what its window reads, along one axis."""
        start, size = index * self.cell, self.shape[axis]
        stop = min(start + self.cell, size)
        needed = _ceil(stop - start, self.stride) * self.stride + 2 * self.halo
        side = max(needed, _ceil(self.smallest, self.stride) * self.stride)
        return slice(start, stop), slice(start - self.halo, start - self.halo + side)


def plan_blocks(lattice: Lattice, block: int) -> list[Block]:
    """Cut a raster into blocks, row by row.

    Args:
        lattice: of the raster.
        block: wanted side of a block, px; rounded down to whole cells, one at least.

    Returns:
        blocks whose cores cover each pixel once.

    Raises:
        TilingError: no block side.

    Example:
        >>> blocks = plan_blocks(Lattice((1000, 300), window=256, halo=32, stride=32), 500)
        >>> [item.core for item in blocks]
        [(slice(0, 384, None), slice(0, 300, None)), (slice(384, 768, None), slice(0, 300, None)), \
(slice(768, 1000, None), slice(0, 300, None))]
    """
    if block < 1:
        raise TilingError(f"block of {block} px: 1 px or more is needed")
    step = max(block // lattice.cell, 1)
    rows, cols = lattice.counts
    return [_block(lattice, row, col, step) for row in range(_ceil(rows, step)) for col in range(_ceil(cols, step))]


def plan_windows(lattice: Lattice, block: Block) -> list[Window]:
    """The windows of a block, row by row; their cores cover its core once.

    Example:
        >>> lattice = Lattice((1000, 300), window=256, halo=32, stride=32)
        >>> windows = plan_windows(lattice, plan_blocks(lattice, 192)[1])
        >>> windows[0].read, windows[0].core
        ((slice(-32, 224, None), slice(160, 352, None)), (slice(0, 192, None), slice(192, 300, None)))
    """
    rows, cols = (range(part.start // lattice.cell, _ceil(part.stop, lattice.cell)) for part in block.core)
    return [lattice.window_at(row, col) for row in rows for col in cols]


def roi_shape(roi: Roi) -> tuple[int, int]:
    """Rows and columns of a region, px."""
    return roi[0].stop - roi[0].start, roi[1].stop - roi[1].start


def shift(roi: Roi, origin: Roi) -> Roi:
    """The same region, counted from the upper left corner of another one.

    Example:
        >>> shift((slice(10, 20), slice(30, 50)), (slice(8, 99), slice(30, 99)))
        (slice(2, 12, None), slice(0, 20, None))
    """
    rows, cols = (
        slice(part.start - start.start, part.stop - start.start) for part, start in zip(roi, origin, strict=True)
    )
    return rows, cols


def chunks(shape: tuple[int, int], rows: int, cols: int) -> Iterator[Roi]:
    """Regions of at most `rows` x `cols` px that cover a raster once, row by row.

    Example:
        >>> list(chunks((3, 4), 2, 4))
        [(slice(0, 2, None), slice(0, 4, None)), (slice(2, 3, None), slice(0, 4, None))]
    """
    for top in range(0, shape[0], rows):
        for left in range(0, shape[1], cols):
            yield slice(top, min(top + rows, shape[0])), slice(left, min(left + cols, shape[1]))


def overlap(one: Roi, other: Roi) -> Roi | None:
    """The region that two have in common, None if there is none.

    Example:
        >>> overlap((slice(0, 5), slice(0, 5)), (slice(3, 9), slice(-2, 2)))
        (slice(3, 5, None), slice(0, 2, None))
    """
    rows, cols = (slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return (rows, cols) if rows.start < rows.stop and cols.start < cols.stop else None


def _block(lattice: Lattice, row: int, col: int, step: int) -> Block:
    rows, cols = lattice.counts
    first = lattice.window_at(row * step, col * step)
    last = lattice.window_at(min((row + 1) * step, rows) - 1, min((col + 1) * step, cols) - 1)
    core_rows, core_cols = (slice(a.start, b.stop) for a, b in zip(first.core, last.core, strict=True))
    read_rows, read_cols = (slice(a.start, b.stop) for a, b in zip(first.read, last.read, strict=True))
    return Block(row, col, core=(core_rows, core_cols), read=(read_rows, read_cols))


def _ceil(size: int, step: int) -> int:
    return -(-size // step)
