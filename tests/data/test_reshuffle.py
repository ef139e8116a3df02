"""Rows of equal size exchanged at random."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, cases

from virnucpro.data import GreedyPacker


@given(cases(), st.integers(0, 2**64 - 1))
def test_reshuffle_exchanges_equal_sizes(case: Case, seed: int) -> None:
    plan = GreedyPacker(**case.parameters).pack_lengths(case.lengths)
    new = plan.reshuffle(seed)
    tokens = plan.limits.tokens(np.array(case.lengths, np.int64))
    assert tokens[new.indices].tolist() == tokens[plan.indices].tolist()
    assert sorted(new.indices.tolist()) == list(range(plan.num_sequences))
    assert new.offsets is plan.offsets
    assert new.batch_tokens.tolist() == plan.batch_tokens.tolist()
    assert new == plan.reshuffle(seed)
    assert new.indices.dtype == plan.indices.dtype


@pytest.mark.slow
def test_reshuffle_draws_every_order_equally_often() -> None:
    plan = GreedyPacker(10, special_tokens=0).pack_lengths([5, 5, 5, 3])
    draws = Counter(tuple(plan.reshuffle(seed).indices.tolist()) for seed in range(6000))
    assert len(draws) == 6
    # The chance to stray further is below 1e-8.
    assert all(abs(count - 1000) < 175 for count in draws.values())


@pytest.mark.slow
def test_reshuffle_is_the_same_on_any_number_of_threads() -> None:
    lengths = np.random.default_rng(1).integers(0, 200, 300_000)
    plans = [GreedyPacker(512, num_threads=n).pack_lengths(lengths) for n in (1, 2, 5)]
    first, *others = [plan.reshuffle(7) for plan in plans]
    assert not np.array_equal(first.indices, plans[0].indices)
    assert all(np.array_equal(first.indices, other.indices) for other in others)
    assert not np.array_equal(first.indices, plans[0].reshuffle(8).indices)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, None, True])
def test_reshuffle_refuses(seed: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="seed must be"):
        GreedyPacker(1024).pack_lengths([30] * 10).reshuffle(seed)
