"""Rasters brought to mean 0 and deviation 1 of each band by statistics of their own, before anything else is done.

The statistics are those of all valid pixels on a grid, summed in one streaming pass over
fixed squares: they depend on the raster and the grid alone. A gain and an offset of the
values, as another sensor, season or export has them, drop out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from gimseg.errors import RasterError
from gimseg.raster_files import Pixels, RasterFile, Roi, Source
from gimseg.rasters import Raster, RasterView

Levels = tuple[tuple[float, ...], tuple[float, ...]]
"""What is subtracted from each band, and what it is then divided by, in raster values."""

_ROWS, _COLS = 1024, 4096


@dataclass(frozen=True, eq=False)
class BandSums:
    """Sums over valid pixels.

    Args:
        valid: how many there are.
        total: float64 (bands,), of their values.
        squares: float64 (bands,), of the squares of their values.
    """

    valid: int
    total: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, pixels: Pixels) -> BandSums:
        """Of a region."""
        values = pixels.data[:, pixels.valid].astype(np.float64)
        return cls(values.shape[1], values.sum(axis=1), np.square(values).sum(axis=1))

    @classmethod
    def together(cls, parts: Iterable[BandSums]) -> BandSums:
        """Of several regions, at least one."""
        found = list(parts)
        return cls(
            sum(part.valid for part in found),
            np.sum([part.total for part in found], axis=0),
            np.sum([part.squares for part in found], axis=0),
        )

    @property
    def levels(self) -> Levels:
        """Mean and standard deviation of each band; 0 and 1 where there is no valid pixel."""
        mean = self.total / max(1, self.valid)
        variance = self.squares / max(1, self.valid) - np.square(mean)
        # A constant band tells nothing: deviation 1 leaves it at 0.
        varies = variance > 1e-12 * np.maximum(np.square(mean), 1e-12)
        deviation = np.where(varies, np.sqrt(np.maximum(variance, 0)), 1.0)
        return tuple(float(value) for value in mean), tuple(float(value) for value in deviation)


@dataclass(frozen=True, eq=False)
class LevelledFile:
    """Native pixels, less a mean and divided by a deviation, as float32.

    Args:
        file: where they come from.
        levels: of its bands.
    """

    file: Source
    levels: Levels

    @property
    def path(self) -> str:
        """As messages name it."""
        return self.file.path

    @property
    def bands(self) -> tuple[int, ...]:
        """1-based numbers of the bands that are read."""
        return self.file.bands

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.file.shape

    @property
    def dtype(self) -> str:
        """Of the pixels."""
        return "float32"

    @property
    def in_strips(self) -> bool:
        """Any part of a row costs all of it."""
        return self.file.in_strips

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that are read, or cannot be read, as one."""
        return self.file.block

    def read(self, roi: Roi) -> Pixels:
        """Levelled values, float32 (bands, rows, cols), 0 where invalid, and their validity.

        Raises:
            RasterError: the file cannot be read there.
        """
        data, valid = self.file.read(roi)
        mean, std = (np.array(numbers, np.float32)[:, None, None] for numbers in self.levels)
        return Pixels(np.where(valid, (data.astype(np.float32) - mean) / std, np.float32(0)), valid)

    def is_empty(self, roi: Roi) -> bool:
        """Whether it is known, without reading pixels, that none is valid there."""
        return self.file.is_empty(roi)

    def is_there(self) -> bool:
        """Whether there is anything to read from, damaged or not."""
        return self.file.is_there()

    def in_memory(self, part: Roi) -> LevelledFile:
        """The same with the native pixels of a part of a file held in memory."""
        return replace(self, file=self.file.in_memory(part)) if isinstance(self.file, RasterFile) else self


def measure(view: RasterView, *, lenient: bool = False) -> BandSums:
    """Sums over all valid pixels of a raster on a grid.

    Args:
        view: the raster on the grid.
        lenient: squares that cannot be read are left out.

    Raises:
        RasterError: a square cannot be read.
    """
    nothing = np.zeros(len(view.file.bands))
    return BandSums.together([BandSums(0, nothing, nothing), *_parts(view, lenient)])


def _parts(view: RasterView, lenient: bool) -> Iterator[BandSums]:
    rows, cols = view.shape
    for top in range(0, rows, _ROWS):
        for left in range(0, cols, _COLS):
            try:
                yield BandSums.of(
                    view.read_plain((slice(top, min(top + _ROWS, rows)), slice(left, min(left + _COLS, cols))))
                )
            except RasterError:
                if not lenient or not view.file.is_there():
                    raise


def levelled(raster: Raster, levels: Levels) -> Raster:
    """The raster, its bands brought to mean 0 and deviation 1."""
    return replace(raster, file=LevelledFile(raster.file, levels), dtype="float32", nodata=None)


def native_dtype(raster: Raster) -> str:
    """Data type of the raster's values as they are in its file."""
    return raster.file.file.dtype if isinstance(raster.file, LevelledFile) else raster.dtype
