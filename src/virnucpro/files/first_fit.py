"""Check that batches are those of First-Fit Decreasing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_first_fit(
    batch: NDArray[Any], tokens: NDArray[Any], budget: int, max_sequences: int
) -> Iterator[str]:
    """Yield an error if a sequence is not in the first batch with room; rows are in batch order.

    In First-Fit Decreasing, if a batch has room for a size after its own sequences of this size
    and of larger ones, then no later batch has a sequence of this size.
    """
    is_last = np.append((np.diff(batch) != 0) | (np.diff(tokens) != 0), True)
    ends = np.flatnonzero(is_last)
    # For each batch and each size in it: the room left by sequences of this size or larger.
    in_batch, size = batch[ends], tokens[ends]
    is_first = np.append(True, np.diff(in_batch) != 0)
    begin = np.append(0, ends[:-1] + 1)[is_first]
    number = np.cumsum(is_first) - 1
    sums = np.append(0, np.cumsum(tokens))
    room = budget - (sums[ends + 1] - sums[begin][number])
    room[ends + 1 - begin[number] >= max_sequences] = -1
    # The distinct sizes in decreasing order, and the last batch with each.
    sizes, place = np.unique(-size, return_inverse=True)
    last_batch = np.full(len(sizes), -1, np.int64)
    np.maximum.at(last_batch, place, in_batch)
    # This room exists for all sizes that fit and are larger than the next size of the batch.
    lowest = np.append(np.where(is_first[1:], len(sizes), place[1:]), len(sizes))
    largest = np.maximum(place, np.searchsorted(sizes, -room))
    has_room = largest < lowest
    latest = range_maxima(last_batch, largest[has_room], lowest[has_room])
    too_late = latest > in_batch[has_room]
    if too_late.any():
        at = int(np.argmax(too_late))
        yield (
            f"batch {in_batch[has_room][at]:,} had room for a sequence that is in batch "
            f"{latest[at]:,}: the plan is not First-Fit Decreasing (cases: {too_late.sum():,})"
        )


def range_maxima(
    values: NDArray[np.int64], begin: NDArray[Any], end: NDArray[Any]
) -> NDArray[np.int64]:
    """Return ``values[b:e].max()`` for each b and e of `begin` and `end`.

    Uses a sparse table: the maxima of all ranges whose length is a power of two. Each range is the
    union of two of them.
    """
    levels = [values]
    while 2 ** len(levels) <= len(values):
        half, shift = levels[-1], 2 ** (len(levels) - 1)
        levels.append(np.maximum(half[:-shift], half[shift:]))
    result = np.empty(len(begin), np.int64)
    level = np.frexp(end - begin)[1] - 1
    for number, maxima in enumerate(levels):
        of_level = level == number
        first, last = begin[of_level], end[of_level] - 2**number
        result[of_level] = np.maximum(maxima[first], maxima[last])
    return result
