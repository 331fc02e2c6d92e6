"""Laws of reading rasters on grids and of writing them whole."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.warp import Resampling, reproject
from worlds import TOP_LEFT, UTM, noise, north_up, ramp, write_raster

from gimseg.errors import GridError, OutputError, RasterError
from gimseg.rasters import Bands, Pixels, RasterView, metres_per_unit, new_raster, open_raster, write_part
from gimseg.resampling import Axis, resample


def whole(view: RasterView) -> Pixels:
    return view.read((slice(0, view.shape[0]), slice(0, view.shape[1])))


def centre_of_mark(view: RasterView, background: int) -> tuple[float, float]:
    """Ground position (x, y) of what stands out, weighted by how much it does."""
    got = whole(view)
    weight = np.where(got.valid, got.data[0] - background, 0)
    rows, cols = np.indices(weight.shape) + 0.5
    return view.geobox.affine * ((weight * cols).sum() / weight.sum(), (weight * rows).sum() / weight.sum())


# Nothing shifts.


@pytest.mark.parametrize("resolution", [0.37, 0.5, 1.0, 1.1, 2.0, 3.3, 7.9])
@pytest.mark.parametrize("resampling", ["auto", "cubic", "bilinear"])
def test_a_ramp_is_the_same_ramp_at_every_resolution(tmp_path: Path, resolution: float, resampling: str) -> None:
    raster = open_raster(write_raster(tmp_path / "ramp.tif", ramp((240, 260), by_row=2, by_column=3)))
    view = raster.on(raster.grid(resolution), resampling)
    got = whole(view)
    want = ramp(view.shape, by_row=2 * resolution, by_column=3 * resolution)
    inner = (slice(8, -8), slice(8, -8))
    # A mean over pixels is a staircase's: it errs by up to 1/(8 scale) of a pixel, but never to one side.
    assert np.abs(got.data[0] - want)[inner].max() < 0.06 * 5
    assert abs((got.data[0] - want)[inner].mean()) < 0.002 * 5
    assert got.valid[inner].all()


def test_a_grid_moved_by_part_of_a_pixel_reads_the_ramp_there(tmp_path: Path) -> None:
    raster = open_raster(write_raster(tmp_path / "ramp.tif", ramp((90, 90), by_row=2, by_column=3)))
    moved = GeoBox((60, 60), raster.geobox.affine * Affine.translation(10.25, 12.5), raster.crs)
    want = ramp((60, 60), by_row=2, by_column=3, offset=2 * 12.5 + 3 * 10.25)
    assert np.abs(whole(raster.on(moved)).data[0] - want).max() < 1e-3


def test_another_crs_shows_a_mark_at_its_ground_position(tmp_path: Path) -> None:
    array = np.full((200, 200), 10, np.uint8)
    array[60:70, 120:130] = 200
    raster = open_raster(write_raster(tmp_path / "mark.tif", array))
    view = raster.on(raster.geobox.to_crs("EPSG:4326"))
    x, y = centre_of_mark(view, background=10)
    east, north = pyproj.Transformer.from_crs("EPSG:4326", UTM, always_xy=True).transform(x, y)
    assert east == pytest.approx(TOP_LEFT[0] + 125, abs=0.2)
    assert north == pytest.approx(TOP_LEFT[1] - 65, abs=0.2)


def test_a_constant_stays_constant_through_every_filter(tmp_path: Path) -> None:
    raster = open_raster(write_raster(tmp_path / "flat.tif", np.full((70, 90), 137, np.uint8)))
    for resolution in (0.4, 1.7, 5.0):
        got = whole(raster.on(raster.grid(resolution)))
        assert np.abs(got.data[0][got.valid] - 137).max() < 1e-3


@pytest.mark.parametrize(("method", "step"), [("cubic", 0.37), ("bilinear", 0.8), ("average", 3.3), ("average", 2.0)])
def test_filters_agree_with_gdal(method: str, step: float) -> None:
    source = noise((2, 120, 140)).astype(np.float32)
    rows, cols = Axis(10.3, step, 25), Axis(7.1, step, 30)
    got, valid = resample(source, np.ones((120, 140), bool), rows, cols, method)
    want = np.zeros((2, 25, 30), np.float32)
    place = {"src_transform": Affine.identity(), "dst_transform": Affine(step, 0, 7.1, 0, step, 10.3)}
    scale = {"XSCALE": 1 / step, "YSCALE": 1 / step}
    reproject(source, want, src_crs=UTM, dst_crs=UTM, resampling=Resampling[method], tolerance=0, **place, **scale)
    assert valid.all()
    assert np.abs(got - want).max() < 0.01


def dense_weights(axis: Axis, source: int, method: str) -> np.ndarray:
    """The definition: every source pixel's weight in every target pixel, float64 (length, source)."""
    size, pixels, centres = abs(axis.step), np.arange(source), axis.centres()[:, np.newaxis]
    if method == "average":
        low, high = np.maximum(pixels, centres - size / 2), np.minimum(pixels + 1, centres + size / 2)
        weights = np.maximum(high - low, 0)
    else:
        t = np.abs(pixels + 0.5 - centres) / max(size, 1.0)
        near, far = (1.5 * t - 2.5) * t**2 + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
        cubic = np.where(t < 1, near, np.where(t < 2, far, 0))
        weights = np.maximum(1 - t, 0) if method == "bilinear" else cubic
    total = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=np.abs(total) > 1e-9)


@settings(max_examples=300, deadline=None)
@given(
    method=st.sampled_from(["average", "bilinear", "cubic"]),
    source=st.integers(1, 200),
    length=st.integers(1, 80),
    start=st.one_of(st.floats(-30, 230), st.sampled_from([0.0, 1.0, -3.0])),
    step=st.one_of(st.floats(0.05, 6), st.sampled_from([0.5, 1.0, 2.0, 3.0])),
    mirrored=st.booleans(),
)
def test_weights_of_the_few_pixels_in_reach_are_those_of_all(
    method: str, source: int, length: int, start: float, step: float, mirrored: bool
) -> None:
    axis = Axis(start, -step if mirrored else step, length)
    assert np.abs(axis.weights(source, method).toarray() - dense_weights(axis, source, method)).max() < 1e-5


# A pixel's value does not depend on the window.


@pytest.fixture(scope="module")
def patchy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    array = noise((3, 330, 410), seed=1)
    array[:, 100:160, 50:200] = 0
    return write_raster(
        tmp_path_factory.mktemp("patchy") / "patchy.tif", array, nodata=0, tiled=True, blockxsize=64, blockysize=64
    )


@functools.cache
def read_once(path: Path, resolution: float) -> Pixels:
    raster = open_raster(path)
    return whole(raster.on(raster.grid(resolution)))


ROI = st.tuples(st.integers(-40, 330), st.integers(1, 120), st.integers(-40, 410), st.integers(1, 120))


@pytest.mark.parametrize("resolution", [1.0, 0.6, 2.3])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=ROI)
def test_any_window_is_cut_from_the_same_picture(patchy: Path, resolution: float, window: tuple[int, ...]) -> None:
    raster = open_raster(patchy)
    view = raster.on(raster.grid(resolution))
    full = read_once(patchy, resolution)
    top, height, left, width = window
    got = view.read((slice(top, top + height), slice(left, left + width)))
    data = np.zeros((3, height, width), np.float32)
    valid = np.zeros((height, width), bool)
    rows = slice(max(top, 0), max(min(top + height, view.shape[0]), 0))
    cols = slice(max(left, 0), max(min(left + width, view.shape[1]), 0))
    if rows.stop > rows.start and cols.stop > cols.start:
        at = (slice(rows.start - top, rows.stop - top), slice(cols.start - left, cols.stop - left))
        data[:, *at], valid[at] = full.data[:, rows, cols], full.valid[rows, cols]
    # The last row and column of a coarser grid reach over the footprint; beyond them nothing is valid.
    assert got.data.tobytes() == data.tobytes()
    assert (got.valid == valid).all()


@pytest.mark.parametrize("resolution", [0.6, 2.3])
def test_a_crop_of_a_grid_reads_the_same_bytes_as_the_grid(patchy: Path, resolution: float) -> None:
    raster = open_raster(patchy)
    grid = raster.grid(resolution)
    full = whole(raster.on(grid))
    part = whole(raster.on(grid[17:90, 31:140]))
    assert part.data.tobytes() == np.ascontiguousarray(full.data[:, 17:90, 31:140]).tobytes()


def test_threads_and_processes_read_the_same(patchy: Path) -> None:
    raster = open_raster(patchy)
    view = raster.on(raster.grid(1.7))
    want = whole(view)
    views = [view, pickle.loads(pickle.dumps(view)), raster.on(view.geobox)]
    results: list[Pixels] = []
    threads = [threading.Thread(target=lambda v=v: results.append(whole(v))) for v in views * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert all((got.data == want.data).all() and (got.valid == want.valid).all() for got in results)


def test_a_forked_worker_opens_its_own_file(patchy: Path) -> None:
    view = open_raster(patchy).on(open_raster(patchy).geobox)
    want = whole(view).data.sum()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if whole(view).data.sum() == want else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# Validity.


def test_nodata_counts_where_all_bands_hold_it(tmp_path: Path) -> None:
    array = noise((2, 4, 4))
    array[:, 0, 0] = 7
    array[0, 1, 1] = 7
    array[1, 1, 1] = 8
    path = write_raster(tmp_path / "a.tif", array, nodata=7)
    raster = open_raster(path)
    assert raster.nodata == 7
    valid = whole(raster.on(raster.geobox)).valid
    assert not valid[0, 0] and valid[1, 1]
    one = open_raster(path, bands=(1,))
    assert not whole(one.on(one.geobox)).valid[1, 1]


def test_declared_nodata_replaces_the_files_own(tmp_path: Path) -> None:
    array = np.array([[0, 255], [3, 4]], np.uint8)
    raster = open_raster(write_raster(tmp_path / "a.tif", array, nodata=0), nodata=255)
    assert whole(raster.on(raster.geobox)).valid.tolist() == [[True, False], [True, True]]


def test_nodata_that_the_type_cannot_hold_is_ignored_and_said(tmp_path: Path) -> None:
    raster = open_raster(write_raster(tmp_path / "a.tif", noise((4, 4))), nodata=-9999)
    assert whole(raster.on(raster.geobox)).valid.all()
    assert any("-9999" in note and "uint8" in note for note in raster.notes)


def test_nan_and_infinity_in_any_band_are_invalid_and_never_returned(tmp_path: Path) -> None:
    array = np.ones((2, 30, 30), np.float32)
    array[1, 3, 4], array[0, 20, 20] = np.nan, np.inf
    raster = open_raster(write_raster(tmp_path / "a.tif", array))
    native = whole(raster.on(raster.geobox))
    assert (~native.valid).sum() == 2
    for resolution in (1.0, 0.4, 2.5):
        got = whole(raster.on(raster.grid(resolution)))
        assert np.isfinite(got.data).all()
        assert np.allclose(got.data[:, got.valid], 1, atol=1e-5)
        assert (got.data[:, ~got.valid] == 0).all()


def test_float_nodata_of_limited_precision_is_found(tmp_path: Path) -> None:
    array = np.ones((5, 5), np.float32)
    array[2, 2] = -3.4e38
    raster = open_raster(write_raster(tmp_path / "a.tif", array, nodata=-3.4e38))
    assert (~whole(raster.on(raster.geobox)).valid).sum() == 1


def test_an_alpha_band_is_validity_unless_it_was_asked_for(tmp_path: Path) -> None:
    array = noise((4, 200, 200))
    array[3] = 255
    array[3, :50] = 0
    rgba = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    path = write_raster(tmp_path / "a.tif", array, colorinterp=rgba)
    raster = open_raster(path)
    assert raster.bands == (1, 2, 3)
    assert whole(raster.on(raster.geobox)).valid.mean() == 0.75
    every = open_raster(path, bands=(4, 3, 2, 1))
    got = whole(every.on(every.geobox))
    assert got.valid.all() and (got.data == array[::-1]).all()


def test_infrared_tagged_as_alpha_masks_nothing(tmp_path: Path) -> None:
    array = noise((4, 200, 200), low=0)
    rgba = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    path = write_raster(tmp_path / "naip.tif", array, colorinterp=rgba)
    three = open_raster(path)
    assert three.bands == (1, 2, 3) and whole(three.on(three.geobox)).valid.all()
    assert any("band 4" in note and "alpha" in note for note in three.notes)
    four = open_raster(path, bands=(1, 2, 3, 4))
    got = whole(four.on(four.geobox))
    assert got.valid.all() and (got.data == array).all()


@pytest.mark.parametrize("internal", [True, False])
def test_a_mask_inside_or_beside_the_file_is_found(tmp_path: Path, internal: bool) -> None:
    mask = np.ones((40, 40), bool)
    mask[:10] = False
    path = write_raster(tmp_path / "a.tif", noise((3, 40, 40)), mask=mask, internal_mask=internal)
    assert (tmp_path / "a.tif.msk").exists() is not internal
    raster = open_raster(path)
    assert (whole(raster.on(raster.geobox)).valid == mask).all()


def test_invalid_ground_neither_bleeds_nor_grows(tmp_path: Path) -> None:
    array = np.full((100, 100), 100, np.uint8)
    array[:, 40:60] = 0
    raster = open_raster(write_raster(tmp_path / "a.tif", array, nodata=0))
    for resolution in (0.25, 0.7, 2.0, 2.5):
        got = whole(raster.on(raster.grid(resolution)))
        assert np.abs(got.data[0][got.valid] - 100).max() < 0.01
        assert (~got.valid).mean() == pytest.approx(0.2, abs=0.02)


def test_overshoot_stays_within_the_type(tmp_path: Path) -> None:
    array = np.zeros((40, 40), np.uint8)
    array[:, 20:] = 255
    raster = open_raster(write_raster(tmp_path / "a.tif", array))
    data = whole(raster.on(raster.grid(0.3), "cubic")).data
    assert data.min() >= 0 and data.max() <= 255


def bordered(shape: tuple[int, int], seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A picture with a slanted white border, white specks inside, and where it is valid."""
    array = noise((3, *shape), seed=seed, high=250)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    border = rows + cols < min(shape) // 2
    array[:, border] = 255
    array[:, shape[0] // 2 : shape[0] // 2 + 8, shape[1] // 2 : shape[1] // 2 + 8] = 255
    return array, ~border


def test_auto_finds_a_connected_border_and_leaves_white_roofs(tmp_path: Path) -> None:
    array, valid = bordered((300, 400))
    raster = open_raster(write_raster(tmp_path / "a.tif", array), nodata="auto")
    got = whole(raster.on(raster.geobox)).valid
    assert (got == valid).all()
    view = raster.on(raster.geobox)
    assert (view.read((slice(30, 90), slice(10, 200))).valid == valid[30:90, 10:200]).all()
    assert any("border" in note for note in raster.notes)


def test_auto_finds_a_border_on_a_coarse_copy_and_through_jpeg(tmp_path: Path) -> None:
    _, valid = bordered((1200, 5000))
    soft = np.kron(noise((3, 150, 625), low=60, high=160), np.ones((8, 8), np.uint8))
    soft[:, ~valid] = 255
    path = write_raster(tmp_path / "a.tif", soft, compress="jpeg", photometric="ycbcr", tiled=True)
    raster = open_raster(path, nodata="auto")
    got = raster.on(raster.geobox).read((slice(0, 600), slice(0, 600))).valid
    assert got[valid[:600, :600]].all()
    assert got[~valid[:600, :600]].mean() < 0.02


def test_auto_without_a_border_says_so(tmp_path: Path) -> None:
    raster = open_raster(write_raster(tmp_path / "a.tif", noise((3, 64, 64))), nodata="auto")
    assert whole(raster.on(raster.geobox)).valid.all()
    assert any("no border" in note for note in raster.notes)


# Placement.


def test_the_native_grid_reads_the_file_as_it_is(tmp_path: Path) -> None:
    array = noise((3, 50, 60))
    raster = open_raster(write_raster(tmp_path / "a.tif", array))
    got = whole(raster.on(raster.grid()))
    assert (got.data == array).all() and got.data.dtype == np.float32
    assert raster.grid(1.0005) == raster.geobox
    assert (raster.shape, raster.resolution, raster.unit, raster.crs.epsg) == ((50, 60), (1.0, 1.0), "metre", 32633)


def test_bands_come_in_the_order_asked_for(tmp_path: Path) -> None:
    array = noise((4, 8, 8))
    raster = open_raster(write_raster(tmp_path / "a.tif", array, descriptions=list("bgrn")), bands=(3, 1))
    assert raster.band_names == ("r", "b")
    assert (whole(raster.on(raster.geobox)).data == array[[2, 0]]).all()


def test_south_up_is_turned_over_without_a_change_of_values(tmp_path: Path) -> None:
    array = noise((3, 30, 40))
    flipped = Affine(1, 0, TOP_LEFT[0], 0, 1, TOP_LEFT[1] - 30)
    raster = open_raster(write_raster(tmp_path / "a.tif", array, transform=flipped))
    assert raster.geobox.affine == north_up()
    view = raster.on(raster.geobox)
    assert (whole(view).data == array[:, ::-1]).all()
    assert (view.read((slice(3, 9), slice(-2, 5))).data[:, :, 2:] == array[:, ::-1][:, 3:9, :5]).all()
    assert any("south-up" in note for note in raster.notes)


@pytest.mark.parametrize("angle", [30.0, 90.0, 200.0])
def test_a_rotated_raster_shows_its_mark_where_it_lies(tmp_path: Path, angle: float) -> None:
    array = np.full((80, 120), 20, np.uint8)
    array[20:26, 90:96] = 220
    turned = Affine.translation(*TOP_LEFT) * Affine.rotation(angle) * Affine.scale(2, -2)
    raster = open_raster(write_raster(tmp_path / "a.tif", array, transform=turned))
    view = raster.on(raster.geobox)
    got = whole(view)
    x, y = centre_of_mark(view, background=20)
    assert (x, y) == pytest.approx(turned * (93, 23), abs=0.1)
    area = got.valid.sum() * np.prod(raster.resolution)
    assert area == pytest.approx(80 * 120 * 4, rel=0.03)
    assert any("rotated" in note for note in raster.notes)


def test_control_points_place_a_raster(tmp_path: Path) -> None:
    array = np.full((60, 80), 20, np.uint8)
    array[10:14, 50:54] = 220
    place = Affine.translation(*TOP_LEFT) * Affine.rotation(12) * Affine.scale(3, -3)
    corners = [(0, 0), (0, 80), (60, 0), (60, 80), (30, 40)]
    gcps = [GroundControlPoint(row, col, *(place * (col, row))) for row, col in corners]
    raster = open_raster(write_raster(tmp_path / "a.tif", array, gcps=gcps))
    assert any("5 ground control points" in note for note in raster.notes)
    view = raster.on(raster.geobox)
    got = whole(view)
    x, y = centre_of_mark(view, background=20)
    assert (x, y) == pytest.approx(place * (52, 12), abs=0.3)
    part = view.read((slice(5, 40), slice(7, 50)))
    assert (part.data == got.data[:, 5:40, 7:50]).all()


def test_rpcs_place_a_raster(tmp_path: Path) -> None:
    array = np.full((100, 100), 20, np.uint8)
    array[20:24, 70:74] = 220
    line, samp, one = [0.0] * 20, [0.0] * 20, [1.0] + [0.0] * 19
    line[2], samp[1] = -1.0, 1.0  # rows fall with latitude, columns grow with longitude
    rpcs = RPC(
        height_off=0, height_scale=500, lat_off=46.0, lat_scale=0.01, long_off=10.0, long_scale=0.01,
        line_off=50, line_scale=50, samp_off=50, samp_scale=50,
        line_num_coeff=line, line_den_coeff=one, samp_num_coeff=samp, samp_den_coeff=one,
    )  # fmt: skip
    path = write_raster(tmp_path / "a.tif", array, crs=None, transform=Affine.identity(), rpcs=rpcs)
    raster = open_raster(path)
    assert any("RPC" in note for note in raster.notes) and raster.crs.epsg == 4326
    view = raster.on(raster.geobox)
    x, y = centre_of_mark(view, background=20)
    # RPCs count from the centre of the first pixel, not from its corner.
    assert (x, y) == pytest.approx((10.0 + 0.01 * (71.5 - 50) / 50, 46.0 - 0.01 * (21.5 - 50) / 50), abs=2e-5)


def test_without_a_crs_the_rasters_own_coordinates_are_kept(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise((20, 30)), crs=None)
    raster = open_raster(path)
    assert raster.crs is None and any("no CRS" in note for note in raster.notes)
    assert raster.grid(2.0).shape == (10, 15)
    assert whole(raster.on(raster.grid(2.0))).valid.all()
    declared = open_raster(path, crs="EPSG:32633")
    assert declared.crs.epsg == 32633 and not declared.notes
    with pytest.raises(GridError, match="no CRS"):
        raster.on(declared.geobox)
    with pytest.raises(GridError, match="EPSG:4326 was declared"):
        open_raster(write_raster(tmp_path / "b.tif", noise((4, 4))), crs=4326)


def test_a_plain_picture_keeps_its_first_row_on_top(tmp_path: Path) -> None:
    array = noise((3, 20, 30))
    path = write_raster(tmp_path / "a.png", array, crs=None, transform=Affine.identity(), driver="PNG")
    raster = open_raster(path)
    assert raster.unit == "pixel"
    assert (whole(raster.on(raster.geobox)).data == array).all()


def test_resolution_in_metres_on_degrees_and_feet(tmp_path: Path) -> None:
    degrees = open_raster(
        write_raster(
            tmp_path / "d.tif", noise((100, 100)), crs="EPSG:4326", transform=Affine(1e-5, 0, 10, 0, -1e-5, 60)
        )
    )
    grid = degrees.grid(2.0)
    metres = metres_per_unit(degrees.geobox)
    assert -grid.affine.e * metres[0] == pytest.approx(2.0) and grid.affine.a * metres[1] == pytest.approx(2.0)
    assert degrees.unit == "degree" and grid.affine.c == 10 and grid.affine.f == 60
    feet = open_raster(write_raster(tmp_path / "f.tif", noise((100, 100)), crs="EPSG:2263", transform=north_up(1.0)))
    assert feet.grid(0.6096).shape == (50, 50) and "foot" in feet.unit
    for wrong in (0, -1, float("nan")):
        with pytest.raises(GridError, match="above 0"):
            feet.grid(wrong)


def test_labels_are_read_nearest_in_their_own_type(tmp_path: Path) -> None:
    array = np.kron(noise((20, 20), high=5), np.ones((4, 4), np.uint8))
    raster = open_raster(write_raster(tmp_path / "a.tif", array.astype(np.int32)))
    grid = raster.grid(0.5)
    got = raster.on(grid).read_values((slice(0, grid.shape[0]), slice(0, grid.shape[1])))
    assert got.data.dtype == np.int32
    assert (got.data[0] == np.kron(array, np.ones((2, 2)))).all()


@pytest.mark.parametrize("resolution", [0.3, 0.9, 1.5, 3.3, 7.0, 500.0])
def test_every_row_and_column_of_a_grid_has_ground(tmp_path: Path, resolution: float) -> None:
    raster = open_raster(write_raster(tmp_path / "a.tif", noise((47, 61))))
    view = raster.on(raster.grid(resolution))
    assert whole(view).valid.all() or resolution > 61
    assert view.shape == (max(1, round(47 / resolution)), max(1, round(61 / resolution)))


# Refusals.


def test_bad_requests_are_refused_with_what_was_given_and_needed(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise((3, 8, 8)))
    with pytest.raises(RasterError, match=r"\[1, 9\].*bands 1 to 3.*leave out \[9\]"):
        open_raster(path, bands=(1, 9))
    with pytest.raises(RasterError, match="no bands"):
        open_raster(path, bands=())
    with pytest.raises(RasterError, match="number or auto"):
        open_raster(path, nodata="white")
    with pytest.raises(RasterError, match="does not exist"):
        open_raster(tmp_path / "missing.tif")
    with pytest.raises(RasterError, match="folder"):
        open_raster(tmp_path)
    with pytest.raises(RasterError, match="not a file on this machine"):
        open_raster("https://example.com/a.tif")
    with pytest.raises(GridError, match="not understood"):
        open_raster(path, crs="EPSG:nonsense")
    with pytest.raises(GridError, match="resampling"):
        open_raster(path).on(open_raster(path).geobox, "lanczos")
    with pytest.raises(RasterError, match="complex64"):
        open_raster(write_raster(tmp_path / "c.tif", np.ones((4, 4), np.complex64)))


def test_a_vrt_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise((8, 8)))
    vrt = tmp_path / "innocent.tif"
    vrt.write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{path}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(RasterError, match="is a VRT"):
        open_raster(vrt)
    assert open_raster(vrt, allow_vrt=True).shape == (8, 8)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damage_is_named_by_file_and_window(tmp_path: Path, damage: str) -> None:
    whole_file = write_raster(tmp_path / "a.tif", noise((3, 512, 512)), tiled=True, compress="deflate")
    content = bytearray(whole_file.read_bytes())
    path = tmp_path / "damaged.tif"
    half = len(content) // 2
    path.write_bytes(
        content[:half] if damage == "truncated" else content[:half] + b"\xff" * 4000 + content[half + 4000 :]
    )
    with pytest.raises(RasterError, match=r"damaged\.tif.*damaged or incomplete"):
        raster = open_raster(path)
        whole(raster.on(raster.grid(2.0)))


def test_absurd_blocks_are_refused_by_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "giant.tif"
    profile = {"driver": "GTiff", "width": 40_000, "height": 40_000, "count": 1, "dtype": "uint8", "crs": UTM}
    tiles = {"tiled": True, "blockxsize": 40_000, "blockysize": 40_000, "sparse_ok": True, "compress": "deflate"}
    with rasterio.open(path, "w", transform=north_up(), **profile, **tiles):
        pass
    with pytest.raises(RasterError, match=r"40000 x 40000 pixels, 1\.5 GiB"):
        open_raster(path)


# Writing.


def grid_of(shape: tuple[int, int], resolution: float = 0.5) -> GeoBox:
    return GeoBox(shape, north_up(resolution), UTM)


def test_what_is_written_in_windows_reads_back(tmp_path: Path) -> None:
    array = noise((1100, 700), low=0, high=3)
    path = tmp_path / "mask.tif"
    colours = {1: (255, 0, 0, 255), 255: (0, 0, 0, 0)}
    names = {0: "background", 1: "roof & wall", 2: "tree"}
    bands = Bands(nodata=255, colours=colours, categories=names)
    with new_raster(path, grid_of(array.shape), bands, tags={"MODEL": "m"}) as out:
        for top in range(0, 1100, 512):
            rows = slice(top, min(top + 512, 1100))
            out.write(array[rows], (rows, slice(0, 700)))
    raster = open_raster(path)
    assert (whole(raster.on(raster.geobox)).data[0] == array).all()
    assert raster.geobox == grid_of(array.shape)
    with rasterio.open(path) as dataset:
        assert dataset.overviews(1) == [2, 4] and dataset.tags()["MODEL"] == "m"
        assert dataset.tags()["class_1"] == "roof & wall" and dataset.colormap(1)[1] == (255, 0, 0, 255)
        assert set(np.unique(dataset.read(1, out_shape=(275, 175)))) <= {0, 1, 2}
    assert "roof &amp; wall" in (tmp_path / "mask.tif.aux.xml").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mask.tif", "mask.tif.aux.xml"]


def test_a_part_reads_back_and_replaces(tmp_path: Path) -> None:
    for array in (noise((3, 100, 90)), noise((70, 80)).astype(np.float32)):
        path = tmp_path / "part.tif"
        write_part(path, array, grid_of(array.shape[-2:]), nodata=None)
        raster = open_raster(path)
        assert (whole(raster.on(raster.geobox)).data == array).all()
    with pytest.raises(OutputError, match="100, 90"):
        write_part(path, noise((100, 90)), grid_of((90, 100)))
    assert [p.name for p in tmp_path.iterdir()] == ["part.tif"]


def test_a_grid_without_crs_can_be_written(tmp_path: Path) -> None:
    with new_raster(tmp_path / "a.tif", GeoBox((8, 8), north_up(), None)) as out:
        out.write(noise((8, 8)), (slice(0, 8), slice(0, 8)))
    assert open_raster(tmp_path / "a.tif").crs is None


def test_a_failed_run_leaves_nothing_and_an_output_is_never_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with pytest.raises(ZeroDivisionError), new_raster(path, grid_of((8, 8))) as out:
        out.write(noise((8, 8)), (slice(0, 8), slice(0, 8)))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(OutputError, match=r"given \(1, 4, 4\), needed \(1, 8, 8\)"),
        new_raster(path, grid_of((8, 8))) as out,
    ):
        out.write(noise((4, 4)), (slice(0, 8), slice(0, 8)))
    with pytest.raises(OutputError, match="does not lie inside"), new_raster(path, grid_of((8, 8))) as out:
        out.write(noise((4, 4)), (slice(6, 10), slice(0, 4)))
    assert list(tmp_path.iterdir()) == []
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists"), new_raster(path, grid_of((8, 8))):
        pass
    assert path.read_text() == "mine"


def test_a_file_that_was_cut_short_when_closed_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gimseg.raster_output as raster_output

    def cut_short(path: Path, *_: object) -> None:
        os.truncate(path, path.stat().st_size // 2)

    monkeypatch.setattr(raster_output, "_build_overviews", cut_short)
    with pytest.raises(OutputError, match="disk full"), new_raster(tmp_path / "a.tif", grid_of((600, 600))) as out:
        out.write(noise((600, 600)), (slice(0, 600), slice(0, 600)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [100_000, 300_000, 520_000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, limit: int) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no limit on the size of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OutputError, match="disk full"), new_raster(tmp_path / "a.tif", grid_of((1024, 512))) as out:
            for top in (0, 512):
                out.write(noise((512, 512)), (slice(top, top + 512), slice(0, 512)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.full((8, 8), 1, np.uint8))
    view = open_raster(path).on(open_raster(path).geobox)
    assert whole(view).data.max() == 1
    shutil.move(write_raster(tmp_path / "b.tif", np.full((8, 8), 2, np.uint8)), path)
    assert whole(view).data.max() == 2


@pytest.mark.parametrize("resolution", [0.7, 2.0, 3.3])
def test_a_file_in_strips_reads_as_one_in_tiles(resolution: float, tmp_path: Path) -> None:
    image = noise((3, 200, 900))
    strips = write_raster(tmp_path / "strips.tif", image, blockysize=1)
    tiles = write_raster(tmp_path / "tiles.tif", image, tiled=True, blockxsize=64, blockysize=64)
    assert [open_raster(path).file.in_strips for path in (strips, tiles)] == [True, False]
    views = [raster.on(raster.grid(resolution)) for raster in map(open_raster, (strips, tiles))]
    roi = (slice(5, 60), slice(-3, views[0].shape[1]))
    one, other = (view.read(roi) for view in views)
    assert np.array_equal(one.data, other.data)
    assert np.array_equal(one.valid, other.valid)


def test_what_was_never_written_is_known_to_be_empty_without_a_read(tmp_path: Path) -> None:
    image = np.zeros((256, 256), np.uint8)
    image[:64, :64] = 7
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "SPARSE_OK": True}
    declared = open_raster(write_raster(tmp_path / "sparse.tif", image, nodata=0, **options)).file
    assert not declared.is_empty((slice(0, 10), slice(0, 10)))
    assert not declared.is_empty((slice(60, 70), slice(0, 10)))
    assert declared.is_empty((slice(64, 256), slice(0, 256)))
    assert declared.is_empty((slice(300, 400), slice(0, 10)))
    # Without a nodata value they are black ground.
    assert not open_raster(write_raster(tmp_path / "black.tif", image, **options)).file.is_empty(
        (slice(64, 256), slice(0, 256))
    )
    masked = open_raster(write_raster(tmp_path / "masked.tif", image + 1, mask=image > 0)).file
    assert masked.is_empty((slice(64, 256), slice(0, 256)))
    assert not masked.is_empty((slice(0, 256), slice(0, 256)))


_THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from rasterio.features import rasterize
from gimseg.rasters import open_raster

square = {"type": "Polygon", "coordinates": [[(1, 1), (1, 9), (9, 9), (9, 1), (1, 1)]]}

def work(number):
    for _ in range(600):
        rasterize([(square, 1)], (10, 10)) if number % 2 else open_raster(sys.argv[1])

with ThreadPoolExecutor(4) as threads:
    list(threads.map(work, range(4)))
"""


def test_threads_that_open_and_burn_together_say_nothing_of_rasters_without_a_place(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.tif"
    with rasterio.open(path, "w", driver="GTiff", width=8, height=8, count=1, dtype="uint8") as dataset:
        dataset.write(np.ones((1, 8, 8), np.uint8))
    run = subprocess.run([sys.executable, "-W", "error", "-c", _THREADS, str(path)], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
