"""Layers are read where they meet a raster and burnt the same in any window; what is written reads back."""

from __future__ import annotations

import json
import pickle
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow.parquet
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

import gimseg.vector_output
from gimseg.errors import OutputError, VectorError
from gimseg.legend import Legend
from gimseg.vector_formats import find_source, read_columns
from gimseg.vector_output import check_features
from gimseg.vectors import Shapes, check_overlap, open_layer, write_features

UTM = "EPSG:32631"
GRID = GeoBox((60, 80), Affine(2.0, 0, 500_000, 0, -2.0, 5_600_120), UTM)
CLASSES = Legend.from_dict({"field": "class", "classes": ["tin", "Gebäude 中"]})
FIELDS = {"class": "str", "class_id": "int32", "area_m2": "float64"}
NO_CODE = pyproj.CRS("+proj=aea +lat_0=23 +lon_0=-96 +lat_1=29.5 +lat_2=45.5 +datum=WGS84 +units=m")
ENDINGS = [".shp", ".gpkg", ".fgb", ".geojson", ".geojsonl", ".parquet"]


def ground(col: float, row: float, grid: GeoBox = GRID) -> tuple[float, float]:
    """Pixel coordinates (also arrays of them) in the CRS of a grid."""
    affine = grid.affine
    return affine.a * col + affine.c, affine.e * row + affine.f


def box(col: float, row: float, cols: float, rows: float) -> shapely.Polygon:
    """A box on GRID, in pixels."""
    left, top = ground(col, row)
    return shapely.box(left, top - 2 * rows, left + 2 * cols, top)


def frame(geometries: list, classes: list | None = None, crs: object = UTM) -> gpd.GeoDataFrame:
    classes = ["tin"] * len(geometries) if classes is None else classes
    count = len(geometries)
    data = {"class": classes, "class_id": np.arange(count, dtype=np.int32), "area_m2": np.arange(count) + 0.5}
    return gpd.GeoDataFrame(data, geometry=geometries, crs=crs)


def written(path: Path, geometries: list, classes: list | None = None, crs: object = UTM) -> str:
    """A layer made by another program than ours."""
    table = frame(geometries, classes, crs)
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_file(path, engine="pyogrio")
    return str(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_boxes_burn_to_their_pixels_in_every_format(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path / f"labels{ending}", [box(3, 5, 10, 7), box(40, 20, 4, 4)], ["tin", "gebäude 中"])
    layer = open_layer(path)
    shapes = layer.shapes(GRID, CLASSES)
    expected = np.zeros(GRID.shape, np.uint8)
    expected[5:12, 3:13], expected[20:24, 40:44] = 1, 2
    assert (shapes.burn(GRID) == expected).all()
    assert (shapes.burn_mask(GRID) == (expected > 0)).all()
    assert (layer.count, layer.fields, shapes.notes, shapes.partial) == (2, tuple(FIELDS), (), False)


_coordinate = st.integers(-20, 180).map(lambda half: half / 2)


@st.composite
def _polygons(draw: st.DrawFn) -> list[shapely.Geometry]:
    rings = draw(st.lists(st.lists(st.tuples(_coordinate, _coordinate), min_size=3, max_size=6), max_size=6))
    made = (shapely.make_valid(shapely.Polygon(ring), method="structure", keep_collapsed=False) for ring in rings)
    return [shape for shape in made if shape.area > 0]


@settings(deadline=None, max_examples=100)
@given(
    _polygons(),
    st.tuples(*[st.integers(0, 59), st.integers(1, 60), st.integers(0, 79), st.integers(1, 80)]),
    st.sampled_from([0.1, 0.149291070707, 1 / 3, 2.0]),
)
def test_a_window_is_the_crop_of_the_whole(
    pixel_shapes: list[shapely.Geometry], window: tuple[int, int, int, int], resolution: float
) -> None:
    # Corners at halves of pixels put edges through pixel centres, where rounding would decide.
    grid = GeoBox((60, 80), Affine(resolution, 0, 9_519_734.3, 0, -resolution, 3_202_111.7), "EPSG:3857")
    geometries = shapely.transform(np.array(pixel_shapes, object), lambda xy: np.stack(ground(*xy.T, grid), axis=1))
    shapes = Shapes(geometries, np.arange(1, len(geometries) + 1, dtype=np.uint8), grid.crs)
    row, rows, col, cols = window
    roi = np.s_[row : min(row + rows, 60), col : min(col + cols, 80)]
    assert (shapes.burn(grid[roi], fill=9) == shapes.burn(grid, fill=9)[roi]).all()


@settings(deadline=None, max_examples=30)
@given(_polygons())
def test_a_pixel_counts_when_its_centre_is_inside(pixel_shapes: list[shapely.Geometry]) -> None:
    cols, rows = np.meshgrid(np.arange(80) + 0.5, np.arange(60) + 0.5)
    geometries = np.array(pixel_shapes, object)
    union = shapely.union_all(geometries)
    placed = shapely.transform(geometries, lambda xy: np.stack(ground(*xy.T), axis=1))
    burnt = Shapes(placed, np.ones(len(placed), np.uint8), GRID.crs).burn_mask(GRID)
    # A centre on an edge may fall on either side.
    clear = shapely.distance(shapely.points(cols, rows), shapely.boundary(union)) > 1e-6 if len(geometries) else True
    inside = shapely.contains_xy(union, cols, rows)
    edges = [shapely.distance(shapely.points(cols, rows), shape.boundary) > 1e-6 for shape in geometries]
    clear = clear & np.all(edges, axis=0) if edges else clear
    assert (burnt == inside)[np.broadcast_to(clear, burnt.shape)].all()


def test_later_classes_win_and_unknown_ones_hide_nothing(tmp_path: Path) -> None:
    stack = [box(0, 0, 10, 10), box(5, 0, 10, 10), box(0, 5, 20, 10), box(30, 30, 2, 2)]
    path = written(tmp_path / "a.gpkg", stack, ["Gebäude 中", "tin", "straw", None])
    shapes = open_layer(path).shapes(GRID, CLASSES)
    burnt = shapes.burn(GRID)
    assert (burnt[0, 0], burnt[0, 7], burnt[0, 12], burnt[7, 7], burnt[12, 0]) == (2, 2, 1, 2, 255)
    assert burnt[30, 30] == 255
    assert shapes.unknown == {"straw": 1, "null": 1}
    assert "2 features are of no class" in shapes.notes[0]


def test_another_crs_gives_the_same_pixels(tmp_path: Path) -> None:
    table = frame([box(3.2, 5.3, 30.1, 17.4), box(50.6, 20.7, 14.3, 14.4)])
    table.to_file(tmp_path / "utm.gpkg")
    table.to_crs("EPSG:4326").to_file(tmp_path / "degrees.geojson")
    utm, degrees = (open_layer(tmp_path / name).shapes(GRID) for name in ("utm.gpkg", "degrees.geojson"))
    assert (utm.burn(GRID) == degrees.burn(GRID)).all()


def test_only_what_meets_the_window_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.fgb", [box(10 * i + 1, 10 * j + 1, 3, 3) for i in range(8) for j in range(6)])
    layer = open_layer(path)
    window = GRID[10:20, 20:40]
    assert len(layer.shapes(GRID)) == 48
    shapes = layer.shapes(window)
    assert len(shapes) == 2 and shapes.counts["read"] < 10
    assert (shapes.burn(window) == layer.shapes(GRID).burn(window)).all()


def test_broken_geometries_are_repaired_and_counted(tmp_path: Path) -> None:
    bowtie = shapely.Polygon([box(10, 10, 8, 8).exterior.coords[i] for i in (0, 2, 1, 3)])
    overlapping = shapely.MultiPolygon([box(30, 10, 8, 8), box(34, 10, 8, 8)])
    flat = shapely.Polygon([(500_010, 5_600_010), (500_020, 5_600_010), (500_010, 5_600_010)])
    path = written(tmp_path / "a.gpkg", [bowtie, overlapping, flat, None, shapely.Polygon(), box(0, 0, 2, 2)])
    layer = open_layer(path)
    shapes = layer.shapes(GRID)
    assert shapely.is_valid(shapes.geometries).all() and (shapely.get_dimensions(shapes.geometries) == 2).all()
    assert shapes.counts["repaired"] == 3 and shapes.counts["collapsed"] == 1 and len(shapes) == 3
    assert shapes.burn(GRID)[10:18, 30:42].all(), "parts that overlap are no hole"
    assert any("without a geometry" in note for note in layer.notes)


def test_heights_are_dropped(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gpkg", [shapely.force_3d(box(1, 1, 2, 2), 7.0)])
    shapes = open_layer(path).shapes(GRID)
    assert not shapely.has_z(shapes.geometries).any() and shapes.burn(GRID).sum() == 4


def test_points_label_one_pixel_or_a_disc(tmp_path: Path) -> None:
    points = [shapely.Point(ground(*centre)) for centre in ((10.9, 20.2), (50.5, 30.5))]
    layer = open_layer(written(tmp_path / "a.geojson", points, crs=UTM))
    single = layer.shapes(GRID)
    assert single.partial and np.argwhere(single.burn(GRID)).tolist() == [[20, 10], [30, 50]]
    assert (layer.shapes(GRID, point_radius_m=0.5).burn(GRID) == single.burn(GRID)).all()
    disc = layer.shapes(GRID, point_radius_m=10).burn(GRID)[:, 45:].sum()
    assert disc == pytest.approx(np.pi * 5**2, rel=0.15)


def test_a_radius_reaches_in_from_outside(tmp_path: Path) -> None:
    outside = shapely.Point(ground(-3, 30))
    layer = open_layer(written(tmp_path / "a.geojson", [outside], crs=UTM))
    assert not layer.shapes(GRID).burn(GRID).any()
    assert layer.shapes(GRID, point_radius_m=12).burn(GRID)[:, 0].any()


def test_a_radius_in_metres_holds_in_degrees(tmp_path: Path) -> None:
    grid = GeoBox.from_bbox((25.0, 60.0, 25.02, 60.01), "EPSG:4326", resolution=0.0001)
    layer = open_layer(written(tmp_path / "a.geojson", [shapely.Point(25.01, 60.005)], crs="EPSG:4326"))
    disc = layer.shapes(grid, point_radius_m=100).geometries[0]
    assert abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(disc)[0]) == pytest.approx(np.pi * 1e4, rel=0.02)


def test_lines_need_a_width(tmp_path: Path) -> None:
    line = shapely.LineString([ground(0, 10), ground(80, 10)])
    layer = open_layer(written(tmp_path / "a.gpkg", [line]))
    with pytest.raises(VectorError, match="give their width"):
        layer.shapes(GRID)
    shapes = layer.shapes(GRID, line_width_m=8)
    assert shapes.partial and set(np.flatnonzero(shapes.burn(GRID).any(axis=1))) == {8, 9, 10, 11}


def test_no_points_here_is_still_a_layer_of_points(tmp_path: Path) -> None:
    layer = open_layer(written(tmp_path / "a.gpkg", [shapely.Point(0, 0)]))
    shapes = layer.shapes(GRID)
    assert len(shapes) == 0 and shapes.partial and not shapes.burn(GRID).any()


def test_labels_that_miss_the_raster_name_both_extents(tmp_path: Path) -> None:
    table = frame([box(1000, 1000, 5, 5)])
    table.to_crs("EPSG:4326").to_file(tmp_path / "a.geojson")
    layer = open_layer(tmp_path / "a.geojson")
    with pytest.raises(VectorError, match=r"lies at 3\.02.* raster at 3, 50.*EPSG:4326"):
        check_overlap(layer, GRID)
    assert not layer.meets(GRID)
    check_overlap(open_layer(written(tmp_path / "b.gpkg", [box(1, 1, 5, 5)])), GRID)


def test_an_empty_layer_is_allowed(tmp_path: Path) -> None:
    write_features(tmp_path / "a.gpkg", frame([]), fields=FIELDS, crs=UTM)
    layer = open_layer(tmp_path / "a.gpkg")
    check_overlap(layer, GRID)
    assert (layer.count, layer.bounds, layer.meets(GRID)) == (0, None, False)
    assert not layer.shapes(GRID, CLASSES).burn(GRID).any()


def test_a_missing_crs_must_be_declared(tmp_path: Path) -> None:
    path = written(tmp_path / "a.shp", [box(1, 1, 5, 5)], crs=None)
    with pytest.raises(VectorError, match="--vector-crs"):
        open_layer(path).shapes(GRID)
    declared = open_layer(path, crs=UTM).shapes(GRID)
    bare = GeoBox(GRID.shape, GRID.affine, None)
    assert (declared.burn(GRID) == open_layer(path).shapes(bare).burn(bare)).all()
    with pytest.raises(VectorError, match="no CRS that PROJ knows"):
        open_layer(path, crs="EPSG:999999")


def test_a_raster_without_crs_takes_coordinates_as_they_are(tmp_path: Path) -> None:
    bare = GeoBox((20, 700), Affine(1, 0, 0, 0, -1, 20), None)
    path = written(tmp_path / "a.geojson", [shapely.box(500, 5, 510, 10)], crs="EPSG:4326")
    shapes = open_layer(path).shapes(bare)
    assert shapes.burn(bare).sum() == 50 and "no CRS" in shapes.notes[0]
    with pytest.raises(VectorError, match="in degrees, but"):
        open_layer(path).shapes(GRID)


def test_a_wrong_field_lists_the_right_ones(tmp_path: Path) -> None:
    layer = open_layer(written(tmp_path / "a.gpkg", [box(1, 1, 5, 5)]))
    with pytest.raises(VectorError, match="did you mean 'class'"):
        layer.shapes(GRID, Legend.from_dict({"field": "clas", "classes": ["tin", "wood"]}))
    with pytest.raises(VectorError, match="names no field"):
        layer.shapes(GRID, Legend.from_dict({"classes": ["tin", "wood"]}))


def test_the_layer_of_a_geopackage_is_chosen_or_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    frame([shapely.Point(500_001, 5_600_001)]).to_file(path, layer="wells")
    frame([box(1, 1, 5, 5)]).to_file(path, layer="roofs")
    layer = open_layer(path)
    assert layer.layer == "roofs" and "roofs" in layer.notes[0]
    assert open_layer(f"{path}|layername=wells").layer == open_layer(path, layer="wells").layer == "wells"
    with pytest.raises(VectorError, match="did you mean 'roofs'"):
        open_layer(path, layer="roof")
    frame([box(1, 1, 5, 5)]).to_file(path, layer="walls")
    with pytest.raises(VectorError, match=r"3 layers.*roofs, walls"):
        open_layer(path)
    with pytest.raises(VectorError, match="not understood"):
        open_layer(f"{path}|subset=id>3")


@pytest.mark.parametrize(
    "text",
    [
        '<OGRVRTDataSource><OGRVRTLayer name="x"><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer>'
        "</OGRVRTDataSource>",
        '{{"a":"<OGRVRTDataSource>","type":"FeatureCollection","features":[]}}',
        '{{"type": "gdal_streamed_alg", "command_line": "gdal vector pipeline ! read {secret}"}}',
        "<?xml version='1.0'?><kml></kml>",
        "WKT\nPOINT (1 1)\n",
        "   ",
    ],
)
@pytest.mark.parametrize("name", ["x.geojson", "x.shp", "x.gpkg"])
def test_a_disguised_file_is_refused(tmp_path: Path, text: str, name: str) -> None:
    secret = written(tmp_path / "secret.geojson", [box(1, 1, 5, 5)])
    (tmp_path / name).write_text(text.format(secret=secret))
    with pytest.raises(VectorError, match="is not Shapefile"):
        open_layer(tmp_path / name)


def test_missing_and_empty_files_say_so(tmp_path: Path) -> None:
    (tmp_path / "a.geojson").touch()
    for path, message in ((tmp_path / "a.geojson", "0 bytes"), (tmp_path / "b.shp", "does not exist")):
        with pytest.raises(VectorError, match=message):
            open_layer(path)
    with pytest.raises(VectorError, match="is a folder"):
        open_layer(tmp_path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_was_cut_off_is_an_error(tmp_path: Path, ending: str) -> None:
    path = Path(written(tmp_path / f"a{ending}", [box(i % 70, i // 70, 0.5, 0.5) for i in range(2000)]))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(VectorError, match=r"cut off|damaged|GeoParquet"):
        open_layer(path).shapes(GRID)


def test_a_killed_geopackage_says_what_to_do(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gpkg", [box(1, 1, 5, 5)])
    script = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('pragma cache_size=5');"
        "c.execute('begin'); c.execute('create table t (a)');"
        "[c.execute('insert into t values (?)', ('x' * 300,)) for _ in range(5000)]; os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, path], check=False)
    with pytest.raises(VectorError, match="not closed properly"):
        open_layer(path)
    sqlite3.connect(path).execute("select count(*) from gpkg_contents").fetchall()
    assert open_layer(path).count == 1


def test_shapes_travel_to_workers_and_add_up(tmp_path: Path) -> None:
    shapes = open_layer(written(tmp_path / "a.gpkg", [box(1, 1, 5, 5), box(30, 30, 5, 5)])).shapes(GRID, CLASSES)
    burnt = shapes.burn(GRID)
    assert (pickle.loads(pickle.dumps(shapes)).burn(GRID) == burnt).all()
    both = shapes + open_layer(written(tmp_path / "b.gpkg", [box(50, 50, 5, 5)], ["Gebäude 中"])).shapes(GRID, CLASSES)
    assert (both.burn(GRID) > 0).sum() == 75 and both.counts["read"] == 3
    assert len(both.of_value(2)) == 1 and both.bounds == (500_002, 5_600_010, 500_110, 5_600_118)
    with pytest.raises(VectorError, match="read the layer for this grid"):
        shapes.burn(GeoBox(GRID.shape, GRID.affine, "EPSG:32632"))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("crs", ["EPSG:32631", NO_CODE, None], ids=["code", "no code", "none"])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_what_is_written_reads_back(tmp_path: Path, ending: str, crs: object, count: int) -> None:
    path = tmp_path / f"out{ending}"
    table = (
        frame([box(i, i, 2, 2) for i in range(count)], ["tin", "Gebäude 中", "tin"] * 2 + ["tin"], crs=crs)
        if (count == 7)
        else frame([box(i, i, 2, 2) for i in range(count)], crs=crs)
    )
    chunks: Iterator[gpd.GeoDataFrame] = (table[i : i + 3] for i in range(0, max(count, 1), 3))
    if ending.startswith(".geojson") and crs is None:
        with pytest.raises(OutputError, match="no CRS"):
            write_features(path, chunks, fields=FIELDS, crs=crs)
        return
    assert write_features(path, chunks, fields=FIELDS, crs=crs) == count
    if ending == ".geojsonl" and count == 0:
        assert path.read_bytes() == b""
        return
    layer = open_layer(path)
    assert layer.count == count
    if not ending.startswith(".geojson"):
        assert layer.fields == tuple(FIELDS)
        assert (layer.crs is None) == (crs is None)
        assert crs is None or layer.crs.proj.to_3d().equals(pyproj.CRS(crs).to_3d()) or ending == ".shp"
    back = gpd.read_parquet(path) if ending == ".parquet" else gpd.read_file(path)
    if count:
        back = back.sort_values("class_id")
        assert back["class"].tolist() == table["class"].tolist()
        assert back["area_m2"].tolist() == table["area_m2"].tolist()
        expected = table.geometry if not ending.startswith(".geojson") else table.to_crs("EPSG:4326").geometry
        assert (shapely.hausdorff_distance(back.geometry.to_numpy(), expected.to_numpy()) < 1e-6).all()
    assert not list(tmp_path.glob(".*")), "nothing hidden is left"


@pytest.mark.parametrize("ending", [".geojson", ".geojsonl"])
def test_geojson_is_right_handed_in_degrees(tmp_path: Path, ending: str) -> None:
    clockwise = shapely.reverse(shapely.orient_polygons(box(1, 1, 2, 2)))
    write_features(tmp_path / f"a{ending}", frame([clockwise]), fields=FIELDS, crs=UTM)
    back = gpd.read_file(tmp_path / f"a{ending}")
    assert back.crs == "EPSG:4326" and shapely.is_ccw(back.geometry[0].exterior)


@pytest.mark.parametrize("ending", [".geojson", ".geojsonl"])
def test_geojson_is_cut_at_the_antimeridian(tmp_path: Path, ending: str) -> None:
    across = shapely.box(819_000, -1_882_500, 820_000, -1_882_000)  # 180 degrees lies inside
    write_features(tmp_path / f"a{ending}", frame([across], crs="EPSG:32660"), fields=FIELDS, crs="EPSG:32660")
    (found,) = gpd.read_file(tmp_path / f"a{ending}").geometry
    assert len(found.geoms) == 2 and all(part.bounds[2] - part.bounds[0] < 0.01 for part in found.geoms)


def test_geoparquet_is_read_by_place(tmp_path: Path) -> None:
    table = frame([box(5 * i, 5 * i, 2, 2) for i in range(40)])
    write_features(tmp_path / "a.parquet", (table[i : i + 10] for i in range(0, 40, 10)), fields=FIELDS, crs=UTM)
    near = tuple(table.geometry[7].bounds)
    assert gpd.read_parquet(tmp_path / "a.parquet", bbox=near)["class_id"].tolist() == [7]
    assert list(gpd.read_parquet(tmp_path / "a.parquet")) == [*FIELDS, "geometry"]
    said = json.loads(pyarrow.parquet.read_schema(tmp_path / "a.parquet").metadata[b"geo"])
    assert said["version"] == "1.1.0" and said["columns"]["geometry"]["geometry_types"] == ["Polygon"]
    assert said["columns"]["geometry"]["bbox"] == pytest.approx(table.total_bounds)
    layer = open_layer(tmp_path / "a.parquet")
    assert layer.fields == tuple(FIELDS) and layer.bounds == pytest.approx(tuple(table.total_bounds))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_failure_half_way_leaves_nothing(tmp_path: Path, ending: str) -> None:
    def chunks() -> Iterator[gpd.GeoDataFrame]:
        yield frame([box(1, 1, 2, 2)])
        raise RuntimeError("the third block is damaged")

    with pytest.raises(RuntimeError, match="third block"):
        write_features(tmp_path / f"a{ending}", chunks(), fields=FIELDS, crs=UTM)
    with pytest.raises(OutputError, match="lack the attributes area_m2"):
        write_features(
            tmp_path / f"a{ending}", frame([box(1, 1, 2, 2)]).drop(columns="area_m2"), fields=FIELDS, crs=UTM
        )
    assert not list(tmp_path.iterdir())


def test_what_a_format_cannot_hold_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"\.shp, \.gpkg"):
        check_features("a.kml", FIELDS, UTM)
    with pytest.raises(OutputError, match="a_long_name more"):
        check_features("a.shp", {"a_long_name": "str"}, UTM)
    with pytest.raises(OutputError, match="holds 2 GB"):
        check_features("a.shp", FIELDS, UTM, expected=30_000_000)
    check_features("a.gpkg", {"a_long_name": "str"}, UTM, expected=30_000_000)
    with pytest.raises(OutputError, match="holds 254"):
        write_features(tmp_path / "a.shp", frame([box(1, 1, 2, 2)], ["x" * 300]), fields=FIELDS, crs=UTM)
    monkeypatch.setattr(gimseg.vector_output, "SHAPEFILE_LIMIT", 100_000)
    chunk = frame([box(1, 1, 2, 2)] * 200)
    with pytest.raises(OutputError, match="nears 2 GB"):
        write_features(tmp_path / "a.shp", (chunk for _ in range(100)), fields=FIELDS, crs=UTM)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".shp", ".gpkg", ".fgb", ".parquet"])
def test_features_lost_on_the_way_are_noticed(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = gimseg.vector_output._write_parquet if ending == ".parquet" else gimseg.vector_output._write_driver

    def then_cut(part: Path, *rest: object) -> None:
        genuine(part, *rest)
        part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])

    monkeypatch.setattr(gimseg.vector_output, genuine.__name__, then_cut)
    with pytest.raises(OutputError, match="disk full"):
        write_features(tmp_path / f"a{ending}", frame([box(i, i, 2, 2) for i in range(3000)]), fields=FIELDS, crs=UTM)
    assert not list(tmp_path.iterdir())


def test_a_shapefile_without_its_index_is_refused(tmp_path: Path) -> None:
    path = Path(written(tmp_path / "a.shp", [box(1, 1, 5, 5)]))
    shutil.move(path.with_suffix(".shx"), tmp_path / "elsewhere")
    with pytest.raises(VectorError, match=r"lacks its \.shx"):
        open_layer(path)


@pytest.mark.parametrize("ending", [".gpkg", ".shp", ".parquet"])
def test_attributes_are_those_that_were_asked_for_in_any_order(ending: str, tmp_path: Path) -> None:
    path, points = tmp_path / f"layer{ending}", [shapely.Point(1, 2), shapely.Point(3, 4)]
    frame = gpd.GeoDataFrame({"a": [1, 2], "b": ["x", "y"], "c": [5.5, 6.5]}, geometry=points, crs="EPSG:32633")
    frame.to_parquet(path) if ending == ".parquet" else frame.to_file(path)
    geometries, found = read_columns(find_source(str(path)), ["c", "a"], None)
    assert list(geometries) == points and list(found) == ["c", "a"]
    assert found["c"].tolist() == [5.5, 6.5] and found["a"].tolist() == [1, 2]
