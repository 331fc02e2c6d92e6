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
from typing import NamedTuple

import torch

from gimseg.backends import backend_by_name
from gimseg.computing import Network
from gimseg.errors import DeviceMemoryError, GimsegError, PredictionError
from gimseg.models import Model
from gimseg.parts import Parts
from gimseg.preflight import Plan
from gimseg.progress import Progress, silent
from gimseg.running import pixels_of, predict_blocks
from gimseg.tiling import Block

_LOOK_S = 0.2


class _Failure(NamedTuple):
    """What ended a process."""

    text: str
    memory: bool


def predict_on_devices(
    plan: Plan, model: Model, devices: Sequence[torch.device], parts: Parts, progress: Progress
) -> None:
    """Predict what is unfinished, one process a device.

    Raises:
        PredictionError: a process failed; what the others finished is kept.
        DeviceMemoryError: a device cannot hold a batch; all stop at once, since all windows must be of one size.
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
        failure = _watch(plan, processes, todo, parts, progress, failures)
    finally:
        _end(processes)
    if failure is not None and failure.memory:
        raise DeviceMemoryError(failure.text)
    if failure is not None:
        raise PredictionError(f"{failure.text}; finished blocks are kept: give the same again to go on")
    died = [f"{process.name} (exit {process.exitcode})" for process in processes if process.exitcode]
    if died:
        raise PredictionError(
            f"the processes of {', '.join(died)} died: finished blocks are kept, give the same again to go on"
        )


def _work(
    plan: Plan, model: Model, device: torch.device, todo: Sequence[Block], fail: Callable[[_Failure], None]
) -> None:
    """One process: claim blocks until none is left."""
    # An interrupt is the parent's to answer; it ends its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        network = Network(backend_by_name(model, device, plan.engine.backend), model.recipe, plan.products, device)
        parts = Parts(plan.output, plan.identity, planes=plan.planes)
        predict_blocks(plan, network, parts, _claimed(todo, parts), silent)
    except GimsegError as error:
        fail(_Failure(f"{device}: {error}", isinstance(error, DeviceMemoryError)))


def _claimed(blocks: Sequence[Block], parts: Parts) -> Iterator[Block]:
    """Blocks that this process is first to ask for, as long as its parent lives."""
    parent = os.getppid()
    return (block for block in blocks if os.getppid() == parent and parts.claim(block))


def _watch(
    plan: Plan,
    processes: Sequence[BaseProcess],
    todo: Sequence[Block],
    parts: Parts,
    progress: Progress,
    failures: multiprocessing.SimpleQueue[_Failure],
) -> _Failure | None:
    """Tell how far they are until all have ended, or one is out of memory; what failed first, or that."""
    total, failure = pixels_of(todo) / 1e6, None
    progress("predict", 0, total, "Mpx")
    is_running = True
    while is_running:
        time.sleep(_LOOK_S)
        # Asked first: what a process says before it ends is not missed.
        is_running = any(process.is_alive() for process in processes)
        while not failures.empty():
            one = failures.get()
            if one.memory:
                return one
            failure = failure or one
        left = pixels_of(parts.unfinished(todo, keep_damaged=True)) / 1e6
        progress("predict", total - left, total, "Mpx")
    return failure


def _end(processes: Sequence[BaseProcess]) -> None:
    """At any moment: what is not finished is done again."""
    for process in processes:
        if process.pid is not None and process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
