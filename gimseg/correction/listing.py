"""The rounds of a project, for people: what became of each, and what it was worth."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from gimseg.correction.rounds import Correction, Project
from gimseg.deployments import BUILTIN, Deployment
from gimseg.outputs import path_from_here

_IOU = "IoU"
_COLUMNS = ("", "correction", "started", "state", "held-out IoU", "verdict", "model")


@dataclass(frozen=True)
class Round:
    """One line of the list.

    Args:
        id: of the correction.
        started: when, ISO 8601.
        state: ``drawn``, ``trained``, ``reported`` or ``accepted``; of a correction that was learned together
            with another one, which has the model, that too.
        deployed: its model is the project's.
        before: score on the ground that was held out of it; None: not scored yet.
        after: of its model.
        passed: what the gate said; None: nothing yet.
        parent: model that it corrects.
        measure: what the scores are, where they are no IoU: ``"share right"``.
    """

    id: str
    started: str
    state: str
    deployed: bool = False
    before: float | None = None
    after: float | None = None
    passed: bool | None = None
    parent: str = ""
    measure: str = ""

    @classmethod
    def of(cls, correction: Correction, deployment: Deployment | None, first: Correction | None = None) -> Round:
        """From the files of a correction, and of the one that it was learned together with."""
        accepted = deployment is not None and correction.id in deployment.ids
        held = correction if first is None else first
        states = {"accepted": accepted, "reported": held.metrics.exists(), "trained": held.model.exists()}
        state = next((name for name, reached in states.items() if reached), "drawn")
        state += "" if first is None else f" with {first.id}"
        last = deployment is not None and deployment.model == f"{correction.id}/{correction.model.name}"
        before, after, measure, passed = _scores(correction.metrics)
        return cls(correction.id, correction.started, state, last, before, after, passed, correction.parent, measure)

    @property
    def line(self) -> tuple[str, ...]:
        """As people read it."""
        scores = "" if self.before is None or self.after is None else f"{self.before:.3f} → {self.after:.3f}"
        scores += "" if self.measure in ("", _IOU) else f" ({self.measure})"
        verdict = {None: "", True: "better", False: "held back"}[self.passed]
        when = self.started.replace("T", " ")[:16]
        return ("*" if self.deployed else "", self.id, when, self.state, scores, verdict, f"from {self.parent}")


@dataclass(frozen=True)
class Listing:
    """All rounds of a project.

    Args:
        rounds: by the time of their start.
        deployed: the model that the project works with; None: nothing was accepted yet.
    """

    rounds: tuple[Round, ...]
    deployed: str | None

    def text(self) -> str:
        """A table for people, the deployed round marked with a star.

        Example:
            >>> print(Listing((), None).text())
            no corrections yet: begin one with gimseg correct start
        """
        if not self.rounds:
            return "no corrections yet: begin one with gimseg correct start"
        table = [_COLUMNS, *(item.line for item in self.rounds)]
        wide = [max(len(row[column]) for row in table) for column in range(len(_COLUMNS))]
        lines = ["  ".join(cell.ljust(size) for cell, size in zip(row, wide, strict=True)).rstrip() for row in table]
        return "\n".join([*lines, self._deployed_text()])

    def _deployed_text(self) -> str:
        if self.deployed is None:
            return "nothing accepted yet"
        return f"deployed model: {self.deployed if self.deployed == BUILTIN else path_from_here(self.deployed)}"


def listed(project: str | os.PathLike[str] = ".") -> Listing:
    """The corrections of a project, with their states and scores.

    Args:
        project: folder that holds ``corrections/``.

    Raises:
        CorrectionError: a file of it is damaged.
    """
    home = Project(Path(project))
    corrections, deployment = home.corrections(), home.deployment()
    # One that has a model of its own was learned again since.
    together = {id: one for one in corrections for id in one.learned[1:]}
    firsts = [None if item.model.exists() else together.get(item.id) for item in corrections]
    rounds = [Round.of(item, deployment, first) for item, first in zip(corrections, firsts, strict=True)]
    return Listing(tuple(rounds), home.deployed())


def _scores(metrics: Path) -> tuple[float | None, float | None, str, bool | None]:
    """Before, after, what was measured, and what the gate said; None what a report does not hold."""
    try:
        told = json.loads(metrics.read_text(encoding="utf-8"))
        passed, held = bool(told["verdict"]["passed"]), told["held_out"]
        if not held:
            return None, None, "", passed
        before, after = (held["deployed_threshold"][when]["score"] for when in ("before", "after"))
        if before is None or after is None:
            return None, None, "", passed
        return float(before), float(after), str(held.get("measure", _IOU)), passed
    except (OSError, ValueError, KeyError, TypeError):
        return None, None, "", None
