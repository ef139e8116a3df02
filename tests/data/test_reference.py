"""The packer against the naive reference, the optimum and other heuristics."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from reference import batches_of, places_of
from strategies import Case, cases, texts

from virnucpro.data import GreedyPacker


@pytest.mark.compare
@given(cases())
def test_equals_reference(case: Case) -> None:
    expected = reference.first_fit_decreasing(case.lengths, **case.parameters)
    plan = GreedyPacker(**case.parameters).pack_lengths(case.lengths)
    assert batches_of(plan) == expected


@pytest.mark.compare
@given(cases(), st.data())
def test_equals_reference_with_ids(case: Case, data: st.DataObject) -> None:
    kinds: list[st.SearchStrategy[Any]] = [
        texts(),
        st.integers(-3, 3),
        st.integers(-(2**70), 2**70),
    ]
    kind = data.draw(st.sampled_from(kinds))
    ids = data.draw(st.lists(kind, min_size=len(case.lengths), max_size=len(case.lengths)))
    expected = reference.first_fit_decreasing(case.lengths, **case.parameters, ids=ids)
    plan = GreedyPacker(**case.parameters).pack_lengths(case.lengths, ids)
    assert batches_of(plan) == expected


@pytest.mark.compare
@given(cases(max_size=25), st.data())
def test_records_equal_reference(case: Case, data: st.DataObject) -> None:
    lengths = [min(length, 2000) for length in case.lengths]
    ids = data.draw(st.lists(texts(), min_size=len(lengths), max_size=len(lengths)))
    records = [
        {"id": identifier, "sequence": "M" * length}
        for identifier, length in zip(ids, lengths, strict=True)
    ]
    expected = reference.first_fit_decreasing(lengths, **case.parameters, ids=ids)
    packer = GreedyPacker(**case.parameters)
    limit = case.limit
    batches = packer.pack_sequences(records)
    assert batches == [
        [
            records[row]
            if lengths[row] <= limit
            else {"id": ids[row], "sequence": "M" * limit, "truncated": True}
            for row in rows
        ]
        for rows in expected
    ]
    assert packer.compute_efficiency(batches) == packer.pack_lengths(lengths).efficiency


@pytest.mark.compare
@given(cases(), st.randoms(use_true_random=False))
def test_row_order_does_not_matter_with_unique_ids(case: Case, rng: random.Random) -> None:
    packer = GreedyPacker(**case.parameters)
    ids = [f"seq{row}" for row in range(len(case.lengths))]
    shuffled = list(range(len(ids)))
    rng.shuffle(shuffled)
    plan = packer.pack_lengths(case.lengths, ids)
    again = packer.pack_lengths(
        [case.lengths[row] for row in shuffled], [ids[row] for row in shuffled]
    )
    assert batches_of(plan) == [[shuffled[row] for row in rows.tolist()] for rows in again]


@pytest.mark.compare
@given(cases(), st.lists(st.integers(0, 60), max_size=4), st.booleans())
def test_pieces_add_up_to_the_whole(case: Case, cuts: list[int], as_list: bool) -> None:
    packer = GreedyPacker(**case.parameters)
    expected = reference.first_fit_decreasing(case.lengths, **case.parameters)
    bounds = [0, *sorted(min(cut, len(case.lengths)) for cut in cuts), len(case.lengths)]
    pieces: list[Any] = [
        case.lengths[i:j] if as_list else np.array(case.lengths[i:j], np.uint64)
        for i, j in itertools.pairwise(bounds)
    ]
    before = [packer.count([])]
    for piece in pieces:
        before.append(before[-1] + packer.count(piece))
    layout = packer.lay_out(before[-1])
    assert layout == packer.lay_out(packer.count(case.lengths))
    batches, slots = [], []
    for piece, counted in zip(pieces, before, strict=False):
        batches += layout.assign(piece, before=counted).tolist()
        slots += layout.slots(piece, before=counted).tolist()
    assert (batches, slots) == places_of(expected, len(case.lengths))


@given(cases())
def test_layout_totals(case: Case) -> None:
    packer = GreedyPacker(**case.parameters)
    plan = packer.pack_lengths(case.lengths)
    limit = case.limit
    real = [min(length, limit) + case.special_tokens for length in case.lengths]
    tokens = [reference.round_up(number, case.multiple_of) for number in real]
    over = [length - limit for length in case.lengths if length > limit]
    assert plan.num_sequences == len(tokens) == plan.offsets[-1]
    assert plan.num_batches == len(plan) == len(plan.offsets) - 1
    assert plan.total_tokens == sum(real)
    assert plan.padding_tokens == sum(tokens) - sum(real)
    assert (plan.num_truncated, plan.truncated_residues) == (len(over), sum(over))
    assert plan.max_sequence_length == limit
    assert plan.special_tokens == case.special_tokens
    assert plan.multiple_of == case.multiple_of
    assert plan.batch_tokens.tolist() == [sum(tokens[row] for row in rows) for rows in plan]
    assert plan.batch_tokens.max(initial=0) <= case.max_tokens_per_batch
    assert np.all(np.diff(plan.offsets) >= 1)
    assert np.diff(plan.offsets).max(initial=0) <= (case.max_sequences_per_batch or len(tokens))
    assert -(-sum(tokens) // case.max_tokens_per_batch) <= plan.lower_bound <= plan.num_batches
    if case.max_sequences_per_batch:
        assert plan.lower_bound >= -(-len(tokens) // case.max_sequences_per_batch)
    assert (plan.lower_bound > 0) == bool(tokens) or sum(tokens) == 0
    capacity = len(plan) * case.max_tokens_per_batch
    assert plan.efficiency == (sum(real) / capacity if capacity else 0.0)


def least_batches(tokens: list[int], budget: int) -> int:
    """Return the optimum, by exhaustive search."""
    best = len(tokens)

    def place(position: int, free: list[int]) -> None:
        nonlocal best
        if len(free) >= best:
            return
        if position == len(tokens):
            best = len(free)
            return
        for batch in range(len(free)):
            if free[batch] >= tokens[position]:
                free[batch] -= tokens[position]
                place(position + 1, free)
                free[batch] += tokens[position]
        place(position + 1, [*free, budget - tokens[position]])

    place(0, [])
    return best


@given(st.lists(st.integers(1, 20), max_size=7), st.integers(20, 40))
def test_lower_bound_is_at_most_the_optimum(tokens: list[int], budget: int) -> None:
    plan = GreedyPacker(budget, special_tokens=0).pack_lengths(tokens)
    assert plan.lower_bound <= least_batches(tokens, budget) <= plan.num_batches


def test_lower_bound_counts_gaps_beside_large_sequences() -> None:
    # 3 of 60 tokens leave 40 each, of which those of 45 can use nothing.
    plan = GreedyPacker(100, special_tokens=0).pack_lengths([60, 60, 60, 45, 45])
    assert -(-plan.total_tokens // 100) == 3
    assert plan.lower_bound == 4 == plan.num_batches
    assert plan.proven_optimal
    assert not GreedyPacker(12, special_tokens=0).pack_lengths([5, 5, 4, 4, 3, 3]).proven_optimal


def test_is_first_fit_not_best_fit_or_next_fit() -> None:
    tokens = [8, 5, 4, 1, 1]
    budget = 10

    def pack(choose: Any) -> list[list[int]]:
        batches: list[list[int]] = []
        for size in tokens:
            fitting = [i for i, batch in enumerate(batches) if sum(batch) + size <= budget]
            chosen = choose(fitting, batches)
            if chosen is None:
                batches.append([size])
            else:
                batches[chosen].append(size)
        return batches

    def next_fit(fitting: list[int], batches: list[list[int]]) -> int | None:
        return fitting[-1] if fitting and fitting[-1] == len(batches) - 1 else None

    def best_fit(fitting: list[int], batches: list[list[int]]) -> int | None:
        return max(fitting, key=lambda i: (sum(batches[i]), -i), default=None)

    def first_fit(fitting: list[int], _: list[list[int]]) -> int | None:
        return fitting[0] if fitting else None

    plan = GreedyPacker(budget, special_tokens=0).pack_lengths(tokens)
    packed = [[tokens[row] for row in rows] for rows in plan]
    assert packed == pack(first_fit)
    assert packed != pack(best_fit)
    assert packed != pack(next_fit)
    assert pack(best_fit) != pack(next_fit)
