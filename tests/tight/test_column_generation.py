"""Layouts by column generation, against exact answers and the bound that they claim."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from instances import triplets
from reference import check_plan
from strategies import Case, cases

from virnucpro import kernel
from virnucpro.data import GreedyPacker, Layout
from virnucpro.kernel import column_generation, restricted_master
from virnucpro.kernel.limits import Limits


def tight(packer: GreedyPacker) -> GreedyPacker:
    packer.method = "tight"
    return packer


@settings(max_examples=150)
@given(cases())
def test_any_case(case: Case) -> None:
    packer = GreedyPacker(**case.parameters)
    first_fit = packer.pack_lengths(case.lengths)
    # A pricing problem of too many steps is refused with a warning.
    plan = tight(packer).pack_lengths(case.lengths)
    assert len(plan) <= len(first_fit)
    assert first_fit.lower_bound <= plan.lower_bound <= len(plan)
    if len(plan) < len(first_fit):
        check_plan(plan, case.lengths, packer)
    copy = pickle.loads(pickle.dumps(plan))
    assert (copy, copy.lower_bound) == (plan, plan.lower_bound)


def make_counts(limits: Limits, tokens: list[int], sequences: list[int]) -> kernel.TokenCounts:
    return kernel.make_counts(
        limits=limits,
        tokens=np.array(tokens),
        sequences=np.array(sequences),
        num_truncated=0,
        truncated_residues=0,
    )


def worth(pattern: dict[int, int], values: list[int]) -> int:
    return sum(values[size] * number for size, number in pattern.items())


@settings(max_examples=300)
@given(st.data())
def test_pricing(data: st.DataObject) -> None:
    """The pricing problem against an enumeration of all batches."""
    tokens = sorted(data.draw(st.sets(st.integers(1, 12), min_size=1, max_size=4)), reverse=True)
    number = len(tokens)
    sequences = data.draw(st.lists(st.integers(1, 6), min_size=number, max_size=number))
    values = data.draw(st.lists(st.integers(0, 9), min_size=number, max_size=number))
    budget, most = data.draw(st.integers(12, 30)), data.draw(st.integers(1, 8))
    limits = Limits(budget, 12, 0, most)
    counts = make_counts(limits, tokens, sequences)
    first = data.draw(st.integers(0, number - 1))
    best, (offsets, sizes, numbers) = kernel.price_patterns(counts, np.array(values), first, 10)
    every: list[tuple[int, int, int]] = [(0, 0, 0)]
    for size in range(number):
        every = [
            (used + tokens[size] * k, n + k, value + values[size] * k)
            for used, n, value in every
            for k in range(sequences[size] + 1)
            if used + tokens[size] * k <= budget and n + k <= most
        ]
    assert best == max(value for _, _, value in every)
    found = [
        dict(zip(sizes[begin:end].tolist(), numbers[begin:end].tolist(), strict=True))
        for begin, end in itertools.pairwise(offsets)
    ]
    assert (len(found) > 0) == (best > 0)
    for place, pattern in enumerate(found):
        assert all(1 <= n <= sequences[size] for size, n in pattern.items())
        assert sum(tokens[size] * n for size, n in pattern.items()) <= budget
        assert sum(pattern.values()) <= most
        assert worth(pattern, values) == best if place == 0 else 0 < worth(pattern, values) <= best


@given(cases(), st.data())
def test_layout_from_patterns(case: Case, data: st.DataObject) -> None:
    """Patterns of a layout give one with as many batches; without some, all sequences are there."""
    assume(case.lengths)
    packer = GreedyPacker(**case.parameters)
    layout = packer.lay_out(packer.count(case.lengths))
    counts = layout.core.counts
    (offsets, sizes, sequences), number = kernel.patterns_of(layout.core)
    assert number.sum() == layout.num_batches
    core = kernel.layout_from_patterns(counts, offsets, sizes, sequences, number)
    assert core.num_batches == layout.num_batches
    keep = data.draw(st.integers(0, len(number)))
    core = kernel.layout_from_patterns(
        counts,
        offsets[: keep + 1],
        sizes[: offsets[keep]],
        sequences[: offsets[keep]],
        number[:keep],
    )
    found = Layout(core, layout.limits)
    assert found.num_sequences == len(case.lengths)
    assert found.batch_tokens.sum() == layout.total_tokens + layout.padding_tokens
    assert found.assign(np.array(case.lengths)).max() + 1 == found.num_batches


def test_bad_patterns() -> None:
    packer = GreedyPacker(10, special_tokens=0, max_sequences_per_batch=2)
    counts = packer.count([6, 4, 4]).core

    def lay_out(sizes: list[int], sequences: list[int], number: list[int]) -> Any:
        ends = np.array([0, len(sizes)])
        return kernel.layout_from_patterns(
            counts, ends, np.array(sizes), np.array(sequences), np.array(number)
        )

    assert lay_out([0, 1], [1, 1], [1]).num_batches == 2
    for arguments, message in (
        (([0, 1], [1, 2], [1]), "too many sequences"),
        (([0], [2], [1]), "fewer sequences of a size than needed"),
        (([1], [1], [3]), "fewer sequences of a size than needed"),
        (([1, 0], [1, 1], [1]), "out of order"),
        (([2], [1], [1]), "out of order"),
        (([-1], [1], [1]), "out of order"),
        (([0], [0], [1]), "out of order"),
        (([0], [1], [0]), "empty"),
        (([0], [1], [1, 1]), "one number of batches per pattern"),
    ):
        with pytest.raises(ValueError, match=message):
            lay_out(*arguments)
    wrong = np.array([1, 2])
    with pytest.raises(ValueError, match="offsets, sizes and sequences do not match"):
        kernel.layout_from_patterns(counts, wrong, wrong, wrong, wrong)
    with pytest.raises(ValueError, match="one dual value per size"):
        kernel.price_patterns(counts, np.array([1]), 0, 1)
    with pytest.raises(OverflowError, match="53 bits"):
        kernel.price_patterns(counts, np.array([2**53, 1]), 0, 1)
    with pytest.raises(ValueError, match="bound exceeds the number of batches"):
        kernel.with_bound(lay_out([0, 1], [1, 1], [1]), 3)


def test_more_than_the_usual_bound_proves() -> None:
    """Three of these never share a batch, which tokens alone do not tell."""
    packer = GreedyPacker(100, 100, special_tokens=0)
    lengths = [34] * 50 + [35] * 50
    first_fit = packer.pack_lengths(lengths)
    plan = tight(packer).pack_lengths(lengths)
    assert (first_fit.lower_bound, first_fit.proven_optimal) == (35, False)
    assert (len(plan), plan.lower_bound, plan.proven_optimal) == (50, 50, True)
    assert plan != first_fit


def test_trillions_and_threads() -> None:
    packer = tight(GreedyPacker(1000, 1000, special_tokens=0))
    counts = packer.count(triplets(501, 3))
    for _ in range(35):
        counts += counts
    layout = packer.lay_out(counts)
    assert layout.num_sequences == 501 * 2**35
    assert layout.lower_bound <= layout.num_batches <= layout.lower_bound * (1 + 1e-6)
    packer.num_threads = 7
    assert packer.lay_out(counts) == layout


def test_large_problems_are_packed_with_joint_sizes() -> None:
    lengths = np.random.default_rng(0).integers(300_000, 600_000, 300)
    packer = GreedyPacker(2**20, 2**20, special_tokens=0)
    first_fit = packer.pack_lengths(lengths)
    plan = tight(packer).pack_lengths(lengths)
    check_plan(plan, lengths.tolist(), packer)
    assert first_fit.lower_bound < plan.lower_bound <= len(plan) < len(first_fit)
    assert len(plan) <= 1.01 * plan.lower_bound


def test_budget_beyond_all_steps() -> None:
    size = 2**58
    packer = GreedyPacker(10 * size, 10 * size, special_tokens=0)
    # Three of these never share a batch, which the bound by tokens does not tell.
    lengths = [7 * size // 2 + extra for extra in range(5)]
    first_fit = packer.pack_lengths(lengths)
    assert first_fit.lower_bound < len(first_fit)
    plan = tight(packer).pack_lengths(lengths)
    check_plan(plan, lengths, packer)
    assert plan.lower_bound == len(plan) == len(first_fit) == 3


@pytest.mark.parametrize("budget", [4097, 5000, 2**16 - 1, 2**20 + 2**19])
def test_budget_that_is_no_multiple_of_the_unit(budget: int) -> None:
    """The largest sizes are rounded up to no more than the budget."""
    lengths = [budget, budget - 1, *range(budget // 3, budget // 3 + 20)]
    packer = GreedyPacker(budget, budget, special_tokens=0)
    counts = packer.count(lengths).core
    first_fit = kernel.first_fit_decreasing(counts)
    layout = column_generation.pack_coarsely(first_fit)
    assert layout.proven_bound <= layout.num_batches <= first_fit.num_batches


def test_counts_beyond_the_solver_s_tolerance() -> None:
    sizes = [1000, 984, 942, 931, 911, 854, 814, 797, 696, 487, 258, 168, 144, 84, 57, 36]
    sequences = [27549449795691, 19008560, 256106, 8794070231825, 86092072150, 26529603, 7325]
    sequences += [485314, 78246, 9069816906742, 460660, 15, 26005066735870, 9, 1199171523]
    sequences += [903228389817]
    counts = make_counts(Limits(1000, 1000, 0, 5), sizes, sequences)
    first_fit = kernel.first_fit_decreasing(counts)
    layout = column_generation.lay_out(counts)
    assert layout.proven_bound <= layout.num_batches <= first_fit.num_batches


def test_odd_arguments_of_the_kernel() -> None:
    for budget, most in ((2**33 - 1, 2**31 - 1), (2**62, 2**31 - 1), (2**62 - 1, 3)):
        many = make_counts(Limits(budget, 10**6, 0, most), [1], [2**40])
        with pytest.raises(OverflowError):
            kernel.price_patterns(many, np.array([1]), 0, 1)
    for budget, expected in ((6, 15), (5, 10)):
        single = make_counts(Limits(budget, 6, 0), [3, 2, 1], [1, 1, 1])
        assert kernel.price_patterns(single, np.array([5, 5, 5]), 2**64 - 1, 9)[0] == expected


@pytest.mark.parametrize("limit", ["MAX_TOTAL_STEPS", "MAX_TOTAL_PIVOTS", "MAX_ROUNDS"])
def test_work_is_limited(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = restricted_master if limit == "MAX_TOTAL_PIVOTS" else column_generation
    monkeypatch.setattr(module, limit, 1)
    lengths = triplets(501, 1)
    packer = GreedyPacker(1000, 1000, special_tokens=0)
    first_fit = packer.pack_lengths(lengths)
    plan = tight(packer).pack_lengths(lengths)
    check_plan(plan, lengths, packer)
    assert 167 <= plan.lower_bound <= len(plan) <= len(first_fit)
