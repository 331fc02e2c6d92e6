"""Train the built-in model: buildings in RGB images, from random weights.

Data: drone images of Zanzibar, Nairobi and Kampala (OpenAerialMap contributors, CC BY
4.0) with building polygons (OpenStreetMap contributors, ODbL) to learn from, and of
Banepa, a site never learned from, to score on. The folder holds ``<site>_*.tif`` and
``<site>_labels.geojson``.

    python examples/train_builtin.py FOLDER -o my_model
"""

from __future__ import annotations

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
from gimseg.training import Settings

LEARNED = ("zanzibar_tz", "nairobi_ke", "kampala_ug")
UNSEEN = "banepa_np"
LEGEND = Legend.binary("building", "#ffd200")
RESOLUTION = 0.3

SETTINGS = Settings(
    network="Unet",
    encoder="tu-resnet18",
    loss="bce + focal_tversky",
    optimiser="muon",
    learning_rate=2e-3,
    weight_decay=0.05,
    schedule="cosine",
    warmup=0.1,
    averaging=0.99,
    # More steps learn the three sites by heart: see docs/builtin-model.md.
    epochs=4,
    windows_per_epoch=1600,
    window=256,
    batch=8,
    object_share=0.5,
    balance=1.0,
    # All ground of the learned sites is learned from: the score is that of another site.
    val_share=0.0,
    augmentation=Augmentation(scale=(0.8, 1.3), contrast=0.25, brightness=0.5, saturation=0.3, gamma=0.25, grey=0.02),
    exemplars=0,
)

# The polygons of Nairobi were drawn over other imagery: they are moved onto its roofs first.
MISALIGNED = ("nairobi_ke_00", "nairobi_ke_01")


def sites(folder: Path, names: Sequence[str], resolution: float = RESOLUTION, work: Path | None = None) -> Datasets:
    """One dataset a site.

    Args:
        folder: of rasters and ground truth.
        names: of the sites.
        resolution: metres per pixel.
        work: where moved ground truth is written; None: all is left as it was drawn.
    """
    datasets = []
    for name in names:
        truth = folder / f"{name}_labels.geojson"
        layers = [truth]
        for tag in MISALIGNED if work and name == "nairobi_ke" else ():
            moved = Path(work or "") / f"{tag}.gpkg"
            align(folder / f"{tag}.tif", truth).to_file(moved)
            layers = [layer for layer in layers if layer != truth] + [moved]
        split = "test" if name == UNSEEN else "train"
        datasets.append(Dataset(name, resolution, [folder / f"{name}_*.tif"], layers, legend=LEGEND, split=split))
    return Datasets(tuple(datasets))


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Model folder to write.")
@click.option("--minutes", default=20.0, show_default=True, help="Most minutes of training.")
@click.option("--overwrite", is_flag=True)
def main(folder: Path, output: Path, minutes: float, overwrite: bool) -> None:
    """Train on three sites of FOLDER, score on the fourth."""
    settings = replace(SETTINGS, minutes=minutes)
    with tempfile.TemporaryDirectory() as work:
        learned = sites(folder, LEARNED, work=Path(work))
        model = train(learned, output, settings=settings, overwrite=overwrite, progress=ConsoleProgress(every_s=20))
    scores = evaluate(model, sites(folder, [UNSEEN]), plot=output / "banepa.png", overwrite=True)
    print(scores.table())
    (output / "scores.json").write_text(json.dumps(scores.to_dict(), indent=1))


if __name__ == "__main__":
    main()
