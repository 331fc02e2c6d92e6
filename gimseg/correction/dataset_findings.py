"""What in the ground truth of a Dataset would mislead a training, each with its file, feature and place.

As of a drawing, but a Dataset's files are nobody's to mend: geometries are repaired and left
out as they are read, and what has no class of the legend is unlabelled. Only what lies on
ground that is labelled is looked at, however large a layer is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import shapely

from gimseg.correction.findings import (
    Features,
    Finding,
    Meant,
    areal,
    contradictions,
    overlaps,
    place_in,
    place_of,
    slivers,
)
from gimseg.datasets import Dataset, is_label_raster
from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import Legend, did_you_mean
from gimseg.vector_formats import NO_GEOMETRY, find_null, read_numbered
from gimseg.vector_geometry import are_finite, frame_of, repaired, transformed, widened_bounds
from gimseg.vectors import Layer, open_layer

_NOWHERE = (float("nan"), float("nan"))
_EMPTY, _ELSEWHERE = "it has no geometry", "it lies beyond what the raster's CRS can express"
_NO_NUMBER = "a coordinate of it is no number (NaN or infinite)"


def check_truth(dataset: Dataset, scene: LabelledScene) -> Iterator[Finding]:
    """Everything in the layers of ground truth that would mislead a training on one image.

    Args:
        dataset: as the model sees it.
        scene: one of its images.

    Raises:
        VectorError: a layer is damaged.
    """
    ground, layers = _ground(scene), []
    paths = [path for path in dataset.masks if not is_label_raster(path)]
    for name, path in zip(_names(paths), paths, strict=True):
        layer = open_layer(path, crs=dataset.vector_crs)
        if layer.bounds is None or layer.meets(scene.geobox):
            yield from _left_out(name, find_null(layer.source), _EMPTY)
            features, found = _read(layer, name, scene, ground)
            yield from found
            layers.append(features)
    yield from _between(layers, scene, ground)


def other_notes(dataset: Dataset, scenes: Sequence[LabelledScene]) -> tuple[str, ...]:
    """Notes of a Dataset's scenes, without those that :func:`check_truth` tells feature by feature."""
    counted = {note for scene in scenes for shapes in scene.truth for note in replace(shapes, remarks=()).notes}
    told = {f"{path}: {note}" for path in dataset.masks for note in counted}
    notes = dict.fromkeys(note for scene in scenes for note in scene.notes)
    return tuple(note for note in notes if note not in told and not note.endswith(NO_GEOMETRY))


def _names(paths: Sequence[str]) -> list[str]:
    """Names of files, or whole paths where two files have one name."""
    names = [Path(path).name for path in paths]
    return [name if names.count(name) == 1 else path for name, path in zip(names, paths, strict=True)]


def _ground(scene: LabelledScene) -> shapely.Geometry:
    """Where a scene is labelled, as far as its layers say it."""
    ground = scene.geobox.extent.geom
    if scene.areas:
        areas = [area for part in scene.areas.values() for area in part.geometries]
        ground = areal(ground.intersection(areal(shapely.union_all(areas))))
    if scene.ignored is None:
        return ground
    return areal(ground.difference(areal(shapely.union_all(scene.ignored.geometries))))


def _read(layer: Layer, name: str, scene: LabelledScene, ground: shapely.Geometry) -> tuple[Features, list[Finding]]:
    """Features that lie on the ground, repaired, and what is to be said of each by itself."""
    geobox, legend = scene.geobox, scene.legend
    crs = None if geobox.crs is None else layer.crs
    bounds = widened_bounds(frame_of(geobox, 0), geobox.crs, crs)
    ids, given, attributes = read_numbered(layer.source, [legend.field] if legend.field else [], bounds)
    texts = np.array([_text(said) for said in attributes[legend.field]] if legend.field else [], object)
    there = np.flatnonzero(~(shapely.is_missing(given) | shapely.is_empty(given)))
    shapes, shown = transformed(given[there], crs, geobox.crs, Counter())
    solid = repaired(shapes, Counter())
    # What collapses would be on the ground where its extent is.
    shapely.prepare(ground)
    on_ground = shapely.intersects(ground, np.where(shapely.is_empty(solid), shapely.envelope(shapes), solid))
    classes = texts if legend.field else np.full(len(ids), legend.classes[0].values[0], object)
    raw = Features(name, ids[there][shown], shapes, classes[there][shown]).chosen(on_ground)
    kept = raw._replace(shapes=solid[on_ground])
    found = [*_left_out(name, ids[shapely.is_empty(given)], _EMPTY)]
    beyond = np.delete(there, shown)
    numbers = are_finite(given[beyond])
    for places, problem in ((beyond[~numbers], _NO_NUMBER), (beyond[numbers], _ELSEWHERE)):
        found += _left_out(name, ids[places], problem)
    found += [*_broken(raw, kept), *_unknown(kept, legend)]
    return kept, [*found, *(replace(one, fixable=False) for one in slivers(kept, geobox))]


def _text(said: object) -> str | None:
    """What an attribute says of the class; 7.0 is how 7 is read beside a null."""
    if said is None or said != said:
        return None
    return f"{said:.15g}" if isinstance(said, float) else str(said)


def _left_out(name: str, ids: np.ndarray, problem: str) -> Iterator[Finding]:
    for feature in ids.tolist():
        yield Finding(name, feature, _NOWHERE, f"{problem}: it is left out", fatal=False)


def _broken(raw: Features, kept: Features) -> Iterator[Finding]:
    """Invalid features, by what reading makes of them."""
    for place in np.flatnonzero(~shapely.is_valid(raw.shapes)):
        shape, reason = raw.shapes[place], shapely.is_valid_reason(raw.shapes[place])
        what = "without an area it is left out" if kept.shapes[place].is_empty else "it is repaired as it is read"
        problem = f"invalid: {reason}: {what}"
        yield Finding(raw.layer, int(raw.ids[place]), place_of(reason, shape), problem, fatal=False)


def _unknown(features: Features, legend: Legend) -> Iterator[Finding]:
    """Texts that mean no class, each once, with the first feature that says it."""
    none = np.array([legend.value_of(text) is None for text in features.classes], bool)
    texts = [(text or "").strip() for text in features.classes[none]]
    known = [word for item in legend.classes for word in item.values]
    for text, count in Counter(texts).items():
        place = int(np.flatnonzero(none)[texts.index(text)])
        what = f"class {text!r} is not in the legend" if text else "it has no class"
        more = f" (and {count - 1} more like it)" if count > 1 else ""
        hint = did_you_mean(text, known) if text else ""
        problem = f"{what}, so it is unlabelled{more}{hint}"
        feature, where = int(features.ids[place]), place_in(features.shapes[place])
        yield Finding(features.layer, feature, where, problem, fatal=False)


def _between(layers: Sequence[Features], scene: LabelledScene, ground: shapely.Geometry) -> Iterator[Finding]:
    """What features say against one another, those of several layers, too."""
    points, polygons = (
        [_of_dimension(features, scene.legend, dimension) for features in layers] for dimension in (0, 2)
    )
    for place, left in enumerate(polygons):
        for right in polygons[place:]:
            yield from overlaps(left, right, scene.geobox, ground)
        for clicks in points:
            yield from contradictions(clicks, left)


def _of_dimension(features: Features, legend: Legend, dimension: int) -> Meant:
    """Points (0) or polygons (2) whose class is known; lines cross polygons as they like."""
    return Meant.of(features.chosen(shapely.get_dimensions(features.shapes) == dimension), legend, legend.values)
