"""Which losses bound 1 - IoU, and by what factor: the table of docs/losses.md, tried on random predictions.

IoU is that of the classes of highest probability, by the counts of the whole batch, without smoothing.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gimseg import losses
from gimseg.labelled_logits import LabelledLogits


def missing_overlap(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - IoU of each class that is there."""
    batch = LabelledLogits.of(logits, labels)
    found, truth = batch.class_logits.argmax(1), batch.classes
    ious = [
        ((found == value) & (truth == value)).sum() / ((found == value) | (truth == value)).sum()
        for value in truth.unique()
    ]
    return 1 - torch.stack(ious)


def predictions(seed: int, channels: int, share: float, skill: float) -> tuple[Tensor, Tensor]:
    """Logits between chance and truth, objects on `share` of the ground."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(1, 8, 8, generator=generator) < share) * torch.randint(
        1, max(2, channels), (1, 8, 8), generator=generator
    )
    truth = torch.nn.functional.one_hot(labels, max(2, channels)).permute(0, 3, 1, 2).double()
    logits = skill * truth + torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    return (logits[:, 1:] - logits[:, :1] if channels == 1 else logits), labels


worlds = given(st.integers(0, 10_000), st.sampled_from([1, 2, 4]), st.sampled_from([0.02, 0.3]), st.floats(-2, 6))


@settings(max_examples=150, deadline=None)
@worlds
def test_region_losses_bound_the_missing_overlap_up_to_a_factor(
    seed: int, channels: int, share: float, skill: float
) -> None:
    logits, labels = predictions(seed, channels, share, skill)
    mean = missing_overlap(logits, labels).mean()
    classes = max(2, channels)
    assert mean <= classes * losses.jaccard_loss(logits, labels, smooth=0) + 1e-9
    assert mean <= 2 * classes * losses.dice_loss(logits, labels, smooth=0) + 1e-9
    assert mean <= classes / 0.3 * losses.tversky_loss(logits, labels, smooth=0) + 1e-9
    assert mean <= classes / 0.3 * losses.focal_tversky_loss(logits, labels, smooth=0) + 1e-9
    lovasz = losses.lovasz_loss(logits, labels)
    assert mean <= (1 if channels == 1 else classes) * lovasz + 1e-9


@settings(max_examples=150, deadline=None)
@worlds
def test_generalised_dice_bounds_that_of_the_rarer_class(seed: int, channels: int, share: float, skill: float) -> None:
    logits, labels = predictions(seed, min(channels, 2), share, skill)
    if 0 < int((labels == 1).sum()) <= labels.numel() / 2:
        assert missing_overlap(logits, labels)[1] <= 8 * losses.generalised_dice_loss(logits, labels) + 1e-9


@settings(max_examples=150, deadline=None)
@worlds
def test_pixel_losses_bound_it_only_by_the_share_of_the_class(
    seed: int, channels: int, share: float, skill: float
) -> None:
    logits, labels = predictions(seed, channels, share, skill)
    pixels = labels.numel() / torch.stack([(labels == value).sum() for value in labels.unique()])
    missing = missing_overlap(logits, labels)
    assert (missing <= pixels * losses.cross_entropy_loss(logits, labels) / math.log(2) + 1e-9).all()
    if channels == 1 and len(missing) == 2:
        assert (missing <= pixels * 4 * 32 * losses.boundary_loss(logits, labels) + 1e-6).all()
    focal = losses.focal_loss(logits, labels, fg_weight=0.5) / (0.5 * 0.5**2 * math.log(2))
    assert (missing <= pixels * focal + 1e-9).all()


def test_cross_entropy_hardly_sees_a_class_that_is_missed_altogether() -> None:
    """98 : 2, and each object pixel at 2 %: 1 - IoU is 1, cross-entropy a seventh of that of a coin."""
    labels = torch.zeros(1, 10, 100, dtype=torch.long)
    labels[:, :, :2] = 1
    logits = torch.full((1, 1, 10, 100), math.log(0.02 / 0.98))
    assert missing_overlap(logits, labels)[1] == 1
    assert float(losses.cross_entropy_loss(logits, labels)) == pytest.approx(0.098, abs=0.001)
    assert losses.lovasz_loss(logits, labels) > losses.jaccard_loss(logits, labels) > 0.49


def test_soft_jaccard_is_no_bound_without_its_factor() -> None:
    """Objects at 0.49 are all missed, and cost half."""
    labels = torch.tensor([[[1] * 4 + [0] * 4]])
    logits = torch.tensor([[[[-0.04] * 4 + [-50.0] * 4]]])
    overlap = missing_overlap(logits, labels)
    assert overlap[1] == 1
    assert losses.jaccard_loss(logits, labels, smooth=0) < 0.6 * overlap.mean()


def test_cldice_bounds_nothing() -> None:
    """The centreline alone is a perfect score: IoU can be as low as the line is wide."""
    labels = torch.zeros(1, 21, 60, dtype=torch.long)
    labels[:, 6:15] = 1
    line = torch.zeros_like(labels)
    line[:, 10] = 1
    logits = 60.0 * line[:, None] - 30
    assert losses.cldice_loss(logits, labels, iterations=6) < 0.02
    assert missing_overlap(logits, labels)[1] > 0.85
