"""Real imagery of many kinds: each loads, trains a few steps and predicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from gimseg import Dataset, Legend, train
from gimseg.delivery import deliver
from gimseg.training import Settings

pytestmark = [pytest.mark.real_data, pytest.mark.slow]

FEW_STEPS = Settings(
    encoder="resnet18",
    network_options={"encoder_depth": 3, "decoder_channels": (32, 16, 8)},
    epochs=1,
    windows_per_epoch=16,
    window=64,
    batch=8,
    exemplars=2,
)


def classes(field: str | None, **values: list[str]) -> Legend:
    """A legend of classes, each with the attribute values that mean it."""
    table = [{"name": name, "values": given} for name, given in values.items()]
    return Legend.from_dict({"classes": table, **({"field": field} if field else {})})


def deadwood(folder: Path) -> Dataset:
    legend = classes("label", standing=["Standing"], fallen=["Fallen"])
    return Dataset("deadwood", 0.1, [folder / "deadwood/R70C21.tif"], [folder / "deadwood/R70C21.shp"], legend=legend)


def buildings(folder: Path) -> Dataset:
    images, truth = folder / "buildings/kampala_ug_0*.tif", folder / "buildings/kampala_ug_labels.geojson"
    return Dataset("kampala", 0.3, [images], [truth])


def banepa_aoi(folder: Path) -> Dataset:
    place = folder / "banepa_big"
    return Dataset(
        "banepa",
        1.2,
        [place / "banepa_big.tif"],
        [place / "banepa_osm_buildings_partial.geojson"],
        [place / "banepa_labelled_aoi.geojson"],
        nodata="auto",
    )


def fields(folder: Path) -> Dataset:
    place = folder / "fields_s2"
    return Dataset(
        "fields",
        10.0,
        [place / "BEFL-TEST-s2_2023-05-01_2023-07-01_B08-B04-B03_min_byte.tif"],
        [place / "fields_BEFL-s2-fields-2023_polygons.gpkg"],
        [place / "fields_BEFL-s2-fields-2023_locations.gpkg"],
        split="traindata_type",
    )


def trees(folder: Path) -> Dataset:
    place = folder / "trees_rgbn"
    tags = ("riverside_2020_1", "santa_monica_2020_1", "santa_monica_2020_4")
    return Dataset(
        "trees",
        0.6,
        [place / f"{tag}.tif" for tag in tags],
        [place / f"{tag}.geojson" for tag in tags],
        bands=(1, 2, 3, 4),
        point_radius_m=1.5,
    )


def landcover(folder: Path) -> Dataset:
    truth = folder / "landcover_s2/aber_class_samples.gpkg"
    return Dataset(
        "landcover",
        10.0,
        [folder / "landcover_s2/sen2_20210527_aber.tif"],
        [truth],
        # Samples: the ground truth is complete inside the polygons alone.
        [truth],
        legend=classes("class", forest=["forest"], grass=["grass"], urban=["urban"], water=["water"]),
    )


def int16(folder: Path) -> Dataset:
    place = folder / "buildings_int16"
    return Dataset("int16", 4.0, [place / "*_clipped.tif"], [place / "*_Buildings.geojson"], bands=(1, 2, 3, 4))


def rgbn(folder: Path) -> Dataset:
    place = folder / "buildings_rgbn"
    return Dataset("rgbn", 0.5, [place / "*_clipped.tif"], [place / "*.geojson"], bands=(1, 2, 3, 4))


def aerial(folder: Path) -> Dataset:
    place = folder / "landcover_aerial"
    legend = Legend.from_dict(
        {"field": "Quatreclasses", "classes": [{"name": f"code {n}", "values": [str(n)]} for n in "1234"]}
    )
    return Dataset("aerial", 1.0, [place / "*.tif"], [place / "BakerLake_2017_clipped.gpkg"], legend=legend)


@pytest.mark.parametrize(
    "make",
    [deadwood, buildings, banepa_aoi, fields, trees, landcover, int16, rgbn, aerial],
    ids=lambda make: make.__name__,
)
def test_it_loads_trains_and_predicts(make, real_data: Path, tmp_path: Path) -> None:
    dataset = make(real_data)
    loss = "bce + focal_tversky" if dataset.classes.is_binary else "ce + focal_tversky"
    model = train(dataset, tmp_path / "model", settings=replace(FEW_STEPS, loss=loss))
    scene = dataset.scenes()[0]
    assert model.recipe.dtype == scene.raster.dtype and len(model.recipe.bands) == len(scene.raster.bands)
    assert all(std > 0 for std in model.recipe.std)
    outputs = [tmp_path / "mask.tif", tmp_path / "polygons.gpkg"]
    made = deliver(dataset.images[0], model, outputs, nodata=dataset.nodata)
    with rasterio.open(outputs[0]) as mask:
        found = mask.read(1)
    allowed = {0, 255, *dataset.classes.values}
    assert set(np.unique(found)) <= allowed
    invalid = ~scene.view.read((slice(0, found.shape[0]), slice(0, found.shape[1]))).valid
    np.testing.assert_array_equal(found == 255, invalid)
    assert made.layers is not None and outputs[1].exists()
