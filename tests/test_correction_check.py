"""Everything that would mislead a training is found, with its layer, feature and place; what is right passes."""

from __future__ import annotations

import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas
import pyogrio
import pytest
import shapely
from click.testing import CliRunner
from in_qgis import has_qgis, run_in_qgis
from projects_for_tests import small_model
from worlds import north_up, write_raster

from gimseg.cli import cli
from gimseg.correction.changes import Changes, compare_objects
from gimseg.correction.checking import Checked, _together, check_drawing, fix_drawing
from gimseg.correction.drawing import Drawing
from gimseg.correction.findings import OUTSIDE, Finding
from gimseg.correction.geopackage_rows import RowEdits, edited
from gimseg.correction.rounds import Correction, Opening
from gimseg.errors import CorrectionError, GridError, OutputError, VectorError
from gimseg.legend import Legend
from gimseg.rasters import RasterView, open_raster
from gimseg.vector_formats import layer_names

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


def in_rows(path: Path, *statements: str, values: tuple[Any, ...] = ()) -> list[Any]:
    """What the last statement finds, in a GeoPackage whose index another program would keep."""
    with closing(sqlite3.connect(path)) as database, database:
        for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
            database.create_function(name, 1, lambda _: 0)
        for statement in statements[:-1]:
            database.execute(statement)
        return database.execute(statements[-1], values).fetchall()


def stored(*corners: tuple[float, float]) -> bytes:
    """A polygon of one ring as it is stored, closed or not."""
    head = b"GP\x00\x01" + struct.pack("<i", 32633) + struct.pack("<BIII", 1, 3, 1, len(corners))
    return head + b"".join(struct.pack("<2d", LEFT + x, TOP - y) for x, y in corners)


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
    "outside": (
        {"aoi": [AREA], "objects": [(box(500, 5, 510, 10), "roof"), (box(5, 5, 9, 9), "roof")]},
        "outside the raster",
        False,
    ),
    "all outside": (
        {"aoi": [AREA], "objects": [(box(500 + x, 5, 510 + x, 10), "roof") for x in (0, 20)]},
        "all its 2 features lie outside the raster",
        True,
    ),
    "all points outside": (
        {"aoi": [AREA], "points": [(shapely.Point(LEFT, TOP + 9), "roof")]},
        "its only feature lies outside the raster",
        True,
    ),
    "a line among objects": (
        {"aoi": [AREA], "objects": [(shapely.LineString([(LEFT + 5, TOP - 5), (LEFT + 9, TOP - 9)]), "roof")]},
        "objects, feature 1 at 500005, 5999995: it is a LineString in a layer of polygons",
        True,
    ),
    "a line among areas": (
        {"aoi": [AREA, (shapely.LineString([(LEFT + 5, TOP - 5), (LEFT + 9, TOP - 9)]), None)]},
        "aoi, feature 2 at 500005, 5999995: it is a LineString in a layer of polygons",
        True,
    ),
    "between the centres": (
        {"aoi": [AREA], "objects": [(box(5.55, 5.55, 6.45, 6.45), "roof"), (box(5, 8, 5.6, 8.6), "roof")]},
        "objects, feature 1 at 500006, 5999966: no pixel has its centre in it",
        False,
    ),
    "capitals": (
        {"aoi": [AREA], "Objects": [(box(5, 5, 9, 9), "roof")]},
        "Objects: it is not read: did you mean 'objects'",
        True,
    ),
    "an ending": (
        {"AOI_1": [AREA], "objects": [(box(5, 5, 9, 9), "roof")]},
        "AOI_1: it is not read: did you mean 'aoi'",
        True,
    ),
    "singular": ({"aoi": [AREA], "point": [(box(5, 5, 9, 9).centroid, "roof")]}, "did you mean 'points'", True),
    "plural": ({"aoi": [AREA], "predictions": [(box(5, 5, 9, 9), "roof")]}, "did you mean 'prediction'", True),
    "no area any more": (
        {"objects": [(box(5, 5, 9, 9), "roof")], "prediction": [(box(5, 5, 9, 9), "roof")]},
        "aoi: the layer is gone, and gimseg correct start made one",
        False,
    ),
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


def test_layers_of_other_names_are_nobody_s_business(view: RasterView, tmp_path: Path) -> None:
    other: Drawn = [(box(5, 5, 9, 9), "roof")]
    layers = {"waypoints": other, "polygons": other, "blocks": other, "objects_old": other, "object_ids": other}
    assert checked(view, tmp_path, aoi=[AREA], objects=other, **layers).findings == ()


def test_a_layer_that_lost_its_geometries_is_refused(view: RasterView, tmp_path: Path) -> None:
    path = write(tmp_path / "correction.gpkg", objects=[(box(5, 5, 9, 9), "roof")])
    pyogrio.write_dataframe(pandas.DataFrame({"class": ["roof"]}), path, layer="aoi")
    found = check_drawing(path, view, ROOF)
    assert not found.usable
    assert "error: aoi: the layer has no column of geometries" in found.text()


@pytest.mark.parametrize("said", ["EPSG:32634", "EPSG:4326"])
def test_with_a_prediction_elsewhere_nothing_is_compared(said: str, view: RasterView, tmp_path: Path) -> None:
    drawn: Drawn = [(box(5, 5, 9, 9), "roof")]
    path = write(tmp_path / "correction.gpkg", aoi=[AREA], objects=drawn, points=[(drawn[0][0].centroid, "roof")])
    write(path, said, prediction=drawn)
    found = check_drawing(path, view, ROOF)
    assert found.changes is None and found.usable
    assert [one.text() for one in found.findings] == [
        "warning: prediction: none of it lies on the raster, so nothing is compared with it: is its CRS right?"
    ]


def test_a_crs_that_means_no_place_is_none(view: RasterView, tmp_path: Path) -> None:
    path = write(tmp_path / "correction.gpkg", aoi=[AREA])
    in_rows(path, "UPDATE gpkg_contents SET srs_id = -1", "UPDATE gpkg_geometry_columns SET srs_id = -1")
    for look in (check_drawing, fix_drawing):
        with pytest.raises(GridError, match="declare the one it is in"):
            look(path, view, ROOF)
    with pytest.raises(VectorError, match=r"Undefined Cartesian.*declare the CRS"):
        Drawing.read(path, view.geobox, ROOF)
    assert check_drawing(path, view, ROOF, vector_crs="EPSG:32633").findings == ()


def test_what_lies_on_one_raster_is_not_said_to_be_outside() -> None:
    def on(problem: str) -> Checked:
        return Checked((Finding("aoi", 1, (0.0, 0.0), problem, of_raster=True),), None, {})

    reaching = on("it reaches beyond the raster")
    assert _together([on(OUTSIDE), reaching]).findings == reaching.findings
    assert _together([on(OUTSIDE), on(OUTSIDE)]).findings == on(OUTSIDE).findings


def test_a_locked_file_is_not_said_to_be_damaged(view: RasterView, tmp_path: Path) -> None:
    path = write(tmp_path / "correction.gpkg", aoi=[AREA])
    refused = pytest.raises(VectorError, match="locked by another program that has it open: save and close")
    with in_another_process(path, "BEGIN EXCLUSIVE"), refused:
        layer_names(path)
    assert layer_names(path) == ("aoi",)


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


ROWS = "SELECT fid, hex(geom), class, n, hex(photo), day, flag, typeof(n) FROM objects ORDER BY fid"


def with_columns(path: Path) -> Path:
    """A drawing whose objects 2, 4 and 7 are right, with columns of every kind; 1, 3, 5, 6 are to be mended."""
    bow = shapely.Polygon([(LEFT + x, TOP - y) for x, y in ((5, 5), (9, 9), (9, 5), (5, 9))])
    right = [box(20, 5 * row, 25, 5 * row + 4) for row in range(4)]
    drawn: Drawn = [(None, "roof"), (right[0], "roof"), (bow, "roof"), (right[1], "roof"), (right[2], None)]
    write(path, aoi=[AREA], objects=[*drawn, (None, "roof"), (right[3], "roof")])
    in_rows(
        path,
        "ALTER TABLE objects ADD COLUMN n INTEGER",
        "ALTER TABLE objects ADD COLUMN photo BLOB",
        "ALTER TABLE objects ADD COLUMN day DATE",
        "ALTER TABLE objects ADD COLUMN flag BOOLEAN",
        "ALTER TABLE objects ADD COLUMN name TEXT(20)",
        "UPDATE objects SET n = 9007199254740993, photo = x'0102ff', day = '2026-01-02', flag = 1",
        "SELECT 1",
    )
    return path


def test_only_the_rows_concerned_are_mended(view: RasterView, tmp_path: Path) -> None:
    path = with_columns(tmp_path / "correction.gpkg")
    columns, before = in_rows(path, "PRAGMA table_info(objects)"), in_rows(path, ROWS)
    kept = in_rows(path, "SELECT table_name, geometry_type_name, srs_id FROM gpkg_geometry_columns")
    assert fix_drawing(path, view, ROOF) == 4
    assert in_rows(path, "PRAGMA table_info(objects)") == columns
    after = in_rows(path, ROWS)
    assert [row[0] for row in after] == [2, 3, 4, 5, 7]
    unchanged = [row for row in before if row[0] in (2, 4, 7)]
    assert [row for row in after if row[0] in (2, 4, 7)] == unchanged
    assert [row[3:] for row in after] == [before[0][3:]] * 5
    assert after[3][:3] == (*before[4][:2], "roof")
    assert in_rows(path, "SELECT id FROM rtree_objects_geom ORDER BY id") == [(2,), (3,), (4,), (5,), (7,)]
    assert in_rows(path, "SELECT feature_count FROM gpkg_ogr_contents WHERE table_name = 'objects'") == [(5,)]
    mended = pyogrio.read_dataframe(path, layer="objects", bbox=(LEFT + 4, TOP - 10, LEFT + 10, TOP - 4))
    assert mended.geometry.area.tolist() == [8.0]
    assert in_rows(path, "SELECT table_name, geometry_type_name, srs_id FROM gpkg_geometry_columns") == kept


def test_an_emptied_layer_keeps_its_kind(view: RasterView, tmp_path: Path) -> None:
    path = write(tmp_path / "correction.gpkg", aoi=[AREA], objects=[(box(5, 5, 5.1, 30), "roof")])
    assert fix_drawing(path, view, ROOF) == 1
    info = pyogrio.read_info(path, layer="objects", force_total_bounds=True)
    assert (info["geometry_type"], info["features"]) == ("Polygon", 0)


NO_NUMBERS = [((12.0, 5.0), (bad, 9.0), (16.0, 9.0), (12.0, 5.0)) for bad in (np.nan, np.inf)]


def test_rings_that_cannot_be_read_as_they_are_are_told_and_mended(view: RasterView, tmp_path: Path) -> None:
    path = write(tmp_path / "correction.gpkg", aoi=[AREA], objects=[(box(20, 5, 25, 9), "roof")])
    for ring in (((5, 5), (9, 5), (9, 9), (5, 9)), ((5, 5), (9, 9)), *NO_NUMBERS):
        in_rows(path, "INSERT INTO objects (geom, class) VALUES (?, 'roof')", values=(stored(*ring),))
    found = check_drawing(path, view, ROOF)
    told = {one.feature: (one.problem, one.fatal, one.fixable) for one in found.findings}
    assert told == {
        2: ("invalid: a ring of it is not closed, or has too few corners", True, True),
        3: ("invalid: a ring of it is not closed, or has too few corners", True, True),
        4: ("invalid: a coordinate of it is no finite number", True, True),
        5: ("invalid: a coordinate of it is no finite number", True, True),
    }
    assert found.pixels["roof"] == 20 + 16
    assert fix_drawing(path, view, ROOF) == 4
    after = check_drawing(path, view, ROOF)
    assert (after.findings, after.pixels["roof"]) == ((), 36)
    assert [row[0] for row in in_rows(path, "SELECT fid FROM objects")] == [1, 2]
    assert np.isfinite(pyogrio.read_info(path, layer="objects", force_total_bounds=True)["total_bounds"]).all()


@pytest.mark.parametrize("held", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "BEGIN; SELECT count(*) FROM objects"])
def test_a_file_that_another_program_holds_is_not_mended(held: str, view: RasterView, tmp_path: Path) -> None:
    path = with_columns(tmp_path / "correction.gpkg")
    before = path.read_bytes()
    refused = pytest.raises((CorrectionError, VectorError), match=r"another program.* close it there")
    with in_another_process(path, held), refused:
        fix_drawing(path, view, ROOF)
    assert path.read_bytes() == before
    assert fix_drawing(path, view, ROOF) == 4


@contextmanager
def in_another_process(path: Path, statements: str) -> Iterator[None]:
    script = (
        "import sqlite3, sys\ndatabase = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "for one in sys.argv[2].split(';'): database.execute(one).fetchone()\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(path), statements]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        yield
        other.communicate()


def test_what_was_saved_while_it_was_looked_at_is_not_mended_over(tmp_path: Path) -> None:
    path = with_columns(tmp_path / "correction.gpkg")
    with pytest.raises(CorrectionError, match="changed meanwhile"), edited(path) as edits:
        edits.append(RowEdits("objects", deleted=(2,)))
        in_rows(path, "UPDATE objects SET class = 'ignore' WHERE fid = 2")
    assert in_rows(path, "SELECT class FROM objects WHERE fid = 2") == [("ignore",)]


def test_a_link_stays_one_and_its_file_is_mended(view: RasterView, tmp_path: Path) -> None:
    path, link = with_columns(tmp_path / "drawn.gpkg"), tmp_path / "correction.gpkg"
    link.symlink_to(path)
    assert fix_drawing(link, view, ROOF) == 4
    assert link.is_symlink()
    assert fix_drawing(path, view, ROOF) == 0


def test_a_disk_that_is_full_leaves_the_drawing_whole(
    view: RasterView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_columns(tmp_path / "correction.gpkg")
    before = in_rows(path, ROWS)
    connect = sqlite3.connect

    def connect_small(*args: Any, **options: Any) -> sqlite3.Connection:
        database = connect(*args, **options)
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}")
        return database

    edits = RowEdits("objects", (1,), texts={2: "x" * 100_000}, field="class")
    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", connect_small)
        with pytest.raises(OutputError, match=r"is what it was .*full.*: is the disk full\?"), edited(path) as made:
            made.append(edits)
    assert in_rows(path, ROWS) == before
    assert fix_drawing(path, view, ROOF) == 4


@pytest.mark.skipif(not has_qgis(), reason="QGIS is not installed")
def test_qgis_opens_what_was_mended(view: RasterView, tmp_path: Path) -> None:
    path = with_columns(tmp_path / "correction.gpkg")
    assert fix_drawing(path, view, ROOF) == 4
    script = """
layer = QgsVectorLayer(sys.argv[1] + "|layername=objects", "objects", "ogr")
near = QgsFeatureRequest(QgsRectangle(*map(float, sys.argv[2:6])))
editable = layer.startEditing() and layer.deleteFeature(2) and layer.commitChanges()
tell([layer.isValid(), editable, sorted(one.id() for one in layer.getFeatures()),
      [[one.id(), one["class"], one.geometry().area()] for one in layer.getFeatures(near)]])
"""
    near = (LEFT + 4, TOP - 10, LEFT + 10, TOP - 4)
    assert run_in_qgis(script, path, *near, profile=tmp_path) == [True, True, [3, 4, 5, 7], [[3, "roof", 8.0]]]
