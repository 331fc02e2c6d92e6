"""A corrected model takes the place of the old one, with the predictions that were delivered; and back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gimseg.correction.areas import opening_of, write_areas
from gimseg.correction.deliveries import MADE, Delivered, deliveries_of
from gimseg.correction.gate import Verdict
from gimseg.correction.grounds import drawn_parts, open_rasters
from gimseg.correction.journal import Move, alone, change, kept
from gimseg.correction.proof import Models, prove, read_proof, tested_on, write_metrics
from gimseg.correction.rounds import Correction, Project
from gimseg.delivery import Delivery
from gimseg.deployments import PROJECT_FILE, Accepted, Deployment
from gimseg.errors import CorrectionError, OutputError
from gimseg.models import find_model
from gimseg.outputs import path_from_here
from gimseg.progress import Progress, format_duration, silent

_RECORD, _STAGE, _SAVED, _READY = "accepted.json", ".accepting", "replaced", ".gimseg-ready"


@dataclass(frozen=True)
class Acceptance:
    """What became of a correction.

    Args:
        id: of the correction.
        model: that the project works with now.
        verdict: of the gate; None where it was not asked.
        deliveries: what was predicted again, one for each raster; none where nothing was delivered before.
        files: that changed.
    """

    id: str
    model: str
    verdict: Verdict | None = None
    deliveries: tuple[Delivery, ...] = ()
    files: tuple[Path, ...] = ()

    def text(self) -> str:
        """Lines for people."""
        lines = [f"{self.id}: the project works with {self.model} now"]
        if self.verdict is not None:
            lines += [self.verdict.text()] if self.verdict.passed else [f"forced, although {self.verdict.text()}"]
        if self.deliveries:
            seconds = sum(each.prediction.seconds for each in self.deliveries)
            lines.append(f"predicted again in {format_duration(seconds)}")
        if self.files:
            lines.append(f"updated {', '.join(map(path_from_here, self.files))}")
        elif self.verdict is not None:
            lines.append("no prediction was updated: name what was delivered with --segments, or predict with -m .")
        return "\n".join(lines)


def accept(
    id: str,
    *,
    project: str | os.PathLike[str] = ".",
    raster: str | os.PathLike[str] | None = None,
    segments: Sequence[str | os.PathLike[str]] = (),
    aoi: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
    everywhere: bool = False,
    force: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress = silent,
    **options: Any,
) -> Acceptance:
    """Make the model of a correction that of its project, and bring what was delivered up to it.

    Only windows that hold something of what was drawn are predicted again; there, mask
    and polygons are those of a full prediction. All files change together, the one that
    names the model last: a process that is killed leaves all as it was, or a change that
    the next command carries out.

    Args:
        id: of the correction.
        project: folder that holds ``corrections/``.
        raster: that was predicted; None: those that were drawn on.
        segments: mask and polygons that were delivered for them; none: those that the
            corrections name.
        aoi: predict again inside these polygons, instead of where something was drawn.
        test: dataset file of what was learned before, for the gate; None: that of the last
            report, else the test windows that the old model keeps.
        everywhere: predict the whole raster again; inside the polygons of `aoi` alone, if there are any.
        force: even though the gate holds the new model back, or it began with another
            model than the one that the project works with.
        overwrite: replace polygons that are not what their mask gives, too.
        device: see :class:`gimseg.inference.Predictor`.
        progress: told how far the work is.
        **options: as they were given to the prediction that is updated, see
            :func:`gimseg.delivery.deliver_each`.

    Raises:
        CorrectionError: the gate holds the model back, or there is nothing to accept.
        GimsegError: a file cannot be read, written or put together.
    """
    home = Project(Path(project))
    correction = home.correction(id)
    with alone(home.rounds):
        models = Models.of(correction, device)
        before = home.deployment()
        _check_lineage(correction, models, before, force)
        verdict = _ask_gate(correction, models, test, progress)
        if not verdict.passed and not force:
            told = verdict.text().replace("\n", "; ")
            raise CorrectionError(f"{told}. --force deploys it all the same")
        chosen = {"overwrite": overwrite, "device": device, "progress": progress, **options}
        again = [
            update.predict(correction, models, number, aoi=aoi, everywhere=everywhere, options=chosen)
            for number, update in enumerate(_updates(models, raster, segments))
        ]
        made = [each for each in again if each is not None]
        deployment = _deployed(correction, models, before)
        files = _put_in_place(correction, made, deployment)
    return Acceptance(id, deployment.model, verdict, tuple(each.delivery for each in made), files)


def rollback(id: str | None = None, *, project: str | os.PathLike[str] = ".", force: bool = False) -> Acceptance:
    """Undo the last acceptance: its model, and the files that it changed.

    Args:
        id: of the correction that was accepted last; None: that one.
        project: folder that holds ``corrections/``.
        force: even though a file was changed since.

    Raises:
        CorrectionError: nothing was accepted, another correction was accepted since, or
            a file was changed.
    """
    home = Project(Path(project))
    nothing = CorrectionError(f"nothing was accepted in {home.rounds}: there is nothing to undo")
    if not home.rounds.is_dir():
        raise nothing
    with alone(home.rounds):
        deployment = home.deployment()
        if deployment is None or not deployment.history:
            raise nothing
        last = deployment.history[-1].id
        if id is not None and id not in deployment.history[-1].ids:
            raise CorrectionError(f"{last} was accepted after {id}, or {id} never was: undo {last} first")
        correction = home.correction(last)
        record = _Record.read(correction)
        record.check_unchanged(force)
        moves = record.moves_back(correction)
        ready = _ready_folder(home.rounds)
        if record.project is None:
            moves.append(Move(home.rounds / PROJECT_FILE))
        else:
            (ready / PROJECT_FILE).write_text(record.project, encoding="utf-8")
            moves.append(Move(home.rounds / PROJECT_FILE, ready / PROJECT_FILE))
        sweep = [ready, correction.folder / _SAVED, *({record.folder / _READY} if record.files else ())]
        change(home.rounds, [*moves, Move(correction.folder / _RECORD)], sweep)
    now = home.deployment()
    model = now.model if now is not None else correction.parent
    return Acceptance(last, model, files=tuple(record.folder / name for name in record.files))


@dataclass(frozen=True)
class _Record:
    """What an acceptance changed: kept beside the correction, to undo it.

    Args:
        folder: of the files.
        files: name -> digest of the new file, None where there is none any more.
        saved: names of those that were there before.
        project: what ``project.json`` was; None: it was not there.
    """

    folder: Path
    files: dict[str, str | None]
    saved: tuple[str, ...]
    project: str | None

    @classmethod
    def read(cls, correction: Correction) -> _Record:
        """Of the last acceptance of a correction.

        Raises:
            CorrectionError: there is none, or it is damaged.
        """
        path, rounds = correction.folder / _RECORD, correction.project.rounds
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if not (told["project"] is None or isinstance(told["project"], str)):
                raise TypeError(f"project is {told['project']!r}")
            folder = Path(os.path.normpath(rounds / told["folder"]))
            return cls(folder, dict(told["files"]), tuple(told["saved"]), told["project"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorrectionError(f"{path} cannot be read ({error!r}): this acceptance cannot be undone") from error

    def text(self, rounds: Path) -> str:
        """As it is kept in a folder ``corrections``."""
        told = {"folder": kept(self.folder, rounds), "files": self.files, "saved": list(self.saved)}
        return json.dumps({**told, "project": self.project}, indent=1)

    def check_unchanged(self, force: bool) -> None:
        """Refuse to throw away what somebody did since."""
        changed = [name for name, digest in self.files.items() if _digest(self.folder / name) != digest]
        if changed and not force:
            raise CorrectionError(
                f"{', '.join(changed)} in {self.folder} changed since the correction was accepted: --force undoes it "
                "all the same, and loses that"
            )

    def moves_back(self, correction: Correction) -> list[Move]:
        """What restores the files."""
        if not self.files:
            return []
        gone = [name for name in self.saved if not (correction.folder / _SAVED / name).is_file()]
        if gone:
            raise CorrectionError(
                f"{', '.join(gone)} in {correction.folder / _SAVED} is gone, which was there before {correction.id} "
                "was accepted: that cannot be undone; deploy another model with gimseg correct accept"
            )
        ready, moves = _ready_folder(self.folder), []
        for name in self.files:
            if name in self.saved:
                _copy(correction.folder / _SAVED / name, ready / name)
            moves.append(Move(self.folder / name, ready / name if name in self.saved else None))
        return moves


def _check_lineage(correction: Correction, models: Models, before: Deployment | None, force: bool) -> None:
    """Refuse what would lose what was accepted before, or accepts it again."""
    if before is not None and correction.id in before.ids:
        raise CorrectionError(f"{correction.id} was accepted already: gimseg correct rollback undoes the last one")
    if before is None or force:
        return
    deployed = correction.project.deployed()
    began = models.before.model.folder
    if deployed is not None and began is not None and find_model(deployed).resolve() != began.resolve():
        raise CorrectionError(
            f"{correction.id} was trained from {began}, the project works with {deployed} since: train it again, or "
            "--force deploys it all the same and leaves out what was accepted in between"
        )


def _ask_gate(
    correction: Correction, models: Models, test: str | os.PathLike[str] | None, progress: Progress
) -> Verdict:
    """What the gate says, on the test set that the report was asked on if no other one is given."""
    test = test if test is not None else tested_on(correction)
    verdict = read_proof(correction, models, test)
    if verdict is None:
        proof = prove(correction, models, test, progress=progress)
        write_metrics(correction, proof.to_dict(models.after.model))
        verdict = proof.verdict
    return verdict


@dataclass(frozen=True)
class _Made:
    """What was predicted again for a raster.

    Args:
        delivered: the files that it replaces.
        folder: where it lies.
        delivery: what was done.
    """

    delivered: Delivered
    folder: Path
    delivery: Delivery


@dataclass(frozen=True)
class _Update:
    """A raster whose delivered prediction is brought up to the new model.

    Args:
        correction: that tells how it is opened.
        delivered: the files.
        is_drawn: it was drawn on; else it is another one, which was named.
    """

    correction: Correction
    delivered: Delivered
    is_drawn: bool

    def predict(
        self,
        accepted: Correction,
        models: Models,
        number: int,
        *,
        aoi: str | os.PathLike[str] | None,
        everywhere: bool,
        options: dict[str, Any],
    ) -> _Made | None:
        """Predict it again by the model of the accepted correction; None where nothing was drawn on it."""
        stage = accepted.folder / _STAGE / str(number)
        areas = None if everywhere else Path(aoi) if aoi else self._areas(models, stage)
        if areas is None and not everywhere:
            return None
        if not options["overwrite"]:
            self.delivered.check_ours()
        given = opening_of(self.correction) | {"aoi": aoi} | self.delivered.options(areas)
        delivery = self.delivered.predict(accepted.model, stage, given | options)
        return _Made(self.delivered, stage / MADE, delivery)

    def _areas(self, models: Models, stage: Path) -> Path | None:
        """Around all that was drawn on it, by any of the corrections; None where nothing was."""
        recipe = models.after.model.recipe
        scenes = [scene for each in models.learned for scene in open_rasters(each, recipe)]
        if self.is_drawn:
            scenes = [scene for scene in scenes if _is_same(scene.path, self.delivered.raster)]
            if not any(drawn_parts(scene, margin=1) for scene in scenes):
                return None
        stage.mkdir(parents=True, exist_ok=True)
        return write_areas(self.correction, scenes, stage / "areas.fgb")


def _updates(
    models: Models, raster: str | os.PathLike[str] | None, segments: Sequence[str | os.PathLike[str]]
) -> list[_Update]:
    """What was delivered for the rasters of all corrections that were learned, each file once.

    Raises:
        CorrectionError: what was delivered for which raster is not known, or it lies in several folders.
    """
    owners = {os.path.realpath(path): each for each in reversed(models.learned) for path in each.rasters}
    first = models.learned[0]
    if segments:
        named = [raster] if raster is not None else [path for each in models.learned for path in each.rasters]
        delivered = list(deliveries_of(list(dict.fromkeys(named)), segments))
    elif raster is not None and os.path.realpath(raster) not in owners:
        delivered = list(deliveries_of([raster], first.segments))
    else:
        delivered = [one for each in models.learned for one in deliveries_of(each.rasters, each.segments)]
        delivered = [one for one in delivered if raster is None or _is_same(one.raster, raster)]
    once = {os.path.realpath(one.mask): one for one in delivered}
    if len({os.path.dirname(path) for path in once}) > 1:
        raise CorrectionError(
            f"{', '.join(once)}: what is updated together lies in one folder; name files of one with --segments"
        )
    found = []
    for one in once.values():
        owner = owners.get(os.path.realpath(one.raster))
        found.append(_Update(owner or first, one, owner is not None))
    return found


def _is_same(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _deployed(correction: Correction, models: Models, before: Deployment | None) -> Deployment:
    model = f"{correction.id}/{correction.model.name}"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    history = before.history if before is not None else ()
    others = tuple(each.id for each in models.learned if each.id != correction.id)
    return Deployment(model, (*history, Accepted(correction.id, model, now, others)))


def _put_in_place(correction: Correction, made: Sequence[_Made], deployment: Deployment) -> tuple[Path, ...]:
    """Save what is there, and change it all together.

    Args:
        correction: whose model is deployed.
        made: what was predicted again.
        deployment: that is to be.
    """
    rounds = correction.project.rounds
    moves: list[Move] = []
    folder, files, saved = correction.folder, dict[str, str | None](), list[str]()
    aside = correction.folder / _SAVED
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    if made:
        folder = made[0].delivered.mask.absolute().parent
        ready = _ready_folder(folder)
        for each in made:
            new = sorted(path for path in each.folder.iterdir() if path.is_file())
            # A style that is there already may be a person's own.
            new = [path for path in new if path.suffix != ".qml" or not (folder / path.name).exists()]
            for path in new:
                _copy(path, ready / path.name)
                moves.append(Move(folder / path.name, ready / path.name))
                files[path.name] = _digest(path)
            stale = each.delivered.stale(set(files))
            moves += [Move(path) for path in stale]
            files |= {path.name: None for path in stale}
        for name in files:
            if (folder / name).exists():
                _copy(folder / name, aside / name)
                saved.append(name)
    before = rounds / PROJECT_FILE
    told = before.read_text(encoding="utf-8") if before.exists() else None
    record = _Record(folder, files, tuple(saved), told)
    own = _ready_folder(rounds)
    (own / _RECORD).write_text(record.text(rounds), encoding="utf-8")
    deployment.write(own)
    moves += [
        Move(correction.folder / _RECORD, own / _RECORD),
        Move(before, own / PROJECT_FILE),
    ]
    change(rounds, moves, [own, correction.folder / _STAGE, *([folder / _READY] if files else [])])
    return tuple(folder / name for name, digest in files.items() if digest is not None)


def _ready_folder(beside: Path) -> Path:
    """An empty hidden folder on the disk of the files beside it."""
    folder = beside / _READY
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
    except OSError as error:
        raise OutputError(f"cannot write in {beside} ({error.strerror}): nothing was changed") from error
    return folder


def _copy(source: Path, target: Path) -> None:
    """The same bytes under another name; no second copy of them where the disk allows."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _digest(path: Path) -> str | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
