"""Patterns with reservation: layouts under a limit on sequences."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proteins import short_lengths, times
from strategies import Case, cases

from virnucpro import kernel
from virnucpro.data import GreedyPacker, Layout

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.compare
@given(cases(), st.integers(1, 12), st.sampled_from([1, 2, 1000, 10**9]))
def test_every_sequence_has_a_slot(case: Case, most: int, number: int) -> None:
    packer = GreedyPacker(**{**case.parameters, "max_sequences_per_batch": most})
    counts = packer.count_silently(case.lengths)
    # Totals have 63 bits.
    total = max(1, counts.total_tokens, counts.truncated_residues)
    counts = times(counts, max(1, min(number, 2**62 // total)))
    # The kernel validates the layout: each sequence has one slot, and no batch exceeds a limit.
    layout = Layout(kernel.patterns_with_reservation(counts.core), packer.limits)
    assert layout.num_sequences == counts.num_sequences
    assert layout.lower_bound <= layout.num_batches
    assert layout.max_sequences <= most


def test_the_example_of_the_documentation_is_current() -> None:
    lengths = np.array([6, 5, 3, 2, 1, 1] * 2)
    packer = GreedyPacker(10, special_tokens=0, max_sequences_per_batch=3)
    counts = packer.count(lengths)
    drawn: list[list[str]] = []
    for core in (kernel.first_fit_decreasing, kernel.patterns_with_reservation):
        layout = Layout(core(counts.core), packer.limits)
        batches = layout.assign(lengths)
        drawn.append([])
        for batch in range(layout.num_batches):
            tokens = sorted(lengths[batches == batch].tolist(), reverse=True)
            unit = " tokens" if batch == 0 else ""
            listed = " ".join(map(str, tokens))
            drawn[-1].append(f"batch {batch}: {listed:6}{sum(tokens):4}{unit}")
    lines = [f"{ffd:29}{other}" for ffd, other in zip_longest(*drawn, fillvalue="")]
    text = (DOCS / "explanation/limits-on-sequences.md").read_text(encoding="utf-8")
    heading = f"{'FFD':29}patterns with reservation"
    assert "\n".join([f"```text\n{heading}", *map(str.rstrip, lines), "```"]) in text


def test_slots_are_reserved_for_the_smallest() -> None:
    packer = GreedyPacker(20, special_tokens=0, max_sequences_per_batch=4)
    counts = packer.count([9, 9, 8, 8, 5, 5, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1])
    layout = kernel.patterns_with_reservation(counts.core)
    plan = Layout(layout, packer.limits)
    tokens = [kernel.tokens_of_batches(layout, n, n + 1).tolist() for n in range(plan.num_batches)]
    # Two of 9 leave room for the two smallest, two of 8 for 2 + 2 in their place.
    assert tokens == [[9, 9, 1, 1], [8, 8, 2, 2], [5, 5, 2, 2], [1, 1, 1, 1]]
    assert plan.proven_optimal
    assert packer.lay_out(counts).num_batches == 5


@pytest.mark.parametrize(("budget", "most"), [(4096, 14), (16384, 55), (65536, 220)])
def test_close_to_the_bound_for_proteins(budget: int, most: int) -> None:
    packer = GreedyPacker(budget, max_sequences_per_batch=most)
    counts = times(packer.count(short_lengths(20000)), 50)
    layout = Layout(kernel.patterns_with_reservation(counts.core), packer.limits)
    assert layout.num_batches <= 1.001 * layout.lower_bound
    assert layout.max_sequences <= most
    assert packer.lay_out(counts).num_batches > 1.1 * layout.num_batches


def test_work_is_limited() -> None:
    packer = GreedyPacker(4096)
    counts = packer.count(short_lengths(5000)).core
    counts = counts.with_limits(replace(packer.limits, max_sequences_per_batch=15))
    first_fit = kernel.first_fit_decreasing(counts)
    whole = kernel.patterns_with_reservation(counts)
    assert kernel.patterns_with_reservation(counts, 0) == first_fit
    part = kernel.patterns_with_reservation(counts, 100)
    assert whole.num_batches < part.num_batches <= first_fit.num_batches
