"""What drawings mean, pixel by pixel, as GeoTIFFs to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gimseg.correction.grounds import Opened, drawn_parts, open_rasters
from gimseg.correction.rounds import Correction
from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import UNLABELLED
from gimseg.rasters import Bands, new_raster
from gimseg.recipes import Recipe

_BLOCK = 1024
_MARGIN = 16


def write_labels(corrections: Sequence[Correction], recipe: Recipe, opened: Opened = open_rasters) -> None:
    """Write ``labels.tif`` of each correction, around all that was drawn; ``labels_2.tif`` for a second raster.

    Args:
        corrections: each has its own.
        recipe: of the model.
        opened: see :func:`gimseg.correction.grounds.opened_once`.

    Raises:
        GimsegError: a file cannot be read or written.
    """
    for correction in corrections:
        for number, scene in enumerate(opened(correction, recipe), 1):
            path = correction.labels if number == 1 else correction.labels.with_name(f"labels_{number}.tif")
            parts = drawn_parts(scene, margin=_MARGIN)
            if parts:
                rows, cols = (
                    slice(min(part[axis].start for part in parts), max(part[axis].stop for part in parts))
                    for axis in (0, 1)
                )
                _write(path, scene.crop((rows, cols)), recipe)


def _write(path: Path, scene: LabelledScene, recipe: Recipe) -> None:
    fresh = path.with_name(f".{path.stem}.new.tif")
    fresh.unlink(missing_ok=True)
    with new_raster(fresh, scene.geobox, Bands(nodata=UNLABELLED, colours=recipe.legend.colours)) as writer:
        for top in range(0, scene.shape[0], _BLOCK):
            for left in range(0, scene.shape[1], _BLOCK):
                roi = (
                    slice(top, min(top + _BLOCK, scene.shape[0])),
                    slice(left, min(left + _BLOCK, scene.shape[1])),
                )
                labels = scene.read_known(roi)
                if (labels != UNLABELLED).any():
                    writer.write(labels, roi)
    os.replace(fresh, path)
