"""Outputs appear whole under their name, or not at all.

Everything is written in a hidden folder beside its final place and moved there
when it is complete. A Shapefile, which is four files or more, moves as one
family.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gimseg.errors import GimsegError, OutputError

try:
    import fcntl
except ImportError:  # Windows keeps no two writers of one file apart this way.
    fcntl = None  # type: ignore[assignment]

FAMILIES = {".shp": (".shp", ".shx", ".dbf", ".prj", ".cpg", ".qml", ".qpj", ".sbn", ".sbx")}
"""Endings of the files that are one layer, by that of the file that names it."""


def check_outputs(
    outputs: Iterable[str | os.PathLike[str]],
    inputs: Iterable[str | os.PathLike[str]] = (),
    *,
    overwrite: bool = False,
) -> None:
    """Refuse, before any work, outputs that cannot or must not be written.

    Args:
        outputs: files to be written.
        inputs: files that are read; none of them may be an output, through a
            link neither.
        overwrite: existing outputs may be replaced.

    Raises:
        OutputError: an output exists, is an input, is named twice, or its folder is
            missing or read-only.
    """
    seen: dict[str, str] = {}
    read = {os.path.realpath(path): str(path) for path in inputs}
    for output in map(str, outputs):
        real = os.path.realpath(output)
        folder = Path(real).parent
        if real in read:
            raise OutputError(f"{output} is the input {read[real]} itself: give another output name")
        if real in seen:
            raise OutputError(f"{output} and {seen[real]} are one file: give each output its own name")
        seen[real] = output
        if os.path.isdir(real):
            raise OutputError(f"{output} is a folder: give the name of a file")
        if os.path.exists(real) and not overwrite:
            raise OutputError(f"{output} exists: give another name or --overwrite")
        if not folder.is_dir():
            raise OutputError(f"{output}: the folder {folder} does not exist: make it first")
        check_writable(folder)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder in which no file can be made.

    Raises:
        OutputError: the folder cannot be written to.
    """
    probe = Path(folder) / f".gimseg-{os.getpid()}.probe"
    try:
        # Access bits lie for the superuser and on network disks: try it.
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write in {folder} ({error.strerror}): choose another folder") from error


@contextmanager
def staged(output: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to; its file family is moved to `output` when the block ends well.

    The caller has asked :func:`check_outputs` before the work began. Whatever the
    block leaves beside the staged file (``.dbf``, ``.prj``, ``.qml``) moves along.

    Args:
        output: final name.

    Yields:
        a path of the same file name in a hidden folder on the same disk.

    Raises:
        OutputError: the block wrote no file, or the move failed.
    """
    output = Path(output)
    folder = output.parent / f".{output.name}.{os.getpid()}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
    except OSError as error:
        raise OutputError(f"cannot write in {output.parent} ({error.strerror}): choose another folder") from error
    try:
        yield folder / output.name
        if not (folder / output.name).exists():
            raise OutputError(f"{output} was not written: is the disk full?")
        move_family(folder, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_family(folder: Path, output: Path) -> None:
    """Move all files of `folder` beside `output`, the one that is named like it last."""
    for suffix in FAMILIES.get(output.suffix.lower(), ()):
        stale = output.with_suffix(suffix)
        if stale != output and not (folder / stale.name).exists():
            stale.unlink(missing_ok=True)
    files = sorted(folder.iterdir(), key=lambda path: path.name == output.name)
    for path in files:
        os.replace(path, output.parent / path.name)


def write_text(output: str | os.PathLike[str], text: str) -> None:
    """Write a small text file whole (UTF-8), replacing what was there.

    Raises:
        OutputError: the file cannot be written.
    """
    with staged(output) as path:
        path.write_text(text, encoding="utf-8")


def hold_lock(path: Path, busy: GimsegError) -> IO[str]:
    """Hold a lock file; it is let go when its handle closes, at the latest when the process ends.

    Args:
        path: the lock file.
        busy: raised where another process holds it.

    Raises:
        OutputError: its folder cannot be written.
    """
    try:
        handle = path.open("a")
    except OSError as error:
        raise OutputError(f"cannot write in {path.parent} ({error.strerror})") from error
    if fcntl is None:
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        handle.close()
        raise busy from error
    # The run before may just have ended, and taken the folder with it.
    if not path.exists() or not os.path.samestat(os.fstat(handle.fileno()), path.stat()):
        handle.close()
        raise busy
    return handle


def path_from_here(path: str | os.PathLike[str]) -> str:
    """A path as people read it: relative where it lies in the current folder, otherwise whole."""
    whole, here = Path(os.path.abspath(path)), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)
