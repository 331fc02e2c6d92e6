"""Optimisers and schedules by name: torch's, and Muon."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal, for the weights of convolutions.

    Each output channel's kernel is a row of a matrix; the update is the orthogonal
    matrix nearest to the momentum's, so that rare directions move as fast as common
    ones. Weights that are no matrices (normalisation, biases) and those of a single
    output channel are left to AdamW's rule, with the same rate.

    Args:
        parameters: of the network, or groups of them as torch's optimisers take them.
        lr: rate, as AdamW's: updates are scaled to AdamW's root mean square.
        weight_decay: decoupled decay of the matrices.
        momentum: of the gradient, Nesterov's.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the scale
    0.2·√max(rows, columns): Liu et al. 2025, arXiv 2502.16982. torch.optim.Muon takes
    no convolutions.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        given: list[Any] = list(parameters)
        groups = []
        for group in given if given and isinstance(given[0], dict) else [{"params": given}]:
            weights = list(group["params"])
            matrices = [weight for weight in weights if weight.ndim > 1 and weight.shape[0] > 1]
            others = [weight for weight in weights if weight.ndim <= 1 or weight.shape[0] == 1]
            groups.append({**group, "params": matrices, "matrices": True, "weight_decay": weight_decay})
            groups.append({**group, "params": others, "matrices": False, "weight_decay": 0.0})
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; `closure`, if given, computes the loss and its gradients first."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            move = self._move_matrix if group["matrices"] else self._move_other
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    move(weight, self.state[weight], group)
        return loss

    @staticmethod
    def _move_matrix(weight: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        momentum = state.setdefault("momentum", torch.zeros_like(weight))
        momentum.lerp_(weight.grad, 1 - group["momentum"])
        direction = weight.grad.lerp(momentum, group["momentum"]).flatten(1)  # type: ignore[union-attr]
        scale = 0.2 * math.sqrt(max(direction.shape))
        weight.add_(orthogonalised(direction).reshape(weight.shape), alpha=-group["lr"] * scale)

    @staticmethod
    def _move_other(weight: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        first = state.setdefault("first", torch.zeros_like(weight))
        second = state.setdefault("second", torch.zeros_like(weight))
        state["steps"] = steps = state.get("steps", 0) + 1
        first.lerp_(weight.grad, 0.1)
        second.lerp_(weight.grad.square(), 0.001)  # type: ignore[union-attr]
        mean, deviation = first / (1 - 0.9**steps), (second / (1 - 0.999**steps)).sqrt()
        weight.add_(mean / (deviation + 1e-8), alpha=-group["lr"])


def orthogonalised(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The matrix with its singular values brought to about 1 (0.7 to 1.2) by Newton-Schulz iteration.

    Args:
        matrix: (rows, columns).
        steps: of the iteration.

    Returns:
        float32 of the same shape.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    now = (matrix if wide else matrix.T).float()
    now = now / (now.norm() + 1e-7)
    a, b, c = _NEWTON_SCHULZ
    # Each step multiplies with a polynomial of the Gram matrix, which commutes with it: all of them are done on
    # that, square and small, and the long matrix is touched twice. Those of convolutions are nine times as long.
    gram = now @ now.T
    identity = torch.eye(len(gram), device=gram.device)
    product = factor = a * identity + b * gram + c * gram @ gram
    for _ in range(steps - 1):
        gram = factor @ gram @ factor
        factor = a * identity + b * gram + c * gram @ gram
        product = factor @ product
    now = product @ now
    return now if wide else now.T


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "muon": Muon,
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": lambda parameters, **given: torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **given),
}

SCHEDULES = ("one_cycle", "cosine", "step", "plateau", "constant")


def schedule_factor(name: str, share: float, warmup: float) -> float:
    """What the highest learning rate is multiplied with.

    Args:
        name: one of ``SCHEDULES``; ``plateau`` is ``constant`` here, its steps come
            from the validation score.
        share: how much of the training is over, 0 to 1.
        warmup: share in which the rate rises linearly from a hundredth.

    Returns:
        0.0001 to 1.

    Example:
        >>> [round(schedule_factor("cosine", share, 0.1), 3) for share in (0, 0.1, 0.55, 1)]
        [0.01, 1.0, 0.5, 0.0]
        >>> [round(schedule_factor("step", share, 0), 2) for share in (0.2, 0.4, 0.7, 0.95)]
        [1.0, 0.3, 0.09, 0.03]

    Source: one_cycle rises for at least a quarter: Smith & Topin 2018, arXiv
    1708.07120; cosine: Loshchilov & Hutter 2017, arXiv 1608.03983.
    """
    share = min(max(share, 0.0), 1.0)
    warmup = max(warmup, 0.25) if name == "one_cycle" else warmup
    if share < warmup:
        return 0.01 + 0.99 * share / warmup
    rest = (share - warmup) / (1 - warmup) if warmup < 1 else 1.0
    if name in ("one_cycle", "cosine"):
        return max(1e-4, 0.5 * (1 + math.cos(math.pi * rest)))
    if name == "step":
        return float(0.3 ** sum(rest >= bound for bound in (1 / 3, 2 / 3, 0.9)))
    return 1.0
