"""Laws of delivery: all that was asked for or nothing; a stop loses nothing."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from networks_for_tests import brightness_model
from worlds import noise, write_raster

from gimseg import delivery
from gimseg.delivery import default_outputs, deliver, deliver_each
from gimseg.errors import OutputError, PredictionError, TilingError
from gimseg.products import Products


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Bright squares on dark ground, 96 x 120 px."""
    values = np.full((96, 120), 10, np.uint8)
    for row in range(8, 90, 20):
        values[row : row + 8, row : row + 12] = 200
    return write_raster(tmp_path / "image.tif", values)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_endings_say_what_is_wanted(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    only_mask = deliver(image, brightness_model(), out / "m.tif")
    assert only_mask.layers is None and names(out) == {"m.tif", "m.tif.aux.xml", "m.qml"}
    only_layer = deliver(image, brightness_model(), out / "p.gpkg")
    assert only_layer.mask is None and only_layer.layers and only_layer.layers.count == 5
    assert names(out) == {"m.tif", "m.tif.aux.xml", "m.qml", "p.gpkg", "p.qml"}
    frame = geopandas.read_file(out / "p.gpkg", layer="polygons")
    assert list(frame["area_m2"].round(0)) == pytest.approx([96] * 5, rel=0.01) and set(frame["class"]) == {"bright"}


def test_a_stop_between_mask_and_polygons_loses_nothing(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    wanted = [out / "m.tif", out / "m.shp"]

    def stop(*args: object, **given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(delivery, "vectorize", stop)
    with pytest.raises(KeyboardInterrupt):
        deliver(image, brightness_model(), wanted)
    assert all(name.startswith(".") for name in names(out))
    monkeypatch.undo()
    made = deliver(image, brightness_model(), wanted)
    assert made.prediction.resumed == made.prediction.blocks and made.prediction.counts["bright"] == 5 * 96
    deliver(image, brightness_model(), [tmp_path / "n.tif", tmp_path / "n.shp"])
    for ending in ("tif", "shp", "dbf"):
        assert (out / f"m.{ending}").read_bytes()[4:] == (tmp_path / f"n.{ending}").read_bytes()[4:]
    assert not any(name.startswith(".") for name in names(out))


def test_another_model_does_not_take_over_a_waiting_mask(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [tmp_path / "m.tif", tmp_path / "m.gpkg"]
    with monkeypatch.context() as patch:
        patch.setattr(delivery, "vectorize", lambda *args, **given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            deliver(image, brightness_model(), wanted)
    made = deliver(image, brightness_model(250.0), wanted)
    assert made.prediction.resumed == 0 and made.prediction.counts["bright"] == 0


def test_what_cannot_be_written_is_told_before_any_work(image: Path, tmp_path: Path) -> None:
    for outputs, told in (
        ([tmp_path / "a.tif", tmp_path / "b.tif"], "one mask"),
        ([tmp_path / "a.xyz"], "xyz"),
        ([tmp_path / "no" / "a.tif"], "does not exist"),
        ([image], "input"),
    ):
        with pytest.raises(OutputError, match=told):
            deliver(image, brightness_model(), outputs)
    for shaping in ({"coverage": True}, {"coverage": True, "simplify_m": 1, "connectivity": 8}, {"instances": "size"}):
        with pytest.raises(TilingError):
            deliver(image, brightness_model(), tmp_path / "a.gpkg", **shaping)
    assert names(tmp_path) == {"image.tif"}


def test_an_area_of_interest_bounds_mask_and_polygons(image: Path, tmp_path: Path) -> None:
    with rasterio.open(image) as raster:
        left, top = raster.transform @ (0, 0), raster.transform @ (60, 96)
        crs = raster.crs.to_wkt()
    from shapely.geometry import box

    area = box(left[0], top[1], top[0], left[1])
    geopandas.GeoDataFrame(geometry=[area], crs=crs).to_crs("EPSG:4326").to_file(tmp_path / "aoi.geojson")
    made = deliver(image, brightness_model(), [tmp_path / "m.tif", tmp_path / "p.fgb"], aoi=tmp_path / "aoi.geojson")
    with rasterio.open(tmp_path / "m.tif") as mask:
        values = mask.read(1)
    assert (values[:, 61:] == 255).all() and (values[:, :59] != 255).all()
    assert made.layers and made.layers.count == 3


def test_default_outputs_lie_in_the_current_folder() -> None:
    assert default_outputs("/images/big.vrt") == ("big_segments.tif", "big_segments.shp")


def test_several_rasters_are_delivered_with_one_loaded_network(image: Path, tmp_path: Path) -> None:
    other = write_raster(tmp_path / "other.tif", np.full((40, 50), 200, np.uint8))
    out = tmp_path / "out"
    out.mkdir()
    made = deliver_each([str(tmp_path / "*.tif")], brightness_model(), f"{out}/")
    assert [delivery.prediction.path.name for delivery in made] == ["image_segments.tif", "other_segments.tif"]
    assert made[1].prediction.counts["bright"] == 2000 and made[0].layers and made[0].layers.count == 5
    alone = deliver(other, brightness_model(), tmp_path / "alone.tif")
    with rasterio.open(out / "other_segments.tif") as one, rasterio.open(alone.prediction.path) as two:
        assert np.array_equal(one.read(), two.read())


def test_all_rasters_are_checked_before_the_first_is_predicted(image: Path, tmp_path: Path) -> None:
    write_raster(tmp_path / "wrong.tif", np.zeros((40, 50), np.uint16))
    before = names(tmp_path)
    with pytest.raises(PredictionError, match=r"wrong\.tif holds uint16"):
        deliver_each([image, tmp_path / "wrong.tif"], brightness_model(), tmp_path / "{stem}.gpkg")
    assert names(tmp_path) == before


def test_a_raster_that_fails_does_not_stop_the_others(image: Path, tmp_path: Path) -> None:
    broken = write_raster(tmp_path / "broken.tif", noise((256, 64)), tiled=True, blockxsize=16, blockysize=16)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size * 6 // 10])
    with pytest.raises(PredictionError, match=r"1 of 2 rasters failed.*broken\.tif"):
        deliver_each([broken, image], brightness_model(), tmp_path / "{stem}_m.tif", block_size=32)
    assert (tmp_path / "image_m.tif").exists() and not (tmp_path / "broken_m.tif").exists()


def test_what_lies_beside_polygons_comes_with_them(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    products = Products(probabilities=True, uncertainty="entropy")
    made = deliver(
        image, brightness_model(0.0, mean=(127.0,), std=(40.0,)), out / "p.gpkg", products=products, stac=True
    )
    beside = {"p_probabilities.tif", "p_uncertainty.tif", "p.json"}
    assert {path.name for path in made.beside} == beside
    assert names(out) == {"p.gpkg", "p.qml", "p_probabilities.qml", "p_uncertainty.qml", *beside}
    assert "beside it p_probabilities.tif" in made.text()
