"""Class flips of stitched windows against one pass over the whole image, and what stitching costs.

    python tests/benchmarks/bench_exactness.py [SIDE]

The built-in model over a real orthophoto (where the real imagery lies beside the checkout)
and over a synthetic scene, SIDE px (2560) at its resolution; a Unet/ResNet-34 with random
weights over the synthetic scene; a DeepLabV3 with its pooled context there, cropped and blended.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gimseg.backends import backend_by_name
from gimseg.computing import Computation, Network
from gimseg.legend import Legend
from gimseg.loading import load_block
from gimseg.models import Model, build_network, measure_reach, network_stride
from gimseg.preflight import choose_blocks
from gimseg.products import Products
from gimseg.rasters import RasterView, open_raster
from gimseg.recipes import Recipe
from gimseg.scenes import make_scene, write_scene
from gimseg.tiling import Lattice
from gimseg.window_choice import choose_lattice

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data" / "banepa_big" / "banepa_big.tif"
CPU = torch.device("cpu")


def network_of(model: Model) -> Network:
    return Network(backend_by_name(model, CPU, "torch float32"), model.recipe, Products(), CPU)


def one_pass(view: RasterView, model: Model) -> np.ndarray:
    """Classes of the whole raster as one window."""
    whole = Lattice.fit(view.shape, 10**6, 0, model.recipe.stride)
    return predicted(view, model, whole)


def predicted(view: RasterView, model: Model, lattice: Lattice) -> np.ndarray:
    classes = np.zeros(view.shape, np.uint8)
    blocks = choose_blocks(view, lattice, model.recipe.legend.n_channels)
    for step in Computation(network_of(model), lattice).run(load_block(view, lattice, block) for block in blocks):
        if step.finished is not None:
            classes[step.finished.block.core] = step.finished.values[0]
    return classes


def compare(name: str, view: RasterView, model: Model, lattices: Iterator[tuple[str, Lattice]]) -> None:
    whole = one_pass(view, model)
    for told, lattice in lattices:
        flips = (predicted(view, model, lattice) != whole).mean() * 1e6
        print(
            f"{name:<34}{told:<14}window {lattice.window[0]} x {lattice.window[1]}, halo {lattice.halo}: "
            f"cost {lattice.cost:.2f}, {flips:.0f} flips per million px ({(whole == 1).mean():.0%} of one class)",
            flush=True,
        )


def default(view: RasterView, model: Model) -> Iterator[tuple[str, Lattice]]:
    yield "default", choose_lattice(view.shape, model, CPU)


def both(view: RasterView, model: Model) -> Iterator[tuple[str, Lattice]]:
    yield "blended", choose_lattice(view.shape, model, CPU)
    yield "cropped", choose_lattice(view.shape, model, CPU, blend=False, window=model.recipe.window)


def untrained(name: str, encoder: str, view: RasterView, window: int) -> Model:
    """Random weights, normalisation and level fitted to the image, the reach measured on it."""
    torch.manual_seed(0)
    network = build_network(name, encoder)
    recipe = Recipe((1, 2, 3), (120.0,) * 3, (50.0,) * 3, 0.3, window, 0, network_stride(network), Legend.binary("x"))
    image = recipe.prepare(view.read((slice(0, 2 * window), slice(0, 2 * window))))
    with torch.no_grad():
        network.train()
        for _ in range(20):
            logits = network(torch.from_numpy(image[None, :, :512, :512]))
        network.eval()
        logits = network(torch.from_numpy(image[None, :, :window, :window]))
        network.segmentation_head[0].bias -= logits.median()  # type: ignore[operator, index]
    reach = measure_reach(network, recipe, [image])
    print(f"{name}/{encoder}: reach {reach.halo} px{'' if reach.bounded else ', not bounded'}")
    return Model(network, replace(recipe, halo=reach.halo, blend=not reach.bounded))


def main() -> None:
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 2560
    builtin = Model.load()
    if BESIDE.is_file():
        raster = open_raster(BESIDE)
        view = raster.on(raster.grid(0.3)[1000 : 1000 + side, 1500 : 1500 + side])
        compare("built-in, real orthophoto", view, builtin, default(view, builtin))
    with tempfile.TemporaryDirectory() as work:
        scene = write_scene(make_scene(1, (side, side), border=False), work, "scene")
        raster = open_raster(scene.image)
        view = raster.on(raster.geobox)
        compare("built-in, synthetic scene", view, builtin, default(view, builtin))
        for name, encoder, window in (("Unet", "resnet34", 1024), ("DeepLabV3", "resnet18", 512)):
            model = untrained(name, encoder, view, window)
            lattices = both(view, model) if model.recipe.blend else default(view, model)
            compare(f"{name}/{encoder}, synthetic scene", view, model, lattices)


if __name__ == "__main__":
    main()
