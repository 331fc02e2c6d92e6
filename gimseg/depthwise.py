"""Depthwise convolutions, many of which a CPU learns far faster in float32 than in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import nn


@contextmanager
def depthwise_in_float32(network: nn.Module) -> Iterator[None]:
    """Within it, depthwise convolutions with a stride or a large kernel compute in float32, also under autocast.

    On a CPU their gradients take several times as long in bfloat16, and EfficientNet and MobileNet are made of
    such: ``tests/benchmarks/bench_training_step.py``. What comes out has the type of what goes in.

    Args:
        network: that learns on a CPU in bfloat16.

    Example:
        >>> network = nn.Conv2d(8, 8, 5, groups=8)
        >>> with depthwise_in_float32(network), torch.autocast("cpu", torch.bfloat16):
        ...     network(torch.ones(1, 8, 9, 9)).dtype
        torch.float32
    """
    changed = [part for part in network.modules() if isinstance(part, nn.Conv2d) and _is_slow(part)]
    for part in changed:
        vars(part)["forward"] = MethodType(_in_float32, part)
    try:
        yield
    finally:
        for part in changed:
            del vars(part)["forward"]


def _is_slow(part: nn.Conv2d) -> bool:
    return 1 < part.groups == part.in_channels and (max(part.stride) > 1 or max(part.kernel_size) > 3)


def _in_float32(part: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
    with torch.autocast(images.device.type, enabled=False):
        return type(part).forward(part, images.float()).to(images.dtype)
