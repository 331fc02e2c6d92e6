"""The whole path on two synthetic scenes: learn one, predict the other, leave all of it to look at."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import rasterio.features

from gimseg.datasets import read_datasets
from gimseg.delivery import deliver
from gimseg.errors import OutputError
from gimseg.evaluation import Scores, evaluate
from gimseg.outputs import check_writable, staged, write_text
from gimseg.pictures import blend, outcome_overlay, to_rgb
from gimseg.progress import Progress, format_duration, silent
from gimseg.scenes import make_scene, write_scene
from gimseg.training import Settings, train

_DATASETS = """\
# Two scenes with an undeclared white border (nodata = "auto" finds it); the polygons are
# in another CRS than the images.

[legend]
classes = [{ name = "building", colour = "#ffd200" }]

[[dataset]]
tag = "learned"
spatial_resolution = 0.3
image_paths = ["learned.tif"]
mask_paths = ["learned_labels.geojson"]
nodata = "auto"

[[dataset]]
tag = "unseen"
spatial_resolution = 0.3
image_paths = ["unseen.tif"]
mask_paths = ["unseen_labels.geojson"]
nodata = "auto"
split = "test"
"""


@dataclass(frozen=True)
class Demo:
    """What the demo left.

    Args:
        folder: where all of it lies.
        scores: of the scene that was not learned from.
        polygons: number of polygons found there.
        seconds: that it took.
    """

    folder: Path
    scores: Scores
    polygons: int
    seconds: float

    @property
    def iou(self) -> float:
        """IoU of buildings on the unseen scene."""
        return float(self.scores.of_split("test").iou[1])

    def text(self) -> str:
        """What was made, how to look at it, and what to run next."""
        folder = self.folder
        return f"""
IoU {self.iou:.3f} on a scene that was not learned from, {self.polygons} polygons, {format_duration(self.seconds)}.

Look at
  {folder}/overview.png               what was learned, found, hit and missed
  {folder}/model/curves.png           how the training went
In QGIS: drag {folder}/unseen.tif and then {folder}/unseen_segments.shp into the map; its style comes along.

What was run, to run on your own images:
  gimseg info {folder}/data.toml --plot windows.png
  gimseg train {folder}/data.toml -o my_model
  gimseg predict {folder}/unseen.tif -m {folder}/model --nodata auto -o unseen.gpkg
  gimseg evaluate {folder}/data.toml -m {folder}/model --split test
"""


def run_demo(
    folder: str | os.PathLike[str] = "gimseg_demo",
    *,
    seed: int = 1,
    size: int = 1536,
    epochs: int = 4,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Demo:
    """Make two scenes, learn one, predict, vectorize and score the other.

    Args:
        folder: to be made.
        seed: of the scene to learn; the other one has the next.
        size: side of the scenes, px of 0.3 m.
        epochs: of training, 50 steps each.
        device: ``auto``, ``cpu`` or ``cuda``.
        overwrite: the folder of an earlier demo may be replaced.
        progress: told how far each step is.

    Raises:
        OutputError: the folder is there already.
    """
    started = time.monotonic()
    folder = Path(folder)
    if folder.exists():
        _remove_older(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_writable(folder.parent)
    folder.mkdir()
    for number, tag in enumerate(("learned", "unseen")):
        write_scene(make_scene(seed + number, (size, size)), folder, tag)
        progress("draw scenes", number + 1, 2, "scenes")
    write_text(folder / "data.toml", _DATASETS)
    datasets = read_datasets(folder / "data.toml")
    learned, unseen = datasets
    settings = Settings(epochs=epochs, windows_per_epoch=400, window=192, averaging=0.97)
    train(learned, folder / "model", settings=settings, device=device, progress=progress)
    outputs = [folder / "unseen_segments.tif", folder / "unseen_segments.shp"]
    made = deliver(
        folder / "unseen.tif",
        folder / "model",
        outputs,
        min_area_m2=4,
        simplify_m=0.3,
        nodata="auto",
        device=device,
        progress=progress,
    )
    scores = evaluate(
        folder / "unseen_segments.tif", unseen, output=folder / "scores.json", plot=folder / "outcome.png"
    )
    demo = Demo(folder, scores, made.layers.count if made.layers else 0, time.monotonic() - started)
    with staged(folder / "overview.png") as path:
        draw_overview(folder, path, demo)
    write_text(folder / "README.txt", demo.text().lstrip())
    return demo


def _remove_older(folder: Path, overwrite: bool) -> None:
    """Only what a demo has made is ever removed."""
    if not overwrite or not ((folder / "data.toml").exists() and (folder / "learned.tif").exists()):
        what = "is no folder of an earlier demo" if overwrite else "exists"
        raise OutputError(f"{folder} {what}: give another folder{'' if overwrite else ', or --overwrite'}")
    shutil.rmtree(folder)


def draw_overview(folder: Path, path: Path, demo: Demo) -> None:
    """Draw what was learned, what was found, and hits, misses and false alarms, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 5.75), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    learned, extent = _picture(folder / "learned.tif")
    unseen, unseen_extent = _picture(folder / "unseen.tif")
    panels[0].imshow(learned, extent=extent)
    _outline(panels[0], folder / "learned_labels.geojson", folder / "learned.tif", "#ffd200")
    panels[0].set_title("learned from: image and drawn polygons", fontsize=12)
    panels[1].imshow(unseen, extent=unseen_extent)
    _outline(panels[1], folder / "unseen_segments.shp", folder / "unseen.tif", "#00e5ff")
    panels[1].set_title(f"never seen: {demo.polygons} polygons found", fontsize=12)
    panels[2].imshow(_outcome(folder, unseen), extent=unseen_extent)
    panels[2].set_title(f"hits green, misses blue, false alarms red: IoU {demo.iou:.2f}", fontsize=12)
    for axes, frame in zip(panels, (extent, unseen_extent, unseen_extent), strict=True):
        axes.set(xlim=frame[:2], ylim=frame[2:], xticks=[], yticks=[], xlabel="", ylabel="")
    figure.savefig(path, dpi=110, format="png")


def _picture(path: Path) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    with rasterio.open(path) as raster:
        bounds = raster.bounds
        return to_rgb(raster.read().astype(np.float32)), (bounds.left, bounds.right, bounds.bottom, bounds.top)


def _outline(axes: object, layer: Path, image: Path, colour: str) -> None:
    with rasterio.open(image) as raster:
        polygons = geopandas.read_file(layer).to_crs(raster.crs.to_wkt())
    polygons.plot(ax=axes, facecolor=f"{colour}38", edgecolor=colour, linewidth=0.9)


def _outcome(folder: Path, image: np.ndarray) -> np.ndarray:
    with rasterio.open(folder / "unseen_segments.tif") as mask:
        prediction, transform, crs = mask.read(1), mask.transform, mask.crs
    polygons = geopandas.read_file(folder / "unseen_labels.geojson").to_crs(crs.to_wkt())
    truth = rasterio.features.rasterize(polygons.geometry, prediction.shape, transform=transform, dtype="uint8")
    truth[prediction == 255] = 255
    return blend(image, outcome_overlay(truth, prediction))
