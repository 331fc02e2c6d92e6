"""Every backend on the CPU: time as a share of plain torch's, and pixels whose class differs from it.

    python tests/benchmarks/bench_backends.py [--side 512] [--rounds 5]

A U-Net/ResNet-34 of random weights, its norms settled on the images, and the built-in model;
windows of synthetic aerial scenes. The rounds go through all backends in turn, so that a busy
machine slows all of them; the least of each is compared.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
import torch

from gimseg.backends import backend_by_name
from gimseg.errors import PredictionError
from gimseg.legend import Legend
from gimseg.models import Model, Recipe, build_network
from gimseg.raster_files import Pixels
from gimseg.scenes import make_scene

NAMES = (
    "torch float32",
    "torch bfloat16",
    "openvino float32",
    "openvino bfloat16",
    "openvino int8",
)
CALIBRATION = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=512, help="of a window, px")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, window {given.side} px")
    pixels = [make_scene(seed, (given.side, given.side), border=False).image for seed in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        write_exemplars(Path(folder), given.side)
        for model in (random_unet(pixels), Model.load()):
            images = [prepared(model.recipe, image) for image in pixels]
            measure(replace(model, folder=Path(folder)), images, given.rounds)


def write_exemplars(folder: Path, side: int) -> None:
    """What int8 is calibrated on: windows of other scenes."""
    (folder / "exemplars").mkdir()
    for number in range(CALIBRATION):
        image = make_scene(100 + number, (side, side), border=False).image
        path = folder / "exemplars" / f"{number:03d}_image.tif"
        with rasterio.open(path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8") as file:
            file.write(image)


def random_unet(pixels: list[np.ndarray]) -> Model:
    torch.manual_seed(0)
    network = build_network("Unet", "resnet34").train()
    recipe = Recipe(
        bands=(1, 2, 3), mean=(120.0,) * 3, std=(50.0,) * 3, resolution=0.3, window=512, halo=64, stride=32,
        legend=Legend.binary("building", "#ff0000"),
    )  # fmt: skip
    with torch.no_grad():
        for image in pixels * 5:
            network(prepared(recipe, image))
    return Model(network.eval(), recipe, {"name": "Unet", "encoder": "resnet34 of random weights", "options": {}})


def prepared(recipe: Recipe, image: np.ndarray) -> torch.Tensor:
    valid = np.ones(image.shape[1:], bool)
    return torch.from_numpy(recipe.prepare(Pixels(image, valid)))[None]


def measure(model: Model, images: list[torch.Tensor], rounds: int) -> None:
    """Print a line for each backend."""
    network = copy.deepcopy(model.network).eval()

    def plain(image: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return network(image)

    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"plain torch float32": plain}
    opened: dict[str, float] = {"plain torch float32": 0.0}
    for name in NAMES:
        started = time.perf_counter()
        try:
            backend = backend_by_name(model, torch.device("cpu"), name)
            backend.logits(images[0])
        except PredictionError as error:
            print(f"{name}: {error}")
            continue
        ways[name], opened[name] = backend.logits, time.perf_counter() - started
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(timed(way, images))
    least = {name: min(values) for name, values in seconds.items()}
    expected = [model.recipe.classify(plain(image)) for image in images]
    share = np.mean([classes != 0 for classes in expected])
    print(f"\n{model.name}, {share:.0%} of the pixels are of the class\n")
    print("| backend | s a window | times as fast as plain torch | flips, ppm | opened in, s |\n|---|---|---|---|---|")
    for name, way in ways.items():
        flips = np.mean(
            [model.recipe.classify(way(image)) != classes for image, classes in zip(images, expected, strict=True)]
        )
        gain = least["plain torch float32"] / least[name]
        print(
            f"| {name} | {least[name] / len(images):.3f} | {gain:.2f} | {flips * 1e6:.0f} | {opened[name]:.1f} |",
            flush=True,
        )


def timed(way: Callable[[torch.Tensor], torch.Tensor], images: list[torch.Tensor]) -> float:
    started = time.perf_counter()
    for image in images:
        way(image)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
