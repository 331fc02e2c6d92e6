"""Runs side by side, and many of them one after the other."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from test_training import QUICK, squares_world

from gimseg import evaluate, train
from gimseg.cli import main
from gimseg.comparison import compare, read_run
from gimseg.datasets import Datasets, read_datasets
from gimseg.errors import ModelError, OutputError, ResumeError, TrainingError
from gimseg.sweeps import read_sweep, run_sweep
from gimseg.training_state import declared, fingerprints

SWEEP = """
data = "data.toml"
[training]
epochs = 2
[grid]
learning_rate = [0.001, 0.003]
seed = [0, 1]
[[run]]
name = "focal"
loss = "focal + dice"
"""
TRAINING = """
[[dataset]]
tag = "w"
spatial_resolution = 1.0
image_paths = ["image0.tif"]
mask_paths = ["truth0.gpkg"]
[training]
encoder = "resnet18"
network_options = { encoder_depth = 3, decoder_channels = [16, 8, 8] }
windows_per_epoch = 16
window = 64
exemplars = 0
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with data and a sweep."""
    squares_world(tmp_path)
    (tmp_path / "data.toml").write_text(TRAINING)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return tmp_path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_grid_is_every_combination_and_a_list_one_run_each(world: Path) -> None:
    runs = read_sweep(world / "sweep.toml").runs
    assert list(runs) == [
        "learning_rate=0.001,seed=0",
        "learning_rate=0.001,seed=1",
        "learning_rate=0.003,seed=0",
        "learning_rate=0.003,seed=1",
        "focal",
    ]
    assert {settings.epochs for settings in runs.values()} == {2}
    assert {settings.windows_per_epoch for settings in runs.values()} == {16}
    assert runs["focal"].loss == "focal + dice" and runs["learning_rate=0.003,seed=1"].seed == 1


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[grid]\nseed = [1]", "names no dataset file"),
        ('data = "data.toml"', "has no run"),
        ('data = "data.toml"\n[gird]\nseed = [1]', "did you mean 'grid'"),
        ('data = "data.toml"\n[grid]\nseed = 1', "give a list of values"),
        ('data = "data.toml"\n[grid]\nsed = [1]', "did you mean 'seed'"),
        ('data = "data.toml"\n[[run]]\nname = "a"\n[[run]]\nname = "a"', "a name of its own"),
        ('data = "data.toml"\n[[run]]\nname = "../a"', "a name of its own"),
        ('data = "data.toml"\n[[run]]\nepochs = 0', "epochs is 0"),
    ],
)
def test_a_sweep_that_is_wrong_is_told_before_any_training(world: Path, text: str, match: str) -> None:
    (world / "wrong.toml").write_text(text)
    with pytest.raises(TrainingError, match=match):
        read_sweep(world / "wrong.toml")


@pytest.mark.slow
def test_a_sweep_ranks_goes_on_and_leaves_what_is_finished(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "sweep.toml").write_text(SWEEP.replace("0.001, 0.003", "0.003"))
    assert run("sweep", world / "sweep.toml", "-o", world / "runs", "--quiet") == 0
    told = capsys.readouterr().out
    assert "val IoU" in told and "focal" in told
    rows = list(csv.DictReader((world / "runs" / "ranking.csv").read_text(encoding="utf-8").splitlines()))
    scores = [float(row["val IoU"]) for row in rows]
    assert len(rows) == 3 and scores == sorted(scores, reverse=True)
    assert {"rank", "seed", "loss", "val FP", "val FN", "val FP/FN"} <= set(rows[0])
    assert (world / "runs" / "curves.png").stat().st_size > 1000

    before = {path: path.stat().st_mtime_ns for path in (world / "runs").glob("*/model.safetensors")}
    shutil.rmtree(world / "runs" / "focal")
    ended: list[str] = []
    run_sweep(read_sweep(world / "sweep.toml"), world / "runs", tell=ended.append)
    after = {path: path.stat().st_mtime_ns for path in (world / "runs").glob("*/model.safetensors")}
    assert [path for path in before if before[path] != after[path]] == [world / "runs" / "focal" / "model.safetensors"]
    assert len(ended) == 3 and all("place" in line for line in ended)

    (world / "data.toml").write_text(TRAINING.replace('tag = "w"', 'tag = "w"\nweight = 2.0'))
    with pytest.raises(ResumeError, match="another value of weight of dataset 'w'"):
        run_sweep(read_sweep(world / "sweep.toml"), world / "runs")
    (world / "data.toml").write_text(TRAINING)
    (world / "sweep.toml").write_text(SWEEP.replace("0.001, 0.003", "0.003").replace("epochs = 2", "epochs = 3"))
    with pytest.raises(ResumeError, match="another value of epochs"):
        run_sweep(read_sweep(world / "sweep.toml"), world / "runs")


def finished_run(world: Path) -> None:
    """What a finished run is known by, without a training."""
    (world / "sweep.toml").write_text('data = "data.toml"\n[[run]]\nname = "one"\n')
    sweep, data = read_sweep(world / "sweep.toml"), read_datasets(world / "data.toml")
    (world / "runs" / "one").mkdir(parents=True)
    settings = asdict(sweep.runs["one"])
    provenance = {"settings": settings, "declared": declared(data), "data": fingerprints(data)}
    told = json.dumps({"provenance": provenance}, default=str)
    (world / "runs" / "one" / "gimseg.json").write_text(told, encoding="utf-8")
    (world / "runs" / "one" / "metrics.csv").write_text("epoch,val_iou\n1,0.5\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("spatial_resolution = 1.0", "spatial_resolution = 2.0", "spatial_resolution of dataset 'w'"),
        ('tag = "w"', 'tag = "w"\nweight = 2.0\nnodata = 7', "nodata of dataset 'w', weight of dataset 'w'"),
        ('tag = "w"', 'tag = "w"\nbands = [2, 1, 3]', "bands of dataset 'w'"),
        ('tag = "w"', 'tag = "w"\nsplit = "train"', "split of dataset 'w'"),
        ('tag = "w"', 'tag = "w"\nlegend = { classes = ["roof"] }', "legend of dataset 'w'"),
        ("mask_paths", "ignore_paths", "ignore_paths of dataset 'w', mask_paths of dataset 'w'"),
        ('"truth0.gpkg"', '"truth0.gpkg|layername=truth0"', "mask_paths of dataset 'w'"),
        ('tag = "w"', 'tag = "v"', "the data"),
    ],
)
def test_a_finished_run_of_which_something_else_was_said_is_refused(
    world: Path, before: str, after: str, told: str
) -> None:
    finished_run(world)
    run_sweep(read_sweep(world / "sweep.toml"), world / "runs")
    text = (world / "data.toml").read_text()
    assert text.count(before) == 1
    (world / "data.toml").write_text(text.replace(before, after))
    with pytest.raises(ResumeError, match=f"another value of {told}: give the sweep another folder"):
        run_sweep(read_sweep(world / "sweep.toml"), world / "runs")


def test_of_a_model_that_does_not_tell_what_was_said_settings_and_files_are_compared(world: Path) -> None:
    finished_run(world)
    path = world / "runs" / "one" / "gimseg.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    del known["provenance"]["declared"]
    path.write_text(json.dumps(known), encoding="utf-8")
    (world / "data.toml").write_text(TRAINING.replace("spatial_resolution = 1.0", "spatial_resolution = 2.0"))
    run_sweep(read_sweep(world / "sweep.toml"), world / "runs")
    (world / "image0.tif").write_bytes((world / "image0.tif").read_bytes() + b"more")
    with pytest.raises(ResumeError, match="another value of the data"):
        run_sweep(read_sweep(world / "sweep.toml"), world / "runs")


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(world: Path) -> None:
    text = 'data = "data.toml"\n[training]\nepochs = 1\n[[run]]\nname = "bad"\nwindow = 70\n[[run]]\nname = "good"\n'
    (world / "sweep.toml").write_text(text)
    with pytest.raises(TrainingError, match="1 of 2 runs failed, the others are finished: bad: window of 70 px"):
        run_sweep(read_sweep(world / "sweep.toml"), world / "runs")
    assert (world / "runs" / "good" / "gimseg.json").exists()
    assert "`bad` failed" in (world / "runs" / "ranking.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_runs_are_compared_in_settings_scores_and_curves(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = read_datasets(world / "data.toml")
    quick = replace(QUICK, epochs=2, windows_per_epoch=16, exemplars=0)
    model = train(data, tmp_path / "one", settings=quick)
    train(data, tmp_path / "two", settings=replace(quick, learning_rate=1e-3, loss="dice"))
    found = compare([tmp_path / "one", tmp_path / "two"], plot=tmp_path / "c.png", output=tmp_path / "c.md")
    assert set(found.differing) == {"loss", "learning_rate"} and found.splits == ("val",)
    one = found.runs[0]
    assert one.scores["val"].iou == model.scores["val"]["iou"] and len(one.history) == 2
    assert one.scores["val"].ratio == pytest.approx(one.scores["val"].false_alarms / one.scores["val"].misses)
    assert (tmp_path / "c.md").read_text(encoding="utf-8").count("\n") == 4
    assert (tmp_path / "c.png").stat().st_size > 1000

    scored = compare([tmp_path / "one"], datasets=Datasets(tuple(data)))
    table = evaluate(model, data).of_split("all")
    assert scored.runs[0].scores["all"].iou == pytest.approx(float(table.mean_iou))
    assert scored.runs[0].scores["all"].misses == pytest.approx(1 - table.recall[1])

    assert run("compare", tmp_path / "one", tmp_path / "two", "-o", tmp_path / "c.csv") == 0
    assert "learning_rate" in capsys.readouterr().out
    assert len(list(csv.reader((tmp_path / "c.csv").read_text(encoding="utf-8").splitlines()))) == 3
    with pytest.raises(OutputError, match="overwrite"):
        compare([tmp_path / "one"], output=tmp_path / "c.csv")


@pytest.mark.slow
def test_a_training_that_is_not_finished_is_compared_too(world: Path, tmp_path: Path) -> None:
    quick = replace(QUICK, epochs=2, windows_per_epoch=16, exemplars=0)
    work = tmp_path / "kept"

    def keep(task: str, done: float, *given: object) -> None:
        if task == "train" and done == 4:
            shutil.copytree(tmp_path / "m.training", work / "m.training")

    train(read_datasets(world / "data.toml"), tmp_path / "m", settings=quick, progress=keep)
    found = read_run(work / "m")
    assert not found.finished and len(found.history) == 1 and found.settings["epochs"] == 2
    assert "not finished" in compare([tmp_path / "m", work / "m"]).text()
    with pytest.raises(ModelError, match="no run that can be read"):
        read_run(tmp_path / "nothing")


@pytest.mark.slow
def test_train_takes_settings_from_files_and_looks_for_a_rate(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.toml").write_text("[training]\nepochs = 1\nbatch = 4\n")
    given = ("train", world / "data.toml", "-o", tmp_path / "m", "--settings", tmp_path / "own.toml", "--quiet")
    assert run(*given, "--find-rate", "--device", "cpu") == 0
    assert "--learning-rate 0." in capsys.readouterr().out.replace("e-0", "0.")
    assert not (tmp_path / "m").exists() and (tmp_path / "m.rates.png").exists() and (tmp_path / "m.rates.csv").exists()
    assert run(*given, "--batch", 8, "--resolutions", "1,2", "--frozen-statistics") == 0
    settings = read_run(tmp_path / "m").settings
    assert (settings["epochs"], settings["batch"], settings["window"]) == (1, 8, 64)
    assert settings["resolutions"] == [1.0, 2.0] and settings["frozen_statistics"] is True
    assert run(*given, "--resolutions", "fine") == 2
    assert run(*given, "--fold", "1/2", "--overwrite") == 1
