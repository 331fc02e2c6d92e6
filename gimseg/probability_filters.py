"""Filters of probabilities: each looks no further than its margin, so that regions come out as the whole does.

All take and give float32 (channels, rows, cols), probabilities from 0 to 1, and a plane
of validity (rows, cols); invalid pixels keep what they hold and have no say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

Planes = NDArray[np.float32]
Valid = NDArray[np.bool_]
Bell = NDArray[np.float32]
"""Weights of the pixels around one, (odd, odd), and of itself in the middle."""

_LEAST = np.float32(1 / 500)
"""What is 0 in steps of 1/250, as probabilities are kept, is known to half a step."""


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


def bell(radius: float, sides: tuple[float, float]) -> Bell:
    """A Gaussian of half the radius as its standard deviation, cut off at the radius.

    Args:
        radius: in any unit; a pixel at least.
        sides: height and width of a pixel in that unit.

    Example:
        >>> bell(1.0, (1.0, 0.5)).round(2)
        array([[0.  , 0.  , 0.14, 0.  , 0.  ],
               [0.14, 0.61, 1.  , 0.61, 0.14],
               [0.  , 0.  , 0.14, 0.  , 0.  ]], dtype=float32)
    """
    radius = max(radius, min(sides))
    far = [math.floor(radius / side + 1e-9) for side in sides]
    rows, cols = np.ogrid[-far[0] : far[0] + 1, -far[1] : far[1] + 1]
    squares = ((rows * sides[0]) ** 2 + (cols * sides[1]) ** 2) / radius**2
    return np.where(squares <= 1 + 1e-9, np.exp(-2 * squares), 0).astype(np.float32)


def bilateral(planes: Planes, valid: Valid, image: Planes, *, near: Bell, contrast: float) -> Planes:
    """Joint bilateral filter: each pixel takes the mean of what is near and looks alike in the image.

    Args:
        planes: (channels, rows, cols).
        valid: (rows, cols).
        image: (bands, rows, cols), the guide, in standard deviations.
        near: weights by place; half its side of margin makes a region exact.
        contrast: root mean square difference of the bands at which likeness has fallen to 0.6.

    Source: Petschnigg et al. 2004, Digital photography with flash and no-flash image pairs; Eisemann & Durand 2004.
    """
    shown = np.concatenate([valid[None].astype(np.float32), np.where(valid, planes, 0)])
    share, *sums = _from_neighbours(shown, image, near, contrast)
    # Each pixel is its own neighbour too, with a weight of 1.
    found = (planes + np.stack(sums)) / (1 + share)
    return np.where(valid, np.clip(found, 0, 1), planes)


def mean_field(
    planes: Planes, valid: Valid, image: Planes, *, near: Bell, contrast: float, weight: float, iterations: int
) -> Planes:
    """Conditional random field in which all pixels that are near are connected, the stronger the more they look alike.

    The energy of a labelling is that of the probabilities, -log p, and `weight` for each pixel
    that has another class than all that is near and looks alike. Mean-field inference of
    the probability of each class, with kernels normalised on both sides.

    Args:
        planes: (channels, rows, cols).
        valid: (rows, cols).
        image: (bands, rows, cols) in standard deviations.
        near: weights by place; (`iterations` + 1) times half its side of margin makes a region exact.
        contrast: as in :func:`bilateral`.
        weight: of the neighbours beside the pixel's own probability.
        iterations: steps of the inference; each carries a pixel's say one radius further.

    Source: Krähenbühl & Koltun 2011, Efficient inference in fully connected CRFs with Gaussian edge potentials;
    neighbours up to a distance, not all, as in Teichmann & Cipolla 2018, Convolutional CRFs, which is what
    makes regions exact: the lattice that approximates the sum over all pixels depends on where it begins.
    """
    shares = np.concatenate([1 - planes, planes]) if len(planes) == 1 else planes
    own = np.log(np.clip(shares, _LEAST, 1))
    counts = _from_neighbours(valid[None].astype(np.float32), image, near, contrast)[0]
    scale = np.where(valid & (counts > 0), 1 / np.sqrt(np.maximum(counts, np.float32(1e-12))), 0).astype(np.float32)
    found = np.where(valid, shares, 0)
    for _ in range(iterations):
        # What neighbours say against all other classes is, but for a constant, what they say for this one.
        found = _softmax(own + weight * scale * _from_neighbours(scale * found, image, near, contrast))
    return np.where(valid, found[-len(planes) :], planes)


def _softmax(logits: Planes) -> Planes:
    powers = np.exp(logits - logits.max(0))
    # Channel by channel: the order in which numpy adds along an axis depends on the shape.
    return np.asarray(powers / sum(powers), np.float32)


def _from_neighbours(planes: Planes, image: Planes, near: Bell, contrast: float) -> Planes:
    """Sums over the pixels around each one, without itself, weighted by place and likeness; (channels, rows, cols)."""
    found = np.zeros_like(planes)
    falls = np.float32(-0.5 / (len(image) * contrast**2))
    for weight, one, other in _pairs(near, planes.shape[1:]):
        pull = weight * np.exp(falls * sum(np.square(band[one] - band[other]) for band in image))
        for total, plane in zip(found, planes, strict=True):
            total[one] += pull * plane[other]
            total[other] += pull * plane[one]
    return found


def _pairs(near: Bell, shape: tuple[int, ...]) -> Iterator[tuple[np.float32, _Roi, _Roi]]:
    """Weights of all places around a pixel, each with its opposite; where pixels lie that have another one there."""
    middle = near.size // 2
    for number in range(middle + 1, near.size):
        row, col = number // near.shape[1] - near.shape[0] // 2, number % near.shape[1] - near.shape[1] // 2
        if near.flat[number] and row < shape[0] and abs(col) < shape[1]:
            left, right = max(0, -col), max(0, col)
            one = slice(0, shape[0] - row), slice(left, shape[1] - right)
            yield near.flat[number], one, (slice(row, shape[0]), slice(right, shape[1] - left))


_Roi = tuple[slice, slice]


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
