"""Windows of a prediction: large enough to be cheap, within memory, and the network can take them."""

from __future__ import annotations

import pytest
import torch
from networks_for_tests import Reach, model

from gimseg.errors import PredictionError
from gimseg.models import Model, build_network
from gimseg.networks import network_stride
from gimseg.window_choice import COST, choose_lattice, choose_side, device_memory, memory_per_pixel, shared_halo

CPU = torch.device("cpu")


def unet(halo: int, **changes: object) -> Model:
    network = build_network("Unet", "resnet18").eval()
    given = {"bands": (1, 2, 3), "mean": (0.0,) * 3, "std": (1.0,) * 3, "stride": 32, "window": 256, "halo": halo}
    return model(network, **(given | changes))


@pytest.mark.parametrize("halo", [0, 32, 64, 96])
@pytest.mark.parametrize("shape", [(3000, 5605), (40_000, 40_000), (200_000, 4331), (1700, 1500)])
def test_the_halo_costs_no_more_than_a_third_whatever_the_size_of_the_raster(
    halo: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gimseg.window_choice.device_memory", lambda device: 64 * 2**30)
    lattice = choose_lattice(shape, unet(halo), CPU)
    assert lattice.cost < 1.35
    side = choose_side(unet(halo), CPU)
    assert max(lattice.window) <= side
    assert (side / (side - 2 * halo)) ** 2 <= COST


def test_windows_are_smaller_where_memory_is(monkeypatch: pytest.MonkeyPatch) -> None:
    given = unet(96)
    sides = []
    for gigabytes in (4, 8, 64):
        monkeypatch.setattr("gimseg.window_choice.device_memory", lambda device, size=gigabytes: size * 2**30)
        sides.append(choose_side(given, CPU))
        assert sides[-1] ** 2 * memory_per_pixel(given) < size_of_share(gigabytes) * 1.1
    assert sides == sorted(set(sides))
    monkeypatch.setattr("gimseg.window_choice.device_memory", lambda device: 1)
    assert choose_side(given, CPU) == 256


def size_of_share(gigabytes: int) -> float:
    return gigabytes * 2**30 / 8


def test_memory_is_what_is_alive_at_once() -> None:
    # A layer has its input and its output: two maps of 4 bytes a pixel, and the image outside of it.
    assert 8 <= memory_per_pixel(model(Reach(3), window=64, stride=1)) <= 12
    assert 300 < memory_per_pixel(unet(64)) < 500
    assert device_memory(CPU) > 2**30


def test_blended_windows_are_those_of_the_training() -> None:
    lattice = choose_lattice((1000, 200), unet(64, blend=True), CPU)
    assert lattice.blend
    assert lattice.window == (256, 224)
    assert 2 * lattice.halo == 64
    assert shared_halo(256, 32, 32) == 32
    assert not choose_lattice((1000, 200), unet(64, blend=True), CPU, blend=False).blend


def test_a_raster_too_small_for_the_network_is_padded_to_what_it_takes() -> None:
    # Pools to a fixed grid of the window, and cannot take a tiny one.
    network = build_network("PSPNet", "resnet18").eval()
    given = unet(0)
    given = Model(network, given.recipe.__class__(**{**vars(given.recipe), "stride": network_stride(network)}))
    lattice = choose_lattice((5, 700), given, CPU)
    assert lattice.counts == (1, 1)
    assert lattice.window[0] >= 8


def test_windows_that_cannot_be_are_refused() -> None:
    with pytest.raises(PredictionError, match="window of 100 px: a multiple of the network's stride, 32 px"):
        choose_lattice((1000, 1000), unet(32), CPU, window=100)
    with pytest.raises(PredictionError, match="above twice its halo of 64 px"):
        choose_lattice((1000, 1000), unet(64), CPU, window=128)
