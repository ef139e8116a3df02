"""First-Fit Decreasing as it is defined, by the obvious algorithm, and what any plan must be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from virnucpro.data import GreedyPacker, PackingPlan


def round_up(tokens: int, multiple_of: int) -> int:
    """Return the smallest multiple that is not less."""
    return -(-tokens // multiple_of) * multiple_of


def find_limit(
    max_tokens_per_batch: int,
    max_sequence_length: int,
    special_tokens: int,
    multiple_of: int = 1,
    **_: Any,
) -> int:
    """Return the most residues of a sequence, whose tokens, rounded up, fit in a batch."""
    usable = max_tokens_per_batch // multiple_of * multiple_of
    return min(max_sequence_length, usable - special_tokens)


def first_fit_decreasing(
    lengths: Sequence[int],
    max_tokens_per_batch: int,
    max_sequence_length: int = 1022,
    special_tokens: int = 2,
    max_sequences_per_batch: int | None = None,
    multiple_of: int = 1,
    ids: Sequence[Any] | None = None,
) -> list[list[int]]:
    """Return the rows of each batch in order of placement."""
    limit = find_limit(max_tokens_per_batch, max_sequence_length, special_tokens, multiple_of)
    tokens = [round_up(min(length, limit) + special_tokens, multiple_of) for length in lengths]
    rows = sorted(
        range(len(lengths)), key=lambda row: (-tokens[row], 0 if ids is None else ids[row], row)
    )
    batches: list[list[int]] = []
    free: list[int] = []
    for row in rows:
        for batch, room in enumerate(free):
            has_place = max_sequences_per_batch is None or (
                len(batches[batch]) < max_sequences_per_batch
            )
            if tokens[row] <= room and has_place:
                batches[batch].append(row)
                free[batch] -= tokens[row]
                break
        else:
            batches.append([row])
            free.append(max_tokens_per_batch - tokens[row])
    return batches


def check_plan(plan: PackingPlan, lengths: Sequence[int], packer: GreedyPacker) -> None:
    """Check coverage, limits and order, from the rows alone."""
    assert sorted(plan.indices.tolist()) == list(range(len(lengths)))
    limit = plan.max_sequence_length
    tokens = [
        round_up(min(length, limit) + plan.special_tokens, plan.multiple_of) for length in lengths
    ]
    longest = []
    for rows in plan:
        of_rows = [tokens[row] for row in rows.tolist()]
        assert sum(of_rows) <= packer.max_tokens_per_batch
        assert 1 <= len(of_rows) <= (packer.max_sequences_per_batch or len(lengths))
        assert of_rows == sorted(of_rows, reverse=True)
        longest.append(of_rows[0])
    assert longest == sorted(longest, reverse=True)
    # Equal ones in order of rows.
    order = sorted(plan.indices.tolist(), key=lambda row: -tokens[row])
    assert order == sorted(order, key=lambda row: (-tokens[row], row))


def batches_of(plan: PackingPlan) -> list[list[int]]:
    """Return the rows of each batch of a plan."""
    return [rows.tolist() for rows in plan]


def places_of(batches: list[list[int]], num_rows: int) -> tuple[list[int], list[int]]:
    """Return the batch and the slot of each row."""
    batch_of, slot_of = [-1] * num_rows, [-1] * num_rows
    for batch, rows in enumerate(batches):
        for slot, row in enumerate(rows):
            batch_of[row], slot_of[row] = batch, slot
    return batch_of, slot_of
