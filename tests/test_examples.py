"""The scripts in `examples/`: each says what it takes, and the tutorial goes through to its last step."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import geopandas
import pytest
from click import Command
from click.testing import CliRunner
from PIL import Image

from gimseg.correction.rounds import Project

FOLDER = Path(__file__).resolve().parents[1] / "examples"
IN_QGIS = ("qgis_gimseg", "render_in_qgis")
"""These run under the Python of QGIS, and are tested there."""
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in IN_QGIS)


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_says_what_it_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = example(name, monkeypatch)
    assert script.__doc__ and "python examples/" + name in script.__doc__
    if isinstance(getattr(script, "main", None), Command):
        said = CliRunner().invoke(script.main, ["--help"])
        assert said.exit_code == 0 and "Usage:" in said.output


@pytest.mark.slow
def test_the_tutorial_goes_through_on_synthetic_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tutorial = example("correction_tutorial", monkeypatch)
    options = {"encoder_depth": 3, "decoder_channels": (32, 16, 16)}
    small = replace(
        tutorial.SHORT, encoder="resnet18", network_options=options, window=128, epochs=1, windows_per_epoch=64
    )
    for name, value in {"SHORT": small, "TOWN_PX": 700, "LEARNED_PX": 480, "COUNT": 2, "SIDE_M": 80}.items():
        monkeypatch.setattr(tutorial, name, value)
    work = tmp_path / "work"
    tutorial.main.callback(work, None, None)
    for name in ("areas", "drawing", "after"):
        with Image.open(work / "pictures" / f"correcting_{name}.png") as picture:
            assert picture.width > 800
    drawn = geopandas.read_file(work / "corrections/blocks/correction.gpkg", layer="objects")
    assert len(drawn) and set(drawn["class"]) == {"building"}
    # What came of it is the gate's to say; either way it is the end of a round.
    passed = json.loads((work / "corrections/blocks/metrics.json").read_text(encoding="utf-8"))["verdict"]["passed"]
    assert (Project(work).deployed() == str(work / "corrections/blocks/model")) == passed
