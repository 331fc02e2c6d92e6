"""Laws of scores: known masks have known scores; pictures show what they say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
from networks_for_tests import brightness_model
from shapely.geometry import box
from worlds import TOP_LEFT, UTM, noise, write_raster

from gimseg import Dataset, Legend, evaluate
from gimseg.errors import DatasetError, OutputError, RefinementError
from gimseg.inference import predict
from gimseg.pictures import FALSE_ALARM, HIT, MISS, blend, label_overlay, outcome_overlay, to_rgb

LEFT, TOP = TOP_LEFT


@pytest.fixture
def world(tmp_path: Path) -> Dataset:
    """100 x 100 pixels with a square of 40 x 40."""
    write_raster(tmp_path / "image.tif", noise((3, 100, 100)))
    square = box(LEFT + 10, TOP - 50, LEFT + 50, TOP - 10)
    geopandas.GeoDataFrame(geometry=[square], crs=UTM).to_file(tmp_path / "truth.gpkg")
    return Dataset("w", 1.0, [tmp_path / "image.tif"], [tmp_path / "truth.gpkg"])


def mask_of(folder: Path, rows: slice, cols: slice, name: str = "mask.tif") -> Path:
    values = np.zeros((100, 100), np.uint8)
    values[rows, cols] = 1
    return write_raster(folder / name, values, nodata=255)


def test_known_masks_have_known_scores(world: Dataset, tmp_path: Path) -> None:
    exact = evaluate(mask_of(tmp_path, slice(10, 50), slice(10, 50)), world).of_split()
    assert exact.iou[1] == exact.f1[1] == exact.accuracy == 1
    half = evaluate([mask_of(tmp_path, slice(10, 50), slice(10, 30), "half.tif")], world).of_split()
    assert half.iou[1] == half.recall[1] == 0.5 and half.precision[1] == 1
    assert half.accuracy == pytest.approx(1 - 800 / 10_000)


def test_a_mask_that_is_half_as_fine_is_read_where_it_lies(world: Dataset, tmp_path: Path) -> None:
    values = np.zeros((50, 50), np.uint8)
    values[5:25, 5:25] = 1
    from worlds import north_up

    coarse = write_raster(tmp_path / "coarse.tif", values, transform=north_up(2.0), nodata=255)
    assert evaluate(coarse, world).of_split().iou[1] == 1


def test_pixels_that_the_mask_leaves_out_are_misses(world: Dataset, tmp_path: Path) -> None:
    values = np.full((100, 100), 255, np.uint8)
    values[10:30, 10:50] = 1
    mask = write_raster(tmp_path / "mask.tif", values, nodata=255)
    assert evaluate(mask, world).of_split().recall[1] == 0.5


def test_only_the_split_that_was_asked_for(world: Dataset, tmp_path: Path) -> None:
    areas = [box(LEFT, TOP - 100, LEFT + 30, TOP), box(LEFT + 30, TOP - 100, LEFT + 100, TOP)]
    geopandas.GeoDataFrame({"use": ["train", "test"]}, geometry=areas, crs=UTM).to_file(tmp_path / "aoi.gpkg")
    given = replace(world, aoi_paths=[tmp_path / "aoi.gpkg"], split="use")
    mask = mask_of(tmp_path, slice(10, 50), slice(10, 30))
    scores = evaluate(mask, given)
    assert scores.splits == ("test", "train")
    assert scores.of_split("train").iou[1] == 1 and scores.of_split("test").iou[1] == 0
    assert evaluate(mask, given, split="test").splits == ("test",)
    assert scores.of_split().total == 10_000


def test_what_is_written_reads_back(world: Dataset, tmp_path: Path) -> None:
    mask = mask_of(tmp_path, slice(10, 50), slice(10, 30))
    scores = evaluate(mask, world, output=tmp_path / "s.json", plot=tmp_path / "s.png")
    table = json.loads((tmp_path / "s.json").read_text())
    assert table["rasters"][0]["dataset"] == "w" and table == json.loads(json.dumps(scores.to_dict()))
    assert "0.500" in scores.table()
    with pytest.raises(OutputError, match="--overwrite"):
        evaluate(mask, world, output=tmp_path / "s.json")


def test_a_model_is_scored_at_its_own_resolution(world: Dataset) -> None:
    model = brightness_model()
    scores = evaluate(model, replace(world, spatial_resolution=0.5))
    assert scores.of_split().total == 10_000


@pytest.mark.parametrize("text", ["open(1 m), fill(9 px)", "tv(0.2, iterations=4), guided(2 px)", "crf(2 m)"])
def test_a_model_that_is_refined_has_the_scores_of_its_refined_mask(text: str, world: Dataset, tmp_path: Path) -> None:
    areas = [box(LEFT + 5, TOP - 40, LEFT + 30, TOP - 20), box(LEFT + 60, TOP - 90, LEFT + 70, TOP - 60)]
    geopandas.GeoDataFrame(geometry=areas, crs=UTM).to_file(tmp_path / "aoi.gpkg")
    made, bands = brightness_model(0.0, mean=(128.0,), std=(40.0,)), replace(world, bands=[1])
    for given in (bands, replace(bands, aoi_paths=[tmp_path / "aoi.gpkg"])):
        scores = evaluate(made, given, refine=text)
        predict(world.images[0], made, output=tmp_path / "mask.tif", refine=text, overwrite=True)
        wanted = evaluate(tmp_path / "mask.tif", given)
        assert (scores.of_split().matrix == wanted.of_split().matrix).all()
        assert (scores.of_split().matrix != evaluate(made, given).of_split().matrix).any()
        assert scores.together[0].best_threshold() == evaluate(made, given).together[0].best_threshold()


def test_a_mask_is_refined_before_it_is_scored(world: Dataset, tmp_path: Path) -> None:
    values = np.zeros((100, 100), np.uint8)
    values[10:50, 10:50] = 1
    values[20:22, 20:22], values[80:82, 80:82] = 0, 1
    mask = write_raster(tmp_path / "mask.tif", values, nodata=255)
    assert evaluate(mask, world).of_split().iou[1] < 1
    assert evaluate(mask, world, refine="drop(9 m2), fill(9 m2)").of_split().iou[1] == 1
    with pytest.raises(RefinementError, match="need probabilities"):
        evaluate(mask, world, refine="tv(0.1)")
    with pytest.raises(RefinementError, match="px are the most"):
        evaluate(mask, world, refine="drop(1000000 m2)")


def test_what_does_not_fit_is_told(world: Dataset, tmp_path: Path) -> None:
    far = write_raster(tmp_path / "far.tif", np.zeros((9, 9), np.uint8), crs="EPSG:32635")
    with pytest.raises(DatasetError, match="meets"):
        evaluate(far, world)
    legend = Legend.from_dict({"classes": [{"name": "a"}, {"name": "b"}]})
    with pytest.raises(DatasetError, match="classes"):
        evaluate(brightness_model(), replace(world, legend=legend))
    mask = mask_of(tmp_path, slice(10, 50), slice(10, 30))
    with pytest.raises(DatasetError, match="no labelled pixel"):
        evaluate(mask, replace(world, split="train"), split="test")


def test_outcomes_have_their_colours() -> None:
    truth = np.array([[1, 1, 0, 0, 255]], np.uint8)
    prediction = np.array([[1, 0, 1, 0, 1]], np.uint8)
    overlay = outcome_overlay(truth, prediction)
    assert [tuple(pixel[:3]) for pixel in overlay[0, :3]] == [HIT, MISS, FALSE_ALARM]
    assert overlay[0, 3, 3] == 0


def test_images_of_any_range_and_bands_become_pictures() -> None:
    for image in (
        np.zeros((1, 4, 4)),
        np.random.default_rng(0).normal(1000, 200, (10, 4, 4)),
        np.full((3, 4, 4), np.pi),
    ):
        picture = to_rgb(image.astype(np.float32))
        assert picture.shape == (4, 4, 3) and picture.dtype == np.uint8
    labels = np.array([[0, 1], [255, 1]], np.uint8)
    assert blend(np.zeros((2, 2, 3), np.uint8), label_overlay(labels, Legend.binary())).shape == (2, 2, 3)
    assert not math.isnan(blend(np.zeros((2, 2, 3), np.uint8), None).sum())
