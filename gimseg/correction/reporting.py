"""One round of correction, before and after, for people: ``gimseg correct report``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from gimseg.assembly import RUN_TAG
from gimseg.correction.areas import opening_of, write_areas
from gimseg.correction.differences import compare_masks, compare_polygons
from gimseg.correction.estimates import Estimate, estimate_accuracy
from gimseg.correction.gate import Verdict
from gimseg.correction.grounds import drawn_parts, open_rasters
from gimseg.correction.journal import alone
from gimseg.correction.pages import Look, RasterChange, make_page
from gimseg.correction.proof import Models, Proof, prove, write_metrics
from gimseg.correction.rounds import Correction, Project
from gimseg.correction.suggestions import Doubt
from gimseg.errors import ResumeError
from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import UNLABELLED
from gimseg.preflight import Plan
from gimseg.progress import Progress, silent
from gimseg.rasters import RasterView, Roi, open_raster
from gimseg.tiling import chunks

_SIDE = 768  # of a picture, px, at most
_MARGIN = 32
SUGGESTIONS = "suggestions.gpkg"
"""Where areas that were suggested are looked for, in the folder of the project."""


@dataclass(frozen=True)
class Report:
    """What :func:`report` has made.

    Args:
        path: of the page.
        verdict: of the gate.
        changes: of each raster, for people.
        estimate: of the accuracy over the whole raster, if random areas were drawn.
    """

    path: Path
    verdict: Verdict
    changes: tuple[str, ...] = ()
    estimate: Estimate | None = None

    def text(self) -> str:
        """Lines for people."""
        lines = [self.verdict.text(), *self.changes, *([self.estimate.text()] if self.estimate else [])]
        return "\n".join([*lines, f"{self.path}: all of it, with pictures"])


def report(
    id: str,
    *,
    project: str | os.PathLike[str] = ".",
    test: str | os.PathLike[str] | None = None,
    suggestions: str | os.PathLike[str] | None = None,
    rest: bool = True,
    device: str = "auto",
    progress: Progress = silent,
) -> Report:
    """Compare a model before and after a correction, and leave the proof beside it.

    Writes ``before.tif`` and ``after.tif``, the masks of both models, ``diff.gpkg``, the
    objects that appeared and vanished, ``metrics.json`` and ``report.html``. Whatever is
    there already of these very models is not predicted again.

    Args:
        id: of the correction.
        project: folder that holds ``corrections/``.
        test: dataset file of what was learned before; None: the test windows that the
            old model keeps.
        suggestions: areas that ``correct suggest`` drew; None: ``suggestions.gpkg`` of the
            project, if it is there. From those drawn at random comes an estimate for the whole raster.
        rest: look at the rest of the raster too, which takes two predictions of it.
        device: see :class:`gimseg.inference.Predictor`.
        progress: told how far the work is.

    Raises:
        CorrectionError: nothing was learned yet.
        GimsegError: a file cannot be read or written.
    """
    home = Project(Path(project))
    correction = home.correction(id)
    with alone(home.rounds):
        return _report(correction, test, suggestions, rest=rest, device=device, progress=progress)


def _report(
    correction: Correction,
    test: str | os.PathLike[str] | None,
    suggestions: str | os.PathLike[str] | None,
    *,
    rest: bool,
    device: str,
    progress: Progress,
) -> Report:
    models = Models.of(correction, device)
    proof = prove(correction, models, test, progress=progress)
    asked = Path(suggestions) if suggestions is not None else correction.project.folder / SUGGESTIONS
    changes: list[RasterChange] = []
    looks: list[Look] = []
    drawn: list[tuple[LabelledScene, RasterView]] = []
    recipe = models.after.model.recipe
    scenes = [(each, scene) for each in models.learned for scene in open_rasters(each, recipe)]
    for number, (each, scene) in enumerate(scenes, 1):
        masks = _predict(correction, models, (each, scene), number, rest=rest, progress=progress)
        looked = _Masks.of(scene, *masks)
        if rest:
            diff = numbered(correction.diff, number)
            objects = compare_polygons(*masks, diff, progress=progress)
            changed = compare_masks(looked.before, looked.after, looked.is_drawn, progress=progress)
            changes.append(RasterChange(scene, changed, objects, _coarse(scene, changed.gained)))
        looks += looked.looks()
        drawn.append((scene, looked.before))
    estimate = estimate_accuracy(asked, drawn) if suggestions is not None or asked.is_file() else None
    page = make_page(correction, models, proof, changes, looks, estimate)
    write_metrics(correction, _metrics(proof, models, changes, estimate))
    page.write(correction.report)
    return Report(correction.report, proof.verdict, tuple(change.text() for change in changes), estimate)


def numbered(path: Path, number: int) -> Path:
    """The file of a raster of a correction: that of the first has the plain name.

    Example:
        >>> numbered(Path("before.tif"), 2).name
        'before_2.tif'
    """
    return path if number == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}")


def _metrics(proof: Proof, models: Models, changes: list[RasterChange], estimate: Estimate | None) -> dict[str, Any]:
    told = proof.to_dict(models.after.model)
    told["rasters"] = [change.to_dict() for change in changes]
    told["whole_raster"] = None if estimate is None else estimate.to_dict()
    return told


@dataclass(frozen=True)
class _Masks:
    """Masks of both models on the grid of a scene."""

    scene: LabelledScene
    before: RasterView
    after: RasterView

    @classmethod
    def of(cls, scene: LabelledScene, before: Path, after: Path) -> _Masks:
        return cls(scene, *(open_raster(path).on(scene.geobox, "nearest") for path in (before, after)))

    def is_drawn(self, roi: Roi) -> np.ndarray:
        """Pixels that have a label."""
        return np.asarray(self.scene.read_labels(roi) != UNLABELLED)

    def looks(self) -> Iterator[Look]:
        """Places where something was drawn, each small enough for a picture."""
        for part in drawn_parts(self.scene, margin=_MARGIN):
            for inner in chunks((part[0].stop - part[0].start, part[1].stop - part[1].start), _SIDE, _SIDE):
                roi = tuple(
                    slice(axis.start + whole.start, axis.stop + whole.start)
                    for axis, whole in zip(inner, part, strict=True)
                )
                look = self._look((roi[0], roi[1]))
                if look is not None:
                    yield look

    def _look(self, roi: Roi) -> Look | None:
        pixels, truth = self.scene.read(roi)
        known = truth != UNLABELLED
        if not known.any():
            return None
        before, after = (self._classes(view, roi) for view in (self.before, self.after))
        # What was mended, what was spoilt, and what is still wrong.
        score = float((known & ((before != after) | (after != truth))).sum())
        x, y = self.scene.geobox.affine * (roi[1].start, roi[0].start)
        title = f"{Path(self.scene.path).name}, from {x:.8g} {y:.8g}"
        return Look(title, pixels.data, before, after, truth, score)

    @staticmethod
    def _classes(view: RasterView, roi: Roi) -> np.ndarray:
        found = view.read_values(roi)
        return np.where(found.valid, found.data[0], 0).astype(np.uint8)


def _coarse(scene: LabelledScene, cells: Doubt) -> np.ndarray:
    """A small picture of a raster, of the cells of a map of it, a few rows at a time: (bands, rows, cols)."""
    grid = GeoBox(cells.total.shape, scene.geobox.affine * Affine.scale(cells.cell), scene.geobox.crs)
    view = scene.raster.on(grid)
    strips = [view.read(roi).data for roi in chunks((view.shape[0], view.shape[1]), 16, view.shape[1])]
    return np.concatenate(strips, axis=1)


def _predict(
    correction: Correction,
    models: Models,
    drawn: tuple[Correction, LabelledScene],
    number: int,
    *,
    rest: bool,
    progress: Progress,
) -> tuple[Path, Path]:
    """Masks of both models: of the whole raster, or around what was drawn."""
    paths = numbered(correction.before, number), numbered(correction.after, number)
    each, scene = drawn
    options: dict[str, Any] = opening_of(each, scene)
    if not rest:
        options["aoi"] = write_areas(correction, [scene], correction.folder / f".around_{number}.fgb")
    for path, predictor in zip(paths, (models.before, models.after), strict=True):
        plan = predictor.plan(scene.path, path, overwrite=True, **options)
        if not _is_there(path, plan):
            try:
                predictor.run(plan, progress=progress)
            except ResumeError:
                # Finished blocks of a model that was trained again since.
                predictor.run(replace(plan, options=replace(plan.options, restart=True)), progress=progress)
    return paths


def _is_there(path: Path, plan: Plan) -> bool:
    """Whether a mask is that of this very plan."""
    if not path.is_file():
        return False
    try:
        with rasterio.open(path, driver="GTiff") as mask:
            return bool(mask.tags().get(RUN_TAG) == plan.run_id)
    except rasterio.errors.RasterioIOError:
        # Damaged: it is made anew.
        return False
