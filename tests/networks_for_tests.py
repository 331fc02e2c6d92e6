"""Networks whose answer is known, and models around them.

Plain functions: `from networks_for_tests import threshold_model`.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from gimseg.legend import Legend
from gimseg.models import Model, Recipe


def recipe(**changes: Any) -> Recipe:
    """One band, as it is, in pixels of 1 m; a window of 32 px."""
    values: dict[str, Any] = {
        "bands": (1,), "mean": (0.0,), "std": (1.0,), "resolution": 1.0, "window": 32, "halo": 8, "stride": 4,
        "legend": Legend.binary("bright", "#ff0000"),
    }  # fmt: skip
    return Recipe(**values | changes)


class Constant(nn.Module):
    """The same logit everywhere."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(images[:, :1]) + self.logit


class Brightness(nn.Module):
    """The first band less a level: above it, the pixel is of the class."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :1] - self.level


class Reach(nn.Module):
    """`layers` 3x3 convolutions of random sign: a class depends on pixels `layers` away, and not further."""

    def __init__(self, layers: int, seed: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(layers)))
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            layer.weight.data = torch.randn(1, 1, 3, 3, generator=generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class Hungry(Reach):
    """As far-sighted, on a device that holds so many pixels at once."""

    def __init__(self, reach: int, pixels: int) -> None:
        super().__init__(reach)
        self.pixels = pixels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[0] * images.shape[2] * images.shape[3] > self.pixels:
            raise MemoryError
        return super().forward(images)


class Sleepy(Brightness):
    """Takes its time, in one step that Python cannot interrupt."""

    def __init__(self, level: float, seconds: float) -> None:
        super().__init__(level)
        self.seconds = seconds

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return super().forward(images)


def model(network: nn.Module, **changes: Any) -> Model:
    """A model that cannot be saved, which no prediction asks for."""
    return Model(network, recipe(**changes))


def brightness_model(level: float = 127.5, **changes: Any) -> Model:
    """A pixel is of the class where band 1 is above the level."""
    return model(Brightness(level), **changes)
