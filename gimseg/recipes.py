"""The recipe: what turns a raster into a network's input, and its output into classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gimseg.errors import ModelError
from gimseg.legend import Legend

if TYPE_CHECKING:
    from gimseg.rasters import Pixels


@dataclass(frozen=True)
class Recipe:
    """All that turns a raster into input of a network, and its output into classes.

    Args:
        bands: of the raster, counted from 1, in the network's order.
        mean: of each band over valid pixels, in raster values.
        std: standard deviation of each band, in raster values.
        resolution: ground size of a pixel, metres, or in the unit `crs_unit`.
        window: side of a window, px, a multiple of `stride`.
        halo: border of a window that is thrown away, px, a multiple of `stride`.
        stride: total stride of the network, px.
        legend: what the classes are.
        threshold: a pixel is of the one class of a binary legend above this probability.
        dtype: of the rasters that the model learned from.
        crs_unit: unit of `resolution`: ``"metre"``, or ``"unit"`` for rasters without a CRS.
        blend: no halo holds all that a class depends on (pooled context, attention):
            windows are averaged where they overlap instead of cropped.
        own_levels: each raster is brought to mean 0 and deviation 1 by its own statistics first; `mean` and
            `std` are of what comes of that.

    Raises:
        ModelError: numbers that contradict each other.
    """

    bands: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resolution: float
    window: int
    halo: int
    stride: int
    legend: Legend
    threshold: float = 0.5
    dtype: str = "uint8"
    crs_unit: str = "metre"
    blend: bool = False
    own_levels: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", tuple(int(band) for band in self.bands))
        object.__setattr__(self, "mean", tuple(float(mean) for mean in self.mean))
        object.__setattr__(self, "std", tuple(float(std) for std in self.std))
        self._check_bands()
        self._check_sizes()
        if not 0 < self.threshold < 1:
            raise ModelError(f"threshold {self.threshold}: a probability between 0 and 1 is needed")
        if not (self.resolution > 0 and math.isfinite(self.resolution)):
            raise ModelError(f"resolution {self.resolution}: the size of a pixel on the ground is needed, above 0")

    def _check_bands(self) -> None:
        if not self.bands or min(self.bands) < 1:
            raise ModelError(f"bands {self.bands}: band numbers from 1 are needed")
        if not len(self.bands) == len(self.mean) == len(self.std):
            raise ModelError(f"{len(self.bands)} bands, {len(self.mean)} means, {len(self.std)} deviations: one each")
        for band, mean, std in zip(self.bands, self.mean, self.std, strict=True):
            if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
                raise ModelError(f"band {band}: mean {mean}, standard deviation {std}: it must be finite and vary")

    def _check_sizes(self) -> None:
        if self.stride < 1 or self.window < 1 or self.window % self.stride:
            raise ModelError(f"window of {self.window} px: it must be a multiple of the stride, {self.stride} px")
        if not 0 <= 2 * self.halo < self.window or self.halo % self.stride:
            raise ModelError(
                f"halo of {self.halo} px: a multiple of the stride, {self.stride} px, and less than half of the "
                f"window, {self.window} px, is needed"
            )

    @property
    def activation(self) -> str:
        """``"sigmoid"`` for a binary legend, else ``"softmax"``."""
        return "sigmoid" if self.legend.is_binary else "softmax"

    def prepare(self, pixels: Pixels) -> np.ndarray:
        """Normalised float32 (bands, rows, cols); invalid pixels are 0, the band mean."""
        return self.normalise(torch.from_numpy(pixels.data), torch.from_numpy(pixels.valid)).numpy()

    def normalise(self, values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Raster values (..., bands, rows, cols) of any type to float32; where not `valid`, (..., rows, cols), 0."""
        mean, std = (torch.tensor(numbers, device=values.device).view(-1, 1, 1) for numbers in (self.mean, self.std))
        # Not in place on the values, which may be the caller's; in float32 whatever the network computes in.
        image = values.to(torch.float32) - mean
        image /= std
        return image.masked_fill_(~valid.unsqueeze(-3), 0)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (..., channels, rows, cols) to probabilities in float32, background first.

        A binary legend gives the one channel of its class.
        """
        logits = logits.float()
        return logits.sigmoid() if self.legend.is_binary else logits.softmax(dim=-3)

    def classify(self, logits: torch.Tensor | np.ndarray) -> np.ndarray:
        """Logits (..., channels, rows, cols) to raster values, uint8 (..., rows, cols)."""
        logits = torch.as_tensor(logits)
        if self.legend.is_binary:
            # sigmoid(x) > t is x > log(t / (1 - t)): one comparison, and no rounding near 0 and 1.
            channels = (logits.select(-3, 0) > math.log(self.threshold / (1 - self.threshold))).to(torch.uint8)
        else:
            channels = logits.argmax(dim=-3).to(torch.uint8)
        return self.legend.to_values(channels.cpu().numpy())

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON holds; `from_dict` reads them."""
        table = {item.name: getattr(self, item.name) for item in fields(self)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in table.items()}
        if not self.own_levels:
            # Told only where it is so: other models keep their fingerprint.
            del plain["own_levels"]
        return {**plain, "legend": self.legend.to_dict()}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Recipe:
        """Build from what `to_dict` gave, also after JSON.

        Raises:
            ModelError: a key is missing or unknown, or a value is wrong.
        """
        try:
            return cls(**{**table, "legend": Legend.from_dict(table["legend"])})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"the recipe cannot be read ({error}): was the file edited?") from error
