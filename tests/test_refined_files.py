"""Laws of refinement on files: however a raster is cut, masks and polygons are those of the whole, refined."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from networks_for_tests import brightness_model, model
from odc.geo.geobox import GeoBox
from rasterio.features import shapes as features
from scipy.ndimage import gaussian_filter
from shapely.geometry import shape
from worlds import UTM, noise, north_up, write_raster

from gimseg import vectorize
from gimseg.errors import RefinementError
from gimseg.inference import Predictor, predict
from gimseg.legend import Legend
from gimseg.masks import Mask, Reading
from gimseg.products import Products, to_shares
from gimseg.refinement import Ground, Refinement

PIXEL = (1.0, 1.0)
TWO = Legend.from_dict({"classes": [{"name": "tin", "value": 3}, {"name": "tile", "value": 7}]})
CHAINS = (
    "open(2 px), fill(9 px)",
    "tv(0.2, iterations=8), majority(2 px), drop(12 px)",
    "guided(2 px), close(1 px)",
    "bilateral(2 px), crf(2 px, iterations=2), fill(9 px)",
)


class ThreeWays(torch.nn.Module):
    """Band 1 as logits of background, its negative of class 1, nothing of class 2."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images, -images, torch.zeros_like(images)], dim=1)


def patchy(shape: tuple[int, int] = (1100, 300), seed: int = 0) -> np.ndarray:
    """Patches a few pixels wide and noise, with a hole without image at the row where regions meet."""
    rng = np.random.default_rng(seed)
    waves = gaussian_filter(rng.normal(0, 1, shape), 3)
    image = np.clip(128 + 60 * waves / waves.std() + rng.normal(0, 25, shape), 1, 255)
    image[500:530, 40:60] = 0
    return image.astype(np.uint8)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


@pytest.mark.parametrize("text", [*CHAINS, "hysteresis(0.4, 0.8, reach=6 px), fill(20 px)"])
def test_a_refined_mask_is_the_whole_refined_whatever_the_blocks(text: str, tmp_path: Path) -> None:
    image = patchy()
    raster = write_raster(tmp_path / "image.tif", image, nodata=0)
    made = brightness_model(0.0, mean=(128.0,), std=(40.0,))
    for block in (64, 2048):
        predict(raster, made, output=tmp_path / f"{block}.tif", refine=text, block_size=block)
    assert (tmp_path / "64.tif").read_bytes() == (tmp_path / "2048.tif").read_bytes()
    predict(raster, made, output=tmp_path / "plain.tif", products=Products(probabilities=True))
    shares = np.nan_to_num(to_shares(read(tmp_path / "plain_probabilities.tif")))
    normal = ((image.astype(np.float32) - 128) / 40)[None]
    whole = Refinement.parse(text).apply(shares, Ground(image > 0, PIXEL, np.where(image > 0, normal, 0)))
    refined, plain = read(tmp_path / "64.tif")[0], read(tmp_path / "plain.tif")[0]
    assert np.array_equal(refined, whole)
    assert (refined != plain).mean() > 0.01 and ((refined == 255) == (plain == 255)).all()
    assert not (tmp_path / "64_probabilities.tif").exists()


@pytest.mark.parametrize("text", CHAINS)
def test_several_classes_keep_their_values(text: str, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", patchy((600, 200)), nodata=0)
    made = model(ThreeWays(), legend=TWO, mean=(128.0,), std=(40.0,))
    for block in (64, 2048):
        predict(raster, made, output=tmp_path / f"{block}.tif", refine=text, block_size=block)
    assert (tmp_path / "64.tif").read_bytes() == (tmp_path / "2048.tif").read_bytes()
    assert set(np.unique(read(tmp_path / "64.tif"))) <= {0, 3, 7, 255}
    with rasterio.open(tmp_path / "64.tif") as mask:
        assert Refinement.parse(mask.tags()["gimseg_refine"]) == Refinement.parse(text)


def test_an_array_is_refined_like_a_file_and_on_the_grid_of_the_input(tmp_path: Path) -> None:
    image = patchy((700, 200))
    raster = write_raster(tmp_path / "image.tif", image, nodata=0, transform=north_up(0.5))
    predictor = Predictor(brightness_model(0.0, mean=(128.0,), std=(40.0,)))
    chain = Refinement.parse("tv(0.1, iterations=5), open(1 m), fill(4 m2)")
    grid = GeoBox(image.shape, north_up(0.5), UTM)
    for matches in (False, True):
        done = predictor.predict(raster, tmp_path / f"{matches}.tif", refine=chain, match_input=matches)
        found = predictor.predict_array(image, grid, nodata=0, refine=chain, match_input=matches)
        assert done.shape == ((700, 200) if matches else (350, 100))
        assert np.array_equal(read(done.path)[0], found.classes)


def test_another_refinement_is_another_run(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((60, 60)))
    predictor = Predictor(brightness_model(0.0, mean=(128.0,), std=(40.0,)))
    plans = [predictor.plan(raster, tmp_path / "m.tif", refine=text) for text in (None, "open(1 px)", "open(2 px)")]
    assert len({plan.run_id for plan in plans}) == 3
    assert "open(2 px)" in plans[2].text() and "refined" not in plans[0].text()


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("hysteresis(0.3, 0.6)", {"legend": TWO}, "one class"),
        ("drop(1000000 m2)", {}, "look"),
        ("blur(1)", {}, "unknown"),
    ],
)
def test_what_cannot_be_refined_is_told_before_the_work(text: str, options: dict, told: str, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((60, 60)))
    made = model(ThreeWays(), **options) if options else brightness_model()
    with pytest.raises(RefinementError, match=told):
        predict(raster, made, output=tmp_path / "m.tif", refine=text)
    assert [path.name for path in tmp_path.iterdir()] == ["image.tif"]


def test_metres_need_a_crs(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "image.tif", noise((60, 60)), crs=None)
    made = brightness_model(crs_unit="unit")
    with pytest.raises(RefinementError, match="give lengths in px"):
        predict(raster, made, output=tmp_path / "m.tif", refine="open(1 m)")
    predict(raster, made, output=tmp_path / "m.tif", refine="open(1 px)")
    with pytest.raises(RefinementError, match="give lengths in px"):
        vectorize(tmp_path / "m.tif", tmp_path / "m.gpkg", refine="open(1 m)")


@pytest.mark.parametrize("block", [32, 100, 4096])
def test_polygons_are_those_of_the_refined_mask(block: int, tmp_path: Path) -> None:
    values = (patchy((420, 130)) > 128).astype(np.uint8) * 5
    values[patchy((420, 130), 1) > 200] = 9
    values[100:140, 30:50] = 255
    mask = write_raster(tmp_path / "mask.tif", values, nodata=255)
    text = "open(1.5 px), majority(2 px), fill(9 px), drop(6 px)"
    vectorize(mask, tmp_path / "out.parquet", refine=text, block=block, overwrite=True)
    found = gpd.read_parquet(tmp_path / "out.parquet")
    whole = Refinement.parse(text).apply_mask(values, PIXEL)
    outlines = features(whole, mask=np.isin(whole, (5, 9)), transform=north_up())
    wanted = {(shapely.normalize(shape(outline)).wkt, value) for outline, value in outlines}
    got = zip(shapely.normalize(found.geometry.to_numpy()), found["class_id"], strict=True)
    assert {(outline.wkt, value) for outline, value in got} == wanted
    assert len(found) < sum(1 for _ in features(values, mask=np.isin(values, (5, 9))))


def test_probabilities_are_refined_before_the_threshold(tmp_path: Path) -> None:
    shares = patchy((300, 90)).astype(np.float32) / 255
    raster = write_raster(tmp_path / "shares.tif", shares)
    text = "tv(0.2, iterations=8), open(1 px)"
    labels = Mask.open(raster, Reading(threshold=0.6, refine=text)).labels((slice(0, 300), slice(0, 90)))
    ground = Ground(np.ones(shares.shape, bool), PIXEL)
    whole = Refinement.parse(text).apply(shares[None], ground, lambda planes: (planes[0] >= 0.6).astype(np.uint8))
    assert np.array_equal(labels, whole)
    with pytest.raises(RefinementError, match="threshold"):
        Reading(refine=text)
    with pytest.raises(RefinementError, match="image"):
        Reading(threshold=0.5, refine="guided(1 m)")
