"""Several trainings with other settings each, one after the other, and which was best."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gimseg.comparison import Comparison, draw_curves, read_run, write_table
from gimseg.datasets import Datasets, read_datasets
from gimseg.errors import GimsegError, OutputError, ResumeError, TrainingError
from gimseg.outputs import check_writable
from gimseg.progress import Progress, silent
from gimseg.settings import Settings
from gimseg.settings_files import check_names, read_table, read_toml, settings_from
from gimseg.training import train
from gimseg.training_state import declared, fingerprints

_KEYS = ("data", "training", "grid", "run")
_LONGEST_NAME = 80

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in some settings.

    Args:
        data: dataset file.
        runs: name -> settings.
    """

    data: Path
    runs: Mapping[str, Settings]


def read_sweep(path: str | os.PathLike[str]) -> Sweep:
    """Read a sweep: ``data``, a table ``[grid]`` of lists, and tables ``[[run]]``.

    Every combination of the grid's values is a run, and each ``[[run]]`` is one more.
    ``[training]`` holds for all; what it does not say is that of the dataset file.

    Raises:
        TrainingError: the file is no sweep, or a setting is wrong.
    """
    path = Path(path)
    content = read_toml(path, _KEYS)
    if not isinstance(content.get("data"), str):
        raise TrainingError(f'{path} names no dataset file: write data = "data.toml" at its top')
    data = path.parent / content["data"]
    common = {**read_table(data), **content.get("training", {})}
    changes = [*_combinations(content.get("grid", {}), path), *content.get("run", [])]
    if not changes:
        raise TrainingError(f"{path} has no run: give a table [grid] of lists of values, or tables [[run]]")
    runs: dict[str, Settings] = {}
    for given in changes:
        change = dict(given)
        name = str(change.pop("name", "") or _name(change))
        check_names({**common, **change}, f"{path}, run {name!r}")
        if name in runs or not re.fullmatch(r"[\w.,=+-]+", name):
            raise TrainingError(f"{path}: run {name!r}: give each run a name of its own, of letters and digits")
        runs[name] = settings_from({**common, **change})
    return Sweep(data, runs)


def _combinations(grid: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise TrainingError(f"{path}, [grid]: {name} is {values!r}: give a list of values, as [{values!r}]")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []


def _name(change: Mapping[str, Any]) -> str:
    """A folder's name that tells the settings, and stays when other runs are added."""
    told = ",".join(f"{name}={value}" for name, value in change.items())
    plain = re.sub(r"[^\w.,=+-]+", "_", told).strip("_") or "default"
    if len(plain) <= _LONGEST_NAME:
        return plain
    return f"{plain[:_LONGEST_NAME]}-{hashlib.sha256(told.encode()).hexdigest()[:6]}"


def run_sweep(
    sweep: Sweep,
    folder: str | os.PathLike[str],
    *,
    device: str = "auto",
    tell: Tell | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Train all runs that are not there yet, one after the other; rank them after each.

    A sweep that was stopped goes on when it is started again: runs that are finished stay
    as they are, the one that was stopped goes on from its last epoch. A run that fails is
    told of, and the next one begins.

    Args:
        sweep: what to train.
        folder: gets a folder for each run, ``ranking.md``, ``ranking.csv`` and ``curves.png``.
        device: ``auto``, ``cpu``, ``cuda``.
        tell: told when a run ends.
        progress: told after each step.

    Returns:
        the runs that ended well, the best on the validation ground first.

    Raises:
        ResumeError: a finished run there has other settings or data.
        TrainingError: some runs failed; the others are finished.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: give a folder for the runs")
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
    datasets = read_datasets(sweep.data)
    done = [name for name, settings in sweep.runs.items() if _is_done(folder / name, settings, datasets)]
    failed: dict[str, str] = {}
    for number, (name, settings) in enumerate(sweep.runs.items(), 1):
        if name not in done:
            try:
                train(datasets, folder / name, settings=settings, device=device, progress=progress)
                done.append(name)
            except GimsegError as error:
                failed[name] = str(error)
        ranking = _rank(folder, done, failed)
        if tell is not None:
            ended = f"failed: {failed[name]}" if name in failed else _best_of(ranking, name)
            tell(f"{number}/{len(sweep.runs)} {name}: {ended}")
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(sweep.runs)} runs failed, the others are finished: "
            + "; ".join(f"{name}: {text}" for name, text in failed.items())
        )
    return ranking


def _is_done(run: Path, settings: Settings, datasets: Datasets) -> bool:
    """Whether a run is finished, and is this one.

    A model that does not tell what was declared of its datasets is compared by settings and files alone.
    """
    if not run.exists():
        return False
    before = json.loads((run / "gimseg.json").read_text(encoding="utf-8"))["provenance"]
    wanted = json.loads(json.dumps(asdict(settings), default=str))
    differ = [name for name, value in before["settings"].items() if name in wanted and wanted[name] != value]
    if "declared" in before:
        differ += _differing(before["declared"], declared(datasets))
    if before["data"] != fingerprints(datasets):
        differ.append("the data")
    if differ:
        raise ResumeError(
            f"{run} was trained with another value of {', '.join(differ)}: give the sweep another folder, or remove "
            "that run"
        )
    return True


def _differing(before: Mapping[str, Mapping[str, str]], wanted: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What was said otherwise of datasets that are in both."""
    return [
        f"{name} of dataset '{tag}'"
        for tag in sorted(set(before) & set(wanted))
        for name in sorted(set(before[tag]) | set(wanted[tag]))
        if before[tag].get(name) != wanted[tag].get(name)
    ]


def _rank(folder: Path, done: list[str], failed: Mapping[str, str]) -> Comparison:
    runs = [read_run(folder / name) for name in done]
    runs.sort(key=lambda run: -run.scores["val"].iou if "val" in run.scores else 0.0)
    ranking = Comparison(tuple(runs))
    if not runs:
        return ranking
    table = ranking.rows()
    rows = [["rank", *table[0]], *([str(place), *row] for place, row in enumerate(table[1:], 1))]
    notes = "".join(f"\n`{name}` failed: {text}\n" for name, text in failed.items())
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    write_table("\n".join([head, f"|{'---|' * len(rows[0])}", *rest]) + "\n" + notes, folder / "ranking.md")
    write_table(rows, folder / "ranking.csv")
    draw_curves(ranking, folder / "curves.png")
    return ranking


def _best_of(ranking: Comparison, name: str) -> str:
    names = [run.name for run in ranking.runs]
    scores = ranking.runs[names.index(name)].scores
    reached = f"IoU {scores['val'].iou:.3f}" if "val" in scores else "not scored"
    return f"{reached}, place {names.index(name) + 1} of {len(names)}"
