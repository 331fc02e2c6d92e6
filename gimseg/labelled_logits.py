"""Logits beside their labels, as every loss sees them: checked, in float32 at least, blind to label 255."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from gimseg.errors import LossError
from gimseg.legend import UNLABELLED

# Below it x ** exponent is replaced by its chord, whose slope is finite.
_LINEAR_BELOW = 1e-6


@dataclass(frozen=True, eq=False)
class LabelledLogits:
    """A batch of N windows and K classes, K >= 2, the background first.

    One channel means the same as the two channels (0, logit).

    Attributes:
        logits: (N, C, H, W), float32 or float64; 0 where unlabelled, whatever was given there.
        classes: (N, H, W), int64; 0 where unlabelled.
        labelled: (N, H, W), bool.

    Example:
        >>> labels = torch.tensor([[[0, 1, 255]]])
        >>> batch = LabelledLogits.of(torch.tensor([[[[-2.0, 0.0, torch.nan]]]]), labels)
        >>> batch.errors[0, 1].tolist()
        [[0.11920291930437088, 0.5, 0.5]]
        >>> batch.is_class[0, 1].tolist(), batch.present.tolist()
        ([[False, True, False]], [True, True])
    """

    logits: Tensor
    classes: Tensor
    labelled: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> LabelledLogits:
        """Checked and upcast.

        Args:
            logits: (N, C, H, W), float.
            labels: (N, H, W), whole numbers; 255 unlabelled.

        Raises:
            LossError: shapes, types or labels that do not fit.
        """
        shape = tuple(logits.shape)
        if len(shape) != 4 or tuple(labels.shape) != (shape[0], *shape[2:]):
            raise LossError(
                f"logits are {shape}, labels {tuple(labels.shape)}; "
                "needed are (N, C, H, W) and (N, H, W) of the same sizes"
            )
        if labels.is_floating_point() or not logits.is_floating_point():
            raise LossError(f"logits must be float and labels integer; given are {logits.dtype} and {labels.dtype}")
        labelled = labels != UNLABELLED
        classes = torch.where(labelled, labels, 0).long()
        _check_classes(classes, shape[1])
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        # Whatever the network says of an unlabelled pixel, NaN too, is cut off here.
        return cls(torch.where(labelled[:, None], logits, 0), classes, labelled)

    @property
    def is_binary(self) -> bool:
        """Whether the logits have one channel."""
        return self.logits.shape[1] == 1

    @cached_property
    def class_logits(self) -> Tensor:
        """(N, K, H, W)."""
        return torch.cat([torch.zeros_like(self.logits), self.logits], 1) if self.is_binary else self.logits

    @cached_property
    def probabilities(self) -> Tensor:
        """(N, K, H, W), 0 to 1; they mean nothing where unlabelled."""
        if self.is_binary:
            # Each from its own sigmoid: 1 - p would lose the digits of a sure prediction.
            return torch.cat([torch.sigmoid(-self.logits), torch.sigmoid(self.logits)], dim=1)
        return torch.softmax(self.logits, dim=1)

    @cached_property
    def entropy(self) -> Tensor:
        """Cross-entropy -log p of the true class, nats, (N, H, W)."""
        return F.cross_entropy(self.class_logits, self.classes, reduction="none")

    @cached_property
    def is_class(self) -> Tensor:
        """Where a labelled pixel is of the class: bool (N, K, H, W)."""
        index = torch.arange(self.class_logits.shape[1], device=self.logits.device)[:, None, None]
        return (self.classes[:, None] == index) & self.labelled[:, None]

    @cached_property
    def errors(self) -> Tensor:
        """Distance of p from g of each class, 0 to 1, (N, K, H, W); it means nothing where unlabelled."""
        return torch.where(self.is_class, 1 - self.probabilities, self.probabilities)

    @cached_property
    def present(self) -> Tensor:
        """Which classes some pixel of the batch is labelled with: bool (K,)."""
        return self.is_class.any(dim=3).any(dim=2).any(dim=0)

    def mean(self, losses: Tensor, weights: Tensor | None = None) -> Tensor:
        """Weighted mean of (N, H, W) over labelled pixels; 0 with gradient 0 where all weights are 0."""
        weights = self.labelled.to(losses.dtype) if weights is None else torch.where(self.labelled, weights, 0)
        losses = torch.where(weights > 0, losses, 0)
        return (losses * weights).sum() / _not_zero(weights.sum())

    def mean_of_classes(self, losses: Tensor) -> Tensor:
        """Mean of (K,) over the classes that are present; 0 with gradient 0 where none is."""
        return torch.where(self.present, losses, 0).sum() / self.present.sum().clamp_min(1)


def _check_classes(classes: Tensor, channels: int) -> None:
    if not classes.numel():
        return
    low, high = (int(value) for value in classes.aminmax())
    highest = max(channels, 2) - 1
    if low < 0 or high > highest:
        raise LossError(
            f"labels go from {low} to {high}, logits of {channels} channels know 0 to {highest} "
            f"(and {UNLABELLED}, unlabelled)"
        )


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 with a finite slope where both are 0."""
    return part / _not_zero(whole)


def _not_zero(value: Tensor) -> Tensor:
    return value.clamp_min(torch.finfo(value.dtype).tiny)


def finite_power(base: Tensor, exponent: float) -> Tensor:
    """base ** exponent, base >= 0, with a finite slope at 0 for any exponent.

    Example:
        >>> finite_power(torch.tensor([0.0, 0.25]), 0.5)
        tensor([0.0000, 0.5000])
    """
    chord = base * _LINEAR_BELOW ** (exponent - 1)
    return torch.where(base > _LINEAR_BELOW, base.clamp_min(_LINEAR_BELOW) ** exponent, chord)


def check_options(**options: float | Sequence[float]) -> None:
    """Refuse arguments of a loss that are negative or not finite.

    Raises:
        LossError: with the name and what was given.
    """
    for name, value in options.items():
        numbers = (value,) if isinstance(value, (int, float)) else value
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise LossError(f"{name} is {value}, it must be 0 or above and finite")
