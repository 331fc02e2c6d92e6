"""What of a correction is learned: the precedence table to the letter, on any rasters, and never from a stale copy."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from networks_for_tests import brightness_model
from worlds import noise, north_up, write_raster

from gimseg.correction.checking import check_correction
from gimseg.correction.grounds import drawing_key, fit_dataset, open_ground, open_rasters
from gimseg.correction.labelling import write_labels
from gimseg.correction.rounds import Correction, Opening, table_of
from gimseg.datasets import Dataset
from gimseg.errors import CorrectionError, RasterError
from gimseg.legend import Legend
from gimseg.models import Model
from gimseg.rasters import open_raster

UTM = "EPSG:32633"
LEFT, TOP = 500_000.0, 5_000_000.0
THREE = Legend.from_dict({"classes": ["roof", "road", "tree"]})
Drawn = list[tuple[shapely.Geometry, str | None]]


def box(left: float, bottom: float, right: float, top: float) -> shapely.Polygon:
    """In metres from the lower left corner of a raster of 200 x 200 m."""
    return shapely.box(LEFT + left, TOP - 200 + bottom, LEFT + right, TOP - 200 + top)


def point(x: float, y: float) -> shapely.Point:
    return shapely.Point(LEFT + x, TOP - 200 + y)


def model(legend: Legend | None = None) -> Model:
    """Pixels of 1 m, windows of 32 px."""
    return brightness_model(**({} if legend is None else {"legend": legend}))


def raster(folder: Path, name: str = "big.tif", left: float = LEFT) -> Path:
    return write_raster(folder / name, noise((1, 200, 200)), transform=north_up(1.0, left=left, top=TOP))


def correction(folder: Path, crs: str = UTM, rasters: list[Path] | None = None, **layers: Drawn) -> Correction:
    home = folder / "corrections" / "bad"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for name, features in layers.items():
        frame = geopandas.GeoDataFrame(
            {"class": [text for _, text in features]}, geometry=[shape for shape, _ in features], crs=UTM
        )
        (frame if crs == UTM else frame.to_crs(crs)).to_file(home / "correction.gpkg", layer=name)
    made = Correction(home, "builtin", tuple(map(str, rasters or [raster(folder)])))
    made.write()
    return made


def learned(made: Correction, legend: Legend | None = None, split: str | None = None) -> np.ndarray:
    """What is learned of the raster, uint8 (200, 200); 255 where nothing is. y = 0.5 is the last row."""
    whole = np.full((200, 200), 255, np.uint8)
    for part in open_ground(made, model(legend)):
        top, left = round(TOP - part.geobox.affine.f), round(part.geobox.affine.c - LEFT)
        labels = part.read((slice(0, part.shape[0]), slice(0, part.shape[1])), split)[1]
        whole[top : top + part.shape[0], left : left + part.shape[1]] = labels
    return whole


def at(plane: np.ndarray, x: float, y: float) -> int:
    return int(plane[199 - int(y), int(x)])


ONCE: dict[str, tuple[dict[str, Drawn], dict[tuple[int, int], int], int]] = {
    "an area with nothing in it": ({"aoi": [(box(20, 20, 60, 60), None)]}, {(30, 30): 0, (70, 30): 255}, 1600),
    "an area smaller than a window": ({"aoi": [(box(20, 20, 29, 29), None)]}, {(25, 25): 0, (30, 25): 255}, 81),
    "an object that was deleted": (
        {
            "aoi": [(box(20, 20, 60, 60), None)],
            "objects": [(box(22, 22, 30, 30), "bright")],
            "prediction": [(box(22, 22, 30, 30), "bright"), (box(40, 40, 50, 50), "bright")],
        },
        {(25, 25): 1, (45, 45): 0},
        1600,
    ),
    "a polygon outside of all areas": (
        {"aoi": [(box(20, 20, 60, 60), None)], "objects": [(box(100, 100, 110, 110), "bright")]},
        {(105, 105): 1, (111, 105): 255, (30, 30): 0},
        1700,
    ),
    "a polygon across the border of an area": (
        {"aoi": [(box(20, 20, 60, 60), None)], "objects": [(box(55, 20, 65, 30), "bright")]},
        {(57, 25): 1, (63, 25): 1, (63, 35): 255},
        1650,
    ),
    "background outside of areas": ({"objects": [(box(100, 100, 110, 110), "background")]}, {(105, 105): 0}, 100),
    "background over a class": (
        {"objects": [(box(100, 100, 120, 110), "bright"), (box(110, 100, 130, 110), "background")]},
        {(105, 105): 1, (115, 105): 0, (125, 105): 0},
        300,
    ),
    "ignored ground": (
        {
            "aoi": [(box(20, 20, 60, 60), None)],
            "objects": [(box(22, 22, 30, 30), "bright"), (box(26, 20, 40, 40), "ignore")],
            "points": [(point(35.5, 35.5), "bright")],
        },
        {(24, 24): 1, (28, 28): 255, (35, 35): 255, (50, 50): 0},
        1600 - 14 * 20,
    ),
    "a point on nothing": ({"points": [(point(100.5, 100.5), "bright")]}, {(100, 100): 1, (101, 100): 255}, 1),
    "a point in an area": (
        {"aoi": [(box(20, 20, 60, 60), None)], "points": [(point(30.5, 30.5), "bright")]},
        {(30, 30): 1, (31, 30): 0},
        1600,
    ),
    "a background point in a polygon": (
        {"objects": [(box(20, 20, 40, 40), "bright")], "points": [(point(30.5, 30.5), "background")]},
        {(30, 30): 0, (31, 30): 1},
        400,
    ),
    "a hole": (
        {"objects": [(box(20, 20, 40, 40) - box(25, 25, 35, 35), "bright")]},
        {(22, 22): 1, (30, 30): 255},
        300,
    ),
    "several parts": (
        {"objects": [(shapely.MultiPolygon([box(20, 20, 30, 30), box(100, 100, 110, 110)]), "bright")]},
        {(25, 25): 1, (105, 105): 1, (60, 60): 255},
        200,
    ),
}


@pytest.mark.parametrize("case", ONCE)
@pytest.mark.parametrize("crs", [UTM, "EPSG:4326"])
def test_what_is_learned_is_what_the_table_says(tmp_path: Path, case: str, crs: str) -> None:
    layers, expected, count = ONCE[case]
    plane = learned(correction(tmp_path, crs, **layers))
    assert {place: at(plane, *place) for place in expected} == expected
    assert (plane != 255).sum() == count


def test_three_classes_and_their_overlap(tmp_path: Path) -> None:
    """Within one legend the later class is burnt over the earlier; the check refuses such overlaps."""
    drawn = [(box(20, 20, 30, 30), "roof"), (box(40, 20, 50, 30), "Road "), (box(45, 20, 55, 30), "tree")]
    made = correction(tmp_path, aoi=[(box(10, 10, 70, 40), None)], objects=drawn)
    plane = learned(made, THREE)
    assert [at(plane, x, 25) for x in (25, 42, 47, 52, 60)] == [1, 2, 3, 3, 0]


def test_an_area_across_two_rasters_is_learned_on_both(tmp_path: Path) -> None:
    rasters = [raster(tmp_path), raster(tmp_path, "east.tif", LEFT + 200)]
    made = correction(
        tmp_path, rasters=rasters, aoi=[(box(180, 50, 220, 90), None)], objects=[(box(190, 60, 210, 70), "bright")]
    )
    counts = np.zeros(256, int)
    for part in open_ground(made, model()):
        whole = (slice(0, part.shape[0]), slice(0, part.shape[1]))
        counts += np.bincount(part.read(whole)[1].ravel(), minlength=256)
    assert (counts[0], counts[1]) == (1400, 200)


def test_learned_and_held_out_ground_are_all_that_was_drawn(tmp_path: Path) -> None:
    made = correction(tmp_path, aoi=[(box(20, 20, 150, 150), None)], objects=[(box(30, 30, 90, 90), "bright")])
    whole, train, val = (learned(made, split=split) for split in (None, "train", "val"))
    assert ((train != 255) ^ (val != 255))[whole != 255].all()
    np.testing.assert_array_equal(np.where(train != 255, train, val), whole)
    assert (val != 255).any()


def test_only_what_lies_around_the_drawing_is_opened(tmp_path: Path) -> None:
    corners = [(box(2, 2, 10, 10), None), (box(190, 190, 198, 198), None)]
    parts = open_ground(correction(tmp_path, aoi=corners), model())
    assert [part.shape for part in parts] == [(42, 42), (42, 42)]


def test_nothing_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorrectionError, match="labels nothing"):
        open_ground(correction(tmp_path, objects=[(box(1000, 0, 1010, 10), "bright")]), model())


def dataset_correction(folder: Path, **given: object) -> Correction:
    """Two roofs on a raster of which all is known."""
    truth = folder / "truth.shp"
    frame = geopandas.GeoDataFrame(
        {"class": ["roof", "tree"]}, geometry=[box(20, 20, 40, 40), box(100, 100, 120, 130)], crs=UTM
    )
    frame.to_crs("EPSG:4326").to_file(truth)
    dataset = Dataset("bad", 0.2, [raster(folder)], [truth], **given)  # type: ignore[arg-type]
    home = folder / "corrections" / "bad"
    home.mkdir(parents=True, exist_ok=True)
    made = Correction(home, "builtin", dataset.images, truth=table_of(dataset))
    made.write()
    return Correction.read(home)


def test_a_dataset_is_complete_everywhere_and_seen_as_the_model_sees(tmp_path: Path) -> None:
    made = dataset_correction(tmp_path)
    plane = learned(made)
    assert (plane != 255).all() and (plane == 1).sum() == 400 + 600
    assert {scene.geobox.resolution.x for scene in open_rasters(made, model().recipe)} == {1.0}


def test_a_dataset_of_several_classes_tells_them_by_the_attribute_of_a_drawing(tmp_path: Path) -> None:
    plane = learned(dataset_correction(tmp_path), THREE)
    assert np.bincount(plane.ravel())[[0, 1, 3]].tolist() == [39_000, 400, 600]


def test_areas_of_a_dataset_bound_it(tmp_path: Path) -> None:
    geopandas.GeoDataFrame(geometry=[box(10, 10, 50, 50)], crs=UTM).to_file(tmp_path / "aoi.gpkg")
    plane = learned(dataset_correction(tmp_path, aoi_paths=[tmp_path / "aoi.gpkg"]))
    assert (plane != 255).sum() == 1600 and (plane == 1).sum() == 400


def damaged_in_the_middle(folder: Path) -> Path:
    """3072 x 3072 px of which a tile cannot be read, as those of a drive that is failing."""
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}
    place = north_up(1.0, left=LEFT, top=TOP)
    path = write_raster(folder / "damaged.tif", noise((1, 3072, 3072)), transform=place, **tiles)
    with rasterio.open(path) as file:
        start, size = (int(file.get_tag_item(f"BLOCK_{name}_12_12", "TIFF", bidx=1)) for name in ("OFFSET", "SIZE"))
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(size))
    return path


@pytest.mark.parametrize("as_dataset", [False, True])
def test_only_ground_near_what_was_drawn_is_read(as_dataset: bool, tmp_path: Path) -> None:
    path, roof = damaged_in_the_middle(tmp_path), box(25, 105, 45, 125)
    corners = [box(20, 100, 60, 140), shapely.box(LEFT + 2900, TOP - 3000, LEFT + 2940, TOP - 2960)]
    made = correction(tmp_path, rasters=[path], aoi=[(c, None) for c in corners], objects=[(roof, "bright")])
    if as_dataset:
        layers = [tmp_path / "roofs.gpkg", tmp_path / "areas.gpkg"]
        for layer, shapes in zip(layers, ([roof], corners), strict=True):
            geopandas.GeoDataFrame(geometry=shapes, crs=UTM).to_file(layer)
        dataset = Dataset("bad", 1.0, [path], layers[:1], layers[1:])
        made = replace(made, rasters=dataset.images, truth=table_of(dataset))
    whole = open_rasters(made, model().recipe)[0]
    with pytest.raises(RasterError, match="damaged"):
        whole.read((slice(1500, 1600), slice(1500, 1600)))
    assert drawing_key(made)
    assert check_correction(made, model()).pixels == {"background": 2 * 1600 - 400, "bright": 400}
    assert len(open_ground(made, model())) == 2
    write_labels([made], model().recipe)
    with rasterio.open(made.labels) as file:
        labels = file.read(1)
    assert [int((labels == value).sum()) for value in (0, 1)] == [2 * 1600 - 400, 400]


def test_a_dataset_of_other_classes_or_with_a_split_is_refused(tmp_path: Path) -> None:
    path = raster(tmp_path)
    two = Legend.from_dict({"classes": ["roof", "road"]})
    with pytest.raises(CorrectionError, match="roof, road"):
        fit_dataset(Dataset("bad", 1.0, [path], legend=two), model(THREE).recipe)
    with pytest.raises(CorrectionError, match="split"):
        fit_dataset(Dataset("bad", 1.0, [path], split="train"), model().recipe)


def _move_a_vertex(path: Path) -> None:
    frame = geopandas.read_file(path, layer="objects")
    points = shapely.get_coordinates(frame.geometry[0])
    points[len(points) // 2] += 0.25
    frame.loc[0, "geometry"] = shapely.Polygon(points)
    frame.to_file(path, layer="objects")


def _change_a_class(path: Path) -> None:
    frame = geopandas.read_file(path, layer="objects")
    frame.loc[0, "class"] = "background"
    frame.to_file(path, layer="objects")


def _add_a_point(path: Path) -> None:
    frame = geopandas.GeoDataFrame({"class": ["bright"]}, geometry=[point(5, 5)], crs=UTM)
    frame.to_file(path, layer="points")


def _leave_an_edit_beside_the_file(path: Path) -> None:
    """As QGIS does while it has the file open."""
    database = sqlite3.connect(path)
    for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
        database.create_function(name, 1, lambda _: 0)  # those of the triggers of the spatial index
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("UPDATE objects SET class = 'ignore'")
    database.commit()
    _OPEN.append(database)


_OPEN: list[sqlite3.Connection] = []


@pytest.mark.parametrize("edit", [_move_a_vertex, _change_a_class, _add_a_point, _leave_an_edit_beside_the_file])
def test_every_edit_changes_the_key(tmp_path: Path, edit: Callable[[Path], None]) -> None:
    circle = point(100, 100).buffer(30, quad_segs=5000)
    made = correction(tmp_path, aoi=[(box(20, 20, 60, 60), None)], objects=[(circle, "bright")])
    before, status = drawing_key(made), os.stat(made.gpkg)
    plane = learned(made)
    edit(made.gpkg)
    os.utime(made.gpkg, ns=(status.st_atime_ns, status.st_mtime_ns))
    try:
        assert drawing_key(made) != before
        assert edit is _move_a_vertex or (learned(made) != plane).any()
    finally:
        while _OPEN:
            _OPEN.pop().close()


def test_what_was_not_edited_keeps_its_key(tmp_path: Path) -> None:
    made = correction(tmp_path / "old", aoi=[(box(20, 20, 60, 60), None)], rasters=[raster(tmp_path)])
    before = drawing_key(made)
    os.utime(made.gpkg)
    assert drawing_key(made) == drawing_key(made) == before
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert drawing_key(Correction.read(tmp_path / "new" / "corrections" / "bad")) == before


def test_a_shapefile_that_was_edited_is_read_anew(tmp_path: Path) -> None:
    made = dataset_correction(tmp_path)
    before = drawing_key(made)
    frame = geopandas.read_file(tmp_path / "truth.shp").iloc[:1]
    frame.to_file(tmp_path / "truth.shp")
    assert drawing_key(made) != before
    assert (learned(made) == 1).sum() == 400


def test_an_opening_that_changed_changes_the_key(tmp_path: Path) -> None:
    made = correction(tmp_path, aoi=[(box(20, 20, 60, 60), None)])
    other = Correction(made.folder, made.parent, made.rasters, Opening(nodata=3.0))
    assert drawing_key(other) != drawing_key(made)


def test_labels_are_written_as_they_are_learned(tmp_path: Path) -> None:
    made = correction(tmp_path, aoi=[(box(20, 20, 60, 60), None)], objects=[(box(30, 30, 40, 40), "bright")])
    for _ in range(2):
        write_labels([made], model().recipe)
    written = open_raster(made.labels)
    labels = written.on(written.geobox).read_values((slice(0, written.shape[0]), slice(0, written.shape[1])))
    counts = np.bincount(np.where(labels.valid, labels.data[0], 255).astype(int).ravel(), minlength=256)
    assert (counts[0], counts[1]) == (1500, 100)
    assert [path.name for path in sorted(made.folder.iterdir())] == ["correction.gpkg", "correction.toml", "labels.tif"]
