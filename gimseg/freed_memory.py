"""Memory that nobody uses any more, given back to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def give_back_freed_memory() -> None:
    """Let the C library return its free pages, where it is one that can (glibc).

    It keeps what is freed, in an arena for each thread that ever asked: after a stage
    with large arrays, hundreds of MB that another stage with other threads cannot use.
    It takes some milliseconds, and the pages that come back into use cost a little.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        # musl and macOS have no such function; Windows has no library without a name.
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim
