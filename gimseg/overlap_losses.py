"""Losses of regions: how much what is found and what is there overlap.

Logits (N, C, H, W), labels (N, H, W); conventions in :mod:`gimseg.losses`. Soft counts
run over the whole batch; the background is a class like the others, and a class that no
labelled pixel of the batch has is left out of the mean: its false alarms are the misses of
the classes that are there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gimseg.distance_maps import border_weights
from gimseg.errors import LossError
from gimseg.labelled_logits import LabelledLogits, check_options, finite_power, ratio
from gimseg.pixel_losses import focused_entropy

_OVER_PIXELS = (0, 2, 3)


class SoftCounts(NamedTuple):
    """Soft counts of each class over a batch, px, each of shape (classes,)."""

    hits: Tensor
    false_alarms: Tensor
    misses: Tensor

    @classmethod
    def of(cls, batch: LabelledLogits, weights: Tensor | float = 1.0) -> SoftCounts:
        """Sums over labelled pixels, each `weights` (N, 1, H, W) times."""
        errors = weights * batch.errors
        false = batch.labelled[:, None] & ~batch.is_class
        return cls(
            hits=torch.where(batch.is_class, weights * batch.probabilities, 0).sum(_OVER_PIXELS),
            false_alarms=torch.where(false, errors, 0).sum(_OVER_PIXELS),
            misses=torch.where(batch.is_class, errors, 0).sum(_OVER_PIXELS),
        )

    def deficits(self, fp_weight: float, fn_weight: float, smooth: float) -> Tensor:
        """1 - Tversky index of each class, (classes,)."""
        mistakes = fp_weight * self.false_alarms + fn_weight * self.misses
        # The same as 1 - index, without the cancellation that loses the last digits of a good prediction.
        return ratio(mistakes, self.hits + mistakes + smooth)


def focal_tversky_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    fp_weight: float = 0.3,
    fn_weight: float = 0.7,
    exponent: float = 0.75,
    smooth: float = 1.0,
) -> Tensor:
    """Focal Tversky loss of logits: mean over classes of (1 - Tversky index) ** exponent.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), 255 unlabelled.
        fp_weight: weight of false alarms; alpha in Salehi, beta in Abraham & Khan.
        fn_weight: weight of misses; beta in Salehi, alpha in Abraham & Khan.
        exponent: 1/gamma of the paper (gamma = 4/3). Below 1, a class that is
            nearly right still counts.
        smooth: pixels added to numerator and denominator of the index.

    Returns:
        scalar, 0 (perfect) to 1. The paper takes the sum over classes; the mean
        keeps a weight beside another loss meaning the same for any number of them.

    Raises:
        LossError: shapes, labels or arguments that do not fit.

    Example:
        >>> labels = torch.tensor([[[0, 1, 1, 255]]])
        >>> perfect, nothing = torch.tensor([[[[-50.0, 50, 50, 9]]]]), torch.full((1, 1, 1, 4), -50.0)
        >>> float(focal_tversky_loss(perfect, labels)) < 1e-6
        True
        >>> round(float(focal_tversky_loss(nothing, labels)), 3)
        0.5

    Source: Abraham & Khan 2018, arXiv 1810.07842. smp raises the mean over classes to the
    power, here each class is.
    """
    check_options(fp_weight=fp_weight, fn_weight=fn_weight, exponent=exponent, smooth=smooth)
    if fp_weight + fn_weight == 0:
        raise LossError("fp_weight and fn_weight are both 0: nothing would be learnt; one of them must be above 0")
    batch = LabelledLogits.of(logits, labels)
    deficits = SoftCounts.of(batch).deficits(fp_weight, fn_weight, smooth)
    return batch.mean_of_classes(finite_power(deficits, exponent))


def tversky_loss(
    logits: Tensor, labels: Tensor, *, fp_weight: float = 0.3, fn_weight: float = 0.7, smooth: float = 1.0
) -> Tensor:
    """Tversky loss of logits: mean over classes of 1 - (TP + s) / (TP + fp·FP + fn·FN + s).

    Arguments as of :func:`focal_tversky_loss`.

    Source: Salehi et al. 2017, arXiv 1706.05721; alpha there (and in smp, MONAI and kornia)
    is fp_weight, beta fn_weight; 0.5 both in the libraries.
    """
    return focal_tversky_loss(logits, labels, fp_weight=fp_weight, fn_weight=fn_weight, exponent=1.0, smooth=smooth)


def dice_loss(logits: Tensor, labels: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Dice loss of logits: mean over classes of 1 - (2·TP + s) / (2·TP + FP + FN + s).

    Source: Milletari et al. 2016, arXiv 1606.04797, without its squares in the denominator.
    smp's smooth is half of this one and 0; MONAI counts each window alone.
    """
    return tversky_loss(logits, labels, fp_weight=0.5, fn_weight=0.5, smooth=smooth / 2)


def jaccard_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    positive: float | None = None,
    negative: float | None = None,
    smooth: float = 1.0,
) -> Tensor:
    """Jaccard (IoU) loss of logits: mean over classes of 1 - (TP + s) / (TP + FP + FN + s).

    With `positive` and `negative` it is class-aware: positive·(1 - J₊) + negative·(1 - J₋),
    where J₊ is the mean index of the object classes and J₋ that of the background. The
    latter is what gives a gradient on windows without an object.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), 255 unlabelled.
        positive: weight of the objects' term; given with `negative` or not at all.
        negative: weight of the background's term.
        smooth: pixels added to numerator and denominator.

    Returns:
        scalar. A term without a labelled pixel in the batch is 0.

    Raises:
        LossError: shapes, labels or arguments that do not fit.

    Source: Rahman & Wang 2016 (soft IoU); the class-aware form is of unpublished tuning
    notes for satellite imagery of 2024, with 0.8 and 0.2. smp and MONAI: the object alone if C = 1.
    """
    if positive is None and negative is None:
        return tversky_loss(logits, labels, fp_weight=1.0, fn_weight=1.0, smooth=smooth)
    if positive is None or negative is None:
        raise LossError(f"jaccard has positive={positive}, negative={negative}: give both weights or none")
    check_options(positive=positive, negative=negative, smooth=smooth)
    if positive + negative == 0:
        raise LossError("positive and negative are both 0: nothing would be learnt; one of them must be above 0")
    batch = LabelledLogits.of(logits, labels)
    deficits = torch.where(batch.present, SoftCounts.of(batch).deficits(1.0, 1.0, smooth), 0)
    objects = deficits[1:].sum() / batch.present[1:].sum().clamp_min(1)
    return positive * objects + negative * deficits[0]


def generalised_dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Generalised Dice loss of logits: 1 - 2·Σ w·TP / Σ w·(2·TP + FP + FN), w = 1 / (pixels of the class)².

    One index of all classes together, in which a rare class weighs as much as a common one.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), 255 unlabelled.

    Raises:
        LossError: shapes or labels that do not fit.

    Source: Sudre et al. 2017, arXiv 1707.03237. A class that is not there has weight 0 here,
    the greatest weight of the others in MONAI, which counts each window alone.
    """
    batch = LabelledLogits.of(logits, labels)
    counts = SoftCounts.of(batch)
    pixels = batch.is_class.sum(_OVER_PIXELS).to(counts.hits.dtype)
    # Relative to the rarest class: 1 / pixels² alone would come near the smallest float.
    rarest = torch.where(batch.present, pixels, torch.inf).min()
    weights = torch.where(batch.present, (rarest / pixels.clamp_min(1)) ** 2, 0)
    mistakes = (weights * (counts.false_alarms + counts.misses)).sum()
    return ratio(mistakes, mistakes + 2 * (weights * counts.hits).sum())


def weighted_dice_loss(
    logits: Tensor,
    labels: Tensor,
    pixel_weights: Tensor | None = None,
    *,
    border: float = 10.0,
    sigma: float = 5.0,
    smooth: float = 1.0,
) -> Tensor:
    """Dice loss of logits in which pixels have weights: those of U-Net's borders unless others are given.

    1 - (2·Σ w·p·g + s) / (Σ w·p + Σ w·g + s), mean over classes.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), 255 unlabelled.
        pixel_weights: (N, H, W), 0 or above; None: :func:`gimseg.distance_maps.border_weights`.
        border: weight added in the gap between two objects.
        sigma: width of such a gap, px.
        smooth: added to numerator and denominator.

    Raises:
        LossError: shapes, labels or arguments that do not fit.

    Source: notebooks of the Data Science Bowl 2018. Those that weigh the prediction alone in
    the denominator give a perfect prediction less than 0; here the truth is weighed as well.
    """
    check_options(border=border, sigma=sigma, smooth=smooth)
    batch = LabelledLogits.of(logits, labels)
    if pixel_weights is None:
        pixel_weights = border_weights(labels, border=border, sigma=sigma)
    elif pixel_weights.shape != labels.shape:
        raise LossError(f"pixel_weights are {tuple(pixel_weights.shape)}, needed is {tuple(labels.shape)}")
    weights = torch.where(batch.labelled, pixel_weights, 0).to(batch.logits.dtype)
    return batch.mean_of_classes(SoftCounts.of(batch, weights[:, None]).deficits(0.5, 0.5, smooth / 2))


def unified_focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    region: float = 0.5,
    fn_weight: float = 0.6,
    exponent: float = 0.5,
    smooth: float = 1.0,
) -> Tensor:
    """Asymmetric unified focal loss of logits: region·focal Tversky + (1 - region)·focal cross-entropy.

    Focal terms of the paper help objects and not the background: an object class has
    (1 - TI) ** (1 - exponent), the background 1 - TI; background pixels are damped by
    (1 - p) ** exponent, object pixels are not.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), 255 unlabelled.
        region: share of the region term, lambda of the paper, 0 to 1.
        fn_weight: delta of the paper, 0 to 1: weight of misses and of object pixels;
            that of false alarms and of background pixels is 1 - fn_weight.
        exponent: gamma of the paper, 0 to 1.
        smooth: pixels added to numerator and denominator of the index.

    Raises:
        LossError: shapes, labels or arguments that do not fit.

    Source: Yeung et al. 2022, arXiv 2102.04525. The authors' code counts each window alone;
    MONAI wants probabilities, has delta 0.7, and halves the cross-entropy, as it takes the
    mean over two classes of which one is 0.
    """
    check_options(region=region, fn_weight=fn_weight, exponent=exponent, smooth=smooth)
    if max(region, fn_weight, exponent) > 1:
        raise LossError(
            f"region, fn_weight and exponent are 0 to 1; given are {region:g}, {fn_weight:g} and {exponent:g}"
        )
    batch = LabelledLogits.of(logits, labels)
    deficits = SoftCounts.of(batch).deficits(1 - fn_weight, fn_weight, smooth)
    tversky = torch.cat([deficits[:1], finite_power(deficits[1:], 1 - exponent)])
    background = (1 - fn_weight) * focused_entropy(batch, exponent)
    entropy = torch.where(batch.classes == 0, background, fn_weight * batch.entropy)
    return region * batch.mean_of_classes(tversky) + (1 - region) * batch.mean(entropy)


def lovasz_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Lovász loss of logits: the convex extension of 1 - IoU, mean over classes.

    One channel has the hinge form, max(0, 1 - signed logit): it is 0 from a logit of 1 on
    the right side, and convex in the logits. Several channels have the softmax form, of
    the distance of g from p.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), 255 unlabelled.

    Raises:
        LossError: shapes or labels that do not fit.

    Source: Berman et al. 2018, arXiv 1705.08790. Their hinge is of the object alone, whose
    gradient on an empty batch is that of one pixel; here the background is a class as well.
    Theirs and smp's can be taken window by window, this one is of the whole batch.
    """
    batch = LabelledLogits.of(logits, labels)
    errors = batch.errors
    if batch.is_binary:
        sign = torch.where(batch.classes > 0, 1.0, -1.0).to(batch.logits.dtype)[:, None]
        errors = torch.relu(1 - sign * batch.logits).expand_as(errors)
    labelled = batch.labelled.flatten()
    errors, truth = (plane.transpose(0, 1).flatten(1)[:, labelled] for plane in (errors, batch.is_class))
    errors, order = errors.sort(dim=1, descending=True)
    return batch.mean_of_classes((errors * _jaccard_slopes(truth.gather(1, order))).sum(dim=1))


def _jaccard_slopes(truth: Tensor) -> Tensor:
    """What each further mistake adds to 1 - IoU, from the gravest on, given what is true there: (classes, pixels)."""
    added = (~truth).cumsum(1)
    total = truth.sum(1, keepdim=True)
    remaining, union = total - truth.cumsum(1), (total + added).clamp_min(1)
    # In closed form: the difference of two ratios near 1 would be lost in float32.
    by_false_alarm = remaining / (union * (union - 1).clamp_min(1))
    return torch.where(truth, 1 / union, by_false_alarm)
