"""What is done at the same time ends together."""

import threading
import time
from collections.abc import Iterator

import pytest

from gimseg.pipeline import ahead


def slowly(done: list[int]) -> Iterator[int]:
    for number in range(100):
        time.sleep(0.05)
        done.append(number)
        yield number


def test_who_stops_asking_leaves_no_thread_at_work() -> None:
    done: list[int] = []
    items = ahead(slowly(done))
    assert next(items) == 0
    items.close()
    left = len(done)
    assert "gimseg-ahead" not in {thread.name for thread in threading.enumerate()}
    assert left < 10


def test_an_error_of_the_thread_comes_after_what_was_made() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("torn")

    items = ahead(broken())
    assert next(items) == 1
    with pytest.raises(OSError, match="torn"):
        next(items)
