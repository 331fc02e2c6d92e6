"""A raster and a model to areas worth drawing: ``gimseg correct suggest``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox

from gimseg.averaging import Augmentations, Models
from gimseg.correction.doubts import Found, find_doubts
from gimseg.correction.polygon_layers import check_polygons
from gimseg.correction.rounds import Opening
from gimseg.correction.suggestions import (
    SECONDS_AN_OBJECT,
    Suggestion,
    choose_cells,
    choose_squares,
    to_frame,
)
from gimseg.errors import CorrectionError, OutputError
from gimseg.geopackages import complete_geopackage, write_layer
from gimseg.imagery import choose_grid, open_imagery
from gimseg.inference import Predictor
from gimseg.levelling import levelled, measure
from gimseg.outputs import check_outputs, staged
from gimseg.progress import Progress, silent
from gimseg.rasters import metres_per_unit
from gimseg.styles import outline_style
from gimseg.vector_formats import split_name
from gimseg.vectors import Layer, check_overlap, open_layer

LAYER = "suggestions"
"""Of the GeoPackage."""
CELL = 32
"""Side of the squares in which doubt is added up, px, where nobody says how large an area is to be."""
_MOST_CELLS = 16
_SHARE = 4  # an area is a quarter of the raster at most
_COLOUR = "#ff2fd0"


@dataclass(frozen=True)
class Suggested:
    """What :func:`suggest` has written.

    Args:
        path: the layer.
        suggestions: the areas, in its order.
        size_m: (height, width) of an area that no border cuts, on the ground, metres (the CRS's unit
            where that tells no metres): the raster's own where that is smaller than an area was to be.
        notes: what a person should know.
    """

    path: Path
    suggestions: tuple[Suggestion, ...]
    size_m: tuple[float, float]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Lines for people."""
        kinds = [item.kind for item in self.suggestions]
        told = ", ".join(f"{kinds.count(kind)} by {kind}" for kind in dict.fromkeys(kinds) if kind != "random")
        random = f"{kinds.count('random')} at random"
        objects = float(np.mean([item.objects for item in self.suggestions]))
        height, width = (f"{size:,.0f}" if size >= 100 else f"{size:.3g}" for size in self.size_m)
        line = (
            f"{self.path}: {len(kinds)} area{'s' if len(kinds) != 1 else ''} of {width} x {height} m, "
            f"{', '.join(part for part in (told, random) if part)}; about {objects:.0f} objects each, "
            f"{max(objects * SECONDS_AN_OBJECT / 60, 0.5):.1f} minutes to draw at {SECONDS_AN_OBJECT} s an object"
        )
        return "\n".join([line, *self.notes])


def suggest(
    raster: str | os.PathLike[str],
    model: Models,
    output: str | os.PathLike[str],
    *,
    count: int = 10,
    older: str | os.PathLike[str] | None = None,
    side_m: float | None = None,
    tta: Augmentations | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
    **opening: Any,
) -> Suggested:
    """Find areas of a raster that are worth drawing, and write them as a layer.

    Four fifths are where the prediction is doubted most, by each measure of
    :mod:`gimseg.correction.doubts` in turn; a fifth is drawn at random, and only those
    tell how good the prediction is everywhere: see :mod:`gimseg.correction.suggestions`.

    Args:
        raster: the image.
        model: that is to be corrected; several: where they disagree.
        output: GeoPackage with the layer ``suggestions``.
        count: of areas.
        older: layer of polygons of the same things: where the prediction differs from them.
        side_m: side of an area on the ground, metres; None: as large as is mostly drawn in minutes.
        tta: views of the image whose predictions may disagree.
        seed: of the random areas, 0 or above.
        device: see :class:`gimseg.inference.Predictor`.
        overwrite: an output that exists may be replaced.
        progress: told how far the work is.
        **opening: ``bands``, ``nodata``, ``crs`` of the raster, ``vector_crs`` of the older layer: see
            :class:`gimseg.correction.rounds.Opening`.

    Raises:
        CorrectionError: nothing can be suggested, or the older layer holds no polygon.
        VectorError: the older layer misses the raster.
        GimsegError: raster, model or layer cannot be used.
    """
    path = Path(output)
    if path.suffix.lower() != ".gpkg":
        raise OutputError(f"{path}: suggestions are a GeoPackage: give a name that ends in .gpkg")
    _check_numbers(count, side_m, seed)
    inputs = [raster, *([] if older is None else [split_name(os.fspath(older))[0]])]
    check_outputs([path], inputs, overwrite=overwrite)
    how = Opening(**opening)
    predictor = Predictor(model, device=device, tta=tta)
    opened = open_imagery([raster], predictor.model.recipe, bands=how.bands, crs=how.crs, nodata=how.nodata)
    geobox, notes = choose_grid(opened, predictor.model.recipe, None)
    cell, most = _cells(geobox, side_m)
    layer = None if older is None else _open_older(older, how, geobox)
    shown = levelled(opened, measure(opened.on(geobox)).levels) if predictor.model.recipe.own_levels else opened
    found = find_doubts(predictor, shown.on(geobox), cell, layer, progress=progress)
    valid = next(iter(found.doubts.values())).valid
    cells = most if side_m is not None else choose_cells(found.objects, valid, most)
    areas = _counted(choose_squares(found.doubts, count, cells=cells, seed=seed), found, cell, geobox)
    _write(path, areas, geobox)
    if layer is not None:
        notes = [*notes, *layer.notes]
    whole = (min(cells * cell, int(geobox.shape[0])), min(cells * cell, int(geobox.shape[1])))
    cut = sum(area.height < whole[0] or area.width < whole[1] for area in areas)
    if cut:
        notes = [*notes, f"cut by the border of the raster, and smaller: {cut} of {len(areas)} areas"]
    if len(areas) < count:
        notes = [*notes, f"there is room for {len(areas)} of {count}: ask for smaller ones with --side"]
    size_m = (whole[0] * _pixel_m(geobox), whole[1] * _pixel_m(geobox))
    return Suggested(path, areas, size_m, (*opened.notes, *notes))


def _check_numbers(count: int, side_m: float | None, seed: int) -> None:
    if count < 1:
        raise CorrectionError(f"{count} areas are asked for: 1 at least is needed")
    if side_m is not None and not 0 < side_m < np.inf:
        raise CorrectionError(f"areas with a side of {side_m} m are asked for: a number above 0 is needed")
    if seed < 0:
        raise CorrectionError(f"the seed is {seed}: a whole number of 0 or above is needed")


def _open_older(older: str | os.PathLike[str], how: Opening, geobox: GeoBox) -> Layer:
    """The older layer, if a prediction can be compared with it."""
    layer = open_layer(older, crs=how.vector_crs)
    check_polygons(layer, alone=True)
    check_overlap(layer, geobox)
    return layer


def _pixel_m(geobox: GeoBox) -> float:
    """Side of a pixel, metres."""
    sizes = (abs(geobox.affine.e), abs(geobox.affine.a))
    return float(np.sqrt(np.prod([size * unit for size, unit in zip(sizes, metres_per_unit(geobox), strict=True)])))


def _cells(geobox: GeoBox, side_m: float | None) -> tuple[int, int]:
    """Side of a cell, px, and of an area, in cells, at most."""
    short = min(geobox.shape)
    if side_m is not None:
        side = max(round(side_m / _pixel_m(geobox)), 1)
        return max(round(side / 4), 1), max(round(side / max(round(side / 4), 1)), 1)
    cell = min(CELL, max(short // _SHARE, 1))
    return cell, max(1, min(_MOST_CELLS, short // _SHARE // cell))


def _counted(areas: Sequence[Suggestion], found: Found, cell: int, geobox: GeoBox) -> tuple[Suggestion, ...]:
    """With the objects that are predicted in each; the last cells of a row or column may reach beyond the grid."""
    counted = []
    for area in areas:
        rows, cols = (slice(part.start // cell, part.stop // cell) for part in area.roi)
        height, width = (
            min(size, whole - first)
            for size, whole, first in zip((area.height, area.width), geobox.shape, (area.row, area.col), strict=True)
        )
        objects = max(int(found.objects[rows, cols].sum()), 0)
        counted.append(replace(area, height=int(height), width=int(width), objects=objects))
    return tuple(counted)


def _write(path: Path, areas: Sequence[Suggestion], geobox: GeoBox) -> None:
    with staged(path) as part:
        write_layer(part, to_frame(areas, geobox), layer=LAYER, geometry_type="Polygon")
        complete_geopackage(part, (), {LAYER: outline_style(_COLOUR)})
