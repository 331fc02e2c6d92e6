"""What a correction starts from: the prediction in its areas, whole or not at all, ready to be edited in QGIS."""

from __future__ import annotations

import warnings
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from click.testing import CliRunner
from in_qgis import run_in_qgis
from networks_for_tests import recipe
from test_qgis import look
from worlds import TOP_LEFT, UTM, north_up, write_raster

from gimseg import Model, correct, predict
from gimseg.correct_commands import correct as correct_commands
from gimseg.correction.drawing import Drawing
from gimseg.correction.grounds import open_rasters
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
    assert not (tmp_path / "corrections").exists()
    correct.start("bad", raster, aoi, model=model, project=tmp_path)
    with pytest.raises(OutputError, match="exists"):
        correct.start("bad", raster, aoi, model=model, project=tmp_path)


def layer(path: Path, *geometries: shapely.Geometry | None, crs: str | None = UTM, **given: str) -> Path:
    """A GeoPackage of these."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no CRS is asked for
        pyogrio.write_dataframe(geopandas.GeoDataFrame(geometry=list(geometries), crs=crs), path, **given)
    return path


def square(left: float, top: float, side: float = 20) -> shapely.Polygon:
    """A square of the world, metres from its upper left corner."""
    return shapely.box(LEFT + left, TOP - top - side, LEFT + left + side, TOP - top)


def areas_of(project: Path, id: str = "bad") -> geopandas.GeoDataFrame:
    return geopandas.read_file(Project(project).correction(id).gpkg, layer="aoi")


def places(project: Path, id: str = "bad") -> list[tuple[float, ...]]:
    """Bounds of the areas, which are rectangles."""
    frame = areas_of(project, id)
    assert frame.area.sum() == frame.envelope.area.sum()
    return [shape.bounds for shape in frame.geometry]


def test_a_declared_crs_is_that_of_the_areas_alone(model: Path, tmp_path: Path) -> None:
    """The correction's own layers have a right one, which the declared one must not replace."""
    raster, _ = world(tmp_path)
    area = square(10, 10)
    degrees = geopandas.GeoSeries([area], crs=UTM).to_crs("EPSG:4326")[0]
    bare = layer(tmp_path / "bare.gpkg", degrees, crs=None)
    correct.start("bad", raster, bare, vector_crs="EPSG:4326", model=model, project=tmp_path)
    made = Project(tmp_path).correction("bad")
    assert made.opening.vector_crs is None
    (scene,) = open_rasters(made, Model.load(model).recipe)
    assert scene.drawing is not None and scene.drawing.areas.bounds == pytest.approx(area.bounds, abs=0.01)
    assert correct.check("bad", project=tmp_path).usable


def test_one_start_at_a_time_and_another_touches_nothing(model: Path, tmp_path: Path) -> None:
    raster, aoi = world(tmp_path)
    refused: list[str] = []

    def meanwhile(step: str, *_: object) -> None:
        if refused:
            return
        before = sorted((tmp_path / "corrections").rglob("*"))
        with pytest.raises(OutputError, match="another run is starting correction 'bad'") as told:
            correct.start("bad", raster, aoi, model=model, project=tmp_path)
        refused.append(str(told.value))
        assert sorted((tmp_path / "corrections").rglob("*")) == before

    correct.start("bad", raster, aoi, model=model, project=tmp_path, progress=meanwhile)
    assert refused and [path.name for path in (tmp_path / "corrections").iterdir()] == ["bad"]


def test_a_start_that_was_killed_goes_on(model: Path, tmp_path: Path) -> None:
    raster, aoi = world(tmp_path)

    def killed(step: str, *_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        correct.start("bad", raster, aoi, model=model, project=tmp_path, progress=killed)
    rounds = tmp_path / "corrections"
    assert (rounds / ".bad.partial" / ".predicted_0").is_dir()
    (rounds / ".bad.lock").touch()  # what a process that is killed at once leaves as well
    correct.start("bad", raster, aoi, model=model, project=tmp_path)
    assert [path.name for path in rounds.iterdir()] == ["bad"]


def test_what_is_left_out_or_repaired_of_the_areas_is_told(model: Path, tmp_path: Path) -> None:
    raster, _ = world(tmp_path)
    bow = shapely.Polygon([(LEFT + x, TOP - y) for x, y in ((50, 50), (80, 80), (80, 50), (50, 80))])
    point, line = shapely.Point(LEFT + 40, TOP - 40), shapely.LineString([(LEFT, TOP), (LEFT + 30, TOP - 30)])
    far = square(900, 0)
    given = layer(tmp_path / "mixed.gpkg", square(10, 10), bow, point, line, far, far, far, None)
    started = correct.start("bad", raster, given, model=model, project=tmp_path)
    assert started.areas == len(areas_of(tmp_path)) == 2
    for note in ("1 features without a geometry are left out", "1 feature repaired: invalid"):
        assert f"{given}: {note}" in started.text()
    assert "2 features left out: without an area" in started.text()
    assert "3 features left out: beyond the rasters" in started.text()
    whole = correct.start("good", raster, layer(tmp_path / "one.gpkg", square(10, 10)), model=model, project=tmp_path)
    assert whole.notes == ()


def without_crs(folder: Path) -> Path:
    return write_raster(folder / "bare.tif", blobs(), crs=None)


def test_without_a_crs_nobody_is_warned_but_told(model: Path, tmp_path: Path) -> None:
    bare, area = without_crs(tmp_path), square(10, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        started = correct.start("bad", bare, layer(tmp_path / "a.gpkg", area), model=model, project=tmp_path)
    assert "the raster has no CRS: coordinates were taken as they are, though the layer is in EPSG:32633" in (
        started.text()
    )
    assert areas_of(tmp_path).crs is None and areas_of(tmp_path).geometry[0].equals(area)


@pytest.mark.parametrize(
    ("geometries", "told"),
    [
        ((), "holds no feature that has a geometry"),
        ((None,), "holds no feature that has a geometry"),
        ((shapely.Point(LEFT + 10, TOP - 10),), "holds 1 point: polygons are needed"),
        ((shapely.LineString([(LEFT, TOP), (LEFT + 9, TOP - 9)]),) * 2, "holds 2 lines: polygons are needed"),
        ((square(900, 0),), "lies at 500900, .* and the raster at 500000, .* EPSG:32633"),
    ],
)
def test_a_layer_without_areas_is_refused_for_what_it_is(
    geometries: tuple[shapely.Geometry | None, ...], told: str, model: Path, tmp_path: Path
) -> None:
    raster, _ = world(tmp_path)
    given = layer(tmp_path / "given.gpkg", *geometries, geometry_type="Unknown")
    with pytest.raises(CorrectionError, match=told):
        correct.start("bad", raster, given, model=model, project=tmp_path)


def test_degrees_on_a_raster_without_a_crs_are_refused_as_that(model: Path, tmp_path: Path) -> None:
    degrees = geopandas.GeoSeries([square(10, 10)], crs=UTM).to_crs("EPSG:4326")[0]
    given = layer(tmp_path / "degrees.gpkg", degrees, crs="EPSG:4326")
    with pytest.raises(CorrectionError, match=r"no raster has a CRS.* declare the rasters' CRS \(--crs\)"):
        correct.start("bad", without_crs(tmp_path), given, model=model, project=tmp_path)


def test_rasters_that_cannot_be_drawn_on_together_are_refused(model: Path, tmp_path: Path) -> None:
    raster, aoi = world(tmp_path)
    (tmp_path / "link.tif").symlink_to(raster)
    for other in (f"{tmp_path}/./big.tif", tmp_path / "link.tif"):
        with pytest.raises(CorrectionError, match="are one raster"):
            correct.start("bad", [raster, other], aoi, model=model, project=tmp_path)
    bare = without_crs(tmp_path)
    for both in ([raster, bare], [bare, raster]):
        with pytest.raises(CorrectionError, match=r"bare.tif has no CRS and .*big.tif is in EPSG:32633.*--crs"):
            correct.start("bad", both, aoi, model=model, project=tmp_path)
    assert not (tmp_path / "corrections").exists()


def test_a_single_segment_is_one_file_and_never_the_raster(model: Path, tmp_path: Path) -> None:
    raster, aoi = world(tmp_path)
    with pytest.raises(CorrectionError, match="is a raster to draw on"):
        correct.start("bad", raster, aoi, model=model, project=tmp_path, segments=raster)
    mask = tmp_path / "mask.tif"
    mask.touch()
    correct.start("bad", raster, aoi, model=model, project=tmp_path, segments=str(mask))
    assert Project(tmp_path).correction("bad").segments == (str(mask),)


def test_a_raster_that_meets_no_area_is_left_out(model: Path, tmp_path: Path) -> None:
    raster, aoi = world(tmp_path)
    beside = write_raster(tmp_path / "beside.tif", blobs(), transform=north_up(left=LEFT + 500))
    for name in ("big_segments.tif", "beside_segments.tif"):
        (tmp_path / name).touch()
    started = correct.start("bad", [beside, raster], aoi, model=model, project=tmp_path)
    assert f"{beside} meets no area: left out" in started.text()
    made = Project(tmp_path).correction("bad")
    assert made.rasters == (str(raster),) and made.segments == (str(tmp_path / "big_segments.tif"),)


def test_rasters_that_overlap_show_each_object_once(model: Path, tmp_path: Path) -> None:
    """The first raster has no data in its lower half: there, and beyond it, the second one tells."""
    values = blobs()
    values[:, 48:] = 0
    first = write_raster(tmp_path / "first.tif", values, nodata=0)
    # Half a pixel aside, so that its outlines are others.
    second = write_raster(tmp_path / "second.tif", blobs(), transform=north_up(left=LEFT + 30.5, top=TOP - 20.5))
    given = layer(tmp_path / "given.gpkg", square(10, 10, 80))
    correct.start("one", first, given, model=model, project=tmp_path)
    correct.start("bad", [first, second], given, model=model, project=tmp_path)
    alone, both = (
        geopandas.read_file(Project(tmp_path).correction(id).gpkg, layer="objects").geometry for id in ("one", "bad")
    )
    assert both.area.sum() == pytest.approx(both.union_all().area, abs=1e-6)
    upper = shapely.box(LEFT, TOP - 48, LEFT + 96, TOP)
    shown = both.union_all().intersection(upper)
    assert shown.symmetric_difference(alone.union_all()).area < 1e-6
    assert both.union_all().difference(upper).area > 100
    assert len(areas_of(tmp_path)) == 1


def test_an_area_in_two_crs_is_one_area(model: Path, tmp_path: Path) -> None:
    raster, _ = world(tmp_path)
    area = square(10, 10)
    left, top = geopandas.GeoSeries([shapely.Point(LEFT, TOP)], crs=UTM).to_crs("EPSG:32634")[0].coords[0]
    other = write_raster(tmp_path / "other.tif", blobs(), transform=north_up(left=left, top=top), crs="EPSG:32634")
    correct.start("bad", [raster, other], layer(tmp_path / "a.gpkg", area), model=model, project=tmp_path)
    assert places(tmp_path) == [area.bounds]


def test_one_of_several_layers_can_be_named(model: Path, tmp_path: Path) -> None:
    raster, _ = world(tmp_path)
    path = layer(tmp_path / "multi.gpkg", square(10, 10), layer="north")
    layer(path, square(50, 50), layer="south")
    with pytest.raises(VectorError, match=r"name one, as in .*multi.gpkg\|layername=north"):
        correct.start("bad", raster, path, model=model, project=tmp_path)
    correct.start("bad", raster, f"{path}|layername=south", model=model, project=tmp_path)
    assert places(tmp_path) == [square(50, 50).bounds]
    command = ["start", "cli", "-r", str(raster), "--aoi", f"{path}|layername=north", "-m", str(model)]
    done = CliRunner().invoke(correct_commands, [*command, "--project", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert places(tmp_path, "cli") == [square(10, 10).bounds]
    missing = CliRunner().invoke(correct_commands, [*command[:-3], f"{tmp_path}/no.gpkg|layername=x"])
    assert missing.exit_code == 2 and "does not exist" in missing.output


def test_a_named_layer_is_an_area_of_a_prediction(model: Path, tmp_path: Path) -> None:
    raster, _ = world(tmp_path)
    path = layer(tmp_path / "multi.gpkg", square(10, 10), layer="north")
    layer(path, square(50, 50), layer="south")
    known = []
    for name in ("north", "south"):
        # Over the other one: they must not be taken for the same run.
        predict(raster, model, output=tmp_path / "mask.tif", aoi=f"{path}|layername={name}", overwrite=True)
        with rasterio.open(tmp_path / "mask.tif") as mask:
            known.append(mask.read(1) != 255)
    assert known[0][10:30, 10:30].all() and known[1][50:70, 50:70].all()
    assert known[0].sum() == known[1].sum() == 400


@pytest.mark.parametrize("place", ["corrections", "corrections/.bad.partial", "corrections/bad"])
def test_a_project_that_cannot_be_written_is_refused(place: str, model: Path, tmp_path: Path) -> None:
    raster, aoi = world(tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("mine")
    with pytest.raises(OutputError):
        correct.start("bad", raster, aoi, model=model, project=tmp_path)
    assert (tmp_path / place).read_text() == "mine"


def test_a_project_folder_without_write_access_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raster, aoi = world(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        OutputError, match=r"cannot write in .*corrections \(Permission denied\).*another project folder"
    ):
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
