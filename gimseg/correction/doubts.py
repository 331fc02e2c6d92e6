"""Where a prediction is to be doubted: one pass over a raster, block by block, in bounded memory.

Three measures, each a share of 0 to 1 of every pixel, added up in square cells:

- ``uncertainty``: 1 less the difference of the two most probable classes;
- ``disagreement``: the share of pairs, among the views of the image or the models that
  are averaged, that do not say the same class;
- ``difference``: 1 where an older layer says another class than the prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from gimseg.averaging import members
from gimseg.correction.drawing import CLASS_FIELD, drawing_legend
from gimseg.correction.suggestions import Doubt
from gimseg.inference import Predictor
from gimseg.legend import UNLABELLED, Legend
from gimseg.products import Products, to_shares
from gimseg.progress import Progress, silent
from gimseg.rasters import RasterView, Roi
from gimseg.vectors import Layer
from gimseg.window_choice import choose_lattice

_BLOCK = 1024
"""Side of a block, px: each of the members holds some."""


@dataclass(frozen=True)
class Found:
    """What one pass over a raster tells.

    Attributes:
        doubts: by measure, in the order in which they are listed above.
        objects: (cells, cells), predicted objects less their holes that begin there, about.
    """

    doubts: Mapping[str, Doubt]
    objects: NDArray[np.int64]


def find_doubts(
    predictor: Predictor, view: RasterView, cell: int, older: Layer | None = None, *, progress: Progress = silent
) -> Found:
    """Predict a raster and add up its doubts; writes nothing.

    Args:
        predictor: of one model, or of a mean, whose members may disagree.
        view: the raster on the grid to predict.
        cell: side of a cell, px.
        older: polygons of the same things, found or drawn before.
        progress: told how much of the raster is done.

    Raises:
        RasterError: a part of the raster cannot be read.
        VectorError: the older layer cannot be used.
    """
    shape = (int(view.geobox.shape[0]), int(view.geobox.shape[1]))
    voters = [Predictor(part, device=str(predictor.device)) for part in members(predictor.model)]
    names = ["uncertainty", *(["disagreement"] if len(voters) > 1 else []), *(["difference"] if older else [])]
    doubts = {name: Doubt.zeros(shape, cell) for name in names}
    objects = Doubt.zeros(shape, cell)
    total, done = shape[0] * shape[1] / 1e6, 0.0
    progress("look for doubts", 0, total, "Mpx")
    for roi, classes, uncertainty, votes in _predicted(predictor, view, voters):
        valid = classes != UNLABELLED
        measured = {"uncertainty": uncertainty, "disagreement": votes}
        if older is not None:
            measured["difference"] = _burnt(older, predictor.model.recipe.legend, view, roi) != classes
        for name, doubt in doubts.items():
            doubt.add(roi, measured[name], valid)
        objects.add(roi, count_objects(classes), valid)
        done += classes.size / 1e6
        progress("look for doubts", done, total, "Mpx")
    return Found(doubts, np.rint(objects.total).astype(np.int64))


def _predicted(
    predictor: Predictor, view: RasterView, voters: list[Predictor]
) -> Iterator[tuple[Roi, NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]]:
    """Place, classes, uncertainty and disagreement of each block."""
    lattice = choose_lattice(view.shape, predictor.model, predictor.device)
    mean = predictor.blocks(view, _BLOCK, products=Products(uncertainty="margin"), lattice=lattice)
    others = [voter.blocks(view, _BLOCK, lattice=lattice) for voter in voters] if len(voters) > 1 else []
    for roi, planes in mean:
        votes = [classes[0] for each in others for _, classes in islice(each, 1)]
        yield roi, planes[0], to_shares(planes[1]), disagreement(votes, planes[0].shape)


def disagreement(votes: list[NDArray[np.uint8]], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Share of the pairs of votes that are not of one class, float32; 0 for fewer than two.

    Example:
        >>> disagreement([np.array([1, 1], np.uint8), np.array([1, 0], np.uint8)], (2,)).tolist()
        [0.0, 1.0]
    """
    agreeing = np.zeros(shape, np.float32)
    if len(votes) < 2:
        return agreeing
    stacked = np.stack(votes)
    for value in np.unique(stacked):
        count = (stacked == value).sum(0, dtype=np.float32)
        agreeing += count * (count - 1)
    return 1 - agreeing / np.float32(len(votes) * (len(votes) - 1))


def count_objects(classes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """A number for each pixel; over a mask they add up to its objects less their holes (4-connected).

    The Euler number: pixels less pairs that touch plus squares of four.

    Example:
        >>> ring = np.array([[1, 1, 1, 0, 1], [1, 0, 1, 0, 1], [1, 1, 1, 0, 0]], np.uint8)
        >>> int(count_objects(ring).sum())
        1
    """
    things = (classes != 0) & (classes != UNLABELLED)
    right, down = things[:, :-1] & (classes[:, :-1] == classes[:, 1:]), things[:-1] & (classes[:-1] == classes[1:])
    counts = things.astype(np.int8)
    counts[:, :-1] -= right
    counts[:-1] -= down
    counts[:-1, :-1] += right[:-1] & right[1:] & down[:, :-1]
    return counts


def _burnt(older: Layer, legend: Legend, view: RasterView, roi: Roi) -> NDArray[np.uint8]:
    """What the older layer says of a block; a layer without classes says the only one there is."""
    window = view.geobox[roi]
    if not older.meets(window):
        return np.zeros(window.shape, np.uint8)
    told = drawing_legend(legend) if CLASS_FIELD in older.fields else None
    burnt = older.shapes(window, told).burn(window)
    return burnt if told is not None else np.where(burnt == 1, legend.values[0], burnt).astype(np.uint8)
