"""Batches of a stream that wait for more sequences, and the last of them, split among ranks."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.data.packing import GreedyPacker
from virnucpro.data.records import Record
from virnucpro.kernel.arguments import OrderedIds
from virnucpro.kernel.limits import MAX_TOKENS, Limits


class Part(NamedTuple):
    """A sequence of a batch: a record, from `start` to `stop`.

    Attributes:
        record: The whole record.
        row: The number of the record in the stream.
        start: The position of its first residue in the batch.
        stop: The position after its last residue in the batch.
        length: Residues of the whole record.
        tokens: Its tokens in the batch.
        extra: What was made of the record when it was measured.
    """

    record: Record
    row: int
    start: int
    stop: int
    length: int
    tokens: int
    extra: Any = None


Batch = list[Part]

tokens_of = operator.attrgetter("tokens")


class OpenBatches:
    """The batches of a stream that have room, in order of opening.

    Args:
        limits: The limits on batches.
        batches: The batches that are open.
    """

    def __init__(self, limits: Limits, batches: list[Batch]) -> None:
        self.limits = limits
        self.batches = batches

    def add(self, parts: list[Part]) -> None:
        """Place sequences in the given order, each in the first batch with room or a new one."""
        tokens = np.array(list(map(count_tokens, self.batches)), np.int64)
        sequences = np.array(list(map(len, self.batches)), np.int64)
        sizes = np.fromiter(map(tokens_of, parts), np.int64, len(parts))
        placed = kernel.place(tokens, sequences, sizes, self.limits).tolist()
        for part, batch in zip(parts, placed, strict=True):
            if batch == len(self.batches):
                self.batches.append([])
            self.batches[batch].append(part)

    def close(self, max_open: int) -> list[Batch]:
        """Close batches without room, and the fullest ones until at most `max_open` are open.

        Returns:
            The batches that are closed, in order of opening, each with the largest size first.
        """
        tokens = list(map(count_tokens, self.batches))
        most = self.limits.usable_tokens - self.limits.tokens(1)
        with_room = [
            number
            for number, batch in enumerate(self.batches)
            if tokens[number] <= most and len(batch) != self.limits.max_sequences_per_batch
        ]
        # The oldest of equally full ones are closed first.
        emptiest = sorted(with_room, key=lambda number: (tokens[number], -number))[:max_open]
        batches = self.batches
        self.batches = [batches[number] for number in sorted(emptiest)]
        closed = [batches[number] for number in sorted({*range(len(batches))} - {*emptiest})]
        return [sorted(batch, key=tokens_of, reverse=True) for batch in closed]


def count_tokens(batch: Batch) -> int:
    """Return the tokens of a batch."""
    return sum(map(tokens_of, batch))


def largest_first(
    sizes: NDArray[np.int64], ids: OrderedIds | None, num_threads: int | None
) -> NDArray[Any]:
    """Return the numbers of sequences in decreasing order of size, ties by ID, then by number."""
    # A single batch without limits holds all sequences in this order.
    whole = GreedyPacker(MAX_TOKENS, MAX_TOKENS, special_tokens=0, num_threads=num_threads)
    return whole.pack_lengths(sizes, ids).indices


def split_evenly(batches: list[Batch], world_size: int) -> list[Batch]:
    """Return batches after those with the most sequences were halved, equally many per rank.

    Raises:
        ValueError: They have too few sequences.
    """
    num_splits = -len(batches) % world_size
    num_sequences = sum(map(len, batches))
    if num_sequences < len(batches) + num_splits:
        raise ValueError(
            f"the last {num_sequences:,} sequences of the stream, in {len(batches):,} batches, "
            f"cannot be split into {len(batches) + num_splits:,} batches, equally many for each of "
            f"{world_size:,} ranks; use even=False, or other records"
        )
    batches = list(batches)
    for _ in range(num_splits):
        largest = max(range(len(batches)), key=lambda number: len(batches[number]))
        batch = batches[largest]
        half = (len(batch) + 1) // 2
        batches[largest : largest + 1] = [batch[:half], batch[half:]]
    return batches
