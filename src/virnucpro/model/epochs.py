"""The batches of an epoch, and their order: steps of batches alike in cost, one per rank."""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.data.plan import PackingPlan
from virnucpro.kernel.arguments import check_threads
from virnucpro.kernel.limits import Limits

# Batches whose costs are computed at a time.
CHUNK = 2**16


class Batches(NamedTuple):
    """Some batches, as ranges of positions in the rows of an epoch.

    Attributes:
        begins: The position of the first row of each batch, int64 [n].
        ends: The position after its last row, int64 [n].
        costs: The sum of the squared tokens of its sequences, float64 [n].
    """

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    costs: NDArray[np.float64]

    def take(self, order: NDArray[np.int64] | slice) -> Batches:
        """Return the batches with these numbers."""
        return Batches(self.begins[order], self.ends[order], self.costs[order])


class Epoch(NamedTuple):
    """The batches of an epoch, before they are split among ranks.

    Attributes:
        plan: A plan with these rows; its batches are others if it was packed anew.
        indices: Row numbers, batch by batch; None for those of the plan.
        batches: The batches, in order of positions.
    """

    plan: PackingPlan
    indices: NDArray[Any] | None
    batches: Batches

    def rows(self, begin: int, end: int) -> NDArray[Any]:
        """Return the row numbers from one position to another."""
        if self.indices is None:
            return self.plan.slice_indices(begin, end)
        return self.indices[begin:end]


def batch_costs(plan: PackingPlan) -> NDArray[np.float64]:
    """Return the sum of the squared tokens of the sequences of each batch, float64 [n].

    The cost of attention. That of all other layers is the same for equally full batches.
    """
    costs = np.empty(len(plan))
    for first in range(0, len(plan), CHUNK):
        last = min(first + CHUNK, len(plan))
        tokens = kernel.tokens_of_batches(plan.core, first, last).astype(np.float64)
        offsets = plan.offsets[first:last] - plan.offsets[first]
        costs[first:last] = np.add.reduceat(tokens * tokens, offsets)
    return costs


def pack_windows(plan: PackingPlan, window: int, random: np.random.Generator) -> Epoch:
    """Pack the sequences of a plan anew, by First-Fit Decreasing in windows drawn at random.

    The emptiest batch of each window is packed again with the next one. Groups stay apart.

    Cost: O(n), and O(distinct sizes) per window.
    """
    budget = plan.max_tokens_per_batch
    limits = Limits(budget, budget, 0, plan.max_sequences_per_batch)
    num_threads = check_threads(plan.num_threads)
    number = np.int32 if max(budget, plan.num_sequences) < 2**31 else np.int64
    sizes = kernel.tokens_of_batches(plan.core, 0, len(plan)).astype(number)
    groups = np.array([0, len(plan)]) if plan.group_offsets is None else plan.group_offsets
    indices, filled = np.empty_like(plan.indices), 0
    lengths, costs = [np.zeros(1, np.int64)], [np.empty(0)]
    for begin, end in pairwise(plan.offsets[groups].tolist()):
        drawn = random.permutation(np.arange(begin, end, dtype=number))
        left = drawn[:0]
        for first in range(0, len(drawn), window):
            chosen = np.append(left, drawn[first : first + window])
            layout = kernel.first_fit_decreasing(kernel.count(sizes[chosen], limits, num_threads))
            rows, offsets = kernel.list_rows(layout, sizes[chosen], None, num_threads)
            rows, its_lengths = chosen[rows], np.diff(offsets)
            its_costs = np.add.reduceat(sizes[rows].astype(np.float64) ** 2, offsets[:-1])
            if first + window < len(drawn):
                emptiest = int(np.argmin(kernel.batch_tokens(layout)))
                of_emptiest = slice(*offsets[emptiest : emptiest + 2])
                left, rows = rows[of_emptiest], np.delete(rows, of_emptiest)
                its_lengths, its_costs = (np.delete(x, emptiest) for x in (its_lengths, its_costs))
            indices[filled : filled + len(rows)] = plan.indices[rows]
            filled += len(rows)
            lengths.append(its_lengths)
            costs.append(its_costs)
    offsets = np.cumsum(np.concatenate(lengths))
    return Epoch(plan, indices, Batches(offsets[:-1], offsets[1:], np.concatenate(costs)))


def deal(
    batches: Batches, world_size: int, number: int, random: np.random.Generator | None
) -> Batches:
    """Return batches in the order in which ranks get them in turn.

    Args:
        batches: The batches, in order of positions.
        world_size: The number of ranks, and of batches per step.
        number: How many batches to return. To have more, those with the most sequences are halved;
            to have fewer, some are left out, the last or random ones.
        random: Draws the order of steps, and that of the batches of a step, which are alike in
            cost. If None, batches stay in order.

    Raises:
        ValueError: There are too few sequences for `number` batches.
    """
    if number > len(batches.begins):
        batches = split_batches(batches, number)
    if random is None:
        return batches.take(slice(number))
    if number < len(batches.begins):
        kept = random.permutation(len(batches.begins))[:number]
        batches = batches.take(np.sort(kept))
    order = np.argsort(-batches.costs, kind="stable")
    whole = number - number % world_size
    steps = random.permutation(order[:whole].reshape(-1, world_size))
    steps = random.permuted(steps, axis=1)
    # An incomplete step is the last, so that ranks get equally many batches or one more.
    return batches.take(np.append(steps, order[whole:]))


def split_batches(batches: Batches, number: int) -> Batches:
    """Return `number` batches, after halving those with the most sequences, in their order."""
    sizes = batches.ends - batches.begins
    if number > sizes.sum():
        raise ValueError(
            f"{sizes.sum():,} sequences in {len(sizes):,} batches cannot be split into "
            f"{number:,}, equally many per rank; use even=False to keep them"
        )
    num_splits = number - len(sizes)
    # Only these batches and their halves can be split.
    largest = np.argsort(-sizes, kind="stable")[:num_splits]
    heap = [(-int(sizes[batch]), int(batches.begins[batch])) for batch in largest]
    heapq.heapify(heap)
    splits = []
    for _ in range(num_splits):
        size, begin = heap[0]
        half = (1 - size) // 2
        splits.append(begin + half)
        heapq.heapreplace(heap, (-half, begin))
        heapq.heappush(heap, (size + half, begin + half))
    begins = np.sort(np.append(batches.begins, splits))
    whole = np.searchsorted(batches.begins, begins, side="right") - 1
    ends = np.minimum(np.append(begins[1:], batches.ends[-1:]), batches.ends[whole])
    # Halves are taken to cost half.
    return Batches(begins, ends, batches.costs[whole] * (ends - begins) / sizes[whole])
