"""Losses that add up pixels: cross-entropies, focal losses, the border weights of U-Net.

Logits (N, C, H, W), labels (N, H, W); conventions in :mod:`gimseg.losses`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gimseg.distance_maps import border_weights
from gimseg.errors import LossError
from gimseg.labelled_logits import LabelledLogits, check_options, finite_power


def bce_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    pos_weight: float = 1.0,
    neg_weight: float = 1.0,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """Binary cross-entropy of logits: mean over labelled pixels (and channels), in nats.

    Several channels are as many questions, each a sigmoid: is the pixel of this class,
    or not? The background is one of them. ``ce`` asks one question of all, and is the
    better calibrated.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), 255 unlabelled.
        pos_weight: factor on pixels of the channel's class (one channel: of objects).
        neg_weight: factor on all others.
        class_weights: one a class, background first (two if C = 1), as in ``ce``: a pixel
            weighs as its class does, in all questions, and the mean is divided by the
            weights of the labelled pixels. A factor on one channel's whole question would
            leave a rare class as rare in it as it was.

    Raises:
        LossError: shapes, labels or arguments that do not fit.

    Example:
        >>> logits, labels = torch.zeros(1, 3, 1, 4), torch.tensor([[[0, 0, 1, 2]]])
        >>> logits[0, 2] = -4.0
        >>> [round(float(bce_loss(logits, labels, class_weights=w)), 2) for w in (None, [1, 1, 8])]
        [0.8, 1.44]

    Source: torch's ``BCEWithLogitsLoss``; its pos_weight is the same, a neg_weight and
    weights by the pixel's class it has not. Without class_weights the mean is over pixels, not over weights.
    """
    check_options(pos_weight=pos_weight, neg_weight=neg_weight)
    batch = LabelledLogits.of(logits, labels)
    truth = batch.is_class[:, 1:] if batch.is_binary else batch.is_class
    factors = torch.where(truth, pos_weight, neg_weight).to(batch.logits.dtype)
    losses = F.binary_cross_entropy_with_logits(batch.logits, truth.to(batch.logits.dtype), factors, reduction="none")
    return batch.mean(losses.mean(dim=1), _class_weights(batch, class_weights))


def cross_entropy_loss(logits: Tensor, labels: Tensor, *, class_weights: Sequence[float] | None = None) -> Tensor:
    """Cross-entropy of logits: mean over labelled pixels, in nats; one channel gives the same as ``bce``.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), 255 unlabelled.
        class_weights: one a class, background first (two if C = 1). The mean is
            the weighted one: divided by the weights of the labelled pixels.

    Raises:
        LossError: shapes, labels or weights that do not fit.

    Source: torch's ``CrossEntropyLoss``, whose weights and mean are the same; a batch
    without a label is NaN there and 0 here.
    """
    batch = LabelledLogits.of(logits, labels)
    return batch.mean(batch.entropy, _class_weights(batch, class_weights))


def focal_loss(logits: Tensor, labels: Tensor, *, fg_weight: float = 0.25, exponent: float = 2.0) -> Tensor:
    """Focal loss of logits: mean over labelled pixels of -w·(1 - p_t) ** exponent·log p_t.

    Several classes go through one softmax (in smp: a sigmoid each).

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), 255 unlabelled.
        fg_weight: w of object pixels, alpha of the paper; the background's is 1 - fg_weight.
        exponent: gamma of the paper; 0 leaves the cross-entropy.

    Raises:
        LossError: shapes, labels or arguments that do not fit.

    Source: Lin et al. 2017, arXiv 1708.02002. The paper divides by the number of objects,
    the mean here is over labelled pixels. Its alpha of 0.25 weighs objects *less*; with
    few of them, 0.75 or more finds them sooner.
    """
    check_options(fg_weight=fg_weight, exponent=exponent)
    if fg_weight > 1:
        raise LossError(f"fg_weight is a share, 0 to 1; given is {fg_weight:g}")
    batch = LabelledLogits.of(logits, labels)
    weights = (1 - fg_weight) + (2 * fg_weight - 1) * (batch.classes > 0).to(batch.logits.dtype)
    return batch.mean(weights * focused_entropy(batch, exponent))


def partial_cross_entropy_loss(logits: Tensor, labels: Tensor, *, exponent: float = 2.0) -> Tensor:
    """Partial cross-entropy of logits, for points: Σ m·(1 - p_t) ** exponent·CE / Σ m, m = labelled.

    It is made for labels that are nearly all 255. Where points of easy ground are many,
    the focal term keeps them from drowning the others.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), 255 unlabelled.
        exponent: of the focal term; 0 leaves ``ce``.

    Raises:
        LossError: shapes, labels or arguments that do not fit.

    Source: the cross-entropy over labelled pixels alone by which Bearman et al. 2016, arXiv
    1506.02106, learn from points and Tang et al. 2018, arXiv 1804.01346, from scribbles,
    without the terms that these put beside it; the focal term is that of Lin et al. 2017,
    arXiv 1708.02002. With exponent 0 it is torch's ``ignore_index``, but 0 instead of NaN where
    nothing is labelled.
    """
    check_options(exponent=exponent)
    batch = LabelledLogits.of(logits, labels)
    return batch.mean(focused_entropy(batch, exponent))


def border_cross_entropy_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    border: float = 10.0,
    sigma: float = 5.0,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """Cross-entropy of logits, weighted up between objects that nearly touch, so that they stay apart.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), 255 unlabelled.
        border: weight added in the gap between two objects, w0 of the paper.
        sigma: width of the gap that it is meant for, px: give about 1.5 m in pixels.
        class_weights: one a class, background first; w_c of the paper.

    Returns:
        the weighted mean: divided by the weights of the labelled pixels (the paper sums).

    Raises:
        LossError: shapes, labels or arguments that do not fit.

    Source: Ronneberger et al. 2015, arXiv 1505.04597; the map is
    :func:`gimseg.distance_maps.border_weights`.
    """
    check_options(border=border, sigma=sigma)
    batch = LabelledLogits.of(logits, labels)
    weights = border_weights(labels, border=border, sigma=sigma).to(batch.logits.dtype)
    return batch.mean(batch.entropy, weights * _class_weights(batch, class_weights))


def focused_entropy(batch: LabelledLogits, exponent: float) -> Tensor:
    """(1 - p_t) ** exponent·-log p_t of each pixel, (N, H, W)."""
    return finite_power(-torch.expm1(-batch.entropy), exponent) * batch.entropy


def _class_weights(batch: LabelledLogits, class_weights: Sequence[float] | None) -> Tensor:
    """The weight of each pixel by its class, (N, H, W)."""
    if class_weights is None:
        return torch.ones_like(batch.entropy)
    check_options(class_weights=tuple(class_weights))
    classes = batch.class_logits.shape[1]
    if len(class_weights) != classes:
        raise LossError(
            f"class_weights has {len(class_weights)} numbers, needed is one a class: {classes}, the background first"
        )
    table = torch.tensor(tuple(class_weights), dtype=batch.logits.dtype, device=batch.logits.device)
    return table[batch.classes]


def distillation_loss(logits: Tensor, taught: Tensor, where: Tensor) -> Tensor:
    """How far probabilities have moved from those of a teacher: mean Kullback-Leibler divergence, in nats.

    Args:
        logits: (N, C, H, W).
        taught: the teacher's, likewise.
        where: bool (N, H, W), the pixels that count; none of them gives 0.

    Example:
        >>> one, where = torch.tensor([[[[2.0]]]]), torch.ones(1, 1, 1, dtype=torch.bool)
        >>> float(distillation_loss(one, one, where)), float(distillation_loss(-one, one, where)) > 1
        (0.0, True)

    Source: Hinton et al. 2015, arXiv 1503.02531, at temperature 1; for what has no label
    any more: Li & Hoiem 2017, arXiv 1606.09282.
    """
    if logits.shape[1] == 1:
        # Two classes of which one has the logit 0.
        logits, taught = (torch.cat([torch.zeros_like(plane), plane], dim=1) for plane in (logits, taught))
    moved = F.kl_div(logits.log_softmax(1), taught.log_softmax(1), reduction="none", log_target=True).sum(dim=1)
    return (moved * where).sum() / where.sum().clamp(min=1)
