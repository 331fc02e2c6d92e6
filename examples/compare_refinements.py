"""Compare refinements: the built-in model on a site it has never seen, its masks refined by one chain after the other.

python examples/compare_refinements.py -o refinements.md       # the two scenes of Banepa beside the checkout
python examples/compare_refinements.py -o refinements.md --data data.toml -m my_model

Writes a table: what each chain does to IoU, to outlines and to objects. Every row is predicted and
scored the way `gimseg predict --refine` and `gimseg evaluate --mask` do it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from gimseg import Dataset, Predictor, evaluate
from gimseg.datasets import Datasets, read_datasets
from gimseg.score_tables import SplitScores

CHAINS = (
    "",
    "tv(0.05)",
    "tv(0.1)",
    "tv(0.3)",
    "guided(1 m)",
    "guided(2 m)",
    "bilateral(1 m)",
    "bilateral(2 m)",
    "bilateral(2 m, 0.1)",
    "crf(1 m)",
    "crf(2 m)",
    "crf(2 m, 0.1)",
    "crf(2 m, weight=6)",
    "hysteresis(0.4, 0.7)",
    "hysteresis(0.5, 0.9)",
    "open(0.5 m)",
    "open(1 m)",
    "close(1 m)",
    "majority(0.5 m)",
    "majority(1 m)",
    "drop(10 m2)",
    "drop(20 m2)",
    "fill(4 m2)",
    "watershed(40 m)",
    "tv(0.1), open(1 m), fill(4 m2)",
    "tv(0.1), open(1 m), fill(4 m2), drop(20 m2)",
    "tv(0.1), open(1 m), fill(4 m2), watershed(40 m), drop(20 m2)",
    "hysteresis(0.5, 0.9), open(1 m), fill(4 m2), drop(20 m2)",
    "bilateral(2 m), open(1 m), fill(4 m2), drop(20 m2)",
    "crf(2 m), open(1 m), fill(4 m2), drop(20 m2)",
)
SITE = Path(__file__).resolve().parents[2] / "shared" / "data" / "buildings"
HEAD = "| refinement | IoU | outline F1 | objects predicted | object precision | object recall | object F1 |"


def score(predictor: Predictor, datasets: Datasets, chain: str, boundary_m: float) -> SplitScores:
    """All rasters predicted with a chain, and scored together."""
    with tempfile.TemporaryDirectory() as folder:
        masks = []
        for number, scene in enumerate(datasets.scenes()):
            done = predictor.predict(scene.path, Path(folder) / f"{number}.tif", refine=chain)
            masks.append(done.path)
        scores = evaluate(masks, datasets, boundary_m=boundary_m)
        return SplitScores("all", scores.legend, scores.rows, scores.reach)


def row(chain: str, one: SplitScores) -> str:
    """A line of the table."""
    (outline,), (objects,) = one.outlines, one.objects
    found = objects.scores()
    cells = (one.confusion.iou[1], outline.f1(one.reach.distance_m))
    shares = (found.precision, found.recall, found.f1)
    numbers = [*(f"{cell:.3f}" for cell in cells), f"{objects.counts[:, 2].sum():.0f}", *(f"{s:.3f}" for s in shares)]
    return f"| {f'`{chain}`' if chain else 'none'} | {' | '.join(numbers)} |"


@click.command()
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Table to write (Markdown).")
@click.option("--data", type=click.Path(exists=True), help="Dataset file. [default: Banepa]")
@click.option("-m", "--model", default="builtin", show_default=True, help="Model folder, of one class.")
@click.option("--boundary", "boundary_m", default=1.0, show_default=True, help="Outlines are hit within, m.")
def main(output: Path, data: str | None, model: str, boundary_m: float) -> None:
    """Predict and score with each chain."""
    predictor = Predictor(model, backend="torch", precision="float32")
    resolution = predictor.model.recipe.resolution
    site = Dataset("banepa", resolution, [SITE / "banepa_np_*.tif"], [SITE / "banepa_np_labels.geojson"])
    datasets = read_datasets(data).at_resolution(resolution) if data else Datasets((site,))
    lines = [HEAD, "|---|" + "---|" * 6]
    for chain in CHAINS:
        lines.append(row(chain, score(predictor, datasets, chain, boundary_m)))
        click.echo(lines[-1])
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
