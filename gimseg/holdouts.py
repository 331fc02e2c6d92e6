"""Blocks of ground held out for validation, where the datasets do not say what is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from gimseg.labelled_scenes import Holdout, LabelledScene
from gimseg.leakage import overlapping
from gimseg.legend import UNLABELLED
from gimseg.sampling import CELL, Survey
from gimseg.vector_geometry import units_per_metre


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


@dataclass(frozen=True)
class BlocksElsewhere:
    """Blocks that are held out of rasters in another CRS too: each pixel where its centre lies.

    Args:
        blocks: `held` is a set.
        crs: of the blocks.
    """

    blocks: GroundBlocks
    crs: CRS

    def mask(self, window: GeoBox, split: str) -> np.ndarray:
        """As :meth:`GroundBlocks.mask`, of a window in any CRS."""
        numbers = np.array(sorted(self.blocks.held)).reshape(-1, 2)  # type: ignore[call-overload]
        if split not in ("train", "val") or not len(numbers):
            return np.full(window.shape, split == "train")
        first = numbers.min(axis=0) - 1
        table = np.zeros(numbers.max(axis=0) - first + 2, bool)
        table[tuple((numbers - first).T)] = True
        places = _centres(window, self.crs)
        gap = self.blocks.gap if split == "train" else 0.0
        near = np.zeros(window.shape, bool)
        for step in [(x, y) for x in (-gap, 0, gap) for y in (-gap, 0, gap)] if gap else [(0, 0)]:
            found = [
                # What lies beyond the table is in no block of it, and its borders hold none.
                np.clip(np.floor((axis + moved) / self.blocks.side) - start, 0, size - 1).astype(int)
                for axis, moved, start, size in zip(places, step, first, table.shape, strict=True)
            ]
            near |= table[tuple(found)]
        return ~near if split == "train" else near


@dataclass(frozen=True)
class BlocksOfSeveral:
    """The blocks of all rasters that show the same ground.

    Args:
        blocks: of each of them, for windows of one.
    """

    blocks: tuple[Holdout, ...]

    def mask(self, window: GeoBox, split: str) -> np.ndarray:
        """``val``: in a block of any of them; ``train``: away from the blocks of all. bool (rows, cols)."""
        masks = [one.mask(window, split) for one in self.blocks]
        return np.asarray((np.logical_and if split == "train" else np.logical_or).reduce(masks), dtype=bool)


@dataclass(frozen=True)
class HeldOutBeside:
    """Blocks that a raster beside holds out, for a scene whose own ground is divided by what the dataset says.

    Args:
        blocks: of the raster beside.
    """

    blocks: Holdout

    def mask(self, window: GeoBox, split: str) -> np.ndarray:
        """``train``: away from the blocks; any other split: everywhere. bool (rows, cols)."""
        return self.blocks.mask(window, split) if split == "train" else np.ones(window.shape, bool)


def hold_out(
    surveys: Sequence[Survey],
    share: float = 0.15,
    seed: int = 0,
    window: int = 256,
    beside: Sequence[LabelledScene] = (),
) -> tuple[LabelledScene, ...]:
    """Divide scenes that have no split: some blocks of ground for validation, the rest for training.

    Which blocks are held out depends on their place and the seed alone, so that it
    stays put when another dataset is added. In each dataset blocks with objects are taken.
    Ground that one raster holds out is held out of all that show it, whatever their CRS.

    Args:
        surveys: one a scene.
        share: share of the blocks with objects that is held out, 0 to 1.
        seed: draws another set of blocks.
        window: side of the training windows, px; blocks are no smaller than half of it.
        beside: scenes that have a split, of which some ground is learned from.

    Returns:
        the scenes surveyed, with a holdout where they had no split, and those beside, with
        one where they show ground that is held out.
    """
    scenes = [*(item.scene for item in surveys), *beside]
    free = [index for index in range(len(surveys)) if not scenes[index].splits]
    taught = [*free, *(index for index in range(len(surveys), len(scenes)) if "train" in scenes[index].splits)]
    same_ground = [(taught[one], taught[other]) for one, other in overlapping([scenes[index] for index in taught])]
    drawn: dict[int, GroundBlocks] = {}
    both_free = [pair for pair in same_ground if set(pair) <= set(free)]
    for members in _joined(free, [*both_free, *_of_one_dataset(scenes, free)]):
        drawn |= _drawn_blocks({index: surveys[index] for index in members}, share, seed, window)
    for members in _joined(taught, same_ground):
        grids = {(drawn[index], scenes[index].geobox.crs): scenes[index].geobox for index in members if index in drawn}
        for index in members if grids else ():
            placed = tuple(_seen_from(scenes[index].geobox, blocks, grid) for (blocks, _), grid in grids.items())
            holdout = placed[0] if len(placed) == 1 else BlocksOfSeveral(placed)
            scenes[index] = replace(scenes[index], holdout=holdout if index in drawn else HeldOutBeside(holdout))
    return tuple(scenes)


def _drawn_blocks(surveys: Mapping[int, Survey], share: float, seed: int, window: int) -> dict[int, GroundBlocks]:
    """The blocks that each scene of a dataset holds out, without gaps; those of one CRS hold out the same."""
    labelled = sum(int(item.counts[:UNLABELLED].sum()) for item in surveys.values())
    # About forty blocks a dataset: enough to choose from, large enough to hold objects.
    side_px = int(np.clip(math.sqrt(labelled / 40), window // 4, 4 * window)) if labelled else window
    drawn: dict[int, GroundBlocks] = {}
    for crs in dict.fromkeys(item.scene.geobox.crs for item in surveys.values()):
        alike = {index: item for index, item in surveys.items() if item.scene.geobox.crs == crs}
        side = side_px * max(abs(item.scene.geobox.transform.a) for item in alike.values())
        held = frozenset().union(*(_held_blocks(item, side, share, seed) for item in alike.values()))
        drawn |= dict.fromkeys(alike, GroundBlocks(side, held))
    return drawn


def _seen_from(grid: GeoBox, blocks: GroundBlocks, theirs: GeoBox) -> Holdout:
    """Blocks drawn on one grid for windows of another, or the same, with a gap of its pixels."""
    pixel = abs(grid.transform.a)
    if theirs.crs is None or grid.crs == theirs.crs:
        return replace(blocks, gap=min(blocks.side / 4, 16 * pixel))
    pixel *= units_per_metre(theirs)[0] / units_per_metre(grid)[0]
    return BlocksElsewhere(replace(blocks, gap=min(blocks.side / 4, 16 * pixel)), theirs.crs)


def _centres(window: GeoBox, crs: CRS) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of pixel centres in another CRS, x and y, (rows, cols); -inf where it has none for them."""
    cols, rows = np.meshgrid(*(np.arange(size) + 0.5 for size in window.shape[::-1]))
    assert window.crs is not None, "ground is compared across CRSs only where there are some"
    transform = window.affine
    x, y = transform.a * cols + transform.b * rows + transform.c, transform.d * cols + transform.e * rows + transform.f
    places = window.crs.transformer_to_crs(crs)(x, y)
    x, y = (np.where(np.isfinite(axis), axis, -np.inf) for axis in places)
    return x, y


def _joined(numbers: Sequence[int], pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Numbers in groups: those of a pair, and of pairs that have one in common, are together."""
    group = {number: number for number in numbers}
    for one, other in pairs:
        kept, gone = group[one], group[other]
        if kept != gone:
            group = {number: kept if name == gone else name for number, name in group.items()}
    return [[number for number in numbers if group[number] == name] for name in dict.fromkeys(group.values())]


def _of_one_dataset(scenes: Sequence[LabelledScene], free: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers of the first scene of a dataset and of each of its scenes."""
    first: dict[str, int] = {}
    return [(first.setdefault(scenes[index].tag, index), index) for index in free]


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
