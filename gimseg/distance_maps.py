"""How far pixels are from the borders of labelled regions; weights of the ground between objects.

They are computed by scipy on the processor, window by window, from labels alone or
from a thresholded prediction: no gradient flows through them. Unlabelled pixels are
no border: distances are to the nearest pixel that is known to be on the other side.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from gimseg.legend import BACKGROUND, UNLABELLED

_FARTHEST_SIGMAS = 6.0


def distances_across(region: Tensor, known: Tensor, cap: float) -> Tensor:
    """Distance of each pixel to the nearest known pixel on the other side of a region's border.

    Args:
        region: (N, K, H, W), bool: the regions of K classes.
        known: (N, H, W), bool: pixels that say on which side they are.
        cap: what is farther, or where there is no other side, is as far as this, px.

    Returns:
        float32 (N, K, H, W) on the device of `region`, px from centre to centre, 1 to `cap`.

    Example:
        >>> region = torch.tensor([[[[True, True, False, False, False]]]])
        >>> known = torch.tensor([[[True, True, False, True, True]]])
        >>> distances_across(region, known, cap=10)[0, 0, 0].tolist()
        [3.0, 2.0, 1.0, 2.0, 3.0]
    """
    # Of two classes one border is the other's.
    planes = region[:, 1:] if region.shape[1] == 2 else region
    inside, sure = planes.cpu().numpy(), known.cpu().numpy()
    found = np.empty(inside.shape, np.float32)
    for window, side in enumerate(sure):
        for plane, mask in enumerate(inside[window]):
            found[window, plane] = np.where(mask, _to_nearest(side & ~mask, cap), _to_nearest(side & mask, cap))
    return torch.from_numpy(found).to(region.device).expand(region.shape)


def _to_nearest(target: np.ndarray, cap: float) -> np.ndarray:
    """Distance to the nearest True pixel, at most `cap`."""
    if not target.any():
        return np.full(target.shape, cap, np.float32)
    return np.minimum(ndimage.distance_transform_edt(~target), cap)


def border_weights(labels: Tensor, *, border: float = 10.0, sigma: float = 5.0) -> Tensor:
    """Weights of pixels that rise where two objects come close: 1 + border·exp(-(d1 + d2)² / (2·sigma²)).

    d1 and d2 are the distances to the nearest and the second nearest object. Objects
    are regions of one class that hang together by their edges: two that touch along an
    edge are one.

    Unlabelled ground takes away weight and adds none: whatever it hides, the weights of
    the whole truth would be these or higher. Parts of a class that may hang together through
    unlabelled ground are one object, and distances are to pixels that are labelled. That holds
    for unlabelled ground between labelled ground, which has some on either side, along its row or
    its column. What lies further out is like the ground beyond the window: two objects that
    end there are two, so that a margin of 255 is the same as none.

    Args:
        labels: (N, H, W), whole numbers; 0 is no object, 255 unlabelled.
        border: weight that is added where two objects touch at a corner.
        sigma: width of the rise, px. The paper's 5 px are 1.5 m at 0.3 m.

    Returns:
        float32 (N, H, W), 1 on objects and where the second object is far; it means
        nothing where unlabelled.

    Example:
        >>> weights = border_weights(torch.tensor([[[1, 0, 1, 0, 0, 0]]]), sigma=1)
        >>> [round(float(weight), 2) for weight in weights[0, 0]]
        [1.0, 2.35, 1.0, 1.0, 1.0, 1.0]
        >>> torn = torch.tensor([[[1, 255, 1], [0, 255, 0]]])
        >>> border_weights(torn)[torn != 255].tolist()
        [1.0, 1.0, 1.0, 1.0]

    Source: Ronneberger et al. 2015, arXiv 1505.04597, equation 2. The paper balances classes
    in the same map (w_c); here that is an argument of the loss.
    """
    planes = labels.cpu().numpy()
    near = np.stack([_sum_of_two_nearest(_instances(plane), sigma) for plane in planes]) if len(planes) else planes
    rise = torch.from_numpy(np.exp(-np.square(near / max(sigma, 1e-6)) / 2).astype(np.float32))
    return (1 + border * rise).to(labels.device)


def _instances(labels: np.ndarray) -> np.ndarray:
    """Numbers of the objects of a window, from 1; 0 is none."""
    numbers = np.zeros(labels.shape, np.int32)
    known = labels != UNLABELLED
    hidden = _between(known) & ~known
    for value in set(np.unique(labels)) - {BACKGROUND, UNLABELLED}:
        mask = labels == value
        regions = ndimage.label(mask | hidden)[0][mask]
        # Regions of hidden ground alone have numbers too: what is left is numbered anew.
        numbers[mask] = np.unique(regions, return_inverse=True)[1] + 1 + numbers.max()
    return numbers


def _between(known: np.ndarray) -> np.ndarray:
    """What is known or has it on either side, along a row or a column, and so on with that: bool (rows, cols)."""
    while True:
        along = [_before(known, axis) & np.flip(_before(np.flip(known, axis), axis), axis) for axis in (0, 1)]
        wider = along[0] | along[1]
        if (wider == known).all():
            return known
        known = wider


def _before(known: np.ndarray, axis: int) -> np.ndarray:
    """Where something known is here or before."""
    return np.logical_or.accumulate(known, axis=axis)


def _sum_of_two_nearest(instances: np.ndarray, sigma: float) -> np.ndarray:
    """d1 + d2 outside objects, px; infinite on objects and beyond six sigma."""
    total = np.full(instances.shape, np.inf)
    farthest = _FARTHEST_SIGMAS * sigma
    if instances.max() < 2:
        return total
    nearest, (rows, cols) = ndimage.distance_transform_edt(instances == 0, return_indices=True)
    owner = instances[rows, cols]
    # d1 <= d2, so a pixel that matters is within half of it of its nearest object, and within it of the second.
    reach = int(np.ceil(1.5 * farthest)) + 1
    for number, place in enumerate(ndimage.find_objects(instances), 1):
        around = tuple(slice(max(0, axis.start - reach), axis.stop + reach) for axis in place)
        others = (instances[around] > 0) & (instances[around] != number)
        if not others.any():
            continue
        mine = (owner[around] == number) & (instances[around] == 0)
        second = ndimage.distance_transform_edt(~others)
        total[around][mine] = (nearest[around] + second)[mine]
    return np.where(total <= farthest, total, np.inf)
