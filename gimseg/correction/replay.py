"""What a correction is learned beside, so that nothing is forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gimseg.augmentation import Augmentation
from gimseg.correction.grounds import Opened, drawn_parts, open_ground, open_rasters
from gimseg.correction.rounds import Correction
from gimseg.datasets import Datasets
from gimseg.errors import DatasetError
from gimseg.exemplars import EXEMPLARS, read_exemplars
from gimseg.labelled_scenes import LabelledScene
from gimseg.labelled_windows import WindowRequest
from gimseg.models import Model
from gimseg.progress import Progress, silent
from gimseg.sampling import Survey, WindowSampler, survey
from gimseg.settings import Settings
from gimseg.settings_files import settings_from
from gimseg.training_ground import in_memory, survey_ground

_TAUGHT = 24
"""Windows of each raster on which the old model's answer is kept, where there is nothing else."""
_TRIES = 20
_LEAST_VALID = 0.5


@dataclass(frozen=True)
class Replay:
    """Ground that was learned before.

    Args:
        surveys: to draw windows from; none: there is no such ground.
        told: what it is, for people.
        taught: the old model's answer is kept on windows without labels.
        held_out: ground of the original datasets that was never learned.
        from_datasets: the original datasets were given.
        augmentation: how its windows are varied; None: as those of what was corrected.
        notes: what could not be guarded.
    """

    surveys: tuple[Survey, ...]
    told: str
    taught: bool = False
    held_out: tuple[Survey, ...] = ()
    from_datasets: bool = False
    augmentation: Augmentation | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HalfAndHalf:
    """Draws windows by turns from corrected ground and from what was learned before.

    Both halves weigh alike in the loss, also where few clicks stand against windows that are
    labelled whole. Scenes of the second are numbered after those of the first.
    """

    corrected: WindowSampler
    replayed: WindowSampler

    def draw(self, count: int, seed: int, hardness: Sequence[np.ndarray] | None = None) -> tuple[WindowRequest, ...]:
        """`count` windows, every other one of them replayed; the same seed draws the same, however hard they were."""
        first = self.corrected.draw((count + 1) // 2, seed)
        later = len(self.corrected.surveys)
        drawn = self.replayed.draw(count // 2, seed + 1)
        second = [replace(item, scene=item.scene + later, part=1) for item in drawn]
        pairs = [item for pair in zip(first, second, strict=False) for item in pair]
        return (*pairs, *first[len(second) :])


def open_replay(
    model: Model,
    corrections: Sequence[Correction],
    earlier: Sequence[Correction],
    datasets: Datasets | None,
    settings: Settings,
    progress: Progress = silent,
    opened: Opened = open_rasters,
) -> Replay:
    """Find what the model has learned before.

    Args:
        model: that is retrained.
        corrections: that are learned now.
        earlier: that were learned before.
        datasets: the model's original ones; None: the windows that it keeps.
        settings: of the training.
        progress: told how far the look at the ground is.
        opened: see :func:`gimseg.correction.grounds.opened_once`.

    Raises:
        GimsegError: a file cannot be read, or datasets do not fit the model.
    """
    again = corrected_ground(earlier, model, progress, opened)
    also = f" and {len(earlier)} earlier correction{'s' if len(earlier) > 1 else ''}" if earlier else ""
    if datasets is not None:
        ground = survey_ground(fit_datasets(datasets, model), _as_trained(settings, model), progress)
        names = ", ".join(item.tag for item in datasets)
        told = f"half of each batch from the datasets {names}{also}"
        return Replay(
            (*ground.train, *again), told, held_out=ground.val, from_datasets=True, augmentation=_as_first_varied(model)
        )
    kept = read_exemplars(Path(model.folder or "") / EXEMPLARS, model.recipe) if model.folder else None
    if kept is not None:
        ground = survey_ground(kept, replace(settings, val_share=0.0))
        told = f"half of each batch from {len(kept)} windows that the model keeps{also}"
        return Replay((*ground.train, *again), told, augmentation=_as_first_varied(model))
    return _taught(model, corrections, again, also, settings)


def corrected_ground(
    corrections: Sequence[Correction], model: Model, progress: Progress = silent, opened: Opened = open_rasters
) -> tuple[Survey, ...]:
    """The ground of corrections that may be learned from.

    Args:
        corrections: of one project.
        model: that learns them.
        progress: told how far the look at the ground is.
        opened: see :func:`gimseg.correction.grounds.opened_once`.

    Raises:
        GimsegError: see :func:`gimseg.correction.grounds.open_ground`.
    """
    scenes = [scene for correction in corrections for scene in open_ground(correction, model, opened)]
    return tuple(survey(scene, "train", progress) for scene in in_memory(scenes, zoomed=True))


def fit_datasets(datasets: Datasets, model: Model) -> Datasets:
    """Original datasets at the resolution and with the bands of a model.

    Raises:
        DatasetError: they have other classes.
    """
    theirs, ours = datasets.legend, model.recipe.legend
    if theirs.names != ours.names or theirs.values != ours.values:
        if not (theirs.is_binary and ours.is_binary):
            raise DatasetError(
                f"the datasets have the classes {', '.join(theirs.names)}, the model {', '.join(ours.names)}: "
                "give those that it was trained with"
            )
        one = replace(ours.classes[0], values=theirs.classes[0].values)
        legend = replace(theirs, classes=(one,))
        datasets = Datasets(tuple(replace(item, legend=legend) for item in datasets))
    return datasets.at_resolution(model.recipe.resolution).with_bands(model.recipe.bands)


def _as_trained(settings: Settings, model: Model) -> Settings:
    """The settings with which the datasets are divided as they were for the first training."""
    was = model.provenance.get("divided", model.provenance.get("settings", {}))
    return replace(
        settings,
        val_share=float(was.get("val_share", settings.val_share)),
        seed=int(was.get("seed", settings.seed)),
        normalise="dataset" if model.recipe.own_levels else settings.normalise,
    )


def first_augmentation(model: Model) -> Mapping[str, Any] | None:
    """How windows were varied when the model first learned, as plain values; None: not at all, or nobody knows."""
    was = model.provenance
    found: Mapping[str, Any] | None = was.get("varied", was.get("settings", {}).get("augmentation"))
    return found


def _as_first_varied(model: Model) -> Augmentation | None:
    """Old ground is varied as it was first: it is shown again, not taught in another way."""
    found = first_augmentation(model)
    if found is None:
        return None
    # Another version of gimseg may have varied in ways that this one does not know.
    known = {item.name for item in fields(Augmentation)}
    return settings_from({"augmentation": {name: found[name] for name in known & set(found)}}).augmentation


def _taught(
    model: Model, corrections: Sequence[Correction], again: tuple[Survey, ...], also: str, settings: Settings
) -> Replay:
    """Ground without labels, where the old model's answer is kept."""
    free = [
        scene
        for number, correction in enumerate(corrections)
        for scene in _unlabelled(correction, model, settings, seed=settings.seed + number)
    ]
    surveys = [survey(scene) for scene in in_memory(free, zoomed=True)]
    everywhere = tuple(replace(item, labelled=np.ones_like(item.labelled)) for item in surveys)
    why = "the model keeps no windows of its training and no datasets were given"
    if not everywhere:
        note = (
            f"{why}, and the rasters have no ground without labels: nothing guards against forgetting. Give the "
            "original datasets with --replay"
        )
        return Replay(again, f"nothing replayed{also}", notes=(note,))
    note = (
        f"{why}: its answers are kept on {len(everywhere)} windows without labels instead. What it knew of other "
        "places is not guarded; give the original datasets with --replay"
    )
    return Replay((*everywhere, *again), f"the old answers kept on unlabelled ground{also}", True, notes=(note,))


def _unlabelled(correction: Correction, model: Model, settings: Settings, seed: int) -> list[LabelledScene]:
    """Windows of the rasters, away from all that was drawn."""
    rng, found = np.random.default_rng(seed), []
    for scene in open_rasters(correction, model.recipe):
        free = _free_cells(scene, settings.window)
        places = rng.permutation(np.argwhere(free))[: _TAUGHT * _TRIES] * settings.window
        parts = (_window_at(scene, row, col, settings.window) for row, col in places.tolist())
        found += list(islice((part for part in parts if _is_mostly_valid(part)), _TAUGHT))
    return found


def _free_cells(scene: LabelledScene, side: int) -> np.ndarray:
    """Squares of `side` px that nothing was drawn near, bool (cells, cells)."""
    rows, cols = scene.shape
    free = np.ones((-(-rows // side), -(-cols // side)), bool)
    for part in drawn_parts(scene, margin=side // 2):
        down, across = (slice(axis.start // side, -(-axis.stop // side)) for axis in part)
        free[down, across] = False
    return free


def _window_at(scene: LabelledScene, row: int, col: int, side: int) -> LabelledScene:
    """A window without labels."""
    rows, cols = scene.shape
    part = scene.crop((slice(row, min(row + side, rows)), slice(col, min(col + side, cols))))
    return replace(part, drawing=None, truth=(), truth_views=(), areas={})


def _is_mostly_valid(scene: LabelledScene) -> bool:
    return bool(scene.view.read_alone().valid.mean() >= _LEAST_VALID)
