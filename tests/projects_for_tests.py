"""A small project with one correction, whose models are made at random: what matters is where pixels come from.

Plain functions: `from projects_for_tests import make_project`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
import torch
from worlds import TOP_LEFT, UTM, noise, write_raster

from gimseg.correction.rounds import Correction, Project
from gimseg.delivery import deliver
from gimseg.legend import Legend
from gimseg.models import Model, Recipe, build_network

OPTIONS = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
SHAPE = (200, 250)
SEGMENTS = ("big_segments.tif", "big_segments.shp", "big_segments.gpkg")
POLYGONS = {"min_area_m2": 4.0}


def small_model(seed: int, **provenance: Any) -> Model:
    """Random weights; halo and window of its own."""
    torch.manual_seed(seed)
    network = build_network("Unet", "mobilenet_v2", bands=1, channels=1, **OPTIONS).eval()
    recipe = Recipe(
        bands=(1,), mean=(127.0,), std=(70.0,), resolution=1.0, window=64, halo=16, stride=8,
        legend=Legend.binary("bright", "#ff0000"),
    )  # fmt: skip
    architecture = {"name": "Unet", "encoder": "mobilenet_v2", "options": OPTIONS}
    return Model(network, recipe, architecture, {"name": f"model {seed}", **provenance})


def box(top: int, left: int, bottom: int, right: int) -> shapely.Polygon:
    """A rectangle of pixels, on the map."""
    x, y = TOP_LEFT
    return shapely.box(x + left, y - bottom, x + right, y - top)


def draw(path: Path, areas: list[shapely.Polygon], objects: list[shapely.Polygon]) -> None:
    """What an analyst leaves: areas of interest and objects in them."""
    gpd.GeoDataFrame(geometry=areas, crs=UTM).to_file(path, layer="aoi")
    classes = ["bright"] * len(objects)
    gpd.GeoDataFrame({"class": classes}, geometry=objects, crs=UTM).to_file(path, layer="objects")


def make_project(folder: Path, *, segments: tuple[str, ...] = SEGMENTS, **options: Any) -> Project:
    """A raster, its delivered prediction, and the correction ``bad`` that was drawn and learned.

    The network of the new model is not one that learned anything.
    """
    folder.mkdir(exist_ok=True)
    # Coarse blobs: objects larger than a pixel.
    blobs = np.kron(noise((SHAPE[0] // 10, SHAPE[1] // 10)), np.ones((10, 10), np.uint8))
    raster = write_raster(folder / "big.tif", blobs)
    parent = small_model(0)
    parent.save(folder / "parent")
    if segments:
        deliver(raster, folder / "parent", [folder / name for name in segments], window=64, **POLYGONS, **options)
    add_correction(folder, "bad", folder / "parent", 1, segments)
    return Project(folder)


def add_correction(folder: Path, id: str, parent: Path, seed: int, segments: tuple[str, ...] = SEGMENTS) -> Correction:
    """One more correction: another place, and another model."""
    place = folder / "corrections" / id
    place.mkdir(parents=True)
    correction = Correction(
        place, str(parent), (str(folder / "big.tif"),), segments=tuple(str(folder / name) for name in segments)
    )
    correction.write()
    top = 40 + 90 * (seed - 1)
    draw(
        correction.gpkg,
        [box(top, 60, top + 60, 140)],
        [box(top + 10, 70, top + 20, 90), box(top + 30, 80, top + 50, 100)],
    )
    kept = Model.load(parent)
    told = {"folder": str(parent), "fingerprint": kept.fingerprint()}
    small_model(seed, parent=told, learned=[id], corrections=[id]).save(correction.model)
    return correction
