"""gimseg beside what else predicts large rasters: one process after the other, one raster, one network.

    python tests/benchmarks/bench_peers.py [--peers PYTHON] [--side 4096] [--only gimseg,monai]

PYTHON is an interpreter that finds torch and, beside it, monai, torchgeo, geoai-py and
geo-inference; those that it does not find are named and left out. The network is that of the built-in
model, the raster a synthetic aerial scene, RGB, uint8, tiled, deflate.
Each writes a mask or keeps one, as its documentation shows; flips are counted against one
pass of the plain network over the whole raster. Processor time tells more than wall time
where other work shares the machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
import torch
from torch import nn

from gimseg import Predictor
from gimseg.models import Model
from gimseg.scenes import make_scene

CLASSES = 2
PACKAGES = {"monai": "monai", "torchgeo": "torchgeo", "geoai": "geoai-py", "geo_inference": "geo-inference"}


class Scaled(nn.Module):
    """The network for those who normalise otherwise: takes pixels times a factor, gives a channel for each class."""

    def __init__(self, model: Model, factor: float) -> None:
        super().__init__()
        self.network, self.factor = model.network, factor
        self.register_buffer("mean", torch.tensor(model.recipe.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(model.recipe.std)[:, None, None])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = self.network((pixels.float() * self.factor - self.mean) / self.std)
        return torch.cat([torch.zeros_like(logits), logits], 1)


def network(model: str, factor: float = 1.0) -> nn.Module:
    return Scaled(Model.load(model), factor).eval()


def read_pixels(raster: Path) -> torch.Tensor:
    with rasterio.open(raster) as image:
        return torch.from_numpy(image.read())[None]


class Task(NamedTuple):
    """What each is to do."""

    raster: Path
    model: str
    mask: Path
    """To be written, a GeoTIFF; or an array beside it, `.npy`."""
    window: int
    """Side, px."""


def run_one_pass(task: Task) -> None:
    with torch.inference_mode():
        np.save(
            task.mask.with_suffix(".npy"),
            network(task.model)(read_pixels(task.raster))[0].argmax(0).numpy().astype(np.uint8),
        )


def run_forward(task: Task) -> None:
    """The forward passes alone, of windows side by side."""
    ready = network(task.model)
    pixels = read_pixels(task.raster)
    with torch.inference_mode():
        for row in range(0, pixels.shape[-2], task.window):
            for col in range(0, pixels.shape[-1], task.window):
                ready(pixels[..., row : row + task.window, col : col + task.window])


def run_gimseg(task: Task) -> None:
    Predictor(task.model, device="cpu", precision="float32").predict(task.raster, task.mask)


def run_gimseg_default(task: Task) -> None:
    Predictor(task.model, device="cpu").predict(task.raster, task.mask)


def run_monai(task: Task) -> None:
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        pixels = read_pixels(task.raster).float()
        logits = sliding_window_inference(pixels, task.window, 1, network(task.model), overlap=0.25, mode="gaussian")
        np.save(task.mask.with_suffix(".npy"), logits[0].argmax(0).numpy().astype(np.uint8))


def run_torchgeo(task: Task) -> None:
    """The loop of its tutorials: no stitching, no writing."""
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    dataset = RasterDataset(str(task.raster))
    loader = DataLoader(
        dataset,
        batch_size=1,
        sampler=GridGeoSampler(dataset, size=task.window, stride=task.window),
        collate_fn=stack_samples,
    )
    ready = network(task.model)
    with torch.inference_mode():
        for sample in loader:
            ready(sample["image"]).argmax(1)


def run_geoai_predict_geotiff(task: Task) -> None:
    from geoai.inference import predict_geotiff

    predict_geotiff(
        network(task.model), str(task.raster), str(task.mask), tile_size=task.window, overlap=task.window // 4,
        batch_size=1, num_classes=CLASSES, preprocess_fn=lambda pixels: pixels.astype(np.float32),
        postprocess_fn=lambda values: values.argmax(0)[None], output_dtype="uint8", output_nodata=255,
        device="cpu", verbose=False,
    )  # fmt: skip


def run_geoai_semantic(task: Task) -> None:
    from geoai.train import semantic_inference_on_geotiff

    semantic_inference_on_geotiff(
        network(task.model, 255.0), str(task.raster), str(task.mask), window_size=task.window,
        batch_size=1, num_classes=CLASSES, device=torch.device("cpu"), quiet=True,
    )  # fmt: skip


def run_geo_inference(task: Task) -> None:
    from geo_inference.geo_inference import GeoInference

    scripted = task.mask.with_suffix(".pt")
    torch.jit.trace(network(task.model, 1.0), torch.zeros(1, 3, task.window, task.window), check_trace=False).save(
        str(scripted)
    )
    engine = GeoInference(str(scripted), str(task.mask.parent), device="cpu", num_classes=CLASSES)
    written = engine(str(task.raster), patch_size=task.window, workers=1)
    (task.mask.parent / written).rename(task.mask)


RUNS: dict[str, tuple[str, Callable[[Task], None]]] = {
    "one pass over the whole": ("", run_one_pass),
    "gimseg, float32": ("", run_gimseg),
    "gimseg, defaults": ("", run_gimseg_default),
    "forward alone, no overlap": ("", run_forward),
    "MONAI sliding_window_inference": ("monai", run_monai),
    "torchgeo GridGeoSampler loop": ("torchgeo", run_torchgeo),
    "geoai predict_geotiff": ("geoai", run_geoai_predict_geotiff),
    "geoai semantic_inference_on_geotiff": ("geoai", run_geoai_semantic),
    "geo-inference": ("geo_inference", run_geo_inference),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=sys.executable, help="Python that finds the others")
    parser.add_argument("--side", type=int, default=4096, help="of the raster, px")
    parser.add_argument("--only", default="", help="names, or beginnings of them, with commas between")
    parser.add_argument("--window", type=int, default=512, help="of those that take one, px")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        name, raster, model, mask = given.run
        print(json.dumps(measure(RUNS[name][1], Task(Path(raster), model, Path(mask), given.window))))
        return
    chosen = [name for name in RUNS if name.startswith(tuple(given.only.split(",")))]
    with tempfile.TemporaryDirectory() as work:
        compare(Path(work), given.peers, (given.side, given.window), chosen)


def measure(run: Callable[[Task], None], task: Task) -> dict[str, float]:
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    run(task)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall": time.perf_counter() - started,
        "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mb": peak_mb(),
    }


def peak_mb() -> float:
    """Of this process alone: what getrusage tells is inherited from the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def compare(work: Path, python: str, sides: tuple[int, int], chosen: list[str]) -> None:
    side, window = sides
    raster, model = work / "raster.tif", "builtin"
    write_image(raster, side)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {side} x {side} px, windows of {window} px")
    found: dict[str, dict[str, float]] = {}
    masks: dict[str, np.ndarray] = {}
    for name in chosen:
        package = RUNS[name][0]
        version = installed(python, package) if package else "-"
        if version is None:
            print(f"{name}: {PACKAGES[package]} is not installed beside this torch")
            continue
        mask = work / f"{len(found)}.tif"
        command = [python, __file__, "--window", str(window), "--run", name, str(raster), str(model), str(mask)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name} ({version}) failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        found[name] = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"{name} ({version}): {found[name]}", flush=True)
        if (values := read_mask(mask)) is not None:
            masks[name] = values
    tell(found, masks)


def write_image(raster: Path, side: int) -> None:
    scene = make_scene(1, (side, side), resolution=Model.load().recipe.resolution, border=False)
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True, "compress": "deflate"}
    place = {"crs": str(scene.geobox.crs), "transform": scene.geobox.affine, "width": side, "height": side}
    with rasterio.open(raster, "w", **profile, **place) as image:
        image.write(scene.image)


def installed(python: str, package: str) -> str | None:
    code = f"from importlib import metadata; print(metadata.version({PACKAGES[package]!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return None if done.returncode else done.stdout.strip()


def read_mask(mask: Path) -> np.ndarray | None:
    if mask.with_suffix(".npy").exists():
        return np.load(mask.with_suffix(".npy"))
    if not mask.exists():
        return None
    with rasterio.open(mask) as image:
        return image.read(1)


def tell(found: dict[str, dict[str, float]], masks: dict[str, np.ndarray]) -> None:
    whole = masks.get("one pass over the whole")
    ours = found.get("gimseg, float32") or found.get("gimseg, defaults")
    print(
        "\n| | wall s | ratio | processor s | ratio | peak MB | ratio | flips, ppm |\n|---|---|---|---|---|---|---|---|"
    )
    for name, one in found.items():
        cells = [f"{one[key]:.1f} | {one[key] / ours[key]:.2f}" if ours else f"{one[key]:.1f} |" for key in one]
        flips = f"{np.mean(masks[name] != whole) * 1e6:.0f}" if whole is not None and name in masks else "-"
        print(f"| {name} | {' | '.join(cells)} | {flips} |")


if __name__ == "__main__":
    main()
