"""Steps of training on the CPU: what keeping freed memory is worth, and float32 for depthwise convolutions.

    python tests/benchmarks/bench_training_step.py [--rounds 4]

The built-in model's network, batches of 8 windows of 256 px, in turn in each way; the least time of each is
compared. The last way is that of `gimseg train` where the CPU computes bfloat16, the second elsewhere.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from gimseg.depthwise import depthwise_in_float32
from gimseg.freed_memory import freed_memory_kept
from gimseg.models import Model

WAYS: dict[str, tuple[str, ...]] = {
    "float32, memory as usual": (),
    "float32, freed memory kept": ("kept",),
    "bfloat16, freed memory kept": ("kept", "bfloat16"),
    "the same, depthwise convolutions in float32": ("kept", "bfloat16", "depthwise"),
}
STEPS = 4


@contextmanager
def way(chosen: tuple[str, ...], network: torch.nn.Module) -> Iterator[None]:
    """Memory and arithmetic of a way."""
    with ExitStack() as held:
        if "kept" in chosen:
            held.enter_context(freed_memory_kept())
        if "bfloat16" in chosen:
            held.enter_context(torch.autocast("cpu", torch.bfloat16))
        if "depthwise" in chosen:
            held.enter_context(depthwise_in_float32(network))
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    rounds = parser.parse_args().rounds
    network = Model.load().network.train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-4)
    images = torch.randn(8, 3, 256, 256).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimiser.zero_grad()
        (network(images).float() ** 2).mean().backward()
        optimiser.step()

    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, chosen in WAYS.items():
            with way(chosen, network):
                step()
                found[name].append(measured(step))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| arithmetic and memory | s a step | of the first | processor s in the system | pages mapped a step |")
    print("|---|---|---|---|---|")
    usual = min(found[next(iter(WAYS))])[0]
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
