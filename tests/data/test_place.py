"""Sequences placed by their size and their rank among those of their size."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from proteins import short_lengths
from reference import first_fit_decreasing, places_of
from strategies import Case, cases

from virnucpro.data import GreedyPacker, Layout, TokenCounts


def ranks_of(tokens: list[int]) -> list[int]:
    """Return the number of equal values before each value."""
    seen: Counter[int] = Counter()
    ranks = []
    for size in tokens:
        ranks.append(seen[size])
        seen[size] += 1
    return ranks


@given(cases(), st.data())
def test_places_are_those_of_first_fit_decreasing(case: Case, data: st.DataObject) -> None:
    packer = GreedyPacker(**case.parameters)
    layout = packer.lay_out(packer.count(case.lengths))
    sizes = [packer.limits.tokens(length) for length in case.lengths]
    expected = places_of(first_fit_decreasing(case.lengths, **case.parameters), len(sizes))
    ranks = ranks_of(sizes)
    batches, slots = layout.place(sizes, ranks)
    assert batches.dtype == slots.dtype == np.int32
    assert (batches.tolist(), slots.tolist()) == expected
    np.testing.assert_array_equal(batches, layout.assign(case.lengths))
    np.testing.assert_array_equal(slots, layout.slots(case.lengths))
    rows = data.draw(st.permutations(range(len(sizes))))
    batches, slots = layout.place([sizes[row] for row in rows], [ranks[row] for row in rows])
    assert batches.tolist() == [expected[0][row] for row in rows]
    assert slots.tolist() == [expected[1][row] for row in rows]


def all_places(layout: Layout, counts: TokenCounts) -> NDArray[np.int64]:
    """The places of all sequences, the largest first."""
    tokens = np.repeat(counts.tokens, counts.sequences)
    ends = np.cumsum(counts.sequences)
    ranks = np.arange(len(tokens)) - np.repeat(ends - counts.sequences, counts.sequences)
    return np.stack(layout.place(tokens, ranks)).astype(np.int64)


def check_all_places(layout: Layout, counts: TokenCounts) -> None:
    """Check that the places of all sequences are the slots of all batches, each once."""
    batches, slots = all_places(layout, counts)
    tokens = np.bincount(
        batches, np.repeat(counts.tokens, counts.sequences), minlength=layout.num_batches
    )
    np.testing.assert_array_equal(tokens, layout.batch_tokens)
    sizes = np.bincount(batches, minlength=layout.num_batches)
    order = np.lexsort((slots, batches))
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    np.testing.assert_array_equal(slots[order], np.arange(len(slots)) - starts)
    # In order of decreasing size within a batch.
    in_order = np.repeat(counts.tokens, counts.sequences)[order]
    assert (np.diff(in_order)[np.diff(batches[order]) == 0] <= 0).all()


@given(cases())
def test_all_places_are_all_slots(case: Case) -> None:
    packer = GreedyPacker(**case.parameters)
    counts = packer.count(case.lengths)
    check_all_places(packer.lay_out(counts), counts)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_many_sequences(num_threads: int) -> None:
    lengths = short_lengths(200_000)
    packer = GreedyPacker(4096, num_threads=num_threads)
    counts = packer.count(lengths)
    layout = packer.lay_out(counts)
    tokens = lengths + 2
    order = np.argsort(tokens, kind="stable")
    ranks = np.empty(len(tokens), np.int64)
    begins = np.searchsorted(tokens[order], tokens[order])
    ranks[order] = np.arange(len(tokens)) - begins
    for kind in (np.int32, np.int64):
        for rows in (slice(None), slice(None, None, -3), order):
            batches, slots = layout.place(tokens[rows].astype(kind), ranks[rows].astype(kind))
            np.testing.assert_array_equal(batches, layout.assign(lengths)[rows])
            np.testing.assert_array_equal(slots, layout.slots(lengths)[rows])
    ranks[[150_003, 199_999]] = counts.num_sequences
    with pytest.raises(ValueError, match=r"rank\[150003\] must be from 0 to"):
        layout.place(tokens, ranks)


@pytest.mark.parametrize("number", [2**31 - 1, 2**31, 3 * 10**12, 2**62 + 3])
def test_more_sequences_than_any_array(number: int) -> None:
    packer = GreedyPacker(2, special_tokens=0)
    layout = packer.lay_out(TokenCounts.from_pairs([1], [number], packer.limits))
    ranks = [number - 1, 0, number // 2, number - 2]
    batches, slots = layout.place([1] * 4, ranks)
    assert batches.dtype == slots.dtype == (np.int32 if number < 2**31 else np.int64)
    assert batches.tolist() == [rank // 2 for rank in ranks]
    assert slots.tolist() == [rank % 2 for rank in ranks]
    for rank in (number, -1):
        with pytest.raises(
            ValueError,
            match=rf"rank\[1\] must be from 0 to {number - 1} for .* 1 tokens \(got {rank}\)",
        ):
            layout.place([1, 1], [0, rank])


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u2"])
def test_every_integer_type_and_stride(dtype: str) -> None:
    packer = GreedyPacker(100)
    layout = packer.lay_out(packer.count([30, 60, 60]))
    tokens, ranks = np.array([[62, 1], [32, 0], [62, 0]], dtype).T
    assert [place.tolist() for place in layout.place(tokens, ranks)] == [[1, 0, 0], [0, 1, 0]]


def test_no_rows() -> None:
    packer = GreedyPacker(100)
    for lengths in ([], [30]):
        for none in (np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0)):
            batches, slots = packer.lay_out(packer.count(lengths)).place(none, none)
            assert batches.shape == slots.shape == (0,)
            assert batches.dtype == slots.dtype == np.int32


@pytest.mark.parametrize(
    ("tokens", "rank", "error", "message"),
    [
        ([62, 33], [0, 0], ValueError, r"tokens\[1\] is a size that .* not have \(got 33\)"),
        ([-1], [0], ValueError, r"tokens\[0\] is a size that .* not have \(got -1\)"),
        ([10**9], [0], ValueError, r"tokens\[0\] is a size that .* not have \(got 1000000000\)"),
        ([62, 32], [0, 1], ValueError, r"rank\[1\] must be from 0 to 0 for .* 32 tokens .got 1."),
        ([62], [-1], ValueError, r"rank\[0\] must be from 0 to 1 for .* 62 tokens \(got -1\)"),
        ([62, 32], [0], ValueError, r"tokens and rank must have the same length .got 2 and 1."),
        ([62.0], [0], TypeError, r"tokens\[0\] must be an integer \(got 62.0\)"),
        (np.array([62.0]), [0], TypeError, r"tokens must be integers \(got float64\)"),
        ([62], np.array([np.nan]), TypeError, r"rank must be integers \(got float64\)"),
        ([62], [None], TypeError, r"rank\[0\] must be an integer \(got None\)"),
        (62, 0, TypeError, r"tokens must be a list or an array of integers \(got int\)"),
        (np.array(62), [0], ValueError, r"tokens must be one-dimensional \(got 0 dimensions\)"),
        ([62], np.array([2**63], np.uint64), ValueError, r"rank\[0\] does not fit in int64"),
        ([62], np.ma.array([0]), TypeError, "rank must not be a masked array"),
    ],
)
def test_bad_places(tokens: Any, rank: Any, error: type[Exception], message: str) -> None:
    packer = GreedyPacker(100)
    layout = packer.lay_out(packer.count([30, 60, 60]))
    with pytest.raises(error, match=message):
        layout.place(tokens, rank)


def test_pickled_layouts_and_plans() -> None:
    lengths = [30, 60, 60]
    packer = GreedyPacker(100)
    plan = packer.pack_lengths(lengths)
    layout = packer.lay_out(packer.count(lengths))
    for value in (plan, layout, pickle.loads(pickle.dumps(layout))):
        places = value.place([62, 62, 32], [0, 1, 0])
        assert [place.tolist() for place in places] == [[0, 1, 0], [0, 0, 1]]
    grouped = packer.pack_lengths(lengths, groups=["a", "b", "a"])
    with pytest.raises(ValueError, match="with groups cannot place sequences by their sizes"):
        grouped.place([62], [0])


def test_ranks_by_id_give_the_plan_by_id() -> None:
    random = np.random.default_rng(4)
    lengths = random.integers(0, 20, 300)
    ids = [f"seq{name:03d}" for name in random.permutation(300)]
    packer = GreedyPacker(60)
    plan = packer.pack_lengths(lengths, ids)
    order = sorted(range(300), key=lambda row: ids[row])
    sizes = (lengths[order] + 2).tolist()
    batches, slots = plan.place(sizes, ranks_of(sizes))
    at = plan.offsets[batches] + slots
    np.testing.assert_array_equal(plan.indices[at], order)
