"""Several files that change together: all, or none, whenever the process is killed.

New files are made whole in hidden folders beside their places. Then a journal is
written, which lists every move; from then on the change is decided. Whoever finds a
journal carries it out to its end, as often as needed, and takes it away last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gimseg.errors import CorrectionError, OutputError
from gimseg.outputs import hold_lock, write_text

JOURNAL, _LOCK = ".journal.json", ".journal.lock"


@dataclass(frozen=True)
class Move:
    """One file that changes.

    Args:
        place: where the file is, or will be.
        ready: the new file, on the same disk; None: there is to be none.
    """

    place: Path
    ready: Path | None = None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A context in which no other process changes what belongs to a folder; what was decided before is carried out.

    Raises:
        CorrectionError: another process is changing it.
        OutputError: the folder cannot be written.
    """
    lock = hold_lock(folder / _LOCK, CorrectionError(f"another run is changing {folder}: wait for it"))
    try:
        settle(folder)
        yield
    finally:
        lock.close()


def change(folder: Path, moves: Sequence[Move], sweep: Sequence[Path] = ()) -> None:
    """Make a change: decided with one file, then carried out.

    Args:
        folder: that keeps the journal, for as long as this takes.
        moves: in order; what tells of the others comes last.
        sweep: folders that are taken away afterwards.

    Raises:
        OutputError: the disk refuses; it is carried out by the next :func:`settle`.
    """
    listed = [[kept(move.place, folder), move.ready and kept(move.ready, folder)] for move in moves]
    told = {"moves": listed, "sweep": [kept(path, folder) for path in sweep]}
    write_text(folder / JOURNAL, json.dumps(told, indent=1))
    settle(folder)


def settle(folder: Path) -> bool:
    """Carry out what was decided before a process was killed.

    Returns:
        whether there was anything.

    Raises:
        OutputError: the disk refuses.
        CorrectionError: the journal cannot be read.
    """
    journal = folder / JOURNAL
    try:
        told = json.loads(journal.read_text(encoding="utf-8"))
        moves = [(folder / place, ready and folder / ready) for place, ready in told["moves"]]
        sweep = [folder / path for path in told["sweep"]]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorrectionError(f"{journal} cannot be read ({error!r}): was it edited?") from error
    try:
        for place, ready in moves:
            if ready is None:
                place.unlink(missing_ok=True)
            elif ready.exists():
                os.replace(ready, place)
    except OSError as error:
        raise OutputError(
            f"{error.filename} cannot be replaced ({error.strerror}): close it elsewhere, and give any gimseg correct "
            "command to go on"
        ) from error
    for path in sweep:
        shutil.rmtree(path, ignore_errors=True)
    journal.unlink()
    return True


def kept(path: str | os.PathLike[str], folder: Path) -> str:
    """A path as it is kept in `folder`: relative to it where it lies in the project, so that a project can be moved."""
    whole, inside = os.path.abspath(path), os.path.abspath(folder)
    return os.path.relpath(whole, inside) if Path(whole).is_relative_to(Path(inside).parent) else whole
