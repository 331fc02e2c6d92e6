"""Raster files as they lie on disk: open them safely, read native pixels with their validity.

Everything here is in the file's own rows and columns; :mod:`gimseg.rasters` puts
them on grids. What a pixel is worth never depends on the window it is read with.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import rasterio
from rasterio._env import set_gdal_config
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window
from scipy import ndimage

from gimseg.errors import RasterError

Roi = tuple[slice, slice]
"""Rows and columns of a grid, plain ints; may begin below 0 or end beyond the grid."""

DRIVERS = {
    "GTiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "JP2OpenJPEG": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "HFA": (b"EHFA_HEADER_TAG",),
    "PNG": (b"\x89PNG\r\n",),
    "JPEG": (b"\xff\xd8\xff",),
}
"""Formats that cannot point at other files or run code, and how their files begin."""

GDAL_ERRORS = (RasterioError, CPLE_BaseError)
"""What rasterio raises for a damaged file or a full disk; some calls let GDAL's own errors through."""

MAX_BLOCK_BYTES = 2**30
BLOCK_CACHE_BYTES = 96 * 2**20
_HANDLES_PER_THREAD = 32
_LOSSY = ("JPEG", "WEBP", "JXL", "LERC", "JP2")

# Rasters without a place are read and written on purpose; where a place is needed, an error says so. Once and for all:
# `warnings.catch_warnings` is the process's, not the thread's, so threads that open files, or burn polygons (rasterio
# uses it there), would undo it for one another.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)


class Pixels(NamedTuple):
    """Pixels and which of them are valid.

    `data` is (bands, rows, cols), 0 where invalid; `valid` is bool (rows, cols).
    """

    data: np.ndarray
    valid: np.ndarray


class Source(Protocol):
    """Where native pixels come from: a file, tiles that lie side by side, an array."""

    @property
    def path(self) -> str:
        """As messages name it."""
        ...

    @property
    def bands(self) -> tuple[int, ...]:
        """1-based numbers of the bands that are read."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        ...

    @property
    def dtype(self) -> str:
        """Of the pixels."""
        ...

    @property
    def in_strips(self) -> bool:
        """Any part of a row costs all of it."""
        ...

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that are read, or cannot be read, as one."""
        ...

    def read(self, roi: Roi) -> Pixels:
        """Native values, shape (bands, rows, cols) of `dtype`, and their validity."""
        ...

    def is_empty(self, roi: Roi) -> bool:
        """Whether it is known, without reading pixels, that none is valid there."""
        ...

    def is_there(self) -> bool:
        """Whether there is anything to read from, damaged or not."""
        ...


@dataclass(frozen=True)
class Border:
    """An undeclared border of one colour.

    `cells` is a coarse bool mask over the whole raster (grown by one cell), so that
    the question "border?" has one answer whichever window asks it; `gaps` counts the
    large holes inside the raster that it covers too.
    """

    colour: tuple[float, ...]
    tolerance: float
    cells: np.ndarray
    gaps: int = 0


@dataclass(frozen=True, eq=False)
class RasterFile:
    """What it takes to read a file's native pixels.

    Attributes:
        bands: 1-based numbers of the bands that were asked for.
        shape: (rows, columns) of the file.
        nodata: the nodata value of each band in `bands`, or None.
        alpha: 1-based number of the band that holds validity, or None.
        mask: "" (none), "dataset" (one for all bands) or "band" (one each).
        in_strips: blocks of the file are whole rows: any part of a row costs all of it.
        block: rows and columns of a block of the file.
    """

    path: str
    drivers: Collection[str]
    bands: tuple[int, ...]
    shape: tuple[int, int]
    dtype: str
    nodata: tuple[float | None, ...]
    alpha: int | None = None
    mask: str = ""
    border: Border | None = None
    in_strips: bool = False
    block: tuple[int, int] = (256, 256)

    def read(self, roi: Roi) -> Pixels:
        """Native values, shape (bands, rows, cols) of `dtype`, and their validity.

        Raises:
            RasterError: a block cannot be read; names the file and the window.
        """
        rows, cols = roi
        shape = (rows.stop - rows.start, cols.stop - cols.start)
        top, bottom = max(rows.start, 0), min(rows.stop, self.shape[0])
        left, right = max(cols.start, 0), min(cols.stop, self.shape[1])
        if bottom <= top or right <= left:
            return Pixels(np.zeros((len(self.bands), *shape), self.dtype), np.zeros(shape, bool))
        part = self._read_inside(Window(left, top, right - left, bottom - top))
        if part.valid.shape == shape:
            return part
        data = np.zeros((len(self.bands), *shape), self.dtype)
        valid = np.zeros(shape, bool)
        inner = (slice(top - rows.start, bottom - rows.start), slice(left - cols.start, right - cols.start))
        data[:, *inner], valid[inner] = part
        return Pixels(data, valid)

    def is_there(self) -> bool:
        """Whether the file still exists."""
        return is_virtual(self.path) or os.path.exists(self.path)

    def is_empty(self, roi: Roi) -> bool:
        """Whether the file tells, without its pixels being decoded, that none of them is valid.

        It does where its mask says so, and where a GeoTIFF with a nodata value holds no
        data at all, as sparse ones do.

        Raises:
            RasterError: the file cannot be opened any more.
        """
        top, bottom = max(roi[0].start, 0), min(roi[0].stop, self.shape[0])
        left, right = max(roi[1].start, 0), min(roi[1].stop, self.shape[1])
        if bottom <= top or right <= left:
            return True
        dataset = _HANDLES.get(self.path, self.drivers)
        if self.mask == "dataset":
            try:
                return not dataset.read_masks(1, window=Window(left, top, right - left, bottom - top)).any()
            except GDAL_ERRORS:
                return False  # the damage is named by the read that follows
        if dataset.driver != "GTiff" or self.alpha or any(value is None for value in self.nodata):
            return False
        apart = dataset.interleaving is not None and dataset.interleaving.value == "BAND"
        height, width = dataset.block_shapes[0]
        places = itertools.product(
            range(top // height, (bottom - 1) // height + 1),
            range(left // width, (right - 1) // width + 1),
            self.bands if apart else (1,),
        )
        return all(
            dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", dm="TIFF", bidx=band) is None for row, col, band in places
        )

    def _read_inside(self, window: Window) -> Pixels:
        try:
            dataset = _HANDLES.get(self.path, self.drivers)
            # Together in one call: the bands of a block are decoded once.
            bands = [*self.bands, self.alpha] if self.alpha else list(self.bands)
            values = dataset.read(bands, window=window)
            valid = self._declared_valid(dataset, window, values)
        except GDAL_ERRORS as error:
            raise RasterError(read_failure(self.path, window, error)) from error
        values = values[: len(self.bands)]
        if self.border is not None:
            valid &= ~self._in_border(values, window)
        values[:, ~valid] = 0
        return Pixels(values, valid)

    def in_memory(self, part: Roi) -> MemoryFile:
        """The same file with the native pixels of a part held in memory; others are still read from it.

        Args:
            part: rows and columns within the file.

        Raises:
            RasterError: they cannot be read.
        """
        corner = part[0].start, part[1].start
        held = {item.name: getattr(self, item.name) for item in fields(RasterFile)}
        return MemoryFile(**held, held=self.read(part), corner=corner)

    def _declared_valid(self, dataset: Any, window: Window, values: np.ndarray) -> np.ndarray:
        """What nodata, NaN, alpha band and mask say of `values` (bands, then alpha if there is one)."""
        bands = values[: len(self.bands)]
        valid = ~is_nodata(bands, self.nodata)
        if bands.dtype.kind == "f":
            valid &= np.isfinite(bands).all(axis=0)
        if self.alpha:
            # At least half opaque: lossy compression leaves noise where alpha was 0.
            valid &= values[-1] > (127 if values.dtype == np.uint8 else 0)
        if self.mask == "dataset":
            valid &= dataset.read_masks(1, window=window) > 0
        elif self.mask == "band":
            valid &= (dataset.read_masks(list(self.bands), window=window) > 0).any(axis=0)
        return valid

    def _in_border(self, values: np.ndarray, window: Window) -> np.ndarray:
        border = self.border
        assert border is not None
        rows = coarse_index(window.row_off, window.height, self.shape[0], border.cells.shape[0])
        cols = coarse_index(window.col_off, window.width, self.shape[1], border.cells.shape[1])
        near = border.cells[np.ix_(rows, cols)]
        return near & is_colour(values, border.colour, border.tolerance) if near.any() else near


@dataclass(frozen=True, eq=False, kw_only=True)
class MemoryFile(RasterFile):
    """A RasterFile of which a part was read once.

    Attributes:
        held: the pixels of that part.
        corner: its first row and column.
    """

    held: Pixels
    corner: tuple[int, int]

    def _read_inside(self, window: Window) -> Pixels:
        (top, bottom), (left, right) = (
            (start - first, stop - first) for (start, stop), first in zip(window.toranges(), self.corner, strict=True)
        )
        rows, cols = self.held.valid.shape
        if min(top, left) < 0 or bottom > rows or right > cols:
            return super()._read_inside(window)
        return Pixels(self.held.data[:, top:bottom, left:right].copy(), self.held.valid[top:bottom, left:right].copy())


def is_nodata(values: np.ndarray, nodata: Sequence[float | None]) -> np.ndarray:
    """Where all bands hold their nodata value; bool (rows, cols).

    Example:
        >>> is_nodata(np.array([[[0, 0, 5]], [[0, 7, 5]]]), (0, 0)).tolist()
        [[True, False, False]]
    """
    if any(value is None or np.isnan(value) for value in nodata):
        return np.zeros(values.shape[1:], bool)
    out = np.ones(values.shape[1:], bool)
    for band, value in zip(values, nodata, strict=True):
        out &= band == (np.asarray(value, band.dtype) if band.dtype.kind == "f" else value)
    return out


def is_colour(values: np.ndarray, colour: Sequence[float], tolerance: float) -> np.ndarray:
    """Where every band lies within `tolerance` of `colour`; bool (rows, cols)."""
    out = np.ones(values.shape[1:], bool)
    for band, level in zip(values, colour, strict=True):
        out &= np.abs(band.astype(np.float32) - np.float32(level)) <= tolerance
    return out


def coarse_index(start: int, length: int, fine: int, coarse: int) -> np.ndarray:
    """Which of `coarse` cells over `fine` pixels each pixel from `start` on lies in.

    Example:
        >>> coarse_index(2, 4, 8, 4).tolist()
        [1, 1, 2, 2]
    """
    return np.arange(start, start + length) * coarse // fine


def read_failure(path: str, window: Window, error: Exception) -> str:
    """The message for a window that could not be read."""
    # rasterio's own message says only "Read failed"; GDAL's, which names the block, is its cause.
    reason = error.__cause__ or error
    rows = f"rows {window.row_off} to {window.row_off + window.height}"
    columns = f"columns {window.col_off} to {window.col_off + window.width}"
    return (
        f"{path}: {rows}, {columns} cannot be read ({str(reason).strip().rstrip('.')}): "
        "the file is damaged or incomplete; copy or download it again"
    )


class _Handles(threading.local):
    """Open datasets of one thread: a GDAL dataset must not be used by two at once."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.datasets: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def get(self, path: str, drivers: Collection[str]) -> Any:
        if self.process != os.getpid():
            # A forked worker shares the file position with its parent: open anew.
            self.__init__()  # type: ignore[misc]
        key = _file_state(path)
        if key not in self.datasets:
            self.datasets[key] = open_dataset(path, drivers)
            while len(self.datasets) > _HANDLES_PER_THREAD:
                self.datasets.popitem(last=False)[1].close()
        self.datasets.move_to_end(key)
        return self.datasets[key]


_HANDLES = _Handles()


def _file_state(path: str) -> tuple[Any, ...]:
    """Changes when the file does; GDAL's virtual files are taken not to."""
    if is_virtual(path):
        return (path,)
    try:
        stat = os.stat(path)
    except OSError as error:
        raise RasterError(f"{path} cannot be read any more ({error.strerror})") from error
    return (path, stat.st_mtime_ns, stat.st_size, stat.st_ino)


def is_virtual(path: str | os.PathLike[str]) -> bool:
    """Whether GDAL alone can find this file: in an archive, in memory, behind a URL.

    Example:
        >>> is_virtual("/vsizip/images.zip/a.tif"), is_virtual("images/a.tif")
        (True, False)
    """
    return os.fspath(path).startswith("/vsi")


@functools.cache
def limit_block_cache() -> None:
    """Hold GDAL's cache of blocks at BLOCK_CACHE_BYTES, once a process, unless the environment names a size.

    Not by an `Env`: the first of any thread that ends would give GDAL its default back,
    a twentieth of the machine's memory.
    """
    if "GDAL_CACHEMAX" not in os.environ:
        # Bytes here, unlike the environment variable, which is in MB.
        set_gdal_config("GDAL_CACHEMAX", BLOCK_CACHE_BYTES)


def open_dataset(path: str, drivers: Collection[str] = frozenset(DRIVERS)) -> Any:
    """A rasterio dataset, opened by the one of `drivers` that the file's first bytes ask for.

    Raises:
        RasterError: none of them can read the file.
    """
    reason: Exception | None = None
    # The first bytes of a virtual file are GDAL's to read: it may try these drivers and no other.
    candidates = list(drivers) if is_virtual(path) else [find_driver(path, drivers)]
    limit_block_cache()
    # TRUE: sidecars (.msk, .ovr) are asked for by name instead of by listing a folder of a million files.
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN=True):
        for driver in candidates:
            try:
                return rasterio.open(path, driver=driver)
            except GDAL_ERRORS as error:
                reason = error
    raise RasterError(
        f"{path} cannot be opened as {' or '.join(candidates)} ({reason}): "
        "the file is damaged or incomplete; copy or download it again"
    ) from reason


def files_behind(path: str) -> list[str]:
    """The files on this machine that a raster is read from: itself, and those that a VRT or a mask beside it names.

    Raises:
        RasterError: it cannot be opened.
    """
    if is_virtual(path):
        return []
    with open_dataset(path, (*DRIVERS, "VRT")) as dataset:
        named = dataset.files if dataset.driver == "VRT" else []
    return [path, *(file for file in named if os.path.isfile(file) and not os.path.samefile(file, path))]


def find_driver(path: str, drivers: Collection[str]) -> str:
    """The GDAL driver of a file by its first bytes, whatever its name ends in.

    Raises:
        RasterError: no raster, a format that is not read, or a VRT that was not allowed.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise RasterError(f"{path} cannot be read ({error.strerror})") from error
    for driver, beginnings in DRIVERS.items():
        if driver in drivers and head.startswith(beginnings):
            return driver
    if b"<VRTDataset" in head:
        if "VRT" in drivers:
            return "VRT"
        raise RasterError(
            f"{path} is a VRT, a list of other files that GDAL would read in its stead: give those files, "
            "or --allow-vrt (allow_vrt=True) if you trust where it came from"
        )
    if not head:
        raise RasterError(f"{path} is empty (0 bytes): copy or download it again")
    raise RasterError(
        f"{path} is no raster that is read here (it begins with {head[:8]!r}): needed is GeoTIFF, JPEG 2000, "
        "Erdas Imagine, PNG or JPEG; convert it with gdal_translate"
    )


def check_blocks(dataset: Any, path: str) -> None:
    """Refuse a file whose blocks could not be held in memory.

    Raises:
        RasterError: one block is larger than MAX_BLOCK_BYTES.
    """
    pixel = np.dtype(dataset.dtypes[0]).itemsize
    if dataset.interleaving is not None and dataset.interleaving.value == "PIXEL":
        pixel *= dataset.count
    height, width = max(dataset.block_shapes, key=lambda shape: shape[0] * shape[1])
    if height * width * pixel > MAX_BLOCK_BYTES:
        raise RasterError(
            f"{path}: its header declares blocks of {height} x {width} pixels, "
            f"{height * width * pixel / 2**30:,.1f} GiB each; at most {MAX_BLOCK_BYTES / 2**30:g} GiB can be held: "
            "rewrite it with gdal_translate -co TILED=YES, or the header is damaged"
        )


def mask_kind(dataset: Any) -> str:
    """Which mask of its own, besides nodata and alpha, a file has: "", "dataset" or "band"."""
    flags = set(dataset.mask_flag_enums[0])
    if flags & {MaskFlags.all_valid, MaskFlags.nodata, MaskFlags.alpha}:
        return ""
    return "dataset" if MaskFlags.per_dataset in flags else "band"


def is_image_band(dataset: Any, band: int) -> bool:
    """Whether a band tagged alpha holds image values, like the near infrared of aerial programmes.

    A validity plane is nearly always empty or full. Looks at nine small windows.
    """
    side = 64
    sample = []
    for row, col in itertools.product((0.0, 0.5, 1.0), repeat=2):
        top, left = int(row * max(dataset.height - side, 0)), int(col * max(dataset.width - side, 0))
        sample.append(dataset.read(band, window=Window(left, top, side, side)).ravel())
    values = np.concatenate(sample)
    return bool(np.mean((values > 0) & (values < values.max())) > 0.5)


def alpha_bands(dataset: Any) -> tuple[int, ...]:
    """1-based numbers of the bands that are tagged alpha."""
    return tuple(band for band, kind in enumerate(dataset.colorinterp, 1) if kind is ColorInterp.alpha)


def find_border(dataset: Any, path: str, bands: Sequence[int], side: int = 2048) -> Border | None:
    """The undeclared border: the commonest colour of the raster's edge, where it is connected to the edge.

    Decided once for the whole raster, on a copy of at most `side` x `side` cells (an
    overview where there is one), then pixel by pixel within those cells. Borders thinner
    than a cell, max(rows, columns) / side pixels, may go unseen. Gaps of a mosaic that
    hold the same colour count too, from a thousandth of the raster and 10 000 pixels on.

    Returns:
        None where no colour holds a hundredth of the edge.

    Raises:
        RasterError: the raster cannot be read.
    """
    factor = max(dataset.height / side, dataset.width / side, 1.0)
    shape = (max(1, int(dataset.height / factor)), max(1, int(dataset.width / factor)))
    try:
        coarse = dataset.read(list(bands), out_shape=(len(bands), *shape), resampling=Resampling.nearest)
    except GDAL_ERRORS as error:
        raise RasterError(read_failure(path, Window(0, 0, dataset.width, dataset.height), error)) from error
    edge = np.concatenate([coarse[:, 0], coarse[:, -1], coarse[:, :, 0], coarse[:, :, -1]], axis=1).T
    colours, counts = np.unique(edge, axis=0, return_counts=True)
    most = int(counts.argmax())
    # On lossless imagery a constant border is exactly constant; JPEG leaves a few grey levels.
    lossy = str(dataset.compression.value if dataset.compression else dataset.driver).upper()
    tolerance = 4.0 if any(name in lossy for name in _LOSSY) and dataset.dtypes[0] == "uint8" else 0.0
    if counts[most] < max(0.01 * len(edge), 2):
        return None
    same = is_colour(coarse, colours[most], tolerance)
    labels, count = ndimage.label(same)
    touching = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    pixels = np.bincount(labels.ravel(), minlength=count + 1) * factor**2
    chosen = pixels >= max(1e-3 * dataset.width * dataset.height, 10_000)
    chosen[touching] = False
    gaps = int(chosen[1:].sum())
    chosen[touching] = True
    chosen[0] = False
    cells = ndimage.binary_dilation(chosen[labels], np.ones((3, 3), bool))
    return Border(tuple(float(level) for level in colours[most]), tolerance, cells, gaps)


def check_file(path: str | os.PathLike[str], *, allow_virtual: bool = False) -> str:
    """The path as text, once it is known to be a file on this machine.

    Args:
        allow_virtual: GDAL's ``/vsi...`` paths are taken as they are.

    Raises:
        RasterError: no such file, a folder, or a URL.
    """
    text = os.fspath(path)
    if is_virtual(text) and allow_virtual:
        return text
    if "://" in text or is_virtual(text):
        raise RasterError(
            f"{text} is not a file on this machine: download it first, or give it as a /vsi path with --allow-vrt if "
            "you trust where it came from"
        )
    if Path(text).is_dir():
        raise RasterError(f"{text} is a folder: give a raster file in it")
    if not Path(text).exists():
        raise RasterError(f"{text} does not exist (looked from {Path.cwd()})")
    return text
