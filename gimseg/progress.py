"""How far a long piece of work has come, for a terminal, a log or a caller's function."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import IO, Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """A function that is told how far a task has come; `done` counts from 0 to `total`."""

    def __call__(self, task: str, done: float, total: float, unit: str, note: str = "") -> None: ...


def silent(task: str, done: float, total: float, unit: str, note: str = "") -> None:
    """A Progress that says nothing."""


def track(items: Iterable[T], task: str, total: float, unit: str, progress: Progress = silent) -> Iterator[T]:
    """Yield items, reporting one unit after each.

    Example:
        >>> seen = []
        >>> list(track("ab", "read", 2, "files", lambda *now: seen.append(now[1])))
        ['a', 'b']
        >>> seen
        [0, 1, 2]
    """
    progress(task, 0, total, unit)
    for done, item in enumerate(items, 1):
        yield item
        progress(task, done, total, unit)


def format_duration(seconds: float) -> str:
    """Seconds as a person reads them.

    Example:
        >>> format_duration(8), format_duration(75), format_duration(3700)
        ('8 s', '1 min 15 s', '1 h 01 min')
    """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class ConsoleProgress:
    """Progress on standard error: one moving line in a terminal, else a line every few seconds.

    Args:
        stream: where to write, standard error by default.
        every_s: seconds between two plain lines.
    """

    def __init__(self, stream: IO[str] | None = None, every_s: float = 5.0) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._every_s = 0.1 if self._terminal else every_s
        self._task = ""
        self._started = self._said = 0.0
        self._line_open = False

    def __call__(self, task: str, done: float, total: float, unit: str, note: str = "") -> None:
        now = time.monotonic()
        if task != self._task or done == 0:
            self.close()
            self._task, self._started, self._said = task, now, now
        finished = done >= total and now - self._started > 2
        if now - self._said < self._every_s and not (finished and self._said > self._started):
            return
        self._said = now
        self._write(self._line(done, total, unit, now - self._started) + (f"  {note}" if note else ""))
        if done >= total:
            self.close()

    def close(self) -> None:
        """End the moving line, if there is one."""
        if self._line_open:
            self._stream.write("\n")
            self._line_open = False
        self._stream.flush()

    def _line(self, done: float, total: float, unit: str, elapsed: float) -> str:
        share = done / total if total else 1.0
        text = f"{self._task} {share:4.0%}  {_number(done)}/{_number(total)} {unit}"
        if done and elapsed:
            rate = done / elapsed
            text += f"  {_number(rate)} {unit}/s"
            if done < total:
                text += f"  {format_duration((total - done) / rate)} left"
        return text

    def _write(self, text: str) -> None:
        if self._terminal:
            self._stream.write(f"\r\x1b[K{text}")
            self._line_open = True
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
