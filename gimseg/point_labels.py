"""Points instead of dense labels: what an annotator who clicks would have left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from odc.geo.geobox import GeoBox

from gimseg.labelled_scenes import LabelledScene
from gimseg.legend import UNLABELLED
from gimseg.rasters import Roi


@dataclass(frozen=True, eq=False)
class GroundPoints:
    """Places on the ground whose pixel keeps its label.

    Args:
        xs: (n,), in the scene's CRS.
        ys: (n,).
    """

    xs: np.ndarray
    ys: np.ndarray

    def mask(self, window: GeoBox) -> np.ndarray:
        """The pixels that hold a point, whatever their size: bool (rows, cols)."""
        back = ~window.transform
        cols = np.floor(back.a * self.xs + back.b * self.ys + back.c).astype(int)
        rows = np.floor(back.d * self.xs + back.e * self.ys + back.f).astype(int)
        inside = (rows >= 0) & (cols >= 0) & (rows < window.shape[0]) & (cols < window.shape[1])
        mask = np.zeros(window.shape, bool)
        mask[rows[inside], cols[inside]] = True
        return mask


def with_points(
    scene: LabelledScene, split: str | None, count: int, *, side: int = 256, by: str = "uniform", seed: int = 0
) -> LabelledScene:
    """The scene, of whose dense labels only points are left in training; ground to score on stays dense.

    The points are fixed to the ground: the same in every epoch, at every zoom.

    Args:
        scene: with dense labels.
        split: whose ground is thinned; None: all.
        count: points on each piece of labelled ground as large as a window; in smaller pieces as many less.
        side: of a window, px.
        by: ``uniform``: any labelled pixel alike, so background gets most. ``class``: as many for each class that
            the piece holds, background too.
        seed: draws other points.

    Source: labels of single points, learned by the cross-entropy at these points, are those of
    Bearman et al. 2016, arXiv 1506.02106, where there is one for each class of an image.
    """
    rows, cols = [np.zeros(0, int)], [np.zeros(0, int)]
    for roi in _pieces(scene.shape, side):
        _, labels = scene.read(roi, split)
        rng = np.random.default_rng([seed, roi[0].start, roi[1].start])
        chosen = _choose(rng, labels, count * np.count_nonzero(labels != UNLABELLED) / side**2, by)
        rows.append(chosen // labels.shape[1] + roi[0].start)
        cols.append(chosen % labels.shape[1] + roi[1].start)
    down, across = np.concatenate(rows) + 0.5, np.concatenate(cols) + 0.5
    place = scene.geobox.transform
    points = GroundPoints(
        place.a * across + place.b * down + place.c,
        place.d * across + place.e * down + place.f,
    )
    return replace(scene, points=points)


def _pieces(shape: tuple[int, int], side: int) -> Iterator[Roi]:
    for row in range(0, shape[0], side):
        for col in range(0, shape[1], side):
            yield slice(row, min(row + side, shape[0])), slice(col, min(col + side, shape[1]))


def _choose(rng: np.random.Generator, labels: np.ndarray, expected: float, by: str) -> np.ndarray:
    """Flat places of about `expected` labelled pixels of a piece; a fraction is drawn for."""
    count = int(expected) + int(rng.random() < expected % 1)
    flat = labels.ravel()
    classes = np.unique(flat[flat != UNLABELLED])
    if by == "uniform" or len(classes) < 2:
        known = np.flatnonzero(flat != UNLABELLED)
        return rng.choice(known, min(count, len(known)), replace=False)
    # What is left over after all got alike goes to classes in a random order.
    quotas = np.full(len(classes), count // len(classes)) + (rng.permutation(len(classes)) < count % len(classes))
    places = [np.flatnonzero(flat == value) for value in classes]
    return np.concatenate(
        [rng.choice(place, min(quota, len(place)), replace=False) for place, quota in zip(places, quotas, strict=True)]
    )
