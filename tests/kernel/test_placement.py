"""Sequences placed in open batches, each in the first with room."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import Case, cases

from virnucpro import kernel
from virnucpro.data import GreedyPacker, Limits

Open = list[tuple[int, int]]


def place(open_batches: Open, sizes: list[int], limits: Limits) -> NDArray[np.int64]:
    tokens, sequences = (np.array([batch[i] for batch in open_batches], np.int64) for i in (0, 1))
    return kernel.place(tokens, sequences, np.array(sizes, np.int64), limits)


def place_naively(open_batches: Open, sizes: list[int], limits: Limits) -> list[int]:
    batches = list(open_batches)
    placed = []
    for size in sizes:
        batch = next(
            batch
            for batch, (tokens, sequences) in enumerate([*batches, (0, 0)])
            if tokens + size <= limits.max_tokens_per_batch
            and sequences != limits.max_sequences_per_batch
        )
        tokens, sequences = batches[batch] if batch < len(batches) else (0, 0)
        batches[batch : batch + 1] = [(tokens + size, sequences + 1)]
        placed.append(batch)
    return placed


@given(cases(), st.data())
def test_each_sequence_in_the_first_batch_with_room(case: Case, data: st.DataObject) -> None:
    limits = Limits(**case.parameters)
    sizes = data.draw(st.permutations([limits.tokens(length) for length in case.lengths]))
    budget = limits.max_tokens_per_batch
    tokens = st.one_of(st.integers(0, budget), st.integers(max(0, budget - 3), budget))
    sequences = st.integers(0, limits.max_sequences_per_batch or 2**40)
    open_batches = data.draw(st.lists(st.tuples(tokens, sequences), max_size=6))
    placed = place(open_batches, sizes, limits)
    assert placed.dtype == np.int64
    assert placed.tolist() == place_naively(open_batches, sizes, limits)


@given(cases())
def test_without_open_batches_it_is_first_fit_decreasing(case: Case) -> None:
    packer = GreedyPacker(**case.parameters)
    plan = packer.pack_lengths(case.lengths)
    sizes = sorted((packer.limits.tokens(length) for length in case.lengths), reverse=True)
    placed = place([], sizes, packer.limits)
    found: list[list[int]] = [[] for _ in range(len(plan))]
    for size, batch in zip(sizes, placed.tolist(), strict=True):
        found[batch].append(size)
    assert found == [plan.tokens(batch).tolist() for batch in range(len(plan))]


def test_many_sequences() -> None:
    sizes = np.sort(np.random.default_rng(0).integers(1, 1000, 20_000))[::-1].tolist()
    limits = Limits(1000, special_tokens=0, max_sequences_per_batch=3)
    assert place([(500, 1)] * 7, sizes, limits).tolist() == place_naively(
        [(500, 1)] * 7, sizes, limits
    )


def test_what_exceeds_a_limit_is_refused() -> None:
    limits = Limits(10, 10, special_tokens=0, max_sequences_per_batch=2)
    for size in (-1, 11, 2**63 - 1, -(2**63)):
        with pytest.raises(ValueError, match="a size is out of range"):
            place([], [3, size], limits)
        with pytest.raises(ValueError, match="an open batch is out of range"):
            place([(3, 1), (size, 1)], [], limits)
    for sequences in (-1, 3, 2**63 - 1):
        with pytest.raises(ValueError, match="an open batch is out of range"):
            place([(3, sequences)], [], limits)
    wide = dataclasses.replace(limits, max_tokens_per_batch=2**62, max_sequences_per_batch=None)
    assert place([(2**62 - 1, 2**63 - 2)], [1, 2**62, 1], wide).tolist() == [0, 1, 2]


def test_arguments_are_checked() -> None:
    one, two = np.zeros(1, np.int64), np.zeros(2, np.int64)
    limits = Limits(10)
    with pytest.raises(ValueError, match="one number per open batch"):
        kernel.place(one, two, one, limits)
    untyped: Any = kernel.place
    strided = np.zeros(4, np.int64)[::2]
    wrong: list[Any] = [strided, one.astype(np.int32), one.astype(np.float64), [0], None]
    for value in wrong:
        for arguments in ((value, one, one), (one, value, one), (one, one, value)):
            with pytest.raises(TypeError):
                untyped(*arguments, limits)
    with pytest.raises(AttributeError):
        untyped(one, one, one, None)
