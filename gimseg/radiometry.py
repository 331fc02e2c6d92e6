"""How values are brought to the network: two numbers a band, which the recipe carries to prediction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gimseg.labelled_scenes import LabelledScene
from gimseg.levelling import BandSums, Levels, measure
from gimseg.progress import Progress, silent
from gimseg.sampling import Survey, band_statistics

LOW, HIGH = 2.0, 98.0
"""Percentiles that go to -1 and 1."""


def levels(surveys: Sequence[Survey], normalise: str) -> Levels:
    """The two numbers of each band over surveyed ground.

    Args:
        surveys: of the ground to learn from.
        normalise: ``model``: mean and standard deviation of all valid pixels. ``percentile``: the 2nd
            and the 98th go to -1 and 1, so that a few glaring pixels move nothing. ``none``: 0 and 1, and so
            ``dataset``: its ground is levelled already, see :func:`levelled_by_dataset`.

    Raises:
        DatasetError: there is no valid pixel.
    """
    mean, std = band_statistics(surveys)
    if normalise in ("none", "dataset"):
        return (0.0,) * len(mean), (1.0,) * len(mean)
    if normalise == "percentile":
        low, high = _percentiles(surveys)
        half = (high - low) / 2
        # A band that is nearly constant keeps its deviation, which is never 0.
        return tuple(map(float, (low + high) / 2)), tuple(map(float, np.where(half > 0, half, std)))
    return mean, std


def levelled_by_dataset(scenes: Sequence[LabelledScene], progress: Progress = silent) -> tuple[LabelledScene, ...]:
    """Scenes whose bands are brought to mean 0 and deviation 1, each by the statistics of its whole dataset.

    Raises:
        RasterError: a raster cannot be read.
    """
    sums: dict[str, list[BandSums]] = {}
    for number, scene in enumerate(scenes, 1):
        sums.setdefault(scene.tag, []).append(measure(scene.view))
        progress("measure", number, len(scenes), "rasters")
    found = {tag: BandSums.together(parts).levels for tag, parts in sums.items()}
    return tuple(scene.levelled(found[scene.tag]) for scene in scenes)


def levelled_by_raster(scenes: Sequence[LabelledScene]) -> tuple[LabelledScene, ...]:
    """Scenes whose bands are brought to mean 0 and deviation 1, each by its own, as prediction does it.

    Raises:
        RasterError: a raster cannot be read.
    """
    return tuple(scene.levelled(measure(scene.view).levels) for scene in scenes)


def _percentiles(surveys: Sequence[Survey]) -> tuple[np.ndarray, np.ndarray]:
    """Of each band, each raster with the weight of its valid pixels."""
    sample = np.concatenate([item.sample for item in surveys], axis=1)
    weights = np.concatenate(
        [np.full(item.sample.shape[1], item.valid / max(1, item.sample.shape[1])) for item in surveys]
    )
    found = []
    for band in sample:
        order = np.argsort(band)
        share = np.cumsum(weights[order]) / weights.sum()
        found.append(band[order][np.searchsorted(share, (LOW / 100, HIGH / 100)).clip(max=len(band) - 1)])
    low, high = np.array(found, np.float64).T
    return low, high
