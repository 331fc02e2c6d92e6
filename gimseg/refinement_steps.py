"""The steps of a refinement: what each takes, how far it looks, what it does. :mod:`gimseg.refinement` chains them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gimseg.errors import RefinementError
from gimseg.legend import UNLABELLED
from gimseg.morphology import Mask, Sides, closed, disk, filled, grown, majority, opened, parted, without_small
from gimseg.probability_filters import Planes, Valid, bell, bilateral, guided, mean_field, total_variation


@dataclass(frozen=True)
class Amount:
    """A number and its unit: ``""``, ``m``, ``m2`` or ``px``.

    Example:
        >>> Amount(2.0, "m").pixels((0.5, 0.25)), Amount(1.0, "m2").pixels((0.5, 0.25))
        (8, 8)
    """

    value: float
    unit: str = ""

    def pixels(self, pixel_m: Sides) -> int:
        """Pixels along the finer side, rounded down, or of an area, rounded up."""
        if self.unit == "px":
            return math.ceil(self.value)
        if self.unit == "m2":
            return math.ceil(self.value / (pixel_m[0] * pixel_m[1]) - 1e-9)
        return math.floor(self.value / min(pixel_m) + 1e-9)

    def sides(self, pixel_m: Sides) -> Sides:
        """Height and width of a pixel in the unit of a length."""
        # Pixels are counted as they are, though their sides differ by a little nearly everywhere.
        return (1.0, 1.0) if self.unit == "px" else pixel_m


class _Brushed(NamedTuple):
    """A filter of masks with a brush."""

    filter: Callable[[Mask, NDArray[np.bool_]], Mask]

    def __call__(self, mask: Mask, brush: NDArray[np.bool_]) -> Mask:
        return self.filter(mask, brush)


class _Sized(NamedTuple):
    """A filter of masks with a least number of pixels."""

    filter: Callable[[Mask, int], Mask]

    def __call__(self, mask: Mask, least: int) -> Mask:
        return self.filter(mask, least)


class Ground(NamedTuple):
    """What a step may look at besides what it refines."""

    valid: Valid
    """(rows, cols)."""
    pixel_m: Sides
    """Height and width of a pixel, m."""
    image: NDArray[np.float32] | None = None
    """(bands, rows, cols) in standard deviations from the mean."""

    def shown(self, step: str) -> NDArray[np.float32]:
        """The image.

        Raises:
            RefinementError: there is none, and `step` needs one.
        """
        if self.image is None:
            raise RefinementError(f"{step} follows the edges of the image, and there is none: leave it out")
        return self.image


@dataclass(frozen=True)
class ProbabilityStep:
    """Probabilities to probabilities."""

    units: ClassVar[dict[str, tuple[str, ...]]] = {}
    of_image: ClassVar[bool] = False
    """Whether it looks at the image too."""


@dataclass(frozen=True)
class Tv(ProbabilityStep):
    """Total-variation denoising, see :func:`gimseg.probability_filters.total_variation`."""

    weight: Amount
    iterations: Amount = Amount(30)
    units: ClassVar[dict[str, tuple[str, ...]]] = {"weight": ("",), "iterations": ("",)}

    def margin(self, pixel_m: Sides) -> int:
        """Pixels around a region that its result depends on."""
        return int(self.iterations.value) + 1

    def __call__(self, planes: Planes, ground: Ground) -> Planes:
        iterations = int(self.iterations.value)
        return total_variation(planes, ground.valid, weight=self.weight.value, iterations=iterations)


@dataclass(frozen=True)
class Guided(ProbabilityStep):
    """Probabilities follow the edges of the image, see :func:`gimseg.probability_filters.guided`."""

    radius: Amount
    softness: Amount = Amount(0.3)
    units: ClassVar[dict[str, tuple[str, ...]]] = {"radius": ("m", "px"), "softness": ("",)}
    of_image = True

    def margin(self, pixel_m: Sides) -> int:
        """Pixels around a region that its result depends on."""
        return 2 * max(1, self.radius.pixels(pixel_m))

    def __call__(self, planes: Planes, ground: Ground) -> Planes:
        radius = max(1, self.radius.pixels(ground.pixel_m))
        brightness = ground.shown("guided").mean(0)
        return guided(planes, ground.valid, brightness, radius=radius, softness=self.softness.value)


@dataclass(frozen=True)
class Bilateral(ProbabilityStep):
    """Mean over what is near and looks alike, see :func:`gimseg.probability_filters.bilateral`."""

    radius: Amount
    contrast: Amount = Amount(0.3)
    units: ClassVar[dict[str, tuple[str, ...]]] = {"radius": ("m", "px"), "contrast": ("",)}
    of_image = True

    def margin(self, pixel_m: Sides) -> int:
        """Pixels around a region that its result depends on."""
        return max(1, self.radius.pixels(pixel_m))

    def __call__(self, planes: Planes, ground: Ground) -> Planes:
        near = bell(self.radius.value, self.radius.sides(ground.pixel_m))
        return bilateral(planes, ground.valid, ground.shown("bilateral"), near=near, contrast=self.contrast.value)


@dataclass(frozen=True)
class Crf(ProbabilityStep):
    """Dense conditional random field, see :func:`gimseg.probability_filters.mean_field`."""

    radius: Amount
    contrast: Amount = Amount(0.3)
    weight: Amount = Amount(3)
    iterations: Amount = Amount(5)
    units: ClassVar[dict[str, tuple[str, ...]]] = {
        "radius": ("m", "px"),
        "contrast": ("",),
        "weight": ("",),
        "iterations": ("",),
    }
    of_image = True

    def margin(self, pixel_m: Sides) -> int:
        """Pixels around a region that its result depends on."""
        # A message comes from within the radius, and what normalises it from within the radius of its sender.
        return (math.ceil(self.iterations.value) + 1) * max(1, self.radius.pixels(pixel_m))

    def __call__(self, planes: Planes, ground: Ground) -> Planes:
        return mean_field(
            planes,
            ground.valid,
            ground.shown("crf"),
            near=bell(self.radius.value, self.radius.sides(ground.pixel_m)),
            contrast=self.contrast.value,
            weight=self.weight.value,
            iterations=math.ceil(self.iterations.value),
        )


@dataclass(frozen=True)
class Hysteresis:
    """Above `low`, if connected within `reach` with what is above `high`; for one class.

    Source: the two thresholds of Canny 1986, doi 10.1109/TPAMI.1986.4767851, for regions instead of
    edges; there nothing bounds how far a connection goes.
    """

    of_image: ClassVar[bool] = False
    low: Amount
    high: Amount
    reach: Amount = Amount(10, "m")
    units: ClassVar[dict[str, tuple[str, ...]]] = {"low": ("",), "high": ("",), "reach": ("m", "px")}

    def margin(self, pixel_m: Sides) -> int:
        """Pixels around a region that its result depends on."""
        return self.reach.pixels(pixel_m)

    def __call__(self, planes: Planes, ground: Ground) -> Mask:
        if len(planes) != 1:
            raise RefinementError(f"hysteresis is for one class, there are {len(planes) - 1}: leave it out")
        above = planes[0] > self.low.value
        found = grown((planes[0] > self.high.value) & ground.valid, above & ground.valid, self.margin(ground.pixel_m))
        return np.where(ground.valid, found.astype(np.uint8), np.uint8(UNLABELLED))


class MaskStep:
    """Classes to classes."""

    of_image: ClassVar[bool] = False


@dataclass(frozen=True)
class _BrushStep(MaskStep):
    radius: Amount
    units: ClassVar[dict[str, tuple[str, ...]]] = {"radius": ("m", "px")}
    work: ClassVar[_Brushed]
    passes: ClassVar[int]

    def margin(self, pixel_m: Sides) -> int:
        """Pixels around a region that its result depends on."""
        return self.passes * self.radius.pixels(pixel_m)

    def __call__(self, mask: Mask, ground: Ground) -> Mask:
        return self.work(mask, disk(self.radius.value, self.radius.sides(ground.pixel_m)))


class Open(_BrushStep):
    """See :func:`gimseg.morphology.opened`."""

    work, passes = _Brushed(opened), 2


class Close(_BrushStep):
    """See :func:`gimseg.morphology.closed`."""

    work, passes = _Brushed(closed), 2


class Majority(_BrushStep):
    """See :func:`gimseg.morphology.majority`."""

    work, passes = _Brushed(majority), 1


@dataclass(frozen=True)
class _AreaStep(MaskStep):
    area: Amount
    units: ClassVar[dict[str, tuple[str, ...]]] = {"area": ("m2", "px")}
    work: ClassVar[_Sized]

    def margin(self, pixel_m: Sides) -> int:
        """Pixels around a region that its result depends on."""
        # A region of fewer pixels than that, one beside the other, goes no further.
        return self.area.pixels(pixel_m) + 1

    def __call__(self, mask: Mask, ground: Ground) -> Mask:
        return self.work(mask, self.area.pixels(ground.pixel_m))


class Drop(_AreaStep):
    """See :func:`gimseg.morphology.without_small`."""

    work = _Sized(without_small)


class Fill(_AreaStep):
    """See :func:`gimseg.morphology.filled`."""

    work = _Sized(filled)


@dataclass(frozen=True)
class Watershed(MaskStep):
    """Objects that touch are parted, see :func:`gimseg.morphology.parted`."""

    longest: Amount
    units: ClassVar[dict[str, tuple[str, ...]]] = {"longest": ("m", "px")}

    def margin(self, pixel_m: Sides) -> int:
        """Pixels around a region that its result depends on."""
        # What leaves a region so much larger is too long to be parted, however it goes on.
        return self.longest.pixels(pixel_m) + 1

    def __call__(self, mask: Mask, ground: Ground) -> Mask:
        rows, cols = (math.floor(self.longest.value / side + 1e-9) for side in self.longest.sides(ground.pixel_m))
        return parted(mask, (rows, cols), ground.pixel_m)


Step = Tv | Guided | Bilateral | Crf | Hysteresis | Open | Close | Majority | Drop | Fill | Watershed
STEPS: dict[str, type[Step]] = {
    "tv": Tv,
    "guided": Guided,
    "bilateral": Bilateral,
    "crf": Crf,
    "hysteresis": Hysteresis,
    "open": Open,
    "close": Close,
    "majority": Majority,
    "drop": Drop,
    "fill": Fill,
    "watershed": Watershed,
}
"""By the names that they are called by."""
