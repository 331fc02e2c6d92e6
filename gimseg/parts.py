"""Finished blocks of a run, kept beside its output until that is complete.

The folder ``.<output name>.parts`` holds ``manifest.json``, which pins raster, model
and options, and one GeoTIFF for each finished block with a band for each plane, moved
into place whole. So a run that was stopped goes on where it was, and never mixes with
another one.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow

from gimseg.errors import OutputError, PredictionError, ResumeError
from gimseg.legend import UNLABELLED
from gimseg.outputs import hold_lock, write_text
from gimseg.rasters import write_part
from gimseg.tiling import Block, Roi, overlap, roi_shape, shift

_SAMPLE = 64 * 1024


class Parts:
    """The finished blocks of one output; a context in which this process alone writes them.

    Args:
        output: file that they become.
        identity: what makes the run what it is, by name: plain values that JSON holds.
        planes: of bytes, of each pixel.
        restart: throw away what an earlier run left.

    Raises:
        PredictionError: another run is writing this output.
        ResumeError: the blocks that are there belong to another run.
        OutputError: the folder cannot be written.
    """

    def __init__(
        self, output: str | os.PathLike[str], identity: Mapping[str, Any], *, planes: int = 1, restart: bool = False
    ) -> None:
        self.output = Path(output)
        self.planes = planes
        self.folder = parts_folder(output)
        self._identity = json.loads(json.dumps(identity))
        self._restart = restart
        self._lock: IO[str] | None = None

    def __enter__(self) -> Parts:
        try:
            self.folder.mkdir(exist_ok=True)
            busy = f"another run is writing {self.output}: wait for it, or give another output"
            self._lock = hold_lock(self.folder / "lock", PredictionError(busy))
            if self._restart:
                self._clear()
            self._sweep()
            self._check_manifest()
        except OSError as error:
            self.__exit__(None, None, None)
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot write in {self.folder} ({error.strerror}): choose another folder") from error
        except ResumeError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def path(self, block: Block) -> Path:
        """Where a block is, or will be."""
        return self.folder / f"{_name(block)}.tif"

    def unfinished(self, blocks: Iterable[Block], *, keep_damaged: bool = False) -> list[Block]:
        """Those of the blocks that are not finished.

        Args:
            blocks: of the raster.
            keep_damaged: a block of which something could not be read counts as finished.
        """
        there = {path.name for path in self.folder.iterdir()}

        def is_finished(block: Block) -> bool:
            name = _name(block)
            damaged = f"{name}.unread.json" in there and not keep_damaged
            return not damaged and (f"{name}.tif" in there or f"{name}.empty" in there)

        return [block for block in blocks if not is_finished(block)]

    def write(self, block: Block, values: np.ndarray, geobox: GeoBox, unread: Sequence[Mapping[str, Any]] = ()) -> None:
        """Keep a finished block, uint8 (planes, rows, cols) of its core.

        Args:
            block: which.
            values: of its pixels.
            geobox: of the whole raster.
            unread: what of it could not be read, plain values.
        """
        told = self.folder / f"{_name(block)}.unread.json"
        if unread:
            write_text(told, json.dumps(list(unread)))
        else:
            told.unlink(missing_ok=True)
        if (values == UNLABELLED).all():
            (self.folder / f"{_name(block)}.empty").touch()
        else:
            write_part(self.path(block), values, geobox[block.core], nodata=UNLABELLED)

    def claim(self, block: Block) -> bool:
        """Whether this process is the first to ask for a block."""
        try:
            (self.folder / f"{_name(block)}.claim").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def forget_claims(self) -> None:
        """Blocks may be claimed anew: those who claimed them are gone."""
        for path in self.folder.glob("*.claim"):
            path.unlink(missing_ok=True)

    def unread(self) -> list[dict[str, Any]]:
        """What of the finished blocks could not be read."""
        found = sorted(self.folder.glob("*.unread.json"))
        return [item for path in found for item in json.loads(path.read_text(encoding="utf-8"))]

    def read(self, roi: Roi, blocks: Iterable[Block]) -> np.ndarray:
        """A region that finished blocks cover, uint8 (planes, rows, cols).

        Raises:
            PredictionError: a block is missing or cannot be read.
        """
        values = np.full((self.planes, *roi_shape(roi)), UNLABELLED, np.uint8)
        for block in blocks:
            common = overlap(roi, block.core)
            if common is not None and not (self.folder / f"{_name(block)}.empty").exists():
                values[:, *shift(common, roi)] = self._read_block(block, shift(common, block.core))
        return values

    def _read_block(self, block: Block, roi: Roi) -> np.ndarray:
        try:
            with rasterio.open(self.path(block), driver="GTiff") as part:
                return part.read(window=RasterWindow.from_slices(*roi))
        except RasterioError as error:
            raise PredictionError(f"{self.path(block)} cannot be read ({error}): delete it and run again") from error

    def remove(self) -> None:
        """Throw everything away: the output is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Take away what a run that was killed was just writing: this output is ours alone."""
        for folder, name in ((self.folder, "*"), (self.output.parent, f".{glob.escape(self.output.name)}.*")):
            for stale in folder.glob(f"{name}.partial"):
                shutil.rmtree(stale, ignore_errors=True)

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _check_manifest(self) -> None:
        manifest = self.folder / "manifest.json"
        if not manifest.exists():
            # Parts that nothing pins may be anybody's.
            self._clear()
            write_text(manifest, json.dumps(self._identity, indent=2, ensure_ascii=False) + "\n")
            return
        try:
            before = json.loads(manifest.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ResumeError(f"{manifest} cannot be read: throw the finished blocks away with --restart") from error
        differ = [name for name in sorted({*before, *self._identity}) if before.get(name) != self._identity.get(name)]
        if differ:
            told = "; ".join(
                f"{name} was {_tell(before.get(name))}, is {_tell(self._identity.get(name))}" for name in differ
            )
            raise ResumeError(
                f"{self.folder} holds finished blocks of another run: {told}. Give the same again to go on, or throw "
                "them away with --restart"
            )


def read_manifest(output: str | os.PathLike[str]) -> dict[str, Any]:
    """What pins the finished blocks of an output; empty where there are none."""
    try:
        found = json.loads((parts_folder(output) / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def parts_folder(output: str | os.PathLike[str]) -> Path:
    """Where the finished blocks of an output are kept.

    Example:
        >>> parts_folder("maps/big.tif").as_posix()
        'maps/.big.tif.parts'
    """
    output = Path(output)
    return output.parent / f".{output.name}.parts"


def file_identity(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What tells a large file from a changed one at little cost: name, size, time, and samples of its content."""
    path = os.path.realpath(path)
    status = os.stat(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for part in range(9):
            file.seek(max(0, (status.st_size - _SAMPLE) * part // 8))
            digest.update(file.read(_SAMPLE))
    return {
        "path": path,
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "samples": digest.hexdigest()[:16],
    }


def content_identity(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Name and content of a small file."""
    with open(path, "rb") as file:
        return {"path": os.path.realpath(path), "content": hashlib.file_digest(file, "sha256").hexdigest()[:16]}


def _name(block: Block) -> str:
    return f"block_{block.row}_{block.col}"


def _tell(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_tell(part)}" for name, part in value.items())
    return "not given" if value is None else str(value)
