"""A project and its rounds of correction, as folders and small files.

``corrections/<id>/`` holds all of one round; ``corrections/project.json`` names the
model that was accepted last. Paths are kept relative to the project where they lie in
it, so that a project can be moved.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gimseg.correction.journal import JOURNAL, alone
from gimseg.datasets import Dataset
from gimseg.deployments import BUILTIN, CORRECTIONS, Deployment, deployed_model
from gimseg.errors import CorrectionError
from gimseg.legend import Legend
from gimseg.outputs import write_text
from gimseg.rasters import Raster, open_raster

_FILE = "correction.toml"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PATHS = ("image_paths", "mask_paths", "aoi_paths", "ignore_paths")
_HEAD = "# One round of correction, kept by gimseg. Paths are relative to the project's folder.\n"


@dataclass(frozen=True)
class Opening:
    """How the rasters of a correction are opened, where they do not say it themselves.

    Args:
        bands: to be used, from 1; None: those of the model.
        nodata: value, or ``"auto"`` for a border that nothing declares.
        crs: of rasters that have none.
        vector_crs: of layers that have none.
    """

    bands: tuple[int, ...] | None = None
    nodata: float | str | None = None
    crs: str | None = None
    vector_crs: str | None = None

    def __post_init__(self) -> None:
        if self.bands is not None:
            object.__setattr__(self, "bands", tuple(int(band) for band in self.bands))

    def open(self, raster: str | os.PathLike[str], bands: tuple[int, ...]) -> Raster:
        """A raster, with the bands of a model where none were named.

        Raises:
            RasterError: it cannot be read.
        """
        return open_raster(raster, bands=self.bands or bands, crs=self.crs, nodata=self.nodata)


@dataclass(frozen=True)
class Correction:
    """One round: what was drawn, on which rasters, and what became of it.

    Args:
        folder: ``<project>/corrections/<id>``.
        parent: folder of the model that it corrects, or ``"builtin"``.
        rasters: that were drawn on.
        opening: how they are opened.
        segments: mask and polygons that were delivered for the raster, and are updated
            when the correction is accepted.
        truth: of a correction that is a Dataset: its table, as in a dataset file; None
            where it is drawn in ``correction.gpkg``.
        started: when, ISO 8601, UTC.

    Raises:
        CorrectionError: an id that is no plain name, or no raster.
    """

    folder: Path
    parent: str
    rasters: tuple[str, ...]
    opening: Opening = field(default_factory=Opening)
    segments: tuple[str, ...] = ()
    truth: Mapping[str, Any] | None = None
    started: str = ""

    def __post_init__(self) -> None:
        check_id(self.id)
        object.__setattr__(self, "folder", Path(self.folder))
        object.__setattr__(self, "rasters", tuple(map(str, self.rasters)))
        object.__setattr__(self, "segments", tuple(map(str, self.segments)))
        if self.truth is not None:
            object.__setattr__(self, "truth", MappingProxyType(dict(self.truth)))
        if not self.rasters:
            raise CorrectionError(f"correction {self.id!r} has no raster: give one with --raster")

    @property
    def id(self) -> str:
        """Its name: that of its folder."""
        return Path(self.folder).name

    @property
    def project(self) -> Project:
        """That it belongs to."""
        return Project(self.folder.parent.parent)

    @property
    def gpkg(self) -> Path:
        """What was drawn: layers ``aoi``, ``objects``, ``points`` and ``prediction``."""
        return self.folder / "correction.gpkg"

    @property
    def qgz(self) -> Path:
        """The QGIS project to draw in."""
        return self.folder / "correction.qgz"

    @property
    def labels(self) -> Path:
        """What the drawing means, pixel by pixel, as it was last learned."""
        return self.folder / "labels.tif"

    @property
    def model(self) -> Path:
        """The model that learned it: a folder, whole or not there."""
        return self.folder / "model"

    @property
    def diff(self) -> Path:
        """Objects that appeared and vanished."""
        return self.folder / "diff.gpkg"

    @property
    def before(self) -> Path:
        """Mask of the parent model around the correction."""
        return self.folder / "before.tif"

    @property
    def after(self) -> Path:
        """Mask of the new model there."""
        return self.folder / "after.tif"

    @property
    def metrics(self) -> Path:
        """Scores and verdict (JSON)."""
        return self.folder / "metrics.json"

    @property
    def report(self) -> Path:
        """The same for people."""
        return self.folder / "report.html"

    @property
    def file(self) -> Path:
        """``correction.toml``."""
        return self.folder / _FILE

    @property
    def learned(self) -> tuple[str, ...]:
        """The corrections that its model learned together, itself the first; none where it has no model."""
        try:
            told = json.loads((self.model / "gimseg.json").read_text(encoding="utf-8"))
            return tuple(map(str, told["provenance"].get("learned", [self.id])))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return ()

    def dataset(self) -> Dataset | None:
        """The Dataset that is the correction; None where it was drawn in ``correction.gpkg``.

        Raises:
            DatasetError: a file of it is gone.
        """
        if self.truth is None:
            return None
        legend = self.truth.get("legend")
        return Dataset(**{**self.truth, "legend": Legend.from_dict(legend) if legend else None})

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Correction:
        """Read ``correction.toml``.

        Raises:
            CorrectionError: there is none, or it is damaged.
        """
        folder = Path(folder)
        path = folder / _FILE
        root = folder.parent.parent
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            truth = table.pop("dataset", None)
            if truth is not None:
                truth = {name: _placed(value, root) if name in _PATHS else value for name, value in truth.items()}
            placed = {name: _placed(table.pop(name), root) for name in ("parent", "rasters", "segments")}
            for name, kind in (("parent", str), ("rasters", tuple), ("segments", tuple)):
                if not isinstance(placed[name], kind):
                    raise TypeError(f"{name} is {placed[name]!r}")
            if not isinstance(table.get("started", ""), str):
                raise TypeError(f"started is {table['started']!r}, and no text")
            read = cls(folder, opening=Opening(**table.pop("opening", {})), truth=truth, **placed, **table)
            if truth is not None:
                _checked(truth)
            return read
        except FileNotFoundError as error:
            raise CorrectionError(f"{path} does not exist: start the correction first") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorrectionError(f"{path} cannot be read ({error}): was it edited?") from error

    def write(self, folder: Path | None = None) -> None:
        """Write ``correction.toml``, whole, in its folder, which is there.

        Args:
            folder: another one, in which the correction is still being made.

        Raises:
            OutputError: it cannot be written.
        """
        write_text((folder or self.folder) / _FILE, self.text())

    def text(self) -> str:
        """``correction.toml``, as it is written."""
        root = self.folder.parent.parent
        parent = self.parent if self.parent == BUILTIN else _kept(self.parent, root)
        rows = {"started": self.started or datetime.now(UTC).isoformat(timespec="seconds"), "parent": parent}
        lists = {name: [_kept(path, root) for path in getattr(self, name)] for name in ("rasters", "segments")}
        opening = {item.name: getattr(self.opening, item.name) for item in fields(Opening)}
        parts = [_HEAD, _rows(rows | lists), "\n[opening]\n", _rows(opening)]
        if self.truth is not None:
            kept = {
                name: [_kept(path, root) for path in value] if name in _PATHS else value
                for name, value in self.truth.items()
            }
            parts += ["\n[dataset]\n", _rows(kept)]
        return "".join(parts)


@dataclass(frozen=True)
class Project:
    """A folder that holds ``corrections/``.

    Args:
        folder: of the project.

    Example:
        >>> Project(".").corrections()
        ()
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))

    @property
    def rounds(self) -> Path:
        """The folder of all corrections."""
        return self.folder / CORRECTIONS

    def deployment(self) -> Deployment | None:
        """What ``project.json`` says; None where nothing was accepted yet.

        Raises:
            CorrectionError: it is damaged.
            OutputError: as :meth:`correction`.
        """
        self._settle()
        return Deployment.read(self.rounds)

    def deployed(self) -> str | None:
        """The model that the project works with: a folder or ``"builtin"``; None where nothing was accepted yet.

        Raises:
            CorrectionError: ``project.json`` is damaged.
            OutputError: as :meth:`correction`.
        """
        self._settle()
        return deployed_model(self.folder)

    def correction(self, id: str) -> Correction:
        """One of its corrections.

        Raises:
            CorrectionError: there is none of this name.
            OutputError: a change that was decided before a process was killed cannot be carried out.
        """
        check_id(id)
        self._settle()
        folder = self.rounds / id
        if not (folder / _FILE).is_file():
            known = ", ".join(item.id for item in self.corrections()) or "none"
            raise CorrectionError(
                f"no correction {id!r} in {self.rounds}; there are: {known}. Begin one with gimseg correct start"
            )
        return Correction.read(folder)

    def corrections(self) -> tuple[Correction, ...]:
        """All of them, by the time of their start.

        Raises:
            CorrectionError: one of them is damaged.
            OutputError: a change that was decided before a process was killed cannot be carried out.
        """
        self._settle()
        # What is no plain name was put there by hand, or is still being made.
        files = [path for path in self.rounds.glob(f"*/{_FILE}") if _ID.fullmatch(path.parent.name)]
        found = [Correction.read(path.parent) for path in files]
        return tuple(sorted(found, key=lambda item: (item.started, item.id)))

    def _settle(self) -> None:
        """Whoever looks at a project carries out first what was decided before a process was killed."""
        if (self.rounds / JOURNAL).exists():
            with alone(self.rounds):
                pass


def check_id(id: str) -> str:
    """An id, if it is a plain name.

    Raises:
        CorrectionError: it is none.

    Example:
        >>> check_id("bad_aoi")
        'bad_aoi'
    """
    if not _ID.fullmatch(id):
        raise CorrectionError(
            f"{id!r} names no correction: give up to 64 letters, digits, _ and -, beginning with a letter or a digit"
        )
    return id


def _checked(table: Mapping[str, Any]) -> None:
    """Refuse a table that is no Dataset's; whether its files are there is not looked at."""
    known = {item.name for item in fields(Dataset)}
    needed = {"tag", "spatial_resolution"} - set(table)
    if needed or set(table) - known:
        raise TypeError(
            f"the table dataset lacks {', '.join(sorted(needed)) or 'nothing'} and has "
            f"{', '.join(sorted(set(table) - known)) or 'nothing'} that is unknown"
        )


def table_of(dataset: Dataset) -> dict[str, Any]:
    """A Dataset as a table of a dataset file, what is not said left out."""
    table = {item.name: getattr(dataset, item.name) for item in fields(Dataset)}
    table["legend"] = dataset.legend.to_dict() if dataset.legend else None
    return {name: value for name, value in table.items() if value is not None and value != ()}


def _is_local(path: str) -> bool:
    return not (path.startswith("/vsi") or "://" in path)


def _kept(path: str | os.PathLike[str], root: Path) -> str:
    """A path as it is written: relative to the project where it lies in it."""
    text = os.fspath(path)
    if not _is_local(text):
        return text
    whole = Path(os.path.abspath(text))
    inside = Path(os.path.abspath(root))
    return whole.relative_to(inside).as_posix() if whole.is_relative_to(inside) else whole.as_posix()


def _placed(value: Any, root: Path) -> Any:
    """A path, or several, as they are used."""
    if isinstance(value, list):
        return tuple(_placed(item, root) for item in value)
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no path")
    return value if value == BUILTIN or not _is_local(value) else os.path.join(root, value)


def _rows(table: Mapping[str, Any]) -> str:
    return "".join(f"{name} = {_toml(value)}\n" for name, value in table.items() if value is not None)


def _toml(value: Any) -> str:
    """A value as TOML.

    Example:
        >>> _toml({"name": 'the "roof"', "values": [1, 2.5, True]})
        '{ name = "the \\\\"roof\\\\"", values = [1, 2.5, true] }'
    """
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{name} = {_toml(item)}' for name, item in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, int | float) else json.dumps(str(value), ensure_ascii=False)
