"""Running out of memory, told in one way by all libraries that compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gimseg.errors import DeviceMemoryError

# torch on a GPU, torch on the CPU (Linux, Windows), oneDNN, OpenVINO.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "out_of_memory", "bad_alloc", "bad allocation")


@contextmanager
def memory_errors(images: torch.Tensor) -> Iterator[None]:
    """Within it, a device that is out of memory says how much it was given.

    Args:
        images: (N, bands, rows, cols) that are computed within.

    Raises:
        DeviceMemoryError: the device cannot hold them.

    Example:
        >>> try:
        ...     with memory_errors(torch.zeros(2, 3, 64, 96)):
        ...         raise MemoryError
        ... except DeviceMemoryError as error:
        ...     print(str(error).partition(":")[0])
        2 windows of 64 x 96 px with 3 bands are more than the memory of cpu holds
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error).lower() for sign in _SIGNS):
            raise
        count, bands, rows, cols = images.shape
        raise DeviceMemoryError(
            f"{count} windows of {rows} x {cols} px with {bands} bands are more than the memory of {images.device} "
            "holds: take fewer at once, or smaller ones"
        ) from error
