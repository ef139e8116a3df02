"""Streams of records, and the obvious algorithm that packs them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from virnucpro.data import Limits

Record = dict[str, Any]
Rows = list[int]


class Documents(IterableDataset[Record]):
    """Records of token IDs, of which each is a number of its own."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)

    def __iter__(self) -> Iterator[Record]:
        first = 0
        for row, length in enumerate(self.lengths):
            ids = list(range(first, first + length))
            yield {"id": f"d{row * 7 % 100}", "input_ids": ids, "labels": [-i for i in ids]}
            first += length


class Stateful(Documents):
    """The same, which can also begin at any record."""

    begin = num_read = 0

    def __iter__(self) -> Iterator[Record]:
        begin, self.begin = self.begin, 0
        for row, record in enumerate(super().__iter__()):
            if row >= begin:
                self.num_read = row + 1
                yield record

    def state_dict(self) -> dict[str, int]:
        return {"read": self.num_read}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.begin = state["read"]


def some_lengths(number: int, longest: int = 60, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randint(1, longest) for _ in range(number)]


def log_normal(number: int, mean: float, sigma: float, longest: int) -> list[int]:
    draw = np.random.default_rng(0).lognormal(mean, sigma, number)
    lengths: list[int] = np.clip(draw.astype(np.int64), 1, longest).tolist()
    return lengths


def pack(
    sizes: list[int], ids: list[Any] | None, limits: Limits, buffer_size: int, max_open: int
) -> tuple[list[Rows], list[Rows]]:
    """Return the batches that are closed until the stream ends, and those closed then."""
    budget, most = limits.usable_tokens, limits.max_sequences_per_batch
    opened: list[Rows] = []
    closed: list[Rows] = []

    def tokens(batch: Rows) -> int:
        return sum(sizes[row] for row in batch)

    def has_room(batch: Rows, size: int) -> bool:
        return len(batch) != most and tokens(batch) + size <= budget

    def close(max_open: int) -> None:
        rest = [batch for batch in opened if has_room(batch, limits.tokens(1))]
        while len(rest) > max_open:
            rest.remove(max(rest, key=tokens))
        full = [batch for batch in opened if batch not in rest]
        opened[:] = rest
        closed.extend(sorted(batch, key=lambda row: -sizes[row]) for batch in full)

    for begin in range(0, len(sizes), buffer_size):
        rows = range(begin, min(begin + buffer_size, len(sizes)))
        for row in sorted(rows, key=lambda row: (-sizes[row], ids[row] if ids else 0)):
            for batch in opened:
                if has_room(batch, sizes[row]):
                    batch.append(row)
                    break
            else:
                opened.append([row])
        if len(rows) == buffer_size:
            close(max_open)
    number = len(closed)
    close(0)
    return closed[:number], closed[number:]


def split(batches: list[Rows], world_size: int) -> list[Rows]:
    """Return batches of which those with most sequences were halved, equally many per rank."""
    batches = list(batches)
    while len(batches) % world_size:
        largest = max(map(len, batches))
        at = next(i for i, batch in enumerate(batches) if len(batch) == largest)
        half = -(-largest // 2)
        batches[at : at + 1] = [batches[at][:half], batches[at][half:]]
    return batches


def is_enough(closed: list[Rows], last: list[Rows], world_size: int) -> bool:
    """Whether the batches that are left at the end can be split."""
    rest = closed[len(closed) // world_size * world_size :] + last
    return sum(map(len, rest)) >= -(-len(rest) // world_size) * world_size


def share_out(closed: list[Rows], last: list[Rows], world_size: int) -> list[list[Rows]]:
    """Return the batches of each rank."""
    begin = len(closed) // world_size * world_size
    batches = closed[:begin] + split(closed[begin:] + last, world_size)
    return [batches[rank::world_size] for rank in range(world_size)]


def after(
    closed: list[Rows], last: list[Rows], world_size: int, num_steps: int
) -> tuple[list[Rows], list[Rows]]:
    """Return the batches that are left after some steps, as `pack` returns all."""
    done = num_steps * world_size
    begin = len(closed) // world_size * world_size
    if done <= begin:
        return closed[done:], last
    return [], split(closed[begin:] + last, world_size)[done - begin :]
