"""Freed memory is kept where it is asked for again, and given back where it is not."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from gimseg.freed_memory import give_back_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
MB = 2**20


SETUP = """
import resource
from gimseg.freed_memory import freed_memory_kept

def faults(work):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

def use(count=4, mb=64):
    for _ in range(count):
        b"x" * (mb * 2**20)

"""
PAGES = 64 * MB // resource.getpagesize()


def told_by(program: str) -> list[float]:
    """The numbers that a process of its own prints: in this one, other tests have left holes that are filled first."""
    done = subprocess.run([sys.executable, "-c", SETUP + program], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MB


def test_within_it_large_arrays_are_mapped_once() -> None:
    within, after = told_by("""
with freed_memory_kept():
    use(1)
    print(faults(use))
print(faults(use))
""")
    assert within < PAGES / 10 and after > 3 * PAGES


def test_afterwards_nothing_is_kept() -> None:
    before, after = told_by("""
use(1)
print(resident_mb())
with freed_memory_kept():
    use(1, 256)
print(resident_mb())
""")
    assert after < before + 64


def test_an_error_ends_it_too() -> None:
    (after,) = told_by("""
try:
    with freed_memory_kept():
        raise KeyError
except KeyError:
    print(faults(use))
""")
    assert after > 3 * PAGES


def test_what_was_freed_goes_back_from_between_what_is_in_use() -> None:
    parts = [bytes(b"x" * 100_000) for _ in range(2000)]
    kept = parts[::100]
    full = resident_mb()
    del parts
    give_back_freed_memory()
    assert resident_mb() < full - 100
    assert len(kept) == 20
