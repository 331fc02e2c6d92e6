"""Planted errors, roofs that are missed and soil that is taken for roofs, are gone after one correction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import geopandas
import pytest
import rasterio
from rasterio.features import rasterize

from gimseg import Dataset, Model, correct, evaluate, predict, train
from gimseg.correction.learning import LEARNING
from gimseg.layouts import TURF
from gimseg.scenes import Scene, make_scene, write_scene
from gimseg.settings import Settings

SIDE, RESOLUTION = 448, 0.5
"""Of all scenes, px and metres a pixel."""
AREA = 320
"""Side of what is drawn, px."""
SETTINGS = Settings(epochs=4, windows_per_epoch=240, window=128, averaging=0.97)


class Errors(NamedTuple):
    """Shares of the pixels, 0 to 1: of turf roofs that are missed, and of clay floors that are taken for roofs."""

    missed: float
    alarms: float


class PlantedErrors(NamedTuple):
    """What became of them, and the IoU on a scene of the kind that was learned first."""

    before: Errors
    after: Errors
    old_before: float
    old_after: float


def world(folder: Path, seed: int, style: str, **options: object) -> Dataset:
    """A synthetic scene as a dataset. Only the style "highland" has turf roofs and clay floors."""
    paths = write_scene(scene(seed, style), folder, f"{style}{seed}")
    return Dataset(f"{style}{seed}", RESOLUTION, [paths.image], [paths.labels], **options)  # type: ignore[arg-type]


def scene(seed: int, style: str) -> Scene:
    return make_scene(seed, (SIDE, SIDE), resolution=RESOLUTION, style=style, border=False)


def square(folder: Path, seed: int, side: int) -> Path:
    """An area of interest: the middle of a highland scene, `side` px wide."""
    grid = scene(seed, "highland").geobox
    margin = (SIDE - side) // 2
    area = grid[margin : margin + side, margin : margin + side].extent.geom
    path = folder / f"aoi{seed}.geojson"
    geopandas.GeoDataFrame(geometry=[area], crs=str(grid.crs)).to_crs("EPSG:4326").to_file(path)
    return path


def planted(model: Model, highland: Dataset, seed: int, folder: Path) -> Errors:
    """How much of what was planted in a scene a model gets wrong."""
    drawn = scene(seed, "highland")
    predict(highland.images[0], model, output=folder / "mask.tif", overwrite=True)
    with rasterio.open(folder / "mask.tif") as file:
        found = file.read(1) == 1
        turf, floors = (
            rasterize(shapes, found.shape, transform=file.transform, dtype="uint8").astype(bool)
            for shapes in (
                drawn.buildings.geometry[drawn.buildings["material"] == TURF],
                # A crown over a floor is no soil.
                drawn.objects.geometry[drawn.objects["kind"] == "floor"],
            )
        )
    return Errors(float(1 - found[turf].mean()), float(found[floors].mean()))


def iou(model: Model, dataset: Dataset) -> float:
    return float(evaluate(model, dataset).of_split().iou[1])


def correct_planted(folder: Path, seed: int, settings: Settings) -> PlantedErrors:
    """Train a model that has never seen what is planted, draw a square of it right, learn that."""
    first = 11 + 10 * seed
    learned = world(folder, first, "village") + world(folder, first + 1, "town") + world(folder, first + 2, "village")
    old = world(folder, first + 3, "village")
    other, bad = world(folder, first + 4, "highland"), world(folder, first + 5, "highland")
    parent = train(learned, folder / "model", settings=replace(SETTINGS, seed=seed))
    before, was = planted(parent, other, first + 4, folder), iou(parent, old)
    drawn = replace(bad, aoi_paths=[square(folder, first + 5, AREA)])
    done = correct.train(drawn, project=folder, model=folder / "model", settings=replace(settings, seed=seed))
    return PlantedErrors(before, planted(done.model, other, first + 4, folder), was, iou(done.model, old))


@pytest.mark.slow
def test_missed_roofs_and_false_alarms_are_gone_after_one_correction(tmp_path: Path) -> None:
    found = correct_planted(tmp_path, 0, LEARNING)
    # The errors are there: else their absence in the end would tell nothing.
    assert found.old_before > 0.7 and found.before.missed > 0.5 and found.before.alarms > 0.5
    assert found.after.missed < 0.3 and found.after.alarms < 0.1
    assert found.old_after >= found.old_before - 0.01
