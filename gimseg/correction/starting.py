"""The start of a correction: what the model sees in the areas of interest, ready to be edited in QGIS."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from gimseg.correction.drawing import (
    AOI,
    CLASS_FIELD,
    OBJECTS,
    POINTS,
    PREDICTION,
    drawing_legend,
)
from gimseg.correction.rounds import Correction, Opening, Project, check_id
from gimseg.delivery import default_outputs, deliver
from gimseg.deployments import BUILTIN
from gimseg.errors import CorrectionError, GimsegError, OutputError
from gimseg.geopackages import POLYGONS, FurtherLayer, complete_geopackage
from gimseg.imagery import choose_bands
from gimseg.legend import Legend
from gimseg.models import Model
from gimseg.outputs import check_writable
from gimseg.progress import Progress, silent
from gimseg.qgis import Project as QgisProject
from gimseg.qgis import ProjectLayer, Snapping, ValueMap, write_project
from gimseg.raster_styles import read_image_style
from gimseg.rasters import Raster
from gimseg.styles import outline_style, point_style, vector_style
from gimseg.vector_output import write_features
from gimseg.vectors import open_layer

_AOI_COLOUR, _PREDICTION_COLOUR = "#ffffff", "#00ffff"
_MARGIN = 0.1


@dataclass(frozen=True)
class Started:
    """What is there to be edited.

    Args:
        correction: its folder and files.
        areas: areas of interest.
        objects: predicted in them.
    """

    correction: Correction
    areas: int
    objects: int

    def text(self) -> str:
        """Lines for people."""
        one = self.correction
        return (
            f"{one.qgz}: {self.objects} predicted objects in {self.areas} area{'s' if self.areas != 1 else ''}. "
            f"Open it in QGIS, make the layer {OBJECTS} right, save, then: gimseg correct check {one.id}"
        )


def start(
    id: str,
    rasters: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    aoi: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    project: str | os.PathLike[str] = ".",
    segments: Sequence[str | os.PathLike[str]] | None = None,
    device: str = "auto",
    progress: Progress = silent,
    **opening: Any,
) -> Started:
    """Begin a correction: predict in areas of interest, and lay out what is found for editing.

    ``corrections/<id>/`` appears whole or not at all. A start that was killed goes on
    where it was when it is started again.

    Args:
        id: name of the correction.
        rasters: one or several that are drawn on.
        aoi: layer of polygons in which the prediction came out badly.
        model: that is corrected; None: the project's deployed one, else the built-in one.
        project: folder that holds ``corrections/``.
        segments: mask and polygons of the raster, updated when the correction is accepted;
            None: those in the project's folder that ``gimseg predict`` names so.
        device: ``auto``, ``cpu``, ``cuda``.
        progress: told how far the prediction is.
        **opening: ``bands``, ``nodata``, ``crs``, ``vector_crs``: see
            :class:`gimseg.correction.rounds.Opening`.

    Raises:
        OutputError: a correction of this name is there.
        CorrectionError: the areas miss the rasters.
        GimsegError: a file cannot be read, or does not fit the model.
    """
    home = Project(Path(project))
    paths = [rasters] if isinstance(rasters, (str, os.PathLike)) else list(rasters)
    chosen = str(model or home.deployed() or BUILTIN)
    folder = home.rounds / check_id(id)
    if folder.exists():
        raise OutputError(f"{folder} exists: give the correction another name, or go on with that one")
    correction = Correction(
        folder=folder,
        parent=chosen,
        rasters=tuple(os.fspath(path) for path in paths),
        opening=Opening(**opening),
        segments=tuple(os.fspath(path) for path in (_segments(home, paths) if segments is None else segments)),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    home.rounds.mkdir(parents=True, exist_ok=True)
    check_writable(home.rounds)
    stage = home.rounds / f".{id}.partial"
    stage.mkdir(exist_ok=True)
    try:
        started = _Stage(correction, stage, Model.load(chosen)).fill(Path(aoi), device, progress)
    except GimsegError:
        shutil.rmtree(stage)
        raise
    os.replace(stage, folder)
    return started


def _segments(home: Project, rasters: Sequence[str | os.PathLike[str]]) -> list[Path]:
    named = [home.folder / name for raster in rasters for name in default_outputs(raster)]
    return [path for path in named if path.exists()]


@dataclass(frozen=True)
class _Stage:
    """A correction that is being laid out in a hidden folder."""

    correction: Correction
    folder: Path
    model: Model

    def fill(self, aoi: Path, device: str, progress: Progress) -> Started:
        recipe, opening = self.model.recipe, self.correction.opening
        opened = [opening.open(path, choose_bands(recipe, opening.bands)) for path in self.correction.rasters]
        areas = _in_one_crs([self._areas_on(raster, aoi) for raster in opened])
        if not len(areas):
            raise CorrectionError(
                f"{aoi}: none of its areas meets {', '.join(self.correction.rasters)}: check its CRS, or draw others"
            )
        crs = areas.crs
        found = [self._predicted(raster, aoi, device, progress) for raster in opened]
        objects = _in_one_crs([frame if crs is None else frame.to_crs(crs) for frame in found])
        self._write_layers(areas, objects)
        project = drawing_project(self.folder, opened, recipe.legend, self.correction.id)
        write_project(self.folder / self.correction.qgz.name, project)
        self.correction.write(self.folder)
        for path in self.folder.glob(".predicted*"):
            shutil.rmtree(path)
        return Started(self.correction, len(areas), len(objects))

    def _areas_on(self, raster: Raster, aoi: Path) -> gpd.GeoDataFrame:
        """Areas of interest that meet a raster, in its CRS."""
        grid = raster.grid(self.model.recipe.resolution)
        shapes = open_layer(aoi, crs=self.correction.opening.vector_crs).shapes(grid)
        areal = shapes.geometries[shapely.area(shapes.geometries) > 0]
        return gpd.GeoDataFrame(geometry=areal, crs=None if grid.crs is None else grid.crs.proj)

    def _predicted(self, raster: Raster, aoi: Path, device: str, progress: Progress) -> gpd.GeoDataFrame:
        """Objects that the model sees in the areas, in the raster's CRS."""
        opening, legend = self.correction.opening, self.model.recipe.legend
        folder = self.folder / f".predicted_{self.correction.rasters.index(raster.path)}"
        folder.mkdir(exist_ok=True)
        # Stairs of pixels, 0.7 px deep, are no outlines to edit; neighbours of two classes must not overlap for it.
        shaping = (
            {"simplify_m": 0.7 * self.model.recipe.resolution, "coverage": not legend.is_binary} if raster.crs else {}
        )
        path = folder / "objects.gpkg"
        deliver(
            raster.path,
            self.model,
            path,
            aoi=aoi,
            device=device,
            progress=progress,
            bands=opening.bands,
            nodata=opening.nodata,
            crs=opening.crs,
            vector_crs=opening.vector_crs,
            overwrite=True,
            **shaping,
        )
        frame = gpd.read_file(path, layer=POLYGONS)
        return gpd.GeoDataFrame({CLASS_FIELD: frame[CLASS_FIELD].astype(object)}, geometry=frame.geometry)

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


def _in_one_crs(frames: Sequence[gpd.GeoDataFrame]) -> gpd.GeoDataFrame:
    """All rows in the CRS of the first frame."""
    crs = frames[0].crs
    same = [frame if crs is None else frame.to_crs(crs) for frame in frames if len(frame)] or [frames[0]]
    return gpd.GeoDataFrame(pd.concat(same, ignore_index=True), crs=crs).drop_duplicates(ignore_index=True)


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
