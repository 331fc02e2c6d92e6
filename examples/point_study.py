"""How many points does it take? Density of point labels against learning rate, on real images.

python examples/point_study.py buildings -o docs/studies/points-buildings.md --work runs_buildings
python examples/point_study.py trees -o docs/studies/points-trees.md --work runs_trees

Every combination of points and rate is trained alike and scored on another site, whose labels are dense: the
last epoch counts, none is chosen. Writes a table and, beside it, a picture. A study that was stopped goes on.

buildings: polygons of three sites, thinned to points; scored on a fourth. trees: tree tops of two towns; around
each, 2 m are tree, what is further than 6 m from all is background, and between nothing is known. One town teaches,
the other one scores.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import click
import geopandas
import numpy as np
import pandas
import rasterio
import shapely
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gimseg.comparison import read_run
from gimseg.progress import ConsoleProgress
from gimseg.settings import Settings
from gimseg.sweeps import Sweep, run_sweep

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
LEARNED, UNSEEN = ("zanzibar_tz", "nairobi_ke", "kampala_ug"), "banepa_np"
TREE_M, CLEAR_M = 2.0, 6.0


def buildings(data: Path, work: Path) -> Path:
    """A dataset file of four sites."""
    folder = data / "buildings"
    tables = [
        _table(site, 0.5, [folder / f"{site}_*.tif"], [folder / f"{site}_labels.geojson"], split)
        for site, split in (*((site, "train") for site in LEARNED), (UNSEEN, "val"))
    ]
    return _write(work / "data.toml", tables)


def trees(data: Path, work: Path) -> Path:
    """A dataset file of two towns, with layers of what is tree and of what is not known."""
    folder, tables = data / "trees_rgbn", []
    for town, split in (("riverside", "train"), ("santa_monica", "val")):
        tiles = sorted(folder.glob(f"{town}_*.tif"))
        tops = [geopandas.read_file(tile.with_suffix(".geojson")) for tile in tiles]
        points = geopandas.GeoDataFrame(pandas.concat(tops, ignore_index=True), crs=tops[0].crs)
        crowns = points.buffer(TREE_M).union_all()
        unknown = points.buffer(CLEAR_M).union_all().difference(crowns)
        for name, area in (("trees", crowns), ("unknown", unknown)):
            layer = geopandas.GeoDataFrame(geometry=list(shapely.get_parts(area)), crs=points.crs)
            # A GeoPackage holds the time at which it was written: written anew, it would be other data to the sweep.
            if not (path := work / f"{town}_{name}.gpkg").exists():
                layer.to_file(path)
        with rasterio.open(tiles[0]) as tile:
            resolution = tile.res[0]
        masks, unclear = [work / f"{town}_trees.gpkg"], f"ignore_paths = ['{work / f'{town}_unknown.gpkg'}']\n"
        tables.append(_table(town, resolution, tiles, masks, split) + "bands = [1, 2, 3, 4]\n" + unclear)
    return _write(work / "data.toml", tables)


def _table(tag: str, resolution: float, images: list[Path], masks: list[Path], split: str) -> str:
    return (
        f"[[dataset]]\ntag = '{tag}'\nspatial_resolution = {resolution}\nsplit = '{split}'\n"
        f"image_paths = {[str(path) for path in images]}\nmask_paths = {[str(path) for path in masks]}\n"
    )


def _write(path: Path, tables: list[str]) -> Path:
    path.write_text("\n".join(tables), encoding="utf-8")
    return path


def table(scores: dict[tuple[int, float], list[float]], points: list[int], rates: list[float]) -> list[str]:
    """Rows of a Markdown table: IoU, mean of the seeds and half of their spread."""
    lines = ["| points | " + " | ".join(f"rate {rate:g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for count in points:
        cells = []
        for rate in rates:
            found = scores[count, rate]
            cells.append(f"{np.mean(found):.3f}" + (f" ± {np.ptp(found) / 2:.3f}" if len(found) > 1 else ""))
        lines.append(f"| {count or 'all pixels'} | {' | '.join(cells)} |")
    return lines


def draw(path: Path, scores: dict[tuple[int, float], list[float]], points: list[int], rates: list[float]) -> None:
    """IoU over points, a line for each rate."""
    figure = Figure(figsize=(6.4, 4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for rate in rates:
        axes.plot(range(len(points)), [np.mean(scores[count, rate]) for count in points], marker="o", label=f"{rate:g}")
    axes.set_xticks(range(len(points)), [str(count) if count else "all pixels" for count in points])
    axes.set(xlabel="points for each window's ground", ylabel="IoU on the other site")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(title="learning rate", frameon=False)
    figure.savefig(path, dpi=100)


@click.command()
@click.argument("study", type=click.Choice(["buildings", "trees"]))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Markdown table to write.")
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder of the runs.")
@click.option("--data", default=DATA, type=click.Path(exists=True, path_type=Path), help="Folder of the real images.")
@click.option("--points", default="10,50,100,200,0", show_default=True, help="Points a window; 0: all pixels.")
@click.option("--rates", default="0.0005,0.002,0.008", show_default=True, help="Learning rates.")
@click.option("--by", default="uniform", show_default=True, type=click.Choice(["uniform", "class"]))
@click.option("--loss", default="partial_ce", show_default=True)
@click.option("--epochs", default=20, show_default=True)
@click.option("--windows", default=320, show_default=True, help="Windows an epoch.")
@click.option("--seeds", default=2, show_default=True, help="Trainings of each combination.")
def main(study: str, output: Path, work: Path, data: Path, points: str, rates: str, by: str, **given) -> None:
    """Train with every density and rate, score on the other site."""
    # Paths in the dataset file are relative to it, or whole.
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    dataset_file = {"buildings": buildings, "trees": trees}[study](data, work)
    counts, steps = [int(part) for part in points.split(",")], [float(part) for part in rates.split(",")]
    options = {"encoder_depth": 3, "decoder_channels": (64, 32, 16)}
    common = Settings(
        encoder="resnet18", network_options=options, window=128, loss=given["loss"], points_by=by, exemplars=0,
        epochs=given["epochs"], windows_per_epoch=given["windows"],
    )  # fmt: skip
    runs = {
        f"{count}-points-rate-{rate:g}-seed-{seed}": replace(common, points=count, learning_rate=rate, seed=seed)
        for count, rate, seed in product(counts, steps, range(given["seeds"]))
    }
    run_sweep(Sweep(dataset_file, runs), work / by, tell=click.echo, progress=ConsoleProgress())
    scores: dict[tuple[int, float], list[float]] = {}
    for name, settings in runs.items():
        last = read_run(work / by / name).history[-1]["val_iou"]
        scores.setdefault((settings.points, settings.learning_rate), []).append(last)
    told = (
        f"{study.capitalize()}, points drawn {'from all pixels alike' if by == 'uniform' else 'alike for each class'}; "
        f"`{given['loss']}`, {given['epochs']} epochs of {given['windows']} windows of 128 px, "
        f"{given['seeds']} seed(s). IoU on the other site, last epoch.\n"
    )
    output.write_text("\n".join([told, *table(scores, counts, steps)]) + "\n", encoding="utf-8")
    draw(output.with_suffix(".png"), scores, counts, steps)


if __name__ == "__main__":
    main()
