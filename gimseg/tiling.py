"""Where blocks and windows lie: integers only, on one lattice of the whole raster.

All windows of a raster have one size, and begin at multiples of the network's stride,
counted from the raster's upper left corner. A window keeps its middle, a *cell*, and
throws its border, the *halo*, away; but at the raster's own edge there is nothing
beyond that it could miss, and it keeps all. So which pixels a window sees depends on
raster and model alone, and where one window holds the whole raster, nothing is thrown
away. A *block*, the unit of memory and of resuming, is a whole number of cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

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
    """The windows of a raster.

    The last window of a row or column is shifted back so that it ends with the raster,
    rounded up to the stride. Only windows of a raster that is smaller than they are
    reach further.

    Args:
        shape: of the raster, px.
        window: rows and columns of every window, px.
        halo: border of a window that is thrown away, px; where windows are blended,
            half of what two of them share.
        stride: of the network, px; origins and sides of windows are multiples of it.
        blend: a window answers for all that it reads, and neighbours are averaged.

    Raises:
        TilingError: numbers that do not fit together.

    Example:
        >>> lattice = Lattice((1000, 300), window=(256, 256), halo=32, stride=32)
        >>> lattice.cell, lattice.counts
        ((192, 192), (5, 2))
    """

    shape: tuple[int, int]
    window: tuple[int, int]
    halo: int
    stride: int = 1
    blend: bool = False

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise TilingError(f"a raster of {self.shape[0]} x {self.shape[1]} px has no pixel")
        for side, size in zip(self.window, self.shape, strict=True):
            # One window that holds the raster throws nothing away.
            if side < size:
                crop(side, self.halo)
            if self.blend and side < size and 4 * self.halo > side:
                raise TilingError(f"windows of {side} px that share {2 * self.halo} px: at most half can be blended")
        for name, size in (("window", self.window[0]), ("window", self.window[1]), ("halo", self.halo)):
            if self.stride < 1 or size % self.stride:
                raise TilingError(
                    f"{name} of {size} px: a multiple of the network's stride, {self.stride} px, is needed"
                )

    @classmethod
    def fit(
        cls, shape: tuple[int, int], largest: int, halo: int, stride: int = 1, *, smallest: int = 1, blend: bool = False
    ) -> Lattice:
        """The fewest windows of at most `largest` px a side, and these as small as that allows.

        Windows that are blended stay as large as they may: their network looks at the whole of them.

        Args:
            shape: of the raster, px.
            largest: side of a window, px.
            halo: see the class.
            stride: see the class.
            smallest: least side of a window, px: a smaller raster is padded.
            blend: see the class.

        Raises:
            TilingError: numbers that do not fit together.

        Example:
            >>> Lattice.fit((1000, 300), 512, halo=32, stride=32)
            Lattice(shape=(1000, 300), window=(384, 320), halo=32, stride=32, blend=False)
        """
        crop(largest, halo)
        sides = []
        for size in shape:
            whole = _ceil(size, stride) * stride
            side = min(whole, largest)
            if whole > largest and not blend:
                count = _ceil(whole - 2 * halo, largest - 2 * halo)
                side = _ceil(whole - 2 * halo, count * stride) * stride + 2 * halo
            sides.append(side)
        least = _ceil(smallest, stride) * stride
        rows, cols = (max(side, least) for side in sides)
        return cls(shape, (rows, cols), halo, stride, blend)

    @property
    def cell(self) -> tuple[int, int]:
        """Rows and columns between one window and the next, px."""
        rows, cols = (
            side if side >= size else side - 2 * self.halo for side, size in zip(self.window, self._whole, strict=True)
        )
        return rows, cols

    @property
    def counts(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        rows, cols = (
            1 if side >= size else _ceil(size - 2 * self.halo, cell)
            for side, size, cell in zip(self.window, self._whole, self.cell, strict=True)
        )
        return rows, cols

    @property
    def cost(self) -> float:
        """Pixels computed for each pixel of the raster."""
        computed = self.counts[0] * self.window[0] * self.counts[1] * self.window[1]
        return computed / (self.shape[0] * self.shape[1])

    @property
    def _whole(self) -> tuple[int, int]:
        """The raster's shape, rounded up to the stride."""
        return _ceil(self.shape[0], self.stride) * self.stride, _ceil(self.shape[1], self.stride) * self.stride

    def window_at(self, row: int, col: int) -> Window:
        """The window at this row and column, counted in windows."""
        rows, cols = self._read(0, row), self._read(1, col)
        if self.blend:
            core_rows, core_cols = (
                slice(read.start, min(read.stop, n)) for read, n in zip((rows, cols), self.shape, strict=True)
            )
            return Window(read=(rows, cols), core=(core_rows, core_cols))
        return Window(read=(rows, cols), core=(self._cell(0, row), self._cell(1, col)))

    def cells(self, rows: slice, cols: slice) -> Roi:
        """Pixels of the raster that cells, counted in cells, make up."""
        return (
            slice(self._cell(0, rows.start).start, self._cell(0, rows.stop - 1).stop),
            slice(self._cell(1, cols.start).start, self._cell(1, cols.stop - 1).stop),
        )

    def cells_at(self, roi: Roi) -> tuple[range, range]:
        """Rows and columns of the cells that meet a region of the raster."""
        return self._cells(0, roi[0]), self._cells(1, roi[1])

    def cell_numbers(self, roi: Roi) -> tuple[np.ndarray, np.ndarray]:
        """In which row of cells each row of a region lies, and in which column each column.

        Example:
            >>> lattice = Lattice((8, 8), window=(4, 4), halo=1)
            >>> lattice.cell_numbers((slice(2, 5), slice(0, 8)))[0].tolist()
            [0, 1, 1]
        """
        rows, cols = (
            np.minimum(np.maximum(np.arange(part.start, part.stop) - self.halo, 0) // cell, count - 1)
            for part, cell, count in zip(roi, self.cell, self.counts, strict=True)
        )
        return rows, cols

    def windows_for(self, roi: Roi) -> Iterator[Window]:
        """The windows that answer for a region, row by row."""
        rows, cols = (self._answering(axis, part) for axis, part in enumerate(roi))
        return (self.window_at(row, col) for row in rows for col in cols)

    def _answering(self, axis: int, part: slice) -> range:
        near = self._cells(axis, part)
        if not self.blend:
            return near
        far = range(max(near.start - 2, 0), min(near.stop + 2, self.counts[axis]))
        reads = ((index, self._read(axis, index)) for index in far)
        meeting = [index for index, read in reads if read.start < part.stop and part.start < read.stop]
        return range(meeting[0], meeting[-1] + 1)

    def _cells(self, axis: int, part: slice) -> range:
        return range(self._cell_of(axis, part.start), self._cell_of(axis, part.stop - 1) + 1)

    def _read(self, axis: int, index: int) -> slice:
        """What a window reads along one axis."""
        side = self.window[axis]
        start = max(0, min(index * self.cell[axis], self._whole[axis] - side))
        return slice(start, start + side)

    def _cell(self, axis: int, index: int) -> slice:
        """What a window keeps along one axis."""
        start, stop = (number * self.cell[axis] + self.halo for number in (index, index + 1))
        last = index == self.counts[axis] - 1
        return slice(start if index else 0, self.shape[axis] if last else stop)

    def _cell_of(self, axis: int, pixel: int) -> int:
        return min(max(pixel - self.halo, 0) // self.cell[axis], self.counts[axis] - 1)


@dataclass(frozen=True)
class Blocks(Sequence[Block]):
    """The blocks of a raster, row by row; each is worked out when it is asked for.

    Args:
        lattice: of the raster.
        step: rows and columns of cells in a block.

    Example:
        >>> blocks = Blocks(Lattice((1000, 300), window=(256, 256), halo=32, stride=32), (2, 2))
        >>> [item.core for item in blocks]
        [(slice(0, 416, None), slice(0, 300, None)), (slice(416, 800, None), slice(0, 300, None)), \
(slice(800, 1000, None), slice(0, 300, None))]
    """

    lattice: Lattice
    step: tuple[int, int]

    def __post_init__(self) -> None:
        if min(self.step) < 1:
            raise TilingError(f"blocks of {self.step[0]} x {self.step[1]} cells: one each is needed")

    @classmethod
    def of_side(cls, lattice: Lattice, rows: int, cols: int | None = None) -> Blocks:
        """Blocks of about so many rows and columns, px: rounded down to whole cells, one at least.

        Raises:
            TilingError: no block side.
        """
        sides = (rows, rows if cols is None else cols)
        if min(sides) < 1:
            raise TilingError(f"block of {min(sides)} px: 1 px or more is needed")
        down, across = (max(side // cell, 1) for side, cell in zip(sides, lattice.cell, strict=True))
        return cls(lattice, (down, across))

    @property
    def counts(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        rows, cols = self.lattice.counts
        return _ceil(rows, self.step[0]), _ceil(cols, self.step[1])

    def __len__(self) -> int:
        return self.counts[0] * self.counts[1]

    @overload
    def __getitem__(self, index: int) -> Block: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Block]: ...

    def __getitem__(self, index: int | slice) -> Block | Sequence[Block]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row, col = divmod(index % len(self), self.counts[1])
        rows, cols = (
            slice(place * step, min((place + 1) * step, count))
            for place, step, count in zip((row, col), self.step, self.lattice.counts, strict=True)
        )
        core = self.lattice.cells(rows, cols)
        windows = list(self.lattice.windows_for(core))
        read_rows, read_cols = (
            slice(first.start, last.stop) for first, last in zip(windows[0].read, windows[-1].read, strict=True)
        )
        return Block(row, col, core=core, read=(read_rows, read_cols))

    def at(self, roi: Roi) -> list[Block]:
        """The blocks that meet a region of the raster."""
        rows, cols = (
            range(cells.start // step, (cells.stop - 1) // step + 1)
            for cells, step in zip(self.lattice.cells_at(roi), self.step, strict=True)
        )
        return [self[row * self.counts[1] + col] for row in rows for col in cols]


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


def widened(roi: Roi, margins: tuple[int, int], shape: tuple[int, int]) -> Roi:
    """A region with so many rows and columns more on each side, as far as the raster goes.

    Example:
        >>> widened((slice(5, 10), slice(0, 4)), (2, 3), (11, 20))
        (slice(3, 11, None), slice(0, 7, None))
    """
    rows, cols = (
        slice(max(0, part.start - margin), min(size, part.stop + margin))
        for part, margin, size in zip(roi, margins, shape, strict=True)
    )
    return rows, cols


def overlap(one: Roi, other: Roi) -> Roi | None:
    """The region that two have in common, None if there is none.

    Example:
        >>> overlap((slice(0, 5), slice(0, 5)), (slice(3, 9), slice(-2, 2)))
        (slice(3, 5, None), slice(0, 2, None))
    """
    rows, cols = (slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return (rows, cols) if rows.start < rows.stop and cols.start < cols.stop else None


def _ceil(size: int, step: int) -> int:
    return -(-size // step)
