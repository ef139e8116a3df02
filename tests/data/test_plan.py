"""Plans, layouts, counts and packers as values."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from proteins import make_records, random_lengths
from reference import batches_of

from virnucpro.data import GreedyPacker


def test_plan_indexing_and_shards() -> None:
    plan = GreedyPacker(4096).pack_lengths(random_lengths(5000))
    batches = batches_of(plan)
    assert np.shares_memory(plan[0], plan.indices)
    assert (plan[-1].tolist(), plan[-len(plan)].tolist()) == (batches[-1], batches[0])
    for wrong in (len(plan), -len(plan) - 1):
        with pytest.raises(IndexError, match=f"batch {wrong} is out of range for {len(plan)}"):
            plan[wrong]
    with pytest.raises(TypeError, match=r"batch must be an integer \(got slice\(0"):
        plan[0:2]  # type: ignore[index]
    with pytest.raises(TypeError, match=r"^batch must be an integer \(got 'a'\)$"):
        plan["a"]  # type: ignore[index]
    with pytest.raises(TypeError, match=r"^index must be an integer \(got 'a'\)$"):
        plan.shard(0, 3)["a"]  # type: ignore[index]
    shards = [plan.shard(rank, 3) for rank in range(3)]
    assert [len(shard) for shard in shards] == [len(batches[rank::3]) for rank in range(3)]
    for rank, shard in enumerate(shards):
        for _ in range(2):
            assert [rows.tolist() for rows in shard] == batches[rank::3]
        assert [shard[i].tolist() for i in range(len(shard))] == batches[rank::3]
        assert shard[-1].tolist() == batches[rank::3][-1]
        with pytest.raises(IndexError):
            shard[len(shard)]
    assert repr(plan.shard(1, 2)) == f"BatchRows({len(plan) // 2} of {len(plan)} batches)"
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


def test_counts_have_sizes_and_totals() -> None:
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
    of_fragments = GreedyPacker.for_documents(100).pack_lengths([250, 30])
    assert repr(of_fragments).startswith("PackingPlan(4 fragments in 3 batches of at most 100 tok")
    assert repr(packer) == (
        "GreedyPacker(100, 1022, special_tokens=2, overlong='truncate', "
        "overlap=0, max_sequences_per_batch=3, multiple_of=1, empty='pack', num_threads=None, "
        "method='ffd')"
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
