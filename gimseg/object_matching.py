"""Objects of two masks, matched while both are traced: in memory that the raster's size does not decide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from gimseg.legend import UNLABELLED
from gimseg.object_scores import ObjectTable, match_objects
from gimseg.tracing import Traced, trace

Strips: TypeAlias = Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]

_COLOURS = 8  # a class, for neighbours that must differ: a map needs four, lines at corners a few more


def count_objects(strips: Strips, class_of: NDArray[np.uint8], pixel_m2: float) -> tuple[ObjectTable, ...]:
    """Match the objects of a mask with true ones: pairs have an IoU above one half, so each has one partner at most.

    Args:
        strips: of rows from the top: true and predicted, both uint8 (rows, width), 0 where there
            is no object or nothing is known. Predicted values are numbers of classes; true
            ones may be any, so that objects that touch can be told apart.
        class_of: (256,), number of the class of each true value, 0 of none.
        pixel_m2: area of a pixel, m².

    Returns:
        a table for each class.
    """
    sides = (_Side(), _Side())
    classes = int(class_of.max())
    tables = [ObjectTable.zeros() for _ in range(classes)]
    for row, true, predicted in _traced_together(strips):
        sides[0].add(Traced(true.polygons, class_of[true.values]))
        sides[1].add(predicted)
        for number in range(classes):
            tables[number] += _settled(sides, number + 1, row, pixel_m2)
    for number in range(classes):
        tables[number] += _settled(sides, number + 1, np.inf, pixel_m2)
    return tuple(tables)


class _Side:
    """Finished objects of one mask that may still find a partner."""

    def __init__(self) -> None:
        self.polygons, self.values = np.empty(0, object), np.empty(0, np.uint8)

    def add(self, traced: Traced) -> None:
        self.polygons = np.concatenate([self.polygons, traced.polygons])
        self.values = np.concatenate([self.values, traced.values])

    def take_away(self, places: NDArray[np.int64]) -> None:
        self.polygons, self.values = np.delete(self.polygons, places), np.delete(self.values, places)


def _settled(sides: tuple[_Side, _Side], value: int, row: float, pixel_m2: float) -> ObjectTable:
    """Count, and take away, the objects of a class of which all is known when all above a row is traced."""
    places = [np.flatnonzero(side.values == value) for side in sides]
    polygons = [side.polygons[chosen] for side, chosen in zip(sides, places, strict=True)]
    matches = match_objects(polygons[0], polygons[1])
    areas, renamed = [], []
    for side, chosen, own, paired in zip(sides, places, polygons, matches[:2], strict=True):
        pixels = shapely.area(own)
        # A partner has less beside an object than the object itself, and is connected: so far below it ends.
        known = shapely.bounds(own).reshape(-1, 4)[:, 3] + pixels < row
        known[paired] = True
        areas.append(pixels[known] * pixel_m2)
        renamed.append((np.cumsum(known) - 1)[paired])
        side.take_away(chosen[known])
    return ObjectTable.of(areas[0], areas[1], matches._replace(true=renamed[0], predicted=renamed[1]))


def _traced_together(strips: Strips) -> Iterator[tuple[int, Traced, Traced]]:
    """The row down to which both are traced, and the objects that this has closed."""
    waiting: list[NDArray[np.uint8]] = []
    row = 0

    def first() -> Iterator[NDArray[np.uint8]]:
        nonlocal row
        for true, predicted in strips:
            waiting.append(predicted)
            row += len(true)
            yield true

    def second() -> Iterator[NDArray[np.uint8]]:
        while waiting:
            yield waiting.pop()

    for true, predicted in zip(trace(first()), trace(second()), strict=True):
        yield row, true, predicted


def colours_for(
    geometries: NDArray[np.object_], classes: NDArray[np.uint8], most: int, near: float
) -> NDArray[np.uint8]:
    """Values such that neighbours of one class differ, for burning objects that touch.

    Args:
        geometries: (n,).
        classes: (n,), numbers of classes from 1; 255 stays 255.
        most: number of classes.
        near: geometries as close as that are neighbours, in their unit.

    Returns:
        uint8 (n,); :func:`class_of_colours` knows which class each stands for.
    """
    each = _colours_each(most)
    one, other = shapely.STRtree(geometries).query(geometries, predicate="dwithin", distance=near)
    beside: list[list[int]] = [[] for _ in geometries]
    for number, before in np.column_stack([one, other])[(one > other) & (classes[one] == classes[other])].tolist():
        beside[number].append(before)
    chosen = np.zeros(len(geometries), np.int64)
    for number, neighbours in enumerate(beside):
        taken = set(chosen[neighbours].tolist())
        chosen[number] = next((colour for colour in range(each) if colour not in taken), each - 1)
    values = (classes.astype(np.int64) - 1) * each + chosen + 1
    return np.where(classes == UNLABELLED, UNLABELLED, values).astype(np.uint8)


def class_of_colours(classes: int) -> NDArray[np.uint8]:
    """(256,), the number of the class that each value of :func:`colours_for` stands for.

    Example:
        >>> class_of_colours(2)[[0, 1, 8, 9, 16, 17]].tolist()
        [0, 1, 1, 2, 2, 0]
    """
    each = _colours_each(classes)
    table = np.zeros(256, np.uint8)
    table[1 : classes * each + 1] = np.repeat(np.arange(1, classes + 1), each)
    return table


def _colours_each(classes: int) -> int:
    return max(1, min(_COLOURS, 254 // classes))
