"""The start of a correction: what the model sees in the areas of interest, ready to be edited in QGIS."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from gimseg.correction.drawing import (
    AOI,
    CLASS_FIELD,
    OBJECTS,
    POINTS,
    PREDICTION,
    drawing_legend,
)
from gimseg.correction.joining import join_objects, shown_ground
from gimseg.correction.polygon_layers import Areas, read_areas
from gimseg.correction.rounds import Correction, Opening, Project, check_id
from gimseg.delivery import default_outputs, deliver
from gimseg.deployments import BUILTIN
from gimseg.errors import CorrectionError, GimsegError, OutputError
from gimseg.geopackages import POLYGONS, FurtherLayer, complete_geopackage
from gimseg.imagery import choose_bands
from gimseg.legend import Legend
from gimseg.models import Model
from gimseg.outputs import check_writable, hold_lock
from gimseg.progress import Progress, silent
from gimseg.qgis import Project as QgisProject
from gimseg.qgis import ProjectLayer, Snapping, ValueMap, write_project
from gimseg.raster_styles import read_image_style
from gimseg.rasters import Raster
from gimseg.styles import outline_style, point_style, vector_style
from gimseg.vector_geometry import name_of
from gimseg.vector_output import write_features

_AOI_COLOUR, _PREDICTION_COLOUR = "#ffffff", "#00ffff"
_MARGIN = 0.1
_MASK = "mask.tif"


@dataclass(frozen=True)
class Started:
    """What is there to be edited.

    Args:
        correction: its folder and files.
        areas: areas of interest.
        objects: predicted in them.
        notes: what was left out or repaired, for a person.
    """

    correction: Correction
    areas: int
    objects: int
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Lines for people."""
        one = self.correction
        line = (
            f"{one.qgz}: {self.objects} predicted objects in {self.areas} area{'s' if self.areas != 1 else ''}. "
            f"Open it in QGIS, make the layer {OBJECTS} right, save, then: gimseg correct check {one.id}"
        )
        return "\n".join([line, *self.notes])


def start(
    id: str,
    rasters: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    aoi: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    project: str | os.PathLike[str] = ".",
    segments: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    vector_crs: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
    **opening: Any,
) -> Started:
    """Begin a correction: predict in areas of interest, and lay out what is found for editing.

    ``corrections/<id>/`` appears whole or not at all. A start that was killed goes on
    where it was when it is started again. Rasters that meet no area are left out. Where
    rasters overlap, objects are those of the first that shows the ground, see
    :mod:`gimseg.correction.joining`.

    Args:
        id: name of the correction.
        rasters: one or several that are drawn on.
        aoi: layer of polygons in which the prediction came out badly;
            ``file.gpkg|layername=x`` names one of several.
        model: that is corrected; None: the project's deployed one, else the built-in one.
        project: folder that holds ``corrections/``.
        segments: mask and polygons of the raster, updated when the correction is accepted;
            None: those in the project's folder that ``gimseg predict`` names so.
        vector_crs: of the AoI layer, where it has none or a wrong one. The layers of the
            correction have a right one of their own.
        device: ``auto``, ``cpu``, ``cuda``.
        progress: told how far the prediction is.
        **opening: ``bands``, ``nodata``, ``crs`` of the rasters: see
            :class:`gimseg.correction.rounds.Opening`.

    Raises:
        OutputError: a correction of this name is there, another run is starting it, or the
            project's folder cannot be written to.
        CorrectionError: the areas miss the rasters, one of these is named twice, or as a
            segment, or some have a CRS and others none.
        GimsegError: a file cannot be read, or does not fit the model.
    """
    home = Project(Path(project))
    paths = _listed(rasters)
    named = None if segments is None else _listed(segments)
    _check_files(paths, named or [])
    chosen = str(model or home.deployed() or BUILTIN)
    correction = Correction(
        folder=home.rounds / check_id(id),
        parent=chosen,
        rasters=tuple(paths),
        opening=Opening(**opening),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    _check_free(correction)
    loaded = Model.load(chosen)
    opened = [correction.opening.open(path, choose_bands(loaded.recipe, correction.opening.bands)) for path in paths]
    _check_crs(opened)
    areas = read_areas(aoi, opened, resolution=loaded.recipe.resolution, vector_crs=vector_crs)
    met = [raster.path for raster, frame in zip(opened, areas.on, strict=True) if len(frame)]
    correction = replace(
        correction, rasters=tuple(met), segments=tuple(_found_segments(home, met) if named is None else named)
    )
    with _staged(correction) as stage:
        return _Stage(correction, stage, loaded).fill(opened, areas, device, progress)


def _listed(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """One path or several."""
    return [os.fspath(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]


def _check_files(rasters: Sequence[str], segments: Sequence[str]) -> None:
    """Refuse a raster that is named twice, by whatever path, or as what was delivered for it."""
    seen: dict[str, str] = {}
    for path in rasters:
        real = os.path.realpath(path)
        if real in seen:
            raise CorrectionError(f"{seen[real]} and {path} are one raster: its pixels would count twice; name it once")
        seen[real] = path
    for path in segments:
        if os.path.realpath(path) in seen:
            raise CorrectionError(
                f"{path} is a raster to draw on: --segments takes the mask and the polygons that were predicted for it"
            )


def _check_free(correction: Correction) -> None:
    folder = correction.folder
    if os.path.lexists(folder):
        raise OutputError(f"{folder} exists: give the correction another name, or go on with that one")


def _check_crs(rasters: Sequence[Raster]) -> None:
    bare = [raster.path for raster in rasters if raster.crs is None]
    placed = [raster for raster in rasters if raster.crs is not None]
    if bare and placed:
        raise CorrectionError(
            f"{', '.join(bare)} has no CRS and {placed[0].path} is in {name_of(placed[0].crs)}: they cannot be drawn "
            "on together; declare the missing one with --crs, or start a correction for each"
        )


def _found_segments(home: Project, rasters: Sequence[str]) -> list[str]:
    """What ``gimseg predict`` has left for the rasters in the project's folder."""
    named = [home.folder / name for raster in rasters for name in default_outputs(raster)]
    return [os.fspath(path) for path in named if path.exists()]


@contextmanager
def _staged(correction: Correction) -> Iterator[Path]:
    """A hidden folder that becomes the correction's when the block ends well; one process at a time has it.

    What a run that was killed has left in it is there again. An error of ours takes it away.
    """
    rounds, id = correction.folder.parent, correction.id
    stage, lock = rounds / f".{id}.partial", rounds / f".{id}.lock"
    busy = OutputError(f"another run is starting correction {id!r}: wait for it, or give another name")
    try:
        rounds.mkdir(parents=True, exist_ok=True)
        check_writable(rounds)
        handle = hold_lock(lock, busy)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write in {rounds} ({error.strerror}): choose another project folder") from error
    try:
        # The run that held the lock before may have finished this very correction.
        _check_free(correction)
        try:
            stage.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{stage} cannot be made ({error.strerror}): take away what lies there") from error
        try:
            yield stage
        except GimsegError:
            shutil.rmtree(stage)
            raise
        os.replace(stage, correction.folder)
    finally:
        # Windows keeps a file that is open.
        with suppress(PermissionError):
            lock.unlink(missing_ok=True)
        handle.close()


@dataclass(frozen=True)
class _Stage:
    """A correction that is being laid out in a hidden folder."""

    correction: Correction
    folder: Path
    model: Model

    def fill(self, rasters: Sequence[Raster], areas: Areas, device: str, progress: Progress) -> Started:
        """Predict, and write all files of the correction.

        Args:
            rasters: all that were given.
            areas: on each of them.
            device: that predicts.
            progress: told how far the prediction is.
        """
        met = [(raster, frame) for raster, frame in zip(rasters, areas.on, strict=True) if len(frame)]
        drawn = [raster for raster, _ in met]
        found = [self._predict(raster, frame, device, progress) for raster, frame in met]
        objects = self._join(found, areas, drawn)
        self._write_layers(areas.all, objects)
        project = drawing_project(self.folder, drawn, self.model.recipe.legend, self.correction.id)
        write_project(self.folder / self.correction.qgz.name, project)
        self.correction.write(self.folder)
        for path in self.folder.glob(".predicted*"):
            shutil.rmtree(path)
        left = [f"{raster.path} meets no area: left out" for raster in rasters if raster not in drawn]
        return Started(self.correction, len(areas.all), len(objects), (*areas.notes, *left))

    def _place(self, raster: Raster) -> Path:
        """Where what is predicted on a raster waits."""
        return self.folder / f".predicted_{self.correction.rasters.index(raster.path)}"

    def _predict(self, raster: Raster, areas: gpd.GeoDataFrame, device: str, progress: Progress) -> gpd.GeoDataFrame:
        """Objects that the model sees in the areas, both in the raster's CRS; their mask is left beside them."""
        opening, legend = self.correction.opening, self.model.recipe.legend
        folder = self._place(raster)
        folder.mkdir(exist_ok=True)
        # Stairs of pixels, 0.7 px deep, are no outlines to edit; neighbours of two classes must not overlap for it.
        shaping = (
            {"simplify_m": 0.7 * self.model.recipe.resolution, "coverage": not legend.is_binary} if raster.crs else {}
        )
        path, aoi = folder / "objects.gpkg", folder / "areas.fgb"
        write_features(aoi, areas, fields={}, crs=areas.crs, geometry_type="MultiPolygon")
        deliver(
            raster.path,
            self.model,
            [path, folder / _MASK],
            aoi=aoi,
            device=device,
            progress=progress,
            bands=opening.bands,
            nodata=opening.nodata,
            crs=opening.crs,
            overwrite=True,
            **shaping,
        )
        frame = gpd.read_file(path, layer=POLYGONS)
        return gpd.GeoDataFrame({CLASS_FIELD: frame[CLASS_FIELD].astype(object)}, geometry=frame.geometry)

    def _join(self, found: Sequence[gpd.GeoDataFrame], areas: Areas, rasters: Sequence[Raster]) -> gpd.GeoDataFrame:
        """The objects of all rasters in one CRS, none of them on another's ground."""
        crs, on = areas.all.crs, [frame for frame in areas.on if len(frame)]
        same = [frame if crs is None else frame.to_crs(crs) for frame in found]
        grounds = []
        for raster, frame in list(zip(rasters, on, strict=True))[:-1]:
            ground = gpd.GeoSeries([shown_ground(self._place(raster) / _MASK, frame.geometry)], crs=frame.crs)
            grounds.append((ground if crs is None else ground.to_crs(crs)).iloc[0])
        joined = join_objects(same, grounds, abs(rasters[0].grid(self.model.recipe.resolution).affine.a))
        filled = [frame for frame in joined if len(frame)] or joined[:1]
        return gpd.GeoDataFrame(pd.concat(filled, ignore_index=True), crs=crs)

    def _write_layers(self, areas: gpd.GeoDataFrame, objects: gpd.GeoDataFrame) -> None:
        legend = drawing_legend(self.model.recipe.legend)
        path = self.folder / self.correction.gpkg.name
        path.unlink(missing_ok=True)
        crs = areas.crs
        write_features(path, objects, fields={CLASS_FIELD: "str"}, crs=crs, geometry_type="MultiPolygon", layer=OBJECTS)
        points = gpd.GeoDataFrame({CLASS_FIELD: np.empty(0, object)}, geometry=np.empty(0, object), crs=crs)
        outline = outline_style(_PREDICTION_COLOUR, dashed=True)
        layers = (
            FurtherLayer(AOI, areas, "MultiPolygon", outline_style(_AOI_COLOUR)),
            FurtherLayer(POINTS, points, "Point", point_style(legend)),
            FurtherLayer(PREDICTION, objects, "MultiPolygon", outline),
        )
        complete_geopackage(path, layers, {OBJECTS: vector_style(legend)})


def drawing_project(folder: Path, rasters: Sequence[Raster], legend: Legend, id: str) -> QgisProject:
    """The QGIS project to draw in: objects, points and areas can be edited, the prediction cannot.

    Args:
        folder: that holds ``correction.gpkg``.
        rasters: that are drawn on.
        legend: of the model.
        id: of the correction.

    Raises:
        RasterError: a raster cannot be read.
    """
    drawn = drawing_legend(legend)
    entries = ValueMap.of_names(drawn).entries
    choice = {CLASS_FIELD: ValueMap(entries, legend.names[0] if legend.is_binary else None)}
    crs = None if rasters[0].crs is None else rasters[0].crs.to_wkt()

    def layer(name: str, style: str, editable: bool, widgets: Mapping[str, ValueMap]) -> ProjectLayer:
        path = folder / "correction.gpkg"
        return ProjectLayer(path, name, "vector", crs, style, name, editable=editable, widgets=widgets)

    layers = (
        layer(POINTS, point_style(drawn), True, choice),
        layer(OBJECTS, vector_style(drawn), True, choice),
        layer(AOI, outline_style(_AOI_COLOUR), True, {}),
        layer(PREDICTION, outline_style(_PREDICTION_COLOUR, dashed=True), False, {}),
        *(
            ProjectLayer(
                raster.path,
                Path(raster.path).stem,
                "raster",
                None if raster.crs is None else raster.crs.to_wkt(),
                read_image_style(raster.path, tuple(dict.fromkeys(raster.bands))),
            )
            for raster in rasters
        ),
    )
    return QgisProject(layers, crs, _view(folder, rasters[0]), f"Correction {id}", Snapping())


def _view(folder: Path, raster: Raster) -> tuple[float, float, float, float]:
    """The areas with a margin around them; the raster where they have no extent."""
    left, bottom, right, top = gpd.read_file(folder / "correction.gpkg", layer=AOI).total_bounds.tolist()
    wide, high = _MARGIN * (right - left), _MARGIN * (top - bottom)
    return (left - wide, bottom - high, right + wide, top + high) if wide > 0 and high > 0 else raster.bounds
