"""What happens to the colours of one window: one outcome of an augmentation, or none.

Colours change in units of the standard deviation of each band, so that the same
settings suit uint8, reflectances in uint16, and any number of bands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Luminance and the like make no sense for bands that nobody can name: greying is for RGB.
_RGB = 3


@dataclass(frozen=True)
class Colour:
    """One outcome of the colour settings; the default changes nothing.

    Attributes:
        gain, offset, bend, greyness, softness, noise: what happens to all bands.
        hue: turn of the colours about the grey axis, degrees.
        coarseness: factor by which the image loses resolution.
        levelled: whether each band is brought to mean 0 and deviation 1 first.
        band_contrast, band_brightness: how far each band may differ from that.
        seed: of what each band and pixel gets of its own.
    """

    gain: float = 1.0
    offset: float = 0.0
    bend: float = 0.0
    greyness: float = 0.0
    softness: float = 0.0
    noise: float = 0.0
    band_contrast: float = 0.0
    band_brightness: float = 0.0
    seed: int = 0
    hue: float = 0.0
    coarseness: float = 1.0
    levelled: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether it leaves every image as it is."""
        return replace(self, seed=0) == Colour()

    def apply(self, image: Tensor) -> Tensor:
        """A new image; `image` is (bands, rows, cols) in standard deviations from the mean."""
        bands = len(image)
        rng = np.random.default_rng(self.seed)
        gains = self.gain * np.exp(rng.uniform(-1, 1, bands) * self.band_contrast)
        offsets = self.offset + rng.uniform(-1, 1, bands) * self.band_brightness
        if self.levelled:
            image = _levelled(image)
        image = torch.addcmul(_column(offsets), image, _column(gains))
        if self.bend:
            # Rises everywhere, and keeps its slope within 1 ± bend: no range needs to be known, none is cut off.
            image.add_((image.square().add_(1).sqrt_()).sub_(1), alpha=self.bend)
        if self.hue and bands == _RGB:
            image = torch.einsum("ab,bij->aij", _hue_turn(self.hue), image)
        if self.greyness and bands == _RGB:
            image.lerp_(image.mean(0, keepdim=True).expand_as(image), self.greyness)
        if self.coarseness > 1:
            image = _coarsened(image, self.coarseness)
        if self.softness:
            _soften(image, self.softness)
        if self.noise:
            generator = torch.Generator().manual_seed(self.seed)
            image.add_(torch.empty_like(image).normal_(generator=generator), alpha=self.noise)
        return image


def _levelled(image: Tensor) -> Tensor:
    """Each band with mean 0 and deviation 1, but for bands that hardly change at all."""
    deviation, mean = torch.std_mean(image, dim=(1, 2), correction=0, keepdim=True)
    return (image - mean) / (deviation + 0.1)


def _column(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))[:, None, None]


def _hue_turn(degrees: float) -> Tensor:
    """The rotation (3, 3) about the axis on which all bands are equal."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    same, other = cos + (1 - cos) / 3, sin / math.sqrt(3)
    before, after = (1 - cos) / 3 - other, (1 - cos) / 3 + other
    return torch.tensor([[same, before, after], [after, same, before], [before, after, same]])


def _coarsened(image: Tensor, factor: float) -> Tensor:
    """As a camera sees it whose pixels are `factor` times as large."""
    rows, cols = image.shape[1:]
    small = (max(1, round(rows / factor)), max(1, round(cols / factor)))
    small_image = F.interpolate(image[None], small, mode="bilinear", antialias=True)
    return F.interpolate(small_image, (rows, cols), mode="bilinear")[0]


def _soften(image: Tensor, softness: float) -> None:
    """In place, towards (below 0: away from) a 3 x 3 binomial filter, edges repeated; 1 is the filter."""
    for axis in (1, 2):
        inner = image.shape[axis] - 1
        if inner:
            # A quarter of the step to each neighbour: the kernel (s/4, 1 - s/2, s/4).
            steps = image.diff(dim=axis).mul_(softness / 4)
            image.narrow(axis, 0, inner).add_(steps)
            image.narrow(axis, 1, inner).sub_(steps)
