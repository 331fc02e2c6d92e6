"""Every format is at home elsewhere: geopandas, fiona, GDAL's tools and QGIS read it all, without a warning."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import warnings
from pathlib import Path

import fiona
import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from networks_for_tests import brightness_model
from test_styles import ROOFS, look, qgis  # noqa: F401 - a fixture
from worlds import UTM, write_raster

from gimseg import geopackages, vector_output, vectorization
from gimseg.delivery import deliver
from gimseg.errors import OutputError, VectorError
from gimseg.geopackages import FurtherLayer
from gimseg.legend import Legend, LegendClass
from gimseg.origins import MODEL_TAG
from gimseg.products import Products
from gimseg.styles import outline_style, vector_style
from gimseg.vectorization import vectorize
from gimseg.vectors import open_layer

ENDINGS = (".shp", ".gpkg", ".fgb", ".geojson", ".geojsonl", ".parquet")
COLUMNS = ["id", "class", "class_id", "area_m2", "perimeter_m", "confidence", "model", "date"]


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """Twelve houses of two classes, a yard in each, with the model's name."""
    labels = np.zeros((60, 80), np.uint8)
    for place in range(12):
        row, col = 3 + place // 4 * 18, 3 + place % 4 * 19
        labels[row : row + 12, col : col + 9] = 1 + place % 2
        labels[row + 4 : row + 7, col + 3 : col + 6] = 0
    path = write_raster(tmp_path / "mask.tif", labels)
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(**{MODEL_TAG: "roofs"})
    shares = np.random.default_rng(3).random(labels.shape).astype(np.float32)
    write_raster(tmp_path / "p.tif", shares)
    return path


def layer_of(path: Path) -> dict[str, str]:
    return {"layer": "polygons"} if path.suffix == ".gpkg" else {}


def columns_in(path: Path) -> list[str]:
    return [name.replace("perimeter_m", "perim_m") for name in COLUMNS] if path.suffix == ".shp" else COLUMNS


@pytest.fixture(params=ENDINGS)
def written(request: pytest.FixtureRequest, mask: Path, tmp_path: Path) -> Path:
    path = tmp_path / f"out{request.param}"
    vectorize(mask, path, legend=ROOFS, probabilities=tmp_path / "p.tif")
    return path


def test_geopandas_reads_everything(written: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if written.suffix == ".parquet":
            found = gpd.read_parquet(written)
        else:
            found = gpd.read_file(written, **layer_of(written))
    assert list(found.columns) == [*columns_in(written), "geometry"] and len(found) == 12
    assert found.crs == ("EPSG:4326" if "json" in written.suffix else UTM)
    assert found.is_valid.all() and set(found.geom_type) == {"Polygon"}
    assert set(found["class"]) == set(ROOFS.names) and set(found["model"]) == {"roofs"}
    assert found["id"].is_unique and found["area_m2"].between(90, 100).all()
    assert found["confidence"].between(0.3, 0.7).all() and len(set(found["date"].astype(str))) == 1
    if "json" in written.suffix:
        # RFC 7946: shells against the clock, holes with it.
        assert shapely.is_ccw(shapely.get_exterior_ring(found.geometry)).all()
        assert not shapely.is_ccw(shapely.get_interior_ring(found.geometry, 0)).any()


def test_fiona_reads_everything(written: Path) -> None:
    if written.suffix == ".parquet":
        pytest.skip("fiona's GDAL has no Parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fiona.open(written, **layer_of(written)) as layer:
            assert list(layer.schema["properties"]) == columns_in(written) and len(list(layer)) == 12


def test_ogrinfo_reads_everything_without_a_warning(written: Path) -> None:
    if shutil.which("ogrinfo") is None or written.suffix == ".parquet":
        pytest.skip("needs ogrinfo, and one with Parquet for that")
    told = subprocess.run(["ogrinfo", "-al", str(written)], capture_output=True, text=True, check=True)
    assert told.stderr == "" and "Feature Count: 12" in told.stdout and "Warning" not in told.stdout
    assert told.stdout.count("  class (String) = ") == 12 and "Ziegel – rot" in told.stdout


def test_gdalinfo_reads_the_mask_without_a_warning(mask: Path) -> None:
    if shutil.which("gdalinfo") is None:
        pytest.skip("needs gdalinfo")
    told = subprocess.run(["gdalinfo", str(mask)], capture_output=True, text=True, check=True)
    assert told.stderr == "" and "gimseg_model=roofs" in told.stdout


def test_our_own_reader_takes_the_objects(written: Path) -> None:
    layer = open_layer(written)
    assert layer.count == 12 and list(layer.fields) == columns_in(written)


def test_a_shapefile_names_its_encoding_and_place(mask: Path, tmp_path: Path) -> None:
    vectorize(mask, tmp_path / "out.shp", legend=ROOFS)
    assert (tmp_path / "out.cpg").read_text() == "UTF-8" and "UTM" in (tmp_path / "out.prj").read_text()
    assert max(len(name) for name in gpd.read_file(tmp_path / "out.shp").columns) <= 10


def further() -> tuple[FurtherLayer, ...]:
    frame = gpd.GeoDataFrame({"source": ["a.shp"]}, geometry=[shapely.box(500_000, 4_999_900, 500_050, 5e6)], crs=UTM)
    return (FurtherLayer("aoi", frame, "MultiPolygon", outline_style("#ff2fd0", dashed=True)),)


def styles_in(path: Path) -> dict[str, tuple[str, int]]:
    database = sqlite3.connect(path)
    try:
        rows = database.execute("SELECT f_table_name, styleQML, useAsDefault FROM layer_styles").fetchall()
    finally:
        database.close()
    return {name: (style, default) for name, style, default in rows}


def test_a_geopackage_holds_its_layers_and_their_styles(mask: Path, tmp_path: Path) -> None:
    vectorize(mask, tmp_path / "out.gpkg", legend=ROOFS, layers=further())
    assert gpd.list_layers(tmp_path / "out.gpkg")["name"].tolist() == ["polygons", "aoi", "layer_styles"]
    assert set(gpd.read_file(tmp_path / "out.gpkg", layer="aoi").geom_type) == {"MultiPolygon"}
    assert styles_in(tmp_path / "out.gpkg") == {
        "polygons": (vector_style(ROOFS), 1),
        "aoi": (outline_style("#ff2fd0", dashed=True), 1),
    }


@pytest.mark.usefixtures("qgis")
def test_qgis_takes_the_style_out_of_the_geopackage(mask: Path, tmp_path: Path) -> None:
    vectorize(mask, tmp_path / "out.gpkg", legend=ROOFS, layers=further())
    (tmp_path / "out.qml").unlink()
    (objects, area), picture = look(
        tmp_path / "picture.png", *(f"{tmp_path / 'out.gpkg'}|layername={name}" for name in ("polygons", "aoi"))
    )
    assert objects["styled"] and objects["renderer"] == "categorizedSymbol" and objects["count"] == 12
    assert area["styled"] and area["renderer"] == "singleSymbol" and area["count"] == 1
    assert (picture == (0x00, 0x72, 0xB2)).all(axis=2).sum() > 300


def test_a_geopackage_is_whole_or_not_there(mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(geopackages, "_STYLE", "INSERT INTO nowhere VALUES (?, ?)")
    with pytest.raises(OutputError, match=r"out\.gpkg could not be completed") as caught:
        vectorize(mask, [tmp_path / "out.gpkg", tmp_path / "out.fgb"], layers=further())
    assert "partial" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_prediction_leaves_area_and_blocks_in_its_geopackage(tmp_path: Path) -> None:
    values = np.full((96, 120), 10, np.uint8)
    values[8:16, 8:20] = 200
    image = write_raster(tmp_path / "image.tif", values)
    with rasterio.open(image, "r+") as raster:
        raster.update_tags(TIFFTAG_DATETIME="2023:07:09 12:00:00")
    area = shapely.box(500_000, 4_999_904, 500_060, 5_000_000)
    gpd.GeoDataFrame(geometry=[area], crs=UTM).to_file(tmp_path / "aoi.gpkg")
    model = brightness_model()
    deliver(image, model, tmp_path / "out.gpkg", aoi=tmp_path / "aoi.gpkg", block_size=48)
    objects, aoi, blocks = (gpd.read_file(tmp_path / "out.gpkg", layer=name) for name in ("polygons", "aoi", "blocks"))
    assert set(objects["model"]) == {model.name} and set(objects["date"].astype(str)) == {"2023-07-09"}
    assert aoi.union_all().equals(area) and list(aoi["source"]) == ["aoi.gpkg"]
    assert blocks.union_all().equals(shapely.box(500_000, 4_999_904, 500_120, 5_000_000))
    assert (blocks["valid_share"] * blocks.area).sum() == pytest.approx(area.area)
    assert (blocks["class_share"] * blocks.area).sum() == pytest.approx(objects.area.sum())
    assert set(styles_in(tmp_path / "out.gpkg")) == {"polygons", "aoi", "blocks"}
    assert open_layer(tmp_path / "out.gpkg").count == len(objects) == 1


@pytest.mark.parametrize("wanted", [False, True])
def test_a_prediction_gives_its_polygons_their_confidence(tmp_path: Path, wanted: bool) -> None:
    values = np.full((96, 120), 10, np.uint8)
    values[8:16, 8:20], values[40:50, 60:90] = 128, 250
    image = write_raster(tmp_path / "image.tif", values)
    out = tmp_path / "out"
    out.mkdir()
    deliver(image, brightness_model(), out / "o.parquet", products=Products(probabilities=wanted))
    deliver(image, brightness_model(), tmp_path / "m.tif", products=Products(probabilities=True))
    found = gpd.read_parquet(out / "o.parquet")
    with rasterio.open(tmp_path / "m_probabilities.tif") as raster:
        shares, to_map = raster.read(1) * raster.scales[0], raster.transform
    rows, columns = np.indices(shares.shape)
    x, y = to_map @ (columns + 0.5, rows + 0.5)
    means = [shares[shapely.contains_xy(each, x, y)].mean() for each in found.geometry]
    assert len(found) == 2 and np.allclose(found["confidence"], means) and abs(means[0] - means[1]) > 0.01
    assert {path.name for path in out.glob("*.tif")} == ({"o_probabilities.tif"} if wanted else set())
    assert not list(out.glob(".*"))


def test_pixels_that_touch_at_corners_are_one_feature(tmp_path: Path) -> None:
    labels = np.kron(np.eye(3, dtype=np.uint8), np.ones((4, 4), np.uint8))
    mask = write_raster(tmp_path / "mask.tif", labels)
    vectorize(mask, [tmp_path / "a.gpkg", tmp_path / "a.parquet"], connectivity=8, threshold=1, legend=ROOFS)
    (feature,) = gpd.read_parquet(tmp_path / "a.parquet").itertuples()
    assert feature.geometry.geom_type == "MultiPolygon" and feature.area_m2 == pytest.approx(48, rel=1e-3)
    assert feature.perimeter_m == pytest.approx(48, rel=1e-3)
    assert gpd.read_file(tmp_path / "a.gpkg", layer="polygons")["id"][0] == feature.id


def test_a_frame_is_given_while_it_is_small(mask: Path, tmp_path: Path) -> None:
    for ending in ENDINGS:
        done = vectorize(mask, [tmp_path / f"a{ending}"])
        assert len(done.to_geodataframe()) == 12 and done.paths == (tmp_path / f"a{ending}",)
    both = vectorize(mask, [tmp_path / "b.shp", tmp_path / "b.gpkg"])
    assert "perimeter_m" in both.to_geodataframe()
    with pytest.raises(VectorError, match="12 polygons and the limit is 11"):
        both.to_geodataframe(11)


def test_what_a_shapefile_cannot_hold_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = (np.random.default_rng(0).random((300, 400)) < 0.4).astype(np.uint8)
    mask = write_raster(tmp_path / "mask.tif", noise)
    full = vectorize(mask, tmp_path / "out.gpkg").count
    monkeypatch.setattr(vectorization, "_LEAST_PIXELS", 0)
    monkeypatch.setattr(vectorization, "_SAMPLE", 100)
    monkeypatch.setattr(vector_output, "SHAPEFILE_LIMIT", 250_000)
    monkeypatch.setattr(vectorization, "_write_all", lambda *rest: pytest.fail("work was begun"))
    with pytest.raises(OutputError, match=r"about [\d,]+ features need .*write \.gpkg") as caught:
        vectorize(mask, tmp_path / "out.shp")
    told = int(str(caught.value).split("about ")[1].split()[0].replace(",", ""))
    assert told == pytest.approx(full, rel=0.15)
    # What is cleaned away takes no room.
    monkeypatch.undo()
    monkeypatch.setattr(vectorization, "_LEAST_PIXELS", 0)
    monkeypatch.setattr(vector_output, "SHAPEFILE_LIMIT", 250_000)
    assert vectorize(mask, tmp_path / "out.shp", min_area_m2=500).count < full / 100
    long = Legend((LegendClass("x" * 300, 1, "#000000"),))
    with pytest.raises(OutputError, match=r"class has 300 bytes and a Shapefile holds 254: write \.gpkg"):
        vectorize(mask, tmp_path / "long.shp", legend=long)


def test_geoparquet_is_read_by_place(mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectorization, "_CHUNK", 1)
    vectorize(mask, tmp_path / "out.parquet", block=8)
    whole = gpd.read_parquet(tmp_path / "out.parquet")
    window = tuple(shapely.buffer(whole.geometry[4], 1).bounds)
    near = gpd.read_parquet(tmp_path / "out.parquet", bbox=window)
    assert near["id"].tolist() == whole["id"][whole.intersects(shapely.box(*window))].tolist() == [whole["id"][4]]


def test_lines_of_geojson_are_features(mask: Path, tmp_path: Path) -> None:
    vectorize(mask, tmp_path / "out.geojsonl")
    lines = (tmp_path / "out.geojsonl").read_text(encoding="utf-8").splitlines()
    features = [json.loads(line) for line in lines]
    assert len(features) == 12 and {each["type"] for each in features} == {"Feature"}
    assert list(features[0]["properties"]) == [name for name in COLUMNS if name != "confidence"]

    assert all(len(each["properties"]["date"].split("-")) == 3 for each in features)
    assert all(abs(x) <= 180 and abs(y) <= 90 for each in features for x, y in each["geometry"]["coordinates"][0])
