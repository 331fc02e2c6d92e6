"""Which learning rate: a short training whose rate rises until the loss goes to pieces."""

from __future__ import annotations

import csv
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gimseg.balance import count_classes
from gimseg.datasets import Dataset, Datasets
from gimseg.errors import TrainingError
from gimseg.fitting import Fit, Report
from gimseg.labelled_windows import Sample
from gimseg.losses import parse_loss
from gimseg.outputs import check_outputs, staged
from gimseg.progress import Progress, silent
from gimseg.settings import Settings
from gimseg.trainers import run_training
from gimseg.training import TrainingWindows, begin

LOWEST, HIGHEST = 1e-6, 1.0
_SMOOTHING = 0.9
_DIVERGED = 3.0


@dataclass(frozen=True)
class RateScan:
    """The loss at each rate.

    Args:
        rates: ascending.
        losses: at these rates, smoothed.

    Raises:
        TrainingError: there are too few to tell anything.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.rates) < 10:
            raise TrainingError(
                f"the loss went to pieces after {len(self.rates)} steps: look at the data with gimseg info --plot"
            )

    @property
    def suggestion(self) -> float:
        """The rate at which the loss falls fastest, before its lowest point.

        Example:
            >>> rates = np.geomspace(1e-6, 1, 61)
            >>> losses = 1 / (1 + (rates / 1e-3)) + (rates > 0.1)
            >>> scan = RateScan(tuple(rates), tuple(losses))
            >>> round(scan.suggestion, 4)
            0.001
        """
        lowest = max(int(np.argmin(self.losses)), 2)
        slopes = np.gradient(np.array(self.losses[: lowest + 1]), np.log(self.rates[: lowest + 1]))
        return float(self.rates[int(np.argmin(slopes))])


def find_rate(
    datasets: Dataset | Datasets,
    *,
    settings: Settings | None = None,
    steps: int = 100,
    plot: str | os.PathLike[str] | None = None,
    table: str | os.PathLike[str] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
) -> RateScan:
    """Raise the rate from 1e-6 to 1 in a short training from the start; nothing of it is kept.

    Args:
        datasets: images and ground truth.
        settings: as for the training; its schedule, epochs and rate are not looked at.
        steps: of the optimiser.
        plot: PNG file to write.
        table: CSV file to write.
        device: ``auto``, ``cpu``, ``cuda``.
        overwrite: the files may be replaced.
        progress: told after each step.

    Raises:
        GimsegError: data, network or settings do not fit together.
        TrainingError: the loss went to pieces at once.

    Source: Smith 2017, arXiv 1506.01186.
    """
    settings = settings or Settings()
    check_outputs([path for path in (plot, table) if path is not None], [], overwrite=overwrite)
    datasets = datasets if isinstance(datasets, Datasets) else Datasets((datasets,))
    windows_per_epoch = steps * settings.batch * settings.accumulate
    once = replace(
        settings, epochs=1, windows_per_epoch=windows_per_epoch, minutes=None, patience=0, averaging=0.0, swa=0.0,
        devices=1, tensorboard=False, schedule="constant",
    )  # fmt: skip
    beginning = begin(datasets, once, progress)
    ground = replace(beginning.ground, val=())
    loss = parse_loss(once.loss).balanced(count_classes(ground.train))
    network = beginning.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with tempfile.TemporaryDirectory() as folder:
        classes = len(datasets.legend.classes) + 1
        scan = _Scan(network, loss, once, steps, classes, Path(folder) / "metrics.csv")
        windows = TrainingWindows(beginning.recipe, ground, once)
        run_training(scan, windows, Path(folder), device, [Report(progress)], scored=False)
    found = RateScan(tuple(scan.rates[: len(scan.smoothed)]), tuple(scan.smoothed))
    if plot is not None:
        _draw(found, plot)
    if table is not None:
        _write(found, table)
    return found


class _Scan(Fit):
    """A fit whose rate rises; it stops where the loss is several times its lowest."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.rates: list[float] = []
        self.smoothed: list[float] = []
        self._running = 0.0

    def on_train_batch_start(self, batch: Sample, batch_index: int) -> None:
        rate = LOWEST * (HIGHEST / LOWEST) ** (self.global_step / max(1, self.steps - 1))
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = rate * group["rate"]
        if len(self.rates) <= self.global_step:
            self.rates.append(rate)

    def on_train_batch_end(self, outputs: Any, batch: Sample, batch_index: int) -> None:
        if self.global_step <= len(self.smoothed):
            return
        loss = float(np.mean(self._losses["train"][-self.settings.accumulate :]))
        self._running = _SMOOTHING * self._running + (1 - _SMOOTHING) * loss
        smooth = self._running / (1 - _SMOOTHING ** (len(self.smoothed) + 1))
        if not np.isfinite(smooth) or (len(self.smoothed) > 10 and smooth > _DIVERGED * min(self.smoothed)):
            self.trainer.should_stop = True
        else:
            self.smoothed.append(smooth)

    def on_train_epoch_end(self) -> None:
        """There is nothing to score."""


def _draw(scan: RateScan, path: str | os.PathLike[str]) -> None:
    # Not loaded with every training.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.semilogx(scan.rates, scan.losses)
    axes.axvline(scan.suggestion, color="#d55e00", linestyle="--", label=f"falls fastest at {scan.suggestion:.2g}")
    axes.set(xlabel="learning rate", ylabel="loss, smoothed")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with staged(path) as stage:
        figure.savefig(stage, dpi=110, format="png")


def _write(scan: RateScan, path: str | os.PathLike[str]) -> None:
    with staged(path) as stage, stage.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["learning_rate", "loss"])
        writer.writerows((f"{rate:.6g}", f"{loss:.6g}") for rate, loss in zip(scan.rates, scan.losses, strict=True))
