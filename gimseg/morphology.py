"""Filters of masks: each looks no further than its margin, so that regions come out as the whole does.

All take and give uint8 (rows, cols): 0 background, classes, 255 where there is no
image. What lies beyond the region counts as 255, and 255 has no say: an object that
touches the raster's border is not eaten from there, and pixels of 255 stay.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion, convolve, find_objects, label, maximum_filter

from gimseg.legend import BACKGROUND, UNLABELLED
from gimseg.necks import LEAST, basins, widths

Mask = NDArray[np.uint8]
Sides = tuple[float, float]
"""Height and width of a pixel, m."""


def disk(radius_m: float, pixel_m: Sides) -> NDArray[np.bool_]:
    """Pixels whose centres lie within a distance of the middle one.

    Example:
        >>> disk(1.0, (1.0, 0.5)).astype(int)
        array([[0, 0, 1, 0, 0],
               [1, 1, 1, 1, 1],
               [0, 0, 1, 0, 0]])
    """
    far = [math.floor(radius_m / side + 1e-9) for side in pixel_m]
    rows, cols = np.ogrid[-far[0] : far[0] + 1, -far[1] : far[1] + 1]
    return (rows * pixel_m[0]) ** 2 + (cols * pixel_m[1]) ** 2 <= (radius_m * (1 + 1e-9)) ** 2


def opened(mask: Mask, brush: NDArray[np.bool_]) -> Mask:
    """What is too thin for the brush becomes background, class by class.

    Source: opening, Serra 1982, Image Analysis and Mathematical Morphology, Academic Press;
    unknown pixels count as any class while it erodes.
    """
    rows, cols = (size // 2 for size in brush.shape)
    framed = np.pad(mask, ((rows, rows), (cols, cols)), constant_values=UNLABELLED)
    result = framed.copy()
    for value in _classes(mask):
        own = framed == value
        kept = binary_dilation(binary_erosion(own | (framed == UNLABELLED), brush, border_value=1), brush)
        result[own & ~kept] = BACKGROUND
    return result[rows : len(framed) - rows, cols : framed.shape[1] - cols]


def closed(mask: Mask, brush: NDArray[np.bool_]) -> Mask:
    """Background that the brush cannot enter is given to the class around it; the lower value where two claim it.

    Source: closing, Serra 1982, Image Analysis and Mathematical Morphology, Academic Press.
    """
    known = mask != UNLABELLED
    result = mask.copy()
    for value in _classes(mask):
        own = mask == value
        reached = binary_erosion(binary_dilation(own, brush) | ~known, brush, border_value=1)
        result[reached & (result == BACKGROUND)] = value
    return result


def majority(mask: Mask, brush: NDArray[np.bool_]) -> Mask:
    """Each pixel takes the value that most of its surroundings have; its own if that has as many.

    Source: the majority filter of classified images, Lillesand & Kiefer, Remote Sensing and Image
    Interpretation, Wiley, under post-classification smoothing.
    """
    known = mask != UNLABELLED
    most, winner = np.zeros(mask.shape, np.int64), mask.copy()
    own_votes = np.zeros(mask.shape, np.int64)
    for value in (BACKGROUND, *_classes(mask)):
        votes = convolve((mask == value).astype(np.int64), brush.astype(np.int64), mode="constant")
        winner = np.where(votes > most, np.uint8(value), winner)
        most = np.maximum(most, votes)
        own_votes = np.where(mask == value, votes, own_votes)
    return np.where(known & (own_votes < most), winner, mask)


def without_small(mask: Mask, least: int) -> Mask:
    """Connected regions of fewer than `least` pixels become background; a margin of `least` pixels makes it exact.

    Source: area opening, class by class; Vincent 1993, Grayscale area openings and closings, their
    efficient implementation and applications (EURASIP workshop on mathematical morphology, Barcelona).
    """
    result = mask.copy()
    for value in _classes(mask):
        regions, count = label(mask == value)
        sizes = np.bincount(regions.ravel(), minlength=count + 1)
        small = sizes < least
        small[0] = False
        result[small[regions]] = BACKGROUND
    return result


def filled(mask: Mask, least: int) -> Mask:
    """Holes of fewer than `least` pixels get the class around them; a margin of `least` + 1 pixels makes it exact.

    A hole is a connected region of background with nothing but classes around it. One
    that several classes surround gets the one with the greatest value; one that touches
    255 is none.

    Source: an area closing (Vincent 1993, see :func:`without_small`) of background alone; Soille 2003,
    Morphological Image Analysis, 2nd edition, Springer, for the filling of holes.
    """
    regions, count = label(mask == BACKGROUND, np.ones((3, 3)))
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    # The greatest value beside each pixel: 255 beside what is unknown or beyond the region.
    around = maximum_filter(mask, footprint=_CROSS, mode="constant", cval=UNLABELLED)
    highest = np.zeros(count + 1, np.uint8)
    np.maximum.at(highest, regions.ravel(), around.ravel())
    hole = (sizes < least) & (highest != UNLABELLED)
    hole[0] = False
    return np.where(hole[regions], highest[regions], mask)


def parted(mask: Mask, longest: tuple[int, int], pixel_m: Sides) -> Mask:
    """Objects that touch are parted at their necks by a line of background, one pixel wide.

    An object that has more pixels than `longest` along rows (the first) or columns stays as it is; a margin of
    one pixel more than the larger of both makes it exact.

    Source: a watershed of the distance to the outline, see :mod:`gimseg.necks`.
    """
    framed = np.pad(mask, 1, constant_values=UNLABELLED)
    result = framed.copy()
    for value in _classes(mask):
        regions, _ = label(framed == value)
        for number, box in enumerate(find_objects(regions), 1):
            if any(side.stop - side.start > most for side, most in zip(box, longest, strict=True)):
                continue
            # With what lies around it.
            there = tuple(slice(side.start - 1, side.stop + 1) for side in box)
            inside = regions[there] == number
            # Where nothing is known it may go on: that is no outline.
            solid = inside | (framed[there] == UNLABELLED)
            found = basins(widths(solid, pixel_m, goes_on=True), solid, LEAST, line=True)
            if found is not None:
                result[there][inside & (found == 0)] = BACKGROUND
    return result[1:-1, 1:-1]


def grown(seeds: NDArray[np.bool_], within: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    """Seeds, and what is connected with them inside `within` in so many steps along rows and columns.

    Source: geodesic dilation; Vincent 1993, Morphological grayscale reconstruction in image analysis,
    doi 10.1109/83.217222.
    """
    return binary_dilation(seeds & within, _CROSS, iterations=steps, mask=within) if steps else seeds & within


_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)


def _classes(mask: Mask) -> list[int]:
    return [int(value) for value in np.unique(mask) if value not in (BACKGROUND, UNLABELLED)]
