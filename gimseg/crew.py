"""A few processes that call functions for this one, in order and with a bound on what waits.

Each is a fresh interpreter at the other end of a pipe, so that nothing is forked while
threads run, and a script that calls gimseg at its top level is not imported again (as
``multiprocessing`` would). A process ends when its pipe closes: with the work, with an
error, and when this process dies, however it dies.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Any, TypeVar, cast

from gimseg.errors import GimsegError, WorkerError

Task = TypeVar("Task")
Result = TypeVar("Result")

_START = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from gimseg.crew import serve; serve()"
_AHEAD = 2  # tasks that wait for each process


class Crew:
    """Processes to work with; a context.

    Args:
        count: number of processes; 0: the work is done in this one.

    Example:
        >>> with Crew(0) as crew:
        ...     list(crew.map(abs, [-1, -2]))
        [1, 2]
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

    def __enter__(self) -> Crew:
        with ExitStack() as undo:
            undo.callback(self._end)
            for _ in range(self.count):
                self._processes.append(_started())
                self._idle.put(self._processes[-1])
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Results in the order of the tasks; a few tasks are taken ahead.

        Args:
            function: of a module that the processes can import; it and its results can be pickled.
            tasks: what it is called with.

        Raises:
            WorkerError: a process died.
            GimsegError: what the function raised; OSError, ValueError and MemoryError come back too.
        """
        if not self._processes:
            yield from map(function, tasks)
            return
        waiting: deque[Future[Result]] = deque()
        with ThreadPoolExecutor(len(self._processes)) as pool:
            try:
                for task in tasks:
                    waiting.append(pool.submit(self._call, function, task))
                    if len(waiting) >= _AHEAD * len(self._processes):
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BaseException:
                # A process in the middle of a task would be waited for.
                self._end()
                raise
            finally:
                pool.shutdown(cancel_futures=True)

    def _call(self, function: Callable[[Task], Result], task: Task) -> Result:
        process = self._idle.get()
        try:
            pickle.dump((function, task), cast(IO[bytes], process.stdin), pickle.HIGHEST_PROTOCOL)
            cast(IO[bytes], process.stdin).flush()
            good, result = pickle.load(cast(IO[bytes], process.stdout))
        except (OSError, EOFError, pickle.UnpicklingError, ValueError) as error:
            raise WorkerError(
                f"a worker process ended with status {process.poll()} in the middle of its work: was it killed for "
                "want of memory? Try a smaller block, or one process"
            ) from error
        finally:
            self._idle.put(process)
        if not good:
            raise result
        return cast(Result, result)

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError, ValueError):
                    cast(IO[bytes], pipe).close()
            process.wait()
        self._processes.clear()


def cores() -> int:
    """Processes that can run at once; 1 where this program is no plain Python that could be started again."""
    plain = "python" in os.path.basename(sys.executable or "").lower()
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return available if plain else 1


def _started() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    pickle.dump(sys.path, cast(IO[bytes], process.stdin))
    cast(IO[bytes], process.stdin).flush()
    return process


def serve() -> None:
    """Answer calls from standard input on standard output until it closes."""
    calls = sys.stdin.buffer
    # What a library prints must not come between the answers.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        while True:
            try:
                function, task = pickle.load(calls)
            except EOFError:
                return
            pickle.dump(_answer(function, task), answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()


def _answer(function: Callable[[Any], Any], task: Any) -> tuple[bool, Any]:
    # Any other error is a fault of ours: it ends the process with its traceback.
    try:
        return True, function(task)
    except (GimsegError, OSError, ValueError, MemoryError) as error:
        return False, error
