"""Laws of splitting: necks are cut, nothing else; all pixels stay; it depends on nothing but the object."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from test_tracing import WORLDS
from worlds import write_raster

from gimseg import instances
from gimseg.errors import GridError, RasterError, TilingError
from gimseg.instances import Splitter
from gimseg.tracing import Traced, trace
from gimseg.vectorization import vectorize

ROWS, COLUMNS = np.indices((120, 160))


def disc(row: float, column: float, radius: float) -> np.ndarray:
    return np.hypot(ROWS - row, COLUMNS - column) < radius


def split(mask: np.ndarray, splitter: Splitter | None = None, rows: int = 1000) -> Traced:
    strips = np.split(mask.astype(np.uint8), range(rows, len(mask), rows))
    groups = (splitter or Splitter((1, 1))).stream(trace(strips))
    return Traced(*(np.concatenate(parts) for parts in zip(*groups, strict=True)))


def texts(found: Traced) -> list[str]:
    return sorted(shapely.normalize(one).wkt for one in found.polygons)


@pytest.mark.parametrize("scale", [1, 3])
def test_two_crowns_are_two_whatever_the_size_of_a_pixel(scale: int) -> None:
    mask = np.kron(disc(60, 40, 22) | disc(60, 80, 24), np.ones((scale, scale), bool))
    found = split(mask)
    assert len(found.values) == 2
    left, right = sorted(found.polygons, key=lambda one: one.centroid.x)
    assert left.contains(shapely.Point(40 * scale, 60 * scale)) and right.contains(
        shapely.Point(80 * scale, 60 * scale)
    )
    assert left.intersection(right).length < 30 * scale


@pytest.mark.parametrize(
    "mask",
    [
        disc(60, 60, 40),
        (ROWS > 10) & (ROWS < 40) & (COLUMNS > 20) & (COLUMNS < 150),
        ((ROWS < 100) & (COLUMNS < 30)) | ((ROWS > 70) & (ROWS < 100) & (COLUMNS < 140)),
        disc(60, 60, 50) & ~disc(60, 60, 20),
    ],
    ids=["disc", "bar", "L", "ring"],
)
def test_what_has_no_neck_stays_whole(mask: np.ndarray) -> None:
    assert len(split(mask).values) == 1


@pytest.mark.parametrize("name", WORLDS)
def test_all_pixels_stay_once_and_strips_do_not_matter(name: str) -> None:
    mask = WORLDS[name]
    found = split(mask)
    assert shapely.is_valid(found.polygons).all()
    assert shapely.area(found.polygons).sum() == (mask > 0).sum()
    assert shapely.union_all(found.polygons).area == (mask > 0).sum()
    assert texts(found) == texts(split(mask, rows=7))


def test_pixels_that_are_not_square_are_measured_on_the_ground() -> None:
    """Two discs on the ground, of pixels half as high as wide."""
    round_ = disc(60, 40, 22) | disc(60, 80, 24)
    assert len(split(np.repeat(round_, 2, axis=0), Splitter((1.0, 0.5))).values) == 2
    assert len(split(np.repeat(disc(60, 60, 40), 2, axis=0), Splitter((1.0, 0.5))).values) == 1


def test_an_object_that_is_too_large_stays_whole_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "LARGEST", 50)
    splitter = Splitter((1, 1))
    assert len(split(disc(60, 40, 22) | disc(60, 80, 24), splitter).values) == 1
    assert splitter.left_whole == 1


def test_probabilities_split_what_has_no_neck(tmp_path: Path) -> None:
    mask = ((ROWS > 20) & (ROWS < 60) & (COLUMNS > 20) & (COLUMNS < 120)).astype(np.uint8)
    shares = np.where(mask, 0.95 - 0.4 * (np.abs(COLUMNS - 70) < 3), 0.1).astype(np.float32)
    labels = write_raster(tmp_path / "mask.tif", mask)
    landscape = write_raster(tmp_path / "shares.tif", shares)
    for options, count in (
        ({"instances": "distance"}, 1),
        ({"instances": "probability", "probabilities": landscape}, 2),
    ):
        done = vectorize(labels, tmp_path / f"{options['instances']}.gpkg", **options)
        assert done.count == count
    by_threshold = vectorize(landscape, tmp_path / "threshold.gpkg", threshold=0.5, instances="probability")
    assert by_threshold.count == 2
    found = gpd.read_file(tmp_path / "threshold.gpkg", layer="polygons")
    assert found.area.sum() == mask.sum()


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    labels = write_raster(tmp_path / "mask.tif", np.ones((20, 20), np.uint8))
    smaller = write_raster(tmp_path / "shares.tif", np.ones((10, 10), np.float32))
    out = tmp_path / "out.gpkg"
    with pytest.raises(RasterError, match="--probabilities"):
        vectorize(labels, out, instances="probability")
    with pytest.raises(GridError, match="another grid"):
        vectorize(labels, out, instances="probability", probabilities=smaller)
    for options in (
        {"instances": "colour"},
        {"instances": "distance", "connectivity": 8},
        {"instances": "distance", "coverage": True, "simplify_m": 1},
        {"connectivity": 8, "coverage": True, "simplify_m": 1},
        {"connectivity": 6},
    ):
        with pytest.raises(TilingError):
            vectorize(labels, out, **options)
    assert not out.exists()
