"""Finished planes with classes that are refined: region by region, each read with the margin that its steps need."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from gimseg.errors import RefinementError
from gimseg.ground import Ground as Measured
from gimseg.legend import UNLABELLED
from gimseg.matching import ReadPlanes
from gimseg.morphology import Sides
from gimseg.products import Products, to_shares
from gimseg.rasters import Pixels, Roi
from gimseg.recipes import Recipe
from gimseg.refinement import Ground, Refinement
from gimseg.tiling import shift, widened

MOST_MARGIN = 1536
"""Pixels around a region that may be read with it: memory is that of the region and its margin."""


class RefinedPlanes:
    """Planes whose first, the classes, is refined; all others are as they were.

    Args:
        read: of the planes as they were predicted, probabilities among them if the chain needs them.
        chain: the steps.
        geobox: grid of the planes.
        products: what the planes are.
        recipe: that decides classes.
        image: reads the image on the grid, for steps that follow its edges.
    """

    def __init__(
        self,
        read: ReadPlanes,
        chain: Refinement,
        geobox: GeoBox,
        products: Products,
        recipe: Recipe,
        image: Callable[[Roi], Pixels],
    ) -> None:
        self._read, self._chain, self._image = read, chain, image
        self._shape = (int(geobox.shape[0]), int(geobox.shape[1]))
        self._pixel_m = pixel_sides(chain, geobox)
        self._products, self._recipe = products, recipe

    def read(self, roi: Roi) -> NDArray[np.uint8]:
        """Planes of a region, uint8 (planes, rows, cols); how the raster is cut into regions changes nothing."""
        margin = self._chain.margin(self._pixel_m)
        wide = widened(roi, (margin, margin), self._shape)
        planes = self._read(wide)
        inner = shift(roi, wide)
        refined = self._refined(planes, wide)
        return np.concatenate([refined[None], planes[1:]])[:, *inner]

    def _refined(self, planes: NDArray[np.uint8], roi: Roi) -> NDArray[np.uint8]:
        legend = self._recipe.legend
        if not self._chain.of_probabilities:
            return legend.to_values(self._chain.apply_mask(legend.to_channels(planes[0]), self._pixel_m))
        image = self._recipe.prepare(self._image(roi)) if self._chain.needs_image else None
        shares = np.nan_to_num(to_shares(planes[1 : 1 + len(legend.classes)]))
        if not legend.is_binary:
            shares = np.concatenate([1 - shares.sum(0, keepdims=True), shares])
        ground = Ground(planes[0] != UNLABELLED, self._pixel_m, image)
        return legend.to_values(self._chain.apply(shares, ground, self._classify))

    def _classify(self, probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Numbers of classes."""
        values = self._products.decide(torch.from_numpy(probabilities)[None], self._recipe)[0].numpy()
        return self._recipe.legend.to_channels(values)


def pixel_sides(chain: Refinement, geobox: GeoBox) -> Sides:
    """Height and width of a pixel, for a chain whose steps can be done on this grid.

    Raises:
        RefinementError: metres are asked for where nothing tells them, or steps look too far.
    """
    crs = geobox.crs
    ground = Measured.of(geobox.affine, crs.to_wkt() if crs else None, (int(geobox.shape[0]), int(geobox.shape[1])))
    return checked_sides(chain, ground)


def checked_sides(chain: Refinement, ground: Measured) -> Sides:
    """As :func:`pixel_sides`, where the ground is known already."""
    if chain.needs_metres and not ground.tells_metres:
        raise RefinementError(f"{chain}: the raster {ground.trouble}, so nothing tells metres: give lengths in px")
    width, height = ground.pixel_m
    margin = chain.margin((height, width))
    if margin > MOST_MARGIN:
        raise RefinementError(
            f"{chain}: with pixels of {width:.3g} m the steps look {margin} px far, and {MOST_MARGIN} px are the most: "
            "for large areas clean the polygons (--min-area, --fill-holes), which know no margin"
        )
    return height, width
