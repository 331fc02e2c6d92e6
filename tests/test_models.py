"""Recipe and model: checked, written whole, read back, never unpickled."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks_for_tests import Brightness, Reach, recipe
from safetensors.torch import load_file, save_file

from gimseg.errors import ModelError, OutputError
from gimseg.legend import Legend, LegendClass
from gimseg.models import Model, Recipe, build_network, check_model_output, measure_reach
from gimseg.rasters import Pixels
from gimseg.reach import measure_border_flips

ARCHITECTURE = {
    "name": "Unet",
    "encoder": "mobilenet_v2",
    "options": {"encoder_depth": 3, "decoder_channels": [16, 16, 8]},
}


def small_model(**changes: object) -> Model:
    torch.manual_seed(0)
    network = build_network("Unet", "mobilenet_v2", bands=1, channels=1, **ARCHITECTURE["options"])
    return Model(
        network.eval(), recipe(stride=8), ARCHITECTURE, {"name": "Roofs", "data": {"zanzibar": "3f"}}, {"iou": 0.612}
    )


def test_a_recipe_reads_back_from_json() -> None:
    legend = Legend((LegendClass("tin", 3, "#112233", ("1", "2")), LegendClass("tile", 7, "#445566")), field="roof")
    one = recipe(legend=legend, threshold=0.4, dtype="uint16", mean=(0.1,), std=(1 / 3,))
    assert Recipe.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bands": (0,)}, "from 1"),
        ({"mean": (1.0, 2.0)}, "1 bands, 2 means, 1 deviations"),
        ({"std": (0.0,)}, "band 1: mean 0.0, standard deviation 0.0"),
        ({"std": (float("nan"),)}, "standard deviation nan"),
        ({"window": 30}, "window of 30 px: it must be a multiple of the stride, 4 px"),
        ({"halo": 16}, "less than half of the window, 32 px"),
        ({"halo": 6}, "a multiple of the stride"),
        ({"threshold": 1.0}, "threshold 1.0"),
        ({"resolution": 0.0}, "resolution 0.0"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        recipe(**changes)


def test_a_recipe_with_unknown_or_missing_keys_is_refused() -> None:
    table = recipe().to_dict()
    with pytest.raises(ModelError, match="cannot be read"):
        Recipe.from_dict({**table, "windw": 3})
    del table["legend"]
    with pytest.raises(ModelError, match="legend"):
        Recipe.from_dict(table)


def test_prepared_pixels_are_normalised_and_invalid_ones_are_the_mean() -> None:
    valid = np.array([[True, False]])
    pixels = Pixels(np.array([[[10, 0]], [[7, 0]]], np.float32), valid)
    image = recipe(bands=(1, 2), mean=(4.0, 5.0), std=(2.0, 4.0)).prepare(pixels)
    assert image.dtype == np.float32
    assert image.tolist() == [[[3.0, 0.0]], [[0.5, 0.0]]]
    assert pixels.data[0, 0, 0] == 10


def test_classes_are_the_values_of_the_legend() -> None:
    logits = torch.tensor([[[-1.0, 0.0, 0.1]]])
    assert recipe().classify(logits).tolist() == [[0, 0, 1]]
    assert recipe(threshold=0.2).classify(logits).tolist() == [[1, 1, 1]]
    sparse = Legend((LegendClass("tin", 3, "#112233"), LegendClass("tile", 7, "#445566")))
    several = recipe(legend=sparse)
    planes = np.array([[[9.0, 0, 0]], [[0, 9.0, 0]], [[0, 0, 9.0]]])
    assert several.classify(planes).tolist() == [[0, 3, 7]]
    assert several.classify(planes[None]).shape == (1, 1, 3)
    assert several.classify(planes).dtype == np.uint8


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.9])
def test_classes_agree_with_probabilities(threshold: float) -> None:
    logits = torch.linspace(-6, 6, 1001).reshape(1, 1, -1)
    one = recipe(threshold=threshold)
    assert np.array_equal(one.classify(logits), (one.probabilities(logits)[0] > threshold).numpy().astype(np.uint8))


def test_a_model_reads_back_as_it_was(tmp_path: Path) -> None:
    model = small_model()
    loaded = Model.load(model.save(tmp_path / "model"))
    images = torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded.network(images), model.network(images))
    assert (loaded.recipe, loaded.scores, loaded.provenance) == (model.recipe, model.scores, model.provenance)
    assert loaded.architecture == model.architecture
    assert loaded.fingerprint() == model.fingerprint()
    assert not loaded.network.training
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_segmentation_models_pytorch_reads_the_folder(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp

    model = small_model()
    # As after training from pretrained weights: a reader must not fetch them again.
    model.network.config["encoder_weights"] = "imagenet"
    for half in (False, True):
        model.save(tmp_path / "model", half=half, overwrite=True)
        network = smp.from_pretrained(str(tmp_path / "model")).eval()
        images = torch.randn(1, 1, 32, 32)
        with torch.inference_mode():
            assert torch.allclose(network(images), model.network(images), atol=1e-2 if half else 0)


def test_half_the_size_loads_back_to_float32(tmp_path: Path) -> None:
    model = small_model()
    # Beyond float16's range: it would come back as infinity.
    model.network.encoder.features[0][1].running_var[0] = 1e6
    whole, half = model.save(tmp_path / "whole"), model.save(tmp_path / "half", half=True)
    assert (half / "model.safetensors").stat().st_size < 0.56 * (whole / "model.safetensors").stat().st_size
    loaded = Model.load(half)
    assert {weight.dtype for weight in loaded.network.parameters()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in loaded.network.state_dict().values())


def test_the_fingerprint_tells_models_apart() -> None:
    model = small_model()
    before = model.fingerprint()
    assert replace(model, recipe=replace(model.recipe, threshold=0.4)).fingerprint() != before
    next(model.network.parameters()).data[0] += 1e-3
    assert model.fingerprint() != before


def test_the_card_says_what_a_user_asks(tmp_path: Path) -> None:
    text = (small_model().save(tmp_path / "model") / "README.md").read_text()
    for said in ("# Roofs", "bright = 1", "1 m a pixel", "32 px", "iou: 0.612", "zanzibar 3f", "gimseg predict"):
        assert said in text


def test_a_model_is_not_overwritten_by_chance(tmp_path: Path) -> None:
    folder = small_model().save(tmp_path / "model")
    (folder / "curves.png").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        small_model().save(folder)
    small_model().save(folder, overwrite=True)
    assert (folder / "curves.png").read_text() == "mine"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    with pytest.raises(OutputError, match="no model's folder"):
        small_model().save(tmp_path / "photos", overwrite=True)
    with pytest.raises(OutputError, match="does not exist"):
        check_model_output(tmp_path / "nowhere" / "model")


def test_a_network_that_diverged_or_has_no_architecture_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="architecture"):
        Model(Brightness(1.0), recipe()).save(tmp_path / "model")
    model = small_model()
    next(model.network.parameters()).data[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_pickled_checkpoints_are_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelError, match="pickled checkpoint"):
        Model.load(checkpoint)
    with pytest.raises(ModelError, match=r"pickled checkpoints \(model.pt\) are never opened"):
        Model.load(tmp_path)
    folder = small_model().save(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelError, match="cannot be read"):
        Model.load(folder)
    assert not (tmp_path / "sprung").exists()


def test_folders_that_are_no_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        Model.load(tmp_path / "nowhere")
    folder = small_model().save(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=f"1 of {len(tensors)} tensors: {name} is"):
        Model.load(folder)
    values = json.loads((folder / "gimseg.json").read_text())
    for broken, said in (
        ({**values, "format": 99}, "format 99"),
        ({"format": 1}, "not a model's"),
        ([], "not a model's"),
    ):
        (folder / "gimseg.json").write_text(json.dumps(broken))
        with pytest.raises(ModelError, match=said):
            Model.load(folder)
    (folder / "gimseg.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        Model.load(folder)


def measure_halo(*given: Any, **options: Any) -> int:
    return measure_reach(*given, **options).halo


@pytest.mark.parametrize("layers", [0, 1, 3, 6])
def test_the_halo_is_the_reach_of_the_network(layers: int) -> None:
    images = [np.random.default_rng(seed).standard_normal((1, 160, 160)).astype(np.float32) for seed in range(6)]
    one = recipe(stride=1, window=64, halo=0)
    network = Reach(layers)
    flips = measure_border_flips(network, one, images)
    assert flips.beyond(layers) == 0
    assert measure_halo(network, one, images) <= layers
    if layers:
        assert flips.beyond(layers - 1) > 0
        assert measure_halo(network, one, images, tolerance=0) == layers
        assert measure_halo(network, replace(one, stride=4), images, tolerance=0) == -(-layers // 4) * 4


def test_the_halo_is_at_most_a_quarter_of_the_window_and_images_may_be_small() -> None:
    network = Reach(12)
    images = [np.random.default_rng(0).standard_normal((1, 64, 90)).astype(np.float32)]
    assert measure_halo(network, recipe(window=32, stride=4), images, tolerance=0) == 8
    assert measure_halo(network, recipe(window=512, stride=4, halo=0), images) == 12
    with pytest.raises(ModelError, match="no image to measure the halo on: one of 16 px"):
        measure_halo(network, recipe(), [np.zeros((1, 8, 8), np.float32)])


def test_a_network_that_looks_at_the_whole_window_has_no_bounded_reach() -> None:
    class Relative(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, :1] - images[:, :1].mean(dim=(2, 3), keepdim=True)

    images = [np.random.default_rng(seed).random((1, 90, 90)).astype(np.float32) for seed in range(15)]
    found = measure_reach(Relative(), recipe(window=32, stride=4), images)
    assert (found.halo, found.bounded) == (8, False)
    assert measure_reach(Reach(3), recipe(window=32, stride=4), images).bounded


def test_windows_are_compared_in_the_phase_of_the_stride() -> None:
    images = [np.random.default_rng(0).standard_normal((1, size, size)).astype(np.float32) for size in (76, 91)]
    network = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Upsample(scale_factor=8))
    assert measure_halo(network, recipe(window=32, stride=8, halo=0), images, tolerance=0) == 0


def test_measuring_leaves_the_network_as_it_was() -> None:
    network = build_network("Unet", "resnet18", bands=1).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    image = np.random.default_rng(0).standard_normal((1, 256, 256)).astype(np.float32)
    halo = measure_halo(network, recipe(window=128, stride=32, halo=0), [image])
    assert halo == 32
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
