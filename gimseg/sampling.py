"""Which windows to learn from: a survey of the ground, blocks held out of it, draws from the rest."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from odc.geo.geobox import GeoBox

from gimseg.errors import DatasetError
from gimseg.labelled_scenes import LabelledScene
from gimseg.labelled_windows import WindowRequest
from gimseg.leakage import overlapping
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
        values = pixels.data[:, pixels.valid].astype(np.float64)
        total += values.sum(axis=1)
        squares += np.square(values).sum(axis=1)
        valid += values.shape[1]
        counts += np.bincount(labels.ravel(), minlength=256)
        sample.append(pixels.data[:, pixels.valid][:, :: max(1, values.shape[1] // _SAMPLE)].astype(np.float32))
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


@dataclass(frozen=True)
class GroundBlocks:
    """Square blocks of ground that are held out for validation, pinned to map coordinates.

    Args:
        side: side of a block, in units of the CRS.
        held: (x, y) numbers of the blocks held out; number 0 begins at coordinate 0. A set, or
            what else tells of any number whether it is in it.
        gap: ground around them that neither split gets, in units of the CRS, below `side`.
    """

    side: float
    held: Container[tuple[int, int]]
    gap: float = 0.0

    def mask(self, window: GeoBox, split: str) -> np.ndarray:
        """Where pixel centres belong to ``val`` or ``train``: bool (rows, cols)."""
        if split == "val":
            return self._held(window, 0, 0)
        if split != "train":
            return np.zeros(window.shape, bool)
        steps = (-self.gap, 0, self.gap) if self.gap else (0,)
        near = [self._held(window, x, y) for x in steps for y in steps]
        return np.asarray(~np.logical_or.reduce(near), dtype=bool)

    def _held(self, window: GeoBox, dx: float, dy: float) -> np.ndarray:
        x, y = self.numbers(window, dx, dy)
        columns, rows = np.unique(x), np.unique(y)
        table = np.array([[(column, row) in self.held for column in columns] for row in rows], dtype=bool)
        return table.reshape(len(rows), len(columns))[np.searchsorted(rows, y)][:, np.searchsorted(columns, x)]

    def numbers(self, window: GeoBox, dx: float = 0.0, dy: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Block numbers of the window's columns and of its rows, moved by (dx, dy), units of the CRS."""
        transform = window.transform
        x = np.floor((transform.c + transform.a * (np.arange(window.shape[1]) + 0.5) + dx) / self.side)
        y = np.floor((transform.f + transform.e * (np.arange(window.shape[0]) + 0.5) + dy) / self.side)
        return x.astype(int), y.astype(int)


def hold_out(
    surveys: Sequence[Survey], share: float = 0.15, seed: int = 0, window: int = 256
) -> tuple[LabelledScene, ...]:
    """Divide scenes that have no split: some blocks of ground for validation, the rest for training.

    Which blocks are held out depends on their place and the seed alone, so that it
    stays put when another dataset is added. In each dataset blocks with objects are taken.

    Args:
        surveys: one a scene.
        share: share of the blocks with objects that is held out, 0 to 1.
        seed: draws another set of blocks.
        window: side of the training windows, px; blocks are no smaller than half of it.

    Returns:
        the scenes, with a holdout where they had no split.
    """
    scenes = [item.scene for item in surveys]
    free = [index for index, scene in enumerate(scenes) if not scene.splits]
    for members in _joined(scenes, free):
        labelled = sum(int(surveys[index].counts[:UNLABELLED].sum()) for index in members)
        # About forty blocks a dataset: enough to choose from, large enough to hold objects.
        side_px = int(np.clip(math.sqrt(labelled / 40), window // 4, 4 * window)) if labelled else window
        side = side_px * max(abs(scenes[index].geobox.transform.a) for index in members)
        held = {index: _held_blocks(surveys[index], side, share, seed) for index in members}
        for index in members:
            grid = scenes[index].geobox
            # Ground that one raster holds out is held out in all that show it.
            alike = [held[other] for other in members if scenes[other].geobox.crs == grid.crs]
            blocks = GroundBlocks(side, frozenset().union(*alike), min(side / 4, 16 * abs(grid.transform.a)))
            scenes[index] = replace(scenes[index], holdout=blocks)
    return tuple(scenes)


def _joined(scenes: Sequence[LabelledScene], free: Sequence[int]) -> list[list[int]]:
    """Numbers of the scenes of each dataset; datasets that show the same ground are one."""
    group = {scenes[index].tag: scenes[index].tag for index in free}
    for one, other in overlapping([scenes[index] for index in free]):
        kept, gone = group[scenes[free[one]].tag], group[scenes[free[other]].tag]
        group = {tag: kept if name == gone else name for tag, name in group.items()}
    return [[index for index in free if group[scenes[index].tag] == name] for name in dict.fromkeys(group.values())]


def _held_blocks(item: Survey, side: float, share: float, seed: int) -> frozenset[tuple[int, int]]:
    transform = item.scene.geobox.transform
    weight: dict[tuple[int, int], int] = {}
    has_objects = item.objects.sum() > 0
    plane = item.objects if has_objects else item.labelled
    for row, col in zip(*np.nonzero(plane), strict=True):
        x = transform.c + transform.a * (col + 0.5) * CELL
        y = transform.f + transform.e * (row + 0.5) * CELL
        key = (math.floor(x / side), math.floor(y / side))
        weight[key] = weight.get(key, 0) + int(plane[row, col])
    worth = [key for key, count in weight.items() if count >= 0.25 * np.median(list(weight.values()))]
    ranked = sorted(worth, key=lambda key: hashlib.sha256(f"{seed}/{key[0]}/{key[1]}".encode()).digest())
    return frozenset(ranked[: max(1, round(share * len(ranked)))] if len(ranked) > 1 else ())


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
