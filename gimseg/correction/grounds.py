"""The ground of a correction: its rasters with what was drawn on them, as scenes to learn from and to score.

Only what lies around the drawing is opened: a correction of a few blocks costs the same
on any raster. Nothing is kept between two calls, unless the caller keeps it (:func:`opened_once`); what was edited
since is read anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import shapely
from odc.geo.geobox import GeoBox

from gimseg.correction.drawing import AOI, CLASS_FIELD, OBJECTS, POINTS, Drawing
from gimseg.correction.holding import Pins, hold_out_blocks, pin_blocks
from gimseg.correction.rounds import Correction
from gimseg.datasets import Dataset, is_label_raster
from gimseg.errors import CorrectionError
from gimseg.imagery import choose_bands
from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import Legend
from gimseg.models import Model
from gimseg.radiometry import levelled_by_raster
from gimseg.raster_files import files_behind
from gimseg.rasters import Roi
from gimseg.recipes import Recipe
from gimseg.vector_formats import find_source, layer_names, read_columns

Opened = Callable[[Correction, Recipe], tuple[LabelledScene, ...]]
_SAMPLE = 1 << 16
_COLUMNS = 16


def training_window(model: Model) -> int:
    """Side of the windows that a model was trained with, px."""
    return int(model.provenance.get("settings", {}).get("window", model.recipe.window))


def open_rasters(correction: Correction, recipe: Recipe) -> tuple[LabelledScene, ...]:
    """Each raster whole, with what was drawn on it, undivided.

    Raises:
        GimsegError: a file cannot be read, or does not fit the model.
    """
    dataset = correction.dataset()
    if dataset is not None:
        given = fit_dataset(dataset, recipe).scenes()
        return levelled_by_raster(given) if recipe.own_levels else given
    opening, scenes = correction.opening, []
    for path in correction.rasters:
        raster = opening.open(path, choose_bands(recipe, opening.bands))
        grid = raster.grid(recipe.resolution)
        drawing = Drawing.read(correction.gpkg, grid, recipe.legend, vector_crs=opening.vector_crs)
        notes = (*raster.notes, *drawing.notes)
        scenes.append(
            LabelledScene(correction.id, raster, raster.on(grid), recipe.legend, notes=notes, drawing=drawing)
        )
    return levelled_by_raster(scenes) if recipe.own_levels else tuple(scenes)


def opened_once() -> Opened:
    """What opens as :func:`open_rasters` does, but each correction once: for a piece of work that comes back to it.

    All of the work sees what was drawn when it began.
    """
    found: dict[Path, tuple[LabelledScene, ...]] = {}

    def opened(correction: Correction, recipe: Recipe) -> tuple[LabelledScene, ...]:
        if correction.folder not in found:
            found[correction.folder] = open_rasters(correction, recipe)
        return found[correction.folder]

    return opened


def open_ground(correction: Correction, model: Model, opened: Opened = open_rasters) -> tuple[LabelledScene, ...]:
    """The drawn parts of the rasters, divided into the splits ``train`` and ``val``.

    Args:
        correction: what was drawn.
        model: gives bands, resolution, legend and the side of the blocks.
        opened: see :func:`opened_once`.

    Returns:
        scenes, one or more a raster, that hold all that was drawn and a window around it.

    Raises:
        CorrectionError: nothing was drawn, or classes that the model has not.
        GimsegError: a file cannot be read.
    """
    parts, window = _drawn_scenes(correction, model, opened), training_window(model)
    return hold_out_blocks(parts, model.recipe.resolution, window, Pins.read(correction.project.rounds))


def pin_ground(corrections: Iterable[Correction], model: Model, opened: Opened = open_rasters) -> None:
    """Decide, one correction after the other, which of their blocks are held out: for ever, and for all corrections.

    Args:
        corrections: of one project, the earliest first.
        model: that learns them.
        opened: see :func:`opened_once`.

    Raises:
        CorrectionError: all that a correction labels lies on blocks that are held out already.
        GimsegError: see :func:`open_ground`.
    """
    for correction in corrections:
        scenes = _drawn_scenes(correction, model, opened)
        pins = pin_blocks(correction.project.rounds, scenes, model.recipe.resolution, training_window(model))
        if pins is None:
            raise CorrectionError(
                f"all that correction {correction.id!r} labels lies on blocks of ground that earlier corrections hold "
                "out to be scored on, and nothing is learned there: draw on more ground"
            )


def _drawn_scenes(correction: Correction, model: Model, opened: Opened) -> list[LabelledScene]:
    """The drawn parts of the rasters, each with a window around it, undivided."""
    margin = training_window(model)
    parts = [scene.crop(roi) for scene in opened(correction, model.recipe) for roi in drawn_parts(scene, margin=margin)]
    if not parts:
        raise CorrectionError(f"correction {correction.id!r} labels nothing: draw an area of interest or an object")
    return parts


def fit_dataset(dataset: Dataset, recipe: Recipe) -> Dataset:
    """A Dataset that is a correction, as the model sees it.

    Its own resolution is that of its truth; the model has its own. Where the Dataset
    names no classes and the model has one, every polygon is of that one; where the model
    has several, the attribute that the model learned from tells, or ``class``.

    Raises:
        CorrectionError: it names other classes, or a split.
    """
    if dataset.split is not None:
        raise CorrectionError(
            f"dataset '{dataset.tag}' has the split {dataset.split!r}: a correction divides its ground itself, "
            "leave the split out"
        )
    given, known = dataset.legend, recipe.legend
    if given is None:
        legend = Legend(known.classes, None if known.is_binary else _telling_field(dataset, known))
    elif given.is_binary and known.is_binary:
        legend = Legend((replace(known.classes[0], values=given.classes[0].values),), given.field)
    elif (given.names, given.values) == (known.names, known.values):
        legend = given
    else:
        raise CorrectionError(
            f"dataset '{dataset.tag}' has the classes {', '.join(given.names)}, the model {', '.join(known.names)}: "
            "give the same, in the same order"
        )
    bands = choose_bands(recipe, dataset.bands)
    return replace(dataset, spatial_resolution=recipe.resolution, bands=bands, legend=legend)


def _telling_field(dataset: Dataset, legend: Legend) -> str:
    """The attribute that tells the class, if it is there; else that of a drawing."""
    layers = [path for path in dataset.masks if not is_label_raster(path)]
    fields = find_source(layers[0]).fields if layers else ()
    return legend.field if legend.field in fields and legend.field else CLASS_FIELD


def drawn_parts(scene: LabelledScene, *, margin: int) -> list[Roi]:
    """Rectangles of the grid, none of which overlap, that hold all that has labels.

    Args:
        scene: as :func:`open_rasters` gives it.
        margin: ground around what was drawn, px.
    """
    geometries = drawn_shapes(scene)
    if geometries is None:
        rows, cols = scene.shape
        return [(slice(0, rows), slice(0, cols))]
    return [_roi(box) for box in _apart(_boxes(geometries, scene.geobox, margin))]


def drawn_shapes(scene: LabelledScene) -> np.ndarray | None:
    """All that says something of a scene's ground, in its CRS; None where the whole of it is labelled.

    Args:
        scene: as :func:`open_rasters` gives it.

    Returns:
        geometries of any kind, (n,).
    """
    if scene.drawing is not None:
        drawn: Drawing = scene.drawing  # type: ignore[assignment]
        shapes = [drawn.areas, drawn.objects, drawn.background, drawn.points]
    elif scene.areas:
        shapes = list(scene.areas.values())
    elif scene.truth and all(part.partial for part in scene.truth) and not scene.truth_views:
        shapes = list(scene.truth)
    else:
        return None
    return np.concatenate([part.geometries for part in shapes])


def _boxes(geometries: np.ndarray, geobox: GeoBox, margin: int) -> np.ndarray:
    """Extents in whole pixels of the grid, widened and cut at its border, int (n, 4): left, top, right, bottom."""
    if not len(geometries):
        return np.empty((0, 4), int)
    bounds = shapely.bounds(geometries)
    x, y = (~geobox.affine) * (bounds[:, [0, 2]], bounds[:, [3, 1]])
    low = np.floor(np.column_stack([x[:, 0], y[:, 0]])).astype(int) - margin
    high = np.ceil(np.column_stack([x[:, 1], y[:, 1]])).astype(int) + margin
    rows, cols = geobox.shape
    boxes = np.hstack([np.clip(low, 0, (cols, rows)), np.clip(high, 0, (cols, rows))])
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def _apart(boxes: np.ndarray) -> list[tuple[int, int, int, int]]:
    """The boxes, those that overlap joined to one."""
    found = boxes
    while True:
        groups = shapely.get_parts(shapely.unary_union(shapely.box(*found.T))) if len(found) else np.empty(0, object)
        polygonal = [part for part in groups if part.area > 0]
        joined = np.array([part.bounds for part in polygonal]).reshape(-1, 4).astype(int)
        if len(joined) == len(found):
            return sorted(tuple(box) for box in joined.tolist())  # type: ignore[misc]
        found = joined


def _roi(box: Sequence[int]) -> Roi:
    left, top, right, bottom = box
    return slice(top, bottom), slice(left, right)


def drawing_key(correction: Correction) -> str:
    """Changes with everything that was drawn, and with the rasters: 16 hexadecimal digits.

    Drawn layers count with all their content, as it is read: edits that QGIS has not
    yet moved from the file beside a GeoPackage into it, too. Rasters count with their
    size and samples of their content.

    Raises:
        GimsegError: a file cannot be read.
    """
    digest = hashlib.sha256(json.dumps(_declared(correction), sort_keys=True, default=str).encode())
    for path in correction.rasters:
        for file in files_behind(path):
            digest.update(_samples(Path(file)))
    for path, layer in _drawn_layers(correction):
        if is_label_raster(path):
            digest.update(Path(path).read_bytes())
            continue
        source = find_source(path, layer)
        digest.update(f"{layer} {source.crs}".encode())
        # Some columns at a time: a layer of a whole country may have many.
        for first in range(0, max(len(source.fields), 1), _COLUMNS):
            geometries, columns = read_columns(source, source.fields[first : first + _COLUMNS], None)
            for name, values in columns.items():
                digest.update(f"{name} {values.tolist()}".encode())
        digest.update(b"".join(shapely.to_wkb(shape) or b"-" for shape in geometries))
    return digest.hexdigest()[:16]


def _declared(correction: Correction) -> list[object]:
    truth = {name: value for name, value in (correction.truth or {}).items() if not name.endswith("_paths")}
    return [str(correction.opening), truth, len(correction.rasters)]


def _drawn_layers(correction: Correction) -> Iterable[tuple[str, str | None]]:
    dataset = correction.dataset()
    if dataset is None:
        path = str(correction.gpkg)
        return [(path, layer) for layer in layer_names(path) if layer in (AOI, OBJECTS, POINTS)]
    return [(path, None) for path in (*dataset.masks, *dataset.aois, *dataset.ignored)]


def _samples(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for part in range(9):
            file.seek(max(0, (size - _SAMPLE) * part // 8))
            digest.update(file.read(_SAMPLE))
    return digest.digest()
