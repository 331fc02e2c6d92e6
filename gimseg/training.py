"""Datasets to a model: fit a network, keep the best, leave a model folder."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import shutil
import warnings
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
from gimseg.datasets import Dataset, Datasets
from gimseg.errors import DatasetError, OutputError, ResumeError
from gimseg.exemplars import write_exemplars, write_test_exemplars
from gimseg.fitting import Fit, Report, draw_history, write_history
from gimseg.labelled_scenes import LabelledScene
from gimseg.labelled_windows import Finish, Frame, LabelledWindows, Prepare, Sample
from gimseg.losses import parse_loss
from gimseg.models import Model, Recipe, build_network, check_window, measure_reach, network_stride
from gimseg.outputs import check_writable
from gimseg.progress import Progress, silent
from gimseg.rasters import Pixels
from gimseg.sampling import Survey, WindowSampler, band_statistics, covering_windows, hold_out, survey
from gimseg.settings import PRECISIONS, Settings
from gimseg.torchvision_ops import declare_missing_operators

declare_missing_operators()

from lightning.pytorch import LightningDataModule, Trainer, seed_everything  # noqa: E402
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint  # noqa: E402

_MEMORY_SHARE = 0.3
"""Scenes are held in memory while training if they take no more than this share of it."""


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
    seed_everything(settings.seed, verbose=False)
    for share in (0.0, 1.0):
        parse_loss(settings.loss).at(share)(*_smallest_batch(datasets.legend.n_channels))
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
    recipe = replace(recipe, stride=network_stride(network))
    work = output.with_name(f"{output.name}.training")
    open_work(work, {"settings": asdict(settings), "data": fingerprints(datasets)}, restart=restart)
    fit = fit_network(network, TrainingWindows(recipe, ground, settings), work, device, progress)
    _finish(fit, recipe, ground, settings, datasets, work, progress)
    if output.exists():
        shutil.rmtree(output)
    os.replace(work / "model", output)
    shutil.rmtree(work)
    return Model.load(output)


def _smallest_batch(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels that make a loss refuse a wrong number of channels before any work."""
    return torch.zeros(1, channels, 1, 1), torch.zeros(1, 1, 1, dtype=torch.uint8)


@dataclass(frozen=True)
class Ground:
    """Surveyed ground to learn from and to validate on."""

    train: tuple[Survey, ...]
    val: tuple[Survey, ...]


def survey_ground(datasets: Datasets, settings: Settings, progress: Progress = silent) -> Ground:
    """Open and survey all scenes; hold blocks out where nothing is for validation.

    Raises:
        DatasetError: there is no ground to train on.
    """
    scenes = datasets.scenes()
    if settings.val_share and not any("val" in scene.splits for scene in scenes):
        # Where every dataset has a split but none is for validation, training ground is divided.
        free = [scene for scene in scenes if not scene.splits] or [
            _undivided(scene) for scene in scenes if "train" in scene.splits
        ]
        surveys = [survey(scene, None, progress) for scene in free]
        divided = hold_out(surveys, settings.val_share, settings.seed, settings.window)
        paths = {scene.path for scene in divided}
        scenes = (*divided, *(scene for scene in scenes if scene.path not in paths))
    scenes = in_memory(scenes, zoomed=settings.augmentation is not None)
    train_scenes = [scene for scene in scenes if not scene.splits or "train" in scene.splits]
    if not train_scenes:
        raise DatasetError("no dataset is for training: give one the split train, or none")
    val_scenes = [scene for scene in scenes if "val" in scene.splits]
    return Ground(
        tuple(survey(scene, "train" if scene.splits else None, progress) for scene in train_scenes),
        tuple(survey(scene, "val", progress) for scene in val_scenes),
    )


def _undivided(scene: LabelledScene) -> LabelledScene:
    """Training ground as if nothing had been said of splits."""
    if scene.split:
        return replace(scene, split=None)
    return replace(scene, areas={None: scene.areas["train"]})


def in_memory(scenes: Sequence[LabelledScene], *, zoomed: bool) -> tuple[LabelledScene, ...]:
    """Hold the scenes in memory if they fit: random windows of files cost more than the network.

    Args:
        scenes: as they were opened.
        zoomed: windows are read at other resolutions too, from the files' own pixels.
    """
    planes = sum(math.prod(scene.shape) * (4 * len(scene.raster.bands) + 4) for scene in scenes)
    rasters = [scene.raster for scene in scenes]
    native = sum(math.prod(file.shape) * (np.dtype(file.dtype).itemsize * len(file.bands) + 1) for file in rasters)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 4 << 30
    if planes > _MEMORY_SHARE * memory:
        return tuple(scenes)
    with_file = zoomed and planes + native < _MEMORY_SHARE * memory
    return tuple(scene.in_memory(with_file=with_file) for scene in scenes)


def _first_recipe(datasets: Datasets, ground: Ground, settings: Settings) -> Recipe:
    """All of the recipe but what only a trained network tells: stride and halo."""
    mean, std = band_statistics(ground.train)
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
        dtype=raster.dtype,
        crs_unit="metre" if raster.crs is not None else "unit",
    )


def open_work(work: Path, identity: Mapping[str, Any], *, restart: bool = False) -> None:
    """Make the folder of a training's state, or find it.

    Args:
        work: the folder.
        identity: what pins the state: settings, data.
        restart: throw away what is there.

    Raises:
        ResumeError: it is of another training.
    """
    told = json.dumps(identity, indent=1, default=str)
    pinned = work / "training.json"
    if restart and work.exists():
        shutil.rmtree(work)
    if pinned.exists() and pinned.read_text(encoding="utf-8") != told:
        raise ResumeError(
            f"{work} holds the state of a training with other settings or data (compare {pinned.name}): "
            "start the same training again to go on, or give --restart to throw that state away"
        )
    work.mkdir(parents=True, exist_ok=True)
    pinned.write_text(told, encoding="utf-8")


def fingerprints(datasets: Datasets) -> dict[str, str]:
    """File name -> size and hash of samples of its content, for every file of the datasets."""
    found = {}
    for dataset in datasets:
        for path in (*dataset.images, *dataset.masks, *dataset.aois, *dataset.ignored):
            name = str(path).split("|")[0]
            if not os.path.isfile(name):
                continue
            size = os.path.getsize(name)
            digest = hashlib.sha256(str(size).encode())
            with open(name, "rb") as file:
                for place in (0, size // 2, max(0, size - 65536)):
                    file.seek(place)
                    digest.update(file.read(65536))
            found[f"{dataset.tag}/{os.path.basename(name)}"] = f"{size} bytes, sha256 {digest.hexdigest()[:16]}"
    return found


def training_windows(recipe: Recipe, augmentation: Augmentation | None) -> Prepare:
    """Draws how a window is varied; finishes it as the network takes it."""
    size = (recipe.window, recipe.window)

    def prepare(rng: np.random.Generator) -> tuple[Frame, Finish]:
        draw = (augmentation or Augmentation.none()).draw(rng)
        # Zoomed windows are read at their own resolution: sharp where the file is.
        zooms, draw = draw.zooms, draw.without_zoom()

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
        self.sampler = WindowSampler(ground.train, settings.window, settings.object_share, settings.balance)

    def train_dataloader(self) -> DataLoader:
        epoch = self.trainer.current_epoch if self.trainer else 0
        requests = self.sampler.draw(self.settings.windows_per_epoch, self.settings.seed * 10_007 + epoch)
        scenes = [item.scene for item in self.ground.train]
        prepare = training_windows(self.recipe, self.settings.augmentation)
        split = "train" if any(scene.splits for scene in scenes) else None
        return self._loader(LabelledWindows(scenes, requests, prepare, split))

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        if not self.ground.val:
            return []
        scenes = [item.scene for item in self.ground.val]
        requests = covering_windows(self.ground.val, self.settings.window)
        prepare = training_windows(self.recipe, None)
        return self._loader(LabelledWindows(scenes, requests, prepare, "val"))

    def _loader(self, windows: LabelledWindows) -> DataLoader:
        workers = self.settings.workers
        if workers is None:
            # On a CPU the network takes all cores: workers pay only where there are some to spare.
            workers = min(8, (os.cpu_count() or 1) - 2) if (os.cpu_count() or 1) > 2 else 0
        return DataLoader(windows, batch_size=self.settings.batch, num_workers=max(0, workers))


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
    recipe, ground, settings = windows.recipe, windows.ground, windows.settings
    classes = len(recipe.legend.classes) + 1
    steps = settings.epochs * settings.steps_per_epoch
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fit = Fit(network, parse_loss(settings.loss), settings, steps, classes, work / "metrics.csv", teacher)
    checkpoint = ModelCheckpoint(
        work,
        filename="best",
        monitor="val_iou" if ground.val else None,
        mode="max",
        save_top_k=1 if ground.val else 0,
        save_last=True,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    callbacks: list[Any] = [Report(progress), checkpoint]
    if settings.patience and ground.val:
        stop = EarlyStopping("val_iou", settings.min_gain, settings.patience, mode="max", check_on_train_epoch_end=True)
        callbacks.append(stop)
    _quiet_lightning()
    trainer = Trainer(
        accelerator={"auto": "auto", "cuda": "gpu"}.get(device, device),
        devices=1,
        precision=_precision(settings.precision, device),  # type: ignore[arg-type]
        max_epochs=settings.epochs,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=settings.gradient_clip or None,
        reload_dataloaders_every_n_epochs=1,
    )
    last = work / "last.ckpt"
    try:
        trainer.fit(fit, datamodule=windows, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    except SystemExit:
        # Lightning ends the process on Ctrl-C; what ends a process is the command's to say.
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from None
    return fit


def _precision(name: str, device: str) -> str:
    """Lightning's name; ``auto`` is bfloat16 where the device computes it faster than float32."""
    if name == "auto":
        if device != "cpu" and torch.cuda.is_available():
            name = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        else:
            name = "bfloat16" if _cpu_computes_bfloat16() else "float32"
    return PRECISIONS[name]


def _cpu_computes_bfloat16() -> bool:
    """Without these instructions bfloat16 is emulated, at a sixth of the speed of float32."""
    capability = torch.backends.cpu.get_cpu_capability()
    return capability.startswith("AVX512") and bool(torch.cpu._is_avx512_bf16_supported())


def _quiet_lightning() -> None:
    """Our own lines say what these would, with what to do."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


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
        "data": fingerprints(datasets),
        "settings": json.loads(json.dumps(asdict(settings), default=str)),
        "epochs": len(fit.history),
        "training_seconds": round(fit.elapsed_s),
    }
    scores = {"val": {"iou": round(best_row["val_iou"], 4), "epoch": int(best_row["epoch"])}} if best_row else {}
    architecture = {
        "name": settings.network,
        "encoder": settings.encoder,
        "options": settings.options,
    }
    model = Model(network, recipe, architecture, provenance, scores)
    folder = work / "model"
    model.save(folder, overwrite=True)
    replace(model, network=last.cpu().float().eval(), scores={}).save(folder / "last", overwrite=True)
    write_history(folder / "metrics.csv", fit.history)
    draw_history(folder / "curves.png", fit.history)
    write_exemplars(folder / "exemplars", ground.train, settings, progress)
    write_test_exemplars(folder / "exemplars" / "test", ground.val, settings)


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
