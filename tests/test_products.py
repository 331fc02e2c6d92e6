"""Laws of what is kept of each pixel: bytes on the device, shares that read back, thresholds that mean the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks_for_tests import recipe

from gimseg.errors import LegendError, PredictionError
from gimseg.legend import Legend
from gimseg.products import STEPS, Products, parse_thresholds, to_shares

ROOFS = Legend.from_dict({"classes": [{"name": "tin", "value": 3}, {"name": "tile", "value": 7}]})


def draw(channels: int, seed: int = 0, side: int = 40) -> torch.Tensor:
    """Probabilities (2, channels, side, side)."""
    logits = 3 * torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(seed))
    return logits.sigmoid() if channels == 1 else logits.softmax(dim=1)


@pytest.mark.parametrize("legend", [Legend.binary(), ROOFS])
@pytest.mark.parametrize("uncertainty", [None, "entropy", "margin"])
@pytest.mark.parametrize("probabilities", [False, True])
def test_planes_are_bytes_of_what_was_asked_for(legend: Legend, uncertainty, probabilities: bool) -> None:
    products = Products(probabilities, uncertainty)
    shares = draw(legend.n_channels)
    planes = products.encode(shares, recipe(legend=legend))
    assert planes.dtype == torch.uint8 and planes.shape == (2, len(products.planes(legend)), 40, 40)
    alone = Products().encode(shares, recipe(legend=legend))
    assert torch.equal(planes[:, :1], alone)
    if probabilities:
        kept = to_shares(planes[:, 1 : 1 + len(legend.classes)].numpy())
        assert np.abs(kept - shares[:, -len(legend.classes) :].numpy()).max() <= 0.5 / STEPS + 1e-6


@pytest.mark.parametrize("kind", ["entropy", "margin"])
@pytest.mark.parametrize("channels", [1, 3])
def test_uncertainty_is_0_where_one_is_certain_and_1_where_all_are_alike(kind, channels: int) -> None:
    legend = ROOFS if channels == 3 else Legend.binary()
    certain = torch.tensor([[1.0], [0.0]]) if channels == 1 else torch.eye(3)
    alike = torch.full((1, channels), 0.5 if channels == 1 else 1 / 3)
    shares = torch.cat([certain, alike])[:, :, None, None]
    values = Products(uncertainty=kind).encode(shares, recipe(legend=legend))[:, -1].flatten()
    assert values.tolist() == [0] * len(certain) + [STEPS]


@pytest.mark.parametrize("kind", ["entropy", "margin"])
def test_uncertainty_is_the_same_for_a_binary_legend_and_for_two_channels(kind) -> None:
    share = draw(1)
    pair = torch.cat([1 - share, share], dim=1)
    two = recipe(legend=ROOFS)
    one = Products(uncertainty=kind).encode(share, recipe())[:, -1]
    # As uncertain as two channels of three can be is less than 1 by entropy: compare the margin, and the order.
    other = Products(uncertainty=kind).encode(torch.cat([pair, torch.zeros_like(share)], dim=1), two)[:, -1]
    if kind == "margin":
        assert torch.equal(one, other)
    order = one.flatten().argsort(stable=True)
    assert (other.flatten()[order].diff() >= 0).all()


def test_without_thresholds_the_most_probable_channel_is_taken() -> None:
    shares = draw(3)
    values = torch.tensor([0, 3, 7], dtype=torch.uint8)
    assert torch.equal(Products().decide(shares, recipe(legend=ROOFS)), values[shares.argmax(dim=1)])


def test_a_threshold_means_the_same_for_one_class_and_for_several() -> None:
    share = draw(1)
    for level in (0.2, 0.5, 0.9):
        wanted = share[:, 0] > level
        assert torch.equal(Products(threshold=level).decide(share, recipe()) == 1, wanted)
        nothing = torch.zeros_like(share)
        shares = torch.cat([1 - share, share, nothing], dim=1)
        assert torch.equal(Products(threshold={"tin": level}).decide(shares, recipe(legend=ROOFS)) == 3, wanted)


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.integers(0, 9))
def test_a_class_is_taken_only_above_its_threshold_and_a_lower_one_takes_no_less(one: float, two: float, seed) -> None:
    low, high = sorted((one, two))
    shares, roofs = draw(3, seed, side=8), recipe(legend=ROOFS)
    taken = [Products(threshold={"tin": level}).decide(shares, roofs) == 3 for level in (low, high)]
    assert (shares[:, 1][taken[0]] > np.float32(low)).all()
    assert not (taken[1] & ~taken[0]).any()


def test_below_its_threshold_a_class_leaves_its_pixels_to_the_next() -> None:
    # background, tin, tile
    shares = torch.tensor([[0.1, 0.6, 0.3], [0.35, 0.6, 0.05], [0.5, 0.3, 0.2]])[:, :, None, None]
    taken = Products(threshold={"tin": 0.7}).decide(shares, recipe(legend=ROOFS)).flatten()
    assert taken.tolist() == [7, 0, 0]
    assert Products(threshold=0.25).decide(shares, recipe(legend=ROOFS)).flatten().tolist() == [3, 3, 3]


def test_the_recipes_threshold_holds_where_none_is_given() -> None:
    share = draw(1)
    assert torch.equal(Products().decide(share, recipe(threshold=0.8)) == 1, share[:, 0] > 0.8)


@pytest.mark.parametrize("legend", [Legend.binary(), ROOFS])
def test_classes_can_be_decided_from_their_probabilities_alone(legend: Legend) -> None:
    shares, products = draw(legend.n_channels)[0], Products(threshold={legend.names[0]: 0.4})
    made = products.decide_between(shares[-len(legend.classes) :].numpy(), recipe(legend=legend))
    assert np.array_equal(made, products.decide(shares[None], recipe(legend=legend))[0].numpy())


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(PredictionError, match=r"threshold 1\.5: a probability"):
        Products(threshold=1.5)
    with pytest.raises(PredictionError, match="entropy or margin"):
        Products(uncertainty="doubt")  # type: ignore[arg-type]
    with pytest.raises(LegendError, match="did you mean 'tile'"):
        Products(threshold={"tiles": 0.4}).thresholds(recipe(legend=ROOFS))
    for texts in (["0.4", "tin=0.3"], ["tin"], ["tin=much"], ["=0.4"]):
        with pytest.raises(PredictionError, match="threshold"):
            parse_thresholds(texts)
