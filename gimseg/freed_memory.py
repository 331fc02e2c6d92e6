"""How large arrays get their memory: of what was freed before, in large pages, or from the system each time.

Linux and its C library, glibc, are told; elsewhere nothing happens. (``malloc_trim(3)``, ``mallopt(3)``, and
torch's ``THP_MEM_ALLOC_ENABLE``.)
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

# From malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_ALL = 2**31 - 1
# What glibc itself comes to in a process that frees large arrays, and its default number of mappings.
_USUAL = ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 32 * 2**20), (_TRIM_THRESHOLD, 64 * 2**20))
_KEPT = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _ALL))


def give_back_freed_memory() -> None:
    """Let the C library return its free pages.

    It keeps what is freed, in an arena for each thread that ever asked: after a stage
    with large arrays, hundreds of MB that another stage with other threads cannot use.
    It takes some milliseconds, and the pages that come back into use cost a little.
    """
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it, what is freed stays with the process, for who asks for as much again.

    A step of training asks for the same large arrays as the one before. The C library has
    each of them mapped anew, and the system clears each page: on a CPU a third of the time.
    What is kept lies in the arena of the main thread, so others gain little.

    Example:
        >>> with freed_memory_kept():
        ...     large = [bytes(2**24) for _ in range(3)]
    """
    library = _glibc()
    if library is None:
        yield
        return
    _set(library, _KEPT)
    try:
        yield
    finally:
        _set(library, _USUAL)
        library.malloc_trim(0)


def prefer_large_pages() -> None:
    """Have torch ask for large pages for large tensors, unless the environment says otherwise.

    Each window of a prediction is some GB of tensors, in pages of 4 kB hundreds of thousands
    of them, which the system clears one by one: on a CPU a quarter of the time. torch looks
    at its first tensor and not again, so this is for the beginning of a process. Training
    has a better way, :func:`freed_memory_kept`, which aligned tensors only slow down.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _set(library: Any, options: tuple[tuple[int, int], ...]) -> None:
    for name, value in options:
        library.mallopt(name, value)


@cache
def _glibc() -> Any:
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    library.malloc_trim.argtypes, library.malloc_trim.restype = [ctypes.c_size_t], ctypes.c_int
    library.mallopt.argtypes, library.mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return library
