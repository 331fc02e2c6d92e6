"""Arrays in memory as rasters: numpy arrays with a grid, xarray objects with theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS

from gimseg.errors import GridError, RasterError
from gimseg.legend import UNLABELLED, Legend
from gimseg.raster_files import Pixels, Roi, is_nodata
from gimseg.raster_views import Placement
from gimseg.rasters import Raster, north_up_grid

if TYPE_CHECKING:
    import xarray

_NAME = "the array"


@dataclass(frozen=True, eq=False)
class ArrayPixels:
    """Native pixels of an array.

    Args:
        data: (bands, rows, cols).
        nodata: value of pixels that are invalid where all bands hold it; NaN always is.
        bands: 1-based numbers of the bands that are read.
    """

    data: np.ndarray
    nodata: float | None
    bands: tuple[int, ...]
    path: str = _NAME

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return (int(self.data.shape[1]), int(self.data.shape[2]))

    @property
    def dtype(self) -> str:
        """Of the pixels."""
        return str(self.data.dtype.name)

    @property
    def in_strips(self) -> bool:
        """Any part of an array costs itself alone."""
        return False

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that are read as one."""
        return (256, 256)

    def is_there(self) -> bool:
        """An array is."""
        return True

    def is_empty(self, roi: Roi) -> bool:
        """Whether the region lies beyond the array."""
        return any(part.stop <= 0 or part.start >= size for part, size in zip(roi, self.shape, strict=True))

    def read(self, roi: Roi) -> Pixels:
        """Native values, shape (bands, rows, cols) of `dtype`, and their validity; nothing is beyond the edges."""
        rows, cols = (slice(max(part.start, 0), max(part.stop, 0)) for part in roi)
        inner = self.data[:, rows, cols][[band - 1 for band in self.bands]]
        shape = (max(roi[0].stop - roi[0].start, 0), max(roi[1].stop - roi[1].start, 0))
        out = Pixels(np.zeros((len(self.bands), *shape), self.data.dtype), np.zeros(shape, bool))
        place = tuple(
            slice(max(-part.start, 0), max(-part.start, 0) + size)
            for part, size in zip(roi, inner.shape[1:], strict=True)
        )
        valid = ~is_nodata(inner, (self.nodata,) * len(self.bands))
        if inner.dtype.kind == "f":
            valid &= np.isfinite(inner).all(axis=0)
        out.valid[place] = valid
        np.copyto(out.data[:, *place], inner, where=valid)
        return out


@dataclass(frozen=True, eq=False)
class PredictedArray:
    """What was predicted of an array.

    Args:
        geobox: grid of the result.
        legend: of the classes.
        classes: raster values, uint8 (rows, cols), 255 where there is no image.
        probabilities: float32 (classes, rows, cols) in legend order, NaN where there is no image; None: not asked for.
        uncertainty: float32 (rows, cols), NaN where there is no image; None: not asked for.
        notes: what a person should know.
    """

    geobox: GeoBox
    legend: Legend
    classes: np.ndarray
    probabilities: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def to_xarray(self) -> xarray.Dataset:
        """Variables ``classes``, ``probabilities`` (by class) and ``uncertainty`` with coordinates and CRS.

        Raises:
            GridError: xarray or what odc-geo needs for it is not installed.
        """
        odc_xr, xarray = _import_xarray()
        found = {"classes": odc_xr.wrap_xr(self.classes, self.geobox, nodata=UNLABELLED)}
        if self.uncertainty is not None:
            found["uncertainty"] = odc_xr.wrap_xr(self.uncertainty, self.geobox)
        if self.probabilities is not None:
            planes = [odc_xr.wrap_xr(plane, self.geobox) for plane in self.probabilities]
            found["probabilities"] = xarray.concat(planes, xarray.Variable("class", list(self.legend.names)))
        return xarray.Dataset(found)


def array_raster(
    array: np.ndarray, geobox: GeoBox, *, bands: Sequence[int] | None = None, nodata: float | None = None
) -> Raster:
    """An array as a raster, as if it had been read from a file.

    Args:
        array: (bands, rows, cols) or (rows, cols).
        geobox: where it lies; any affine grid, rotated and south-up ones too.
        bands: 1-based numbers of the bands to read; all by default.
        nodata: value that marks invalid pixels where all bands hold it; NaN always is.

    Raises:
        RasterError: array and bands do not fit.
        GridError: array and grid do not fit.

    Example:
        >>> geobox = GeoBox((2, 3), Affine(1, 0, 0, 0, -1, 0), "EPSG:32633")
        >>> raster = array_raster(np.arange(12, dtype="uint8").reshape(2, 2, 3), geobox, bands=(2,))
        >>> raster.on(raster.grid()).read((slice(0, 1), slice(0, 3))).data.tolist()
        [[[6.0, 7.0, 8.0]]]
    """
    array = array[np.newaxis] if array.ndim == 2 else array
    if array.ndim != 3:
        raise RasterError(f"an array of {array.ndim} dimensions: (bands, rows, columns) are needed")
    if array.shape[1:] != tuple(geobox.shape):
        raise GridError(f"an array of {array.shape[1:]} rows and columns on a grid of {tuple(geobox.shape)}")
    chosen = tuple(bands or range(1, len(array) + 1))
    if not all(1 <= band <= len(array) for band in chosen):
        raise RasterError(f"bands {chosen} were asked for: the array has bands 1 to {len(array)}")
    notes: list[str] = []
    crs = None if geobox.crs is None else CRS.from_wkt(geobox.crs.to_wkt())
    transform = Affine(*tuple(geobox.affine)[:6])
    shape = (int(array.shape[1]), int(array.shape[2]))
    return Raster(
        path=_NAME,
        geobox=north_up_grid(transform, shape, crs, notes),
        bands=chosen,
        band_names=tuple(f"band {band}" for band in chosen),
        dtype=array.dtype.name,
        nodata=nodata,
        notes=tuple(notes),
        file=ArrayPixels(array, nodata, chosen),
        placement=Placement(crs, transform=transform),
    )


def is_xarray(array: object) -> bool:
    """Whether this is a DataArray or a Dataset of xarray, without importing it."""
    return type(array).__module__.partition(".")[0] == "xarray"


def from_xarray(array: xarray.DataArray | xarray.Dataset) -> tuple[np.ndarray, GeoBox, float | None]:
    """Pixels (bands, rows, cols), grid and nodata value of an xarray object.

    The grid is what odc-geo finds in its coordinates. The variables of a Dataset are
    its bands. All of it is loaded.

    Raises:
        GridError: odc-geo finds no grid, or other dimensions than one of bands are left.
    """
    _, xarray = _import_xarray()
    if isinstance(array, xarray.Dataset):
        array = array.to_array("band")
    geobox, spatial = array.odc.geobox, array.odc.spatial_dims
    if not isinstance(geobox, GeoBox) or spatial is None:
        raise GridError(
            "the xarray object has no grid that odc-geo can find: give it coordinates at even steps and a CRS "
            "(array.odc.assign_crs)"
        )
    others = [name for name in array.dims if name not in spatial]
    if len(others) > 1:
        raise GridError(f"the xarray object has the dimensions {array.dims}: rows, columns and one of bands are needed")
    nodata = array.odc.nodata
    values = np.asarray(array.transpose(*others, *spatial).values)
    return values, geobox, None if nodata is None or math.isnan(nodata) else float(nodata)


def _import_xarray() -> tuple[Any, Any]:
    # Late, and optional: it takes a second, and odc-geo needs dask for it.
    try:
        import odc.geo.xr
        import xarray
    except ImportError as error:
        raise GridError(f"xarray objects need the extra gimseg[xarray] ({error.name} is missing)") from error
    return odc.geo.xr, xarray
