"""Weights that make rare classes count as much as frequent ones."""

from __future__ import annotations

from collections.abc import Sequence


def balanced_weights(pixels: Sequence[int]) -> tuple[float, ...]:
    """Weights under which all classes that are there weigh the same in sum: total / (classes · pixels of the class).

    A class without a pixel weighs 1.

    Example:
        >>> balanced_weights([98, 2, 0])
        (0.5102040816326531, 25.0, 1.0)

    Source: scikit-learn's ``class_weight="balanced"``.
    """
    present = sum(count > 0 for count in pixels)
    return tuple(sum(pixels) / (present * count) if count else 1.0 for count in pixels)
