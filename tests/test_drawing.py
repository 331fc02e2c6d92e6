"""What a drawing means: every row of the precedence table, drawn."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from odc.geo.geobox import GeoBox

from gimseg.correction.drawing import Drawing, drawing_legend
from gimseg.errors import CorrectionError, VectorError
from gimseg.legend import Legend

GRID = GeoBox.from_bbox((0, 0, 40, 30), "EPSG:32633", resolution=1)
BINARY = Legend.binary("roof")
THREE = Legend.from_dict({"classes": ["roof", "road", "tree"]})
Drawn = list[tuple[shapely.Geometry, str | None]]


def box(left: float, bottom: float, right: float, top: float) -> shapely.Polygon:
    return shapely.box(left, bottom, right, top)


def write(path: Path, crs: str | None = "EPSG:32633", **layers: Drawn) -> Path:
    """A correction with these layers, each a list of (geometry, class)."""
    for name, features in layers.items():
        frame = geopandas.GeoDataFrame(
            {"class": [text for _, text in features]}, geometry=[shape for shape, _ in features], crs="EPSG:32633"
        )
        (frame if crs in (None, "EPSG:32633") else frame.to_crs(crs)).to_file(path, layer=name)
    return path


def labels(tmp_path: Path, legend: Legend = BINARY, **layers: Drawn) -> np.ndarray:
    """uint8 (30, 40); row 0 is the top, so that y = 29.5 is row 0."""
    return Drawing.read(write(tmp_path / "correction.gpkg", **layers), GRID, legend).burn(GRID)


def at(plane: np.ndarray, x: float, y: float) -> int:
    return int(plane[29 - int(y), int(x)])


AREA = (box(0, 0, 20, 30), None)


def test_an_area_with_nothing_in_it_says_nothing_here(tmp_path: Path) -> None:
    plane = labels(tmp_path, aoi=[AREA])
    assert (plane[:, :20] == 0).all()
    assert (plane[:, 20:] == 255).all()


def test_inside_an_area_what_is_drawn_is_its_class_and_the_rest_is_background(tmp_path: Path) -> None:
    plane = labels(tmp_path, aoi=[AREA], objects=[(box(5, 5, 10, 10), "roof")])
    assert at(plane, 7, 7) == 1
    assert at(plane, 12, 7) == 0
    assert (plane == 1).sum() == 25


def test_outside_areas_a_polygon_labels_its_inside_only(tmp_path: Path) -> None:
    plane = labels(tmp_path, objects=[(box(25, 5, 30, 10), "roof")])
    assert (plane == 1).sum() == 25
    assert (plane == 255).sum() == plane.size - 25


def test_a_polygon_across_the_border_of_an_area_is_its_class_on_both_sides(tmp_path: Path) -> None:
    plane = labels(tmp_path, aoi=[AREA], objects=[(box(15, 5, 25, 10), "roof")])
    assert (plane == 1).sum() == 50
    assert at(plane, 26, 7) == 255


def test_background_polygons_assert_that_there_is_nothing(tmp_path: Path) -> None:
    plane = labels(tmp_path, objects=[(box(25, 5, 30, 10), "background")])
    assert (plane == 0).sum() == 25
    assert (plane == 255).sum() == plane.size - 25


def test_points_label_one_pixel(tmp_path: Path) -> None:
    plane = labels(tmp_path, points=[(shapely.Point(25.5, 5.5), "roof"), (shapely.Point(30.5, 5.5), "background")])
    assert (at(plane, 25, 5), at(plane, 30, 5)) == (1, 0)
    assert (plane == 255).sum() == plane.size - 2


def test_ignored_ground_is_unlabelled_everywhere(tmp_path: Path) -> None:
    plane = labels(
        tmp_path,
        aoi=[AREA],
        objects=[(box(5, 5, 10, 10), "roof"), (box(8, 0, 30, 7), "ignore")],
        points=[(shapely.Point(9.5, 6.5), "roof"), (shapely.Point(1.5, 1.5), "ignore")],
    )
    assert at(plane, 9, 6) == at(plane, 12, 3) == at(plane, 25, 3) == at(plane, 1, 1) == 255
    assert at(plane, 6, 8) == 1
    assert at(plane, 2, 2) == 0


def test_precedence_from_the_weakest_to_the_strongest(tmp_path: Path) -> None:
    everywhere, spot = box(0, 0, 40, 30), shapely.Point(7.5, 7.5)
    steps: list[tuple[dict[str, Drawn], int]] = [
        ({"points": [(shapely.Point(39.5, 29.5), "roof")]}, 255),
        ({"aoi": [(everywhere, None)]}, 0),
        ({"objects": [(everywhere, "roof")]}, 1),
        ({"objects": [(everywhere, "roof"), (everywhere, "background")]}, 0),
        ({"points": [(spot, "roof")]}, 1),
        ({"objects": [(everywhere, "roof"), (everywhere, "background"), (everywhere, "ignore")]}, 255),
    ]
    drawn: dict[str, Drawn] = {}
    for number, (added, expected) in enumerate(steps):
        drawn |= added
        folder = tmp_path / str(number)
        folder.mkdir()
        assert at(labels(folder, **drawn), 7, 7) == expected, added


def test_holes_and_parts(tmp_path: Path) -> None:
    ring = shapely.Polygon(box(2, 2, 12, 12).exterior, [box(5, 5, 9, 9).exterior])
    parts = shapely.MultiPolygon([ring, box(15, 15, 18, 18)])
    plane = labels(tmp_path, aoi=[AREA], objects=[(parts, "roof")])
    assert (plane == 1).sum() == 100 - 16 + 9
    assert at(plane, 7, 7) == 0


def test_three_classes(tmp_path: Path) -> None:
    drawn = [(box(1, 1, 5, 5), "roof"), (box(6, 1, 10, 5), "Road "), (box(11, 1, 15, 5), "tree")]
    plane = labels(tmp_path, THREE, aoi=[AREA], objects=drawn, points=[(shapely.Point(30.5, 20.5), "tree")])
    assert [at(plane, x, 3) for x in (3, 8, 13)] == [1, 2, 3]
    assert at(plane, 30, 20) == 3


def test_a_class_that_nobody_knows_is_unlabelled_in_an_area_too(tmp_path: Path) -> None:
    plane = labels(tmp_path, aoi=[AREA], objects=[(box(5, 5, 10, 10), "rooof"), (box(12, 5, 15, 10), None)])
    assert at(plane, 7, 7) == at(plane, 13, 7) == 255
    drawing = Drawing.read(tmp_path / "correction.gpkg", GRID, BINARY)
    assert any("rooof" in note for note in drawing.notes)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
def test_another_crs_is_the_same_ground(tmp_path: Path, crs: str) -> None:
    drawn = {"aoi": [(box(3.3, 3.3, 17.7, 20.2), None)], "objects": [(box(5.2, 5.2, 10.3, 10.3), "roof")]}
    one = Drawing.read(write(tmp_path / "one.gpkg", **drawn), GRID, BINARY).burn(GRID)
    other = Drawing.read(write(tmp_path / "other.gpkg", crs, **drawn), GRID, BINARY).burn(GRID)
    np.testing.assert_array_equal(one, other)


def test_a_window_is_the_crop_of_the_whole(tmp_path: Path) -> None:
    drawn: dict[str, Drawn] = {
        "aoi": [(shapely.Point(15, 15).buffer(11), None)],
        "objects": [(shapely.Point(x, 12).buffer(3.3), "roof") for x in (6, 14, 22, 33)],
        "points": [(shapely.Point(15.2, 20.7), "roof")],
    }
    drawing = Drawing.read(write(tmp_path / "correction.gpkg", **drawn), GRID, BINARY)
    whole = drawing.burn(GRID)
    for roi in ((slice(0, 11), slice(7, 40)), (slice(13, 14), slice(0, 40)), (slice(9, 30), slice(14, 17))):
        np.testing.assert_array_equal(drawing.burn(GRID[roi]), whole[roi])


def test_one_drawing_on_two_rasters(tmp_path: Path) -> None:
    """An area across two rasters labels its part on each."""
    other = GeoBox.from_bbox((40, 0, 80, 30), "EPSG:32633", resolution=1)
    path = write(tmp_path / "correction.gpkg", aoi=[(box(30, 0, 50, 30), None)], objects=[(box(35, 5, 45, 9), "roof")])
    left, right = (Drawing.read(path, grid, BINARY).burn(grid) for grid in (GRID, other))
    assert (left == 1).sum() == (right == 1).sum() == 20
    assert (left != 255).sum() == (right != 255).sum() == 300


def test_a_file_without_any_of_the_layers_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "other.gpkg", roofs=[(box(1, 1, 2, 2), "roof")])
    with pytest.raises(CorrectionError, match="aoi, objects, points"):
        Drawing.read(path, GRID, BINARY)
    with pytest.raises(VectorError, match="does not exist"):
        Drawing.read(tmp_path / "none.gpkg", GRID, BINARY)


def test_a_legend_that_says_background_itself_is_refused() -> None:
    with pytest.raises(CorrectionError, match="'Ignore'"):
        drawing_legend(Legend.from_dict({"classes": ["roof", "Ignore"]}))
