"""What is said of each polygon: an id that stays, class, size on the ground, confidence, origin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import geopandas as gpd
import numpy as np
from rasterio.transform import Affine

from gimseg.cleaning import Cleaned
from gimseg.confidence import Probabilities
from gimseg.ground import Ground, Ragged
from gimseg.legend import BACKGROUND, UNLABELLED, Legend
from gimseg.mask_legends import Names, default_name, to_legend
from gimseg.origins import Origin

SHAPEFILE_NAMES = {"perimeter_m": "perim_m"}
"""Attributes whose names a Shapefile, which takes 10 bytes, must shorten."""

_DECIMALS = 6
_PLACES = 1000  # of a pixel, to which ids are sharp

CLASS_ID = "class_id"
"""The attribute that each layer of predicted polygons has."""


@dataclass
class ClassTally:
    """The names of the classes, and how many polygons each has so far.

    Args:
        names: number in the mask -> name and colour.
    """

    names: Names
    counts: dict[str, int] = field(default_factory=dict)
    _met: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.names = dict(self.names)
        self.counts = {self.names[code].name: 0 for code in self.names if code not in (BACKGROUND, UNLABELLED)}

    def count(self, codes: np.ndarray) -> np.ndarray:
        """The name of each number, object (n,); all are counted."""
        for code, times in zip(*np.unique(codes, return_counts=True), strict=True):
            name = self.names.setdefault(int(code), default_name(int(code))).name
            self._met.add(int(code))
            self.counts[name] = self.counts.get(name, 0) + int(times)
        names = np.empty(len(codes), object)
        names[:] = [self.names[code].name for code in codes.tolist()]
        return names

    def legend(self) -> Legend:
        """The classes that were named, and those found besides; only those found if they are too many."""
        met = {code: name for code, name in self.names.items() if code in self._met}
        named = {code: name for code, name in self.names.items() if code in met or code not in (BACKGROUND, UNLABELLED)}
        return to_legend(named if len(named) < UNLABELLED else met) or Legend.binary()

    def is_of_masks(self) -> bool:
        """Whether the legend's values are the mask's own numbers."""
        return all(BACKGROUND < code < UNLABELLED for code in self._met)


@dataclass(frozen=True)
class Attributes:
    """Which attributes polygons get, and what they are taken from.

    Args:
        ground: under the mask.
        origin: model and date.
        probabilities: for the confidence; None: there is none.
        flags_angles: whether polygons tell if their corners were made right angles.
        multipart: whether polygons may have several parts.
    """

    ground: Ground
    origin: Origin
    probabilities: Probabilities | None = None
    flags_angles: bool = False
    multipart: bool = False

    @property
    def geometry_type(self) -> str:
        """Of all polygons."""
        return "MultiPolygon" if self.multipart else "Polygon"

    @property
    def fields(self) -> dict[str, str]:
        """Name -> type, in the order of the columns."""
        wanted = {
            "id": ("str", True),
            "class": ("str", True),
            CLASS_ID: ("int32", True),
            "area_m2": ("float64", self.ground.tells_metres),
            "perimeter_m": ("float64", self.ground.tells_metres),
            "confidence": ("float64", self.probabilities is not None),
            "model": ("str", self.origin.model is not None),
            "date": ("date", True),
            "regular": ("bool", self.flags_angles),
        }
        return {name: kind for name, (kind, there) in wanted.items() if there}

    def table(self, cleaned: Cleaned, codes: np.ndarray, names: np.ndarray) -> gpd.GeoDataFrame:
        """Polygons on the map with their attributes.

        Args:
            cleaned: polygons in pixels.
            codes: number of each class in the mask, (n,).
            names: of each class, (n,).
        """
        placed = self.ground.place(cleaned.polygons)
        columns = {
            "id": polygon_ids(cleaned.polygons, codes, self.ground.transform),
            "class": names,
            CLASS_ID: codes.astype(np.int32),
            "model": np.full(len(codes), self.origin.model, object),
            "date": np.full(len(codes), self.origin.date, object),
            "regular": cleaned.regular,
        }
        if self.ground.tells_metres:
            areas, perimeters = self.ground.measure(placed)
            columns |= {"area_m2": areas.round(_DECIMALS), "perimeter_m": perimeters.round(_DECIMALS)}
        if self.probabilities is not None:
            columns["confidence"] = self.probabilities.means(placed, names).round(_DECIMALS)
        return gpd.GeoDataFrame({name: columns[name] for name in self.fields}, geometry=placed, crs=self.ground.crs)


def fields_in(path: str | os.PathLike[str], fields: Mapping[str, str]) -> dict[str, str]:
    """Attributes as the format of a file names them.

    Example:
        >>> fields_in("roofs.shp", {"class": "str", "perimeter_m": "float64"})
        {'class': 'str', 'perim_m': 'float64'}
    """
    short = SHAPEFILE_NAMES if Path(path).suffix.lower() == ".shp" else {}
    return {short.get(name, name): kind for name, kind in fields.items()}


def polygon_ids(polygons: np.ndarray, codes: np.ndarray, transform: Affine) -> np.ndarray:
    """An id for each polygon that tells it by its class, outline and place, and by nothing else.

    The same polygon has the same id in every run, whatever the block size and the order in
    which polygons come; one that differs in a vertex has another. Two of ten million
    polygons share an id once in 300 000 masks.

    Args:
        polygons: (n,) in pixels of the mask; vertices are told apart to a thousandth.
        codes: class of each, (n,).
        transform: from (column, row) to the map.

    Returns:
        16 hexadecimal digits each, object (n,).
    """
    if not len(polygons):
        return np.empty(0, object)
    ragged = Ragged.of(polygons)
    columns, rows = np.round(ragged.points.T * _PLACES).astype(np.int64).view(np.uint64)
    points = _scattered(columns ^ _scattered(rows))
    # Sums know no order: neither where a ring starts nor which way it runs matters.
    outlines = ragged.sums(_scattered(points[1:] + points[:-1]))
    place = np.uint64(0)
    for number in np.array(transform[:6], np.float64).view(np.uint64):
        place = _scattered(np.array([place ^ number]))[0]
    hashes = _scattered(outlines ^ _scattered(codes.astype(np.int64).view(np.uint64) ^ place))
    ids = np.empty(len(hashes), object)
    ids[:] = [f"{number:016x}" for number in hashes.tolist()]
    return ids


def _scattered(numbers: np.ndarray) -> np.ndarray:
    """64 bits to 64 other bits, one to one and without a pattern (splitmix64)."""
    with np.errstate(over="ignore"):
        numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
        numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return numbers ^ (numbers >> np.uint64(31))
