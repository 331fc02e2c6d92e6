"""Compare recipes for the built-in model: the same few steps of each, scored on a site never seen.

python examples/compare_recipes.py FOLDER -o comparison.md --steps 200
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
from train_builtin import LEARNED, RESOLUTION, SETTINGS, UNSEEN, sites

from gimseg import evaluate, train
from gimseg.augmentation import Augmentation

STRONG = Augmentation(
    scale=(0.65, 1.5), rotation=180, contrast=0.5, brightness=0.8, saturation=0.7, gamma=0.5, grey=0.1
)
FLIPS = Augmentation.geometry_only(scale=(1.0, 1.0))

RECIPES = {
    "as it is: 0.3 m, muon, bce + focal_tversky, Nairobi moved": {},
    "bce + dice": {"loss": "bce + dice"},
    "any angle, strong colour": {"augmentation": STRONG},
    "0.5 m": {"resolution": 0.5},
    "adamw": {"optimiser": "adamw"},
    "flips and right angles only": {"augmentation": FLIPS},
    "Nairobi as drawn": {"moved": False},
}


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Markdown table to write.")
@click.option("--steps", default=200, show_default=True, help="Steps of each recipe.")
@click.option("--only", help="Only the recipe of this name.")
def main(folder: Path, output: Path, steps: int, only: str | None) -> None:
    """Train each recipe on three sites of FOLDER, score it on the fourth."""
    lines = ["| recipe | IoU Banepa | IoU scene 00 | IoU scene 01 | minutes |", "|---|---|---|---|---|"]
    for name, changes in RECIPES.items():
        if only in (None, name):
            lines.append(compare(folder, name, dict(changes), steps))
            print(lines[-1], flush=True)
            output.write_text("\n".join(lines) + "\n")


def compare(folder: Path, name: str, changes: dict, steps: int) -> str:
    """One row of the table."""
    started = time.monotonic()
    moved = changes.pop("moved", True)
    resolution = changes.pop("resolution", RESOLUTION)
    epochs = 4
    settings = replace(SETTINGS, epochs=epochs, windows_per_epoch=steps * SETTINGS.batch // epochs, averaging=0.99)
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        learned = sites(folder, LEARNED, resolution, place if moved else None)
        model = train(learned, place / "model", settings=replace(settings, **changes))
        minutes = (time.monotonic() - started) / 60
        scores = evaluate(model, sites(folder, [UNSEEN], resolution))
    ious = [scores.of_split().iou[1], *(row.confusion.iou[1] for row in scores.rows)]
    return f"| {name} | {' | '.join(f'{iou:.3f}' for iou in ious)} | {minutes:.1f} |"


if __name__ == "__main__":
    main()
