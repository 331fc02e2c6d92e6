"""Datasets to a model: fit a network, keep the best, leave a model folder."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from gimseg import __version__
from gimseg.augmentation import Augmentation
from gimseg.balance import count_classes
from gimseg.datasets import Dataset, Datasets
from gimseg.errors import OutputError, TrainingError
from gimseg.exemplars import write_exemplars, write_test_exemplars
from gimseg.fitting import Fit, Report, draw_history, write_history
from gimseg.hardness import Hardness
from gimseg.labelled_windows import Finish, Frame, LabelledWindows, Prepare, Sample
from gimseg.levelling import native_dtype
from gimseg.losses import parse_loss
from gimseg.models import Model, Recipe, build_network, check_window, measure_reach, network_stride
from gimseg.networks import takes_encoder
from gimseg.outputs import check_writable
from gimseg.progress import Progress, silent
from gimseg.radiometry import levels
from gimseg.rasters import Pixels
from gimseg.sampling import Draws, WindowSampler, covering_windows
from gimseg.settings import Settings
from gimseg.torchvision_ops import declare_missing_operators
from gimseg.trainers import run_training
from gimseg.training_ground import Ground, survey_ground
from gimseg.training_state import declared, fingerprints, open_work

declare_missing_operators()

from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything  # noqa: E402


def train(
    datasets: Dataset | Datasets,
    output: str | os.PathLike[str],
    *,
    settings: Settings | None = None,
    device: str = "auto",
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress = silent,
) -> Model:
    """Fit a network to datasets and leave a model folder.

    Ground of the split ``val`` is scored after each epoch, the best epoch becomes the
    model. Where no dataset has a split, blocks of ground are held out. A training that
    was killed goes on from its last epoch when it is started again.

    Args:
        datasets: images and ground truth.
        output: folder of the model; while training, ``<output>.training`` beside it holds
            ``metrics.csv`` and the state to go on from.
        settings: network, loss, rates and so on.
        device: ``auto``, ``cpu``, ``cuda``.
        overwrite: replace a model that is there.
        restart: throw away the state of an earlier training that did not end.
        progress: told after each step.

    Returns:
        the model of the best epoch. Its folder also has ``last/``, ``curves.png``,
        ``metrics.csv`` and ``exemplars/``.

    Raises:
        OutputError: the folder exists, or cannot be written.
        ResumeError: the state there is of another training.
        GimsegError: data, network or settings do not fit together.
    """
    settings = settings or Settings()
    datasets = datasets if isinstance(datasets, Datasets) else Datasets((datasets,))
    output = Path(output)
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists: give another name or --overwrite")
    output.parent.mkdir(parents=True, exist_ok=True)
    check_writable(output.parent)
    beginning = begin(datasets, settings, progress)
    network, recipe, ground = beginning.network, beginning.recipe, beginning.ground
    work = output.with_name(f"{output.name}.training")
    identity = {"settings": asdict(settings), "datasets": declared(datasets), "data": fingerprints(datasets)}
    open_work(work, identity, restart=restart)
    fit = fit_network(network, TrainingWindows(recipe, ground, settings), work, device, progress)
    _finish(fit, recipe, ground, settings, datasets, work, progress)
    if output.exists():
        shutil.rmtree(output)
    os.replace(work / "model", output)
    shutil.rmtree(work)
    return Model.load(output)


@dataclass(frozen=True)
class Beginning:
    """All that a training begins with: a network with random or given weights, ground, and the recipe between them."""

    network: torch.nn.Module
    recipe: Recipe
    ground: Ground


def begin(datasets: Datasets, settings: Settings, progress: Progress = silent) -> Beginning:
    """Check that data, network and settings fit together; survey the ground, build the network.

    Raises:
        GimsegError: they do not.
    """
    if settings.old_share:
        raise TrainingError("old_share is for corrections: a training that begins anew has no old model, leave it out")
    seed_everything(settings.seed, verbose=False)
    loss = parse_loss(settings.loss).balanced([1] * (len(datasets.legend.classes) + 1))
    for share in (0.0, 1.0):
        loss.at(share)(*_smallest_batch(datasets.legend.n_channels))
    ground = survey_ground(datasets, settings, progress)
    recipe = _first_recipe(datasets, ground, settings)
    network = build_network(
        settings.network,
        settings.encoder,
        bands=len(recipe.bands),
        channels=recipe.legend.n_channels,
        weights=settings.encoder_weights,
        **settings.options,
    )
    check_window(network, settings.window, bands=len(recipe.bands), batch=settings.batch)
    return Beginning(network, replace(recipe, stride=network_stride(network)), ground)


def _smallest_batch(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels that make a loss refuse a wrong number of channels before any work."""
    return torch.zeros(1, channels, 1, 1), torch.zeros(1, 1, 1, dtype=torch.uint8)


def _first_recipe(datasets: Datasets, ground: Ground, settings: Settings) -> Recipe:
    """All of the recipe but what only a trained network tells: stride and halo."""
    mean, std = levels(ground.train, settings.normalise)
    raster = ground.train[0].scene.raster
    return Recipe(
        bands=raster.bands,
        mean=mean,
        std=std,
        resolution=datasets.items[0].spatial_resolution,
        window=settings.window,
        halo=0,
        stride=1,
        legend=datasets.legend,
        dtype=native_dtype(raster),
        crs_unit="metre" if raster.crs is not None else "unit",
        own_levels=settings.normalise == "dataset",
    )


def training_windows(recipe: Recipe, augmentation: Augmentation | None, resolutions: Sequence[float] = ()) -> Prepare:
    """Draws how a window is varied; finishes it as the network takes it.

    Args:
        recipe: what the network takes.
        augmentation: how windows are varied; None: not at all.
        resolutions: ground sizes of a pixel to show windows at, each as often; empty: the recipe's.
    """
    size = (recipe.window, recipe.window)

    def prepare(rng: np.random.Generator) -> tuple[Frame, Finish]:
        finer = recipe.resolution / rng.choice(resolutions) if len(resolutions) else 1.0
        draw = (augmentation or Augmentation.none()).draw(rng)
        # Zoomed windows are read at their own resolution: sharp where the file is.
        zooms, draw = (draw.zooms[0] * finer, draw.zooms[1] * finer), draw.without_zoom()

        def finish(image: np.ndarray, valid: np.ndarray, labels: np.ndarray) -> Sample:
            planes = (torch.from_numpy(np.ascontiguousarray(plane)) for plane in (image, valid, labels))
            varied = draw.apply(*planes, size=size, mean=recipe.mean, std=recipe.std)
            return {
                "image": torch.from_numpy(recipe.prepare(Pixels(varied[0].numpy(), varied[1].numpy()))),
                "valid": varied[1],
                "labels": torch.from_numpy(recipe.legend.to_channels(varied[2].numpy())),
            }

        return Frame(draw.read_shape(size), zooms), finish

    return prepare


class TrainingWindows(LightningDataModule):
    """Windows drawn anew for each epoch, and those that cover the validation ground."""

    def __init__(self, recipe: Recipe, ground: Ground, settings: Settings) -> None:
        super().__init__()
        self.recipe = recipe
        self.ground = ground
        self.settings = settings
        self.sampler: Draws = WindowSampler(
            ground.train,
            settings.window,
            settings.object_share,
            settings.balance,
            settings.balance_by,
            settings.class_balance,
            settings.empty_share,
            settings.hard_share,
        )
        self.hardness = Hardness.unknown(ground.train, settings.window)
        self.augmentations: tuple[Augmentation | None, ...] = (settings.augmentation,)
        """How the windows of each part of a batch are varied."""

    def train_dataloader(self) -> DataLoader:
        epoch = self.trainer.current_epoch if self.trainer else 0
        seed = self.settings.seed * 10_007 + epoch
        known = {"hardness": self.hardness.weights()} if self.settings.hard_share else {}
        self.requests = self.sampler.draw(self.settings.windows_per_epoch, seed, **known)
        scenes = [item.scene for item in self.ground.train]
        split = "train" if any(scene.splits for scene in scenes) else None
        prepares = [
            training_windows(self.recipe, augmentation, self.settings.resolutions)
            for augmentation in self.augmentations
        ]
        return self._loader(LabelledWindows(scenes, self.requests, prepares, split))

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        if not self.ground.val:
            return []
        scenes = [item.scene for item in self.ground.val]
        requests = covering_windows(self.ground.val, self.settings.window)
        prepare = training_windows(self.recipe, None)
        return self._loader(LabelledWindows(scenes, requests, prepare, "val"))

    def note_losses(self, batch: Sample, losses: torch.Tensor) -> None:
        """What was hard is drawn more often from the next epoch on."""
        requests = [self.requests[int(number)] for number in batch["request"]]
        self.hardness = self.hardness.after(requests, losses.float().tolist())

    def state_dict(self) -> dict[str, Any]:
        """What a training that goes on needs to know."""
        return {"hardness": self.hardness.to_tensors()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.hardness = Hardness.from_tensors(state_dict["hardness"], self.settings.window)

    def _loader(self, windows: LabelledWindows) -> DataLoader:
        workers = self.settings.workers
        if workers is None:
            # On a CPU the network takes all cores: workers pay only where there are some to spare.
            workers = min(8, (os.cpu_count() or 1) - 2) if (os.cpu_count() or 1) > 2 else 0
        return DataLoader(windows, batch_size=self.settings.batch, num_workers=max(0, workers))


class _NoteHardness(Callback):
    """Tells the windows how high the loss of each was."""

    def __init__(self, windows: TrainingWindows) -> None:
        self.windows = windows

    def on_train_batch_end(self, trainer: Trainer, fit: Fit, outputs: Any, batch: Sample, *args: Any) -> None:  # type: ignore[override]
        self.windows.note_losses(batch, outputs["window_losses"])


def fit_network(
    network: torch.nn.Module,
    windows: TrainingWindows,
    work: Path,
    device: str,
    progress: Progress,
    teacher: torch.nn.Module | None = None,
) -> Fit:
    """Fit a network, going on from the state that `work` holds, if any.

    Args:
        network: changed in place.
        windows: what it learns from, and how.
        work: gets ``last.ckpt`` after each epoch, ``best.ckpt`` where there is validation ground, and ``metrics.csv``.
        device: ``auto``, ``cpu``, ``cuda``.
        progress: told after each step.
        teacher: whose answer is kept in windows without any label; None: these count for nothing.
    """
    ground, settings = windows.ground, windows.settings
    classes = len(windows.recipe.legend.classes) + 1
    steps = settings.epochs * settings.steps_per_epoch
    loss = parse_loss(settings.loss).balanced(count_classes(ground.train))
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fit = Fit(network, loss, settings, steps, classes, work / "metrics.csv", teacher)
    further = [_NoteHardness(windows)] if settings.hard_share else []
    run_training(fit, windows, work, device, [Report(progress), *further], scored=bool(ground.val))
    return fit


def _finish(
    fit: Fit, recipe: Recipe, ground: Ground, settings: Settings, datasets: Datasets, work: Path, progress: Progress
) -> None:
    """Write the folder ``model`` in `work`: the best epoch, the last one, curves and exemplars."""
    best = work / "best.ckpt"
    last = copy.deepcopy(fit.best_network)
    if best.exists():
        fit.load_state_dict(torch.load(best, weights_only=True, map_location="cpu")["state_dict"])
    network = fit.best_network.cpu().float().eval()
    recipe = _with_reach(network, recipe, ground)
    best_row = max(fit.history, key=lambda row: row["val_iou"]) if ground.val else {}
    provenance = {
        "gimseg": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "datasets": [item.tag for item in datasets],
        "declared": declared(datasets),
        "data": fingerprints(datasets),
        "settings": json.loads(json.dumps(asdict(settings), default=str)),
        "loss": str(fit.loss),
        "epochs": len(fit.history),
        "training_seconds": round(fit.elapsed_s),
    }
    architecture = {
        "name": settings.network,
        "encoder": settings.encoder if takes_encoder(settings.network) else "",
        "options": settings.options,
    }
    model = Model(network, recipe, architecture, provenance, _scores(best_row))
    folder = work / "model"
    model.save(folder, overwrite=True)
    replace(model, network=last.cpu().float().eval(), scores={}).save(folder / "last", overwrite=True)
    write_history(folder / "metrics.csv", fit.history)
    draw_history(folder / "curves.png", fit.history)
    write_exemplars(folder / "exemplars", ground.train, settings, progress)
    write_test_exemplars(folder / "exemplars" / "test", ground.val, settings)
    if settings.tensorboard:
        shutil.copytree(work / "tensorboard", folder / "tensorboard", dirs_exist_ok=True)


def _scores(row: Mapping[str, float]) -> dict[str, Any]:
    """What the model card says of an epoch; nothing where nothing was scored."""
    names = {"iou": "val_iou", "false_alarms": "val_false_alarms", "misses": "val_misses"}
    known = {name: round(row[key], 4) for name, key in names.items() if math.isfinite(row.get(key, math.nan))}
    return {"val": {**known, "epoch": int(row["epoch"])}} if known else {}


def _with_reach(network: torch.nn.Module, recipe: Recipe, ground: Ground) -> Recipe:
    """The recipe with the halo that the trained network needs and a window that it pays in.

    Large windows waste less on the halo. A network whose classes depend on the whole
    window (pooled context, attention) keeps the window that it was trained with, and its
    windows are blended.
    """
    large = min(4 * recipe.window, 1024)
    images = _contexts(recipe, ground, 2 * large)
    reach = measure_reach(network, replace(recipe, window=large), images)
    if reach.bounded:
        return replace(recipe, window=large, halo=reach.halo)
    return replace(recipe, halo=measure_reach(network, recipe, images).halo, blend=True)


def _contexts(recipe: Recipe, ground: Ground, size: int, count: int = 4) -> list[np.ndarray]:
    """A few normalised images of the training ground, float32 (bands, size, size)."""
    sampler = WindowSampler(ground.train, size, object_share=1.0)
    images = []
    for request in sampler.draw(count, seed=0):
        scene = ground.train[request.scene].scene
        rows, cols = (
            slice(max(0, centre - size // 2), min(centre + size // 2, side))
            for centre, side in zip((request.row, request.col), scene.shape, strict=True)
        )
        images.append(recipe.prepare(scene.view.read((rows, cols))))
    return images
