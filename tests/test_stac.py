"""STAC items: valid, reproducible, and true to the files beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from pystac.validation import validate_dict
from shapely.geometry import shape
from stac_model.schema import MLModelProperties
from worlds import noise, north_up, write_raster

from gimseg.delivery import deliver
from gimseg.legend import Legend
from gimseg.models import Model, build_network
from gimseg.products import Products
from gimseg.recipes import Recipe
from gimseg.stac import MLM_SCHEMA, RASTER_SCHEMA

ALL = Products(probabilities=True, uncertainty="margin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two classes on disk."""
    options = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    network = build_network("Unet", "mobilenet_v2", bands=1, channels=3, **options).eval()
    legend = Legend.from_dict({"classes": ["tin roof", "Ziegel – rot"]})
    recipe = Recipe((1,), (128.0,), (70.0,), 1.0, 64, 8, 8, legend)
    made = Model(network, recipe, {"name": "Unet", "encoder": "mobilenet_v2", "options": options})
    return made.save(tmp_path_factory.mktemp("models") / "roofs")


def item_of(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:3857", None])
def test_an_item_is_valid_and_says_where_its_files_lie(folder: Path, crs: str | None, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((70, 90)), crs=crs)
    (tmp_path / "out").mkdir()
    outputs = [tmp_path / "out" / "m.tif", tmp_path / "out" / "m.gpkg"]
    done = deliver(raster, folder, outputs, products=ALL, stac=True)
    assert tmp_path / "out" / "m.json" in done.beside
    table = item_of(tmp_path / "out" / "m.json")
    # The core, against the schema that pystac brings; those of extensions lie behind a network.
    validate_dict(table, stac_object_type=pystac.STACObjectType.ITEM, extensions=[])
    assert {"classes", "probabilities", "uncertainty", "polygons_gpkg", "image", "model"} == set(table["assets"])
    for asset in table["assets"].values():
        assert (tmp_path / "out" / asset["href"]).exists()
    with rasterio.open(outputs[0]) as mask:
        assert table["properties"]["proj:shape"] == list(mask.shape)
        assert table["properties"]["proj:transform"] == list(mask.transform)[:6]
        assert table["properties"]["proj:code"] == crs
        if crs is None:
            assert table["geometry"] is None and "bbox" not in table
        else:
            bounds = rasterio.warp.transform_bounds(mask.crs, "EPSG:4326", *mask.bounds)
            assert np.allclose(shape(table["geometry"]).bounds, bounds) and np.allclose(table["bbox"], bounds)
    with rasterio.open(tmp_path / "out" / "m_probabilities.tif") as shares:
        asset = table["assets"]["probabilities"]
        assert asset["raster:scale"] == shares.scales[0] and asset["nodata"] == shares.nodata
        assert [band["name"] for band in asset["bands"]] == list(shares.descriptions)


def test_the_model_is_described_as_the_extension_wants_it(folder: Path, tmp_path: Path) -> None:
    """By the rules of its schema, and by the data model that its authors publish."""
    raster = write_raster(tmp_path / "image.tif", noise((70, 90)))
    deliver(raster, folder, tmp_path / "m.tif", stac=True)
    table = item_of(tmp_path / "m.json")
    properties = table["properties"]
    assert MLM_SCHEMA in table["stac_extensions"] and RASTER_SCHEMA in table["stac_extensions"]
    found = MLModelProperties.model_validate(properties)
    assert found.name == "gimseg-Unet-mobilenet_v2" and found.total_parameters and found.total_parameters > 1000
    (given,), (made,) = properties["mlm:input"], properties["mlm:output"]
    assert given["input"]["shape"] == [-1, 1, 64, 64] and "bands" in given["input"]["dim_order"]
    assert given["value_scaling"] == [{"type": "z-score", "mean": 128.0, "stddev": 70.0}]
    # Bands that an input names are described by the item.
    assert {"name": given["bands"][0]} in properties["bands"]
    assert [each["value"] for each in made["classification:classes"]] == [0, 1, 2]
    for each in table["assets"]["classes"]["classification:classes"]:
        assert all(sign.isalnum() or sign in "-_" for sign in each["name"]) and each["name"].isascii()
    # An artefact type is for model assets, and for them alone.
    for asset in table["assets"].values():
        assert ("mlm:artifact_type" in asset) == ("mlm:model" in asset["roles"])
    assert not [name for name in properties if name in ("mlm:artifact_type", "mlm:entrypoint")]


def test_averaged_models_are_all_named(folder: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((40, 50)))
    deliver(raster, [folder, folder], tmp_path / "m.tif", stac=True)
    table = item_of(tmp_path / "m.json")
    assert {"model", "model_2"} <= set(table["assets"])
    MLModelProperties.model_validate(table["properties"])


def test_the_same_prediction_gives_the_same_item(folder: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((40, 50)))
    texts = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        deliver(raster, folder, tmp_path / name / "m.tif", stac=True)
        texts.append((tmp_path / name / "m.json").read_bytes())
    assert texts[0] == texts[1]


def test_images_say_when_they_were_taken(folder: Path, tmp_path: Path) -> None:
    for day in (3, 5):
        path = write_raster(tmp_path / f"{day}.tif", noise((40, 50)), transform=north_up(left=500_000 + 50 * day))
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(TIFFTAG_DATETIME=f"2024:06:0{day} 10:30:00")
    deliver(tmp_path / "3.tif", folder, tmp_path / "m.tif", stac=True)
    assert item_of(tmp_path / "m.json")["properties"]["datetime"] == "2024-06-03T10:30:00Z"
    deliver([tmp_path / "3.tif", tmp_path / "5.tif"], folder, tmp_path / "n.tif", stac=True)
    properties = item_of(tmp_path / "n.json")["properties"]
    assert properties["datetime"] is None
    assert (properties["start_datetime"], properties["end_datetime"]) == (
        "2024-06-03T10:30:00Z",
        "2024-06-05T10:30:00Z",
    )
