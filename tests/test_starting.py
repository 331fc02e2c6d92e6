"""What a correction starts from: the prediction in its areas, whole or not at all, ready to be edited in QGIS."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
import torch
from in_qgis import run_in_qgis
from networks_for_tests import recipe
from test_qgis import look
from worlds import TOP_LEFT, UTM, write_raster

from gimseg import Model, correct, predict
from gimseg.correction.drawing import Drawing
from gimseg.correction.rounds import Project
from gimseg.errors import CorrectionError, OutputError, VectorError
from gimseg.models import build_network
from gimseg.rasters import open_raster

LEFT, TOP = TOP_LEFT
SIDE = 96


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was not trained, but for a bias: about half of what it sees is of the class."""
    torch.manual_seed(0)
    network = build_network("Unet", "resnet18", bands=1, channels=1, encoder_depth=3, decoder_channels=(32, 16, 8))
    network.eval()
    seen = network((torch.from_numpy(blobs())[None].float() - 100) / 40)
    network.segmentation_head[0].bias.data -= seen.median().detach()  # type: ignore[index, union-attr, operator]
    values = recipe(stride=8, window=64, halo=16, mean=(100.0,), std=(40.0,))
    architecture = {
        "name": "Unet",
        "encoder": "resnet18",
        "options": {"encoder_depth": 3, "decoder_channels": [32, 16, 8]},
    }
    folder = tmp_path_factory.mktemp("model") / "model"
    Model(network, values, architecture).save(folder)
    return folder


def blobs() -> np.ndarray:
    """A smooth image, uint8 (1, rows, cols)."""
    coarse = torch.from_numpy(np.random.default_rng(3).normal(100, 60, (1, 1, 12, 12)).astype(np.float32))
    image = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")[0]
    return image.clamp(1, 255).numpy().astype(np.uint8)


def world(folder: Path) -> tuple[Path, Path]:
    """An image of smooth blobs, and two areas of interest in another CRS; one lies beyond the image."""
    path = write_raster(folder / "big.tif", blobs())
    areas = [shapely.box(LEFT + 10, TOP - 60, LEFT + 70, TOP - 10), shapely.box(LEFT + 900, TOP, LEFT + 950, TOP + 9)]
    aoi = folder / "aoi.shp"
    geopandas.GeoDataFrame(geometry=areas, crs=UTM).to_crs("EPSG:4326").to_file(aoi)
    return path, aoi


def test_objects_are_the_prediction_in_the_areas(model: Path, tmp_path: Path) -> None:
    raster, aoi = world(tmp_path)
    started = correct.start("bad", raster, aoi, model=model, project=tmp_path)
    made = Project(tmp_path).correction("bad")
    assert started.correction == made and started.areas == 1 and started.objects > 0
    opened = open_raster(raster)
    drawing = Drawing.read(made.gpkg, opened.geobox, Model.load(model).recipe.legend)
    labels = drawing.burn(opened.geobox)
    predict(raster, model, output=tmp_path / "mask.tif", aoi=aoi)
    mask = open_raster(tmp_path / "mask.tif")
    truth = mask.on(mask.geobox).read_values((slice(0, SIDE), slice(0, SIDE))).data[0]
    known = labels != 255
    assert known.sum() == 60 * 50
    # Outlines are simplified within a pixel.
    assert (labels[known] == truth[known]).mean() > 0.93


def test_the_geopackage_has_all_layers_and_nothing_is_changed_yet(model: Path, tmp_path: Path) -> None:
    raster, aoi = world(tmp_path)
    correct.start("bad", raster, aoi, model=model, project=tmp_path)
    made = Project(tmp_path).correction("bad")
    layers = {name: geopandas.read_file(made.gpkg, layer=name) for name in ("aoi", "objects", "points", "prediction")}
    assert {frame.crs.to_epsg() for frame in layers.values()} == {32633}
    assert set(layers["objects"]["class"]) == {"bright"} and len(layers["points"]) == 0
    assert layers["objects"].geometry.geom_equals(layers["prediction"].geometry).all()
    checked = correct.check("bad", project=tmp_path)
    assert checked.usable and checked.changes is not None and not checked.changes.any
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "correction.gpkg", "correction.qgz", "correction.toml"
    ]  # fmt: skip


def test_what_was_delivered_for_the_raster_is_found(model: Path, tmp_path: Path) -> None:
    raster, aoi = world(tmp_path)
    for name in ("big_segments.tif", "big_segments.shp"):
        (tmp_path / name).touch()
    correct.start("bad", raster, aoi, model=model, project=tmp_path)
    segments = Project(tmp_path).correction("bad").segments
    assert segments == tuple(str(tmp_path / name) for name in ("big_segments.tif", "big_segments.shp"))


def test_a_start_that_fails_leaves_nothing_and_one_that_stands_is_kept(model: Path, tmp_path: Path) -> None:
    raster, aoi = world(tmp_path)
    far = tmp_path / "far.gpkg"
    geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)], crs=UTM).to_file(far)
    with pytest.raises(CorrectionError, match="none of its areas meets"):
        correct.start("bad", raster, far, model=model, project=tmp_path)
    with pytest.raises(VectorError):
        correct.start("bad", raster, tmp_path / "none.shp", model=model, project=tmp_path)
    assert list((tmp_path / "corrections").iterdir()) == []
    correct.start("bad", raster, aoi, model=model, project=tmp_path)
    with pytest.raises(OutputError, match="exists"):
        correct.start("bad", raster, aoi, model=model, project=tmp_path)


def test_qgis_opens_it_ready_to_edit(model: Path, tmp_path: Path, qgis: Path) -> None:
    raster, aoi = world(tmp_path)
    correct.start("bad", raster, aoi, model=model, project=tmp_path)
    seen, _ = look(tmp_path / "corrections" / "bad" / "correction.qgz", qgis)
    assert seen["opened"] and not seen["missing"] and seen["said"] == []
    assert seen["snapping"] and seen["topological"] and not seen["absolute"]
    layers = {layer["name"]: layer for layer in seen["layers"]}
    assert list(layers) == ["points", "objects", "aoi", "prediction", "big"]
    assert all(layer["valid"] for layer in layers.values())
    choice = [[name, name] for name in ("bright", "background", "ignore")]
    assert layers["objects"]["widgets"] == layers["points"]["widgets"] == {"class": choice}
    assert [layers[name]["edits"] for name in ("points", "objects", "aoi", "prediction")] == [True, True, True, False]
    assert layers["prediction"]["read_only"] and layers["objects"]["snaps"]


EDIT = """
path, = sys.argv[1:]
project = QgsProject.instance()
project.read(path)
layer, = project.mapLayersByName("objects")
layer.startEditing()
first = next(layer.getFeatures())
layer.deleteFeature(first.id())
drawn = QgsVectorLayerUtils.createFeature(layer, QgsGeometry.fromWkt("MULTIPOLYGON (((%s)))"))
layer.addFeature(drawn)
tell({"saved": layer.commitChanges(), "said": layer.commitErrors(), "class": drawn["class"]})
"""


def test_what_is_edited_in_qgis_is_what_is_checked(model: Path, tmp_path: Path, qgis: Path) -> None:
    raster, aoi = world(tmp_path)
    correct.start("bad", raster, aoi, model=model, project=tmp_path)
    before = correct.check("bad", project=tmp_path).changes
    ring = ", ".join(f"{LEFT + x} {TOP - y}" for x, y in ((80, 80), (90, 80), (90, 90), (80, 90), (80, 80)))
    seen = run_in_qgis(EDIT % ring, tmp_path / "corrections" / "bad" / "correction.qgz", profile=qgis)
    assert seen["saved"], seen
    assert seen["class"] == "bright"  # of one class, a new polygon is that one
    after = correct.check("bad", project=tmp_path).changes
    assert before is not None and after is not None
    assert (after.added, after.removed, after.kept) == (1, 1, before.kept - 1)
