"""Windows to block: what each window answers for is put in its place, each pixel once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice

import numpy as np

from gimseg.errors import TilingError
from gimseg.tiling import Roi, Window, roi_shape, shift

PredictWindows = Callable[[np.ndarray], np.ndarray]
"""Images (N, bands, rows, cols) to values (N, planes, rows, cols)."""


class Mosaic:
    """Accumulates the cores of windows.

    Args:
        core: region of the raster to be filled, px.
        planes: of values at each pixel.
        dtype: of the values.
    """

    def __init__(self, core: Roi, planes: int = 1, dtype: np.typing.DTypeLike = np.uint8) -> None:
        shape = roi_shape(core)
        self._core = core
        self._array = np.zeros((planes, *shape), dtype)
        self._missing = shape[0] * shape[1]

    def place(self, window: Window, values: np.ndarray) -> None:
        """Keep the core of a window.

        Args:
            window: its core lies in the mosaic.
            values: (planes, rows, cols) of all that the window read.
        """
        self._array[:, *shift(window.core, self._core)] = values[:, *shift(window.core, window.read)]
        self.skip(window)

    def skip(self, window: Window) -> None:
        """Leave the core of a window at 0: nobody asks for it."""
        rows, cols = roi_shape(window.core)
        self._missing -= rows * cols

    def to_array(self) -> np.ndarray:
        """The whole, (planes, rows, cols).

        Raises:
            TilingError: pixels are missing, or were given twice.
        """
        if self._missing:
            raise TilingError(f"windows do not cover their block once: {self._missing} px missing")
        return self._array


def stitch(
    mosaic: Mosaic,
    windows: Iterable[Window],
    image: np.ndarray,
    origin: Roi,
    predict: PredictWindows,
    *,
    batch: int = 1,
) -> None:
    """Predict windows and place them.

    Args:
        mosaic: is filled.
        windows: which.
        image: (bands, rows, cols) of the region `origin`.
        origin: region of the raster that holds all that the windows read.
        predict: the network.
        batch: windows at once. Each call has exactly as many: the result of a window
            may depend on the size of its batch, never on what else is in it.
    """
    for group in batches(windows, batch):
        parts = [image[:, *shift(window.read, origin)] for window in group]
        parts += parts[-1:] * (batch - len(parts))
        for window, values in zip(group, predict(np.stack(parts)), strict=False):
            mosaic.place(window, values)


def batches(windows: Iterable[Window], batch: int) -> Iterator[list[Window]]:
    """Groups of at most `batch` windows of one shape."""
    by_shape = sorted(windows, key=lambda window: roi_shape(window.read))
    for _, same in groupby(by_shape, key=lambda window: roi_shape(window.read)):
        while group := list(islice(same, batch)):
            yield group
