"""The vector formats that are read, told by their first bytes and never by a name alone.

A driver that is left to guess opens a virtual layer or a pipeline that is named
``.geojson``, and hands out other files of the machine. So each file is opened as
what its bytes say, or not at all.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import pyarrow
import pyarrow.parquet
import pyogrio
import pyogrio.errors
import shapely

from gimseg.errors import VectorError
from gimseg.legend import did_you_mean

Bounds = tuple[float, float, float, float]

_HEAD = 65536
_ALLOWED = (
    "Shapefile (.shp), GeoPackage (.gpkg), GeoJSON (.geojson, .geojsonl), FlatGeobuf (.fgb) or GeoParquet (.parquet)"
)
NO_GEOMETRY = "features without a geometry are left out"
"""The end of the note that counts them."""
_OWN_LAYERS = {"polygons", "aoi", "blocks"}  # of a prediction's GeoPackage: objects, and what frames them
_READ_FAULTS = (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.FeatureError)

GEOPACKAGE = {"VERSION": "1.3"}
"""Options of GeoPackages that are made: 1.4, the newest, makes older GDAL warn."""


@dataclass(frozen=True)
class Source:
    """One layer of one file, as the file describes it.

    Args:
        path: the file.
        kind: "Shapefile", "GeoPackage", "GeoJSON", "GeoJSONSeq", "FlatGeobuf" or "GeoParquet".
        layer: name of the layer; None where a file is one layer.
        crs: as the file says.
        bounds: left, bottom, right, top; None if there is no geometry.
    """

    path: str
    kind: str
    layer: str | None
    crs: str | None
    count: int
    fields: tuple[str, ...]
    geometry_types: tuple[str, ...]
    bounds: Bounds | None
    notes: tuple[str, ...] = ()


def find_source(path: str, layer: str | None = None) -> Source:
    """Describe the layer that a path, and perhaps a name, mean.

    Raises:
        VectorError: see :func:`gimseg.vectors.open_layer`.
    """
    path, named = split_name(path)
    if layer is not None and named is not None and layer != named:
        raise VectorError(f"{path} is asked for layer {layer!r} and, in its name, for {named!r}: give one of them")
    kind = find_kind(path)
    if kind == "GeoParquet":
        return _describe_parquet(path)
    with _readable(path, kind):
        names, notes = _choose_layer(path, kind, layer or named)
        info = pyogrio.read_info(_address(path, kind), layer=names, force_feature_count=True, force_total_bounds=True)
        nulls = len(_null_numbers(path, kind, names, str(info["geometry_name"])))
    if nulls:
        notes += (f"{nulls} {NO_GEOMETRY}",)
    return Source(
        path=path,
        kind=kind,
        layer=names,
        crs=info["crs"],
        count=int(info["features"]),
        fields=tuple(map(str, info["fields"])),
        geometry_types=(str(info["geometry_type"]),),
        bounds=_finite(info["total_bounds"]),
        notes=notes,
    )


def find_kind(path: str) -> str:
    """What a file is, by its first bytes.

    Raises:
        VectorError: missing, empty, or none of the kinds that are read.
    """
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "does not exist"
        raise VectorError(f"{path} {what}: give a file, {_ALLOWED}")
    try:
        with open(path, "rb") as stream:
            head = stream.read(_HEAD)
    except OSError as error:
        raise VectorError(f"{path} cannot be read ({error.strerror})") from error
    if not head:
        raise VectorError(
            f"{path} is empty (0 bytes): write it again; a layer without features has a few hundred bytes"
        )
    kind = _kind_of(head, path)
    if kind is None or b"<OGRVRTDataSource" in head or b"gdal_streamed_alg" in head:
        raise VectorError(f"{path} is not {_ALLOWED} (it begins with {head[:24]!r}): save the layer as one of these")
    if kind == "Shapefile":
        _check_shapefile(path, head)
    return kind


def layer_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the layers with geometries, in the file's order.

    Raises:
        VectorError: missing, damaged, or none of the formats that are read.
    """
    return tuple(name for name, geometry in _tables(os.fspath(path)).items() if geometry is not None)


def table_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """As :func:`layer_names`, with the tables that have no geometries.

    Raises:
        VectorError: missing, damaged, or none of the formats that are read.
    """
    return tuple(_tables(os.fspath(path)))


def _tables(path: str) -> dict[str, str | None]:
    """Types of geometries of all layers; None where one has none."""
    kind = find_kind(path)
    if kind == "GeoParquet":
        return {Path(path).stem: "Unknown"}
    with _readable(path, kind):
        return {str(name): geometry for name, geometry in pyogrio.list_layers(_address(path, kind))}


def read_columns(
    source: Source, columns: Sequence[str], bounds: Bounds | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Geometries, flat, and attributes of the features that may meet a box.

    Args:
        source: what to read.
        columns: names of attributes.
        bounds: in the layer's own coordinates; None: all features.

    Returns:
        shapely objects (n,), None where a feature has none, and the values (n,) of each attribute.

    Raises:
        VectorError: the file is damaged.
    """
    if source.kind == "GeoParquet":
        return _read_parquet(source, columns, bounds)
    return _read_driver(source, columns, bounds)[1:]


def read_numbered(
    source: Source, columns: Sequence[str], bounds: Bounds | None
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """As :func:`read_columns`, with the number of each feature, as QGIS shows it; first.

    Raises:
        VectorError: the file is damaged.
    """
    if source.kind != "GeoParquet":
        return _read_driver(source, columns, bounds)
    # Rows are numbered by their place in the file, so all of them are read.
    geometries, attributes = _read_parquet(source, columns, None)
    near = np.ones(len(geometries), bool) if bounds is None else shapely.intersects(geometries, shapely.box(*bounds))
    return np.flatnonzero(near), geometries[near], {name: values[near] for name, values in attributes.items()}


def find_null(source: Source) -> np.ndarray:
    """Numbers of the features of a layer that have no geometry, or an empty one, (n,).

    Raises:
        VectorError: the file is damaged.
    """
    if source.kind == "GeoParquet":
        geometries = _read_parquet(source, (), None)[0]
        return np.flatnonzero(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    with _readable(source.path, source.kind):
        name = pyogrio.read_info(_address(source.path, source.kind), layer=source.layer)["geometry_name"]
        return _null_numbers(source.path, source.kind, source.layer, str(name))


def read_stored(path: str | os.PathLike[str], layer: str) -> np.ndarray:
    """Geometries of a layer of a GeoPackage, with their heights, in the order of :func:`read_numbered`.

    Returns:
        shapely objects (n,), None where a feature has none.

    Raises:
        VectorError: the file is damaged.
    """
    path = os.fspath(path)
    with _readable(path, "GeoPackage"):
        stored = pyogrio.raw.read(path, layer=layer, columns=[])[2]
        return _from_wkb(stored, "fix")


def can_say(path: str | os.PathLike[str], layer: str, field: str) -> bool:
    """Whether a column of a layer of a GeoPackage holds texts, or is not there yet.

    Raises:
        VectorError: the file is damaged.
    """
    path = os.fspath(path)
    with _readable(path, "GeoPackage"):
        info = pyogrio.read_info(path, layer=layer)
    return dict(zip(info["fields"], info["dtypes"], strict=True)).get(field, "object") == "object"


def find_damaged(source: Source) -> np.ndarray:
    """Numbers of the features that cannot be read as they are stored, (n,): a ring is open, or too short.

    Reading closes it, which may leave a polygon without an area, or a feature without a geometry.

    Raises:
        VectorError: the file is damaged.
    """
    if source.kind == "GeoParquet":
        return np.empty(0, int)
    with _readable(source.path, source.kind):
        _, numbers, geometries, _ = pyogrio.raw.read(
            _address(source.path, source.kind), layer=source.layer, columns=[], return_fids=True
        )
    stored = np.array([geometry is not None for geometry in geometries], bool)
    return np.asarray(numbers)[stored & shapely.is_missing(_from_wkb(geometries, "ignore"))]


def _read_driver(
    source: Source, columns: Sequence[str], bounds: Bounds | None
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    with _readable(source.path, source.kind):
        layer, numbers, geometries, attributes = pyogrio.raw.read(
            _address(source.path, source.kind),
            layer=source.layer,
            columns=list(columns),
            bbox=bounds,
            force_2d=True,
            return_fids=True,
        )
    # They come in the order of the layer, whatever order was asked for.
    values = dict(zip(layer["fields"], attributes, strict=True))
    return np.asarray(numbers), _decode(geometries), {name: np.asarray(values[name], object) for name in columns}


def _decode(geometries: np.ndarray) -> np.ndarray:
    return shapely.force_2d(_from_wkb(geometries, "fix"))


def _from_wkb(geometries: np.ndarray, on_invalid: str) -> np.ndarray:
    # A coordinate that is NaN is met again where it matters.
    with np.errstate(invalid="ignore"):
        return np.atleast_1d(shapely.from_wkb(geometries, on_invalid=on_invalid))


def split_name(path: str) -> tuple[str, str | None]:
    """File and name of a layer as QGIS writes it, ``file.gpkg|layername=x``; None where it names none.

    Raises:
        VectorError: it says more than that.

    Example:
        >>> split_name("maps/aoi.gpkg|layername=north")
        ('maps/aoi.gpkg', 'north')
    """
    if "|" not in path or os.path.exists(path):
        return path, None
    path, *options = path.split("|")
    named = None
    for option in options:
        key, _, value = option.partition("=")
        if key == "layername":
            named = value
        elif key not in ("geometrytype", "uniqueGeometryType"):
            raise VectorError(f"{path}: the option |{option} is not understood: save the layer as a file of its own")
    return path, named


def _kind_of(head: bytes, path: str) -> str | None:
    if head.startswith(b"\x00\x00\x27\x0a"):
        return "Shapefile" if path.lower().endswith(".shp") else None
    if head.startswith(b"SQLite format 3\x00"):
        return "GeoPackage" if head[68:72] in (b"GPKG", b"GP10", b"GP11") else None
    if head.startswith(b"fgb"):
        return "FlatGeobuf"
    if head.startswith(b"PAR1"):
        return "GeoParquet"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text.startswith(b"{"):
        return "GeoJSONSeq" if text.startswith(b"\x1e{") else None
    # A feature a line: no GeoJSON as a whole.
    return "GeoJSONSeq" if path.lower().endswith((".geojsonl", ".geojsons")) else "GeoJSON"


def _check_shapefile(path: str, head: bytes) -> None:
    """Refuse a Shapefile that lacks a part: the driver gives what is left without a word."""
    stem = Path(path)
    if not any(stem.with_suffix(suffix).exists() for suffix in (".shx", ".SHX")):
        raise VectorError(f"{path} lacks its .shx file: copy all files of the Shapefile (.shp, .shx, .dbf, .prj)")
    declared, found = 2 * int.from_bytes(head[24:28], "big"), os.path.getsize(path)
    if declared != found:
        raise VectorError(
            f"{path} has {found} bytes and its header says {declared}: it was cut off, or never "
            "finished; write or copy it again"
        )


def _address(path: str, kind: str) -> str:
    # The prefix keeps other drivers from looking into the text.
    return f"{kind}:{path}" if kind.startswith("GeoJSON") else path


@contextmanager
def _readable(path: str, kind: str) -> Iterator[None]:
    """Name the file when the driver gives up, and what helps."""
    try:
        with warnings.catch_warnings():
            # Measures and file endings: neither is used.
            warnings.simplefilter("ignore", RuntimeWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    except (*_READ_FAULTS, shapely.errors.GEOSException) as error:
        if kind == "GeoPackage" and "is locked" in str(error):
            raise VectorError(
                f"{path} is locked by another program that has it open: save and close it there"
            ) from error
        real = os.path.realpath(path)
        left = [real + ending for ending in ("-wal", "-journal") if os.path.exists(real + ending)]
        if kind == "GeoPackage" and left:
            raise VectorError(
                f"{path} was not closed properly ({left[0]} lies beside it): open it once for writing, in QGIS or with "
                "sqlite3, in a folder that can be written to, and close it"
            ) from error
        raise VectorError(f"{path} cannot be read as {kind} ({error}): is it damaged, or was it cut off?") from error


def _choose_layer(path: str, kind: str, asked: str | None) -> tuple[str | None, tuple[str, ...]]:
    layers = _tables(path)
    spatial = [name for name, geometry in layers.items() if geometry is not None]
    if asked is not None:
        if asked in spatial:
            return asked, ()
        if asked in layers:
            raise VectorError(f"layer {asked!r} of {path} has no geometries; layers that have: {', '.join(spatial)}")
        if kind == "GeoPackage" or asked != Path(path).stem:
            raise VectorError(f"{path} has no layer {asked!r}{did_you_mean(asked, spatial)}")
    if not spatial:
        raise VectorError(f"{path} has no layer with geometries (tables: {', '.join(layers) or 'none'})")
    if len(spatial) == 1:
        return spatial[0], ()
    areal = [name for name in spatial if any(kind in (layers[name] or "") for kind in ("Polygon", "Unknown"))]
    if "polygons" in areal and set(areal) <= _OWN_LAYERS:
        areal = ["polygons"]
    if len(areal) == 1:
        return areal[0], (f"layer {areal[0]} of {', '.join(spatial)} was taken: the only one of objects",)
    raise VectorError(
        f"{path} has {len(spatial)} layers ({', '.join(spatial)}): name one, as in {path}|layername={spatial[0]}"
    )


def _null_numbers(path: str, kind: str, layer: str | None, geometry_name: str) -> np.ndarray:
    """Numbers of the features without a geometry, or with an empty one, which a search by place never meets."""
    column, where = '"' + geometry_name.replace('"', '""') + '"', "OGR_GEOMETRY IS NULL"
    if kind == "GeoPackage":
        where = f"{column} IS NULL OR ST_IsEmpty({column})"
    elif kind == "GeoJSON":
        where = f"{where} OR OGR_GEOM_WKT LIKE '%EMPTY'"
    found = pyogrio.raw.read(_address(path, kind), layer=layer, columns=[], where=where, return_fids=True)
    return np.asarray(found[1])


def _finite(bounds: Sequence[float] | None) -> Bounds | None:
    if bounds is None or not np.isfinite(bounds).all():
        return None
    left, bottom, right, top = map(float, bounds)
    return left, bottom, right, top


def _describe_parquet(path: str) -> Source:
    try:
        metadata = pyarrow.parquet.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
        geo = json.loads((schema.metadata or {})[b"geo"])
        column = geo["columns"][geo["primary_column"]]
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise VectorError(
            f"{path} cannot be read as GeoParquet ({error!r}): write it as GeoParquet 1.0 or later"
        ) from error
    crs = column.get("crs", "OGC:CRS84")
    frame = _read_geopandas(path, (), None) if metadata.num_rows else None
    nulls = 0 if frame is None else int(frame.geometry.isna().sum())
    boxes = {name for part in geo["columns"].values() for name, *_ in part.get("covering", {}).get("bbox", {}).values()}
    others = boxes | set(geo["columns"])
    return Source(
        path=path,
        kind="GeoParquet",
        layer=None,
        crs=crs if crs is None or isinstance(crs, str) else json.dumps(crs),
        count=metadata.num_rows,
        fields=tuple(name for name in schema.names if name not in others),
        geometry_types=tuple(column.get("geometry_types") or ("Unknown",)),
        bounds=None if frame is None else _finite(frame.total_bounds),
        notes=(f"{nulls} {NO_GEOMETRY}",) if nulls else (),
    )


def _read_geopandas(path: str, names: Sequence[str], bounds: Bounds | None) -> geopandas.GeoDataFrame:
    schema = pyarrow.parquet.read_schema(path)
    geo = json.loads(schema.metadata[b"geo"])
    columns = [geo["primary_column"], *names]
    has_boxes = "covering" in geo["columns"][geo["primary_column"]]
    try:
        return geopandas.read_parquet(path, columns=columns, bbox=bounds if has_boxes else None)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise VectorError(
            f"{path} cannot be read as GeoParquet ({error}): is it damaged, or was it cut off?"
        ) from error


def _read_parquet(
    source: Source, columns: Sequence[str], bounds: Bounds | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    frame = _read_geopandas(source.path, columns, bounds)
    geometries = shapely.force_2d(frame.geometry.to_numpy())
    attributes = {name: frame[name].to_numpy(object) for name in columns}
    if bounds is None:
        return geometries, attributes
    meets = shapely.intersects(geometries, shapely.box(*bounds)) | shapely.is_missing(geometries)
    return geometries[meets], {name: values[meets] for name, values in attributes.items()}
