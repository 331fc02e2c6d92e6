"""How good a prediction is over a whole raster, from the areas that were drawn at random and then corrected."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyogrio
import shapely
from odc.geo.geobox import GeoBox

from gimseg.correction.suggestions import estimate_iou
from gimseg.errors import CorrectionError
from gimseg.intervals import Interval
from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import UNLABELLED
from gimseg.metrics import Confusion
from gimseg.rasters import RasterView, Roi
from gimseg.vectors import open_layer

LAYER = "suggestions"
_ALL = 0.99
"""Share of an area that has to be drawn: in the rest something may have been left out."""


@dataclass(frozen=True)
class Estimate:
    """IoU of the old model over the whole raster.

    Args:
        iou: with the interval that its areas give.
        drawn: random areas that were drawn.
        random: random areas that were suggested.
    """

    iou: Interval | None
    drawn: int
    random: int

    def text(self) -> str:
        """For people."""
        if self.iou is None or math.isnan(self.iou.score):
            return f"whole raster: {self.drawn} of {self.random} random areas are drawn; IoU cannot be estimated yet"
        interval = "" if math.isnan(self.iou.low) else f" ({self.iou.low:.3f} to {self.iou.high:.3f})"
        few = "; of so few the interval is too narrow" if self.drawn < 10 else ""
        return (
            f"whole raster, before: IoU {self.iou.score:.3f}{interval}, estimated from {self.drawn} of {self.random} "
            f"random areas{few}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        known = {} if self.iou is None else self.iou._asdict()
        plain = {name: None if math.isnan(value) else value for name, value in known.items()}
        return {"iou": plain or None, "areas_drawn": self.drawn, "areas_random": self.random}


def estimate_accuracy(
    suggestions: str | os.PathLike[str], drawn: Iterable[tuple[LabelledScene, RasterView]]
) -> Estimate:
    """Compare the old prediction with what was drawn in random areas.

    Args:
        suggestions: as ``correct suggest`` wrote them.
        drawn: rasters with what was drawn on them, and the old mask on the same grid.

    Raises:
        CorrectionError: the file holds no suggestions.
        GimsegError: a file cannot be read.
    """
    layer = open_layer(suggestions, layer=LAYER)
    if "kind" not in layer.fields:
        raise CorrectionError(f"{suggestions} has no attribute kind: it was not made by gimseg correct suggest")
    frame = pyogrio.read_dataframe(suggestions, layer=LAYER, columns=["kind"])
    frame = frame[frame["kind"] == "random"]
    tables = []
    scenes = tuple(drawn)
    for place, area in enumerate(frame.geometry):
        for scene, mask in scenes:
            here = frame.iloc[[place]].to_crs(scene.geobox.crs.proj).geometry.iloc[0] if scene.geobox.crs else area
            table = _table(here, scene, mask)
            if table is not None:
                tables.append(table)
                break
    return Estimate(estimate_iou(tables) if tables else None, len(tables), len(frame))


def _table(area: shapely.Geometry, scene: LabelledScene, mask: RasterView) -> Confusion | None:
    """Prediction against drawing in an area; None where not all of it was drawn."""
    roi = _roi(area, scene.geobox)
    if roi is None:
        return None
    pixels, labels = scene.read(roi)
    if not pixels.valid.any() or (labels[pixels.valid] != UNLABELLED).mean() < _ALL:
        return None
    legend, found = scene.legend, mask.read_values(roi)
    given = np.where(found.valid & (found.data[0] != UNLABELLED), found.data[0], 0).astype(np.uint8)
    return Confusion.of(legend.to_channels(labels), legend.to_channels(given), len(legend.classes) + 1)


def _roi(area: shapely.Geometry, geobox: GeoBox) -> Roi | None:
    left, bottom, right, top = area.bounds
    (first, last), (upper, lower) = ~geobox.affine * (np.array([left, right]), np.array([top, bottom]))
    rows = slice(max(round(upper), 0), min(round(lower), int(geobox.shape[0])))
    cols = slice(max(round(first), 0), min(round(last), int(geobox.shape[1])))
    return (rows, cols) if rows.start < rows.stop and cols.start < cols.stop else None
