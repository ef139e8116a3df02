"""Tokens of each sequence rounded up to a multiple."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proteins import make_records
from reference import batches_of
from strategies import Case, cases

from virnucpro.data import GreedyPacker, TokenCounts


def test_known_answers() -> None:
    # Of 32, 32, 16 and 16 tokens; without rounding, all fit in one batch.
    lengths = [20, 17, 5, 3]
    assert len(GreedyPacker(64).pack_lengths(lengths)) == 1
    packer = GreedyPacker(64, multiple_of=16)
    plan = packer.pack_lengths(lengths)
    assert batches_of(plan) == [[0, 1], [2, 3]]
    assert plan.batch_tokens.tolist() == [64, 32]
    assert plan.tokens(1).tolist() == [16, 16]
    assert (plan.total_tokens, plan.padding_tokens) == (45 + 4 * 2, 96 - 53)
    assert plan.efficiency == 53 / 128
    assert plan.lower_bound == 2
    assert packer.count(lengths).tokens.tolist() == [32, 16]
    assert packer.count(lengths).sequences.tolist() == [2, 2]
    # Ties between 17 and 20 residues are broken by ID.
    assert batches_of(packer.pack_lengths(lengths, ["b", "a", "d", "c"])) == [[1, 0], [3, 2]]


def test_records_are_cut_to_what_fits() -> None:
    packer = GreedyPacker(100, multiple_of=16)
    batches = packer.pack_sequences(make_records([200, 94, 30]))
    kept = [[len(record["sequence"]) for record in batch] for batch in batches]
    assert sorted(map(max, kept)) == [30, 94, 94]
    assert sum("truncated" in record for batch in batches for record in batch) == 1
    assert packer.compute_efficiency(batches) == (96 + 96 + 32) / 300
    assert packer.compute_efficiency([[{"sequence": "M"}]]) == 3 / 100
    # Of 48 tokens each, but 33 real ones.
    with pytest.raises(
        ValueError, match=r"batches\[0\] has 144 tokens, more than the budget of 100"
    ):
        packer.compute_efficiency([make_records([31, 31, 31])])
    splitter = GreedyPacker(100, overlong="split", multiple_of=16)
    fragments = splitter.pack_lengths([200]).fragments
    assert fragments is not None
    assert (fragments.stops - fragments.starts).tolist() == [94, 94, 12]


class Mapping(dict[str, str]):
    """Records that are not plain dicts are counted in Python."""


@given(cases(max_size=20))
def test_efficiency_counts_real_tokens(case: Case) -> None:
    lengths = [min(length, 2000) for length in case.lengths]
    packer = GreedyPacker(**case.parameters)
    batches = packer.pack_sequences(make_records(lengths))
    efficiency = packer.pack_lengths(lengths).efficiency
    assert packer.compute_efficiency(batches) == efficiency
    others = [[Mapping(record) for record in batch] for batch in batches]
    assert packer.compute_efficiency(others) == efficiency


@given(cases(), st.sampled_from([2, 8, 16]))
def test_counts_of_other_multiples_do_not_add(case: Case, factor: int) -> None:
    packer = GreedyPacker(**case.parameters)
    counts = packer.count(case.lengths)
    # Under both, a sequence keeps as many residues.
    limit, multiple_of = packer.limits.max_residues, case.multiple_of * factor
    parameters = {**case.parameters, "max_sequence_length": limit, "multiple_of": multiple_of}
    parameters["max_tokens_per_batch"] = 2 * multiple_of + case.max_tokens_per_batch
    other = GreedyPacker(**parameters)
    assert other.limits.max_residues == limit
    assert counts != other.count(case.lengths)
    with pytest.raises(ValueError, match=f"rounded up to a multiple of {multiple_of}"):
        _ = counts + other.count(case.lengths)
    with pytest.raises(ValueError, match=f"rounded up to a multiple of {multiple_of}"):
        packer.lay_out(other.count(case.lengths))


@given(cases())
def test_padding_survives_in_states(case: Case) -> None:
    packer = GreedyPacker(**case.parameters)
    counts = packer.count(case.lengths)
    plan = packer.pack_lengths(case.lengths)
    for value in (counts, plan):
        copy = pickle.loads(pickle.dumps(value))
        assert copy == value
        assert copy.limits == value.limits
        assert copy.padding_tokens == value.padding_tokens
        assert copy.total_tokens == value.total_tokens
    assert counts + packer.count([]) == counts
    state = counts.to_dict()
    assert ("padding_tokens" in state) == (counts.padding_tokens > 0)
    for change in (-1, 1):
        try:
            other = TokenCounts.from_dict(
                {**state, "padding_tokens": counts.padding_tokens + change}
            )
        except ValueError:
            continue
        assert other != counts


def test_many_lengths_share_a_size() -> None:
    """Small tables, large tables and sorted lengths, of all types, give the same batches."""
    random = np.random.default_rng(1)
    lengths = random.integers(0, 120, 5000)
    for budget in (500, 2**13, 2**40):
        packer = GreedyPacker(budget, 2**62, multiple_of=8)
        plan = packer.pack_lengths(lengths)
        sizes = packer.limits.tokens(lengths)
        exact = GreedyPacker(budget, 2**62, special_tokens=0).pack_lengths(sizes)
        assert batches_of(plan) == batches_of(exact)
        assert packer.assign_batches(lengths.astype(np.int8)).tolist() == (
            exact.assign(sizes).tolist()
        )
        far = np.append(lengths, 2**30)
        again = GreedyPacker(2**40, 2**62, multiple_of=8).pack_lengths(far)
        assert sorted(again.indices.tolist()) == list(range(5001))
        assert again.tokens(0)[0] == 2**30 + 8
