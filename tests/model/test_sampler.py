"""Samplers of a plan's batches: every row once, equally many batches a rank, resuming."""

from __future__ import annotations

import json
import os
import random
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import Case, cases
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from virnucpro.data import GreedyPacker, PackedBatchSampler, PackingPlan


def plan_of(case: Case) -> PackingPlan:
    return GreedyPacker(**case.parameters).pack_lengths(case.lengths)


def proteins(number: int = 3000) -> PackingPlan:
    lengths = np.random.default_rng(0).integers(30, 300, number)
    return GreedyPacker(1024).pack_lengths(lengths)


@given(
    cases(),
    st.integers(1, 7),
    st.sampled_from([{}, {"even": False}, {"drop_last": True}]),
    st.sampled_from([{}, {"shuffle": True}, {"shuffle": True, "repack": 7}]),
    st.integers(0, 3),
)
def test_ranks_share_all_rows(
    case: Case, world_size: int, sharing: dict[str, Any], order: dict[str, Any], epoch: int
) -> None:
    plan = plan_of(case)
    even = not sharing
    needed = -(-len(plan) // world_size) * world_size if even else 0
    assume(needed <= plan.num_sequences)
    if "repack" in order:
        # Epochs that are packed anew may have more batches.
        assume(2 * needed + world_size <= plan.num_sequences)
    samplers = [
        PackedBatchSampler(plan, rank, world_size, seed=3, **sharing, **order)
        for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    shares = [list(sampler) for sampler in samplers]
    assert [len(share) for share in shares] == [len(sampler) for sampler in samplers]
    sizes = {len(share) for share in shares}
    assert max(sizes) - min(sizes) <= (1 if "even" in sharing else 0)
    batches = list(chain(*shares))
    assert all(batches)
    rows_seen = sorted(chain(*batches))
    if "drop_last" in sharing:
        assert len(set(rows_seen)) == len(rows_seen)
        if "repack" not in order:
            assert len(batches) == len(plan) - len(plan) % world_size
    else:
        assert rows_seen == list(range(plan.num_sequences))
    for rows in batches:
        lengths = np.minimum([case.lengths[row] for row in rows], plan.max_sequence_length)
        assert sum(lengths.tolist()) + plan.special_tokens * len(rows) <= plan.max_tokens_per_batch
    if even and "repack" not in order:
        assert len(batches) == needed


def test_batches_of_the_plan_in_its_order() -> None:
    plan = proteins()
    rows = [batch.tolist() for batch in plan]
    assert list(PackedBatchSampler(plan)) == rows
    assert list(PackedBatchSampler(plan, 1, 3, even=False)) == rows[1::3]
    shuffled = PackedBatchSampler(plan, shuffle=True)
    first, second = list(shuffled), list(shuffled)
    shuffled.set_epoch(0)
    assert list(shuffled) == first
    assert list(PackedBatchSampler(plan, shuffle=True, seed=1)) not in (first, second)
    groups = [{frozenset(batch) for batch in batches} for batches in (rows, first, second)]
    assert len(groups[0] & groups[1]) < 10
    assert len(groups[1] & groups[2]) < 10


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("overlong", ["truncate", "drop", "split"])
def test_plans_may_be_given_by_their_path(tmp_path: Path, suffix: str, overlong: str) -> None:
    path = tmp_path / f"plan{suffix}"
    lengths = np.random.default_rng(0).integers(30, 300, 3000)
    plan = GreedyPacker(1024, 250, overlong=overlong).pack_lengths(lengths)
    plan.save(path)
    for shuffle in (False, True):
        sampler = PackedBatchSampler(str(path), 1, 3, shuffle=shuffle)
        expected = PackedBatchSampler(plan, 1, 3, shuffle=shuffle)
        assert list(sampler) == list(expected)
        assert sampler.state_dict() == expected.state_dict()
    # Numbers of fragments, or rows without those that were dropped.
    numbers = sorted(chain(*PackedBatchSampler(path)))
    assert numbers == sorted(plan.indices.tolist())


def test_a_file_that_changes_during_an_epoch_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "plan.arrow"
    plan = GreedyPacker(1000).pack_lengths([98] * 40_000)
    plan.save(path)
    batches = iter(PackedBatchSampler(path))
    assert next(batches) == plan[0].tolist()
    os.truncate(path, 1000)
    with pytest.raises(OSError, match=f"^{path}: the plan is damaged or has changed"):
        list(batches)


def test_only_the_largest_batches_are_halved() -> None:
    plan = GreedyPacker(100, special_tokens=0).pack_lengths([90, 80, 70] + [10] * 10)
    rows = [batch.tolist() for batch in plan]
    assert [len(batch) for batch in rows] == [2, 3, 4, 4]
    samplers = [PackedBatchSampler(plan, rank, 6) for rank in range(6)]
    batches = [next(iter(sampler)) for sampler in samplers]
    assert [len(batch) for batch in batches] == [2, 3, 2, 2, 2, 2]
    assert list(chain(*batches)) == list(chain(*rows))
    one = GreedyPacker(1000).pack_lengths([10] * 9)
    halves = [len(next(iter(PackedBatchSampler(one, rank, 4)))) for rank in range(4)]
    assert halves == [3, 2, 2, 2]


@pytest.mark.parametrize(("lengths", "world_size"), [([5, 5], 3), ([90, 80, 70], 2)])
def test_too_few_sequences_are_refused(lengths: list[int], world_size: int) -> None:
    plan = GreedyPacker(100).pack_lengths(lengths)
    with pytest.raises(ValueError, match=r"cannot be split into .* even=False"):
        PackedBatchSampler(plan, 0, world_size)
    assert PackedBatchSampler(plan, 0, world_size, even=False) is not None


@pytest.mark.parametrize("shuffle", [False, True])
def test_resumed_from_twenty_places(shuffle: bool) -> None:
    plan = proteins()
    draw = random.Random(0)

    def make() -> PackedBatchSampler:
        return PackedBatchSampler(plan, rank=1, world_size=3, shuffle=shuffle, seed=5)

    for _ in range(20):
        sampler = make()
        sampler.set_epoch(2)
        whole = list(sampler)
        stop = draw.randrange(len(sampler) + 1)
        sampler.set_epoch(2)
        batches = iter(sampler)
        before = [next(batches) for _ in range(stop)]
        state = sampler.state_dict()
        assert (state["epoch"], state["done"]) == (2, [[3, 3 * stop]])
        resumed = make()
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert resumed.state_dict() == state
        resumed.set_epoch(2)
        assert resumed.first_step == stop
        assert before + list(resumed) == whole
        following = list(resumed)
        assert resumed.epoch == 3
        assert (following == whole) == (not shuffle)
        resumed.set_epoch(2)
        assert resumed.first_step == 0
        assert list(resumed) == whole


def test_state_of_batches_that_training_had() -> None:
    sampler = PackedBatchSampler(proteins())
    whole = list(sampler)
    sampler.load_state_dict(sampler.state_dict(step=4))
    assert list(sampler) == whole[4:]
    with pytest.raises(ValueError, match="step must be at most"):
        sampler.state_dict(step=len(sampler) + 1)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"shuffle": True},
        {"even": False},
        {"drop_last": True},
        {"shuffle": True, "repack": 100},
        {"plan": proteins(2999)},
        {"plan": proteins().reshuffle(1)},
    ],
)
def test_states_of_other_samplers_are_refused(other: dict[str, Any]) -> None:
    given_: dict[str, Any] = {"plan": proteins(), "rank": 0, "world_size": 2}
    state = PackedBatchSampler(**given_).state_dict()
    with pytest.raises(ValueError, match="the state is for a sampler with"):
        PackedBatchSampler(**{**given_, **other}).load_state_dict(state)


@pytest.mark.parametrize("state", [None, {}, {"version": 2}])
def test_values_that_are_not_states_are_refused(state: Any) -> None:
    with pytest.raises(TypeError, match="state must be a dict returned by state_dict"):
        PackedBatchSampler(proteins(10)).load_state_dict(state)


@pytest.mark.parametrize("version", [None, 0, 3, "2"])
def test_states_of_other_versions_are_refused(version: Any) -> None:
    sampler = PackedBatchSampler(proteins(10))
    state = sampler.state_dict()
    assert state["version"] == 2
    with pytest.raises(ValueError, match=rf"must have version 2 \(got {version!r}\)"):
        sampler.load_state_dict({**state, "version": version})
    del state["version"]
    with pytest.raises(ValueError, match=r"must have version 2 \(got None\)"):
        sampler.load_state_dict(state)


def test_seeds_and_sizes_do_not_share_draws() -> None:
    plan = GreedyPacker(100, special_tokens=0).pack_lengths([10] * 20 + [9] * 20 + [8] * 20)
    orders = set()
    for seed in range(5):
        rows = plan.reshuffle(seed).indices
        for size in range(3):
            of_size = rows[(rows >= 20 * size) & (rows < 20 * size + 20)]
            orders.add(tuple((of_size - 20 * size).tolist()))
    assert len(orders) == 15
    samplers = []
    for seed, epoch in ((5, 7), (5 + 7 * 2**32, 0), (0, 1), (2**32, 0)):
        sampler = PackedBatchSampler(plan, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        samplers.append(str(list(sampler)))
    assert len(set(samplers)) == 4


def test_iterations_begin_with_their_first_batch() -> None:
    sampler = PackedBatchSampler(proteins(), shuffle=True)
    epochs = [list(sampler) for _ in range(3)]
    sampler.set_epoch(1)
    sampler.load_state_dict(sampler.state_dict(step=4))
    early, resumed = iter(sampler), iter(sampler)
    assert list(resumed) == epochs[1][4:]
    assert list(early) == epochs[2]
    # The epoch may be set after the iterator was made.
    batches = iter(sampler)
    sampler.set_epoch(1)
    assert next(batches) == epochs[1][0]
    # Setting it again within it has no effect.
    sampler.set_epoch(1)
    assert sampler.state_dict()["done"] == [[1, 1]]
    assert next(batches) == epochs[1][1]
    assert sampler.state_dict()["done"] == [[1, 2]]
    # An iteration goes on beside another one, whose position is known.
    others = iter(sampler)
    assert next(others) == epochs[1][0]
    assert list(batches) == epochs[1][2:]
    assert sampler.state_dict()["done"] == [[1, 1]]
    sampler.set_epoch(2)
    assert list(others) == epochs[1][1:]
    assert sampler.state_dict()["done"] == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"plan": [[0]]}, TypeError, r"plan must be a PackingPlan or a path \(got list\)"),
        ({"plan": "none.arrow"}, FileNotFoundError, "^none.arrow: no such file"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank must be at most 1"),
        ({"rank": 0, "world_size": 0}, ValueError, "world_size must be at least 1"),
        ({"world_size": 2}, ValueError, "rank and world_size must be given together"),
        ({"rank": 0}, ValueError, "rank and world_size must be given together"),
        ({"even": False, "drop_last": True}, ValueError, "drop_last=True needs even=True"),
        ({"repack": 100}, ValueError, "repack needs shuffle=True"),
        ({"repack": 0, "shuffle": True}, ValueError, "repack must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_bad_parameters(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PackedBatchSampler(**{"plan": proteins(10), **arguments})


class Rows(Dataset[int]):
    def __len__(self) -> int:
        return 3000

    def __getitem__(self, row: int) -> int:
        return row


def rows_of(rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def test_in_data_loaders() -> None:
    plan = proteins()
    sampler = PackedBatchSampler(plan, shuffle=True)
    loader = DataLoader(Rows(), batch_sampler=sampler, collate_fn=rows_of)
    assert len(loader) == len(sampler)
    assert [batch.tolist() for batch in loader] == list(PackedBatchSampler(plan, shuffle=True))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.process)])
@pytest.mark.parametrize("stop", [0, 17, None])
def test_stateful_data_loader_resumes(num_workers: int, stop: int | None) -> None:
    plan = proteins()

    def make() -> Any:
        sampler = PackedBatchSampler(plan, shuffle=True)
        return StatefulDataLoader(
            Rows(), batch_sampler=sampler, collate_fn=rows_of, num_workers=num_workers
        )

    loader = make()
    epochs = [[batch.tolist() for batch in loader] for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    loader = make()
    assert [batch.tolist() for batch in loader] == epochs[0]
    batches = iter(loader)
    before = [
        batch.tolist()
        for _, batch in zip(range(10**6 if stop is None else stop), batches, strict=False)
    ]
    state = loader.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    if stop is None:
        # The epoch was over, so this is the next one.
        assert [batch.tolist() for batch in resumed] == epochs[2]
        return
    assert before + [batch.tolist() for batch in resumed] == epochs[1]


@pytest.mark.parametrize("name", ["shuffle", "even", "drop_last"])
def test_truth_values(name: str) -> None:
    plan = GreedyPacker(100).pack_lengths([60, 60])
    wrong: Any
    value: Any
    for wrong in ("yes", None, 2, 1.0):
        with pytest.raises(TypeError, match=f"^{name} must be True or False .got {wrong!r}.$"):
            PackedBatchSampler(plan, **{name: wrong})
    for value in (True, 1, np.True_):
        assert getattr(PackedBatchSampler(plan, **{name: value}), name) is True
