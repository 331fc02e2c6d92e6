"""One draw for image and labels: what a labelled window could as well have looked like.

An :class:`Augmentation` is the settings, a :class:`Draw` one outcome of them::

    draw = augmentation.draw(rng)
    rows, cols = draw.read_shape(size)       # the window to read, larger or smaller than `size`
    image, valid, labels = draw.apply(image, valid, labels, size=size, mean=mean, std=std)

Who can read a window at any resolution reads it at `draw.zooms` and applies
`draw.without_zoom()`: what is shown larger then shows what the file holds, not
smoothed pixels.

Image, validity and labels go through the same geometry (the image bilinearly, the
others by nearest neighbour, all on pixel centres); only the image changes colour
(:mod:`gimseg.colours`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gimseg.colours import Colour
from gimseg.errors import DatasetError
from gimseg.legend import UNLABELLED

_SEEDS = 1 << 62


@dataclass(frozen=True)
class Augmentation:
    """How far a window may be changed; the defaults suit aerial and satellite images seen from above.

    Attributes:
        flips: mirror images.
        right_angles: turns by 90, 180, 270 degrees. With flips: all 8 of the square.
        scale: least and greatest zoom; 1.25 shows things 1.25 times as large.
        aspect: greatest factor by which things are stretched along one axis against the
            other, as its logarithm.
        rotation: greatest turn by any angle, degrees; 0 keeps pixels sharp.
        contrast: greatest change of the factor on all bands, as its logarithm.
        brightness: greatest shift of all bands, standard deviations.
        band_contrast: as contrast, for each band apart.
        band_brightness: as brightness, for each band apart (a colour cast).
        gamma: greatest bend of the tone curve, 0 to below 1: 0.3 gives dark pixels
            0.7 and bright ones 1.3 of their contrast, or the other way round.
        saturation: greatest change of the distance of a pixel from grey, as a share; RGB only.
        grey: share of the windows that lose all colour; RGB only.
        levelled: share of the windows whose bands are brought to mean 0 and deviation 1 before
            they are changed, so that no site is known by its light.
        hue: greatest turn of the colours about the grey axis, degrees; RGB only.
        blur: greatest blurring, 0 to 1; 1 is a 3 x 3 binomial filter.
        sharpening: greatest sharpening, 0 to 4: so many times what that filter takes away is added.
        coarseness: greatest factor by which the image loses resolution, 1 to 8; half of the
            windows keep theirs.
        noise: greatest standard deviation of pixel noise, standard deviations of the band.
        noisy: share of the windows with noise.

    Example:
        >>> draw = Augmentation(scale=(0.5, 0.5)).draw(np.random.default_rng(0))
        >>> draw.read_shape((384, 384))
        (768, 768)
    """

    flips: bool = True
    right_angles: bool = True
    scale: tuple[float, float] = (0.8, 1.25)
    rotation: float = 0.0
    contrast: float = 0.25
    brightness: float = 0.4
    band_contrast: float = 0.1
    band_brightness: float = 0.15
    gamma: float = 0.3
    saturation: float = 0.3
    grey: float = 0.05
    blur: float = 0.3
    noise: float = 0.1
    noisy: float = 0.3
    aspect: float = 0.0
    hue: float = 0.0
    sharpening: float = 0.3
    coarseness: float = 1.0
    levelled: float = 0.0

    def __post_init__(self) -> None:
        if not (len(self.scale) == 2 and 0.1 <= self.scale[0] <= self.scale[1] <= 10):
            raise DatasetError(f"scale is {self.scale}, needed is (least, greatest) zoom between 0.1 and 10")
        for setting in fields(self):
            value = getattr(self, setting.name)
            least, most = _RANGES.get(setting.name, (0.0, 10.0))
            if isinstance(value, int | float) and not least <= value <= most:
                raise DatasetError(f"{setting.name} is {value:g}, needed is {least:g} to {most:g}")

    @classmethod
    def none(cls) -> Augmentation:
        """The settings that leave every window as it is."""
        return cls.geometry_only(flips=False, right_angles=False, scale=(1.0, 1.0))

    @classmethod
    def geometry_only(
        cls,
        *,
        flips: bool = True,
        right_angles: bool = True,
        scale: tuple[float, float] = (0.8, 1.25),
        rotation: float = 0.0,
        aspect: float = 0.0,
    ) -> Augmentation:
        """Settings under which colours stay."""
        still = {name: _RANGES.get(name, (0.0, 10.0))[0] for name in _COLOUR_SETTINGS}
        return cls(flips, right_angles, scale, rotation, aspect=aspect, **still)

    def draw(self, rng: np.random.Generator) -> Draw:
        """One outcome; the same state of `rng` gives the same."""
        turns = int(rng.integers(4))
        if not self.right_angles:
            # A half turn and a mirror make the other flip.
            turns = turns // 2 * 2 if self.flips else 0
        low, high = self.scale
        return Draw(
            mirrored=bool(rng.random() < 0.5) and self.flips,
            quarter_turns=turns,
            zoom=low if low == high else float(np.exp(rng.uniform(math.log(low), math.log(high)))),
            angle=_around_zero(rng, self.rotation),
            colour=self._draw_colour(rng),
            stretch=math.exp(_around_zero(rng, self.aspect)),
        )

    def _draw_colour(self, rng: np.random.Generator) -> Colour:
        greyed = rng.random() < self.grey
        noisy = rng.random() < self.noisy
        return Colour(
            gain=math.exp(_around_zero(rng, self.contrast)),
            offset=_around_zero(rng, self.brightness),
            bend=_around_zero(rng, self.gamma),
            greyness=1.0 if greyed else _around_zero(rng, self.saturation),
            softness=_between(rng, -self.sharpening, self.blur),
            noise=float(rng.uniform(0, self.noise)) if noisy else 0.0,
            band_contrast=self.band_contrast,
            band_brightness=self.band_brightness,
            seed=int(rng.integers(_SEEDS)),
            hue=_around_zero(rng, self.hue),
            coarseness=max(1.0, math.exp(_around_zero(rng, math.log(self.coarseness)))),
            levelled=bool(rng.random() < self.levelled),
        )


@dataclass(frozen=True)
class Draw:
    """One outcome of an :class:`Augmentation`; the default is the identity.

    Attributes:
        mirrored: columns are reversed (before the turns).
        quarter_turns: turns by 90 degrees, anticlockwise, 0 to 3.
        zoom: how much larger things appear.
        angle: further turn, degrees, anticlockwise.
        colour: what happens to the image alone.
        stretch: how many times wider than high a square becomes (before the turns).
    """

    mirrored: bool = False
    quarter_turns: int = 0
    zoom: float = 1.0
    angle: float = 0.0
    colour: Colour = field(default_factory=Colour)
    stretch: float = 1.0

    @property
    def zooms(self) -> tuple[float, float]:
        """How much larger things appear along (rows, cols), before the turns.

        Example:
            >>> Draw(zoom=2.0, stretch=4.0).zooms
            (1.0, 4.0)
        """
        root = math.sqrt(self.stretch)
        return self.zoom / root, self.zoom * root

    def without_zoom(self) -> Draw:
        """The same draw for a window that was read at `zooms`."""
        return replace(self, zoom=1.0, stretch=1.0)

    def read_shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (rows, cols) to read so that `size` is filled after zoom and turn.

        Example:
            >>> Draw(zoom=2.0, quarter_turns=1).read_shape((100, 60))
            (30, 50)
            >>> Draw(angle=45.0).read_shape((100, 100))
            (142, 142)
        """
        rows, cols = self._before_turns(size)
        down, across = self.zooms
        if not self.angle:
            return max(1, round(rows / down)), max(1, round(cols / across))
        cos, sin = abs(math.cos(math.radians(self.angle))), abs(math.sin(math.radians(self.angle)))
        return math.ceil((rows * cos + cols * sin) / down), math.ceil((rows * sin + cols * cos) / across)

    def apply(
        self,
        image: Tensor,
        valid: Tensor,
        labels: Tensor,
        *,
        size: tuple[int, int] | None = None,
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The window after this draw; the tensors given stay as they are.

        Args:
            image: (bands, rows, cols), float32; what invalid pixels hold does not matter.
            valid: (rows, cols), bool.
            labels: (rows, cols), uint8; 255 unlabelled.
            size: (rows, cols) of the result. Without a free angle the whole window is
                resized to it, so read `read_shape(size)`; with one, what the window
                does not reach becomes invalid and unlabelled. None: that of `image`.
            mean, std: of each band, in the unit of the image; 0 and 1 without them
                (an image that is normalised already).

        Returns:
            image ``(bands, *size)`` with the band's mean where invalid, valid ``(*size)``, labels ``(*size)``.

        Raises:
            DatasetError: shapes that do not fit.
        """
        _check_shapes(image, valid, labels)
        target = self._before_turns(size or _turned(image.shape[-2:], self.quarter_turns))
        means, stds = _per_band(mean, 0.0, len(image)), _per_band(std, 1.0, len(image))
        if self.angle or target != image.shape[-2:] or not self.colour.is_identity:
            image = torch.where(valid, (image - means) / stds, 0)
            image, valid, labels = self._resample(image, valid, labels, target)
            if not self.colour.is_identity:
                image = self.colour.apply(image)
            image = torch.addcmul(means, image, stds)
        image, valid, labels = (self._turn(plane) for plane in (image, valid, labels))
        return torch.where(valid, image, means), valid, labels

    def _before_turns(self, size: Sequence[int]) -> tuple[int, int]:
        return _turned(size, self.quarter_turns)

    def _turn(self, plane: Tensor) -> Tensor:
        if self.mirrored:
            plane = plane.flip(-1)
        return torch.rot90(plane, self.quarter_turns, (-2, -1)).contiguous()

    def _resample(
        self, image: Tensor, valid: Tensor, labels: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """To `size`; `image` is 0 where invalid, and invalid pixels take no part in their neighbours' values."""
        if not self.angle and size == image.shape[-2:]:
            return image, valid, labels
        whole = bool(valid.all()) and not self.angle
        planes = image if whole else torch.cat([image, valid[None].to(image.dtype)])
        if self.angle:
            grid = self._sampling_grid(image.shape[-2:], size)
            planes = F.grid_sample(planes[None], grid, align_corners=False)[0]
            codes = torch.stack([valid.float(), labels.float() - UNLABELLED])[None]
            codes = F.grid_sample(codes, grid, mode="nearest", align_corners=False)[0]
            valid, labels = codes[0] > 0.5, (codes[1] + UNLABELLED).round().to(labels.dtype)
        else:
            shrinks = size[0] < image.shape[-2] or size[1] < image.shape[-1]
            planes = F.interpolate(planes[None], size, mode="bilinear", antialias=shrinks)[0]
            # "nearest" would take the corner of a pixel for its centre and shift the labels by up to half a pixel.
            codes = F.interpolate(torch.stack([valid.to(labels.dtype), labels])[None], size, mode="nearest-exact")[0]
            valid, labels = codes[0] > 0, codes[1]
        if whole:
            return planes, valid, labels
        shares = planes[-1:]
        return torch.where(valid, planes[:-1] / shares.clamp_min(1e-3), 0), valid, labels

    def _sampling_grid(self, given: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Where each output pixel is found in the window, as (1, *size, 2) in grid_sample's -1 to 1."""
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        # Pixels of the window before its zoom: what is stretched is turned after that.
        rows, cols = (length * zoom for length, zoom in zip(given, self.zooms, strict=True))
        out_rows, out_cols = size
        across = [cos * out_cols / cols, -sin * out_rows / cols, 0.0]
        down = [sin * out_cols / rows, cos * out_rows / rows, 0.0]
        matrix = torch.tensor([[across, down]])
        return F.affine_grid(matrix, [1, 1, *size], align_corners=False)


_GEOMETRY_SETTINGS = ("flips", "right_angles", "scale", "rotation", "aspect")
_COLOUR_SETTINGS = tuple(item.name for item in fields(Augmentation) if item.name not in _GEOMETRY_SETTINGS)
_RANGES = {
    "rotation": (0.0, 180.0),
    "aspect": (0.0, 1.0),
    "gamma": (0.0, 0.9),
    "saturation": (0.0, 1.0),
    "grey": (0.0, 1.0),
    "hue": (0.0, 180.0),
    "levelled": (0.0, 1.0),
    "blur": (0.0, 1.0),
    "sharpening": (0.0, 4.0),
    "coarseness": (1.0, 8.0),
    "noisy": (0.0, 1.0),
}


def _around_zero(rng: np.random.Generator, most: float) -> float:
    # Draws even when the setting is 0, so that one setting does not change the outcome of the others.
    return float(rng.uniform(-1, 1)) * most if most else 0.0 * float(rng.uniform(-1, 1))


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """As often below 0 as above."""
    side = float(rng.uniform(-1, 1))
    return side * high if side > 0 else -side * low


def _turned(size: Sequence[int], quarter_turns: int) -> tuple[int, int]:
    rows, cols = int(size[0]), int(size[1])
    return (cols, rows) if quarter_turns % 2 else (rows, cols)


def _per_band(values: Sequence[float] | Tensor | None, default: float, bands: int) -> Tensor:
    column = torch.as_tensor([default] * bands if values is None else values, dtype=torch.float32).flatten()
    if len(column) != bands:
        raise DatasetError(f"the image has {bands} bands, its mean or deviation {len(column)}; needed is one a band")
    return column[:, None, None]


def _check_shapes(image: Tensor, valid: Tensor, labels: Tensor) -> None:
    if image.ndim != 3 or valid.shape != image.shape[1:] or labels.shape != image.shape[1:]:
        raise DatasetError(
            f"image is {tuple(image.shape)}, valid {tuple(valid.shape)}, labels {tuple(labels.shape)}; "
            "needed are (bands, rows, cols), (rows, cols) and (rows, cols)"
        )
    if not image.is_floating_point() or valid.dtype != torch.bool or labels.dtype != torch.uint8:
        raise DatasetError(
            f"image is {image.dtype}, valid {valid.dtype}, labels {labels.dtype}; needed are float32, bool and uint8"
        )
