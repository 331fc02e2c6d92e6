"""Real rasters that break naive code: each is read rightly, or refused with an error that helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from test_rasters import whole

from gimseg.errors import RasterError
from gimseg.rasters import open_raster

pytestmark = pytest.mark.real_data

# name: (bands read, share of valid pixels, what the notes must mention)
READABLE: dict[str, tuple[tuple[int, ...], float, str]] = {
    "RGB.byte.tif": ((1, 2, 3), 0.675, ""),
    "all-nodata.tif": ((1, 2, 3, 4), 0.0, ""),
    "alpha.tif": ((1, 2, 3), 0.015, ""),
    "au-3577-rotated.tif": ((1,), 0.304, "rotated"),
    "byte.tif": ((1,), 1.0, ""),
    "cog_dateline.tif": ((1,), 1.0, ""),
    "cog_gcps.tif": ((1,), 0.705, "210 ground control points"),
    "cog_nodata_nan.tif": ((1,), 0.489, ""),
    "float_nan.tif": ((1,), 5 / 6, "no CRS"),
    "heights/hag.tif": ((1,), 1.0, ""),
    "inverted_lat.tif": ((1,), 0.0, "south-up"),
    "pix4d_alpha_nodata.tif": ((1, 2, 3), 0.876, ""),
    "planet4band/image.tif": ((1, 2, 3, 4), 0.843, ""),
    "rotated.tif": ((1,), 0.494, "no CRS"),
    "sample_geotiff_custom_proj.tif": ((1, 2, 3), 1.0, ""),
}


@pytest.mark.parametrize("name", READABLE)
def test_an_odd_raster_is_read_rightly(real_data: Path, name: str) -> None:
    bands, share, note = READABLE[name]
    raster = open_raster(real_data / "odd" / name)
    got = whole(raster.on(raster.grid()))
    assert raster.bands == bands
    assert got.valid.mean() == pytest.approx(share, abs=0.002)
    assert np.isfinite(got.data).all() and (got.data[:, ~got.valid] == 0).all()
    assert note in " ".join(raster.notes) if note else not raster.notes


def native(path: Path, **options: Any) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(**options)


@pytest.mark.parametrize("name", ["RGB.byte.tif", "byte.tif", "cog_dateline.tif", "sample_geotiff_custom_proj.tif"])
def test_ordinary_ones_are_read_as_they_are(real_data: Path, name: str) -> None:
    raster = open_raster(real_data / "odd" / name)
    got = whole(raster.on(raster.geobox))
    assert (got.data == native(real_data / "odd" / name) * got.valid).all()


def test_the_dateline_raster_lies_where_its_file_says(real_data: Path) -> None:
    raster = open_raster(real_data / "odd" / "cog_dateline.tif")
    assert raster.crs.epsg == 32660 and raster.bounds[0] == pytest.approx(570585)
    view = raster.on(raster.grid(1000.0))
    assert view.shape == (236, 233)
    assert whole(view).valid.mean() > 0.98


def test_a_crs_without_a_code_is_kept(real_data: Path) -> None:
    raster = open_raster(real_data / "odd" / "sample_geotiff_custom_proj.tif")
    assert raster.crs is not None and raster.crs.epsg is None and raster.unit == "metre"
    assert raster.grid(60.0).shape == (256, 256)


def test_control_points_carry_their_own_crs(real_data: Path) -> None:
    raster = open_raster(real_data / "odd" / "cog_gcps.tif")
    assert raster.crs.epsg == 4326 and raster.unit == "degree"
    with rasterio.open(real_data / "odd" / "cog_gcps.tif") as dataset:
        points = dataset.gcps[0]
    left, bottom, right, top = raster.bounds
    inside = [left <= point.x <= right and bottom <= point.y <= top for point in points]
    assert np.mean(inside) > 0.9


def test_a_palette_is_read_as_indices_and_says_so(real_data: Path) -> None:
    raster = open_raster(real_data / "odd" / "cog_cmap.tif")
    assert raster.shape == (8704, 7168) and "colour table" in raster.notes[0]
    part = raster.on(raster.geobox).read_values((slice(4000, 4400), slice(3000, 3400)))
    assert part.data.dtype == np.uint8 and part.data.max() <= 12
    with pytest.raises(RasterError, match="expand its colour table"):
        open_raster(raster.path, bands=(1, 2, 3))


def test_a_vrt_needs_to_be_trusted(real_data: Path) -> None:
    path = real_data / "odd" / "RGB.byte.gcp.vrt"
    with pytest.raises(RasterError, match="allow_vrt=True"):
        open_raster(path)
    raster = open_raster(path, allow_vrt=True)
    assert raster.crs.epsg == 4326 and "4 ground control points" in raster.notes[0]
    assert whole(raster.on(raster.geobox)).valid.mean() == pytest.approx(0.493, abs=0.01)


def test_a_corrupt_file_opens_and_the_read_names_file_and_window(real_data: Path) -> None:
    raster = open_raster(real_data / "odd" / "corrupt.tif")
    with pytest.raises(RasterError, match=r"corrupt\.tif: rows 0 to 1024, columns 0 to 1024 cannot be read"):
        whole(raster.on(raster.geobox))


@pytest.mark.parametrize("name", ["empty.geojson", "geotiff_custom_proj_labels.geojson", "heights/buildings.geojson"])
def test_what_is_no_raster_is_refused(real_data: Path, name: str) -> None:
    with pytest.raises(RasterError, match=r"empty \(0 bytes\)|no raster"):
        open_raster(real_data / "odd" / name)


def test_infrared_is_there_for_the_asking_in_every_tile(real_data: Path) -> None:
    for path in sorted((real_data / "trees_rgbn").glob("*.tif")):
        raster = open_raster(path, bands=(1, 2, 3, 4))
        got = whole(raster.on(raster.geobox))
        assert got.valid.all(), path
        assert (got.data == native(path)).all()
        three = open_raster(path, bands=(1, 2, 3))
        assert whole(three.on(three.geobox)).valid.all(), path


def test_infrared_tagged_alpha_in_the_four_band_buildings(real_data: Path) -> None:
    path = next((real_data / "buildings_rgbn").glob("*.tif"))
    raster = open_raster(path, bands=(1, 2, 3, 4))
    assert "alpha" in " ".join(raster.notes)
    assert whole(raster.on(raster.geobox)).data.shape == (4, 496, 508)


def test_the_white_border_and_gap_of_the_big_one_are_found(real_data: Path) -> None:
    path = real_data / "banepa_big" / "banepa_big.tif"
    plain = open_raster(path)
    assert plain.file.border is None and not plain.notes
    raster = open_raster(path, nodata="auto")
    assert "(255, 255, 255)" in raster.notes[0] and "1 large gap" in raster.notes[0]
    view = raster.on(raster.geobox)
    corner = view.read((slice(0, 700), slice(10900, 11264)))
    assert not corner.valid[200:500, -100:].any()
    # The place of the picture decides, not the window it is read with.
    again = view.read((slice(300, 400), slice(11000, 11100)))
    assert (again.valid == corner.valid[300:400, 100:200]).all()
    assert not view.read((slice(6200, 6400), slice(8750, 8850))).valid.any()
    middle = view.read((slice(3000, 3600), slice(4000, 4600)))
    assert middle.valid.all()
    coarse = raster.on(raster.grid(1.5)).read((slice(0, 70), slice(1086, 1121)))
    assert coarse.valid.mean() == pytest.approx(corner.valid.mean(), abs=0.02)


def test_the_nodata_row_of_the_sentinel_scene_is_invalid(real_data: Path) -> None:
    raster = open_raster(real_data / "landcover_s2" / "sen2_20210527_aber.tif")
    got = whole(raster.on(raster.geobox))
    assert got.data.shape == (10, 947, 930)
    rows = np.nonzero(~got.valid.any(axis=1))[0]
    assert len(rows) == 1
    assert got.valid.mean() == pytest.approx(1 - 1 / 947, abs=1e-4)


def test_int16_with_nodata_zero(real_data: Path) -> None:
    raster = open_raster(next((real_data / "buildings_int16").glob("*.tif")))
    assert (raster.dtype, raster.nodata, raster.crs.epsg) == ("int16", 0.0, 3857)
    assert 0.5 < whole(raster.on(raster.grid())).valid.mean() <= 1


def test_two_resolutions_of_a_real_scene_show_the_same_ground(real_data: Path) -> None:
    raster = open_raster(real_data / "buildings" / "kampala_ug_00.tif")
    fine = whole(raster.on(raster.grid()))
    blocks = fine.data.reshape(3, 128, 4, 128, 4).mean(axis=(2, 4))
    full = fine.valid.reshape(128, 4, 128, 4).all(axis=(1, 3))
    left, _, _, top = raster.bounds
    size = raster.resolution[1] * 4
    grid = raster.grid(size)
    assert grid.shape == (128, 128) and (grid.affine.c, grid.affine.f) == (left, top)
    assert full.mean() > 0.9
    assert np.abs(whole(raster.on(grid)).data - blocks)[:, full].max() < 0.01
