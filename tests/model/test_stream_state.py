"""Streams that resume: exactly the rest is given out, on any number of ranks."""

from __future__ import annotations

import io
import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from models import Records, byte_pairs, fair_esm_converter
from streams import Documents, Rows, Stateful, after, is_enough, pack, share_out, some_lengths
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from virnucpro.data import (
    GreedyPacker,
    PackedStream,
    VarlenCollator,
    create_async_dataloader,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    # torchdata calls it.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]
PACKER = GreedyPacker(100, 60, special_tokens=0, overlong="split")
LENGTHS = [length for length in some_lengths(160, 60) if length != 60]
IDS = [record["id"] for record in Documents(LENGTHS)]
BATCHES = pack(LENGTHS, IDS, PACKER.limits, 16, 5)
RANKS = (1, 2, 3, 8)


def documents(_: Any = None) -> Documents:
    return Documents(LENGTHS)


def stateful(_: Any = None) -> Stateful:
    return Stateful(LENGTHS)


def huggingface(_: Any = None) -> Any:
    return datasets.Dataset.from_list(list(documents())).to_iterable_dataset(num_shards=5)


def stream(
    dataset: Any, rank: int | None = 0, world_size: int | None = 1, **more: Any
) -> PackedStream:
    return PackedStream(
        dataset,
        PACKER,
        **{
            "buffer_size": 16,
            "max_open": 5,
            "even": True,
            "rank": rank,
            "world_size": world_size,
            **more,
        },
    )


def rows_of(batches: Any) -> list[Rows]:
    return [[record["row"] for record in batch] for batch in batches]


def run(packed: PackedStream, steps: int | None) -> list[Rows]:
    return rows_of(itertools.islice(iter(packed), steps))


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """A state that was saved and loaded, without any class."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def places(number: int = 20) -> list[tuple[int, int]]:
    """Random numbers of ranks and of steps."""
    draw = random.Random(0)
    found = []
    for index in range(number):
        world_size = RANKS[index % len(RANKS)]
        num_steps = len(share_out(*BATCHES, world_size)[0])
        found.append((world_size, draw.randint(0, num_steps)))
    # Also at the start and the end, and after the batches that are left were split.
    return found + [
        (world_size, num_steps)
        for world_size in (3, 8)
        for num_steps in (0, *range(len(share_out(*BATCHES, world_size)[0]) + 1)[-4:])
    ]


@pytest.mark.parametrize("make", [documents, stateful, huggingface])
def test_exactly_the_rest_on_any_number_of_ranks(make: Any) -> None:
    for world_size, num_steps in places(20 if make is documents else 6):
        whole = share_out(*BATCHES, world_size)
        first = stream(make(), world_size - 1, world_size)
        assert run(first, num_steps) == whole[world_size - 1][:num_steps]
        states = [] if num_steps == 0 else [stored(first.state_dict())]
        # As with a DataLoader that has workers.
        states.append(stream(make(), 0, world_size).state_dict(num_steps))
        every = RANKS if make is documents else random.sample(RANKS, 2)
        for state, others in itertools.product(states, every):
            assert state["num_given"] == num_steps * world_size
            left = after(*BATCHES, world_size, num_steps)
            if not is_enough(*left, others):
                packed = stream(make(), 0, others)
                packed.load_state_dict(state)
                with pytest.raises(ValueError, match="cannot be split into 8 batches"):
                    list(packed)
                continue
            expected = share_out(*left, others)
            if others == world_size:
                assert expected == [batches[num_steps:] for batches in whole]
            for rank in {0, others - 2, others - 1} - {-1}:
                packed = stream(make(), rank, others)
                packed.load_state_dict(state)
                assert rows_of(packed) == expected[rank]
                # The next pass is whole.
                assert run(packed, 3) == share_out(*BATCHES, others)[rank][:3]


@pytest.mark.parametrize("make", [documents, stateful, huggingface])
def test_resumed_again_and_again(make: Any) -> None:
    draw = random.Random(1)
    for _ in range(10 if make is documents else 3):
        left, state = BATCHES, None
        while left != ([], []):
            world_size = draw.choice([number for number in RANKS if is_enough(*left, number)])
            whole = share_out(*left, world_size)
            num_steps = draw.randint(1, len(whole[0]))
            packed = stream(make(), 0, world_size)
            if state is not None:
                packed.load_state_dict(state)
            assert run(packed, num_steps) == whole[0][:num_steps]
            by_steps = stream(make(), 0, world_size)
            if state is not None:
                by_steps.load_state_dict(state)
            state = draw.choice([packed.state_dict(), by_steps.state_dict(num_steps)])
            left = after(*left, world_size, num_steps)


def loader(packed: PackedStream, num_workers: int, **more: Any) -> Any:
    return StatefulDataLoader(
        packed,
        batch_size=None,
        collate_fn=list,
        num_workers=num_workers,
        multiprocessing_context="fork" if num_workers else None,
        **more,
    )


@pytest.mark.process
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("make", [documents, stateful, huggingface])
def test_stateful_loaders(make: Any, num_workers: int) -> None:
    # Starting workers takes long.
    found = places(20 if make is documents else 5)[: None if num_workers == 0 else 5]
    for index, (world_size, num_steps) in enumerate(found):
        rank = index % world_size
        whole = share_out(*BATCHES, world_size)[rank]
        more = {"snapshot_every_n_steps": 3} if index % 2 else {}
        first = loader(stream(make(), rank, world_size), num_workers, **more)
        assert rows_of(itertools.islice(first, num_steps)) == whole[:num_steps]
        state = first.state_dict()
        second = loader(stream(make(), rank, world_size), num_workers, **more)
        second.load_state_dict(state)
        assert rows_of(second) == whole[num_steps:]
        # The next pass is whole.
        assert rows_of(second) == whole


@pytest.mark.process
def test_a_state_of_the_stream_in_workers() -> None:
    """A state that is loaded before workers start is taken by each of them, once."""
    for others, context in ((3, "fork"), (2, "spawn")):
        packed = stream(documents(), 0, others)
        packed.load_state_dict(stream(documents(), 1, 2).state_dict(4))
        left, num_given = after(*BATCHES, 2, 4), 8
        for num_workers in (1, 2) if context == "fork" else (1, 1):
            loaded: DataLoader[Any] = DataLoader(
                packed,
                batch_size=None,
                num_workers=num_workers,
                multiprocessing_context=context,
            )
            assert rows_of(loaded) == share_out(*left, others)[0]
            assert packed.state_dict(2)["num_given"] == num_given + 2 * others
            left, num_given = BATCHES, 0


@pytest.mark.process
def test_workers_have_states_of_their_own() -> None:
    first = loader(stream(documents(), 0, 2), 2)
    next(iter(first))
    state = first.state_dict()
    second = loader(stream(documents(), 0, 3), 2)
    second.load_state_dict(state)
    message = r"state is for worker 0 of 2 of a DataLoader with 2 ranks: .*state_dict\(step\)"
    with pytest.raises(ValueError, match=message):
        list(second)


@pytest.mark.process
@pytest.mark.parametrize("num_workers", [0, 2])
def test_data_sets_that_share_out_their_records(num_workers: int) -> None:
    def make() -> Any:
        return stream(huggingface(), even=False, rank=None, world_size=None)

    def ids_of(batches: Any) -> list[list[int]]:
        return [[record["input_ids"][0] for record in batch] for batch in batches]

    whole = ids_of(loader(make(), num_workers))
    assert sorted(itertools.chain(*whole)) == [r["input_ids"][0] for r in documents()]
    for num_steps in (1, 2, 7, 20, len(whole) - 1):
        first = loader(make(), num_workers)
        assert ids_of(itertools.islice(first, num_steps)) == whole[:num_steps]
        second = loader(make(), num_workers)
        second.load_state_dict(first.state_dict())
        assert ids_of(second) == whole[num_steps:]


def test_without_even_a_state_is_for_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    packed = stream(documents(), even=False, rank=None, world_size=None)
    next(iter(packed))
    state = packed.state_dict()
    with pytest.raises(ValueError, match="step needs even=True"):
        packed.state_dict(1)
    monkeypatch.setenv("RANK", "1")
    packed.load_state_dict(state)
    with pytest.raises(ValueError, match=r"its rank is \[0, 2\] .*this rank is \[1, 2\]"):
        list(packed)


def test_only_the_begin_of_the_buffer_is_read_again() -> None:
    read: list[int] = []

    class Watched(Stateful):
        def __iter__(self) -> Any:
            for record in super().__iter__():
                read.append(record["input_ids"][0])
                yield record

    packed = stream(Watched(LENGTHS))
    run(packed, 20)
    state = packed.state_dict()
    num_read = len(read)
    read.clear()
    packed.load_state_dict(state)
    run(packed, 1)
    assert num_read > 60
    assert len(read) <= 32
    assert len(json.dumps(state)) < 20_000


@pytest.mark.parametrize("make", [fair_esm_converter, byte_pairs])
def test_batches_of_tensors(make: Any) -> None:
    draw = np.random.default_rng(0)
    records = [
        {"id": f"s{row}", "sequence": "".join(draw.choice(list("MKTAY"), 1 + row % 50))}
        for row in range(150)
    ]

    class Stored(Stateful):
        def __iter__(self) -> Any:
            begin, self.begin = self.begin, 0
            for row in range(begin, len(records)):
                self.num_read = row + 1
                yield records[row]

    def batches(dataset: Any) -> Any:
        collate = VarlenCollator(make(), 100)
        return create_async_dataloader(
            dataset, collate, num_workers=0, buffer_size=20, max_open=3, even=True
        )

    whole = [batch["input_ids"].tolist() for batch in batches(Records(records))]
    for dataset in (Records(records), Stored([])):
        for num_steps in (1, 5, len(whole) - 1):
            first = batches(dataset)
            for _ in zip(range(num_steps), first, strict=False):
                pass
            for state in (first.dataset.state_dict(), first.dataset.state_dict(num_steps)):
                second = batches(dataset)
                second.dataset.load_state_dict(stored(state))
                assert [b["input_ids"].tolist() for b in second] == whole[num_steps:]


def test_states_are_checked() -> None:
    packed = stream(documents())
    with pytest.raises(ValueError, match=r"no batches were taken .* pass step"):
        packed.state_dict()
    with pytest.raises(ValueError, match="step must be at least 0"):
        packed.state_dict(-1)
    state = packed.state_dict(3)
    with pytest.raises(TypeError, match="must be a dict returned by state_dict"):
        packed.load_state_dict({"step": 3})
    with pytest.raises(ValueError, match=r"must have version 1 \(got 2\)"):
        packed.load_state_dict({**state, "version": 2})
    with pytest.raises(ValueError, match=r"with buffer_size=16, but this stream has buffer_size=1"):
        stream(documents(), buffer_size=17).load_state_dict(state)
    with pytest.raises(ValueError, match="with even=True"):
        stream(documents(), even=False, rank=None, world_size=None).load_state_dict(state)
    short = stream(Documents([5, 6, 7]))
    short.load_state_dict(state)
    with pytest.raises(ValueError, match=r"for another stream: 3 batches were given out, .* has 1"):
        list(short)


class Shuffled(IterableDataset[Any]):
    """Documents in another order in each epoch."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        random = np.random.default_rng(self.epoch)
        for number in random.permutation(300).tolist():
            yield {"id": number, "input_ids": [0] * (1 + number % 40)}


def test_states_keep_the_epoch() -> None:
    def make() -> PackedStream:
        packer = GreedyPacker.for_documents(128)
        return PackedStream(Shuffled(), packer, buffer_size=16, even=True)

    def ids(batches: Any) -> list[list[int]]:
        return [[record["id"] for record in batch] for batch in batches]

    stream = make()
    stream.set_epoch(3)
    whole = ids(stream)
    assert whole != ids(make())
    batches = iter(stream)
    before = ids(next(batches) for _ in range(7))
    for state in (stream.state_dict(), stream.state_dict(7)):
        resumed = make()
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert before + ids(resumed) == whole
        assert ids(resumed) == whole
