"""The end of the demo: one round of correction, on a scene with what the model has never seen."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import shapely
from scipy.ndimage import uniform_filter

from gimseg.correction.accepting import accept
from gimseg.correction.drawing import CLASS_FIELD, OBJECTS
from gimseg.correction.learning import LEARNING
from gimseg.correction.loop import check, train
from gimseg.correction.reporting import report
from gimseg.correction.rounds import Correction
from gimseg.correction.starting import start
from gimseg.datasets import read_datasets
from gimseg.delivery import deliver
from gimseg.demo_pictures import draw_correction, truth_on
from gimseg.evaluation import evaluate
from gimseg.outputs import staged, write_text
from gimseg.progress import Progress
from gimseg.scenes import make_scene, write_scene

POLYGONS: dict[str, Any] = {"min_area_m2": 4, "right_angles": True}
"""How the polygons of the demo are shaped."""

_QUICK = replace(
    LEARNING,
    loss="ce + focal_tversky(fp_weight=0.5, fn_weight=0.5)",
    optimiser="muon",
    learning_rate=3e-3,
    averaging=0.93,
    epochs=1,
    windows_per_epoch=576,
    batch=6,
    old_share=0.2,
)
"""Large steps, since the demo is to end within minutes, and a fifth of the way back to the old weights."""

_TAG, _SIZE, _AREA = "highland", 896, 352
_DATASET = f"""\
# A scene with what the other two have not. What was drawn is no test any more: it is left out.

[legend]
classes = [{{ name = "building", colour = "#ffd200" }}]

[[dataset]]
tag = "{_TAG}"
spatial_resolution = 0.5
image_paths = ["{_TAG}.tif"]
mask_paths = ["{_TAG}_labels.geojson"]
ignore_paths = ["aoi.geojson"]
nodata = "auto"
split = "test"
"""


@dataclass(frozen=True)
class Round:
    """What came of the correction.

    Args:
        folder: of the demo, which is the project's too.
        side_m: of the square that was drawn, m.
        roofs: drawn in it.
        outside: IoU on the rest of that scene, before and after.
        old: IoU on the scene that was neither learned nor corrected, before and after.
        told: what the gate said.
        accepted: the gate let the new model pass.
    """

    folder: Path
    side_m: float
    roofs: int
    outside: tuple[float, float]
    old: tuple[float, float]
    told: str
    accepted: bool

    def text(self) -> str:
        """What was corrected, and what came of it."""
        side, (before, after), (kept, now) = round(self.side_m), self.outside, self.old
        ending = "Accepted: the project works with the new model now." if self.accepted else f"The gate: {self.told}"
        return (
            "Then a scene with turf roofs and floors of bare clay, which neither had. Of a square of\n"
            f"{side} x {side} m the {self.roofs} roofs were drawn and learned:\n"
            f"  IoU {before:.3f} before, {after:.3f} after, on the rest of that scene, where nothing was drawn\n"
            f"  IoU {kept:.3f} before, {now:.3f} after, on the unseen scene from above\n"
            f"{ending}"
        )


def correct_once(folder: Path, seed: int, size: int, device: str, progress: Progress) -> Round:
    """Predict a strange scene, draw a square of it right, learn that, and compare.

    Args:
        folder: of the demo, with ``model`` and ``data.toml``.
        seed: of the scene.
        size: greatest side of the scene, px of 0.3 m.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: told how far each step is.
    """
    size = min(size, _SIZE)
    scene = make_scene(seed, (size, size), style="highland")
    image = write_scene(scene, folder, _TAG).image
    segments = [folder / f"{_TAG}_segments{ending}" for ending in (".tif", ".shp")]
    deliver(image, folder / "model", segments, nodata="auto", device=device, progress=progress, **POLYGONS)
    aoi = _worst_square(folder, segments[0], min(_AREA, size // 2))
    opened: dict[str, Any] = {"project": folder, "device": device, "progress": progress}
    correction = start(_TAG, image, folder / "aoi.geojson", model=folder / "model", nodata="auto", **opened).correction
    roofs = _draw(correction, folder, aoi)
    check(_TAG, project=folder)
    data = read_datasets(folder / "data.toml")
    train(_TAG, replay=data, settings=_QUICK, **opened)
    verdict = report(_TAG, test=folder / "data.toml", **opened).verdict
    if verdict.passed:
        accept(_TAG, everywhere=True, **opened, **POLYGONS)
    write_text(folder / f"{_TAG}.toml", _DATASET)
    masks = correction.before, correction.after
    outside = _ious(folder, masks)
    with staged(folder / "correction.png") as path:
        draw_correction(folder, _TAG, masks, path, ious=outside)
    side_m = float(np.sqrt(aoi.area))
    return Round(folder, side_m, roofs, outside, _old(correction), verdict.text(), verdict.passed)


def _worst_square(folder: Path, mask: Path, side: int) -> shapely.Polygon:
    """The square of `side` px in which most pixels are wrong, written as the area of interest."""
    truth, prediction = truth_on(folder, _TAG, mask)
    wrong = uniform_filter((truth != prediction).astype(np.float32), side, mode="constant")
    inner = slice(side // 2, -(side // 2))
    row, col = np.unravel_index(np.argmax(wrong[inner, inner]), wrong[inner, inner].shape)
    with rasterio.open(mask) as file:
        (left, top), (right, bottom) = file.transform * (col, row), file.transform * (col + side, row + side)
        crs = file.crs.to_wkt()
    square = shapely.box(left, bottom, right, top)
    geopandas.GeoDataFrame(geometry=[square], crs=crs).to_crs("EPSG:4326").to_file(
        folder / "aoi.geojson", engine="pyogrio", COORDINATE_PRECISION=10
    )
    return square


def _draw(correction: Correction, folder: Path, area: shapely.Polygon) -> int:
    """What an analyst would leave in the square: the true roofs. Their number."""
    labels = geopandas.read_file(folder / f"{_TAG}_labels.geojson")
    predicted = geopandas.read_file(correction.gpkg, layer=OBJECTS)
    right = labels.to_crs(predicted.crs).clip(area).explode(index_parts=False)
    right = right[right.geom_type == "Polygon"]
    drawn = geopandas.GeoDataFrame(
        {CLASS_FIELD: ["building"] * len(right)}, geometry=right.geometry.values, crs=right.crs
    )
    drawn.to_file(correction.gpkg, layer=OBJECTS, promote_to_multi=True, engine="pyogrio")
    drawn.to_file(folder / "drawn.geojson", engine="pyogrio", RFC7946="YES")
    return len(drawn)


def _ious(folder: Path, masks: tuple[Path, Path]) -> tuple[float, float]:
    """IoU of masks outside the square."""
    rest = read_datasets(folder / f"{_TAG}.toml")
    before, after = (float(evaluate(mask, rest).of_split("test").iou[1]) for mask in masks)
    return before, after


def _old(correction: Correction) -> tuple[float, float]:
    """IoU on the test set of the gate, before and after."""
    scored = json.loads(correction.metrics.read_text(encoding="utf-8"))["old_test_set"]["deployed_threshold"]
    return scored["before"]["score"], scored["after"]["score"]
