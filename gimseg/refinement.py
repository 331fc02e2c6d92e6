"""Post-processing of probabilities and masks: named steps in a chain, ``"tv(0.1), open(1 m), fill(4 m2)"``.

Every step states how far it looks, its margin. A region that is refined with the
margin of the whole chain around it comes out as the whole raster would: there are no
seams, and memory is that of a region.

========================  =========================================================================
step                      what it does
========================  =========================================================================
``tv(0.1)``               total-variation denoising of the probabilities, by this weight
``guided(1 m)``           probabilities follow the edges of the image within this distance
``hysteresis(0.3, 0.6)``  above 0.3, if connected within 10 m (``reach=``) with what is above 0.6
``open(1 m)``             what is thinner than twice this becomes background
``close(1 m)``            gaps thinner than twice this are closed
``majority(1 m)``         each pixel takes the class that most within this distance have
``drop(10 m2)``           regions below this area become background
``fill(4 m2)``            holes below this area are filled
========================  =========================================================================

Steps of probabilities come before steps of masks. Lengths are in ``m`` or ``px``,
areas in ``m2`` or ``px``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gimseg.errors import RefinementError
from gimseg.legend import UNLABELLED
from gimseg.morphology import Mask, Sides, closed, disk, filled, grown, majority, opened, without_small
from gimseg.probability_filters import Planes, Valid, guided, total_variation


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


@dataclass(frozen=True)
class _ProbabilityStep:
    """Probabilities to probabilities."""

    units: ClassVar[dict[str, tuple[str, ...]]] = {}


@dataclass(frozen=True)
class Tv(_ProbabilityStep):
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
class Guided(_ProbabilityStep):
    """Probabilities follow the edges of the image, see :func:`gimseg.probability_filters.guided`."""

    radius: Amount
    softness: Amount = Amount(0.3)
    units: ClassVar[dict[str, tuple[str, ...]]] = {"radius": ("m", "px"), "softness": ("",)}

    def margin(self, pixel_m: Sides) -> int:
        """Pixels around a region that its result depends on."""
        return 2 * max(1, self.radius.pixels(pixel_m))

    def __call__(self, planes: Planes, ground: Ground) -> Planes:
        if ground.image is None:
            raise RefinementError("guided follows the edges of the image, and there is none: leave it out")
        radius = max(1, self.radius.pixels(ground.pixel_m))
        brightness = ground.image.mean(0)
        return guided(planes, ground.valid, brightness, radius=radius, softness=self.softness.value)


@dataclass(frozen=True)
class Hysteresis:
    """Above `low`, if connected within `reach` with what is above `high`; for one class."""

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


@dataclass(frozen=True)
class _BrushStep:
    radius: Amount
    units: ClassVar[dict[str, tuple[str, ...]]] = {"radius": ("m", "px")}
    work: ClassVar[_Brushed]
    passes: ClassVar[int]

    def margin(self, pixel_m: Sides) -> int:
        """Pixels around a region that its result depends on."""
        return self.passes * self.radius.pixels(pixel_m)

    def __call__(self, mask: Mask, ground: Ground) -> Mask:
        # Pixels are counted as they are, though their sides differ by a little nearly everywhere.
        sides = (1.0, 1.0) if self.radius.unit == "px" else ground.pixel_m
        return self.work(mask, disk(self.radius.value, sides))


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
class _AreaStep:
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


Step = Tv | Guided | Hysteresis | Open | Close | Majority | Drop | Fill
STEPS: dict[str, type[Step]] = {
    "tv": Tv,
    "guided": Guided,
    "hysteresis": Hysteresis,
    "open": Open,
    "close": Close,
    "majority": Majority,
    "drop": Drop,
    "fill": Fill,
}
_OF_MASKS = (Open, Close, Majority, Drop, Fill)


@dataclass(frozen=True)
class Refinement:
    """A chain of steps.

    Args:
        steps: those of probabilities first, then at most one ``hysteresis``, then those of masks.

    Raises:
        RefinementError: steps in another order.

    Example:
        >>> chain = Refinement.parse("tv(0.1), open(1 m), fill(4 m2)")
        >>> str(chain), chain.margin((0.5, 0.5))
        ('tv(0.1), open(1 m), fill(4 m2)', 52)
    """

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        ranks = [_rank(step) for step in self.steps]
        if ranks != sorted(ranks) or ranks.count(1) > 1:
            raise RefinementError(
                f"the steps {self}: those of probabilities (tv, guided) come first, then hysteresis, once, then those "
                "of masks (open, close, majority, drop, fill)"
            )

    @classmethod
    def parse(cls, text: str) -> Refinement:
        """Read a chain as a person writes it.

        Raises:
            RefinementError: a step, number or unit that is not known.
        """
        pieces = re.findall(r"\s*([a-z]+)\s*\(([^()]*)\)\s*(?:,|$)", text)
        if re.sub(r"\s*([a-z]+)\s*\(([^()]*)\)\s*(?:,|$)", "", text).strip():
            raise RefinementError(f"refine {text!r} is not understood: write it like 'tv(0.1), open(1 m), fill(4 m2)'")
        return cls(tuple(_parse_step(name, arguments) for name, arguments in pieces))

    @property
    def of_probabilities(self) -> bool:
        """Whether probabilities are needed, and not a mask alone."""
        return any(_rank(step) < 2 for step in self.steps)

    @property
    def needs_image(self) -> bool:
        """Whether a step looks at the image."""
        return any(isinstance(step, Guided) for step in self.steps)

    @property
    def needs_metres(self) -> bool:
        """Whether a length or an area is given in metres."""
        return any(getattr(step, item.name).unit in ("m", "m2") for step in self.steps for item in fields(step))

    def check_classes(self, classes: int) -> None:
        """Refuse a chain that is not for so many classes, without the background.

        Raises:
            RefinementError: a step is for one class alone.
        """
        if classes > 1 and any(isinstance(step, Hysteresis) for step in self.steps):
            raise RefinementError(f"hysteresis is for one class, there are {classes}: leave it out")

    def margin(self, pixel_m: Sides) -> int:
        """Pixels around a region that its result depends on."""
        return sum(step.margin(pixel_m) for step in self.steps)

    def apply(
        self, planes: Planes, ground: Ground, classify: Callable[[Planes], NDArray[np.uint8]] | None = None
    ) -> Mask:
        """Probabilities of a region to its mask.

        Args:
            planes: float32 (channels, rows, cols): one channel for a binary legend, else the
                background first.
            ground: of the region.
            classify: probabilities to values (rows, cols); above one half, or the likeliest, by default.

        Returns:
            uint8 (rows, cols); 255 where invalid.
        """
        mask: Mask | None = None
        for step in self.steps:
            if isinstance(step, _OF_MASKS):
                mask = step(_masked(planes, ground, classify) if mask is None else mask, ground)
            elif isinstance(step, Hysteresis):
                mask = step(planes, ground)
            else:
                planes = step(planes, ground)
        return _masked(planes, ground, classify) if mask is None else mask

    def apply_mask(self, mask: Mask, pixel_m: Sides) -> Mask:
        """A mask to a mask, uint8 (rows, cols).

        Raises:
            RefinementError: a step needs probabilities.
        """
        if self.of_probabilities:
            raise RefinementError(
                f"{self}: tv, guided and hysteresis need probabilities, there is a mask: leave them out"
            )
        ground = Ground(mask != UNLABELLED, pixel_m)
        for step in self.steps:
            if isinstance(step, _OF_MASKS):
                mask = step(mask, ground)
        return mask

    def __str__(self) -> str:
        return ", ".join(map(_written, self.steps))


def _masked(planes: Planes, ground: Ground, classify: Callable[[Planes], NDArray[np.uint8]] | None) -> Mask:
    values = (classify or _likeliest)(planes)
    return np.where(ground.valid, values, np.uint8(UNLABELLED))


def _likeliest(planes: Planes) -> NDArray[np.uint8]:
    return (planes[0] > 0.5 if len(planes) == 1 else planes.argmax(0)).astype(np.uint8)


def _rank(step: Step) -> int:
    return 2 if isinstance(step, _OF_MASKS) else 1 if isinstance(step, Hysteresis) else 0


def _written(step: Step) -> str:
    name = next(name for name, kind in STEPS.items() if type(step) is kind)
    parts: list[str] = []
    for item in fields(step):
        amount = getattr(step, item.name)
        if amount != item.default:
            text = f"{amount.value:g} {amount.unit}".strip()
            parts.append(text if item.name == fields(step)[len(parts)].name else f"{item.name}={text}")
    return f"{name}({', '.join(parts)})"


def _parse_step(name: str, arguments: str) -> Step:
    kind = STEPS.get(name)
    if kind is None:
        raise RefinementError(f"refinement step {name!r} is unknown: give one of {', '.join(STEPS)}")
    names = [item.name for item in fields(kind)]
    given: dict[str, Amount] = {}
    for place, argument in enumerate(filter(None, (part.strip() for part in arguments.split(",")))):
        key, _, text = argument.rpartition("=")
        key = key.strip() or (names[place] if place < len(names) else "")
        if key not in names or key in given:
            raise RefinementError(f"{name}({arguments}): it takes {', '.join(names)}, each once")
        given[key] = _parse_amount(name, key, text.strip(), kind.units[key])
    missing = [item.name for item in fields(kind) if item.name not in given and not isinstance(item.default, Amount)]
    if missing:
        raise RefinementError(f"{name}({arguments}): {missing[0]} is missing, in {_units(kind.units[missing[0]])}")
    return kind(**given)  # type: ignore[arg-type]


def _parse_amount(step: str, key: str, text: str, units: Iterable[str]) -> Amount:
    found = re.fullmatch(r"([0-9.]+(?:e-?[0-9]+)?)\s*([a-z]*2?)", text.replace("²", "2"))
    try:
        amount = Amount(float(found[1]), found[2]) if found else None
    except ValueError:
        amount = None
    if amount is None or amount.unit not in units or amount.value <= 0:
        raise RefinementError(f"{step}: {key} is {text!r}: a number above 0 is needed, in {_units(units)}")
    return amount


def _units(units: Iterable[str]) -> str:
    return " or ".join(unit or "no unit" for unit in units)
