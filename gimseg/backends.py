"""What computes a network: normalised images in, logits out. The fastest one here that gives the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from gimseg import openvino_backend
from gimseg.averaging import AveragedNetwork
from gimseg.errors import PredictionError
from gimseg.models import Model
from gimseg.openvino_backend import OpenVinoBackend, read_exemplars
from gimseg.progress import Progress, silent
from gimseg.torch_backend import TorchBackend, quick_precision
from gimseg.trials import Memory, Trial, choose, noise, run_trial, trial_key

BACKENDS = ("auto", "torch", "openvino")
PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")
REFERENCE = "torch float32"
_SIDES = (128, 512)
"""Of windows in a trial, px: smaller ones tell of calls rather than of the network, larger ones tell no more."""
_WORTH_S = 60.0
"""Seconds of torch below which a choice, and the start of another library, would not pay."""


class Backend(Protocol):
    """A network that is ready to compute."""

    name: str
    """Enters what pins a run: bytes depend on it. :func:`backend_by_name` opens the same again."""

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised float32 (N, bands, rows, cols) to float32 (N, channels, rows, cols), on `images`' device.

        Args:
            images: of any number, and any sides that are multiples of the network's stride.

        Raises:
            DeviceMemoryError: too many images, or too large ones.
        """
        ...


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


class Choice(NamedTuple):
    """A backend, not opened yet: to open it may take seconds."""

    name: str
    """See :func:`backend_by_name`."""
    note: str = ""
    """Why it was chosen, for people; empty where nothing was to be chosen."""


def choose_backend(
    model: Model,
    device: torch.device,
    *,
    backend: str = "auto",
    precision: str = "auto",
    window: int | tuple[int, int] | None = None,
    batch: int = 1,
    megapixels: float = 100.0,
    progress: Progress = silent,
) -> Choice:
    """The backend for a device.

    On a CPU, ``"auto"`` times two windows of the network in torch and in OpenVINO, in float32
    and, where the CPU has it, in bfloat16, and takes the fastest whose classes agree with those
    of torch in float32 on 99.95 % of the pixels. What was found is remembered for this
    machine, these versions and this model. A run that is too short to pay for it is torch's.

    Args:
        model: its network is copied.
        device: where to compute.
        backend: ``"auto"``, ``"torch"`` or ``"openvino"`` (on a CPU).
        precision: ``"float32"`` (without naming a backend: torch's), ``"bfloat16"``, ``"float16"``
            (on a GPU), ``"int8"`` (OpenVINO, calibrated on the model's exemplars), or ``"auto"``:
            half precision on a GPU, what a trial finds on a CPU, float32 in OpenVINO.
        window: rows and columns that images will have, or their side, px; None: the recipe's.
        batch: images that will be given at once.
        megapixels: to be computed, about; a short run is not worth a trial.
        progress: told of the trial.

    Raises:
        PredictionError: there is no such backend or precision here.
    """
    names = candidates(device, backend, precision)
    if len(names) == 1:
        _check(model, device, names[0])
        return Choice(names[0])
    windows = trial_windows(model, window, batch)
    memory = Memory()
    key = trial_key(fingerprint=model.fingerprint(), shape=tuple(windows[0].shape), names=names)
    trials = memory.recall(key)
    if {trial.name for trial in trials} < {*names} and _pays(megapixels, windows):
        trials, finished = _try(model, names, windows, megapixels, progress)
        if finished:
            memory.keep(key, trials)
    chosen = _choose(names, trials, megapixels)
    return Choice(chosen, _describe(chosen, trials))


def backend_by_name(model: Model, device: torch.device, name: str) -> Backend:
    """The backend of this name: a run that goes on needs the one that it began with.

    Args:
        model: its network is copied.
        device: where to compute.
        name: ``"torch float32"``, ``"openvino bfloat16"``, ...

    Raises:
        PredictionError: there is none of this name here.
    """
    if isinstance(model.network, AveragedNetwork):
        return AveragedBackend(model.network, [backend_by_name(part, device, name) for part in model.network.models])
    _check(model, device, name)
    library, _, precision = name.partition(" ")
    return TorchBackend(model, device, precision) if library == "torch" else OpenVinoBackend(model, precision)


def _check(model: Model, device: torch.device, name: str) -> None:
    """Refuse what this model or device cannot have."""
    library, _, precision = name.partition(" ")
    if library not in BACKENDS[1:]:
        raise PredictionError(f"no backend {name!r}: torch and openvino are there")
    if library == "torch":
        return
    if device.type != "cpu":
        raise PredictionError(f"the backend {name} computes on the CPU, not on {device}: give --device cpu")
    if precision == "int8" and not read_exemplars(model):
        raise PredictionError(
            f"int8 is calibrated on the windows that a model keeps from its training, and {model.name} has none: "
            "train it with --exemplars 32, or take another precision"
        )


def candidates(device: torch.device, backend: str = "auto", precision: str = "auto") -> tuple[str, ...]:
    """Names of the backends that answer to what is asked for, best known first.

    Raises:
        PredictionError: nothing does.

    Example:
        >>> candidates(torch.device("cpu"), precision="float32")
        ('torch float32',)
    """
    if backend not in BACKENDS or precision not in PRECISIONS:
        wrong, known = (backend, BACKENDS) if backend not in BACKENDS else (precision, PRECISIONS)
        what = "backend" if backend not in BACKENDS else "precision"
        raise PredictionError(f"{what} {wrong!r}: one of {', '.join(known)} is needed")
    if precision == "int8" and backend == "torch":
        raise PredictionError("int8 is computed by OpenVINO: give --backend openvino with it, or none")
    if precision == "float16" and device.type == "cpu":
        raise PredictionError("float16 is slow on a CPU: give bfloat16, or auto")
    if backend == "openvino" or precision == "int8":
        return (f"openvino {'float32' if precision == 'auto' else precision}",)
    if device.type != "cpu":
        return (f"torch {quick_precision(device) if precision == 'auto' else precision}",)
    if precision == "float32":
        return (REFERENCE,)
    quick = openvino_backend.is_installed() and backend != "torch"
    half = quick and openvino_backend.has_bfloat16()
    if precision == "bfloat16":
        return ("openvino bfloat16" if half else "torch bfloat16",)
    # Where both are there, OpenVINO's bfloat16 is the faster one.
    others = ["openvino bfloat16"] * half + ["openvino float32"] * quick or ["torch bfloat16"]
    return (REFERENCE, *others)


def trial_windows(
    model: Model, window: int | tuple[int, int] | None = None, batch: int = 1
) -> tuple[torch.Tensor, ...]:
    """Two batches, normalised float32 (batch, bands, rows, cols): of the model's exemplars, or noise without any.

    A window is at most 512 px a side: large enough to tell the libraries apart.
    """
    recipe = model.recipe
    shape = (window, window) if isinstance(window, int) else window or (recipe.window, recipe.window)
    rows, cols = (min(side, max(_SIDES[1] // recipe.stride, 1) * recipe.stride) for side in shape)
    exemplars = read_exemplars(model)
    images = openvino_backend.mosaic(exemplars, (rows, cols)) if exemplars else []
    made = [noise(len(recipe.bands), (rows, cols), seed).numpy()[0] for seed in range(max(0, 2 * batch - len(images)))]
    stacked = torch.from_numpy(np.stack([*images, *made][: 2 * batch]))
    return (stacked[:batch], stacked[batch:])


def _try(
    model: Model, names: Sequence[str], windows: Sequence[torch.Tensor], megapixels: float, progress: Progress
) -> tuple[list[Trial], bool]:
    """Time the candidates; whether all were, or the reference turned out to be quick enough for this run."""
    trials: list[Trial] = []
    reference: list[np.ndarray] = []
    for number, name in enumerate(names):
        progress("choose a backend", number, len(names), "backends", name)
        try:
            backend = backend_by_name(model, torch.device("cpu"), name)
            trial, classes = run_trial(name, backend.logits, windows, model.recipe, reference)
            reference = reference or classes
            trials.append(trial)
        except PredictionError:
            if name == names[0]:
                raise
            # What cannot compute this network is no candidate.
            trials.append(Trial(name, float("inf"), 0.0))
        if trials[0].seconds_per_mpx * megapixels < _WORTH_S:
            return trials, False
    progress("choose a backend", len(names), len(names), "backends")
    return trials, True


def _pays(megapixels: float, windows: Sequence[torch.Tensor]) -> bool:
    """A trial computes its windows several times over: there must be far more to do."""
    large = min(windows[0].shape[-2:]) >= _SIDES[0]
    return large and megapixels > 10 * sum(images[:, 0].numel() for images in windows) / 1e6


def _choose(names: Sequence[str], trials: Sequence[Trial], megapixels: float) -> str:
    if not trials or trials[0].seconds_per_mpx * megapixels < _WORTH_S:
        return names[0]
    return choose(trials).name


def _describe(chosen: str, trials: Sequence[Trial]) -> str:
    if len(trials) < 2:
        return "too little to compute for a trial of other backends"
    reference = trials[0]
    trial = next(trial for trial in trials if trial.name == chosen)
    if trial is reference:
        return "the fastest of those tried that gives the same classes"
    gain = reference.seconds_per_mpx / trial.seconds_per_mpx
    return f"{gain:.1f} times as fast as {reference.name}, {trial.agreement:.2%} of the pixels of the same class"
