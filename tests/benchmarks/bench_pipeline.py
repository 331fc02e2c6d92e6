"""Wall time of a prediction against its forward passes alone, on the same windows.

    python tests/benchmarks/bench_pipeline.py [SIDE] [DEVICE]

A synthetic raster of SIDE px (4096), in tiles compressed with deflate, by a
Unet/ResNet-34 with random weights; reading, stitching, writing and the assembly of the
mask are on top of the forward passes, as far as they do not overlap with them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine

from gimseg.backends import backend_by_name
from gimseg.inference import Predictor
from gimseg.legend import Legend
from gimseg.models import Model, build_network
from gimseg.recipes import Recipe


def write_noise(path: Path, side: int) -> None:
    """Smooth ground with noise on it, which compresses about as imagery does."""
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32637", "compress": "deflate"}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "interleave": "pixel", "num_threads": 2}
    rng = np.random.default_rng(0)
    transform = Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000)
    with rasterio.open(path, "w", height=side, width=side, transform=transform, **profile) as dataset:
        for _, window in dataset.block_windows(1):
            shape = (3, window.height, window.width)
            ground = 100 + 40 * np.sin(np.arange(window.width) / 40)
            dataset.write((ground + rng.normal(0, 6, shape)).clip(1, 254).astype(np.uint8), window=window)


def main() -> None:
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    device = sys.argv[2] if len(sys.argv) > 2 else "auto"
    torch.manual_seed(0)
    network = build_network("Unet", "resnet34").eval()
    recipe = Recipe((1, 2, 3), (100.0,) * 3, (40.0,) * 3, 0.3, 1024, 96, 32, Legend.binary("x"))
    predictor = Predictor(Model(network, recipe), device=device)
    with tempfile.TemporaryDirectory() as work:
        raster = Path(work) / "image.tif"
        write_noise(raster, side)
        plan = predictor.plan(raster, Path(work) / "mask.tif")
        rows, cols = plan.lattice.window
        batches = -(-plan.windows // plan.engine.batch)
        images = torch.randn(plan.engine.batch, 3, rows, cols)
        backend = backend_by_name(predictor.model, predictor.device, plan.engine.backend)
        seconds, alone, cpu = [], [], []
        for turn in range(3):
            started, used = time.perf_counter(), time.process_time()
            for _ in range(batches):
                backend.logits(images)
            if predictor.device.type == "cuda":
                torch.cuda.synchronize()
            alone.append(time.perf_counter() - started)
            used_alone = time.process_time() - used
            started, used = time.perf_counter(), time.process_time()
            predictor.predict(raster, Path(work) / f"{turn}.tif")
            seconds.append(time.perf_counter() - started)
            cpu.append((time.process_time() - used) / used_alone)
    print(
        f"{side} x {side} px, {plan.windows} windows of {rows} x {cols} px, cost {plan.lattice.cost:.2f}, {device}, ",
        end="",
    )
    print(f"{plan.engine.backend}, batch {plan.engine.batch}")
    print(f"forward alone {min(alone):.1f} s, whole run {min(seconds):.1f} s, {side**2 / min(seconds) / 1e6:.2f} Mpx/s")
    print(f"ratio of wall time {min(seconds) / min(alone):.3f}, of processor time {min(cpu):.3f}")


if __name__ == "__main__":
    main()
