"""Filters of probabilities: each looks no further than its margin, so that regions come out as the whole does.

All take and give float32 (channels, rows, cols), probabilities from 0 to 1, and a plane
of validity (rows, cols); invalid pixels keep what they hold and have no say.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

Planes = NDArray[np.float32]
Valid = NDArray[np.bool_]


def total_variation(planes: Planes, valid: Valid, *, weight: float, iterations: int) -> Planes:
    """Total-variation denoising: edges stay, noise between them goes.

    Args:
        planes: (channels, rows, cols).
        valid: (rows, cols).
        weight: strength; differences below about this size are levelled.
        iterations: steps of the projection; each carries a pixel's say one pixel further,
            so that `iterations` + 1 pixels of margin make a region exact.

    Source: Chambolle 2004, An algorithm for total variation minimization and
    applications, J. Math. Imaging Vis. 20, with a fixed number of steps.
    """
    # Between a valid and an invalid pixel there is no edge to pay for: no flow crosses it.
    open_rows = valid[1:] & valid[:-1]
    open_cols = valid[:, 1:] & valid[:, :-1]
    flow_rows: Planes = np.zeros((len(planes), len(valid) - 1, valid.shape[1]), np.float32)
    flow_cols: Planes = np.zeros((len(planes), len(valid), valid.shape[1] - 1), np.float32)
    step = np.float32(0.25 / weight)
    denoised = planes
    for _ in range(iterations):
        slope_rows = (denoised[:, 1:] - denoised[:, :-1]) * open_rows
        slope_cols = (denoised[:, :, 1:] - denoised[:, :, :-1]) * open_cols
        # The length of each pixel's slope, from its differences to the pixel below and the one to the right.
        steep = np.zeros_like(planes)
        steep[:, :-1] += slope_rows**2
        steep[:, :, :-1] += slope_cols**2
        slower = 1 + step * np.sqrt(steep, out=steep)
        flow_rows = ((flow_rows + step * slope_rows) / slower[:, :-1]).astype(np.float32)
        flow_cols = ((flow_cols + step * slope_cols) / slower[:, :, :-1]).astype(np.float32)
        denoised = (planes + weight * _divergence(flow_rows, flow_cols, planes.shape)).astype(np.float32)
    return np.where(valid, np.clip(denoised, 0, 1), planes)


def guided(planes: Planes, valid: Valid, image: NDArray[np.float32], *, radius: int, softness: float) -> Planes:
    """Guided filter: probabilities bent along the edges of the image.

    Args:
        planes: (channels, rows, cols).
        valid: (rows, cols).
        image: (rows, cols), the guide, in standard deviations.
        radius: of the square window, px; 2 * `radius` pixels of margin make a region exact.
        softness: contrast in the guide, in standard deviations, below which it is no edge.

    Source: He, Sun & Tang 2010, Guided image filtering.
    """
    share = _box(valid.astype(np.float32), radius)

    def mean(plane: NDArray[np.float32]) -> NDArray[np.float32]:
        return (_box(np.where(valid, plane, 0), radius) / np.maximum(share, 1e-6)).astype(np.float32)

    centre = mean(image)
    variance = mean(image * image) - centre * centre
    found = np.empty_like(planes)
    for number, plane in enumerate(planes):
        level = mean(plane)
        slope = ((mean(image * plane) - centre * level) / (variance + softness**2)).astype(np.float32)
        found[number] = mean(slope) * image + mean(level - slope * centre)
    return np.where(valid, np.clip(found, 0, 1), planes)


def _divergence(rows: Planes, cols: Planes, shape: tuple[int, ...]) -> Planes:
    """What flows in less what flows out."""
    total = np.zeros(shape, np.float32)
    total[:, :-1] += rows
    total[:, 1:] -= rows
    total[:, :, :-1] += cols
    total[:, :, 1:] -= cols
    return total


def _box(plane: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Mean over a square; pixels beyond the region count as 0."""
    # A weighted sum around each pixel, not a running one: that would carry rounding from the region's edge.
    weights = np.full(2 * radius + 1, 1 / (2 * radius + 1), np.float32)
    for axis in (0, 1):
        plane = correlate1d(plane, weights, axis=axis, mode="constant", output=np.float32)
    return plane
