"""Which corrected ground is never learned, so that it can tell whether the learning was any good.

Ground is divided into square blocks by map coordinates. Of each group of two by two, one
is held out, drawn by the numbers of the group alone. So about a quarter is held out, spread
evenly. Where so little is labelled that the draw leaves one side empty, a block changes
sides. What was decided of a block when it was first learned, or first held out, is pinned
in the project, and holds for all corrections that ever touch it. Rasters in another CRS have
blocks of their own: what is held out of one is learned from none.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from pyproj.exceptions import CRSError, ProjError

from gimseg.errors import CorrectionError
from gimseg.holdouts import BlocksElsewhere, GroundBlocks
from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import UNLABELLED
from gimseg.outputs import hold_lock, write_text

PINS = "blocks.json"
"""In the folder of all corrections: which blocks are held out, and which were learned."""
Number = tuple[int, int]
_Decided = dict[str, tuple["DrawnBlocks", Counter[Number]]]
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


@dataclass(frozen=True)
class BlocksAcross(GroundBlocks):
    """Blocks of one CRS, and those of other CRSs that are held out of the same ground.

    Args:
        elsewhere: the others.
    """

    elsewhere: tuple[BlocksElsewhere, ...] = ()

    def mask(self, window: GeoBox, split: str) -> np.ndarray:
        """As :meth:`gimseg.holdouts.GroundBlocks.mask`; ``train`` is away from the others, too."""
        own = super().mask(window, split)
        for one in self.elsewhere if split == "train" else ():
            own = own & one.mask(window, "train")
        return own


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


@dataclass(frozen=True)
class Pins:
    """What was decided of blocks, for ever.

    Args:
        blocks: by CRS and side: those that are held out, as ``also``, and those that were learned, as ``never``.
    """

    blocks: Mapping[str, DrawnBlocks] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Pins:
        """Of the folder ``corrections``; none where nothing was learned in it yet.

        Raises:
            CorrectionError: the file is damaged.
        """
        path = Path(folder) / PINS
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            sides = {key: [_numbers(each[name]) for name in ("held_out", "learned")] for key, each in told.items()}
            for key in sides:
                _of_key(key)
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, CRSError) as error:
            raise CorrectionError(
                f"{path} cannot be read ({error!r}): was it edited? It says which ground was never learned; without it "
                "all models that were corrected here have to be trained again"
            ) from error
        return cls({key: DrawnBlocks(*each) for key, each in sides.items()})

    def text(self) -> str:
        """As it is kept."""
        told = {
            key: {"held_out": sorted(each.also), "learned": sorted(each.never)} for key, each in self.blocks.items()
        }
        return json.dumps(told, separators=(",", ":")) + "\n"

    def of(self, key: str) -> DrawnBlocks:
        """Of blocks of one CRS and side."""
        return self.blocks.get(key, DrawnBlocks())


def pin_blocks(
    folder: str | os.PathLike[str], scenes: Iterable[LabelledScene], resolution: float, window: int
) -> Pins | None:
    """Decide of all blocks of a correction that have labels, and keep that in the folder ``corrections``.

    Args:
        folder: of all corrections.
        scenes: of one correction.
        resolution: of the model, m a pixel.
        window: that the model was trained with, px.

    Returns:
        all that is decided; None, and nothing is kept, where no block of the correction can be learned any more.

    Raises:
        CorrectionError: what is kept is damaged, or another process is at it.
        OutputError: it cannot be written.
    """
    folder = Path(folder)
    busy = CorrectionError(f"another training is dividing its ground in {folder}: start this one again")
    with hold_lock(folder / f".{PINS}.lock", busy):
        known = Pins.read(folder)
        scenes, blocks = tuple(scenes), dict(known.blocks)
        decided = _decided(scenes, resolution, window, known)
        learned = 0
        for key, (drawn, labelled) in decided.items():
            held = frozenset(number for number in labelled if number in drawn)
            was, rest = known.of(key), frozenset(labelled) - held
            blocks[key] = DrawnBlocks(was.also | held, was.never | rest)
            learned += len(rest)
        divided = _divided(scenes, decided, known, resolution, window)
        # Blocks that are learned may lie on ground that another CRS holds out.
        if not learned or not any(_is_learned(scene) for scene in divided):
            return None
        pins = Pins(blocks)
        if pins != known:
            write_text(folder / PINS, pins.text())
    return pins


def hold_out_blocks(
    scenes: Iterable[LabelledScene], resolution: float, window: int, pins: Pins | None = None
) -> tuple[LabelledScene, ...]:
    """Divide the labelled ground of one correction into ``train`` and ``val``.

    Where two blocks or more have labels, each side gets one at least: if the draw gave
    none, the block that is nearest to holding a quarter of the labels. No block that is pinned changes sides,
    and none that meets ground learned in another CRS is held out.

    Args:
        scenes: of one correction; their own splits are not looked at.
        resolution: of the model, m a pixel.
        window: that the model was trained with, px.
        pins: what was decided of blocks before; None: nothing.

    Returns:
        the scenes, each with its holdout.
    """
    scenes, pins = tuple(scenes), pins or Pins()
    return _divided(scenes, _decided(scenes, resolution, window, pins), pins, resolution, window)


def _divided(
    scenes: tuple[LabelledScene, ...], decided: _Decided, pins: Pins, resolution: float, window: int
) -> tuple[LabelledScene, ...]:
    """The scenes with their own blocks, and those of other CRSs that are held out of the same ground."""
    held = {key: pins.of(key).also for key in pins.blocks}
    for key, (blocks, labelled) in decided.items():
        held[key] = held.get(key, frozenset()) | {number for number in labelled if number in blocks}
    divided = []
    for scene in scenes:
        side = block_side(scene.geobox, resolution, window)
        key = _key(scene, side)
        others = (_near(scene.geobox, other, numbers) for other, numbers in held.items() if other != key)
        elsewhere = tuple(one for one in others if one is not None)
        divided.append(replace(scene, holdout=BlocksAcross(side, decided[key][0], elsewhere=elsewhere)))
    return tuple(divided)


def _is_learned(scene: LabelledScene) -> bool:
    """Whether any labelled pixel of a divided scene is for training."""
    holdout, (rows, cols) = scene.holdout, scene.shape
    if isinstance(holdout, BlocksAcross) and not holdout.elsewhere:
        return True
    strips = (slice(start, min(start + _STRIP, rows)) for start in range(0, rows, _STRIP))
    return any((scene.read_known((strip, slice(0, cols)), "train") != UNLABELLED).any() for strip in strips)


def _decided(scenes: tuple[LabelledScene, ...], resolution: float, window: int, pins: Pins) -> _Decided:
    """By CRS and side: which blocks are held out, and the labelled pixels of each."""
    counts: dict[str, Counter[Number]] = {}
    for scene in scenes:
        side = block_side(scene.geobox, resolution, window)
        counts.setdefault(_key(scene, side), Counter()).update(labelled_pixels(scene, side))
    total, decided = sum(len(numbers) for numbers in counts.values()), {}
    for key, numbers in counts.items():
        pinned = pins.of(key)
        # Ground that was learned in another CRS is no test of anything in this one.
        learned = _learned_elsewhere(key, frozenset(numbers) - pinned.also - pinned.never, pins)
        pinned = replace(pinned, never=pinned.never | learned)
        decided[key] = (_settled(numbers, pinned, alone=total < 2), numbers)
    return decided


def _learned_elsewhere(key: str, numbers: frozenset[Number], pins: Pins) -> frozenset[Number]:
    """Blocks that meet blocks of another CRS or side that were learned."""
    crs, side = _of_key(key)
    if crs is None or not numbers:
        return frozenset()
    ordered = sorted(numbers)
    # Blocks that share no more than an edge have no ground in common.
    squares, met = (
        shapely.buffer(_squares(ordered, side), -side / 1000, join_style="mitre"),
        np.zeros(len(ordered), bool),
    )
    for other, blocks in pins.blocks.items():
        theirs, their_side = _of_key(other)
        if other == key or theirs is None or not blocks.never:
            continue
        learned = shapely.union_all(_squares(sorted(blocks.never), their_side))
        seen = _seen(Geometry(learned, theirs), crs, their_side / 4)
        if seen is not None:
            ours, _ = shapely.STRtree(shapely.get_parts(seen.geom)).query(squares, predicate="intersects")
            met[ours] = True
    return frozenset(number for number, one in zip(ordered, met.tolist(), strict=True) if one)


def _near(grid: GeoBox, key: str, numbers: frozenset[Number]) -> BlocksElsewhere | None:
    """The blocks of another CRS that may meet a grid; None: none does."""
    crs, side = _of_key(key)
    if crs is None or grid.crs is None or not numbers:
        return None
    seen = _seen(grid.extent, crs, "auto")
    if seen is None:
        return None
    bounds = seen.boundingbox
    first, last = ((axis / side) for axis in (np.array(bounds[:2]), np.array(bounds[2:])))
    met = frozenset(number for number in numbers if (np.array(number) + 2 > first).all() and (number < last + 1).all())
    if not met:
        return None
    # A pixel that a block's edge crosses is in the block to one grid and beside it to the other.
    pixel = max((bounds.right - bounds.left) / grid.shape[1], (bounds.top - bounds.bottom) / grid.shape[0])
    return BlocksElsewhere(GroundBlocks(side, met, gap=min(pixel, side / 4)), crs)


def _seen(ground: Geometry, crs: CRS, resolution: float | Literal["auto"]) -> Geometry | None:
    """Ground in another CRS; None: it is no place there, as of a local grid or another planet."""
    try:
        seen = ground.to_crs(crs, resolution=resolution, wrapdateline=True)
    except ProjError:
        return None
    parts = shapely.get_parts(seen.geom)
    parts = parts[np.isfinite(shapely.bounds(parts)).all(axis=1)]
    return Geometry(shapely.GeometryCollection(list(parts)), crs) if len(parts) else None


def _squares(numbers: list[Number], side: float) -> np.ndarray:
    """The ground of blocks, polygons in their CRS."""
    left, bottom = side * np.array(numbers, float).T
    return np.asarray(shapely.box(left, bottom, left + side, bottom + side))


def _key(scene: LabelledScene, side: float) -> str:
    return f"{scene.geobox.crs} {side:.12g}"


def _of_key(key: str) -> tuple[CRS | None, float]:
    name, side = key.rsplit(" ", 1)
    return None if name == "None" else CRS(name), float(side)


def _numbers(pairs: list[list[int]]) -> frozenset[Number]:
    return frozenset((int(column), int(row)) for column, row in pairs)


def labelled_pixels(scene: LabelledScene, side: float) -> Counter[Number]:
    """How many labelled pixels each block has, of those that have any.

    Args:
        scene: whatever its splits are.
        side: of a block, units of the scene's CRS.
    """
    blocks, found = GroundBlocks(side, ()), Counter[Number]()
    rows, cols = scene.shape
    for start in range(0, rows, _STRIP):
        strip = (slice(start, min(start + _STRIP, rows)), slice(0, cols))
        known = scene.read_known(strip) != UNLABELLED
        if known.any():
            columns, rows_of = blocks.numbers(scene.geobox[strip])
            left, top = _starts(columns), _starts(rows_of)
            counts = np.add.reduceat(np.add.reduceat(known, left, axis=1, dtype=np.int64), top, axis=0)
            for row, column in np.argwhere(counts).tolist():
                found[int(columns[left[column]]), int(rows_of[top[row]])] += int(counts[row, column])
    return found


def _starts(numbers: np.ndarray) -> np.ndarray:
    """Where each run of equal numbers begins."""
    return np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))


def _settled(labelled: Counter[Number], pinned: DrawnBlocks, *, alone: bool) -> DrawnBlocks:
    """The drawn blocks, and one more or less where all labels would be on one side, as far as nothing is pinned."""
    free = frozenset(labelled) - pinned.also - pinned.never
    held = [number for number in labelled if number in pinned]
    if alone:
        return replace(pinned, never=pinned.never | free)
    if len(labelled) < 2 or 0 < len(held) < len(labelled) or not free:
        return pinned
    quarter = sum(labelled.values()) / 4
    one = min(free, key=lambda number: (abs(labelled[number] - quarter), number))
    if not held:
        return replace(pinned, also=pinned.also | {one})
    # All are held out: one is enough, and what is pinned stays.
    return replace(pinned, never=pinned.never | (free - {one} if len(free) == len(labelled) else free))
