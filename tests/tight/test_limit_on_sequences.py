"""The parameter method="tight" under a limit on sequences."""

from __future__ import annotations

import logging
import re

import highspy
import numpy as np
import pytest
from hypothesis import given
from instances import triplets
from proteins import random_lengths, short_lengths, times
from reference import check_plan
from strategies import Case, cases

from virnucpro import kernel
from virnucpro.data import GreedyPacker


@given(cases())
def test_never_worse_than_patterns_with_reservation(case: Case) -> None:
    packer = GreedyPacker(**{**case.parameters, "max_sequences_per_batch": 3}, method="tight")
    counts = packer.count_silently(case.lengths)
    reserved = kernel.patterns_with_reservation(counts.core.with_limits(packer.limits))
    assert packer.lay_out(counts).num_batches <= reserved.num_batches


def test_sequences_are_spread_over_the_batches() -> None:
    lengths = short_lengths(3000)
    packer = GreedyPacker(16384, max_sequences_per_batch=55, method="tight")
    plan = packer.pack_lengths(lengths)
    check_plan(plan, lengths.tolist(), packer)
    assert plan.proven_optimal
    packer.method = "ffd"
    assert len(packer.pack_lengths(lengths)) > 1.1 * len(plan)


def test_large_problems_are_near_the_bound(caplog: pytest.LogCaptureFixture) -> None:
    packer = GreedyPacker(2**16, 2**16, max_sequences_per_batch=12, method="tight")
    counts = times(packer.count(16 * short_lengths(20000)), 100)
    with caplog.at_level(logging.INFO):
        layout = packer.lay_out(counts)
    assert layout.lower_bound < layout.num_batches < 1.001 * layout.lower_bound
    assert {record.levelname for record in caplog.records} == {"INFO"}
    batches = f"{layout.num_batches:,} batches, lower bound {layout.lower_bound:,}"
    assert caplog.messages[-1].startswith(batches)


@pytest.mark.parametrize("budget", [4096, 16384, 65536])
@pytest.mark.parametrize("overlong", ["truncate", "drop", "split"])
def test_proposed_limit(budget: int, overlong: str, caplog: pytest.LogCaptureFixture) -> None:
    """The plan that the WARNING of a shape promises is the one that is made."""
    lengths = np.tile(random_lengths(3000), 3)
    plan = GreedyPacker(budget, overlong=overlong).pack_lengths(lengths)
    caplog.clear()
    assert plan.shape == (budget, plan.max_sequences)
    (message,) = caplog.messages
    found = re.search(r"batch=(\d+) with method='tight' gives at most ([\d,]+) batches", message)
    assert found is not None
    limit, at_most = int(found[1]), int(found[2].replace(",", ""))
    packer = GreedyPacker(budget, overlong=overlong, max_sequences_per_batch=limit, method="tight")
    limited = packer.pack_lengths(lengths)
    assert limited.lower_bound <= limited.num_batches <= at_most <= 1.001 * len(plan)
    assert limited.max_sequences <= limit


def test_the_same_layout_each_time(caplog: pytest.LogCaptureFixture) -> None:
    packer = GreedyPacker(1000, 1000, special_tokens=0, max_sequences_per_batch=3, method="tight")
    counts = packer.count(triplets(120, 1))
    with caplog.at_level(logging.INFO):
        layout = packer.lay_out(counts)
    assert "lower bound 40" in caplog.text
    assert packer.lay_out(counts) == layout
    highspy.Highs.resetGlobalScheduler(True)
    try:
        other = highspy.Highs()  # type: ignore[no-untyped-call]
        other.setOptionValue("output_flag", False)
        other.setOptionValue("threads", 2)
        other.minimize(other.addBinary() + other.addBinary())
        packer.num_threads = 3
        assert packer.lay_out(counts) == layout
    finally:
        highspy.Highs.resetGlobalScheduler(True)
