"""The classes of a map: names, values in rasters, colours, and the attribute values that mean them.

0 is background and 255 is unlabelled, in every label raster and in every output mask.
"""

from __future__ import annotations

import colorsys
import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gimseg.errors import LegendError

BACKGROUND = 0
UNLABELLED = 255
LEGEND_TAG = "GIMSEG_LEGEND"
"""Tag of a mask that holds its legend: JSON of `Legend.to_dict`."""

# Okabe and Ito's colours without black, told apart by colour-blind people too, then more of Paul Tol's.
_PALETTE = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
    "#882255", "#44aa99", "#999933", "#aa4499", "#117733", "#332288", "#ddcc77",
)  # fmt: skip
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_DECIMAL = re.compile(r"-?\d+\.\d*")
_CLASS_KEYS = ("name", "value", "colour", "values")
_LEGEND_KEYS = ("field", "classes")


@dataclass(frozen=True)
class LegendClass:
    """One class.

    Args:
        name: as people read it.
        value: its value in rasters, 1 to 254.
        colour: ``#rrggbb``.
        values: attribute values of a vector layer that mean this class; the name if empty.

    Raises:
        LegendError: one of these is not so.

    Example:
        >>> LegendClass("tin", 2, "#56B4E9").values
        ('tin',)
    """

    name: str
    value: int
    colour: str
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise LegendError(f"a class is named {self.name!r}: give each class a name")
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not BACKGROUND < self.value < UNLABELLED:
            raise LegendError(
                f"class {self.name!r} has the value {self.value!r}: give a whole number from 1 to 254 "
                "(0 is background, 255 unlabelled)"
            )
        if not isinstance(self.colour, str) or not _COLOUR.fullmatch(self.colour.lower()):
            raise LegendError(f"class {self.name!r} has the colour {self.colour!r}: write it as '#rrggbb'")
        object.__setattr__(self, "name", self.name.strip())
        object.__setattr__(self, "colour", self.colour.lower())
        object.__setattr__(self, "values", tuple(map(str, self.values)) or (self.name,))

    @property
    def rgba(self) -> tuple[int, int, int, int]:
        """Red, green, blue and opacity, 0 to 255."""
        red, green, blue = bytes.fromhex(self.colour[1:])
        return red, green, blue, 255


@dataclass(frozen=True)
class Legend:
    """Ordered classes and the field of a vector layer that tells them apart.

    Args:
        classes: one or more; a single one makes the task binary.
        field: attribute that gives the class; None: every polygon is the one class.

    Raises:
        LegendError: no class, or a name, a value or an attribute value twice.

    Example:
        >>> legend = Legend.from_dict({"field": "roof", "classes": [
        ...     {"name": "concrete", "values": ["concrete", "concerte"]}, {"name": "tin"}]})
        >>> legend.value_of("Concerte "), legend.value_of("tin"), legend.value_of("thatch"), legend.value_of(None)
        (1, 2, None, None)
        >>> legend.n_channels, Legend.binary("tree").n_channels
        (3, 1)
    """

    classes: tuple[LegendClass, ...]
    field: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        self.check()
        meanings = {_normalise(text): item.value for item in self.classes for text in item.values}
        object.__setattr__(self, "_meanings", meanings)

    def check(self) -> None:
        """Refuse a legend that contradicts itself.

        Raises:
            LegendError: see the class.
        """
        if not self.classes:
            raise LegendError("a legend needs one class at least")
        if self.field is not None and (not isinstance(self.field, str) or not self.field):
            raise LegendError(f"the legend's field is {self.field!r}: give the name of an attribute, or none")
        _refuse_twins("name", (item.name.casefold() for item in self.classes))
        _refuse_twins("value", (item.value for item in self.classes))
        texts = [text for item in self.classes for text in {_normalise(text) for text in item.values}]
        if None in texts:
            raise LegendError("an attribute value of the legend is empty: nulls and blanks are always unlabelled")
        _refuse_twins("attribute value", texts)

    @classmethod
    def binary(cls, name: str = "object", colour: str = _PALETTE[0]) -> Legend:
        """One class, value 1, whatever the attributes say."""
        return cls((LegendClass(name, 1, colour),))

    @classmethod
    def splits(cls, field: str) -> Legend:
        """The splits that an attribute of an AoI layer names: train 1, val 2, test 3.

        Example:
            >>> Legend.splits("use").value_of("Validation")
            2
        """
        words = (("train", "training"), ("val", "valid", "validate", "validation"), ("test", "testing"))
        return cls(
            tuple(LegendClass(names[0], order + 1, _PALETTE[order], names) for order, names in enumerate(words)), field
        )

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Legend:
        """Build from the `[legend]` table of a dataset file, or from what `to_dict` gave.

        Args:
            table: `classes` (names, or tables with `name` and perhaps `values`, `colour`,
                `value`) and perhaps `field`.

        Raises:
            LegendError: an unknown key, or a class that is not right.
        """
        _refuse_unknown_keys(table, _LEGEND_KEYS, "the legend")
        classes = table.get("classes") or ()
        if isinstance(classes, str | Mapping):
            raise LegendError('the legend\'s classes must be a list: classes = [{ name = "..." }]')
        return cls(tuple(_read_class(item, order) for order, item in enumerate(classes)), table.get("field"))

    def to_dict(self) -> dict[str, Any]:
        """Plain strings, numbers and lists that JSON and TOML hold; `from_dict` reads them."""
        classes = [
            {"name": item.name, "value": item.value, "colour": item.colour, "values": list(item.values)}
            for item in self.classes
        ]
        return {"classes": classes} if self.field is None else {"field": self.field, "classes": classes}

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in legend order, without background."""
        return tuple(item.name for item in self.classes)

    @property
    def values(self) -> tuple[int, ...]:
        """Raster values in legend order, without background."""
        return tuple(item.value for item in self.classes)

    @property
    def is_binary(self) -> bool:
        """Whether there is one class only."""
        return len(self.classes) == 1

    @property
    def n_channels(self) -> int:
        """Channels of a network: 1 if binary, else background and one for each class."""
        return 1 if self.is_binary else len(self.classes) + 1

    @property
    def colours(self) -> dict[int, tuple[int, int, int, int]]:
        """Red, green, blue, opacity by raster value; background and unlabelled are transparent."""
        inner = {item.value: item.rgba for item in self.classes}
        return {BACKGROUND: (0, 0, 0, 0), **inner, UNLABELLED: (0, 0, 0, 0)}

    def value_of(self, attribute: object) -> int | None:
        """The raster value that an attribute value means; None if it is null or no class.

        ``"1"``, ``1`` and ``1.0`` are alike; case and blanks at the ends do not matter.
        """
        text = _normalise(attribute)
        return None if text is None else self._meanings.get(text)  # type: ignore[attr-defined]

    def find(self, name: str) -> LegendClass:
        """The class of this name, whatever its case.

        Raises:
            LegendError: there is none; the message names the nearest.
        """
        for item in self.classes:
            if item.name.casefold() == name.strip().casefold():
                return item
        raise LegendError(f"no class {name!r} in the legend{did_you_mean(name, self.names)}")

    def to_channels(self, labels: np.ndarray) -> np.ndarray:
        """Raster values to channel numbers: background 0, classes 1 to K in legend order, all others 255.

        Args:
            labels: uint8, any shape.

        Returns:
            uint8 of the same shape.
        """
        table = np.full(256, UNLABELLED, np.uint8)
        table[[BACKGROUND, *self.values]] = np.arange(len(self.classes) + 1)
        return table[labels]

    def to_values(self, channels: np.ndarray) -> np.ndarray:
        """Channel numbers (0 to K, 255 for none) to raster values; the inverse of `to_channels`.

        Args:
            channels: uint8, any shape.

        Returns:
            uint8 of the same shape.
        """
        table = np.full(256, UNLABELLED, np.uint8)
        table[: len(self.classes) + 1] = [BACKGROUND, *self.values]
        return table[channels]


def default_colour(order: int) -> str:
    """A colour, ``#rrggbb``, for the class at place `order` (from 0); places 0 to 13 are told apart well.

    Example:
        >>> default_colour(0), default_colour(14)
        ('#e69f00', '#414ed9')
    """
    if order < len(_PALETTE):
        return _PALETTE[order]
    # Steps of the golden ratio around the colour circle keep later colours apart as well.
    rgb = colorsys.hsv_to_rgb(order * 0.618034 % 1, 0.7 if order % 2 == 0 else 0.45, 0.85)
    return "#" + bytes(round(255 * part) for part in rgb).hex()


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known.

    Example:
        >>> did_you_mean("concret", ["concrete", "tin"])
        ": did you mean 'concrete'? There are concrete, tin"
    """
    known = list(known)
    folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(given.casefold(), folded, n=1)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    return f": {hint}There are {shown}" if known else ": there are none"


def _normalise(attribute: object) -> str | None:
    if attribute is None or (isinstance(attribute, float | np.floating) and math.isnan(attribute)):
        return None
    if type(attribute).__name__ in ("NAType", "NaTType"):  # pandas' nulls, without importing pandas
        return None
    text = str(attribute).strip().casefold()
    if _DECIMAL.fullmatch(text):
        text = text.rstrip("0").rstrip(".")
    return text or None


def _read_class(item: Any, order: int) -> LegendClass:
    if isinstance(item, str):
        item = {"name": item}
    if not isinstance(item, Mapping) or "name" not in item:
        raise LegendError(f'class {order + 1} of the legend is {item!r}: write {{ name = "..." }}')
    _refuse_unknown_keys(item, _CLASS_KEYS, f"class {item['name']!r}")
    values = item.get("values", ())
    if not isinstance(values, list | tuple):
        values = (values,)
    colour = item.get("colour", default_colour(order))
    return LegendClass(item["name"], item.get("value", order + 1), colour, tuple(values))


def _refuse_unknown_keys(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise LegendError(f"{where} has a key {key!r}{did_you_mean(str(key), known)}")


def _refuse_twins(what: str, items: Iterable[object]) -> None:
    twins = [item for item, times in Counter(items).items() if times > 1]
    if twins:
        raise LegendError(f"the legend has the {what} {twins[0]!r} more than once: make them differ")
