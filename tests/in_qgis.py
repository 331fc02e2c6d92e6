"""Scripts run by QGIS's own Python, without a window.

Plain functions: `from in_qgis import run_in_qgis`. The fixture `qgis` skips where QGIS is missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

QGIS_PYTHON = "/usr/bin/python3"

_HEAD = """
import json, os, sys
from qgis.core import *
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor

app = QgsApplication([], True)
app.initQgis()

def tell(seen):
    print("SEEN" + json.dumps(seen))
    sys.stdout.flush()
    os._exit(0)  # QGIS's objects do not all outlive its application

def render(layers, crs, extent, picture, size=400):
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(crs)
    settings.setExtent(extent)
    settings.setOutputSize(QSize(size, size))
    settings.setBackgroundColor(QColor("#ff00ff"))
    job = QgsMapRendererSequentialJob(settings)
    job.start()
    job.waitForFinished()
    job.renderedImage().save(picture)
"""


def qgis_environment(profile: Path, **extra: str) -> dict[str, str]:
    """What QGIS needs to run without a window and with settings of its own."""
    own = {
        "QT_QPA_PLATFORM": "offscreen",
        "PYTHONPATH": "",
        "XDG_RUNTIME_DIR": str(profile),
        "QGIS_CUSTOM_CONFIG_PATH": str(profile),
        # Where QGIS's Python finds no gimseg, its child must be told.
        "GIMSEG": f"{sys.executable} -m gimseg",
    }
    return os.environ | own | extra


def run_in_qgis(script: str, *arguments: object, profile: Path) -> Any:
    """What a script tells by `tell(...)`; `render(layers, crs, extent, picture)` is there for it."""
    command = [QGIS_PYTHON, "-c", _HEAD + script, *map(str, arguments)]
    run = subprocess.run(command, env=qgis_environment(profile), capture_output=True, text=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith("SEEN")]
    assert lines, run.stdout + run.stderr
    return json.loads(lines[0].removeprefix("SEEN"))


def has_qgis() -> bool:
    """Whether QGIS and its Python module are installed."""
    try:
        found = subprocess.run([QGIS_PYTHON, "-c", "import qgis.core"], capture_output=True)
    except OSError:
        return False
    return found.returncode == 0
