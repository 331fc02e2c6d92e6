"""A raster with its ground truth, window by window, on one grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import numpy as np
import shapely
from odc.geo.geobox import GeoBox

from gimseg.legend import UNLABELLED, Legend
from gimseg.levelling import LevelledFile, Levels, levelled
from gimseg.raster_files import RasterFile
from gimseg.rasters import Pixels, Raster, RasterView, Roi
from gimseg.vectors import Shapes

_MARGIN = 64
"""Of a file's pixels around a scene: what resampling to coarser grids needs."""


class Holdout(Protocol):
    """Says which ground belongs to which split, where the datasets do not say it."""

    def mask(self, window: GeoBox, split: str) -> np.ndarray:
        """Where the window's pixels belong to `split`: bool (rows, cols)."""


class DrawnLabels(Protocol):
    """Says what every pixel is, 255 where nobody said it."""

    def burn(self, window: GeoBox) -> np.ndarray:
        """Labels of a window: uint8 (rows, cols)."""


class Marks(Protocol):
    """Says which pixels somebody has labelled, where that is not all ground."""

    def mask(self, window: GeoBox) -> np.ndarray:
        """The labelled pixels of a window: bool (rows, cols)."""


@dataclass(frozen=True)
class LabelledScene:
    """One raster at the ground resolution, with its ground truth.

    Args:
        tag: tag of its dataset.
        raster: the raster.
        view: the raster on its grid at the ground resolution.
        legend: classes.
        truth: objects to burn.
        truth_views: rasters of class values, read on the same grid.
        drawing: what else was drawn, background and unknown ground included; in place of `truth`.
        areas: split -> where the ground truth is complete for that split; the key
            None holds for every split.
        split: split of the whole scene, if it has one.
        holdout: what divides a scene without a split, or is kept from the training ground of one with a split.
        ignored: where nothing is known, whatever the ground truth says.
        notes: what a person should know.
        weight: how many times as often as others its windows are drawn.
        points: the only pixels that are labelled, except in ground to score on; None: all are.
    """

    tag: str
    raster: Raster
    view: RasterView
    legend: Legend
    truth: tuple[Shapes, ...] = ()
    truth_views: tuple[RasterView, ...] = ()
    areas: dict[str | None, Shapes] = field(default_factory=dict)
    split: str | None = None
    holdout: Holdout | None = None
    ignored: Shapes | None = None
    notes: tuple[str, ...] = ()
    weight: float = 1.0
    points: Marks | None = None
    drawing: DrawnLabels | None = None

    @property
    def path(self) -> str:
        """Where the raster lies."""
        return self.raster.path

    @property
    def geobox(self) -> GeoBox:
        """The grid at the ground resolution."""
        return self.view.geobox

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) at the ground resolution."""
        return (self.view.shape[0], self.view.shape[1])

    @property
    def splits(self) -> frozenset[str]:
        """Splits that its ground is known to belong to; empty if nothing was said."""
        if self.split:
            return frozenset({self.split})
        said = frozenset(key for key, area in self.areas.items() if key and len(area))
        return said or frozenset({"train", "val"} if self.holdout else ())

    @property
    def split_names(self) -> tuple[str | None, ...]:
        """Its splits in order, or None alone where nothing was said."""
        return tuple(sorted(self.splits)) or (None,)

    def count_objects(self, value: int, split: str | None = None) -> int:
        """Shapes of a class that meet the ground of a split (None: any); one on a border meets both sides."""
        shapes = [drawn.geometries[drawn.values == value] for drawn in self.truth]
        areas = [area.geometries for key, area in self.areas.items() if split is None or key in (None, split)]
        if not self.areas:
            return sum(map(len, shapes))
        ground = shapely.STRtree(np.concatenate([np.empty(0, object), *areas]))
        return sum(len(np.unique(ground.query(drawn, predicate="intersects")[0])) for drawn in shapes)

    def crop(self, roi: Roi) -> LabelledScene:
        """A part of the scene, rows and columns of its grid, as a scene of its own."""
        window = self.geobox[roi]
        views = tuple(view.on(window) for view in self.truth_views)
        return replace(self, view=self.raster.on(window), truth_views=views)

    def levelled(self, levels: Levels) -> LabelledScene:
        """The scene with the bands of its image brought to mean 0 and deviation 1."""
        raster = levelled(self.raster, levels)
        return replace(self, raster=raster, view=raster.on(self.geobox))

    def read(self, roi: Roi, split: str | None = None) -> tuple[Pixels, np.ndarray]:
        """Pixels of a window and their labels.

        Args:
            roi: (rows, columns); may stick out of the grid.
            split: only ground of this split keeps its labels; None: all.

        Returns:
            pixels: data float32 (bands, rows, cols), valid bool (rows, cols).
            labels: uint8 (rows, cols); 255 where unlabelled or invalid.
        """
        pixels = self.view.read(roi)
        labels = self.read_labels(roi, split)
        labels[~pixels.valid] = UNLABELLED
        return pixels, labels

    def read_known(self, roi: Roi, split: str | None = None) -> np.ndarray:
        """The labels of :meth:`read` alone; the image is read only where there are some.

        What was drawn on a large raster is found at the cost of what was drawn.
        """
        labels = self.read_labels(roi, split)
        known = labels != UNLABELLED
        if known.any():
            rows, cols = (_extent(known.any(axis)) for axis in (1, 0))
            top, left = roi[0].start, roi[1].start
            there = slice(top + rows.start, top + rows.stop), slice(left + cols.start, left + cols.stop)
            labels[rows, cols][~self.view.read(there).valid] = UNLABELLED
        return labels

    def read_on(self, window: GeoBox, split: str | None = None) -> tuple[Pixels, np.ndarray]:
        """As :meth:`read`, on a small grid of any resolution: pixels from the file, labels burnt on it."""
        pixels = self.raster.on(window).read_alone()
        values = [view.on(window).read_values(_whole(window)) for view in self.truth_views]
        labels = self._of_split(self._known(window, values), window, split)
        labels[~pixels.valid] = UNLABELLED
        return pixels, labels

    def read_labels(self, roi: Roi, split: str | None = None) -> np.ndarray:
        """Labels of a window, whether its pixels are valid or not: uint8 (rows, cols)."""
        return self._read_labels(roi, [split])[0]

    def _read_labels(self, roi: Roi, splits: Sequence[str | None]) -> list[np.ndarray]:
        """Labels of a window for several splits; what all of them share is burnt once."""
        inside = _inside(roi, self.shape)
        window = self.geobox[inside]
        shape = (roi[0].stop - roi[0].start, roi[1].stop - roi[1].start)
        planes = [np.full(shape, UNLABELLED, np.uint8) for _ in splits]
        if 0 not in window.shape:
            rows, cols = (max(0, -axis.start) for axis in roi)
            values = [view.read_values(inside) for view in self.truth_views]
            known = self._known(window, values)
            for plane, split in zip(planes, splits, strict=True):
                burnt = self._of_split(known, window, split)
                plane[rows : rows + window.shape[0], cols : cols + window.shape[1]] = burnt
        return planes

    def _of_split(self, labels: np.ndarray, window: GeoBox, split: str | None) -> np.ndarray:
        """What is known on a grid, where it is ground of a split (None: of any)."""
        if self.split is not None and split not in (None, self.split):
            return np.full(window.shape, UNLABELLED, np.uint8)
        if self.areas:
            inside = np.zeros(window.shape, bool)
            for key, area in self.areas.items():
                if split is None or key in (None, split):
                    inside |= area.burn_mask(window)
            labels = np.where(inside, labels, UNLABELLED)
        if self.holdout is not None and split is not None:
            labels = np.where(self.holdout.mask(window, split), labels, UNLABELLED)
        if self.ignored is not None:
            labels = np.where(self.ignored.burn_mask(window), UNLABELLED, labels)
        if self.points is not None and split not in ("val", "test"):
            labels = np.where(self.points.mask(window), labels, UNLABELLED)
        return labels.astype(np.uint8)

    def _known(self, window: GeoBox, truth_values: Sequence[Pixels]) -> np.ndarray:
        """What the ground truth says, whatever the areas, given what its rasters hold there."""
        if self.drawing is not None:
            return self.drawing.burn(window)
        partial = any(shapes.partial for shapes in self.truth) or not (self.truth or self.truth_views)
        labels = np.full(window.shape, UNLABELLED if partial else 0, np.uint8)
        for pixels in truth_values:
            values = np.where(pixels.valid, _legend_values(pixels.data[0], self.legend), UNLABELLED)
            # A raster of labels says nothing where it does not reach; another one may.
            labels = np.where(pixels.valid, values, labels) if len(self.truth_views) > 1 else values
        for shapes in self.truth:
            drawn = shapes.burn(window, fill=0)
            labels = np.where(drawn == 0, labels, drawn)
        return labels

    def in_memory(self, *, with_file: bool = False) -> LabelledScene:
        """The same scene with all its pixels and labels held in memory, for quick random windows.

        Args:
            with_file: the file's native pixels too, for :meth:`read_on`.
        """
        held = {item.name: getattr(self, item.name) for item in fields(LabelledScene)}
        file = self.raster.file
        if with_file and isinstance(file, RasterFile | LevelledFile):
            held["raster"] = replace(self.raster, file=file.in_memory(self.native_part))
        return MemoryScene(**held)

    @property
    def native_part(self) -> Roi:
        """Rows and columns of the raster's file that windows of the scene show, at any of the usual resolutions."""
        return self.view.source(margin=_MARGIN)


@dataclass(frozen=True)
class MemoryScene(LabelledScene):
    """A LabelledScene that is read once, row by row, and kept."""

    def __post_init__(self) -> None:
        rows, cols = self.shape
        bands = len(self.raster.bands)
        data, valid = np.zeros((bands, rows, cols), np.float32), np.zeros((rows, cols), bool)
        labels: dict[str | None, np.ndarray] = {}
        for key in {None, *self.splits}:
            labels[key] = np.full((rows, cols), UNLABELLED, np.uint8)
        for start in range(0, rows, 512):
            strip = (slice(start, min(start + 512, rows)), slice(0, cols))
            data[:, strip[0]], valid[strip[0]] = self.view.read(strip)
            for plane, read in zip(labels.values(), self._read_labels(strip, list(labels)), strict=True):
                plane[strip[0]] = read
        object.__setattr__(self, "_planes", (data, valid, labels))

    def read(self, roi: Roi, split: str | None = None) -> tuple[Pixels, np.ndarray]:
        data, valid, _ = self._planes  # type: ignore[attr-defined]
        pixels = Pixels(_cut(data, roi, 0), _cut(valid, roi, False))
        labels = self.read_labels(roi, split)
        labels[~pixels.valid] = UNLABELLED
        return pixels, labels

    def read_labels(self, roi: Roi, split: str | None = None) -> np.ndarray:
        labels = self._planes[2]  # type: ignore[attr-defined]
        if split is not None and split not in labels:
            # Ground of no split at all serves every split that is asked for.
            if self.splits:
                return np.full((roi[0].stop - roi[0].start, roi[1].stop - roi[1].start), UNLABELLED, np.uint8)
            split = None
        return _cut(labels[split], roi, UNLABELLED)


def _whole(grid: GeoBox) -> Roi:
    return slice(0, grid.shape[0]), slice(0, grid.shape[1])


def _cut(plane: np.ndarray, roi: Roi, fill: float) -> np.ndarray:
    """A copy of a window of (…, rows, cols), filled where it sticks out."""
    inside = _inside(roi, plane.shape[-2:])
    cut = np.full((*plane.shape[:-2], *(axis.stop - axis.start for axis in roi)), fill, plane.dtype)
    offsets = [max(0, -axis.start) for axis in roi]
    target = [
        slice(offset, offset + max(0, axis.stop - axis.start)) for offset, axis in zip(offsets, inside, strict=True)
    ]
    cut[..., target[0], target[1]] = plane[..., inside[0], inside[1]]
    return cut


def _extent(known: np.ndarray) -> slice:
    """From the first to the last of what is known along an axis."""
    there = np.flatnonzero(known)
    return slice(int(there[0]), int(there[-1]) + 1)


def _inside(roi: Roi, shape: Sequence[int]) -> Roi:
    """The part of a window that lies on the grid; empty slices where none does."""
    rows, cols = (
        slice(min(max(axis.start, 0), size), max(min(axis.stop, size), min(max(axis.start, 0), size)))
        for axis, size in zip(roi, shape, strict=True)
    )
    return rows, cols


def _legend_values(values: np.ndarray, legend: Legend) -> np.ndarray:
    """Values of a label raster as classes of the legend; unknown ones are unlabelled."""
    if values.dtype == np.uint8:
        # Looked up in a table: finding out which values are there would take longer than all the rest.
        return _meanings(range(256), legend)[values]
    there, places = np.unique(values, return_inverse=True)
    return _meanings(there.tolist(), legend)[places].reshape(values.shape)


def _meanings(values: Iterable[float], legend: Legend) -> np.ndarray:
    """What values of a label raster mean, uint8: a class, background, or unlabelled, as fractions and NaN are."""
    known = {0: 0, UNLABELLED: UNLABELLED, **{int(value): int(value) for value in legend.values}}

    def meaning(value: float) -> int:
        if not float(value).is_integer():
            return UNLABELLED
        told = legend.value_of(int(value))
        return known.get(int(value), UNLABELLED) if told is None else told

    return np.array([meaning(value) for value in values], np.uint8)
