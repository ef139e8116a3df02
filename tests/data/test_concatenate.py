"""Plans of several data sets, joined to one."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from grouped import labels, only_starts, parts_of_batches
from hypothesis import given
from hypothesis import strategies as st
from reference import batches_of

from virnucpro.data import GreedyPacker, PackingPlan

LENGTHS = st.lists(st.integers(0, 60), max_size=12)


@st.composite
def parts(draw: Any, options: Any) -> list[tuple[list[int], PackingPlan]]:
    """Return lengths and plans by packers with the same limits, some with groups."""
    limit = draw(st.integers(1, 20))
    multiple_of = draw(options)
    limits = {"special_tokens": draw(st.integers(0, 2)), "multiple_of": multiple_of}
    found = []
    for lengths in draw(st.lists(LENGTHS, min_size=1, max_size=4)):
        how = draw(st.sampled_from(["drop", "split"]))
        empty = draw(st.sampled_from(["pack", "drop"]))
        packer = GreedyPacker(24, limit, overlong=how, empty=empty, **limits)
        if how == "split":
            packer.overlap = draw(st.integers(0, packer.limits.max_residues - 1))
        groups = draw(st.none() | labels(len(lengths)))
        found.append((lengths, packer.pack_lengths(lengths, groups=groups)))
    return found


@given(case=parts(st.just(1)))
def test_batches_follow_each_other(case: list[tuple[list[int], PackingPlan]]) -> None:
    plans = [plan for _, plan in case]
    lengths = [length for part, _ in case for length in part]
    plan = PackingPlan.concatenate(plans)
    expected, dropped, ends, first, bound = [], [], [0], 0, 0
    for part, one in case:
        rows = range(first, first + len(part))
        expected += parts_of_batches(one, rows)
        dropped += [rows[row] for row in one.dropped.tolist()]
        inner = [len(one)] if one.group_offsets is None else one.group_offsets[1:].tolist()
        before = ends[-1]
        ends += [before + end for end in inner]
        first += len(part)
        bound += one.lower_bound
    assert only_starts(parts_of_batches(plan)) == only_starts(expected)
    assert plan.dropped.tolist() == dropped
    assert plan.group_offsets is not None
    assert plan.group_offsets.tolist() == ends
    assert (plan.num_rows, plan.summary, plan.lower_bound) == (len(lengths), None, bound)
    assert plan.indices.dtype == plan.dropped.dtype == np.int32
    assert plan.batch_tokens.tolist() == [n for one in plans for n in one.batch_tokens.tolist()]
    assert plan.total_tokens == sum(one.total_tokens for one in plans)
    assert sorted(plan.indices.tolist()) == (
        list(range(plan.num_sequences))
        if plan.fragments is not None
        else sorted(set(range(len(lengths))) - set(dropped))
    )
    assert (plan.fragments is None) == all(one.fragments is None for one in plans)
    if plan.fragments is not None:
        # In order of rows and positions, to the end of each sequence.
        rows, starts, stops = (values.tolist() for values in plan.fragments)
        assert list(zip(rows, starts, strict=True)) == sorted(zip(rows, starts, strict=True))
        is_last = [*(a != b for a, b in itertools.pairwise(rows)), True]
        for row, stop, last in zip(rows, stops, is_last, strict=True):
            assert not last or stop == lengths[row]
        assert {values.dtype for values in plan.fragments} == {np.dtype(np.int64)}
    tokens = [one.tokens(batch).tolist() for one in plans for batch in range(len(one))]
    assert [plan.tokens(batch).tolist() for batch in range(len(plan))] == tokens
    assert pickle.loads(pickle.dumps(plan)) == plan
    new = plan.reshuffle(3)
    for begin, end in itertools.pairwise(ends):
        part_of = slice(plan.offsets[begin], plan.offsets[end])
        assert sorted(new.indices[part_of]) == sorted(plan.indices[part_of])


@given(case=parts(st.sampled_from([3, 8])))
def test_unknown_lengths_are_refused(case: list[tuple[list[int], PackingPlan]]) -> None:
    plans = [plan for _, plan in case]
    without = [place for place, plan in enumerate(plans) if plan.fragments is None]
    if 0 < len(without) < len(plans):
        message = (
            rf"^plans\[{without[0]}\] has no fragments and other plans do, .* rounded up: pack"
        )
        with pytest.raises(ValueError, match=message):
            PackingPlan.concatenate(plans)
    else:
        assert PackingPlan.concatenate(plans).num_batches == sum(map(len, plans))


def test_truncated_sequences_do_not_become_fragments() -> None:
    plans = [
        GreedyPacker(12, 10, overlong="split").pack_lengths([25]),
        GreedyPacker(12, 10).pack_lengths([3]),
        GreedyPacker(12, 10).pack_lengths([25]),
    ]
    assert PackingPlan.concatenate(plans[:2]).num_rows == 2
    assert PackingPlan.concatenate(plans[1:]).num_truncated == 1
    with pytest.raises(ValueError, match=r"plans\[2\] has no fragments .* since they are truncat"):
        PackingPlan.concatenate(plans)


def test_joined_plans_are_joined_again() -> None:
    packer = GreedyPacker(100)
    one, two, three = (packer.pack_lengths(lengths) for lengths in ([60, 90], [70], [30, 30]))
    plan = PackingPlan.concatenate([one, two, three])
    assert batches_of(plan) == [[1], [0], [2], [3, 4]]
    assert PackingPlan.concatenate([PackingPlan.concatenate(iter([one, two])), three]) == plan
    assert PackingPlan.concatenate([one, PackingPlan.concatenate([two, three])]) == plan
    alone = PackingPlan.concatenate([one])
    assert batches_of(alone) == batches_of(one)
    assert alone.group_offsets is not None
    assert alone.group_offsets.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("plans", "error", "message"),
    [
        ([], ValueError, r"plans must have at least one plan .got none"),
        ("plan.arrow", TypeError, r"plans must be a list of plans .got str"),
        (None, TypeError, r"plans must be a list of plans .got NoneType"),
        ([GreedyPacker(100)], TypeError, r"plans\[0\] must be a PackingPlan .got GreedyPacker"),
        (
            [GreedyPacker(100).pack_lengths([1]), GreedyPacker(101).pack_lengths([1])],
            ValueError,
            r"equal limits: plans\[1\] has max_tokens_per_batch=101, plans\[0\] has 100",
        ),
        (
            [
                GreedyPacker(100).pack_lengths([1]),
                GreedyPacker(100).pack_lengths([1]),
                GreedyPacker(100, max_sequences_per_batch=5).pack_lengths([1]),
            ],
            ValueError,
            r"equal limits: plans\[2\] has max_sequences_per_batch=5, plans\[0\] has None",
        ),
    ],
)
def test_bad_plans(plans: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        PackingPlan.concatenate(plans)


def test_too_many_tokens() -> None:
    plan = GreedyPacker(2**62, 2**62).pack_lengths([2**62 - 2])
    with pytest.raises(OverflowError):
        PackingPlan.concatenate([plan, plan])
