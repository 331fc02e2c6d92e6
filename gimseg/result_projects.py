"""The QGIS project of a prediction: what was found, over the image it was found in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gimseg.imagery import raster_files
from gimseg.legend import Legend
from gimseg.qgis import Project, ProjectLayer
from gimseg.raster_styles import read_image_style
from gimseg.rasters import Raster
from gimseg.styles import outline_style, raster_style, read_own_style, share_style, vector_style
from gimseg.vector_formats import layer_names
from gimseg.vector_output import driver_of
from gimseg.vectors import Layer

_AOI_COLOUR = "#ffffff"
_FOUND, _PIXELS = "Found", "Pixels"


@dataclass(frozen=True)
class Results:
    """What one prediction made, and from what; None where there is none.

    Args:
        raster: the image.
        legend: of the mask and the polygons.
        polygons: the same polygons in one or more formats.
        mask: the classes.
        aoi: polygons outside of which nothing was predicted.
        uncertainty: how unsure the model is, by pixel.
        probabilities: of each class, by pixel.
    """

    raster: Raster
    legend: Legend
    polygons: tuple[Path, ...] = ()
    mask: Path | None = None
    aoi: Layer | None = None
    uncertainty: Path | None = None
    probabilities: Path | None = None


def project_of(results: Results, title: str) -> Project:
    """The project: polygons on top, the outline of the AoI, other rasters hidden, the image below all.

    Polygons can be edited, the AoI cannot. A style that a person made beside a layer is kept.

    Args:
        results: what was made.
        title: of the project.

    Raises:
        RasterError: the image cannot be read.
        VectorError: the polygons cannot be read.
    """
    raster = results.raster
    crs = None if raster.crs is None else raster.crs.to_wkt()
    bands = tuple(dict.fromkeys(raster.bands))
    images = [
        ProjectLayer(path, Path(path).stem, "raster", crs, read_image_style(path, bands))
        for path in raster_files(raster)
    ]
    layers = (*_found(results, crs), *_pixels(results, crs), *images)
    return Project(layers, crs, raster.bounds, title)


def _found(results: Results, crs: str | None) -> list[ProjectLayer]:
    layers = []
    if results.polygons:
        # QGIS opens GeoParquet only where its GDAL was built for it.
        path = min(results.polygons, key=lambda path: driver_of(path) == "Parquet")
        style = read_own_style(path) or vector_style(results.legend)
        own_crs = "EPSG:4326" if driver_of(path).startswith("GeoJSON") else crs
        table = layer_names(path)[0] if driver_of(path) == "GPKG" else ""
        layers.append(ProjectLayer(path, "Polygons", "vector", own_crs, style, table, _FOUND, editable=True))
    if results.aoi is not None:
        aoi, style = results.aoi, outline_style(_AOI_COLOUR, dashed=True)
        table = aoi.layer or "" if aoi.source.kind == "GeoPackage" else ""
        layers.append(ProjectLayer(aoi.path, "Area of interest", "vector", aoi.crs, style, table, _FOUND))
    return layers


def _pixels(results: Results, crs: str | None) -> list[ProjectLayer]:
    # A mask is shown where there are no polygons.
    rasters = (
        ("Uncertainty", results.uncertainty, share_style("uncertainty"), False),
        ("Probabilities", results.probabilities, share_style("probabilities"), False),
        ("Mask", results.mask, raster_style(results.legend), not results.polygons),
    )
    return [
        ProjectLayer(path, name, "raster", crs, read_own_style(path) or style, group=_PIXELS, visible=shown)
        for name, path, style, shown in rasters
        if path is not None
    ]
