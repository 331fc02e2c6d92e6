"""Laws of arrays as rasters: they read as the file that holds the same pixels does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from worlds import TOP_LEFT, UTM, noise, north_up, write_raster

from gimseg.arrays import array_raster, from_xarray, is_xarray
from gimseg.errors import GridError, RasterError
from gimseg.rasters import open_raster

SOUTH_UP = Affine(1, 0, TOP_LEFT[0], 0, 1, TOP_LEFT[1])
TURNED = Affine.translation(*TOP_LEFT) @ Affine.rotation(20) @ Affine.scale(1, -1)


@pytest.mark.parametrize("transform", [north_up(), SOUTH_UP, TURNED], ids=["north", "south", "turned"])
@pytest.mark.parametrize("resolution", [None, 0.7, 1.9])
def test_an_array_reads_as_its_file_does(transform: Affine, resolution: float | None, tmp_path: Path) -> None:
    image = noise((3, 60, 80))
    image[:, 10:20, 30:40] = 0
    file = open_raster(write_raster(tmp_path / "a.tif", image, transform=transform, nodata=0), bands=(3, 1))
    array = array_raster(image, GeoBox(image.shape[1:], transform, UTM), bands=(3, 1), nodata=0)
    assert array.grid(resolution) == file.grid(resolution)
    for roi in ((slice(0, 30), slice(0, 40)), (slice(-9, 20), slice(35, 120)), (slice(-9, -3), slice(0, 5))):
        one, other = (raster.on(raster.grid(resolution)).read(roi) for raster in (array, file))
        assert np.array_equal(one.data, other.data) and np.array_equal(one.valid, other.valid)


def test_nan_is_invalid() -> None:
    image = np.array([[1.0, np.nan], [np.inf, 2.0]], np.float32)
    raster = array_raster(image, GeoBox((2, 2), north_up(), UTM))
    pixels = raster.on(raster.grid()).read((slice(0, 2), slice(0, 2)))
    assert pixels.valid.tolist() == [[True, False], [False, True]] and np.isfinite(pixels.data).all()


def test_what_does_not_fit_is_refused() -> None:
    geobox = GeoBox((4, 5), north_up(), UTM)
    with pytest.raises(GridError, match=r"\(5, 4\) rows and columns on a grid of \(4, 5\)"):
        array_raster(np.zeros((1, 5, 4)), geobox)
    with pytest.raises(RasterError, match="4 dimensions"):
        array_raster(np.zeros((1, 1, 4, 5)), geobox)
    with pytest.raises(RasterError, match="bands 1 to 2"):
        array_raster(np.zeros((2, 4, 5)), geobox, bands=(3,))


def test_xarray_objects_bring_their_grid_and_nodata() -> None:
    odc_xr = pytest.importorskip("odc.geo.xr", reason="needs dask")
    import xarray

    geobox = GeoBox((20, 30), north_up(), UTM)
    image = noise((2, 20, 30))
    bands = [odc_xr.wrap_xr(band, geobox, nodata=0) for band in image]
    stack = xarray.concat(bands, "band")
    assert is_xarray(stack) and not is_xarray(image)
    for given in (stack, stack.transpose("y", "x", "band"), xarray.Dataset({"red": bands[0], "green": bands[1]})):
        values, found, nodata = from_xarray(given)
        assert np.array_equal(values, image) and found == geobox and nodata in (0, None)
    assert from_xarray(stack)[2] == 0
    with pytest.raises(GridError, match="no grid"):
        from_xarray(xarray.DataArray(image, dims=("band", "line", "sample")))
    with pytest.raises(GridError, match="rows, columns and one of bands"):
        from_xarray(stack.expand_dims("time"))
