"""Post-processing of probabilities and masks: named steps in a chain, ``"tv(0.1), open(1 m), fill(4 m2)"``.

Every step states how far it looks, its margin. A region that is refined with the
margin of the whole chain around it comes out as the whole raster would: there are no
seams, and memory is that of a region.

========================  ===================================================================================
step                      what it does
========================  ===================================================================================
``tv(0.1)``               total-variation denoising of the probabilities, by this weight
``guided(1 m)``           probabilities follow the edges of the image within this distance
``bilateral(2 m, 0.1)``   mean of the probabilities within this distance where the image differs by about 0.1
``crf(2 m, 0.1)``         dense conditional random field: what lies so near and looks so alike is one class
``hysteresis(0.3, 0.6)``  above 0.3, if connected within 10 m (``reach=``) with what is above 0.6
``open(1 m)``             what is thinner than twice this becomes background
``close(1 m)``            gaps thinner than twice this are closed
``majority(1 m)``         each pixel takes the class that most within this distance have
``drop(10 m2)``           regions below this area become background
``fill(4 m2)``            holes below this area are filled
``watershed(40 m)``       objects that touch are parted at their necks, if they are no longer than this together
========================  ===================================================================================

Steps of probabilities come before steps of masks. Lengths are in ``m`` or ``px``,
areas in ``m2`` or ``px``; differences of the image in standard deviations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from gimseg.errors import RefinementError
from gimseg.legend import UNLABELLED
from gimseg.morphology import Mask, Sides
from gimseg.probability_filters import Planes
from gimseg.refinement_steps import STEPS, Amount, Ground, Hysteresis, MaskStep, ProbabilityStep, Step

__all__ = ["STEPS", "Amount", "Ground", "Refinement", "Step"]


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
                f"the steps {self}: those of probabilities ({_names(ProbabilityStep)}) come first, then hysteresis, "
                f"once, then those of masks ({_names(MaskStep)})"
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

    @classmethod
    def of(cls, given: Refinement | str | None) -> Refinement:
        """A chain as it is or as a person writes it; one without steps for None.

        Raises:
            RefinementError: the text is not understood.
        """
        return given if isinstance(given, Refinement) else cls.parse(given or "")

    @property
    def of_probabilities(self) -> bool:
        """Whether probabilities are needed, and not a mask alone."""
        return any(_rank(step) < 2 for step in self.steps)

    @property
    def needs_image(self) -> bool:
        """Whether a step looks at the image."""
        return any(step.of_image for step in self.steps)

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
            if isinstance(step, MaskStep):
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
                f"{self}: {_names(ProbabilityStep)} and hysteresis need probabilities, there is a mask: leave them out"
            )
        ground = Ground(mask != UNLABELLED, pixel_m)
        for step in self.steps:
            if isinstance(step, MaskStep):
                mask = step(mask, ground)
        return mask

    def __str__(self) -> str:
        return ", ".join(map(_written, self.steps))


def _masked(planes: Planes, ground: Ground, classify: Callable[[Planes], NDArray[np.uint8]] | None) -> Mask:
    values = (classify or _likeliest)(planes)
    return np.where(ground.valid, values, np.uint8(UNLABELLED))


def _likeliest(planes: Planes) -> NDArray[np.uint8]:
    return (planes[0] > 0.5 if len(planes) == 1 else planes.argmax(0)).astype(np.uint8)


def _names(kind: type) -> str:
    """Of all steps of a kind, for people."""
    return ", ".join(name for name, step in STEPS.items() if issubclass(step, kind))


def _rank(step: Step) -> int:
    return 2 if isinstance(step, MaskStep) else 1 if isinstance(step, Hysteresis) else 0


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
