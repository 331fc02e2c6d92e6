"""Compare recipes for the built-in model: the same steps of each, scored on a site left out of the training.

python examples/compare_recipes.py FOLDER -o comparison.md --unseen kampala_ug
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from train_builtin import LEARNED, RESOLUTION, SETTINGS, pretrained, sites, synthetic

from gimseg import evaluate, train

STRONG = SETTINGS.augmentation
assert STRONG is not None
MILD = replace(
    STRONG,
    contrast=0.25,
    brightness=0.5,
    band_contrast=0.1,
    band_brightness=0.15,
    grey=0.05,
    hue=12.0,
    levelled=0.0,
)


@dataclass(frozen=True)
class Recipe:
    """What differs from the built-in model's.

    Args:
        changes: of the settings.
        resolution: metres per pixel.
        is_pretrained: whether the encoder knows photographs.
        is_mended: whether outlines of Nairobi are moved and unknown ground is ignored.
        has_synthetic: whether synthetic scenes are learned from too.
    """

    changes: dict[str, Any]
    resolution: float = RESOLUTION
    is_pretrained: bool = True
    is_mended: bool = True
    has_synthetic: bool = True


RECIPES = {
    "as it is": Recipe({}),
    "cross-entropy alone": Recipe({"loss": "bce"}),
    "cross-entropy and Dice": Recipe({"loss": "bce + dice"}),
    "mild colour": Recipe({"augmentation": MILD}),
    "0.4 m": Recipe({}, resolution=0.4),
    "stride 32": Recipe({"network_options": {"encoder_depth": 5, "decoder_channels": (128, 80, 48, 32, 16)}}),
    "random weights, Muon": Recipe(
        {"optimiser": "muon", "learning_rate": 2e-3, "encoder_rate": 1.0}, is_pretrained=False
    ),
    "ground truth as drawn": Recipe({}, is_mended=False),
    "no synthetic scenes": Recipe({}, has_synthetic=False),
    "light kept": Recipe({"augmentation": replace(STRONG, levelled=0.0)}),
}


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Markdown table to write.")
@click.option("--steps", default=300, show_default=True, help="Steps of each recipe.")
@click.option("--unseen", default="kampala_ug", show_default=True, help="Site that is scored and not learned from.")
@click.option("--only", multiple=True, help="Only the recipe of this name; can be given several times.")
def main(folder: Path, output: Path, steps: int, unseen: str, only: Sequence[str]) -> None:
    """Train each recipe on the sites of FOLDER but one, score it on that one."""
    lines = [f"| recipe | IoU {unseen} | precision | recall | minutes |", "|---|---|---|---|---|"]
    for name, recipe in RECIPES.items():
        if not only or name in only:
            lines.append(compare(folder, name, recipe, steps, unseen))
            print(lines[-1], flush=True)
            output.write_text("\n".join(lines) + "\n")


def compare(folder: Path, name: str, recipe: Recipe, steps: int, unseen: str) -> str:
    """One row of the table."""
    started = time.monotonic()
    settings = replace(
        SETTINGS,
        windows_per_epoch=steps * SETTINGS.batch // SETTINGS.epochs,
        encoder_weights=pretrained() if recipe.is_pretrained else None,
        **recipe.changes,
    )
    names = [site for site in LEARNED if site != unseen]
    with tempfile.TemporaryDirectory() as folder_name:
        work = Path(folder_name)
        mended = work if recipe.is_mended else None
        learned = sites(folder, names, resolution=recipe.resolution, work=mended, split="train")
        if recipe.has_synthetic:
            learned += synthetic(work, resolution=recipe.resolution)
        model = train(learned, work / "model", settings=settings)
        minutes = (time.monotonic() - started) / 60
        found = evaluate(model, sites(folder, [unseen], resolution=recipe.resolution, work=mended)).of_split()
    scores = f"{found.iou[1]:.3f} | {found.precision[1]:.2f} | {found.recall[1]:.2f}"
    return f"| {name} | {scores} | {minutes:.1f} |"


if __name__ == "__main__":
    main()
