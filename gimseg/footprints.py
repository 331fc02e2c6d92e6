"""Layers that say where a prediction was made: its area of interest, and its blocks."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np

from gimseg.geopackages import FurtherLayer
from gimseg.legend import BACKGROUND, UNLABELLED
from gimseg.preflight import Plan
from gimseg.raster_files import DRIVERS, RasterFile
from gimseg.styles import outline_style

_AOI_COLOUR = "#ff2fd0"
_BLOCK_COLOUR = "#9aa0a6"


def further_layers(plan: Plan, mask: Path) -> tuple[FurtherLayer, ...]:
    """The layers ``aoi``, if there is an area of interest, and ``blocks``.

    Args:
        plan: of the prediction.
        mask: the finished mask.

    Raises:
        RasterError: the mask cannot be read.
    """
    return (*([] if plan.aoi is None else [_aoi(plan)]), _blocks(plan, mask))


def _aoi(plan: Plan) -> FurtherLayer:
    assert plan.aoi is not None
    source = Path(str(plan.options.aoi)).name
    geometries = plan.aoi.geometries
    frame = gpd.GeoDataFrame({"source": [source] * len(geometries)}, geometry=geometries, crs=_crs(plan))
    return FurtherLayer("aoi", frame, "MultiPolygon", outline_style(_AOI_COLOUR, dashed=True))


def _blocks(plan: Plan, mask: Path) -> FurtherLayer:
    """Footprint of each block, its place among the blocks, which share of it was predicted and which is of a class."""
    file = RasterFile(str(mask), DRIVERS, (1,), plan.lattice.shape, "uint8", (None,))
    rows = []
    for block in plan.blocks:
        values = file.read(block.core).data[0]
        counts = np.bincount(values.ravel(), minlength=256)
        valid = values.size - counts[UNLABELLED]
        rows.append((block.row, block.col, valid / values.size, (valid - counts[BACKGROUND]) / values.size))
    columns = dict(zip(("row", "col", "valid_share", "class_share"), zip(*rows, strict=True), strict=True))
    places = [plan.geobox[block.core].extent.geom for block in plan.blocks]
    return FurtherLayer(
        "blocks", gpd.GeoDataFrame(columns, geometry=places, crs=_crs(plan)), "Polygon", outline_style(_BLOCK_COLOUR)
    )


def _crs(plan: Plan) -> str | None:
    return None if plan.geobox.crs is None else plan.geobox.crs.to_wkt()
