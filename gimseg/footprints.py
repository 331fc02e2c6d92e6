"""Layers that say where a prediction was made: its area of interest, and its blocks."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely

from gimseg.geopackages import FurtherLayer
from gimseg.legend import BACKGROUND, UNLABELLED
from gimseg.preflight import Plan
from gimseg.raster_files import DRIVERS, RasterFile
from gimseg.styles import outline_style
from gimseg.tiling import Block, Roi

_AOI_COLOUR = "#ff2fd0"
_BLOCK_COLOUR = "#9aa0a6"


def further_layers(plan: Plan) -> tuple[FurtherLayer, ...]:
    """The layers ``aoi``, if there is an area of interest, and ``blocks``.

    Args:
        plan: of the prediction; its mask is finished.

    Raises:
        RasterError: the mask cannot be read.
    """
    return (*([] if plan.aoi is None or plan.renewal else [_aoi(plan)]), _blocks(plan))


def _aoi(plan: Plan) -> FurtherLayer:
    assert plan.aoi is not None
    source = Path(str(plan.options.aoi)).name
    geometries = plan.aoi.geometries
    frame = gpd.GeoDataFrame({"source": [source] * len(geometries)}, geometry=geometries, crs=_crs(plan))
    return FurtherLayer("aoi", frame, "MultiPolygon", outline_style(_AOI_COLOUR, dashed=True))


def _blocks(plan: Plan) -> FurtherLayer:
    """Footprint of each block, its place among the blocks, which share of it was predicted and which is of a class."""
    file = RasterFile(str(plan.output), DRIVERS, (1,), plan.shape, "uint8", (None,))
    rows = []
    for block in plan.blocks:
        values = file.read(_in_mask(plan, block)).data[0]
        counts = np.bincount(values.ravel(), minlength=256)
        valid, size = values.size - counts[UNLABELLED], max(values.size, 1)
        rows.append((block.row, block.col, valid / size, (valid - counts[BACKGROUND]) / size))
    columns = dict(zip(("row", "col", "valid_share", "class_share"), zip(*rows, strict=True), strict=True))
    places = [plan.geobox[block.core].extent.geom for block in plan.blocks]
    frame = gpd.GeoDataFrame(columns, geometry=places, crs=_crs(plan))
    return FurtherLayer("blocks", frame, "Polygon", outline_style(_BLOCK_COLOUR))


def _in_mask(plan: Plan, block: Block) -> Roi:
    """Rows and columns of a block in the mask, which may be on the input's own grid."""
    corners = shapely.box(block.core[1].start, block.core[0].start, block.core[1].stop, block.core[0].stop)
    to_mask = ~plan.target.affine * plan.geobox.affine
    edges = shapely.bounds(shapely.transform(corners, lambda xy: np.column_stack(to_mask * tuple(xy.T))))
    left, top, right, bottom = np.round(edges).astype(int).tolist()
    height, width = plan.shape
    return slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))


def _crs(plan: Plan) -> str | None:
    return None if plan.geobox.crs is None else plan.geobox.crs.to_wkt()
