"""Labelled windows that a model keeps: what later models learn again, and what they must not do worse on.

Pairs of GeoTIFFs, ``000_image.tif`` and ``000_labels.tif``, in a model's folder:
``exemplars/`` was trained on, ``exemplars/test/`` never was.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gimseg.datasets import Dataset, Datasets
from gimseg.labelled_windows import WindowRequest
from gimseg.legend import UNLABELLED
from gimseg.progress import Progress, silent
from gimseg.rasters import write_part
from gimseg.recipes import Recipe
from gimseg.sampling import Survey, WindowSampler, covering_windows
from gimseg.settings import Settings

EXEMPLARS, TEST = "exemplars", "exemplars/test"
"""Folders in that of a model."""
_IMAGE, _LABELS = "image.tif", "labels.tif"


def write_exemplars(folder: Path, surveys: Sequence[Survey], settings: Settings, progress: Progress = silent) -> None:
    """Windows of training ground, drawn as a training draws them."""
    if not settings.exemplars:
        return
    sampler = WindowSampler(tuple(surveys), settings.window, settings.object_share)
    requests = sampler.draw(settings.exemplars, settings.seed)
    _write_windows(folder, surveys, requests, settings.window, "train")
    progress("keep exemplars", len(requests), len(requests), "windows")


def write_test_exemplars(folder: Path, surveys: Sequence[Survey], settings: Settings) -> None:
    """Windows of validation ground, none of which overlap; no folder where there is no such ground."""
    requests = covering_windows(surveys, settings.window)
    if not settings.exemplars or not requests:
        return
    chosen = np.random.default_rng(settings.seed).permutation(len(requests))[: settings.exemplars]
    _write_windows(folder, surveys, [requests[index] for index in sorted(chosen)], settings.window, "val")


def read_exemplars(folder: str | os.PathLike[str], recipe: Recipe) -> Datasets | None:
    """The windows in a folder, each a dataset of its own.

    Args:
        folder: ``exemplars`` or ``exemplars/test`` of a model.
        recipe: of the model.

    Returns:
        None where there are none.

    Raises:
        DatasetError: an image has no labels.
    """
    images = sorted(Path(folder).glob(f"*_{_IMAGE}"))
    items = tuple(
        Dataset(
            tag=f"exemplar {image.name.split('_')[0]}",
            spatial_resolution=recipe.resolution,
            image_paths=[image],
            mask_paths=[image.with_name(image.name.replace(_IMAGE, _LABELS))],
            legend=recipe.legend,
            bands=range(1, len(recipe.bands) + 1),
        )
        for image in images
    )
    return Datasets(items) if items else None


def _write_windows(
    folder: Path, surveys: Sequence[Survey], requests: Sequence[WindowRequest], window: int, split: str
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, request in enumerate(requests):
        scene = surveys[request.scene].scene
        rows, cols = (
            slice(max(0, centre - window // 2), min(centre + window // 2, size))
            for centre, size in zip((request.row, request.col), scene.shape, strict=True)
        )
        pixels, labels = scene.read((rows, cols), split if scene.splits else None)
        image = np.where(pixels.valid, pixels.data, 0).astype(scene.raster.dtype)
        grid = scene.geobox[rows, cols]
        write_part(folder / f"{number:03d}_{_IMAGE}", image, grid)
        write_part(folder / f"{number:03d}_{_LABELS}", labels, grid, nodata=UNLABELLED)
