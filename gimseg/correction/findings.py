"""What in a drawing would mislead a training, each with its layer, feature and place."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import shapely
from odc.geo.geobox import GeoBox

from gimseg.correction.drawing import (
    AOI,
    CLASS_FIELD,
    DIMENSIONS,
    IGNORE_NAME,
    OBJECTS,
    POINTS,
    PREDICTION,
    drawing_legend,
)
from gimseg.errors import GridError
from gimseg.legend import Legend, did_you_mean
from gimseg.tiling import chunks
from gimseg.vector_formats import find_damaged, layer_names, read_numbered, table_names
from gimseg.vector_geometry import are_finite, is_convertible, name_of, transformed
from gimseg.vectors import Shapes, open_layer

# Digitising leaves neighbours overlapping by a hair: less than this share of a pixel is no contradiction.
_OVERLAP_PX = 1.0
# A predicted pixel is in an area when its centre is, and its outline was simplified: so far beyond is still the border.
_BORDER_PX = 2.0
# Wherever it lies, a disk of this radius holds a pixel's centre.
_REACH_PX = 0.71
_BLOCK = 1024
# Two names are near from this likeness on, 1 being the same, if they begin alike.
_LIKE = 0.8
_NOWHERE = (float("nan"), float("nan"))
_RING = "invalid: a ring of it is not closed, or has too few corners"
_NO_NUMBER = "invalid: a coordinate of it is no finite number"
_ELSEWHERE = "it lies beyond what the raster's CRS can express: is its own CRS right?"
OUTSIDE = "it lies outside the raster, and labels nothing there: is its CRS right?"
_LOST = {
    AOI: "only the inside of polygons is labelled, nowhere is all of it drawn",
    OBJECTS: "nothing that was predicted is there any more",
    POINTS: "no point is learned",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        layer: of the feature.
        feature: its id in the layer, as QGIS shows it; None for what holds of all.
        place: x and y in the raster's CRS, where to look; NaN for what has no place.
        problem: what it is.
        fatal: the training is refused; else it is only odd.
        fixable: :func:`gimseg.correction.checking.fix_drawing` mends it without guessing.
        of_raster: another raster of the correction may be the one that was meant.
    """

    layer: str
    feature: int | None
    place: tuple[float, float]
    problem: str
    fatal: bool = True
    fixable: bool = False
    of_raster: bool = False

    def text(self) -> str:
        """A line for people."""
        x, y = self.place
        where = "" if np.isnan(x) else f" at {x:.10g}, {y:.10g}"
        kind = "error" if self.fatal else "warning"
        feature = "" if self.feature is None else f", feature {self.feature}"
        return f"{kind}: {self.layer}{feature}{where}: {self.problem}"


class Features(NamedTuple):
    """A layer, in the raster's CRS."""

    layer: str
    ids: np.ndarray
    """(n,), as QGIS shows them."""
    shapes: np.ndarray
    """(n,) geometries; None where there is none."""
    classes: np.ndarray
    """(n,) texts or None."""
    faults: Mapping[int, str] = {}
    """What is wrong with how a geometry is stored, by id; a shape is None where that leaves nothing to show."""

    def chosen(self, which: np.ndarray) -> Features:
        """Some of them: places, or bool (n,)."""
        return Features(self.layer, self.ids[which], self.shapes[which], self.classes[which], self.faults)

    @property
    def present(self) -> np.ndarray:
        """The geometries that are there."""
        return self.shapes[_is_there(self.shapes)]

    @property
    def elsewhere(self) -> list[int]:
        """Ids of those that have no coordinates in the raster's CRS."""
        return [one for one, fault in self.faults.items() if fault == _ELSEWHERE]


class Meant(NamedTuple):
    """Features whose class says something, with valid geometries."""

    features: Features
    values: np.ndarray
    """(n,), of their classes."""

    @classmethod
    def of(cls, features: Features, legend: Legend, values: Iterable[int]) -> Meant:
        """Those of some classes that have a geometry.

        Args:
            features: any.
            legend: says what the texts of their classes mean.
            values: of the classes.
        """
        said = np.array([legend.value_of(text) or 0 for text in features.classes], int)
        chosen = np.isin(said, list(values)) & _is_there(features.shapes)
        there = features.chosen(chosen)
        return cls(there._replace(shapes=shapely.make_valid(there.shapes)), said[chosen])


def read_features(
    path: str | os.PathLike[str], layer: str, geobox: GeoBox, *, vector_crs: str | None = None
) -> Features:
    """All features of a layer, nothing repaired; an absent layer has none.

    Raises:
        GridError: the layer has no CRS and the raster has one.
        VectorError: the file is damaged or of another kind.
    """
    if layer not in layer_names(path):
        return Features(layer, np.empty(0, int), np.empty(0, object), np.empty(0, object))
    opened = open_layer(path, layer=layer, crs=vector_crs)
    crs = None if geobox.crs is None else opened.crs
    if geobox.crs is not None and (crs is None or not is_convertible(crs, geobox.crs)):
        raise GridError(f"layer {layer} of {path} has {name_of(crs)}: declare the one it is in with --vector-crs")
    fields = [CLASS_FIELD] if CLASS_FIELD in opened.fields else []
    ids, given, columns = read_numbered(opened.source, fields, None)
    texts = [
        None if text is None or text != text else str(text) for text in columns.get(CLASS_FIELD, [None] * len(ids))
    ]
    there = np.flatnonzero(_is_there(given))
    moved, kept = transformed(given[there], crs, geobox.crs, Counter())
    shapes = np.full(len(ids), None, object)
    shapes[shapely.is_empty(given)] = given[shapely.is_empty(given)]
    shapes[there[kept]] = moved
    faults = dict.fromkeys(find_damaged(opened.source).tolist(), _RING)
    lost = np.delete(there, kept)
    for one, finite in zip(ids[lost].tolist(), are_finite(given[lost]).tolist(), strict=True):
        faults[one] = _ELSEWHERE if finite else _NO_NUMBER
    return Features(layer, ids, shapes, np.array(texts, object), faults)


def check(
    path: str | os.PathLike[str], geobox: GeoBox, legend: Legend, *, vector_crs: str | None = None
) -> tuple[Finding, ...]:
    """Everything in a drawing that would mislead a training.

    Args:
        path: the correction.
        geobox: of the raster, at the model's resolution.
        legend: of the model.
        vector_crs: of layers that have no CRS.

    Raises:
        GimsegError: a layer cannot be read at all.
    """
    areas, objects, points = (
        read_features(path, layer, geobox, vector_crs=vector_crs) for layer in (AOI, OBJECTS, POINTS)
    )
    found = [*_names(path), *_geometries(areas), *_geometries(objects), *_geometries(points)]
    found += [*_classes(objects, legend), *_classes(points, legend)]
    found += [finding for features in (areas, objects, points) for finding in _places(features, geobox)]
    found += [finding for features in (objects, points) for finding in _all_outside(features, geobox)]
    for features in (areas, objects):
        found += [*slivers(features, geobox), *_holding_no_pixel(features, geobox)]
    known = drawing_legend(legend)
    drawn = Meant.of(objects, known, legend.values)
    found += [*_beyond_areas(drawn.features, areas, geobox), *overlaps(drawn, drawn, geobox)]
    # Background stands above classes: it overlaps nothing, but it contradicts points.
    telling = [value for value in known.values if value != known.find(IGNORE_NAME).value]
    found += contradictions(Meant.of(points, known, telling), Meant.of(objects, known, telling))
    return tuple(sorted(found, key=lambda one: (not one.fatal, one.layer, one.feature or 0)))


def worth_keeping(features: Features, geobox: GeoBox) -> np.ndarray:
    """Which features say anything, bool (n,): they have a geometry, and a polygon covers more than a sliver."""
    there = _is_there(features.shapes)
    if features.layer != POINTS:
        there &= ~_too_small(features.shapes, geobox)
    # What only another CRS would show is not lost.
    return there | np.isin(features.ids, features.elsewhere)


def _names(path: str | os.PathLike[str]) -> Iterator[Finding]:
    """Layers that are missing, or that seem to be what a missing one was."""
    layers, others = layer_names(path), table_names(path)
    wanted = (*DIMENSIONS, PREDICTION)
    for name in wanted:
        if name in layers:
            continue
        near = [other for other in others if other not in wanted and _is_near(other, name)]
        if name in others:
            yield Finding(name, None, _NOWHERE, "the layer has no column of geometries: save it with its geometries")
        elif near:
            problem = f"it is not read: did you mean {name!r}? Give it that name, or another one, or delete it"
            yield Finding(near[0], None, _NOWHERE, problem)
        elif PREDICTION in layers:
            problem = f"the layer is gone, and gimseg correct start made one: {_LOST[name]}"
            yield Finding(name, None, _NOWHERE, problem, fatal=False)


def _is_near(given: str, name: str) -> bool:
    """Whether a name is a known one in capitals, with an ending, without its plural, or mistyped."""
    given = given.casefold().strip()
    if given in (name, name.rstrip("s")) or given == f"{name}s":
        return True
    if given.startswith(name):
        return not given[len(name)].isalpha()
    return given[:1] == name[0] and difflib.SequenceMatcher(None, given, name).ratio() >= _LIKE


def _is_there(shapes: np.ndarray) -> np.ndarray:
    return ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))


def _geometries(features: Features) -> Iterator[Finding]:
    wanted = DIMENSIONS[features.layer]
    for feature, shape in zip(features.ids.tolist(), features.shapes, strict=True):
        if feature in features.faults:
            fault = features.faults[feature]
            yield Finding(features.layer, feature, place_in(shape), fault, fixable=fault != _ELSEWHERE)
        elif shape is None or shape.is_empty:
            yield Finding(features.layer, feature, _NOWHERE, "it has no geometry: delete it", fixable=True)
        elif shapely.get_dimensions(shape) != wanted:
            kind = "points" if wanted == 0 else "polygons"
            problem = f"it is a {shape.geom_type} in a layer of {kind}: draw it in its own layer"
            yield Finding(features.layer, feature, place_in(shape), problem)
        elif not shape.is_valid:
            reason = shapely.is_valid_reason(shape)
            yield Finding(features.layer, feature, place_of(reason, shape), f"invalid: {reason}", fixable=True)


def _classes(features: Features, legend: Legend) -> Iterator[Finding]:
    known = drawing_legend(legend)
    for feature, shape, text in zip(features.ids.tolist(), features.shapes, features.classes, strict=True):
        if text is None or not text.strip():
            problem = f"it has no class: give {CLASS_FIELD} one of {', '.join(known.names)}"
            yield Finding(features.layer, feature, place_in(shape), problem, fixable=legend.is_binary)
        elif known.value_of(text) is None:
            problem = f"class {text!r} is not in the legend{did_you_mean(text, known.names)}"
            yield Finding(features.layer, feature, place_in(shape), problem)


def _places(features: Features, geobox: GeoBox) -> Iterator[Finding]:
    frame = geobox.extent.geom
    for feature, shape in zip(features.ids.tolist(), features.shapes, strict=True):
        if shape is None or shape.is_empty:
            continue
        if not frame.intersects(shape):
            yield Finding(features.layer, feature, place_in(shape), OUTSIDE, features.layer == AOI, of_raster=True)
        elif not frame.contains(shapely.box(*shape.bounds)):
            problem = "it reaches beyond the raster, where it labels nothing"
            yield Finding(features.layer, feature, place_in(shape), problem, fatal=False, of_raster=True)


def _all_outside(features: Features, geobox: GeoBox) -> Iterator[Finding]:
    """A layer that misses the raster: one feature was drawn by mistake, all of them are in another CRS."""
    if misses(features, geobox):
        count = len(features.present) + len(features.elsewhere)
        place = place_in(features.present[0]) if len(features.present) else _NOWHERE
        problem = (
            f"{'its only feature lies' if count == 1 else f'all its {count} features lie'} outside the raster, where "
            "they would be missing without a word: is its CRS right? If it is, delete what lies elsewhere"
        )
        yield Finding(features.layer, None, place, problem, of_raster=True)


def misses(features: Features, geobox: GeoBox) -> bool:
    """Whether there are geometries, and none of them meets a grid."""
    met = shapely.intersects(features.present, geobox.extent.geom)
    return bool(len(features.present) or features.elsewhere) and not met.any()


def _beyond_areas(objects: Features, areas: Features, geobox: GeoBox) -> Iterator[Finding]:
    """Objects of a class, valid, that lie on the raster outside every area."""
    bounds = shapely.make_valid(areas.shapes[_is_there(areas.shapes)])
    if not len(bounds):
        return
    reach = _BORDER_PX * max(abs(geobox.resolution.x), abs(geobox.resolution.y))
    near = shapely.STRtree(bounds).query(objects.shapes, "dwithin", distance=reach)[0]
    beyond = shapely.intersects(objects.shapes, geobox.extent.geom)
    beyond[near] = False
    for place in np.flatnonzero(beyond):
        problem = "it lies outside every area of interest: only its inside is labelled, what is around it is not"
        yield Finding(objects.layer, int(objects.ids[place]), place_in(objects.shapes[place]), problem, fatal=False)


def slivers(features: Features, geobox: GeoBox) -> Iterator[Finding]:
    """Polygons that are thinner than half a pixel everywhere."""
    for place in np.flatnonzero(_too_small(features.shapes, geobox)):
        yield Finding(
            features.layer,
            int(features.ids[place]),
            place_in(features.shapes[place]),
            "a sliver: it is thinner than half a pixel everywhere",
            fatal=False,
            fixable=True,
        )


def _too_small(shapes: np.ndarray, geobox: GeoBox) -> np.ndarray:
    """Polygons that are thinner than half a pixel, bool (n,)."""
    return _without_disk(shapes, geobox, 0.25)


def _without_disk(shapes: np.ndarray, geobox: GeoBox, radius_px: float) -> np.ndarray:
    """Polygons in which no disk of a radius has room: so much, taken off all around, leaves nothing. bool (n,)."""
    side = min(abs(geobox.resolution.x), abs(geobox.resolution.y))
    areal = np.array([shape is not None and not shape.is_empty and shape.area > 0 for shape in shapes], bool)
    small = np.zeros(len(shapes), bool)
    small[areal] = shapely.is_empty(shapely.buffer(shapely.make_valid(shapes[areal]), -side * radius_px))
    return small


def _holding_no_pixel(features: Features, geobox: GeoBox) -> Iterator[Finding]:
    """Polygons on the raster, no slivers, that lie between the centres of its pixels."""
    thin = _without_disk(features.shapes, geobox, _REACH_PX) & ~_too_small(features.shapes, geobox)
    thin &= shapely.intersects(features.shapes, geobox.extent.geom)
    for place in np.flatnonzero(thin):
        shape = features.shapes[place]
        if not _labels_any(shape, geobox):
            problem = "no pixel has its centre in it, so it labels nothing: draw it larger, or delete it"
            yield Finding(
                features.layer, int(features.ids[place]), place_in(shape), problem, fatal=False, of_raster=True
            )


def _labels_any(shape: shapely.Geometry, geobox: GeoBox) -> bool:
    """Whether a pixel of the grid has its centre in a polygon."""
    burnt = Shapes(np.array([shapely.make_valid(shape)], object), np.ones(1, np.uint8), geobox.crs)
    x, y = (~geobox.affine) * (np.array(shape.bounds)[[0, 0, 2, 2]], np.array(shape.bounds)[[1, 3, 1, 3]])
    rows, cols = (
        slice(max(int(np.floor(axis.min())), 0), min(int(np.ceil(axis.max())), size))
        for axis, size in zip((y, x), geobox.shape, strict=True)
    )
    if rows.start >= rows.stop or cols.start >= cols.stop:
        return False
    window = geobox[rows, cols]
    size = (rows.stop - rows.start, cols.stop - cols.start)
    return any(burnt.burn_mask(window[roi]).any() for roi in chunks(size, _BLOCK, _BLOCK))


def overlaps(left: Meant, right: Meant, geobox: GeoBox, ground: shapely.Geometry | None = None) -> Iterator[Finding]:
    """Polygons of two classes on one piece of ground.

    Args:
        left: polygons.
        right: others; the same: among themselves.
        geobox: of the raster, at the model's resolution.
        ground: outside it they may overlap; None: nowhere.
    """
    pixel = abs(geobox.resolution.x * geobox.resolution.y)
    alone = left is right
    for one, other in _meeting(left.features.shapes, right.features.shapes):
        if left.values[one] == right.values[other] or (alone and one >= other):
            continue
        common = areal(shapely.intersection(left.features.shapes[one], right.features.shapes[other]))
        common = common if ground is None else shapely.intersection(common, ground)
        if common.area > _OVERLAP_PX * pixel:
            where = "" if left.features.layer == right.features.layer else f" of {right.features.layer}"
            problem = (
                f"{left.features.classes[one]} overlaps {right.features.classes[other]} (feature "
                f"{right.features.ids[other]}{where}) on {common.area / pixel:.3g} px: cut one of them"
            )
            yield Finding(left.features.layer, int(left.features.ids[one]), place_in(common), problem)


def contradictions(points: Meant, polygons: Meant) -> Iterator[Finding]:
    """Points in polygons that say something else."""
    for one, other in _meeting(points.features.shapes, polygons.features.shapes):
        if points.values[one] != polygons.values[other]:
            problem = (
                f"the point says {points.features.classes[one]}, the polygon around it (feature "
                f"{polygons.features.ids[other]} of {polygons.features.layer}) {polygons.features.classes[other]}: "
                "delete one of them"
            )
            place = place_in(points.features.shapes[one])
            yield Finding(points.features.layer, int(points.features.ids[one]), place, problem)


def _meeting(left: np.ndarray, right: np.ndarray) -> Iterator[tuple[int, int]]:
    pairs = shapely.STRtree(right).query(left, predicate="intersects")
    order: Sequence[int] = np.lexsort(pairs[::-1])  # type: ignore[assignment]
    yield from map(tuple, pairs[:, order].T.tolist())


def areal(shape: shapely.Geometry) -> shapely.Geometry:
    """The polygons of a geometry, without the lines and points in which things touch besides."""
    parts = shapely.get_parts(shape)
    return shapely.union_all(parts[shapely.area(parts) > 0])


def place_in(shape: shapely.Geometry | None) -> tuple[float, float]:
    """A point of a geometry, x and y; NaN where there is none."""
    if shape is None or shape.is_empty:
        return float("nan"), float("nan")
    point = shapely.point_on_surface(shape)
    return float(point.x), float(point.y)


def place_of(reason: str, shape: shapely.Geometry) -> tuple[float, float]:
    """The place that GEOS names in the reason why a geometry is invalid, as in ``Self-intersection[3 4]``."""
    try:
        x, y = map(float, reason.rpartition("[")[2].rstrip("]").split()[:2])
    except ValueError:
        left, bottom, right, top = shape.bounds
        return (left + right) / 2, (bottom + top) / 2
    return x, y
