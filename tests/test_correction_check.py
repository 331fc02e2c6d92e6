"""Everything that would mislead a training is found, with its layer, feature and place; what is right passes."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely
from click.testing import CliRunner
from projects_for_tests import small_model
from worlds import north_up, write_raster

from gimseg.cli import cli
from gimseg.correction.changes import Changes, compare_objects
from gimseg.correction.checking import Checked, check_drawing, fix_drawing
from gimseg.correction.rounds import Correction, Opening
from gimseg.errors import CorrectionError
from gimseg.legend import Legend
from gimseg.rasters import RasterView, open_raster

ROOF = Legend.binary("roof")
THREE = Legend.from_dict({"classes": ["roof", "road", "tree"]})
LEFT, TOP = 500_000.0, 6_000_000.0
Drawn = list[tuple[shapely.Geometry | None, str | None]]


def box(left: float, bottom: float, right: float, top: float) -> shapely.Polygon:
    """In metres from the raster's lower left corner; the raster is 60 x 40 m."""
    return shapely.box(LEFT + left, TOP - 40 + bottom, LEFT + right, TOP - 40 + top)


@pytest.fixture
def view(tmp_path: Path) -> RasterView:
    """An image of 60 x 40 px of 1 m whose last ten columns are nodata."""
    data = np.full((1, 40, 60), 100, np.uint8)
    data[:, :, 50:] = 0
    path = write_raster(tmp_path / "image.tif", data, transform=north_up(1.0, left=LEFT, top=TOP), nodata=0)
    raster = open_raster(path)
    return raster.on(raster.geobox)


def write(path: Path, crs: str = "EPSG:32633", **layers: Drawn) -> Path:
    for name, features in layers.items():
        frame = geopandas.GeoDataFrame(
            {"class": [text for _, text in features]}, geometry=[shape for shape, _ in features], crs=crs
        )
        frame.to_file(path, layer=name, engine="pyogrio")
    return path


def checked(view: RasterView, tmp_path: Path, legend: Legend = ROOF, **layers: Drawn) -> Checked:
    return check_drawing(write(tmp_path / "correction.gpkg", **layers), view, legend)


AREA = (box(2, 2, 40, 38), None)


def test_a_drawing_that_is_right_has_no_finding(view: RasterView, tmp_path: Path) -> None:
    found = checked(view, tmp_path, aoi=[AREA], objects=[(box(5, 5, 10, 10), "roof"), (box(50, 30, 55, 39), "ignore")])
    assert found.findings == ()
    assert found.usable
    assert found.pixels == {"background": 38 * 36 - 25, "roof": 25}
    assert found.changes is None


CASES: dict[str, tuple[dict[str, Drawn], str, bool]] = {
    "null geometry": ({"aoi": [AREA], "objects": [(None, "roof")]}, "no geometry", True),
    "bow tie": (
        {"objects": [(shapely.Polygon([(LEFT + x, TOP - y) for x, y in ((5, 5), (9, 9), (9, 5), (5, 9))]), "roof")]},
        "Self-intersection",
        True,
    ),
    "wrong name": ({"objects": [(box(5, 5, 10, 10), "rooof")]}, "did you mean 'roof'", True),
    "outside": ({"aoi": [AREA], "objects": [(box(500, 5, 510, 10), "roof")]}, "outside the raster", False),
    "area outside": ({"aoi": [(box(500, 5, 510, 10), None)]}, "outside the raster", True),
    "beyond": ({"aoi": [(box(30, 5, 75, 10), None)]}, "reaches beyond the raster", False),
    "over nodata": ({"aoi": [(box(51, 5, 59, 10), None)]}, "100% of it is beyond the image", True),
    "mostly nodata": ({"aoi": [(box(48, 5, 59, 10), None)]}, "82% of it is beyond the image", False),
    "sliver": ({"aoi": [AREA], "objects": [(box(5, 5, 5.2, 30), "roof")]}, "sliver", False),
    "a point in a contradiction": (
        {"objects": [(box(5, 5, 10, 10), "roof")], "points": [(box(6, 6, 7, 7).centroid, "background")]},
        "the point says background",
        True,
    ),
    "a polygon among points": ({"points": [(box(5, 5, 10, 10), "roof")]}, "a layer of points", True),
    "nothing at all": ({"points": [(box(55, 5, 56, 6).centroid, "roof")]}, "labels no pixel", True),
}


@pytest.mark.parametrize("name", CASES)
def test_what_misleads_is_found(name: str, view: RasterView, tmp_path: Path) -> None:
    layers, told, fatal = CASES[name]
    found = checked(view, tmp_path, **layers)
    matching = [finding for finding in found.findings if told in finding.text()]
    assert matching, found.text()
    assert matching[0].fatal == fatal
    assert found.usable != fatal


def test_a_missing_class_is_refused_where_there_are_several(view: RasterView, tmp_path: Path) -> None:
    found = checked(view, tmp_path, THREE, objects=[(box(5, 5, 10, 10), None)])
    assert "it has no class: give class one of roof, road, tree, background, ignore" in found.text()
    assert not found.findings[0].fixable


def test_classes_that_overlap_are_told_with_the_place(view: RasterView, tmp_path: Path) -> None:
    drawn: Drawn = [(box(5, 5, 15, 15), "roof"), (box(12, 5, 20, 15), "road"), (box(14, 14, 30, 30), "background")]
    (finding,) = checked(view, tmp_path, THREE, objects=drawn).findings
    assert (finding.layer, finding.feature, finding.fatal) == ("objects", 1, True)
    assert "road (feature 2) on 30 px" in finding.problem
    assert box(12, 5, 15, 15).contains(shapely.Point(finding.place))


def test_neighbours_that_share_an_edge_do_not_overlap(view: RasterView, tmp_path: Path) -> None:
    drawn: Drawn = [(box(5, 5, 15, 15), "roof"), (box(14.999, 5, 20, 15), "road"), (box(10, 5, 16, 9), "roof")]
    texts = [finding.text() for finding in checked(view, tmp_path, THREE, objects=drawn).findings]
    assert len(texts) == 1
    assert "roof (feature 3)" in texts[0] or "feature 2" in texts[0]


def test_an_object_outside_every_area_is_told_but_not_background_there_nor_what_touches_the_border(
    view: RasterView, tmp_path: Path
) -> None:
    drawn: Drawn = [
        (box(43, 5, 47, 9), "roof"),
        (box(41, 12, 45, 16), "roof"),
        (box(38, 20, 45, 24), "roof"),
        (box(43, 26, 47, 30), "background"),
        (box(43, 31, 47, 35), "ignore"),
    ]
    found = checked(view, tmp_path, aoi=[AREA, (None, None)], objects=drawn)
    (finding,) = (one for one in found.findings if one.layer == "objects")
    assert (finding.feature, finding.fatal) == (1, False)
    assert "outside every area of interest: only its inside is labelled" in finding.problem
    assert box(43, 5, 47, 9).contains(shapely.Point(finding.place))
    assert found.pixels["roof"] == 16 + 16 + 28
    without = write(tmp_path / "without.gpkg", objects=drawn)
    assert check_drawing(without, view, ROOF).findings == ()


def test_another_crs_is_found_to_be_elsewhere(view: RasterView, tmp_path: Path) -> None:
    path = write(tmp_path / "correction.gpkg", "EPSG:32634", aoi=[AREA])
    assert "is its CRS right?" in check_drawing(path, view, ROOF).text()


def test_changes_are_counted_in_the_areas(view: RasterView, tmp_path: Path) -> None:
    prediction: Drawn = [(box(x, 5, x + 4, 9), "roof") for x in (5, 10, 15, 20)] + [(box(45, 5, 49, 9), "roof")]
    objects: Drawn = [
        (box(5, 5, 9, 9), "roof"),
        (box(10, 5, 14, 10), "roof"),
        (box(15, 5, 19, 9), "tree"),
        (box(30, 20, 34, 24), "road"),
    ]
    found = checked(view, tmp_path, THREE, aoi=[AREA], objects=objects, prediction=prediction)
    assert found.changes == Changes(kept=1, reshaped=1, reclassified=1, added=1, removed=1)
    assert "1 kept, 1 reshaped, 1 reclassified, 1 added, 1 removed" in found.text()


def test_nothing_changed_is_told(view: RasterView, tmp_path: Path) -> None:
    drawn: Drawn = [(box(5, 5, 9, 9), "roof")]
    found = checked(view, tmp_path, aoi=[AREA], objects=drawn, prediction=drawn)
    assert found.usable
    assert "nothing was changed" in found.text()


MARKS: dict[str, tuple[dict[str, Drawn], str]] = {
    "points": ({"points": [(box(x, 30, x + 1, 31).centroid, "background") for x in (20, 25)]}, ", 2 points"),
    "a point": ({"points": [(box(20, 30, 21, 31).centroid, "ignore")]}, ", 1 point"),
    "background": ({"objects": [(box(20, 30, 24, 34), "background")]}, ", 1 background"),
    "ignored": ({"objects": [(box(20, 30, 24, 34), " Ignore")]}, ", 1 ignored"),
}


@pytest.mark.parametrize("name", MARKS)
def test_points_and_polygons_of_no_class_are_changes(name: str, view: RasterView, tmp_path: Path) -> None:
    predicted: Drawn = [(box(5, 5, 9, 9), "roof")]
    layers, told = MARKS[name]
    objects = predicted + layers.get("objects", [])
    found = checked(view, tmp_path, aoi=[AREA], prediction=predicted, **(layers | {"objects": objects}))
    assert f"objects: 1 kept, 0 reshaped, 0 reclassified, 0 added, 0 removed{told}\n" in found.text()
    assert "nothing was changed" not in found.text()


def test_what_is_drawn_by_another_word_for_its_class_is_an_object(view: RasterView, tmp_path: Path) -> None:
    legend = Legend.from_dict({"classes": [{"name": "roof", "values": ["house"]}]})
    found = checked(
        view,
        tmp_path,
        legend,
        aoi=[AREA],
        objects=[(box(5, 5, 9, 9), "House")],
        prediction=[(box(5, 5, 9, 9), "roof")],
    )
    assert found.changes == Changes(kept=1)


def test_comparing_a_layer_with_itself_keeps_all_and_is_empty_of_changes() -> None:
    shapes = np.array([box(x, 0, x + 3, 3) for x in range(0, 40, 4)], object)
    names = np.array(["roof", "tree"] * 5, object)
    same = compare_objects(shapes, names, shapes[::-1], names[::-1])
    assert (same.kept, same.any) == (10, False)
    gone = compare_objects(shapes, names, shapes[:0], names[:0])
    assert (gone.removed, gone.any) == (10, True)


def test_fixing_leaves_nothing_fixable_and_keeps_the_rest(view: RasterView, tmp_path: Path) -> None:
    bow = shapely.Polygon([(LEFT + x, TOP - y) for x, y in ((5, 5), (9, 9), (9, 5), (5, 9))])
    path = write(
        tmp_path / "correction.gpkg",
        aoi=[AREA],
        objects=[(bow, "roof"), (None, "roof"), (box(20, 5, 25, 9), None), (box(5, 5, 5.1, 30), "roof")],
        prediction=[(box(20, 5, 25, 9), "roof")],
    )
    frame = pyogrio.read_dataframe(path, layer="objects").assign(remark=["a", "b", "c", "d"])
    pyogrio.write_dataframe(frame, path, layer="objects")
    before = check_drawing(path, view, ROOF)
    assert sum(finding.fixable for finding in before.findings) == 4
    assert fix_drawing(path, view, ROOF) == 4
    after = check_drawing(path, view, ROOF)
    assert not any(finding.fixable for finding in after.findings)
    assert after.usable
    mended = pyogrio.read_dataframe(path, layer="objects")
    assert mended["remark"].tolist() == ["a", "c"]
    assert mended["class"].tolist() == ["roof", "roof"]
    assert mended.geometry.is_valid.all()
    assert set(pyogrio.list_layers(path)[:, 0]) == {"aoi", "objects", "prediction"}
    assert fix_drawing(path, view, ROOF) == 0


def test_a_polygon_without_an_area_is_left_out(view: RasterView, tmp_path: Path) -> None:
    line = [(LEFT + x, TOP - 20) for x in (5, 9, 7)]
    thin = [(LEFT + x, TOP - y) for x, y in ((5, 5), (5.1, 20), (5.1, 5), (5, 20))]
    drawn: Drawn = [(shapely.Polygon(line), "roof"), (shapely.Polygon(thin), "roof"), (box(20, 5, 25, 9), " ")]
    path = write(tmp_path / "correction.gpkg", aoi=[AREA], objects=drawn)
    assert not check_drawing(path, view, ROOF).usable
    assert fix_drawing(path, view, ROOF) == 3
    assert check_drawing(path, view, ROOF).findings == ()
    assert fix_drawing(path, view, ROOF) == 0


def test_a_class_that_no_column_holds_is_given(view: RasterView, tmp_path: Path) -> None:
    path = write(tmp_path / "correction.gpkg", aoi=[AREA])
    geopandas.GeoDataFrame(geometry=[box(20, 5, 25, 9)], crs="EPSG:32633").to_file(path, layer="objects")
    assert fix_drawing(path, view, ROOF) == 1
    assert check_drawing(path, view, ROOF).findings == ()


@pytest.mark.parametrize("said", [None, "EPSG:32634"])
def test_layers_in_a_declared_crs_are_mended_and_say_what_they_said(
    said: str | None, view: RasterView, tmp_path: Path
) -> None:
    path = tmp_path / "correction.gpkg"
    for layer, shapes in (("aoi", [box(2, 2, 40, 38)]), ("objects", [box(5, 5, 10, 10), None])):
        frame = geopandas.GeoDataFrame({"class": ["roof"] * len(shapes)}, geometry=shapes, crs=said)
        frame.to_file(path, layer=layer, engine="pyogrio")
    assert fix_drawing(path, view, ROOF, vector_crs="EPSG:32633") == 1
    assert check_drawing(path, view, ROOF, vector_crs="EPSG:32633").pixels["roof"] == 25
    assert {pyogrio.read_info(path, layer=layer)["crs"] for layer in ("aoi", "objects")} == {said}


def test_how_many_features_were_mended_is_told_by_the_command(view: RasterView, tmp_path: Path) -> None:
    small_model(0).save(tmp_path / "model")
    folder, parent, raster = (str(tmp_path / name) for name in ("corrections/bad", "model", "image.tif"))
    made = Correction(Path(folder), parent, (raster,), Opening(vector_crs="EPSG:32633"))
    made.folder.mkdir(parents=True)
    made.write()
    shapes = [box(5, 5, 10, 10), None, box(20, 5, 25, 9)]
    frame = geopandas.GeoDataFrame({"class": ["bright", "bright", None]}, geometry=shapes)
    frame.to_file(made.gpkg, layer="objects", engine="pyogrio")
    said = [
        CliRunner().invoke(cli, ["correct", "check", "bad", "--project", str(tmp_path), *fix])
        for fix in ([], ["--fix"], ["--fix"])
    ]
    assert [(one.exit_code, one.output.splitlines()[0]) for one in said[1:]] == [
        (0, "mended 2 features"),
        (0, "mended 0 features"),
    ]
    assert said[0].exit_code == 1 and "mended" not in said[0].output


def test_what_is_open_elsewhere_or_no_geopackage_is_not_mended(view: RasterView, tmp_path: Path) -> None:
    path = write(tmp_path / "correction.gpkg", aoi=[AREA])
    (tmp_path / "correction.gpkg-wal").write_bytes(b"x")
    with pytest.raises(CorrectionError, match=r"close correction\.gpkg"):
        fix_drawing(path, view, ROOF)
    other = tmp_path / "aoi.geojson"
    geopandas.read_file(path, layer="aoi").to_file(other)
    with pytest.raises(CorrectionError, match="GeoPackage"):
        fix_drawing(other, view, ROOF)
