"""A mask to the outlines of its objects: exact or as a coverage, split or not, in one process or several."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from gimseg.cleaning import Cleaning
from gimseg.coverage import Band, Simplifier, cover
from gimseg.crew import Crew, cores
from gimseg.errors import GridError, RasterError, TilingError
from gimseg.instances import LARGEST, Splitter
from gimseg.masks import Mask, NativeRaster
from gimseg.progress import Progress
from gimseg.tracing import Strip, Traced, join, read_strips

_Part = TypeVar("_Part", Strip, Band)

_WORTH_WORKERS = 2**27  # pixels from which on more processes are faster than one
_MOST_WORKERS = 3  # more would wait for this process, which measures and writes


@dataclass(frozen=True)
class Objects:
    """What an object is.

    Args:
        connectivity: 4: its pixels share edges; 8: edges or corners.
        instances: how objects that touch are split: ``"distance"``, ``"probability"``, or None: not.

    Raises:
        TilingError: other values.
    """

    connectivity: int = 4
    instances: str | None = None

    def __post_init__(self) -> None:
        if self.connectivity not in (4, 8):
            raise TilingError(f"connectivity={self.connectivity}: 4 (pixels share edges) or 8 (or corners) is needed")
        if self.instances not in (None, "distance", "probability"):
            raise TilingError(f"instances={self.instances!r}: distance or probability is needed, or leave it out")
        if self.instances and self.connectivity == 8:
            raise TilingError("instances with connectivity=8: what touches at a corner is split anyway; give 4")

    def check(self, steps: Cleaning) -> None:
        """Refuse what does not go together with the steps.

        Raises:
            TilingError: a coverage of such objects.
        """
        if steps.coverage and (self.connectivity == 8 or self.instances):
            raise TilingError(
                "coverage=True needs connectivity=4 and no instances: its neighbours are regions of the mask that "
                "share edges"
            )


@dataclass(frozen=True)
class _Probabilities:
    """Probabilities on the grid of a mask; of several bands the largest, which is that of the class there."""

    raster: NativeRaster

    @classmethod
    def of(cls, mask: Mask, path: str | os.PathLike[str] | None) -> _Probabilities:
        """Those of a file, else those that the mask is read from.

        Raises:
            RasterError: there are none.
            GridError: another grid.
        """
        if path is None and mask.threshold is None:
            raise RasterError(
                f"{mask.path} holds classes: to split by probability give --probabilities too, or --instances distance"
            )
        raster = mask.raster if path is None else NativeRaster.open(path)
        if raster.file.shape != mask.shape or not raster.transform.almost_equals(mask.raster.transform, 1e-6):
            raise GridError(f"{path} is on another grid than {mask.path}: warp it to that one to split objects")
        return cls(raster)

    def read(self, roi: tuple[slice, slice]) -> np.ndarray:
        """float32 (rows, columns); NaN where there is none."""
        data, valid = self.raster.file.read(roi)
        scales, offsets = (
            np.array(numbers)[:, np.newaxis, np.newaxis] for numbers in (self.raster.scales, self.raster.offsets)
        )
        return np.where(valid, (data * scales + offsets).max(axis=0), np.nan).astype(np.float32)


class Regions:
    """The objects of a mask.

    Args:
        source: the mask.
        objects: what an object is.
        steps: a coverage is simplified while it is traced, all else comes later.
        pixel_m: width and height of a pixel, metres.
        block: about block x block pixels are worked on together; changes no polygon.
        probabilities: raster on the grid of the mask, to split objects.

    Raises:
        RasterError, GridError: probabilities that are needed are missing, or lie elsewhere.
    """

    def __init__(
        self,
        source: Mask,
        objects: Objects,
        steps: Cleaning,
        pixel_m: tuple[float, float],
        block: int,
        probabilities: str | os.PathLike[str] | None = None,
    ) -> None:
        self._source, self._objects, self._steps, self._pixel_m, self._block = source, objects, steps, pixel_m, block
        self._splitter: Splitter | None = None
        if objects.instances:
            by_probability = objects.instances == "probability"
            landscape = _Probabilities.of(source, probabilities) if by_probability else None
            self._splitter = Splitter(pixel_m, landscape)

    @property
    def workers(self) -> int:
        """Processes that trace while this one measures and writes; none for masks that are done before they start."""
        height, width = self._source.shape
        return min(cores() - 1, _MOST_WORKERS) if height * width >= _WORTH_WORKERS else 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know, when all regions have come."""
        count = self._splitter.left_whole if self._splitter else 0
        return (f"{count} objects wider than {LARGEST / 1e6:.0f} Mpx were not split",) if count else ()

    def stream(self, crew: Crew, progress: Progress) -> Iterator[Traced]:
        """All objects, as they are closed; what lies in a hole of one comes before, or with it."""
        if self._steps.coverage:
            simplifier = Simplifier(self._source, self._source.shape, self._steps.simplify_m, self._pixel_m)
            return cover(self._told(crew.map(simplifier.band, simplifier.tops()), progress))
        task = partial(read_strips, self._source, self._block * self._block, self._objects.connectivity)
        strips = (strip for some in crew.map(task, self._source.cuts(self._block)) for strip in some)
        traced = join(self._told(strips, progress), self._objects.connectivity)
        return self._splitter.stream(traced) if self._splitter else traced

    def _told(self, strips: Iterable[_Part], progress: Progress) -> Iterator[_Part]:
        """The same strips or bands, and how many pixels they are."""
        height, width = self._source.shape
        rows = 0
        progress("polygons", 0, height * width / 1e6, "Mpx")
        for strip in strips:
            yield strip
            rows += strip.rows
            progress("polygons", rows * width / 1e6, height * width / 1e6, "Mpx")
