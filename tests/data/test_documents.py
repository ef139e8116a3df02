"""Documents: no special tokens, no limit for proteins, and no empty sequences."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import batches_of

from virnucpro.data import GreedyPacker


def records_of(lengths: list[int]) -> list[dict[str, Any]]:
    return [{"id": row, "sequence": "M" * length} for row, length in enumerate(lengths)]


CALLS: list[Callable[[GreedyPacker, list[int]], Any]] = [
    lambda packer, lengths: packer.pack_lengths(lengths),
    lambda packer, lengths: packer.pack_lengths(lengths, groups=lengths),
    lambda packer, lengths: packer.count(lengths),
    lambda packer, lengths: packer.count_silently(lengths),
    lambda packer, lengths: packer.assign_batches(lengths),
    lambda packer, lengths: packer.pack_sequences(records_of(lengths)),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("overlong", ["truncate", "error", "drop"])
def test_documents_never_meet_the_limit_for_proteins(
    call: Any, overlong: str, caplog: pytest.LogCaptureFixture
) -> None:
    lengths = [5, 1023, 1022, 4000]
    packer = GreedyPacker(8192, special_tokens=0, overlong=overlong)
    for _ in range(2):
        with pytest.raises(ValueError, match="default max_sequence_length") as error:
            call(packer, lengths)
    name = "Sequence 1" if call is CALLS[-1] else "lengths[1]"
    assert str(error.value) == (
        f"{name} exceeds the default max_sequence_length, which is for proteins (1023 > 1022); "
        "sequences above the limit: 2 of 4; without special tokens, pass max_sequence_length=..., "
        "such as the budget, or use GreedyPacker.for_documents(8192)"
    )
    call(packer, [5, 1022])
    assert caplog.records == []


@pytest.mark.parametrize("call", CALLS[:1] + CALLS[-1:])
def test_split_documents_too(call: Any) -> None:
    with pytest.raises(ValueError, match="default max_sequence_length"):
        call(GreedyPacker(8192, special_tokens=0, overlong="split"), [1023])


@pytest.mark.parametrize(
    "packer",
    [
        GreedyPacker(8192),
        GreedyPacker(8192, special_tokens=1),
        GreedyPacker(8192, 1022, special_tokens=0),
        GreedyPacker(8192, max_sequence_length=1022, special_tokens=0),
        # The budget is the lower limit.
        GreedyPacker(1022, special_tokens=0),
        GreedyPacker(500, special_tokens=0),
        GreedyPacker(1030, special_tokens=0, multiple_of=100),
        GreedyPacker.for_documents(1000),
    ],
)
def test_limits_that_were_chosen_apply(packer: GreedyPacker) -> None:
    for copied in (packer, copy.deepcopy(packer), pickle.loads(pickle.dumps(packer))):
        plan = copied.pack_lengths([5000])
        assert plan.num_truncated or plan.fragments is not None


def test_copies_and_changes_of_parameters() -> None:
    packer = GreedyPacker(8192, special_tokens=0)
    for copied in (packer, copy.copy(packer), pickle.loads(pickle.dumps(packer))):
        assert copied.max_sequence_length == 1022
        assert repr(copied).startswith("GreedyPacker(8192, 1022, special_tokens=0, ")
        assert type(copied.limits.max_sequence_length) is int
        with pytest.raises(ValueError, match="default max_sequence_length"):
            copied.pack_lengths([5000])
        copied.max_sequence_length = 1022
        assert copied.pack_lengths([5000]).num_truncated == 1
    later = GreedyPacker(8192)
    assert later.pack_lengths([5000]).num_truncated == 1
    later.special_tokens = 0
    with pytest.raises(ValueError, match="default max_sequence_length"):
        later.pack_lengths([5000])
    # As earlier versions read it.
    assert type(later.__getstate__()["attributes"]["max_sequence_length"]) is int


def test_signature() -> None:
    parameter = inspect.signature(GreedyPacker).parameters["max_sequence_length"]
    assert str(parameter) == "max_sequence_length: 'int' = 1022"


def test_for_documents() -> None:
    packer = GreedyPacker.for_documents(4096)
    lengths = [10_000, 0, 300, 4096]
    plan = packer.pack_lengths(lengths)
    assert batches_of(plan) == [[0], [1], [4], [2, 3]]
    assert plan.fragments is not None
    assert [values.tolist() for values in plan.fragments] == [
        [0, 0, 0, 2, 3],
        [0, 4096, 8192, 0, 0],
        [4096, 8192, 10_000, 300, 4096],
    ]
    assert (plan.dropped.tolist(), plan.num_rows, plan.total_tokens) == ([1], 4, sum(lengths))
    assert packer.pack_lengths([5000, 0]).num_rows == 2
    options: dict[str, Any] = {
        "overlong": "error",
        "max_sequences_per_batch": 3,
        "multiple_of": 8,
        "empty": "pack",
        "num_threads": 2,
        "method": "tight",
    }
    expected = GreedyPacker(4096, 4096, special_tokens=0, **options)
    assert repr(GreedyPacker.for_documents(4096, **options)) == repr(expected)
    assert GreedyPacker.for_documents(4096, overlap=7).overlap == 7


class Subclass(GreedyPacker):
    """A packer of another kind."""


def test_for_documents_of_a_subclass() -> None:
    assert type(Subclass.for_documents(10)) is Subclass


@given(
    lengths=st.lists(st.integers(0, 3) | st.integers(0, 40), max_size=20),
    overlong=st.sampled_from(["truncate", "drop", "split"]),
    special_tokens=st.integers(0, 2),
)
def test_empty_sequences_are_dropped(
    lengths: list[int], overlong: str, special_tokens: int
) -> None:
    """The others are packed as if there were no empty ones."""
    options: dict[str, Any] = {"special_tokens": special_tokens, "overlong": overlong}
    packer = GreedyPacker(16, 10, **options, empty="drop")
    plain = GreedyPacker(16, 10, **options)
    rows = [row for row, length in enumerate(lengths) if length]
    kept = [lengths[row] for row in rows]
    plan, expected = packer.pack_lengths(lengths), plain.pack_lengths(kept)
    assert plan.num_rows == len(lengths)
    is_split = expected.fragments is not None
    if expected.fragments is not None:
        assert plan.fragments is not None
        numbers = [rows[row] for row in expected.fragments.rows.tolist()]
        assert plan.fragments.rows.tolist() == numbers
        assert plan.fragments.stops.tolist() == expected.fragments.stops.tolist()
        assert batches_of(plan) == batches_of(expected)
    else:
        assert plan.fragments is None
        assert batches_of(plan) == [[rows[row] for row in batch] for batch in batches_of(expected)]
    dropped = {row for row, length in enumerate(lengths) if length == 0}
    dropped |= {rows[row] for row in expected.dropped.tolist()}
    assert plan.dropped.tolist() == sorted(dropped)
    assert plan.dropped.dtype == plan.indices.dtype == np.int32
    assert plan == pickle.loads(pickle.dumps(plan))
    if overlong != "split":
        assert packer.count(lengths) == plain.count(kept)
        found = packer.assign_batches(lengths)
        assert [found[row] for row in rows] == plain.assign_batches(kept).tolist()
        assert all(found[row] == -1 for row in dropped)
    elif not is_split:
        assert plan.total_tokens == sum(kept) + special_tokens * len(kept)
    records = records_of(lengths)
    packed = packer.pack_sequences(records)
    assert packed == plain.pack_sequences([records[row] for row in rows])


def test_dropped_sequences_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    lengths, message = [5, 0, 3, 0], "2 of 4 sequences are empty, dropping"
    for call in CALLS:
        caplog.clear()
        call(GreedyPacker(8, empty="drop"), lengths)
        logged = [record.getMessage() for record in caplog.records]
        assert logged == ([] if call is CALLS[3] else [message])
        caplog.clear()
        call(GreedyPacker(8), lengths)
        assert caplog.records == []


def test_negative_lengths_are_named_by_their_position() -> None:
    for lengths in ([0, 0, -3], [0, 5000, -3], [-3], [5, -3]):
        at = lengths.index(-3)
        with pytest.raises(ValueError, match=rf"lengths\[{at}\] is negative .got -3."):
            GreedyPacker.for_documents(100).pack_lengths(lengths)
        with pytest.raises(ValueError, match=rf"lengths\[{at}\] is negative .got -3."):
            GreedyPacker.for_documents(100, overlong="drop").count(lengths)


def test_unsigned_lengths() -> None:
    plan = GreedyPacker.for_documents(100).pack_lengths(np.array([0, 200, 250, 0], np.uint8))
    assert (plan.dropped.tolist(), len(plan)) == ([0, 3], 5)


@pytest.mark.parametrize("empty", ["keep", None, True])
def test_bad_values(empty: Any) -> None:
    with pytest.raises(ValueError, match=r"empty must be 'pack' or 'drop' .got "):
        GreedyPacker(100, empty=empty)


def test_errors_name_the_position_before_empty_sequences_were_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    packer = GreedyPacker(100, 50, overlong="error", empty="drop")
    for call in (packer.pack_lengths, packer.count, packer.assign_batches):
        with pytest.raises(ValueError, match=r"^lengths\[2\] exceeds .*: 1 of 3$"):
            call([0, 5, 2000])
    assert not caplog.records


@pytest.mark.parametrize("call", CALLS[:3] + CALLS[4:5])
def test_documents_under_the_limit_for_proteins_are_warned_of(
    call: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hint = "for the tokens of documents, use GreedyPacker.for_documents(8192)"
    call(GreedyPacker(8192), [5, 4000, 1022])
    assert caplog.messages == [
        "1 of 3 sequences exceed max_sequence_length (1022), truncating: 2,978 residues removed, "
        f"59.24 % of all; this default is for proteins: {hint}"
    ]
    for packer in (GreedyPacker(8192, 1022), GreedyPacker(100), GreedyPacker(1024)):
        caplog.clear()
        call(packer, [5, 4000, 1022])
        (message,) = caplog.messages
        assert "of all" in message
        assert hint not in message


def test_limits_are_named_by_what_sets_them(caplog: pytest.LogCaptureFixture) -> None:
    GreedyPacker(100).pack_lengths([200])
    GreedyPacker(100, 50).pack_lengths([200])
    GreedyPacker.for_documents(100, overlong="truncate").pack_lengths([200])
    assert [message.partition(", ")[0] for message in caplog.messages] == [
        "1 of 1 sequences exceed the room of a batch (98)",
        "1 of 1 sequences exceed max_sequence_length (50)",
        "1 of 1 sequences exceed the room of a batch (100)",
    ]


def test_batches_of_several_contexts() -> None:
    packer = GreedyPacker.for_documents(8192, max_sequence_length=2048)
    plan = packer.pack_lengths([5000, 0, 4000])
    assert plan.fragments is not None
    assert plan.fragments.stops.tolist() == [2048, 4096, 5000, 2048, 4000]
    assert [sum(plan.tokens(batch)) for batch in range(len(plan))] == [8096, 904]


@pytest.mark.parametrize("budget", [0, "8192", 8192.0, None, 2**63])
def test_budgets_are_named(budget: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^max_tokens_per_batch must be "):
        GreedyPacker.for_documents(budget)


def test_documents_in_place_of_lengths() -> None:
    for document in ([1, 2, 3], "MKT", np.arange(3), [1] * 100_000):
        with pytest.raises(TypeError, match=r"got \w+; .* \[len\(each\) for each in ") as error:
            GreedyPacker.for_documents(100).pack_lengths([document])  # type: ignore[arg-type]
        assert len(str(error.value)) < 120
