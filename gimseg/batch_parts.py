"""Parts of a batch that weigh alike in the loss, however much of each is labelled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gimseg.legend import UNLABELLED


def parts_alike(loss: Callable[[Tensor, Tensor], Tensor], parts: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss that is the mean of the losses of the parts of a batch; a part without any label is left out.

    A loss is a mean over all labelled pixels: a window with one click drowns in it beside
    a window that is labelled whole.

    Args:
        loss: of (logits, labels).
        parts: (N,), the number of each window's part; None: all are of one part.

    Returns:
        of logits (N, C, H, W) and labels (N, H, W), 255 unlabelled.

    Example:
        >>> truth = torch.tensor([[[1.0, 1.0]], [[0.0, 255.0]]])
        >>> mean = lambda logits, labels: labels[labels < 255].mean()
        >>> [round(float(parts_alike(mean, parts)(truth[:, None], truth)), 2) for parts in (None, torch.arange(2))]
        [0.67, 0.5]
    """
    if parts is None or bool((parts == parts[0]).all()):
        return loss

    def mean(logits: Tensor, labels: Tensor) -> Tensor:
        known = parts[(labels != UNLABELLED).flatten(1).any(1)].unique()
        if len(known) < 2:
            return loss(logits, labels)
        return torch.stack([loss(logits[parts == part], labels[parts == part]) for part in known]).mean()

    return mean
