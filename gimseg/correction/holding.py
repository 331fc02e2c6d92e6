"""Which corrected ground is never learned, so that it can tell whether the learning was any good.

Ground is divided into square blocks by map coordinates. Of each group of two by two, one
is held out, drawn by the numbers of the group alone: nothing that is corrected later
moves it. So about a quarter is held out, spread evenly.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from odc.geo.geobox import GeoBox

from gimseg.holdouts import GroundBlocks
from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import UNLABELLED

Number = tuple[int, int]
_SEED = "gimseg corrections"
_METRES_PER_DEGREE = 111_320.0
_STRIP = 1024


@dataclass(frozen=True)
class DrawnBlocks:
    """The numbers of all blocks that are held out.

    Args:
        also: held out though they were not drawn: where too little is labelled for a draw.
        never: not held out though they were drawn.

    Example:
        >>> blocks = DrawnBlocks()
        >>> sum((column, row) in blocks for column in range(100) for row in range(100))
        2500
        >>> sum((column, row) in blocks for column in (6, 7) for row in (-2, -1))
        1
    """

    also: frozenset[Number] = frozenset()
    never: frozenset[Number] = frozenset()

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, tuple):
            return False
        column, row = number
        if number in self.also or number in self.never:
            return number in self.also
        digest = hashlib.sha256(f"{_SEED}/{column // 2}/{row // 2}".encode()).digest()
        return digest[0] % 4 == 2 * (row % 2) + column % 2


def block_side(geobox: GeoBox, resolution: float, window: int) -> float:
    """Side of a block, in units of the grid's CRS: half a window, rounded to a power of two times the resolution.

    It depends on the CRS and the model alone, not on where in it a raster lies.

    Args:
        geobox: a grid in the CRS.
        resolution: of the model, m a pixel.
        window: that the model was trained with, px.

    Example:
        >>> block_side(GeoBox.from_bbox((0, 0, 60, 60), "EPSG:32633", resolution=0.3), 0.25, 256)
        32.0
    """
    side = 2.0 ** round(math.log2(max(window, 2) / 2)) * resolution
    if geobox.crs is None:
        return side
    if geobox.crs.geographic:
        return side / _METRES_PER_DEGREE
    return side / float(geobox.crs.proj.axis_info[0].unit_conversion_factor or 1.0)


def hold_out_blocks(scenes: Iterable[LabelledScene], resolution: float, window: int) -> tuple[LabelledScene, ...]:
    """Divide the labelled ground of one correction into ``train`` and ``val``.

    Where two blocks or more have labels, each side gets one at least: if the draw gave
    none, the block that is nearest to holding a quarter of the labels.

    Args:
        scenes: of one correction; their own splits are not looked at.
        resolution: of the model, m a pixel.
        window: that the model was trained with, px.

    Returns:
        the scenes, each with its holdout.
    """
    scenes = tuple(scenes)
    sides = [block_side(scene.geobox, resolution, window) for scene in scenes]
    counts: dict[str, Counter[Number]] = {}
    for scene, side in zip(scenes, sides, strict=True):
        counts.setdefault(_crs_of(scene), Counter()).update(_labelled(scene, side))
    total = sum(len(numbers) for numbers in counts.values())
    drawn = {crs: _settled(numbers, alone=total < 2) for crs, numbers in counts.items()}
    return tuple(
        replace(scene, holdout=GroundBlocks(side, drawn[_crs_of(scene)]))
        for scene, side in zip(scenes, sides, strict=True)
    )


def _crs_of(scene: LabelledScene) -> str:
    return str(scene.geobox.crs)


def _labelled(scene: LabelledScene, side: float) -> Counter[Number]:
    """Labelled pixels of each block."""
    blocks, found = GroundBlocks(side, ()), Counter[Number]()
    rows, cols = scene.shape
    for start in range(0, rows, _STRIP):
        strip = (slice(start, min(start + _STRIP, rows)), slice(0, cols))
        known = np.argwhere(scene.read_known(strip) != UNLABELLED)
        if len(known):
            x, y = blocks.numbers(scene.geobox[strip])
            pairs, counts = np.unique(np.column_stack([x[known[:, 1]], y[known[:, 0]]]), axis=0, return_counts=True)
            found.update({(column, row): count for (column, row), count in zip(pairs.tolist(), counts, strict=True)})
    return found


def _settled(labelled: Counter[Number], *, alone: bool) -> DrawnBlocks:
    """The drawn blocks, and one more or less where all labels would be on one side."""
    blocks = DrawnBlocks()
    held = [number for number in labelled if number in blocks]
    if alone:
        return DrawnBlocks(never=frozenset(labelled))
    if len(labelled) < 2 or 0 < len(held) < len(labelled):
        return blocks
    quarter = sum(labelled.values()) / 4
    one = min(labelled, key=lambda number: (abs(labelled[number] - quarter), number))
    return DrawnBlocks(also=frozenset({one})) if not held else DrawnBlocks(never=frozenset(set(labelled) - {one}))
