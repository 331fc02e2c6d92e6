"""What computes a network: normalised images in, logits out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol

import torch

from gimseg.averaging import AveragedNetwork
from gimseg.errors import PredictionError
from gimseg.models import Model

_TORCH = "torch "
_PRECISIONS = ("float32", "bfloat16")


class DeviceMemoryError(PredictionError):
    """The device has not enough memory for the images that it was given at once."""


class Backend(Protocol):
    """A network that is ready to compute."""

    name: str
    """Pins how the numbers come about: a run that goes on needs the same."""

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised float32 (N, bands, rows, cols) to float32 (N, channels, rows, cols), on the backend's device.

        Raises:
            DeviceMemoryError: too many images, or too large ones.
        """
        ...


class TorchBackend:
    """The network as torch computes it, layer by layer."""

    def __init__(self, model: Model, device: torch.device, precision: str) -> None:
        self.name = _TORCH + precision
        self._device = device
        self._half = precision == "bfloat16"
        # A copy: the caller's network stays where it is, and as it is.
        network = copy.deepcopy(model.network).eval().to(device)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """See :meth:`Backend.logits`."""
        context = torch.autocast(self._device.type, torch.bfloat16) if self._half else nullcontext()
        try:
            with torch.inference_mode(), context:
                batch = images.to(self._device, memory_format=torch.channels_last)
                return self._network(batch).float()
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(f"{self._device} is out of memory for images {tuple(images.shape)}") from error


class AveragedBackend:
    """Several networks, each computed by a backend of its own, and averaged in float32 outside of them.

    Args:
        network: says over what.
        members: compute its networks, in order.
    """

    def __init__(self, network: AveragedNetwork, members: Sequence[Backend]) -> None:
        self.name = members[0].name
        self._network = network
        self._members = tuple(members)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """See :meth:`Backend.logits`."""
        with torch.inference_mode():
            return self._network.average([member.logits for member in self._members], images)


def open_backend(
    model: Model,
    device: torch.device,
    *,
    backend: str = "auto",
    precision: str = "auto",
    window: tuple[int, int] | None = None,
    batch: int = 1,
) -> Backend:
    """The backend for a device.

    Args:
        model: its network is copied.
        device: where to compute.
        backend: ``"auto"`` or ``"torch"``.
        precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 on CUDA, float32 elsewhere.
        window: rows and columns that images will have, px.
        batch: images that will be given at once.

    Raises:
        PredictionError: there is no such backend or precision.
    """
    if backend not in ("auto", "torch"):
        raise PredictionError(f"backend {backend!r}: auto or torch is needed")
    if precision not in ("auto", *_PRECISIONS):
        raise PredictionError(f"precision {precision!r}: auto, float32 or bfloat16 is needed")
    chosen = precision if precision != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    return backend_by_name(model, device, _TORCH + chosen)


def backend_by_name(model: Model, device: torch.device, name: str) -> Backend:
    """The backend that has this name.

    Raises:
        PredictionError: there is none of this name here.
    """
    if isinstance(model.network, AveragedNetwork):
        return AveragedBackend(model.network, [backend_by_name(part, device, name) for part in model.network.models])
    precision = name.removeprefix(_TORCH)
    if not name.startswith(_TORCH) or precision not in _PRECISIONS:
        raise PredictionError(f"no backend {name!r} on this machine")
    return TorchBackend(model, device, precision)
