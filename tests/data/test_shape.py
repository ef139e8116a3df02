"""The sequences of the fullest batch, and the shape that every batch fits in."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proteins import random_lengths, times
from reference import batches_of
from strategies import Case, cases

from virnucpro import kernel
from virnucpro.data import GreedyPacker, Layout, PackingPlan
from virnucpro.data.shape import BatchShape

WARNING = re.compile(
    r"The fullest batch has ([\d,]+) sequences, the mean is ([\d.]+), so a shape for all batches "
    r"has many empty sequences: max_sequences_per_batch=(\d+) with method='tight' gives at most "
    r"([\d,]+) batches \(([\d,]+) without a limit, ([+-]\d+\.\d\d) %\)"
)


def read_warning(caplog: pytest.LogCaptureFixture) -> tuple[float, ...]:
    """Return the numbers in the only message."""
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("virnucpro.data.shape", "WARNING")
    found = WARNING.fullmatch(record.getMessage())
    assert found is not None
    return tuple(float(number.replace(",", "")) for number in found.groups())


@pytest.mark.compare
@given(cases(), st.sampled_from(["truncate", "drop", "split"]))
def test_fullest_batch(case: Case, overlong: str) -> None:
    packer = GreedyPacker(**case.parameters, overlong=overlong)
    lengths = [min(length, 5 * packer.limits.max_residues) for length in case.lengths]
    plan = packer.pack_lengths(lengths)
    expected = max(map(len, batches_of(plan)), default=0)
    for layout in (plan, pickle.loads(pickle.dumps(plan)), Layout.from_dict(Layout.to_dict(plan))):
        assert type(layout.max_sequences) is int
        assert layout.max_sequences == expected
        if expected:
            tokens = case.max_tokens_per_batch - case.max_tokens_per_batch % case.multiple_of
            assert layout.shape == (tokens, expected)
        else:
            with pytest.raises(ValueError, match=r"^a \w+ without batches has no shape$"):
                layout.shape  # noqa: B018


def test_shape_has_names() -> None:
    plan = GreedyPacker(100).pack_lengths([30, 60, 60])
    assert plan.shape == BatchShape(tokens=100, sequences=2)
    assert (plan.shape.tokens, plan.shape.sequences) == (plan.max_tokens_per_batch, 2)


def test_trillions_of_sequences() -> None:
    packer = GreedyPacker(2**60, special_tokens=0)
    layout = packer.lay_out(times(packer.count([1]), 2**61))
    assert layout.shape == (2**60, 2**60)


@pytest.mark.parametrize("budget", [4096, 16384, 65536])
def test_limit_is_proposed(budget: int, caplog: pytest.LogCaptureFixture) -> None:
    packer = GreedyPacker(budget)
    counts = times(packer.count_silently(random_lengths(5000)), 20)
    layout = packer.lay_out(counts)
    caplog.clear()
    fullest, mean, limit, num_batches, before, percent = read_warning_of(layout, caplog)
    assert (fullest, before) == (layout.max_sequences, layout.num_batches)
    assert mean == round(layout.num_sequences / layout.num_batches, 1)
    assert limit == -(-layout.num_sequences // layout.num_batches)
    assert percent == round(100 * (num_batches / before - 1), 2)
    assert num_batches <= before * 1.001
    # No packing has fewer, and First-Fit Decreasing under this limit has many more.
    limited = GreedyPacker(budget, max_sequences_per_batch=int(limit)).lay_out(counts)
    assert limited.lower_bound <= num_batches < 0.85 * limited.num_batches


def read_warning_of(layout: Layout, caplog: pytest.LogCaptureFixture) -> tuple[float, ...]:
    """Return the numbers in the message about a layout, which is logged once."""
    assert layout.shape == layout.shape == (layout.max_tokens_per_batch, layout.max_sequences)
    numbers = read_warning(caplog)
    caplog.clear()
    assert pickle.loads(pickle.dumps(layout)).shape == layout.shape
    assert read_warning(caplog) == numbers
    return numbers


def test_limit_that_costs_much(caplog: pytest.LogCaptureFixture) -> None:
    """Four of 12 tokens or fifty of 1 token fill a batch: a limit keeps them from being alone."""
    packer = GreedyPacker(50, special_tokens=0)
    counts = times(packer.count([12] * 4 + [1] * 4), 100)
    layout = packer.lay_out(counts)
    _, mean, limit, num_batches, before, _ = read_warning_of(layout, caplog)
    assert mean < limit < layout.max_sequences
    assert num_batches > before * 1.001
    # The limits that were tried, up to twice the mean, cost no less.
    costs = {
        most: kernel.patterns_with_reservation(
            counts.core.with_limits(replace(packer.limits, max_sequences_per_batch=most))
        ).num_batches
        for most in {int(np.ceil(mean * multiple)) for multiple in (1, 1.25, 1.5, 2)}
    }
    assert min(costs.values()) == costs[int(limit)] == num_batches


def test_near_the_mean_or_with_a_limit_nothing_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lengths = random_lengths(20000).clip(0, 1022)
    plans: list[PackingPlan] = [
        GreedyPacker(4096, max_sequences_per_batch=1000).pack_lengths(lengths),
        GreedyPacker(4096, max_sequences_per_batch=15).pack_lengths(lengths),
        GreedyPacker(4096).pack_lengths(lengths.clip(400, 600)),
        GreedyPacker(4096).pack_lengths(lengths[:5]),
        # Twice the mean.
        GreedyPacker(40, special_tokens=0).pack_lengths([40] * 2 + [10] * 4),
    ]
    caplog.clear()
    assert [plan.shape.sequences for plan in plans] == [plan.max_sequences for plan in plans]
    assert plans[-1].max_sequences * len(plans[-1]) == 2 * plans[-1].num_sequences
    assert caplog.messages == []
    plan = GreedyPacker(40, special_tokens=0).pack_lengths([40] * 3 + [10] * 4)
    assert plan.shape == (40, 4)
    assert len(caplog.messages) == 1
