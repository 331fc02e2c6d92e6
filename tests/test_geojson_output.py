"""GeoJSON: what GDAL and geopandas read is what was given, on the Earth as RFC 7946 wants it."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely

from gimseg.errors import OutputError
from gimseg.geojson_output import count_features
from gimseg.vector_output import write_features

NAME = 'with "quotes", 100 % and \\'
FIELDS = {NAME: "str", "area_m2": "float64", "share": "float32", "class_id": "int32", "flagged": "bool", "day": "date"}
ENDINGS = (".geojson", ".geojsonl", ".geojsons")


def houses(crs: str = "EPSG:32633") -> gpd.GeoDataFrame:
    """Clockwise, one with a hole."""
    first = shapely.Polygon([(0, 0), (0, 9), (9, 9), (9, 0)], [[(2, 2), (4, 2), (4, 4), (2, 4)]])
    second = shapely.Polygon([(20, 20), (20, 29), (25.5, 29), (25.5, 20)])
    shapes = [shapely.affinity.translate(shape, 5e5, 5e6) for shape in (first, second, first)]
    return gpd.GeoDataFrame(
        {
            NAME: ["a", 'Straße\n"q" %s', None],
            "area_m2": [0.1 + 0.2, np.nan, np.inf],
            "share": np.array([0.25, 0.5, 0.75], np.float32),
            "class_id": [1, 2, 3],
            "flagged": [True, False, True],
            "day": np.array(["2026-01-31"] * 3, "datetime64[D]").astype(object),
        },
        geometry=shapes,
        crs=crs,
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_read_is_what_was_given(tmp_path: Path, ending: str) -> None:
    given = houses()
    assert write_features(tmp_path / f"out{ending}", [given[:2], given[2:]], fields=FIELDS, crs=given.crs) == 3
    found = gpd.read_file(tmp_path / f"out{ending}")
    assert found.crs == "EPSG:4326" and list(found.columns) == [*FIELDS, "geometry"]
    assert found[NAME].tolist()[:2] == given[NAME].tolist()[:2] and found[NAME].isna()[2]
    assert found["area_m2"][0] == given["area_m2"][0] and found["area_m2"].isna().tolist() == [False, True, True]
    for name in ("share", "class_id", "flagged"):
        assert found[name].tolist() == given[name].tolist()
    assert [str(day)[:10] for day in found["day"]] == ["2026-01-31"] * 3
    # Half a millimetre: what nine decimals of a degree leave.
    assert shapely.hausdorff_distance(found.to_crs(given.crs).geometry.values, given.geometry.values).max() < 5e-4
    rings = shapely.get_exterior_ring(found.geometry.values)
    assert shapely.is_ccw(rings).all() and not shapely.is_ccw(shapely.get_interior_ring(found.geometry[0], 0))


def test_the_text_is_json_with_a_feature_a_line(tmp_path: Path) -> None:
    given = houses()
    for ending in ENDINGS:
        write_features(tmp_path / f"out{ending}", given, fields=FIELDS, crs=given.crs)
    whole = json.loads((tmp_path / "out.geojson").read_text(encoding="utf-8"))
    assert whole["type"] == "FeatureCollection" and whole["name"] == "out" and len(whole["features"]) == 3
    lines = (tmp_path / "out.geojsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == whole["features"]
    marked = (tmp_path / "out.geojsons").read_bytes()
    assert marked == b"".join(b"\x1e" + line.encode() + b"\n" for line in lines)


@pytest.mark.parametrize("crs", ["EPSG:32660", "EPSG:4326"])
def test_what_crosses_the_antimeridian_is_cut_there(tmp_path: Path, crs: str) -> None:
    across = gpd.GeoSeries([shapely.box(179.9, -17.1, 180.1, -17.0), shapely.box(181, -17, 181.1, -16.9)], crs=4326)
    if crs != "EPSG:4326":
        across = gpd.GeoSeries(shapely.segmentize(across.values, 0.01), crs=4326).to_crs(crs)
    frame = gpd.GeoDataFrame(geometry=across)
    write_features(tmp_path / "out.geojson", frame, fields={}, crs=crs)
    found = gpd.read_file(tmp_path / "out.geojson")
    assert found.geometry[0].geom_type == "MultiPolygon" and found.geometry[1].geom_type == "Polygon"
    left, _, right, _ = found.total_bounds
    assert left >= -180 and right <= 180
    assert np.allclose(shapely.area(found.geometry.values), [0.02, 0.01], rtol=1e-3)
    assert shapely.get_parts(found.geometry[0])[0].disjoint(shapely.get_parts(found.geometry[0])[1])


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_found_is_an_empty_layer(tmp_path: Path, ending: str) -> None:
    assert write_features(tmp_path / f"out{ending}", houses()[:0], fields=FIELDS, crs="EPSG:32633") == 0
    if ending == ".geojson":
        assert gpd.read_file(tmp_path / "out.geojson").empty


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_was_cut_off_is_noticed(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out{ending}"
    write_features(path, houses(), fields=FIELDS, crs="EPSG:32633")
    whole = path.read_bytes()
    assert count_features(path) == 3
    for left in (len(whole) - 1, len(whole) - 3, len(whole) // 2, len(whole) - whole[::-1].index(b"{", 40)):
        path.write_bytes(whole[:left])
        with pytest.raises(ValueError, match="does not end"):
            count_features(path)


def test_where_there_is_no_longitude_it_is_said(tmp_path: Path) -> None:
    frame = gpd.GeoDataFrame(geometry=[shapely.box(9e9, 9e9, 9.1e9, 9.1e9)], crs="EPSG:32633")
    with pytest.raises(OutputError, match="no longitude or latitude"):
        write_features(tmp_path / "out.geojson", frame, fields={}, crs=frame.crs)
    assert not (tmp_path / "out.geojson").exists()
