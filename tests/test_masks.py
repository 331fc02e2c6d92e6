"""Masks of any tool: which numbers are classes, what they are called, and thresholds of probabilities."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from worlds import write_raster

from gimseg.errors import LegendError, RasterError
from gimseg.legend import Legend, LegendClass
from gimseg.mask_legends import ClassName, legend_of_mask, names_of_mask, read_names
from gimseg.masks import Mask, NativeRaster, Reading, parse_values
from gimseg.styles import raster_style, write_style
from gimseg.vectorization import vectorize

RAT = """<PAMDataset><PAMRasterBand band="1">{histogram}<GDALRasterAttributeTable tableType="thematic">
<FieldDefn index="0"><Name>{value}</Name><Type>0</Type><Usage>{usage}</Usage></FieldDefn>
<FieldDefn index="1"><Name>Landcover</Name><Type>2</Type><Usage>2</Usage></FieldDefn>
<FieldDefn index="2"><Name>Red</Name><Type>0</Type><Usage>6</Usage></FieldDefn>
<FieldDefn index="3"><Name>Green</Name><Type>0</Type><Usage>7</Usage></FieldDefn>
<FieldDefn index="4"><Name>Blue</Name><Type>0</Type><Usage>8</Usage></FieldDefn>
<Row index="0"><F>111</F><F>Urban</F><F>230</F><F>0</F><F>77</F></Row>
<Row index="1"><F>523</F><F>Sea &amp; ocean</F><F>0</F><F>204</F><F>242</F></Row>
</GDALRasterAttributeTable></PAMRasterBand></PAMDataset>"""


def quarters(a: float, b: float, c: float, d: float, dtype: str = "uint8") -> np.ndarray:
    """10 x 10 px: four squares of one value each."""
    return np.kron(np.array([[a, b], [c, d]]), np.ones((5, 5))).astype(dtype)


def polygons(path: Path, out: Path, **options: Any) -> gpd.GeoDataFrame:
    vectorize(path, out, overwrite=True, **options)
    return gpd.read_parquet(out)


def found(path: Path, **options: Any) -> dict[str, int]:
    """Class name -> number in the mask."""
    frame = polygons(path, path.with_suffix(".parquet"), **options)
    return dict(sorted(zip(frame["class"], frame["class_id"], strict=True)))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "uint32", "float32", "float64"])
def test_codes_of_any_size_are_classes(tmp_path: Path, dtype: str) -> None:
    mask = write_raster(tmp_path / "mask.tif", quarters(0, 111, 523, 32_000, dtype))
    assert found(mask) == {"class_111": 111, "class_523": 523, "class_32000": 32_000}
    assert found(mask, values=(523, 7)) == {"class_523": 523}


def test_a_mask_is_plain_data_for_workers(tmp_path: Path) -> None:
    mask = Mask.open(write_raster(tmp_path / "mask.tif", quarters(0, 111, 523, 32_000, "int32")))
    whole = np.concatenate([mask.read(*cut) for cut in mask.cuts(3)])
    assert (pickle.loads(pickle.dumps(mask)).read(0, 10) == whole).all()
    assert (mask.codes_of(whole) == quarters(0, 111, 523, 32_000, "int32")).all()


def test_values_say_what_is_a_class(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "mask.tif", quarters(0, 255, 3, 4))
    assert found(mask) == {"class_3": 3, "class_4": 4}
    assert found(mask, values=(0, 255, 4)) == {"class_0": 0, "class_255": 255, "class_4": 4}
    plain = write_raster(tmp_path / "nodata.tif", quarters(0, 255, 3, 4), nodata=255)
    assert found(plain, values=(3, 255)) == {"class_3": 3}


def test_a_mask_of_0_and_255_says_what_to_do(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "mask.tif", quarters(0, 255, 255, 0))
    done = vectorize(mask, tmp_path / "a.gpkg")
    assert done.count == 0 and "--values 255" in done.notes[-1]
    assert vectorize(mask, tmp_path / "b.gpkg", values=(255,)).counts == {"class_255": 2}
    ours = write_raster(tmp_path / "ours.tif", quarters(0, 255, 255, 0), nodata=255)
    assert vectorize(ours, tmp_path / "c.gpkg").notes == ()


def test_too_many_numbers_are_no_mask(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "image.tif", np.arange(10_000, dtype=np.uint16).reshape(100, 100))
    with pytest.raises(RasterError, match=r"9998 different values \(1 to 9999\).*--values"):
        vectorize(image, tmp_path / "out.gpkg")
    assert found(image, values=range(500, 520)).keys() == {f"class_{code}" for code in range(500, 520)}


def test_bands_are_chosen_by_number_or_name(tmp_path: Path) -> None:
    stack = np.stack([quarters(1, 1, 0, 0), quarters(0, 2, 2, 0)])
    mask = write_raster(tmp_path / "mask.tif", stack, descriptions=["roofs", "Trees"])
    with pytest.raises(RasterError, match=r"2 bands.*--band \(roofs, Trees\)"):
        vectorize(mask, tmp_path / "out.gpkg")
    with pytest.raises(RasterError, match=r"no band 'tree': did you mean 'Trees'"):
        vectorize(mask, tmp_path / "out.gpkg", band="tree")
    assert found(mask, band=1) == {"class_1": 1} and found(mask, band="trees") == {"class_2": 2}
    assert found(mask, band="2") == {"class_2": 2}


def test_an_alpha_band_says_what_is_valid(tmp_path: Path) -> None:
    stack = np.stack([quarters(1, 2, 0, 0), quarters(255, 0, 255, 255)])
    kinds = [ColorInterp.gray, ColorInterp.alpha]
    assert found(write_raster(tmp_path / "mask.tif", stack, colorinterp=kinds, alpha="YES")) == {"class_1": 1}


@pytest.mark.parametrize("stored", ["float32", "uint8", "uint16"])
def test_probabilities_become_a_class_at_the_threshold(tmp_path: Path, stored: str) -> None:
    shares = np.array([[0.1, 0.5, 0.9, 0.0], [0.496, 0.504, 1.0, 0.2]])
    scale = {"float32": 1.0, "uint8": 0.004, "uint16": 0.0001}[stored]
    values = (np.round(shares / scale) if stored != "float32" else shares).astype(stored)
    path = write_raster(tmp_path / "p.tif", values, nodata=255 if stored == "uint8" else None, descriptions=["roof"])
    with rasterio.open(path, "r+") as raster:
        raster.scales = [scale]
    frame = polygons(path, tmp_path / "out.parquet", threshold=0.5)
    assert list(frame["class"]) == ["roof"] and frame.area.sum() == 4
    # The threshold's own raster tells the confidence.
    assert frame["confidence"][0] == pytest.approx((0.5 + 0.9 + 0.504 + 1.0) / 4, abs=2e-3)
    assert list(polygons(path, tmp_path / "out.parquet", threshold=0.5, legend=Legend.binary("x"))["class"]) == ["x"]


def test_a_threshold_works_on_scores_of_any_kind(tmp_path: Path) -> None:
    heights = write_raster(tmp_path / "m.tif", quarters(0.2, 9.5, 3, 0.4, "float32"))
    frame = polygons(heights, tmp_path / "out.parquet", threshold=2.5)
    assert frame.area.sum() == 50 and frame["confidence"].isna().all()
    bytes_ = write_raster(tmp_path / "b.tif", quarters(10, 200, 180, 0))
    assert "confidence" not in polygons(bytes_, tmp_path / "out.parquet", threshold=128)


def test_what_reading_cannot_mean_is_refused() -> None:
    for wrong in ({"values": ()}, {"values": (1,), "threshold": 0.5}, {"threshold": float("nan")}):
        with pytest.raises(LegendError):
            Reading(**wrong)  # type: ignore[arg-type]
    assert parse_values("1,5-7, -3") == (1, 5, 6, 7, -3) and parse_values(None) is None
    for text in ("", "a", "7-5", "1-999999999"):
        with pytest.raises(LegendError, match="1,5-7"):
            parse_values(text)


@pytest.mark.parametrize(("value", "usage"), [("Value", 5), ("Code", 0)])
def test_an_attribute_table_names_the_codes(tmp_path: Path, value: str, usage: int) -> None:
    mask = write_raster(tmp_path / "mask.tif", quarters(111, 523, 0, 7, "uint16"))
    (tmp_path / "mask.tif.aux.xml").write_text(RAT.format(histogram="<Histograms/>", value=value, usage=usage))
    assert names_of_mask(mask) == {111: ClassName("Urban", "#e6004d"), 523: ClassName("Sea & ocean", "#00ccf2")}
    done = vectorize(mask, tmp_path / "out.gpkg")
    assert done.counts == {"Urban": 1, "Sea & ocean": 1, "class_7": 1}
    assert {item.name: item.colour for item in done.legend.classes}["Urban"] == "#e6004d"
    assert "Sea &amp; ocean" in (tmp_path / "out.qml").read_text()


def test_the_attribute_table_that_gdal_writes_is_read(tmp_path: Path) -> None:
    """As `gdal_translate` of an Erdas Imagine file leaves it: a row for each number, no column of values."""
    mask = write_raster(tmp_path / "mask.tif", quarters(1, 2, 0, 0))
    (tmp_path / "mask.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><GDALRasterAttributeTable Row0Min="0" BinSize="1" tableType="thematic">'
        '<FieldDefn index="0"><Name>Class_Names</Name><Type>2</Type><Usage>2</Usage></FieldDefn>'
        + "".join(f'<Row index="{row}"><F>{name}</F></Row>' for row, name in enumerate(("", "Water", "Water")))
        + "</GDALRasterAttributeTable></PAMRasterBand></PAMDataset>"
    )
    assert found(mask) == {"Water (1)": 1, "Water (2)": 2}


def test_category_names_are_read_with_the_colours(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "mask.tif", quarters(1, 2, 0, 0), colormap={1: (1, 2, 3, 255), 2: (4, 5, 6, 255)})
    (tmp_path / "mask.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><CategoryNames><Category>none</Category><Category>roof</Category>'
        "<Category></Category></CategoryNames></PAMRasterBand></PAMDataset>"
    )
    assert names_of_mask(mask)[1] == ClassName("roof", "#010203")
    assert found(mask) == {"class_2": 2, "roof": 1}


def test_the_table_of_arcgis_is_read(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "mask.tif", quarters(41, 42, 0, 0))
    table = gpd.GeoDataFrame({"Value": [41, 42], "Count": [25, 25], "Class_Name": ["Forest", "Grass"]})
    import pyogrio

    pyogrio.write_dataframe(table, tmp_path / "t.dbf", driver="ESRI Shapefile")
    (tmp_path / "t.dbf").rename(tmp_path / "mask.tif.vat.dbf")
    assert found(mask) == {"Forest": 41, "Grass": 42}


def test_a_damaged_table_is_an_error(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "mask.tif", quarters(1, 2, 0, 0))
    (tmp_path / "mask.tif.aux.xml").write_text("<PAMDataset>")
    with pytest.raises(LegendError, match=r"mask\.tif\.aux\.xml cannot be read"):
        legend_of_mask(mask)


def test_a_legend_comes_from_a_file(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "mask.tif", quarters(1, 523, 2, 0, "uint16"))
    (tmp_path / "a.toml").write_text(
        '[legend]\nclasses = [{ name = "tin", colour = "#112233" }, { name = "sea", value = 523 }]\n'
    )
    assert found(mask, legend=tmp_path / "a.toml") == {"tin": 1, "sea": 523, "class_2": 2}
    roofs = Legend((LegendClass("tin", 1, "#112233"), LegendClass("tile", 2, "#445566")))
    (tmp_path / "b.json").write_text(json.dumps(roofs.to_dict()))
    assert read_names(tmp_path / "b.json") == {1: ClassName("tin", "#112233"), 2: ClassName("tile", "#445566")}
    style = write_style(tmp_path / "c.tif", raster_style(roofs))
    assert read_names(style) == read_names(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "[legend]\nclasses = 7"),
        ("a.toml", "[legend"),
        ("a.toml", '[legend]\nclasses = [{ name = "a", value = 1 }, { name = "b", value = 1 }]'),
        ("a.toml", "[[dataset]]\ntag = 'x'"),
        ("a.json", "[1, 2]"),
        ("a.qml", "<qgis><pipe/></qgis>"),
        ("a.qml", "<qgis>"),
    ],
)
def test_a_file_without_a_legend_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(LegendError, match=rf"{name}.*\.toml, \.json or \.qml"):
        read_names(tmp_path / name)


def test_bands_keep_their_scale_and_name(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "p.tif", np.zeros((2, 4, 4), np.uint8), descriptions=["a", "b"], nodata=255)
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.offsets = [0.5, 0.25], [0, 1]
    only = NativeRaster.open(path).only("b")
    assert (only.file.bands, only.scales, only.offsets, only.names) == ((2,), (0.25,), (1.0,), ("b",))
