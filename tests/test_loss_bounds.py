"""Which losses bound 1 - IoU, and by what factor: the table of docs/losses.md, tried on random predictions.

IoU is that of the classes of highest probability, by the counts of the whole batch, without smoothing.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gimseg import losses
from gimseg.labelled_logits import LabelledLogits
from gimseg.losses import REGISTRY


def test_every_loss_has_a_line() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "losses.md").read_text(encoding="utf-8")
    lines = [line for line in page.split("## Which losses bound")[1].splitlines() if line.startswith("| `")]
    told = {name for line in lines for name in re.findall(r"`(\w+)", line.split("|")[1])}
    assert told == set(REGISTRY)


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
    assert mean <= classes / (0.5 * 0.4) * losses.unified_focal_loss(logits, labels, smooth=0) + 1e-9
    assert mean <= 2 * classes * (1 + 10) * losses.weighted_dice_loss(logits, labels, smooth=0) + 1e-9
    weights = 0.5 + 2 * torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    own = losses.weighted_dice_loss(logits, labels, weights, smooth=0)
    assert mean <= 2 * classes * weights.max() / weights.min() * own + 1e-9
    lovasz = losses.lovasz_loss(logits, labels)
    assert mean <= (1 if channels == 1 else classes) * lovasz + 1e-9


@settings(max_examples=150, deadline=None)
@worlds
def test_class_aware_jaccard_bounds_that_of_objects_and_of_the_background_by_their_weights(
    seed: int, channels: int, share: float, skill: float
) -> None:
    logits, labels = predictions(seed, channels, share, skill)
    background, *objects = missing_overlap(logits, labels)
    classes = max(2, channels)
    loss = losses.jaccard_loss(logits, labels, positive=0.8, negative=0.2, smooth=0)
    assert background <= classes / 0.2 * loss + 1e-9
    if objects:
        assert torch.stack(objects).mean() <= classes / 0.8 * loss + 1e-9


@settings(max_examples=150, deadline=None)
@worlds
def test_generalised_dice_bounds_it_by_how_common_the_class_is(
    seed: int, channels: int, share: float, skill: float
) -> None:
    logits, labels = predictions(seed, channels, share, skill)
    pixels = labels.unique(return_counts=True)[1]
    factors = 2 * max(2, channels) ** 2 * pixels / pixels.min()
    loss = losses.generalised_dice_loss(logits, labels)
    assert (missing_overlap(logits, labels) <= factors * loss + 1e-9).all()


@settings(max_examples=150, deadline=None)
@worlds
def test_pixel_losses_bound_it_only_by_the_share_of_the_class(
    seed: int, channels: int, share: float, skill: float
) -> None:
    logits, labels = predictions(seed, channels, share, skill)
    pixels = labels.numel() / labels.unique(return_counts=True)[1]
    missing = missing_overlap(logits, labels)

    def bounded(loss: Tensor, factor: float) -> bool:
        return bool((missing <= pixels * factor * loss + 1e-6).all())

    assert bounded(losses.cross_entropy_loss(logits, labels), 1 / math.log(2))
    assert bounded(losses.bce_loss(logits, labels), (1 if channels == 1 else channels / 2) / math.log(2))
    assert bounded(losses.partial_cross_entropy_loss(logits, labels), 2**2 / math.log(2))
    assert bounded(losses.border_cross_entropy_loss(logits, labels), (1 + 10) / math.log(2))
    assert bounded(losses.focal_loss(logits, labels, fg_weight=0.25), 2**2 / (0.25 * math.log(2)))
    assert bounded(losses.boundary_loss(logits, labels), channels * 4 * 32)
    assert bounded(losses.hausdorff_loss(logits, labels), channels * 2 * 32**2)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_right_but_unsure_costs_something_in_all_but_the_hinge(channels: int) -> None:
    """The other way round nothing is promised: IoU is 1, and the loss is above 0."""
    labels = (torch.arange(64).reshape(1, 8, 8) // 8) % max(2, channels)
    truth = torch.nn.functional.one_hot(labels).permute(0, 3, 1, 2).double()
    sides = 2 * (truth[:, 1:] if channels == 1 else truth) - 1
    for strength in (0.2, 1.0):
        assert (missing_overlap(strength * sides, labels) == 0).all()
        for name, loss in REGISTRY.items():
            hinge = name == "lovasz" and channels == 1
            assert loss(strength * sides, labels) > 0 or (hinge and strength == 1), name
    if channels == 1:
        assert losses.lovasz_loss(sides, labels) == 0
        assert float(losses.lovasz_loss(0.2 * sides, labels)) == pytest.approx(0.8)
        assert float(losses.cldice_loss(0.2 * sides, labels)) == pytest.approx(0.28, abs=0.005)


def test_right_but_unsure_costs_nothing_in_cldice_where_nothing_has_a_skeleton() -> None:
    labels, level = torch.zeros(1, 8, 8, dtype=torch.long), torch.full((1, 1, 8, 8), -0.2)
    assert losses.cldice_loss(level, labels) == 0
    assert all(loss(level, labels) > 0 for name, loss in REGISTRY.items() if name != "cldice")


@pytest.mark.parametrize("channels", [1, 4])
def test_the_factors_of_pixel_losses_cannot_be_smaller(channels: int) -> None:
    """Each pixel of a class of 2 in 100 is missed by a hair, and all others are sure."""
    labels = torch.zeros(1, 10, 10, dtype=torch.long)
    labels[0, 0, :2] = 1
    logits = torch.full((1, max(2, channels), 10, 10), -99.0, dtype=torch.float64)
    logits[:, 0], logits[0, :, 0, :2] = 99, -99
    logits[0, :2, 0, :2] = torch.tensor([[1e-9], [-1e-9]])
    logits = logits[:, 1:] if channels == 1 else logits
    assert missing_overlap(logits, labels)[1] == 1
    for loss, factor in (
        (losses.cross_entropy_loss(logits, labels), 1),
        (losses.bce_loss(logits, labels), 1 if channels == 1 else channels / 2),
        (losses.partial_cross_entropy_loss(logits, labels), 4),
        (losses.focal_loss(logits, labels, fg_weight=0.25), 4 / 0.25),
    ):
        assert float(50 * factor * loss / math.log(2)) == pytest.approx(1)


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
