"""Losses against other libraries, and against their authors' formulas in plain numpy.

The world of the figures from MONAI: two windows with discs and a bar, and logits of waves. MONAI is
no dependency; what stands here was computed with its version 1.6.1.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt, label
from test_losses import batch, sure
from torch import Tensor
from torch.nn import functional as F

from gimseg import losses
from gimseg.distance_maps import border_weights, distances_across
from gimseg.labelled_logits import LabelledLogits, finite_power
from gimseg.losses import parse_loss
from gimseg.torchvision_ops import declare_missing_operators

close = torch.testing.assert_close


def waves() -> tuple[Tensor, Tensor]:
    """Logits (2, 1, 24, 30) and labels (2, 24, 30), without a random number."""
    rows, cols = torch.meshgrid(torch.arange(24.0), torch.arange(30.0), indexing="ij")
    discs = ((rows - 7) ** 2 + (cols - 8) ** 2 < 26) | ((rows - 15) ** 2 + (cols - 20) ** 2 < 18)
    truth = discs | ((cols - 14).abs() < 1.5)
    far = 3 * torch.sin(0.5 * rows) * torch.cos(0.4 * cols) - 1
    near = 6 * truth.flip(0) - 3 + 2 * torch.sin(rows * cols)
    return torch.stack([far, near])[:, None], torch.stack([truth.long(), truth.flip(0).long()])


def two_classes(logits: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def test_bce_and_ce_agree_on_one_channel() -> None:
    logits, labels = batch(1)
    known = labels != 255
    expected = F.binary_cross_entropy_with_logits(logits[:, 0][known], labels[known].float())
    torch.testing.assert_close(losses.bce_loss(logits, labels), expected)
    torch.testing.assert_close(losses.cross_entropy_loss(logits, labels), expected)


def test_pos_weight_and_class_weights_are_those_of_torch() -> None:
    logits, labels = batch(1)
    known = labels != 255
    expected = F.binary_cross_entropy_with_logits(
        logits[:, 0][known], labels[known].float(), pos_weight=torch.tensor(3.0)
    )
    torch.testing.assert_close(losses.bce_loss(logits, labels, pos_weight=3), expected)
    logits, labels = batch(4)
    weights = [0.5, 1, 2, 0]
    expected = F.cross_entropy(logits, labels.long(), torch.tensor(weights), ignore_index=255)
    torch.testing.assert_close(losses.cross_entropy_loss(logits, labels, class_weights=weights), expected)
    only_unweighted = torch.full_like(labels, 3)
    assert losses.cross_entropy_loss(logits, only_unweighted, class_weights=weights) == 0


@pytest.mark.parametrize("channels", [1, 4])
def test_class_weights_of_bce_are_those_of_each_pixel_in_all_questions(channels: int) -> None:
    logits, labels = batch(channels)
    known = labels != 255
    weights = torch.tensor([0.5, 3.0, 2.0, 1.0])[: max(2, channels)]
    truth = (labels[:, None] == torch.arange(channels)[:, None, None]) if channels > 1 else labels[:, None] == 1
    each = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none").mean(1)[known]
    expected = (weights[labels[known].long()] * each).sum() / weights[labels[known].long()].sum()
    by_name = parse_loss(f"bce(class_weights={weights.tolist()})")
    close(by_name(logits, labels), expected)
    if channels == 1:
        close(by_name(logits, labels), losses.cross_entropy_loss(logits, labels, class_weights=weights.tolist()))
    close(losses.bce_loss(logits, labels, class_weights=[7] * max(2, channels)), losses.bce_loss(logits, labels))


@pytest.mark.parametrize("name", ["bce", "ce"])
@pytest.mark.parametrize("channels", [1, 4])
def test_automatic_class_weights_take_the_mean_over_classes(name: str, channels: int) -> None:
    """However rare a class is, its mean counts as much as that of any other."""
    logits, _ = batch(channels)
    labels = torch.zeros(2, 5, 6, dtype=torch.long)
    labels[0, 0, :3], labels[1, :2] = max(1, channels - 1), max(1, channels - 2)
    plain, pixels = parse_loss(name), [int((labels == value).sum()) for value in range(max(2, channels))]
    each = [plain(logits, torch.where(labels == value, labels, 255)) for value in labels.unique()]
    close(parse_loss(f"{name}(class_weights=auto)").balanced(pixels)(logits, labels), torch.stack(each).mean())


def test_focal_without_focus_is_half_the_cross_entropy() -> None:
    for channels in (1, 4):
        logits, labels = batch(channels)
        torch.testing.assert_close(
            losses.focal_loss(logits, labels, fg_weight=0.5, exponent=0), losses.cross_entropy_loss(logits, labels) / 2
        )


def test_relatives_of_tversky() -> None:
    logits, labels = batch(4)
    tversky = losses.tversky_loss
    torch.testing.assert_close(
        losses.dice_loss(logits, labels, smooth=3), tversky(logits, labels, fp_weight=0.5, fn_weight=0.5, smooth=1.5)
    )
    torch.testing.assert_close(losses.jaccard_loss(logits, labels), tversky(logits, labels, fp_weight=1, fn_weight=1))
    torch.testing.assert_close(losses.focal_tversky_loss(logits, labels, exponent=1), tversky(logits, labels))
    # With hard predictions: index = 5 / (5 + 0.3·2 + 0.7·1), of the class that the second row is about.
    hard = torch.tensor([1.0] * 7 + [-1.0] + [-1.0] * 12) * 50
    truth = torch.tensor([1] * 5 + [0] * 2 + [1] + [0] * 12)
    objects, ground = 1 - 5 / (5 + 0.3 * 2 + 0.7), 1 - 12 / (12 + 0.3 + 0.7 * 2)
    value = losses.focal_tversky_loss(hard[None, None, None], truth[None, None], smooth=0)
    assert float(value) == pytest.approx((objects**0.75 + ground**0.75) / 2, rel=1e-5)


def test_misses_cost_more_than_false_alarms_by_default() -> None:
    truth = torch.tensor([1] * 20 + [0] * 180)[None, None]
    missed, alarmed = (sure(truth, 1).clone() for _ in range(2))
    missed[..., :5] = -30
    alarmed[..., 20:25] = 30
    assert losses.tversky_loss(missed, truth) > 1.5 * losses.tversky_loss(alarmed, truth)


def test_the_mean_is_over_the_classes_that_are_there() -> None:
    """An absent class has no score; what is wrongly given to it is missed by the others."""
    logits, _ = batch(4)
    labels = torch.zeros(2, 5, 6, dtype=torch.uint8)
    labels[:, 2:] = 2
    labels[0, 0] = 255
    p, known = torch.softmax(logits.double(), 1), labels != 255
    terms = []
    for value in (0, 2):
        true, false = labels == value, (labels != value) & known
        hits, alarms, misses = p[:, value][true].sum(), p[:, value][false].sum(), (1 - p[:, value][true]).sum()
        terms.append(1 - (hits + 1) / (hits + 0.3 * alarms + 0.7 * misses + 1))
    value = losses.tversky_loss(logits.double(), labels)
    torch.testing.assert_close(value, torch.stack(terms).mean())
    focal = losses.focal_tversky_loss(logits.double(), labels)
    torch.testing.assert_close(focal, (torch.stack(terms) ** 0.75).mean())


@settings(max_examples=60, deadline=None)
@given(st.floats(0.05, 3), st.floats(0, 1), st.integers(0, 5))
def test_the_power_has_a_finite_slope_and_rises(exponent: float, base: float, decade: int) -> None:
    x = torch.tensor(base * 10.0 ** -(2 * decade), dtype=torch.float64, requires_grad=True)
    value = finite_power(x, exponent)
    value.backward()
    assert x.grad is not None and x.grad.isfinite() and x.grad >= 0
    assert abs(value.item() - x.item() ** exponent) <= 1e-6**exponent


@pytest.mark.parametrize("channels", [1, 4])
def test_bce_asks_each_channel_its_own_question(channels: int) -> None:
    logits, labels = batch(channels)
    known = labels != 255
    truth = (labels[:, None] == torch.arange(channels)[:, None, None]) if channels > 1 else labels[:, None] == 1
    expected = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none")
    expected = torch.where(truth, 2 * expected, 0.5 * expected).mean(1)[known].mean()
    close(losses.bce_loss(logits, labels, pos_weight=2, neg_weight=0.5), expected)


def test_class_aware_jaccard_is_its_formula() -> None:
    logits, labels = batch(1)
    known, p = labels != 255, torch.sigmoid(logits[:, 0])

    def index(g: Tensor, q: Tensor) -> Tensor:
        hits = (q * g)[known].sum()
        return (hits + 1) / (q[known].sum() + g[known].sum() - hits + 1)

    g = (labels == 1).float()
    expected = 0.8 * (1 - index(g, p)) + 0.2 * (1 - index(1 - g, 1 - p))
    close(losses.jaccard_loss(logits, labels, positive=0.8, negative=0.2), expected)
    close(losses.jaccard_loss(logits, labels, positive=0.5, negative=0.5), losses.jaccard_loss(logits, labels))
    # Nothing there: the background's term alone, with its own weight.
    empty = torch.zeros_like(labels)
    close(losses.jaccard_loss(logits, empty, positive=0.8, negative=0.2), 0.2 * losses.jaccard_loss(logits, empty))


def test_partial_cross_entropy_is_its_formula() -> None:
    logits, labels = batch(4, ignored=0.9)
    known = labels != 255
    p = torch.softmax(logits, 1).gather(1, torch.where(known, labels, 0).long()[:, None])[:, 0][known]
    close(losses.partial_cross_entropy_loss(logits, labels), ((1 - p) ** 2 * -p.log()).mean())
    entropy = losses.cross_entropy_loss(logits, labels)
    close(losses.partial_cross_entropy_loss(logits, labels, exponent=0), entropy)


def test_unified_focal_is_the_authors_code() -> None:
    """Window by window, as theirs counts; smooth 1e-7."""
    logits, labels = waves()
    for window in range(2):
        p, g = torch.sigmoid(logits[window, 0]).numpy(), labels[window].numpy()
        p, g = np.stack([1 - p, p]).clip(1e-7, 1 - 1e-7), np.stack([1 - g, g])
        hits, misses, alarms = (p * g).sum((1, 2)), ((1 - p) * g).sum((1, 2)), (p * (1 - g)).sum((1, 2))
        index = (hits + 1e-7) / (hits + 0.6 * misses + 0.4 * alarms + 1e-7)
        tversky = ((1 - index[0]) + (1 - index[1]) ** (1 - 0.5)) / 2
        entropy = -g * np.log(p)
        focal = (0.4 * (1 - p[0]) ** 0.5 * entropy[0] + 0.6 * entropy[1]).mean()
        value = losses.unified_focal_loss(logits[window, None], labels[window, None], smooth=1e-7)
        assert float(value) == pytest.approx(0.5 * tversky + 0.5 * focal, rel=1e-4)
        # MONAI takes the mean of two planes of which one is 0 at each pixel.
        monai = (0.37350437, 0.11065156)[window]
        assert 0.5 * tversky + 0.25 * focal == pytest.approx(monai, rel=1e-4)


@pytest.mark.parametrize("channels", [1, 4])
def test_generalised_dice_is_its_formula(channels: int) -> None:
    logits, labels = batch(channels)
    known = labels != 255
    p = torch.softmax(two_classes(logits) if channels == 1 else logits, 1).permute(1, 0, 2, 3)[:, known]
    g = F.one_hot(labels[known].long(), len(p)).T
    w = 1 / g.sum(1) ** 2
    expected = 1 - 2 * (w * (p * g).sum(1)).sum() / (w * (p + g).sum(1)).sum()
    close(losses.generalised_dice_loss(logits, labels), expected)


def test_weighted_dice_is_its_formula() -> None:
    logits, labels = batch(1, ignored=0)
    w = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1))
    terms = []
    for p, g in ((torch.sigmoid(logits[:, 0]), labels), (torch.sigmoid(-logits[:, 0]), 1 - labels)):
        terms.append(1 - (2 * (w * p * g).sum() + 1) / ((w * p).sum() + (w * g).sum() + 1))
    close(losses.weighted_dice_loss(logits, labels, w), sum(terms) / 2)
    close(losses.weighted_dice_loss(logits, labels, torch.ones_like(w)), losses.dice_loss(logits, labels))
    close(losses.weighted_dice_loss(logits, labels, border=0), losses.dice_loss(logits, labels))


def test_lovasz_hinge_is_the_extension_of_the_jaccard_loss() -> None:
    """Where each error is 0 or 1 it is 1 - IoU itself."""
    labels = torch.tensor([[[1, 1, 1, 0, 0, 0, 0, 255]]])
    # Errors of the hinge: 0, 1, 0, 1, 1, 0, 0: one miss, two false alarms.
    logits = torch.tensor([[[[5.0, 0, 1, 0, 0, -1, -9, 7]]]])
    expected = ((1 - 2 / 5) + (1 - 2 / 5)) / 2
    assert float(losses.lovasz_loss(logits, labels)) == pytest.approx(expected)


def test_lovasz_keeps_its_digits_in_a_large_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 1, 256, 256, generator=generator)
    labels = (torch.rand(8, 256, 256, generator=generator) < 0.02).long()
    close(losses.lovasz_loss(logits, labels), losses.lovasz_loss(logits.double(), labels).float(), rtol=2e-5, atol=0)


def signed_distance(truth: np.ndarray) -> np.ndarray:
    """Of the authors of the boundary loss."""
    return distance_transform_edt(~truth) * ~truth - (distance_transform_edt(truth) - 1) * truth


def test_boundary_loss_is_that_of_the_paper_but_for_a_constant_and_half_a_pixel() -> None:
    logits, labels = waves()
    p, g = torch.sigmoid(logits[:, 0]).numpy(), labels.numpy() == 1
    phi = np.stack([signed_distance(window) for window in g])
    assert (p * phi).mean() == pytest.approx(0.44277278, rel=1e-5)  # MONAI
    expected = ((p - g) * (phi - 0.5)).mean()
    assert 1000 * float(losses.boundary_loss(logits, labels, cap=1000)) == pytest.approx(expected, rel=1e-5)
    capped = (np.abs(p - g) * np.minimum(np.abs(phi - 0.5) + 0.5, 4) - np.abs(p - g) * 0.5).mean() / 4
    assert float(losses.boundary_loss(logits, labels, cap=4)) == pytest.approx(capped, rel=1e-5)


def test_hausdorff_loss_is_that_of_monai_over_the_cap() -> None:
    logits, labels = waves()
    assert 1e6 * float(losses.hausdorff_loss(logits, labels, cap=1000)) == pytest.approx(2.6241479, rel=1e-5)
    # With exponent 0 each distance is 1: twice the squared error.
    squared = 2 * (torch.sigmoid(logits[:, 0]) - labels).square().mean()
    close(losses.hausdorff_loss(logits, labels, exponent=0), squared)


def test_cldice_is_that_of_the_authors() -> None:
    logits, labels = waves()
    for window, monai in enumerate((0.63762575, 0.33075732)):
        value = losses.cldice_loss(logits[window, None], labels[window, None])
        assert float(value) == pytest.approx(monai, rel=1e-5)


def test_cldice_does_not_see_the_width_of_a_line() -> None:
    labels = torch.zeros(1, 20, 40, dtype=torch.long)
    labels[:, 8:13] = 1
    thin, broken = labels.clone(), labels.clone()
    thin[:, 8], thin[:, 12] = 0, 0
    broken[:, :, 18:22] = 0
    cldice, dice = (
        [loss(sure(drawn, 1), labels) for drawn in (thin, broken)] for loss in (losses.cldice_loss, losses.dice_loss)
    )
    assert cldice[0] < 1e-3 < 0.02 < cldice[1]
    assert dice[1] < dice[0]


def test_focal_of_two_classes_is_that_of_monai() -> None:
    logits, labels = waves()
    assert float(losses.focal_loss(logits, labels)) == pytest.approx(0.09238362, rel=1e-5)
    # Its softmax form has no alpha, and a mean over two planes of which one is 0.
    assert float(losses.focal_loss(two_classes(logits), labels, fg_weight=0.5)) == pytest.approx(0.11357726, rel=1e-5)


def test_border_weights_are_the_formula_of_the_paper() -> None:
    """One distance transform for each object, the two smallest added up."""
    rng = np.random.default_rng(3)
    classes = np.zeros((60, 80), np.uint8)
    for _ in range(14):
        row, col, height, width = rng.integers(0, 50), rng.integers(0, 70), rng.integers(3, 12), rng.integers(3, 12)
        classes[row : row + height, col : col + width] = rng.integers(1, 3)
    classes[30:34, :9] = 255
    objects = []
    for value in (1, 2):
        numbers, count = label(classes == value)
        objects += [numbers == number for number in range(1, count + 1)]
    assert len(objects) > 4
    nearest = np.sort([distance_transform_edt(~mask) for mask in objects], axis=0)[:2].sum(axis=0)
    for sigma in (1.5, 5.0):
        expected = 1 + 10 * np.exp(-(nearest**2) / (2 * sigma**2)) * ~np.any(objects, axis=0)
        weights = border_weights(torch.from_numpy(classes)[None], sigma=sigma)
        np.testing.assert_allclose(weights[0].numpy(), expected, atol=1e-5)


def test_unlabelled_ground_does_not_tear_an_object_in_two() -> None:
    """A strip of two pixels through a house, or through the whole window, leaves one house."""
    house = torch.zeros(1, 20, 30, dtype=torch.long)
    house[:, 5:15, 8:22] = 1
    for strip in ((slice(5, 15), slice(14, 16)), (slice(0, 20), slice(14, 16)), (slice(9, 11), slice(0, 30))):
        torn = house.clone()
        torn[:, strip[0], strip[1]] = 255
        assert (border_weights(torn)[torn != 255] == 1).all()
        logits = torch.randn(1, 1, 20, 30, generator=torch.Generator().manual_seed(0))
        close(losses.border_cross_entropy_loss(logits, torn), losses.cross_entropy_loss(logits, torn))
        close(losses.weighted_dice_loss(logits, torn), losses.dice_loss(logits, torn))


def test_a_line_that_is_hidden_slantwise_is_one() -> None:
    """What goes on elsewhere behind unlabelled ground may still be the same."""
    slanting = torch.eye(20, dtype=torch.long) + torch.eye(20, dtype=torch.long).roll(1, 0).tril()
    slanting[8:12] = 255
    assert (border_weights(slanting[None])[0][slanting != 255] == 1).all()


def test_a_margin_of_unlabelled_ground_does_not_join_objects() -> None:
    """Two houses at the edge of what is labelled are as far apart as two at the edge of the window."""
    houses = torch.zeros(1, 12, 20, dtype=torch.long)
    houses[:, 6:, 3:8], houses[:, 6:, 11:16] = 1, 1
    weights = border_weights(houses)
    assert weights[0, 8:, 8:11].min() > 6
    close(border_weights(F.pad(houses, (4, 5, 3, 2), value=255))[:, 3:-2, 4:-5], weights)
    # Labelled ground may have a corner.
    corner = F.pad(houses, (0, 9, 0, 6), value=255)
    corner[:, :12, 20:] = 0
    close(border_weights(corner)[:, :12, :20], weights)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1.5, 5.0]))
def test_border_weights_are_never_above_those_of_what_is_hidden(seed: int, sigma: float) -> None:
    """Whatever lies under unlabelled ground, the whole truth would weigh no pixel less."""
    rng = np.random.default_rng(seed)

    def drawn() -> np.ndarray:
        classes = np.zeros((16, 18), np.uint8)
        for row, col, height, width in rng.integers((0, 0, 1, 1), (15, 17, 8, 8), (6, 4)):
            classes[row : row + height, col : col + width] = rng.integers(0, 3)
        return classes

    torn = drawn()
    for row, col, height, width in rng.integers((1, 1, 1, 1), (14, 16, 9, 9), (4, 4)):
        torn[row : min(15, row + height), col : min(17, col + width)] = 255
    known = torn != 255
    whole = np.where(known, torn, drawn())
    certain, true = (border_weights(torch.from_numpy(each)[None], sigma=sigma)[0][known] for each in (torn, whole))
    assert (certain <= true + 1e-5).all()


def test_border_cross_entropy_is_the_weighted_mean() -> None:
    logits, labels = waves()
    weights = border_weights(labels) * torch.tensor([1.0, 3.0])[labels]
    entropy = F.binary_cross_entropy_with_logits(logits[:, 0], labels.float(), reduction="none")
    value = losses.border_cross_entropy_loss(logits, labels, class_weights=[1, 3])
    close(value, (weights * entropy).sum() / weights.sum())
    close(losses.border_cross_entropy_loss(logits, labels, border=0), losses.cross_entropy_loss(logits, labels))


def test_distances_do_not_see_the_edge_of_unlabelled_ground() -> None:
    labels = torch.zeros(1, 9, 30, dtype=torch.long)
    labels[:, 2:7, 10:20] = 1
    whole = LabelledLogits.of(torch.zeros(1, 1, 9, 30), labels)
    torn = labels.clone()
    torn[:, 4:6, 13:16], torn[:, :, 26:] = 255, 255
    rest = LabelledLogits.of(torch.zeros(1, 1, 9, 30), torn)
    near = [distances_across(item.is_class, item.labelled, 50.0)[0, 1][rest.labelled[0]] for item in (whole, rest)]
    close(near[0], near[1])


class TestAgainstSegmentationModels:
    """Same figures where the conventions meet.

    They differ in: smooth (0 there, 1 here; their Dice adds it to TP, ours to 2·TP), the mean
    (theirs divides by all classes, present or not; ours by those that are present), one channel
    (theirs is the object alone), focal Tversky (the power of the mean there, the mean of the
    powers here), names (their alpha is fp_weight, beta fn_weight). Their Jaccard loss knows no
    ignored label.
    """

    @pytest.fixture
    def smp(self):
        declare_missing_operators()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from segmentation_models_pytorch import losses as smp_losses
        return smp_losses

    @pytest.mark.parametrize("smooth", [0.0, 1.0])
    def test_several_classes(self, smp, smooth: float) -> None:
        logits, labels = batch(4)
        theirs = smp.DiceLoss("multiclass", ignore_index=255, smooth=smooth)
        torch.testing.assert_close(losses.dice_loss(logits, labels, smooth=2 * smooth), theirs(logits, labels.long()))
        theirs = smp.TverskyLoss("multiclass", ignore_index=255, smooth=smooth, alpha=0.3, beta=0.7)
        torch.testing.assert_close(losses.tversky_loss(logits, labels, smooth=smooth), theirs(logits, labels.long()))
        logits, labels = batch(4, ignored=0)
        theirs = smp.JaccardLoss("multiclass", smooth=smooth)
        torch.testing.assert_close(losses.jaccard_loss(logits, labels, smooth=smooth), theirs(logits, labels.long()))

    def test_one_class_is_theirs_and_the_background(self, smp) -> None:
        logits, labels = batch(1, ignored=0)
        for name, loss in (("DiceLoss", losses.dice_loss), ("JaccardLoss", losses.jaccard_loss)):
            theirs = getattr(smp, name)("binary")
            expected = (theirs(logits, labels) + theirs(-logits, 1 - labels)) / 2
            torch.testing.assert_close(loss(logits, labels, smooth=0), expected)

    def test_focal_tversky_raises_each_class(self, smp) -> None:
        logits, labels = batch(1, ignored=0)
        theirs = smp.TverskyLoss("binary", alpha=0.3, beta=0.7, gamma=0.75)
        expected = (theirs(logits, labels) + theirs(-logits, 1 - labels)) / 2
        torch.testing.assert_close(losses.focal_tversky_loss(logits, labels, smooth=0), expected)

    def test_focal(self, smp) -> None:
        logits, labels = batch(1)
        theirs = smp.FocalLoss("binary", alpha=0.25, gamma=2.0, ignore_index=255)
        torch.testing.assert_close(losses.focal_loss(logits, labels), theirs(logits, labels))

    def test_lovasz(self, smp) -> None:
        logits, labels = batch(1)
        theirs = smp.LovaszLoss("binary", per_image=False, ignore_index=255)
        swapped = torch.where(labels == 255, labels, 1 - labels)
        close(losses.lovasz_loss(logits, labels), (theirs(logits, labels) + theirs(-logits, swapped)) / 2)
        logits, labels = batch(4)
        theirs = smp.LovaszLoss("multiclass", per_image=False, ignore_index=255)
        close(losses.lovasz_loss(logits, labels), theirs(logits, labels.long()))
