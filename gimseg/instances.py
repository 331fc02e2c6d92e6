"""Objects that touch, split at their necks: distance transform or probabilities, and a watershed.

Each connected object is traced whole first and then worked on alone, in its own bounding
box. So there are no seams, the result depends on nothing but the object, and memory
follows the largest object that is worked on.

Two parts are two objects where there is a neck between them: see :mod:`gimseg.necks`. With
probabilities as the landscape, where the probability between them falls :data:`DIP` below
the smaller peak.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import shapely
from rasterio.features import rasterize

from gimseg.necks import LEAST, basins, widths
from gimseg.tracing import Traced, trace

DIP = 0.1
"""How far the probability falls between two objects."""

LARGEST = 2**23
"""Pixels of the bounding box of an object above which it is left whole: a gigabyte is worked with."""

_SOLID = 0.95  # share of its convex hull that an object without necks covers


class Landscape(Protocol):
    """Probabilities on the grid of the mask."""

    def read(self, roi: tuple[slice, slice]) -> np.ndarray:
        """float (rows, columns) of a region inside the grid; NaN where there is none."""


@dataclass
class Splitter:
    """Splits objects, and counts those that are too large for it.

    Args:
        pixel_m: width and height of a pixel on the ground; only their ratio matters.
        landscape: probabilities; None: the distance to the outline.
    """

    pixel_m: tuple[float, float]
    landscape: Landscape | None = None
    left_whole: int = 0

    def stream(self, traced: Iterable[Traced]) -> Iterator[Traced]:
        """Objects as they come, split; what lies in a hole of one still comes before, or with it."""
        for polygons, values in traced:
            chosen = self._may_have_necks(polygons)
            pieces = {place: self.split(polygons[place]) for place in np.flatnonzero(chosen).tolist()}
            counts = np.ones(len(polygons), np.int64)
            counts[list(pieces)] = [len(some) for some in pieces.values()]
            out = np.repeat(polygons, counts)
            starts = np.cumsum(counts) - counts
            for place, some in pieces.items():
                out[starts[place] : starts[place] + counts[place]] = some
            yield Traced(out, np.repeat(values, counts))

    def _may_have_necks(self, polygons: np.ndarray) -> np.ndarray:
        """bool (n,): not convex, or with several peaks for all that is known, and not too large."""
        left, top, right, bottom = shapely.bounds(polygons).T
        too_large = (right - left) * (bottom - top) > LARGEST
        self.left_whole += int(too_large.sum())
        if self.landscape is not None:
            return ~too_large & (shapely.area(polygons) > 1)
        solid = shapely.area(polygons) >= _SOLID * shapely.area(shapely.convex_hull(polygons))
        return ~too_large & ~solid

    def split(self, polygon: shapely.Polygon) -> np.ndarray:
        """The objects of one connected polygon in pixels; itself if it is one."""
        left, top, right, bottom = (int(bound) for bound in polygon.bounds)
        shape = bottom - top, right - left
        inside = rasterize([polygon], shape, transform=(1, 0, left, 0, 1, top), dtype=np.uint8).astype(bool)
        heights, least = self._heights(inside, (slice(top, bottom), slice(left, right)))
        labels = basins(heights, inside, least)
        if labels is None:
            return np.array([polygon])
        pieces = np.concatenate([some.polygons for some in trace([labels])])
        return shapely.transform(pieces, lambda xy: xy + np.array([left, top]))

    def _heights(self, inside: np.ndarray, roi: tuple[slice, slice]) -> tuple[np.ndarray, float]:
        """The landscape of an object, and how high a peak must stand over the pass to the next."""
        if self.landscape is not None:
            return np.where(inside, np.nan_to_num(self.landscape.read(roi)), -1.0), DIP
        width, height = self.pixel_m
        return widths(inside, (height, width)), LEAST
