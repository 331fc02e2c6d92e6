"""Probabilities averaged over views of an image and over several networks.

A *view* is one of the eight symmetries of the square. The mean is taken in whole
numbers, so it does not depend on the order: an image that is flipped or turned gives the
same views in another order, and so the same prediction, flipped or turned.

What is averaged is a :class:`~gimseg.models.Model` like any other: its network holds
those of the others, and its recipe has the bands of each that is normalised in its own way.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

import torch
from torch import nn

from gimseg.errors import PredictionError
from gimseg.models import Model
from gimseg.recipes import Recipe

Augmentations = Literal["flips", "symmetries"]
"""Of an image that is predicted: four views, or eight."""

Models = Model | str | os.PathLike[str] | Sequence[Model | str | os.PathLike[str]]
"""A model, its folder or its name, or several of them."""
Compute = Callable[[torch.Tensor], torch.Tensor]
"""Normalised images (N, bands, rows, cols) to logits (N, channels, rows, cols)."""

_ONE = 2**24  # a share of 1: float32 resolves it no finer
_MOST = 64


@dataclass(frozen=True)
class View:
    """A symmetry of the square: rows and columns change places, then rows, then columns, are reversed.

    Args:
        transpose: rows become columns.
        flip_rows: upside down.
        flip_cols: left to right.

    Example:
        >>> image = torch.tensor([[1, 2], [3, 4]])
        >>> View(transpose=True, flip_cols=True).of(image).tolist()
        [[3, 1], [4, 2]]
    """

    transpose: bool = False
    flip_rows: bool = False
    flip_cols: bool = False

    def of(self, images: torch.Tensor) -> torch.Tensor:
        """Images (..., rows, cols), seen this way."""
        return (images.transpose(-2, -1) if self.transpose else images).flip(self._dimensions)

    def undo(self, images: torch.Tensor) -> torch.Tensor:
        """What was seen this way, as it lies: the inverse of `of`."""
        images = images.flip(self._dimensions)
        return images.transpose(-2, -1) if self.transpose else images

    @property
    def _dimensions(self) -> list[int]:
        return [-2] * self.flip_rows + [-1] * self.flip_cols


def views(augmentations: Augmentations | None) -> tuple[View, ...]:
    """The views to average over; the image as it lies comes first.

    Raises:
        PredictionError: there are no such augmentations.

    Example:
        >>> [len(views(name)) for name in (None, "flips", "symmetries")]
        [1, 4, 8]
    """
    if augmentations not in (None, *get_args(Augmentations)):
        raise PredictionError(f"tta {augmentations!r}: flips or symmetries is needed")
    if augmentations is None:
        return (View(),)
    turns = (False, True) if augmentations == "symmetries" else (False,)
    return tuple(View(*given) for given in product(turns, (False, True), (False, True)))


def average(shares: Iterable[torch.Tensor], count: int) -> torch.Tensor:
    """The mean of `count` tensors of shares, 0 to 1, whatever their order; float32 of their shape.

    Example:
        >>> average([torch.tensor([0.25]), torch.tensor([0.75])], 2).tolist()
        [0.5]
    """
    total: torch.Tensor | None = None
    for share in shares:
        fixed = (share.float() * _ONE).round().to(torch.int32)
        total = fixed if total is None else total + fixed
    if total is None or count > _MOST:
        raise PredictionError(f"a mean of {count} predictions: 1 to {_MOST} are needed")
    # Whole numbers up to 2**53 and their quotient are exact enough in float64, on every device but Apple's.
    return (total.double() / (count * _ONE)).float() if total.device.type != "mps" else total / (count * _ONE)


class AveragedNetwork(nn.Module):
    """Several networks, or several views, as one network whose probabilities are their mean.

    Args:
        models: whose networks take (N, bands, rows, cols) images.
        first_bands: which band of the images is the first of each model.
        seen: views that are averaged, of each network.
        stride: total stride of all of them, px.
    """

    def __init__(self, models: Sequence[Model], first_bands: Sequence[int], seen: Sequence[View], stride: int) -> None:
        super().__init__()
        self.models = tuple(models)
        self.networks = nn.ModuleList(model.network for model in models)
        self.first_bands = tuple(first_bands)
        self.seen = tuple(seen)
        self.stride = stride

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, bands, rows, cols) to logits (N, channels, rows, cols) of the mean."""
        return self.average(list(self.networks), images)

    def average(self, compute: Sequence[Compute], images: torch.Tensor) -> torch.Tensor:
        """As `forward`, each network computed as `compute` does.

        Args:
            compute: what gives the logits of each model, in order.
            images: (N, bands, rows, cols).
        """
        shares = (
            view.undo(model.recipe.probabilities(logits(view.of(images[:, first : first + len(model.recipe.bands)]))))
            for model, logits, first in zip(self.models, compute, self.first_bands, strict=True)
            for view in self.seen
        )
        mean = average(shares, len(self.models) * len(self.seen))
        # Logits again, so that it is a network as others are: the softmax of logarithms is what they are of.
        return torch.logit(mean, eps=1 / _ONE) if mean.shape[1] == 1 else mean.clamp_min(1 / _ONE).log()


def load_models(given: Models, augmentations: Augmentations | None = None) -> Model:
    """Load what is not loaded yet, and combine it: see :func:`combine_models`.

    Raises:
        ModelError: a model cannot be loaded.
        PredictionError: see there.
    """
    several = [given] if isinstance(given, (Model, str, os.PathLike)) else list(given)
    models = [each if isinstance(each, Model) else Model.load(each) for each in several]
    return combine_models(models, augmentations)


def combine_models(models: Sequence[Model], augmentations: Augmentations | None = None) -> Model:
    """One model whose probabilities are the mean of those of several, over all views of the image.

    Args:
        models: of one legend, for the same bands, resolution and data type. Each
            normalises the image in its own way.
        augmentations: views of the image that each of them sees.

    Returns:
        the model itself where it is one alone that sees the image as it lies.

    Raises:
        PredictionError: the models do not belong together, or there are too many.
    """
    seen = views(augmentations)
    if len(models) == 1 and len(seen) == 1:
        return models[0]
    if not 1 <= len(models) * len(seen) <= _MOST:
        raise PredictionError(f"{len(models)} models with {len(seen)} views each: 1 to {_MOST} together are needed")
    for other in models[1:]:
        _check_alike(models[0], other)
    normalised = list(dict.fromkeys((model.recipe.mean, model.recipe.std) for model in models))
    bands = len(models[0].recipe.bands)
    recipe = _combined_recipe([model.recipe for model in models], normalised)
    firsts = [bands * normalised.index((model.recipe.mean, model.recipe.std)) for model in models]
    network = AveragedNetwork(models, firsts, seen, recipe.stride)
    name = " + ".join(model.name for model in models) + (f", {augmentations}" if augmentations else "")
    return Model(network.eval(), recipe, provenance={"name": name})


def members(model: Model) -> tuple[Model, ...]:
    """What a model is the mean of: one for each network and view, for the same images in the same windows.

    Returns:
        the model alone where it is no mean.
    """
    network = model.network
    if not isinstance(network, AveragedNetwork):
        return (model,)
    return tuple(
        Model(AveragedNetwork([part], [first], [view], network.stride).eval(), model.recipe, provenance=part.provenance)
        for part, first in zip(network.models, network.first_bands, strict=True)
        for view in network.seen
    )


def _combined_recipe(
    recipes: Sequence[Recipe], normalised: Sequence[tuple[tuple[float, ...], tuple[float, ...]]]
) -> Recipe:
    """Bands once for each way to normalise them; windows and halos that suit all."""
    stride = math.lcm(*(recipe.stride for recipe in recipes))
    halo, window = (
        -(-max(getattr(recipe, name) for recipe in recipes) // stride) * stride for name in ("halo", "window")
    )
    return replace(
        recipes[0],
        bands=recipes[0].bands * len(normalised),
        mean=tuple(value for mean, _ in normalised for value in mean),
        std=tuple(value for _, std in normalised for value in std),
        stride=stride,
        halo=halo,
        window=max(window, 2 * halo + stride),
        blend=any(recipe.blend for recipe in recipes),
        threshold=sum(recipe.threshold for recipe in recipes) / len(recipes),
    )


def _check_alike(model: Model, other: Model) -> None:
    for name, told in (
        ("legend", "classes"),
        ("bands", "bands"),
        ("resolution", "resolution"),
        ("crs_unit", "unit of the resolution"),
        ("dtype", "data type"),
        ("own_levels", "whether each raster is normalised by its own statistics"),
    ):
        one, two = getattr(model.recipe, name), getattr(other.recipe, name)
        if name == "legend":
            one, two = ([(item.name, item.value) for item in legend.classes] for legend in (one, two))
        if one != two:
            raise PredictionError(
                f"{model.name} and {other.name} differ in {told}: {one} and {two}. Only models for the same task and "
                "the same images can be averaged"
            )
