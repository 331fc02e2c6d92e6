"""Laws of predicting a mask again in part: new ground as in a full prediction, all else as it was, and no seam."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks_for_tests import Reach, brightness_model, model
from worlds import TOP_LEFT, UTM, noise, write_raster

from gimseg.assembly import OLDER_TAG
from gimseg.delivery import Delivery, deliver
from gimseg.errors import GimsegError, PredictionError, VectorError
from gimseg.inference import Predictor, predict
from gimseg.legend import Legend
from gimseg.models import Model
from gimseg.products import Products

SHAPE = (150, 190)
FAMILIES = ("m.shp", "m.gpkg", "m.fgb", "m.geojson", "m.parquet")


def networks(seed: int, **changes: object) -> Model:
    return model(Reach(4, seed=seed), mean=(127.0,), std=(70.0,), **changes)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def area(path: Path, *boxes: tuple[int, int, int, int]) -> Path:
    """Rectangles of pixels (top, left, bottom, right) as a layer."""
    left, top = TOP_LEFT
    shapes = [shapely.box(left + box[1], top - box[2], left + box[3], top - box[0]) for box in boxes]
    gpd.GeoDataFrame(geometry=shapes, crs=UTM).to_file(path)
    return path


def made(folder: Path, raster: Path, given: Model, *names: str, **options: object) -> Delivery:
    folder.mkdir()
    return deliver(raster, given, [folder / name for name in names], window=32, **options)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "image.tif", noise(SHAPE))


boxes = st.tuples(st.integers(0, SHAPE[0] - 2), st.integers(0, SHAPE[1] - 2), st.integers(1, 60), st.integers(1, 60))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(boxes, st.booleans(), st.sampled_from([16, 50, 2048]))
@pytest.mark.slow
def test_new_ground_is_that_of_a_full_prediction_and_all_else_is_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, box: tuple[int, int, int, int], blend: bool, block: int
) -> None:
    folder = tmp_path_factory.mktemp("renewal")
    raster = write_raster(folder / "image.tif", noise(SHAPE))
    asked = area(folder / "area.fgb", (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    options = {"window": 32, "blend": blend, "products": Products(probabilities=True, uncertainty="margin")}
    old, new = (
        predict(raster, networks(seed), output=folder / f"{seed}.tif", **options).path  # type: ignore[arg-type]
        for seed in (0, 1)
    )
    predictor = Predictor(networks(1))
    plan = predictor.plan(raster, folder / "both.tif", aoi=asked, older=old, block_size=block, **options)
    both = predictor.run(plan).path
    assert plan.renewal is not None
    renewed = plan.renewal.mask((slice(0, SHAPE[0]), slice(0, SHAPE[1])))
    inside = np.zeros(SHAPE, bool)
    inside[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
    assert renewed[inside].all() and plan.windows == plan.renewal.cells.sum()
    for ending in ("", "_probabilities", "_uncertainty"):
        one, other, put = (read(path.with_name(f"{path.stem}{ending}.tif")) for path in (old, new, both))
        assert np.array_equal(put, np.where(renewed, other, one))


@pytest.mark.slow
def test_polygons_of_both_are_those_of_the_mask_and_keep_what_was_said_of_them(image: Path, tmp_path: Path) -> None:
    asked = area(tmp_path / "area.fgb", (60, 80, 90, 110))
    made(tmp_path / "old", image, networks(0), "m.tif", *FAMILIES)
    made(tmp_path / "new", image, networks(1), "m.tif", "m.gpkg")
    for name in FAMILIES:
        given = {"aoi": asked, "older": tmp_path / "old" / "m.tif", "older_layer": tmp_path / "old" / name}
        folder = tmp_path / name.replace(".", "_")
        done = made(folder, image, networks(1), "m.tif", "m.gpkg", **given)
        assert done.layers is not None and done.layers.count > 1000
        old, new, both = (
            gpd.read_file(path / "m.gpkg", layer="polygons").set_index("id")
            for path in (tmp_path / "old", tmp_path / "new", folder)
        )
        plan = Predictor(networks(1)).plan(image, folder / "x.tif", window=32, aoi=asked, older=given["older"])
        assert plan.renewal is not None
        ground = plan.renewal.ground
        fresh = both[both.within(ground.buffer(-0.5))]
        stayed = both[~both.intersects(ground.buffer(0.5))]
        assert len(fresh) > 20 and len(stayed) > 1000
        for some, source in ((fresh, new), (stayed, old)):
            assert set(some.index) <= set(source.index)
            assert (some == source.loc[some.index]).all(axis=None)
        # Nothing is cut where new and old meet: the polygons are those of the mask.
        alone = made(tmp_path / f"{folder.name}_alone", image, networks(1), "w.tif", "w.gpkg", **given)
        again = gpd.read_file(tmp_path / f"{folder.name}_alone" / "w.gpkg", layer="polygons")
        assert alone.layers is not None and set(again["id"]) == set(both.index)
        assert both.area.sum() == pytest.approx((read(folder / "m.tif") == 1).sum())


def test_what_the_older_mask_leaves_out_stays_out(image: Path, tmp_path: Path) -> None:
    wanted = area(tmp_path / "wanted.fgb", (10, 10, 70, 75))
    asked = area(tmp_path / "asked.fgb", (50, 60, 80, 90))
    old = predict(image, networks(0), output=tmp_path / "old.tif", window=32, aoi=wanted).path
    new = predict(image, networks(1), output=tmp_path / "new.tif", window=32, aoi=wanted).path
    both = predict(image, networks(1), output=tmp_path / "both.tif", window=32, aoi=asked, older=old).path
    assert np.array_equal(read(both) == 255, read(old) == 255)
    assert np.array_equal(read(both)[0, 56:70, 66:75], read(new)[0, 56:70, 66:75])
    with rasterio.open(both) as dataset:
        assert dataset.tags()[OLDER_TAG].startswith("Reach ")


def test_masks_that_do_not_belong_together_are_refused(image: Path, tmp_path: Path) -> None:
    asked = area(tmp_path / "asked.fgb", (50, 60, 80, 90))
    old = predict(image, networks(0), output=tmp_path / "old.tif", window=32).path
    small = write_raster(tmp_path / "small.tif", noise((90, 100)))
    other = networks(1, legend=Legend.binary("dark"))
    for predicting, raster, options, told in (
        (networks(1), small, {"aoi": asked}, "one grid"),
        (networks(1, resolution=0.5), image, {"aoi": asked}, "one grid"),
        (other, image, {"aoi": asked}, "classes"),
        (networks(1), image, {}, "area of interest"),
        (networks(1), image, {"aoi": asked, "match_input": True}, "everywhere"),
    ):
        with pytest.raises(GimsegError, match=told):
            predict(raster, predicting, output=tmp_path / "both.tif", older=old, **options)  # type: ignore[arg-type]
    with pytest.raises(PredictionError, match="unknown model"):
        plain = write_raster(tmp_path / "plain.tif", np.zeros(SHAPE, np.uint8))
        predict(image, networks(1), output=tmp_path / "both.tif", older=plain, aoi=asked)
    refined = predict(image, networks(0), output=tmp_path / "refined.tif", window=32, refine="open(1 px)").path
    for older, options in ((refined, {}), (old, {"refine": "open(1 px)"})):
        with pytest.raises(PredictionError, match="everywhere"):
            predict(image, networks(1), output=tmp_path / "both.tif", older=older, aoi=asked, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "both.tif").exists()


def test_a_layer_that_was_edited_or_made_otherwise_is_not_replaced_unasked(image: Path, tmp_path: Path) -> None:
    asked = area(tmp_path / "area.fgb", (60, 80, 90, 110))
    old = made(tmp_path / "old", image, networks(0), "m.tif", "m.gpkg", min_area_m2=3)
    assert old.layers is not None
    given = {"aoi": asked, "older": tmp_path / "old" / "m.tif", "older_layer": tmp_path / "old" / "m.gpkg"}
    made(tmp_path / "same", image, networks(1), "m.tif", "m.gpkg", min_area_m2=3, **given)
    with pytest.raises(VectorError, match="other options"):
        made(tmp_path / "otherwise", image, networks(1), "m.tif", "m.gpkg", **given)
    frame = gpd.read_file(tmp_path / "old" / "m.gpkg", layer="polygons")
    frame.drop(index=0).to_file(tmp_path / "edited.gpkg", layer="polygons")
    given["older_layer"] = tmp_path / "edited.gpkg"
    with pytest.raises(VectorError, match="lacks 1 polygons and has 0 others"):
        made(tmp_path / "edited", image, networks(1), "m.tif", "m.gpkg", min_area_m2=3, **given)
    assert not any(tmp_path.glob("edited/*.gpkg"))
    made(tmp_path / "forced", image, networks(1), "m.tif", "m.gpkg", min_area_m2=3, overwrite=True, **given)


def test_cells_that_hold_no_pixel_of_the_area_are_not_computed(image: Path, tmp_path: Path) -> None:
    old = predict(image, brightness_model(), output=tmp_path / "old.tif", window=32).path
    asked = area(tmp_path / "area.fgb", (60, 80, 61, 81))
    plan = Predictor(brightness_model()).plan(image, tmp_path / "new.tif", window=32, aoi=asked, older=old)
    assert plan.windows == 1
