"""Laws of training: it learns, it goes on after a kill, its folder is whole."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import torch
from shapely.geometry import box
from worlds import TOP_LEFT, UTM, write_raster

from gimseg import Dataset, Model, evaluate, train
from gimseg.errors import DatasetError, ModelError, OutputError, ResumeError, TrainingError
from gimseg.optimisers import SCHEDULES, schedule_factor
from gimseg.training import Settings

LEFT, TOP = TOP_LEFT
QUICK = Settings(
    encoder="resnet18",
    network_options={"encoder_depth": 3, "decoder_channels": (32, 16, 8)},
    epochs=4,
    windows_per_epoch=48,
    window=64,
    batch=8,
    exemplars=2,
    learning_rate=3e-3,
    averaging=0.9,
)


def squares_world(folder: Path, seed: int = 0) -> Dataset:
    """Bright squares on dark, noisy ground: easy, yet not to be had by chance."""
    rng = np.random.default_rng(seed)
    image = rng.normal(80, 12, (3, 384, 384))
    geometries = []
    for row in range(12, 360, 40):
        for col in range(12, 360, 40):
            side = int(rng.integers(10, 24))
            image[:, row : row + side, col : col + side] += rng.uniform(40, 90, 3)[:, None, None]
            geometries.append(box(LEFT + col, TOP - row - side, LEFT + col + side, TOP - row))
    path = write_raster(folder / f"image{seed}.tif", np.clip(image, 1, 255).astype(np.uint8))
    truth = folder / f"truth{seed}.gpkg"
    geopandas.GeoDataFrame(geometry=geometries, crs=UTM).to_file(truth)
    return Dataset(f"w{seed}", 1.0, [path], [truth])


def test_it_learns_a_scene_and_leaves_a_whole_folder(tmp_path: Path) -> None:
    steps: list[float] = []
    model = train(
        squares_world(tmp_path),
        tmp_path / "model",
        settings=QUICK,
        progress=lambda task, done, total, unit, note="": steps.append(done) if task == "train" else None,
    )
    scores = evaluate(model, squares_world(tmp_path, seed=1))
    assert scores.of_split().iou[1] > 0.8
    assert steps == sorted(steps) and steps[-1] == 24
    for name in ("model.safetensors", "config.json", "gimseg.json", "README.md", "curves.png", "metrics.csv"):
        assert (tmp_path / "model" / name).stat().st_size > 0
    assert len(list((tmp_path / "model" / "exemplars").glob("*_labels.tif"))) == 2
    assert not (tmp_path / "model.training").exists()
    rows = list(csv.DictReader((tmp_path / "model" / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    recipe = Model.load(tmp_path / "model").recipe
    assert recipe == model.recipe and recipe.stride == 8 and recipe.halo % 8 == 0
    assert Model.load(tmp_path / "model" / "last").recipe.halo == recipe.halo
    said = {"spatial_resolution": "1.0", "mask_paths": "truth0.gpkg"}
    assert Model.load(tmp_path / "model").provenance["declared"] == {"w0": said}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=1, windows_per_epoch=16, precision="float32")
    world = squares_world(tmp_path)
    prints = {train(world, tmp_path / name, settings=settings).fingerprint() for name in "ab"}
    assert len(prints) == 1
    other = train(world, tmp_path / "c", settings=replace(settings, seed=1))
    assert other.fingerprint() not in prints


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from dataclasses import replace
from test_training import QUICK, squares_world
from gimseg import train
folder = Path({folder!r})
train(squares_world(folder), folder / "model", settings=replace(QUICK, epochs={epochs}))
"""


@pytest.mark.slow
def test_a_killed_training_goes_on(tmp_path: Path) -> None:
    epochs = 12
    text = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path), epochs=epochs)
    process = subprocess.Popen([sys.executable, "-c", text])
    work = tmp_path / "model.training"
    deadline = time.monotonic() + 300
    while not (work / "last.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert work.exists() and not (tmp_path / "model").exists()
    world = Dataset("w0", 1.0, [tmp_path / "image0.tif"], [tmp_path / "truth0.gpkg"])
    with pytest.raises(ResumeError, match="other settings"):
        train(world, tmp_path / "model", settings=replace(QUICK, epochs=epochs, seed=9))
    seen: list[float] = []
    train(
        world,
        tmp_path / "model",
        settings=replace(QUICK, epochs=epochs),
        progress=lambda task, done, total, unit, note="": seen.append(done) if task == "train" else None,
    )
    rows = list(csv.DictReader((tmp_path / "model" / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, epochs + 1))
    assert seen[0] > 1, "it started anew"


def test_minutes_bound_the_training(tmp_path: Path) -> None:
    model = train(squares_world(tmp_path), tmp_path / "m", settings=replace(QUICK, epochs=1000, minutes=0.05))
    assert model.provenance["epochs"] < 100


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_stay_in_range(schedule: str) -> None:
    factors = [schedule_factor(schedule, share, 0.1) for share in np.linspace(0, 1, 101)]
    assert min(factors) > 0 and max(factors) <= 1 and factors[0] < 0.1
    assert schedule in ("constant", "plateau") or factors[-1] < 0.1


@pytest.mark.parametrize(
    ("optimiser", "schedule"),
    [("muon", "cosine"), ("adam", "one_cycle"), ("adamw", "step"), ("sgd", "plateau"), ("adamw", "constant")],
)
def test_optimisers_and_schedules_run(tmp_path: Path, schedule: str, optimiser: str) -> None:
    settings = replace(QUICK, epochs=2, windows_per_epoch=8, schedule=schedule, optimiser=optimiser, exemplars=0)
    assert train(squares_world(tmp_path), tmp_path / "m", settings=settings).recipe.window >= 64


@pytest.mark.slow
def test_an_encoder_without_a_rate_stays_as_it_was(tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=1, windows_per_epoch=16, averaging=0.0, exemplars=0, gradient_clip=1.0)
    world = squares_world(tmp_path)
    for optimiser in ("muon", "adamw"):
        torch.manual_seed(0)
        given = replace(settings, optimiser=optimiser)
        frozen = train(world, tmp_path / f"{optimiser}0", settings=replace(given, encoder_rate=0.0)).network
        moved = train(world, tmp_path / f"{optimiser}1", settings=given).network
        start = weights_of(frozen, "encoder")
        assert not torch.equal(weights_of(moved, "encoder"), start)
        assert not torch.equal(weights_of(moved, "decoder"), weights_of(frozen, "decoder"))
        again = train(world, tmp_path / f"{optimiser}2", settings=replace(given, encoder_rate=0.0, epochs=2)).network
        assert torch.equal(weights_of(again, "encoder"), start)


def weights_of(network: torch.nn.Module, part: str) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in getattr(network, part).parameters()])


@pytest.mark.slow
def test_training_starts_from_the_weights_of_a_file(tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=1, windows_per_epoch=8, exemplars=0)
    world = squares_world(tmp_path)
    first = train(world, tmp_path / "first", settings=settings)
    torch.save(first.network.encoder.state_dict(), tmp_path / "encoder.pth")
    from_file = replace(settings, encoder_weights=str(tmp_path / "encoder.pth"), encoder_rate=0.0, seed=4)
    second = train(world, tmp_path / "second", settings=from_file)
    assert torch.equal(weights_of(second.network, "encoder"), weights_of(first.network, "encoder"))


@pytest.mark.slow
def test_a_clipped_step_is_no_longer_than_asked(tmp_path: Path) -> None:
    """With a clip of next to nothing, plain SGD stays where it began."""
    settings = replace(
        QUICK, optimiser="sgd", weight_decay=0.0, averaging=0.0, epochs=1, windows_per_epoch=16, exemplars=0
    )
    world = squares_world(tmp_path)
    start = train(world, tmp_path / "a", settings=replace(settings, gradient_clip=1e-9)).network
    moved = train(world, tmp_path / "b", settings=settings).network
    again = train(world, tmp_path / "c", settings=replace(settings, gradient_clip=1e-9, epochs=2)).network
    assert (weights_of(again, "decoder") - weights_of(start, "decoder")).abs().max() < 1e-6
    assert (weights_of(moved, "decoder") - weights_of(start, "decoder")).abs().max() > 1e-4


def test_early_stopping_ends_a_training_without_gain(tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=30, windows_per_epoch=8, patience=2, min_gain=0.9, exemplars=0)
    model = train(squares_world(tmp_path), tmp_path / "m", settings=settings)
    assert model.provenance["epochs"] <= 4


def test_several_classes(tmp_path: Path) -> None:
    world = squares_world(tmp_path)
    layer = geopandas.read_file(world.mask_paths[0])
    layer["kind"] = ["left" if geometry.centroid.x < LEFT + 192 else "right" for geometry in layer.geometry]
    layer.to_file(tmp_path / "kinds.gpkg")
    from gimseg import Legend

    legend = Legend.from_dict(
        {"field": "kind", "classes": [{"name": "left", "value": 4}, {"name": "right", "value": 9}]}
    )
    given = replace(world, mask_paths=[tmp_path / "kinds.gpkg"], legend=legend)
    model = train(given, tmp_path / "m", settings=replace(QUICK, epochs=2, loss="ce + dice"))
    assert model.recipe.activation == "softmax"
    scores = evaluate(model, given)
    assert scores.of_split("all").matrix.shape == (3, 3)


def test_a_model_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(OutputError, match="--overwrite"):
        train(squares_world(tmp_path), tmp_path / "m", settings=QUICK)


def test_windows_too_small_for_the_network_are_told_before_training(tmp_path: Path) -> None:
    settings = replace(QUICK, network="DeepLabV3Plus", network_options={}, window=70)
    with pytest.raises(ModelError, match="70"):
        train(squares_world(tmp_path), tmp_path / "m", settings=settings)


@pytest.mark.parametrize(
    "wrong", [{"optimiser": "adma"}, {"schedule": "linear"}, {"epochs": 0}, {"warmup": 1.5}, {"gradient_clip": -1}]
)
def test_settings_out_of_range_are_told(wrong: dict) -> None:
    with pytest.raises(TrainingError):
        replace(QUICK, **wrong)


def test_ground_truth_that_says_nothing_is_told(tmp_path: Path) -> None:
    world = squares_world(tmp_path)
    far = tmp_path / "aoi.gpkg"
    geopandas.GeoDataFrame(geometry=[box(0, 0, 1, 1)], crs=UTM).to_file(far)
    with pytest.raises(DatasetError, match="no labelled pixel"):
        train(replace(world, aoi_paths=[far]), tmp_path / "m", settings=QUICK)


def test_no_thread_or_grad_mode_leaks() -> None:
    assert torch.is_grad_enabled()
