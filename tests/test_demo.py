"""The demo: what a newcomer runs first must learn, and leave what it promises."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import geopandas
import pytest
import rasterio

from gimseg.correction.rounds import Project
from gimseg.demo import run_demo
from gimseg.errors import OutputError


@pytest.mark.slow
def test_a_small_demo_leaves_what_it_promises(tmp_path: Path) -> None:
    demo = run_demo(tmp_path / "d", size=320, epochs=1)
    left = ("data.toml", "highland.toml", "scores.json", "README.txt", "model/curves.png")
    pictures = ("overview.png", "correction.png", "outcome.png")
    learned = ("correction.qgz", "correction.gpkg", "report.html", "diff.gpkg", "model/gimseg.json")
    for name in (*left, *pictures, *(f"corrections/highland/{name}" for name in learned)):
        assert (demo.folder / name).stat().st_size > 100
    # Whatever came of it is said, and is what the project works with.
    deployed = Project(demo.folder).deployed()
    assert (deployed == str(demo.folder / "corrections/highland/model")) == demo.corrected.accepted
    assert ("Accepted" in demo.text()) == demo.corrected.accepted
    drawn = geopandas.read_file(demo.folder / "corrections/highland/correction.gpkg", layer="objects")
    assert len(drawn) == demo.corrected.roofs > 0
    polygons = geopandas.read_file(demo.folder / "unseen_segments.shp")
    truth = geopandas.read_file(demo.folder / "unseen_labels.geojson")
    with rasterio.open(demo.folder / "unseen.tif") as image:
        assert polygons.crs == image.crs != truth.crs and image.nodata is None
    run_what_it_says(demo.folder, demo.text())
    with pytest.raises(OutputError, match="exists"):
        run_demo(tmp_path / "d")
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="no folder of an earlier demo"):
        run_demo(tmp_path / "mine", overwrite=True)


def run_what_it_says(folder: Path, text: str) -> None:
    """The commands of the correction loop, as they are printed; in fewer steps, and whatever the gate says."""
    lines = [line.strip().split("   ")[0] for line in text.splitlines() if line.startswith("  gimseg correct")]
    assert [line.split()[2] for line in lines] == ["start", "check", "train", "report", "accept"]
    more = {"train": ["--epochs", "1", "--windows-per-epoch", "8"], "report": ["--no-rest"], "accept": ["--force"]}
    for line in lines:
        arguments = shlex.split(line)
        done = subprocess.run(
            [sys.executable, "-m", *arguments, *more.get(arguments[2], [])],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert Project(folder).deployed() == str(folder / "corrections/mine/model")


@pytest.mark.slow
def test_the_demo_learns(tmp_path: Path) -> None:
    demo = run_demo(tmp_path / "d")
    assert demo.iou >= 0.8
    before, after = demo.corrected.outside
    assert after > before + 0.2 and demo.corrected.old[1] > demo.iou - 0.05
