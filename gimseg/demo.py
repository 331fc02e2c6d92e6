"""The whole path on synthetic scenes: learn one, predict another, correct a third, leave all of it to look at."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from gimseg.datasets import read_datasets
from gimseg.delivery import deliver
from gimseg.demo_correction import POLYGONS, Round, correct_once
from gimseg.demo_pictures import draw_overview
from gimseg.errors import OutputError
from gimseg.evaluation import Scores, evaluate
from gimseg.outputs import check_writable, staged, write_text
from gimseg.progress import Progress, format_duration, silent
from gimseg.scenes import make_scene, write_scene
from gimseg.training import Settings, train

_DATASETS = """\
# Two scenes of 0.3 m, learned at 0.5 m, with an undeclared white border (nodata = "auto" finds
# it); the polygons are in another CRS than the images.

[legend]
classes = [{ name = "building", colour = "#ffd200" }]

[[dataset]]
tag = "learned"
spatial_resolution = 0.5
image_paths = ["learned.tif"]
mask_paths = ["learned_labels.geojson"]
nodata = "auto"

[[dataset]]
tag = "unseen"
spatial_resolution = 0.5
image_paths = ["unseen.tif"]
mask_paths = ["unseen_labels.geojson"]
nodata = "auto"
split = "test"
"""

_SETTINGS = Settings(
    network_options={"encoder_depth": 4, "decoder_channels": (64, 32, 16, 16)},
    windows_per_epoch=270,
    window=112,
    batch=6,
    learning_rate=4e-3,
    averaging=0.95,
)
"""A slim U-Net without its deepest stage, in small batches and large steps: two cores are to be done within minutes."""


@dataclass(frozen=True)
class Demo:
    """What the demo left.

    Args:
        folder: where all of it lies.
        scores: of the scene that was not learned from.
        polygons: number of polygons found there.
        corrected: what came of the round of correction.
        seconds: that it took.
    """

    folder: Path
    scores: Scores
    polygons: int
    corrected: Round
    seconds: float

    @property
    def iou(self) -> float:
        """IoU of buildings on the unseen scene."""
        return float(self.scores.of_split("test").iou[1])

    def text(self) -> str:
        """What was made, how to look at it, and what to run next."""
        folder = self.folder
        # What was accepted is what the project works with; the first model is named where nothing was.
        model = "" if self.corrected.accepted else " -m model"
        return f"""
IoU {self.iou:.3f} on a scene that was not learned from, {self.polygons} polygons.

{self.corrected.text()}

All in {format_duration(self.seconds)}. Look at
  {folder}/overview.png               what was learned, found, hit and missed
  {folder}/correction.png             what was drawn, before and after
  {folder}/corrections/highland/report.html   the same with scores and the gate's verdict, in a browser
  {folder}/model/curves.png           how the training went
In QGIS: drag {folder}/unseen.tif and then {folder}/unseen_segments.shp into the map; its style comes along.
  {folder}/corrections/highland/correction.qgz is the project that was drawn in.

What was run, to run on your own images:
  cd {folder}
  gimseg info data.toml --plot windows.png
  gimseg train data.toml -o my_model
  gimseg predict unseen.tif -m model --nodata auto -o unseen.gpkg
  gimseg evaluate data.toml -m model --split test
  gimseg correct start mine -r highland.tif --aoi aoi.geojson --nodata auto{model}
  gimseg correct check mine           after drawing in corrections/mine/correction.qgz
  gimseg correct train mine --replay data.toml{model}
  gimseg correct report mine --test data.toml
  gimseg correct accept mine {_shaped()}   and gimseg correct list, gimseg correct rollback
"""


def _shaped() -> str:
    """How the polygons of the demo were shaped, as options of the command line."""
    named = {name.removesuffix("_m2").replace("_", "-"): value for name, value in POLYGONS.items()}
    return " ".join(f"--{name}" + ("" if value is True else f" {value}") for name, value in named.items())


def run_demo(
    folder: str | os.PathLike[str] = "gimseg_demo",
    *,
    seed: int = 1,
    size: int = 1280,
    epochs: int = 4,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Demo:
    """Make scenes, learn one, predict, vectorize and score another, correct a third.

    Args:
        folder: to be made.
        seed: of the scene to learn; the others have the next ones.
        size: side of the scenes, px of 0.3 m; the third is smaller.
        epochs: of training, 45 steps each.
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
    with ThreadPoolExecutor(2) as painters:  # most of the painting holds no lock
        scenes = painters.map(lambda number: make_scene(seed + number, (size, size)), range(2))
        for number, (tag, scene) in enumerate(zip(("learned", "unseen"), scenes, strict=True), 1):
            write_scene(scene, folder, tag)
            progress("draw scenes", number, 2, "scenes")
    write_text(folder / "data.toml", _DATASETS)
    datasets = read_datasets(folder / "data.toml")
    learned, unseen = datasets
    settings = replace(_SETTINGS, epochs=epochs)
    train(learned, folder / "model", settings=settings, device=device, progress=progress)
    outputs = [folder / "unseen_segments.tif", folder / "unseen_segments.shp"]
    made = deliver(
        folder / "unseen.tif",
        folder / "model",
        outputs,
        nodata="auto",
        device=device,
        progress=progress,
        **POLYGONS,
    )
    scores = evaluate(
        folder / "unseen_segments.tif", unseen, output=folder / "scores.json", plot=folder / "outcome.png"
    )
    corrected = correct_once(folder, seed + 2, size, device, progress)
    demo = Demo(folder, scores, made.layers.count if made.layers else 0, corrected, time.monotonic() - started)
    with staged(folder / "overview.png") as path:
        draw_overview(folder, path, polygons=demo.polygons, iou=demo.iou)
    write_text(folder / "README.txt", demo.text().lstrip())
    return demo


def _remove_older(folder: Path, overwrite: bool) -> None:
    """Only what a demo has made is ever removed."""
    if not overwrite or not ((folder / "data.toml").exists() and (folder / "learned.tif").exists()):
        what = "is no folder of an earlier demo" if overwrite else "exists"
        raise OutputError(f"{folder} {what}: give another folder{'' if overwrite else ', or --overwrite'}")
    shutil.rmtree(folder)
