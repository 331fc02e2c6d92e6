"""Resampling along rows and columns: one matrix an axis, exact about what is invalid.

A grid whose axes are parallel to the file's is read by two sparse matrix products,
several times faster than a general warp, with weights that are a function of a
pixel's place alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

_REACH = {"bilinear": 1.0, "cubic": 2.0}
"""Of a filter, in pixels of the coarser of both grids."""


@dataclass(frozen=True)
class Axis:
    """Target pixel i covers source coordinates `start + step * i` to `start + step * (i + 1)`.

    `step` may be negative: a mirrored axis.
    """

    start: float
    step: float
    length: int

    def centres(self) -> np.ndarray:
        """Source coordinates of the target pixels' centres, float64 (length,)."""
        return self.start + self.step * (np.arange(self.length) + 0.5)

    def weights(self, source: int, method: str) -> csr_array:
        """Share of each of `source` pixels in each target pixel: sparse float32 (length, source), rows sum to 1.

        A filter is widened to the target pixel where that is the larger one.

        Example:
            >>> Axis(0, 2, 2).weights(4, "average").toarray()
            array([[0.5, 0.5, 0. , 0. ],
                   [0. , 0. , 0.5, 0.5]], dtype=float32)
        """
        size = abs(self.step)
        reach = size / 2 if method == "average" else _REACH[method] * max(size, 1.0)
        centres = self.centres()[:, np.newaxis]
        # Only the few pixels within reach are looked at: a table of all would take longer than the product.
        pixels = np.floor(centres - reach).astype(np.int64) + np.arange(math.ceil(2 * reach) + 1)
        if method == "average":
            low, high = np.maximum(pixels, centres - reach), np.minimum(pixels + 1, centres + reach)
            weights = np.maximum(high - low, 0)
        else:
            distance = np.abs(pixels + 0.5 - centres) / max(size, 1.0)
            weights = _linear(distance) if method == "bilinear" else _cubic(distance)
        weights[(pixels < 0) | (pixels >= source)] = 0
        total = weights.sum(axis=1, keepdims=True)
        shares = np.divide(weights, total, out=np.zeros_like(weights), where=np.abs(total) > 1e-9)
        ends = np.arange(self.length + 1) * pixels.shape[1]
        columns = np.clip(pixels, 0, source - 1)
        table = csr_array(
            (shares.astype(np.float32).ravel(), columns.ravel(), ends), shape=(self.length, source), copy=False
        )
        table.eliminate_zeros()
        return table

    def nearest(self, source: int) -> np.ndarray:
        """Index of the source pixel under each target pixel's centre, clipped into the source."""
        return np.clip(np.floor(self.centres() + 1e-9).astype(int), 0, source - 1)


def _linear(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - distance, 0)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys 1981 with a = -0.5, as GDAL's; exact for straight ramps."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


def take_nearest(values: np.ndarray, valid: np.ndarray, rows: Axis, cols: Axis) -> tuple[np.ndarray, np.ndarray]:
    """The nearest pixel's values (bands, rows, cols), in their own type, and validity (rows, cols)."""
    from_rows, from_cols = rows.nearest(valid.shape[0]), cols.nearest(valid.shape[1])
    return values[:, from_rows][:, :, from_cols], valid[from_rows][:, from_cols]


def resample(
    values: np.ndarray, valid: np.ndarray, rows: Axis, cols: Axis, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Filter `values`, (bands, rows, cols) and 0 where invalid, without what is invalid.

    A pixel of an average is valid where at least half of its ground is, of the other
    filters where the nearest source pixel is. Next to invalid ground "cubic" falls back
    to "bilinear", whose weights cannot cancel each other.

    Returns:
        float32 (bands, rows, cols) and bool (rows, cols).
    """
    source = values.astype(np.float32, copy=False)
    data = _apply(source, rows, cols, method)
    if valid.all():
        return data, np.ones(data.shape[1:], bool)
    plane = valid[np.newaxis].astype(np.float32)
    smooth = "bilinear" if method == "cubic" else method
    share = _apply(plane, rows, cols, smooth)
    near = take_nearest(plane, valid, rows, cols)[1]
    good = share[0] >= 0.5 - 1e-6 if method == "average" else near & (share[0] > 1e-6)
    if method == "cubic":
        # Cubic weights may cancel: only where no weight at all falls on invalid ground are they kept.
        spread = _apply(1 - plane, rows, cols, method, absolute=True) > 1e-6
        data = np.where(spread, _apply(source, rows, cols, smooth), data)
        share = np.where(spread, share, 1)
    np.divide(data, share, out=data, where=good)
    return data, good


def _apply(source: np.ndarray, rows: Axis, cols: Axis, method: str, absolute: bool = False) -> np.ndarray:
    """Both axes' weights on float32 (bands, rows, cols)."""
    by_row, by_col = rows.weights(source.shape[1], method), cols.weights(source.shape[2], method)
    if absolute:
        by_row, by_col = abs(by_row), abs(by_col)
    # Sparse products rather than BLAS: a handful of weights a row, one order of summation whatever
    # the machine, and no threads that spin against those of the network.
    middle = _product(by_row, source.transpose(1, 0, 2))
    return np.ascontiguousarray(_product(by_col, middle.transpose(2, 1, 0)).transpose(1, 2, 0))


def _product(weights: csr_array, source: np.ndarray) -> np.ndarray:
    """Weights (n, m) times source (m, ...), float32."""
    flat = np.ascontiguousarray(source).reshape(source.shape[0], -1)
    return (weights @ flat).reshape(weights.shape[0], *source.shape[1:])
