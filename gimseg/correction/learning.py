"""Corrections to a model: learn what was drawn, and forget nothing.

Training begins with the weights of the deployed model. Half of every batch shows what was
corrected, the other half what was learned before: the original datasets, or the windows
that the model keeps, and all corrections that were accepted earlier. Where none of the
former is to be had, the old model's own answer is kept on ground without labels.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from gimseg import __version__
from gimseg.correction.checking import check_correction
from gimseg.correction.grounds import Opened, drawing_key, opened_once, pin_ground, training_window
from gimseg.correction.labelling import write_labels
from gimseg.correction.replay import HalfAndHalf, Replay, corrected_ground, first_augmentation, open_replay
from gimseg.correction.rounds import Correction
from gimseg.datasets import Datasets
from gimseg.deployments import BUILTIN
from gimseg.errors import CorrectionError, GimsegError
from gimseg.exemplars import EXEMPLARS, TEST, write_exemplars, write_test_exemplars
from gimseg.models import Model, find_model
from gimseg.progress import Progress, silent
from gimseg.recipes import Recipe
from gimseg.sampling import Survey, WindowSampler
from gimseg.settings import Settings
from gimseg.training import TrainingWindows, fingerprints, fit_network, open_work, seed_everything
from gimseg.training_ground import Ground

LEARNING = Settings(
    loss="ce + focal_tversky",
    optimiser="muon",
    learning_rate=1.5e-3,
    weight_decay=0.01,
    averaging=0.95,
    epochs=4,
    windows_per_epoch=160,
    frozen_statistics=True,
    gradient_clip=5.0,
    old_share=None,
)
"""How corrections are learned, unless something else is said."""

SHARE, SHARE_OF_FEW = 0.2, 0.75
"""Of the old weights in the new ones, where nothing is said of it: of areas, and where few pixels are labelled."""


@dataclass(frozen=True)
class Learned:
    """What came of learning corrections.

    Args:
        correction: that holds the model.
        model: the new model.
        notes: what a person should know.
        before: it was learned before; only the share of the old weights is another one.
    """

    correction: Correction
    model: Model
    notes: tuple[str, ...] = ()
    before: bool = False

    def text(self) -> str:
        """Lines for people."""
        said = self.model.provenance
        share = f"{said['settings']['old_share']:g} of the old weights, " if self.before else ""
        learned = f"learned {', '.join(said['learned'])} {'before, ' * self.before}in {said['training_seconds']} s"
        head = f"{self.correction.model}: {share}{learned}; {said['replay']}"
        return "\n".join([head, *(f"note: {note}" for note in self.notes)])


def learn(
    corrections: Sequence[Correction],
    *,
    model: str | os.PathLike[str] | None = None,
    replay: Datasets | None = None,
    settings: Settings = LEARNING,
    device: str = "auto",
    restart: bool = False,
    progress: Progress = silent,
) -> Learned:
    """Retrain a model on corrections and leave the new one in the folder of the first.

    The deployed model is not touched. A training that was killed goes on from its last
    epoch when it is started again; edits in between start it anew. The weights that are left lie
    between those of the old model and those that were learned: see :func:`between`. Where
    nothing but their share is another one than before, nothing is learned again.

    Args:
        corrections: of one project.
        model: that is retrained; None: the deployed one, or that which the first corrects.
        replay: the model's original datasets; None: the windows that it keeps.
        settings: rates, steps and so on; network and window are those of the model, and without an ``old_share``
            it is as :func:`usual_share` says.
        device: ``auto``, ``cpu``, ``cuda``.
        restart: throw away the state of an earlier training, and learn again in any case.
        progress: told after each step.

    Raises:
        CorrectionError: the first correction is accepted already, or drawings that would mislead the training.
        GimsegError: a file cannot be read, or does not fit the model.
    """
    first = corrections[0]
    _refuse_accepted(first)
    parent = Model.load(model or first.project.deployed() or first.parent)
    settings = replace(settings, window=training_window(parent))
    # What the drawings hold is told first: an edit after that is met by the next training.
    lesson = Lesson.of(parent, corrections, replay, settings)
    opened = opened_once()
    labelled = sum(_check(correction, parent, opened) for correction in corrections)
    if settings.old_share is None:
        lesson = replace(lesson, settings=replace(settings, old_share=usual_share(labelled, settings.window)))
    work = first.folder / "model.training"
    lesson.open(work, restart=restart)
    before = None if restart else lesson.learned_in(first.model)
    if before is not None:
        return _at_another_share(before, lesson, corrections, work, opened)
    seed_everything(lesson.settings.seed, verbose=False)
    pin_ground((*lesson.earlier, *corrections), parent, opened)
    corrected = corrected_ground(corrections, parent, progress, opened)
    shown = open_replay(parent, corrections, lesson.earlier, replay, lesson.settings, progress, opened)
    windows = CorrectedWindows(parent.recipe, corrected, shown, lesson.settings)
    teacher = parent.network if shown.taught else None
    fit = fit_network(copy.deepcopy(parent.network), windows, work, device, progress, teacher)
    assert lesson.settings.old_share is not None
    network = between(parent.network, fit.best_network.cpu().float(), lesson.settings.old_share).eval()
    new = Model(network, parent.recipe, parent.architecture, lesson.provenance(shown, fit.elapsed_s))
    new.save(work / "model", overwrite=True)
    _keep_exemplars(work / "model", parent, shown, lesson.settings, progress)
    write_labels(corrections, parent.recipe, opened)
    _put_in_place(work, first)
    return Learned(first, Model.load(first.model), (*shown.notes, *lesson.notes))


def _at_another_share(
    known: Model, lesson: Lesson, corrections: Sequence[Correction], work: Path, opened: Opened
) -> Learned:
    """What was learned before, with more or less of the old weights."""
    first, said = corrections[0], known.provenance
    had, share = said["settings"]["old_share"], lesson.settings.old_share
    # The old weights' share in `known` is `had` already; a smaller one is found beyond it.
    network = between(lesson.parent.network, known.network, (share - had) / (1 - had)).eval()
    told = {
        **said,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {**said["settings"], "old_share": share},
    }
    shutil.rmtree(work / "model", ignore_errors=True)
    # With the windows that it keeps.
    shutil.copytree(first.model, work / "model")
    Model(network, known.recipe, known.architecture, told).save(work / "model", overwrite=True)
    write_labels(corrections, lesson.parent.recipe, opened)
    _put_in_place(work, first)
    return Learned(first, Model.load(first.model), tuple(said["unguarded"]), before=True)


def usual_share(labelled: int, window: int) -> float:
    """How much of the old weights is kept where nothing is said of it.

    Few labelled pixels, as clicks are, are learned by heart by weights that go far, and more is forgotten
    for them: there the new weights stay nearer to the old ones.

    Args:
        labelled: pixels, of all corrections that are learned together.
        window: side of the training windows, px; as many pixels as one holds are no longer few.

    Example:
        >>> usual_share(200, 256), usual_share(300**2, 256)
        (0.75, 0.2)
    """
    return SHARE_OF_FEW if labelled < window**2 else SHARE


def between(old: torch.nn.Module, new: torch.nn.Module, share: float) -> torch.nn.Module:
    """A network whose weights lie between those of two others: `share` of the old one's, the rest of the new one's.

    The new one began as the old one, and it did not go far: between them lie networks that know
    some of what was forgotten again, and still most of what was learned.

    Args:
        old: the network that training began with.
        new: what it became; it is not changed.
        share: 0 to 1; below 0, beyond the new one.

    Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv 2109.01903.

    Example:
        >>> old, new = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        >>> _ = old.weight.data.fill_(1), new.weight.data.fill_(3)
        >>> between(old, new, 0.25).weight.item()
        2.5
    """
    mixed, before = copy.deepcopy(new), old.state_dict()
    mixed.load_state_dict(
        {
            name: after.lerp(before[name].to(after), share) if after.is_floating_point() else after
            for name, after in new.state_dict().items()
        }
    )
    return mixed


class CorrectedWindows(TrainingWindows):
    """Windows of which half show what was corrected, and half what was learned before."""

    def __init__(self, recipe: Recipe, corrected: tuple[Survey, ...], replay: Replay, settings: Settings) -> None:
        # The recipe's window is that of prediction, which may be larger.
        small = replace(recipe, window=settings.window, halo=0)
        super().__init__(small, Ground((*corrected, *replay.surveys), ()), settings)
        first, *second = (
            WindowSampler(surveys, settings.window, settings.object_share, settings.balance)
            for surveys in (corrected, replay.surveys)
            if surveys
        )
        self.sampler = HalfAndHalf(first, second[0]) if second else first
        self.augmentations = (settings.augmentation, replay.augmentation or settings.augmentation)


@dataclass(frozen=True)
class Lesson:
    """What is learned, by which model, beside what.

    Args:
        parent: the model.
        keys: of each correction that is learned, by its id: see :func:`gimseg.correction.grounds.drawing_key`.
        earlier: what the model has learned before.
        earlier_keys: of these, likewise.
        replay: the model's original datasets; None: not given.
        settings: of the training.
        project: folder of the project.
        notes: what a person should know.
    """

    parent: Model
    keys: Mapping[str, str]
    earlier: tuple[Correction, ...]
    earlier_keys: Mapping[str, str]
    replay: Datasets | None
    settings: Settings
    project: Path
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, parent: Model, corrections: Sequence[Correction], replay: Datasets | None, settings: Settings
    ) -> Lesson:
        """Find out what was learned before, and what all of it holds now."""
        project = corrections[0].project
        keys, earlier, gone = {}, [], []
        for correction in corrections:
            keys[correction.id] = drawing_key(correction)
        for id in parent.provenance.get("corrections", ()):
            try:
                earlier += [project.correction(id)] if id not in keys else []
            except CorrectionError:
                gone.append(f"the model has learned correction {id!r}, which is gone: it is not shown to it again")
        return cls(
            parent=parent,
            keys=keys,
            earlier=tuple(earlier),
            earlier_keys={item.id: drawing_key(item) for item in earlier},
            replay=replay,
            settings=settings,
            project=project.folder,
            notes=tuple(gone),
        )

    def open(self, work: Path, *, restart: bool = False) -> None:
        """Make the folder of the training's state, or find it.

        Raises:
            ResumeError: it is of a training with other settings or datasets.
        """
        identity = self.identity
        # What was drawn since makes another training of it: the state of the old one is of no use any more.
        drawn = ("parent", "drawings", "earlier")
        before = _read_identity(work)
        edited = bool(before) and any(before.get(name) != identity[name] for name in drawn)
        open_work(work, identity, restart=restart or edited)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes the training what it is, as plain values: where all of it is alike, so are the weights."""
        return {
            "parent": self.parent.fingerprint(),
            "drawings": dict(self.keys),
            "earlier": dict(self.earlier_keys),
            "data": self._data,
            # How much of the old weights is kept does not matter until all is learned.
            "settings": asdict(replace(self.settings, old_share=0.0)),
        }

    @property
    def key(self) -> str:
        """Changes with the identity: 16 hexadecimal digits."""
        told = json.dumps([__version__, self.identity], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def learned_in(self, folder: Path) -> Model | None:
        """The model of a folder, if this is what it learned."""
        try:
            found = Model.load(folder)
        except GimsegError:
            return None
        return found if found.provenance.get("lesson") == self.key else None

    @cached_property
    def _data(self) -> dict[str, str]:
        return {} if self.replay is None else fingerprints(self.replay)

    def provenance(self, shown: Replay, seconds: float) -> dict[str, Any]:
        """Where the new model comes from, as plain values."""
        was = self.parent.provenance
        divided = was.get("divided", was.get("settings", {}))
        return {
            "gimseg": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **({"name": was["name"]} if "name" in was else {}),
            "parent": {"folder": self._parent_folder(), "fingerprint": self.parent.fingerprint()},
            "learned": list(self.keys),
            "corrections": list(dict.fromkeys([*was.get("corrections", ()), *self.keys])),
            "drawings": {**self.earlier_keys, **self.keys},
            "replay": shown.told,
            "unguarded": [*shown.notes, *self.notes],
            # Without the datasets nothing is known of them but what the old model says.
            "data": self._data if self.replay is not None else dict(was.get("data", {})),
            "divided": {name: divided[name] for name in ("seed", "val_share") if name in divided},
            "varied": first_augmentation(self.parent),
            "lesson": self.key,
            "settings": json.loads(json.dumps(asdict(self.settings), default=str)),
            "training_seconds": round(seconds),
        }

    def _parent_folder(self) -> str:
        """Relative to the project where it lies in it."""
        folder = Path(os.path.abspath(self.parent.folder or ""))
        if folder == find_model(BUILTIN):
            return BUILTIN
        root = Path(os.path.abspath(self.project))
        return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.as_posix()


def _read_identity(work: Path) -> dict[str, Any]:
    try:
        found = json.loads((work / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_accepted(correction: Correction) -> None:
    deployment = correction.project.deployment()
    if deployment is not None and correction.id in deployment.ids:
        raise CorrectionError(
            f"correction {correction.id!r} was accepted, and its model may be the deployed one: start another "
            "correction, or roll this one back first"
        )


def _check(correction: Correction, model: Model, opened: Opened) -> int:
    """Refuse what would mislead the training; how many pixels are labelled."""
    checked = check_correction(correction, model, opened)
    fatal = [finding.text() for finding in checked.findings if finding.fatal]
    if fatal:
        more = f" (and {len(fatal) - 3} more)" if len(fatal) > 3 else ""
        raise CorrectionError(
            f"correction {correction.id!r} would mislead the training: {'; '.join(fatal[:3])}{more}. "
            f"See gimseg correct check {correction.id}"
        )
    return sum(checked.pixels.values())


def _keep_exemplars(folder: Path, parent: Model, shown: Replay, settings: Settings, progress: Progress) -> None:
    """The windows that the parent keeps; where it has none, those of the datasets that were given."""
    kept = (parent.folder or Path()) / EXEMPLARS
    if parent.folder and kept.is_dir():
        shutil.copytree(kept, folder / EXEMPLARS, dirs_exist_ok=True)
    elif shown.from_datasets:
        write_exemplars(folder / EXEMPLARS, shown.surveys, settings, progress)
    if shown.held_out and not (folder / TEST).is_dir():
        write_test_exemplars(folder / TEST, shown.held_out, settings)


def _put_in_place(work: Path, correction: Correction) -> None:
    """The new model under its name; what was said of an older one goes first."""
    for stale in (correction.metrics, correction.report, correction.before, correction.after, correction.diff):
        stale.unlink(missing_ok=True)
    if correction.model.exists():
        os.replace(correction.model, work / "older")
    os.replace(work / "model", correction.model)
    shutil.rmtree(work)
