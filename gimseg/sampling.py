"""Which windows to learn from: a survey of the ground, and draws from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gimseg.errors import DatasetError
from gimseg.labelled_scenes import LabelledScene
from gimseg.labelled_windows import WindowRequest
from gimseg.legend import UNLABELLED
from gimseg.levelling import BandSums
from gimseg.progress import Progress, silent

CELL = 32
"""Side of the squares in which a survey counts labels, px."""
_BLOCK = 1024
_SAMPLE = 4096


@dataclass(frozen=True)
class Survey:
    """What one streaming pass over a scene finds.

    Args:
        scene: the scene.
        split: the split whose labels were counted; None: all.
        valid: number of valid pixels.
        counts: int64 (256,), pixels of each label; [255] counts unlabelled ones.
        total: float64 (bands,), sum over valid pixels.
        squares: float64 (bands,), sum of squares over valid pixels.
        labelled: int32 (cells, cells), labelled pixels in squares of ``CELL`` px.
        by_class: int32 (classes, cells, cells), pixels of each class of the legend there.
        sample: float32 (bands, n), values of valid pixels spread evenly over the scene.
    """

    scene: LabelledScene
    split: str | None
    valid: int
    counts: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    labelled: np.ndarray
    by_class: np.ndarray
    sample: np.ndarray

    @property
    def objects(self) -> np.ndarray:
        """int32 (cells, cells): pixels of any class but background."""
        return np.asarray(self.by_class.sum(axis=0))

    @property
    def sums(self) -> BandSums:
        """Of the values of valid pixels."""
        return BandSums(self.valid, self.total, self.squares)

    @property
    def pixels(self) -> int:
        """Pixels of the grid."""
        return self.scene.shape[0] * self.scene.shape[1]


def survey(scene: LabelledScene, split: str | None = None, progress: Progress = silent) -> Survey:
    """Count labels and sum band values of a scene, block by block.

    Raises:
        RasterError: a block cannot be read.
    """
    rows, cols = scene.shape
    bands = len(scene.raster.bands)
    cells = (math.ceil(rows / CELL), math.ceil(cols / CELL))
    labelled, by_class = np.zeros(cells, np.int32), np.zeros((len(scene.legend.values), *cells), np.int32)
    sample = []
    counts = np.zeros(256, np.int64)
    total, squares = np.zeros(bands), np.zeros(bands)
    valid = 0
    corners = [(row, col) for row in range(0, rows, _BLOCK) for col in range(0, cols, _BLOCK)]
    for done, (row, col) in enumerate(corners, 1):
        roi = (slice(row, min(row + _BLOCK, rows)), slice(col, min(col + _BLOCK, cols)))
        pixels, labels = scene.read(roi, split)
        # Of pixels that are all valid none needs to be picked.
        values = pixels.data.reshape(bands, -1) if pixels.valid.all() else pixels.data[:, pixels.valid]
        exact = values.astype(np.float64)
        total += exact.sum(axis=1)
        squares += np.square(exact, out=exact).sum(axis=1)
        valid += values.shape[1]
        counts += np.bincount(labels.ravel(), minlength=256)
        sample.append(values[:, :: max(1, values.shape[1] // _SAMPLE)].astype(np.float32))
        _add_cells(labelled, row, col, labels != UNLABELLED)
        for plane, value in zip(by_class, scene.legend.values, strict=True):
            _add_cells(plane, row, col, labels == value)
        progress(f"look at {scene.tag}", done, len(corners), "blocks")
    return Survey(scene, split, valid, counts, total, squares, labelled, by_class, np.concatenate(sample, axis=1))


def _add_cells(plane: np.ndarray, row: int, col: int, mask: np.ndarray) -> None:
    """Add the counts of a block whose corner lies on a multiple of CELL."""
    rows, cols = (math.ceil(size / CELL) for size in mask.shape)
    padded = np.zeros((rows * CELL, cols * CELL), np.int32)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    counts = padded.reshape(rows, CELL, cols, CELL).sum(axis=(1, 3))
    plane[row // CELL : row // CELL + rows, col // CELL : col // CELL + cols] += counts


def band_statistics(surveys: Sequence[Survey]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each band over all valid pixels.

    Raises:
        DatasetError: there is no valid pixel.
    """
    sums = BandSums.together(item.sums for item in surveys)
    if not sums.valid:
        paths = ", ".join(item.scene.path for item in surveys[:3])
        raise DatasetError(f"no valid pixel in {paths}: check their nodata value, mask or alpha band")
    return sums.levels


class Draws(Protocol):
    """What draws windows to learn from."""

    def draw(self, count: int, seed: int, hardness: Sequence[np.ndarray] | None = None) -> tuple[WindowRequest, ...]:
        """`count` windows; the same seed draws the same of what is equally hard."""
        ...


@dataclass(frozen=True)
class WindowSampler:
    """Draws windows from surveyed ground.

    Args:
        surveys: ground to draw from.
        window: side, px.
        object_share: share of the windows whose centre lies near an object, 0 to 1; the
            others are drawn evenly from all labelled ground.
        balance: 0 draws from each dataset in proportion to its ground, 1 from all
            datasets alike; between, a large one drowns a small one less.
        balance_by: ``dataset``, or ``raster``: what `balance` makes alike.
        class_balance: the same for classes, among the windows near objects.
        empty_share: share of the windows that hold no object, 0 to 1; None: as they come.
        hard_share: share of the windows that are drawn where the loss was high.

    Raises:
        DatasetError: there is no labelled pixel, or no window without an object where some are asked for.
    """

    surveys: tuple[Survey, ...]
    window: int
    object_share: float = 0.5
    balance: float = 0.5
    balance_by: str = "dataset"
    class_balance: float = 0.0
    empty_share: float | None = None
    hard_share: float = 0.0

    def __post_init__(self) -> None:
        if not any(item.labelled.any() for item in self.surveys):
            paths = ", ".join(item.scene.path for item in self.surveys[:3])
            raise DatasetError(
                f"no labelled pixel in {paths}{' …' if len(self.surveys) > 3 else ''}: "
                "check that ground truth, AoIs and splits meet the rasters"
            )
        if self.empty_share and not any(empty_cells(item, self.window).any() for item in self.surveys):
            raise DatasetError(
                f"empty_share is {self.empty_share:g}, but every window of {self.window} px holds an object: "
                "give smaller windows, or leave empty_share out"
            )

    def draw(self, count: int, seed: int, hardness: Sequence[np.ndarray] | None = None) -> tuple[WindowRequest, ...]:
        """`count` windows; the same seed draws the same.

        Args:
            count: number of windows.
            seed: of all draws.
            hardness: float (cells, cells) of each survey, above 0: how high the loss was there; None: not known yet.
        """
        rng = np.random.default_rng(seed)
        tables = self._tables(hardness)
        requests = []
        for index in range(count):
            scenes, cells, cumulated = tables[self._kind(rng, tables)]
            pick = int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))
            scene = int(scenes[pick])
            row, col = (int(cell * CELL + rng.integers(CELL)) for cell in cells[pick])
            rows, cols = self.surveys[scene].scene.shape
            requests.append(
                WindowRequest(
                    scene,
                    _inside(row, rows, self.window),
                    _inside(col, cols, self.window),
                    seed * 1_000_003 + index,
                )
            )
        return tuple(requests)

    def _kind(self, rng: np.random.Generator, tables: dict[str, _Table]) -> str:
        """Which table the next window is drawn from."""
        if "hard" in tables and rng.random() < self.hard_share:
            return "hard"
        if self.empty_share is not None and rng.random() < self.empty_share:
            return "empty"
        near = len(tables["near"][0]) and rng.random() < self.object_share
        return "near" if near or not len(tables["even"][0]) else "even"

    def _tables(self, hardness: Sequence[np.ndarray] | None) -> dict[str, _Table]:
        """Cells to draw centres from, with their weights, for each kind of window."""
        labelled = [item.labelled for item in self.surveys]
        planes = {"even": labelled, "near": self._near()}
        if self.hard_share and hardness is not None:
            planes["hard"] = [known * hard for known, hard in zip(labelled, hardness, strict=True)]
        if self.empty_share is not None:
            empty = [empty_cells(item, self.window) for item in self.surveys]
            planes["empty"] = [known * plane for known, plane in zip(labelled, empty, strict=True)]
            planes["even"] = [known * ~plane for known, plane in zip(labelled, empty, strict=True)]
        return {kind: self._choices(of_kind) for kind, of_kind in planes.items()}

    def _near(self) -> list[np.ndarray]:
        """Cells with objects, each class with its weight."""
        found = [item.by_class > 0 for item in self.surveys]
        totals = np.sum([plane.sum(axis=(1, 2)) for plane in found], axis=0)
        weights = np.where(totals, 1 / np.maximum(totals, 1.0) ** self.class_balance, 0.0)
        return [np.tensordot(weights, plane, 1) for plane in found]

    def _choices(self, planes: Sequence[np.ndarray]) -> _Table:
        """All cells with weight; those of a dataset (or raster) together weigh total ** (1 - balance)."""
        names = [item.scene.path if self.balance_by == "raster" else item.scene.tag for item in self.surveys]
        totals: dict[str, float] = {}
        for plane, name in zip(planes, names, strict=True):
            totals[name] = totals.get(name, 0.0) + float(plane.sum())
        scenes, cells, weights = [], [], []
        for number, (plane, name) in enumerate(zip(planes, names, strict=True)):
            found = np.argwhere(plane)
            scenes.append(np.full(len(found), number))
            cells.append(found)
            factor = self.surveys[number].scene.weight / max(totals[name], 1e-12) ** self.balance
            weights.append(plane[plane > 0] * factor)
        return np.concatenate(scenes), np.concatenate(cells), np.cumsum(np.concatenate(weights))


_Table = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Scene numbers (n,), cells (n, 2) and cumulated weights (n,)."""


def _inside(centre: int, size: int, window: int) -> int:
    """The centre, moved so that the window lies on the grid where it can."""
    half = window // 2
    return min(max(centre, half), size - half) if size > window else size // 2


def empty_cells(item: Survey, window: int) -> np.ndarray:
    """Labelled cells around whose pixels no window of `window` px holds an object: bool (cells, cells)."""
    sums = np.pad(np.cumsum(np.cumsum(item.objects, axis=0), axis=1), ((1, 0), (1, 0)))
    (top, bottom), (left, right) = (
        _cells_seen(cells, size, window) for cells, size in zip(item.labelled.shape, item.scene.shape, strict=True)
    )
    inside = (
        sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)] + sums[np.ix_(top, left)]
    )
    return np.asarray((item.labelled > 0) & (inside == 0))


def _cells_seen(cells: int, size: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """First cell and the one after the last that windows about the pixels of each cell reach, along one axis."""
    centres = np.array(
        [[_inside(number * CELL + part, size, window) for part in (0, CELL - 1)] for number in range(cells)]
    )
    first = np.maximum(centres[:, 0] - window // 2, 0) // CELL
    last = -(-np.minimum(centres[:, 1] + window // 2, cells * CELL) // CELL)
    return first, last


def covering_windows(surveys: Sequence[Survey], window: int) -> tuple[WindowRequest, ...]:
    """Windows side by side that cover all labelled ground once."""
    requests = []
    for number, item in enumerate(surveys):
        rows, cols = item.scene.shape
        for top in range(0, rows, window):
            for left in range(0, cols, window):
                cells = item.labelled[
                    top // CELL : math.ceil((top + window) / CELL), left // CELL : math.ceil((left + window) / CELL)
                ]
                if cells.any():
                    requests.append(WindowRequest(number, top + window // 2, left + window // 2))
    return tuple(requests)
