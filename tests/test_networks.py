"""One contract for all networks; what they refuse, and how they say it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from networks_for_tests import recipe
from safetensors.torch import save_file

from gimseg.errors import ModelError
from gimseg.legend import Legend, LegendClass
from gimseg.models import Model
from gimseg.networks import build_network, check_window, network_names, network_stride, takes_window

# Narrow decoders: the contract is the same, and quick.
FAMILY = {
    "Unet": ("resnet18", {"encoder_depth": 3, "decoder_channels": [16, 16, 8]}),
    "UnetPlusPlus": ("resnet18", {"encoder_depth": 3, "decoder_channels": [16, 16, 8]}),
    "DeepLabV3Plus": ("mobilenet_v2", {"decoder_channels": 32, "decoder_atrous_rates": [1, 2, 3]}),
    "FPN": ("tu-mobilenetv3_small_050", {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}),
    "Segformer": ("mit_b0", {"decoder_segmentation_channels": 32}),
    "Linknet": ("resnet18", {"encoder_depth": 3}),
    "MAnet": ("resnet18", {"encoder_depth": 3, "decoder_channels": [16, 16, 8]}),
    "PSPNet": ("resnet18", {"psp_out_channels": 32}),
    "UPerNet": ("mobilenet_v2", {"decoder_channels": 32}),
    "FCDenseNet": ("", {"layers": [2, 2], "bottleneck": 2, "growth": 4, "first": 8}),
    "AttentionUnet": ("resnet18", {"encoder_depth": 3, "decoder_channels": [16, 16, 8], "deep_supervision": True}),
}
FIVE = Legend(tuple(LegendClass(f"class {value}", value, f"#00000{value}") for value in range(1, 5)))


@pytest.mark.parametrize(("bands", "legend"), [(1, FIVE), (3, Legend.binary()), (4, FIVE), (10, Legend.binary())])
@pytest.mark.parametrize("name", FAMILY)
def test_every_network_keeps_the_contract(name: str, bands: int, legend: Legend, tmp_path: Path) -> None:
    encoder, options = FAMILY[name]
    network = build_network(name, encoder, bands=bands, channels=legend.n_channels, **options).eval()
    images = torch.randn(1, bands, 64, 64)
    check_window(network, 64, batch=2)
    with torch.inference_mode():
        logits = network(images)
    assert logits.shape == (1, legend.n_channels, 64, 64)
    assert 64 % network_stride(network) == 0
    if bands != 4:
        return
    values = {"bands": tuple(range(1, bands + 1)), "mean": (0.0,) * bands, "std": (1.0,) * bands}
    whole = recipe(**values, legend=legend, window=64, halo=0, stride=network_stride(network))
    Model(network, whole, {"name": name, "encoder": encoder, "options": options}).save(tmp_path / "model")
    with torch.inference_mode():
        assert torch.equal(Model.load(tmp_path / "model").network(images), logits)


@pytest.mark.parametrize(
    ("name", "options", "bound"),
    [
        ("FCDenseNet", {"layers": [2, 2], "bottleneck": 2, "growth": 4, "first": 8}, 48),
        ("AttentionUnet", {"encoder_depth": 3, "decoder_channels": [16, 16, 8]}, 96),
    ],
)
def test_networks_of_our_own_look_no_further_than_their_convolutions(name: str, options: dict, bound: int) -> None:
    """A pixel that changes moves no logit further away than `bound` px, so a halo can hold all that a class needs."""
    torch.manual_seed(0)
    network = build_network(name, "resnet18", **options).eval()
    images = torch.randn(1, 3, 256, 256)
    changed = images.clone()
    changed[:, :, 128, 128] += 5
    with torch.inference_mode():
        moved = (network(images) - network(changed)).abs()[0, 0]
    rows, cols = torch.nonzero(moved > 0, as_tuple=True)
    far = torch.maximum((rows - 128).abs(), (cols - 128).abs())
    assert 8 < int(far.max()) <= bound


def test_gates_and_scales_are_there_when_asked_for() -> None:
    options = {"encoder_depth": 3, "decoder_channels": (16, 16, 8)}
    plain = build_network("AttentionUnet", "resnet18", attention=False, **options)
    gated = build_network("AttentionUnet", "resnet18", **options)
    assert sum(weight.numel() for weight in gated.parameters()) > sum(weight.numel() for weight in plain.parameters())
    images = torch.randn(2, 3, 64, 64)
    assert isinstance(plain.train()(images), torch.Tensor)
    deep = build_network("AttentionUnet", "resnet18", deep_supervision=True, **options)
    assert [scale.shape for scale in deep(images)] == [(2, 1, 64, 64)] * 3
    assert deep.eval()(images).shape == (2, 1, 64, 64)


def test_the_layers_of_the_papers_networks() -> None:
    """FC-DenseNet56, 67 and 103 have 1.5, 3.5 and 9.4 million weights: Jégou et al. 2017, who round."""
    for options, millions in (
        ({"layers": (4,) * 5, "bottleneck": 4, "growth": 12}, 1.5),
        ({}, 3.5),
        ({"layers": (4, 5, 7, 10, 12), "bottleneck": 15}, 9.4),
    ):
        network = build_network("FCDenseNet", channels=11, **options)
        assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.1)


@pytest.mark.parametrize(
    ("name", "given", "match"),
    [
        ("FCDenseNet", {"weights": "imagenet"}, "has no encoder"),
        ("FCDenseNet", {"layer": (1,)}, "did you mean 'layers'"),
        ("FCDenseNet", {"layers": ()}, "must be 1 or more"),
        ("AttentionUnet", {"decoder_channels": (8, 8)}, "give one a step"),
        ("AttentionUnet", {"attention_type": "scse"}, "has no option"),
    ],
)
def test_networks_of_our_own_say_what_they_cannot(name: str, given: dict, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        build_network(name, "tu-resnet18", **given)


def test_the_stride_is_that_of_the_network() -> None:
    assert network_stride(build_network("Unet")) == 32
    assert network_stride(build_network("DeepLabV3Plus")) == 16
    assert network_stride(build_network("Unet", encoder_depth=3, decoder_channels=(64, 32, 16))) == 8
    assert network_stride(torch.nn.Identity()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Unett",), "did you mean 'Unet'"),
        (("Unet", "resnet1"), "did you mean 'resnet18'"),
        (("Unet", "tu-resnet"), "no encoder 'tu-resnet' in timm: did you mean 'tu-resnet"),
        (("Unet", "tu-hf-hub:some/body"), "in timm"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build_network(*arguments)


def test_options_that_would_be_passed_over_in_silence_are_refused() -> None:
    with pytest.raises(ModelError, match="did you mean 'decoder_channels'"):
        build_network("Unet", decoder_chanels=(1, 2))
    with pytest.raises(ModelError, match="depth is 3"):
        build_network("Unet", encoder_depth=3)
    with pytest.raises(ModelError, match="set by gimseg"):
        build_network("Unet", activation="sigmoid")
    with pytest.raises(ModelError, match="1 or more"):
        build_network("Unet", bands=0)


def test_pretrained_weights_that_cannot_be_had_leave_random_ones_and_a_message(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.warns(UserWarning, match="'imagenet' of resnet18 cannot be had"):
        network = build_network("Unet", "resnet18", weights="imagenet")
    # The hub's client alone would try again for half a minute.
    assert time.monotonic() - started < 15
    assert network_stride(network) == 32
    with pytest.raises(ModelError, match="it has imagenet, ssl, swsl"):
        build_network("Unet", "resnet18", weights="imagnet")


def test_windows_must_be_multiples_of_the_stride() -> None:
    with pytest.raises(ModelError, match=r"window of 100 px: Unet .* 1/32.* take 96 or 128"):
        check_window(build_network("Unet"), 100)
    with pytest.raises(ModelError, match="PAN cannot take it"):
        check_window(build_network("PAN"), 64)
    assert not takes_window(build_network("PAN"), 64)
    assert takes_window(build_network("PAN"), 128)
    assert not takes_window(build_network("PAN"), 120)


def test_deeplab_says_with_numbers_which_windows_are_too_small() -> None:
    network = build_network("DeepLabV3Plus", "mobilenet_v2")
    with pytest.raises(ModelError, match=r"window of 64 px: at 1/16 .* 4 px wide.*dilation 12, 24, 36.*592 px or more"):
        check_window(network, 64)
    with pytest.warns(UserWarning, match=r"32 px wide, and convolutions with dilation 36 see nothing.*\[8, 16, 24\]"):
        check_window(network, 512)
    with pytest.raises(ModelError, match=r"batch of 1 window of 592 px.*1x1 px.*batch of 2"):
        check_window(network, 592, batch=1)
    check_window(network, 592, batch=2)


def test_the_window_named_is_enough_and_no_larger_than_needed(recwarn: pytest.WarningsRecorder) -> None:
    network = build_network("DeepLabV3Plus", "mobilenet_v2", decoder_atrous_rates=(3, 6, 9))
    check_window(network, 160)
    assert not [warning for warning in recwarn if "dilation" in str(warning.message)]
    with pytest.warns(UserWarning, match="160 px or more"):
        check_window(network, 144)


def test_checking_a_window_leaves_the_network_as_it_was() -> None:
    network = build_network("FPN").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    check_window(network, 64)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_networks_that_are_promised_are_there() -> None:
    assert {"Unet", "UnetPlusPlus", "DeepLabV3Plus", "FPN", "Segformer"} <= set(network_names())


def test_an_encoder_is_filled_from_a_file_by_name_or_by_order(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = build_network("Unet", "resnet18", encoder_depth=3, decoder_channels=[16, 16, 8])
    weights = source.encoder.state_dict()
    save_file(weights, tmp_path / "named.safetensors")
    renamed = {f"layer.{number}": weight for number, weight in enumerate(weights.values())}
    torch.save({**renamed, "classifier": torch.zeros(5)}, tmp_path / "ordered.pth")
    for path in (tmp_path / "named.safetensors", tmp_path / "ordered.pth"):
        filled = build_network(
            "Unet", "resnet18", weights=str(path), encoder_depth=3, decoder_channels=[16, 16, 8]
        ).encoder.state_dict()
        assert all(torch.equal(filled[name], weight) for name, weight in weights.items())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    source = build_network("Unet", "resnet18", encoder_depth=3, decoder_channels=[16, 16, 8])
    save_file(source.encoder.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"another network: .* needed in shape"):
        build_network("Unet", "resnet18", bands=4, weights=str(tmp_path / "w.safetensors"), encoder_depth=3,
                      decoder_channels=[16, 16, 8])  # fmt: skip
    with pytest.raises(ModelError, match="is missing"):
        build_network("Unet", "resnet34", weights=str(tmp_path / "w.safetensors"))
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("text.pth", "absent.pth"):
        with pytest.raises(ModelError, match=f"{name} holds no weights"):
            build_network("Unet", "resnet18", weights=str(tmp_path / name))
