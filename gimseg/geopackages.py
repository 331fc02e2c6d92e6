"""A GeoPackage that holds more than polygons: further layers, and the QGIS style of each.

QGIS takes the style of a layer from the table ``layer_styles``, so a GeoPackage that is
copied alone keeps its look. Everything here works on a file that is still being made.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import pyogrio
import pyogrio.errors

from gimseg.errors import OutputError
from gimseg.vector_formats import GEOPACKAGE

POLYGONS = "polygons"
"""Name of the layer of the polygons themselves."""

# The columns that QGIS makes, registered as QGIS registers them.
_STYLES = """
CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
    f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')));
INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES ('layer_styles', 'attributes', 'layer_styles');
"""
_STYLE = """
INSERT INTO layer_styles
    (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, styleQML, styleSLD,
    useAsDefault, description, owner)
SELECT '', '', table_name, column_name, table_name, ?, '', 1, 'made by gimseg', ''
FROM gpkg_geometry_columns WHERE table_name = ?
"""


@dataclass(frozen=True)
class FurtherLayer:
    """A small layer beside the polygons.

    Args:
        name: of the layer, such as ``"aoi"``.
        frame: its features, in the CRS of the polygons.
        geometry_type: "Polygon", "MultiPolygon", ...
        style: for QGIS (QML).
    """

    name: str
    frame: gpd.GeoDataFrame
    geometry_type: str
    style: str


def write_layer(part: Path, frame: gpd.GeoDataFrame, *, layer: str, geometry_type: str) -> None:
    """Write one small layer of a GeoPackage that is being made; a frame without a CRS gives a layer without one.

    Args:
        part: the file; made where it is not there.
        frame: features with all their attributes.
        layer: its name.
        geometry_type: "Polygon", "MultiPolygon", ...
    """
    made = {} if part.exists() else {"dataset_options": GEOPACKAGE}
    with warnings.catch_warnings():
        # No CRS is that of the raster, and has been said to the user.
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        pyogrio.write_dataframe(
            frame,
            part,
            layer=layer,
            driver="GPKG",
            geometry_type=geometry_type,
            promote_to_multi=geometry_type.startswith("Multi"),
            **made,
        )


def complete_geopackage(part: Path, layers: Sequence[FurtherLayer], styles: Mapping[str, str]) -> None:
    """Add layers and styles to a GeoPackage that is being made.

    Args:
        part: the file, with its polygons.
        layers: to be added, each with its style.
        styles: of the layers that are in it: name -> QML.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        for layer in layers:
            write_layer(part, layer.frame, layer=layer.name, geometry_type=layer.geometry_type)
        with closing(sqlite3.connect(part)) as database, database:
            database.executescript(_STYLES)
            for name, style in {**styles, **{layer.name: layer.style for layer in layers}}.items():
                database.execute(_STYLE, (style, name))
    except (sqlite3.Error, pyogrio.errors.DataSourceError, pyogrio.errors.FeatureError, OSError) as error:
        raise OutputError(f"{part} could not be completed ({error}): is the disk full?") from error
