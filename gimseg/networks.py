"""Networks by name, of segmentation-models-pytorch and our own, and what windows they can take."""

from __future__ import annotations

import copy
import inspect
import math
import os
import pickle
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import safetensors.torch
import torch
from torch import nn

from gimseg.attention_unet import AttentionUnet
from gimseg.errors import ModelError
from gimseg.legend import did_you_mean
from gimseg.tiramisu import FCDenseNet
from gimseg.torchvision_ops import declare_missing_operators

declare_missing_operators()

import huggingface_hub.constants  # noqa: E402
import segmentation_models_pytorch as smp  # noqa: E402
import timm  # noqa: E402

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")
"""Endings of files of weights."""

OWN: dict[str, type[nn.Module]] = {network.__name__.lower(): network for network in (AttentionUnet, FCDenseNet)}
"""Networks that segmentation-models-pytorch does not have."""

# Ours to say: pixels in, logits of the recipe's classes out.
_FIXED = ("in_channels", "classes", "encoder_name", "encoder_weights", "activation", "aux_params")


def network_names() -> tuple[str, ...]:
    """Names that :func:`build_network` takes.

    Example:
        >>> {"Unet", "DeepLabV3Plus", "Segformer", "FCDenseNet", "AttentionUnet"} <= set(network_names())
        True
    """
    return tuple(network.__name__ for network in (*smp.MODEL_ARCHITECTURES_MAPPING.values(), *OWN.values()))


def takes_encoder(name: str) -> bool:
    """Whether a network is built on an encoder.

    Raises:
        ModelError: unknown name.

    Example:
        >>> takes_encoder("Unet"), takes_encoder("FCDenseNet")
        (True, False)
    """
    return "encoder_name" in inspect.signature(_architecture(name).__init__).parameters


def build_network(
    name: str = "Unet",
    encoder: str = "resnet18",
    *,
    bands: int = 3,
    channels: int = 1,
    weights: str | None = None,
    **options: Any,
) -> nn.Module:
    """A network from (N, bands, rows, cols) images to (N, channels, rows, cols) logits.

    Args:
        name: one of :func:`network_names`, case does not matter.
        encoder: one of segmentation-models-pytorch, or ``tu-`` and the name of one of timm; passed
            over by a network that takes none.
        bands: of the image.
        channels: of the logits: ``Legend.n_channels``.
        weights: pretrained weights of the encoder: ``"imagenet"`` for most, or a file of
            them. Named ones that cannot be had are random, and a warning says so.
        **options: of the architecture: ``encoder_depth``, ``decoder_channels``, ...

    Raises:
        ModelError: unknown name, encoder, weights or option, or options that do not
            fit together.

    Example:
        >>> network = build_network("FPN", "resnet18", bands=4, channels=3).eval()
        >>> network(torch.zeros(1, 4, 64, 96)).shape
        torch.Size([1, 3, 64, 96])
    """
    architecture = _architecture(name)
    if bands < 1 or channels < 1:
        raise ModelError(f"a network of {bands} bands and {channels} channels: both must be 1 or more")
    if not takes_encoder(name):
        _check_options(architecture, "", options)
        if weights is not None:
            raise ModelError(f"{name} has no encoder that weights {weights!r} could be for: leave encoder_weights out")
        return architecture(bands, channels, **options)
    _check_encoder(encoder)
    _check_options(architecture, encoder, options)
    given = {"encoder_name": encoder, "in_channels": bands, "classes": channels, **options}
    if weights is not None and os.path.splitext(weights)[1] in WEIGHT_FILES:
        network = build_network(name, encoder, bands=bands, channels=channels, **options)
        load_encoder(network, weights)
        return network
    if weights is not None:
        try:
            with _quickly_offline():
                return architecture(encoder_weights=_weights(encoder, weights), **given)
        # The hub's and timm's errors for "not there" and "no way there" are all of this kind.
        except OSError as error:
            warnings.warn(
                f"pretrained weights {weights!r} of {encoder} cannot be had ({_first_line(error)}): the network "
                "starts from random weights. Run once with a connection: they are kept after that",
                stacklevel=2,
            )
    try:
        return architecture(encoder_weights=None, **given)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise ModelError(f"{name} with encoder {encoder} and options {options}: {_first_line(error)}") from error


def load_encoder(network: nn.Module, path: str) -> None:
    """Pretrained weights from a file, by name, or else in their order where all shapes agree.

    The same network has other names in other libraries, but its layers come in one
    order, which torch's files keep (safetensors' do not). Weights that the encoder does
    not have (a classifier's, at the end) are left out.

    Args:
        network: with an ``encoder``, for images of as many bands as the weights are for; changed.
        path: of tensors by name: ``.safetensors``, or one that torch wrote. Nothing but tensors is unpickled.

    Raises:
        ModelError: the file cannot be read or is of another network.
    """
    encoder: Any = network.encoder
    wanted = encoder.state_dict()
    given = _read_weights(path)
    if not set(wanted) <= set(given) and not path.endswith(".safetensors"):
        given = dict(zip(wanted, given.values(), strict=False))
    for name, weight in wanted.items():
        if name not in given or given[name].shape != weight.shape:
            found = f"has shape {tuple(given[name].shape)}" if name in given else "is missing"
            raise ModelError(
                f"{path} is of another network: {name}, needed in shape {tuple(weight.shape)}, {found} there: "
                "name the encoder that it belongs to, and as many bands"
            )
    encoder.load_state_dict({name: given[name] for name in wanted})


def _read_weights(path: str) -> dict[str, torch.Tensor]:
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, ValueError, TypeError, RuntimeError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path} holds no weights that can be read ({_first_line(error)})") from error


def network_stride(network: nn.Module) -> int:
    """Total stride, px: window origins must be multiples of it for stitching without seams.

    A network that is not of segmentation-models-pytorch says it in its attribute
    ``stride``; without one it counts as 1.

    Example:
        >>> network_stride(build_network("Unet", encoder_depth=3, decoder_channels=[64, 32, 16]))
        8
    """
    encoder = getattr(network, "encoder", None)
    return int(getattr(encoder, "output_stride", getattr(network, "stride", 1)))


def check_window(network: nn.Module, window: int, *, bands: int | None = None, batch: int | None = None) -> None:
    """Refuse windows that the network cannot take, before any training; computes no pixel.

    Args:
        network: not changed.
        window: side, px.
        bands: of the image, found from the network when it is None.
        batch: windows in a training step; None: it is not for training.

    Raises:
        ModelError: the window is no multiple of the stride, is too small for the
            network, for all its dilated convolutions, or for its normalisation with
            this batch.

    Warns:
        UserWarning: some dilated convolutions see nothing but padding.
    """
    stride = network_stride(network)
    if window < stride or window % stride:
        below, above = max(window // stride, 1) * stride, (window // stride + 1) * stride
        raise ModelError(
            f"window of {window} px: {_title(network)} halves the image down to 1/{stride}, so a window must be a "
            f"multiple of {stride} px: take {below} or {above}"
        )
    maps = _trace(network, window, bands)
    _check_dilations(network, window, maps)
    pooled = [side for kind, side, _ in maps if kind == "norm" and side == 1]
    if batch == 1 and pooled:
        raise ModelError(
            f"batch of 1 window of {window} px: {_title(network)} normalises a map of 1x1 px (pooled from the whole "
            "window), and one value has no deviation: use a batch of 2 or more"
        )


def takes_window(network: nn.Module, window: int, *, bands: int | None = None) -> bool:
    """Whether the network can predict windows of this side, px; computes no pixel."""
    if window % network_stride(network):
        return False
    try:
        _trace(network, window, bands)
    except ModelError:
        return False
    return True


def _trace(network: nn.Module, window: int, bands: int | None) -> list[tuple[str, int, int]]:
    """(kind, side of its map in px, dilation) of each normalisation and each dilated convolution of the decoder."""
    shadow = copy.deepcopy(network).to("meta").eval()
    maps: list[tuple[str, int, int]] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        side = min(inputs[0].shape[-2:])
        if isinstance(module, nn.Conv2d):
            maps.append(("conv", side, max(module.dilation)))
        else:
            maps.append(("norm", side, 1))

    for name, module in shadow.named_modules():
        # An encoder's dilations replace its last strides; those of the decoder look far around.
        far = isinstance(module, nn.Conv2d) and max(module.dilation) > 1 and max(module.kernel_size) > 1
        if (far and not name.startswith("encoder.")) or isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(note)
    bands = bands or _bands(network)
    try:
        with torch.inference_mode():
            shadow(torch.empty(1, bands, window, window, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(
            f"window of {window} px with {bands} bands: {_title(network)} cannot take it ({_first_line(error)}): use "
            "a larger window"
        ) from error
    return maps


def _check_dilations(network: nn.Module, window: int, maps: list[tuple[str, int, int]]) -> None:
    """A tap of a 3x3 convolution with dilation d lands inside a map only if the map is wider than d."""
    dilated = [(side, dilation) for kind, side, dilation in maps if kind == "conv"]
    blind = sorted({dilation for side, dilation in dilated if side <= dilation})
    if not blind:
        return
    side = min(side for side, dilation in dilated if dilation in blind)
    scale = math.ceil(window / side)
    stride = network_stride(network)
    enough = -(-(scale * (max(blind) + 1)) // stride) * stride
    text = (
        f"window of {window} px: at 1/{scale} of it the map of {_title(network)} is {side} px wide, and convolutions "
        f"with dilation {', '.join(map(str, blind))} see nothing but padding: use windows of {enough} px or more, or "
        f"smaller decoder_atrous_rates, for example {_smaller_rates(side)}"
    )
    if all(side <= dilation for side, dilation in dilated):
        raise ModelError(text)
    warnings.warn(text, stacklevel=3)


def _smaller_rates(side: int) -> list[int]:
    return [max(1, side * part // 4) for part in (1, 2, 3)]


def _bands(network: nn.Module) -> int:
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first is not None else 1


def _title(network: nn.Module) -> str:
    return type(network).__name__


def _architecture(name: str) -> Any:
    architecture = smp.MODEL_ARCHITECTURES_MAPPING.get(name.lower()) or OWN.get(name.lower())
    if architecture is None:
        raise ModelError(f"no network {name!r}{did_you_mean(name, network_names())}")
    return architecture


def _check_encoder(encoder: str) -> None:
    if encoder.startswith("tu-"):
        # Only timm's own: a name like tu-hf-hub:... would fetch a stranger's configuration.
        if not timm.is_model(encoder[3:]):
            names = [f"tu-{name}" for name in timm.list_models()]
            raise ModelError(f"no encoder {encoder!r} in timm{did_you_mean(encoder, names)}")
    elif encoder not in smp.encoders.encoders:
        raise ModelError(f"no encoder {encoder!r}{did_you_mean(encoder, smp.encoders.get_encoder_names())}")


def _check_options(architecture: Any, encoder: str, options: dict[str, Any]) -> None:
    """An option that the architecture does not know would be passed over in silence."""
    parameters = inspect.signature(architecture.__init__).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in ("self", *_FIXED)]
    for option in options:
        if option in _FIXED:
            raise ModelError(f"option {option} is set by gimseg: use bands, channels, encoder or weights")
        passed_on = encoder.startswith("tu-") and architecture.__name__.lower() not in OWN
        if option not in known and not passed_on:
            raise ModelError(f"{architecture.__name__} has no option {option!r}{did_you_mean(option, known)}")


def _weights(encoder: str, weights: str) -> str | bool:
    if encoder.startswith("tu-"):
        return True
    settings = smp.encoders.encoders[encoder].get("pretrained_settings", {})
    if weights not in settings:
        raise ModelError(f"no weights {weights!r} for encoder {encoder}: it has {', '.join(settings) or 'none'}")
    return weights


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quickly_offline() -> Iterator[None]:
    """Without a connection the hub's client tries for minutes; then only its cache is asked."""
    constants: Any = huggingface_hub.constants
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(os.environ.get("HF_ENDPOINT", constants.ENDPOINT))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(url: str, timeout_s: float = 5.0) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout_s).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
