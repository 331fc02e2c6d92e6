"""Can a drawing be learned from? Its findings, what it changed, and how many pixels it labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import shapely

from gimseg.correction.changes import Changes, compare_objects, parts_inside
from gimseg.correction.dataset_findings import check_truth, other_notes
from gimseg.correction.drawing import (
    AOI,
    BACKGROUND_NAME,
    CLASS_FIELD,
    DIMENSIONS,
    IGNORE_NAME,
    OBJECTS,
    POINTS,
    PREDICTION,
    Drawing,
    drawing_legend,
)
from gimseg.correction.findings import OUTSIDE, Features, Finding, Meant, check, misses, read_features, worth_keeping
from gimseg.correction.geopackage_rows import RowEdits, edited
from gimseg.correction.grounds import Opened, drawn_parts, fit_dataset, open_rasters
from gimseg.correction.rounds import Correction
from gimseg.datasets import Dataset
from gimseg.errors import CorrectionError
from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import BACKGROUND, UNLABELLED, Legend
from gimseg.models import Model
from gimseg.rasters import RasterView, Roi
from gimseg.tiling import chunks
from gimseg.vector_formats import can_say, find_kind, layer_names, read_stored
from gimseg.vector_geometry import repaired
from gimseg.vectors import Shapes

_BLOCK = 1024
# An area that is mostly beyond the image was drawn in the wrong place.
_MOSTLY = 0.5
# A layer of a town can have thousands of faults of one kind; errors come first.
_TOLD = 100
_NOWHERE = (float("nan"), float("nan"))
_NOTHING = "it labels no pixel of the raster: draw an area of interest, an object or a point"


@dataclass(frozen=True)
class Checked:
    """What is known of a drawing before it is learned from.

    Attributes:
        findings: errors first.
        changes: against the prediction; None where the file holds none.
        pixels: labelled and valid, by class name, ``background`` among them.
        mended: features that were mended before; None where nobody asked for it.
    """

    findings: tuple[Finding, ...]
    changes: Changes | None
    pixels: dict[str, int]
    mended: int | None = None

    @property
    def usable(self) -> bool:
        """Whether nothing forbids learning from it."""
        return not any(finding.fatal for finding in self.findings)

    def text(self) -> str:
        """Lines for people: what was mended, findings, then a summary."""
        lines = [] if self.mended is None else [f"mended {self.mended} feature{'s' * (self.mended != 1)}"]
        lines += [finding.text() for finding in self.findings[:_TOLD]]
        if len(self.findings) > _TOLD:
            lines.append(f"... and {len(self.findings) - _TOLD} more, which correct.check(...).findings holds")
        if self.changes is not None:
            lines.append(f"objects: {self.changes.text()}")
        lines.append("labelled: " + ", ".join(f"{name} {count:,} px" for name, count in self.pixels.items()))
        return "\n".join(lines)


def check_drawing(
    path: str | os.PathLike[str], view: RasterView, legend: Legend, *, vector_crs: str | None = None
) -> Checked:
    """Look at all of a drawing.

    Args:
        path: the correction.
        view: the raster at the model's resolution.
        legend: of the model.
        vector_crs: of layers that have no CRS.

    Raises:
        GimsegError: a layer or the raster cannot be read at all.
    """
    geobox = view.geobox
    findings = list(check(path, geobox, legend, vector_crs=vector_crs))
    drawing = Drawing.read(path, geobox, legend, vector_crs=vector_crs)
    areas, predicted, objects, points = (
        read_features(path, layer, geobox, vector_crs=vector_crs) for layer in (AOI, PREDICTION, OBJECTS, POINTS)
    )
    findings += _beyond_the_image(areas, view)
    pixels = _count(drawing, view)
    if not sum(pixels.values()):
        findings.append(replace(_whole(_NOTHING, True), of_raster=True))
    changes = None
    if misses(predicted, geobox):
        problem = "none of it lies on the raster, so nothing is compared with it: is its CRS right?"
        findings.append(Finding(PREDICTION, None, _NOWHERE, problem, fatal=False, of_raster=True))
    elif PREDICTION in layer_names(path):
        changes = _changes(areas, predicted, objects, points, legend)
        if not changes.any:
            findings.append(_whole("nothing was changed: it confirms the prediction in its areas", False))
    return Checked(_in_order(findings), changes, pixels)


def check_correction(correction: Correction, model: Model, opened: Opened = open_rasters) -> Checked:
    """Look at all of a correction, on each of its rasters.

    Args:
        correction: that is looked at.
        model: that is to learn it.
        opened: see :func:`gimseg.correction.grounds.opened_once`.

    Raises:
        GimsegError: a layer or a raster cannot be read at all.
    """
    scenes = opened(correction, model.recipe)
    dataset = correction.dataset()
    if dataset is not None:
        return _check_dataset(fit_dataset(dataset, model.recipe), scenes)
    crs, legend = correction.opening.vector_crs, model.recipe.legend
    each = [check_drawing(correction.gpkg, scene.view, legend, vector_crs=crs) for scene in scenes]
    return _together(each)


def _together(each: Sequence[Checked]) -> Checked:
    """What holds of a drawing on several rasters: a feature may lie on any one of them."""
    pixels = {name: sum(one.pixels[name] for one in each) for name in each[0].pixels}
    here = [{(item.layer, item.feature) for item in one.findings if item.of_raster} for one in each]
    outside = [{(item.layer, item.feature) for item in one.findings if item.problem == OUTSIDE} for one in each]
    everywhere, nowhere = set.intersection(*here), set.intersection(*outside)
    findings = {
        (item.layer, item.feature, item.problem): item
        for one in each
        for item in one.findings
        if not item.of_raster or (item.layer, item.feature) in (nowhere if item.problem == OUTSIDE else everywhere)
    }
    changes = next((one.changes for one in each if one.changes is not None), None)
    return Checked(_in_order(findings.values()), changes, pixels)


def _check_dataset(dataset: Dataset, scenes: Sequence[LabelledScene]) -> Checked:
    """What its layers and files say of themselves, and whether anything is labelled."""
    found = [_whole(note, False) for note in other_notes(dataset, scenes)]
    found += [finding for scene in scenes for finding in check_truth(dataset, scene)]
    findings = [*{(one.layer, one.feature, one.problem): one for one in found}.values()]
    legend = scenes[0].legend
    counts = np.zeros(256, np.int64)
    for scene in scenes:
        for part in drawn_parts(scene, margin=0):
            drawn = scene.crop(part)
            for roi in chunks(drawn.shape, _BLOCK, _BLOCK):
                counts += np.bincount(drawn.read_known(roi).ravel(), minlength=256)
    pixels = _named(counts, legend)
    if not sum(pixels.values()):
        findings.append(_whole(_NOTHING, True))
    return Checked(_in_order(findings), None, pixels)


def _in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda one: (not one.fatal, one.layer, one.feature or 0)))


def fix_drawing(
    path: str | os.PathLike[str], view: RasterView, legend: Legend, *, vector_crs: str | None = None
) -> int:
    """Mend what can be mended without a guess, in place: whole or not at all.

    Features without a geometry or an area, those with a coordinate that is no number, and
    slivers, are left out; invalid polygons are made valid; where the model has one class,
    a missing class is that one. Only the rows concerned are touched: ids, columns, layers
    and styles stay, and what a layer says of its CRS. Where `path` is a link, the file is
    mended that it leads to.

    Args:
        path: a GeoPackage that no other program is writing to or reading.
        view: the raster at the model's resolution.
        legend: of the model.
        vector_crs: of layers that have no CRS, or a wrong one; it is not written to them.

    Returns:
        features that were left out or changed.

    Raises:
        CorrectionError: the file is no GeoPackage, or is open elsewhere.
        OutputError: it cannot be written.
    """
    path = Path(os.path.realpath(path))
    if find_kind(str(path)) != "GeoPackage":
        raise CorrectionError(f"{path}: only a GeoPackage is mended in place; save the layers as one first")
    waiting = [ending for ending in ("-wal", "-journal") if Path(f"{path}{ending}").exists()]
    if waiting:
        raise CorrectionError(f"{path}{waiting[0]} is there: save the edits and close {path.name} in QGIS first")
    mended = 0
    with edited(path) as edits:
        for layer in sorted(set(layer_names(path)) & set(DIMENSIONS)):
            features = read_features(path, layer, view.geobox, vector_crs=vector_crs)
            each = _edits_of(path, features, view, legend)
            count = len({*each.deleted, *each.shapes, *each.texts})
            edits += [each] * bool(count)
            mended += count
    return mended


def _edits_of(path: Path, features: Features, view: RasterView, legend: Legend) -> RowEdits:
    """What mends a layer, whose features are given in the raster's CRS, too."""
    shapes, on_raster = read_stored(path, features.layer), features.shapes.copy()
    damaged = np.isin(features.ids, [*features.faults]) & ~np.isin(features.ids, features.elsewhere)
    broken = ~(shapely.is_missing(shapes) | shapely.is_missing(on_raster))
    broken[broken] = ~shapely.is_valid(shapes[broken])
    # What has no area is empty now, and what is a sliver shows itself.
    shapes[broken], on_raster[broken] = (repaired(one[broken], Counter()) for one in (shapes, on_raster))
    kept = worth_keeping(features._replace(shapes=on_raster), view.geobox) & ~shapely.is_empty(shapes)
    nameless = np.array([not (text or "").strip() for text in features.classes], bool)
    unnamed = (
        kept & nameless & (legend.is_binary and features.layer != AOI and can_say(path, features.layer, CLASS_FIELD))
    )
    changed = kept & (broken | damaged)
    return RowEdits(
        features.layer,
        deleted=tuple(features.ids[~kept].tolist()),
        shapes=dict(zip(features.ids[changed].tolist(), shapes[changed], strict=True)),
        texts=dict.fromkeys(features.ids[unnamed].tolist(), legend.names[0]),
        field=CLASS_FIELD,
    )


def _whole(problem: str, fatal: bool) -> Finding:
    return Finding("drawing", None, _NOWHERE, problem, fatal)


def _changes(areas: Features, predicted: Features, objects: Features, points: Features, legend: Legend) -> Changes:
    """What was drawn, against what was predicted in the areas of interest."""
    known = drawing_legend(legend)
    inside = shapely.make_valid(areas.shapes[~shapely.is_missing(areas.shapes)])
    before, drawn, clicks = (Meant.of(one, known, known.values) for one in (predicted, objects, points))
    meets, of_class = parts_inside(before.features.shapes, inside), np.isin(drawn.values, legend.values)
    compared = compare_objects(
        before.features.shapes[meets], before.values[meets], drawn.features.shapes[of_class], drawn.values[of_class]
    )
    nothing, ignore = (int((drawn.values == known.find(name).value).sum()) for name in (BACKGROUND_NAME, IGNORE_NAME))
    return replace(compared, points=len(clicks.values), background=nothing, ignored=ignore)


def _beyond_the_image(areas: Features, view: RasterView) -> Iterator[Finding]:
    """Areas of interest over ground that the image does not show."""
    for feature, shape in zip(areas.ids.tolist(), areas.shapes, strict=True):
        if shape is None or shape.is_empty or not view.geobox.extent.geom.intersects(shape):
            continue
        inside = Features(AOI, np.array([feature]), np.array([shape], object), np.array([None], object))
        seen, pixels = 0, 0
        for roi in _blocks(inside, view):
            mask = _burn(shape, view, roi)
            pixels += int(mask.sum())
            seen += int((mask & view.read(roi).valid).sum())
        if pixels and seen < pixels * (1 - _MOSTLY):
            point = shapely.point_on_surface(shape)
            problem = f"{1 - seen / pixels:.0%} of it is beyond the image, where nothing can be learned"
            yield Finding(AOI, feature, (point.x, point.y), problem, fatal=not seen, of_raster=True)


def _burn(shape: shapely.Geometry, view: RasterView, roi: Roi) -> np.ndarray:
    return Shapes(np.array([shape], object), np.ones(1, np.uint8), view.geobox.crs).burn_mask(view.geobox[roi])


def _count(drawing: Drawing, view: RasterView) -> dict[str, int]:
    """Valid pixels that have a label, by class."""
    counts = np.zeros(256, np.int64)
    parts = (drawing.areas, drawing.objects, drawing.background, drawing.points)
    shapes = np.concatenate([part.geometries for part in parts])
    every = Features("drawing", np.arange(len(shapes)), shapes, np.full(len(shapes), None))
    for roi in _blocks(every, view):
        labels = drawing.burn(view.geobox[roi])
        if (labels != UNLABELLED).any():
            labels[~view.read(roi).valid] = UNLABELLED
            counts += np.bincount(labels.ravel(), minlength=256)
    return _named(counts, drawing.legend)


def _named(counts: np.ndarray, legend: Legend) -> dict[str, int]:
    values = {"background": BACKGROUND, **dict(zip(legend.names, legend.values, strict=True))}
    return {name: int(counts[value]) for name, value in values.items()}


def _blocks(features: Features, view: RasterView) -> Iterator[Roi]:
    """Blocks of the raster that features meet."""
    if not len(features.shapes):
        return
    tree = shapely.STRtree(features.shapes)
    rows, cols = view.geobox.shape
    for top in range(0, rows, _BLOCK):
        for left in range(0, cols, _BLOCK):
            roi = (slice(top, min(top + _BLOCK, rows)), slice(left, min(left + _BLOCK, cols)))
            if len(tree.query(view.geobox[roi].extent.geom, predicate="intersects")):
                yield roi
