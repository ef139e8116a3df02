"""Groups: sequences that share no batch, each group packed as if it were alone."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
from grouped import labels, only_starts, pack_alone, parts_of_batches
from hypothesis import given
from hypothesis import strategies as st
from proteins import random_lengths
from reference import batches_of
from strategies import Case, cases, texts

from virnucpro import kernel
from virnucpro.data import GreedyPacker, Layout, PackingPlan
from virnucpro.data.groups import counts_of_groups

OVERLONG = ["truncate", "drop", "split"]


def make_packer(case: Case, overlong: str, **options: Any) -> GreedyPacker:
    packer = GreedyPacker(**case.parameters, overlong=overlong, **options)
    if overlong == "split":
        packer.overlap = packer.limits.max_residues // 3
    return packer


def limit_lengths(packer: GreedyPacker, lengths: list[int]) -> list[int]:
    """Return lengths of which none is split into many fragments."""
    most = 5 * packer.limits.max_residues if packer.overlong == "split" else 2**62
    return [min(length, most) for length in lengths]


@pytest.mark.compare
@given(case=cases(), overlong=st.sampled_from(OVERLONG), data=st.data())
def test_groups_are_packed_alone(case: Case, overlong: str, data: st.DataObject) -> None:
    empty = data.draw(st.sampled_from(["pack", "drop"]))
    packer = make_packer(case, overlong, empty=empty)
    lengths = limit_lengths(packer, case.lengths)
    groups = data.draw(labels(len(lengths)))
    some_ids = st.lists(texts() | st.just("a"), min_size=len(lengths), max_size=len(lengths))
    ids = data.draw(st.none() | some_ids)
    plan = packer.pack_lengths(lengths, ids, groups)
    alone = pack_alone(packer, lengths, ids, groups)
    whole = packer.pack_lengths(lengths, ids)

    expected = [batch for rows, part in alone for batch in parts_of_batches(part, rows)]
    assert only_starts(parts_of_batches(plan)) == only_starts(expected)
    tokens = [part.tokens(batch).tolist() for _, part in alone for batch in range(len(part))]
    assert [plan.tokens(batch).tolist() for batch in range(len(plan))] == tokens
    assert plan.group_offsets is not None
    assert plan.group_offsets.dtype == np.int64
    ends = np.cumsum([0, *(len(part) for _, part in alone)])
    assert plan.group_offsets.tolist() == ends.tolist()
    # All that does not depend on batches is as without groups.
    assert plan.dropped.tolist() == whole.dropped.tolist()
    assert plan.core.counts == whole.core.counts
    assert (plan.num_rows, plan.limits) == (whole.num_rows, whole.limits)
    assert plan.indices.dtype == plan.dropped.dtype == whole.indices.dtype
    for found, wanted in zip(plan.fragments or (), whole.fragments or (), strict=True):
        assert found.tolist() == wanted.tolist()
    assert sorted(plan.indices.tolist()) == sorted(whole.indices.tolist())
    # What a layout says of itself is what its batches say.
    assert plan.batch_tokens.tolist() == list(map(sum, tokens))
    assert plan.offsets.tolist() == np.cumsum([0, *map(len, tokens)]).tolist()
    assert plan.max_sequences == max(map(len, tokens), default=0)
    assert plan.lower_bound == sum(part.lower_bound for _, part in alone) <= len(plan)
    if len(plan):
        budget = plan.max_tokens_per_batch * len(plan)
        assert plan.efficiency == plan.total_tokens / budget


@given(case=cases(), overlong=st.sampled_from(OVERLONG), data=st.data())
def test_copies_are_equal(case: Case, overlong: str, data: st.DataObject) -> None:
    packer = make_packer(case, overlong)
    lengths = limit_lengths(packer, case.lengths)
    groups = data.draw(labels(len(lengths)))
    plan = packer.pack_lengths(lengths, groups=groups)
    for copy in (pickle.loads(pickle.dumps(plan)), PackingPlan.from_dict(plan.to_dict())):
        assert copy == plan
        assert copy.group_offsets.tolist() == plan.group_offsets.tolist()  # type: ignore[union-attr]
    layout = Layout.from_dict(Layout.to_dict(plan))
    assert layout == pickle.loads(pickle.dumps(layout))
    assert layout != Layout(layout.core, layout.limits)


def test_group_offsets_tell_plans_apart() -> None:
    packer = GreedyPacker(100)
    plan = packer.pack_lengths([90, 80, 70])
    first, second, one = (
        packer.pack_lengths([90, 80, 70], groups=list(groups)) for groups in ("aab", "abc", "xxx")
    )
    assert batches_of(plan) == batches_of(first) == batches_of(second) == batches_of(one)
    assert len({repr(p.group_offsets) for p in (plan, first, second, one)}) == 4
    assert first == packer.pack_lengths([90, 80, 70], groups=[1, 1, 5])
    assert plan not in (first, second, one)
    assert first not in (second, one)


def test_states_without_groups_are_those_of_earlier_versions() -> None:
    state = GreedyPacker(100).pack_lengths([30, 60]).to_dict()
    fields = ["version", "layout", "indices", "dropped", "rows", "starts", "stops"]
    assert list(state) == fields
    fields = ["version", "counts", "num_batches", "proven_bound", "first_run", "runs"]
    assert list(state["layout"]) == fields


def test_windows_of_rows_keep_their_order() -> None:
    lengths = np.sort(random_lengths(1000))
    plan = GreedyPacker(4096).pack_lengths(lengths, groups=np.arange(1000) // 100)
    windows = [set((rows // 100).tolist()) for rows in plan]
    assert windows == sorted(windows, key=min)
    assert all(len(window) == 1 for window in windows)


def test_a_group_of_dropped_rows_has_no_batches() -> None:
    packer = GreedyPacker(100, 50, overlong="drop", empty="drop")
    plan = packer.pack_lengths([60, 10, 0, 20], groups=[1, 0, 2, 3])
    assert plan.group_offsets is not None
    assert plan.group_offsets.tolist() == [0, 1, 1, 1, 2]
    assert plan.dropped.tolist() == [0, 2]
    assert plan.reshuffle(0) == plan
    nothing = packer.pack_lengths([], groups=[])
    assert nothing.group_offsets is not None
    assert nothing.group_offsets.tolist() == [0]
    assert nothing.reshuffle(1) == nothing == pickle.loads(pickle.dumps(nothing))


def test_one_warning_has_the_totals(caplog: pytest.LogCaptureFixture) -> None:
    lengths, groups = [60, 70, 0, 80, 0], ["a", "b", "a", "b", "c"]
    GreedyPacker(100, 50).pack_lengths(lengths, groups=groups)
    (record,) = caplog.records
    assert record.getMessage() == (
        "3 of 5 sequences exceed max_sequence_length (50), truncating: 60 residues removed, "
        "28.57 % of all"
    )
    caplog.clear()
    GreedyPacker(100, 50, overlong="drop", empty="drop").pack_lengths(lengths, groups=groups)
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 5 sequences exceed max_sequence_length (50), dropping: 210 residues",
        "2 of 5 sequences are empty, dropping",
    ]


def test_labels_of_any_kind() -> None:
    packer, lengths = GreedyPacker(100), [60, 30, 60, 30, 30, 90]
    numbers = [3, 1, 3, 20, 1, 3]
    plan = packer.pack_lengths(lengths, groups=numbers)
    texts_of = [f"{number:02}" for number in numbers]
    kinds: list[Any] = [
        tuple(numbers),
        np.array(numbers),
        np.array(numbers, np.uint8),
        np.array(numbers, ">i4")[::1],
        np.array([0, *numbers])[1:],
        np.array(numbers, object),
        (number for number in numbers),
        list(map(np.int16, numbers)),
        [2**70 + number for number in numbers],
        np.array(numbers, np.uint64) + np.uint64(2**63),
        texts_of,
        np.array(texts_of),
        np.array(texts_of, object),
    ]
    assert all(packer.pack_lengths(lengths, groups=groups) == plan for groups in kinds)
    assert plan.group_offsets is not None
    assert plan.group_offsets.tolist() == [0, 1, 3 + 1, 5]


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ([1, 2], ValueError, r"groups must have one group per sequence .got 2 for 3 sequences"),
        (np.arange(4), ValueError, r"one group per sequence .got 4 for 3 sequences"),
        ([], ValueError, r"one group per sequence .got 0 for 3 sequences"),
        ("abc", TypeError, r"groups must be a list or an array of str or int .got str"),
        ({"a": 1}, TypeError, r"groups must be a list or an array of str or int .got dict"),
        (5, TypeError, r"groups must be a list or an array of str or int .got int"),
        (["a", 1, "b"], TypeError, r"groups\[1\] must be str like groups\[0\] .got int"),
        ([1, None, 2], TypeError, r"groups\[1\] must be int like groups\[0\] .got NoneType"),
        ([None, 1, 2], TypeError, r"groups\[0\] must be str or int .got NoneType"),
        ([1, True, 2], TypeError, r"groups\[1\] must be int like groups\[0\] .got bool"),
        (np.array([1.0, 2.0, 3.0]), TypeError, r"groups\[0\] must be str or int .got float"),
        (np.array([True] * 3), TypeError, r"groups\[0\] must be str or int .got bool"),
        (np.zeros((3, 1), int), ValueError, r"groups must be one-dimensional .got 2 dim"),
        (np.ma.masked_array([1, 2, 3]), TypeError, r"groups must not be a masked array"),
    ],
)
def test_bad_groups(groups: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        GreedyPacker(100).pack_lengths([10, 20, 30], groups=groups)


def test_rows_cannot_be_assigned_by_their_lengths() -> None:
    plan = GreedyPacker(100).pack_lengths([30, 60, 60], groups=[1, 0, 1])
    for method in (plan.assign, plan.slots):
        with pytest.raises(ValueError, match="a plan with groups cannot assign rows by their le"):
            method([30, 60, 60])


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.array([0, 1, 2]), ValueError, "the groups of a plan do not match its layout"),
        (np.array([1, 3]), ValueError, "do not match its layout"),
        (np.array([0, 2, 1, 3]), ValueError, "do not match its layout"),
        (np.array([0, 2**63 - 1, -(2**63), 3]), ValueError, "do not match its layout"),
        (np.array([0, -1, 3]), ValueError, "do not match its layout"),
        (np.array([[0, 3]]), ValueError, "do not match its layout"),
        (np.array([], np.int64), ValueError, "do not match its layout"),
        # A run of batches with equal sequences would be in two groups.
        (np.array([0, 2, 3]), ValueError, "do not match its layout"),
        (np.array([0, 3], np.int32), TypeError, "group_offsets in the state of a Layout must be"),
        ([0, 3], TypeError, "group_offsets in the state of a Layout must be int64"),
        (None, TypeError, "group_offsets in the state of a Layout must be int64"),
    ],
)
def test_forged_states(values: Any, error: type, message: str) -> None:
    state = GreedyPacker(100).pack_lengths([90, 60, 60], groups=[0, 1, 1]).to_dict()
    assert PackingPlan.from_dict(state).group_offsets is not None
    state["layout"]["group_offsets"] = values
    with pytest.raises(error, match=message):
        PackingPlan.from_dict(state)


@given(case=cases(), overlong=st.sampled_from(OVERLONG), data=st.data())
def test_reshuffle_keeps_groups(case: Case, overlong: str, data: st.DataObject) -> None:
    packer = make_packer(case, overlong)
    lengths = limit_lengths(packer, case.lengths)
    groups = data.draw(labels(len(lengths)))
    plan = packer.pack_lengths(lengths, groups=groups)
    new = plan.reshuffle(data.draw(st.integers(0, 2**64 - 1)))
    rows = np.arange(len(lengths)) if plan.fragments is None else plan.fragments.rows
    assert new.group_offsets is not None
    assert plan.group_offsets is not None
    for begin, end in zip(plan.group_offsets, plan.group_offsets[1:], strict=False):
        part = slice(plan.offsets[begin], plan.offsets[end])
        assert sorted(new.indices[part]) == sorted(plan.indices[part])
        assert len({groups[row] for row in rows[new.indices[part]]}) <= 1
    assert new.batch_tokens.tolist() == plan.batch_tokens.tolist()
    assert new.group_offsets.tolist() == plan.group_offsets.tolist()
    sizes = {
        number: tokens
        for batch in range(len(plan))
        for number, tokens in zip(plan[batch].tolist(), plan.tokens(batch).tolist(), strict=True)
    }
    for batch in range(len(new)):
        assert [sizes[number] for number in new[batch].tolist()] == new.tokens(batch).tolist()
    assert new.dropped.tolist() == plan.dropped.tolist()


@pytest.mark.slow
def test_reshuffle_draws_every_order_of_each_group_equally_often() -> None:
    packer = GreedyPacker(10, special_tokens=0)
    plan = packer.pack_lengths([5, 5, 5, 3, 5, 5], groups=[0, 0, 0, 0, 1, 1])
    draws = Counter(tuple(plan.reshuffle(seed).indices.tolist()) for seed in range(6000))
    assert len(draws) == 12
    # The chance to stray further is below 1e-8.
    assert all(abs(count - 500) < 140 for count in draws.values())


@pytest.mark.slow
def test_any_number_of_threads_gives_the_same_plan() -> None:
    lengths = np.random.default_rng(1).integers(0, 200, 300_000)
    groups = np.random.default_rng(2).integers(0, 3, 300_000)
    plans = [GreedyPacker(512, num_threads=n).pack_lengths(lengths, None, groups) for n in (1, 3)]
    assert plans[0] == plans[1]
    assert plans[0].reshuffle(7) == plans[1].reshuffle(7)
    assert plans[0].reshuffle(7) != plans[0]


def test_tokens_that_do_not_fit_in_64_bits() -> None:
    packer = GreedyPacker(2**62, 2**62)
    with pytest.raises(OverflowError):
        packer.pack_lengths([2**62] * 4)
    with pytest.raises(OverflowError):
        packer.pack_lengths([2**62] * 4, groups=[0, 1, 2, 3])


def test_the_warning_on_shapes_makes_no_claim(caplog: pytest.LogCaptureFixture) -> None:
    lengths = random_lengths(20_000)
    plan = GreedyPacker(16384).pack_lengths(lengths, groups=np.arange(len(lengths)) % 2)
    caplog.clear()
    mean = plan.num_sequences / len(plan)
    assert plan.shape.sequences == plan.max_sequences > 2 * mean
    (record,) = caplog.records
    assert record.getMessage().endswith(
        f"the mean is {mean:.1f}, so a shape for all batches has many empty sequences: "
        f"try max_sequences_per_batch={int(mean) + 1} or more with method='tight'"
    )


def test_batches_of_ranks() -> None:
    plan = GreedyPacker(100).pack_lengths([90, 80, 70, 60], groups=[1, 0, 1, 0])
    assert [rows.tolist() for rows in plan.shard(1, 2)] == [[3], [2]]
    assert batches_of(plan) == [[1], [3], [0], [2]]


def test_reservation_is_not_run_for_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would see sequences of all groups as if they could share batches."""
    monkeypatch.setattr(kernel, "patterns_with_reservation", None)
    lengths = random_lengths(5000)
    plan = GreedyPacker(16384).pack_lengths(lengths, groups=np.arange(len(lengths)) % 2)
    assert plan.shape.sequences == plan.max_sequences


def test_counts_of_groups() -> None:
    packer = GreedyPacker(10, special_tokens=0, overlong="drop")
    for lengths, expected in {
        (7, 3, 7, 11, 2): [([7], [1]), ([7, 3], [1, 1]), ([2], [1])],
        (11, 11, 11, 11, 11): [],
    }.items():
        layout = packer.pack_lengths(lengths, groups=[1, 1, 0, 2, 3])
        counts = counts_of_groups(layout.core, layout.limits, layout.group_offsets)
        assert [(each.tokens.tolist(), each.sequences.tolist()) for each in counts] == expected


def test_far_more_batches_in_groups_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    lengths = random_lengths(2000)
    packer = GreedyPacker(4096, max_sequences_per_batch=12)
    packer.pack_lengths(lengths, groups=np.arange(2000) // 1000)
    [message] = [text for text in caplog.messages if "above the lower bound" in text]
    assert message.startswith("First-Fit Decreasing makes ")
    assert message.endswith(": use method='tight'")
