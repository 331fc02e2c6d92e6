"""Where objects that touch are told apart: peaks of a landscape, and a watershed between them.

Two parts of an object are two objects where the neck between them is less than three
quarters as wide as the smaller of them (:data:`NECK`; one pixel is added to all widths,
so that the staircase of an edge is no neck). These are h-maxima of the logarithm of the
distance to the outline: a rule that holds for sheds and for barns.

Sources: Soille 2003, Morphological Image Analysis, 2nd edition, Springer, chapters 6 (h-maxima)
and 9 (segmentation by watersheds); Vincent & Soille 1991, Watersheds in digital spaces,
doi 10.1109/34.87344.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.measure import label
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

NECK = 0.75
"""Width of a neck at which objects are split, as a share of the width of the smaller part."""

LEAST = -float(np.log(NECK))
"""How high a peak of :func:`widths` stands over the pass to the next."""

_EVERYWHERE = np.ones((3, 3), bool)


def widths(inside: NDArray[np.bool_], pixel_m: tuple[float, float], *, goes_on: bool = False) -> NDArray[np.float64]:
    """Logarithm of the distance to the outline, in pixels of the finer side, plus one; 0 outside.

    Args:
        inside: (rows, cols): the object.
        pixel_m: height and width of a pixel; only their ratio matters.
        goes_on: the border of the array is no outline; else there is nothing of the object beyond.
    """
    unit = min(pixel_m)
    sampling = (pixel_m[0] / unit, pixel_m[1] / unit)
    if not goes_on:
        distance = distance_transform_edt(np.pad(inside, 1), sampling=sampling)[1:-1, 1:-1]
    elif inside.all():
        return np.zeros(inside.shape)
    else:
        distance = distance_transform_edt(inside, sampling=sampling)
    return np.where(inside, np.log(distance + 1), 0.0)


def basins(
    heights: NDArray[np.floating], inside: NDArray[np.bool_], least: float, *, line: bool = False
) -> NDArray[np.int32] | None:
    """The objects of one connected region, numbered from 1; 0 outside.

    Args:
        heights: (rows, cols): the landscape.
        inside: (rows, cols): the region.
        least: how high a peak stands over the pass to the next; else both are one.
        line: leave pixels of 0 where two objects would touch along a side.

    Returns:
        int32 (rows, cols), or None: it is one object.
    """
    flooded = reconstruction(heights - least, heights, footprint=_EVERYWHERE)
    # The border of the box is no end of the plateau of a maximum.
    tops = local_maxima(np.pad(flooded, 1, constant_values=-np.inf))[1:-1, 1:-1] > 0
    peaks = label(tops & inside, connectivity=2)
    if peaks.max() < 2:
        return None
    found: NDArray[np.int32] = watershed(-heights, peaks, mask=inside, watershed_line=line).astype(np.int32)
    return found
