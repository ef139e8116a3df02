"""The offsets of batches, and the tokens of their sequences, from a layout alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, cases

from virnucpro import kernel
from virnucpro.data import GreedyPacker


def check_batches(layout: kernel.Layout, expected: list[list[int]], data: st.DataObject) -> None:
    """Compare the offsets and the tokens of ranges of batches with the sizes of each batch."""
    offsets = kernel.batch_offsets(layout)
    assert offsets.dtype == np.int64
    assert offsets.tolist() == list(itertools.accumulate(map(len, expected), initial=0))
    first = data.draw(st.integers(0, len(expected)))
    last = data.draw(st.integers(first, len(expected)))
    for begin, end in ((first, last), (0, len(expected)), (first, first)):
        tokens = kernel.tokens_of_batches(layout, begin, end)
        assert tokens.dtype == np.int64
        assert tokens.tolist() == list(itertools.chain(*expected[begin:end]))


@given(cases(), st.data())
def test_batches_of_first_fit_decreasing(case: Case, data: st.DataObject) -> None:
    packer = GreedyPacker(**case.parameters)
    batches = reference.first_fit_decreasing(case.lengths, **case.parameters)
    sizes = [[packer.limits.tokens(case.lengths[row]) for row in rows] for rows in batches]
    check_batches(packer.lay_out(packer.count(case.lengths)).core, sizes, data)


def pattern_of(sizes: list[int]) -> list[tuple[int, int]]:
    """Return the distinct sizes and their numbers, negative to put the largest first."""
    return [(-tokens, -len(list(equal))) for tokens, equal in itertools.groupby(sizes)]


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), max_size=12), st.data())
def test_batches_of_patterns(batches: list[list[int]], data: st.DataObject) -> None:
    """Any batches, in order of their patterns, which need not be those of a heuristic."""
    batches = sorted((sorted(sizes, reverse=True) for sizes in batches), key=pattern_of)
    packer = GreedyPacker(45, special_tokens=0)
    counts = packer.count(list(itertools.chain(*batches))).core
    place = {tokens: size for size, tokens in enumerate(counts.tokens.tolist())}
    offsets, sizes, sequences, num_batches = [0], [], [], []
    for pattern, same in itertools.groupby(batches):
        for tokens, number in pattern_of(pattern):
            sizes.append(place[-tokens])
            sequences.append(-number)
        offsets.append(len(sizes))
        num_batches.append(len(list(same)))
    columns = (np.array(values, np.int64) for values in (offsets, sizes, sequences, num_batches))
    check_batches(kernel.layout_from_patterns(counts, *columns), batches, data)


def test_batches_that_a_layout_does_not_have_are_refused() -> None:
    packer = GreedyPacker(100)
    layout = packer.lay_out(packer.count([60, 60, 30])).core
    for first, last in ((-1, 1), (0, 3), (2, 1), (3, 3), (-(2**63), 2**63 - 1)):
        with pytest.raises(ValueError, match=f"does not have batches {first} to {last}"):
            kernel.tokens_of_batches(layout, first, last)
    untyped: Any = kernel
    for arguments in ((layout, 0.0, 1), (layout, 0, 2**63), (layout, None, 1), (None, 0, 1)):
        with pytest.raises(TypeError):
            untyped.tokens_of_batches(*arguments)
    with pytest.raises(TypeError):
        untyped.batch_offsets(None)


def test_nothing_has_no_batches() -> None:
    packer = GreedyPacker(100)
    layout = packer.lay_out(packer.count([])).core
    assert kernel.batch_offsets(layout).tolist() == [0]
    assert kernel.tokens_of_batches(layout, 0, 0).tolist() == []


def test_one_batch_of_many_is_independent_of_the_others() -> None:
    """Reading the batches one by one gives what reading them together gives."""
    lengths = np.random.default_rng(0).integers(1, 1500, 20_000)
    packer = GreedyPacker(4096, max_sequences_per_batch=9)
    layout = packer.lay_out(packer.count(lengths)).core
    offsets = kernel.batch_offsets(layout)
    every = kernel.tokens_of_batches(layout, 0, layout.num_batches)
    assert len(every) == offsets[-1] == len(lengths)
    for batch, (begin, end) in enumerate(itertools.pairwise(offsets.tolist())):
        tokens = kernel.tokens_of_batches(layout, batch, batch + 1)
        assert tokens.tolist() == every[begin:end].tolist()
    np.testing.assert_array_equal(np.add.reduceat(every, offsets[:-1]), kernel.batch_tokens(layout))
