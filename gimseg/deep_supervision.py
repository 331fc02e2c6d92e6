"""A loss of logits from several scales of one network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def deep_loss(
    loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor | list[Tensor], labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of what a network gave while training, and its finest logits in float32.

    Args:
        loss: of (logits, labels).
        outputs: logits (N, C, H, W), or several of one size, the finest scale first. Each next one weighs half.
        labels: (N, H, W), 255 unlabelled.

    Example:
        >>> import torch
        >>> sums = lambda logits, labels: logits.sum()
        >>> ones = torch.ones(1, 1, 1, 1)
        >>> float(deep_loss(sums, [ones, 4 * ones], ones)[0])
        2.0

    Source: Lee et al. 2015, arXiv 1409.5185. Weights that halve from scale to scale and add up to 1 are those of
    nnU-Net, Isensee et al. 2021, arXiv 1904.08128.
    """
    scales = outputs if isinstance(outputs, list) else [outputs]
    weights = [0.5**number for number in range(len(scales))]
    total = loss(scales[0].float(), labels)
    for weight, logits in zip(weights[1:], scales[1:], strict=True):
        total = total + weight * loss(logits.float(), labels)
    return total / sum(weights), scales[0].float()
