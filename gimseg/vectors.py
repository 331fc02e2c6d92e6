"""Read vector layers in any CRS, repaired, and burn them on a grid.

A layer is described once (:func:`open_layer`), read where it meets a raster
(:meth:`Layer.shapes`), and burnt window by window (:meth:`Shapes.burn`).
:func:`write_features` is the way back.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyproj
import rasterio.features
import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from gimseg.errors import VectorError
from gimseg.legend import BACKGROUND, UNLABELLED, Legend, did_you_mean
from gimseg.vector_formats import Source, find_source, read_columns
from gimseg.vector_geometry import (
    Bounds,
    bounds_between,
    buffered,
    footprint_of,
    frame_of,
    is_convertible,
    name_of,
    repaired,
    same_crs,
    to_pixels,
    touch,
    transformed,
    units_per_metre,
    widened_bounds,
    without_nothing,
)
from gimseg.vector_output import write_features

__all__ = ["Bounds", "Layer", "Shapes", "check_overlap", "extents_text", "open_layer", "write_features"]


@dataclass(frozen=True)
class Layer:
    """A vector layer, described but not read.

    Args:
        path: the file.
        layer: name of the layer in it.
        crs: as declared, or as the file says; None if neither does.
        count: number of features.
        fields: names of the attributes.
        geometry_types: declared types, such as ``("Polygon",)``; ``("Unknown",)`` if mixed.
        bounds: of all features, in `crs`; None if the layer is empty.
        notes: what a person should know.
    """

    path: str
    layer: str | None
    crs: CRS | None
    count: int
    fields: tuple[str, ...]
    geometry_types: tuple[str, ...]
    bounds: Bounds | None
    notes: tuple[str, ...]
    source: Source = field(repr=False)

    def bounds_in(self, crs: CRS | None) -> Bounds | None:
        """The extent of the layer in another CRS; None if it is empty.

        Raises:
            VectorError: one of the two has no CRS.
        """
        return None if self.bounds is None else bounds_between(self.bounds, self._crs_beside(crs), crs)

    def meets(self, geobox: GeoBox) -> bool:
        """Whether the extents of the layer and of a grid touch; False for an empty layer.

        Raises:
            VectorError: one of the two has no CRS.
        """
        if self.bounds is None:
            return False
        # The small footprint survives a transformation that a layer of the whole world would not.
        frame = bounds_between(tuple(geobox.extent.boundingbox), geobox.crs, self._crs_beside(geobox.crs))
        return touch(frame, self.bounds)

    def shapes(
        self,
        geobox: GeoBox,
        legend: Legend | None = None,
        *,
        point_radius_m: float | None = None,
        line_width_m: float | None = None,
        dimension: int | None = None,
    ) -> Shapes:
        """Read what meets the footprint of a grid, in the grid's CRS, repaired, with classes.

        Args:
            geobox: the grid; a window of a raster works as well as the whole.
            legend: how attributes mean classes; None: every feature is class 1.
            point_radius_m: ground radius that a point labels, m; None or less than a
                pixel: the one pixel that contains it.
            line_width_m: ground width that a line labels, m.
            dimension: 0 for points, 2 for polygons: geometries of any other are left out.

        Raises:
            VectorError: the CRS is missing, or coordinates cannot be in it; the legend's field is no attribute, or
                there are lines without a width.
        """
        crs = self._crs_beside(geobox.crs)
        column = self._class_column(legend)
        frame = frame_of(geobox, max(point_radius_m or 0.0, (line_width_m or 0.0) / 2))
        bounds = widened_bounds(frame, geobox.crs, crs)
        geometries, attributes = read_columns(self.source, [column] if column else [], bounds)
        counts = Counter(read=len(geometries))
        geometries, kept = without_nothing(geometries, counts)
        geometries, shown = transformed(geometries, crs, geobox.crs, counts)
        kept = kept[shown]
        geometries = repaired(geometries, counts)
        if dimension is not None:
            alike = (shapely.get_dimensions(geometries) == dimension) | shapely.is_empty(geometries)
            counts["other"] = int((~alike).sum())
            geometries, kept = geometries[alike], kept[alike]
        partial = _is_partial(self.geometry_types, geometries)
        geometries = _with_area(geometries, geobox, point_radius_m, line_width_m, self.path)
        shown = np.flatnonzero(shapely.intersects(geometries, footprint_of(geobox)))
        geometries, kept = geometries[shown], kept[shown]
        counts["used"] = len(geometries)
        values, unknown = _class_values(attributes[column][kept] if column else None, len(kept), legend)
        order = np.argsort(_rank(values, legend), kind="stable")
        return Shapes(
            geometries=geometries[order],
            values=values[order],
            crs=geobox.crs,
            counts=dict(counts),
            unknown=unknown,
            partial=partial,
            remarks=self._remarks(geobox),
        )

    def _remarks(self, geobox: GeoBox) -> tuple[str, ...]:
        if geobox.crs is not None or self.crs is None:
            return ()
        return (f"the raster has no CRS: coordinates were taken as they are, though the file says {name_of(self.crs)}",)

    def _crs_beside(self, crs: CRS | None) -> CRS | None:
        """The layer's CRS, if it can be brought together with another one."""
        if self.crs is None and crs is not None:
            raise VectorError(
                f"{self.path} has no CRS and the raster is in {name_of(crs)}: declare it (--vector-crs EPSG:...)"
            )
        if crs is not None and self.crs is not None and not is_convertible(self.crs, crs):
            raise VectorError(
                f"{self.path} is in {name_of(self.crs)}, from which no way leads to the raster's {name_of(crs)}: "
                "declare the CRS that its coordinates are in (--vector-crs EPSG:...)"
            )
        if crs is not None:
            _check_degrees(self.path, self.crs, self.bounds)
        # Coordinates of a raster without a CRS can only be met as they are.
        return None if crs is None else self.crs

    def _class_column(self, legend: Legend | None) -> str | None:
        if legend is None or (legend.field is None and legend.is_binary):
            return None
        if legend.field is None:
            raise VectorError(
                f"the legend has {len(legend.classes)} classes and names no field that tells them apart in {self.path}"
                f': add field = "..." to it; the attributes are {", ".join(self.fields) or "none"}'
            )
        if legend.field not in self.fields:
            raise VectorError(f"{self.path} has no attribute {legend.field!r}{did_you_mean(legend.field, self.fields)}")
        return legend.field


@dataclass(frozen=True, eq=False)
class Shapes:
    """Repaired geometries in the CRS of one raster, in the order in which they are burnt.

    Args:
        geometries: shapely objects (n,), 2-D.
        values: uint8 (n,), classes; 255 where the class is null or unknown.
        crs: of the geometries.
        counts: features `read`, `null` and `empty` (dropped), `repaired`, `collapsed`,
            `unplaced`, `unprojectable` and `other` (dropped), `used`.
        unknown: attribute value -> number of features whose class it does not tell.
        partial: points or lines: what they do not touch is unlabelled, not background.
        remarks: further notes for a person.
    """

    geometries: np.ndarray
    values: np.ndarray
    crs: CRS | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    unknown: Mapping[str, int] = field(default_factory=dict)
    partial: bool = False
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.geometries)

    def __add__(self, other: Shapes) -> Shapes:
        """Both; where they overlap, `other` is burnt over the first."""
        _check_same_crs(self.crs, other.crs)
        return Shapes(
            geometries=np.concatenate([self.geometries, other.geometries]),
            values=np.concatenate([self.values, other.values]),
            crs=self.crs,
            counts=dict(Counter(self.counts) + Counter(other.counts)),
            unknown=dict(Counter(self.unknown) + Counter(other.unknown)),
            partial=self.partial or other.partial,
            remarks=tuple(dict.fromkeys((*self.remarks, *other.remarks))),
        )

    def __getstate__(self) -> dict[str, Any]:
        # The index is quicker to build again than to send to a worker.
        return {name: value for name, value in self.__dict__.items() if name != "_tree"}

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.geometries)

    @property
    def bounds(self) -> Bounds | None:
        """Extent of all geometries; None if there are none."""
        return tuple(map(float, shapely.total_bounds(self.geometries))) if len(self) else None  # type: ignore[return-value]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was mended, dropped or not understood, for a person."""
        said = {
            "repaired": "invalid geometries were repaired",
            "empty": "empty geometries were dropped",
            "collapsed": "geometries without an area were dropped",
            "unplaced": "geometries with a coordinate that is no finite number were dropped",
            "other": "geometries of another kind than their layer's were left out",
            "unprojectable": "geometries beyond what the raster's CRS can express were dropped",
        }
        notes = [*self.remarks]
        notes += [f"{self.counts[key]} {text}" for key, text in said.items() if self.counts.get(key)]
        if self.unknown:
            shown = sorted(self.unknown.items(), key=lambda item: (-item[1], item[0]))
            listed = ", ".join(f"{text} ({times})" for text, times in shown[:8]) + (", ..." if len(shown) > 8 else "")
            notes.append(
                f"{sum(self.unknown.values())} features are of no class of the legend, so unlabelled: {listed}"
            )
        return tuple(notes)

    def of_value(self, value: int) -> Shapes:
        """Those of one class; the counts stay those of the whole."""
        chosen = self.values == value
        return replace(self, geometries=self.geometries[chosen], values=self.values[chosen])

    def burn(self, geobox: GeoBox, fill: int = BACKGROUND) -> np.ndarray:
        """Classes of the pixels whose centre lies inside; later classes of the legend win.

        Args:
            geobox: a grid in the same CRS, most often a window of the raster.
            fill: value of all other pixels.

        Returns:
            uint8 (rows, cols); a window is exactly the crop of the whole.

        Raises:
            VectorError: the grid has another CRS.
        """
        return self._burn(geobox, self.values, fill)

    def burn_mask(self, geobox: GeoBox) -> np.ndarray:
        """Pixels whose centre lies in any geometry, of whatever class: bool (rows, cols)."""
        return self._burn(geobox, np.ones(len(self), np.uint8), 0).astype(bool)

    def _burn(self, geobox: GeoBox, values: np.ndarray, fill: int) -> np.ndarray:
        _check_same_crs(self.crs, geobox.crs)
        burnt = np.full(geobox.shape, fill, np.uint8)
        if not len(self) or 0 in geobox.shape:
            return burnt
        near = np.sort(self._tree.query(footprint_of(geobox)))
        if len(near):
            pixels = to_pixels(self.geometries[near], geobox)
            rasterio.features.rasterize(zip(pixels, values[near].tolist(), strict=True), out=burnt)
        return burnt


def open_layer(path: str | os.PathLike[str], *, layer: str | None = None, crs: str | CRS | None = None) -> Layer:
    """Describe a layer: Shapefile, GeoPackage, GeoJSON, FlatGeobuf or GeoParquet.

    Args:
        path: the file; ``file.gpkg|layername=x``, as QGIS writes it, names the layer too.
        layer: name of the layer; None: the only spatial one, or the only one of polygons.
        crs: declared by the user, stronger than what the file says.

    Raises:
        VectorError: the file is missing, empty, of another kind, damaged, or holds
            several layers of polygons.
    """
    source = find_source(os.fspath(path), layer)
    notes = list(source.notes)
    file_crs = _to_crs(source.crs, source.path)
    if crs is not None:
        declared = _to_crs(crs, "--vector-crs")
        if file_crs is not None and not same_crs(declared, file_crs):
            notes.append(f"taken to be in {name_of(declared)}, as declared; the file says {name_of(file_crs)}")
        file_crs = declared
    return Layer(
        path=source.path,
        layer=source.layer,
        crs=file_crs,
        count=source.count,
        fields=source.fields,
        geometry_types=source.geometry_types,
        bounds=source.bounds,
        notes=tuple(notes),
        source=source,
    )


def check_overlap(layer: Layer, geobox: GeoBox) -> None:
    """Refuse labels that miss a raster altogether; an empty layer passes.

    Raises:
        VectorError: names both extents in one CRS.
    """
    if layer.bounds is None or layer.meets(geobox):
        return
    raise VectorError(
        f"{extents_text(layer, geobox)}: they do not meet. Give the labels of this raster, or declare their CRS "
        "(--vector-crs)"
    )


def extents_text(layer: Layer, geobox: GeoBox) -> str:
    """Where a layer with features and a raster lie, in the layer's CRS, for an error.

    Raises:
        VectorError: one of the two has no CRS.
    """
    assert layer.bounds is not None
    frame = bounds_between(tuple(geobox.extent.boundingbox), geobox.crs, layer._crs_beside(geobox.crs))
    return (
        f"{layer.path} lies at {_format(layer.bounds)} and the raster at {_format(frame)} (left, bottom, right, top in "
        f"{name_of(layer.crs)})"
    )


def _to_crs(crs: str | CRS | None, where: str) -> CRS | None:
    if crs is None:
        return None
    try:
        return crs if isinstance(crs, CRS) else CRS(crs)
    except (pyproj.exceptions.CRSError, ValueError) as error:
        raise VectorError(f"{where}: {crs!r} is no CRS that PROJ knows: give EPSG:code or WKT") from error


def _check_same_crs(one: CRS | None, other: CRS | None) -> None:
    if one is other or (one is not None and other is not None and same_crs(one, other)):
        return
    raise VectorError(f"shapes in {name_of(one)} and a grid in {name_of(other)}: read the layer for this grid")


def _check_degrees(path: str, crs: CRS | None, bounds: Bounds | None) -> None:
    if crs is None or bounds is None or not crs.geographic:
        return
    # Longitudes up to 360 are in use beside the dateline.
    if max(abs(bounds[0]), abs(bounds[2])) > 360 or max(abs(bounds[1]), abs(bounds[3])) > 90 + 1e-6:
        raise VectorError(
            f"{path} says {name_of(crs)}, in degrees, but its coordinates reach {_format(bounds)} (left, bottom, "
            "right, top): declare the CRS they are in (--vector-crs EPSG:...)"
        )


def _format(bounds: Sequence[float]) -> str:
    return ", ".join(f"{edge:.8g}" for edge in bounds)


def _is_partial(declared: Sequence[str], geometries: np.ndarray) -> bool:
    present = shapely.get_dimensions(geometries[~shapely.is_empty(geometries)])
    return bool((present < 2).any()) or all("Point" in name or "Line" in name for name in declared)


def _with_area(
    geometries: np.ndarray, geobox: GeoBox, point_radius_m: float | None, line_width_m: float | None, path: str
) -> np.ndarray:
    """Lines, and points with a radius of a pixel or more, as areas."""
    dimensions = np.where(shapely.is_empty(geometries), -1, shapely.get_dimensions(geometries))
    points, lines = np.flatnonzero(dimensions == 0), np.flatnonzero(dimensions == 1)
    if len(lines) and not line_width_m:
        raise VectorError(f"{path} has {len(lines)} lines, which cover no pixel: give their width (line_width_m)")
    scale = units_per_metre(geobox)
    pixel_m = max(abs(geobox.resolution.x) / scale[0], abs(geobox.resolution.y) / scale[1])
    geometries = geometries.copy()
    if len(points) and point_radius_m and point_radius_m >= pixel_m:
        geometries[points] = buffered(geometries[points], point_radius_m, scale, "round")
    if len(lines) and line_width_m:
        geometries[lines] = buffered(geometries[lines], line_width_m / 2, scale, "flat")
    return geometries


def _class_values(
    attributes: np.ndarray | None, count: int, legend: Legend | None
) -> tuple[np.ndarray, dict[str, int]]:
    """uint8 classes, 255 where there is none, and how often each such attribute value occurs."""
    if attributes is None or legend is None:
        return np.full(count, 1 if legend is None else legend.values[0], np.uint8), {}
    values = [legend.value_of(attribute) for attribute in attributes]
    missed = (attribute for attribute, value in zip(attributes, values, strict=True) if value is None)
    unknown = Counter(_as_text(attribute) for attribute in missed)
    return np.array([UNLABELLED if value is None else value for value in values], np.uint8), dict(unknown)


def _as_text(attribute: object) -> str:
    if attribute is None or attribute != attribute:
        return "null"
    return f"{attribute:.15g}" if isinstance(attribute, float) else str(attribute)


def _rank(values: np.ndarray, legend: Legend | None) -> np.ndarray:
    """Place in the order of burning: unknown classes first, so that they hide no known one."""
    table = np.full(256, -1)
    for place, value in enumerate(legend.values if legend else (1,)):
        table[value] = place
    return table[values]
