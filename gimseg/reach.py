"""How far from a window's border do classes still change? The halo that a network needs, measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from gimseg.errors import ModelError
from gimseg.recipes import Recipe

TOLERANCE = 20e-6


class BorderFlips(NamedTuple):
    """Class flips by distance from a window's border, px: 0 is the outermost ring."""

    flips: np.ndarray
    """int64 (side / 2): pixels whose class differs from the prediction with more context."""
    pixels: np.ndarray
    """int64 (side / 2): pixels looked at."""

    def beyond(self, distance: int) -> float:
        """Share of flips among the pixels at this distance, px, or further inside."""
        return float(self.flips[distance:].sum() / max(self.pixels[distance:].sum(), 1))


class Reach(NamedTuple):
    """How far around a pixel a network looks, as far as its classes tell."""

    halo: int
    """px, a multiple of the stride."""
    bounded: bool
    """Whether beyond the halo hardly a class changes; else the network looks at its window as a whole."""


def measure_reach(
    network: nn.Module, recipe: Recipe, images: Iterable[np.ndarray], *, tolerance: float = TOLERANCE
) -> Reach:
    """The halo that stitching needs, found by predicting windows with and without their surroundings.

    Each window is cut from the middle of an image and predicted alone, then with the
    image around it. The halo is the smallest multiple of the stride such that of the
    pixels further inside, less than `tolerance` change their class. It is at most a
    quarter of the window: a network that needs more is not bounded, as far as this
    window tells.

    Args:
        network: left on its device, and in the mode it was in.
        recipe: its halo is not looked at.
        images: normalised float32 (bands, rows, cols), best of twice the window or
            more; of smaller ones a smaller window is cut, half as wide as the image.
        tolerance: share of pixels, 0 to 1.

    Raises:
        ModelError: no image, or all are too small.
    """
    stride, most = recipe.stride, recipe.window // 4 // recipe.stride * recipe.stride
    measured = measure_border_flips(network, recipe, images)
    for halo in range(0, min(most, len(measured.flips) - 1) + 1, stride):
        if measured.beyond(halo) <= tolerance:
            return Reach(halo, True)
    return Reach(most, False)


def measure_border_flips(network: nn.Module, recipe: Recipe, images: Iterable[np.ndarray]) -> BorderFlips:
    """Class flips by distance from the window's border, over all images.

    Args:
        network: left on its device, and in the mode it was in.
        recipe: gives window, stride, threshold and classes.
        images: see :func:`measure_reach`.

    Raises:
        ModelError: no image, or all are too small.
    """
    flips = np.zeros(recipe.window, np.int64)
    pixels = np.zeros(recipe.window, np.int64)
    training = network.training
    network.eval()
    try:
        for image in images:
            side = _window_side(image, recipe)
            if side:
                distance, changed = _compare(network, recipe, image, side)
                flips += np.bincount(distance[changed], minlength=recipe.window)
                pixels += np.bincount(distance.ravel(), minlength=recipe.window)
    finally:
        network.train(training)
    if not pixels.any():
        raise ModelError(
            f"no image to measure the halo on: one of {4 * recipe.stride} px a side or more is needed, best of "
            f"{2 * recipe.window} px"
        )
    looked_at = int(np.flatnonzero(pixels)[-1]) + 1
    return BorderFlips(flips[:looked_at], pixels[:looked_at])


def _window_side(image: np.ndarray, recipe: Recipe) -> int:
    """The recipe's window if an eighth of it fits around, else half of the image; 0: too small."""
    fits = min(image.shape[-2:]) // recipe.stride * recipe.stride
    if fits >= recipe.window + 2 * recipe.stride * max(1, recipe.window // 8 // recipe.stride):
        return recipe.window
    side = fits // 2 // recipe.stride * recipe.stride
    return side if side >= 2 * recipe.stride and fits > side else 0


def _compare(network: nn.Module, recipe: Recipe, image: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the border, and whether the class changed, of each pixel of the window in the middle."""
    rows, cols = (size // recipe.stride * recipe.stride for size in image.shape[-2:])
    # Off the stride's lattice every pixel would be computed in another phase.
    top, left = ((size - side) // 2 // recipe.stride * recipe.stride for size in (rows, cols))
    inner = (slice(top, top + side), slice(left, left + side))
    whole = _classes(network, recipe, image[:, :rows, :cols])[inner]
    alone = _classes(network, recipe, image[:, *inner])
    line = np.minimum(np.arange(side), np.arange(side)[::-1])
    return np.minimum.outer(line, line), whole != alone


def _classes(network: nn.Module, recipe: Recipe, image: np.ndarray) -> np.ndarray:
    parameter = next(network.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    with torch.inference_mode():
        batch = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None].to(device)
        return recipe.classify(network(batch)[0])
