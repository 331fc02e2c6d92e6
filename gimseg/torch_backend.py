"""A network as torch computes it: pixels last to first, batch norms folded into convolutions."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gimseg.device_memory import memory_errors
from gimseg.errors import PredictionError
from gimseg.models import Model
from gimseg.networks import takes_window

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SMALL = 64
_ROUNDING = 1e-3


class TorchBackend:
    """The network as torch computes it; a copy, the caller's stays as it is.

    Args:
        model: its network.
        device: where.
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``; the last two by autocast,
            which keeps in float32 what loses by it.

    Raises:
        PredictionError: there is no such precision.
    """

    def __init__(self, model: Model, device: torch.device, precision: str = "float32") -> None:
        if precision not in _DTYPES:
            raise PredictionError(f"precision {precision!r} in torch: {', '.join(_DTYPES)} are there")
        self.name = f"torch {precision}"
        self._device = device
        self._dtype = _DTYPES[precision]
        network = fuse_norms(model.network, small_images(model)).to(device)
        # The order that tensor cores and oneDNN compute in.
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised float32 (N, bands, rows, cols) to float32 (N, channels, rows, cols), on `images`' device.

        Raises:
            DeviceMemoryError: too many images, or too large ones.
        """
        with memory_errors(images), torch.inference_mode(), ExitStack() as settings:
            for setting in (_exactly(self._device), self._autocast()):
                settings.enter_context(setting)
            given = images.to(self._device, memory_format=torch.channels_last)
            return self._network(given).float().to(images.device)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, self._dtype)


def _exactly(device: torch.device) -> AbstractContextManager[object]:
    """The same bytes each time, and float32 that is float32: cuDNN takes TF32 for it where nobody forbids it."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def quick_precision(device: torch.device) -> str:
    """What a GPU computes fastest: bfloat16, which has the range of float32, or float16 where the GPU is too old."""
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def small_images(model: Model) -> torch.Tensor:
    """The smallest noise that the network takes, float32 (1, bands, side, side)."""
    bands, stride = len(model.recipe.bands), model.recipe.stride
    side = max(2 * stride, _SMALL // stride * stride)
    while side < model.recipe.window and not takes_window(model.network, side, bands=bands):
        side *= 2
    side = min(side, model.recipe.window)
    return torch.randn(1, bands, side, side, generator=torch.Generator().manual_seed(0))


def fuse_norms(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """A copy in which each batch norm that follows a convolution is folded into its weights.

    Which does so is seen by running it: tracing by `torch.fx` fails where Python looks at
    a tensor's shape, as in FPN, DeepLabV3+ and most of timm.

    Args:
        network: on the CPU or not; not changed.
        images: (1, bands, rows, cols) that it takes.

    Returns:
        the copy in evaluation mode, without gradients; not fused where its logits would not be the same.

    Example:
        >>> plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
        >>> fuse_norms(plain, torch.zeros(1, 1, 8, 8))
        Sequential(
          (0): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
          (2): ReLU()
        )
    """
    plain = copy.deepcopy(network).eval().requires_grad_(False)
    fused = copy.deepcopy(plain)
    images = images.to(next((weight.device for weight in plain.parameters()), images.device))
    with torch.no_grad():
        for conv, norm in _neighbours(plain, images):
            together = fuse_conv_bn_eval(fused.get_submodule(conv), fused.get_submodule(norm))  # type: ignore[type-var, arg-type]
            fused.set_submodule(conv, together.requires_grad_(False))
            fused.set_submodule(norm, nn.Identity())
        before, after = plain(images), fused(images)
        # A convolution that is used twice, or makes its weights anew, cannot take a norm in.
        same = (before - after).abs().max() <= _ROUNDING * before.abs().max()
    return fused if same else plain


def _neighbours(network: nn.Module, images: torch.Tensor) -> list[tuple[str, str]]:
    """Names of the convolutions whose output a batch norm takes as it is, and of those norms."""
    # Tensors are kept, or another one could get the same id.
    outputs: dict[int, tuple[str, torch.Tensor]] = {}
    pairs: list[tuple[str, str]] = []

    def note_output(name: str, output: torch.Tensor) -> None:
        outputs[id(output)] = (name, output)

    def note_input(name: str, taken: torch.Tensor) -> None:
        if id(taken) in outputs:
            pairs.append((outputs[id(taken)][0], name))

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda _, __, output, name=name: note_output(name, output)))
        # Heirs of BatchNorm2d, as in timm, have their activation inside.
        elif type(module) is nn.BatchNorm2d and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(lambda _, given, name=name: note_input(name, given[0])))
    network(images)
    for hook in hooks:
        hook.remove()
    once = {name for names in zip(*pairs, strict=True) for name in names if names.count(name) == 1}
    return [(conv, norm) for conv, norm in pairs if conv in once and norm in once]
