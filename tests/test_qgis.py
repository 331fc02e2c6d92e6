"""QGIS projects as QGIS itself opens them; what needs QGIS skips where its Python module is missing."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import geopandas
import numpy as np
import pytest
from in_qgis import run_in_qgis
from matplotlib.image import imread
from networks_for_tests import brightness_model
from shapely.geometry import box
from worlds import TOP_LEFT, UTM, write_raster

from gimseg.delivery import deliver
from gimseg.errors import GridError, OutputError
from gimseg.legend import Legend, LegendClass
from gimseg.qgis import Project, ProjectLayer, Snapping, ValueMap, project_xml, write_project
from gimseg.raster_styles import image_style, read_image_style
from gimseg.rasters import open_raster
from gimseg.result_projects import Results, project_of
from gimseg.styles import vector_style
from gimseg.vectorization import vectorize
from gimseg.vectors import open_layer

ROOFS = Legend((LegendClass("tin & <tar>", 1, "#0072b2"), LegendClass("Ziegel – rot", 2, "#d55e00")))
SIDE = 40
EXTENT = (TOP_LEFT[0], TOP_LEFT[1] - SIDE, TOP_LEFT[0] + SIDE, TOP_LEFT[1])

# Opens a project as a person does, says what became of it, and renders what is shown at first.
LOOK = """
from qgis.gui import QgsLayerTreeMapCanvasBridge, QgsMapCanvas
path, picture = sys.argv[1:]
said = []
QgsApplication.messageLog().messageReceived.connect(lambda text, tag, level: said.append(text) if level else None)
project = QgsProject.instance()
canvas = QgsMapCanvas()
canvas.setObjectName("theMapCanvas")
canvas.resize(400, 400)
bridge = QgsLayerTreeMapCanvasBridge(project.layerTreeRoot(), canvas)
opened = project.read(path)
tree = project.layerTreeRoot()

def look(layer):
    node = tree.findLayer(layer)
    one = {
        "name": layer.name(), "valid": layer.isValid(), "crs": layer.crs().authid(), "shown": node.isVisible(),
        "group": node.parent().name(), "renderer": layer.renderer().type(),
    }
    if layer.type() == QgsMapLayerType.VectorLayer:
        one["count"] = layer.featureCount()
        one["read_only"] = layer.readOnly()
        one["edits"] = layer.startEditing() and layer.rollBack()
        one["labels"] = layer.labelsEnabled()
        one["widgets"] = {
            field.name(): [[(key, entry[key]) for key in entry][0] for entry in setup.config()["map"]]
            for index, field in enumerate(layer.fields())
            for setup in [layer.editorWidgetSetup(index)] if setup.type() == "ValueMap"
        }
        snap = project.snappingConfig().individualLayerSettings(layer)
        one["snaps"] = snap.enabled() and [snap.tolerance(), snap.units() == QgsTolerance.Pixels, int(snap.typeFlag())]
    else:
        enhancement = getattr(layer.renderer(), "redContrastEnhancement", lambda: None)()
        one["stretch"] = enhancement and [enhancement.minimumValue(), enhancement.maximumValue()]
        one["alpha"] = layer.renderer().alphaBand()
    return one

view = canvas.mapSettings()
shown = [layer for layer in tree.layerOrder() if tree.findLayer(layer).isVisible()]
box = view.visibleExtent()
full = project.viewSettings().fullExtent()
render(shown, project.crs(), full, picture)
tell({
    "opened": opened, "title": project.title(), "crs": project.crs().authid(), "said": said,
    "missing": project.error(),
    "view": [box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum()],
    "full": [full.xMinimum(), full.yMinimum(), full.xMaximum(), full.yMaximum()],
    "snapping": project.snappingConfig().enabled(), "topological": project.topologicalEditing(),
    "absolute": project.filePathStorage() == Qgis.FilePathType.Absolute,
    "layers": [look(layer) for layer in tree.layerOrder()],
})
"""


def look(path: Path, profile: Path) -> tuple[dict[str, Any], np.ndarray]:
    """What QGIS says of a project, and the picture of what it shows, uint8 (rows, columns, 3)."""
    picture = profile / "picture.png"
    seen = run_in_qgis(LOOK, path, picture, profile=profile)
    return seen, (imread(picture)[:, :, :3] * 255).round().astype(np.uint8)


def near(picture: np.ndarray, colour: str, within: int = 0) -> np.ndarray:
    """Which pixels have this colour, bool (rows, columns)."""
    wanted = np.frombuffer(bytes.fromhex(colour[1:]), np.uint8).astype(int)
    return (np.abs(picture.astype(int) - wanted) <= within).all(axis=2)


def square_labels() -> np.ndarray:
    """A house of each class, 10 px from the left and from the right."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4:16, 4:16], mask[20:34, 22:36] = 1, 2
    return mask


def image(path: Path, dtype: str = "uint8", scale: int = 1) -> Path:
    """Red left of the middle, green right of it."""
    values = np.zeros((3, SIDE, SIDE), dtype)
    values[0, :, : SIDE // 2], values[1, :, SIDE // 2 :] = 200 * scale, 180 * scale
    return write_raster(path, values, photometric="RGB")


@pytest.fixture
def world(tmp_path: Path) -> Results:
    """All that a prediction of two classes can leave, in a folder of its own."""
    folder = tmp_path / "out"
    folder.mkdir()
    mask = write_raster(folder / "mask.tif", square_labels(), nodata=255)
    vectorize(mask, [folder / "houses.parquet", folder / "houses.gpkg"], legend=ROOFS)
    area = box(EXTENT[0] + 2, EXTENT[1] + 2, EXTENT[2] - 2, EXTENT[3] - 2)
    geopandas.GeoDataFrame(geometry=[area], crs=UTM).to_crs("EPSG:4326").to_file(folder / "aoi.geojson")
    doubt = np.tile(np.linspace(0, 250, SIDE).astype(np.uint8), (SIDE, 1))
    return Results(
        open_raster(image(tmp_path / "image.tif")),
        ROOFS,
        (folder / "houses.parquet", folder / "houses.gpkg"),
        mask,
        open_layer(folder / "aoi.geojson"),
        write_raster(folder / "mask_uncertainty.tif", doubt, nodata=255),
        write_raster(folder / "mask_probabilities.tif", np.stack([doubt, doubt[:, ::-1]]), nodata=255),
    )


def test_qgis_shows_polygons_over_the_image(world: Results, tmp_path: Path, qgis: Path) -> None:
    project = write_project(tmp_path / "out" / "town.qgz", project_of(world, "Tøwn & <1>"))
    seen, picture = look(project, qgis)
    assert seen["opened"] and not seen["missing"] and seen["title"] == "Tøwn & <1>" and not seen["absolute"]
    assert seen["crs"] == UTM
    assert seen["full"] == pytest.approx(EXTENT) and seen["view"][1::2] == pytest.approx(EXTENT[1::2])
    layers = seen["layers"]
    assert all(layer["valid"] for layer in layers)
    assert [(layer["name"], layer["group"], layer["shown"], layer["renderer"]) for layer in layers] == [
        ("Polygons", "Found", True, "categorizedSymbol"),
        ("Area of interest", "Found", True, "singleSymbol"),
        ("Uncertainty", "Pixels", False, "singlebandpseudocolor"),
        ("Probabilities", "Pixels", False, "singlebandpseudocolor"),
        ("Mask", "Pixels", False, "paletted"),
        ("image", "", True, "multibandcolor"),
    ]
    assert [layer["crs"] for layer in layers] == [UTM, "EPSG:4326", UTM, UTM, UTM, UTM]
    polygons, aoi = layers[:2]
    assert polygons["count"] == 2 and polygons["edits"] and not polygons["labels"]
    assert aoi["count"] == 1 and aoi["read_only"] and not aoi["edits"]
    # 10 px of the picture are one of the image: polygons are filled and outlined, the rest shows the image.
    for place, outline, fill in (
        (np.s_[40:160, 40:160], "#0072b2", "#892438"),
        (np.s_[200:340, 220:360], "#d55e00", "#439900"),
    ):
        inside = picture[place]
        assert near(inside, outline, within=60).sum() > 200  # smoothed against its dark rim
        assert near(inside, fill).sum() > 0.9 * inside.shape[0] * inside.shape[1]
    assert near(picture, "#c80000").sum() + near(picture, "#00b400").sum() > 0.5 * picture.shape[0] * picture.shape[1]
    assert not near(picture, "#ff00ff").any()  # nothing of the canvas shows through


def test_a_mask_is_shown_where_there_are_no_polygons(world: Results, tmp_path: Path, qgis: Path) -> None:
    only = replace(world, polygons=(), aoi=None, uncertainty=None, probabilities=None)
    seen, picture = look(write_project(tmp_path / "p.qgz", project_of(only, "m")), qgis)
    assert [layer["name"] for layer in seen["layers"]] == ["Mask", "image"] and seen["layers"][0]["shown"]
    assert near(picture, "#0072b2").sum() == 120 * 120 and near(picture, "#d55e00").sum() == 140 * 140


def test_layers_that_are_edited(world: Results, tmp_path: Path, qgis: Path) -> None:
    houses = world.polygons[1]
    drawn = ProjectLayer(
        houses,
        "Objects",
        "vector",
        UTM,
        vector_style(ROOFS),
        editable=True,
        # Not in the order of the alphabet, which QGIS would sort a map by.
        widgets={"class": ValueMap((("tin", "tin & <tar>"), ("brick", "Ziegel – rot"), ("other", "")))},
    )
    fixed = replace(drawn, name="Prediction", editable=False, widgets={})
    project = Project((drawn, fixed), UTM, EXTENT, "editing", Snapping(tolerance_px=9))
    seen, _ = look(write_project(tmp_path / "edit.qgz", project), qgis)
    objects, prediction = seen["layers"]
    assert objects["widgets"] == {"class": [["tin", "tin & <tar>"], ["brick", "Ziegel – rot"], ["other", ""]]}
    assert objects["edits"] and objects["snaps"] == [9, True, 3]
    assert prediction["read_only"] and not prediction["edits"] and prediction["snaps"] is False
    assert seen["snapping"] and seen["topological"]


def test_values_of_other_types_are_stretched(tmp_path: Path, qgis: Path) -> None:
    raster = image(tmp_path / "reflectance.tif", "uint16", scale=10)
    style = read_image_style(raster)
    layer = ProjectLayer(raster, "Image", "raster", UTM, style)
    seen, picture = look(write_project(tmp_path / "p.qgz", Project((layer,), UTM, EXTENT, "t")), qgis)
    assert seen["layers"][0]["stretch"] == [0, 2000] and seen["layers"][0]["alpha"] == -1
    assert near(picture, "#ff0000").sum() == near(picture, "#00ff00").sum() == 80_000
    grey = ProjectLayer(raster, "Image", "raster", UTM, image_style((1,), ((0.0, 4000.0),)))
    _, picture = look(write_project(tmp_path / "q.qgz", Project((grey,), UTM, EXTENT, "t")), qgis)
    assert near(picture, "#7f7f7f", within=1).sum() == 80_000


def test_a_folder_that_moves_takes_its_project_along(world: Results, tmp_path: Path, qgis: Path) -> None:
    write_project(tmp_path / "out" / "town.qgz", project_of(world, "t"))
    moved = tmp_path / "elsewhere" / "far"
    moved.mkdir(parents=True)
    (tmp_path / "out").rename(moved / "out")
    (tmp_path / "image.tif").rename(moved / "image.tif")
    seen, _ = look(moved / "out" / "town.qgz", qgis)
    assert len(seen["layers"]) == 6 and all(layer["valid"] for layer in seen["layers"])


def test_the_same_project_has_the_same_bytes_and_no_path_of_its_maker(world: Results, tmp_path: Path) -> None:
    project = project_of(world, "t")
    one = write_project(tmp_path / "out" / "t.qgz", project).read_bytes()
    assert write_project(tmp_path / "out" / "t.qgz", project_of(world, "t")).read_bytes() == one
    with zipfile.ZipFile(tmp_path / "out" / "t.qgz") as archive:
        assert archive.namelist() == ["t.qgs"]
        text = archive.read("t.qgs").decode()
    assert str(tmp_path) not in text and project_xml(project, tmp_path / "out") == text
    found = {element.text for element in ElementTree.fromstring(text).iter("datasource")}
    assert found == {
        "./houses.gpkg|layername=polygons",
        "./aoi.geojson",
        "./mask_uncertainty.tif",
        "./mask_probabilities.tif",
        "./mask.tif",
        "../image.tif",
    }


def test_a_style_that_a_person_made_is_kept(world: Results, tmp_path: Path) -> None:
    (tmp_path / "out" / "houses.qml").write_text(
        '<qgis><renderer-v2 type="nullSymbol"/><layerOpacity>0.5</layerOpacity></qgis>'
    )
    text = project_xml(project_of(world, "t"), tmp_path)
    assert 'type="nullSymbol"' in text and "<layerOpacity>0.5" in text


def test_predict_writes_a_project_of_what_it_made(tmp_path: Path, qgis: Path) -> None:
    values = np.full((96, 120), 10, np.uint8)
    values[8:28, 10:40] = 200
    raster = write_raster(tmp_path / "image.tif", values)
    out = tmp_path / "out"
    out.mkdir()
    made = deliver(raster, brightness_model(), [out / "p.qgz", out / "m.tif", out / "m.fgb"])
    assert made.projects == (out / "p.qgz",) and str(out / "p.qgz") in made.text()
    seen, _ = look(out / "p.qgz", qgis)
    assert [(layer["name"], layer["shown"]) for layer in seen["layers"]] == [
        ("Polygons", True),
        ("Mask", False),
        ("image", True),
    ]
    assert seen["layers"][0]["count"] == 1 and seen["layers"][2]["renderer"] == "singlebandgray"
    # Alone, it brings mask and polygons along.
    deliver(raster, brightness_model(), out / "alone.qgz")
    assert {"alone_segments.tif", "alone_segments.shp"} <= {path.name for path in out.iterdir()}
    with pytest.raises(OutputError, match="exists"):
        deliver(raster, brightness_model(), out / "alone.qgz")


@pytest.mark.real_data
def test_real_predictions_over_real_imagery(real_data: Path, tmp_path: Path, qgis: Path) -> None:
    raster = real_data / "buildings" / "banepa_np_00.tif"
    made = deliver(raster, "builtin", [tmp_path / "b.tif", tmp_path / "b.gpkg", tmp_path / "b.qgz"], min_area_m2=8)
    seen, picture = look(tmp_path / "b.qgz", qgis)
    polygons = seen["layers"][0]
    assert made.layers and polygons["count"] == made.layers.count > 20 and polygons["renderer"] == "singleSymbol"
    assert seen["crs"] == "EPSG:3857" and all(layer["valid"] for layer in seen["layers"])
    colour = made.layers.legend.classes[0].colour
    assert near(picture, colour).sum() > 500 and picture.std() > 30


@pytest.mark.parametrize("crs", [None, UTM, "+proj=laea +lat_0=10 +lon_0=20"])
def test_any_crs_or_none_can_be_told(crs: str | None) -> None:
    layer = ProjectLayer("a.tif", "A", "raster", crs)
    root = ElementTree.fromstring(project_xml(Project((layer,), crs, (0, 0, 1, 1), "t"), "."))
    reference = root.find("projectlayers/maplayer/srs/spatialrefsys")
    assert reference is not None
    assert (reference.findtext("authid") or "") == (UTM if crs == UTM else "")
    assert bool(reference.findtext("wkt")) == (crs is not None)


@pytest.mark.parametrize(
    ("error", "told", "make"),
    [
        (OutputError, "kind", lambda: ProjectLayer("a.tif", "A", "sound")),  # type: ignore[arg-type]
        (OutputError, "name", lambda: ProjectLayer("a.tif", " ", "raster")),
        (OutputError, "raster", lambda: ProjectLayer("a.tif", "A", "raster", editable=True)),
        (OutputError, "qml", lambda: ProjectLayer("a.tif", "A", "raster", style="<qgis>")),
        (GridError, "CRS", lambda: ProjectLayer("a.tif", "A", "raster", "EPSG:0")),
        (OutputError, "layers", lambda: Project((), UTM, EXTENT, "t")),
        (GridError, "extent", lambda: Project((ProjectLayer("a.tif", "A", "raster"),), UTM, (1, 0, 1, 2), "t")),
        (
            OutputError,
            "qgz",
            lambda: write_project("a.qgs", Project((ProjectLayer("a", "A", "raster"),), None, EXTENT, "")),
        ),
        (OutputError, "one", lambda: ValueMap(())),
        (OutputError, "one", lambda: ValueMap((("a", "1"), ("a", "2")))),
    ],
)
def test_what_makes_no_project_is_refused(error: type[Exception], told: str, make: Any) -> None:
    with pytest.raises(error, match=told):
        make()


def test_widgets_and_layers_cannot_be_changed_behind_ones_back() -> None:
    given = {"class": ValueMap.of_names(ROOFS)}
    layer = ProjectLayer("a.gpkg", "A", "vector", editable=True, widgets=given)
    given.clear()
    assert json.dumps(dict(layer.widgets["class"].entries)) and len(layer.widgets) == 1
