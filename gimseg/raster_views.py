"""Reading a raster file on any grid, so that a pixel's value depends on the grid alone, never on the window.

Where the grid is the file's own, moved or mirrored by whole pixels, pixels are
copied. Else they are resampled in squares that lie fixed on the ground, each
always from the same part of the file; a window is cut from those.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import attrs
import numpy as np
import pyproj
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC
from rasterio.transform import GCPTransformer, RPCTransformer
from rasterio.warp import Resampling, reproject

from gimseg.errors import GridError
from gimseg.raster_files import Pixels, Roi, Source
from gimseg.resampling import Axis, resample, take_nearest

CHUNK = 256
"""Side, in target pixels, of the fixed squares in which resampling is done."""

CACHE_BYTES = 64 * 2**20
_PIXEL_SPACE = "EPSG:3857"  # any projected CRS: both sides of a pixel-to-pixel warp name the same one
_RESAMPLINGS = ("auto", "nearest", "bilinear", "cubic", "average")


@dataclass(frozen=True)
class Placement:
    """Where a file's rows and columns lie on the ground: by affine transform, control points or RPCs."""

    crs: CRS | None
    transform: Affine | None = None
    gcps: tuple[GroundControlPoint, ...] = ()
    rpcs: RPC | None = None


class RasterView:
    """A raster on a grid. Threads may share it, processes may be sent it.

    Resampling "auto" is a cubic filter where the grid is finer than the file, and the
    mean of the covered ground where it is coarser: that is what a coarser camera sees,
    it makes no ringing at roof edges, and it needs no value beyond the pixel's own ground.
    """

    def __init__(self, file: Source, placement: Placement, geobox: GeoBox, resampling: str = "auto") -> None:
        if resampling not in _RESAMPLINGS:
            raise GridError(f"resampling {resampling!r}: needed is one of {', '.join(_RESAMPLINGS)}")
        if (placement.crs is None) != (geobox.crs is None):
            without = file.path if placement.crs is None else "the grid asked for"
            raise GridError(f"{without} has no CRS: declare one with --crs")
        self.file = file
        self.geobox = geobox
        self._placement = placement
        self._to_source = _PixelMap(placement, geobox)
        self._resampling = resampling
        self._token = next(_TOKENS)

    def __reduce__(self) -> tuple[Any, ...]:
        return (RasterView, (self.file, self._placement, self.geobox, self._resampling))

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the grid."""
        return (int(self.geobox.shape[0]), int(self.geobox.shape[1]))

    def read(self, roi: Roi) -> Pixels:
        """float32 (bands, rows, cols), 0 where invalid, and validity (rows, cols).

        Args:
            roi: rows and columns of the grid; what lies outside it is invalid unless the file holds it.

        Raises:
            RasterError: the file cannot be read there.
        """
        return self._read(roi, self._filter(), "float32")

    @property
    def dtype(self) -> str:
        """Of what :meth:`read_plain` gives."""
        return self.file.dtype if self._to_source.is_shift else "float32"

    def read_plain(self, roi: Roi) -> Pixels:
        """As :meth:`read`, but in the file's own data type where no pixel is resampled: a quarter of the memory."""
        return self._read(roi, self._filter(), self.dtype)

    def pieces(self, roi: Roi) -> Iterator[Roi]:
        """The parts of the grid that are read, or cannot be read, as one, and that meet a region of it.

        They lie fixed on the grid: blocks of the file, or the squares in which it is resampled.
        """
        spans = [self._spans(axis, part) for axis, part in enumerate(roi)]
        yield from itertools.product(*spans)  # type: ignore[misc]

    def _spans(self, axis: int, part: slice) -> list[slice]:
        """The pieces along one axis, within the grid."""
        size = self._to_source.chunk
        start = self._to_source.anchor[axis]
        if self._to_source.is_shift:
            sign, shift = self._to_source.shift[axis]
            size = self.file.block[axis]
            # An edge of the file's first block; mirrored, its blocks go the other way.
            start = -sign * shift
        numbers = range((part.start - start) // size, -((start - part.stop) // size))
        spans = (slice(start + number * size, start + (number + 1) * size) for number in numbers)
        whole = self.shape[axis]
        return [
            slice(max(span.start, 0), min(span.stop, whole)) for span in spans if span.stop > 0 and span.start < whole
        ]

    def is_empty(self, roi: Roi) -> bool:
        """Whether it is known, without reading pixels, that none is valid there."""
        window = self._to_source.source_of(roi, self.file.shape)
        return window is None or self.file.is_empty(window)

    def source(self, margin: int = 0) -> Roi:
        """The part of the file that the grid lies on: rows and columns; empty where it lies beside it.

        Args:
            margin: ground around it, px of the file.
        """
        rows, cols = self.shape
        found = self._to_source.source_of((slice(0, rows), slice(0, cols)), self.file.shape)
        if found is None:
            return slice(0, 0), slice(0, 0)
        down, across = (
            slice(max(part.start - margin, 0), min(part.stop + margin, length))
            for part, length in zip(found, self.file.shape, strict=True)
        )
        return down, across

    def read_values(self, roi: Roi) -> Pixels:
        """As :meth:`read`, in the file's own data type, each pixel the nearest of the file: for labels."""
        return self._read(roi, "nearest", self.file.dtype)

    def read_alone(self) -> Pixels:
        """All of a small grid in one piece, as :meth:`read` gives it.

        For windows that are read once, each on a grid of its own: the fixed squares
        in which :meth:`read` resamples would cost several times the window.
        """
        rows, cols = self.shape
        if self._to_source.is_shift:
            return self._read_shifted((slice(0, rows), slice(0, cols)), "float32")
        return self._resample((0, 0), self.shape, self._filter(), "float32")

    def on(self, geobox: GeoBox) -> RasterView:
        """The same file on another grid."""
        return RasterView(self.file, self._placement, geobox, self._resampling)

    def _filter(self) -> str:
        if self._resampling != "auto":
            return self._resampling
        return "average" if max(self._to_source.scale) > 1.25 else "cubic"

    def _read(self, roi: Roi, method: str, dtype: str) -> Pixels:
        rows, cols = (slice(int(part.start), int(part.stop)) for part in roi)
        if self._to_source.is_shift:
            return self._read_shifted((rows, cols), dtype)
        count = len(self.file.bands)
        shape = (max(rows.stop - rows.start, 0), max(cols.stop - cols.start, 0))
        out = Pixels(np.zeros((count, *shape), dtype), np.zeros(shape, bool))
        side = self._to_source.chunk
        top, left = self._to_source.anchor
        for row in range((rows.start - top) // side, -((top - rows.stop) // side)):
            columns = range((cols.start - left) // side, -((left - cols.stop) // side))
            origins = [(top + row * side, left + col * side) for col in columns]
            for origin, chunk in self._chunk_row(origins, method, dtype):
                _paste(chunk, origin, out, (rows.start, cols.start))
        return out

    def _chunk_row(
        self, origins: list[tuple[int, int]], method: str, dtype: str
    ) -> Iterator[tuple[tuple[int, int], Pixels]]:
        """Chunks side by side, from the cache or made."""
        side = self._to_source.chunk
        missing = [origin for origin in origins if _CHUNKS.get((self._token, method, dtype, origin)) is None]
        # Any part of a strip costs all of it: it is read once for the chunks beside each other.
        source = self._source(missing) if self.file.in_strips and len(missing) > 1 else None
        for origin in origins:
            key = (self._token, method, dtype, origin)
            chunk = _CHUNKS.get(key)
            if chunk is None:
                chunk = self._resample(origin, (side, side), method, dtype, source)
                _CHUNKS.put(key, chunk)
            yield origin, chunk

    def _source(self, origins: list[tuple[int, int]]) -> tuple[Roi, Pixels] | None:
        """What of the file several chunks need, read at once."""
        side = self._to_source.chunk
        windows = [self._to_source.window(origin, (side, side), self.file.shape) for origin in origins]
        there = [window for window in windows if window is not None]
        if not there:
            return None
        rows, cols = (
            slice(min(part.start for part in parts), max(part.stop for part in parts))
            for parts in zip(*there, strict=True)
        )
        return (rows, cols), self.file.read((rows, cols))

    def _read_shifted(self, roi: Roi, dtype: str) -> Pixels:
        """The grid is the file's own, moved or mirrored by whole pixels."""
        (row_sign, row_shift), (col_sign, col_shift) = self._to_source.shift
        rows, flip_rows = _shifted(roi[0], row_sign, row_shift)
        cols, flip_cols = _shifted(roi[1], col_sign, col_shift)
        data, valid = self.file.read((rows, cols))
        data, valid = data[:, ::flip_rows, ::flip_cols], valid[::flip_rows, ::flip_cols]
        return Pixels(np.ascontiguousarray(data, dtype), np.ascontiguousarray(valid))

    def _resample(
        self,
        origin: tuple[int, int],
        shape: tuple[int, int],
        method: str,
        dtype: str,
        source: tuple[Roi, Pixels] | None = None,
    ) -> Pixels:
        nothing = Pixels(np.zeros((len(self.file.bands), *shape), dtype), np.zeros(shape, bool))
        window = self._to_source.window(origin, shape, self.file.shape)
        if window is None:
            return nothing
        if source is None:
            values, valid = self.file.read(window)
        else:
            (rows, cols), pixels = source
            here = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(window, (rows, cols), strict=True))
            values, valid = pixels.data[:, *here], pixels.valid[here]
        if not valid.any():
            return nothing
        corner = (window[0].start, window[1].start)
        axes = self._to_source.axes(origin, shape, corner)
        if axes is None:
            data, good = self._warp(Pixels(values, valid), origin, shape, corner, method)
        elif method == "nearest":
            data, good = take_nearest(values, valid, *axes)
        else:
            data, good = resample(values, valid, *axes, method)
        data = data.astype(dtype, copy=False)
        if method == "cubic" and np.dtype(self.file.dtype).kind in "iu":
            limits = np.iinfo(self.file.dtype)
            np.clip(data, limits.min, limits.max, out=data)
        data[:, ~good] = 0
        return Pixels(data, good)

    def _warp(
        self, pixels: Pixels, origin: tuple[int, int], shape: tuple[int, int], corner: tuple[int, int], method: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """As :func:`resample`, for grids that are turned against the file or lie in another CRS."""
        values, valid = pixels
        keep = np.zeros(shape, np.float32)
        share = "average" if method == "average" else "nearest"
        self._to_source.warp(valid.astype(np.float32), keep, origin, corner, share)
        if method == "nearest":
            data = np.zeros((len(values), *shape), values.dtype)
            self._to_source.warp(values, data, origin, corner, method)
            return data, keep >= 0.5
        source = values.astype(np.float32)
        source[:, ~valid] = np.nan
        data = np.full((len(values), *shape), np.nan, np.float32)
        self._to_source.warp(source, data, origin, corner, method)
        return data, (keep >= 0.5) & np.isfinite(data).all(axis=0)


def _shifted(part: slice, sign: int, shift: int) -> tuple[slice, int]:
    """The source rows of grid rows `part`, ascending, and the step (1 or -1) that orders them as the grid does."""
    if sign > 0:
        return slice(part.start + shift, part.stop + shift), 1
    return slice(shift - part.stop, shift - part.start), -1


def _paste(chunk: Pixels, origin: tuple[int, int], out: Pixels, corner: tuple[int, int]) -> None:
    """Copy what `chunk`, at `origin`, and `out`, at `corner`, have in common."""
    here, there = [], []
    for axis in (0, 1):
        start = max(origin[axis], corner[axis])
        stop = min(origin[axis] + chunk.valid.shape[axis], corner[axis] + out.valid.shape[axis])
        here.append(slice(start - origin[axis], stop - origin[axis]))
        there.append(slice(start - corner[axis], stop - corner[axis]))
    out.data[:, there[0], there[1]] = chunk.data[:, here[0], here[1]]
    out.valid[there[0], there[1]] = chunk.valid[here[0], here[1]]


class _ChunkCache:
    """The resampled chunks used last, of all views of a process together, within CACHE_BYTES."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._chunks: OrderedDict[tuple[Any, ...], Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[Any, ...]) -> Pixels | None:
        with self._lock:
            if key in self._chunks:
                self._chunks.move_to_end(key)
            return self._chunks.get(key)

    def put(self, key: tuple[Any, ...], chunk: Pixels) -> None:
        with self._lock:
            if key in self._chunks:
                return
            self._chunks[key] = chunk
            self._bytes += chunk.data.nbytes + chunk.valid.nbytes
            while self._bytes > self._limit and len(self._chunks) > 1:
                _, old = self._chunks.popitem(last=False)
                self._bytes -= old.data.nbytes + old.valid.nbytes


_CHUNKS = _ChunkCache(CACHE_BYTES)
_TOKENS = itertools.count()


class _PixelMap:
    """From a grid's pixel coordinates (x, y) to a file's.

    In one CRS that is a single affine transform, free of ground coordinates and their
    rounding. Else PROJ, control points or RPCs lie between.
    """

    def __init__(self, placement: Placement, geobox: GeoBox) -> None:
        self._placement = placement
        self._grid = Affine(*tuple(geobox.affine)[:6])
        self._crs = CRS.from_wkt(geobox.crs.to_wkt()) if geobox.crs is not None else None
        self._same_crs = self._crs == placement.crs
        self.affine = ~placement.transform * self._grid if placement.transform and self._same_crs else None
        rows, cols = geobox.shape
        self.scale = self._measure_scale(cols / 2, rows / 2)
        # The side halves until the source of a chunk is no larger than 4 x 4 chunks' worth of pixels.
        self.chunk = CHUNK >> max(0, math.ceil(math.log2(max(max(self.scale) / 4, 1))))
        self.chunk = max(self.chunk, 1)
        # Chunks lie fixed to the CRS's origin, so that a crop of a grid is read as the grid is. The odd
        # quarter keeps origins that fall between two pixels from being rounded either way.
        x, y = ~self._grid * (0.0, 0.0)
        self.anchor = (round(y + 0.23) % self.chunk, round(x + 0.23) % self.chunk)
        self._extent = max(rows, cols)

    @cached_property
    def shift(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(sign, offset) along rows and columns: source = sign * pixel + offset, for edges."""
        affine = self.affine
        assert affine is not None
        return ((round(affine.e), round(affine.f)), (round(affine.a), round(affine.c)))

    @cached_property
    def is_shift(self) -> bool:
        """The grid is the file's own moved, or mirrored, by whole pixels (to a thousandth of one)."""
        if self.affine is None:
            return False
        a, b, c, d, e, f = tuple(self.affine)[:6]
        drift = max(abs(abs(a) - 1), abs(abs(e) - 1), abs(b), abs(d)) * self._extent
        return max(drift, abs(c - round(c)), abs(f - round(f))) < 1e-3

    def _measure_scale(self, x: float, y: float) -> tuple[float, float]:
        """Source pixels per grid pixel along (y, x) at a grid position."""
        xs, ys = self._locate(np.array([x - 0.5, x + 0.5, x, x]), np.array([y, y, y - 0.5, y + 0.5]))
        along_x = math.hypot(xs[1] - xs[0], ys[1] - ys[0])
        along_y = math.hypot(xs[3] - xs[2], ys[3] - ys[2])
        if not (math.isfinite(along_x) and math.isfinite(along_y) and along_x > 0 and along_y > 0):
            return (1.0, 1.0)
        turned = abs(ys[1] - ys[0]) > 1e-3 * along_x
        mean = math.sqrt(along_x * along_y)
        return (mean, mean) if turned else (along_y, along_x)

    def _locate(self, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source pixel coordinates of grid pixel coordinates; not finite where there are none."""
        if self.affine is not None:
            return _apply(self.affine, xs, ys)
        xs, ys = _apply(self._grid, xs, ys)
        place = self._placement
        if not self._same_crs:
            assert self._crs is not None and place.crs is not None
            to_file = pyproj.Transformer.from_crs(self._crs.to_wkt(), place.crs.to_wkt(), always_xy=True)
            xs, ys = to_file.transform(xs, ys)
        if place.transform is not None:
            return _apply(~place.transform, xs, ys)
        transformer = GCPTransformer(list(place.gcps)) if place.gcps else RPCTransformer(place.rpcs)
        with transformer:
            rows, cols = transformer.rowcol(xs, ys, op=np.asarray)
        return np.asarray(cols, float), np.asarray(rows, float)

    def source_of(self, roi: Roi, shape: tuple[int, int]) -> Roi | None:
        """What of a file of `shape`, margins included, a region of the grid needs; None where nothing."""
        rows, cols = roi
        return self.window((rows.start, cols.start), (rows.stop - rows.start, cols.stop - cols.start), shape)

    def window(self, origin: tuple[int, int], size: tuple[int, int], shape: tuple[int, int]) -> Roi | None:
        """What of a file of `shape`, margins included, a chunk at `origin` needs; None where nothing."""
        steps = np.linspace(0, 1, 2 if self.affine is not None else 17)
        ys, xs = np.meshgrid(origin[0] + steps * size[0], origin[1] + steps * size[1], indexing="ij")
        xs, ys = self._locate(xs.ravel(), ys.ravel())
        finite = np.isfinite(xs) & np.isfinite(ys)
        if not finite.any():
            return None
        margin = math.ceil(2 * max(1.0, *self.scale)) + 3
        parts = []
        for places, length in ((ys[finite], shape[0]), (xs[finite], shape[1])):
            start = max(math.floor(places.min()) - margin, -margin)
            stop = min(math.ceil(places.max()) + margin, length + margin)
            if stop <= 0 or start >= length:
                return None
            parts.append(slice(start, stop))
        return parts[0], parts[1]

    def axes(self, origin: tuple[int, int], size: tuple[int, int], corner: tuple[int, int]) -> tuple[Axis, Axis] | None:
        """Where the chunk at `origin` lies along rows and columns counted from `corner`; None if they are turned."""
        if self.affine is None or max(abs(self.affine.b), abs(self.affine.d)) * self._extent > 1e-3:
            return None
        a, _, c, _, e, f = tuple(self._fixed(origin, corner))[:6]
        return Axis(f, e, size[0]), Axis(c, a, size[1])

    def _fixed(self, origin: tuple[int, int], corner: tuple[int, int]) -> Affine:
        """From pixels of the chunk at `origin` to file pixels counted from `corner`."""
        assert self.affine is not None
        a, b, c, d, e, f = tuple(self.affine * Affine.translation(origin[1], origin[0]))[:6]
        # A crop of a grid differs from the grid in the last digits: rounded away, both read the same bytes.
        return Affine(a, b, round(c, 6) - corner[1], d, e, round(f, 6) - corner[0])

    def warp(
        self, source: np.ndarray, out: np.ndarray, origin: tuple[int, int], corner: tuple[int, int], method: str
    ) -> None:
        """Resample `source`, whose first pixel is the file's `corner`, to the chunk `out` at `origin`."""
        options: dict[str, Any] = {
            "resampling": Resampling[method],
            "XSCALE": 1 / max(self.scale[1], 1e-9),
            "YSCALE": 1 / max(self.scale[0], 1e-9),
            "num_threads": 1,
        }
        if out.dtype.kind == "f":
            options |= {"src_nodata": np.nan, "dst_nodata": np.nan}
        chunk = Affine.translation(origin[1], origin[0])
        place = self._placement
        if self.affine is not None:
            fixed = self._fixed(origin, corner)
            reproject(
                source, out, src_transform=Affine.identity(), dst_transform=fixed,
                src_crs=_PIXEL_SPACE, dst_crs=_PIXEL_SPACE, tolerance=0, **options,
            )  # fmt: skip
            return
        if place.transform is not None:
            options |= {"src_transform": place.transform * Affine.translation(corner[1], corner[0])}
        elif place.gcps:
            options |= {"gcps": [_moved(point, corner) for point in place.gcps]}
        else:
            options |= {"rpcs": _moved_rpcs(place.rpcs, corner)}
        reproject(
            source,
            out,
            src_crs=place.crs,
            dst_crs=self._crs,
            dst_transform=self._grid * chunk,
            tolerance=0.01,
            **options,
        )


def _apply(affine: Affine, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b, c, d, e, f = tuple(affine)[:6]
    return a * xs + b * ys + c, d * xs + e * ys + f


def _moved(point: GroundControlPoint, corner: tuple[int, int]) -> GroundControlPoint:
    return GroundControlPoint(point.row - corner[0], point.col - corner[1], point.x, point.y, point.z or 0.0)


def _moved_rpcs(rpcs: Any, corner: tuple[int, int]) -> RPC:
    return attrs.evolve(rpcs, line_off=rpcs.line_off - corner[0], samp_off=rpcs.samp_off - corner[1])
