"""A network as OpenVINO computes it on a CPU, as a rule several times as fast as torch.

Each shape of window is converted and compiled by itself, from the torch module as it is in
memory: a shape that is known lets OpenVINO plan ahead, which networks with attention need most,
and nothing that Python decides by a shape is carried over to another one.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch

from gimseg.device_memory import memory_errors
from gimseg.errors import ModelError, PredictionError
from gimseg.models import Model
from gimseg.raster_files import Pixels

PRECISIONS = ("float32", "bfloat16", "int8")
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
_SHAPES = 4
"""Compiled shapes that are kept: each has its own copy of the weights."""
_REFUSALS = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError)
"""What torch and OpenVINO raise where a network cannot be written down as a graph."""
_CALIBRATION = 16 * 2**20
"""Pixels that int8's ranges are taken from, at most."""


class OpenVinoBackend:
    """The network as OpenVINO computes it, on as many threads as torch may use.

    Args:
        model: its network; for int8 it has been loaded from a folder with exemplars.
        precision: ``"float32"``, ``"bfloat16"`` or ``"int8"``.

    Raises:
        PredictionError: OpenVINO is not installed, there is no such precision, the CPU has
            no bfloat16, or int8 has nothing to calibrate on.
    """

    def __init__(self, model: Model, precision: str = "float32") -> None:
        if precision not in PRECISIONS:
            raise PredictionError(f"precision {precision!r} in OpenVINO: {', '.join(PRECISIONS)} are there")
        if not is_installed():
            raise PredictionError("OpenVINO is not installed: `pip install openvino`, or take the backend torch")
        if precision == "bfloat16" and not has_bfloat16():
            raise PredictionError("this CPU has no bfloat16: take the precision auto or float32")
        self.name = f"openvino {precision}"
        self._model = model
        self._network = copy.deepcopy(model.network).cpu().eval().requires_grad_(False)
        self._precision = precision
        self._exemplars = read_exemplars(model) if precision == "int8" else []
        self._requests: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised float32 (N, bands, rows, cols) to float32 (N, channels, rows, cols), on `images`' device.

        One image at a time, on all threads: what an image gives does not depend on its batch.

        Raises:
            DeviceMemoryError: the images are too large.
            PredictionError: OpenVINO cannot convert the network.
        """
        with memory_errors(images):
            request = self._request((int(images.shape[-2]), int(images.shape[-1])))
            arrays = images.cpu().numpy()
            # The request writes into the same memory each time.
            parts = [request.infer([np.ascontiguousarray(array[None])], share_inputs=True)[0] for array in arrays]
            return torch.from_numpy(np.concatenate(parts)).to(images.device)

    def _request(self, shape: tuple[int, int]) -> Any:
        if shape not in self._requests:
            while len(self._requests) >= _SHAPES:
                self._requests.popitem(last=False)
            self._requests[shape] = self._compile(shape)
        self._requests.move_to_end(shape)
        return self._requests[shape]

    def _compile(self, shape: tuple[int, int]) -> Any:
        with _silent_libraries():
            converted = _convert(self._network, len(self._model.recipe.bands), shape)
            if self._precision == "int8":
                converted = _quantise(converted, self._exemplars, shape)
            settings = {
                "INFERENCE_PRECISION_HINT": _HINTS[self._precision],
                "INFERENCE_NUM_THREADS": threads(),
                "PERFORMANCE_HINT": "LATENCY",
                # Two processes would be bound to the same cores.
                "ENABLE_CPU_PINNING": False,
            }
            return _engine().compile_model(converted, "CPU", settings).create_infer_request()


def is_installed() -> bool:
    """Whether OpenVINO is there; it is not loaded."""
    return importlib.util.find_spec("openvino") is not None


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16, as far as OpenVINO knows."""
    with _silent_libraries():
        return "BF16" in _engine().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def threads() -> int:
    """Threads that torch may use (``OMP_NUM_THREADS``, ``torch.set_num_threads``), and the process has cores for."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), allowed))


def read_exemplars(model: Model) -> list[np.ndarray]:
    """The windows that a model's folder keeps: normalised float32 (bands, rows, cols) each; [] without a folder."""
    if model.folder is None:
        return []
    return [_read_exemplar(model, path) for path in sorted((model.folder / "exemplars").glob("*_image.tif"))]


def _read_exemplar(model: Model, path: Path) -> np.ndarray:
    try:
        with rasterio.open(path, driver="GTiff") as image:
            data = image.read()
    except rasterio.RasterioIOError as error:
        raise ModelError(f"{path} cannot be read ({error}): copy the whole model folder again") from error
    if len(data) != len(model.recipe.bands):
        raise ModelError(f"{path} has {len(data)} bands, the model {len(model.recipe.bands)}: is it another model's?")
    return model.recipe.prepare(Pixels(data, np.ones(data.shape[-2:], bool)))


def mosaic(images: list[np.ndarray], shape: tuple[int, int]) -> list[np.ndarray]:
    """Images laid side by side until they fill arrays of a shape; what stands out is cut off.

    Args:
        images: (bands, rows, cols), of any size; taken in turn, again from the first one
            where they do not suffice for one array.
        shape: rows and columns, px.

    Returns:
        as many (bands, rows, cols) as the images fill, at least one.

    Example:
        >>> [part.shape for part in mosaic([np.zeros((3, 64, 64))] * 5, (64, 128))]
        [(3, 64, 128), (3, 64, 128)]
    """
    rows, cols = shape
    height = min(min(image.shape[-2] for image in images), rows)
    width = min(min(image.shape[-1] for image in images), cols)
    tiles = [image[:, :height, :width] for image in images]
    down, across = -(-rows // height), -(-cols // width)
    filled = []
    for start in range(0, max(len(tiles) // (down * across), 1) * down * across, down * across):
        chosen = [tiles[(start + place) % len(tiles)] for place in range(down * across)]
        bands = [np.concatenate(chosen[row * across : (row + 1) * across], axis=2) for row in range(down)]
        filled.append(np.concatenate(bands, axis=1)[:, :rows, :cols])
    return filled


@cache
def _engine() -> Any:
    """OpenVINO itself: one for all, since each has threads of its own."""
    import openvino

    return openvino.Core()


def _convert(network: torch.nn.Module, bands: int, shape: tuple[int, int]) -> Any:
    import openvino

    try:
        # Computes no pixel, so it takes as long for a large window as for a small one. It
        # writes down what is differentiable too, which tensors of inference mode are not.
        with torch.inference_mode(False):
            program = torch.export.export(network, (torch.zeros(1, bands, *shape),))
        return openvino.convert_model(program)
    except _REFUSALS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PredictionError(
            f"OpenVINO cannot take this {type(network).__name__} ({reason}): take the backend torch"
        ) from error


def _quantise(converted: Any, exemplars: list[np.ndarray], shape: tuple[int, int]) -> Any:
    try:
        import nncf
    except ImportError as error:
        raise PredictionError("int8 needs nncf: `pip install gimseg[int8]`, or take another precision") from error
    images = mosaic(exemplars, shape)[: max(1, _CALIBRATION // (shape[0] * shape[1]))]
    calibration = nncf.Dataset([np.ascontiguousarray(image[None], np.float32) for image in images])
    return nncf.quantize(converted, calibration, subset_size=len(images), preset=nncf.QuantizationPreset.MIXED)


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """OpenVINO and NNCF tell a web service of each import and conversion, and the log of much: here they do neither.

    Both do without where the module that sends is not there. They are imported inside
    functions since they take a second, and few runs need them.
    """
    names = ("openvino_telemetry", "openvino_telemetry.backend")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    level = logging.root.manager.disable
    # None makes an import fail as if the module were not installed.
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
