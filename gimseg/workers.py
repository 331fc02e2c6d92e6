"""Several devices, a process each, that share the blocks of one run.

Each process claims a block by making a file that must not exist yet, predicts it and
keeps it among the finished ones; the parent counts these. A process that dies takes its
claims with it: the parent reports it when the others are done, and the next start of the
run, which forgets all claims, goes on with what is left.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess

import torch

from gimseg.backends import backend_by_name
from gimseg.computing import Network
from gimseg.errors import GimsegError, PredictionError
from gimseg.models import Model
from gimseg.parts import Parts
from gimseg.preflight import Plan
from gimseg.progress import Progress, silent
from gimseg.running import pixels_of, predict_blocks
from gimseg.tiling import Block

_LOOK_S = 0.2


def predict_on_devices(
    plan: Plan, model: Model, devices: Sequence[torch.device], parts: Parts, progress: Progress
) -> None:
    """Predict what is unfinished, one process a device.

    Raises:
        PredictionError: a process failed; what the others finished is kept.
    """
    parts.forget_claims()
    todo = parts.unfinished(plan.blocks, keep_damaged=True)
    context = multiprocessing.get_context("spawn")
    failures = context.SimpleQueue()
    processes = [
        context.Process(target=_work, args=(plan, model, device, todo, failures.put), daemon=True, name=str(device))
        for device in devices
    ]
    try:
        for process in processes:
            process.start()
        _watch(plan, processes, todo, parts, progress)
    finally:
        _end(processes)
    if not failures.empty():
        raise PredictionError(f"{failures.get()}; finished blocks are kept: give the same again to go on")
    died = [f"{process.name} (exit {process.exitcode})" for process in processes if process.exitcode]
    if died:
        raise PredictionError(
            f"the processes of {', '.join(died)} died: finished blocks are kept, give the same again to go on"
        )


def _work(plan: Plan, model: Model, device: torch.device, todo: Sequence[Block], fail: Callable[[str], None]) -> None:
    """One process: claim blocks until none is left."""
    # An interrupt is the parent's to answer; it ends its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        network = Network(backend_by_name(model, device, plan.engine.backend), model.recipe, plan.products, device)
        parts = Parts(plan.output, plan.identity, planes=plan.planes)
        predict_blocks(plan, network, parts, _claimed(todo, parts), silent)
    except GimsegError as error:
        fail(f"{device}: {error}")


def _claimed(blocks: Sequence[Block], parts: Parts) -> Iterator[Block]:
    """Blocks that this process is first to ask for, as long as its parent lives."""
    parent = os.getppid()
    return (block for block in blocks if os.getppid() == parent and parts.claim(block))


def _watch(
    plan: Plan, processes: Sequence[BaseProcess], todo: Sequence[Block], parts: Parts, progress: Progress
) -> None:
    total = pixels_of(todo) / 1e6
    progress("predict", 0, total, "Mpx")
    while any(process.is_alive() for process in processes):
        time.sleep(_LOOK_S)
        left = pixels_of(parts.unfinished(todo, keep_damaged=True)) / 1e6
        progress("predict", total - left, total, "Mpx")


def _end(processes: Sequence[BaseProcess]) -> None:
    """At any moment: what is not finished is done again."""
    for process in processes:
        if process.pid is not None and process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
