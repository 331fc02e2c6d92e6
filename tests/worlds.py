"""Small worlds made for tests: rasters of any kind, written where a test says.

Plain functions: `from worlds import write_raster, ramp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

UTM = "EPSG:32633"
TOP_LEFT = (500_000.0, 5_000_000.0)


def north_up(resolution: float = 1.0, *, left: float = TOP_LEFT[0], top: float = TOP_LEFT[1]) -> Affine:
    """The transform of a north-up raster with square pixels; (left, top) is its outer corner."""
    return Affine(resolution, 0, left, 0, -resolution, top)


def write_raster(
    path: Path,
    array: np.ndarray,
    *,
    crs: str | None = UTM,
    transform: Affine | None = None,
    nodata: float | None = None,
    colorinterp: Sequence[ColorInterp] | None = None,
    mask: np.ndarray | None = None,
    colormap: dict[int, tuple[int, int, int, int]] | None = None,
    gcps: Sequence[GroundControlPoint] | None = None,
    descriptions: Sequence[str] | None = None,
    internal_mask: bool = True,
    **profile: Any,
) -> Path:
    """Write a raster of shape (rows, cols) or (bands, rows, cols); 1 m pixels in UTM unless told otherwise.

    Args:
        mask: bool (rows, cols), True where valid; internal, or a `.msk` beside the file.
        profile: any other creation option (`driver`, `tiled`, `blockxsize`, `compress`, ...).
    """
    array = array[np.newaxis] if array.ndim == 2 else array
    count, height, width = array.shape
    place: dict[str, Any] = {"crs": crs, "transform": transform or north_up()}
    if gcps is not None:
        place = {"crs": crs, "gcps": list(gcps)}
    options: dict[str, Any] = {"driver": "GTiff", "dtype": array.dtype, "nodata": nodata} | place | profile
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal_mask),
        rasterio.open(path, "w", count=count, height=height, width=width, **options) as dataset,
    ):
        dataset.write(array)
        if colorinterp is not None:
            dataset.colorinterp = list(colorinterp)
        if mask is not None:
            dataset.write_mask(mask)
        if colormap is not None:
            dataset.write_colormap(1, colormap)
        for band, description in enumerate(descriptions or (), 1):
            dataset.set_band_description(band, description)
    return path


def ramp(shape: tuple[int, int], *, by_row: float = 1.0, by_column: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """float32 (rows, cols) whose value at the pixel coordinate (y, x) is offset + by_row * y + by_column * x.

    Pixel centres lie at half numbers, so the first pixel holds offset + (by_row + by_column) / 2.
    """
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return (offset + by_row * y + by_column * x).astype(np.float32)


def noise(shape: tuple[int, ...], *, seed: int = 0, low: int = 1, high: int = 255, dtype: str = "uint8") -> np.ndarray:
    """Random whole numbers, low <= value < high."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)
