"""Laws of comparing two masks: pixels are counted once, objects by themselves, whatever the blocks."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio
from scipy import ndimage
from worlds import write_raster

from gimseg.correction import differences
from gimseg.correction.differences import compare_masks, compare_polygons
from gimseg.object_scores import match_objects
from gimseg.rasters import open_raster
from gimseg.vectorization import vectorize

SHAPE = (300, 400)


def masks(folder: Path) -> tuple[Path, Path]:
    """Blobs of two classes, and the same a little moved, some gone, some new; nodata at one side."""
    rng = np.random.default_rng(0)
    made = []
    for name in ("before", "after"):
        values = np.zeros(SHAPE, np.uint8)
        for number, (row, col) in enumerate(rng.integers(5, (270, 370), (60, 2))):
            values[row : row + 12, col : col + 15] = 1 + number % 2
        values = np.where(ndimage.uniform_filter(rng.random(SHAPE), 9) > 0.52, 1, values).astype(np.uint8)
        values[:, :20] = 255
        made.append(write_raster(folder / f"{name}.tif", values, nodata=255))
    return made[0], made[1]


def test_every_pixel_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = masks(tmp_path)
    one, two = (open_raster(path) for path in (before, after))
    old, new = (rasterio.open(path).read(1) for path in (before, after))
    drawn = np.zeros(SHAPE, bool)
    drawn[50:120, 100:222] = True
    for block in (64, 1024):
        monkeypatch.setattr(differences, "_BLOCK", block)
        found = compare_masks(one.on(one.geobox), two.on(two.geobox), lambda roi: drawn[roi])
        seen = old != 255
        assert found.drawn.seen + found.rest.seen == seen.sum()
        for ground, part in ((drawn, found.drawn), (~drawn, found.rest)):
            assert part.gained == (seen & ground & (old == 0) & (new > 0)).sum()
            assert part.lost == (seen & ground & (old > 0) & (new == 0)).sum()
            assert part.share == pytest.approx(((old != new) & ground).sum() / (seen & ground).sum())
        assert found.gained.total.sum() == found.drawn.gained + found.rest.gained
        assert found.lost.valid.sum() == seen.sum()


def test_objects_that_appeared_and_vanished_are_those_without_a_partner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = masks(tmp_path)
    frames = []
    for path in (before, after):
        vectorize(path, tmp_path / f"{path.stem}.fgb")
        frames.append(pyogrio.read_dataframe(tmp_path / f"{path.stem}.fgb"))
    lonely = []
    for own, other in (frames[::-1], frames):
        alone = set(own["id"])
        for name in own["class"].unique():
            mine, theirs = (frame[frame["class"] == name].reset_index(drop=True) for frame in (own, other))
            pairs = match_objects(mine.geometry.to_numpy(), theirs.geometry.to_numpy(), least_iou=0.2)
            alone -= set(mine["id"][pairs.true])
        lonely.append(own[own["id"].isin(alone)])
    for tile in (400, 2048):
        monkeypatch.setattr(differences, "_TILE", tile)
        found = compare_polygons(before, after, tmp_path / "diff.gpkg")
        assert (found.before, found.after) == tuple(map(len, frames))
        for name, count, expected in zip(("appeared", "vanished"), found[2:], lonely, strict=True):
            layer = gpd.read_file(tmp_path / "diff.gpkg", layer=name)
            assert len(layer) == count == len(expected) > 5
            assert set(layer.geometry.normalize().to_wkt()) == set(expected.geometry.normalize().to_wkt())
    assert {path.name for path in tmp_path.glob("diff*")} == {"diff.gpkg"}


def test_masks_without_objects_differ_in_none(tmp_path: Path) -> None:
    empty = write_raster(tmp_path / "empty.tif", np.zeros((40, 50), np.uint8))
    some = write_raster(tmp_path / "some.tif", np.pad(np.ones((8, 8), np.uint8), ((10, 22), (10, 32))))
    assert compare_polygons(empty, empty, tmp_path / "none.gpkg") == (0, 0, 0, 0)
    assert compare_polygons(empty, some, tmp_path / "one.gpkg") == (0, 1, 1, 0)
    assert compare_polygons(some, empty, tmp_path / "one.gpkg") == (1, 0, 0, 1)
