"""Laws of depthwise convolutions that learn in float32: the same network, and gradients that are no worse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gimseg.depthwise import depthwise_in_float32


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 5, 2, 2, groups=16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16)
    )


def gradients(part: nn.Module, images: torch.Tensor, *, half: bool) -> list[torch.Tensor]:
    part.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        answer = part(images)
    answer.float().square().sum().backward()
    return [weight.grad.clone() for weight in part.parameters() if weight.grad is not None]


def test_gradients_are_as_near_to_those_of_float32_as_without() -> None:
    given, images = network(), torch.randn(2, 3, 32, 32)
    exact, plain = gradients(given, images, half=False), gradients(given, images, half=True)
    with depthwise_in_float32(given):
        found = gradients(given, images, half=True)
    far = [sum(float((one - other).norm()) for one, other in zip(exact, some, strict=True)) for some in (plain, found)]
    assert 0 < far[1] <= 1.2 * far[0]


@pytest.mark.parametrize("half", [False, True])
def test_what_comes_out_has_the_type_of_what_goes_in(half: bool) -> None:
    given, kind = network(), torch.bfloat16 if half else torch.float32
    with depthwise_in_float32(given), torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert given[1](torch.ones(1, 16, 9, 9, dtype=kind)).dtype == kind
        assert given(torch.ones(1, 3, 32, 32)).dtype == kind


def test_without_autocast_nothing_changes() -> None:
    given, images = network(), torch.randn(2, 3, 32, 32)
    before = gradients(given, images, half=False)
    with depthwise_in_float32(given):
        after = gradients(given, images, half=False)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_afterwards_the_network_is_what_it_was_and_a_copy_is_its_own() -> None:
    given, images = network(), torch.randn(2, 3, 32, 32)
    known = [set(vars(part)) for part in given.modules()]
    with pytest.raises(KeyboardInterrupt), depthwise_in_float32(given):
        twin = copy.deepcopy(given)
        nn.init.zeros_(twin[1].weight)
        assert not torch.equal(twin(images), given(images))
        raise KeyboardInterrupt
    assert [set(vars(part)) for part in given.modules()] == known
