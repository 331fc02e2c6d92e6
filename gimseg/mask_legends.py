"""What the numbers of a mask mean: from its tags, attribute table, category names or colour table, or from a file.

A mask of another tool may hold any whole numbers; a :class:`gimseg.legend.Legend` knows
1 to 254 only. So names go by number here (:class:`ClassName`).
"""

from __future__ import annotations

import json
import os
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from xml.etree import ElementTree

import pyogrio
import pyogrio.errors
from rasterio.enums import ColorInterp

from gimseg.errors import LegendError
from gimseg.legend import BACKGROUND, LEGEND_TAG, UNLABELLED, Legend, LegendClass, default_colour
from gimseg.raster_files import DRIVERS, check_file, open_dataset


class ClassName(NamedTuple):
    """How a number of a mask is called and shown, ``#rrggbb``."""

    name: str
    colour: str


Names: TypeAlias = dict[int, ClassName]

_PLAIN = range(BACKGROUND + 1, UNLABELLED)
_VALUE_FIELDS = ("value", "code", "class_id", "classid", "class_value", "gridcode", "id", "dn")
_NAME_FIELDS = ("class_name", "classname", "class_names", "class", "name", "label", "category", "description", "type")
_COLOUR_FIELDS = ("red", "green", "blue")
_USAGES = {"2": "name", "3": "value", "5": "value", "6": "red", "7": "green", "8": "blue"}


def default_name(code: int) -> ClassName:
    """What a number is called that nothing names.

    Example:
        >>> default_name(523).name
        'class_523'
    """
    return ClassName(f"class_{code}", default_colour(max(code - 1, 0)))


def names_of_mask(path: str | os.PathLike[str], band: int = 1) -> Names:
    """The names that a mask carries.

    Those of its tag GIMSEG_LEGEND; else of its tags ``class_1``, ...; else of its attribute
    table (``.aux.xml`` of GDAL, ``.vat.dbf`` of ArcGIS); else of GDAL's category names; else one
    class for each colour of its colour table. Colours are those of the colour table where
    the names have none.

    Args:
        path: the mask.
        band: 1-based number.

    Returns:
        number -> name and colour; empty if it has none of these.

    Raises:
        RasterError: the file cannot be read.
        LegendError: what it carries is damaged.
    """
    with open_dataset(check_file(path), DRIVERS) as dataset:
        tags = dataset.tags()
        palette = dataset.colormap(band) if dataset.colorinterp[band - 1] is ColorInterp.palette else {}
    # Colour table entries that nobody set are black, opaque or not.
    shown = {value: "#" + bytes(rgb).hex() for value, (*rgb, opacity) in palette.items() if any(rgb) and opacity}
    try:
        if LEGEND_TAG in tags:
            return names_of_legend(Legend.from_dict(json.loads(tags[LEGEND_TAG])))
        named = _tagged(tags) or _tabled(Path(path), band) or dict.fromkeys(shown, (None, None))
    except (ValueError, AttributeError, TypeError) as error:
        raise LegendError(f"{path}: its tags or tables hold no legend ({error}): give a legend") from error
    return _distinct(
        {
            code: ClassName(name or default_name(code).name, colour or shown.get(code) or default_name(code).colour)
            for code, (name, colour) in sorted(named.items())
        }
    )


def legend_of_mask(path: str | os.PathLike[str]) -> Legend | None:
    """The legend that a mask carries, background left out; None if it carries none.

    Raises:
        RasterError: the file cannot be read.
        LegendError: what it carries is damaged.
    """
    return to_legend({code: name for code, name in names_of_mask(path).items() if code in _PLAIN})


def names_of_legend(legend: Legend) -> Names:
    """Number -> name and colour."""
    return {item.value: ClassName(item.name, item.colour) for item in legend.classes}


def to_legend(names: Mapping[int, ClassName]) -> Legend | None:
    """A legend in the order of `names`; numbers beyond 1 to 254 get one that is free. None without names.

    Raises:
        LegendError: two classes have one name, or there are more than 254.
    """
    free = iter(sorted(set(_PLAIN) - set(names), reverse=True))
    classes = []
    for code, (name, colour) in names.items():
        value = code if code in _PLAIN else next(free, None)
        if value is None:
            raise LegendError(f"{len(names)} classes: a legend holds {len(_PLAIN)} at most")
        classes.append(LegendClass(name, value, colour))
    return Legend(tuple(classes)) if classes else None


def read_names(path: str | os.PathLike[str]) -> Names:
    """Names from a file: a dataset file or another TOML with ``[legend]``, JSON of the same, or a QGIS style.

    Args:
        path: ``.toml``, ``.json``, or the ``.qml`` of a paletted raster layer.

    Raises:
        LegendError: the file cannot be read, or holds no legend.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".qml":
            return _from_style(text, path)
        table = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
        return _from_table(table.get("legend", table))
    except OSError as error:
        raise LegendError(f"{path} cannot be read ({error.strerror}): give a .toml, .json or .qml") from error
    except (LegendError, ValueError, AttributeError, TypeError, ElementTree.ParseError) as error:
        raise LegendError(f"{path} holds no legend ({error}): give a .toml, .json or .qml with one") from error


def _from_table(table: Mapping[str, Any]) -> Names:
    """A ``[legend]`` whose values may be any whole numbers."""
    classes = [{"name": item} if isinstance(item, str) else dict(item) for item in table.get("classes") or ()]
    codes: list[Any] = [item.pop("value", order + 1) for order, item in enumerate(classes)]
    if not all(isinstance(code, int) for code in codes) or len(set(codes)) < len(codes):
        raise LegendError(f"its values are {codes}: give each class a whole number of its own")
    legend = Legend.from_dict({**table, "classes": classes})
    return {code: ClassName(item.name, item.colour) for code, item in zip(codes, legend.classes, strict=True)}


def _from_style(text: str, path: Path) -> Names:
    entries = ElementTree.fromstring(text).findall("pipe/rasterrenderer/colorPalette/paletteEntry")
    if not entries:
        raise LegendError(f"{path} is no style of a raster in classes (paletted)")
    codes = {int(float(entry.attrib["value"])): entry for entry in entries if entry.get("alpha") != "0"}
    return _distinct(
        {
            code: ClassName(entry.get("label", "").strip() or default_name(code).name, entry.attrib["color"][:7])
            for code, entry in codes.items()
        }
    )


def _distinct(names: Names) -> Names:
    """Names of other tools may occur twice, or be empty; here each class has its own."""
    times = Counter(name.casefold() for name, _ in names.values())
    return {
        code: ClassName(f"{name} ({code})" if times[name.casefold()] > 1 else name, colour)
        for code, (name, colour) in names.items()
    }


_Found: TypeAlias = dict[int, tuple[str | None, str | None]]


def _tagged(tags: Mapping[str, str]) -> _Found:
    numbers = {name.removeprefix("class_"): text for name, text in tags.items() if name.startswith("class_")}
    return {int(number): (text, None) for number, text in numbers.items() if number.isdecimal()}


def _tabled(path: Path, band: int) -> _Found:
    """From the files beside a mask in which GDAL and ArcGIS keep tables."""
    for sidecar in (path.with_name(path.name + ".aux.xml"), path.with_suffix(".aux.xml")):
        if sidecar.exists():
            found = _from_pam(sidecar, band)
            if found:
                return found
    table = path.with_name(path.name + ".vat.dbf")
    return _from_dbf(table) if table.exists() else {}


def _from_pam(sidecar: Path, band: int) -> _Found:
    try:
        root = ElementTree.fromstring(sidecar.read_text(encoding="utf-8"))
    except (OSError, ElementTree.ParseError) as error:
        raise LegendError(f"{sidecar} cannot be read ({error})") from error
    for part in root.findall("PAMRasterBand"):
        if part.get("band", "1") != str(band):
            continue
        table = part.find("GDALRasterAttributeTable")
        if table is not None:
            return _from_attributes(table)
        categories = [item.text for item in part.findall("CategoryNames/Category")]
        return {code: (name, None) for code, name in enumerate(categories) if name}
    return {}


def _from_attributes(table: ElementTree.Element) -> _Found:
    definitions = table.findall("FieldDefn")
    usages = [_USAGES.get(item.findtext("Usage", "0")) for item in definitions]
    titles = [item.findtext("Name", "") for item in definitions]
    rows = [[cell.text or "" for cell in row.findall("F")] for row in table.findall("Row")]
    if not _find("value", titles, usages):
        # Without a column of values, rows are bins.
        start, step = float(table.get("Row0Min", 0)), float(table.get("BinSize", 1))
        titles, usages = [*titles, "value"], [*usages, "value"]
        rows = [[*row, str(start + order * step)] for order, row in enumerate(rows)]
    return _from_rows(titles, usages, rows)


def _from_dbf(path: Path) -> _Found:
    try:
        meta, _, _, columns = pyogrio.raw.read(path, read_geometry=False)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise LegendError(f"{path} cannot be read ({error})") from error
    titles = list(map(str, meta["fields"]))
    rows = [["" if cell is None else str(cell) for cell in row] for row in zip(*columns, strict=True)]
    return _from_rows(titles, [None] * len(titles), rows)


def _find(what: str, titles: Sequence[str], usages: Sequence[str | None]) -> list[int]:
    """The columns that hold something, those that are declared to first."""
    known: Iterable[str] = {"value": _VALUE_FIELDS, "name": _NAME_FIELDS}.get(what, (what,))
    declared = [order for order, usage in enumerate(usages) if usage == what]
    folded = [title.casefold() for title in titles]
    return declared + [folded.index(name) for name in known if name in folded]


def _from_rows(titles: Sequence[str], usages: Sequence[str | None], rows: Sequence[Sequence[str]]) -> _Found:
    places = {what: _find(what, titles, usages)[:1] for what in ("value", "name", *_COLOUR_FIELDS)}
    if not places["value"]:
        return {}
    found: _Found = {}
    for row in rows:
        name = row[places["name"][0]].strip() if places["name"] else ""
        levels = [float(row[places[part][0]] or 0) for part in _COLOUR_FIELDS if places[part]]
        found[int(float(row[places["value"][0]]))] = (name or None, _colour(levels))
    return found


def _colour(levels: Sequence[float]) -> str | None:
    """Red, green and blue, 0 to 255 or shares of 1, as ``#rrggbb``.

    Example:
        >>> _colour([255, 128, 0]), _colour([0.5, 1.0, 0.25])
        ('#ff8000', '#80ff40')
    """
    if len(levels) < 3:
        return None
    scale = 255 if max(levels) <= 1 and any(level % 1 for level in levels) else 1
    return "#" + bytes(min(max(round(level * scale), 0), 255) for level in levels).hex()
