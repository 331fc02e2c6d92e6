"""What an analyst changed: drawn objects against those that were predicted, and what else was drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from gimseg.object_scores import match_objects

# Below it two objects that overlap are two objects, not one that was reshaped.
_SAME_OBJECT = 0.2
# Editors round coordinates: what differs by less than this share of its area was not reshaped.
_SAME_SHAPE = 1 - 1e-4
_RARE = ("points", "background", "ignored")


@dataclass(frozen=True)
class Changes:
    """Objects by what became of them.

    Attributes:
        kept: as they were predicted.
        reshaped: with another outline.
        reclassified: of another class, whatever their outline.
        added: drawn where none was predicted.
        removed: predicted, and deleted.
        points: drawn, of whatever class; none is predicted.
        background: polygons in which there is nothing.
        ignored: polygons of which nobody knows.
    """

    kept: int = 0
    reshaped: int = 0
    reclassified: int = 0
    added: int = 0
    removed: int = 0
    points: int = 0
    background: int = 0
    ignored: int = 0

    @property
    def any(self) -> bool:
        """Whether anything was drawn or deleted."""
        return any(getattr(self, name) for name in self.__dataclass_fields__ if name != "kept")

    def text(self) -> str:
        """As a person reads it; what few draw is told where there is some.

        Example:
            >>> Changes(kept=3, removed=1).text()
            '3 kept, 0 reshaped, 0 reclassified, 0 added, 1 removed'
            >>> Changes(kept=3, points=1, ignored=2).text()
            '3 kept, 0 reshaped, 0 reclassified, 0 added, 0 removed, 1 point, 2 ignored'
        """
        counts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        told = [f"{count} {name}" for name, count in counts.items() if name not in _RARE or count]
        return ", ".join(told).replace(" 1 points", " 1 point")


def compare_objects(
    predicted: NDArray[np.object_],
    predicted_classes: NDArray[np.object_],
    drawn: NDArray[np.object_],
    drawn_classes: NDArray[np.object_],
) -> Changes:
    """Pair drawn objects with predicted ones and count what became of them.

    Args:
        predicted: (n,) valid polygons.
        predicted_classes: (n,), anything that compares.
        drawn: (m,) valid polygons in the same CRS.
        drawn_classes: (m,).
    """
    pairs = match_objects(predicted, drawn, least_iou=_SAME_OBJECT)
    other_class = predicted_classes[pairs.true] != drawn_classes[pairs.predicted]
    other_shape = pairs.iou < _SAME_SHAPE
    return Changes(
        kept=int((~other_class & ~other_shape).sum()),
        reshaped=int((~other_class & other_shape).sum()),
        reclassified=int(other_class.sum()),
        added=len(drawn) - len(pairs.predicted),
        removed=len(predicted) - len(pairs.true),
    )


def parts_inside(polygons: NDArray[np.object_], areas: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Which polygons meet any of the areas, (n,)."""
    tree = shapely.STRtree(areas)
    found = np.zeros(len(polygons), bool)
    found[np.unique(tree.query(polygons, predicate="intersects")[0])] = True
    return found
