"""The numbers of a report: batches made in other ways, and classes of lengths and fill."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.groups import counts_of_groups
from virnucpro.data.layout import Layout
from virnucpro.kernel.limits import Limits

# Shares of the budget that bound the classes of fill.
FILL_CLASSES = (1.0, 0.999, 0.99, 0.95, 0.75, 0.5)


class Batches(NamedTuple):
    """A number of batches, and the tokens that a model computes for them, with padding."""

    number: int
    tokens: int


def count_padded(sizes: NDArray[np.int64], per_batch: int) -> Batches:
    """Return the batches of a number of sequences each, in order, padded to the longest of each.

    Args:
        sizes: Tokens of each sequence.
        per_batch: Sequences per batch; the last batch may have fewer.
    """
    whole = len(sizes) - len(sizes) % per_batch
    tokens = per_batch * int(sizes[:whole].reshape(-1, per_batch).max(axis=1).sum())
    rest = sizes[whole:]
    tokens += len(rest) * int(rest.max(initial=0))
    return Batches(-(-len(sizes) // per_batch), tokens)


def count_sorted(sizes: NDArray[Any], counts: NDArray[Any], limits: Limits) -> Batches:
    """Return the padded batches of sequences sorted by length, with as many as the budget allows.

    Args:
        sizes: Distinct sizes of sequences in tokens, in increasing order.
        counts: Number of sequences of each size.
        limits: The limits on batches, which padding counts toward.
    """
    budget = limits.max_tokens_per_batch
    max_sequences = limits.max_sequences_per_batch or int(counts.sum())
    number = tokens = held = largest = 0
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        per_batch = min(budget // size, max_sequences) if size else max_sequences
        fitting = min(max(per_batch - held, 0), count)
        if fitting:
            held, largest = held + fitting, size
        rest = count - fitting
        if rest:
            number, tokens = number + (held > 0), tokens + held * largest
            whole = (rest - 1) // per_batch
            number, tokens = number + whole, tokens + whole * per_batch * size
            held, largest = rest - whole * per_batch, size
    return Batches(number + (held > 0), tokens + held * largest)


def count_next_fit_decreasing(sizes: NDArray[Any], counts: NDArray[Any], limits: Limits) -> int:
    """Return the number of batches that Next-Fit Decreasing makes. Arguments as `count_sorted`."""
    budget = limits.max_tokens_per_batch
    max_sequences = limits.max_sequences_per_batch or int(counts.sum())
    num_batches = free_tokens = free_places = 0
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        fitting = min(free_tokens // size if size else count, free_places, count)
        free_tokens, free_places = free_tokens - fitting * size, free_places - fitting
        rest = count - fitting
        if rest:
            per_batch = min(budget // size if size else rest, max_sequences)
            num_batches += -(-rest // per_batch)
            in_last = (rest - 1) % per_batch + 1
            free_tokens, free_places = budget - in_last * size, max_sequences - in_last
    return num_batches


def compare_batches(layout: Layout, sizes: NDArray[np.int64], first_fit: int) -> dict[str, Batches]:
    """Return the batches of a plan, and those of other ways to make batches, by name.

    Args:
        layout: The layout of the plan.
        sizes: Tokens of each sequence, in order of the input.
        first_fit: The number of batches by First-Fit Decreasing.
    """
    limits, budget = layout.limits, layout.max_tokens_per_batch
    counts = [
        (of_group.tokens[::-1], of_group.sequences[::-1], limits)
        for of_group in counts_of_groups(layout.core, limits, layout.group_offsets)
    ]
    by_length = [count_sorted(*of_group) for of_group in counts]
    next_fit = sum(count_next_fit_decreasing(*of_group) for of_group in counts)
    found = {
        f"Padded, {number} sequences, in order of the input": count_padded(sizes, number)
        for number in (8, 16)
    }
    found[f"Padded, sorted by length, up to {budget:,} tokens"] = Batches(
        sum(batches.number for batches in by_length), sum(batches.tokens for batches in by_length)
    )
    found["Packed by Next-Fit Decreasing"] = Batches(next_fit, next_fit * budget)
    if first_fit != layout.num_batches:
        found["Packed by First-Fit Decreasing"] = Batches(first_fit, first_fit * budget)
    found["This plan"] = Batches(layout.num_batches, layout.num_batches * budget)
    return found


def count_fill(tokens: NDArray[np.int64], budget: int) -> list[tuple[str, int]]:
    """Return the classes of fill and the number of batches in each, the fullest first.

    Args:
        tokens: Tokens of each batch, with padding.
        budget: The token budget per batch.
    """
    fill = tokens / budget
    at_least = [int(np.count_nonzero(fill >= share)) for share in FILL_CLASSES]
    percent = [f"{100 * share:g}" for share in FILL_CLASSES]
    between = [f"{low} to {high} %" for high, low in itertools.pairwise(percent)]
    names = ["100 %", *between, f"below {percent[-1]} %"]
    numbers = np.diff([0, *at_least, len(tokens)]).tolist()
    return list(zip(names, numbers, strict=True))


def log_edges(low: int, high: int, split: int, num_bins: int = 64) -> list[int]:
    """Return the edges of bins of about equal width on a logarithmic scale, whole numbers.

    Args:
        low: The smallest value, at least 1.
        high: The largest value, over twice the smallest; it is less than the last edge.
        split: A value that is an edge, if it is in range.
        num_bins: The number of bins, about.

    Example:
        >>> log_edges(10, 99, split=50, num_bins=4)
        [10, 16, 28, 50, 89, 158]
    """
    step = ((high + 1) / low) ** (1 / num_bins) - 1
    edges = [split if low < split <= high else low]
    while edges[0] > low:
        edges.insert(0, max(low, edges[0] - max(1, round(edges[0] * step / (1 + step)))))
    while edges[-1] <= high:
        edges.append(edges[-1] + max(1, round(edges[-1] * step)))
    return edges


def even_edges(low: int, high: int, split: int = 0, num_bins: int = 64) -> list[int]:
    """Return the edges of bins of equal width, whole numbers. Arguments as for `log_edges`.

    Example:
        >>> even_edges(3, 12, num_bins=4)
        [3, 6, 9, 12, 15]
    """
    width = (high - low) // num_bins + 1
    first = split - -(-(split - low) // width) * width if low < split <= high else low
    return list(range(first, high + width + 1, width))


def ticks(low: float, high: float, number: int, is_log: bool = False) -> list[int]:
    """Return round whole numbers from `low` to `high`, about as many as asked for.

    On a logarithmic scale, from 1 on, they are powers of ten, and 2 and 5 times these, if there are
    enough of them.

    Example:
        >>> ticks(0, 47, 4), ticks(8, 700, 4, is_log=True)
        ([0, 20, 40], [10, 20, 50, 100, 200, 500])
    """
    if is_log:
        first, last = math.floor(math.log10(low)), math.floor(math.log10(high))
        step = (last - first) // 6 + 1
        powers = [10**power for power in range(first, last + 1, step)]
        found = [power * factor for power in powers for factor in (1, 2, 5)[: 1 if step > 1 else 3]]
        found = [value for value in found if low <= value <= high]
        if len(found) >= 3:
            return found
    distance = max((high - low) / number, 1)
    power = 10 ** math.floor(math.log10(distance))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= distance)
    return list(range(math.ceil(low / step) * step, math.floor(high) + 1, step))
