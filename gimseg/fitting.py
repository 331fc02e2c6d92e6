"""One network fitted on batches of labelled windows, with lightning."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from gimseg.batch_parts import parts_alike
from gimseg.deep_supervision import deep_loss
from gimseg.hardness import window_losses
from gimseg.labelled_windows import Sample
from gimseg.legend import UNLABELLED
from gimseg.losses import Loss
from gimseg.metrics import Confusion
from gimseg.optimisers import OPTIMISERS, schedule_factor
from gimseg.pixel_losses import distillation_loss
from gimseg.progress import Progress
from gimseg.settings import Settings
from gimseg.torchvision_ops import declare_missing_operators

declare_missing_operators()

from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402


class Fit(LightningModule):
    """Network, loss and rates; keeps a moving average of the weights and scores that.

    Args:
        network: takes float32 (N, bands, rows, cols), gives logits (N, channels, rows, cols).
        loss: learned with as it is at that share of the training; scored as it is at the end.
        settings: rates, schedule and so on.
        steps: number of batches of the whole training.
        classes: number of classes with the background.
        log: CSV file that gets a row an epoch.
        teacher: network whose answer is kept in windows without any label.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        loss: Loss,
        settings: Settings,
        steps: int,
        classes: int,
        log: Path,
        teacher: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.teacher = teacher.requires_grad_(False) if teacher is not None else None
        self.loss = loss
        self.settings = settings
        self.steps = steps
        self.classes = classes
        self.log_path = log
        if settings.frozen_encoder:
            _encoder(network).requires_grad_(False)
        self.average = _average(network, settings)
        if self.average is not None and settings.devices > 1:
            # Or several devices would wait for the gradients of a network that is not learning.
            self.average.requires_grad_(False)
        self.elapsed_s = 0.0
        self._clock = time.monotonic()
        self._averaged_step = 0
        self._confusion = Confusion.zeros(classes)
        self._losses: dict[str, list[float]] = {"train": [], "val": []}
        self.history: list[dict[str, float]] = []

    @property
    def share(self) -> float:
        """How much of the training is over, 0 to 1: by steps, or by minutes where these are bounded."""
        by_steps = self.global_step / self.steps
        by_time = self.elapsed_s / (60 * self.settings.minutes) if self.settings.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    @property
    def _averages_alike(self) -> bool:
        """Whether the stretch of stochastic weight averaging has begun."""
        return self.settings.swa > 0 and self.share >= 1 - self.settings.swa

    @property
    def best_network(self) -> torch.nn.Module:
        """The averaged network, where there is one."""
        return self.average.module if self.average is not None else self.network

    def configure_optimizers(self) -> Any:
        settings = self.settings
        optimiser = OPTIMISERS[settings.optimiser](
            parameter_groups(self.network, settings.learning_rate, settings.encoder_rate),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self._plateau = (
            torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, mode="max", factor=0.3, patience=3)
            if settings.schedule == "plateau"
            else None
        )
        return optimiser

    def on_fit_start(self) -> None:
        self._clock = time.monotonic()

    def train(self, mode: bool = True) -> Fit:
        """Training or evaluation mode; what is frozen, and the teacher, never leave the latter."""
        super().train(mode)
        frozen = [_encoder(self.network)] if self.settings.frozen_encoder else []
        for part in [self.network] if self.settings.frozen_statistics else frozen:
            for norm in part.modules():
                if isinstance(norm, torch.nn.modules.batchnorm._NormBase):
                    norm.eval()
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def on_train_epoch_start(self) -> None:
        self.train()
        self._losses["train"] = []

    def on_train_batch_start(self, batch: Sample, batch_index: int) -> None:
        settings = self.settings
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            if self._plateau is None or self.share < settings.warmup:
                # Weights that are averaged alike come from a rate that no longer falls.
                share = min(self.share, 1 - settings.swa) if settings.swa else self.share
                factor = schedule_factor(settings.schedule, share, settings.warmup)
                group["lr"] = settings.learning_rate * group["rate"] * factor

    def training_step(self, batch: Sample, batch_index: int) -> dict[str, torch.Tensor]:
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        weighed = parts_alike(self.loss.at(self.share), batch.get("part"))
        loss, logits = deep_loss(weighed, self.network(images), batch["labels"])
        if self.teacher is not None:
            loss = loss + self._moved(logits, images, batch)
        self._losses["train"].append(float(loss.detach()))
        if not self.settings.hard_share:
            return {"loss": loss}
        return {"loss": loss, "window_losses": window_losses(logits, batch["labels"])}

    def _moved(self, logits: torch.Tensor, images: torch.Tensor, batch: Sample) -> torch.Tensor:
        """How far the answer is from the teacher's. Beside a label that may well be wrong: it is what was corrected."""
        assert self.teacher is not None
        with torch.no_grad():
            taught = self.teacher(images)
        free = batch["valid"] & (batch["labels"] == UNLABELLED).all(dim=(1, 2), keepdim=True)
        return distillation_loss(logits.float(), taught.float(), free)

    def on_train_batch_end(self, outputs: Any, batch: Sample, batch_index: int) -> None:
        if self.average is not None and self.global_step > self._averaged_step:
            self._averaged_step = self.global_step
            self.average.update_parameters(self.network)
            # The first steps from random weights are no good to average over.
            if not self._averages_alike if self.settings.swa else self.global_step <= 20:
                self.average.n_averaged.zero_()
        now = time.monotonic()
        self.elapsed_s += now - self._clock
        self._clock = now
        # Several devices do not have one clock: they stop together.
        self.trainer.should_stop |= self.trainer.strategy.reduce_boolean_decision(self.share >= 1, all=False)

    def on_validation_epoch_start(self) -> None:
        self._confusion = Confusion.zeros(self.classes)
        self._losses["val"] = []

    def validation_step(self, batch: Sample, batch_index: int) -> None:
        network = self.average if self.average is not None else self.network
        logits = network(batch["image"].contiguous(memory_format=torch.channels_last)).float()
        labels = self._own_labels(batch)
        if (labels != UNLABELLED).any():
            self._losses["val"].append(float(self.loss(logits, labels)))
        classes = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(1)
        truth, prediction = labels.cpu().numpy(), classes.to(torch.uint8).cpu().numpy()
        self._confusion = self._confusion + Confusion.of(truth, prediction, self.classes)

    def _own_labels(self, batch: Sample) -> torch.Tensor:
        """Labels of the windows that no other device looks at."""
        if self.trainer.world_size == 1:
            return batch["labels"]
        own = looked_at_here(batch["request"], self.trainer.global_rank, self.trainer.world_size)
        return batch["labels"].masked_fill(~own[:, None, None], UNLABELLED)

    def on_validation_epoch_end(self) -> None:
        # Validation counts as training time: who gave us minutes meant all of it.
        now = time.monotonic()
        self.elapsed_s += now - self._clock
        self._clock = now

    def on_train_epoch_end(self) -> None:
        confusion = self._of_all_devices(self._confusion)
        alarms, misses = alarms_and_misses(confusion)
        row = {
            "epoch": float(self.current_epoch + 1),
            "seconds": round(self.elapsed_s, 1),
            "learning_rate": float(self.optimizers().param_groups[0]["lr"]),  # type: ignore[union-attr]
            "train_loss": self._mean_of_all_devices(self._losses["train"]),
            "val_loss": self._mean_of_all_devices(self._losses["val"]),
            "val_iou": _score(confusion),
            "val_false_alarms": alarms,
            "val_misses": misses,
        }
        self.history.append(row)
        if self.trainer.is_global_zero:
            write_history(self.log_path, self.history)
        if self._plateau is not None and self.share >= self.settings.warmup:
            self._plateau.step(row["val_iou"])
        self.log_dict({name: value for name, value in row.items() if name != "epoch"})

    def _of_all_devices(self, confusion: Confusion) -> Confusion:
        """Each device looks at windows of its own."""
        if self.settings.devices == 1:
            return confusion
        matrix = torch.from_numpy(confusion.matrix).to(self.device)
        return Confusion(self.trainer.strategy.reduce(matrix, reduce_op="sum").cpu().numpy())

    def _mean_of_all_devices(self, losses: Sequence[float]) -> float:
        if self.settings.devices == 1:
            return _mean(losses)
        told = torch.tensor([sum(losses), len(losses)], dtype=torch.float64, device=self.device)
        total, count = self.trainer.strategy.reduce(told, reduce_op="sum").tolist()
        return total / count if count else math.nan

    @property
    def running_loss(self) -> float:
        """Mean loss of the last batches of this epoch."""
        return _mean(self._losses["train"][-20:])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gimseg"] = {"elapsed_s": self.elapsed_s, "history": self.history}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.elapsed_s = checkpoint["gimseg"]["elapsed_s"]
        self.history = checkpoint["gimseg"]["history"]


def looked_at_here(requests: torch.Tensor, rank: int, devices: int) -> torch.Tensor:
    """Which windows of a batch are this device's own.

    Where windows cannot be divided evenly, torch's DistributedSampler gives some of the first ones out again, so that
    all devices have as many batches (a device that had one more would wait for the others for ever). Window k is that
    of device k modulo their number, so one that is given out again is another device's.

    Args:
        requests: numbers of the windows, (N,).
        rank: number of this device, from 0.
        devices: how many there are.

    Returns:
        bool (N,).

    Example:
        >>> [looked_at_here(torch.tensor(given), rank, 2).tolist() for rank, given in enumerate([[0, 2, 4], [1, 3, 0]])]
        [[True, True, True], [True, True, False]]
    """
    return requests % devices == rank


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _score(confusion: Confusion) -> float:
    """Mean IoU of the classes present; 0 where none is found, NaN where nothing was looked at."""
    score = float(confusion.mean_iou)
    return 0.0 if math.isnan(score) and confusion.total else score


def alarms_and_misses(confusion: Confusion) -> tuple[float, float]:
    """Pixels of background taken for an object, and of objects taken for background, as shares of all objects' pixels.

    A pixel of one class taken for another is in neither. NaN where there is no object.

    Example:
        >>> alarms_and_misses(Confusion(np.array([[80, 4], [2, 14]])))
        (0.25, 0.125)
    """
    objects = int(confusion.matrix[1:].sum())
    alarms, misses = int(confusion.matrix[0, 1:].sum()), int(confusion.matrix[1:, 0].sum())
    return (alarms / objects, misses / objects) if objects else (math.nan, math.nan)


def _average(network: torch.nn.Module, settings: Settings) -> AveragedModel | None:
    """The mean of weights and statistics that is scored and kept: moving, or of the last stretch.

    Source: stochastic weight averaging, Izmailov et al. 2018, arXiv 1803.05407, after Polyak & Juditsky 1992,
    doi 10.1137/0330046; normalisation statistics are averaged with the weights here, counted anew there. The moving
    average weighs later steps more, as in Tarvainen & Valpola 2017, arXiv 1703.01780.
    """
    if settings.swa:
        return AveragedModel(network, multi_avg_fn=get_swa_multi_avg_fn(), use_buffers=True)
    if settings.averaging:
        return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.averaging), use_buffers=True)
    return None


def _encoder(network: torch.nn.Module) -> torch.nn.Module:
    """What is frozen with the encoder; nothing where there is none."""
    return getattr(network, "encoder", torch.nn.Module())


def parameter_groups(network: torch.nn.Module, learning_rate: float, encoder_rate: float) -> list[dict[str, Any]]:
    """The weights of the encoder and the others, each with the factor ``rate`` on the learning rate."""
    encoder = list(_encoder(network).parameters())
    known = {id(weight) for weight in encoder}
    others = [weight for weight in network.parameters() if id(weight) not in known]
    groups = [(others, 1.0), (encoder, encoder_rate)]
    return [{"params": weights, "lr": learning_rate * rate, "rate": rate} for weights, rate in groups if weights]


class Report(Callback):
    """Tells progress after each batch."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_batch_end(self, trainer: Trainer, fit: Fit, *args: Any) -> None:  # type: ignore[override]
        iou = fit.history[-1]["val_iou"] if fit.history else math.nan
        total = max(fit.global_step, round(fit.global_step / max(fit.share, 1e-6)))
        seen = "" if math.isnan(iou) else f"  val IoU {iou:.3f}"
        self.progress("train", fit.global_step, total, "steps", f"loss {fit.running_loss:.3f}{seen}")


def write_history(path: Path, history: Sequence[dict[str, float]]) -> None:
    """One row an epoch, as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        for row in history:
            writer.writerow({key: f"{value:.6g}" for key, value in row.items()})


def draw_history(path: Path, history: Sequence[dict[str, float]]) -> None:
    """Loss, IoU and learning rate over the epochs, as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = [row["epoch"] for row in history]
    panels = [("loss", ("train_loss", "val_loss")), ("IoU", ("val_iou",)), ("learning rate", ("learning_rate",))]
    for axes, (title, names) in zip(figure.subplots(1, 3), panels, strict=True):
        for name in names:
            axes.plot(epochs, [row[name] for row in history], marker=".", label=name.replace("_", " "))
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
