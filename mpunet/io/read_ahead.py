"""Produce the items of an iterable ahead of their use, in a background thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["read_ahead"]

Item = TypeVar("Item")


def read_ahead(items: Iterable[Item], size: int) -> Iterator[Item]:
    """Iterate over ``items``, with up to ``size`` items produced ahead in a background thread.

    Items keep their order. An error that the iterable raises is raised in place of its item. The
    thread starts when the first item is requested. It ends after the last item or when the iterator
    is closed; closing waits for the item that is being produced.

    >>> list(read_ahead(range(4), 2))
    [0, 1, 2, 3]
    """
    if size < 1:
        raise ValueError(f"Expected to read at least 1 item ahead, got {size}.")
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
