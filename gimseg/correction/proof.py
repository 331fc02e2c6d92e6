"""Scores of a correction before and after, and what the gate says of them, kept in ``metrics.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gimseg.correction.gate import Scored, Verdict, compare_models, judge
from gimseg.correction.grounds import drawing_key, open_ground
from gimseg.correction.rounds import Correction
from gimseg.datasets import Dataset, Datasets, read_datasets
from gimseg.deployments import BUILTIN
from gimseg.errors import CorrectionError
from gimseg.exemplars import TEST, read_exemplars
from gimseg.inference import Predictor
from gimseg.labelled_scenes import LabelledScene
from gimseg.models import Model
from gimseg.outputs import write_text
from gimseg.progress import Progress, silent
from gimseg.radiometry import levelled_by_raster
from gimseg.training_state import declared, fingerprints

HELD, EARLIER, OLD = "corrected, held out", "earlier corrections, held out", "old test set"
"""Grounds that both models are scored on, as people read of them."""


@dataclass(frozen=True, eq=False)
class Models:
    """The model that is corrected and the one that learned it, ready to predict.

    Args:
        before: the old one.
        after: the new one.
        learned: the corrections that it learned.
        earlier: corrections that the old one had learned already, of those that are still there.
    """

    before: Predictor
    after: Predictor
    learned: tuple[Correction, ...]
    earlier: tuple[Correction, ...] = ()

    @classmethod
    def of(cls, correction: Correction, device: str = "auto") -> Models:
        """Both models of a correction.

        Raises:
            CorrectionError: nothing was learned yet, or the old model is not what it was.
            ModelError: a model cannot be loaded.
        """
        if not correction.model.is_dir():
            raise CorrectionError(_nothing_learned(correction))
        after = Predictor(correction.model, device=device)
        said = after.model.provenance
        before = Predictor(parent_of(after.model, correction), device=device)
        parent = said.get("parent")
        expected = parent.get("fingerprint", before.fingerprint) if isinstance(parent, Mapping) else before.fingerprint
        if before.fingerprint != expected:
            raise CorrectionError(
                f"{before.model.folder} is another model than the one that {correction.model} was trained from "
                f"({before.fingerprint}, needed is {expected}): train the correction again"
            )
        learned = said.get("learned", [correction.id])
        # What is gone was told when the new model was trained.
        there = {each.id: each for each in correction.project.corrections()}
        earlier = [there[id] for id in said.get("corrections", ()) if id in there and id not in learned]
        return cls(before, after, tuple(correction.project.correction(id) for id in learned), tuple(earlier))

    def identity(self) -> dict[str, Any]:
        """What tells them from others, wherever their folders are: plain values."""
        return {
            when: {"name": each.model.name, "fingerprint": each.fingerprint}
            for when, each in (("before", self.before), ("after", self.after))
        }


def _nothing_learned(correction: Correction) -> str:
    with_it = [each.id for each in correction.project.corrections() if correction.id in each.learned]
    if with_it:
        return (
            f"correction {correction.id!r} was learned together with {with_it[0]!r}, which has the model: name that one"
        )
    return f"correction {correction.id!r} has learned nothing yet: gimseg correct train {correction.id}"


def parent_of(model: Model, correction: Correction) -> str:
    """Folder of the model that a correction was trained from."""
    parent = model.provenance.get("parent")
    folder = parent.get("folder") if isinstance(parent, Mapping) else None
    if folder is None or folder == BUILTIN:
        return str(folder or correction.parent)
    return os.path.join(correction.project.folder, folder)


@dataclass(frozen=True, eq=False)
class Proof:
    """What is known of a correction.

    Args:
        held: scores on corrected ground that was held out; None where there is none.
        earlier: scores on ground that was held out of earlier corrections; None where there is none.
        old: scores on the frozen test set; None where there is none.
        verdict: what the gate says.
        key: changes with the drawings, the models and the test set.
        test: dataset file of the test set; None: what the old model keeps.
    """

    held: Scored | None
    earlier: Scored | None
    old: Scored | None
    verdict: Verdict
    key: dict[str, Any]
    test: str | None = None

    @property
    def grounds(self) -> dict[str, Scored | None]:
        """Scores by what the ground is called; that of earlier corrections only where there is any."""
        earlier = {} if self.earlier is None else {EARLIER: self.earlier}
        return {HELD: self.held, **earlier, OLD: self.old}

    def to_dict(self, model: Model) -> dict[str, Any]:
        """For JSON."""
        legend = model.recipe.legend
        return {
            **self.key,
            "test": self.test,
            "verdict": self.verdict.to_dict(),
            "held_out": None if self.held is None else self.held.to_dict(legend),
            "earlier_corrections": None if self.earlier is None else self.earlier.to_dict(legend),
            "old_test_set": None if self.old is None else self.old.to_dict(legend),
        }


def prove(
    correction: Correction,
    models: Models,
    test: str | os.PathLike[str] | None = None,
    *,
    progress: Progress = silent,
) -> Proof:
    """Score both models on ground that neither learned.

    Args:
        correction: that was learned.
        models: of it.
        test: dataset file whose ground of the split ``test`` (else ``val``) stands for what was learned
            before; None: the test windows that the old model keeps.
        progress: told how far the work is.

    Raises:
        GimsegError: a file cannot be read.
    """

    def score(scenes: Sequence[LabelledScene], split: str | None) -> Scored | None:
        return Scored.of(compare_models(scenes, models.before, models.after, split, progress=progress))

    held = score(_ground_of(models.learned, models), "val")
    earlier = score(_ground_of(models.earlier, models), "val")
    old = score(*_frozen(models, test))
    verdict = judge(held, old, earlier)
    # What the training already knew that it could not guard.
    more = tuple(models.after.model.provenance.get("unguarded", ()))
    verdict = replace(verdict, unguarded=(*verdict.unguarded, *more))
    given = None if test is None else os.path.abspath(test)
    return Proof(held, earlier, old, verdict, proof_key(correction, models, test), given)


def _ground_of(corrections: Sequence[Correction], models: Models) -> list[LabelledScene]:
    return [scene for each in corrections for scene in open_ground(each, models.after.model)]


def proof_key(correction: Correction, models: Models, test: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What scores depend on, by content: plain values.

    Raises:
        GimsegError: a file of the test set, or of a correction, cannot be read.
    """
    return {
        "correction": correction.id,
        "drawing": {each.id: drawing_key(each) for each in models.learned},
        "earlier": {each.id: drawing_key(each) for each in models.earlier},
        "models": models.identity(),
        "test_set": None if test is None else _key_of_datasets(read_datasets(test)),
    }


def _key_of_datasets(datasets: Datasets) -> dict[str, Any]:
    return {"declared": declared(datasets), "files": fingerprints(datasets)}


def tested_on(correction: Correction) -> str | None:
    """Dataset file of the test set that the last proof of a correction was asked on; None: what the old model keeps.

    Raises:
        CorrectionError: ``metrics.json`` is damaged.
    """
    told = _read_metrics(correction)
    return None if told is None else told.get("test")


def read_proof(correction: Correction, models: Models, test: str | os.PathLike[str] | None = None) -> Verdict | None:
    """What the gate said of these very drawings, models and test set; None where nobody asked it.

    Args:
        correction: that was learned.
        models: of it.
        test: as in :func:`prove`.

    Raises:
        CorrectionError: ``metrics.json`` is damaged.
        GimsegError: a file of the test set cannot be read.
    """
    told = _read_metrics(correction)
    if told is None:
        return None
    key = json.loads(json.dumps(proof_key(correction, models, test), default=str))
    return Verdict.from_dict(told["verdict"]) if {name: told.get(name) for name in key} == key else None


def _read_metrics(correction: Correction) -> dict[str, Any] | None:
    try:
        told = json.loads(correction.metrics.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CorrectionError(f"{correction.metrics} cannot be read ({error}): write the report again") from error
    if not isinstance(told, dict) or "verdict" not in told:
        raise CorrectionError(f"{correction.metrics} holds no verdict: write the report again")
    return told


def write_metrics(correction: Correction, told: dict[str, Any]) -> None:
    """Write ``metrics.json``, whole.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(correction.metrics, json.dumps(told, indent=1, allow_nan=False) + "\n")


def _frozen(models: Models, test: str | os.PathLike[str] | None) -> tuple[Sequence[LabelledScene], str | None]:
    """Ground of what was learned before, and which split of it."""
    recipe = models.before.model.recipe
    if test is not None:
        scenes = _as_seen(read_datasets(test), models).scenes()
        scenes = levelled_by_raster(scenes) if recipe.own_levels else scenes
        split = "test" if any("test" in scene.splits for scene in scenes) else "val"
        return [scene for scene in scenes if split in scene.splits], split
    # Where the old model keeps none, the new one may: of datasets that were given to its training.
    for predictor in (models.before, models.after):
        kept = read_exemplars((predictor.model.folder or Path()) / TEST, recipe)
        if kept is not None:
            return kept.scenes(), None
    return (), None


def _as_seen(datasets: Dataset | Datasets, models: Models) -> Datasets:
    given = datasets if isinstance(datasets, Datasets) else Datasets((datasets,))
    recipe = models.before.model.recipe
    return given.at_resolution(recipe.resolution).with_bands(recipe.bands)
