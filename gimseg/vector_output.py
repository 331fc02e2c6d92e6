"""Stream features into Shapefile, GeoPackage, FlatGeobuf, GeoJSON (whole or line by line) or GeoParquet, by the ending.

Chunks pass through one at a time, so that memory is that of a chunk, and the file
appears under its name when it has been read back and its features counted.
"""

from __future__ import annotations

import datetime
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow
import pyarrow.parquet
import pyogrio
import pyogrio.errors
import pyproj
import shapely
from odc.geo.crs import CRS

from gimseg.errors import OutputError
from gimseg.geojson_output import count_features, write_geojson, write_geojson_lines
from gimseg.outputs import staged
from gimseg.vector_formats import GEOPACKAGE

DRIVERS = {
    ".shp": "ESRI Shapefile",
    ".gpkg": "GPKG",
    ".fgb": "FlatGeobuf",
    ".geojson": "GeoJSON",
    ".json": "GeoJSON",
    ".geojsonl": "GeoJSONSeq",
    ".geojsons": "GeoJSONSeq",
    ".parquet": "Parquet",
    ".geoparquet": "Parquet",
}
"""Ending -> GDAL's name of the format."""

SHAPEFILE_LIMIT = 2**31
"""Bytes that the .shp and the .dbf may each have."""

TEXT_LIMIT = 254
"""Bytes of UTF-8 that a text in a Shapefile may have."""

_DBF_WIDTHS = {
    "string": 80,
    "double": 24,
    "float": 24,
    "int64": 18,
    "int32": 9,
    "uint8": 9,
    "bool": 1,
    "date32[day]": 8,
}
_POLYGON_BYTES, _POINT_BYTES = 8 + 44 + 4, 16
_IN_DEGREES = ("GeoJSON", "GeoJSONSeq")
_OPTIONS: Mapping[str, dict[str, Any]] = {
    "GPKG": {"dataset_options": GEOPACKAGE},
    "ESRI Shapefile": {"encoding": "UTF-8"},
}
_BOX = ("xmin", "ymin", "xmax", "ymax")
_FAULTS = (
    pyogrio.errors.DataSourceError,
    pyogrio.errors.FeatureError,
    pyogrio.errors.GeometryError,
    pyogrio.errors.FieldError,
)


def check_features(
    path: str | os.PathLike[str], fields: Mapping[str, str], crs: Any, *, expected: int | None = None
) -> None:
    """Refuse, before the work, what the format of `path` cannot hold.

    Args:
        path: the output.
        fields: attribute -> type, as in :func:`write_features`.
        crs: of the features, or None.
        expected: about how many features there will be.

    Raises:
        OutputError: an ending that is not known; for a Shapefile, names of more than 10
            bytes or more than 2 GB; GeoJSON without a CRS.
    """
    driver = driver_of(path)
    if driver in _IN_DEGREES and crs is None:
        raise OutputError(
            f"{path}: GeoJSON is in longitudes and latitudes and there is no CRS: write .gpkg, or give --crs"
        )
    if driver != "ESRI Shapefile":
        return
    long = [name for name in fields if len(name.encode()) > 10]
    if long:
        raise OutputError(
            f"{path}: a Shapefile's attribute names have at most 10 bytes, {', '.join(long)} more: write .gpkg instead"
        )
    check_size(path, fields, expected or 0, 5 * (expected or 0))


def check_size(path: str | os.PathLike[str], fields: Mapping[str, str], count: int, points: int) -> None:
    """Refuse a Shapefile of more than 2 GB.

    Args:
        path: the output.
        fields: attribute -> type.
        count: about how many polygons there will be.
        points: about how many vertices they have.

    Raises:
        OutputError: the .shp or the .dbf would be larger.
    """
    record = 1 + sum(_DBF_WIDTHS.get(str(_arrow_type(text)), 24) for text in fields.values())
    least = max(count * record, count * _POLYGON_BYTES + points * _POINT_BYTES)
    if least > SHAPEFILE_LIMIT:
        raise OutputError(
            f"{path}: about {count:,} features need {least / 2**30:.1f} GB and a Shapefile holds 2 GB: "
            "write .gpkg, .fgb or .parquet instead"
        )


def driver_of(path: str | os.PathLike[str]) -> str:
    """GDAL's name of the format that an ending means.

    Raises:
        OutputError: an ending that is not known.

    Example:
        >>> driver_of("houses.fgb")
        'FlatGeobuf'
    """
    suffix = Path(path).suffix.lower()
    if suffix not in DRIVERS:
        raise OutputError(f"{path} ends in {suffix or 'nothing'!r}: give one of {', '.join(DRIVERS)}")
    return DRIVERS[suffix]


def write_features(
    path: str | os.PathLike[str],
    chunks: geopandas.GeoDataFrame | Iterable[geopandas.GeoDataFrame],
    *,
    fields: Mapping[str, str],
    crs: CRS | pyproj.CRS | str | None,
    geometry_type: str = "Polygon",
    layer: str | None = None,
    expected: int | None = None,
) -> int:
    """Write features whole or not at all; the caller has asked `check_outputs`.

    Args:
        path: output; its ending says the format. GeoJSON is written in EPSG:4326,
            right-handed and cut at the antimeridian, as RFC 7946 wants it.
        chunks: frames with the attributes of `fields` and geometries in `crs`; best
            5000 features or more each.
        fields: attribute -> type ("str", "int32", "int64", "float64", "bool", "date"), in order;
            an empty output has them too.
        crs: of the geometries; one without an EPSG code is kept as WKT.
        geometry_type: "Polygon", "MultiPolygon", "Point", "LineString" ...
        layer: name in a GeoPackage; the file's stem if None.
        expected: about how many features there will be, to refuse early.

    Returns:
        the number of features, counted in the finished file.

    Raises:
        OutputError: see :func:`check_features`; a chunk lacks an attribute; the disk is
            full; or the finished file does not hold what was written.
    """
    check_features(path, fields, crs, expected=expected)
    frames = [chunks] if isinstance(chunks, geopandas.GeoDataFrame) else chunks
    ground = None if crs is None else _to_pyproj(crs, path)
    writer = _Stream(str(path), dict(fields), ground, geometry_type)
    with staged(path) as part:
        with _explained(path, writer):
            if writer.driver == "Parquet":
                _write_parquet(part, frames, writer)
            elif writer.driver == "GeoJSON":
                write_geojson(part, writer.batches(frames, part), writer.ground, layer or Path(path).stem)
            elif writer.driver == "GeoJSONSeq":
                write_geojson_lines(part, writer.batches(frames, part), writer.ground)
            else:
                _write_driver(part, frames, writer, layer or Path(path).stem)
        found = _count(part, writer, path)
        if found != writer.count:
            raise OutputError(f"{path}: {writer.count} features were written and {found} read back: is the disk full?")
    return found


def check_text(path: str | os.PathLike[str], name: str, size: int) -> None:
    """Refuse a text of `size` bytes in attribute `name` where a Shapefile would cut it.

    Raises:
        OutputError: it is too long.
    """
    if driver_of(path) == "ESRI Shapefile" and size > TEXT_LIMIT:
        raise OutputError(f"{path}: a value of {name} has {size} bytes and a Shapefile holds {TEXT_LIMIT}: write .gpkg")


class _Stream:
    """Frames to Arrow batches, counting; remembers the error that a driver would hide."""

    def __init__(self, path: str, fields: dict[str, str], crs: pyproj.CRS | None, geometry_type: str) -> None:
        self.driver = driver_of(path)
        if self.driver in _IN_DEGREES:
            # JSON has no dates: as ISO they are read as dates again.
            fields = {name: "str" if kind == "date" else kind for name, kind in fields.items()}
        self.path, self.fields, self.crs = path, fields, crs
        self.geometry_type = geometry_type
        self.count = 0
        self.error: BaseException | None = None
        self.bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])

    @property
    def ground(self) -> pyproj.CRS:
        """The CRS, where the format cannot do without one."""
        if self.crs is None:
            raise OutputError(f"{self.path}: there is no CRS: give --crs")
        return self.crs

    @property
    def schema(self) -> pyarrow.Schema:
        columns = [pyarrow.field(name, _arrow_type(text)) for name, text in self.fields.items()]
        if self.driver == "Parquet":
            # The extent of each feature, by which readers skip what lies elsewhere.
            box = pyarrow.struct([pyarrow.field(name, pyarrow.float64(), nullable=False) for name in _BOX])
            return pyarrow.schema([*columns, pyarrow.field("bbox", box), pyarrow.field("geometry", pyarrow.binary())])
        wkb = pyarrow.field("geometry", pyarrow.binary(), metadata={b"ARROW:extension:name": b"geoarrow.wkb"})
        return pyarrow.schema([*columns, wkb])

    def batches(self, frames: Iterable[geopandas.GeoDataFrame], part: Path) -> Iterator[pyarrow.RecordBatch]:
        """One batch a frame. An exception ends the stream and is kept in `error`."""
        try:
            for frame in frames:
                if len(frame):
                    yield self._batch(frame)
                    self.count += len(frame)
                if self.driver == "ESRI Shapefile":
                    self._check_size(part)
        except BaseException as error:
            self.error = error
            raise

    def _batch(self, frame: geopandas.GeoDataFrame) -> pyarrow.RecordBatch:
        missing = [name for name in self.fields if name not in frame.columns]
        if missing:
            raise OutputError(f"{self.path}: features lack the attributes {', '.join(missing)}")
        geometries = frame.geometry.to_numpy()
        if self.geometry_type.startswith("Multi"):
            geometries = _as_multi(geometries)
        columns = [_array(frame[name].to_numpy(), text) for name, text in self.fields.items()]
        if self.driver == "ESRI Shapefile":
            self._check_texts(columns)
        if self.driver == "Parquet":
            columns.append(self._boxes(geometries))
        wkb = pyarrow.array(shapely.to_wkb(geometries), pyarrow.binary())
        return pyarrow.RecordBatch.from_arrays([*columns, wkb], schema=self.schema)

    def _boxes(self, geometries: np.ndarray) -> pyarrow.StructArray:
        bounds = shapely.bounds(geometries)
        self.bounds[:2] = np.fmin(self.bounds[:2], np.fmin.reduce(bounds[:, :2]))
        self.bounds[2:] = np.fmax(self.bounds[2:], np.fmax.reduce(bounds[:, 2:]))
        return pyarrow.StructArray.from_arrays(
            [pyarrow.array(side) for side in bounds.T], fields=list(self.schema.field("bbox").type)
        )

    def _check_texts(self, columns: list[pyarrow.Array]) -> None:
        for name, column in zip(self.fields, columns, strict=True):
            if pyarrow.types.is_string(column.type):
                longest = max((len(text.encode()) for text in column.unique().to_pylist() if text), default=0)
                check_text(self.path, name, longest)

    def _check_size(self, part: Path) -> None:
        for suffix in (".shp", ".dbf"):
            with suppress(FileNotFoundError):
                # The driver buffers: stop a little before the limit, not after.
                if part.with_suffix(suffix).stat().st_size > SHAPEFILE_LIMIT * 31 // 32:
                    raise OutputError(
                        f"{self.path}: {suffix} nears 2 GB after {self.count:,} features, more than a Shapefile holds: "
                        "write .gpkg, .fgb or .parquet instead"
                    )


class _explained:  # noqa: N801 - reads as the context manager it is
    """The first cause of a failed write, as an OutputError that names the output."""

    def __init__(self, path: str | os.PathLike[str], writer: _Stream) -> None:
        self.path, self.writer = path, writer

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.writer.error is not None and error is not self.writer.error:
            raise self.writer.error
        if isinstance(error, (*_FAULTS, pyarrow.ArrowException)) or type(error) is OSError:
            raise OutputError(f"{self.path} could not be written ({error}): is the disk full?") from error


def _write_driver(part: Path, frames: Iterable[geopandas.GeoDataFrame], writer: _Stream, layer: str) -> None:
    reader = pyarrow.RecordBatchReader.from_batches(writer.schema, writer.batches(frames, part))
    with warnings.catch_warnings():
        # No CRS is the caller's decision, and has been said to the user.
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        pyogrio.raw.write_arrow(
            reader,
            part,
            layer=layer if writer.driver == "GPKG" else part.stem,
            driver=writer.driver,
            geometry_name="geometry",
            geometry_type=writer.geometry_type,
            crs=None if writer.crs is None else _crs_text(writer.crs),
            **_OPTIONS.get(writer.driver, {}),
        )


def _write_parquet(part: Path, frames: Iterable[geopandas.GeoDataFrame], writer: _Stream) -> None:
    # Arrow's own copy of the schema is left out: readers would take it for the whole, without the extent at the end.
    with pyarrow.parquet.ParquetWriter(part, writer.schema, compression="zstd", store_schema=False) as output:
        for batch in writer.batches(frames, part):
            output.write_batch(batch)
        output.add_key_value_metadata({"geo": json.dumps(_parquet_metadata(writer))})


def _parquet_metadata(writer: _Stream) -> dict[str, Any]:
    """What GeoParquet 1.1 says of the file; its extent is known once all is written."""
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": [writer.geometry_type] if writer.count else [],
        "crs": None if writer.crs is None else writer.crs.to_json_dict(),
        "covering": {"bbox": {name: ["bbox", name] for name in _BOX}},
    }
    if np.isfinite(writer.bounds).all():
        column["bbox"] = writer.bounds.tolist()
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _count(part: Path, writer: _Stream, path: str | os.PathLike[str]) -> int:
    """Features in a finished file, the last of which can be read."""
    try:
        if writer.driver == "Parquet":
            return pyarrow.parquet.read_metadata(part).num_rows
        if writer.driver in _IN_DEGREES:
            return count_features(part)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found = int(pyogrio.read_info(part, force_feature_count=True)["features"])
            if found:
                last = pyogrio.raw.read(part, skip_features=found - 1, max_features=1)[2]
                found -= int(len(last) != 1 or last[0] is None)
        return found
    except (*_FAULTS, pyogrio.errors.DataLayerError, pyarrow.ArrowException, OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read back ({error}): is the disk full?") from error


def _array(values: np.ndarray, text: str) -> pyarrow.Array:
    kind = _arrow_type(text)
    if pyarrow.types.is_string(kind) and len(values) and isinstance(values[0], datetime.date):
        return pyarrow.Array.from_pandas(values, type=pyarrow.date32()).cast(kind)
    return pyarrow.Array.from_pandas(values, type=kind, safe=False)


def _as_multi(geometries: np.ndarray) -> np.ndarray:
    single = np.flatnonzero((shapely.get_num_geometries(geometries) == 1) & (shapely.get_type_id(geometries) < 4))
    makers = {0: shapely.multipoints, 1: shapely.multilinestrings, 3: shapely.multipolygons}
    geometries = geometries.copy()
    for place in single:
        geometries[place] = makers[int(shapely.get_type_id(geometries[place]))]([geometries[place]])
    return geometries


def _arrow_type(text: str) -> pyarrow.DataType:
    names = {
        "str": "string",
        "object": "string",
        "float64": "float64",
        "float": "float64",
        "int": "int64",
        "bool": "bool_",
        "date": "date32",
    }
    return getattr(pyarrow, names.get(text, text))()


def _to_pyproj(crs: CRS | pyproj.CRS | str, path: str | os.PathLike[str]) -> pyproj.CRS:
    try:
        return crs.proj if isinstance(crs, CRS) else pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.CRSError as error:
        raise OutputError(f"{path}: {crs!r} is no CRS that PROJ knows") from error


def _crs_text(crs: pyproj.CRS) -> str:
    authority = crs.to_authority(min_confidence=100)
    return ":".join(authority) if authority else crs.to_wkt()
