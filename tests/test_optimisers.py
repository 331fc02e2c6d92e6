"""Laws of the optimisers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from gimseg.optimisers import OPTIMISERS, Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 8), (16, 200), (200, 16), (2, 9)])
def test_singular_values_are_brought_to_about_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 37
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert values.max() < 1.3 and values.min() > 0.3
    # Where the matrix points, its orthogonal one points: no direction is turned round.
    assert (orthogonalised(matrix) * matrix).sum() > 0


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_each_learns_a_filter(name: str) -> None:
    torch.manual_seed(0)
    teacher, pupil = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for weight in teacher.parameters():
        weight.requires_grad_(False)
    optimiser = OPTIMISERS[name](pupil.parameters(), lr=0.02, weight_decay=1e-4)
    losses = []
    for _ in range(120):
        images = torch.randn(8, 3, 12, 12)
        truth = teacher(images)
        loss = nn.functional.mse_loss(pupil(images), (truth - truth.mean()) / truth.std())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.35 * losses[0]


def test_muon_is_restored_from_its_state() -> None:
    def steps(network: nn.Module, optimiser: torch.optim.Optimizer, count: int) -> None:
        for number in range(count):
            optimiser.zero_grad()
            network(torch.full((1, 2, 5, 5), float(number + 1))).square().mean().backward()
            optimiser.step()

    torch.manual_seed(0)
    one = nn.Conv2d(2, 3, 3)
    first = Muon(one.parameters(), lr=0.01)
    steps(one, first, 3)
    two = nn.Conv2d(2, 3, 3)
    two.load_state_dict(one.state_dict())
    second = Muon(two.parameters(), lr=0.01)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for network, optimiser in ((one, first), (two, second)):
        steps(network, optimiser, 2)
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


@pytest.mark.parametrize("shape", [(64, 576), (48, 48), (64, 27)])
@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-6])
def test_the_iteration_on_the_gram_matrix_is_that_on_the_matrix(shape: tuple[int, int], smallest: float) -> None:
    left, values, right = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), False)
    matrix = left @ torch.diag(torch.logspace(0, math.log10(smallest), len(values))) @ right
    now = matrix.double() / matrix.norm()
    for _ in range(5):
        gram = now @ now.T
        now = 3.4445 * now + (-4.7750 * gram + 2.0315 * gram @ gram) @ now
    assert (orthogonalised(matrix) - now).norm() / now.norm() < 2e-3
