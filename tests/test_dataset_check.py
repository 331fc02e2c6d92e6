"""Ground truth that would mislead a training is found where it is labelled, with its file, feature and place."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely
from click.testing import CliRunner, Result
from networks_for_tests import brightness_model
from projects_for_tests import OPTIONS, small_model
from worlds import noise, north_up, write_raster

from gimseg import correct
from gimseg.cli import cli
from gimseg.correction.checking import Checked, check_correction
from gimseg.correction.findings import Finding
from gimseg.correction.rounds import Correction, table_of
from gimseg.datasets import Dataset
from gimseg.errors import CorrectionError
from gimseg.legend import Legend
from gimseg.models import build_network

UTM = "EPSG:32633"
LEFT, TOP, SIDE = 500_000.0, 5_000_000.0, 200
TWO = Legend.from_dict({"field": "kind", "classes": [{"name": "roof", "values": ["roof", "house"]}, "road"]})
Drawn = list[tuple[shapely.Geometry | None, Any]]


def box(left: float, bottom: float, right: float, top: float) -> shapely.Polygon:
    """In metres from the lower left corner of a raster of 200 x 200 m."""
    return shapely.box(LEFT + left, TOP - SIDE + bottom, LEFT + right, TOP - SIDE + top)


def bow(left: float, bottom: float) -> shapely.Polygon:
    """Two triangles of 10 m that meet in a point."""
    corners = ((0, 0), (10, 10), (10, 0), (0, 10))
    return shapely.Polygon([(LEFT + left + x, TOP - SIDE + bottom + y) for x, y in corners])


CORNERS: Drawn = [(box(0, 0, 5, 5), "roof"), (box(190, 190, 199, 199), "house")]
"""So that the ground truth covers the raster."""


def layer(path: Path, drawn: Drawn, crs: str = UTM) -> Path:
    shapes, kinds = zip(*drawn, strict=True)
    columns = {"kind": list(kinds), "place": range(len(kinds))}
    frame = geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=UTM).to_crs(crs)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path, engine="pyogrio")
    return path


def check(folder: Path, *masks: Path, legend: Legend | None = TWO, **given: Any) -> Checked:
    path = write_raster(folder / "big.tif", noise((1, SIDE, SIDE)), transform=north_up(1.0, left=LEFT, top=TOP))
    dataset = Dataset("bad", 1.0, [path], masks, legend=legend, **given)
    made = Correction(folder / "corrections" / "bad", "builtin", dataset.images, truth=table_of(dataset))
    return check_correction(made, brightness_model(legend=legend or Legend.binary("roof")))


def of_layers(checked: Checked) -> list[Finding]:
    return [finding for finding in checked.findings if finding.layer != "drawing"]


def test_ground_truth_that_is_right_has_no_finding(tmp_path: Path) -> None:
    touching: Drawn = [(box(20, 20, 40, 40), "roof"), (box(40, 20, 60, 40), "road"), (box(30, 30, 35, 50), "house")]
    checked = check(tmp_path, layer(tmp_path / "truth.gpkg", CORNERS + touching))
    assert checked.findings == () and checked.pixels["roof"] == 25 + 81 + 400 + 50


def numbers(path: Path) -> dict[int, int]:
    """The place of each feature in the list that was written -> its number as QGIS shows it."""
    if path.suffix == ".parquet":
        return {place: place for place in range(len(geopandas.read_parquet(path)))}
    frame = pyogrio.read_dataframe(path, fid_as_index=True)
    return dict(zip(frame["place"].tolist(), frame.index.tolist(), strict=True))


@pytest.mark.parametrize("crs", [UTM, "EPSG:4326"])
@pytest.mark.parametrize("ending", [".gpkg", ".shp", ".geojson", ".fgb", ".parquet"])
def test_faults_are_found_in_every_format_and_crs(ending: str, crs: str, tmp_path: Path) -> None:
    wrong: Drawn = [
        (bow(20, 20), "roof"),
        (box(60, 20, 60.2, 60), "roof"),
        (box(80, 20, 100, 40), "roof"),
        (box(95, 20, 110, 40), "road"),
        (box(120, 20, 130, 30), "rooof"),
        (box(120, 40, 130, 50), "rooof"),
        (box(140, 20, 150, 30), None),
    ]
    far: Drawn = [(bow(5000, 20), "roof"), (box(5000, 20, 5010, 30), "rooof"), (box(5000, 20, 5010, 30), "road")]
    nothing: Drawn = [] if ending == ".fgb" else [(None, "roof")]  # which holds no such features
    path = layer(tmp_path / f"truth{ending}", wrong + far + CORNERS + nothing, crs)
    checked, at = check(tmp_path, path), numbers(path)
    told = {one.feature: one for one in checked.findings}
    # What is told feature by feature is not counted once more.
    assert {one.layer for one in checked.findings} == {path.name} and len(told) == len(checked.findings)
    # Of two alike the first in the file is named.
    unknown = min(at[4], at[5])
    expected = {at[0]: False, at[1]: False, min(at[2], at[3]): True, unknown: False, at[6]: False}
    expected |= {at[12]: False} if nothing else {}
    assert {feature: one.fatal for feature, one in told.items()} == expected
    problems = {feature: one.problem for feature, one in told.items()}
    assert "invalid: Self-intersection" in problems[at[0]] and problems[at[0]].endswith("it is repaired as it is read")
    assert "sliver" in problems[at[1]]
    assert re.search(r"(roof|road) overlaps (roof|road) \(feature \d+\) on 100 px", problems[min(at[2], at[3])])
    assert problems[unknown].startswith("class 'rooof' is not in the legend, so it is unlabelled (and 1 more like it)")
    assert "did you mean 'roof'" in problems[unknown]
    assert problems[at[6]] == "it has no class, so it is unlabelled"
    assert not nothing or problems[at[12]] == "it has no geometry: it is left out"
    places = {0: shapely.Point(LEFT + 25, TOP - SIDE + 25), 1: wrong[1][0], 6: wrong[6][0]}
    assert all(shapely.Point(told[at[place]].place).distance(shape) < 1e-3 for place, shape in places.items())
    assert box(95, 20, 100, 40).contains(shapely.Point(told[min(at[2], at[3])].place))
    assert not checked.usable and not any(one.fixable for one in checked.findings)


def test_what_has_no_area_is_left_out(tmp_path: Path) -> None:
    flat = shapely.Polygon([(LEFT + x, TOP - 100) for x in (50, 60, 55)])
    (finding,) = of_layers(check(tmp_path, layer(tmp_path / "truth.gpkg", [*CORNERS, (flat, "roof")])))
    assert finding.feature == 3 and finding.problem.endswith("without an area it is left out") and not finding.fatal


def test_a_coordinate_that_is_no_number_is_told(tmp_path: Path) -> None:
    corners = [(LEFT + 20, TOP - 20), (LEFT + 40, TOP - 20), (LEFT + 40, np.nan), (LEFT + 20, TOP - 40)]
    with np.errstate(invalid="ignore"):
        torn = shapely.Polygon(corners)
    (finding,) = of_layers(check(tmp_path, layer(tmp_path / "truth.gpkg", [*CORNERS, (torn, "roof")])))
    assert finding.problem == "a coordinate of it is no number (NaN or infinite): it is left out" and not finding.fatal


@pytest.mark.parametrize("ending", [".gpkg", ".geojson", ".parquet"])
def test_what_has_no_geometry_is_told_once(ending: str, tmp_path: Path) -> None:
    path = layer(tmp_path / f"truth{ending}", [*CORNERS, (shapely.Polygon(), "roof"), (None, "roof")])
    lines = check(tmp_path, path).text().splitlines()
    assert len([line for line in lines if "it has no geometry: it is left out" in line]) == len(lines) - 1 == 2


def test_only_ground_that_is_labelled_is_looked_at(tmp_path: Path) -> None:
    pair: Drawn = [(box(20, 20, 60, 40), "roof"), (box(50, 20, 90, 40), "road"), (bow(52, 60), "roof")]
    truth = layer(tmp_path / "truth.gpkg", CORNERS + pair)
    left = layer(tmp_path / "left.gpkg", [(box(0, 0, 45, 200), "x"), (box(70, 0, 200, 50), "x")])
    right = layer(tmp_path / "right.gpkg", [(box(45, 0, 70, 200), "x")])
    assert {one.feature for one in of_layers(check(tmp_path, truth))} == {3, 5}
    assert of_layers(check(tmp_path, truth, aoi_paths=[left])) == []
    assert {one.feature for one in of_layers(check(tmp_path, truth, aoi_paths=[right]))} == {3, 5}
    assert of_layers(check(tmp_path, truth, ignore_paths=[right])) == []


def test_layers_are_held_against_one_another_under_names_that_differ(tmp_path: Path) -> None:
    (tmp_path / "roads").mkdir()
    roofs = layer(tmp_path / "truth.gpkg", [*CORNERS, (box(20, 20, 60, 40), "roof")])
    roads = layer(tmp_path / "roads" / "truth.gpkg", [(box(50, 20, 90, 40), "road"), (box(20, 60, 40, 80), "road")])
    (finding,) = of_layers(check(tmp_path, roofs, roads))
    assert (finding.layer, finding.feature, finding.fatal) == (str(roofs), 3, True)
    assert f"roof overlaps road (feature 1 of {roads}) on 200 px" in finding.problem


def test_points_that_contradict_polygons_are_errors_and_lines_cross_them(tmp_path: Path) -> None:
    polygons = layer(tmp_path / "truth.gpkg", [*CORNERS, (box(20, 20, 60, 40), "roof")])
    spots: Drawn = [(box(x, 30, x + 2, 32).centroid, kind) for x, kind in ((30, "road"), (40, "house"), (80, "road"))]
    points = layer(tmp_path / "points.gpkg", spots)
    lines = layer(tmp_path / "lines.gpkg", [(shapely.LineString(box(0, 30, 90, 35).exterior), "road")])
    found = of_layers(check(tmp_path, polygons, points, lines, line_width_m=2.0))
    assert [(one.layer, one.feature, one.fatal, one.place) for one in found] == [
        ("points.gpkg", 1, True, (LEFT + 31, TOP - SIDE + 31))
    ]
    assert "the point says road, the polygon around it (feature 3 of truth.gpkg) roof" in found[0].problem


def test_classes_that_are_numbers_are_told_as_they_are_written(tmp_path: Path) -> None:
    legend = Legend.from_dict(
        {"field": "kind", "classes": [{"name": "roof", "values": [1]}, {"name": "b", "values": 2}]}
    )
    drawn: Drawn = [(shape, 1) for shape, _ in CORNERS] + [(box(20, 20, 40, 40), 7), (box(50, 20, 60, 40), None)]
    texts = [one.problem for one in of_layers(check(tmp_path, layer(tmp_path / "truth.gpkg", drawn), legend=legend))]
    assert [text.partition(",")[0] for text in texts] == ["class '7' is not in the legend", "it has no class"]


def test_of_one_class_every_polygon_is_it_whatever_it_says(tmp_path: Path) -> None:
    drawn: Drawn = [*CORNERS, (box(20, 20, 60, 40), "barn"), (box(50, 20, 90, 40), None), (bow(100, 100), None)]
    found = of_layers(check(tmp_path, layer(tmp_path / "truth.gpkg", drawn), legend=None))
    assert [(one.feature, one.fatal) for one in found] == [(5, False)]


def test_rasters_of_labels_have_no_features(tmp_path: Path) -> None:
    place = north_up(1.0, left=LEFT, top=TOP)
    labels = write_raster(tmp_path / "labels.tif", np.ones((1, SIDE, SIDE), np.uint8), transform=place)
    checked = check(tmp_path, labels)
    assert checked.findings == () and checked.pixels["roof"] == SIDE**2


def test_of_very_many_findings_the_first_are_shown(tmp_path: Path) -> None:
    slivers: Drawn = [(box(x, 20, x + 0.1, 60), "roof") for x in range(20, 170)]
    checked = check(tmp_path, layer(tmp_path / "truth.gpkg", CORNERS + slivers))
    assert len(checked.findings) == 150
    assert "\n... and 50 more, which correct.check(...).findings holds\nlabelled: " in checked.text()


def test_a_training_is_refused(tmp_path: Path) -> None:
    made = small_model(0)
    network = build_network("Unet", "mobilenet_v2", bands=1, channels=3, **OPTIONS)
    replace(made, network=network, recipe=replace(made.recipe, legend=TWO)).save(tmp_path / "model")
    path = write_raster(tmp_path / "big.tif", noise((1, SIDE, SIDE)), transform=north_up(1.0, left=LEFT, top=TOP))
    truth = layer(tmp_path / "truth.gpkg", [*CORNERS, (box(20, 20, 60, 40), "roof"), (box(50, 20, 90, 40), "road")])
    with pytest.raises(CorrectionError, match=r"truth\.gpkg, feature 3 at .*: roof overlaps road \(feature 4\)"):
        correct.train(Dataset("bad", 1.0, [path], [truth], legend=TWO), project=tmp_path, model=tmp_path / "model")


def paths_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dataset_is_checked_before_it_is_a_correction_and_nothing_is_written(tmp_path: Path) -> None:
    small_model(0).save(tmp_path / "model")
    write_raster(tmp_path / "big.tif", noise((1, SIDE, SIDE)), transform=north_up(1.0, left=LEFT, top=TOP))
    layer(tmp_path / "right.gpkg", CORNERS)
    clash = layer(tmp_path / "wrong.gpkg", [*CORNERS, (box(20, 20, 30, 30), None)])
    table = '[[dataset]]\ntag = "{0}"\nspatial_resolution = 1.0\nimage_paths = ["big.tif"]\nmask_paths = ["{0}.gpkg"]\n'
    told = '[dataset.legend]\nfield = "kind"\nclasses = [{{ name = "bright", values = ["roof", "house"] }}]\n'
    for name in ("right", "wrong"):
        (tmp_path / f"{name}.toml").write_text(table.format(name) + told.format())
    (tmp_path / "far.toml").write_text(table.format("right") + 'aoi_paths = ["far.gpkg"]\n')
    layer(tmp_path / "far.gpkg", [(box(5000, 0, 5010, 10), "x")])
    before = paths_in(tmp_path)
    options = ["--project", str(tmp_path), "-m", str(tmp_path / "model")]

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["correct", "check", *arguments, *options])

    right, both, nowhere, none, mended = (
        run("--dataset", str(tmp_path / "right.toml")),
        run(*(f"--dataset={tmp_path / name}.toml" for name in ("right", "wrong"))),
        run("--dataset", str(tmp_path / "far.toml")),
        run(),
        run("--fix", "--dataset", str(tmp_path / "right.toml")),
    )
    assert right.exit_code == 0 and right.output.splitlines() == ["labelled: background 39,894 px, bright 106 px"]
    lines = both.output.splitlines()
    assert both.exit_code == 0 and lines[0] == "right:" and lines[2] == "wrong:"
    assert lines[3].startswith(f"warning: {clash.name}, feature 3 at ") and "it has no class" in lines[3]
    assert nowhere.exit_code == 1 and "it labels no pixel of the raster" in nowhere.output
    assert none.exit_code == 2 and "--dataset FILE.toml" in none.output
    assert "whose files are not changed" in str(mended.exception)
    assert paths_in(tmp_path) == before


def test_a_dataset_may_not_be_called_like_what_was_drawn(tmp_path: Path) -> None:
    made = Correction(tmp_path / "corrections" / "bad", "builtin", (str(tmp_path / "big.tif"),))
    made.folder.mkdir(parents=True)
    made.write()
    write_raster(tmp_path / "big.tif", noise((1, SIDE, SIDE)), transform=north_up(1.0, left=LEFT, top=TOP))
    with pytest.raises(CorrectionError, match="was drawn in"):
        correct.check(Dataset("bad", 1.0, [tmp_path / "big.tif"]), project=tmp_path)
