"""Reading, the network and writing at the same time: threads, and bounded queues between them."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_POLL_S = 0.1


def readers() -> int:
    """Threads that read: one on small machines, whose cores the network needs."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))


def ahead(items: Iterable[T], limit: int = 2) -> Generator[T, None, None]:
    """The same items, made in a thread of their own, at most `limit` before they are asked for.

    An error of the thread is raised here. When the one who asks stops, so does the
    thread, as soon as its item is done. That is waited for: a process that ends while a
    thread is inside a library of C++ is aborted.

    Example:
        >>> list(ahead(iter(range(3))))
        [0, 1, 2]
    """
    made: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(limit)
    stopped = threading.Event()

    def put(kind: str, item: T | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return made.put((kind, item), timeout=_POLL_S)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put("item", item)
                if stopped.is_set():
                    return
            put("end", None)
        # Whatever it is, it belongs to the one who asks.
        except BaseException as error:
            put("error", error)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=make, name="gimseg-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = made.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(item, BaseException)
                raise item
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()


def map_ahead(work: Callable[[T], R], items: Iterable[T], *, threads: int, limit: int) -> Iterator[R]:
    """Results in order, worked out by several threads, at most `limit` before they are asked for.

    Example:
        >>> list(map_ahead(lambda number: number * 2, [1, 2, 3], threads=2, limit=1))
        [2, 4, 6]
    """
    pool = ThreadPoolExecutor(threads, "gimseg-reader")
    coming: deque[Future[R]] = deque()
    try:
        for item in items:
            coming.append(pool.submit(work, item))
            if len(coming) > limit:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Behind(Generic[T]):
    """Does work in one thread of its own, at most `limit` pieces behind; a context that waits for the rest.

    What fails is raised by a later call. Also when the one who asks is interrupted, what
    was handed over is done: it is worth keeping.
    """

    def __init__(self, work: Callable[[T], object], limit: int = 2) -> None:
        self._work = work
        self._limit = limit
        self._pool = ThreadPoolExecutor(1, "gimseg-writer")
        self._pending: deque[Future[object]] = deque()

    def __call__(self, item: T) -> None:
        while len(self._pending) >= self._limit:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._work, item))

    def __enter__(self) -> Behind[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._pool.shutdown()
        while kind is None and self._pending:
            self._pending.popleft().result()
