"""Trainings side by side: settings that differ, scores, curves."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gimseg.datasets import Datasets
from gimseg.errors import ModelError
from gimseg.evaluation import evaluate
from gimseg.fitting import alarms_and_misses
from gimseg.outputs import check_outputs, staged, write_text
from gimseg.progress import Progress, silent

_PANELS = (
    ("training loss", ("train_loss",)),
    ("validation loss", ("val_loss",)),
    ("validation IoU", ("val_iou",)),
    ("false alarms (–) and misses (··)", ("val_false_alarms", "val_misses")),
)


@dataclass(frozen=True)
class SplitScore:
    """How good a model is on one split.

    Args:
        iou: mean over the classes present.
        false_alarms: background taken for objects, as a share of the objects' pixels.
        misses: objects taken for background, the same.
    """

    iou: float
    false_alarms: float = math.nan
    misses: float = math.nan

    @property
    def ratio(self) -> float:
        """False alarms per miss; NaN where there is no miss."""
        return self.false_alarms / self.misses if self.misses else math.nan


@dataclass(frozen=True)
class Run:
    """One training, finished or not.

    Args:
        name: of its folder.
        folder: the model, or the state of a training that did not end.
        settings: that it was trained with.
        history: one row an epoch.
        scores: by split.
        finished: there is a model.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    history: tuple[Mapping[str, float], ...]
    scores: Mapping[str, SplitScore] = field(default_factory=dict)
    finished: bool = True

    @property
    def seconds(self) -> float:
        """Time that the training took so far, s."""
        return self.history[-1].get("seconds", math.nan) if self.history else math.nan


@dataclass(frozen=True)
class Comparison:
    """Several runs, in the order in which they were named."""

    runs: tuple[Run, ...]

    @property
    def differing(self) -> tuple[str, ...]:
        """Names of the settings that are not the same in all runs."""
        names = dict.fromkeys(name for run in self.runs for name in run.settings)
        return tuple(name for name in names if len({_text(run.settings.get(name)) for run in self.runs}) > 1)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that a run has scores of."""
        return tuple(dict.fromkeys(split for run in self.runs for split in run.scores))

    def rows(self) -> list[list[str]]:
        """The table, its head first."""
        scores = [f"{split} {what}" for split in self.splits for what in ("IoU", "FP", "FN", "FP/FN")]
        table = [["run", *self.differing, "epochs run", "minutes", *scores]]
        for run in self.runs:
            name = run.name if run.finished else f"{run.name} (not finished)"
            cells = [name, *(_text(run.settings.get(setting)) for setting in self.differing)]
            cells += [str(len(run.history)), f"{run.seconds / 60:.1f}"]
            for split in self.splits:
                cells += _score_cells(run.scores.get(split, SplitScore(math.nan)))
            table.append(cells)
        return table

    def markdown(self) -> str:
        """The table as Markdown."""
        head, *rows = self.rows()
        lines = [head, ["---"] * len(head), *rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"

    def text(self) -> str:
        """The table as lines for a terminal."""
        rows = self.rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def compare(
    folders: Sequence[str | os.PathLike[str]],
    *,
    datasets: Datasets | None = None,
    output: str | os.PathLike[str] | None = None,
    plot: str | os.PathLike[str] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """Put runs side by side.

    Args:
        folders: of models, or of trainings that are still running.
        datasets: score every finished run on each split of these; None: what each
            training said of its own validation ground.
        output: table to write, Markdown, or CSV by its ending.
        plot: PNG file of the curves to write.
        device: that scores.
        overwrite: the files may be replaced.
        progress: told while scores are computed.

    Raises:
        ModelError: a folder is no run.
        OutputError: an output cannot be written.
        GimsegError: a run cannot be scored.
    """
    check_outputs([path for path in (output, plot) if path is not None], [], overwrite=overwrite)
    runs = tuple(read_run(folder) for folder in folders)
    if datasets is not None:
        runs = tuple(_scored(run, datasets, device, progress) for run in runs)
    found = Comparison(_told_apart(runs))
    if output is not None:
        write_table(found.rows() if Path(output).suffix == ".csv" else found.markdown(), output)
    if plot is not None:
        draw_curves(found, plot)
    return found


def read_run(folder: str | os.PathLike[str]) -> Run:
    """A model's folder, or where there is none, ``<folder>.training``.

    Raises:
        ModelError: neither is there, or it cannot be read.
    """
    folder = Path(folder)
    if not (folder / "gimseg.json").is_file() and not folder.name.endswith(".training"):
        folder = folder.with_name(f"{folder.name}.training")
    finished = (folder / "gimseg.json").is_file()
    try:
        table = json.loads((folder / ("gimseg.json" if finished else "training.json")).read_text(encoding="utf-8"))
        history = _read_history(folder / "metrics.csv")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} is no run that can be read ({error}): give the folder of a model, or the name of one that is "
            "being trained"
        ) from error
    settings = table.get("provenance", {}).get("settings", {}) if finished else table.get("settings", {})
    scores = {split: _score(values) for split, values in table.get("scores", {}).items() if isinstance(values, dict)}
    return Run(folder.name.removesuffix(".training"), folder, settings, history, scores, finished)


def _read_history(path: Path) -> tuple[dict[str, float], ...]:
    if not path.exists():
        return ()
    with path.open(encoding="utf-8", newline="") as file:
        return tuple({name: float(value) for name, value in row.items()} for row in csv.DictReader(file))


def _score(values: Mapping[str, Any]) -> SplitScore:
    return SplitScore(*(float(values.get(name, math.nan)) for name in ("iou", "false_alarms", "misses")))


def _scored(run: Run, datasets: Datasets, device: str, progress: Progress) -> Run:
    if not run.finished:
        return run
    found = evaluate(run.folder, datasets, device=device, progress=progress)
    scores = {split: found.of_split(split) for split in found.splits}
    told = {split: SplitScore(float(table.mean_iou), *alarms_and_misses(table)) for split, table in scores.items()}
    return Run(run.name, run.folder, run.settings, run.history, told)


def _told_apart(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Runs of one name get that of the folder around theirs too."""
    names = [run.name for run in runs]
    return tuple(
        run
        if names.count(run.name) == 1
        else Run(
            f"{run.folder.parent.name}/{run.name}", run.folder, run.settings, run.history, run.scores, run.finished
        )
        for run in runs
    )


def write_table(table: str | Sequence[Sequence[str]], path: str | os.PathLike[str]) -> None:
    """Write Markdown as it is, rows as CSV."""
    if isinstance(table, str):
        write_text(path, table)
        return
    with staged(path) as stage, stage.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table)


def draw_curves(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Losses, IoU, false alarms and misses over the epochs, all runs over one another."""
    figure = Figure(figsize=(13, 7.5), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for axes, (title, names) in zip(figure.subplots(2, 2).ravel(), _PANELS, strict=True):
        for number, run in enumerate(comparison.runs):
            for name, style in zip(names, ("-", ":"), strict=False):
                points = [(row["epoch"], row[name]) for row in run.history if not math.isnan(row.get(name, math.nan))]
                label = run.name if name == names[0] else None
                axes.plot(
                    *zip(*points, strict=True) if points else ((), ()), style, color=f"C{number % 10}", label=label
                )
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    with staged(path) as stage:
        figure.savefig(stage, dpi=100, format="png")


def _score_cells(score: SplitScore) -> list[str]:
    parts = (f"{score.iou:.3f}", f"{score.false_alarms:.1%}", f"{score.misses:.1%}", f"{score.ratio:.2f}")
    return ["–" if "nan" in part else part for part in parts]


def _text(value: Any) -> str:
    """A setting as people write it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_text(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "–"
    return "–" if value is None else str(value)
