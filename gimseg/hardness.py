"""How high the loss was where: what was hard is drawn more often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gimseg.labelled_logits import LabelledLogits
from gimseg.labelled_windows import WindowRequest
from gimseg.sampling import CELL, Survey

_MEMORY = 0.5


@dataclass(frozen=True)
class Hardness:
    """The loss of windows, on the cells of surveys.

    Args:
        planes: float64 (cells, cells) of each survey; NaN where no window was seen.
        window: side of the windows, px.
    """

    planes: tuple[np.ndarray, ...]
    window: int

    @classmethod
    def unknown(cls, surveys: Sequence[Survey], window: int) -> Hardness:
        """Nothing was seen yet."""
        return cls(tuple(np.full(item.labelled.shape, np.nan) for item in surveys), window)

    def after(self, requests: Sequence[WindowRequest], losses: Sequence[float]) -> Hardness:
        """What is known after more windows: half of what was known of their ground stays.

        Args:
            requests: windows, whose scene is the number of the survey.
            losses: of each; NaN (nothing was labelled) changes nothing.
        """
        planes = [plane.copy() for plane in self.planes]
        half = self.window // 2
        for request, loss in zip(requests, losses, strict=True):
            if not np.isfinite(loss):
                continue
            rows, cols = (
                slice(max(0, centre - half) // CELL, -(-(centre + half) // CELL))
                for centre in (request.row, request.col)
            )
            seen = planes[request.scene][rows, cols]
            seen[...] = np.where(np.isnan(seen), loss, _MEMORY * seen + (1 - _MEMORY) * loss)
        return Hardness(tuple(planes), self.window)

    def weights(self) -> tuple[np.ndarray, ...] | None:
        """The planes, with the mean where no window was seen; None where nothing was seen at all."""
        known = np.concatenate([plane[np.isfinite(plane)] for plane in self.planes])
        if not known.size:
            return None
        mean = max(float(known.mean()), 1e-9)
        return tuple(np.where(np.isnan(plane), mean, np.maximum(plane, 1e-3 * mean)) for plane in self.planes)

    def to_tensors(self) -> list[Tensor]:
        """As a checkpoint holds it."""
        return [torch.from_numpy(plane) for plane in self.planes]

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor], window: int) -> Hardness:
        """What `to_tensors` gave."""
        return cls(tuple(tensor.numpy() for tensor in tensors), window)


def window_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each window's labelled pixels, nats: (N,); NaN where none is labelled.

    Whatever the loss of the training: this one can be compared between windows.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), 255 unlabelled.

    Source: online hard example mining, Shrivastava et al. 2016, arXiv 1604.03540, which picks within a
    batch; here windows are drawn with a probability in proportion to the loss on their ground.
    """
    batch = LabelledLogits.of(logits.detach(), labels)
    known = batch.labelled.to(batch.entropy.dtype)
    return (batch.entropy * known).sum(dim=(1, 2)) / known.sum(dim=(1, 2))
