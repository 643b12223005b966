"""Items of an iterable made ahead of their use, in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["read_ahead"]

Item = TypeVar("Item")


def read_ahead(items: Iterable[Item], size: int) -> Iterator[Item]:
    """The same items in the same order, up to ``size`` of them made in a background thread before they are asked for.

    What the iterable raises is raised where its item would have come. The thread starts with the first item asked for and is gone
    when the last one came or the iterator is closed; closing waits for the item in the making.

    >>> list(read_ahead(range(4), 2))
    [0, 1, 2, 3]
    """
    if size < 1:
        raise ValueError(f"Expected to go at least 1 item ahead, got {size}.")
    return _ahead(iter(items), size)


def _ahead(iterator: Iterator[Item], size: int) -> Iterator[Item]:
    end: Any = object()
    thread = ThreadPoolExecutor(1)
    try:
        waiting: deque[Future[Item]] = deque(
            thread.submit(next, iterator, end) for _ in range(size)
        )
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, iterator, end))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
