"""Laws of averaging: the views are a group, and a mean does not know the order of what it is taken over."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from networks_for_tests import model
from odc.geo.geobox import GeoBox

from gimseg.averaging import average, combine_models, views
from gimseg.errors import PredictionError
from gimseg.inference import Predictor
from gimseg.legend import Legend
from gimseg.models import Model
from gimseg.products import Products
from gimseg.rasters import Pixels


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "count"), [(None, 1), ("flips", 4), ("symmetries", 8)])
def test_views_differ_and_can_be_undone(name, count: int) -> None:
    image = draw(2, 3, 4, 7)
    seen = [view.of(image) for view in views(name)]
    assert len({(tuple(each.shape), tuple(each.flatten().tolist())) for each in seen}) == count
    for view, each in zip(views(name), seen, strict=True):
        assert torch.equal(view.undo(each), image)


@pytest.mark.parametrize("name", ["flips", "symmetries"])
def test_the_views_of_a_view_are_the_views(name) -> None:
    image = draw(5, 5)
    wanted = {tuple(view.of(image).flatten().tolist()) for view in views(name)}
    for outer in views(name):
        assert {tuple(view.of(outer.of(image)).flatten().tolist()) for view in views(name)} == wanted


def test_a_mean_does_not_depend_on_the_order() -> None:
    shares = [draw(50, seed=seed) ** 9 for seed in range(4)]
    means = [average(order, 4) for order in permutations(shares)]
    assert all(torch.equal(mean, means[0]) for mean in means)
    assert torch.allclose(means[0], torch.stack(shares).mean(dim=0), atol=1e-6)
    assert torch.equal(average([torch.ones(3)] * 8, 8), torch.ones(3))


class Lopsided(torch.nn.Sequential):
    """A network that tells left from right and up from down."""

    def __init__(self, bands: int = 1, channels: int = 1, seed: int = 0) -> None:
        torch.manual_seed(seed)
        convolutions = torch.nn.Conv2d(bands, 4, 5, padding=2), torch.nn.Conv2d(4, channels, 3, padding=1)
        super().__init__(convolutions[0], torch.nn.ReLU(), convolutions[1])


def probabilities(model: Model, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.recipe.probabilities(model.network(images))


@pytest.mark.parametrize("legend", [Legend.binary(), Legend.from_dict({"classes": ["tin", "tile"]})])
def test_any_network_becomes_equivariant(legend: Legend) -> None:
    """A flipped or turned image gives the same bits, flipped or turned."""
    single = model(Lopsided(channels=legend.n_channels), legend=legend)
    image, seen = draw(1, 1, 24, 24), views("symmetries")
    combined = combine_models([single], "symmetries")
    mean = probabilities(combined, image)
    for view in seen:
        assert torch.equal(view.undo(probabilities(combined, view.of(image))), mean)
    assert torch.allclose(mean, sum(view.undo(probabilities(single, view.of(image))) for view in seen) / 8, atol=1e-6)
    assert not torch.allclose(probabilities(single, image), mean, atol=1e-4)


@pytest.mark.parametrize("legend", [Legend.binary(), Legend.from_dict({"classes": ["tin", "tile"]})])
def test_several_models_are_averaged_each_with_its_own_normalisation(legend: Legend) -> None:
    normalised = [{"mean": (100.0, 90.0), "std": (20.0, 25.0)}, {"mean": (120.0, 60.0), "std": (40.0, 10.0)}]
    common = {"bands": (1, 2), "legend": legend}
    models = [
        model(Lopsided(2, legend.n_channels, seed), **common, **normalised[way])
        for seed, way in ((0, 0), (1, 1), (2, 0))
    ]
    data, valid = 255 * draw(2, 16, 16).numpy(), draw(16, 16, seed=1).numpy() > 0.2
    combined = combine_models(models)
    assert combined.recipe.bands == (1, 2, 1, 2)
    image = combined.recipe.prepare(Pixels(data[[0, 1, 0, 1]], valid))
    mean = probabilities(combined, torch.from_numpy(image)[None])
    alone = [probabilities(each, torch.from_numpy(each.recipe.prepare(Pixels(data, valid)))[None]) for each in models]
    assert torch.allclose(mean, sum(alone) / 3, atol=1e-6)
    again = combine_models(models[::-1])
    assert torch.equal(
        probabilities(again, torch.from_numpy(again.recipe.prepare(Pixels(data[[0, 1] * 2], valid)))[None]), mean
    )


def test_windows_of_averaged_models_suit_all() -> None:
    one, other = model(Lopsided(), window=32, halo=8, stride=4), model(Lopsided(seed=1), window=60, halo=12, stride=6)
    recipe = combine_models([one, other]).recipe
    assert (recipe.stride, recipe.halo, recipe.window, recipe.bands) == (12, 12, 60, (1,))


def test_one_model_that_sees_the_image_as_it_lies_stays_itself() -> None:
    single = model(Lopsided())
    assert combine_models([single]) is single


@pytest.mark.parametrize(
    "change",
    [{"resolution": 2.0}, {"dtype": "uint16"}, {"bands": (2,)}, {"legend": Legend.binary("dark")}],
    ids=lambda change: next(iter(change)),
)
def test_models_that_do_not_belong_together_are_refused(change: dict) -> None:
    with pytest.raises(PredictionError, match=r"differ in .*same images"):
        combine_models([model(Lopsided()), model(Lopsided(seed=1), **change)])


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(PredictionError, match="flips or symmetries"):
        views("all")  # type: ignore[arg-type]
    with pytest.raises(PredictionError, match="mean of 0"):
        average([], 0)


@pytest.mark.parametrize("tta", [None, "symmetries"])
def test_openvino_averages_as_torch_does(tta: str | None) -> None:
    several = [model(Lopsided(seed=seed), mean=(127.0,), std=(70.0,)) for seed in (0, 1)]
    image = np.random.default_rng(0).integers(0, 256, (1, 90, 70), np.uint8)
    grid = GeoBox.from_bbox((0, 0, 70, 90), "EPSG:32633", resolution=1)

    def shares(backend: str) -> np.ndarray:
        predictor = Predictor(several, tta=tta, backend=backend, precision="float32")
        found = predictor.predict_array(image, grid, products=Products(probabilities=True))
        return np.asarray(found.probabilities, float)

    one, other = shares("torch"), shares("openvino")
    assert np.ptp(one) > 0.1
    # They are kept in steps of 1/250.
    assert np.abs(one - other).max() <= 1 / 250 + 1e-9
