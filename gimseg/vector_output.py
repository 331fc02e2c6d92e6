"""Stream features into Shapefile, GeoPackage, FlatGeobuf, GeoJSON or GeoParquet, by the name's ending.

Chunks pass through one at a time, so that memory is that of a chunk, and the file
appears under its name when it has been read back and its features counted.
"""

from __future__ import annotations

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
from gimseg.outputs import staged

DRIVERS = {
    ".shp": "ESRI Shapefile",
    ".gpkg": "GPKG",
    ".fgb": "FlatGeobuf",
    ".geojson": "GeoJSON",
    ".json": "GeoJSON",
    ".parquet": "Parquet",
    ".geoparquet": "Parquet",
}
"""Ending -> GDAL's name of the format."""

SHAPEFILE_LIMIT = 2**31
"""Bytes that the .shp and the .dbf may each have."""

_DBF_WIDTHS = {"string": 80, "double": 24, "float": 24, "int64": 18, "int32": 9, "uint8": 9, "bool": 1}
_LEAST_POLYGON = 8 + 44 + 4 + 5 * 16
_DEGREES = pyproj.CRS("EPSG:4326")
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
    if driver == "GeoJSON" and crs is None:
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
    record = 1 + sum(_DBF_WIDTHS.get(str(_arrow_type(text)), 24) for text in fields.values())
    least = (expected or 0) * max(record, _LEAST_POLYGON)
    if least > SHAPEFILE_LIMIT:
        raise OutputError(
            f"{path}: {expected:,} features need {least / 2**30:.1f} GB at least and a Shapefile holds 2 GB: "
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
        path: output; its ending says the format. GeoJSON is written in EPSG:4326.
        chunks: frames with the attributes of `fields` and geometries in `crs`; best
            5000 features or more each.
        fields: attribute -> type ("str", "int32", "int64", "float64", "bool"), in order;
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
            else:
                _write_driver(part, frames, writer, layer or Path(path).stem)
        found = _count(part, writer, path)
        if found != writer.count:
            raise OutputError(f"{path}: {writer.count} features were written and {found} read back: is the disk full?")
    return found


class _Stream:
    """Frames to Arrow batches, counting; remembers the error that a driver would hide."""

    def __init__(self, path: str, fields: dict[str, str], crs: pyproj.CRS | None, geometry_type: str) -> None:
        self.path, self.fields, self.crs = path, fields, crs
        self.driver = driver_of(path)
        self.geometry_type = geometry_type
        self.count = 0
        self.error: BaseException | None = None
        self.to_degrees = None
        if self.driver == "GeoJSON" and crs is not None and not crs.equals(_DEGREES, ignore_axis_order=True):
            self.to_degrees = pyproj.Transformer.from_crs(crs, _DEGREES, always_xy=True).transform
            self.crs = _DEGREES

    @property
    def schema(self) -> pyarrow.Schema:
        columns = [pyarrow.field(name, _arrow_type(text)) for name, text in self.fields.items()]
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
        if self.to_degrees is not None:
            geometries = shapely.transform(geometries, self.to_degrees, interleaved=False)
        if self.geometry_type.startswith("Multi"):
            geometries = _as_multi(geometries)
        columns = [
            pyarrow.Array.from_pandas(frame[name].to_numpy(), type=_arrow_type(text), safe=False)
            for name, text in self.fields.items()
        ]
        if self.driver == "ESRI Shapefile":
            self._check_texts(columns)
        wkb = pyarrow.array(shapely.to_wkb(geometries), pyarrow.binary())
        return pyarrow.RecordBatch.from_arrays([*columns, wkb], schema=self.schema)

    def _check_texts(self, columns: list[pyarrow.Array]) -> None:
        for name, column in zip(self.fields, columns, strict=True):
            if pyarrow.types.is_string(column.type):
                longest = max((len(text.encode()) for text in column.unique().to_pylist() if text), default=0)
                if longest > 254:
                    raise OutputError(
                        f"{self.path}: a value of {name} has {longest} bytes and a Shapefile holds 254: write .gpkg"
                    )

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
    options = {"RFC7946": "YES"} if writer.driver == "GeoJSON" else {}
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
            encoding="UTF-8" if writer.driver == "ESRI Shapefile" else None,
            layer_options=options,
        )


def _write_parquet(part: Path, frames: Iterable[geopandas.GeoDataFrame], writer: _Stream) -> None:
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": [],
        "crs": None if writer.crs is None else writer.crs.to_json_dict(),
    }
    geo = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": column}}
    schema = writer.schema.with_metadata({b"geo": json.dumps(geo).encode()})
    with pyarrow.parquet.ParquetWriter(part, schema, compression="zstd") as output:
        for batch in writer.batches(frames, part):
            output.write_table(pyarrow.Table.from_batches([batch]).cast(schema))


def _count(part: Path, writer: _Stream, path: str | os.PathLike[str]) -> int:
    """Features in a finished file, the last of which can be read."""
    try:
        if writer.driver == "Parquet":
            return pyarrow.parquet.read_metadata(part).num_rows
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found = int(pyogrio.read_info(part, force_feature_count=True)["features"])
            if found:
                last = pyogrio.raw.read(part, skip_features=found - 1, max_features=1)[2]
                found -= int(len(last) != 1 or last[0] is None)
        return found
    except (*_FAULTS, pyogrio.errors.DataLayerError, pyarrow.ArrowException, OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read back ({error}): is the disk full?") from error


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
