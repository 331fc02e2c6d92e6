"""With which windows a raster is predicted: from its size, the network's reach and the device's memory.

A window of training is small, so that a batch holds many places. In prediction its
border is computed for nothing, and the larger the window, the less of it is border. So
the side is chosen here, as large as it takes to make the halo cheap and as memory allows.
It depends on raster, model and device alone: not on blocks, areas of interest or workers.
"""

from __future__ import annotations

import copy
import math
import os
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gimseg.errors import PredictionError
from gimseg.models import Model
from gimseg.networks import takes_window
from gimseg.tiling import Lattice

COST = 1.25
"""Pixels computed for each pixel of a large raster, at most, where memory allows: the price of the halo."""
CUDA_COST = 1.15
MEMORY_SHARE = {"cpu": 1 / 8, "cuda": 1 / 2}
"""Of the device's memory, that the network may take for a batch."""
_LEAST = 1024
_TRIAL = 512


def choose_lattice(
    shape: tuple[int, int],
    model: Model,
    device: torch.device,
    *,
    batch: int = 1,
    window: int | None = None,
    blend: bool | None = None,
) -> Lattice:
    """The windows of a raster.

    Args:
        shape: of the raster, px.
        model: its recipe tells stride, halo, and whether windows are to be blended.
        device: that predicts.
        batch: windows at once.
        window: largest side of a window, px; None: :func:`choose_side`.
        blend: average windows where they overlap; None: as the recipe says.

    Raises:
        PredictionError: the window is too small, or no multiple of the stride.
    """
    recipe = model.recipe
    blended = recipe.blend if blend is None else blend
    side = window or choose_side(model, device, batch=batch, blend=blended)
    halo = shared_halo(side, recipe.halo, recipe.stride) if blended else recipe.halo
    if side % recipe.stride or side <= 2 * halo:
        raise PredictionError(
            f"window of {side} px: a multiple of the network's stride, {recipe.stride} px, above twice its halo of "
            f"{halo} px is needed"
        )
    lattice = Lattice.fit(shape, side, halo, recipe.stride, blend=blended)
    least = _smallest_side(model, min(lattice.window))
    return Lattice.fit(shape, max(side, least), halo, recipe.stride, smallest=least, blend=blended)


def choose_side(model: Model, device: torch.device, *, batch: int = 1, blend: bool = False) -> int:
    """Largest side of a window, px.

    Without blending: the side at which the halo costs no more than :data:`COST`, less
    where that takes more than a share of the device's memory. With blending, that of
    the training: such a network looks at its window as a whole.
    """
    recipe = model.recipe
    if blend:
        return recipe.window
    cost = CUDA_COST if device.type == "cuda" else COST
    cheap = 2 * recipe.halo / (1 - 1 / math.sqrt(cost))
    share = MEMORY_SHARE.get(device.type, MEMORY_SHARE["cpu"])
    possible = math.sqrt(share * device_memory(device) / (memory_per_pixel(model) * batch))
    side = min(max(cheap, _LEAST, recipe.window), max(possible, recipe.window))
    return math.ceil(side / recipe.stride) * recipe.stride


def shared_halo(window: int, halo: int, stride: int) -> int:
    """Half of what two blended windows share, px: the halo, at most an eighth of a window.

    Example:
        >>> shared_halo(512, 128, 32), shared_halo(512, 32, 32)
        (64, 32)
    """
    return min(halo, max(window // 8 // stride, 1) * stride)


def memory_per_pixel(model: Model) -> float:
    """Bytes that the network holds at once for each pixel of a window, at most, in float32; computes no pixel."""
    stride = model.recipe.stride
    side = math.ceil(max(_TRIAL, model.recipe.window) / stride) * stride
    bands = len(model.recipe.bands)
    shadow = copy.deepcopy(model.network).to("meta").eval()
    meter = _Meter()
    try:
        with torch.inference_mode(), meter:
            shadow(torch.empty(1, bands, side, side, device="meta"))
    except (RuntimeError, NotImplementedError):
        # Not every network can be followed without its numbers: what U-Nets need, and a little more.
        return 500.0
    return max(meter.peak / side**2, 1.0)


def device_memory(device: torch.device) -> int:
    """All memory of a device, bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 8 * 2**30


def _smallest_side(model: Model, side: int) -> int:
    """The least side from `side` on, px, that the network can take, at most that of its training."""
    recipe = model.recipe
    bands = len(recipe.bands)
    while side < recipe.window and not takes_window(model.network, side, bands=bands):
        side += recipe.stride
    return side


class _Meter(TorchDispatchMode):
    """Counts the bytes of tensors that are alive while a network runs on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            weakref.finalize(storage, self._sizes.pop, key, None)
            self.peak = max(self.peak, sum(self._sizes.values()))
