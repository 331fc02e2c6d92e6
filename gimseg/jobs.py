"""Which rasters go to which files: globs, folders and patterns of names, resolved before any work."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gimseg.errors import OutputError, RasterError
from gimseg.outputs import check_outputs
from gimseg.products import Products
from gimseg.qgis import is_project
from gimseg.stac import item_path
from gimseg.vector_output import driver_of

_MASKS = (".tif", ".tiff")
_STEM = "{stem}"

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A path, or several."""


@dataclass(frozen=True)
class Job:
    """A raster, or several as one mosaic, and what is made of it.

    Args:
        rasters: files that are read.
        outputs: a mask, polygons, QGIS projects, told by their endings.

    Raises:
        OutputError: an ending that is not known, no output, or more than one mask.
    """

    rasters: tuple[str | os.PathLike[str], ...]
    outputs: tuple[Path, ...]

    def __post_init__(self) -> None:
        masks = [path for path in self.outputs if path.suffix.lower() in _MASKS]
        if len(masks) > 1:
            raise OutputError(f"{masks[0]} and {masks[1]}: one mask is written, give one .tif")
        for path in self.layers:
            driver_of(path)

    @property
    def mask(self) -> Path | None:
        """Where the mask goes, if it is asked for."""
        return next((path for path in self.outputs if path.suffix.lower() in _MASKS), None)

    @property
    def layers(self) -> tuple[Path, ...]:
        """Where polygons go."""
        return tuple(path for path in self.outputs if path.suffix.lower() not in _MASKS and not is_project(path))

    @property
    def projects(self) -> tuple[Path, ...]:
        """Where QGIS projects go."""
        return tuple(path for path in self.outputs if is_project(path))

    @property
    def named(self) -> Path:
        """The mask, or where one would lie: what lies beside it is named after it."""
        return self.mask or self.layers[0].with_suffix(".tif")

    def check(
        self, products: Products, *, stac: bool, overwrite: bool, inputs: Sequence[str | os.PathLike[str]]
    ) -> None:
        """Refuse, before any work, outputs that cannot or must not be written.

        Raises:
            OutputError: see :func:`gimseg.outputs.check_outputs`.
        """
        beside = [*products.files(self.named).values(), *([item_path(self.named)] if stac else [])]
        check_outputs([*self.outputs, *beside], [*self.rasters, *inputs], overwrite=overwrite)


def default_outputs(raster: str | os.PathLike[str]) -> tuple[str, str]:
    """What is written where nothing was asked for, in the current folder.

    Example:
        >>> default_outputs("/images/big.tif")
        ('big_segments.tif', 'big_segments.shp')
    """
    stem = Path(raster).stem
    return f"{stem}_segments.tif", f"{stem}_segments.shp"


def plan_jobs(rasters: Paths, outputs: Paths = (), *, mosaic: bool = False) -> list[Job]:
    """One job for each raster, or one for all.

    Args:
        rasters: files, and patterns of them such as ``tiles/*.tif``.
        outputs: files by their endings; a folder, for the default names; for several
            rasters names with ``{stem}``, which stands for the raster's name without its ending.
        mosaic: all rasters are one.

    Raises:
        RasterError: a pattern that no file matches.
        OutputError: several rasters for one output, or two jobs for one file.

    Example:
        >>> [str(job.outputs[0]) for job in plan_jobs(["a.tif", "b.tif"], "out/{stem}.gpkg")]
        ['out/a.gpkg', 'out/b.gpkg']
    """
    paths, given = expand(_as_list(rasters)), _as_list(outputs)
    if mosaic or len(paths) == 1:
        return [Job(tuple(paths), _outputs_of("mosaic" if len(paths) > 1 else paths[0], given))]
    fixed = [str(path) for path in given if _STEM not in str(path) and not _is_folder(path)]
    if fixed:
        raise OutputError(
            f"{len(paths)} rasters and the output {fixed[0]}: give a folder, a name with {_STEM} in it, or --mosaic to "
            "make one of them all"
        )
    jobs = [Job((path,), _outputs_of(path, given)) for path in paths]
    seen: dict[str, Job] = {}
    for job in jobs:
        for output in job.outputs:
            other = seen.setdefault(os.path.realpath(output), job)
            if other is not job:
                raise OutputError(
                    f"{other.rasters[0]} and {job.rasters[0]} would both become {output}: predict them into two folders"
                )
    return jobs


def expand(paths: Sequence[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    """Paths, with patterns replaced by the files that they match, in order of their names.

    Raises:
        RasterError: a pattern that no file matches.
    """
    found: list[str | os.PathLike[str]] = []
    for path in paths:
        text = os.fspath(path)
        if not glob.has_magic(text) or os.path.exists(text) or text.startswith("/vsi"):
            found.append(path)
            continue
        matches = sorted(glob.glob(text, recursive=True))
        if not matches:
            raise RasterError(f"no file matches {text} (looked from {Path.cwd()})")
        found += matches
    return found


def _outputs_of(raster: str | os.PathLike[str], given: Sequence[str | os.PathLike[str]]) -> tuple[Path, ...]:
    stem = Path(raster).stem
    if not given:
        return tuple(map(Path, default_outputs(raster)))
    outputs: list[Path] = []
    for path in given:
        if _is_folder(path):
            outputs += [Path(path) / name for name in default_outputs(raster)]
        else:
            outputs.append(Path(str(path).replace(_STEM, stem)))
    if all(map(is_project, outputs)):
        # A project alone needs something to show.
        outputs += [outputs[0].with_name(name) for name in default_outputs(outputs[0])]
    return tuple(outputs)


def _is_folder(path: str | os.PathLike[str]) -> bool:
    return str(path).endswith(("/", os.sep)) or os.path.isdir(path)


def _as_list(paths: Paths) -> list[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
