"""Steps of training on the CPU: what keeping freed memory is worth, in time and in memory.

    python tests/benchmarks/bench_training_step.py [--rounds 4]

The built-in model's network, batches of 8 windows of 256 px, in turn with the C library's own
ways and with freed memory kept, as `gimseg train` does; the least time of each is compared.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from gimseg.freed_memory import freed_memory_kept
from gimseg.models import Model

WAYS: dict[str, Callable[[], AbstractContextManager[None]]] = {"as usual": nullcontext, "kept": freed_memory_kept}
STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    rounds = parser.parse_args().rounds
    network = Model.load().network.train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-4)
    images = torch.randn(8, 3, 256, 256).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimiser.zero_grad()
        (network(images) ** 2).mean().backward()
        optimiser.step()

    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            with way():
                step()
                found[name].append(measured(step))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(
        "| freed memory | s a step | of that | processor s in the system | pages mapped a step |\n|---|---|---|---|---|"
    )
    usual = min(found["as usual"])[0]
    for name, rows in found.items():
        seconds, system, faults = min(rows)
        print(f"| {name} | {seconds:.2f} | {seconds / usual:.2f} | {system:.2f} | {faults:,.0f} |")
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def measured(step: Callable[[], None]) -> tuple[float, float, float]:
    """Seconds, seconds of the processor in the system, and pages mapped, a step."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(STEPS):
        step()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return seconds / STEPS, (after.ru_stime - before.ru_stime) / STEPS, (after.ru_minflt - before.ru_minflt) / STEPS


if __name__ == "__main__":
    main()
