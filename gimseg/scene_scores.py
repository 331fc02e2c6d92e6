"""One scene scored, in one pass of the prediction: confusion, probabilities, outlines, objects, windows.

The prediction is counted as it comes and kept on disk meanwhile; outlines and objects,
which need what lies around them, are read from there. Memory is that of a block, however
large the scene is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from gimseg.boundary_scores import BoundaryTable
from gimseg.freed_memory import give_back_freed_memory
from gimseg.ground import Ground
from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import UNLABELLED
from gimseg.metrics import Confusion
from gimseg.object_matching import class_of_colours, colours_for, count_objects
from gimseg.object_scores import ObjectTable
from gimseg.probability_scores import ProbabilityTable
from gimseg.progress import Progress
from gimseg.rasters import Roi
from gimseg.sample_windows import Counted, WindowCounter, Windows
from gimseg.scene_predictions import KeptPlanes, Predicted, Predictions
from gimseg.tiling import chunks, overlap, roi_shape, shift, widened

_PICTURE_SIDE = 900
_TILE = 1024
_STRIP_PIXELS = 2**22


@dataclass(frozen=True)
class Reach:
    """How far outlines are looked at.

    Args:
        distance_m: within which an outline counts as hit, m.
        reach_m: distances up to this one are told apart, m; those of Hausdorff end there.
    """

    distance_m: float
    reach_m: float


@dataclass(frozen=True, eq=False)
class Score:
    """What was counted on one raster in one split.

    Args:
        tag: tag of the dataset.
        path: the raster.
        split: ``train``, ``val``, ``test``, or ``all`` where the ground has no split.
        scene: number of the scene, from 0.
        windows: the ground, window by window.
        probabilities: None for ready masks.
        outlines: of each class.
        objects: of each class; none where the ground truth is points or lines.
    """

    tag: str
    path: str
    split: str
    scene: int
    windows: Windows
    probabilities: ProbabilityTable | None
    outlines: tuple[BoundaryTable, ...]
    objects: tuple[ObjectTable, ...]

    @property
    def confusion(self) -> Confusion:
        """Classes with the background, in legend order."""
        return self.windows.total


@dataclass(frozen=True, eq=False)
class Overview:
    """A scene in few pixels, where it has labels.

    Args:
        step: every so manieth row and column of the scene.
        origin: row and column of the scene where it begins.
        image: float32 (bands, rows, cols).
        truth: uint8 (rows, cols), numbers of classes.
        classes: uint8 (rows, cols), predicted.
    """

    step: int
    origin: tuple[int, int]
    image: NDArray[np.float32]
    truth: NDArray[np.uint8]
    classes: NDArray[np.uint8]


class SceneScorer:
    """Scores one scene, and keeps its prediction until it is closed.

    Args:
        scene: at the resolution of the predictions.
        number: of the scene, from 0.
        split: only ground of this split; None: each of the scene.
        folder: for what is kept meanwhile.
    """

    def __init__(self, scene: LabelledScene, number: int, split: str | None, folder: Path) -> None:
        self.scene, self.number = scene, number
        self._keys = (split,) if split else scene.split_names
        self._kept = KeptPlanes(folder / f"{number}.tif", scene.shape)
        self._classes = len(scene.legend.classes)
        self._sketch = _Sketch(scene)

    def score(self, predictions: Predictions, reach: Reach, progress: Progress) -> list[Score]:
        """Compare the scene; one for each split with labelled pixels.

        Raises:
            GimsegError: something cannot be read.
        """
        counters = [WindowCounter(self.scene.shape, self._classes + 1) for _ in self._keys]
        tables = [ProbabilityTable.zeros(self._classes) for _ in self._keys]
        with_shares = False
        with self._kept:
            for block in self._told(predictions, progress):
                for place, truth in enumerate(self._compared(block)):
                    counters[place].add(block.roi, Counted(truth, block.classes, block.shares))
                    if block.shares is not None:
                        tables[place] += ProbabilityTable.of_bytes(truth, block.shares)
                        with_shares = True
            found = []
            for key, counter, table in zip(self._keys, counters, tables, strict=True):
                windows = counter.windows()
                if len(windows):
                    found.append(
                        Score(
                            self.scene.tag,
                            self.scene.path,
                            key or "all",
                            self.number,
                            windows,
                            probabilities=table if with_shares else None,
                            outlines=self._outlines(key, reach),
                            objects=self._objects(key),
                        )
                    )
        return found

    def overview(self) -> Overview:
        """A picture of what was compared."""
        return self._sketch.cut()

    def read(self, roi: Roi) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
        """Image (bands, rows, cols), truth and prediction (rows, cols) of a region, as numbers of classes."""
        classes = self._kept.read(roi)
        return self.scene.view.read(roi).data, self._truth(roi, self._keys, classes), classes

    def _told(self, predictions: Predictions, progress: Progress) -> Iterator[Predicted]:
        """Blocks with labels, and how far they are."""
        total, done = math.prod(self.scene.shape) / 1e6, 0.0
        task = f"score {os.path.basename(self.scene.path)}"
        progress(task, 0, total, "Mpx")
        for block in predictions.blocks(self.scene, self._is_labelled):
            yield block
            give_back_freed_memory()
            done += block.classes.size / 1e6
            progress(task, done, total, "Mpx")

    def _is_labelled(self, roi: Roi) -> bool:
        return any((self.scene.read_labels(roi, key) != UNLABELLED).any() for key in self._keys)

    def _compared(self, block: Predicted) -> Iterator[NDArray[np.uint8]]:
        """The truth of a block in each split; the prediction is kept on the way."""
        pixels = self.scene.view.read(block.roi)
        classes = np.where(pixels.valid, block.classes, np.uint8(UNLABELLED))
        self._kept.write(block.roi, classes)
        self._sketch.add(block.roi, pixels.data, self._truth(block.roi, self._keys, classes), classes)
        for key in self._keys:
            yield self._truth(block.roi, (key,), classes)

    def _truth(self, roi: Roi, keys: Sequence[str | None], classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Numbers of classes, 255 where nothing is known in any of the splits, or there is no image."""
        labels = np.full(classes.shape, UNLABELLED, np.uint8)
        for key in keys:
            own = self.scene.legend.to_channels(self.scene.read_labels(roi, key))
            labels = np.where(own == UNLABELLED, labels, own)
        return np.where(classes == UNLABELLED, np.uint8(UNLABELLED), labels)

    def _outlines(self, key: str | None, reach: Reach) -> tuple[BoundaryTable, ...]:
        height, width = _pixel_m(self.scene)
        margins = (math.ceil(reach.reach_m / height) + 2, math.ceil(reach.reach_m / width) + 2)
        tables = [BoundaryTable.zeros(reach.reach_m) for _ in range(self._classes)]
        for core in chunks(self.scene.shape, _TILE, _TILE):
            if not self._holds(core, key):
                continue
            wide = widened(core, margins, self.scene.shape)
            classes = self._kept.read(wide)
            truth = self._truth(wide, (key,), classes)
            for number in range(self._classes):
                tables[number] += BoundaryTable.of(
                    truth,
                    classes,
                    pixel_m=(height, width),
                    reach_m=reach.reach_m,
                    value=number + 1,
                    core=shift(core, wide),
                )
        return tuple(tables)

    def _holds(self, roi: Roi, key: str | None) -> bool:
        """Whether there is something to compare."""
        classes = self._kept.read(roi)
        return bool((classes != UNLABELLED).any()) and bool((self._truth(roi, (key,), classes) != UNLABELLED).any())

    def _objects(self, key: str | None) -> tuple[ObjectTable, ...]:
        scene = self.scene
        if any(shapes.partial for shapes in scene.truth):
            return ()
        apart, class_of = _apart(scene)
        rows, cols = scene.shape
        step = max(1, min(_TILE, _STRIP_PIXELS // cols))

        def strips() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
            for top in range(0, rows, step):
                roi = (slice(top, min(top + step, rows)), slice(0, cols))
                classes, labels = self._kept.read(roi), apart.read_labels(roi, key)
                unknown = (labels == UNLABELLED) | (classes == UNLABELLED)
                yield np.where(unknown, np.uint8(0), labels), np.where(unknown, np.uint8(0), classes)

        return count_objects(strips(), class_of, math.prod(_pixel_m(scene)))


class _Sketch:
    """Every so manieth pixel of a scene, where it may have labels."""

    def __init__(self, scene: LabelledScene) -> None:
        self._extent = _labelled_extent(scene)
        sides = roi_shape(self._extent)
        self._step = max(1, math.ceil(max(sides) / _PICTURE_SIDE))
        coarse = tuple(math.ceil(size / self._step) for size in sides)
        self._image = np.zeros((len(scene.raster.bands), *coarse), np.float32)
        self._truth, self._classes = (np.full(coarse, UNLABELLED, np.uint8) for _ in range(2))

    def add(self, roi: Roi, image: NDArray[np.float32], truth: NDArray[np.uint8], classes: NDArray[np.uint8]) -> None:
        common, step = overlap(roi, self._extent), self._step
        if common is None:
            return
        inner, outer = shift(common, roi), shift(common, self._extent)
        rows, cols = (
            slice(own.start + -place.start % step, own.stop, step) for own, place in zip(inner, outer, strict=True)
        )
        down, across = (slice(math.ceil(place.start / step), math.ceil(place.stop / step)) for place in outer)
        self._image[:, down, across] = image[:, rows, cols]
        self._truth[down, across], self._classes[down, across] = truth[rows, cols], classes[rows, cols]

    def cut(self) -> Overview:
        """The part that was compared; all of it where nothing was."""
        known = self._truth != UNLABELLED
        spans = []
        for axis in (1, 0):
            there = np.flatnonzero(known.any(axis))
            spans.append(slice(there[0], there[-1] + 1) if there.size else slice(0, known.shape[1 - axis]))
        rows, cols = spans
        top, left = (int(part.start * self._step + axis.start) for part, axis in zip(spans, self._extent, strict=True))
        image = self._image[:, rows, cols]
        return Overview(self._step, (top, left), image, self._truth[rows, cols], self._classes[rows, cols])


def _labelled_extent(scene: LabelledScene) -> Roi:
    """The rows and columns that areas of interest meet; all where there are none."""
    whole = (slice(0, scene.shape[0]), slice(0, scene.shape[1]))
    bounds = [area.bounds for area in scene.areas.values() if area.bounds is not None]
    if not bounds:
        return whole
    corners = shapely.box(*np.array(bounds).T)
    to_pixels = ~scene.geobox.affine
    left, top, right, bottom = shapely.total_bounds(
        shapely.transform(corners, lambda xy: np.column_stack(to_pixels * tuple(xy.T)))
    )
    found = (slice(math.floor(top), math.ceil(bottom)), slice(math.floor(left), math.ceil(right)))
    return overlap(found, whole) or whole


def _apart(scene: LabelledScene) -> tuple[LabelledScene, NDArray[np.uint8]]:
    """The scene with labels that tell objects that touch apart, where polygons do, and what class each label is."""
    classes = len(scene.legend.classes)
    if scene.truth_views or not scene.truth:
        return scene, np.where(np.arange(256) == UNLABELLED, 0, _known(scene.legend.to_channels(np.arange(256))))
    near = 1.5 * max(abs(side) for side in (scene.geobox.resolution.x, scene.geobox.resolution.y))
    coloured = []
    for shapes in scene.truth:
        numbers = scene.legend.to_channels(shapes.values)
        coloured.append(replace(shapes, values=colours_for(shapes.geometries, numbers, classes, near)))
    return replace(scene, truth=tuple(coloured)), class_of_colours(classes)


def _known(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.where(numbers == UNLABELLED, np.uint8(0), numbers)


def _pixel_m(scene: LabelledScene) -> tuple[float, float]:
    """Height and width of a pixel at the scene's centre, m; the CRS's own unit where nothing tells metres."""
    crs = scene.geobox.crs
    width, height = Ground.of(scene.geobox.affine, crs.to_wkt() if crs else None, scene.shape).pixel_m
    return float(height), float(width)


def choose_reach(scenes: Sequence[LabelledScene], distance_m: float | None) -> Reach:
    """How far outlines of scenes are looked at.

    Args:
        scenes: that are compared.
        distance_m: within which an outline counts as hit, m; None: three pixels of the coarsest scene.
    """
    sides = [_pixel_m(scene) for scene in scenes]
    distance = 3 * max(map(max, sides)) if distance_m is None else distance_m
    return Reach(distance, max(distance, min(20 * distance, 128 * min(map(min, sides)))))
