"""Segmentation of large georeferenced images: polygons in, polygons out.

The public names are resolved on first use, so that ``import gimseg`` loads
neither torch nor GDAL.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "Dataset": "datasets",
    "Legend": "legend",
    "Model": "models",
    "train": "training",
    "evaluate": "evaluation",
    "Predictor": "inference",
    "predict": "inference",
    "vectorize": "vectorization",
}
_MODULES = {"correct": "correction"}

__all__ = ["Dataset", "Legend", "Model", "Predictor", "correct", "evaluate", "predict", "train", "vectorize"]

if TYPE_CHECKING:
    from gimseg import correction as correct
    from gimseg.datasets import Dataset
    from gimseg.evaluation import evaluate
    from gimseg.inference import Predictor, predict
    from gimseg.legend import Legend
    from gimseg.models import Model
    from gimseg.training import train
    from gimseg.vectorization import vectorize


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"gimseg.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"gimseg.{_MODULES[name]}")
    raise AttributeError(f"module 'gimseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
