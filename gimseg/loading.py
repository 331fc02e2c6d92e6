"""The pixels of a block, as they go to the network: read, or known not to be worth reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gimseg.errors import RasterError
from gimseg.rasters import Pixels, RasterView
from gimseg.tiling import Block, Lattice, Roi, Window, overlap, roi_shape, shift


@dataclass(frozen=True)
class Unread:
    """A part of the raster that cannot be read, and why."""

    roi: Roi
    reason: str


@dataclass(frozen=True)
class Loaded:
    """A block that was read.

    Args:
        block: which.
        wanted: bool (rows, cols) of its core: pixels that are valid and inside the area of interest.
        windows: that are to be computed: those that answer for a wanted pixel.
        values: (bands, rows, cols) of `origin`, raster values.
        valid: bool (rows, cols) of `origin`.
        origin: region of the raster that holds all that the windows read.
        unread: what of the block cannot be read.
    """

    block: Block
    wanted: np.ndarray
    windows: tuple[Window, ...] = ()
    values: np.ndarray | None = None
    valid: np.ndarray | None = None
    origin: Roi = (slice(0, 0), slice(0, 0))
    unread: tuple[Unread, ...] = ()

    def cut(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """What a window reads: values (bands, rows, cols) and validity (rows, cols)."""
        assert self.values is not None and self.valid is not None
        rows, cols = shift(window.read, self.origin)
        return self.values[:, rows, cols], self.valid[rows, cols]


def load_block(
    view: RasterView, lattice: Lattice, block: Block, asked: Callable[[Roi], np.ndarray] | None = None
) -> Loaded:
    """Read what a block needs, and no more.

    Nothing is read of a block of which no pixel is asked for, nor of one of which the file
    tells at once that nothing is valid. What cannot be read is told, and invalid.

    Args:
        view: the raster on its grid.
        lattice: of windows.
        block: of the lattice.
        asked: which pixels of a region are, bool (rows, cols); None: all.

    Raises:
        RasterError: the file is gone.
    """
    nothing = Loaded(block, np.zeros(block.shape, bool))
    inside = np.ones(block.shape, bool) if asked is None else asked(block.core)
    windows = _asked(lattice, block, inside)
    if not windows or view.is_empty(block.core):
        return nothing
    origin = _around(windows)
    pixels, unread = _read(view, origin, lattice.shape)
    common = overlap(block.core, origin)
    assert common is not None
    wanted = np.zeros(block.shape, bool)
    here = shift(common, block.core)
    wanted[here] = inside[here] & pixels.valid[shift(common, origin)]
    windows = _asked(lattice, block, wanted)
    unread = tuple(item for item in unread if overlap(item.roi, block.core))
    if not windows:
        return Loaded(block, wanted, unread=unread)
    return Loaded(block, wanted, windows, pixels.data, pixels.valid, origin, unread)


def _asked(lattice: Lattice, block: Block, wanted: np.ndarray) -> tuple[Window, ...]:
    """Windows that answer for a wanted pixel of the block."""
    if not wanted.any():
        return ()
    found = []
    for window in lattice.windows_for(block.core):
        common = overlap(window.core, block.core)
        if common is not None and wanted[shift(common, block.core)].any():
            found.append(window)
    return tuple(found)


def _around(windows: Sequence[Window]) -> Roi:
    """The region that holds all that windows read."""
    rows, cols = (
        slice(min(part.start for part in parts), max(part.stop for part in parts))
        for parts in zip(*(window.read for window in windows), strict=True)
    )
    return rows, cols


def _read(view: RasterView, roi: Roi, shape: tuple[int, int]) -> tuple[Pixels, tuple[Unread, ...]]:
    """Pixels of a region; beyond the raster, the raster mirrored."""
    inside = (slice(roi[0].start, min(roi[0].stop, shape[0])), slice(roi[1].start, min(roi[1].stop, shape[1])))
    unread: tuple[Unread, ...] = ()
    try:
        pixels = view.read_plain(inside)
    except RasterError:
        if not view.file.is_there():
            raise
        pixels, unread = _read_in_pieces(view, inside)
    beyond = [(0, whole.stop - part.stop) for whole, part in zip(roi, inside, strict=True)]
    if any(size for _, size in beyond):
        pixels = Pixels(np.pad(pixels.data, ((0, 0), *beyond), "reflect"), np.pad(pixels.valid, beyond, "reflect"))
    return pixels, unread


def _read_in_pieces(view: RasterView, roi: Roi) -> tuple[Pixels, tuple[Unread, ...]]:
    """Read what of a damaged file can be read.

    Which pixels are lost does not depend on the block: a larger read succeeds where all its pieces do.
    """
    shape = roi_shape(roi)
    pixels = Pixels(np.zeros((len(view.file.bands), *shape), view.dtype), np.zeros(shape, bool))
    unread = []
    for piece in view.pieces(roi):
        common = overlap(piece, roi)
        if common is None:
            continue
        try:
            # The whole piece, also where less is needed: so it is lost for every block, or for none.
            found = view.read_plain(piece)
        except RasterError as error:
            unread.append(Unread(piece, str(error)))
            continue
        here, there = shift(common, roi), shift(common, piece)
        pixels.data[:, *here], pixels.valid[here] = found.data[:, *there], found.valid[there]
    return pixels, tuple(unread)
