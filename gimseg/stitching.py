"""Windows to block: each pixel once from the middle of its window, or averaged where windows overlap."""

from __future__ import annotations

import numpy as np
import torch

from gimseg.errors import TilingError
from gimseg.tiling import Lattice, Roi, Window, overlap, roi_shape, shift


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


class Blend:
    """Averages windows, each weighted by a taper that falls towards its border.

    A block adds all windows that meet it, always row by row: so each of its pixels is the
    same sum, in the same order, whatever the block.

    Args:
        core: region of the raster to be filled, px.
        lattice: that the windows come from.
        channels: of the values.
        device: where the sums are kept.
    """

    def __init__(self, core: Roi, lattice: Lattice, channels: int, device: torch.device) -> None:
        self._core = core
        self._lattice = lattice
        self._sum = torch.zeros(channels, *roi_shape(core), device=device)
        self._weight = torch.zeros(roi_shape(core), device=device)

    def add(self, window: Window, values: torch.Tensor) -> None:
        """Add what a window says of the region.

        Args:
            window: meets the region.
            values: float32 (channels, rows, cols) of all that the window read.
        """
        common = overlap(window.core, self._core)
        if common is None:
            return
        there, here = shift(common, window.read), shift(common, self._core)
        rows, cols = taper(window, self._lattice)
        weight = torch.outer(rows, cols)[there].to(self._sum.device)
        self._sum[:, *here] += values[:, *there] * weight
        self._weight[here] += weight

    def to_tensor(self) -> torch.Tensor:
        """The averages, float32 (channels, rows, cols); 0 where no window was added."""
        return self._sum / self._weight.clamp_min(torch.finfo(torch.float32).tiny)


def taper(window: Window, lattice: Lattice) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of a window along rows and columns, above 0 to 1: float32.

    They rise over what two windows share, as the square of a sine, so that those of two
    neighbours add up to 1; at the raster's own edge they stay 1.

    Example:
        >>> lattice = Lattice((100, 64), (64, 64), halo=2, stride=2, blend=True)
        >>> rows, cols = taper(lattice.window_at(0, 0), lattice)
        >>> [round(float(weight), 2) for weight in rows[-5:]], float(cols.min())
        ([1.0, 0.96, 0.69, 0.31, 0.04], 1.0)

    Source: the Hann window, Pielawski and Wählby 2020, doi 10.1371/journal.pone.0229839.
    """
    shared = 2 * lattice.halo
    rise = torch.sin((torch.arange(shared, dtype=torch.float64) + 0.5) / max(shared, 1) * torch.pi / 2) ** 2
    weights = []
    for part, size in zip(window.read, lattice.shape, strict=True):
        line = torch.ones(part.stop - part.start, dtype=torch.float64)
        if shared and part.start > 0:
            line[:shared] = rise
        if shared and part.stop < size:
            line[-shared:] = rise.flip(0)
        weights.append(line.float())
    return weights[0], weights[1]
