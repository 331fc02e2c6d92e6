"""One contract for all losses, the grammar of sums, and figures of other libraries."""

from __future__ import annotations

import contextlib
import inspect
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gimseg import losses
from gimseg.errors import LossError
from gimseg.losses import PAPER_LETTERS, REGISTRY, Loss, Ramp, Term, parse_loss

SMOOTHED = ("dice", "focal_tversky", "jaccard", "tversky")


def weighted(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss with weights that rise from class to class."""
    return lambda logits, labels: REGISTRY[name](
        logits, labels, class_weights=tuple(range(1, max(2, logits.shape[1]) + 1))
    )


LOSSES = {**REGISTRY, **{f"{name}, weighted": weighted(name) for name in ("bce", "border_ce", "ce")}}
"""What the contract is of: each loss as it is, and those that take class weights with some."""
ASKED_OF_EACH_CHANNEL = {"bce", "bce, weighted"}
"""Channels are questions of their own, that of an absent class too."""
OWN_BINARY_FORM = {*ASKED_OF_EACH_CHANNEL, "lovasz"}
"""One channel is not two channels: a sigmoid a channel; a hinge."""
GEOMETRIC = {"border_ce", "border_ce, weighted", "boundary", "cldice", "hausdorff", "weighted_dice"}
"""Where a pixel lies matters: pixels cannot be shuffled."""
CASES = [(name, channels) for name in LOSSES for channels in (1, 2, 4)]
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
    return (2.0 * F.one_hot(classes, channels).permute(0, 3, 1, 2) - 1) * strength


def gradient(name: str, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    loss = LOSSES[name](logits, labels)
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
        cast = LOSSES[name](logits, labels)
    torch.testing.assert_close(cast, LOSSES[name](logits.float(), labels), rtol=1e-6, atol=0)


@every_loss
def test_an_empty_batch_unlearns_false_alarms(name: str, channels: int) -> None:
    """The trap of region losses of one class: no object, no gradient."""
    logits = -torch.ones(2, channels, 32, 32)
    # Lines, since what has no skeleton does not exist for clDice.
    logits[:, -1, ::4] = 1.0
    alarms = logits[:, -1] > 0
    labels = torch.zeros(2, 32, 32, dtype=torch.uint8)
    loss, slope = gradient(name, logits, labels)
    assert loss > 0.01
    # A mean over 2048 pixels has slopes of some 1e-4; one that counts objects alone has 1e-9 here.
    assert (slope[:, -1][alarms] > 1e-6).all()
    if name == "cldice":
        return  # To it, ground as high as the line has no line either: it takes a region loss beside it.
    for _ in range(10):
        _, slope = gradient(name, logits, labels)
        logits = logits - slope / slope.abs().max().clamp_min(1e-9)
    remaining = torch.sigmoid(logits) if channels == 1 else torch.softmax(logits, 1)[:, -1:]
    # The hinge is content with a margin of 1.
    assert remaining[:, 0][alarms].max() < (0.3 if name in OWN_BINARY_FORM else 0.15)


@every_loss
@pytest.mark.parametrize("seed", range(3))
def test_the_truth_is_the_minimum(name: str, channels: int, seed: int) -> None:
    logits, labels = batch(channels, seed=seed)
    best = LOSSES[name](sure(labels, channels), labels)
    assert best == pytest.approx(0, abs=1e-6)
    assert best < LOSSES[name](logits, labels) < LOSSES[name](-sure(labels, channels), labels)
    if name == "cldice":
        return  # A pixel beside the skeleton is none of its business.
    # One pixel less sure, of every class, makes each loss worse.
    for value in range(max(channels, 2)):
        n, row, col = (labels == value).nonzero()[0]
        doubtful = sure(labels, channels).clone()
        doubtful[n, :, row, col] = 0
        assert LOSSES[name](doubtful, labels) > best


@every_loss
def test_ignoring_a_pixel_is_removing_it(name: str, channels: int) -> None:
    logits, labels = batch(channels)
    kept = labels != 255
    _, slope = gradient(name, logits, labels)
    assert (slope.permute(0, 2, 3, 1)[~kept] == 0).all()
    if name not in GEOMETRIC:
        alone = logits.permute(0, 2, 3, 1)[kept].T[None, :, None], labels[kept][None, None]
        torch.testing.assert_close(LOSSES[name](logits, labels), LOSSES[name](*alone))


@every_loss
def test_ignoring_a_margin_or_a_window_is_cutting_it_off(name: str, channels: int) -> None:
    """The edge of unlabelled ground is nobody's border."""
    logits, labels = batch(channels, ignored=0.1)
    expected = LOSSES[name](logits, labels)
    wide_logits, wide_labels = F.pad(logits, (3, 1, 2, 4), value=5.0), F.pad(labels, (3, 1, 2, 4), value=255)
    torch.testing.assert_close(LOSSES[name](wide_logits, wide_labels), expected)
    more = torch.cat([logits, logits.flip(2)]), torch.cat([labels, torch.full_like(labels, 255)])
    torch.testing.assert_close(LOSSES[name](*more), expected)


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
    expected = LOSSES[name](logits, labels)
    torch.testing.assert_close(LOSSES[name](logits.flip(0), labels.flip(0)), expected)
    torch.testing.assert_close(LOSSES[name](logits.flip(2, 3), labels.flip(1, 2)), expected)
    torch.testing.assert_close(LOSSES[name](logits.transpose(2, 3), labels.transpose(1, 2)), expected)
    if name in GEOMETRIC:
        return
    reshaped = logits.permute(1, 0, 2, 3).reshape(1, channels, 10, 6), labels.reshape(1, 10, 6)
    torch.testing.assert_close(LOSSES[name](*reshaped), expected)


@every_loss
def test_the_type_of_labels_does_not_matter(name: str, channels: int) -> None:
    logits, labels = batch(channels)
    for kind in (torch.int64, torch.int32, torch.int16):
        assert LOSSES[name](logits, labels.to(kind)) == LOSSES[name](logits, labels)


@every_loss
def test_the_gradient_is_that_of_finite_differences(name: str, channels: int) -> None:
    logits, labels = (whole[..., :3, :3] for whole in batch(channels, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, labels), logits.clone().requires_grad_())


@pytest.mark.parametrize("name", sorted(set(LOSSES) - OWN_BINARY_FORM))
def test_one_channel_is_two_channels_with_the_background_at_zero(name: str) -> None:
    logits, labels = batch(1)
    both = torch.cat([torch.zeros_like(logits), logits], dim=1)
    torch.testing.assert_close(LOSSES[name](logits, labels), LOSSES[name](both, labels))


def test_classes_that_the_batch_does_not_have_are_left_out() -> None:
    logits, labels = batch(2)
    unused = torch.full((2, 1, 5, 6), -200.0)
    for name in set(LOSSES) - ASKED_OF_EACH_CHANNEL:
        wide = torch.cat([logits, unused], dim=1)
        torch.testing.assert_close(LOSSES[name](wide, labels), LOSSES[name](logits, labels))


TEXTS = {
    "bce": Loss((Term("bce"),)),
    "0.3*bce(pos_weight=2) + focal_tversky(exponent=0.75)": Loss(
        (Term("bce", 0.3, (("pos_weight", 2.0),)), Term("focal_tversky", 1.0, (("exponent", 0.75),)))
    ),
    " dice*2+ce( class_weights=(1, 2.5) ) ": Loss(
        (Term("dice", 2.0), Term("ce", 1.0, (("class_weights", (1.0, 2.5)),)))
    ),
    "0.5*(dice + 4*jaccard())": Loss((Term("dice", 0.5), Term("jaccard", 2.0))),
    "0.3*focal(gamma=1.5, alpha=0.8) + 0.4*jaccard(positive=0.8, negative=0.2)": Loss(
        (
            Term("focal", 0.3, (("fg_weight", 0.8), ("exponent", 1.5))),
            Term("jaccard", 0.4, (("positive", 0.8), ("negative", 0.2))),
        )
    ),
    "unified_focal(gamma=0.3, delta=0.7)": Loss((Term("unified_focal", 1.0, (("fn_weight", 0.7), ("exponent", 0.3))),)),
    "dice + ramp(0, 1)*boundary": Loss((Term("dice"), Term("boundary", Ramp(0, 1)))),
    "2*ramp(1, .5, end=0.5)*0.5*(dice + 2*ce)": Loss(
        (Term("dice", Ramp(1, 0.5, 0, 0.5)), Term("ce", Ramp(2, 1, 0, 0.5)))
    ),
    "(dice + ce)*ramp(1, 2, begin=0.1)": Loss((Term("dice", Ramp(1, 2, 0.1)), Term("ce", Ramp(1, 2, 0.1)))),
    "tversky(smooth=1e-7, fp_weight=.1)": Loss((Term("tversky", 1.0, (("fp_weight", 0.1), ("smooth", 1e-7))),)),
}


def test_arguments_of_one_meaning_have_one_name() -> None:
    """Letters of papers are other spellings, never names of their own."""
    arguments = {name for loss in REGISTRY.values() for name in inspect.signature(loss).parameters}
    assert not arguments & {"alpha", "beta", "gamma", "delta", "lambda_"}
    for name, letters in PAPER_LETTERS.items():
        assert set(letters.values()) <= set(inspect.signature(REGISTRY[name]).parameters)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_parse_and_print_back(text: str) -> None:
    loss = parse_loss(text)
    assert loss == TEXTS[text]
    assert parse_loss(str(loss)) == loss
    assert pickle.loads(pickle.dumps(loss)) == loss
    hash(loss)


numbers = st.floats(1e-12, 1e12) | st.integers(1, 100).map(float)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SMOOTHED), numbers, numbers), min_size=1, max_size=4))
def test_any_sum_prints_back(terms: list[tuple[str, float, float]]) -> None:
    loss = Loss(tuple(Term(name, weight, (("smooth", smooth),)) for name, weight, smooth in terms))
    assert parse_loss(str(loss)) == loss


def test_a_sum_is_the_sum() -> None:
    logits, labels = batch(1)
    value = parse_loss("0.3*bce(pos_weight=2) + focal_tversky")(logits, labels)
    expected = 0.3 * losses.bce_loss(logits, labels, pos_weight=2) + losses.focal_tversky_loss(logits, labels)
    torch.testing.assert_close(value, expected)


def test_the_issued_compound_is_its_formula() -> None:
    logits, labels = batch(1)
    value = parse_loss("0.3*bce(pos_weight=2) + 0.3*focal(gamma=1.5) + 0.4*jaccard(positive=0.8, negative=0.2)")
    expected = (
        0.3 * losses.bce_loss(logits, labels, pos_weight=2)
        + 0.3 * losses.focal_loss(logits, labels, exponent=1.5)
        + 0.4 * losses.jaccard_loss(logits, labels, positive=0.8, negative=0.2)
    )
    torch.testing.assert_close(value(logits, labels), expected)


def test_a_ramp_goes_from_its_first_weight_to_its_last() -> None:
    logits, labels = batch(1)
    dice, edge = losses.dice_loss(logits, labels), losses.boundary_loss(logits, labels)
    loss = parse_loss("ramp(1, 0.5)*dice + ramp(0, 2, begin=0.25, end=0.75)*boundary")
    for progress, of_dice, of_edge in ((0, 1, 0), (0.25, 0.875, 0), (0.5, 0.75, 1), (0.75, 0.625, 2), (1, 0.5, 2)):
        torch.testing.assert_close(loss.at(progress)(logits, labels), of_dice * dice + of_edge * edge)
    # What it is called with by itself is what it ends with; a term without weight is not even computed.
    torch.testing.assert_close(loss(logits, labels), 0.5 * dice + 2 * edge)
    assert [term.name for term in loss.at(0).terms] == ["dice"]
    assert parse_loss("dice").at(0.3) == parse_loss("dice")
    assert [Ramp(1, 3).at(progress) for progress in (-1, 0, 0.5, 1, 2)] == [1, 1, 2, 3, 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_loss
def test_a_gpu_gives_the_same(name: str, channels: int) -> None:
    logits, labels = batch(channels)
    loss, slope = gradient(name, logits, labels)
    there, slope_there = gradient(name, logits.cuda(), labels.cuda())
    assert there.is_cuda and slope_there.is_cuda
    torch.testing.assert_close(there.cpu(), loss)
    torch.testing.assert_close(slope_there.cpu(), slope)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("focal_tverski", "did you mean 'focal_tversky'.*there are: bce, border_ce"),
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
        ("tversky(alpha=0.3)", "alpha weighs false alarms in Salehi.*write fp_weight"),
        ("focal_tversky(gamma=1.33)", "1/gamma.*write exponent"),
        ("focal(gamma=1, exponent=2)", "given twice"),
        ("lovasz(smooth=1)", "there are: none"),
        ("weighted_dice(pixel_weights=[1])", "no argument 'pixel_weights'"),
        ("ramp(0, 1)*bce", "all weights.*0 at 0 of the training"),
        ("ramp(0, 1, begin=0.5)*bce + ramp(1, 0, end=0.5)*ce", "0 at 0.5 of the training"),
        ("bce + ramp(0, 0)*ce", "one above 0"),
        ("ramp(1, 2, begin=0.5, end=0.5)*bce", "begin comes first"),
        ("ramp(1, 2, end=7)*bce", "0 to 1"),
        ("ramp(1)*bce", "ramp\\(first, last\\)"),
        ("ramp(1, 2, start=0)*bce", "ramp\\(first, last\\)"),
        ("ramp(1, -2)*bce", "-2"),
        ("ramp(1, 2)*ramp(1, 2)*bce", "no part of a loss"),
        ("ramp(1, 2)*(bce + ramp(1, 2)*ce)", "no part of a loss"),
        ("ramp(1, 2)", "is a ramp"),
        ("ramp", "no loss is called 'ramp'"),
        ("1 + ramp(1, 2)", "no part of a loss"),
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
        (lambda: losses.bce_loss(*batch(4), class_weights=[1, 2]), "2 numbers.*4, the background first"),
        (lambda: losses.jaccard_loss(*batch(1), positive=1), "both weights or none"),
        (lambda: losses.jaccard_loss(*batch(1), positive=0, negative=0), "both 0"),
        (lambda: losses.boundary_loss(*batch(1), cap=0.5), "at least 1"),
        (lambda: losses.unified_focal_loss(*batch(1), fn_weight=1.5), "0 to 1"),
        (lambda: losses.unified_focal_loss(*batch(1), exponent=1.5), "exponent are 0 to 1"),
        (lambda: losses.cldice_loss(*batch(1), iterations=1.5), "whole number"),
        (lambda: losses.cldice_loss(*batch(1), smooth=0), "above 0"),
        (lambda: losses.weighted_dice_loss(*batch(1), torch.ones(2, 5)), r"\(2, 5\), needed is \(2, 5, 6\)"),
        (lambda: Loss(()), "at least one"),
    ],
)
def test_wrong_input_is_refused_with_what_was_given(call, words: str) -> None:
    with pytest.raises(LossError, match=words):
        call()
