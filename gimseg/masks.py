"""Any raster of classes, or of probabilities, as labels: what outlines are traced from.

Read in the file's own rows and columns. Whole numbers of any size are classes; at most
254 of them become polygons at once, since a label is a byte. Probabilities become one
class where they reach a threshold.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
from rasterio.transform import Affine

from gimseg.errors import GridError, LegendError, RasterError, RefinementError
from gimseg.ground import Ground
from gimseg.legend import BACKGROUND, UNLABELLED, did_you_mean
from gimseg.morphology import Sides
from gimseg.progress import Progress, silent
from gimseg.raster_files import DRIVERS, RasterFile, alpha_bands, check_blocks, check_file, mask_kind, open_dataset
from gimseg.refined_planes import checked_sides
from gimseg.refinement import Ground as RefinedGround
from gimseg.refinement import Refinement
from gimseg.tiling import shift, widened

_MAX_READ = 2**26  # pixels read together at most, to decode each block of the file once
_STEP = 2048  # px: side of about what is read at once to look through a mask
_BYTES = tuple(range(BACKGROUND + 1, UNLABELLED))
_MOST = len(_BYTES)
_SPAN = re.compile(r"(-?\d+)(?:-(\d+))?")
_LONGEST_SPAN = 65_536
_NEAR = 1e-9  # a stored 125 with the scale 0.004 is 0.5


@dataclass(frozen=True)
class Reading:
    """What in a raster becomes polygons.

    Args:
        band: number from 1, or description; needed where there are several.
        values: the numbers that are classes, 0 and 255 too if they are named here; None:
            all but 0 and 255.
        threshold: probabilities from here on are class 1, in the raster's scaled values.
        refine: how classes are refined, as ``"open(1 m), fill(4 m2)"``, see :mod:`gimseg.refinement`; steps of
            probabilities with a `threshold` only.

    Raises:
        LegendError: no value at all, or values and a threshold.
        RefinementError: the steps are not understood, or need probabilities.
    """

    band: int | str | None = None
    values: tuple[int, ...] | None = None
    threshold: float | None = None
    refine: Refinement | str | None = None

    def __post_init__(self) -> None:
        chain = Refinement.of(self.refine)
        object.__setattr__(self, "refine", chain)
        if chain.of_probabilities and (self.threshold is None or chain.needs_image):
            raise RefinementError(
                f"{chain}: steps of probabilities need a threshold too, and guided, bilateral and crf an image: refine "
                "with predict"
            )
        if self.values is not None:
            object.__setattr__(self, "values", tuple(sorted(set(self.values))))
        if self.values == () or (self.values is not None and self.threshold is not None):
            raise LegendError("give the values that are classes, or a threshold for probabilities, or neither")
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise LegendError(f"the threshold is {self.threshold}: give a number, like 0.5")

    @property
    def chain(self) -> Refinement:
        """How classes are refined; without steps where they are not."""
        assert isinstance(self.refine, Refinement)
        return self.refine


def parse_values(text: str | None) -> tuple[int, ...] | None:
    """Values as they are written on a command line; None without a text.

    Raises:
        LegendError: no list of whole numbers and spans.

    Example:
        >>> parse_values("1, 5-7")
        (1, 5, 6, 7)
    """
    if text is None:
        return None
    values: list[int] = []
    for part in text.split(","):
        found = _SPAN.fullmatch(part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not 0 <= last - first < _LONGEST_SPAN:
            raise LegendError(f"values {text!r}: give whole numbers and spans of at most {_LONGEST_SPAN}, as 1,5-7")
        values += range(first, last + 1)
    return tuple(values)


@dataclass(frozen=True)
class NativeRaster:
    """A raster in its own rows and columns.

    Attributes:
        file: how its pixels are read, one band or several.
        transform: from (column, row) to map coordinates.
        crs_wkt: None if it has none.
        block_height: rows that are decoded together.
        scales: of each band; what is stored times this, plus the offset, is what is meant.
        offsets: of each band.
        names: descriptions of the bands, "" where there is none.
        tags: of the file.
    """

    file: RasterFile
    transform: Affine
    crs_wkt: str | None
    block_height: int
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    names: tuple[str, ...]
    tags: dict[str, str]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> NativeRaster:
        """Describe a raster; its alpha bands say what is valid, all others are read.

        Raises:
            RasterError: it cannot be read.
            GridError: control points place it.
        """
        path = check_file(path)
        with open_dataset(path, DRIVERS) as dataset:
            check_blocks(dataset, path)
            if dataset.gcps[0] and dataset.transform.is_identity:
                raise GridError(f"{path} is placed by ground control points: warp it first (gdalwarp -r near)")
            alpha = alpha_bands(dataset)
            bands = tuple(band for band in dataset.indexes if band not in alpha) or (1,)
            places = [band - 1 for band in bands]
            return cls(
                file=RasterFile(
                    path,
                    DRIVERS,
                    bands,
                    dataset.shape,
                    dataset.dtypes[places[0]],
                    tuple(dataset.nodatavals[place] for place in places),
                    alpha=alpha[0] if alpha and alpha[0] not in bands else None,
                    mask=mask_kind(dataset),
                ),
                transform=dataset.transform,
                crs_wkt=dataset.crs.to_wkt() if dataset.crs else None,
                block_height=dataset.block_shapes[0][0],
                scales=tuple(dataset.scales[place] for place in places),
                offsets=tuple(dataset.offsets[place] for place in places),
                names=tuple(dataset.descriptions[place] or "" for place in places),
                tags=dataset.tags(),
            )

    def only(self, band: int | str) -> NativeRaster:
        """The raster with one of its bands.

        Args:
            band: its number, or its description, whatever the case.

        Raises:
            RasterError: there is no such band.
        """
        text = str(band).strip().casefold()
        bands = self.file.bands
        found = [place for place, name in enumerate(self.names) if text and name.casefold() == text]
        found = found or [place for place, number in enumerate(bands) if str(number) == text]
        if not found:
            known = [name or str(number) for name, number in zip(self.names, bands, strict=True)]
            raise RasterError(f"{self.file.path} has no band {band!r}{did_you_mean(str(band), known)}")
        place = found[0]
        file = replace(self.file, bands=(bands[place],), nodata=(self.file.nodata[place],))
        one = slice(place, place + 1)
        return replace(self, file=file, scales=self.scales[one], offsets=self.offsets[one], names=self.names[one])

    def rows_read(self, rows: int) -> int:
        """How many rows to read together for strips of so many, to decode no block twice."""
        whole_blocks = -(-rows // self.block_height) * self.block_height
        return whole_blocks if whole_blocks * self.file.shape[1] <= _MAX_READ else rows


@dataclass(frozen=True)
class Mask:
    """A raster of one band, as labels.

    Attributes:
        raster: of one band.
        codes: the number in the raster of each label, from label 1 on.
        threshold: see :class:`Reading`; `codes` is then ``(1,)``.
        chain: refines the labels.
        pixel_m: height and width of a pixel, m, for the chain.
    """

    raster: NativeRaster
    codes: tuple[int, ...]
    threshold: float | None = None
    chain: Refinement = field(default_factory=Refinement)
    pixel_m: Sides = (1.0, 1.0)

    @classmethod
    def open(cls, path: str | os.PathLike[str], reading: Reading | None = None, progress: Progress = silent) -> Mask:
        """Describe a mask; one that does not hold bytes is read once to learn its classes.

        Raises:
            RasterError: it cannot be read, has several bands, or is no mask of classes.
            GridError: control points place it.
        """
        reading = reading or Reading()
        raster = NativeRaster.open(path)
        if reading.band is None and len(raster.file.bands) > 1:
            known = ", ".join(name or str(band) for name, band in zip(raster.names, raster.file.bands, strict=True))
            raise RasterError(
                f"{path} has {len(raster.file.bands)} bands and a mask has one: say which with --band ({known}), or "
                "give the mask"
            )
        raster = raster.only(raster.file.bands[0] if reading.band is None else reading.band)
        chain = reading.chain
        pixel_m = checked_sides(chain, Ground.of(raster.transform, raster.crs_wkt, raster.file.shape))
        if reading.threshold is not None:
            codes: tuple[int, ...] = (1,)
        elif raster.file.dtype == "uint8":
            codes = _BYTES if reading.values is None else _chosen(path, range(256), reading)
        else:
            codes = _chosen(path, _codes_in(raster, progress), reading)
        return cls(raster, codes, reading.threshold, chain, pixel_m)

    @property
    def path(self) -> str:
        """The file."""
        return self.raster.file.path

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.raster.file.shape

    def codes_of(self, labels: np.ndarray) -> np.ndarray:
        """The number in the raster of each label, int64."""
        return np.array([BACKGROUND, *self.codes], np.int64)[labels]

    def cuts(self, block: int) -> list[tuple[int, int]]:
        """Rows (top, bottom) to be read at once: whole blocks of the file, about block x block px or more."""
        height, width = self.shape
        # What is refined is read with a margin: with few rows most of the work would be the margin's.
        least = 4 * self.chain.margin(self.pixel_m) if self.chain.steps else 1
        step = self.raster.rows_read(max(least, block * block // width))
        return [(top, min(top + step, height)) for top in range(0, height, step)]

    def read(self, top: int, bottom: int) -> np.ndarray:
        """Labels of some rows, uint8 (rows, width)."""
        return self.labels((slice(top, bottom), slice(0, self.shape[1])))

    def labels(self, roi: tuple[slice, slice]) -> np.ndarray:
        """Labels of a region, uint8 (rows, columns); 0 where there is no polygon."""
        if not self.chain.steps:
            return self._labels(*self.raster.file.read(roi))
        margin = self.chain.margin(self.pixel_m)
        wide = widened(roi, (margin, margin), self.shape)
        refined = self._refined(*self.raster.file.read(wide))[shift(roi, wide)]
        return np.where(refined == UNLABELLED, np.uint8(BACKGROUND), refined)

    def _refined(self, data: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Labels, and 255 where nothing is known."""
        if self.threshold is None:
            unknown = ~valid | ((data[0] == UNLABELLED) & (UNLABELLED not in self.codes))
            labels = np.where(unknown, np.uint8(UNLABELLED), self._labels(data, valid))
            return self.chain.apply_mask(labels, self.pixel_m)
        shares = np.where(valid, self._meant(data[0]), 0).astype(np.float32)
        ground = RefinedGround(valid, self.pixel_m)
        return self.chain.apply(shares[None], ground, lambda planes: self._above(planes[0]).astype(np.uint8))

    def _meant(self, values: np.ndarray) -> np.ndarray:
        return values * self.raster.scales[0] + self.raster.offsets[0]

    def _above(self, shares: np.ndarray) -> np.ndarray:
        assert self.threshold is not None
        return shares >= self.threshold - _NEAR

    def _labels(self, data: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Labels of what was read, (bands, rows, columns) and (rows, columns)."""
        values = data[0]
        if self.threshold is not None:
            return (self._above(self._meant(values)) & valid).astype(np.uint8)
        if self.codes == _BYTES and values.dtype == np.uint8:
            # Invalid pixels read as 0.
            return np.where(values == UNLABELLED, np.uint8(BACKGROUND), values)
        if values.dtype == np.uint8:
            labels = np.take(self._of_bytes, values)
        else:
            codes = np.array(self.codes, values.dtype)
            place = np.searchsorted(codes, values)
            hit = np.take(codes, place, mode="clip") == values if len(codes) else np.zeros(values.shape, bool)
            labels = np.where(hit, place + 1, BACKGROUND).astype(np.uint8)
        labels[~valid] = BACKGROUND
        return labels

    def holds_unlabelled_only(self) -> bool:
        """Whether a mask of bytes has valid pixels of 255 and none of another class: other tools' own "yes"."""
        if self.raster.file.dtype != "uint8" or self.codes != _BYTES:
            return False
        for top, bottom in self.cuts(_STEP):
            data, valid = self.raster.file.read((slice(top, bottom), slice(0, self.shape[1])))
            if (data[0][valid] == UNLABELLED).any():
                return True
        return False

    @cached_property
    def _of_bytes(self) -> np.ndarray:
        """The label of each byte."""
        table = np.zeros(256, np.uint8)
        table[list(self.codes)] = np.arange(1, len(self.codes) + 1)
        return table


def _codes_in(raster: NativeRaster, progress: Progress) -> list[int]:
    """The whole numbers in a raster, sorted, without 0 and what is invalid."""
    height, width = raster.file.shape
    rows = raster.rows_read(max(1, _STEP * _STEP // width))
    found: set[int] = set()
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        # Invalid pixels read as 0, which is in nearly every mask: reading it too costs nothing.
        values = pd.unique(raster.file.read((slice(top, bottom), slice(0, width))).data[0].ravel())
        odd = values[values % 1 != 0]
        if len(odd):
            raise RasterError(
                f"{raster.file.path} holds the value {odd[0]}; classes are whole numbers: give a mask of classes, or "
                "a threshold (--threshold 0.5) for probabilities"
            )
        found.update(values.astype(np.int64).tolist())
        progress("classes", bottom * width / 1e6, height * width / 1e6, "Mpx")
    return sorted(found)


def _chosen(path: str | os.PathLike[str], present: list[int] | range, reading: Reading) -> tuple[int, ...]:
    """The codes that become polygons."""
    if reading.values is None:
        codes = [code for code in present if code not in (BACKGROUND, UNLABELLED)]
    else:
        codes = [code for code in reading.values if code in set(present)]
    if len(codes) > _MOST:
        raise RasterError(
            f"{path} holds {len(codes)} different values ({codes[0]} to {codes[-1]}): at most {_MOST} classes become "
            "polygons at once; say which with --values, or is it an image?"
        )
    return tuple(codes)
