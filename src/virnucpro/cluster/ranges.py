"""Ranges of sizes and of batches with about equally many bytes, each the work of one task."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.layout import Layout, TokenCounts

# Bytes of rows per task, and the maximum number of ranges: tasks exchange their product.
TASK_BYTES = 2**27
MAX_RANGES = 512
# IDs drawn per part of a size, to divide its sequences into parts of about equal size.
SAMPLES = 64


class SizeRange(NamedTuple):
    """Sequences of a range of sizes, or a part of those of one size.

    Attributes:
        largest: The largest size in tokens.
        smallest: The smallest size in tokens.
        part: The number of the part, in order of ties; 0 if there is one.
    """

    largest: int
    smallest: int
    part: int = 0


def count_ranges(num_bytes: int) -> int:
    """Return the number of ranges for rows of this size."""
    return min(MAX_RANGES, -(-num_bytes // TASK_BYTES) or 1)


def weigh(tokens: NDArray[np.int64], counts: TokenCounts, num_bytes: int) -> NDArray[np.float64]:
    """Return about the bytes of a sequence of each size.

    Half of all bytes are taken to be equal for all rows, the other half to be in proportion to the
    tokens, as a column of residues is.
    """
    total = counts.total_tokens + counts.padding_tokens
    per_token = num_bytes / max(1, total)
    return (num_bytes / counts.num_sequences + per_token * tokens) / 2


def divide_sizes(counts: TokenCounts, num_bytes: int, num_ranges: int) -> list[SizeRange]:
    """Return ranges of sizes, largest first, of about equally many bytes.

    A size of which there are too many sequences is divided into parts.
    """
    weights = weigh(counts.tokens, counts, num_bytes) * counts.sequences
    target = float(weights.sum()) / num_ranges
    found: list[SizeRange] = []
    begin, sum_of_range = 0, 0.0
    tokens = counts.tokens.tolist()

    def close(end: int) -> None:
        if begin < end:
            found.append(SizeRange(tokens[begin], tokens[end - 1]))

    for number, weight in enumerate(weights.tolist()):
        num_parts = min(int(weight // target), counts.sequences[number]) if target else 0
        if num_parts > 1:
            close(number)
            found += [SizeRange(tokens[number], tokens[number], part) for part in range(num_parts)]
            begin, sum_of_range = number + 1, 0.0
            continue
        sum_of_range += weight
        if sum_of_range >= target:
            close(number + 1)
            begin, sum_of_range = number + 1, 0.0
    close(len(tokens))
    return found


# An ID and the number of its sequence, which are in order of ties.
Tie = tuple[Any, int]


def parted_sizes(ranges: Sequence[SizeRange]) -> dict[int, int]:
    """Return the number of parts of each size that is divided."""
    return {of_size.largest: of_size.part + 1 for of_size in ranges if of_size.part}


def choose_ties(samples: Sequence[Tie], num_parts: int) -> list[Tie]:
    """Return the first tie of each part of a size but the first, from samples of all.

    Without any sample, there are none, and the first part has all sequences.
    """
    if not samples:
        return []
    ordered = sorted(samples)
    return [ordered[len(ordered) * part // num_parts] for part in range(1, num_parts)]


def find_ties(ties: Sequence[Tie], ordered: Sequence[Tie] | Any) -> list[int]:
    """Return how many of `ordered` come before each tie."""
    return [bisect.bisect_left(ordered, tie) for tie in ties]


def divide_batches(layout: Layout, num_bytes: int, num_ranges: int) -> NDArray[np.int64]:
    """Return the first batch of each of some ranges of about equally many bytes, and the last end.

    Cost: O(runs * log(runs)), whatever the number of batches is.
    """
    if layout.num_batches == 0:
        return np.zeros(1, np.int64)
    counts, runs, first_run = layout.core.counts, layout.core.runs, layout.core.first_run
    sizes = np.repeat(counts.tokens, np.diff(first_run))
    weights = weigh(sizes, TokenCounts(counts, layout.limits), num_bytes) * runs["per_batch"]
    ends = runs["first_batch"] + runs["num_batches"]
    # The bytes per batch change where a run begins or ends.
    places = np.concatenate([runs["first_batch"], ends])
    changes = np.concatenate([weights, -weights])
    order = np.argsort(places, kind="stable")
    edges = places[order].astype(np.float64)
    per_batch = np.cumsum(changes[order])
    before = np.append(0.0, np.cumsum(per_batch[:-1] * np.diff(edges)))
    targets = before[-1] * np.arange(1, num_ranges) / num_ranges
    inner = np.rint(np.interp(targets, np.maximum.accumulate(before), edges)).astype(np.int64)
    return np.unique(np.concatenate([[0], inner, [layout.num_batches]]))


def rows_before(layout: Layout, edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sequences in the batches before each of some batches, in order.

    Cost: O(runs * edges).
    """
    runs = layout.core.runs

    def before(edge: int) -> int:
        num_batches = np.clip(edge - runs["first_batch"], 0, runs["num_batches"])
        return int((num_batches * runs["per_batch"]).sum())

    return np.array([before(edge) for edge in edges.tolist()], np.int64)
