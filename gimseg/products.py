"""What a prediction gives: classes, and where asked for their probabilities and how sure they are.

Everything is encoded where the network ran, so that only bytes travel: a *plane* is
uint8 (rows, cols). The first holds raster values of classes; shares of 0 to 1 follow in
steps of 1/250. 255 is "nothing to say" in each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from gimseg.errors import PredictionError
from gimseg.legend import BACKGROUND, UNLABELLED, Legend
from gimseg.recipes import Recipe

STEPS = 250
"""A share of 1 as uint8."""
SCALE = 1 / STEPS
"""A share is its uint8 value times this; written as the scale of a GeoTIFF's band."""

Uncertainty = Literal["entropy", "margin"]


@dataclass(frozen=True)
class Products:
    """What is kept of each pixel; a value that belongs to no legend yet.

    The first plane holds the classes and becomes the mask.

    Args:
        probabilities: a plane for each class.
        uncertainty: a plane of it. ``"entropy"``: 0 where one channel has all the
            probability, 1 where all have the same. ``"margin"``: 1 less the
            difference of the two most probable channels.
        threshold: of all classes, or by class name; None: that of the recipe for a
            binary legend. A class with a threshold is a candidate where its
            probability is above it; one without, where it is more probable than
            background. The most probable candidate is taken, background where there is
            none. Without any threshold that is the most probable channel.

    Raises:
        PredictionError: a threshold is no probability, or there is no such uncertainty.

    Example:
        >>> Products(probabilities=True, uncertainty="margin").planes(Legend.binary("roof"))
        ('classes', 'roof', 'uncertainty')
    """

    probabilities: bool = False
    uncertainty: Uncertainty | None = None
    threshold: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.uncertainty not in (None, *get_args(Uncertainty)):
            raise PredictionError(f"uncertainty {self.uncertainty!r}: entropy or margin is needed")
        given = self.threshold
        for threshold in () if given is None else given.values() if isinstance(given, Mapping) else (given,):
            if not isinstance(threshold, int | float) or not 0 < threshold < 1:
                raise PredictionError(f"threshold {threshold!r}: a probability between 0 and 1 is needed")

    def planes(self, legend: Legend) -> tuple[str, ...]:
        """Names of the planes, in order."""
        named = legend.names if self.probabilities else ()
        return ("classes", *named, *(("uncertainty",) if self.uncertainty else ()))

    @property
    def names(self) -> tuple[str, ...]:
        """What there is besides the classes."""
        asked = {"probabilities": self.probabilities, "uncertainty": self.uncertainty is not None}
        return tuple(name for name, wanted in asked.items() if wanted)

    def files(self, mask: Path) -> dict[str, Path]:
        """Files beside the mask, by what they hold.

        Example:
            >>> Products(uncertainty="margin").files(Path("out/big.tif"))["uncertainty"].as_posix()
            'out/big_uncertainty.tif'
        """
        return {name: mask.with_name(f"{mask.stem}_{name}.tif") for name in self.names}

    def thresholds(self, recipe: Recipe) -> tuple[float | None, ...]:
        """Of the classes, in legend order.

        Raises:
            LegendError: a threshold was given for a class that there is not.

        Example:
            >>> from gimseg.recipes import Recipe
            >>> legend = Legend.from_dict({"classes": ["tin", "tile"]})
            >>> recipe = Recipe((1,), (0,), (1,), 1.0, 64, 8, 4, legend)
            >>> Products(threshold={"Tile": 0.4}).thresholds(recipe)
            (None, 0.4)
        """
        legend = recipe.legend
        default = recipe.threshold if legend.is_binary else None
        if not isinstance(self.threshold, Mapping):
            return (default if self.threshold is None else float(self.threshold),) * len(legend.classes)
        given = {legend.find(name).name: float(threshold) for name, threshold in self.threshold.items()}
        return tuple(given.get(name, default) for name in legend.names)

    def encode(self, probabilities: torch.Tensor, recipe: Recipe) -> torch.Tensor:
        """Probabilities to planes, on the device where they are.

        Args:
            probabilities: float32 (N, channels, rows, cols) as :meth:`Recipe.probabilities` gives them.
            recipe: legend and threshold.

        Returns:
            uint8 (N, planes, rows, cols).
        """
        planes = [self.decide(probabilities, recipe)[:, None]]
        if self.probabilities:
            planes.append(_to_bytes(probabilities[:, -len(recipe.legend.classes) :]))
        if self.uncertainty:
            planes.append(_to_bytes(_uncertainty(probabilities, self.uncertainty)))
        return torch.cat(planes, dim=1)

    def decide(self, probabilities: torch.Tensor, recipe: Recipe) -> torch.Tensor:
        """Probabilities (N, channels, rows, cols) to raster values, uint8 (N, rows, cols), on their device."""
        legend, thresholds = recipe.legend, self.thresholds(recipe)
        if legend.n_channels > 1 and thresholds.count(None) == len(thresholds):
            channels = probabilities.argmax(dim=1)
        else:
            shares = probabilities[:, -len(legend.classes) :]
            limits = [probabilities[:, 0] if limit is None else limit for limit in thresholds]
            above = torch.stack([share > limit for share, limit in zip(shares.unbind(1), limits, strict=True)], dim=1)
            best = torch.where(above, shares, -1.0).max(dim=1)
            channels = torch.where(best.values < 0, 0, best.indices + 1)
        values = torch.tensor([BACKGROUND, *legend.values], dtype=torch.uint8, device=channels.device)
        return values[channels]

    def decide_between(self, shares: np.ndarray, recipe: Recipe) -> np.ndarray:
        """Probabilities of the classes alone, float32 (classes, rows, cols), to raster values, uint8 (rows, cols).

        What they leave of 1 is the background's.
        """
        probabilities = torch.from_numpy(shares)[None]
        if not recipe.legend.is_binary:
            probabilities = torch.cat([1 - probabilities.sum(dim=1, keepdim=True), probabilities], dim=1)
        return self.decide(probabilities, recipe)[0].numpy()

    def identity(self, recipe: Recipe) -> dict[str, Any]:
        """What pins a run: plain values that JSON holds."""
        return {"planes": list(self.planes(recipe.legend)), "thresholds": list(self.thresholds(recipe))} | (
            {"uncertainty": self.uncertainty} if self.uncertainty else {}
        )


def parse_thresholds(texts: Sequence[str]) -> float | dict[str, float] | None:
    """Thresholds as they are written on a command line: a number, or ``class=number`` once for each class.

    Raises:
        PredictionError: both, or no number.

    Example:
        >>> parse_thresholds(["0.4"]), parse_thresholds(["roof=0.4", "tree=0.6"]), parse_thresholds([])
        (0.4, {'roof': 0.4, 'tree': 0.6}, None)
    """
    if not texts:
        return None
    if len(texts) == 1 and "=" not in texts[0]:
        return _number(texts[0])
    pairs = [text.rpartition("=") for text in texts]
    if not all(name for name, _, _ in pairs):
        raise PredictionError(f"threshold {', '.join(texts)}: give one number, or CLASS=NUMBER once for each class")
    return {name.strip(): _number(value) for name, _, value in pairs}


def to_shares(values: np.ndarray) -> np.ndarray:
    """Bytes of a plane of shares to float32 of 0 to 1, NaN where there is nothing to say.

    Example:
        >>> to_shares(np.array([0, 125, 250, 255], np.uint8)).tolist()
        [0.0, 0.5, 1.0, nan]
    """
    return np.where(values == UNLABELLED, np.float32(np.nan), values.astype(np.float32) / np.float32(STEPS))


def _to_bytes(shares: torch.Tensor) -> torch.Tensor:
    return (shares * STEPS).round().clamp(0, STEPS).to(torch.uint8)


def _uncertainty(probabilities: torch.Tensor, kind: Uncertainty) -> torch.Tensor:
    if probabilities.shape[1] == 1:
        probabilities = torch.cat([1 - probabilities, probabilities], dim=1)
    if kind == "entropy":
        nats = torch.special.entr(probabilities).sum(dim=1, keepdim=True)
        return nats / math.log(probabilities.shape[1])
    first, second = probabilities.topk(2, dim=1).values.unbind(1)
    return (1 - (first - second))[:, None]


def _number(given: str) -> float:
    try:
        return float(given)
    except ValueError as error:
        raise PredictionError(f"threshold {given!r}: a probability between 0 and 1 is needed") from error
