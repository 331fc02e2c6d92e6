"""Laws of mosaics: tiles of a raster, read together, are the raster."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from worlds import TOP_LEFT, noise, north_up, write_raster

from gimseg.errors import GridError, RasterError
from gimseg.mosaics import open_mosaic
from gimseg.rasters import Raster, open_raster

TURNED = Affine.translation(*TOP_LEFT) @ Affine.rotation(20) @ Affine.scale(1, -1)
SOUTH_UP = Affine(1, 0, TOP_LEFT[0], 0, 1, TOP_LEFT[1])


def cut(folder: Path, image: np.ndarray, transform: Affine, cuts: list[tuple[slice, slice]], **given) -> list[Path]:
    """Parts of an image as tiles, each with its own transform."""
    return [
        write_raster(
            folder / f"tile_{index}.tif",
            image[:, rows, cols],
            transform=transform @ Affine.translation(cols.start, rows.start),
            **given,
        )
        for index, (rows, cols) in enumerate(cuts)
    ]


def grid_of(rows: list[int], cols: list[int]) -> list[tuple[slice, slice]]:
    return [
        (slice(top, bottom), slice(left, right)) for top, bottom in pairwise(rows) for left, right in pairwise(cols)
    ]


def read_all(raster: Raster, resolution: float | None, margin: int = 5) -> tuple[np.ndarray, np.ndarray]:
    view = raster.on(raster.grid(resolution))
    return view.read((slice(-margin, view.shape[0] + margin), slice(-margin, view.shape[1] + margin)))


@pytest.mark.parametrize("resolution", [None, 0.6, 1.7], ids=["own", "finer", "coarser"])
@pytest.mark.parametrize("transform", [north_up(), SOUTH_UP, TURNED], ids=["north-up", "south-up", "turned"])
def test_tiles_of_a_raster_are_the_raster(transform: Affine, resolution: float | None, tmp_path: Path) -> None:
    image = noise((2, 90, 120))
    image[:, 30:50, 50:70] = 0
    whole = open_raster(write_raster(tmp_path / "whole.tif", image, transform=transform, nodata=0))
    tiles = cut(tmp_path, image, transform, grid_of([0, 37, 64, 90], [0, 55, 120]), nodata=0)
    for order in (tiles, tiles[::-1]):
        mosaic = open_mosaic(order)
        assert mosaic.geobox == whole.geobox
        for one, other in zip(read_all(mosaic, resolution), read_all(whole, resolution), strict=True):
            assert np.array_equal(one, other)


def test_where_rasters_overlap_the_first_valid_pixel_counts(tmp_path: Path) -> None:
    one, two = np.full((1, 10, 10), 50, np.uint8), np.full((1, 10, 10), 90, np.uint8)
    one[:, 4:6, 6:8] = 0
    first = write_raster(tmp_path / "one.tif", one, nodata=0)
    second = write_raster(tmp_path / "two.tif", two, transform=north_up(left=TOP_LEFT[0] + 5))
    data, valid = read_all(open_mosaic([first, second]), None, margin=0)
    expected = np.full((10, 15), 90)
    expected[:, :10] = np.where(one[0] == 0, 90, 50)
    assert valid.all() and np.array_equal(data[0], expected)
    data, _ = read_all(open_mosaic([second, first]), None, margin=0)
    assert (data[0, :, 5:] == 90).all()


def test_what_no_tile_covers_is_invalid(tmp_path: Path) -> None:
    image = noise((1, 40, 40))
    tiles = cut(tmp_path, image, north_up(), [(slice(0, 20), slice(0, 20)), (slice(20, 40), slice(20, 40))])
    data, valid = read_all(open_mosaic(tiles), None, margin=0)
    assert valid.sum() == 800 and not valid[:20, 20:].any()
    assert np.array_equal(data[0][valid], image[0][valid])


def test_each_tile_keeps_its_own_validity(tmp_path: Path) -> None:
    """One marks it by a nodata value, one by a mask, one not at all."""
    image = noise((1, 20, 60), low=1)
    hole = np.ones((20, 20), bool)
    hole[5:9, 5:9] = False
    marked = np.where(hole, image[:, :, :20], 0)
    paths = [
        write_raster(tmp_path / "value.tif", marked, nodata=0),
        write_raster(tmp_path / "mask.tif", image[:, :, 20:40], transform=north_up(left=TOP_LEFT[0] + 20), mask=hole),
        write_raster(tmp_path / "none.tif", image[:, :, 40:], transform=north_up(left=TOP_LEFT[0] + 40)),
    ]
    _, valid = read_all(open_mosaic(paths), None, margin=0)
    assert np.array_equal(valid, np.hstack([hole, hole, np.ones((20, 20), bool)]))


def test_only_tiles_that_are_needed_are_read(tmp_path: Path) -> None:
    tiles = cut(tmp_path, noise((1, 40, 40)), north_up(), grid_of([0, 20, 40], [0, 20, 40]))
    mosaic = open_mosaic(tiles)
    tiles[3].unlink()
    view = mosaic.on(mosaic.grid())
    assert view.read((slice(0, 20), slice(0, 40))).valid.all()
    with pytest.raises(RasterError, match=r"tile_3\.tif"):
        view.read((slice(10, 30), slice(10, 30)))


def test_one_raster_is_no_mosaic(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise((5, 5)))
    assert open_mosaic([path]).path == str(path)


def test_rasters_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one = write_raster(tmp_path / "one.tif", noise((1, 20, 20)))
    others = {
        "has the CRS EPSG:32633, .*EPSG:32634": {"crs": "EPSG:32634"},
        "lattice of pixels .sizes 1 and 0.5": {"transform": north_up(0.5)},
        "lattice of pixels .*0.5 and 0 px apart": {"transform": north_up(left=TOP_LEFT[0] + 20.5)},
    }
    for message, given in others.items():
        other = write_raster(tmp_path / "other.tif", noise((1, 20, 20)), **given)
        with pytest.raises(GridError, match=message):
            open_mosaic([one, other])
    with pytest.raises(RasterError, match=r"uint8, bands \(1,\).*uint16"):
        open_mosaic([one, write_raster(tmp_path / "other.tif", noise((1, 20, 20), dtype="uint16"))])
    with pytest.raises(RasterError, match="one at least"):
        open_mosaic([])


def test_notes_that_all_tiles_share_are_told_once(tmp_path: Path) -> None:
    tiles = cut(tmp_path, noise((1, 40, 40)), SOUTH_UP, grid_of([0, 20, 40], [0, 20, 40]))
    assert open_mosaic(tiles).notes == open_raster(tiles[0]).notes
