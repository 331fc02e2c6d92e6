"""Which corrected ground is held out: a quarter, by its place alone, and some of it on each side."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from worlds import noise, north_up, write_raster

from gimseg.correction.drawing import Drawing
from gimseg.correction.holding import PINS, DrawnBlocks, Pins, block_side, hold_out_blocks, labelled_pixels, pin_blocks
from gimseg.errors import CorrectionError
from gimseg.holdouts import GroundBlocks
from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import Legend
from gimseg.rasters import open_raster
from gimseg.vectors import Shapes

ROOF = Legend.binary("roof")
BLOCK = 32
"""Side of a block of a model with windows of 64 px of 1 m, m."""
LEFT, TOP = 500_032.0, 5_000_000.0
WHOLE = DrawnBlocks()


def scene(
    path: Path, *areas: shapely.Geometry, shape: tuple[int, int] = (256, 256), crs: str = "EPSG:32633"
) -> LabelledScene:
    """An image of 1 m with areas of interest in it, in metres from its upper left corner, which is one place."""
    left, top = Transformer.from_crs("EPSG:32633", crs, always_xy=True).transform(LEFT, TOP)
    transform = north_up(1.0, left=left, top=top)
    raster = open_raster(write_raster(path, noise((1, *shape)), transform=transform, crs=crs))
    placed = np.array([shapely.transform(area, lambda xy: xy * (1, -1) + (left, top)) for area in areas], object)
    crs = raster.geobox.crs
    none = Shapes(np.empty(0, object), np.empty(0, np.uint8), crs)
    drawing = Drawing(ROOF, Shapes(placed, np.ones(len(areas), np.uint8), crs), none, none, none, none)
    return LabelledScene("one", raster, raster.on(raster.geobox), ROOF, drawing=drawing)


def held(scenes: tuple[LabelledScene, ...]) -> list[np.ndarray]:
    """Labelled pixels of each split, bool (rows, cols) of each scene."""
    planes = []
    for item in scenes:
        whole = (slice(0, item.shape[0]), slice(0, item.shape[1]))
        planes += [item.read(whole, split)[1] != 255 for split in ("train", "val")]
    return planes


@given(column=st.integers(-(2**40), 2**40), row=st.integers(-(2**40), 2**40))
def test_one_of_each_group_of_four_is_held_out(column: int, row: int) -> None:
    group = [(2 * column + right, 2 * row + up) for right in (0, 1) for up in (0, 1)]
    assert sum(number in WHOLE for number in group) == 1


def test_all_places_of_a_group_are_drawn_alike() -> None:
    places = [(column % 2, row % 2) for column in range(80) for row in range(80) if (column, row) in WHOLE]
    counts = [places.count((right, up)) for right in (0, 1) for up in (0, 1)]
    assert sum(counts) == 1600 and min(counts) > 340


def test_each_labelled_pixel_is_in_one_split(tmp_path: Path) -> None:
    train, val = held(hold_out_blocks([scene(tmp_path / "a.tif", shapely.box(10, 20, 230, 240))], 1.0, 64))
    assert not (train & val).any()
    assert (train | val).sum() == 220 * 220
    assert 0.2 < val.sum() / (220 * 220) < 0.3


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_labelled_pixels_of_blocks_are_counted(seed: int) -> None:
    corners = np.random.default_rng(seed).integers(0, 256, (3, 4))
    areas = [shapely.box(min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1) for a, b, c, d in corners.tolist()]
    with TemporaryDirectory() as folder:
        item = scene(Path(folder) / "a.tif", *areas)
        labelled = item.read_labels((slice(0, 256), slice(0, 256))) != 255
        counted = labelled_pixels(item, 40.0)
    x, y = (np.floor((LEFT + np.arange(256) + 0.5) / 40), np.floor((TOP - np.arange(256) - 0.5) / 40))
    rows, cols = np.nonzero(labelled)
    assert counted == Counter(zip(x[cols].astype(int).tolist(), y[rows].astype(int).tolist(), strict=True))


def test_another_correction_moves_nothing(tmp_path: Path) -> None:
    one = scene(tmp_path / "a.tif", shapely.box(0, 0, 128, 128))
    other = scene(tmp_path / "b.tif", shapely.box(100, 100, 256, 256))
    both = scene(tmp_path / "c.tif", shapely.box(0, 0, 128, 128), shapely.box(100, 100, 256, 256))
    alone, there, together = (held(hold_out_blocks([item], 1.0, 64))[1] for item in (one, other, both))
    np.testing.assert_array_equal(alone | there, together)


def test_the_raster_it_is_seen_on_moves_nothing(tmp_path: Path) -> None:
    whole = scene(tmp_path / "a.tif", shapely.box(0, 0, 256, 256))
    roi = (slice(37, 199), slice(50, 143))
    crop = hold_out_blocks([whole.crop(roi)], 1.0, 64)
    np.testing.assert_array_equal(held(crop)[1], held(hold_out_blocks([whole], 1.0, 64))[1][roi])


@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("wide", [40, 64])
def test_two_blocks_are_one_on_each_side(tmp_path: Path, column: int, wide: int) -> None:
    """Whatever the draw says of so small an area."""
    left = BLOCK * 2 * column
    area = shapely.box(left, 0, left + wide, BLOCK)
    train, val = held(hold_out_blocks([scene(tmp_path / "a.tif", area)], 1.0, 64))
    assert train.any() and val.any() and (train | val).sum() == wide * BLOCK


@pytest.mark.parametrize("column", range(4))
def test_a_single_block_is_learned_from(tmp_path: Path, column: int) -> None:
    area = shapely.box(column * BLOCK, 0, (column + 1) * BLOCK, BLOCK)
    train, val = held(hold_out_blocks([scene(tmp_path / "a.tif", area)], 1.0, 64))
    assert train.sum() == BLOCK**2 and not val.any()


def test_the_side_of_a_block_depends_on_the_crs_alone() -> None:
    """Where in web Mercator a raster lies changes the size of its pixels, and no block."""
    north, south = (GeoBox.from_bbox((0, y, 100, y + 100), "EPSG:3857", resolution=0.37) for y in (0.0, 9e6))
    assert block_side(north, 0.3, 256) == block_side(south, 0.3, 256) == 128 * 0.3
    degrees = GeoBox.from_bbox((0, 0, 1, 1), "EPSG:4326", resolution=0.01)
    assert block_side(degrees, 0.3, 256) == pytest.approx(128 * 0.3 / 111_320)
    feet = GeoBox.from_bbox((0, 0, 1000, 1000), "EPSG:2263", resolution=1)
    assert block_side(feet, 0.3, 256) == pytest.approx(128 * 0.3 / 0.3048, rel=1e-4)


def test_blocks_are_told_by_number() -> None:
    grid = GeoBox.from_bbox((-40, -40, 40, 40), "EPSG:32633", resolution=1)
    x, y = GroundBlocks(32.0, WHOLE).numbers(grid)
    assert x.tolist() == [-2] * 8 + [-1] * 32 + [0] * 32 + [1] * 8
    assert y.tolist() == x[::-1].tolist()


def pinned(folder: Path, item: LabelledScene) -> tuple[np.ndarray, ...]:
    """Learned and held-out ground of a correction that is learned in a project."""
    pins = pin_blocks(folder, [item], 1.0, 64)
    assert pins is not None and pins == Pins.read(folder)
    return tuple(held(hold_out_blocks([item], 1.0, 64, pins)))


@given(st.lists(st.tuples(*[st.integers(0, 7)] * 2, *[st.integers(1, 5)] * 2), min_size=2, max_size=4))
@settings(max_examples=25, deadline=None)
def test_no_block_ever_changes_sides(boxes: list[tuple[int, int, int, int]]) -> None:
    """Whatever is drawn later, be it one block upon another, and in whatever order."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        areas = [shapely.box(16 * x, 16 * y, 16 * (x + wide), 16 * (y + high)) for x, y, wide, high in boxes]
        scenes = [scene(folder / f"{number}.tif", area) for number, area in enumerate(areas)]
        learned, kept = np.zeros((256, 256), bool), np.zeros((256, 256), bool)
        for item in scenes:
            if pin_blocks(folder, [item], 1.0, 64) is None:
                # Nothing was left to learn: all of it is held out.
                assert not held(hold_out_blocks([item], 1.0, 64, Pins.read(folder)))[0].any()
                continue
            train, val = pinned(folder, item)
            assert train.any() and not (train & kept).any() and not (val & learned).any()
            learned, kept = learned | train, kept | val
        # Nor does it when all are looked at once more.
        for item in scenes:
            train, val = held(hold_out_blocks([item], 1.0, 64, Pins.read(folder)))
            assert not (train & kept).any() and not (val & learned).any()


def test_a_block_that_was_learned_is_no_test_of_a_later_correction(tmp_path: Path) -> None:
    column, row = next((x, y) for x in range(8) for y in range(8) if (x, y) in numbered(tmp_path))
    small = scene(tmp_path / "a.tif", shapely.box(*(BLOCK * part for part in (column, row, column + 1, row + 1))))
    large = scene(tmp_path / "b.tif", shapely.box(0, 0, 256, 256))
    # The draw would hold it out, but it was all that there was.
    train, val = pinned(tmp_path, small)
    assert train.any() and not val.any()
    later, held_out = pinned(tmp_path, large)
    assert later[train].all() and not held_out[train].any() and held_out.any()


def numbered(folder: Path) -> set[tuple[int, int]]:
    """Blocks that the draw holds out, counted from the upper left corner of the image."""
    whole = scene(folder / "whole.tif", shapely.box(0, 0, 256, 256))
    plane = held(hold_out_blocks([whole], 1.0, 64))[1]
    return {(column, row) for column in range(8) for row in range(8) if plane[BLOCK * row, BLOCK * column]}


def elsewhere(item: LabelledScene, plane: np.ndarray, other: LabelledScene) -> np.ndarray:
    """Pixels of `other` that lie on those of a plane of `item`; bool (rows, cols)."""
    rows, cols = np.indices(other.shape) + 0.5
    x, y = other.geobox.affine * (cols, rows)
    x, y = Transformer.from_crs(str(other.geobox.crs), str(item.geobox.crs), always_xy=True).transform(x, y)
    cols, rows = (np.floor(axis).astype(int) for axis in ~item.geobox.affine * (x, y))
    inside = (rows >= 0) & (cols >= 0) & (rows < item.shape[0]) & (cols < item.shape[1])
    return inside & plane[np.clip(rows, 0, item.shape[0] - 1), np.clip(cols, 0, item.shape[1] - 1)]


ZONES = ("EPSG:32633", "EPSG:32634")
"""The same ground, turned by four degrees."""


def test_rasters_of_two_zones_in_one_correction_learn_nothing_that_the_other_is_scored_on(tmp_path: Path) -> None:
    one, other = (scene(tmp_path / f"{zone[-2:]}.tif", shapely.box(0, 0, 256, 256), crs=zone) for zone in ZONES)
    for pins in (None, pin_blocks(tmp_path, [one, other], 1.0, 64)):
        train, val, their_train, their_val = held(hold_out_blocks([one, other], 1.0, 64, pins))
        assert min(plane.sum() for plane in (train, val, their_train, their_val)) > 3000
        assert not (elsewhere(one, val, other) & their_train).any()
        assert not (elsewhere(other, their_val, one) & train).any()


@pytest.mark.parametrize("zones", [ZONES, ZONES[::-1]])
def test_a_correction_in_another_zone_neither_learns_what_is_held_out_nor_is_scored_on_what_was_learned(
    tmp_path: Path, zones: tuple[str, str]
) -> None:
    one, other = (scene(tmp_path / f"{zone[-2:]}.tif", shapely.box(0, 0, 256, 256), crs=zone) for zone in zones)
    earlier = scene(tmp_path / "part.tif", shapely.box(0, 0, 128, 256), crs=zones[0])
    train, val = pinned(tmp_path, earlier)
    their_train, their_val = pinned(tmp_path, other)
    assert their_train.sum() > 9000 and their_val.sum() > 3000
    assert not (elsewhere(earlier, val, other) & their_train).any()
    assert not (elsewhere(earlier, train, other) & their_val).any()
    again = held(hold_out_blocks([earlier], 1.0, 64, Pins.read(tmp_path)))
    assert (again[1] == val).all(), "what is held out stays"
    assert (again[0] <= train).all()
    assert one.shape == other.shape


def test_what_lies_wholly_on_held_out_ground_of_another_zone_has_nothing_to_learn(tmp_path: Path) -> None:
    whole = scene(tmp_path / "a.tif", shapely.box(0, 0, 256, 256))
    val = pinned(tmp_path, whole)[1]
    row, col = (int(axis[0]) * BLOCK + BLOCK // 2 for axis in np.nonzero(val[16::32, 16::32]))
    small = scene(tmp_path / "b.tif", shapely.box(0, 0, 256, 256), crs=ZONES[1])
    rows, cols = np.nonzero(elsewhere(whole, _spot(val.shape, row, col), small))
    box = shapely.box(cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
    assert pin_blocks(tmp_path, [scene(tmp_path / "c.tif", box, crs=ZONES[1])], 1.0, 64) is None


def _spot(shape: tuple[int, int], row: int, col: int) -> np.ndarray:
    """A square of 9 pixels' side."""
    plane = np.zeros(shape, bool)
    plane[row - 4 : row + 5, col - 4 : col + 5] = True
    return plane


LOCAL = 'LOCAL_CS["site grid",UNIT["metre",1]]'
MOON = "+proj=eqc +R=1737400 +units=m +type=crs"


@pytest.mark.parametrize("crs", [LOCAL, MOON])
def test_rasters_that_share_no_earth_do_not_meet(tmp_path: Path, crs: str) -> None:
    raster = open_raster(write_raster(tmp_path / "x.tif", noise((1, 256, 256)), transform=north_up(1.0), crs=crs))
    here = scene(tmp_path / "a.tif", shapely.box(0, 0, 256, 256))
    none = Shapes(np.empty(0, object), np.empty(0, np.uint8), raster.geobox.crs)
    area = Shapes(np.array([raster.geobox.extent.geom]), np.ones(1, np.uint8), raster.geobox.crs)
    there = LabelledScene(
        "x", raster, raster.on(raster.geobox), ROOF, drawing=Drawing(ROOF, area, none, none, none, none)
    )
    pins = pin_blocks(tmp_path, [here], 1.0, 64)
    assert pins is not None and pin_blocks(tmp_path, [there], 1.0, 64) is not None
    for scenes in ([here, there], [there]):
        assert all(plane.any() for plane in held(hold_out_blocks(scenes, 1.0, 64, Pins.read(tmp_path))))


def test_what_is_pinned_reads_back_and_a_damaged_file_is_told(tmp_path: Path) -> None:
    assert Pins.read(tmp_path) == Pins()
    pins = pin_blocks(tmp_path, [scene(tmp_path / "a.tif", shapely.box(0, 0, 128, 128))], 1.0, 64)
    assert pins is not None and Pins.read(tmp_path) == pins
    ((key, blocks),) = pins.blocks.items()
    assert key == "EPSG:32633 32" and len(blocks.also) == 4 and len(blocks.never) == 12
    blocks = '{"held_out": [], "learned": []}'
    for text in (
        "{",
        "[]",
        f'{{"foo": {blocks}}}',
        f'{{"EPSG:32633 far": {blocks}}}',
        f'{{"EPSG:9999999 32": {blocks}}}',
    ):
        (tmp_path / PINS).write_text(text)
        with pytest.raises(CorrectionError, match="never learned"):
            Pins.read(tmp_path)
