"""Rows of a GeoPackage deleted or changed where they are: everything else in the file stays what it was.

A driver writes a layer anew, and what it reads otherwise than it was stored comes back
changed: whole numbers as fractions, pictures as text. So rows are edited as SQLite keeps
them, in one transaction, which no other program can be amidst.

Source: OGC GeoPackage 1.3 (12-128r17), 2.1.3 for the geometries, F.3 for their index.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import shapely

from gimseg.errors import CorrectionError, OutputError

_PATIENCE_S = 1.0
_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")
_LITTLE_ENDIAN, _ENVELOPE_XY, _EMPTY = 0x01, 0x02, 0x10
# Bytes of the envelope, by its code in the flags.
_ENVELOPE_SIZES = (0, 32, 48, 48, 64)
_HEAD = struct.Struct("<2sBBi")


@dataclass(frozen=True)
class RowEdits:
    """What is to become of some features of a layer.

    Args:
        layer: its name.
        deleted: ids of the features that go.
        shapes: new geometries, in the layer's CRS, by id.
        texts: new values of the column `field`, by id; it is made where there is none.
        field: name of a column of texts.
    """

    layer: str
    deleted: tuple[int, ...] = ()
    shapes: Mapping[int, shapely.Geometry] = field(default_factory=dict)
    texts: Mapping[int, str] = field(default_factory=dict)
    field: str = ""


@contextmanager
def edited(path: Path) -> Iterator[list[RowEdits]]:
    """A list to add edits to; all are made when the block ends well, or none.

    Args:
        path: a GeoPackage. The block may read it, by whatever means, and not write it.

    Raises:
        CorrectionError: another program has it open for writing, is reading it, or changed
            it during the block.
        OutputError: it cannot be written.
    """
    with _told(path), closing(sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None)) as database:
        # No lock is held meanwhile: where the block closes the file, this whole process would lose it.
        with _alone(database):
            version = _version(database)
        edits: list[RowEdits] = []
        yield edits
        if edits:
            _teach(database)
            with _alone(database):
                if _version(database) != version:
                    raise CorrectionError(f"{path} was changed meanwhile by another program: close it there, try again")
                for each in edits:
                    _make(database, each)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Name the file when SQLite gives up, and what helps."""
    try:
        yield
    except sqlite3.Error as error:
        if str(getattr(error, "sqlite_errorname", "")).startswith(_BUSY):
            raise CorrectionError(
                f"{path} is open in another program ({error}): save the edits and close it there, in QGIS for example"
            ) from error
        raise OutputError(f"{path} could not be changed, and is what it was ({error}): is the disk full?") from error


@contextmanager
def _alone(database: sqlite3.Connection) -> Iterator[None]:
    """A transaction beside which nobody reads or writes."""
    database.execute("BEGIN EXCLUSIVE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        # Where the disk is full, SQLite has often gone back by itself.
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _version(database: sqlite3.Connection) -> int:
    """Another number after each change that another connection made."""
    return int(database.execute("PRAGMA data_version").fetchone()[0])


def _teach(database: sqlite3.Connection) -> None:
    """The functions that the triggers of a spatial index call."""
    database.create_function("ST_IsEmpty", 1, _is_empty, deterministic=True)
    for place, name in enumerate(("ST_MinX", "ST_MinY", "ST_MaxX", "ST_MaxY")):
        database.create_function(
            name, 1, lambda blob, place=place: float(shapely.bounds(_read(blob))[place]), deterministic=True
        )


def _read(blob: bytes) -> shapely.Geometry | None:
    """A geometry as it is stored; None where it is damaged."""
    wkb = blob[_HEAD.size + _ENVELOPE_SIZES[blob[3] >> 1 & 0x07] :]
    with np.errstate(invalid="ignore"):
        return shapely.from_wkb(wkb, on_invalid="ignore")


def _is_empty(blob: bytes | None) -> bool | None:
    if blob is None:
        return None
    shape = _read(blob)
    return shape is not None and shape.is_empty


def _write(shape: shapely.Geometry, srs: int) -> bytes:
    """A geometry that is not empty, as it is stored."""
    left, bottom, right, top = shape.bounds
    head = _HEAD.pack(b"GP", 0, _LITTLE_ENDIAN | _ENVELOPE_XY, srs)
    wkb = shapely.to_wkb(shape, byte_order=1, flavor="iso", output_dimension=3 if shape.has_z else 2)
    return head + struct.pack("<4d", left, right, bottom, top) + bytes(wkb)


def _make(database: sqlite3.Connection, edits: RowEdits) -> None:
    """Edit the rows of one layer."""
    table = _quoted(edits.layer)
    column, srs, kind = database.execute(
        "SELECT column_name, srs_id, geometry_type_name FROM gpkg_geometry_columns WHERE table_name = ?",
        (edits.layer,),
    ).fetchone()
    columns = database.execute(f"PRAGMA table_info({table})").fetchall()
    where = f"WHERE {_quoted(next((name for _, name, *_, key in columns if key), 'rowid'))} = ?"
    if edits.texts and edits.field not in [name for _, name, *_ in columns]:
        database.execute(f"ALTER TABLE {table} ADD COLUMN {_quoted(edits.field)} TEXT")
    database.executemany(f"DELETE FROM {table} {where}", [(one,) for one in edits.deleted])
    for one, text in edits.texts.items():
        database.execute(f"UPDATE {table} SET {_quoted(edits.field)} = ? {where}", (text, one))
    for one, shape in edits.shapes.items():
        if kind.upper() == "MULTIPOLYGON" and shape.geom_type == "Polygon":
            shape = shapely.MultiPolygon([shape])
        database.execute(f"UPDATE {table} SET {_quoted(column)} = ? {where}", (_write(shape, srs), one))
    # Without an extent a reader asks the index; that of what was deleted may be no number at all.
    database.execute(
        "UPDATE gpkg_contents SET min_x = NULL, min_y = NULL, max_x = NULL, max_y = NULL, "
        "last_change = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE table_name = ?",
        (edits.layer,),
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
