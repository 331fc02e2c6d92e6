"""Parts of a raster that are predicted again, while all else is taken from an older mask.

The unit is the *cell*, what one window of the network answers for: so which pixels are
new depends on raster, model and area alone, not on blocks, and a new pixel is, byte for
byte, that of a prediction of the whole raster, seen with all that lies around it. What
the older mask leaves out (no image, outside the area it was asked for) stays out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from odc.geo.geobox import GeoBox

from gimseg.errors import PredictionError
from gimseg.legend import LEGEND_TAG, UNLABELLED, Legend
from gimseg.origins import MODEL_TAG
from gimseg.parts import file_identity
from gimseg.products import Products
from gimseg.raster_files import DRIVERS, RasterFile, check_file, open_dataset
from gimseg.rasters import open_raster
from gimseg.tiling import Lattice, Roi, roi_shape
from gimseg.vectors import Shapes

FINGERPRINT_TAG = "gimseg_model_fingerprint"
"""Tag of a mask that tells the model apart from all others."""
REFINE_TAG = "gimseg_refine"
"""Tag of a mask that was refined: how."""


@dataclass(frozen=True)
class Older:
    """A mask that was delivered before, with what lies beside it.

    Args:
        files: planes by name: ``classes``, and those of the products that are there.
        tags: of the mask.
    """

    files: Mapping[str, RasterFile]
    tags: Mapping[str, str] = field(repr=False)

    @classmethod
    def open(cls, mask: str | os.PathLike[str], geobox: GeoBox, legend: Legend, products: Products) -> Older:
        """Describe a mask and its products, which must be those of the same raster.

        Args:
            mask: that was delivered.
            geobox: grid of the new prediction.
            legend: of the new prediction.
            products: of the new prediction; those that do not lie beside the mask are
                255 where nothing is predicted again.

        Raises:
            PredictionError: another grid, or other classes.
            RasterError: a file cannot be read.
        """
        path = Path(mask)
        found = {"classes": path, **{name: beside for name, beside in products.files(path).items() if beside.exists()}}
        files: dict[str, RasterFile] = {}
        tags: Mapping[str, str] = {}
        for name, file in found.items():
            grid = open_raster(file).geobox
            if grid.shape != geobox.shape or grid.crs != geobox.crs or not _same_place(grid, geobox):
                raise PredictionError(
                    f"{file} has {grid.shape[1]} x {grid.shape[0]} px from {_corner(grid)}, the new prediction "
                    f"{geobox.shape[1]} x {geobox.shape[0]} px from {_corner(geobox)}: only masks of one grid can be "
                    "put together; predict it everywhere (--everywhere)"
                )
            with open_dataset(check_file(file), tuple(DRIVERS)) as dataset:
                bands = tuple(range(1, dataset.count + 1))
                tags = dataset.tags() if name == "classes" else tags
            shape = (int(grid.shape[0]), int(grid.shape[1]))
            files[name] = RasterFile(str(file), DRIVERS, bands, shape, "uint8", (None,) * len(bands))
        older = cls(files, tags)
        older._check_legend(legend)
        if REFINE_TAG in tags:
            raise PredictionError(f"{path} was refined by {tags[REFINE_TAG]}: predict it everywhere (--everywhere)")
        return older

    def _check_legend(self, legend: Legend) -> None:
        told = self.tags.get(LEGEND_TAG)
        given = [(item.name, item.value) for item in legend.classes]
        before = [(item.name, item.value) for item in Legend.from_dict(json.loads(told)).classes] if told else None
        if before != given:
            raise PredictionError(
                f"{self.files['classes'].path} holds the classes {before or 'of an unknown model'}, the new prediction "
                f"{given}: they cannot be put together; predict it everywhere (--everywhere)"
            )

    @property
    def origin(self) -> str:
        """Name and fingerprint of its model."""
        return " ".join(self.tags.get(tag, "unknown") for tag in (MODEL_TAG, FINGERPRINT_TAG))

    def identity(self) -> dict[str, Any]:
        """What tells it from another one: plain values."""
        return {name: file_identity(file.path) for name, file in self.files.items()}

    def left_out(self, roi: Roi) -> np.ndarray:
        """Pixels of which it says nothing, bool (rows, cols)."""
        return np.asarray(self.files["classes"].read(roi).data[0] == UNLABELLED)

    def read(self, roi: Roi, planes: int, places: Mapping[str, slice]) -> np.ndarray:
        """Its planes, uint8 (planes, rows, cols), 255 for those that it has not.

        Args:
            roi: of its grid.
            planes: how many.
            places: which of them are what, by name.
        """
        values = np.full((planes, *roi_shape(roi)), UNLABELLED, np.uint8)
        for name, place in places.items():
            if name in self.files:
                values[place] = self.files[name].read(roi).data
        return values


@dataclass(frozen=True, eq=False)
class Renewal:
    """The cells that are predicted again.

    Args:
        lattice: of windows.
        geobox: grid that is predicted.
        area: polygons; a cell that holds a pixel of theirs is predicted again, all of it.
        older: what the rest is taken from.
    """

    lattice: Lattice
    geobox: GeoBox
    area: Shapes
    older: Older

    @cached_property
    def cells(self) -> np.ndarray:
        """Which are predicted again, bool (rows, cols) of cells."""
        asked = np.zeros(self.lattice.counts, bool)
        boxes, places = self._boxes()
        tree = shapely.STRtree(self.area.geometries)
        for number in np.unique(tree.query(boxes, predicate="intersects")[0]):
            row, col = places[number]
            cell = self.lattice.cells(slice(row, row + 1), slice(col, col + 1))
            asked[row, col] = self.area.burn_mask(self.geobox[cell]).any()
        return asked

    def mask(self, roi: Roi) -> np.ndarray:
        """Pixels of a region that lie in these cells, bool (rows, cols)."""
        rows, cols = self.lattice.cell_numbers(roi)
        return np.asarray(self.cells[np.ix_(rows, cols)])

    def wanted(self, roi: Roi) -> np.ndarray:
        """Those of them that the older mask does not leave out, bool (rows, cols)."""
        mask = self.mask(roi)
        return mask & ~self.older.left_out(roi) if mask.any() else mask

    @property
    def ground(self) -> shapely.Geometry:
        """Footprint of the cells, in the CRS of the grid."""
        boxes, places = self._boxes()
        return shapely.union_all(boxes[self.cells[tuple(places.T)]])

    def _boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """Footprints of all cells, and their places (row, col)."""
        counts = self.lattice.counts
        places = np.argwhere(np.ones(counts, bool))
        rows, cols = (
            [self.lattice.cells(slice(n, n + 1), slice(0, 1))[0] for n in range(counts[0])],
            [self.lattice.cells(slice(0, 1), slice(n, n + 1))[1] for n in range(counts[1])],
        )
        top, bottom = (np.array([getattr(part, end) for part in rows])[places[:, 0]] for end in ("start", "stop"))
        left, right = (np.array([getattr(part, end) for part in cols])[places[:, 1]] for end in ("start", "stop"))
        # The grid is north-up: x depends on the column alone, y on the row.
        width, _, west, _, height, north = tuple(self.geobox.affine)[:6]
        boxes = shapely.box(west + width * left, north + height * bottom, west + width * right, north + height * top)
        return boxes, places

    def identity(self) -> dict[str, Any]:
        """What pins it: plain values."""
        return {"older": self.older.identity(), "cells": int(self.cells.sum())}


def _same_place(one: GeoBox, other: GeoBox) -> bool:
    size = abs(other.affine.a)
    return all(abs(a - b) <= 1e-6 * size for a, b in zip(tuple(one.affine)[:6], tuple(other.affine)[:6], strict=True))


def _corner(geobox: GeoBox) -> str:
    return f"{geobox.affine.c:.9g} {geobox.affine.f:.9g}"
