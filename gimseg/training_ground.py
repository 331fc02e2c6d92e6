"""The ground of a training: surveyed, divided, thinned to points, held in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gimseg.datasets import Datasets
from gimseg.errors import DatasetError
from gimseg.folds import take_fold
from gimseg.holdouts import hold_out
from gimseg.labelled_scenes import LabelledScene
from gimseg.point_labels import with_points
from gimseg.progress import Progress, silent
from gimseg.radiometry import levelled_by_dataset
from gimseg.sampling import Survey, survey
from gimseg.settings import Settings

_MEMORY_SHARE = 0.3
"""Scenes are held in memory while training if they take no more than this share of it."""


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
    if settings.fold is not None:
        datasets = take_fold(datasets, settings.fold, settings.seed)
    scenes = datasets.scenes()
    if settings.normalise == "dataset":
        scenes = levelled_by_dataset(scenes, progress)
    if settings.val_share and not any("val" in scene.splits for scene in scenes):
        # Where every dataset has a split but none is for validation, training ground is divided.
        undivided = [scene for scene in scenes if not scene.splits]
        beside = [scene for scene in scenes if scene.splits]
        if not undivided:
            undivided = [_undivided(scene) for scene in scenes if "train" in scene.splits]
            beside = [scene for scene in scenes if "train" not in scene.splits]
        surveys = [survey(scene, None, progress) for scene in undivided]
        scenes = hold_out(surveys, settings.val_share, settings.seed, settings.window, beside)
    if settings.points:
        scenes = tuple(_thinned(scene, settings) for scene in scenes)
    scenes = in_memory(scenes, zoomed=settings.augmentation is not None or bool(settings.resolutions))
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


def _thinned(scene: LabelledScene, settings: Settings) -> LabelledScene:
    """Training ground with points in place of dense labels."""
    if scene.splits and "train" not in scene.splits:
        return scene
    split = "train" if scene.splits else None
    given = {"side": settings.window, "by": settings.points_by, "seed": settings.seed}
    return with_points(scene, split, settings.points, **given)  # type: ignore[arg-type]


def in_memory(scenes: Sequence[LabelledScene], *, zoomed: bool) -> tuple[LabelledScene, ...]:
    """Hold the scenes in memory if they fit: random windows of files cost more than the network.

    Args:
        scenes: as they were opened.
        zoomed: windows are read at other resolutions too, from the files' own pixels.
    """
    planes = sum(math.prod(scene.shape) * (4 * len(scene.raster.bands) + 4) for scene in scenes)
    native = sum(_native_bytes(scene) for scene in scenes) if zoomed else 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 4 << 30
    if planes > _MEMORY_SHARE * memory:
        return tuple(scenes)
    with_file = zoomed and planes + native < _MEMORY_SHARE * memory
    return tuple(scene.in_memory(with_file=with_file) for scene in scenes)


def _native_bytes(scene: LabelledScene) -> int:
    """Of the pixels of a scene's file that its windows show, and of their validity."""
    raster = scene.raster
    pixels = math.prod(part.stop - part.start for part in scene.native_part)
    return pixels * (np.dtype(raster.dtype).itemsize * len(raster.bands) + 1)
