"""GeoTIFFs written whole: parts of a run, and large rasters block by block.

A file appears under its name only once it is complete and has been read back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.windows import Window

from gimseg.errors import OutputError
from gimseg.freed_memory import give_back_freed_memory
from gimseg.outputs import check_outputs, staged
from gimseg.raster_files import GDAL_ERRORS, Roi

_FINAL = {"compress": "deflate", "zlevel": 6, "bigtiff": "if_safer"}


class RasterWriter:
    """Writes windows of a raster that is being made by :func:`new_raster`."""

    def __init__(self, dataset: Any, output: Path) -> None:
        self._dataset = dataset
        self._output = output
        self.shape: tuple[int, int] = dataset.shape

    def write(self, array: np.ndarray, roi: Roi) -> None:
        """Write `array`, (rows, cols) or (bands, rows, cols), at `roi`.

        Raises:
            OutputError: the array does not fit the window, the window does not lie
                inside the raster, or the disk refuses it.
        """
        array = array[np.newaxis] if array.ndim == 2 else array
        rows, cols = roi
        expected = (self._dataset.count, rows.stop - rows.start, cols.stop - cols.start)
        if array.shape != expected:
            raise OutputError(
                f"{self._output}: given {array.shape}, needed {expected} (bands, rows, columns) for {roi}"
            )
        if min(rows.start, cols.start) < 0 or rows.stop > self.shape[0] or cols.stop > self.shape[1]:
            raise OutputError(f"{self._output}: window {roi} does not lie inside its {self.shape} rows and columns")
        try:
            self._dataset.write(array, window=Window(cols.start, rows.start, expected[2], expected[1]))
        except GDAL_ERRORS as error:
            raise OutputError(_write_failure(self._output, error)) from error


@dataclass(frozen=True)
class Bands:
    """What the bands of bytes of a GeoTIFF mean.

    Args:
        count: how many.
        nodata: value that says nothing; None: every value says something.
        names: one a band, or none.
        colours: value -> (red, green, blue, alpha), for one band.
        categories: value -> class name, for one band; shown by QGIS and `gdalinfo`, and kept as tags.
        scale: what the bands hold is their values times this; GDAL and QGIS know it.
    """

    count: int = 1
    nodata: float | None = None
    names: tuple[str, ...] = ()
    colours: Mapping[int, tuple[int, int, int, int]] | None = None
    categories: Mapping[int, str] = field(default_factory=dict)
    scale: float | None = None

    def describe(self, dataset: Any, tags: Mapping[str, str]) -> None:
        """Write all but the colours, which come after the overviews, into a new dataset."""
        for band, name in enumerate(self.names, 1):
            dataset.set_band_description(band, name)
        if self.scale is not None:
            dataset.scales, dataset.offsets = (self.scale,) * self.count, (0.0,) * self.count
        dataset.update_tags(**{**tags, **{f"class_{value}": name for value, name in self.categories.items()}})


_PLAIN = Bands()


@contextmanager
def new_raster(
    path: str | os.PathLike[str],
    geobox: GeoBox,
    bands: Bands = _PLAIN,
    *,
    tags: Mapping[str, str] | None = None,
    cog: bool = False,
) -> Iterator[RasterWriter]:
    """Make a large compressed GeoTIFF of bytes with overviews, window by window.

    Windows that are whole 512 x 512 tiles are written fastest. When the block ends
    well, overviews are built (each the commonest value, or the mean of what has a
    scale), the file is read back whole, and moved to its name. When it does not,
    nothing is left.

    Args:
        path: the file, which does not exist yet.
        geobox: its grid.
        bands: what they mean.
        tags: of the whole file.
        cog: laid out as a Cloud Optimized GeoTIFF, overviews first.

    Yields:
        a :class:`RasterWriter`.

    Raises:
        OutputError: the output exists, or cannot be written whole.
    """
    output = Path(path)
    check_outputs([output])
    profile = _profile(geobox, bands.count, "uint8", bands.nodata)
    with staged(output) as temporary:
        try:
            with rasterio.open(temporary, "w", **profile, **_FINAL) as dataset:
                bands.describe(dataset, tags or {})
                yield RasterWriter(dataset, output)
            # The mean of class numbers would be another class.
            _build_overviews(temporary, geobox.shape, Resampling.mode if bands.scale is None else Resampling.average)
            if bands.colours:
                # After the overviews, which get them too: of a raster with colours GDAL holds whole rows to make these.
                with rasterio.open(temporary, "r+") as dataset:
                    dataset.write_colormap(1, dict(bands.colours))
            if cog:
                _lay_out_as_cog(temporary)
        except GDAL_ERRORS as error:
            raise OutputError(_write_failure(output, error)) from error
        _check_readable(temporary, output)
        if bands.categories:
            _write_categories(temporary, bands.categories)


def write_part(path: str | os.PathLike[str], array: np.ndarray, geobox: GeoBox, *, nodata: float | None = None) -> None:
    """Write one finished block, (rows, cols) or (bands, rows, cols), as a quickly compressed GeoTIFF.

    Replaces what was there: a part is either absent or whole.

    Raises:
        OutputError: the array does not fit the grid, or the disk refuses it.
    """
    array = array[np.newaxis] if array.ndim == 2 else array
    if array.shape[1:] != tuple(geobox.shape):
        raise OutputError(f"{path}: given {array.shape[1:]} rows and columns for a grid of {tuple(geobox.shape)}")
    profile = _profile(geobox, len(array), array.dtype.name, nodata) | {"compress": "zstd", "zstd_level": 1}
    with staged(path) as temporary:
        try:
            with rasterio.open(temporary, "w", **profile) as dataset:
                dataset.write(array)
        except GDAL_ERRORS as error:
            raise OutputError(_write_failure(Path(path), error)) from error
        _check_readable(temporary, Path(path))


def _profile(geobox: GeoBox, count: int, dtype: str, nodata: float | None) -> dict[str, Any]:
    rows, cols = geobox.shape
    tile = 512 if min(rows, cols) >= 256 else 256
    return {
        "driver": "GTiff",
        "count": count,
        "height": rows,
        "width": cols,
        "dtype": dtype,
        "nodata": nodata,
        "crs": geobox.crs.to_wkt() if geobox.crs is not None else None,
        "transform": geobox.affine,
        # Or the last of two or four bands of bytes would be taken for transparency.
        "photometric": "minisblack",
        "alpha": "unspecified",
        "tiled": True,
        "blockxsize": tile,
        "blockysize": tile,
        "num_threads": min(os.cpu_count() or 1, 4),
    }


def _write_failure(output: Path, error: Exception) -> str:
    reason = str(error.__cause__ or error).strip().rstrip(".")
    return f"{output} could not be written ({reason}): is the disk full?"


def _build_overviews(path: Path, shape: Any, resampling: Resampling) -> None:
    factors: list[int] = []
    while max(shape) / 2 ** (len(factors)) > 512:
        factors.append(2 ** (len(factors) + 1))
    if not factors:
        return
    # GDAL begins threads of its own, which cannot use what others have freed.
    give_back_freed_memory()
    with (
        rasterio.Env(GDAL_NUM_THREADS=min(os.cpu_count() or 1, 4), COMPRESS_OVERVIEW="DEFLATE"),
        rasterio.open(path, "r+") as dataset,
    ):
        dataset.build_overviews(factors, resampling)


def _lay_out_as_cog(path: Path) -> None:
    """Rewrite a GeoTIFF with its overviews where a reader over a network looks first."""
    plain = path.with_name(f"{path.name}.plain")
    os.replace(path, plain)
    rasterio.shutil.copy(
        plain, path, driver="COG", compress="deflate", level=6, blocksize=_tile(plain), bigtiff="if_safer",
        overviews="force_use_existing", num_threads=min(os.cpu_count() or 1, 4),
    )  # fmt: skip
    plain.unlink()


def _tile(path: Path) -> int:
    with rasterio.open(path, driver="GTiff") as dataset:
        return int(dataset.block_shapes[0][0])


def _check_readable(path: Path, output: Path) -> None:
    """Read every block back: a disk that is full when a file is closed raises nothing."""
    try:
        with rasterio.open(path, driver="GTiff") as dataset:
            for _, window in dataset.block_windows(1):
                dataset.read(window=window)
    except GDAL_ERRORS as error:
        raise OutputError(_write_failure(output, error)) from error


def _write_categories(path: Path, names: Mapping[int, str]) -> None:
    """Class names beside the raster, as GDAL's own sidecar, which QGIS reads."""
    listed = "".join(
        f"      <Category>{escape(names.get(value, ''))}</Category>\n" for value in range(max(names, default=-1) + 1)
    )
    path.with_name(path.name + ".aux.xml").write_text(
        '<PAMDataset>\n  <PAMRasterBand band="1">\n    <CategoryNames>\n'
        f"{listed}    </CategoryNames>\n  </PAMRasterBand>\n</PAMDataset>\n",
        encoding="utf-8",
    )
