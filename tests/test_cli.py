"""The commands: exit codes, one-line errors, what they leave; all in process but where a process is the point."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import geopandas
import numpy as np
import pytest
import rasterio
from test_training import QUICK, squares_world
from worlds import noise, north_up, write_raster

from gimseg.cli import cli, main
from gimseg.training import train
from gimseg.vectors import open_layer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image, its ground truth, a dataset file and a model."""
    folder = tmp_path_factory.mktemp("world")
    dataset = squares_world(folder)
    (folder / "data.toml").write_text(
        '[[dataset]]\ntag = "w"\nspatial_resolution = 1.0\nimage_paths = ["image0.tif"]\nmask_paths = ["truth0.gpkg"]\n'
    )
    train(dataset, folder / "model", settings=replace(QUICK, epochs=2))
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_command_that_ends_with_a_code_ends_the_process_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = click.Command("end", callback=lambda: click.get_current_context().exit(3))
    monkeypatch.setitem(cli.commands, "end", ending)
    assert run("end") == 3 and run("--version") == 0


def test_predict_writes_what_the_endings_ask_for(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("predict", world / "image0.tif", "-m", world / "model", "--quiet") == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        f"image0_segments.{ending}" for ending in ("tif", "tif.aux.xml", "shp", "shx", "dbf", "prj", "cpg", "qml")
    }
    outputs = [tmp_path / f"o.{ending}" for ending in ("gpkg", "fgb", "geojson", "parquet")]
    flags = [part for output in outputs for part in ("-o", output)]
    assert run("predict", world / "image0.tif", "-m", world / "model", *flags) == 0
    assert "polygons in" in capsys.readouterr().out
    shapefile = geopandas.read_file("image0_segments.shp")
    counts = {open_layer(output).count for output in outputs}
    assert counts == {len(shapefile)} and len(shapefile) > 10
    with rasterio.open("image0_segments.tif") as mask, rasterio.open(world / "image0.tif") as image:
        assert mask.crs == image.crs and mask.bounds == image.bounds
        assert set(np.unique(mask.read(1))) == {0, 1}
        # Unsimplified polygons cover their pixels and nothing else.
        assert shapefile.area.sum() == pytest.approx((mask.read(1) == 1).sum())


def test_outputs_are_kept_unless_told_otherwise(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image0_segments.shp").write_text("mine")
    assert run("predict", world / "image0.tif", "-m", world / "model") == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("Error: ") and "--overwrite" in error and "\n" not in error
    assert (tmp_path / "image0_segments.shp").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["image0_segments.shp"]
    assert run("predict", world / "image0.tif", "-m", world / "model", "-o", world / "image0.tif") == 1
    assert run("predict", world / "image0.tif", "-m", world / "model", "--overwrite", "--quiet") == 0


def test_train_evaluate_info_vectorize(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--epochs", "1", "--windows-per-epoch", "8", "--window", "64", "--encoder", "resnet18", "--exemplars", "1"]
    assert run("train", world / "data.toml", "-o", tmp_path / "m", *quick, "--quiet") == 0
    assert run("info", tmp_path / "m") == 0
    assert "reach" in capsys.readouterr().out
    assert run("info", world / "data.toml", "--plot", tmp_path / "sheet.png") == 0
    out = capsys.readouterr().out
    assert "81" in out and "unlabelled" in out and (tmp_path / "sheet.png").stat().st_size > 10_000
    assert run("info", world / "image0.tif") == 0
    assert "EPSG:32633" in capsys.readouterr().out
    scores, plot = tmp_path / "scores.json", tmp_path / "plot.png"
    given = ["-m", world / "model", "-o", scores, "--plot", plot]
    assert run("evaluate", world / "data.toml", *given) == 0
    assert json.loads(scores.read_text())["splits"]["all"] and plot.stat().st_size > 10_000
    mask = tmp_path / "mask.tif"
    assert run("predict", world / "image0.tif", "-m", world / "model", "-o", mask, "--quiet") == 0
    capsys.readouterr()
    assert run("evaluate", world / "data.toml", "--mask", mask, "-o", tmp_path / "again.json") == 0
    # The model and the mask that it wrote have the same scores.
    assert json.loads((tmp_path / "again.json").read_text())["rasters"] == json.loads(scores.read_text())["rasters"]
    assert run("vectorize", mask, "-o", tmp_path / "p.gpkg", "--min-area", 50, "--simplify", 0.5) == 0
    assert geopandas.read_file(tmp_path / "p.gpkg", layer="polygons").area.min() > 40


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--help"], 0),
        (["--version"], 0),
        (["predikt"], 2),
        (["predict"], 2),
        (["predict", "none.tif"], 1),
        (["predict", "none.tif", "--bands", "a"], 2),
        (["predict", "none.tif", "-m", "no/such/model"], 1),
        (["info", "none.toml"], 2),
        (["train", "none.toml", "-o", "m"], 2),
    ],
)
def test_exit_codes(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code
    assert code == 0 or capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_line_that_resumes(world: Path, tmp_path: Path) -> None:
    arguments = ["train", str(world / "data.toml"), "-o", str(tmp_path / "m"), "--window", "64"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gimseg", *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "m.training" / "training.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert f"gimseg {' '.join(arguments)}" in error
    assert not (tmp_path / "m").exists()


def test_what_predict_delivers_is_said_by_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write_raster(tmp_path / f"{name}.tif", noise((3, 60, 70)), transform=north_up(0.3))
    out = tmp_path / "out"
    out.mkdir()
    pattern, named = str(tmp_path / "?.tif"), f"{out}/{{stem}}_m.tif"
    options = ["--probabilities", "--uncertainty", "margin", "--threshold", "building=0.3", "--cog", "--stac"]
    assert main(["predict", pattern, "-o", named, *options]) == 0
    told = capsys.readouterr()
    assert "a_m.tif: 84 x 72 px" in told.out and "beside it b_m_probabilities.tif" in told.out
    made = {"m.tif", "m.tif.aux.xml", "m.qml", "m.json"}
    made |= {f"m_{kind}.{ending}" for kind in ("probabilities", "uncertainty") for ending in ("tif", "qml")}
    assert {path.name for path in out.iterdir()} == {f"{stem}_{name}" for stem in "ab" for name in made}
    # Rasters that lie upon one another: the first counts.
    assert main(["predict", pattern, "--mosaic", "--match-input", "-o", str(out / "both.tif"), "--tta", "flips"]) == 0
    assert main(["predict", str(tmp_path / "a.tif"), "-o", str(out / "x.tif"), "--threshold", "roof=0.3"]) == 1
    assert "no class 'roof'" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "a.tif"), "--tta", "all"]) == 2


def test_vectorize_takes_masks_of_other_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = write_raster(tmp_path / "yes.tif", np.kron([[0, 255], [255, 3]], np.ones((5, 5))).astype(np.uint8))
    assert run("vectorize", mask, "-o", tmp_path / "a.fgb", "--values", "255") == 0
    assert open_layer(tmp_path / "a.fgb").count == 2
    shares = write_raster(tmp_path / "p.tif", np.full((2, 10, 10), 0.75, np.float32), descriptions=["roof", "tree"])
    asked = ("--threshold", "0.7", "--band", "tree")
    assert run("vectorize", shares, "-o", tmp_path / "b.parquet", *asked) == 0
    frame = geopandas.read_parquet(tmp_path / "b.parquet")
    assert frame["class"].tolist() == ["tree"] and frame["confidence"].tolist() == [0.75]
    capsys.readouterr()
    assert run("vectorize", mask, "-o", tmp_path / "c.fgb", "--values", "1-") == 1
    assert "as 1,5-7" in capsys.readouterr().err
    assert (
        run("vectorize", write_raster(tmp_path / "m.tif", np.full((4, 4), 255, np.uint8)), "-o", tmp_path / "d.shp")
        == 0
    )
    assert "--values 255" in capsys.readouterr().out
