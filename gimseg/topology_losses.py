"""Losses of what hangs together: soft clDice, for roads, rivers and hedges.

Logits (N, C, H, W), labels (N, H, W); conventions in :mod:`gimseg.losses`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gimseg.errors import LossError
from gimseg.labelled_logits import LabelledLogits, check_options, ratio


def cldice_loss(logits: Tensor, labels: Tensor, *, iterations: float = 3, smooth: float = 1.0) -> Tensor:
    """Soft centreline Dice loss of logits: 1 - 2·Tp·Ts / (Tp + Ts).

    Tp is the share of the prediction's skeleton that lies on the truth, Ts the share of
    the truth's skeleton that lies on the prediction. To be added to a region loss,
    ``0.5*dice + 0.5*cldice``: lines of any width have the same skeleton.

    Args:
        logits: (N, C, H, W). The background has no skeleton; all other classes are
            counted together.
        labels: (N, H, W), 255 unlabelled.
        iterations: erosions, a whole number: half the width of the widest line, px.
        smooth: pixels added to numerators and denominators of Tp and Ts, above 0: where
            nothing is there and nothing found, both are 1.

    Returns:
        scalar, 0 to 1.

    Raises:
        LossError: shapes, labels or arguments that do not fit.

    Source: Shit et al. 2021, arXiv 2003.07311, and the authors' code (3 iterations, smooth 1).
    MONAI adds 1e-4 to the denominator of the harmonic mean and counts each window alone.
    """
    check_options(iterations=iterations, smooth=smooth)
    if iterations != int(iterations):
        raise LossError(f"iterations is {iterations:g}, it must be a whole number")
    if smooth == 0:
        raise LossError("smooth of cldice is 0, it must be above 0: ground without lines would be 0/0")
    batch = LabelledLogits.of(logits, labels)
    known = batch.labelled[:, None]
    truth = batch.is_class[:, 1:].to(batch.logits.dtype)
    found = torch.where(known, batch.probabilities[:, 1:], 0)
    precision = _share(soft_skeleton(found, known, int(iterations)), truth, smooth)
    sensitivity = _share(soft_skeleton(truth, known, int(iterations)), found, smooth)
    return 1 - ratio(2 * precision * sensitivity, precision + sensitivity)


def soft_skeleton(planes: Tensor, known: Tensor, iterations: int) -> Tensor:
    """What each opening of an ever more eroded plane takes away.

    Args:
        planes: (N, K, H, W), 0 to 1.
        known: (N, 1, H, W), bool. Other pixels are, like those beyond the window's edge, no
            neighbours.
        iterations: number of erosions.

    Returns:
        (N, K, H, W), 0 to 1, 0 where not known.

    Example:
        >>> bar = torch.zeros(1, 1, 5, 9)
        >>> bar[..., 1:4, :] = 1
        >>> soft_skeleton(bar, torch.ones(1, 1, 5, 9, dtype=bool), 3)[0, 0, :, 4].tolist()
        [0.0, 0.0, 1.0, 0.0, 0.0]
    """
    skeleton = torch.relu(planes - _dilate(_erode(planes, known), known))
    for _ in range(iterations):
        planes = _erode(planes, known)
        further = torch.relu(planes - _dilate(_erode(planes, known), known))
        skeleton = skeleton + torch.relu(further - skeleton * further)
    return torch.where(known, skeleton, 0)


def _erode(planes: Tensor, known: Tensor) -> Tensor:
    """The least of each pixel and its four neighbours."""
    negative = -torch.where(known, planes, 1)
    vertical = F.max_pool2d(negative, (3, 1), 1, (1, 0))
    horizontal = F.max_pool2d(negative, (1, 3), 1, (0, 1))
    return torch.where(known, -torch.maximum(vertical, horizontal), 0)


def _dilate(planes: Tensor, known: Tensor) -> Tensor:
    """The greatest of each pixel and its eight neighbours."""
    return torch.where(known, F.max_pool2d(planes, 3, 1, 1), 0)


def _share(skeleton: Tensor, region: Tensor, smooth: float) -> Tensor:
    """How much of a skeleton lies on a region."""
    return ratio((skeleton * region).sum() + smooth, skeleton.sum() + smooth)
