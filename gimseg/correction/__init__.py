"""Correct what came out badly: ``from gimseg import correct``.

The verbs are resolved on first use, so that importing this loads neither torch nor GDAL.
"""

from __future__ import annotations

import importlib

_HOMES = {
    "start": "starting",
    "check": "loop",
    "train": "loop",
    "listed": "listing",
    "suggest": "suggesting",
    "report": "reporting",
    "accept": "accepting",
    "rollback": "accepting",
}

__all__ = ["accept", "check", "listed", "report", "rollback", "start", "suggest", "train"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"gimseg.correction.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gimseg.correction' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
