"""Blocks through the network: normalised, predicted, encoded on the device, stitched.

A batch takes windows of several blocks, in order; all have one size. What a window
yields comes back as bytes while the next batch is computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from gimseg.backends import Backend
from gimseg.legend import UNLABELLED
from gimseg.loading import Loaded, Unread
from gimseg.products import Products
from gimseg.recipes import Recipe
from gimseg.stitching import Blend, Mosaic
from gimseg.tiling import Block, Lattice, Window

_FLYING = 2
"""Batches whose bytes may be on their way back."""
_STRIP = 1024
# What torch copies to any device as it is; other types travel as float32.
_PLAIN = ("uint8", "int16", "int32", "float32")


class Finished(NamedTuple):
    """A block whose pixels are all there."""

    block: Block
    values: np.ndarray
    """uint8 (planes, rows, cols) of its core."""
    unread: tuple[Unread, ...]


class Step(NamedTuple):
    """How far the network has come."""

    pixels: int
    """Of the raster, that are done since the step before."""
    finished: Finished | None = None


@dataclass(frozen=True)
class Network:
    """A backend with what surrounds it on its device.

    Args:
        backend: computes.
        recipe: normalises before it, and turns what it gives into probabilities.
        products: what is kept of these.
        device: of the backend.
    """

    backend: Backend
    recipe: Recipe
    products: Products
    device: torch.device

    @property
    def planes(self) -> int:
        """Bytes that are kept of each pixel."""
        return len(self.products.planes(self.recipe.legend))

    def probabilities(self, values: np.ndarray, valid: np.ndarray) -> torch.Tensor:
        """Raster values (N, bands, rows, cols), validity (N, rows, cols), to float32 (N, channels, rows, cols).

        Raises:
            DeviceMemoryError: too many windows, or too large ones.
        """
        plain = values if values.dtype.name in _PLAIN else values.astype(np.float32)
        with torch.inference_mode():
            images = self.recipe.normalise(self._upload(plain), self._upload(valid))
            return self.recipe.probabilities(self.backend.logits(images))

    def encode(self, probabilities: torch.Tensor) -> Coming:
        """Probabilities to planes, on their way to this machine's memory: uint8 (N, planes, rows, cols)."""
        with torch.inference_mode():
            planes = self.products.encode(probabilities, self.recipe)
            if planes.device.type != "cuda":
                return Coming(planes.cpu(), None)
            here = torch.empty(planes.shape, dtype=planes.dtype, pin_memory=True)
            here.copy_(planes, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(planes.device))
            return Coming(here, arrived)

    def _upload(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":
            return tensor.to(self.device)
        # From pinned memory a copy does not wait; torch keeps the buffer until it is through.
        return tensor.pin_memory().to(self.device, non_blocking=True)


class Coming(NamedTuple):
    """Bytes on their way back from a device."""

    tensor: torch.Tensor
    arrived: torch.cuda.Event | None

    def to_array(self) -> np.ndarray:
        """Wait for them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensor.numpy()


class _Work:
    """A block on its way through the network."""

    def __init__(self, loaded: Loaded, lattice: Lattice, network: Network) -> None:
        self.loaded = loaded
        self.left = len(loaded.windows)
        core = loaded.block.core
        channels = network.recipe.legend.n_channels
        self.mosaic = None if lattice.blend else Mosaic(core, network.planes)
        self.blend = Blend(core, lattice, channels, network.device) if lattice.blend else None
        if self.mosaic is not None:
            for window in lattice.windows_for(core):
                if window not in loaded.windows:
                    self.mosaic.skip(window)

    def pixels(self, window: Window) -> int:
        """Share of the block that counts as done with a window."""
        rows, cols = self.loaded.block.shape
        return rows * cols // len(self.loaded.windows)

    def finish(self, network: Network) -> Finished:
        """The block's planes, 255 where nothing was wanted."""
        values = self.mosaic.to_array() if self.mosaic is not None else _encode_blend(self.blend, network)
        return _finished(self.loaded, values)


def _encode_blend(blend: Blend | None, network: Network) -> np.ndarray:
    assert blend is not None
    whole = blend.to_tensor()
    strips = whole.split(_STRIP, dim=1)
    return np.concatenate([network.encode(strip[None]).to_array()[0] for strip in strips], axis=1)


def _finished(loaded: Loaded, values: np.ndarray) -> Finished:
    return Finished(loaded.block, np.where(loaded.wanted, values, np.uint8(UNLABELLED)), loaded.unread)


class Computation:
    """Windows of blocks, batch by batch.

    Args:
        network: computes.
        lattice: that the blocks come from.
        batch: windows in each call of the network; the last is filled up. The result of
            a window may depend on the size of its batch, never on what else is in it.
    """

    def __init__(self, network: Network, lattice: Lattice, batch: int = 1) -> None:
        self._network = network
        self._lattice = lattice
        self._batch = batch
        self._waiting: list[tuple[_Work, Window]] = []
        self._flying: deque[tuple[list[tuple[_Work, Window]], Coming | None]] = deque()

    def run(self, blocks: Iterable[Loaded]) -> Iterator[Step]:
        """Predict blocks.

        Raises:
            DeviceMemoryError: the device cannot hold a batch.
        """
        for loaded in blocks:
            if not loaded.windows:
                planes = np.full((self._network.planes, *loaded.block.shape), UNLABELLED, np.uint8)
                yield Step(int(np.prod(loaded.block.shape)), _finished(loaded, planes))
                continue
            work = _Work(loaded, self._lattice, self._network)
            for window in loaded.windows:
                self._waiting.append((work, window))
                if len(self._waiting) == self._batch:
                    yield from self._start()
        if self._waiting:
            yield from self._start()
        while self._flying:
            yield from self._land()

    def _start(self) -> Iterator[Step]:
        group, self._waiting = self._waiting, []
        images = [work.loaded.cut(window) for work, window in group]
        images += images[-1:] * (self._batch - len(images))
        values, valid = (np.stack(parts) for parts in zip(*images, strict=True))
        probabilities = self._network.probabilities(values, valid)[: len(group)]
        if self._lattice.blend:
            for (work, window), one in zip(group, probabilities, strict=True):
                assert work.blend is not None
                work.blend.add(window, one)
            self._flying.append((group, None))
        else:
            self._flying.append((group, self._network.encode(probabilities)))
        while len(self._flying) > _FLYING - 1:
            yield from self._land()

    def _land(self) -> Iterator[Step]:
        group, coming = self._flying.popleft()
        arrays = coming.to_array() if coming is not None else [None] * len(group)
        for (work, window), values in zip(group, arrays, strict=True):
            if work.mosaic is not None and values is not None:
                work.mosaic.place(window, values)
            work.left -= 1
            yield Step(work.pixels(window), work.finish(self._network) if work.left == 0 else None)
