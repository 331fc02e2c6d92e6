"""One contract for all losses, the grammar of sums, and figures of other libraries."""

from __future__ import annotations

import contextlib
import math
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gimseg import losses
from gimseg.errors import LossError
from gimseg.losses import REGISTRY, Loss, Term, parse_loss
from gimseg.torchvision_ops import declare_missing_operators

REGION = ("dice", "focal_tversky", "jaccard", "tversky")
CASES = [(name, channels) for name in REGISTRY for channels in (1, 2, 4) if not (name == "bce" and channels > 1)]
every_loss = pytest.mark.parametrize(("name", "channels"), CASES)


def batch(channels: int, *, seed: int = 0, ignored: float = 0.2, dtype: torch.dtype = torch.float32):
    """Random logits (2, channels, 5, 6) and labels (2, 5, 6) that hold every class and 255."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, channels, 5, 6, generator=generator, dtype=dtype)
    classes = max(channels, 2)
    labels = (torch.arange(60) % classes)[torch.randperm(60, generator=generator)].reshape(2, 5, 6)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return logits, labels.to(torch.uint8)


def sure(labels: Tensor, channels: int, strength: float = 30.0) -> Tensor:
    """Logits that say exactly the labels."""
    classes = torch.where(labels == 255, 0, labels).long()
    if channels == 1:
        return (2.0 * classes[:, None] - 1) * strength
    return F.one_hot(classes, channels).permute(0, 3, 1, 2) * strength


def gradient(name: str, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    loss = REGISTRY[name](logits, labels)
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


AWKWARD = {
    "empty": lambda logits, labels: (logits, torch.zeros_like(labels)),
    "full": lambda logits, labels: (logits, torch.ones_like(labels)),
    "one class, all ignored but a pixel": lambda logits, labels: (
        logits,
        torch.full_like(labels, 255).index_put_((torch.tensor(0),) * 3, torch.tensor(1, dtype=labels.dtype)),
    ),
    "all ignored": lambda logits, labels: (logits, torch.full_like(labels, 255)),
    "perfect, saturated": lambda logits, labels: (sure(labels, logits.shape[1], 1e4), labels),
    "wrong, saturated": lambda logits, labels: (-sure(labels, logits.shape[1], 1e4), labels),
    "perfect and empty": lambda logits, labels: (sure(0 * labels, logits.shape[1], 1e4), 0 * labels),
    "nothing known": lambda logits, labels: (0 * logits, labels),
}


@every_loss
@pytest.mark.parametrize("case", AWKWARD)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16 autocast"])
def test_loss_and_gradient_are_finite_on_awkward_batches(name: str, channels: int, case: str, autocast: bool) -> None:
    logits, labels = AWKWARD[case](*batch(channels))
    context = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with context:
        given_logits = logits.bfloat16() if autocast else logits.float()
        loss, slope = gradient(name, given_logits, labels)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert slope.dtype == given_logits.dtype
    assert loss.isfinite() and slope.isfinite().all()
    assert loss >= 0
    if case == "all ignored":
        assert loss == 0 and (slope == 0).all()


@every_loss
def test_autocast_does_not_change_the_loss(name: str, channels: int) -> None:
    logits, labels = batch(channels)
    logits = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        cast = REGISTRY[name](logits, labels)
    torch.testing.assert_close(cast, REGISTRY[name](logits.float(), labels), rtol=1e-6, atol=0)


@every_loss
def test_an_empty_batch_unlearns_false_alarms(name: str, channels: int) -> None:
    """The trap of region losses of one class: no object, no gradient."""
    logits = torch.ones(2, channels, 32, 32)
    logits[:, 0] = 1.0 if channels == 1 else -1.0
    labels = torch.zeros(2, 32, 32, dtype=torch.uint8)
    loss, slope = gradient(name, logits, labels)
    assert loss > 0.01
    # A mean over 2048 pixels has slopes of some 1e-4; one that counts objects alone has 1e-9 here.
    towards_objects = slope[:, 0] if channels == 1 else slope[:, 1]
    assert (towards_objects > 1e-6).all()
    for _ in range(10):
        _, slope = gradient(name, logits, labels)
        logits = logits - slope / slope.abs().max()
    remaining = torch.sigmoid(logits) if channels == 1 else 1 - torch.softmax(logits, 1)[:, :1]
    assert remaining.max() < 0.05


@every_loss
@pytest.mark.parametrize("seed", range(3))
def test_the_truth_is_the_minimum(name: str, channels: int, seed: int) -> None:
    logits, labels = batch(channels, seed=seed)
    best = REGISTRY[name](sure(labels, channels), labels)
    assert best == pytest.approx(0, abs=1e-6)
    assert best < REGISTRY[name](logits, labels) < REGISTRY[name](-sure(labels, channels), labels)
    # One pixel less sure, of every class, makes each loss worse.
    for value in range(max(channels, 2)):
        n, row, col = (labels == value).nonzero()[0]
        doubtful = sure(labels, channels).clone()
        doubtful[n, :, row, col] = 0
        assert REGISTRY[name](doubtful, labels) > best


@every_loss
def test_ignoring_a_pixel_is_removing_it(name: str, channels: int) -> None:
    logits, labels = batch(channels)
    kept = labels != 255
    alone = logits.permute(0, 2, 3, 1)[kept].T[None, :, None], labels[kept][None, None]
    torch.testing.assert_close(REGISTRY[name](logits, labels), REGISTRY[name](*alone))
    _, slope = gradient(name, logits, labels)
    assert (slope.permute(0, 2, 3, 1)[~kept] == 0).all()


@every_loss
@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -1e30])
def test_what_is_said_of_ignored_pixels_does_not_matter(name: str, channels: int, nonsense: float) -> None:
    logits, labels = batch(channels)
    expected, expected_slope = gradient(name, logits, labels)
    logits.permute(0, 2, 3, 1)[labels == 255] = nonsense
    loss, slope = gradient(name, logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(slope, expected_slope)


@every_loss
def test_the_order_of_windows_and_pixels_does_not_matter(name: str, channels: int) -> None:
    logits, labels = batch(channels)
    expected = REGISTRY[name](logits, labels)
    torch.testing.assert_close(REGISTRY[name](logits.flip(0, 3), labels.flip(0, 2)), expected)
    reshaped = logits.permute(1, 0, 2, 3).reshape(1, channels, 10, 6), labels.reshape(1, 10, 6)
    torch.testing.assert_close(REGISTRY[name](*reshaped), expected)


@every_loss
def test_the_type_of_labels_does_not_matter(name: str, channels: int) -> None:
    logits, labels = batch(channels)
    for kind in (torch.int64, torch.int32, torch.int16):
        assert REGISTRY[name](logits, labels.to(kind)) == REGISTRY[name](logits, labels)


@every_loss
def test_the_gradient_is_that_of_finite_differences(name: str, channels: int) -> None:
    logits, labels = (whole[..., :3, :3] for whole in batch(channels, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: REGISTRY[name](x, labels), logits.clone().requires_grad_())


@pytest.mark.parametrize("name", [name for name in REGISTRY if name != "bce"])
def test_one_channel_is_two_channels_with_the_background_at_zero(name: str) -> None:
    logits, labels = batch(1)
    both = torch.cat([torch.zeros_like(logits), logits], dim=1)
    torch.testing.assert_close(REGISTRY[name](logits, labels), REGISTRY[name](both, labels))


def test_classes_that_the_batch_does_not_have_are_left_out() -> None:
    logits, labels = batch(2)
    unused = torch.full((2, 1, 5, 6), -200.0)
    for name in REGISTRY:
        if name != "bce":
            wide = torch.cat([logits, unused], dim=1)
            torch.testing.assert_close(REGISTRY[name](wide, labels), REGISTRY[name](logits, labels))


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


@settings(max_examples=60, deadline=None)
@given(st.floats(0.05, 3), st.floats(0, 1), st.integers(0, 5))
def test_the_power_has_a_finite_slope_and_rises(exponent: float, base: float, decade: int) -> None:
    x = torch.tensor(base * 10.0 ** -(2 * decade), dtype=torch.float64, requires_grad=True)
    value = losses._power(x, exponent)
    value.backward()
    assert x.grad is not None and x.grad.isfinite() and x.grad >= 0
    assert abs(value.item() - x.item() ** exponent) <= 1e-6**exponent


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


TEXTS = {
    "bce": Loss((Term("bce"),)),
    "0.3*bce(pos_weight=2) + focal_tversky(exponent=0.75)": Loss(
        (Term("bce", 0.3, (("pos_weight", 2.0),)), Term("focal_tversky", 1.0, (("exponent", 0.75),)))
    ),
    " dice*2+ce( class_weights=(1, 2.5) ) ": Loss(
        (Term("dice", 2.0), Term("ce", 1.0, (("class_weights", (1.0, 2.5)),)))
    ),
    "0.5*(dice + 4*jaccard())": Loss((Term("dice", 0.5), Term("jaccard", 2.0))),
    "tversky(smooth=1e-7, fp_weight=.1)": Loss((Term("tversky", 1.0, (("fp_weight", 0.1), ("smooth", 1e-7))),)),
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_parse_and_print_back(text: str) -> None:
    loss = parse_loss(text)
    assert loss == TEXTS[text]
    assert parse_loss(str(loss)) == loss
    assert pickle.loads(pickle.dumps(loss)) == loss
    hash(loss)


numbers = st.floats(1e-12, 1e12) | st.integers(1, 100).map(float)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(REGION), numbers, numbers), min_size=1, max_size=4))
def test_any_sum_prints_back(terms: list[tuple[str, float, float]]) -> None:
    loss = Loss(tuple(Term(name, weight, (("smooth", smooth),)) for name, weight, smooth in terms))
    assert parse_loss(str(loss)) == loss


def test_a_sum_is_the_sum() -> None:
    logits, labels = batch(1)
    value = parse_loss("0.3*bce(pos_weight=2) + focal_tversky")(logits, labels)
    expected = 0.3 * losses.bce_loss(logits, labels, pos_weight=2) + losses.focal_tversky_loss(logits, labels)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("focal_tverski", "did you mean 'focal_tversky'.*there are: bce, ce"),
        ("BCE", "did you mean 'bce'"),
        ("bce(pos_wait=2)", "did you mean 'pos_weight'"),
        ("dice(exponent=2)", "no argument 'exponent'.*there are: smooth"),
        ("bce(pos_weight=-1)", "-1"),
        ("bce(pos_weight=1e999)", "finite"),
        ("bce(pos_weight=1" + 400 * "0" + ")", "finite"),
        ("1e200*(1e200*bce)", "finite"),
        ("bce(pos_weight=[1, 2])", "one number"),
        ("ce(class_weights=2)", "a list of numbers"),
        ("bce(pos_weight=True)", "True"),
        ("bce(pos_weight='2')", "'2'"),
        ("bce(2)", "no part of a loss"),
        ("bce(pos_weight=1, pos_weight=2)", "repeated|twice"),
        ("bce(**x)", "no part of a loss"),
        ("0*bce", "above 0"),
        ("bce - dice", "no part of a loss"),
        ("-1*bce", "no part of a loss"),
        ("bce*dice", "no part of a loss"),
        ("1 + bce", "no part of a loss"),
        ("2", "is a number"),
        ("", "cannot read"),
        ("bce +", "cannot read"),
        ("bce\0", "cannot read"),
        ("__import__('os').system('true')", "no part of a loss"),
        ("bce.__class__", "no part of a loss"),
        ("bce" + " + bce" * 300, "1803 characters"),
    ],
)
def test_what_is_no_loss_is_refused_with_what_to_do(text: str, words: str) -> None:
    with pytest.raises(LossError, match=words):
        parse_loss(text)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: losses.bce_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2).long()), "3.*use ce"),
        (
            lambda: losses.dice_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 3).long()),
            r"\(1, 1, 2, 2\).*\(1, 2, 3\)",
        ),
        (lambda: losses.dice_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2).long()), "needed are"),
        (lambda: losses.dice_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2)), "labels integer"),
        (lambda: losses.dice_loss(torch.zeros(1, 1, 2, 2), torch.full((1, 2, 2), 2)), "2 to 2.*know 0 to 1"),
        (lambda: losses.dice_loss(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), -1)), "from -1"),
        (lambda: losses.tversky_loss(*batch(1), fp_weight=0, fn_weight=0), "both 0"),
        (lambda: losses.focal_tversky_loss(*batch(1), exponent=-1), "exponent"),
        (lambda: losses.focal_loss(*batch(1), fg_weight=2), "0 to 1"),
        (lambda: losses.cross_entropy_loss(*batch(4), class_weights=[1, 2]), "2 numbers.*4"),
        (lambda: Loss(()), "at least one"),
    ],
)
def test_wrong_input_is_refused_with_what_was_given(call, words: str) -> None:
    with pytest.raises(LossError, match=words):
        call()
