"""Losses that weigh mistakes by their distance from the border: boundary, Hausdorff.

Logits (N, C, H, W), labels (N, H, W); conventions in :mod:`gimseg.losses`. Distances end at
`cap` and are in units of it, so that both losses lie between 0 and 2, and may stand beside
a region loss as they are. A class that a window does not have is `cap` away
everywhere. The borders of unlabelled ground are none.

The distances are computed on the processor, whatever the device: some 5 ms a window of
256 x 256 px and class for `boundary_loss`, twice that for `hausdorff_loss`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gimseg.distance_maps import distances_across
from gimseg.errors import LossError
from gimseg.labelled_logits import LabelledLogits, check_options


def boundary_loss(logits: Tensor, labels: Tensor, *, cap: float = 32.0) -> Tensor:
    """Boundary loss of logits: mean of the distance of p from g times the distance from the true border.

    To be added to a region loss, rising: ``dice + ramp(0, 1)*boundary``. By itself it
    forgives what is near the border.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), 255 unlabelled.
        cap: distances beyond it count as it, px; at least 1.

    Returns:
        scalar, 0 to 1; mean over labelled pixels and classes present.

    Raises:
        LossError: shapes, labels or arguments that do not fit.

    Source: Kervadec et al. 2019, arXiv 1812.07032: mean of p·φ with φ the signed distance in
    px, negative inside. Subtracting what the truth itself has, g·φ, moves the minimum to 0 and
    leaves the gradient as it is. Their φ, and MONAI's, is the distance to the other side's
    nearest pixel outside and that less 1 inside; half a pixel less than either lies on
    the border, the same for a class and its opposite. Without a cap theirs is larger by it. A window
    without the class has no gradient there; here false alarms on it cost most.
    """
    _check_cap(cap)
    batch = LabelledLogits.of(logits, labels)
    distances = distances_across(batch.is_class, batch.labelled, cap) - 0.5
    return _mean(batch, batch.errors * (distances / cap))


def hausdorff_loss(logits: Tensor, labels: Tensor, *, exponent: float = 2.0, cap: float = 32.0) -> Tensor:
    """Hausdorff loss of logits by distance transforms: mean of (p - g)²·(d_p ** exponent + d_g ** exponent).

    d_g is the distance from the true border, d_p from that of the prediction. What it
    fears most is a mistake far from everything.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), 255 unlabelled.
        exponent: alpha of the paper.
        cap: distances beyond it count as it, px; at least 1.

    Returns:
        scalar, 0 to 2; mean over labelled pixels and classes present.

    Raises:
        LossError: shapes, labels or arguments that do not fit.

    Source: Karimi & Salcudean 2019, arXiv 1904.10030. Theirs, and MONAI's, has no cap: it is
    cap ** exponent times this one; a class without a pixel, or without another, has distance 0 there.
    """
    _check_cap(cap)
    check_options(exponent=exponent)
    batch = LabelledLogits.of(logits, labels)
    found = batch.probabilities.detach() >= 0.5
    of_truth = distances_across(batch.is_class, batch.labelled, cap) / cap
    of_found = distances_across(found, batch.labelled, cap) / cap
    return _mean(batch, batch.errors.square() * (of_truth**exponent + of_found**exponent))


def _check_cap(cap: float) -> None:
    check_options(cap=cap)
    if cap < 1:
        raise LossError(f"cap is {cap:g} px, it must be at least 1: the distance between two pixels")


def _mean(batch: LabelledLogits, losses: Tensor) -> Tensor:
    """Mean of (N, K, H, W) over labelled pixels and the classes that are present."""
    pixels = batch.labelled.sum().clamp_min(1)
    return batch.mean_of_classes(torch.where(batch.labelled[:, None], losses, 0).sum((0, 2, 3)) / pixels)
