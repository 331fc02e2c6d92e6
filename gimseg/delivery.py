"""Rasters to all the files that are asked for: mask, polygons, probabilities, styles, QGIS project, STAC item."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from gimseg.assembly import RUN_TAG, name_counts
from gimseg.averaging import Models
from gimseg.cleaning import CLEANING_NAMES, Cleaning
from gimseg.earlier import EarlierLayer, Renewed
from gimseg.errors import GimsegError, PredictionError
from gimseg.footprints import further_layers
from gimseg.ground import Ground
from gimseg.inference import ENGINE_NAMES, Prediction, Predictor
from gimseg.jobs import Job, Paths, default_outputs, plan_jobs
from gimseg.models import Model
from gimseg.outputs import move_family
from gimseg.preflight import Options, Plan
from gimseg.products import Products
from gimseg.progress import Progress, silent
from gimseg.qgis import write_project
from gimseg.rasters import metres_per_unit
from gimseg.regions import Objects
from gimseg.result_projects import Results, project_of
from gimseg.stac import Delivered, item_path, write_item
from gimseg.styles import joint_style, share_style, write_style
from gimseg.vector_output import driver_of
from gimseg.vectorization import OBJECT_NAMES, Vectorized, vectorize
from gimseg.vectors import open_layer

_NEAR = 4
"""Pixels from the ground that is predicted again, within which outlines may change."""

__all__ = ["Delivery", "default_outputs", "deliver", "deliver_each", "rehearse"]


@dataclass(frozen=True)
class Delivery:
    """What :func:`deliver` has made.

    Args:
        prediction: the mask and its counts; its path is None if no mask was asked for.
        mask: where the mask lies, if it was asked for.
        layers: the polygons, if they were asked for.
        beside: what else was asked for: probabilities, uncertainty, the STAC item.
        projects: the QGIS projects that show them, if they were asked for.
    """

    prediction: Prediction
    mask: Path | None
    layers: Vectorized | None
    beside: tuple[Path, ...] = ()
    projects: tuple[Path, ...] = ()

    def text(self) -> str:
        """Lines for people."""
        lines = [self.prediction.text()]
        if self.layers is not None:
            lines.append(f"{self.layers.count:,} polygons in {', '.join(map(str, self.layers.paths))}")
        if self.beside:
            lines.append(f"beside it {', '.join(path.name for path in self.beside)}")
        lines += [f"{path}: all of it over the image, for QGIS" for path in self.projects]
        return "\n".join(lines)


def deliver(raster: Paths, model: Models = "builtin", outputs: Paths = (), **given: Any) -> Delivery:
    """Segment one raster, or several as one mosaic, and write what the endings of the outputs ask for.

    Args:
        raster: georeferenced image; several are a mosaic.
        model: see :func:`deliver_each`, as for all others.
        outputs: see there.
        **given: see there.
    """
    return deliver_each(raster, model, outputs, mosaic=True, **given)[0]


def deliver_each(
    rasters: Paths,
    model: Models = "builtin",
    outputs: Paths = (),
    *,
    mosaic: bool = False,
    stac: bool = False,
    progress: Progress = silent,
    tell: Callable[[str], object] | None = None,
    **options: Any,
) -> list[Delivery]:
    """Segment rasters with one loaded network and write what the endings of the outputs ask for.

    A run that was stopped goes on where it was when it is started again in the same way.
    All rasters are checked before the first is predicted. One that fails later does not
    stop the others.

    Args:
        rasters: georeferenced images, and patterns of their names.
        model: a Model, its folder, or ``"builtin"``; several are averaged.
        outputs: ``.tif`` the mask; ``.shp``, ``.gpkg``, ``.fgb``, ``.geojson``,
            ``.geojsonl``, ``.parquet`` the polygons; ``.qgz`` a QGIS project that shows them over
            the image, and where nothing else is named, the mask and a Shapefile beside it;
            a folder; names with ``{stem}`` for several rasters; see
            :func:`gimseg.jobs.plan_jobs`. None: see :func:`gimseg.jobs.default_outputs`.
        mosaic: all rasters are one.
        stac: write a STAC item beside the mask.
        progress: told how far the work is.
        tell: told, before the first window of a raster, what will happen.
        **options: ``older_layer``, the polygons of an ``older`` mask; those of
            :class:`gimseg.inference.Predictor` (``device``, ``tta``, ...), those of
            :func:`gimseg.vectorization.vectorize` that make polygons (``connectivity``,
            ``instances``, ``min_area_m2``, ...), all others see :func:`gimseg.inference.predict`.

    Returns:
        one for each raster, in order.

    Raises:
        GimsegError: what stands in the way, before the first window where it can be known.
    """
    older_layer = options.pop("older_layer", None)
    jobs, courier = _prepare(rasters, model, outputs, mosaic, stac, options)
    courier = replace(courier, older_layer=older_layer, progress=progress, tell=tell)
    if len(jobs) == 1:
        return [courier.deliver(jobs[0])]
    for job in jobs:
        courier.check(job)
    return _deliver_all(courier, jobs)


def rehearse(
    rasters: Paths,
    model: Models = "builtin",
    outputs: Paths = (),
    *,
    mosaic: bool = False,
    stac: bool = False,
    **options: Any,
) -> str:
    """Check all that :func:`deliver_each` would check, tell what it would do, and leave nothing behind.

    Raises:
        GimsegError: what stands in the way.
    """
    jobs, courier = _prepare(rasters, model, outputs, mosaic, stac, options)
    return "\n\n".join(courier.describe(courier.check(job), job) for job in jobs)


def _prepare(
    rasters: Paths, model: Models, outputs: Paths, mosaic: bool, stac: bool, options: dict[str, Any]
) -> tuple[list[Job], _Courier]:
    taken = {
        kind: {name: options.pop(name) for name in names if name in options}
        for kind, names in (("engine", ENGINE_NAMES), ("shaping", (*OBJECT_NAMES, *CLEANING_NAMES)))
    }
    jobs = plan_jobs(rasters, outputs, mosaic=mosaic)
    chosen = Options(**options)
    for job in jobs:
        inputs = [] if chosen.aoi_file is None else [chosen.aoi_file]
        job.check(chosen.products, stac=stac, overwrite=chosen.overwrite, inputs=inputs)
    predictor = Predictor(model, **taken["engine"])
    return jobs, _Courier(predictor, _folders(model), options, taken["shaping"], stac)


@dataclass(frozen=True)
class _Courier:
    """Brings what was asked for, job by job."""

    predictor: Predictor
    folders: tuple[str | os.PathLike[str], ...]
    options: Mapping[str, Any]
    shaping: Mapping[str, Any]
    stac: bool
    older_layer: str | os.PathLike[str] | None = None
    progress: Progress = silent
    tell: Callable[[str], object] | None = None

    def deliver(self, job: Job) -> Delivery:
        """All files of a job."""
        if job.layers:
            delivery, plan = self._deliver_layers(job)
        else:
            plan = self._plan(job, job.named, **self.options)
            self._announce(plan, job)
            delivery = Delivery(self.predictor.run(plan, progress=self.progress), job.mask, None)
        rasters = self.products.files(job.named)
        for name, path in rasters.items():
            write_style(path, share_style(name))
        if job.mask is not None:
            # big_segments.tif and big_segments.shp share one .qml: it holds both styles.
            write_style(job.mask, joint_style(plan.legend))
            rasters = {"classes": job.mask, **rasters}
        item = self._write_item(job, plan, rasters) if self.stac else None
        beside = [path for name, path in rasters.items() if name != "classes"]
        delivery = replace(delivery, beside=(*beside, *([item] if item else [])), projects=job.projects)
        self._write_projects(delivery, plan, rasters)
        return delivery

    def _write_projects(self, made: Delivery, plan: Plan, rasters: Mapping[str, Path]) -> None:
        if not made.projects:
            return
        aoi = plan.options.aoi
        results = Results(
            raster=plan.raster,
            legend=plan.legend,
            polygons=made.layers.paths if made.layers else (),
            mask=made.mask,
            aoi=None if aoi is None else open_layer(aoi, crs=plan.options.vector_crs),
            uncertainty=rasters.get("uncertainty"),
            probabilities=rasters.get("probabilities"),
        )
        project = project_of(results, f"{Path(plan.raster.path).stem} by {plan.identity['model']['name']}")
        for path in made.projects:
            write_project(path, project)

    @property
    def products(self) -> Products:
        """What is delivered of each pixel."""
        return Options(**self.options).products

    def check(self, job: Job) -> Plan:
        """Refuse a job that cannot start; leaves nothing behind."""
        # Without a mask its name may be that of the raster.
        mask = job.mask or job.layers[0].with_name(f".{job.layers[0].name}.tif")
        return self._plan(job, mask, **{**self.options, "overwrite": True})

    def describe(self, plan: Plan, job: Job) -> str:
        """What will happen, for people."""
        # The mask may wait in a hidden folder, which is nobody's business.
        text = plan.text(self.predictor.estimate(plan))
        return text.replace(str(plan.output), ", ".join(map(str, job.outputs)))

    def _deliver_layers(self, job: Job) -> tuple[Delivery, Plan]:
        # The mask waits in a hidden folder for its polygons, so that a run that is stopped
        # in between leaves nothing that looks finished, and loses nothing.
        waiting = job.layers[0].parent / f".{job.layers[0].name}.waiting"
        plan = self._plan_waiting(job, waiting / job.named.name)
        self._announce(plan, job)
        prediction = _finished(plan) or self.predictor.run(plan, progress=self.progress)
        files = plan.options.products.files(plan.output)
        made = vectorize(
            plan.output,
            job.layers,
            probabilities=files["probabilities"],
            layers=further_layers(plan) if any(driver_of(path) == "GPKG" for path in job.layers) else (),
            earlier=self._earlier(plan),
            overwrite=bool(self.options.get("overwrite")),
            progress=self.progress,
            **self.shaping,
        )
        kept = self.products.files(plan.output)
        for name in [] if job.mask else [plan.output.name, f"{plan.output.name}.aux.xml"]:
            (waiting / name).unlink(missing_ok=True)
        for name in files.keys() - kept.keys():
            files[name].unlink()
        move_family(waiting, job.named)
        shutil.rmtree(waiting)
        notes = tuple(note.replace(str(waiting), str(job.named.parent)) for note in prediction.notes)
        prediction = replace(prediction, path=job.mask or job.layers[0], notes=notes)
        return Delivery(prediction, job.mask, made), plan

    def _earlier(self, plan: Plan) -> EarlierLayer | None:
        """What was said of the polygons of the older mask."""
        if plan.renewal is None or self.older_layer is None:
            return None
        steps = Cleaning(**{name: value for name, value in self.shaping.items() if name in CLEANING_NAMES})
        pixel = max(plan.resolution)
        # In the CRS's unit, generously: outlines near the new ground may move by as much as they are simplified.
        metres = min(metres_per_unit(plan.geobox))
        reach = _NEAR * pixel + (steps.simplify_m + steps.smooth_m) / metres
        # A coverage is simplified with its neighbours, and these with theirs.
        overwrite = steps.coverage or bool(self.options.get("overwrite"))
        crs = None if plan.geobox.crs is None else plan.geobox.crs.proj
        renewed = Renewed(plan.renewal.ground, crs, pixel, reach)
        return EarlierLayer.read(self.older_layer, renewed, may_differ=overwrite)

    def _plan_waiting(self, job: Job, mask: Path) -> Plan:
        """The plan of a mask in a hidden folder, which is there afterwards only if the work can start."""
        fresh = not mask.parent.exists()
        mask.parent.mkdir(exist_ok=True)
        try:
            return self._plan(job, mask, **{**self.options, "overwrite": True})
        except GimsegError:
            if fresh:
                shutil.rmtree(mask.parent)
            raise

    def _plan(self, job: Job, mask: Path, **options: Any) -> Plan:
        # The confidence of polygons is made of probabilities.
        products = replace(self.products, probabilities=self.products.probabilities or bool(job.layers))
        plan = self.predictor.plan(job.rasters, mask, **{**options, "products": products})
        if job.layers:
            steps = Cleaning(**{name: value for name, value in self.shaping.items() if name in CLEANING_NAMES})
            Objects(**{name: value for name, value in self.shaping.items() if name in OBJECT_NAMES}).check(steps)
            grid = plan.target
            steps.check(Ground.of(grid.affine, grid.crs.to_wkt() if grid.crs else None, plan.shape), plan.raster.path)
        return plan

    def _announce(self, plan: Plan, job: Job) -> None:
        if self.tell:
            self.tell(self.describe(plan, job))

    def _write_item(self, job: Job, plan: Plan, rasters: Mapping[str, Path]) -> Path:
        path = item_path(job.named)
        write_item(path, Delivered(plan, self.predictor.model, self.folders, rasters, job.layers))
        return path


def _deliver_all(courier: _Courier, jobs: Sequence[Job]) -> list[Delivery]:
    """Job after job; what fails is told at the end."""
    done, failed = [], []
    for job in jobs:
        try:
            done.append(courier.deliver(job))
        except GimsegError as error:
            failed.append(str(error))
    if failed:
        raise PredictionError(f"{len(failed)} of {len(jobs)} rasters failed, all others are done: {'; '.join(failed)}")
    return done


def _folders(model: Models) -> tuple[str | os.PathLike[str], ...]:
    """Of the models; none if one was made in memory."""
    given = [model] if isinstance(model, (Model, str, os.PathLike)) else list(model)
    folders = tuple(each for each in given if not isinstance(each, Model))
    return folders if len(folders) == len(given) else ()


def _finished(plan: Plan) -> Prediction | None:
    """The mask of this very run, if an earlier start of it was stopped at the polygons."""
    if not all(path.exists() for path in (plan.output, *plan.options.products.files(plan.output).values())):
        return None
    with rasterio.open(plan.output) as mask:
        if mask.tags().get(RUN_TAG) != plan.run_id:
            return None
        counts = np.zeros(256, np.int64)
        for _, window in mask.block_windows(1):
            counts += np.bincount(mask.read(1, window=window).ravel(), minlength=256)
    named = name_counts(counts, plan.legend)
    return Prediction(plan.output, named, plan.shape, 0.0, len(plan.blocks), len(plan.blocks), plan.notes)
