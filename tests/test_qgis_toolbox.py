"""The Processing script in QGIS's own toolbox, with gimseg as its real child process."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import rasterio
from in_qgis import run_in_qgis
from networks_for_tests import recipe
from worlds import north_up, write_raster

from gimseg.models import Model
from gimseg.networks import build_network

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "qgis_gimseg.py"

CORRECTIONS = ("suggest", "start", "check", "train", "report", "accept", "rollback")

# The toolbox as QGIS sets it up, with the script in its folder of scripts.
TOOLBOX = """
import shutil, threading, time
sys.path.append(os.path.join(QgsApplication.pkgDataPath(), "python", "plugins"))
from processing.script import ScriptUtils
shutil.copy(sys.argv[1], ScriptUtils.defaultScriptsFolder())
from processing.core.Processing import Processing
Processing.initialize()
import processing

class Feedback(QgsProcessingFeedback):
    def __init__(self):
        super().__init__(False)
        self.lines, self.shares, self.errors = [], [], []
        self.progressChanged.connect(self.shares.append)
    def pushConsoleInfo(self, text): self.lines.append(text)
    def pushInfo(self, text): self.lines.append(text)
    def reportError(self, text, fatal=False): self.errors.append(text)

feedback = Feedback()
"""

RUN = (
    TOOLBOX
    + """
from qgis.core import QgsProject
image, out = sys.argv[2:]
area = QgsVectorLayer("Polygon?crs=EPSG:32633", "drawn in memory", "memory")
feature = QgsFeature()
feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(500000, 4999900, 500060, 5000010)))
area.dataProvider().addFeature(feature)
QgsProject.instance().addMapLayer(area)
predicted = processing.runAndLoadResults("gimseg:predict", {
    "RASTER": image, "AOI": area.id(), "MIN_AREA": 2, "DEVICE": 1, "NODATA": "255",
    "MASK": out + "/mask.tif", "POLYGONS": out + "/found.gpkg",
}, feedback=feedback)
traced = processing.run("gimseg:vectorize", {
    "RASTER": out + "/mask.tif", "POLYGONS": "TEMPORARY_OUTPUT", "EXTRA": "--simplify 0.5",
}, feedback=feedback)
layers = [layer for layer in QgsProject.instance().mapLayers().values() if layer is not area]
errors = []
for changed in ({"POLYGONS": out + "/found.gpkg"}, {"COMMAND": "/no/such/gimseg"}):
    try:
        processing.run("gimseg:vectorize", {"RASTER": out + "/mask.tif", "POLYGONS": out + "/new.gpkg"} | changed)
    except QgsProcessingException as error:
        errors.append(str(error))
registry = QgsApplication.processingRegistry()
registry.providerById("script").refreshAlgorithms()  # as after each change of a script
tell({
    "algorithms": [algorithm.id() for algorithm in registry.providerById("gimseg").algorithms()],
    "scripts": [algorithm.id() for algorithm in registry.providerById("script").algorithms()],
    "predicted": predicted, "traced": traced["POLYGONS"], "lines": feedback.lines, "errors": errors,
    "layers": {
        layer.name(): [
            layer.isValid(), layer.renderer().type(),
            layer.renderer().symbol().color().name() if layer.type() == QgsMapLayerType.VectorLayer
            else layer.renderer().classes()[1].color.name(),
        ]
        for layer in layers
    },
})
"""
)

CORRECT = (
    TOOLBOX
    + """
from qgis.core import QgsProject
image, model, out = sys.argv[2:]
area = QgsVectorLayer("Polygon?crs=EPSG:32633", "drawn in memory", "memory")
feature = QgsFeature()
feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(500000, 4999940, 500060, 5000000)))
area.dataProvider().addFeature(feature)
QgsProject.instance().addMapLayer(area)
round_ = {"ID": "bad", "PROJECT": out}
seen = {}

def layers():
    return {layer.name(): [layer.isValid(), layer.featureCount(), layer.readOnly()]
            for layer in QgsProject.instance().mapLayers().values() if layer is not area}

suggested = processing.runAndLoadResults("gimseg:correct_suggest", {
    "RASTER": image, "MODEL": model, "COUNT": 5, "SIDE": 10, "DEVICE": 1, "AREAS": out + "/areas.gpkg",
}, feedback=feedback)
seen["suggested"] = layers()
QgsProject.instance().removeMapLayers([key for key in QgsProject.instance().mapLayers() if key != area.id()])
processing.runAndLoadResults(
    "gimseg:correct_start", round_ | {"RASTER": image, "AOI": area.id(), "MODEL": model, "DEVICE": 1}, feedback=feedback
)
seen["started"] = layers()
processing.run("gimseg:correct_check", round_, feedback=feedback)
processing.run("gimseg:correct_train", round_ | {"DEVICE": 1, "EXTRA": "--epochs 1 --windows-per-epoch 8 --batch 4"},
    feedback=feedback)
processing.runAndLoadResults("gimseg:correct_report", round_ | {"DEVICE": 1}, feedback=feedback)
seen["reported"] = layers()
deployed = os.path.join(out, "corrections", "project.json")
processing.run("gimseg:correct_accept", round_ | {"DEVICE": 1, "FORCE": True}, feedback=feedback)
seen["accepted"] = os.path.exists(deployed)
processing.run("gimseg:correct_rollback", {"PROJECT": out}, feedback=feedback)
seen["rolled back"] = not os.path.exists(deployed)
try:
    processing.run("gimseg:correct_check", round_ | {"ID": "no_such"})
except QgsProcessingException as error:
    seen["error"] = str(error)
tell(seen | {"lines": feedback.lines})
"""
)

CANCEL = (
    TOOLBOX
    + """
image, model, out = sys.argv[2:]
parameters = {"RASTER": image, "MODEL": model, "MASK": out + "/mask.tif", "POLYGONS": out + "/found.fgb"}

def cancel():
    until = time.monotonic() + 300
    while time.monotonic() < until and not list(__import__("pathlib").Path(out).glob(".*/.*.parts/block_*.tif")):
        time.sleep(0.02)
    feedback.cancel()

threading.Thread(target=cancel).start()
result = processing.run("gimseg:predict", parameters, feedback=feedback)
tell({"result": result, "lines": feedback.lines, "shares": feedback.shares})
"""
)

GO_ON = (
    TOOLBOX
    + """
image, model, out = sys.argv[2:]
processing.run("gimseg:predict", {
    "RASTER": image, "MODEL": model, "MASK": out + "/mask.tif", "POLYGONS": out + "/found.fgb",
}, feedback=feedback)
tell({"lines": feedback.lines})
"""
)

SHARES = (
    TOOLBOX
    + """
sys.path.append(ScriptUtils.defaultScriptsFolder())
import qgis_gimseg
qgis_gimseg.run([sys.argv[2], "-c", sys.argv[3]], feedback)
tell({"shares": feedback.shares, "lines": feedback.lines})
"""
)


def roofs(path: Path) -> Path:
    """Bright roofs on dark ground, 0.3 m: 300 x 300 px."""
    values = np.full((3, 300, 300), 70, np.uint8)
    for row in range(20, 260, 80):
        for col in range(20, 260, 80):
            values[:, row : row + 45, col : col + 45] = np.array([190, 180, 170], np.uint8)[:, None, None]
    return write_raster(path, values, transform=north_up(0.3))


@pytest.mark.slow
def test_the_toolbox_predicts_and_vectorizes(tmp_path: Path, qgis: Path) -> None:
    seen = run_in_qgis(RUN, SCRIPT, roofs(tmp_path / "image.tif"), tmp_path, profile=qgis)
    rounds = [f"gimseg:correct_{verb}" for verb in CORRECTIONS]
    assert sorted(seen["algorithms"]) == sorted(["gimseg:predict", "gimseg:vectorize", *rounds])
    assert seen["scripts"] == []
    assert seen["predicted"] == {"MASK": f"{tmp_path}/mask.tif", "POLYGONS": f"{tmp_path}/found.gpkg"}
    colour = Model.load("builtin").recipe.legend.classes[0].colour
    assert seen["layers"] == {
        "Mask": [True, "paletted", colour],
        "Polygons": [True, "singleSymbol", colour],
    }
    with rasterio.open(tmp_path / "mask.tif") as mask:
        values = mask.read(1)
        edge = round(200 * 0.3 / mask.res[0])  # of the AoI drawn in memory
        assert (values[:, edge + 1 :] == 255).all() and not (values[:, : edge - 1] == 255).any()
    assert Path(seen["traced"]).suffix == ".gpkg"
    assert any("polygons in" in line for line in seen["lines"])
    exists, missing = seen["errors"]
    assert "found.gpkg exists" in exists and "Traceback" not in exists
    assert "/no/such/gimseg" in missing and "GIMSEG" in missing


def test_progress_is_read_from_what_gimseg_prints(qgis: Path) -> None:
    code = (
        "from gimseg.progress import ConsoleProgress\n"
        "show = ConsoleProgress(every_s=0)\n"
        "for done in range(5): show('predict', done, 4, 'Mpx', 'in 3% of cases')\n"
        "show('write', 0, 2, 'Mpx'); show('write', 1, 2, 'Mpx')\n"
    )
    seen = run_in_qgis(SHARES, SCRIPT, sys.executable, code, profile=qgis)
    assert seen["shares"] == [0, 25, 50, 75, 100, 0, 50] or seen["shares"] == [25, 50, 75, 100, 0, 50]


def small_model(folder: Path, bands: int) -> Path:
    """Random weights."""
    options = {"encoder_depth": 3, "decoder_channels": (32, 16, 8)}
    network = build_network("Unet", "resnet18", bands=bands, **options)
    described = {"name": "Unet", "encoder": "resnet18", "options": options}
    statistics = {"bands": tuple(range(1, bands + 1)), "mean": (0.0,) * bands, "std": (1.0,) * bands}
    Model(network, recipe(**statistics, window=64, halo=8, stride=8), described).save(folder)
    return folder


@pytest.mark.slow
def test_the_toolbox_corrects(tmp_path: Path, qgis: Path) -> None:
    out = tmp_path / "project"
    out.mkdir()
    image = roofs(tmp_path / "image.tif")
    seen = run_in_qgis(CORRECT, SCRIPT, image, small_model(tmp_path / "model", 3), out, profile=qgis)
    assert [count for _, count, _ in seen["suggested"].values()] == [5]
    assert set(seen["started"]) == {"aoi", "objects", "points"}
    assert all(valid and not fixed for valid, _, fixed in seen["started"].values())
    assert seen["started"]["aoi"][1] == 1
    assert {"appeared", "vanished"} <= set(seen["reported"])
    assert seen["accepted"] and seen["rolled back"] and "no_such" in seen["error"]
    assert (out / "corrections/bad/report.html").is_file()
    # Newer GeoPackages make the GDAL of this QGIS warn.
    for path in (out / "areas.gpkg", out / "corrections/bad/diff.gpkg", out / "corrections/bad/correction.gpkg"):
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA user_version").fetchone() == (10300,), path


@pytest.mark.slow
def test_a_run_that_was_cancelled_goes_on(tmp_path: Path, qgis: Path) -> None:
    small_model(tmp_path / "model", 1)
    rng = np.random.default_rng(0)
    # A file in strips: its blocks are a window high.
    image = write_raster(tmp_path / "long.tif", rng.integers(1, 255, (6000, 300)).astype(np.uint8))
    out = tmp_path / "out"
    out.mkdir()
    given = (SCRIPT, image, tmp_path / "model", out)
    seen = run_in_qgis(CANCEL, *given, profile=qgis)
    assert seen["result"] == {} and any(line.startswith("Cancelled.") for line in seen["lines"])
    assert all(path.name.startswith(".") for path in out.iterdir())
    assert not running(str(out))
    # What is finished is taken over, not computed again: a mark in it comes out at the end.
    (part,) = out.glob(".*/.*.parts/block_0_0.tif")
    with rasterio.open(part, "r+") as block:
        block.write(np.full(block.shape, 77, np.uint8), 1)
    run_in_qgis(GO_ON, *given, profile=qgis)
    assert {"mask.tif", "found.fgb"} <= {path.name for path in out.iterdir()}
    with rasterio.open(out / "mask.tif") as mask:
        values = mask.read(1)
    assert (values[:900] == 77).all() and not (values[4000:] == 77).any()


def running(word: str) -> list[str]:
    """Command lines of processes with this word, a moment after the end of the one that started them."""
    time.sleep(0.5)
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line and str(os.getpid()) != process.parent.name:
            found.append(line)
    return found
