"""Freed memory is kept where it is asked for again, and given back where it is not."""

from __future__ import annotations

import platform
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from gimseg.freed_memory import freed_memory_kept, give_back_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
MB = 2**20


def faults(work: Callable[[], object]) -> int:
    """Pages that the system had to map for it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MB


def use(count: int = 4, size: int = 64 * MB) -> None:
    for _ in range(count):
        b"x" * size


def test_within_it_large_arrays_are_mapped_once() -> None:
    pages = 64 * MB // resource.getpagesize()
    with freed_memory_kept():
        use(1)
        assert faults(use) < pages / 10
    assert faults(use) > 3 * pages


def test_afterwards_nothing_is_kept() -> None:
    use(1)
    before = resident_mb()
    with freed_memory_kept():
        use(1, 256 * MB)
    assert resident_mb() < before + 64


def test_an_error_ends_it_too() -> None:
    with pytest.raises(KeyError), freed_memory_kept():
        raise KeyError
    assert faults(use) > 3 * 64 * MB // resource.getpagesize()


def test_what_was_freed_goes_back_from_between_what_is_in_use() -> None:
    parts = [bytes(b"x" * 100_000) for _ in range(2000)]
    kept = parts[::100]
    full = resident_mb()
    del parts
    give_back_freed_memory()
    assert resident_mb() < full - 100
    assert len(kept) == 20
