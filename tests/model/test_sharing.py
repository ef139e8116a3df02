"""Batches that accelerate shares out by itself, with its own classes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import (
    BatchSamplerShard,
    SkipBatchSampler,
    prepare_data_loader,
    skip_first_batches,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from virnucpro.data import GreedyPacker, PackedBatchSampler, PackedStream, PackingPlan


def plan_of(number: int) -> PackingPlan:
    lengths = np.random.default_rng(0).integers(30, 300, number)
    return GreedyPacker(1024).pack_lengths(lengths)


@given(st.integers(40, 400), st.integers(2, 8), st.booleans(), st.booleans())
def test_shared_out_by_accelerate(number: int, ranks: int, shuffle: bool, drop_last: bool) -> None:
    plan = plan_of(number)
    options: dict[str, Any] = {"shuffle": shuffle, "drop_last": drop_last}
    samplers = [PackedBatchSampler(plan, **options) for _ in range(ranks)]
    shards = [BatchSamplerShard(sampler, ranks, rank) for rank, sampler in enumerate(samplers)]
    own = [PackedBatchSampler(plan, rank, ranks, **options) for rank in range(ranks)]
    for epoch in range(2):
        found = [list(shard) for shard in shards]
        assert found == [list(sampler) for sampler in own]
        assert [len(shard) for shard in shards] == [len(share) for share in found]
        rows = sorted(chain(*chain(*found)))
        assert rows == list(range(number)) or (drop_last and len(set(rows)) == len(rows))
        assert {sampler.epoch for sampler in samplers} == {epoch}
    if plan.num_batches > 2 * ranks:
        states = []
        for shard in shards:
            batches = iter(shard)
            for _ in range(2):
                next(batches)
            states.append(shard.batch_sampler.state_dict(2))
        for sampler in own:
            sampler.set_epoch(2)
            batches = iter(sampler)
            for _ in range(2):
                next(batches)
            states.append(sampler.state_dict())
        assert all(state == states[0] for state in states)


def test_skipped_batches() -> None:
    plan = plan_of(300)
    sampler = PackedBatchSampler(plan)
    skipping = SkipBatchSampler(BatchSamplerShard(sampler, 2, 1), 5)
    assert list(skipping) == list(PackedBatchSampler(plan, 1, 2))[5:]
    assert list(SkipBatchSampler(sampler, 5)) == list(PackedBatchSampler(plan))[5:]


def test_a_second_sharing_is_an_error() -> None:
    sampler = PackedBatchSampler(plan_of(300), 0, 2)
    with pytest.raises(ValueError, match="rank 0 of 2, and would be shared out a second time"):
        BatchSamplerShard(sampler, 2, 0)
    # Also if it is shared out without being asked.
    shard = BatchSamplerShard(PackedBatchSampler(plan_of(300)), 2, 0)
    shard.batch_sampler = sampler
    with pytest.raises(ValueError, match="leave out rank and world_size"):
        list(shard)
    with pytest.raises(ValueError, match="leave out rank and world_size"):
        len(shard)
    # A rank among one is no share.
    one = BatchSamplerShard(PackedBatchSampler(plan_of(300), 0, 1), 2, 0)
    assert list(one) == list(PackedBatchSampler(plan_of(300), 0, 2))
    assert not hasattr(PackedBatchSampler(plan_of(300)), "batch_size")


def prepared(sampler: PackedBatchSampler, ranks: int, rank: int, **options: Any) -> Any:
    """Return a loader of rows as ``accelerator.prepare`` makes it in one of several processes."""
    num_workers = options.pop("num_workers", 0)
    rows = torch.arange(sampler.plan.num_sequences)
    loader: Any = DataLoader(
        rows,  # type: ignore[arg-type]
        batch_sampler=sampler,
        collate_fn=torch.stack,
        num_workers=num_workers,
    )
    device = torch.device("cpu")
    return prepare_data_loader(loader, device, ranks, process_index=rank, **options)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.process)])
def test_loaders_of_accelerate_count_epochs(ranks: int, num_workers: int) -> None:
    plan = plan_of(300)
    own = PackedBatchSampler(plan, ranks - 1, ranks, shuffle=True)
    epochs = [list(own) for _ in range(3)]
    sampler = PackedBatchSampler(plan, shuffle=True)
    loader = prepared(sampler, ranks, ranks - 1, num_workers=num_workers)
    for epoch in range(2):
        assert [batch.tolist() for batch in loader] == epochs[epoch]
    # A loader that skips batches counts epochs, too; it does not tell a wrapped sampler.
    sampler = PackedBatchSampler(plan, shuffle=True)
    loader = prepared(sampler, ranks, ranks - 1, num_workers=num_workers)
    skipping = skip_first_batches(loader, 3)
    skipping.set_epoch(2)
    assert [batch.tolist() for batch in skipping] == epochs[2][3:]


def test_loaders_that_take_batches_ahead() -> None:
    plan = plan_of(300)
    sampler = PackedBatchSampler(plan, shuffle=True)
    loader = prepared(sampler, 2, 0)
    assert sampler.state_dict()["done"] == []
    batches = iter(loader)
    seen = [next(batches).tolist() for _ in range(4)]
    with pytest.raises(ValueError, match=r"^accelerate takes batches before .*state_dict\(step="):
        sampler.state_dict()
    state = sampler.state_dict(step=4)
    whole = list(PackedBatchSampler(plan, 0, 2, shuffle=True))
    assert seen == whole[:4]
    # The state is kept although accelerate counts epochs from 0.
    resumed = PackedBatchSampler(plan, shuffle=True)
    resumed.load_state_dict(state)
    loader = prepared(resumed, 2, 0)
    assert seen + [batch.tolist() for batch in loader] == whole
    assert loader.end_of_dataloader


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_stateful_loaders_of_accelerate() -> None:
    plan = plan_of(300)
    own = PackedBatchSampler(plan, shuffle=True)
    epochs = [list(own) for _ in range(3)]
    options = {"use_stateful_dataloader": True}
    loader = prepared(PackedBatchSampler(plan, shuffle=True), 1, 0, **options)
    assert [batch.tolist() for batch in loader] == epochs[0]
    batches = iter(loader)
    seen = [next(batches).tolist() for _ in range(5)]
    resumed = prepared(PackedBatchSampler(plan, shuffle=True), 1, 0, **options)
    resumed.load_state_dict(loader.state_dict())
    assert seen + [batch.tolist() for batch in resumed] == epochs[1]
    # accelerate has counted one epoch.
    assert [batch.tolist() for batch in resumed] == epochs[2]


@pytest.mark.process
def test_workers_take_batches_ahead() -> None:
    sampler = PackedBatchSampler(plan_of(300))
    rows: Any = torch.arange(300)
    batches = iter(DataLoader(rows, batch_sampler=sampler, num_workers=1))
    next(batches)
    with pytest.raises(ValueError, match=r"^a DataLoader with workers takes batches before"):
        sampler.state_dict()
    assert sampler.state_dict(1)["done"] == [[1, 1]]


def test_batches_are_not_dispatched(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"dispatch_batches": True, "put_on_device": True}
    loader = prepared(PackedBatchSampler(plan_of(300)), 2, 0, **options)
    assert sum(1 for _ in loader) > 0
    # In one process, only what the loader knows of others can be changed.
    monkeypatch.setattr(loader.state, "num_processes", 2)
    with pytest.raises(ValueError, match="packed batches cannot be dispatched"):
        next(iter(loader))


def test_callers_are_not_kept() -> None:
    class Caller:
        def __init__(self) -> None:
            self.sampler = PackedBatchSampler(plan_of(300))

        def read(self) -> int:
            return len(self.sampler) + len(next(iter(self.sampler)))

    gc.collect()
    gc.disable()
    try:
        caller = Caller()
        reference = weakref.ref(caller)
        assert caller.read() > 0
        del caller
        assert reference() is None
    finally:
        gc.enable()


def test_wrapped_samplers_are_not_shared_out_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(300)
    rows: Any = torch.arange(300)
    monkeypatch.setenv("WORLD_SIZE", "2")
    device = torch.device("cpu")
    shares = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        sampler = PackedBatchSampler(plan)
        loader = DataLoader(rows, batch_sampler=sampler, collate_fn=torch.stack)
        skipping = skip_first_batches(loader, 0)
        once = prepare_data_loader(skipping, device, 2, process_index=rank)
        shares.append([batch.tolist() for batch in once])
        twice = prepare_data_loader(once, device, 2, process_index=rank)
        with pytest.raises(ValueError, match=r"accelerate shares out the batches .* twice"):
            next(iter(twice))
    assert shares == [list(PackedBatchSampler(plan, rank, 2)) for rank in range(2)]


def test_batches_are_not_repeated() -> None:
    plan = plan_of(300)
    sampler = PackedBatchSampler(plan, even=False)
    with pytest.raises(ValueError, match="accelerate would repeat batches of this sampler"):
        list(BatchSamplerShard(sampler, 4, 0))
    shards = [BatchSamplerShard(sampler, 4, rank, even_batches=False) for rank in range(4)]
    found = [list(shard) for shard in shards]
    assert found == [list(PackedBatchSampler(plan, rank, 4, even=False)) for rank in range(4)]


class Documents(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([{"input_ids": [1] * 10}] * 100)


@pytest.mark.parametrize("dispatch_batches", [False, True])
def test_streams_are_not_shared_out_twice(
    dispatch_batches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    stream = PackedStream(Documents(), GreedyPacker.for_documents(64), even=True)
    assert sum(1 for _ in stream) == 9
    loader = DataLoader(stream, batch_size=None, collate_fn=len)
    shared = prepare_data_loader(
        loader,
        torch.device("cpu"),
        2,
        process_index=0,
        dispatch_batches=dispatch_batches,
        put_on_device=dispatch_batches,
    )
    error = ValueError if dispatch_batches else TypeError
    with pytest.raises(error, match=r"second time|NoneType"):
        next(iter(shared))
