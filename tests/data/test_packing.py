"""The packer against the naive reference, known answers and invariants."""

from __future__ import annotations

import copy
import inspect
import itertools
import logging
import os
import pickle
import random
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, cases, texts

import virnucpro.data
import virnucpro.data.packing
from virnucpro.data import GreedyPacker, Layout, PackingPlan, TokenCounts, calculate_token_budget
from virnucpro.kernel.arguments import check_lengths, check_threads
from virnucpro.kernel.limits import Limits

LOGGER = "virnucpro.data.packing"


def make_records(lengths: list[int]) -> list[dict[str, Any]]:
    return [{"id": f"seq{row:03d}", "sequence": "M" * length} for row, length in enumerate(lengths)]


def batches_of(plan: PackingPlan) -> list[list[int]]:
    return [rows.tolist() for rows in plan]


def places_of(batches: list[list[int]], num_rows: int) -> tuple[list[int], list[int]]:
    """Batch and slot of each row."""
    batch_of, slot_of = [-1] * num_rows, [-1] * num_rows
    for batch, rows in enumerate(batches):
        for slot, row in enumerate(rows):
            batch_of[row], slot_of[row] = batch, slot
    return batch_of, slot_of


def random_lengths(num_rows: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int32]]:
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal(5.6, 0.75, num_rows)).astype(np.int32)


# Against the reference


@given(cases())
def test_equals_reference(case: Case) -> None:
    expected = reference.first_fit_decreasing(case.lengths, **case.parameters)
    plan = GreedyPacker(**case.parameters).pack_lengths(case.lengths)
    assert batches_of(plan) == expected


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
    limit = min(case.max_sequence_length, case.max_tokens_per_batch - case.special_tokens)
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
    limit = min(case.max_sequence_length, case.max_tokens_per_batch - case.special_tokens)
    tokens = [min(length, limit) + case.special_tokens for length in case.lengths]
    over = [length - limit for length in case.lengths if length > limit]
    assert plan.num_sequences == len(tokens) == plan.offsets[-1]
    assert plan.num_batches == len(plan) == len(plan.offsets) - 1
    assert plan.total_tokens == sum(tokens)
    assert (plan.num_truncated, plan.truncated_residues) == (len(over), sum(over))
    assert plan.max_sequence_length == limit
    assert plan.batch_tokens.tolist() == [sum(tokens[row] for row in rows) for rows in plan]
    assert plan.batch_tokens.max(initial=0) <= case.max_tokens_per_batch
    assert np.all(np.diff(plan.offsets) >= 1)
    assert np.diff(plan.offsets).max(initial=0) <= (case.max_sequences_per_batch or len(tokens))
    assert -(-sum(tokens) // case.max_tokens_per_batch) <= plan.lower_bound <= plan.num_batches
    if case.max_sequences_per_batch:
        assert plan.lower_bound >= -(-len(tokens) // case.max_sequences_per_batch)
    assert (plan.lower_bound > 0) == bool(tokens) or sum(tokens) == 0
    capacity = len(plan) * case.max_tokens_per_batch
    assert plan.efficiency == (sum(tokens) / capacity if capacity else 0.0)


def least_batches(tokens: list[int], budget: int) -> int:
    """The optimum, by trying every way."""
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
def test_lower_bound_is_one(tokens: list[int], budget: int) -> None:
    plan = GreedyPacker(budget, special_tokens=0).pack_lengths(tokens)
    assert plan.lower_bound <= least_batches(tokens, budget) <= plan.num_batches


def test_lower_bound_sees_that_large_sequences_leave_gaps() -> None:
    # 3 of 60 tokens leave 40 each, of which those of 45 can use nothing.
    plan = GreedyPacker(100, special_tokens=0).pack_lengths([60, 60, 60, 45, 45])
    assert -(-plan.total_tokens // 100) == 3
    assert plan.lower_bound == 4 == plan.num_batches
    assert plan.proven_optimal
    assert not GreedyPacker(12, special_tokens=0).pack_lengths([5, 5, 4, 4, 3, 3]).proven_optimal


def test_is_first_fit_decreasing_and_nothing_else() -> None:
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


# Threads, sizes and types of arrays


@pytest.mark.parametrize("num_threads", [2, 3, 7])
def test_threads_give_the_same_bytes(num_threads: int) -> None:
    lengths = random_lengths(600_000)
    ids = np.random.default_rng(1).integers(0, 1000, len(lengths)).astype(str)
    one, many = (GreedyPacker(4096, num_threads=threads) for threads in (1, num_threads))
    assert one.count(lengths) == many.count(lengths)
    assert one.pack_lengths(lengths) == many.pack_lengths(lengths)
    assert one.pack_lengths(lengths, ids) == many.pack_lengths(lengths, ids)
    np.testing.assert_array_equal(one.assign_batches(lengths), many.assign_batches(lengths))
    plan = many.pack_lengths(lengths)
    np.testing.assert_array_equal(
        plan.assign(lengths)[plan.indices], np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
    )
    starts = np.repeat(plan.offsets[:-1], np.diff(plan.offsets))
    np.testing.assert_array_equal(
        plan.slots(lengths)[plan.indices], np.arange(len(lengths)) - starts
    )


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u2"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_every_integer_type_and_layout_in_memory(dtype: str, num_threads: int) -> None:
    lengths = np.random.default_rng(2).integers(0, 127, 200_000).astype(dtype)
    packer = GreedyPacker(300, 100, num_threads=num_threads)
    expected = packer.pack_lengths(lengths.tolist())
    misaligned = np.frombuffer(b"x" + lengths.tobytes(), dtype, offset=1)
    strided = np.repeat(lengths, 3)[::3]
    backwards = lengths[::-1].copy()[::-1]
    read_only = lengths.copy()
    read_only.flags.writeable = False
    for same in (lengths, misaligned, strided, backwards, read_only):
        plan = packer.pack_lengths(same)
        assert plan == expected
        np.testing.assert_array_equal(packer.assign_batches(same), expected.assign(lengths))


def test_contiguous_lengths_are_not_copied() -> None:
    for dtype in (np.int8, np.uint16, np.int32, np.uint64):
        lengths = np.zeros(10, dtype)
        assert check_lengths(lengths) is lengths


def test_wide_lengths_and_budgets_need_no_memory() -> None:
    lengths = [2**40, 2**40 - 1, 1, 0, 2**39]
    for budget in (2**41 + 7, 2**62):
        plan = GreedyPacker(budget, 2**62).pack_lengths(lengths)
        assert batches_of(plan) == reference.first_fit_decreasing(lengths, budget, 2**62)
        assert plan.assign(lengths).tolist() == places_of(batches_of(plan), 5)[0]


def test_many_wide_sizes() -> None:
    lengths = np.random.default_rng(3).integers(0, 2**40, 300_000)
    packer = GreedyPacker(2**41, 2**40, num_threads=2)
    plan = packer.pack_lengths(lengths)
    order = np.lexsort((np.arange(len(lengths)), -lengths))
    np.testing.assert_array_equal(np.sort(plan.indices), np.arange(len(lengths)))
    np.testing.assert_array_equal(
        plan.batch_tokens, np.add.reduceat(lengths[plan.indices] + 2, plan.offsets[:-1])
    )
    assert plan.indices[0] == order[0]
    np.testing.assert_array_equal(
        plan.assign(lengths)[plan.indices], np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
    )


def test_sums_beyond_64_bits_are_refused() -> None:
    with pytest.raises(OverflowError, match="number of tokens does not fit"):
        GreedyPacker(2**62, 2**62).pack_lengths([2**62, 2**62, 2**62])
    with pytest.raises(OverflowError, match="truncated residues does not fit"):
        GreedyPacker(4096).pack_lengths(np.full(2, 2**63 + 1022, np.uint64))
    half = GreedyPacker(4096).count(np.full(1, 2**62 + 5000, np.uint64))
    with pytest.raises(OverflowError, match="truncated residues does not fit"):
        half + half


def test_lengths_of_64_bits_are_truncated() -> None:
    plan = GreedyPacker(4096).pack_lengths(np.array([2**63, 5], np.uint64))
    assert plan.truncated_residues == 2**63 - 1022
    assert plan.batch_tokens.tolist() == [1024 + 7]


def test_out_is_written_and_returned(tmp_path: Any) -> None:
    lengths = random_lengths(1000)
    packer = GreedyPacker(4096)
    layout = packer.lay_out(packer.count(lengths))
    expected = packer.assign_batches(lengths)
    assert expected.dtype == np.int32
    for out in (
        np.full(1000, -1, np.int32),
        np.full(1000, -1, np.int64),
        np.memmap(tmp_path / "batches", np.int32, "w+", shape=(1000,)),
    ):
        assert packer.assign_batches(lengths, out=out) is out
        np.testing.assert_array_equal(out, expected)
        assert layout.slots(lengths, out=out) is out
        np.testing.assert_array_equal(out, layout.slots(lengths))


def test_failed_assignment_leaves_out_alone() -> None:
    packer = GreedyPacker(4096)
    layout = packer.lay_out(packer.count([10, 20]))
    out = np.full(2, -1, np.int32)
    with pytest.raises(ValueError, match=r"2 sequences of 12 tokens, the layout has 1"):
        layout.assign([10, 10], out=out)
    with pytest.raises(ValueError, match=r"a size that the layout lacks"):
        layout.assign([10, 11], out=out)
    with pytest.raises(ValueError, match=r"2 sequences of 22 tokens, the layout has 1"):
        layout.slots([20, 10], before=packer.count([20]), out=out)
    with pytest.raises(ValueError, match=r"`before` has more sequences of 12 tokens"):
        layout.assign([20, 10], before=packer.count([10, 10]), out=out)
    with pytest.raises(ValueError, match=r"`before` has more sequences of 13 tokens"):
        layout.assign([20, 10], before=packer.count([11]), out=out)
    with pytest.raises(ValueError, match=r"`before` was counted with limits other than"):
        layout.assign([20, 10], before=GreedyPacker(100).count([10]), out=out)
    assert out.tolist() == [-1, -1]


def test_other_threads_run_meanwhile() -> None:
    lengths = random_lengths(5_000_000)
    core: Any = virnucpro.kernel
    layout = core.first_fit_decreasing(core.count(lengths, Limits(4096, 4094), 1))
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.0005):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    core.list_rows(layout, lengths, None, 1)
    end = time.perf_counter()
    stop.set()
    thread.join()
    # While the interpreter is held, one tick at most comes at either end.
    assert sum(begin < tick_time < end for tick_time in ticks) > 3


def test_threads_are_those_of_the_cores_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert check_threads(None) == 2
    # Not every system tells which they are, or even how many.
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, expected in (5, 5), (None, 1):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert check_threads(None) == expected
    assert check_threads(3) == 3


def test_threads_are_those_of_the_packer(monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()
    core: Any = virnucpro.kernel
    for name in ("count", "list_rows", "assign_batches", "assign_slots", "shuffle_rows"):
        kernel = getattr(core, name)

        def note(*arguments: Any, name: str = name, kernel: Any = kernel) -> Any:
            used.add((name, arguments[-1]))
            return kernel(*arguments)

        monkeypatch.setattr(core, name, note)
    packer = GreedyPacker(100, num_threads=7)
    plan = packer.pack_lengths([60, 30])
    packer.sort_by_length(packer.pack_sequences(make_records([60, 30]))[0])
    plan.reshuffle(1).reshuffle(2).assign([60, 30])
    packer.assign_batches([60, 30])
    layout = packer.lay_out(packer.count([60, 30]))
    assert layout.assign([60]).tolist() == layout.slots([60]).tolist() == [0]
    # The counts of no rows need no more than one.
    assert used == {
        ("count", 1),
        ("count", 7),
        ("list_rows", 7),
        ("assign_batches", 7),
        ("assign_slots", 7),
        ("shuffle_rows", 7),
    }


# Records


def test_ffd_sorting() -> None:
    batches = GreedyPacker(100).pack_sequences(make_records([10, 50, 30, 40]))
    assert [[len(record["sequence"]) for record in batch] for batch in batches] == [
        [50, 40],
        [30, 10],
    ]


def test_sort_by_length() -> None:
    records = [
        {"id": "b", "sequence": "M" * 2000},
        {"id": "a", "sequence": "M" * 2000},
        {"id": "d", "sequence": ""},
        {"id": "c", "sequence": "M" * 2001},
        {"id": "a", "sequence": "W" * 2000},
    ]
    in_order = GreedyPacker(4096).sort_by_length(records)
    expected = sorted(records, key=lambda record: (-len(record["sequence"]), record["id"]))
    assert [id(record) for record in in_order] == [id(record) for record in expected]
    assert GreedyPacker(4096).sort_by_length([]) == []


def test_deterministic_tiebreaking() -> None:
    records = make_records([30] * 20 + [40] * 20)
    packer = GreedyPacker(100)
    expected = packer.pack_sequences(records)
    for seed in range(10):
        shuffled = random.Random(seed).sample(records, len(records))
        assert packer.pack_sequences(shuffled) == expected


def test_equal_ids_keep_the_order_of_input() -> None:
    records = [{"id": "a", "sequence": sequence} for sequence in ("MK", "MT", "MA")]
    assert GreedyPacker(100).pack_sequences(records) == [records]


def test_token_budget_respected() -> None:
    packer = GreedyPacker(4096)
    lengths = random_lengths(2000).tolist()
    batches = packer.pack_sequences(make_records(lengths))
    tokens = [sum(len(record["sequence"]) + 2 for record in batch) for batch in batches]
    assert max(tokens) <= 4096
    packed = [record["id"] for batch in batches for record in batch]
    assert sorted(packed) == sorted(f"seq{row:03d}" for row in range(2000))


def test_input_is_not_changed() -> None:
    records = make_records([2000, 10, 1022, 1023])
    before = copy.deepcopy(records)
    dicts = list(records)
    batches = GreedyPacker(4096).pack_sequences(records)
    assert records == before
    assert all(one is other for one, other in zip(records, dicts, strict=True))
    packed = {record["id"]: record for batch in batches for record in batch}
    assert packed["seq001"] is records[1]
    assert packed["seq002"] is records[2]
    assert packed["seq000"] == {"id": "seq000", "sequence": "M" * 1022, "truncated": True}


def test_truncation_keeps_the_n_terminal_end() -> None:
    sequence = "".join(random.Random(0).choices("ACDEFGHIKLMNPQRSTVWY", k=1500))
    record = {"id": "x", "sequence": sequence, "organism": "SARS"}
    assert GreedyPacker(4096).pack_sequences([record]) == [
        [{"id": "x", "sequence": sequence[:1022], "organism": "SARS", "truncated": True}]
    ]


def test_truncation_warning(caplog: pytest.LogCaptureFixture) -> None:
    packer = GreedyPacker(4096)
    records = make_records([2048, 10])
    with caplog.at_level(logging.WARNING, LOGGER):
        packer.pack_sequences(records)
    assert [entry.levelname for entry in caplog.records] == ["WARNING"]
    assert caplog.messages == [
        "Sequence seq000 exceeds max_length (2048 > 1022), truncating to its first 1022 residues"
    ]


def test_truncation_warnings_are_limited_a_packer(caplog: pytest.LogCaptureFixture) -> None:
    packer = GreedyPacker(4096)
    with caplog.at_level(logging.DEBUG, LOGGER):
        packer.pack_sequences(make_records([1023] * 70))
        assert [entry.levelname for entry in caplog.records] == ["WARNING"] * 70
        caplog.clear()
        packer.pack_sequences(make_records([1024] * 50))
        levels = [entry.levelname for entry in caplog.records]
        assert levels == ["WARNING"] * 30 + ["DEBUG"] * 20 + ["WARNING"]
        last = caplog.records[-1].getMessage()
        assert last == (
            "50 sequences exceed max_length (1022), truncating: 100 residues lost; "
            "120 sequences since this packer was made"
        )
        caplog.clear()
        packer.pack_sequences(make_records([10]))
        assert not caplog.records
    with caplog.at_level(logging.WARNING, LOGGER):
        packer.pack_sequences(make_records([1024] * 3))
        assert len(caplog.records) == 1
        caplog.clear()
        GreedyPacker(4096).pack_sequences(make_records([1024] * 100))
        assert all("Sequence seq" in message for message in caplog.messages)
        assert len(caplog.messages) == 100


def test_truncation_of_arrays_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    packer = GreedyPacker(4096)
    for call in (packer.pack_lengths, packer.assign_batches, packer.count):
        caplog.clear()
        with caplog.at_level(logging.WARNING, LOGGER):
            call([2000, 5, 1500])
        (entry,) = caplog.records
        assert entry.getMessage() == (
            "2 of 3 sequences exceed max_length (1022), truncating: 1,456 residues lost"
        )


def test_overlong_error() -> None:
    packer = GreedyPacker(4096, overlong="error")
    with pytest.raises(
        ValueError, match=r"Sequence seq001 exceeds max_length \(1023 > 1022\); 2 of 3 sequences do"
    ):
        packer.pack_sequences(make_records([5, 1023, 4000]))
    with pytest.raises(
        ValueError, match=r"lengths\[1\] exceeds max_length \(1023 > 1022\); 2 of 3 sequences do"
    ):
        packer.pack_lengths([5, 1023, 4000])
    with pytest.raises(ValueError, match=r"lengths\[0\] exceeds max_length .* 3 of 3 sequences do"):
        packer.pack_lengths(np.full(3, 2**63, np.uint64))
    assert len(packer.pack_sequences(make_records([1022]))) == 1
    assert len(packer.sort_by_length(make_records([4000]))) == 1


def test_efficiency_calculation() -> None:
    packer = GreedyPacker(1000)
    assert packer.compute_efficiency([make_records([898])]) == 0.9
    assert packer.compute_efficiency([make_records([898]), make_records([398])]) == 0.65
    assert packer.compute_efficiency([make_records([5000])]) == 1.0
    assert packer.compute_efficiency([]) == 0.0


def test_bos_eos_accounting() -> None:
    packer = GreedyPacker(20)
    assert packer._tokenized_length("MKTAY") == 7  # noqa: SLF001
    assert packer._tokenized_length("M" * 50) == 20  # noqa: SLF001
    # Two sequences of 8 residues take 20 tokens; of 9 they would take 22.
    assert len(packer.pack_sequences(make_records([8, 8]))) == 1
    assert len(packer.pack_sequences(make_records([9, 9]))) == 2
    assert len(GreedyPacker(18, special_tokens=0).pack_sequences(make_records([9, 9]))) == 1


@pytest.mark.parametrize(
    ("lengths", "parameters", "expected"),
    [
        pytest.param([], {"max_tokens_per_batch": 10}, [], id="empty list"),
        pytest.param([5], {"max_tokens_per_batch": 10}, [[0]], id="one sequence"),
        pytest.param([3, 3], {"max_tokens_per_batch": 10}, [[0, 1]], id="exact fit"),
        pytest.param([0, 0, 1], {"max_tokens_per_batch": 5}, [[2, 0], [1]], id="zero length"),
        pytest.param(
            [0, 4, 0], {"max_tokens_per_batch": 4, "special_tokens": 0}, [[1, 0, 2]], id="no tokens"
        ),
        pytest.param(
            [0, 0, 0],
            {"max_tokens_per_batch": 4, "special_tokens": 0, "max_sequences_per_batch": 2},
            [[0, 1], [2]],
            id="no tokens, capped",
        ),
        pytest.param(
            [50, 50],
            {"max_tokens_per_batch": 12, "max_sequence_length": 1022},
            [[0], [1]],
            id="budget smaller than the limit",
        ),
        pytest.param([9, 1], {"max_tokens_per_batch": 3}, [[0], [1]], id="one residue a batch"),
    ],
)
def test_edge_cases(
    lengths: list[int], parameters: dict[str, Any], expected: list[list[int]]
) -> None:
    packer = GreedyPacker(**parameters)
    assert batches_of(packer.pack_lengths(lengths)) == expected
    packed = packer.pack_sequences(make_records(lengths))
    assert [[int(record["id"][3:]) for record in batch] for batch in packed] == expected


def test_empty_input_gives_an_empty_plan() -> None:
    empty: list[Any]
    for empty in ([], np.empty(0, np.uint8), np.array([])):  # type: ignore[assignment]
        plan = GreedyPacker(4096).pack_lengths(empty, ids=empty)
        assert (len(plan), plan.num_sequences, plan.efficiency, plan.lower_bound) == (0, 0, 0.0, 0)
        assert plan.offsets.tolist() == [0]
        assert list(plan) == []
        assert GreedyPacker(4096).assign_batches(empty).shape == (0,)
    assert GreedyPacker(4096).pack_sequences([]) == []


@pytest.mark.parametrize(
    "ids",
    [
        ["b", "a", "\ud800", "\uffff", "\U00010000"],
        np.array(["b", "a", "", "é", "\U00010000"]),
        np.array(["b", "a", "", "é", "\U00010000"], dtype=object),
        np.array(["b", "a", "", "é", "\U00010000"], dtype=">U9"),
        np.array(["b", "x", "a", "x", "c"])[::2].repeat(2)[:5],
        np.array([3, -1, 2, 2, 0], np.int16),
        np.array([3, 2**64 - 1, 2**63, 2, 0], np.uint64),
        [3, 2**80, -(2**80), 2, 0],
        [np.int64(3), np.uint8(1), 2, 5, 4],
        np.array([3, 2, 1, 1, 0], dtype=object),
    ],
    ids=str,
)
def test_kinds_of_ids(ids: Any) -> None:
    lengths = [7] * 5
    plan = GreedyPacker(20).pack_lengths(lengths, ids)
    assert batches_of(plan) == reference.first_fit_decreasing(lengths, 20, ids=list(ids))


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy 2 has StringDType")
def test_ids_of_variable_width() -> None:
    texts = ["b", "a", "", "é", "\U00010000"]
    ids = np.array(texts, dtype=np.dtypes.StringDType())
    packer = GreedyPacker(20)
    assert packer.pack_lengths([7] * 5, ids) == packer.pack_lengths([7] * 5, texts)


# Plans


def test_plan_indexing_and_shards() -> None:
    plan = GreedyPacker(4096).pack_lengths(random_lengths(5000))
    batches = batches_of(plan)
    assert np.shares_memory(plan[0], plan.indices)
    assert (plan[-1].tolist(), plan[-len(plan)].tolist()) == (batches[-1], batches[0])
    for wrong in (len(plan), -len(plan) - 1):
        with pytest.raises(IndexError, match=f"batch {wrong} is out of range for {len(plan)}"):
            plan[wrong]
    with pytest.raises(TypeError, match="'slice' object cannot be interpreted as an integer"):
        plan[0:2]  # type: ignore[index]
    shards = [plan.shard(rank, 3) for rank in range(3)]
    assert [len(shard) for shard in shards] == [len(batches[rank::3]) for rank in range(3)]
    for rank, shard in enumerate(shards):
        for _ in range(2):
            assert [rows.tolist() for rows in shard] == batches[rank::3]
    with pytest.raises(ValueError, match=r"rank must be at most 2 \(got 3\)"):
        plan.shard(3, 3)
    with pytest.raises(ValueError, match=r"rank must be at least 0 \(got -1\)"):
        plan.shard(-1, 3)
    with pytest.raises(ValueError, match=r"world_size must be at least 1 \(got 0\)"):
        plan.shard(0, 0)


def test_results_are_picklable() -> None:
    packer = GreedyPacker(4096, max_sequences_per_batch=5)
    lengths = random_lengths(3000)
    counts = packer.count(lengths)
    layout = packer.lay_out(counts)
    plan = packer.pack_lengths(lengths)
    for made in (counts, layout, plan):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            again = pickle.loads(pickle.dumps(made, protocol))
            assert type(again) is type(made)
            assert again == made
            assert repr(again) == repr(made)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(layout)).assign(lengths), layout.assign(lengths)
    )
    assert len(pickle.dumps(counts)) < 100 * len(counts.tokens)


def test_counts_tell_sizes() -> None:
    counts = GreedyPacker(100, 50).count([5, 60, 5, 50])
    assert counts.tokens.tolist() == [52, 7]
    assert counts.sequences.tolist() == [2, 2]
    assert (counts.num_sequences, counts.total_tokens) == (4, 118)
    assert (counts.num_truncated, counts.truncated_residues) == (1, 10)
    assert counts != GreedyPacker(100, 50).count([5, 50, 5, 50])
    assert counts != "counts"


def test_layouts_differ() -> None:
    packer = GreedyPacker(100)
    plan, layout = packer.pack_lengths([60, 30]), packer.lay_out(packer.count([60, 30]))
    assert layout == packer.lay_out(packer.count([30, 60]))
    assert plan == packer.pack_lengths([60, 30])
    others = [packer.lay_out(packer.count([60, 31])), packer.pack_lengths([60, 31]), layout.core]
    for other in (*others, packer.pack_lengths([30, 60]), "plan", None):
        assert layout != other
        assert plan != other
        assert other != plan
    assert plan != layout
    for unhashable in (plan, layout, packer.count([5])):
        with pytest.raises(TypeError, match="unhashable"):
            hash(unhashable)


def test_repr_is_one_line() -> None:
    packer = GreedyPacker(100, max_sequences_per_batch=3)
    plan = packer.pack_lengths([60, 30])
    assert repr(plan) == (
        "PackingPlan(2 sequences in 1 batches of at most 100 tokens, "
        "efficiency 0.9400, lower bound 1)"
    )
    assert plan.max_sequences_per_batch == 3
    assert repr(packer) == (
        "GreedyPacker(100, 1022, special_tokens=2, overlong='truncate', "
        "max_sequences_per_batch=3, num_threads=None, method='ffd')"
    )


def test_parameters_may_be_numpy_integers() -> None:
    packer = GreedyPacker(np.int16(4096), special_tokens=np.int8(2))  # type: ignore[arg-type]
    assert packer._tokenized_length("M" * 200) == 202  # noqa: SLF001
    assert packer.compute_efficiency([make_records([198] * 10)] * 8) == 2000 / 4096


def test_parameters_may_change_between_calls() -> None:
    packer = GreedyPacker(100)
    assert len(packer.pack_lengths([60, 60])) == 2
    packer.max_tokens_per_batch = 200
    assert len(packer.pack_lengths([60, 60])) == 1
    packer.max_sequence_length = 0
    with pytest.raises(ValueError, match=r"max_sequence_length must be at least 1 \(got 0\)"):
        packer.pack_lengths([60, 60])


# Bad input


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"max_tokens_per_batch": 2}, ValueError, "room for one residue and 2 special tokens"),
        ({"max_tokens_per_batch": 0}, ValueError, "max_tokens_per_batch must be at least 1"),
        ({"max_tokens_per_batch": 2**62 + 1}, ValueError, "max_tokens_per_batch must be at most"),
        ({"max_tokens_per_batch": 4096.0}, TypeError, "must be an integer .got 4096.0."),
        ({"max_tokens_per_batch": True}, TypeError, "must be an integer .got True."),
        ({"max_tokens_per_batch": "9"}, TypeError, "must be an integer .got '9'."),
        ({"max_sequence_length": 0}, ValueError, "max_sequence_length must be at least 1"),
        ({"max_sequence_length": None}, TypeError, "max_sequence_length must be an integer"),
        ({"special_tokens": -1}, ValueError, "special_tokens must be at least 0"),
        ({"overlong": "drop"}, ValueError, "overlong must be 'truncate' or 'error' .got 'drop'."),
        ({"max_sequences_per_batch": 0}, ValueError, "max_sequences_per_batch must be at least 1"),
        ({"max_sequences_per_batch": 2**63}, ValueError, "max_sequences_per_batch must be at most"),
        ({"special_tokens": 2**62}, ValueError, "special_tokens must be at most"),
        ({"special_tokens": 4096}, ValueError, "one residue and 4,096 special tokens .got 4,096."),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1"),
        ({"num_threads": 2**16 + 1}, ValueError, "num_threads must be at most 65,536"),
        ({"method": "best"}, ValueError, "method must be 'ffd' or 'tight' .got 'best'."),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        GreedyPacker(**{"max_tokens_per_batch": 4096, **parameters})


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_tokens_per_batch": 1, "max_sequence_length": 1, "special_tokens": 0},
        {"max_tokens_per_batch": 2**62, "max_sequence_length": 2**70},
        {"max_tokens_per_batch": 2**62, "special_tokens": 2**62 - 1},
        {"max_tokens_per_batch": 9, "max_sequences_per_batch": 1, "num_threads": 1},
        {"max_tokens_per_batch": 9, "max_sequences_per_batch": 2**63 - 1, "num_threads": 2**16},
    ],
)
def test_parameters_at_their_bounds(parameters: dict[str, Any]) -> None:
    plan = GreedyPacker(**parameters).pack_lengths([1])
    assert batches_of(plan) == [[0]]
    assert plan.total_tokens == 1 + parameters.get("special_tokens", 2)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([5, 6, -1], ValueError, r"lengths\[2\] is negative \(got -1\)"),
        (np.array([5, -128], np.int8), ValueError, r"lengths\[1\] is negative \(got -128\)"),
        (np.array([[5, 6]]), ValueError, r"lengths must have one dimension \(got 2\)"),
        (np.array(5), ValueError, r"lengths must have one dimension \(got 0\)"),
        (np.array([5.0]), TypeError, r"lengths must be integers \(got float64\)"),
        (np.array([True]), TypeError, r"lengths must be integers \(got bool\)"),
        (np.array(["5"]), TypeError, r"lengths must be integers \(got <U1\)"),
        (np.ma.array([5, 6]), TypeError, r"lengths must not be a masked array"),
        (deque([5, True]), TypeError, r"lengths\[1\] must be an integer \(got True\)"),
        ([5, True], TypeError, r"lengths\[1\] must be an integer \(got True\)"),
        ([5, 6.0], TypeError, r"lengths\[1\] must be an integer \(got 6.0\)"),
        ([5, None], TypeError, r"lengths\[1\] must be an integer \(got None\)"),
        ([5, [6]], TypeError, r"lengths\[1\] must be an integer \(got \[6\]\)"),
        ([5, 2**63], ValueError, r"lengths\[1\] does not fit in int64 \(got 9223372036854775808\)"),
        ([5, -(2**63) - 1], ValueError, r"lengths\[1\] does not fit in int64 \(got -922"),
        ([2**63 - 1, -(2**63), 2**64], ValueError, r"lengths\[2\] does not fit in int64"),
        ("MKTAY", TypeError, r"lengths must be a list or an array of integers \(got str\)"),
        (b"MKTAY", TypeError, r"lengths must be a list or an array of integers \(got bytes\)"),
        ({5: 6}, TypeError, r"lengths must be a list or an array of integers \(got dict\)"),
        (None, TypeError, r"lengths must be a list or an array of integers \(got NoneType\)"),
    ],
)
def test_bad_lengths(lengths: Any, error: type, message: str) -> None:
    packer = GreedyPacker(4096)
    for call in (packer.pack_lengths, packer.assign_batches, packer.count):
        with pytest.raises(error, match=message):
            call(lengths)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (["a"], ValueError, r"one ID a sequence \(got 1 for 3\)"),
        (np.array(["a"]), ValueError, r"one ID a sequence \(got 1 for 3\)"),
        (["a", "b", 3], TypeError, r"ids\[2\] must be str like ids\[0\] \(got int\)"),
        ([1, "b", 3], TypeError, r"ids\[1\] must be int like ids\[0\] \(got str\)"),
        ([1, True, 3], TypeError, r"ids\[1\] must be int like ids\[0\] \(got bool\)"),
        ([None, "b", "c"], TypeError, r"ids\[0\] must be str or int \(got NoneType\)"),
        ([1.5, 2.5, 3.5], TypeError, r"ids\[0\] must be str or int \(got float\)"),
        (b"abc", TypeError, r"ids must be a list or an array of IDs \(got bytes\)"),
        ([1, 2.5, 3], TypeError, r"ids\[1\] must be int like ids\[0\] \(got float\)"),
        ("abc", TypeError, r"ids must be a list or an array of IDs \(got str\)"),
        (7, TypeError, r"ids must be a list or an array of IDs \(got int\)"),
        (np.array([1.5, 2, 3]), TypeError, r"ids must be str or int \(got float64\)"),
        (np.array([True, False, True]), TypeError, r"ids must be str or int \(got bool\)"),
        (np.array([b"a", b"b", b"c"]), TypeError, r"ids must be str or int \(got \|S1\)"),
        (np.ma.array([1, 2, 3]), TypeError, r"ids must not be a masked array"),
        (np.array([["a"], ["b"], ["c"]]), ValueError, r"ids must have one dimension \(got 2\)"),
        (np.array(["a", None, "c"], object), TypeError, r"ids\[1\] must be str like ids\[0\]"),
    ],
)
def test_bad_ids(ids: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        GreedyPacker(4096).pack_lengths([5, 6, 7], ids)


@pytest.mark.parametrize(
    ("record", "error", "message"),
    [
        ({"id": "a", 5: 6}, ValueError, r"\[1\] has no 'sequence' \(it has 'id'\)$"),
        ({"sequence": "MK", "n": 5}, ValueError, r"\[1\] has no 'id' \(it has 'sequence', 'n'\)$"),
        ({}, ValueError, r"sequences\[1\] has no 'id' \(it has no keys\)$"),
        ("MK", TypeError, r"sequences\[1\] must be a dict \(got str\)"),
        (
            {"id": "a", "sequence": b"MK"},
            TypeError,
            r"\[1\]\['sequence'\] must be a str \(got bytes\)",
        ),
        ({"id": "a", "sequence": None}, TypeError, r"must be a str \(got NoneType\)"),
        ({"id": 7, "sequence": "MK"}, TypeError, r"sequences\[1\]\['id'\] must be str like"),
    ],
)
def test_bad_records(record: Any, error: type, message: str) -> None:
    packer = GreedyPacker(4096)
    records = [{"id": "b", "sequence": "M"}, record]
    for call in (packer.pack_sequences, packer.sort_by_length):
        with pytest.raises(error, match=message):
            call(records)


class Table(list[str]):
    """Like a data frame, which iterates over the names of its columns."""

    columns = ("id", "sequence")


@pytest.mark.parametrize(
    "sequences",
    [None, 5, "MK", b"MK", Path("proteins.fasta"), {"id": "a", "sequence": "MK"}, Table()],
)
def test_what_is_no_list_of_records(sequences: Any) -> None:
    packer = GreedyPacker(4096)
    wanted = rf"must be a list of dicts \(got {type(sequences).__name__}\)"
    for call in (packer.pack_sequences, packer.sort_by_length):
        with pytest.raises(TypeError, match="^sequences " + wanted):
            call(sequences)
    with pytest.raises(TypeError, match=r"^batches\[1\] " + wanted):
        packer.compute_efficiency([[], sequences])


def test_bad_batches() -> None:
    packer = GreedyPacker(10)
    with pytest.raises(ValueError, match=r"batches\[1\]\[0\] has no 'sequence'"):
        packer.compute_efficiency([make_records([3]), [{"id": "a"}]])
    with pytest.raises(ValueError, match=r"batches\[0\] has 12 tokens, more than the budget of 10"):
        packer.compute_efficiency([make_records([4, 4])])


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ([0, 0, 0], TypeError, r"out must be a plain NumPy array \(got list\)"),
        (
            np.ma.zeros(3, np.int32),
            TypeError,
            r"out must be a plain NumPy array \(got MaskedArray\)",
        ),
        (np.empty(3, np.int16), TypeError, r"out must be int32 or int64 \(got int16\)"),
        (np.empty(3, ">i4"), TypeError, r"out must be int32 or int64 \(got >i4\)"),
        (np.empty(2, np.int32), ValueError, r"the shape of lengths, \(3,\) \(got \(2,\)\)"),
        (np.empty(6, np.int32)[::2], ValueError, r"contiguous, aligned and writeable"),
    ],
)
def test_bad_out(out: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        GreedyPacker(4096).assign_batches([5, 6, 7], out=out)


def test_out_must_not_overlap_lengths_or_be_read_only() -> None:
    packer = GreedyPacker(4096)
    lengths = np.array([5, 6, 7], np.int32)
    with pytest.raises(ValueError, match="out must not overlap lengths"):
        packer.assign_batches(lengths, out=lengths)
    assert lengths.tolist() == [5, 6, 7]
    out = np.empty(3, np.int32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="contiguous, aligned and writeable"):
        packer.assign_batches(lengths, out=out)


def test_counts_of_other_limits_are_refused() -> None:
    counts = GreedyPacker(4096).count([5])
    with pytest.raises(ValueError, match=r"at most 1,022 residues .* not for 98 and 2"):
        GreedyPacker(100).lay_out(counts)
    with pytest.raises(ValueError, match=r"counts were made with different limits"):
        counts + GreedyPacker(100).count([5])
    with pytest.raises(TypeError, match=r"counts must be TokenCounts \(got list\)"):
        GreedyPacker(100).lay_out([5])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"unsupported operand"):
        counts + 1  # type: ignore[operator]
    layout = GreedyPacker(4096).lay_out(counts)
    with pytest.raises(TypeError, match=r"before must be TokenCounts \(got int\)"):
        layout.assign([5], before=3)  # type: ignore[arg-type]


def test_kernel_refuses_what_the_api_never_sends() -> None:
    core: Any = virnucpro.kernel
    limits = Limits(10, 10, 0)
    counts = core.count(np.array([5]), limits, 1)
    layout = core.first_fit_decreasing(counts)
    five, out, texts = np.array([5]), np.empty(1, np.int64), np.zeros(4, np.uint8)
    calls: list[tuple[type[Exception], Any]] = [
        (TypeError, lambda: core.count(np.array([[5]]), limits, 1)),
        (TypeError, lambda: core.count(np.array([5.0]), limits, 1)),
        (TypeError, lambda: core.count(np.arange(8)[::2], limits, 1)),
        (TypeError, lambda: core.count(np.arange(8, dtype=">i8"), limits, 1)),
        (TypeError, lambda: core.count(np.frombuffer(b"12345678x", "i4", 2, 1), limits, 1)),
        (ValueError, lambda: core.count(five, forged_limits(max_sequence_length=0), 1)),
        (ValueError, lambda: core.count(five, forged_limits(special_tokens=10), 1)),
        (TypeError, lambda: core.count(five, forged_limits(special_tokens="2"), 1)),
        (AttributeError, lambda: core.count(five, {"max_tokens_per_batch": 10}, 1)),
        (ValueError, lambda: counts.with_limits(Limits(9, 10, 0))),
        (ValueError, lambda: counts.with_limits(forged_limits(max_sequences_per_batch=0))),
        (ValueError, lambda: core.assign_batches(layout, five, counts, out, 1)),
        (ValueError, lambda: core.assign_slots(layout, five, counts, np.empty(2, np.int64), 1)),
        (TypeError, lambda: core.assign_slots(layout, five, counts, np.empty(1, np.int16), 1)),
        (ValueError, lambda: core.list_rows(layout, np.array([5, 5]), None, 1)),
        (ValueError, lambda: core.list_rows(layout, five, ("a", "b"), 1)),
        (ValueError, lambda: core.list_rows(layout, five, np.array([1, 2]), 1)),
        (TypeError, lambda: core.list_rows(layout, five, (1,), 1)),
        (TypeError, lambda: core.list_rows(layout, five, np.array([1.0]), 1)),
        (TypeError, lambda: core.list_rows(layout, five, None, 1.5)),
        (ValueError, lambda: core.list_rows(layout, five, (np.array([0, 5]), texts), 1)),
        (ValueError, lambda: core.list_rows(layout, five, (np.array([2, 1]), texts), 1)),
        (ValueError, lambda: core.list_rows(layout, five, (np.array([-1, 1]), texts), 1)),
        (ValueError, lambda: core.list_rows(layout, five, (np.array([0]), texts), 1)),
        (TypeError, lambda: core.list_rows(layout, five, (np.array([0.0, 1.0]), texts), 1)),
        (TypeError, lambda: core.list_rows(layout, five, (np.array([0, 1]), five), 1)),
        (ValueError, lambda: core.shuffle_rows(layout, np.array([0, 1]), 0, 1)),
        (TypeError, lambda: core.shuffle_rows(layout, np.array([0.0]), 0, 1)),
        (TypeError, lambda: core.shuffle_rows(layout, np.array([0]), -1, 1)),
        (TypeError, lambda: core.Layout.__new__(core.Layout)),
        (TypeError, lambda: core.TokenCounts.__new__(core.TokenCounts)),
        (TypeError, lambda: object.__new__(core.Layout)),
        (TypeError, lambda: core.make_counts(limits, "tokens", "sequences", 0, 0)),
    ]
    for error, call in calls:
        with pytest.raises(error):
            call()


def forged_limits(**changes: Any) -> Any:
    """Return what has the attributes of limits, unchecked."""
    return SimpleNamespace(**{**Limits(10, 10, 0).to_dict(), **changes})


def forgeries_of(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the state of a value with one of its values changed, at any depth."""
    for name, value in state.items():
        changed: list[Any] = ["field", None]
        if isinstance(value, dict):
            changed += [*forgeries_of(value), {}]
        elif isinstance(value, int):
            changed += [value + change for change in (1, -1, 2**40, -(2**40))]
        elif isinstance(value, np.ndarray):
            for change in (1, -1, 2**40, -(2**40)):
                for place in range(len(value)):
                    array = value.copy()
                    array[place] += change
                    changed.append(array)
            changed += [value[:-1], value.astype(np.int32), value.reshape(-1, 1)]
        for forged in changed:
            if forged is not value:
                yield {**state, name: forged}
        yield {key: kept for key, kept in state.items() if key != name}
    yield {**state, "unknown": 1}


def test_forged_state_is_refused() -> None:
    packer = GreedyPacker(10, max_sequences_per_batch=3)
    counts = packer.count([5, 4, 1, 1, 1, 0, 50])
    for value in (packer.lay_out(counts), counts):
        assert type(value).from_dict(value.to_dict()) == value
        refused = 0
        for state in forgeries_of(value.to_dict()):
            try:
                other = type(value).from_dict(state)
            except (ValueError, TypeError, OverflowError, KeyError):
                refused += 1
                continue
            # Sound, then, and another one, or with no limit on sequences.
            assert isinstance(other, (Layout, TokenCounts))
            if isinstance(other, Layout):
                tokens = other.batch_tokens
                assert tokens.sum() == other.total_tokens
                assert tokens.max() <= other.max_tokens_per_batch
        assert refused > (50 if value is counts else 100)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_state_of_another_version_is_refused(version: Any) -> None:
    packer = GreedyPacker(100)
    plan = packer.pack_lengths([60, 30])
    message = r"the state of a {} must be of version 1 \(got"
    values: list[Any] = [packer.count([5]), packer.lay_out(packer.count([5])), plan]
    for value in values:
        function, (state, *rest) = value.__reduce__()
        assert state["version"] == 1
        with pytest.raises(ValueError, match=message.format(type(value).__name__)):
            function({**state, "version": version}, *rest)
    with pytest.raises(ValueError, match=message.format("GreedyPacker")):
        packer.__setstate__({**packer.__getstate__(), "version": version})


# Limits


def test_limits_are_a_value() -> None:
    limits = Limits(100, 50, 2, 3)
    assert limits == Limits.from_dict(limits.to_dict()) == pickle.loads(pickle.dumps(limits))
    assert hash(limits) == hash(Limits(100, 50, 2, 3))
    assert limits != Limits(100, 50, 2)
    assert list(limits.to_dict()) == [
        "max_tokens_per_batch",
        "max_sequence_length",
        "special_tokens",
        "max_sequences_per_batch",
    ]
    with pytest.raises(FrozenInstanceError):
        limits.special_tokens = 3  # type: ignore[misc]
    assert type(Limits(np.int32(100)).max_tokens_per_batch) is int  # type: ignore[arg-type]


def test_limits_know_residues_and_tokens() -> None:
    limits = Limits(100)
    assert (limits.max_residues, limits.tokens(5), limits.tokens(5000)) == (98, 7, 100)
    assert limits.tokens(np.array([0, 98, 99])).tolist() == [2, 100, 100]
    assert Limits(100, 10**30).max_residues == 98


@given(cases())
def test_limits_count_as_the_kernel_does(case: Case) -> None:
    limits = Limits(**case.parameters)
    counts = virnucpro.kernel.count(np.array(case.lengths, np.int64), limits, 1)
    tokens, sequences = np.unique(
        limits.tokens(np.array(case.lengths, np.int64)), return_counts=True
    )
    assert counts.tokens.tolist() == tokens[::-1].tolist()
    assert counts.sequences.tolist() == sequences[::-1].tolist()


def test_bad_limits_in_a_dict() -> None:
    with pytest.raises(ValueError, match=r"unknown limit 'colour'"):
        Limits.from_dict({"max_tokens_per_batch": 100, "colour": 1})
    with pytest.raises(ValueError, match=r"limits have no 'max_tokens_per_batch'"):
        Limits.from_dict({})
    with pytest.raises(ValueError, match=r"at least 1 \(got 0\)"):
        Limits.from_dict({"max_tokens_per_batch": 0})
    # A limit that is newer than the dict has its default.
    assert Limits.from_dict({"max_tokens_per_batch": 100}) == Limits(100)


def test_parameters_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    check = Limits.__post_init__

    def note(limits: Limits) -> None:
        made.append(limits)
        check(limits)

    monkeypatch.setattr(Limits, "__post_init__", note)
    packer = GreedyPacker(100)
    for _ in range(3):
        packer.pack_lengths([60, 30])
        packer.pack_sequences(make_records([60, 30]))
    assert len(made) == 1
    packer.max_tokens_per_batch = 50
    assert packer.limits.max_residues == 48
    assert len(made) == 2
    packer.special_tokens = 50
    for _ in range(2):
        with pytest.raises(ValueError, match="room for one residue"):
            packer.pack_lengths([60, 30])


# Token budget


def test_calculate_token_budget_no_torch(caplog: pytest.LogCaptureFixture) -> None:
    with mock.patch.dict(sys.modules, {"torch": None}), caplog.at_level(logging.WARNING, LOGGER):
        assert calculate_token_budget() == 4096
    assert caplog.messages == [
        "CUDA not available: torch is not installed, using a token budget of 4096"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bytes_per_token": 0}, r"bytes_per_token must be at least 1 \(got 0\)"),
        ({"min_tokens": 0}, r"min_tokens must be at least 1 \(got 0\)"),
        ({"model_memory_gb": float("nan")}, r"model_memory_gb must be at least 0 and finite"),
        ({"model_memory_gb": float("inf")}, r"model_memory_gb must be .* finite \(got inf\)"),
        ({"safety_margin_gb": -1}, r"safety_margin_gb must be at least 0 and finite \(got -1\)"),
        ({"min_tokens": 9, "max_tokens": 8}, r"max_tokens must be at least 9 \(got 8\)"),
    ],
)
def test_calculate_token_budget_bad_arguments(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calculate_token_budget(**arguments)


@pytest.mark.parametrize("name", ["model_memory_gb", "safety_margin_gb"])
def test_memory_that_is_no_number(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} must be a number \(got '5'\)"):
        calculate_token_budget(**{name: "5"})  # type: ignore[arg-type]
    assert calculate_token_budget(**{name: np.float32(5)}) == 4096  # type: ignore[arg-type]


# The package


def test_exports() -> None:
    for name in ("GreedyPacker", "PackingPlan", "calculate_token_budget"):
        assert name in virnucpro.data.__all__
        assert name in virnucpro.data.packing.__all__
        assert getattr(virnucpro.data, name) is getattr(virnucpro.data.packing, name)
    assert set(virnucpro.data.__all__) - set(virnucpro.data.LAZY) <= set(vars(virnucpro.data))


def test_import_needs_numpy_alone() -> None:
    code = (
        "import sys, numpy\n"
        "before = set(sys.modules)\n"
        "import virnucpro.data\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names) - {'numpy'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("virnucpro\n", "")


def test_one_version() -> None:
    from importlib.metadata import version

    assert virnucpro.__version__ == virnucpro.kernel.__version__ == version("virnucpro")


@pytest.mark.parametrize(
    "pattern", [r"logger\.warning\(.*truncat", r"torch\.cuda\.get_device_properties"]
)
def test_what_users_search_the_source_for(pattern: str) -> None:
    """Both stand in this file, each on one line."""
    source = inspect.getsource(virnucpro.data.packing).splitlines()
    assert any(re.search(pattern, line) for line in source)
