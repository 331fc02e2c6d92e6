"""Laws of rasters that are normalised by their own statistics: gain and offset drop out, cutting changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from networks_for_tests import Reach, model
from shapely.geometry import box
from test_training import QUICK, squares_world
from worlds import TOP_LEFT, UTM, north_up, write_raster

from gimseg import Dataset, Model, evaluate, train
from gimseg.averaging import combine_models
from gimseg.correction.suggesting import suggest
from gimseg.datasets import Datasets
from gimseg.errors import PredictionError
from gimseg.inference import Predictor, predict
from gimseg.levelling import measure
from gimseg.rasters import open_raster
from gimseg.training import TrainingWindows, begin

LEFT, TOP = TOP_LEFT


def image(seed: int = 0, shape: tuple[int, int] = (150, 120)) -> np.ndarray:
    """uint16 (rows, cols), bright to the right, with a hole of nodata, 0."""
    values = np.random.default_rng(seed).integers(100, 900, shape) + np.arange(shape[1])
    values[20:40, 30:60] = 0
    return values.astype(np.uint16)


def again(values: np.ndarray) -> np.ndarray:
    """As a sensor with another gain and offset has it; nodata stays."""
    return np.where(values > 0, 4 * values + 500, 0).astype(np.uint16)


def levelling_model(**changes: object) -> Model:
    given = {"dtype": "uint16", "own_levels": True, "halo": 8, **changes}
    return model(Reach(4), **given)


def written(folder: Path, values: np.ndarray, name: str, **options: object) -> Path:
    return write_raster(folder / name, values, nodata=0, **options)  # type: ignore[arg-type]


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


@pytest.mark.parametrize("tiles", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 32}])
def test_statistics_are_those_of_all_valid_pixels(tmp_path: Path, tiles: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    values = image()
    view = open_raster(written(tmp_path, values, "a.tif", **tiles)).on(open_raster(tmp_path / "a.tif").grid())
    (mean,), (std,) = measure(view).levels
    known = values[values > 0].astype(float)
    assert (mean, std) == pytest.approx((known.mean(), known.std()))
    for side in (7, 64):
        monkeypatch.setattr("gimseg.levelling._ROWS", side)
        monkeypatch.setattr("gimseg.levelling._COLS", side)
        assert np.allclose(measure(view).levels, ((mean,), (std,)), rtol=1e-12)


def test_gain_and_offset_drop_out(tmp_path: Path) -> None:
    one, other = written(tmp_path, image(), "one.tif"), written(tmp_path, again(image()), "other.tif")
    predictor = Predictor(levelling_model(), backend="torch", precision="float32")
    masks = [predictor.predict(path, tmp_path / f"{path.stem}_mask.tif").path for path in (one, other)]
    found, wanted = (read(path) for path in masks)
    assert np.array_equal(found, wanted) and {0, 1, 255} == set(np.unique(found))
    plain = Predictor(levelling_model(own_levels=False, mean=(500.0,), std=(230.0,)), backend="torch")
    assert not np.array_equal(*(read(plain.predict(path, tmp_path / f"p_{path.name}").path) for path in (one, other)))


@pytest.mark.parametrize("options", [{}, {"match_input": True}, {"refine": "guided(2 px), open(1 px)"}])
def test_the_block_size_does_not_matter(tmp_path: Path, options: dict) -> None:
    path = written(tmp_path, image(), "image.tif", transform=north_up(0.5))
    made = levelling_model()
    for block in (32, 2048):
        predict(path, made, output=tmp_path / f"{block}.tif", block_size=block, **options)
    assert (tmp_path / "32.tif").read_bytes() == (tmp_path / "2048.tif").read_bytes()
    with rasterio.open(tmp_path / "32.tif") as mask:
        mean, std = map(float, mask.tags()["gimseg_levels"].split())
    view = open_raster(path).on(open_raster(path).grid(1.0))
    assert np.allclose(((mean,), (std,)), measure(view).levels)


def test_an_area_of_interest_and_an_array_have_the_pixels_of_the_whole(tmp_path: Path) -> None:
    import geopandas

    path = written(tmp_path, image(), "image.tif")
    area = box(LEFT + 10, TOP - 90, LEFT + 60, TOP - 10)
    geopandas.GeoDataFrame(geometry=[area], crs=UTM).to_file(tmp_path / "aoi.gpkg")
    made = levelling_model()
    whole = read(predict(path, made, output=tmp_path / "whole.tif").path)
    part = read(predict(path, made, output=tmp_path / "part.tif", aoi=tmp_path / "aoi.gpkg").path)
    assert (part != 255).any() and np.array_equal(part[part != 255], whole[part != 255])
    grid = open_raster(path).grid()
    assert np.array_equal(Predictor(made).predict_array(image(), grid, nodata=0).classes, whole)


def test_what_a_mask_was_normalised_by_is_remembered_and_told(tmp_path: Path) -> None:
    predictor = Predictor(levelling_model())
    one, other = written(tmp_path, image(), "one.tif"), written(tmp_path, np.zeros((40, 40), np.uint16), "empty.tif")
    plan = predictor.plan(one, tmp_path / "m.tif")
    (mean,), (std,) = plan.identity["levels"]
    assert f"mean {mean:.4g}, deviation {std:.4g}" in plan.text()
    assert (read(predict(other, predictor.model, output=tmp_path / "e.tif").path) == 255).all()
    assert "levels" not in Predictor(levelling_model(own_levels=False)).plan(one, tmp_path / "m.tif").identity


def test_scores_are_those_of_the_mask(tmp_path: Path) -> None:
    path = written(tmp_path, image(), "image.tif")
    import geopandas

    square = box(LEFT + 10, TOP - 50, LEFT + 50, TOP - 10)
    geopandas.GeoDataFrame(geometry=[square], crs=UTM).to_file(tmp_path / "truth.gpkg")
    data, made = Dataset("w", 1.0, [path], [tmp_path / "truth.gpkg"]), levelling_model()
    for chain in (None, "guided(2 px)"):
        mask = predict(path, made, output=tmp_path / "mask.tif", refine=chain, overwrite=True).path
        found = evaluate(made, data, refine=chain).of_split()
        assert (found.matrix == evaluate(mask, data).of_split().matrix).all()


def test_models_that_normalise_otherwise_are_not_averaged() -> None:
    with pytest.raises(PredictionError, match="own statistics"):
        combine_models([levelling_model(), levelling_model(own_levels=False)])
    both = combine_models([levelling_model(), levelling_model()])
    assert both.recipe.own_levels and both.recipe.bands == (1,)


def test_areas_are_suggested_by_what_is_predicted(tmp_path: Path) -> None:
    one, other = written(tmp_path, image(), "one.tif"), written(tmp_path, again(image()), "other.tif")
    layers = [tmp_path / "one.gpkg", tmp_path / "other.gpkg"]
    found = [suggest(path, levelling_model(), layer, count=2) for path, layer in zip((one, other), layers, strict=True)]
    assert found[0].suggestions == found[1].suggestions


@pytest.mark.slow
def test_training_brings_each_dataset_to_the_same_levels(tmp_path: Path) -> None:
    worlds = []
    for name, gain in (("one", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        world = squares_world(tmp_path / name)
        (path,) = world.images
        with rasterio.open(path, "r+") as file:
            file.write((file.read() // 3 * gain + 20 * (gain - 1)).astype(file.dtypes[0]))
        worlds.append(replace(world, tag=name))
    settings = replace(QUICK, epochs=1, windows_per_epoch=16, normalise="dataset", exemplars=2, precision="float32")
    beginning = begin(Datasets(tuple(worlds)), settings)
    assert beginning.recipe.own_levels and beginning.recipe.dtype == "uint8"
    assert (beginning.recipe.mean, beginning.recipe.std) == ((0.0,) * 3, (1.0,) * 3)
    views = [item.scene.view.read((slice(0, 64), slice(0, 64))).data for item in beginning.ground.train]
    np.testing.assert_allclose(views[0], views[-1], atol=1e-4)
    windows = TrainingWindows(beginning.recipe, beginning.ground, replace(settings, augmentation=None))
    images = torch.stack([sample["image"] for sample in windows.train_dataloader().dataset])
    assert images.mean().abs() < 0.5 and 0.5 < images.std() < 2

    made = train(Datasets(tuple(worlds)), tmp_path / "model", settings=settings)
    assert Model.load(tmp_path / "model").recipe == made.recipe and made.recipe.own_levels
    with rasterio.open(tmp_path / "model" / "exemplars" / "000_image.tif") as kept:
        assert kept.dtypes[0] == "float32" and abs(kept.read().mean()) < 2
    masks = [read(predict(world.images[0], made, output=tmp_path / f"{world.tag}.tif").path) for world in worlds]
    assert np.mean(masks[0] != masks[1]) < 1e-3
