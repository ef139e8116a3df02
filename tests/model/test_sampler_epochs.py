"""Epochs of `PackedBatchSampler`: whole steps, packing anew, resuming on other numbers of ranks."""

from __future__ import annotations

import json
import pickle
import random
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from virnucpro.data import GreedyPacker, PackedBatchSampler, PackingPlan
from virnucpro.model.epochs import Batches, Epoch

BUDGET = 4096


def documents(number: int = 4000) -> NDArray[np.int64]:
    random = np.random.default_rng(0)
    return np.clip(random.lognormal(5.5, 1.2, number), 1, BUDGET).astype(np.int64)


def plan_of(lengths: NDArray[np.int64], **options: Any) -> PackingPlan:
    return GreedyPacker(BUDGET, BUDGET, special_tokens=0, **options).pack_lengths(lengths)


def shares(plan: PackingPlan, world_size: int, **options: Any) -> list[PackedBatchSampler]:
    return [PackedBatchSampler(plan, rank, world_size, **options) for rank in range(world_size)]


def costs(samplers: list[PackedBatchSampler], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the cost of the batch of each step and rank."""
    found = [[float((lengths[batch] ** 2).sum()) for batch in sampler] for sampler in samplers]
    return np.array(found).T


def idle(steps: NDArray[np.float64]) -> float:
    """Return the share of time that ranks wait for the slowest of each step."""
    return float(1 - steps.sum() / (steps.max(axis=1).sum() * steps.shape[1]))


@pytest.mark.parametrize("options", [{}, {"repack": 1000}])
def test_steps_are_whole_and_in_another_order(options: dict[str, Any]) -> None:
    lengths = documents()
    plan = plan_of(lengths)
    samplers = shares(plan, 4, shuffle=True, **options)
    steps = costs(samplers, lengths)
    # Sorted by cost, no step reaches into another one, but for batches that were halved.
    steps.sort(axis=1)
    by_cost = steps[np.argsort(-steps[:, 0])]
    overlaps = by_cost[1:, -1] > by_cost[:-1, 0] * (1 + 1e-9)
    assert np.count_nonzero(overlaps) <= 3
    orders = [steps.tolist(), *(np.sort(costs(samplers, lengths)).tolist() for _ in range(2))]
    assert orders[0] != orders[1] != orders[2]
    # The costliest steps are anywhere.
    first = [int(np.argmax(np.sum(order, axis=1))) for order in orders]
    assert first != [0, 0, 0]
    assert idle(steps) < 0.06
    # Batches in random order wait for most of the time.
    naive = np.random.default_rng(0).permutation(steps.ravel()).reshape(steps.shape)
    assert idle(naive) > 0.3


def test_ranks_take_turns_in_a_step() -> None:
    lengths = documents()
    steps = costs(shares(plan_of(lengths), 4, shuffle=True), lengths)
    costliest = np.bincount(steps.argmax(axis=1), minlength=4)
    assert costliest.min() > len(steps) / 8


def test_groups_stay_apart_when_packed_anew() -> None:
    lengths = documents()
    groups = np.random.default_rng(1).integers(0, 3, len(lengths))
    plan = GreedyPacker(BUDGET, BUDGET, special_tokens=0).pack_lengths(lengths, groups=groups)
    for repack in (None, 300):
        sampler = PackedBatchSampler(plan, shuffle=True, repack=repack)
        for _ in range(2):
            batches = list(sampler)
            assert sorted(chain(*batches)) == list(range(len(lengths)))
            assert all(len(set(groups[batch].tolist())) == 1 for batch in batches)
            assert max(int(lengths[batch].sum()) for batch in batches) <= BUDGET


def test_hardly_a_batch_comes_again_when_packed_anew() -> None:
    lengths = documents(20_000)
    plan = plan_of(lengths)
    sampler = PackedBatchSampler(plan, shuffle=True, repack=2000)
    epochs = [list(sampler) for _ in range(4)]
    assert {len(epoch) for epoch in epochs} == {len(sampler)}
    for first, second in pairwise(epochs):
        seen = {frozenset(batch) for batch in first if len(batch) > 1}
        again = sum(frozenset(batch) in seen for batch in second)
        assert again < 0.02 * len(second)
    assert len(sampler) < len(plan) * 1.005
    # Without it, batches of long sequences come again.
    exchanged = PackedBatchSampler(plan, shuffle=True)
    seen = {frozenset(batch) for batch in exchanged}
    assert sum(frozenset(batch) in seen for batch in exchanged) > 0.02 * len(plan)


@pytest.mark.parametrize("limit", [None, 5])
def test_epochs_packed_anew_keep_the_limits(limit: int | None) -> None:
    lengths = documents(3000)
    packer = GreedyPacker(BUDGET, 1000, max_sequences_per_batch=limit, multiple_of=8)
    plan = packer.pack_lengths(lengths)
    sampler = PackedBatchSampler(plan, shuffle=True, repack=200)
    for _ in range(5):
        batches = list(sampler)
        assert len(batches) == len(sampler)
        for batch in batches:
            assert sum(packer.limits.tokens(lengths[batch])) <= BUDGET
            assert limit is None or len(batch) <= limit
        assert sorted(chain(*batches)) == list(range(3000))


def test_an_epoch_with_too_many_batches_is_drawn_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from virnucpro.model import sampler as module

    plan = plan_of(documents())
    sampler = PackedBatchSampler(plan, shuffle=True, repack=50)
    number = len(sampler)
    drawn = []

    def pack(plan: PackingPlan, *_: Any) -> Any:
        # A batch for each sequence.
        drawn.append(plan)
        positions = np.arange(plan.num_sequences + 1)
        batches = Batches(positions[:-1], positions[1:], np.ones(plan.num_sequences))
        return Epoch(plan, plan.indices, batches)

    monkeypatch.setattr(module, "pack_windows", pack)
    batches = list(sampler)
    assert len(drawn) == module.MAX_DRAWS
    assert "epoch 0 is not packed anew" in caplog.text
    assert len(batches) == number
    assert sorted(chain(*batches)) == list(range(plan.num_sequences))


ORDERS: list[dict[str, Any]] = [{}, {"shuffle": True}, {"shuffle": True, "repack": 200}]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sharing", [{}, {"drop_last": True}, {"even": False}])
def test_resumed_on_other_numbers_of_ranks(order: dict[str, Any], sharing: dict[str, Any]) -> None:
    plan = plan_of(documents(600))
    draw = random.Random(0)
    for _ in range(20):
        state: Any = None
        seen: list[list[int]] = []
        for last in (False,) * draw.randrange(1, 4) + (True,):
            samplers = shares(plan, draw.choice([1, 2, 3, 8]), seed=7, **order, **sharing)
            for sampler in samplers:
                if state is None:
                    sampler.set_epoch(3)
                else:
                    sampler.load_state_dict(state)
            first = samplers[0].first_step
            iterators = [iter(sampler) for sampler in samplers]
            steps = 10**6 if last else draw.randrange(len(samplers[0]) // 3)
            found = [[*zip(range(steps), share, strict=False)] for share in iterators]
            assert max(map(len, found)) - min(map(len, found)) <= ("even" in sharing)
            seen += [batch for share in found for _, batch in share]
            step = None if last else first + steps
            states = [json.dumps(sampler.state_dict(step)) for sampler in samplers]
            assert len(set(states)) == 1
            state = json.loads(states[0])
        rows = list(chain(*seen))
        assert len(set(rows)) == len(rows)
        if "drop_last" not in sharing:
            assert len(rows) == 600
        assert {sampler.epoch for sampler in samplers} == {3}
        assert (state["epoch"], state["done"]) == (4, [])
        assert sum(len(list(sampler)) for sampler in samplers) > 0
        assert {sampler.epoch for sampler in samplers} == {4}


def test_too_few_sequences_are_left_for_the_ranks() -> None:
    plan = plan_of(np.array([4000, 3900, 3800, 3700]))
    sampler = PackedBatchSampler(plan)
    batches = iter(sampler)
    for _ in range(3):
        next(batches)
    resumed = PackedBatchSampler(plan, 0, 2)
    resumed.load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match=r"^epoch 0 has 1 sequences left, too few for 2 ranks"):
        list(resumed)
    resumed.set_epoch(1)
    assert len(list(resumed)) == 2


def test_epochs_advance_by_themselves() -> None:
    sampler = PackedBatchSampler(plan_of(documents()), shuffle=True)
    epochs = []
    for epoch in range(3):
        epochs.append(list(sampler))
        assert sampler.epoch == epoch
    # An iteration that was left is started again.
    assert next(iter(sampler)) == next(iter(sampler))
    assert sampler.epoch == 3
    sampler.sampler.set_epoch(1)
    assert list(sampler) == epochs[1]
    assert list(sampler) == epochs[2]
    # As many batches as there are, without asking for another one.
    sampler.set_epoch(0)
    batches = iter(sampler)
    assert [next(batches) for _ in range(len(sampler))] == epochs[0]
    assert list(sampler) == epochs[1]


def test_frameworks_that_count_epochs_from_zero_when_they_resume(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = plan_of(documents())
    sampler = PackedBatchSampler(plan, shuffle=True)
    epochs = [list(sampler) for _ in range(6)]
    sampler.set_epoch(2)
    batches = iter(sampler)
    for _ in range(10):
        next(batches)
    state = sampler.state_dict()
    resumed = PackedBatchSampler(plan, shuffle=True)
    resumed.load_state_dict(state)
    for count in range(3):
        # accelerate sets it twice.
        resumed.set_epoch(count)
        resumed.set_epoch(count)
        assert list(resumed) == epochs[2 + count][10 if count == 0 else 0 :]
    assert not caplog.records
    # A later epoch is meant as it is.
    resumed.load_state_dict(state)
    resumed.set_epoch(5)
    assert "the rest of epoch 2, of the state that was loaded, is left out" in caplog.text
    assert list(resumed) == epochs[5]


@pytest.mark.parametrize(
    ("done", "error", "message"),
    [
        (None, TypeError, "'done' in the state must be a list"),
        ([2], TypeError, "'done' in the state must have pairs"),
        ([[0, 0]], ValueError, "the number of ranks in the state must be at least 1"),
        ([[1, -1]], ValueError, "the number of batches done in the state must be at least 0"),
        ([[1, 10**9]], ValueError, "the number of batches done in the state must be at most"),
        ([[1, 2], [1, 10**9]], ValueError, "the number of batches done in the state must be at"),
    ],
)
def test_damaged_states(done: Any, error: type[Exception], message: str) -> None:
    sampler = PackedBatchSampler(plan_of(documents(100)))
    with pytest.raises(error, match=message):
        sampler.load_state_dict({**sampler.state_dict(), "done": done})
    assert len(list(sampler)) == len(sampler)


def test_samplers_are_pickled_within_an_epoch() -> None:
    sampler = PackedBatchSampler(plan_of(documents()), shuffle=True, repack=1000)
    whole = list(PackedBatchSampler(plan_of(documents()), shuffle=True, repack=1000))
    batches = iter(sampler)
    next(batches)
    copy = pickle.loads(pickle.dumps(sampler))
    assert list(copy) == whole
    assert list(batches) == whole[1:]


def test_the_rank_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(documents(100))
    assert not torch.distributed.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "2")
    sampler = PackedBatchSampler(plan)
    whole = [batch.tolist() for batch in plan]
    assert list(sampler) == whole
    monkeypatch.setenv("RANK", "1")
    assert list(sampler) == list(PackedBatchSampler(plan, 1, 2))
    assert len(sampler) == -(-len(whole) // 2)
    for rank, world_size in (("2", "2"), ("x", "2"), ("0", "-1")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world_size)
        with pytest.raises(ValueError, match=rf"got RANK='{rank}', WORLD_SIZE='{world_size}'"):
            len(sampler)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_no_more_batches_are_halved_than_needed_to_resume(ranks: int) -> None:
    plan = plan_of(documents(600))
    whole = PackedBatchSampler(plan, shuffle=True)
    state = whole.state_dict(step=5)
    left = len(whole) - 5
    for sampler in shares(plan, ranks, shuffle=True):
        sampler.load_state_dict(state)
        assert len(list(sampler)) == -(-left // ranks)
