"""Sequences above the limit that are dropped or split, against a naive reference."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
from fragments import parts_of
from hypothesis import given
from hypothesis import strategies as st
from reference import batches_of, places_of
from strategies import texts

from virnucpro.data import Fragments, GreedyPacker, PackingPlan

RESIDUES = "".join(map(chr, range(0x4E00, 0x4E00 + 100)))


@dataclass(frozen=True)
class Overlong:
    """A packer's limits, lengths, some of them above the limit, and IDs."""

    limits: dict[str, Any]
    overlap: int
    lengths: list[int]
    ids: Any

    @property
    def limit(self) -> int:
        return reference.find_limit(**self.limits)

    @property
    def records(self) -> list[dict[str, Any]]:
        """Records of these sequences, each of other residues at all its positions."""
        ids = range(len(self.lengths)) if self.ids is None else list(self.ids)
        return [
            {"id": identifier, "sequence": RESIDUES[:length], "row": row}
            for row, (identifier, length) in enumerate(zip(ids, self.lengths, strict=True))
        ]

    def packer(self, overlong: str, **options: Any) -> GreedyPacker:
        overlap = self.overlap if overlong == "split" else 0
        return GreedyPacker(**self.limits, overlong=overlong, overlap=overlap, **options)

    def pack(self, rows: list[int], lengths: list[int], with_ids: bool = True) -> list[list[int]]:
        """Return the numbers of each batch of parts of rows, by the reference."""
        ids = None if self.ids is None or not with_ids else [self.ids[row] for row in rows]
        return reference.first_fit_decreasing(lengths, **self.limits, ids=ids)


def make_ids(kind: str, number: int, draw: Callable[[Any], Any]) -> Any:
    """Return IDs, some of them equal."""
    if kind == "none":
        return None
    if kind == "int":
        return draw(st.lists(st.integers(-2, 2), min_size=number, max_size=number))
    if kind == "str":
        return draw(st.lists(texts(), min_size=number, max_size=number))
    some = st.sampled_from(["", "a", "b", "ab", "\u0100"])
    return np.array(draw(st.lists(some, min_size=number, max_size=number)), "U3")


@st.composite
def overlong_cases(draw: Any) -> Overlong:
    special_tokens = draw(st.integers(0, 3))
    longest = draw(st.integers(1, 12))
    multiple_of = draw(st.sampled_from([1, 1, 3, 8]))
    budget = reference.round_up(special_tokens + 1, multiple_of) + draw(st.integers(0, 40))
    limits = {
        "max_tokens_per_batch": budget,
        "max_sequence_length": longest,
        "special_tokens": special_tokens,
        "max_sequences_per_batch": draw(st.none() | st.integers(1, 4)),
        "multiple_of": multiple_of,
    }
    overlap = draw(st.integers(0, reference.find_limit(**limits) - 1))
    lengths = draw(st.lists(st.integers(0, len(RESIDUES)) | st.integers(0, 14), max_size=20))
    kind = draw(st.sampled_from(["none", "int", "str", "array"]))
    return Overlong(limits, overlap, lengths, make_ids(kind, len(lengths), draw))


def fragments_of(case: Overlong) -> list[tuple[int, int, int]]:
    """Return the row, start and stop of each fragment of all sequences."""
    return parts_of(case.lengths, case.limit, "split", case.overlap)


def join(pieces: list[str], overlap: int) -> str:
    """Return the sequence that fragments make up."""
    return pieces[0] + "".join(piece[overlap:] for piece in pieces[1:])


@pytest.mark.compare
@given(overlong_cases())
def test_split_lengths(case: Overlong) -> None:
    plan = case.packer("split").pack_lengths(case.lengths, case.ids)
    expected = fragments_of(case)
    rows = [row for row, _, _ in expected]
    lengths = [stop - start for _, start, stop in expected]
    assert batches_of(plan) == case.pack(rows, lengths)
    assert sorted(plan.indices.tolist()) == list(range(len(expected)))
    assert (plan.num_rows, plan.num_truncated) == (len(case.lengths), 0)
    assert plan.dropped.tolist() == []
    if max(case.lengths, default=0) <= case.limit:
        assert plan.fragments is None
        assert plan == case.packer("truncate").pack_lengths(case.lengths, case.ids)
        return
    assert plan.fragments is not None
    assert list(zip(*(values.tolist() for values in plan.fragments), strict=True)) == expected
    assert {values.dtype for values in plan.fragments} == {np.dtype(np.int64)}
    for row, group in itertools.groupby(expected, lambda fragment: fragment[0]):
        pieces = [RESIDUES[start:stop] for _, start, stop in group]
        assert join(pieces, case.overlap) == RESIDUES[: case.lengths[row]]
        assert max(map(len, pieces)) <= case.limit


@pytest.mark.compare
@given(overlong_cases())
def test_split_records(case: Overlong) -> None:
    packer, records = case.packer("split"), case.records
    given_ = [dict(record) for record in records]
    batches = packer.pack_sequences(records)
    assert records == given_
    ids = [record["id"] for record in records]
    plan = packer.pack_lengths(case.lengths, ids)
    expected = fragments_of(case)
    assert [len(batch) for batch in batches] == [len(numbers) for numbers in plan]
    pieces: dict[int, dict[int, str]] = {row: {} for row in range(len(records))}
    for found, number in zip(itertools.chain(*batches), plan.indices.tolist(), strict=True):
        row, start, stop = expected[number]
        pieces[row][start] = found["sequence"]
        if case.lengths[row] <= case.limit:
            assert found is records[row]
        else:
            part = {"sequence": RESIDUES[start:stop], "start": start, "stop": stop}
            assert found == {**records[row], **part}
    for row, parts in pieces.items():
        in_order = [parts[start] for start in sorted(parts)]
        assert join(in_order, case.overlap) == records[row]["sequence"]
    assert packer.compute_efficiency(batches) == plan.efficiency


@pytest.mark.compare
@given(overlong_cases())
def test_drop_lengths(case: Overlong) -> None:
    plan = case.packer("drop").pack_lengths(case.lengths, case.ids)
    kept = [row for row, length in enumerate(case.lengths) if length <= case.limit]
    batches = case.pack(kept, [case.lengths[row] for row in kept])
    assert batches_of(plan) == [[kept[place] for place in places] for places in batches]
    assert plan.dropped.tolist() == [
        row for row, length in enumerate(case.lengths) if length > case.limit
    ]
    every = np.concatenate([plan.indices, plan.dropped])
    assert every.dtype == plan.indices.dtype == plan.dropped.dtype == np.int32
    assert sorted(every.tolist()) == list(range(len(case.lengths)))
    assert (plan.num_rows, plan.num_truncated) == (len(case.lengths), 0)
    assert plan.fragments is None


@given(overlong_cases())
def test_drop_records(case: Overlong) -> None:
    packer, records = case.packer("drop"), case.records
    batches = packer.pack_sequences(records)
    plan = packer.pack_lengths(case.lengths, [record["id"] for record in records])
    rows = [[record["row"] for record in batch] for batch in batches]
    assert rows == batches_of(plan)
    for record in itertools.chain(*batches):
        assert record is records[record["row"]]
    assert records == case.records
    in_order = packer.sort_by_length(records)
    assert sorted(record["row"] for record in in_order) == list(range(len(records)))


@given(overlong_cases())
def test_dropped_rows_have_no_batch(case: Overlong) -> None:
    packer = case.packer("drop")
    kept = [row for row, length in enumerate(case.lengths) if length <= case.limit]
    of_kept = case.pack(kept, [case.lengths[row] for row in kept], with_ids=False)
    batches = [[kept[place] for place in places] for places in of_kept]
    expected, _ = places_of(batches, len(case.lengths))
    found = packer.assign_batches(case.lengths)
    assert found.dtype == np.int32
    assert found.tolist() == expected
    out = np.full(len(case.lengths), 7, np.int64)
    assert packer.assign_batches(np.array(case.lengths, np.uint8), out) is out
    assert out.tolist() == expected
    counts = packer.count(case.lengths)
    assert counts == case.packer("truncate").count([case.lengths[row] for row in kept])
    assert packer.lay_out(counts).num_batches == len(batches)


@given(overlong_cases(), st.sampled_from(["drop", "split"]), st.integers(0, 2**64 - 1))
def test_plans_as_values(case: Overlong, overlong: str, seed: int) -> None:
    plan = case.packer(overlong, num_threads=1).pack_lengths(case.lengths, case.ids)
    assert PackingPlan.from_dict(plan.to_dict()) == plan
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(plan, protocol))
        assert again == plan
        assert (again.num_threads, again.num_rows) == (1, plan.num_rows)
        assert batches_of(again) == batches_of(plan)
        assert (again.fragments is None) == (plan.fragments is None)
    shuffled = plan.reshuffle(seed)
    assert shuffled.dropped.tolist() == plan.dropped.tolist()
    assert shuffled.num_rows == plan.num_rows
    assert np.array_equal(shuffled.fragments or (), plan.fragments or ())
    assert shuffled.offsets.tolist() == plan.offsets.tolist()
    assert sorted(shuffled.indices.tolist()) == sorted(plan.indices.tolist())
    for batch in range(len(plan)):
        assert shuffled.tokens(batch).tolist() == plan.tokens(batch).tolist()
    assert shuffled == pickle.loads(pickle.dumps(plan)).reshuffle(seed)


@given(overlong_cases(), st.sampled_from(["truncate", "drop", "split"]))
def test_tokens_of_a_batch(case: Overlong, overlong: str) -> None:
    plan = case.packer(overlong).pack_lengths(case.lengths, case.ids)
    lengths = [min(length, case.limit) for length in case.lengths]
    if overlong == "split":
        lengths = [stop - start for _, start, stop in fragments_of(case)]
    for batch, numbers in enumerate(plan):
        real = [lengths[number] + plan.special_tokens for number in numbers.tolist()]
        expected = [reference.round_up(tokens, plan.multiple_of) for tokens in real]
        assert plan.tokens(batch).tolist() == expected
        assert plan.tokens(batch - len(plan)).tolist() == expected
    for wrong in (len(plan), -len(plan) - 1):
        with pytest.raises(IndexError, match=f"batch {wrong} is out of range for {len(plan)} ba"):
            plan.tokens(wrong)


def test_plans_for_other_data_differ() -> None:
    """Of the same batches and numbers, but for other rows."""
    packer = GreedyPacker(20, 5, special_tokens=0, overlong="split", overlap=1)
    whole, parts = packer.pack_lengths([5, 5]), packer.pack_lengths([9])
    assert (batches_of(whole), whole.core) == (batches_of(parts), parts.core)
    assert whole != parts != whole
    assert parts == packer.pack_lengths([9])
    assert parts.fragments is not None
    moved = Fragments(parts.fragments.rows, parts.fragments.starts + 1, parts.fragments.stops + 1)
    assert parts != PackingPlan(parts, parts.indices, fragments=moved)
    packer = GreedyPacker(20, 5, overlong="drop")
    assert packer.pack_lengths([5]) != packer.pack_lengths([5, 9])
    assert packer.pack_lengths([5, 9]) == packer.pack_lengths([5, 10])


@pytest.mark.parametrize("ids", [None, ["b", "a"], [2, 1], np.array(["b", "a"])])
def test_all_sequences_may_be_dropped(ids: Any) -> None:
    packer = GreedyPacker(20, 5, overlong="drop")
    plan = packer.pack_lengths([6, 7], ids)
    assert (len(plan), plan.num_sequences, plan.num_rows) == (0, 0, 2)
    assert plan.dropped.tolist() == [0, 1]
    assert packer.assign_batches([6, 7]).tolist() == [-1, -1]
    assert packer.count([6, 7]).num_sequences == 0
    assert packer.pack_sequences([{"id": 1, "sequence": "M" * 6}]) == []


def test_what_is_dropped_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    packer = GreedyPacker(20, 5, overlong="drop")
    message = "2 of 3 sequences exceed max_sequence_length (5), dropping: 1,017 residues"
    lengths = [6, 1011, 5]
    records = [{"id": n, "sequence": "M" * n} for n in lengths]
    calls: list[Callable[[], Any]] = [
        lambda: packer.pack_lengths(lengths),
        lambda: packer.pack_sequences(records),
        lambda: packer.count(lengths),
        lambda: packer.assign_batches(lengths),
    ]
    for call in calls:
        caplog.clear()
        call()
        assert [(r.name, r.levelname) for r in caplog.records] == [
            ("virnucpro.data.packing", "WARNING")
        ]
        assert caplog.messages == [message]
    caplog.clear()
    packer.pack_lengths([5, 5])
    packer.count([5])
    GreedyPacker(20, 5, overlong="split").pack_lengths(lengths)
    assert caplog.messages == []


def test_fragments_are_not_counted() -> None:
    packer = GreedyPacker(20, 5, overlong="split")
    for call in (packer.count, packer.assign_batches):
        with pytest.raises(ValueError, match=r"overlong='split', .* needs pack_lengths, .* pass "):
            call([5])


@pytest.mark.parametrize("overlong", ["drop", "split"])
def test_negative_lengths_are_named_by_their_place(overlong: str) -> None:
    packer = GreedyPacker(20, 5, overlong=overlong)
    calls: list[Any] = [packer.pack_lengths]
    if overlong == "drop":
        calls += [packer.count, packer.assign_batches]
    for lengths in ([9, 5, -3], np.array([9, 5, -3], np.int8)):
        for call in calls:
            with pytest.raises(ValueError, match=r"^lengths\[2\] is negative \(got -3\)$"):
                call(lengths)


@pytest.mark.parametrize(
    "lengths", [np.array([2**63], np.uint64), [2**63 - 1], [2**62 - 1, 2**61, 2**61]]
)
def test_fragments_beyond_64_bits_are_refused(lengths: Any) -> None:
    packer = GreedyPacker(20, 1, overlong="split")
    with pytest.raises(OverflowError, match="number of fragments does not fit in 64 bits"):
        packer.pack_lengths(lengths)


def test_the_overlap_may_change_between_calls() -> None:
    packer = GreedyPacker(20, 5, overlong="split")
    assert len(packer.pack_lengths([9]).indices) == 2
    packer.overlap = 3
    assert len(packer.pack_lengths([9]).indices) == 3
    packer.overlap = 5
    with pytest.raises(ValueError, match=r"overlap must be at most 4 \(got 5\)"):
        packer.pack_lengths([9])
    packer.overlap = 1
    packer.overlong = "truncate"
    with pytest.raises(ValueError, match=r"overlap must be 0 unless overlong='split' \(got 1\)"):
        packer.pack_lengths([9])
