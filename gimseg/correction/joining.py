"""Predictions of rasters that overlap, laid out once: ground that one raster shows is taken from no later one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import rasterio.features
import shapely
import shapely.geometry
from rasterio.windows import Window

from gimseg.legend import UNLABELLED

_SIDE = 1024
_SLIVER = 0.25
"""Of a pixel: what vanishes when it shrinks by this is a sliver that cutting has left."""


def shown_ground(mask: Path, areas: Sequence[shapely.Geometry]) -> shapely.Geometry:
    """The ground that a mask tells something of, in its CRS.

    Args:
        mask: GeoTIFF of classes, 255 where nothing is known.
        areas: outside of which it is not looked at; in its CRS.

    Returns:
        polygons along the pixels' edges.
    """
    tree, parts = shapely.STRtree(list(areas)), []
    with rasterio.open(mask, driver="GTiff") as source:
        for row in range(0, source.height, _SIDE):
            for col in range(0, source.width, _SIDE):
                window = Window(col, row, min(_SIDE, source.width - col), min(_SIDE, source.height - row))
                if not len(tree.query(shapely.box(*source.window_bounds(window)), predicate="intersects")):
                    continue
                known = source.read(1, window=window) != UNLABELLED
                place = source.window_transform(window)
                shapes = rasterio.features.shapes(known.astype(np.uint8), mask=known, transform=place)
                parts += [shapely.geometry.shape(shape) for shape, _ in shapes]
    return shapely.union_all(parts)


def join_objects(
    objects: Sequence[gpd.GeoDataFrame], grounds: Sequence[shapely.Geometry], pixel: float
) -> list[gpd.GeoDataFrame]:
    """Objects of several rasters of which none lies on another.

    Where rasters overlap, the first that shows the ground tells what is there: objects of
    later ones are cut at the border of that ground, and dropped inside.

    Args:
        objects: of each raster, in one CRS.
        grounds: that each but the last shows, in that CRS.
        pixel: side of a pixel, in the CRS's unit; slivers much thinner are dropped.

    Returns:
        those that are left of each.
    """
    left, taken = list(objects[:1]), shapely.Polygon()
    for frame, before, ground in zip(objects[1:], objects, grounds, strict=False):
        # Outlines that were simplified reach a little beyond the pixels.
        taken = shapely.union_all([taken, ground, *before.geometry.to_numpy()])
        left.append(_beyond(frame, taken, pixel))
    return left


def _beyond(frame: gpd.GeoDataFrame, taken: shapely.Geometry, pixel: float) -> gpd.GeoDataFrame:
    geometries = frame.geometry.to_numpy().copy()
    hit = np.flatnonzero(shapely.intersects(geometries, taken) & ~shapely.touches(geometries, taken))
    for place in hit:
        parts = shapely.get_parts(shapely.difference(geometries[place], taken))
        thick = ~shapely.is_empty(shapely.buffer(parts, -_SLIVER * pixel))
        geometries[place] = shapely.union_all(parts[thick])
    cut = frame.set_geometry(gpd.GeoSeries(geometries, index=frame.index, crs=frame.crs))
    return cut[~cut.geometry.is_empty]
