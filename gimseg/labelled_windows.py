"""Labelled windows of scenes as a torch dataset, each read at the resolution that it is shown at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from gimseg.labelled_scenes import LabelledScene

Sample = dict[str, torch.Tensor]
Finish = Callable[[np.ndarray, np.ndarray, np.ndarray], Sample]


@dataclass(frozen=True)
class Frame:
    """What to read around a place.

    Args:
        shape: (rows, cols), px.
        zooms: how many times finer than the scene's grid, along (rows, cols).
    """

    shape: tuple[int, int]
    zooms: tuple[float, float] = (1.0, 1.0)

    def around(self, grid: GeoBox, row: int, col: int) -> GeoBox:
        """The grid of the frame about a pixel of `grid`, moved onto that where it fits.

        Example:
            >>> from affine import Affine
            >>> Frame((100, 100), (2.0, 2.0)).around(GeoBox((60, 90), Affine.scale(1, -1), None), 30, 0)
            GeoBox((100, 100), Affine(0.5, 0.0, 0.0,
                   0.0, -0.5, -5.0), None)
        """
        sides = [length / zoom for length, zoom in zip(self.shape, self.zooms, strict=True)]
        top, left = (
            min(max(centre - side / 2, 0), full - side) if side <= full else (full - side) / 2
            for centre, side, full in zip((row, col), sides, grid.shape, strict=True)
        )
        down, across = self.zooms
        affine = grid.affine * Affine.translation(left, top) * Affine.scale(1 / across, 1 / down)
        return GeoBox(self.shape, affine, grid.crs)


Prepare = Callable[[np.random.Generator], tuple[Frame, Finish]]
"""One draw: what to read, and what makes a sample of (image, valid, labels)."""


@dataclass(frozen=True)
class WindowRequest:
    """A window to learn from.

    Args:
        scene: number of its scene.
        row: of its centre, px.
        col: likewise.
        seed: of its draws.
        part: of the batch: each part weighs alike in the loss.
    """

    scene: int
    row: int
    col: int
    seed: int = 0
    part: int = 0


def read_as_is(size: int) -> Prepare:
    """A Prepare that reads `size` px a side and changes nothing."""

    def finish(image: np.ndarray, valid: np.ndarray, labels: np.ndarray) -> Sample:
        planes = {"image": image, "valid": valid, "labels": labels}
        return {name: torch.from_numpy(np.ascontiguousarray(plane)) for name, plane in planes.items()}

    return lambda rng: (Frame((size, size)), finish)


class LabelledWindows(torch.utils.data.Dataset):
    """Labelled windows as a torch dataset, for DataLoaders with any number of workers.

    A sample is ``{"image": float32 (bands, rows, cols), "valid": bool (rows, cols),
    "labels": uint8 (rows, cols)}``, or what `prepare` makes of it, with ``"request"``, its
    number, and ``"part"``, that of its part of the batch. The same request gives the same sample, in whichever worker.

    Args:
        scenes: where windows come from.
        requests: windows, in order.
        prepare: draws what to read and finishes the sample; or one of these for each part of the batch.
        split: only ground of this split keeps its labels; None: all.
    """

    def __init__(
        self,
        scenes: Sequence[LabelledScene],
        requests: Sequence[WindowRequest],
        prepare: Prepare | Sequence[Prepare],
        split: str | None = None,
    ) -> None:
        self.scenes = tuple(scenes)
        self.requests = tuple(requests)
        self.prepare = tuple(prepare) if isinstance(prepare, Sequence) else (prepare,)
        self.split = split

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, index: int) -> Sample:
        request = self.requests[index]
        frame, finish = self.prepare[request.part](np.random.default_rng(request.seed))
        scene = self.scenes[request.scene]
        if frame.zooms == (1.0, 1.0):
            top, left = request.row - frame.shape[0] // 2, request.col - frame.shape[1] // 2
            roi = (slice(top, top + frame.shape[0]), slice(left, left + frame.shape[1]))
            pixels, labels = scene.read(roi, self.split)
        else:
            pixels, labels = scene.read_on(frame.around(scene.geobox, request.row, request.col), self.split)
        numbers = {"request": torch.tensor(index), "part": torch.tensor(request.part)}
        return {**finish(pixels.data, pixels.valid, labels), **numbers}
