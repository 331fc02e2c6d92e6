"""Planted errors, before and after one correction with the defaults of ``gimseg correct train``.

    python tests/benchmarks/bench_planted_errors.py [--seeds 0 1 2] [--epochs 4] [--old-share 0.2]

A model learns three synthetic scenes. Two others have roofs of turf, which it misses, and floors of
bare clay, which it takes for roofs: both are planted, since neither is in what it learned. A square of
one of them is drawn completely and learned; the other one tells whether the errors are gone, and a
scene of the old kind whether anything was forgotten. Each seed has six scenes of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from test_planted_errors import PlantedErrors, correct_planted

from gimseg.correction.learning import LEARNING


def line(name: str, found: PlantedErrors) -> str:
    """A row of Markdown."""
    before, after = found.before, found.after
    return (
        f"| {name} | {before.missed:.2f} | {after.missed:.2f} | {before.alarms:.2f} | {after.alarms:.2f} "
        f"| {found.old_before:.3f} | {found.old_after:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=LEARNING.epochs)
    parser.add_argument("--old-share", type=float, default=LEARNING.old_share)
    given = parser.parse_args()
    settings = replace(LEARNING, epochs=given.epochs, old_share=given.old_share)
    print("| seed | turf roofs missed | after | clay floors taken for roofs | after | IoU, old scene | after |")
    print("|---|---|---|---|---|---|---|")
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            found = correct_planted(Path(folder), seed, settings)
        print(line(str(seed), found), flush=True)


if __name__ == "__main__":
    main()
