"""Styles as QGIS itself takes them; the tests with QGIS skip where its Python module is missing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from worlds import UTM, write_raster

from gimseg.legend import Legend, LegendClass
from gimseg.styles import joint_style, raster_style, share_style, vector_style, write_style
from gimseg.vectorization import vectorize

QGIS_PYTHON = "/usr/bin/python3"
OFFSCREEN = os.environ | {"QT_QPA_PLATFORM": "offscreen", "PYTHONPATH": ""}
ROOFS = Legend((LegendClass("tin & <tar>", 1, "#0072b2"), LegendClass("Ziegel – rot", 2, "#d55e00")))

# Loads layers as a person does, says what became of them, and renders them.
LOOK = """
import json, sys
from qgis.core import (QgsApplication, QgsMapRendererSequentialJob, QgsMapSettings, QgsRasterLayer, QgsVectorLayer)
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor

picture, *paths = sys.argv[1:]
app = QgsApplication([], False)
app.initQgis()
layers, seen = [], []
for path in paths:
    layer = QgsRasterLayer(path, "m") if path.endswith(".tif") else QgsVectorLayer(path, "p", "ogr")
    message, loaded = layer.loadDefaultStyle()
    renderer = layer.renderer()
    one = {"valid": layer.isValid(), "styled": loaded, "crs": layer.crs().authid(), "renderer": renderer.type()}
    if renderer.type() == "singlebandpseudocolor":
        pass
    elif path.endswith(".tif"):
        one["classes"] = [[c.value, c.label, c.color.name(), c.color.alpha()] for c in renderer.classes()]
    else:
        one["count"] = layer.featureCount()
        one["fields"] = [field.name() for field in layer.fields()]
        one["labels"] = layer.labelsEnabled()
        if renderer.type() == "categorizedSymbol":
            one["attribute"] = renderer.classAttribute()
            one["classes"] = [[c.value(), c.symbol().color().name()] for c in renderer.categories()]
    layers.append(layer)
    seen.append(one)
settings = QgsMapSettings()
settings.setLayers(layers)
settings.setDestinationCrs(layers[0].crs())
settings.setExtent(layers[0].extent())
settings.setOutputSize(QSize(400, 400))
settings.setBackgroundColor(QColor("#b0b0b0"))
job = QgsMapRendererSequentialJob(settings)
job.start()
job.waitForFinished()
job.renderedImage().save(picture)
print("SEEN" + json.dumps(seen))
sys.stdout.flush()
del job, layers, layer, renderer
app.exitQgis()
"""


@pytest.fixture(scope="session")
def qgis() -> None:
    """Skips without QGIS's own Python."""
    try:
        subprocess.run([QGIS_PYTHON, "-c", "import qgis.core"], env=OFFSCREEN, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs QGIS and its Python module")


def look(picture: Path, *layers: Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """What QGIS says of each layer, and the picture of all, uint8 (rows, columns, 3)."""
    from matplotlib.image import imread

    command = [QGIS_PYTHON, "-c", LOOK, str(picture), *map(str, layers)]
    run = subprocess.run(command, env=OFFSCREEN, capture_output=True, text=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith("SEEN")]
    assert lines, run.stderr
    return json.loads(lines[0].removeprefix("SEEN")), (imread(picture)[:, :, :3] * 255).round().astype(np.uint8)


def shows(picture: np.ndarray, colour: str) -> int:
    """Pixels of exactly this colour."""
    return int((picture == np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)).all(axis=2).sum())


def labels() -> np.ndarray:
    """A house of each class with a yard in one of them, and a corner without data."""
    mask = np.zeros((40, 40), np.uint8)
    mask[4:16, 4:16], mask[8:11, 8:11] = 1, 0
    mask[20:34, 22:36] = 2
    mask[:3, 30:] = 255
    return mask


@pytest.mark.usefixtures("qgis")
def test_qgis_opens_mask_and_polygons_in_the_colours_of_the_legend(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "segments.tif", labels())
    vectorize(mask, tmp_path / "segments.shp", legend=ROOFS)
    seen, picture = look(tmp_path / "polygons.png", tmp_path / "segments.shp")
    assert seen == [
        {
            "valid": True,
            "styled": True,
            "crs": UTM,
            "renderer": "categorizedSymbol",
            "count": 2,
            "fields": ["id", "class", "class_id", "area_m2", "perim_m", "date"],
            "labels": False,
            "attribute": "class",
            "classes": [["tin & <tar>", "#0072b2"], ["Ziegel – rot", "#d55e00"]],
        }
    ]
    assert shows(picture, "#0072b2") > 300 and shows(picture, "#d55e00") > 300  # outlines
    assert shows(picture, "#b0b0b0") > 0.5 * 400 * 400  # the background, and the yard

    (raster,), picture = look(tmp_path / "mask.png", mask)
    assert raster["styled"] and raster["renderer"] == "paletted" and raster["crs"] == UTM
    assert [1, "tin & <tar>", "#0072b2", 255] in raster["classes"]
    assert [entry[3] for entry in raster["classes"] if entry[0] in (0, 255)] == [0, 0]
    assert shows(picture, "#0072b2") == 100 * (12 * 12 - 9) and shows(picture, "#d55e00") == 100 * 14 * 14
    assert shows(picture, "#b0b0b0") == 400 * 400 - 100 * (12 * 12 - 9 + 14 * 14)


@pytest.mark.usefixtures("qgis")
@pytest.mark.parametrize("ending", [".gpkg", ".fgb", ".geojson"])
def test_a_binary_legend_gives_one_symbol(tmp_path: Path, ending: str) -> None:
    mask = write_raster(tmp_path / "mask.tif", (labels() == 1).astype(np.uint8))
    vectorize(mask, tmp_path / f"houses{ending}", legend=Legend.binary("house", "#009e73"))
    (seen,), picture = look(tmp_path / "picture.png", tmp_path / f"houses{ending}")
    assert seen["styled"] and seen["renderer"] == "singleSymbol" and seen["count"] == 1
    assert seen["crs"] == ("EPSG:4326" if ending == ".geojson" else UTM)
    assert shows(picture, "#009e73") > 300


@pytest.mark.usefixtures("qgis")
def test_styles_for_one_kind_of_layer_are_taken_too(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "mask.tif", labels())
    vectorize(mask, tmp_path / "polygons.gpkg", legend=ROOFS)
    write_style(mask, raster_style(ROOFS))
    write_style(tmp_path / "polygons.gpkg", vector_style(ROOFS))
    (raster, vector), _ = look(tmp_path / "picture.png", mask, tmp_path / "polygons.gpkg")
    assert raster["styled"] and raster["renderer"] == "paletted"
    assert vector["styled"] and vector["renderer"] == "categorizedSymbol"


@pytest.mark.usefixtures("qgis")
@pytest.mark.parametrize("what", ["probabilities", "uncertainty"])
def test_qgis_shows_shares_from_0_to_1_in_colours(tmp_path: Path, what: Any) -> None:
    shares = np.full((40, 40), 255, np.uint8)
    shares[:, :10], shares[:, 10:20], shares[:, 20:30] = 0, 125, 250
    path = write_raster(tmp_path / "shares.tif", shares, nodata=255)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales = (1 / 250,)
    write_style(path, share_style(what))
    (seen,), picture = look(tmp_path / "picture.png", path)
    assert seen["styled"] and seen["renderer"] == "singlebandpseudocolor"
    columns = picture[200, 50::100]
    assert columns[0].tolist() == columns[3].tolist() == [0xB0] * 3  # nothing, and no data: the background
    assert shows(picture, "#fde725" if what == "probabilities" else "#fcffa4") == 400 * 100
    assert len({tuple(column) for column in columns}) == 3


def test_a_style_lies_beside_its_layer(tmp_path: Path) -> None:
    assert write_style(tmp_path / "a.b.gpkg", vector_style(ROOFS)) == tmp_path / "a.b.qml"
    assert (tmp_path / "a.b.qml").read_text(encoding="utf-8") == vector_style(ROOFS)


@pytest.mark.parametrize("style", [raster_style, vector_style, joint_style])
def test_styles_are_well_formed_and_name_every_class(style: Any) -> None:
    root = ElementTree.fromstring(style(ROOFS))
    texts = {value for element in root.iter() for value in element.attrib.values()}
    assert {"tin & <tar>", "Ziegel – rot"} <= texts
    assert (root.find("pipe/rasterrenderer") is not None) == (style is not vector_style)
    assert (root.find("renderer-v2") is not None) == (style is not raster_style)
