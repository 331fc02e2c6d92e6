"""Move polygons that were drawn over other imagery onto the edges of this image, each by its own shift.

Roofs lean away from the camera, by more the higher they are, so one shift for a whole
layer is not enough. Each outline is laid over the image at all shifts within reach; the
score of a shift is the mean change of brightness across the outline. Neighbours lean
alike: their scores count too, and small shifts are preferred to large ones.

    python examples/align_labels.py image.tif buildings.geojson aligned.gpkg --reach 6
"""

from __future__ import annotations

from pathlib import Path

import click
import geopandas
import numpy as np
import rasterio
import shapely
import shapely.affinity
from scipy.ndimage import gaussian_filter

STEP_PX = 2
NEIGHBOUR_M = 50.0
WEIGHT_OF_NEIGHBOURS = 1.5
WEIGHT_OF_REACH = 0.7


def align(image: Path, layer: Path, reach_m: float = 6.0) -> geopandas.GeoDataFrame:
    """The polygons of a layer that meet an image, moved onto its edges.

    Args:
        image: GeoTIFF, north-up.
        layer: polygons in any CRS.
        reach_m: greatest shift along each axis, m.

    Returns:
        polygons in the image's CRS, with columns ``east_m`` and ``north_m``.
    """
    with rasterio.open(image) as raster:
        bands, transform, crs = raster.read().astype(np.float32), raster.transform, raster.crs
    polygons = geopandas.read_file(layer).to_crs(crs.to_wkt())
    polygons = polygons[polygons.geometry.notna()].explode(index_parts=False)
    polygons.geometry = polygons.geometry.make_valid().buffer(0)
    frame = shapely.box(*rasterio.transform.array_bounds(*bands.shape[1:], transform))
    polygons = polygons[~polygons.is_empty & polygons.intersects(frame)].explode(index_parts=False)
    slopes = np.stack([[gaussian_filter(band, 2, order=order) for order in ((1, 0), (0, 1))] for band in bands])
    reach = round(reach_m / transform.a / STEP_PX) * STEP_PX
    shifts = np.arange(-reach, reach + 1, STEP_PX)
    scores = np.stack([_scores(slopes, _outline(polygon, ~transform), shifts) for polygon in polygons.geometry])
    chosen = _choose(scores, shapely.get_coordinates(polygons.centroid.values), shifts)
    east, north = chosen[:, 1] * transform.a, chosen[:, 0] * transform.e
    moved = [
        shapely.affinity.translate(polygon, dx, dy)
        for polygon, dx, dy in zip(polygons.geometry, east, north, strict=True)
    ]
    return geopandas.GeoDataFrame({"east_m": east, "north_m": north}, geometry=moved, crs=polygons.crs)


def _outline(polygon: shapely.Polygon, to_pixels: rasterio.Affine) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) along the outline, two pixels apart, as (row, col), and the normals there."""
    x, y = shapely.get_coordinates(polygon.exterior).T
    cols, rows = to_pixels @ (x, y)
    corners = np.stack([rows, cols], axis=1)
    points, normals = [], []
    for begin, edge in zip(corners[:-1], np.diff(corners, axis=0), strict=True):
        length = float(np.hypot(*edge))
        count = max(1, int(length / 2))
        points.append(begin + ((np.arange(count) + 0.5) / count)[:, None] * edge)
        normals.append(np.repeat([[-edge[1], edge[0]]], count, axis=0) / max(length, 1e-6))
    return np.concatenate(points), np.concatenate(normals)


def _scores(slopes: np.ndarray, outline: tuple[np.ndarray, np.ndarray], shifts: np.ndarray) -> np.ndarray:
    """Standardised change across the outline at each shift, (rows, cols); slopes are (bands, 2, rows, cols)."""
    points, normals = outline
    found = np.zeros((len(shifts), len(shifts)))
    height, width = slopes.shape[-2:]
    for index, down in enumerate(shifts):
        rows = np.rint(points[:, 0] + down).astype(int)[None]
        cols = np.rint(points[None, :, 1] + shifts[:, None]).astype(int)
        inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        at = slopes[:, :, np.clip(rows, 0, height - 1), np.clip(cols, 0, width - 1)]
        across = np.abs(at[:, 0] * normals[:, 0] + at[:, 1] * normals[:, 1]).sum(axis=0)
        found[index] = (across * inside).sum(axis=1) / np.maximum(inside.sum(axis=1), 20)
    return gaussian_filter((found - found.mean()) / (found.std() + 1e-6), 0.75)


def _choose(scores: np.ndarray, centres: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """The best (down, right) of each polygon, px, (n, 2)."""
    distance = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))
    near = np.exp(-np.square(distance / NEIGHBOUR_M))
    np.fill_diagonal(near, 0)
    near /= near.sum(axis=1, keepdims=True) + 0.3
    softened = np.stack([gaussian_filter(score, 1.5) for score in scores])
    far = np.square(shifts / (shifts.max() / 2)) / 2
    total = scores + WEIGHT_OF_NEIGHBOURS * np.einsum("ij,jyx->iyx", near, softened)
    total -= WEIGHT_OF_REACH * (far[:, None] + far[None])
    best = total.reshape(len(total), -1).argmax(axis=1)
    return np.stack([shifts[best // len(shifts)], shifts[best % len(shifts)]], axis=1)


@click.command()
@click.argument("image", type=click.Path(exists=True, path_type=Path))
@click.argument("layer", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--reach", default=6.0, show_default=True, help="Greatest shift along each axis, m.")
def main(image: Path, layer: Path, output: Path, reach: float) -> None:
    """Write the polygons of LAYER, moved onto the edges of IMAGE, as OUTPUT."""
    moved = align(image, layer, reach)
    moved.to_file(output)
    east, north = moved["east_m"].median(), moved["north_m"].median()
    print(f"{len(moved)} polygons, median shift {east:.2f} m east, {north:.2f} m north, in {output}")


if __name__ == "__main__":
    main()
