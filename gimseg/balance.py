"""How often each class is there: shares, weights that make classes count alike, windows without an object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gimseg.class_weights import balanced_weights
from gimseg.sampling import Survey, empty_cells


@dataclass(frozen=True)
class ClassBalance:
    """Labelled pixels of some ground by class.

    Args:
        split: of the ground; None: it has none.
        names: of the classes, ``background`` first.
        pixels: of each class.
        empty: share of the labelled ground around which a window holds no object, 0 to 1.

    Example:
        >>> balance = ClassBalance("train", ("background", "roof"), (900, 100), 0.5)
        >>> balance.shares, balance.weights
        ((0.9, 0.1), (0.5555555555555556, 5.0))
    """

    split: str | None
    names: tuple[str, ...]
    pixels: tuple[int, ...]
    empty: float

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the labelled pixels, 0 to 1; NaN where there are none."""
        total = sum(self.pixels)
        return tuple(count / total if total else float("nan") for count in self.pixels)

    @property
    def weights(self) -> tuple[float, ...]:
        """What ``class_weights=auto`` gives; see :func:`gimseg.class_weights.balanced_weights`."""
        return balanced_weights(self.pixels)


def class_balance(surveys: Sequence[Survey], window: int) -> tuple[ClassBalance, ...]:
    """The balance of each split, in the order in which splits come.

    Args:
        surveys: of scenes that share a legend.
        window: side of the windows that may hold no object, px.
    """
    found = []
    for split in dict.fromkeys(item.split for item in surveys):
        members = [item for item in surveys if item.split == split]
        legend = members[0].scene.legend
        counts = count_classes(members)
        labelled = sum(int(item.labelled.sum()) for item in members)
        empty = sum(int(item.labelled[empty_cells(item, window)].sum()) for item in members)
        found.append(ClassBalance(split, ("background", *legend.names), counts, empty / labelled if labelled else 0.0))
    return tuple(found)


def count_classes(surveys: Sequence[Survey]) -> tuple[int, ...]:
    """Labelled pixels of background and of each class of the legend, over all surveys."""
    counts = np.sum([item.counts for item in surveys], axis=0)
    return tuple(int(counts[value]) for value in (0, *surveys[0].scene.legend.values))
