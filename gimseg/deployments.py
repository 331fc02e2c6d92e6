"""The small file that names the model of a project, and how it came to it.

``corrections/project.json`` *is* the deployed model: it is replaced in one step, after
all that it names is in place. Paths in it are relative to its folder, so that a project
can be moved.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gimseg.errors import CorrectionError
from gimseg.outputs import write_text

CORRECTIONS, PROJECT_FILE = "corrections", "project.json"
BUILTIN = "builtin"


@dataclass(frozen=True)
class Accepted:
    """One correction that was accepted.

    Args:
        id: of the correction.
        model: what was deployed with it, as :attr:`Deployment.model`.
        accepted: when, ISO 8601.
        others: corrections that the model learned together with it.
    """

    id: str
    model: str
    accepted: str
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "others", tuple(self.others))

    @property
    def ids(self) -> tuple[str, ...]:
        """All corrections that were accepted with it."""
        return (self.id, *self.others)

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> Accepted:
        """From what :meth:`to_dict` gave.

        Raises:
            TypeError: it is something else.
        """
        found = cls(**table)
        if not all(isinstance(text, str) for text in (found.id, found.model, found.accepted, *found.others)):
            raise TypeError(f"{table} holds what is no text")
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is empty is left out."""
        return {name: value for name, value in asdict(self).items() if value != ()}


@dataclass(frozen=True)
class Deployment:
    """Which model a project works with.

    Args:
        model: a folder, relative to ``corrections/`` or absolute, or ``"builtin"``.
        history: what was accepted, the earliest first.

    Raises:
        CorrectionError: no model.

    Example:
        >>> Deployment("bad_aoi/model", (Accepted("bad_aoi", "bad_aoi/model", "2026-11-21T15:00:00+00:00"),)).ids
        ('bad_aoi',)
    """

    model: str
    history: tuple[Accepted, ...] = ()

    def __post_init__(self) -> None:
        if not self.model:
            raise CorrectionError(f"{PROJECT_FILE} names no model: give a folder, or {BUILTIN}")

    @property
    def ids(self) -> tuple[str, ...]:
        """Corrections that were accepted, the earliest first."""
        return tuple(id for item in self.history for id in item.ids)

    @classmethod
    def read(cls, corrections: str | os.PathLike[str]) -> Deployment | None:
        """What the folder ``corrections`` says; None where nothing was accepted yet.

        Raises:
            CorrectionError: the file is damaged.
        """
        path = Path(corrections) / PROJECT_FILE
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            return cls(str(table["model"]), tuple(Accepted.from_dict(item) for item in table["history"]))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorrectionError(
                f"{path} cannot be read ({error!r}): was it edited? It names the deployed model; a command that takes "
                "a model takes another one with -m"
            ) from error

    def write(self, corrections: str | os.PathLike[str]) -> None:
        """Replace what the folder ``corrections`` says, in one step.

        Raises:
            OutputError: the folder cannot be written to.
        """
        text = json.dumps({"model": self.model, "history": [item.to_dict() for item in self.history]}, indent=2)
        write_text(Path(corrections) / PROJECT_FILE, text + "\n")


def deployed_model(folder: str | os.PathLike[str]) -> str | None:
    """The model of a project: an absolute folder, or ``"builtin"``.

    Args:
        folder: of the project, or its folder ``corrections``.

    Returns:
        None where the folder is of no project, or nothing was accepted in it.

    Raises:
        CorrectionError: its file is damaged.
    """
    folder = Path(folder)
    for corrections in (folder / CORRECTIONS, folder):
        found = Deployment.read(corrections)
        if found is not None:
            return found.model if found.model == BUILTIN else os.path.abspath(corrections / found.model)
    return None
