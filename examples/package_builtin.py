"""Put a model trained by train_builtin.py into the package: small weights, model card, scores.

python examples/package_builtin.py MODEL FOLDER -o gimseg/builtin/buildings
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from train_builtin import LEARNED, UNSEEN, sites

from gimseg import Model, evaluate
from gimseg.evaluation import Scores

CARD = """\
---
library_name: segmentation-models-pytorch
pipeline_tag: image-segmentation
tags: [gimseg, geospatial, semantic-segmentation]
license: apache-2.0
---

# Buildings in RGB images

The model that `gimseg predict` uses when none is named: a {network} with the encoder {encoder}, {weights:,} weights
in float16 ({megabytes:.1f} MB). It takes red, green and blue of 8 bits, brings them to {resolution:g} m a pixel, and
finds one class, `building`.

## Data

Learned from six drone images of Zanzibar, Nairobi and Kampala and from eight synthetic scenes. The outlines of
Nairobi were moved onto its roofs first; where they are missing or wrong, and where walls in Zanzibar have no roof
yet, nothing was learned. Scored on two images of Banepa (Nepal), a site that it has never seen.

- Encoder, before training: EfficientNet-Lite0 trained on ImageNet, Google and ML Illustrated, Apache-2.0.
- Imagery © OpenAerialMap contributors, CC BY 4.0.
- Building outlines © OpenStreetMap contributors, ODbL.

## Scores

Pixels of class `building`, threshold {threshold:g}.

| | IoU | F1 | precision | recall |
|---|---|---|---|---|
{rows}

What was tried, and how it was chosen, stands in `docs/builtin-model.md` of gimseg.

## Good and bad at

- Good at detached roofs of sheet metal, tile and concrete that differ from the ground around them, seen from
  straight above at 0.1 to 0.5 m a pixel.
- Bad at lorries and buses, which it takes for roofs, at small bare plots with an edge around them, at courtyards
  between roofs, at dark flat roofs, in which it leaves gaps, and at walls of high buildings that lean into view.
- It joins roofs that touch: polygons are of roof area, not of houses.
- It has seen six images of three towns in the tropics; snow, thatch, dense inner cities and pitched slate roofs
  it has not.

Train a model of your own as soon as you have outlines of your own: `gimseg train`.

## Made by

`examples/train_builtin.py` and `examples/package_builtin.py` of gimseg {version}, in {minutes:.0f} minutes.
"""


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Model folder to write.")
def main(model: Path, folder: Path, output: Path) -> None:
    """Write MODEL, scored on the imagery of FOLDER, as OUTPUT."""
    trained = Model.load(model)
    with tempfile.TemporaryDirectory() as work:
        small = Model.load(trained.save(Path(work) / "small", half=True))
        unseen = evaluate(small, sites(folder, [UNSEEN]))
        learned = evaluate(small, sites(folder, LEARNED, work=Path(work), split="train"))
    whole = unseen.of_split()
    named = replace(
        small,
        provenance=provenance(small),
        scores={"banepa, never seen": {"iou": round(float(whole.iou[1]), 3), "f1": round(float(whole.f1[1]), 3)}},
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    weights = sum(tensor.numel() for tensor in small.network.parameters())
    values = {
        "network": small.architecture["name"],
        "encoder": small.architecture["encoder"].removeprefix("tu-"),
        "weights": weights,
        "megabytes": 2 * sum(tensor.numel() for tensor in small.network.state_dict().values()) / 1e6,
        "resolution": small.recipe.resolution,
        "threshold": small.recipe.threshold,
        "rows": "\n".join([*rows("Banepa, never seen", unseen), *rows("learned sites", learned)]),
        "version": small.provenance["gimseg"],
        "minutes": small.provenance["training_seconds"] / 60,
    }
    named.save(output, half=True, overwrite=True, card=CARD.format(**values))
    print(f"{output}: IoU {whole.iou[1]:.3f} on Banepa")


def provenance(model: Model) -> dict[str, Any]:
    """That of the model, named, without folders of the machine it was trained on."""
    settings = dict(model.provenance["settings"])
    settings["encoder_weights"] = Path(settings["encoder_weights"] or "").name or None
    name = f"buildings in RGB at {model.recipe.resolution:g} m"
    return {**model.provenance, "settings": settings, "name": name}


def rows(name: str, scores: Scores) -> list[str]:
    """Lines of the table of scores: each raster, then all of them together."""
    table = [(Path(row.path).stem, row.confusion) for row in scores.rows] + [(f"**{name}**", scores.of_split())]
    return [
        f"| {title} | {found.iou[1]:.3f} | {found.f1[1]:.3f} | {found.precision[1]:.3f} | {found.recall[1]:.3f} |"
        for title, found in table
    ]


if __name__ == "__main__":
    main()
