"""Rasters on grids: describe a file, choose a grid, read any window of it with its validity.

A :class:`Raster` says what a file holds and on which north-up grid the work is done.
``raster.on(grid)`` is a :class:`RasterView`: the same ground on any GeoBox. A pixel's
value depends on the file and the view's grid alone, never on the window it is read with.

Example::

    raster = open_raster("big.tif")
    view = raster.on(raster.grid(0.3))             # 0.3 m per pixel
    pixels = view.read((slice(0, 512), slice(0, 512)))
    pixels.data.shape, pixels.valid.shape          # (3, 512, 512), (512, 512)
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyproj
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import calculate_default_transform

from gimseg.errors import GridError, RasterError
from gimseg.raster_files import (
    DRIVERS,
    GDAL_ERRORS,
    Border,
    Pixels,
    RasterFile,
    Roi,
    Source,
    alpha_bands,
    check_blocks,
    check_file,
    find_border,
    is_image_band,
    mask_kind,
    open_dataset,
)
from gimseg.raster_output import Bands, RasterWriter, new_raster, write_part
from gimseg.raster_views import Placement, RasterView

__all__ = [
    "Bands",
    "Pixels",
    "Raster",
    "RasterView",
    "RasterWriter",
    "Roi",
    "new_raster",
    "open_raster",
    "write_part",
]

Nodata = float | str | None
"""A value, "auto", or None for what the file says."""


@dataclass(frozen=True, eq=False)
class Raster:
    """What a raster file holds, and the north-up grid on which work with it is done.

    Attributes:
        geobox: the file's own grid where that is north-up, else a north-up grid of
            the same ground at the same resolution.
        bands: 1-based numbers of the bands that are read.
        notes: what a person should know about how the file is read.
    """

    path: str
    geobox: GeoBox
    bands: tuple[int, ...]
    band_names: tuple[str, ...]
    dtype: str
    nodata: float | None
    notes: tuple[str, ...]
    file: Source
    placement: Placement

    @property
    def crs(self) -> Any:
        """The grid's CRS (odc.geo), or None."""
        return self.geobox.crs

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of `geobox`."""
        return (int(self.geobox.shape[0]), int(self.geobox.shape[1]))

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of `geobox`."""
        return tuple(self.geobox.boundingbox.bbox)  # type: ignore[return-value]

    @property
    def resolution(self) -> tuple[float, float]:
        """Size of a pixel along (y, x), both positive, in `unit`."""
        return (abs(float(self.geobox.affine.e)), abs(float(self.geobox.affine.a)))

    @property
    def unit(self) -> str:
        """The CRS's unit: "metre", "degree", "US survey foot", ...; "pixel" or "unit" without a CRS."""
        if self.crs is not None:
            return str(self.crs.proj.axis_info[0].unit_name) if self.crs.proj.axis_info else "unit"
        return "pixel" if self.resolution == (1.0, 1.0) else "unit"

    def grid(self, resolution: float | None = None) -> GeoBox:
        """The raster's footprint at a ground resolution; its top-left corner is kept.

        Args:
            resolution: metres per pixel, converted to the CRS's unit (degrees: at the
                footprint's centre, y and x apart); the raster's own unit without a
                CRS. None, or within 0.1 % of the raster's own: the raster's own grid.

        Raises:
            GridError: the resolution is not above 0, or leaves no pixel.
        """
        if resolution is None:
            return self.geobox
        if not (math.isfinite(resolution) and resolution > 0):
            raise GridError(f"resolution {resolution} m per pixel: needed is a number above 0")
        unit_m = metres_per_unit(self.geobox)
        size = (resolution / unit_m[0], resolution / unit_m[1])
        if all(abs(new / own - 1) <= 1e-3 for new, own in zip(size, self.resolution, strict=True)):
            return self.geobox
        affine = self.geobox.affine
        # A last row or column that is less than half covered would be invalid throughout: it is left out.
        rows, cols = (
            max(1, math.ceil(count * own / new - 0.5 - 1e-6))
            for count, own, new in zip(self.shape, self.resolution, size, strict=True)
        )
        return GeoBox((rows, cols), Affine(size[1], 0, affine.c, 0, -size[0], affine.f), self.crs)

    def own_grid(self) -> GeoBox:
        """The rows and columns of the file itself, be they rotated or south-up.

        Raises:
            GridError: it is placed by control points or RPCs, and has none.
        """
        transform = self.placement.transform
        if transform is None:
            raise GridError(
                f"{self.path} is placed by control points or RPCs: its rows and columns are no grid on the ground; "
                "leave --match-input out, or warp it first (gdalwarp)"
            )
        own = GeoBox(self.file.shape, transform, self.crs)
        return self.geobox if own == self.geobox else own

    def on(self, geobox: GeoBox, resampling: str = "auto") -> RasterView:
        """The same ground on another grid.

        Args:
            resampling: "auto", "nearest", "bilinear", "cubic" or "average".

        Raises:
            GridError: one of the two has a CRS and the other has none.
        """
        return RasterView(self.file, self.placement, geobox, resampling)


def metres_per_unit(geobox: GeoBox) -> tuple[float, float]:
    """Metres that one CRS unit measures along (y, x) at the centre of a grid; (1, 1) without a CRS.

    Example:
        >>> from odc.geo.geobox import GeoBox
        >>> [round(m) for m in metres_per_unit(GeoBox.from_bbox((9.9, 59.9, 10.1, 60.1), "EPSG:4326", shape=(2, 2)))]
        [111412, 55800]
    """
    if geobox.crs is None:
        return (1.0, 1.0)
    proj = geobox.crs.proj
    if not proj.is_geographic:
        factor = float(proj.axis_info[0].unit_conversion_factor) if proj.axis_info else 1.0
        return (factor or 1.0, factor or 1.0)
    centre_x, centre_y = geobox.affine * (geobox.shape[1] / 2, geobox.shape[0] / 2)
    centre_y = min(max(centre_y, -89.9), 89.9)
    geod = proj.get_geod() or pyproj.Geod(ellps="WGS84")
    step = 1e-3
    _, _, north = geod.inv(centre_x, centre_y - step / 2, centre_x, centre_y + step / 2)
    _, _, east = geod.inv(centre_x - step / 2, centre_y, centre_x + step / 2, centre_y)
    return (north / step, east / step)


def open_raster(
    path: str | os.PathLike[str],
    *,
    bands: Sequence[int] | None = None,
    crs: Any = None,
    nodata: Nodata = None,
    allow_vrt: bool = False,
) -> Raster:
    """Describe a raster file, reading no more of it than that needs.

    Args:
        bands: 1-based numbers of the bands to read, in order; all but alpha bands by default.
        crs: declares the CRS of a file that has none (anything pyproj reads).
        nodata: a value that marks invalid pixels where all bands hold it, or "auto":
            the connected border of one colour; the file's own by default.
        allow_vrt: read VRTs and GDAL's ``/vsi...`` paths too. They can name any file and
            URL: for trusted ones only.

    Raises:
        RasterError: the file, its format, bands or data type cannot be used.
        GridError: the CRS cannot be understood, or contradicts the file's own.
    """
    path = check_file(path, allow_virtual=allow_vrt)
    drivers = (*DRIVERS, "VRT") if allow_vrt else tuple(DRIVERS)
    with open_dataset(path, drivers) as dataset:
        check_blocks(dataset, path)
        notes: list[str] = []
        bands = _choose_bands(dataset, path, bands)
        dtype = _check_dtype(dataset, path, bands)
        placement, geobox = _place(dataset, path, crs, notes)
        alpha = _choose_alpha(dataset, path, bands, notes)
        values = _choose_nodata(dataset, bands, nodata, dtype, notes)
        # A block as wide as the file, and far wider than high.
        height, width = dataset.block_shapes[0]
        strips = width >= dataset.width > 4 * height
        file = RasterFile(
            path,
            drivers,
            bands,
            dataset.shape,
            dtype,
            values,
            alpha,
            mask_kind(dataset),
            in_strips=strips,
            block=(height, width),
        )
        if nodata == "auto":
            border = find_border(dataset, path, bands)
            notes.append(_border_note(border))
            file = replace(file, border=border)
        if dataset.colorinterp[bands[0] - 1].name == "palette":
            notes.append(f"band {bands[0]} holds indices into a colour table, read as they are")
        names = tuple(_band_name(dataset, band) for band in bands)
    return Raster(path, geobox, bands, names, dtype, values[0], tuple(notes), file, placement)


def _border_note(border: Border | None) -> str:
    if border is None:
        return "nodata auto: no border of one colour was found"
    gaps = f" and {border.gaps} large gap(s) of that colour inside" if border.gaps else ""
    return f"nodata auto: the border of colour ({', '.join(f'{level:g}' for level in border.colour)}){gaps} is invalid"


def _band_name(dataset: Any, band: int) -> str:
    interpretation = dataset.colorinterp[band - 1].name
    plain = interpretation in ("undefined", "gray", "alpha")
    return dataset.descriptions[band - 1] or (f"band {band}" if plain else interpretation)


def _choose_bands(dataset: Any, path: str, bands: Sequence[int] | None) -> tuple[int, ...]:
    if dataset.count == 0:
        raise RasterError(f"{path} holds no band of its own (subdatasets: {len(dataset.subdatasets)})")
    if bands is None:
        alpha = alpha_bands(dataset)
        every = range(1, dataset.count + 1)
        return tuple(band for band in every if band not in alpha) or tuple(every)
    chosen = tuple(int(band) for band in bands)
    if not chosen:
        raise RasterError(f"{path}: no bands were asked for: give some of 1 to {dataset.count}")
    wrong = [band for band in chosen if not 1 <= band <= dataset.count]
    if wrong:
        palette = dataset.count == 1 and dataset.colorinterp[0].name == "palette"
        todo = "expand its colour table first (gdal_translate -expand rgb)" if palette else f"leave out {wrong}"
        given = f"bands {list(chosen)} were asked for, it has bands 1 to {dataset.count}"
        raise RasterError(f"{path}: {given}: {todo}")
    return chosen


def _check_dtype(dataset: Any, path: str, bands: Sequence[int]) -> str:
    kinds = {dataset.dtypes[band - 1] for band in bands}
    if len(kinds) > 1:
        kinds = {np.result_type(*kinds).name}
    dtype = kinds.pop()
    if "complex" in dtype:
        raise RasterError(f"{path}: its pixels are {dtype}: needed are real numbers; write amplitude or phase first")
    return dtype


def _choose_alpha(dataset: Any, path: str, bands: Sequence[int], notes: list[str]) -> int | None:
    for band in alpha_bands(dataset):
        if band in bands:
            notes.append(f"band {band} is tagged alpha but was asked for: read as image")
            continue
        try:
            image = is_image_band(dataset, band)
        except GDAL_ERRORS:
            image = False  # the damage is named by the window that meets it
        if image:
            notes.append(
                f"band {band} is tagged alpha but holds image values: left out, not used as validity; "
                f"ask for bands 1 to {dataset.count} to read it"
            )
            continue
        return band
    return None


def _choose_nodata(
    dataset: Any, bands: Sequence[int], nodata: Nodata, dtype: str, notes: list[str]
) -> tuple[float | None, ...]:
    values = [dataset.nodatavals[band - 1] for band in bands]
    if nodata is not None and nodata != "auto":
        try:
            values = [float(nodata)] * len(bands)
        except ValueError as error:
            raise RasterError(f"nodata {nodata!r}: needed is a number or auto") from error
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        for value in {value for value in values if value is not None}:
            if not (limits.min <= value <= limits.max and value == int(value)):
                notes.append(f"nodata {value:g} cannot occur in {dtype} and is ignored")
                values = [None if each == value else each for each in values]
    return tuple(values)


def _place(dataset: Any, path: str, crs: Any, notes: list[str]) -> tuple[Placement, GeoBox]:
    """How the file lies on the ground, and the north-up grid to work on."""
    gcps, gcps_crs = dataset.gcps
    by_points = dataset.transform == Affine.identity() and bool(gcps)
    # A file may name one CRS for its points and another for itself; the points' own places it.
    own = gcps_crs if by_points else dataset.crs
    declared = _parse_crs(crs) if crs is not None else None
    if own and declared and own != declared:
        raise GridError(
            f"{path} has the CRS {_crs_name(own)}, {_crs_name(declared)} was declared: "
            "declare one only for a file without; warp the file to change it"
        )
    ground = own or declared
    if by_points:
        notes.append(f"placed by {len(gcps)} ground control points: warped to a north-up grid")
        return _warped(dataset, path, Placement(ground, gcps=tuple(gcps)))
    if dataset.transform == Affine.identity() and dataset.rpcs:
        notes.append("placed by RPCs at height 0: warped to a north-up grid; terrain shifts what stands high")
        return _warped(dataset, path, Placement(CRS.from_epsg(4326), rpcs=dataset.rpcs))
    if ground is None:
        notes.append("no CRS: the work is done in the raster's own coordinates; declare one with --crs")
    transform = dataset.transform
    if transform == Affine.identity():
        # Without any georeference the picture's first row is its top, as viewers and QGIS show it.
        transform = Affine(1, 0, 0, 0, -1, 0)
        notes.append("no georeference: pixel coordinates are used, y from 0 downwards")
    placement = Placement(ground, transform=transform)
    return placement, north_up_grid(transform, dataset.shape, ground, notes)


def _parse_crs(crs: Any) -> CRS:
    try:
        return CRS.from_wkt(pyproj.CRS.from_user_input(crs).to_wkt())
    except (pyproj.exceptions.CRSError, CRSError) as error:
        raise GridError(f"CRS {crs!r} is not understood: give one like EPSG:32633") from error


def _crs_text(crs: CRS | None) -> str | None:
    """The shortest text that says all of a CRS: its EPSG code where that is all."""
    if crs is None:
        return None
    code = crs.to_epsg()
    return f"EPSG:{code}" if code and CRS.from_epsg(code) == crs else str(crs.to_wkt())


def _crs_name(crs: CRS) -> str:
    return f"EPSG:{crs.to_epsg()}" if crs.to_epsg() else str(pyproj.CRS.from_wkt(crs.to_wkt()).name)


def north_up_grid(transform: Affine, shape: tuple[int, int], crs: CRS | None, notes: list[str]) -> GeoBox:
    """The file's own grid where it is north-up, else one over the same ground at the same resolution."""
    height, width = shape
    odc_crs = _crs_text(crs)
    if transform.b == 0 and transform.d == 0 and transform.a > 0 and transform.e < 0:
        return GeoBox(shape, transform, odc_crs)
    corners = [transform * corner for corner in ((0, 0), (width, 0), (0, height), (width, height))]
    xs, ys = zip(*corners, strict=True)
    if transform.b == 0 and transform.d == 0:
        notes.append("south-up or mirrored: read through a north-up view")
        size = (abs(transform.a), abs(transform.e))
        return GeoBox(shape, Affine(size[0], 0, min(xs), 0, -size[1], max(ys)), odc_crs)
    if abs(transform.determinant) == 0:
        raise GridError(
            f"the transform {tuple(transform)[:6]} maps all pixels to a line: georeference the raster again"
        )
    side = math.sqrt(abs(transform.determinant))
    notes.append(f"rotated or sheared: read through a north-up view of {side:g} units per pixel")
    rows = max(1, math.ceil((max(ys) - min(ys)) / side - 1e-6))
    cols = max(1, math.ceil((max(xs) - min(xs)) / side - 1e-6))
    return GeoBox((rows, cols), Affine(side, 0, min(xs), 0, -side, max(ys)), odc_crs)


def _warped(dataset: Any, path: str, placement: Placement) -> tuple[Placement, GeoBox]:
    if placement.crs is None:
        raise GridError(f"{path}: its ground control points name no CRS: declare one with --crs")
    try:
        transform, width, height = calculate_default_transform(
            placement.crs,
            placement.crs,
            dataset.width,
            dataset.height,
            gcps=list(placement.gcps) or None,
            rpcs=placement.rpcs,
        )
    except GDAL_ERRORS as error:
        raise GridError(f"{path}: its ground control points or RPCs cannot be used ({error})") from error
    return placement, GeoBox((height, width), transform, _crs_text(placement.crs))
