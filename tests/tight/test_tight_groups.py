"""Groups by column generation: each packed as if it were alone."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from grouped import labels, only_starts, pack_alone, parts_of_batches
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.data import GreedyPacker, PackingPlan


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 60), max_size=25),
    max_sequences=st.none() | st.integers(2, 4),
    data=st.data(),
)
def test_groups_are_packed_alone(
    lengths: list[int], max_sequences: int | None, data: st.DataObject
) -> None:
    packer = GreedyPacker(100, 60, max_sequences_per_batch=max_sequences, method="tight")
    groups = data.draw(labels(len(lengths)))
    plan = packer.pack_lengths(lengths, groups=groups)
    alone = pack_alone(packer, lengths, None, groups)
    expected = [batch for rows, part in alone for batch in parts_of_batches(part, rows)]
    assert only_starts(parts_of_batches(plan)) == only_starts(expected)
    assert plan.lower_bound == sum(part.lower_bound for _, part in alone)
    assert pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.slow
def test_bounds_of_groups_and_of_joined_plans_add_up() -> None:
    lengths = np.random.default_rng(1).integers(150, 400, 2000)
    packer = GreedyPacker(1000, special_tokens=0, method="tight")
    halves = [packer.pack_lengths(part) for part in np.split(lengths, 2)]
    plan = packer.pack_lengths(lengths, groups=np.arange(2000) // 1000)
    assert plan == PackingPlan.concatenate(halves)
    assert plan.lower_bound == sum(half.lower_bound for half in halves)
    plain = GreedyPacker(1000, special_tokens=0)
    assert len(plan) < len(plain.pack_lengths(lengths, groups=np.arange(2000) // 1000))
