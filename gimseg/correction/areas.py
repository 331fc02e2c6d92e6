"""Where a correction asks for another prediction: polygons around all that was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import shapely

from gimseg.correction.grounds import drawn_shapes
from gimseg.correction.rounds import Correction
from gimseg.errors import CorrectionError
from gimseg.labelled_scenes import LabelledScene


def opening_of(correction: Correction, scene: LabelledScene | None = None) -> dict[str, Any]:
    """How a raster of the correction is opened, as a prediction takes it; the areas below tell their CRS themselves.

    Args:
        correction: it.
        scene: the raster; None: one beside those that were drawn on.
    """
    given: Any = correction.dataset() or correction.opening
    told = {name: getattr(given, name) for name in ("bands", "nodata", "crs")}
    return told if scene is None else {**told, "bands": scene.raster.bands}


def write_areas(correction: Correction, scenes: Sequence[LabelledScene], path: Path) -> Path:
    """Write all that was drawn as a layer of polygons.

    Args:
        correction: that it is of.
        scenes: its rasters with what was drawn on them.
        path: FlatGeobuf; replaced.

    Raises:
        CorrectionError: nothing was drawn.
    """
    frames = [
        geopandas.GeoDataFrame(geometry=_drawn(scene), crs=scene.geobox.crs and scene.geobox.crs.proj)
        for scene in scenes
    ]
    frames = [frame.to_crs(frames[0].crs) if frame.crs else frame for frame in frames]
    drawn = shapely.union_all(np.concatenate([frame.geometry.to_numpy() for frame in frames]))
    polygons = [part for part in shapely.get_parts(drawn) if part.area > 0]
    if not polygons:
        raise CorrectionError(f"nothing is drawn in {correction.id}: say where to predict again with --aoi")
    path.unlink(missing_ok=True)
    frame = geopandas.GeoDataFrame(geometry=polygons, crs=frames[0].crs)
    pyogrio.write_dataframe(frame, path, driver="FlatGeobuf")
    return path


def _drawn(scene: LabelledScene) -> np.ndarray:
    """All that was drawn on a raster, as polygons in its CRS; points and lines with the pixels that they touch."""
    shapes = drawn_shapes(scene)
    if shapes is None:
        return np.array([scene.geobox.extent.geom], object)
    thin = shapely.area(shapes) == 0
    shapes[thin] = shapely.buffer(shapes[thin], abs(scene.geobox.affine.a))
    return shapes
