"""The verbs of the loop by the names of corrections: check, train, list."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gimseg.correction.checking import Checked, check_correction, fix_drawing
from gimseg.correction.grounds import open_rasters
from gimseg.correction.learning import LEARNING, Learned, learn
from gimseg.correction.rounds import Correction, Project, check_id, table_of
from gimseg.datasets import Dataset, Datasets
from gimseg.deployments import BUILTIN
from gimseg.errors import CorrectionError
from gimseg.models import Model
from gimseg.progress import Progress, silent
from gimseg.settings import Settings

Folder = str | os.PathLike[str]


def check(
    correction: str | Dataset, *, project: Folder = ".", model: Folder | None = None, fix: bool = False
) -> Checked:
    """Look for everything in a correction that would mislead a training, and count what it labels.

    Args:
        correction: its name, or a Dataset that is to be one: nothing of it is written.
        project: folder that holds ``corrections/``.
        model: that is corrected; None: the deployed one, or that which the correction names.
        fix: mend first what can be mended without a guess; see
            :func:`gimseg.correction.checking.fix_drawing`.

    Raises:
        CorrectionError: no such correction, or a Dataset is to be mended.
        GimsegError: a file cannot be read.
    """
    home = Project(Path(project))
    chosen = home.correction(correction) if isinstance(correction, str) else as_correction(correction, home, model)
    loaded = Model.load(model or home.deployed() or chosen.parent)
    mended = _mend(chosen, loaded) if fix else None
    return replace(check_correction(chosen, loaded), mended=mended)


def _mend(correction: Correction, model: Model) -> int:
    if correction.truth is not None:
        raise CorrectionError(
            f"correction {correction.id!r} is a Dataset, whose files are not changed: mend them in QGIS (Fix "
            "geometries)"
        )
    view, crs = open_rasters(correction, model.recipe)[0].view, correction.opening.vector_crs
    return fix_drawing(correction.gpkg, view, model.recipe.legend, vector_crs=crs)


def train(
    *corrections: str | Dataset,
    project: Folder = ".",
    model: Folder | None = None,
    replay: Dataset | Datasets | None = None,
    settings: Settings = LEARNING,
    progress: Progress = silent,
    **options: Any,
) -> Learned:
    """Retrain the deployed model on corrections; see :func:`gimseg.correction.learning.learn`.

    Args:
        *corrections: names, or Datasets: a raster and its right boundaries are a
            correction too, named like the Dataset's tag. The model is left in the folder of the first.
        project: folder that holds ``corrections/``.
        model: that is retrained; None: the deployed one, or that which the first corrects.
        replay: the model's original datasets; None: the windows that it keeps.
        settings: rates, steps and so on.
        progress: told after each step.
        **options: ``device``, ``restart``.

    Raises:
        CorrectionError: no such correction, or one that would mislead the training.
        GimsegError: a file cannot be read, or does not fit the model.

    Example::

        from gimseg import Dataset, correct

        bad = Dataset(tag="bad_AoI", spatial_resolution=0.2, image_paths=["bad_AoI.tif"],
                      mask_paths=["bad_AoI_ground_truth.shp"])
        correct.train(bad)
    """
    if not corrections:
        raise CorrectionError("no correction was named: give one at least, or a Dataset")
    home = Project(Path(project))
    named = [one if isinstance(one, str) else record(one, home, model).id for one in corrections]
    repeated = sorted({id for id in named if named.count(id) > 1})
    if repeated:
        raise CorrectionError(f"correction {repeated[0]!r} is named twice: once is enough")
    again = Datasets((replay,)) if isinstance(replay, Dataset) else replay
    rounds = [home.correction(id) for id in named]
    return learn(rounds, model=model, replay=again, settings=settings, progress=progress, **options)


def record(dataset: Dataset, project: Project, model: Folder | None = None) -> Correction:
    """Make a Dataset a correction of a project, named like its tag; one that is there already is brought up to date.

    Raises:
        CorrectionError: its tag names no folder, a correction that was drawn, or one that was accepted with other
            files.
    """
    correction = as_correction(dataset, project, model)
    deployment = project.deployment()
    if deployment is not None and correction.id in deployment.ids:
        known = project.correction(correction.id)
        if known.text() != correction.text():
            raise CorrectionError(
                f"correction {correction.id!r} was accepted with other files or settings, and later trainings replay "
                "what it was: give the dataset another tag"
            )
        return known
    correction.folder.mkdir(parents=True, exist_ok=True)
    correction.write()
    return correction


def as_correction(dataset: Dataset, project: Project, model: Folder | None = None) -> Correction:
    """The correction that a Dataset is, or would be; nothing is written.

    Raises:
        CorrectionError: its tag names no folder, or a correction that was drawn.
    """
    folder = project.rounds / check_id(dataset.tag)
    known = project.correction(dataset.tag) if (folder / "correction.toml").exists() else None
    if known is not None and known.truth is None:
        raise CorrectionError(f"correction {dataset.tag!r} was drawn in {known.gpkg}: give the dataset another tag")
    return Correction(
        folder=folder,
        parent=known.parent if known else str(model or project.deployed() or BUILTIN),
        rasters=dataset.images,
        truth=table_of(dataset),
        started=known.started if known else datetime.now(UTC).isoformat(timespec="seconds"),
    )
