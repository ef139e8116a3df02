"""Items that a thread makes ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def make_ahead(items: Iterator[T], number: int) -> Generator[T, None, None]:
    """Yield items, of which a thread makes the next ones meanwhile, at most `number`.

    Errors are raised where the item would be. When the iterator is closed, the thread ends.

    Example:
        >>> list(make_ahead(iter(range(4)), 2))
        [0, 1, 2, 3]
    """
    end = object()
    executor = ThreadPoolExecutor(1, "virnucpro-ahead")
    waiting: deque[Future[object]] = deque()
    try:
        while True:
            while len(waiting) < number:
                waiting.append(executor.submit(next, items, end))
            item = waiting.popleft().result()
            if item is end:
                return
            yield item  # type: ignore[misc]
    finally:
        executor.shutdown(cancel_futures=True)
