"""Images as a model needs them: which bands, on which grid, and what tells one from another."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from odc.geo.geobox import GeoBox

from gimseg.errors import PredictionError
from gimseg.mosaics import Tiles, open_mosaic
from gimseg.parts import file_identity
from gimseg.raster_files import DRIVERS, check_file, files_behind, open_dataset
from gimseg.rasters import Nodata, Raster, metres_per_unit
from gimseg.recipes import Recipe

Rasters = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A raster, or several that are one mosaic."""


def raster_paths(raster: Rasters) -> list[str | os.PathLike[str]]:
    """One path, or several, as a list.

    Raises:
        PredictionError: none.
    """
    paths = [raster] if isinstance(raster, (str, os.PathLike)) else list(raster)
    if not paths:
        raise PredictionError("no raster was given: one at least is needed")
    return paths


def choose_bands(recipe: Recipe, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """Bands to read, one for each that the recipe normalises.

    Raises:
        PredictionError: too many or too few were asked for.
    """
    # Models that are averaged take each band once for each way in which they normalise it.
    own = len(dict.fromkeys(recipe.bands))
    bands = tuple(wanted or recipe.bands)
    if len(bands) == own:
        bands *= len(recipe.bands) // own
    if len(bands) != len(recipe.bands):
        raise PredictionError(f"bands {list_bands(bands)} were asked for: the model takes {own}, give as many")
    return bands


def open_imagery(
    paths: Sequence[str | os.PathLike[str]],
    recipe: Recipe,
    *,
    bands: Sequence[int] | None = None,
    crs: Any = None,
    nodata: Nodata = None,
    allow_vrt: bool = False,
) -> Raster:
    """One raster, or several as a mosaic, with the bands that a recipe takes; see :func:`gimseg.rasters.open_raster`.

    Raises:
        PredictionError: a raster has not the bands that are needed.
        RasterError: a raster cannot be used.
        GridError: rasters do not lie on one lattice, or their CRS is not understood.
    """
    chosen = choose_bands(recipe, bands)
    drivers = (*DRIVERS, "VRT") if allow_vrt else tuple(DRIVERS)
    for path in paths:
        with open_dataset(check_file(path, allow_virtual=allow_vrt), drivers) as dataset:
            count = dataset.count
        if not all(1 <= band <= count for band in chosen):
            raise PredictionError(
                f"{path} has {count} band{'s' if count != 1 else ''}, the model needs bands {list_bands(chosen)}: "
                "use an image like those that it learned from, or say with --bands which bands take their places"
            )
    return open_mosaic(paths, bands=chosen, crs=crs, nodata=nodata, allow_vrt=allow_vrt)


def choose_grid(raster: Raster, recipe: Recipe, resolution: float | None) -> tuple[GeoBox, list[str]]:
    """The grid on which a raster is predicted, and what to know about its resolution.

    Args:
        raster: the image.
        recipe: of the model.
        resolution: metres per pixel; None: the model's.

    Raises:
        GridError: the resolution leaves no pixel.
    """
    if resolution is None and raster.crs is None and raster.unit == "pixel":
        told = f"no georeference: its pixels are taken to be of the model's {recipe.resolution:g} m"
        return raster.grid(None), [f"{raster.path}: {told}; say otherwise with --crs"]
    notes = []
    wanted = resolution or recipe.resolution
    if raster.crs is None:
        notes.append(f"{raster.path}: no CRS: its unit is taken for metres; declare one with --crs")
    metres = metres_per_unit(raster.geobox)
    own = max(size * unit for size, unit in zip(raster.resolution, metres, strict=True))
    if own / recipe.resolution > 2:
        notes.append(
            f"{raster.path}: pixels of {own:.3g} m, the model learned from {recipe.resolution:g} m: "
            f"{own / recipe.resolution:.3g} times coarser, so what it looks for may not be seen"
        )
    if not 0.5 <= wanted / recipe.resolution <= 2:
        notes.append(f"resolution {wanted:g} m, the model learned from {recipe.resolution:g} m: expect poor results")
    return raster.grid(wanted), notes


def raster_files(raster: Raster) -> list[str]:
    """The paths that were given for a raster: one, or those of a mosaic."""
    return [tile.path for tile in raster.file.files] if isinstance(raster.file, Tiles) else [raster.path]


def raster_identity(raster: Raster) -> dict[str, Any]:
    """What tells a raster from a changed one: of each file that it is read from."""
    files = [file_identity(path) for name in raster_files(raster) for path in files_behind(name)]
    if len(files) == 1:
        return files[0]
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    return {"path": raster.path, "files": len(files), "content": digest}


def list_bands(bands: Sequence[int]) -> str:
    """For people; each once.

    Example:
        >>> list_bands((1, 2, 1, 2))
        '1, 2'
    """
    return ", ".join(map(str, dict.fromkeys(bands)))
