"""Losses by name, and sums of them: ``parse_loss("focal_tversky + 0.5*bce(pos_weight=2)")``.

One convention holds for all of them:

- ``logits`` (N, C, H, W), never probabilities. C = 1 is binary and means the same
  as the two channels (0, logit); otherwise channel 0 is the background. Two losses
  have a form of their own for C = 1: ``bce`` and ``lovasz``.
- ``labels`` (N, H, W), whole numbers 0 to C - 1 (0 and 1 if C = 1); 255 is
  unlabelled and counts nowhere.
- The work is done in float32 at least, under autocast too.
- A perfect prediction has loss 0, any other more. A batch without a labelled pixel
  has loss 0 and gradient 0; what the network says of an unlabelled pixel does not
  matter, NaN included.

The losses of regions count soft hits, misses and false alarms over the whole batch,
and the background is a class like the others: patches without an object still teach
that there is none. A class that no labelled pixel of the batch has is left out of
the mean; its false alarms are the misses of the classes that are there.

``class_weights=auto`` and, for one class, ``pos_weight=auto`` make classes weigh alike;
:meth:`Loss.balanced` puts the numbers in. The weight of a term may
change while training: ``dice + ramp(0, 1)*boundary`` begins with Dice alone and ends
with both (:class:`Ramp`).
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from gimseg.class_weights import balanced_weights
from gimseg.distance_losses import boundary_loss, hausdorff_loss
from gimseg.errors import LossError
from gimseg.labelled_logits import check_options
from gimseg.overlap_losses import (
    dice_loss,
    focal_tversky_loss,
    generalised_dice_loss,
    jaccard_loss,
    lovasz_loss,
    tversky_loss,
    unified_focal_loss,
    weighted_dice_loss,
)
from gimseg.pixel_losses import (
    bce_loss,
    border_cross_entropy_loss,
    cross_entropy_loss,
    focal_loss,
    partial_cross_entropy_loss,
)
from gimseg.topology_losses import cldice_loss

_LONGEST_TEXT = 1000

AUTO = "auto"
"""Value of the arguments ``class_weights`` and ``pos_weight`` that follows from the pixels of each class."""

Option = float | tuple[float, ...] | str

REGISTRY: dict[str, Callable[..., Tensor]] = {
    "bce": bce_loss,
    "border_ce": border_cross_entropy_loss,
    "boundary": boundary_loss,
    "ce": cross_entropy_loss,
    "cldice": cldice_loss,
    "dice": dice_loss,
    "focal": focal_loss,
    "focal_tversky": focal_tversky_loss,
    "generalised_dice": generalised_dice_loss,
    "hausdorff": hausdorff_loss,
    "jaccard": jaccard_loss,
    "lovasz": lovasz_loss,
    "partial_ce": partial_cross_entropy_loss,
    "tversky": tversky_loss,
    "unified_focal": unified_focal_loss,
    "weighted_dice": weighted_dice_loss,
}
"""Loss functions by the name that :func:`parse_loss` knows."""

PAPER_LETTERS = {
    "focal": {"alpha": "fg_weight", "gamma": "exponent"},
    "hausdorff": {"alpha": "exponent"},
    "partial_ce": {"gamma": "exponent"},
    "unified_focal": {"delta": "fn_weight", "gamma": "exponent"},
}
"""Letters of the papers that :func:`parse_loss` takes for arguments; only where all papers and libraries agree."""

_AMBIGUOUS = {
    "alpha": "alpha weighs false alarms in Salehi and in the libraries, misses in Abraham & Khan: "
    "write fp_weight or fn_weight",
    "beta": "beta weighs misses in Salehi and in the libraries, false alarms in Abraham & Khan: "
    "write fn_weight or fp_weight",
    "gamma": "the power is 1/gamma in Abraham & Khan and gamma in smp: write exponent",
}


@dataclass(frozen=True)
class Ramp:
    """A weight that goes straight from one value to another while training.

    Args:
        first: weight up to `begin`, 0 or above.
        last: weight from `end` on, 0 or above.
        begin: share of the training at which it starts to change, 0 to 1.
        end: share at which it has arrived, above `begin`.

    Raises:
        LossError: a value is out of range, or both weights are 0.

    Example:
        >>> ramp = Ramp(1, 0, begin=0.2, end=0.6)
        >>> [round(ramp.at(progress), 2) for progress in (0, 0.2, 0.3, 0.6, 1)]
        [1.0, 1.0, 0.75, 0.0, 0.0]
        >>> str(ramp)
        'ramp(1, 0, begin=0.2, end=0.6)'

    Source: the rebalancing of Kervadec et al. 2019, arXiv 1812.07032.
    """

    first: float
    last: float
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        weights = (self.first, self.last)
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise LossError(f"a ramp from {self.first:g} to {self.last:g}: both must be 0 or above, one above 0")
        if not 0 <= self.begin < self.end <= 1:
            raise LossError(
                f"a ramp from begin={self.begin:g} to end={self.end:g}: these are shares of the training, "
                "0 to 1, and begin comes first"
            )
        for name in ("first", "last", "begin", "end"):
            object.__setattr__(self, name, float(getattr(self, name)))

    def __mul__(self, factor: float) -> Ramp:
        return replace(self, first=self.first * factor, last=self.last * factor)

    __rmul__ = __mul__

    def at(self, progress: float) -> float:
        """The weight when `progress` (0 to 1) of the training is over."""
        share = min(1.0, max(0.0, (progress - self.begin) / (self.end - self.begin)))
        return self.first + share * (self.last - self.first)

    def __str__(self) -> str:
        shares = [("begin", self.begin, 0.0), ("end", self.end, 1.0)]
        given = "".join(f", {name}={_format(share)}" for name, share, default in shares if share != default)
        return f"ramp({_format(self.first)}, {_format(self.last)}{given})"


Weight = float | Ramp


@dataclass(frozen=True)
class Term:
    """One loss of a sum: ``weight * name(**options)``."""

    name: str
    weight: Weight = 1.0
    options: tuple[tuple[str, Option], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in REGISTRY:
            raise LossError(f"no loss is called {self.name!r}; {_suggest(self.name, REGISTRY)}")
        if not isinstance(self.weight, Ramp):
            if not (math.isfinite(self.weight) and self.weight > 0):
                raise LossError(f"the weight of {self.name} is {self.weight:g}, it must be above 0 and finite")
            object.__setattr__(self, "weight", float(self.weight))
        object.__setattr__(self, "options", _checked_options(self.name, self.options))

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        if AUTO in dict(self.options).values():
            raise LossError(f"{self}: how often each class is there is not known; Loss.balanced says it")
        return self.weight_at(1.0) * REGISTRY[self.name](logits, labels, **dict(self.options))

    def balanced(self, pixels: Sequence[int]) -> Term:
        """The term with numbers for ``auto``; see :meth:`Loss.balanced`."""
        weights = balanced_weights(pixels)
        found: dict[str, Option] = {"class_weights": weights, "pos_weight": weights[-1] / weights[0]}
        if len(pixels) > 2 and ("pos_weight", AUTO) in self.options:
            raise LossError(f"{self}: pos_weight=auto is for one class, there are {len(pixels) - 1}: use class_weights")
        options = tuple((name, found[name] if value == AUTO else value) for name, value in self.options)
        return replace(self, options=options)

    def weight_at(self, progress: float) -> float:
        """The weight when `progress` (0 to 1) of the training is over."""
        return self.weight.at(progress) if isinstance(self.weight, Ramp) else self.weight

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={_format(value)}" for name, value in self.options)
        factor = "" if self.weight == 1 else f"{_format(self.weight)}*"
        return f"{factor}{self.name}" + (f"({arguments})" if arguments else "")


@dataclass(frozen=True)
class Loss:
    """A weighted sum of losses, called with (logits, labels); ``str`` of it parses back.

    Called as it is, it has the weights of the end of the training, so that its values
    can be compared from epoch to epoch; :meth:`at` gives the loss to learn with.

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
        # Weights are straight lines between these moments: what is above 0 at them is so in between.
        ramps = [term.weight for term in self.terms if isinstance(term.weight, Ramp)]
        moments = {0.0, 1.0} | {moment for ramp in ramps for moment in (ramp.begin, ramp.end)}
        for moment in sorted(moments):
            if not any(term.weight_at(moment) for term in self.terms):
                raise LossError(f"all weights of {self} are 0 at {moment:g} of the training: nothing would be learnt")

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        first, *others = self.terms if self._is_constant else self.at(1.0).terms
        total = first(logits, labels)
        for term in others:
            total = total + term(logits, labels)
        return total

    def balanced(self, pixels: Sequence[int]) -> Loss:
        """The loss with numbers for each ``auto``, so that all classes weigh the same in sum.

        Args:
            pixels: of the background and of each class.

        Example:
            >>> str(parse_loss("ce(class_weights=auto) + bce(pos_weight=auto)").balanced([900, 100]))
            'ce(class_weights=[0.5555555555555556, 5]) + bce(pos_weight=9)'
        """
        return Loss(tuple(term.balanced(pixels) for term in self.terms))

    @property
    def _is_constant(self) -> bool:
        return not any(isinstance(term.weight, Ramp) for term in self.terms)

    def at(self, progress: float) -> Loss:
        """The loss when `progress` (0 to 1) of the training is over: constant weights, terms of weight 0 left out.

        Example:
            >>> str(parse_loss("dice + ramp(0, 1)*boundary").at(0.25))
            'dice + 0.25*boundary'
        """
        if self._is_constant:
            return self
        weights = [(term, term.weight_at(progress)) for term in self.terms]
        return Loss(tuple(replace(term, weight=weight) for term, weight in weights if weight))

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms))


def parse_loss(text: str) -> Loss:
    """The loss that a text describes: names, optional arguments, factors, sums, ramps.

    Args:
        text: for example ``"0.3*bce(pos_weight=2) + focal_tversky(exponent=0.75)"``, or
            ``"dice + ramp(0, 1, begin=0.2)*boundary"`` with a weight that changes
            while training (:class:`Ramp`).

    Raises:
        LossError: unknown names (the nearest is named) or anything but names,
            numbers, ``+`` and ``*``.

    Example:
        >>> str(parse_loss("2*(dice + ce(class_weights=[1, 3]))"))
        '2*dice + 2*ce(class_weights=[1, 3])'
        >>> str(parse_loss("0.3*focal(alpha=0.8, gamma=1.5) + 0.4*jaccard(positive=0.8, negative=0.2)"))
        '0.3*focal(fg_weight=0.8, exponent=1.5) + 0.4*jaccard(positive=0.8, negative=0.2)'
    """
    if len(text) > _LONGEST_TEXT:
        raise LossError(f"the loss has {len(text)} characters, at most {_LONGEST_TEXT} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        raise LossError(f"cannot read the loss {text!r}: {error}; {_GRAMMAR}") from error
    parsed = _parse_sum(tree.body)
    if not isinstance(parsed, tuple):
        raise LossError(f"the loss {text!r} is a {'ramp' if isinstance(parsed, Ramp) else 'number'}; {_GRAMMAR}")
    return Loss(parsed)


_GRAMMAR = "write a sum such as 'focal_tversky + 0.5*bce(pos_weight=2)'"


def _parse_sum(node: ast.expr) -> Weight | tuple[Term, ...]:
    match node:
        case ast.Constant():
            return _parse_number(node)
        case ast.Name(id=name):
            return (Term(name),)
        case ast.Call(func=ast.Name(id="ramp"), args=weights, keywords=keywords):
            return _parse_ramp(weights, keywords)
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords) if all(k.arg for k in keywords):
            return (Term(name, options=tuple((str(k.arg), _parse_option(k.value)) for k in keywords)),)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            first, second = _parse_sum(left), _parse_sum(right)
            if isinstance(first, tuple) and isinstance(second, tuple):
                return first + second
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            product = _product(_parse_sum(left), _parse_sum(right))
            if product is not None:
                return product
    raise LossError(f"{ast.unparse(node)!r} is no part of a loss; {_GRAMMAR}")


def _parse_ramp(weights: Sequence[ast.expr], keywords: Sequence[ast.keyword]) -> Ramp:
    shares = {str(keyword.arg): _parse_number(keyword.value) for keyword in keywords}
    if len(weights) != 2 or len(shares) != len(keywords) or not set(shares) <= {"begin", "end"}:
        raise LossError("a ramp is written ramp(first, last) or ramp(first, last, begin=0.2, end=0.8)")
    first, last = map(_parse_number, weights)
    return Ramp(first, last, **shares)


def _product(one: Weight | tuple[Term, ...], other: Weight | tuple[Term, ...]) -> Weight | tuple[Term, ...] | None:
    """Factors multiply, and go to each term of a sum; None where two sums or two ramps meet."""
    if isinstance(other, float) or isinstance(one, tuple):
        one, other = other, one
    if isinstance(one, tuple) or (isinstance(one, Ramp) and isinstance(other, Ramp)):
        return None
    if not isinstance(other, tuple):
        return one * other  # type: ignore[operator]
    scaled = [(term, _product(one, term.weight)) for term in other]
    if any(weight is None for _, weight in scaled):
        return None
    return tuple(replace(term, weight=weight) for term, weight in scaled)  # type: ignore[arg-type]


def _parse_option(node: ast.expr) -> Option:
    if isinstance(node, ast.Name) and node.id == AUTO:
        return AUTO
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
    known = {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    given: dict[str, Option] = {}
    for written, value in options:
        option = PAPER_LETTERS.get(loss, {}).get(written, written)
        if option not in known:
            if written in _AMBIGUOUS and "fp_weight" in known:
                raise LossError(f"{loss}: {_AMBIGUOUS[written]}")
            raise LossError(f"{loss} has no argument {written!r}; {_suggest(written, known)}")
        if option in given:
            raise LossError(f"{option} of {loss} is given twice")
        if value == AUTO and option in ("class_weights", "pos_weight"):
            given[option] = AUTO
            continue
        takes_list = "Sequence" in str(known[option].annotation)
        if isinstance(value, str) or isinstance(value, tuple) != takes_list:
            raise LossError(
                f"{option} of {loss} is {'a list of numbers' if takes_list else 'one number'}; given is {value}"
            )
        given[option] = tuple(map(float, value)) if isinstance(value, tuple) else float(value)
    check_options(**{option: value for option, value in given.items() if not isinstance(value, str)})
    return tuple((option, given[option]) for option in known if option in given)


def _suggest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return (f"did you mean {near[0]!r}? " if near else "") + f"there are: {', '.join(known) or 'none'}"


def _format(value: Option | Ramp) -> str:
    if isinstance(value, Ramp | str):
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_format, value))}]"
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
