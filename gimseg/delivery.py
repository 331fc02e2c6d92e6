"""A raster to all the files that are asked for: mask, polygons, styles, QGIS project."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from gimseg.errors import GimsegError, GridError, OutputError
from gimseg.inference import RUN_TAG, Prediction, Predictor, name_counts
from gimseg.models import Model
from gimseg.outputs import check_outputs, move_family
from gimseg.preflight import Plan
from gimseg.progress import Progress, silent
from gimseg.qgis import is_project, write_project
from gimseg.result_projects import Results, project_of
from gimseg.styles import joint_style, write_style
from gimseg.vector_output import driver_of
from gimseg.vectorization import Vectorized, vectorize
from gimseg.vectors import open_layer

_MASKS = (".tif", ".tiff")


@dataclass(frozen=True)
class Delivery:
    """What :func:`deliver` has made.

    Args:
        prediction: the mask and its counts; its path is None if no mask was asked for.
        mask: where the mask lies, if it was asked for.
        layers: the polygons, if they were asked for.
        projects: the QGIS projects that show them, if they were asked for.
    """

    prediction: Prediction
    mask: Path | None
    layers: Vectorized | None
    projects: tuple[Path, ...] = ()

    def text(self) -> str:
        """Lines for people."""
        lines = [self.prediction.text()]
        if self.layers is not None:
            lines.append(f"{self.layers.count:,} polygons in {', '.join(map(str, self.layers.paths))}")
        lines += [f"{path}: all of it over the image, for QGIS" for path in self.projects]
        return "\n".join(lines)


def default_outputs(raster: str | os.PathLike[str]) -> tuple[str, str]:
    """What is written where nothing was asked for, in the current folder.

    Example:
        >>> default_outputs("/images/big.tif")
        ('big_segments.tif', 'big_segments.shp')
    """
    stem = Path(raster).stem
    return f"{stem}_segments.tif", f"{stem}_segments.shp"


def deliver(
    raster: str | os.PathLike[str],
    model: Model | str | os.PathLike[str] = "builtin",
    outputs: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] = (),
    *,
    min_area_m2: float = 0.0,
    simplify_m: float = 0.0,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress = silent,
    tell: Callable[[str], object] | None = None,
    **options: Any,
) -> Delivery:
    """Segment a raster and write what the endings of the outputs ask for.

    A run that was stopped goes on where it was when it is started again in the same way.

    Args:
        raster: georeferenced image.
        model: a Model, its folder, or ``"builtin"``.
        outputs: ``.tif`` the mask; ``.shp``, ``.gpkg``, ``.fgb``, ``.geojson``,
            ``.parquet`` the polygons; ``.qgz`` a QGIS project that shows them over the image,
            and where nothing else is named, the mask and a Shapefile beside it; none: see
            :func:`default_outputs`.
        min_area_m2: polygons below this area are dropped, m².
        simplify_m: polygons are simplified within this tolerance, m.
        device: see :class:`gimseg.inference.Predictor`.
        precision: see there.
        progress: told how far the work is.
        tell: told, before the first window, what will happen.
        **options: see :func:`gimseg.inference.predict`.

    Raises:
        GimsegError: what stands in the way, before the first window where it can be known.
    """
    given = [outputs] if isinstance(outputs, (str, os.PathLike)) else list(outputs)
    paths = [Path(path) for path in given or default_outputs(raster)]
    projects = [path for path in paths if is_project(path)]
    if projects == paths:
        paths += [projects[0].with_name(name) for name in default_outputs(projects[0])]
    masks = [path for path in paths if path.suffix.lower() in _MASKS]
    layers = [path for path in paths if path not in (*masks, *projects)]
    if len(masks) > 1:
        raise OutputError(f"{masks[0]} and {masks[1]}: one mask is written, give one .tif")
    inputs = [path for path in (raster, options.get("aoi")) if path is not None]
    check_outputs(paths, inputs, overwrite=bool(options.get("overwrite")))
    for path in layers:
        driver_of(path)
    predictor = Predictor(model, device=device, precision=precision)
    if not layers:
        plan = predictor.plan(raster, masks[0], **options)
        if tell:
            tell(plan.text())
        prediction = predictor.run(plan, progress=progress)
        _style(predictor.model, masks[0])
        return _with_projects(Delivery(prediction, masks[0], None), projects, plan)
    # The mask waits in a hidden folder for its polygons, so that a run that is stopped
    # in between leaves nothing that looks finished, and loses nothing.
    name = (masks or [layers[0].with_suffix(".tif")])[0].name
    waiting = layers[0].parent / f".{layers[0].name}.waiting"
    plan = _plan(predictor, raster, waiting / name, options, min_area_m2)
    if tell:
        tell(plan.text())
    prediction = _finished(plan) or predictor.run(plan, progress=progress)
    made = vectorize(
        waiting / name,
        layers,
        min_area_m2=min_area_m2,
        simplify_m=simplify_m,
        overwrite=bool(options.get("overwrite")),
        progress=progress,
    )
    if masks:
        move_family(waiting, masks[0])
        _style(predictor.model, masks[0])
    shutil.rmtree(waiting)
    prediction = replace(prediction, path=masks[0] if masks else layers[0])
    return _with_projects(Delivery(prediction, masks[0] if masks else None, made), projects, plan)


def _plan(
    predictor: Predictor, raster: str | os.PathLike[str], mask: Path, options: dict[str, Any], min_area_m2: float
) -> Plan:
    """The plan of a mask in a hidden folder, which is there afterwards only if the work can start."""
    fresh = not mask.parent.exists()
    mask.parent.mkdir(exist_ok=True)
    try:
        plan = predictor.plan(raster, mask, **{**options, "overwrite": True})
        if min_area_m2 > 0 and plan.raster.crs is None:
            raise GridError(
                f"{raster} has no CRS, so that a least area of {min_area_m2:g} m² means nothing: declare its CRS or "
                "leave the area out"
            )
        return plan
    except GimsegError:
        if fresh:
            shutil.rmtree(mask.parent)
        raise


def _with_projects(made: Delivery, projects: Sequence[Path], plan: Plan) -> Delivery:
    if not projects:
        return made
    aoi = plan.options.aoi
    results = Results(
        raster=plan.raster,
        legend=plan.legend,
        polygons=made.layers.paths if made.layers else (),
        mask=made.mask,
        aoi=None if aoi is None else open_layer(aoi, crs=plan.options.vector_crs),
    )
    title = f"{Path(plan.raster.path).stem} by {plan.identity['model']['name']}"
    for path in projects:
        write_project(path, project_of(results, title))
    return replace(made, projects=tuple(projects))


def _style(model: Model, mask: Path) -> None:
    # big_segments.tif and big_segments.shp share one .qml: it holds both styles.
    write_style(mask, joint_style(model.recipe.legend))


def _finished(plan: Plan) -> Prediction | None:
    """The mask of this very run, if an earlier start of it was stopped at the polygons."""
    if not plan.output.exists():
        return None
    with rasterio.open(plan.output) as mask:
        if mask.tags().get(RUN_TAG) != plan.run_id:
            return None
        counts = np.zeros(256, np.int64)
        for _, window in mask.block_windows(1):
            counts += np.bincount(mask.read(1, window=window).ravel(), minlength=256)
    named = name_counts(counts, plan.legend)
    return Prediction(plan.output, named, plan.lattice.shape, 0.0, len(plan.blocks), len(plan.blocks), plan.notes)
