"""Training settings as TOML: a table ``[training]`` in the dataset file, or in a file of its own."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from gimseg.augmentation import Augmentation
from gimseg.errors import TrainingError
from gimseg.legend import did_you_mean
from gimseg.settings import Settings

TABLE = "training"
COMMANDS = ("demo", "info", "train", "sweep", "compare", "evaluate", "predict", "vectorize", "correct")
"""Tables that hold options of commands."""
_TABLES = ("legend", "dataset", TABLE, *COMMANDS)


def gather_settings(*files: str | os.PathLike[str] | None, given: Mapping[str, Any] | None = None) -> Settings:
    """Settings from files and from what was given besides; the later wins.

    Args:
        *files: TOML files with a table ``[training]``, or without one; None is passed over.
        given: further settings by name; None is passed over.

    Raises:
        TrainingError: a file or a value cannot be used.
        LossError: the loss has no such name or argument.
    """
    merged: dict[str, Any] = {}
    for path in files:
        if path is not None:
            merged |= read_table(path)
    merged |= {name: value for name, value in (given or {}).items() if value is not None}
    return settings_from(merged)


def read_table(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The table ``[training]`` of a file, its names checked; empty where there is none.

    A file of encoder weights is found from the folder of the TOML file.

    Raises:
        TrainingError: the file is no TOML, or a name is unknown.
    """
    path = Path(path)
    content = read_toml(path, _TABLES)
    table = dict(content.get(TABLE, {}))
    check_names(table, str(path))
    options = content.get("train", {})
    for name in {item.name for item in fields(Settings)} & set(options if isinstance(options, Mapping) else ()):
        raise TrainingError(f"{path}: [train] has {name!r}, a setting of the training: write it in [{TABLE}]")
    weights = table.get("encoder_weights")
    if weights and os.path.splitext(weights)[1]:
        table["encoder_weights"] = os.path.join(path.parent, weights)
    return table


def read_toml(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """A TOML file that has no tables and keys but these.

    Raises:
        TrainingError: it is no TOML, or has others: names the nearest.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read as TOML: {error}") from error
    for key in content:
        if key not in keys:
            raise TrainingError(f"{path} has a table or key {key!r}{did_you_mean(key, keys)}")
    return content


def check_names(table: Mapping[str, Any], where: str) -> None:
    """Refuse names that are no settings.

    Raises:
        TrainingError: names the nearest.
    """
    known = [item.name for item in fields(Settings)]
    for name in table:
        if name not in known:
            raise TrainingError(f"{where}: no setting {name!r}{did_you_mean(name, known)}")


def settings_from(table: Mapping[str, Any]) -> Settings:
    """Settings of plain values; ``augmentation`` is a table of its own, or false.

    Raises:
        TrainingError: a value is of the wrong kind, or out of range.

    Example:
        >>> settings_from({"epochs": 5, "augmentation": {"flips": False}}).augmentation.flips
        False
        >>> settings_from({"augmentation": False}).augmentation is None
        True
    """
    table = dict(table)
    varied = table.get("augmentation")
    try:
        if isinstance(varied, Mapping):
            table["augmentation"] = Augmentation(**{name: _plain(value) for name, value in varied.items()})
        elif varied is not None and not isinstance(varied, Augmentation):
            table["augmentation"] = Augmentation() if varied is True else None
        return Settings(**{name: _plain(value) for name, value in table.items()})
    except TypeError as error:
        raise TrainingError(f"settings of the wrong kind: {error}") from error


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
