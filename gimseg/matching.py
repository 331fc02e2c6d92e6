"""Finished planes on the grid of the input, pixel for pixel.

A network predicts at its own resolution on a north-up grid. Here its planes are brought
back to the rows and columns of the raster that was given, be it finer, rotated or south-up.
Shares are interpolated, bilinearly where the input is finer and by the mean of the
covered ground where it is coarser, and classes are decided anew from them, so outlines
are smooth instead of stairs of the model's pixels. A pixel's value depends on its place
alone, and memory on the size of the window that is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS
from scipy import ndimage

from gimseg.legend import UNLABELLED
from gimseg.products import STEPS, Products
from gimseg.raster_files import Pixels, Roi
from gimseg.raster_views import Placement, RasterView
from gimseg.recipes import Recipe

ReadPlanes = Callable[[Roi], np.ndarray]
"""A region inside a grid to uint8 (planes, rows, cols)."""

_REACH = 2.0
"""How far, in pixels of the model, shares are taken from where too little ground was valid to predict."""


class MatchedPlanes:
    """Planes on another grid.

    Args:
        read: of the planes as they were predicted, probabilities among them.
        geobox: on which they were predicted.
        target: grid that is wanted, of the same CRS.
        products: what the planes are.
        recipe: that decides classes.
    """

    def __init__(self, read: ReadPlanes, geobox: GeoBox, target: GeoBox, products: Products, recipe: Recipe) -> None:
        crs = None if geobox.crs is None else CRS.from_wkt(geobox.crs.to_wkt())
        ratio = math.sqrt(abs(geobox.affine.determinant / target.affine.determinant))
        shares = _Shares(read, (int(geobox.shape[0]), int(geobox.shape[1])), len(products.planes(recipe.legend)))
        method = "bilinear" if ratio > 0.8 else "average"
        self._view = RasterView(shares, Placement(crs, transform=geobox.affine), target, method)
        self._reach = _REACH * ratio
        self._products = products
        self._recipe = recipe

    def read(self, roi: Roi, wanted: np.ndarray) -> np.ndarray:
        """Planes of a region, uint8 (planes, rows, cols).

        Args:
            roi: of the target grid.
            wanted: bool (rows, cols); all other pixels become 255.
        """
        shares, known = self._near(roi, wanted)
        planes = np.full((1 + len(shares), *wanted.shape), UNLABELLED, np.uint8)
        classes = shares[: len(self._recipe.legend.classes)]
        planes[0] = self._products.decide_between(classes / np.float32(STEPS), self._recipe)
        planes[1:] = np.rint(shares)
        planes[:, ~(wanted & known)] = UNLABELLED
        return planes

    def _near(self, roi: Roi, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shares (planes less one, rows, cols), each its own or the nearest there is, and where there are some."""
        margin = math.ceil(self._reach) + 1
        grown = tuple(slice(part.start - margin, part.stop + margin) for part in roi)
        data, valid = self._view.read((grown[0], grown[1]))
        inner = tuple(slice(margin, size - margin) for size in valid.shape)
        if not (wanted & ~valid[inner]).any() or not valid.any():
            return data[:, *inner], valid[inner]
        distance, nearest = ndimage.distance_transform_edt(~valid, return_indices=True)
        rows, cols = nearest[0][inner], nearest[1][inner]
        return data[:, rows, cols], distance[inner] <= self._reach


@dataclass(frozen=True, eq=False)
class _Shares:
    """The planes after the first, as native pixels of a raster; valid where the first says a class."""

    read_planes: ReadPlanes
    shape: tuple[int, int]
    planes: int
    path: str = "the prediction"
    dtype: str = "uint8"
    in_strips: bool = False

    @property
    def bands(self) -> tuple[int, ...]:
        """One for each plane after the first."""
        return tuple(range(1, self.planes))

    def is_there(self) -> bool:
        """Finished planes are."""
        return True

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that are read as one."""
        return (256, 256)

    def is_empty(self, roi: Roi) -> bool:
        """Nothing is known before it is read."""
        return False

    def read(self, roi: Roi) -> Pixels:
        """Bytes (bands, rows, cols), and where they say something."""
        wide = Pixels(
            np.zeros((self.planes - 1, *(part.stop - part.start for part in roi)), np.uint8),
            np.zeros(tuple(part.stop - part.start for part in roi), bool),
        )
        inside = tuple(
            slice(max(part.start, 0), min(part.stop, size)) for part, size in zip(roi, self.shape, strict=True)
        )
        if any(part.start >= part.stop for part in inside):
            return wide
        place = tuple(
            slice(part.start - start.start, part.stop - start.start) for part, start in zip(inside, roi, strict=True)
        )
        planes = self.read_planes((inside[0], inside[1]))
        valid = planes[0] != UNLABELLED
        wide.valid[place] = valid
        np.copyto(wide.data[:, *place], planes[1:], where=valid)
        return wide
