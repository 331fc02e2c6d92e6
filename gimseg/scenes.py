"""Synthetic aerial scenes from a seed: a picture, its exact ground truth, a CRS, an undeclared border.

They stand in for a drone orthophoto with traced buildings in the demo, the tests
and the documentation, where nothing can be downloaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import geopandas
import numpy as np
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from rasterio.features import rasterize
from shapely.affinity import rotate, translate
from shapely.geometry import Point, Polygon, box

from gimseg.errors import GimsegError, GridError, OutputError
from gimseg.layouts import STYLES, Layout, draw_layout
from gimseg.outputs import check_outputs, staged
from gimseg.painting import View, paint

_BORDER = 255
_LEAST_M = 160.0  # a smaller layout has too few blocks to be a village
_MARGIN_M = 25.0  # longer than any shadow


@dataclass(frozen=True)
class Scene:
    """A picture and what is on it.

    Attributes:
        image: uint8 (3, rows, cols); 255 in all bands on the border.
        valid: bool (rows, cols), False on the border. The file does not declare it.
        geobox: where the pixels are.
        buildings: one Polygon a building, as far as it is on the picture, in the
            geobox's CRS; column `material` (one of `gimseg.layouts.MATERIALS`).
        objects: everything else, column `kind`: road, field, tree, pond, car, floor (bare clay).
    """

    image: np.ndarray
    valid: np.ndarray
    geobox: GeoBox
    buildings: geopandas.GeoDataFrame
    objects: geopandas.GeoDataFrame


class ScenePaths(NamedTuple):
    """The two files of a scene."""

    image: Path
    labels: Path


def make_scene(
    seed: int,
    shape: tuple[int, int] = (1024, 1024),
    *,
    resolution: float = 0.3,
    crs: str = "EPSG:32637",
    style: str = "village",
    border: bool = True,
) -> Scene:
    """Draw a scene. The same arguments give the same scene, byte for byte.

    Scenes of different seeds (below 4096) do not overlap on the ground. One seed and
    one extent give one layout at every resolution.

    Args:
        seed: 0 or more.
        shape: (rows, cols), px.
        resolution: metres a pixel, 0.05 to 2.
        crs: a projected CRS in metres.
        style: one of `gimseg.layouts.STYLES`: village, farmland, town, highland.
        border: leave a slanted white border, as warped orthophotos have it.

    Raises:
        GridError: the CRS is not in metres, or the shape or resolution is out of range.
        GimsegError: no such style.

    Example:
        >>> scene = make_scene(7, (64, 96), resolution=0.5)
        >>> scene.image.shape, scene.geobox.shape, scene.geobox.crs.epsg
        ((3, 64, 96), Shape2d(x=96, y=64), 32637)
    """
    _check(shape, resolution, style)
    rows, cols = shape
    width, height = cols * resolution, rows * resolution
    spread = max(width, _LEAST_M) + 2 * _MARGIN_M, max(height, _LEAST_M) + 2 * _MARGIN_M
    layout = draw_layout(seed, *spread, STYLES[style])
    left, bottom = _corner(layout, width, height)
    view = View(shape, resolution, left, bottom)
    seen = _seen(seed, box(left, bottom, left + width, bottom + height), border)
    image = paint(layout, view, seed)
    valid = rasterize([(seen, 1)], shape, transform=view.transform(), dtype="uint8").astype(bool)
    image[:, ~valid] = _BORDER
    x, y = _origin(seed, crs)
    geobox = GeoBox(shape, Affine(resolution, 0, x, 0, -resolution, y), crs)
    buildings, objects = _layers(layout, seen, crs, x - left, y - bottom - height)
    return Scene(image, valid, geobox, buildings, objects)


def _check(shape: tuple[int, int], resolution: float, style: str) -> None:
    if min(shape) < 16:
        raise GridError(f"a scene of {shape[0]} x {shape[1]} pixels was asked for: at least 16 x 16 are needed")
    if not 0.05 <= resolution <= 2:
        raise GridError(f"a scene of {resolution} m a pixel was asked for: choose from 0.05 to 2 m")
    if style not in STYLES:
        raise GimsegError(f"no style {style!r}: choose one of {', '.join(STYLES)}")


def _corner(layout: Layout, width: float, height: float) -> tuple[float, float]:
    """Lower left corner (m) of the picture in its layout; a small picture is centred on a building."""
    low, spread = np.full(2, _MARGIN_M), np.array(layout.area.bounds[2:])
    corner = (spread - (width, height)) / 2
    if min(width, height) < 100 and layout.buildings:
        middle = layout.area.centroid
        nearest = min((b.footprint.centroid for b in layout.buildings), key=middle.distance)
        corner = np.array([nearest.x, nearest.y]) - np.array([width, height]) / 2
    corner = np.clip(corner, low, np.maximum(spread - low - (width, height), low))
    return float(corner[0]), float(corner[1])


def _seen(seed: int, extent: Polygon, border: bool) -> Polygon:
    """The part of the extent that the picture covers: with a border, two of its sides are slanted."""
    if not border:
        return extent
    rng = np.random.default_rng([seed, 3])
    pivot = shapely.get_point(extent.exterior, int(rng.integers(4)))
    return rotate(extent, float(rng.choice([-1, 1]) * rng.uniform(2.5, 4.5)), origin=pivot).intersection(extent)


def _origin(seed: int, crs: str) -> tuple[float, float]:
    """Upper left corner (m) of a scene, kilometres apart from those of other seeds, in the CRS's own area."""
    system = CRS.from_user_input(crs)
    if not system.is_projected or any(axis.unit_name != "metre" for axis in system.axis_info):
        raise GridError(f"{crs} is not a projected CRS in metres: give one, for example EPSG:32637")
    x, y = 500_000.0, 1_000_000.0
    if system.area_of_use:
        west, south, east, north = system.area_of_use.bounds
        to_metres = Transformer.from_crs("EPSG:4326", system, always_xy=True)
        x, y = to_metres.transform((west + east) / 2, (south + north) / 2)
    return round(x) + 2000.0 * (seed % 64 - 32), round(y) + 2000.0 * (seed // 64 % 64 - 32)


def _layers(
    layout: Layout, seen: Polygon, crs: str, east: float, north: float
) -> tuple[geopandas.GeoDataFrame, geopandas.GeoDataFrame]:
    """Buildings and other objects as far as they are seen, moved from layout metres to the CRS."""
    houses = [(building.material, building.footprint) for building in layout.buildings]
    others = [("road", road.line.buffer(road.width / 2)) for road in layout.roads]
    others += [("field", parcel.polygon) for parcel in layout.parcels if parcel.cover not in ("yard", "wood")]
    others += [("tree", Point(tree.x, tree.y).buffer(tree.radius, 4)) for tree in layout.trees]
    others += [("pond", pond) for pond in layout.ponds] + [("car", car.to_polygon()) for car in layout.cars]
    others += [("floor", floor.to_polygon()) for floor in layout.floors]
    frames = []
    for column, things in (("material", houses), ("kind", others)):
        clipped = shapely.intersection([geometry for _, geometry in things], seen)
        parts, owners = shapely.get_parts(clipped, return_index=True)
        # A corner that no pixel can show is no building.
        keep = (shapely.get_type_id(parts) == 3) & (shapely.area(parts) > 0.5)
        moved = [translate(part, east, north) for part in parts[keep]]
        names = [things[owner][0] for owner in owners[keep]]
        frames.append(geopandas.GeoDataFrame({column: names}, geometry=moved, crs=crs))
    return frames[0], frames[1]


def write_scene(
    scene: Scene,
    folder: str | os.PathLike[str],
    tag: str,
    *,
    labels_crs: str = "EPSG:4326",
    labels_format: str = ".geojson",
    overwrite: bool = False,
) -> ScenePaths:
    """Write `<tag>.tif` and `<tag>_labels<labels_format>`, the labels in a CRS of their own.

    Args:
        scene: what to write.
        folder: an existing folder.
        tag: the beginning of both names.
        labels_crs: CRS of the building polygons.
        labels_format: `.geojson`, `.shp`, `.gpkg` or `.fgb`.
        overwrite: existing files may be replaced.

    Returns:
        (image, labels).

    Raises:
        OutputError: a file exists, the folder does not, or the format is unknown.
    """
    drivers = {".geojson": "GeoJSON", ".shp": "ESRI Shapefile", ".gpkg": "GPKG", ".fgb": "FlatGeobuf"}
    if labels_format not in drivers:
        raise OutputError(f"no label format {labels_format!r}: choose one of {', '.join(drivers)}")
    paths = ScenePaths(Path(folder) / f"{tag}.tif", Path(folder) / f"{tag}_labels{labels_format}")
    check_outputs(paths, overwrite=overwrite)
    rows, cols = scene.valid.shape
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": rows, "width": cols, "photometric": "rgb"}
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "predictor": 2}
    crs, transform = str(scene.geobox.crs), scene.geobox.affine
    with (
        staged(paths.image) as path,
        rasterio.open(path, "w", **profile, **layout, crs=crs, transform=transform) as file,
    ):
        file.write(scene.image)
    # GDAL's seven digits are a centimetre: labels must lie where the pixels say.
    digits = {"COORDINATE_PRECISION": 10} if labels_format == ".geojson" else {}
    with staged(paths.labels) as path:
        scene.buildings.to_crs(labels_crs).to_file(path, driver=drivers[labels_format], engine="pyogrio", **digits)
    return paths
