"""Losses by name, and sums of them: ``parse_loss("focal_tversky + 0.5*bce(pos_weight=2)")``.

One convention holds for all of them:

- ``logits`` (N, C, H, W), never probabilities. C = 1 is binary and means the same
  as the two channels (0, logit); otherwise channel 0 is the background.
- ``labels`` (N, H, W), whole numbers 0 to C - 1 (0 and 1 if C = 1); 255 is
  unlabelled and counts nowhere.
- The work is done in float32 at least, under autocast too.
- A batch without a labelled pixel has loss 0 and gradient 0; what the network says
  of an unlabelled pixel does not matter, NaN included.

The region losses (Tversky, Dice, Jaccard) count soft hits, misses and false alarms
over the whole batch, and the background is a class like the others: patches
without an object still teach that there is none. A class that no labelled pixel
of the batch has is left out of the mean; its false alarms are the misses of the
classes that are there.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gimseg.errors import LossError
from gimseg.legend import UNLABELLED

# Below it x ** exponent is replaced by its chord, whose slope is finite.
_LINEAR_BELOW = 1e-6
_LONGEST_TEXT = 1000

Option = float | tuple[float, ...]


class _Counts(NamedTuple):
    """Soft counts of each class over a batch, px, each of shape (classes,)."""

    hits: Tensor
    false_alarms: Tensor
    misses: Tensor
    present: Tensor


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

    Source: Abraham & Khan 2018, arXiv 1810.07842.
    """
    _check_options(fp_weight=fp_weight, fn_weight=fn_weight, exponent=exponent, smooth=smooth)
    if fp_weight + fn_weight == 0:
        raise LossError("fp_weight and fn_weight are both 0: nothing would be learnt; one of them must be above 0")
    counts = _soft_counts(logits, labels)
    mistakes = fp_weight * counts.false_alarms + fn_weight * counts.misses
    # The same as 1 - index, without the cancellation that loses the last digits of a good prediction.
    deficit = mistakes / (counts.hits + mistakes + smooth).clamp_min(torch.finfo(mistakes.dtype).tiny)
    terms = _power(deficit, exponent) * counts.present
    return terms.sum() / counts.present.sum().clamp_min(1)


def tversky_loss(
    logits: Tensor, labels: Tensor, *, fp_weight: float = 0.3, fn_weight: float = 0.7, smooth: float = 1.0
) -> Tensor:
    """Tversky loss of logits: mean over classes of 1 - (TP + s) / (TP + fp·FP + fn·FN + s).

    Arguments as of :func:`focal_tversky_loss`.

    Source: Salehi et al. 2017, arXiv 1706.05721; alpha there is fp_weight, beta fn_weight.
    """
    return focal_tversky_loss(logits, labels, fp_weight=fp_weight, fn_weight=fn_weight, exponent=1.0, smooth=smooth)


def dice_loss(logits: Tensor, labels: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Dice loss of logits: mean over classes of 1 - (2·TP + s) / (2·TP + FP + FN + s)."""
    return tversky_loss(logits, labels, fp_weight=0.5, fn_weight=0.5, smooth=smooth / 2)


def jaccard_loss(logits: Tensor, labels: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Jaccard (IoU) loss of logits: mean over classes of 1 - (TP + s) / (TP + FP + FN + s)."""
    return tversky_loss(logits, labels, fp_weight=1.0, fn_weight=1.0, smooth=smooth)


def bce_loss(logits: Tensor, labels: Tensor, *, pos_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy of logits (N, 1, H, W): mean over labelled pixels, in nats.

    Args:
        logits: (N, 1, H, W).
        labels: (N, H, W) of 0, 1 and 255 (unlabelled).
        pos_weight: factor on the loss of object pixels.

    Raises:
        LossError: logits of several channels (that is ``ce``), or wrong arguments.
    """
    if logits.ndim == 4 and logits.shape[1] != 1:
        raise LossError(
            f"bce is for one channel, the logits have {logits.shape[1]}; "
            "for several classes use ce (cross_entropy_loss)"
        )
    _check_options(pos_weight=pos_weight)
    logits, classes, labelled = _prepare(logits, labels)
    losses = F.binary_cross_entropy_with_logits(
        logits[:, 0],
        classes.to(logits.dtype),
        pos_weight=torch.tensor(float(pos_weight), dtype=logits.dtype, device=logits.device),
        reduction="none",
    )
    return _mean(losses, labelled.to(logits.dtype))


def cross_entropy_loss(logits: Tensor, labels: Tensor, *, class_weights: Sequence[float] | None = None) -> Tensor:
    """Cross-entropy of logits: mean over labelled pixels, in nats; one channel gives the same as ``bce``.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), 255 unlabelled.
        class_weights: one a class, background first (two if C = 1). The mean is
            the weighted one: divided by the weights of the labelled pixels.

    Raises:
        LossError: shapes, labels or weights that do not fit.
    """
    logits, classes, labelled = _prepare(logits, labels)
    logits = _two_channels(logits)
    weights = labelled.to(logits.dtype)
    if class_weights is not None:
        _check_options(class_weights=tuple(class_weights))
        if len(class_weights) != logits.shape[1]:
            raise LossError(
                f"class_weights has {len(class_weights)} numbers, needed is one a class: {logits.shape[1]}, "
                "the background first"
            )
        weights = weights * torch.tensor(tuple(class_weights), dtype=logits.dtype, device=logits.device)[classes]
    return _mean(F.cross_entropy(logits, classes, reduction="none"), weights)


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

    Source: Lin et al. 2017, arXiv 1708.02002.
    """
    _check_options(fg_weight=fg_weight, exponent=exponent)
    if fg_weight > 1:
        raise LossError(f"fg_weight is a share, 0 to 1; given is {fg_weight:g}")
    logits, classes, labelled = _prepare(logits, labels)
    entropy = F.cross_entropy(_two_channels(logits), classes, reduction="none")
    weights = (1 - fg_weight) + (2 * fg_weight - 1) * (classes > 0).to(logits.dtype)
    losses = weights * _power(-torch.expm1(-entropy), exponent) * entropy
    return _mean(losses, labelled.to(logits.dtype))


REGISTRY: dict[str, Callable[..., Tensor]] = {
    "bce": bce_loss,
    "ce": cross_entropy_loss,
    "dice": dice_loss,
    "focal": focal_loss,
    "focal_tversky": focal_tversky_loss,
    "jaccard": jaccard_loss,
    "tversky": tversky_loss,
}
"""Loss functions by the name that :func:`parse_loss` knows."""


@dataclass(frozen=True)
class Term:
    """One loss of a sum: ``weight * name(**options)``."""

    name: str
    weight: float = 1.0
    options: tuple[tuple[str, Option], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in REGISTRY:
            raise LossError(f"no loss is called {self.name!r}; {_suggest(self.name, REGISTRY)}")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise LossError(f"the weight of {self.name} is {self.weight:g}, it must be above 0 and finite")
        object.__setattr__(self, "weight", float(self.weight))
        object.__setattr__(self, "options", _checked_options(self.name, self.options))

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.weight * REGISTRY[self.name](logits, labels, **dict(self.options))

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={_format(value)}" for name, value in self.options)
        factor = "" if self.weight == 1 else f"{_format(self.weight)}*"
        return f"{factor}{self.name}" + (f"({arguments})" if arguments else "")


@dataclass(frozen=True)
class Loss:
    """A weighted sum of losses, called with (logits, labels); ``str`` of it parses back.

    Example:
        >>> loss = Loss((Term("focal_tversky"), Term("bce", 0.5, (("pos_weight", 2.0),))))
        >>> str(loss)
        'focal_tversky + 0.5*bce(pos_weight=2)'
        >>> parse_loss(str(loss)) == loss
        True
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise LossError(f"a loss needs at least one term; there are: {', '.join(REGISTRY)}")

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        total = self.terms[0](logits, labels)
        for term in self.terms[1:]:
            total = total + term(logits, labels)
        return total

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms))


def parse_loss(text: str) -> Loss:
    """The loss that a text describes: names, optional arguments, factors, sums.

    Args:
        text: for example ``"0.3*bce(pos_weight=2) + focal_tversky(exponent=0.75)"``.

    Raises:
        LossError: unknown names (the nearest is named) or anything but names,
            numbers, ``+`` and ``*``.

    Example:
        >>> str(parse_loss("2*(dice + ce(class_weights=[1, 3]))"))
        '2*dice + 2*ce(class_weights=[1, 3])'
    """
    if len(text) > _LONGEST_TEXT:
        raise LossError(f"the loss has {len(text)} characters, at most {_LONGEST_TEXT} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        raise LossError(f"cannot read the loss {text!r}: {error}; {_GRAMMAR}") from error
    parsed = _parse_sum(tree.body)
    if isinstance(parsed, float):
        raise LossError(f"the loss {text!r} is a number; {_GRAMMAR}")
    return Loss(parsed)


_GRAMMAR = "write a sum such as 'focal_tversky + 0.5*bce(pos_weight=2)'"


def _parse_sum(node: ast.expr) -> float | tuple[Term, ...]:
    match node:
        case ast.Constant():
            return _parse_number(node)
        case ast.Name(id=name):
            return (Term(name),)
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords) if all(k.arg for k in keywords):
            return (Term(name, options=tuple((str(k.arg), _parse_option(k.value)) for k in keywords)),)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            first, second = _parse_sum(left), _parse_sum(right)
            if isinstance(first, tuple) and isinstance(second, tuple):
                return first + second
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            first, second = _parse_sum(left), _parse_sum(right)
            if isinstance(first, float):
                return first * second if isinstance(second, float) else _scaled(second, first)
            if isinstance(second, float):
                return _scaled(first, second)
    raise LossError(f"{ast.unparse(node)!r} is no part of a loss; {_GRAMMAR}")


def _scaled(terms: tuple[Term, ...], factor: float) -> tuple[Term, ...]:
    return tuple(Term(term.name, term.weight * factor, term.options) for term in terms)


def _parse_option(node: ast.expr) -> Option:
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_parse_number(element) for element in node.elts)
    return _parse_number(node)


def _parse_number(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and value < 1e300:
            return float(value)
    raise LossError(f"{ast.unparse(node)!r} is no finite number of 0 or above; {_GRAMMAR}")


def _checked_options(loss: str, options: Sequence[tuple[str, Option]]) -> tuple[tuple[str, Option], ...]:
    """The options as floats, in the order of the signature, so that two spellings of one loss are equal."""
    parameters = inspect.signature(REGISTRY[loss]).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    given: dict[str, Option] = {}
    for option, value in options:
        if option not in known:
            raise LossError(f"{loss} has no argument {option!r}; {_suggest(option, known)}")
        if option in given:
            raise LossError(f"{option} of {loss} is given twice")
        # A default of None stands for a list of numbers.
        if isinstance(value, tuple) == isinstance(known[option], float):
            kind = "a list of numbers" if known[option] is None else "one number"
            raise LossError(f"{option} of {loss} is {kind}; given is {value}")
        given[option] = tuple(map(float, value)) if isinstance(value, tuple) else float(value)
    _check_options(**given)
    return tuple((option, given[option]) for option in known if option in given)


def _suggest(name: str, known: dict) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return (f"did you mean {near[0]!r}? " if near else "") + f"there are: {', '.join(known)}"


def _format(value: Option) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_format, value))}]"
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _check_options(**options: Option) -> None:
    for name, value in options.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise LossError(f"{name} is {value}, it must be 0 or above and finite")


def _prepare(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Checked and upcast: logits, labels as int64 with 255 made 0, which pixels are labelled."""
    shape = tuple(logits.shape)
    if len(shape) != 4 or tuple(labels.shape) != (shape[0], *shape[2:]):
        raise LossError(
            f"logits are {shape}, labels {tuple(labels.shape)}; needed are (N, C, H, W) and (N, H, W) of the same sizes"
        )
    if labels.is_floating_point() or not logits.is_floating_point():
        raise LossError(f"logits must be float and labels integer; given are {logits.dtype} and {labels.dtype}")
    labelled = labels != UNLABELLED
    classes = torch.where(labelled, labels, 0).long()
    highest = max(shape[1], 2) - 1
    if classes.numel():
        low, high = (int(value) for value in classes.aminmax())
        if low < 0 or high > highest:
            raise LossError(
                f"labels go from {low} to {high}, logits of {shape[1]} channels know 0 to {highest} "
                f"(and {UNLABELLED}, unlabelled)"
            )
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    # Whatever the network says of an unlabelled pixel, NaN too, is cut off here.
    return torch.where(labelled[:, None], logits, 0), classes, labelled


def _two_channels(logits: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def _soft_counts(logits: Tensor, labels: Tensor) -> _Counts:
    logits, classes, labelled = _prepare(logits, labels)
    if logits.shape[1] == 1:
        probabilities = torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1)
    else:
        probabilities = torch.softmax(logits, dim=1)
    index = torch.arange(probabilities.shape[1], device=logits.device)[:, None, None]
    valid = labelled[:, None]
    is_class = (classes[:, None] == index) & valid
    over = (0, 2, 3)
    hits = torch.where(is_class, probabilities, 0).sum(over)
    return _Counts(
        hits=hits,
        false_alarms=torch.where(valid & ~is_class, probabilities, 0).sum(over),
        misses=torch.where(is_class, 1 - probabilities, 0).sum(over),
        present=is_class.any(dim=3).any(dim=2).any(dim=0).to(hits.dtype),
    )


def _power(base: Tensor, exponent: float) -> Tensor:
    """base ** exponent, base >= 0, with a finite slope at 0 for any exponent."""
    chord = base * _LINEAR_BELOW ** (exponent - 1)
    return torch.where(base > _LINEAR_BELOW, base.clamp_min(_LINEAR_BELOW) ** exponent, chord)


def _mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean, 0 with gradient 0 where all weights are 0."""
    losses = torch.where(weights > 0, losses, 0)
    return (losses * weights).sum() / weights.sum().clamp_min(torch.finfo(losses.dtype).tiny)
