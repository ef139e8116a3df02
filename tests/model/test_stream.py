"""Streams in packed batches: what is in them, and which rank and worker has them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fasta import fasta
from hypothesis import given
from hypothesis import strategies as st
from models import Records, fair_esm_converter
from strategies import Case, cases
from streams import Documents, log_normal, pack, share_out, some_lengths
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import DataCollatorWithFlattening

from virnucpro.data import (
    GreedyPacker,
    Limits,
    PackedDataset,
    PackedStream,
    SequenceDataset,
    VarlenCollator,
)
from virnucpro.model.packed_datasets import PlannedBatch

Record = dict[str, Any]
PACKER = GreedyPacker(100, 60, special_tokens=0)


def rows_of(batches: Any) -> list[list[int]]:
    return [[record["row"] for record in batch] for batch in batches]


def expected(
    lengths: list[int], world_size: int = 1, buffer_size: int = 16, max_open: int = 8
) -> list[list[list[int]]]:
    """The rows of each batch of each rank."""
    ids = [record["id"] for record in Documents(lengths)]
    sizes = PACKER.limits.tokens(np.array(lengths, np.int64)).tolist()
    return share_out(*pack(sizes, ids, PACKER.limits, buffer_size, max_open), world_size)


def stream(lengths: list[int], **more: Any) -> PackedStream:
    return PackedStream(Documents(lengths), PACKER, **{"buffer_size": 16, **more})


@given(cases(multiples=(1, 1, 8)), st.integers(1, 20), st.integers(0, 5), st.booleans())
def test_batches_are_those_of_the_obvious_algorithm(
    case: Case, buffer_size: int, max_open: int, has_ids: bool
) -> None:
    packer = GreedyPacker(**case.parameters)
    lengths = [min(length, 10**6) for length in case.lengths]
    records: list[Record] = [{"sequence": range(length)} for length in lengths]
    ids = [row * 3 % 7 for row in range(len(records))] if has_ids else None
    for record, name in zip(records, ids or [], strict=False):
        record["id"] = name
    sizes = packer.limits.tokens(np.array(lengths, np.int64)).tolist()
    closed, last = pack(sizes, ids, packer.limits, buffer_size, max_open)
    found = PackedStream(Records(records), packer, buffer_size=buffer_size, max_open=max_open)
    assert rows_of(found) == closed + last


@pytest.mark.parametrize(
    ("budget", "limit", "special_tokens", "mean", "sigma"),
    [(4096, 1022, 2, 5.6, 0.75), (16_384, 1022, 2, 5.6, 0.75), (32_768, 32_768, 0, 6.5, 1.1)],
)
def test_small_buffers_give_full_batches(
    budget: int, limit: int, special_tokens: int, mean: float, sigma: float
) -> None:
    lengths = log_normal(20_000, mean, sigma, limit)
    packer = GreedyPacker(budget, limit, special_tokens=special_tokens)
    dataset = Records([{"sequence": range(length)} for length in lengths])
    efficiency = {}
    for buffer_size, max_open in ((64, 8), (256, 8), (2000, 8), (64, 0)):
        packed = PackedStream(dataset, packer, buffer_size=buffer_size, max_open=max_open)
        tokens = [sum(record["tokens"] for record in batch) for batch in packed]
        efficiency[buffer_size, max_open] = sum(tokens) / (budget * len(tokens))
    print(budget, efficiency)
    assert min(efficiency[buffer_size, 8] for buffer_size in (64, 256, 2000)) >= 0.995
    assert efficiency[64, 0] < 0.92


def test_records_are_cut_as_those_of_a_plan() -> None:
    lengths = [150, 30, 60, 61, 5, 130]
    for overlong, overlap in (("truncate", 0), ("drop", 0), ("split", 0), ("split", 7)):
        packer = GreedyPacker(100, 60, special_tokens=0, overlong=overlong, overlap=overlap)
        records = [{**record, "file": "x" * 150} for record in Documents(lengths)]
        packed = PackedDataset(records, packer.pack_lengths(lengths))
        planned = [record for batch in packed for record in batch]  # type: ignore[attr-defined]
        found = list(PackedStream(Records(records), packer))
        assert all(isinstance(batch, PlannedBatch) for batch in found)
        assert {batch.limits for batch in found} == {packer.limits}

        def place(record: Record) -> tuple[int, int]:
            return record["row"], record.get("start", 0)

        streamed = sorted(itertools.chain.from_iterable(found), key=place)
        assert streamed == sorted(planned, key=place)
        assert [len(record["labels"]) for record in streamed] == [
            len(record["input_ids"]) for record in streamed
        ]


def test_what_is_truncated_or_dropped_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    lengths = [150, 30, 60, 61, 5]
    for overlong in ("truncate", "drop", "split"):
        packer = GreedyPacker(100, 60, special_tokens=0, overlong=overlong)
        packed = PackedStream(Documents(lengths), packer, buffer_size=2)
        for _ in range(2):
            list(packed)
    truncated = (
        "2 of 5 sequences exceed max_sequence_length (60), truncating: 91 residues removed, "
        "29.74 % of all"
    )
    dropped = "2 of 5 sequences exceed max_sequence_length (60), dropping: 211 residues"
    assert caplog.messages == [truncated, truncated, dropped, dropped]
    caplog.clear()
    packer = GreedyPacker.for_documents(100)
    packed = PackedStream(Documents([150, 0, 30, 0]), packer)
    assert rows_of(packed) == [[0], [0, 2]]
    assert caplog.messages == ["2 of 4 sequences are empty, dropping"]
    caplog.clear()
    packer = GreedyPacker(100, 60, special_tokens=0)
    for rank in range(3):
        list(PackedStream(Documents(lengths), packer, even=True, rank=rank, world_size=3))
    assert caplog.messages == [truncated]
    packer.overlong = "error"
    message = r"record 'd7' \(row 1\) exceeds max_sequence_length \(61 > 60\); .*: 2 of 4$"
    with pytest.raises(ValueError, match=message):
        list(PackedStream(Documents([60, 61, 3, 99]), packer))
    message = r"record 'd7' \(row 1\) exceeds the default max_sequence_length, .* proteins"
    with pytest.raises(ValueError, match=message):
        list(PackedStream(Documents([5, 1023]), GreedyPacker(4096, special_tokens=0)))


def test_odd_streams() -> None:
    assert list(stream([])) == []
    assert list(stream([], even=True, rank=1, world_size=3)) == []
    assert rows_of(stream([9])) == [[0]]
    assert rows_of(stream([61, 62], buffer_size=1)) == [[0], [1]]
    assert rows_of(stream([50, 40, 10, 60], buffer_size=1, max_open=1)) == [[0, 1, 2], [3]]
    empty = Records([{"sequence": "M" * length} for length in (0, 0, 60, 40, 0)])
    assert rows_of(PackedStream(empty, PACKER, buffer_size=3, max_open=1)) == [[2, 3, 0, 1, 4]]
    limited = GreedyPacker(100, 60, special_tokens=0, max_sequences_per_batch=2)
    assert rows_of(PackedStream(Documents([9] * 5), limited, buffer_size=2)) == [
        [0, 1],
        [2, 3],
        [4],
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("number", [100, 137])
def test_ranks_have_equally_many_batches(number: int, world_size: int) -> None:
    lengths = some_lengths(number, 70)
    found = [
        rows_of(stream(lengths, even=True, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert found == expected(lengths, world_size)
    assert len({len(batches) for batches in found}) == 1
    rows = [row for batches in found for batch in batches for row in batch]
    assert sorted(rows) == list(range(number))


def test_too_few_sequences_for_all_ranks() -> None:
    message = "the last 3 sequences of the stream, in 2 batches, .* 4 batches.* even=False"
    with pytest.raises(ValueError, match=message):
        list(stream([60, 60, 5], even=True, rank=0, world_size=4))
    assert len(list(stream([60, 60, 5, 5], even=True, rank=0, world_size=4))) == 1


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_the_number_of_workers_does_not_matter() -> None:
    lengths = some_lengths(137, 70)
    ranks = expected(lengths, 2)
    for rank, num_workers in itertools.product(range(2), (0, 1, 3)):
        loader: DataLoader[Any] = DataLoader(
            stream(lengths, even=True, rank=rank, world_size=2),
            batch_size=None,
            num_workers=num_workers,
            multiprocessing_context="fork" if num_workers else None,
        )
        for _ in range(2):
            assert rows_of(loader) == ranks[rank]


class Shared(Documents):
    """Records that are shared out among workers, as by data sets of Hugging Face."""

    def __iter__(self) -> Iterator[Record]:
        worker = get_worker_info()
        share, number = (worker.id, worker.num_workers) if worker else (0, 1)
        for record in itertools.islice(super().__iter__(), share, None, number):
            yield {**record, "worker": get_worker_info() and share}


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_data_sets_that_share_out_their_records() -> None:
    lengths = some_lengths(137, 70)
    for even, workers in ((True, {None}), (False, {0, 1})):
        packed = PackedStream(Shared(lengths), PACKER, buffer_size=16, even=even)
        loader: DataLoader[Any] = DataLoader(
            packed, batch_size=None, num_workers=2, multiprocessing_context="fork"
        )
        found = list(loader)
        records = [record for batch in found for record in batch]
        assert {record["worker"] for record in records} == workers
        assert sorted(record["input_ids"][0] for record in records) == [
            record["input_ids"][0] for record in Documents(lengths)
        ]
        if even:
            assert rows_of(found) == expected(lengths)[0]


def test_fasta_files_are_even_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(fasta((f"s{row}", "mk" * length) for row, length in enumerate(range(1, 80))))
    dataset = SequenceDataset(path, max_length=100)
    packer = GreedyPacker(500)
    found = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        assert len(list(dataset)) in (26, 27)
        caplog.clear()
        found.append(rows_of(PackedStream(dataset, packer, buffer_size=16)))
        assert len(caplog.messages) == (1 if rank == 0 else 0)
        alone = rows_of(PackedStream(dataset, packer, even=False))
        assert sorted(itertools.chain(*alone)) == list(range(len(list(dataset))))
    assert len({len(batches) for batches in found}) == 1
    assert sorted(itertools.chain(*itertools.chain(*found))) == list(range(79))


def test_as_input_of_models() -> None:
    packed = PackedStream(Documents([5, 60, 45, 3]), PACKER)
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    batches = list(DataLoader(packed, batch_size=None, collate_fn=collate))
    assert [batch["input_ids"].shape for batch in batches] == [(1, 68), (1, 45)]
    assert batches[0]["cu_seq_lens_q"].tolist() == [0, 60, 65, 68]
    assert batches[0]["labels"][0, 1:60].tolist() == [-i for i in range(6, 65)]
    records = Records([{"id": i, "sequence": "MK" * i} for i in (3, 5, 9, 60)])
    collated: DataLoader[Any] = DataLoader(
        PackedStream(records, GreedyPacker(40, 20)),
        batch_size=None,
        collate_fn=VarlenCollator(fair_esm_converter(), max_sequence_length=20),
    )
    batches = list(collated)
    assert [batch["sequence_ids"] for batch in batches] == [[60, 5], [9, 3]]
    assert [batch["token_budget"] for batch in batches] == [40, 40]
    assert [batch["truncated"].tolist() for batch in batches] == [[True, False], [False, False]]
    with pytest.raises(ValueError, match=r"no 'sequence'.* for input_ids, use PackedStream or"):
        VarlenCollator(fair_esm_converter())(list(Documents([3, 4])))


def test_read_is_a_buffer_and_no_more() -> None:
    read = []

    class Endless(IterableDataset[Record]):
        def __iter__(self) -> Iterator[Record]:
            for row in itertools.count():
                read.append(row)
                yield {"input_ids": [row] * 10}

    batches = iter(PackedStream(Endless(), PACKER, buffer_size=16, max_open=2))
    for number in range(1, 200):
        next(batches)
        # Ten rows per batch, 16 that were read last, and two open batches.
        assert len(read) <= 10 * number + 16 + 2 * 10


def test_epochs_are_passed_on() -> None:
    class Shuffled(Documents):
        def set_epoch(self, epoch: int) -> None:
            self.lengths = [epoch] * 3

    packed = PackedStream(Shuffled([1]), PACKER)
    packed.set_epoch(7)
    assert [record["tokens"] for batch in packed for record in batch] == [7, 7, 7]
    stream([1]).set_epoch(7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset": [{"input_ids": [1]}]}, TypeError, r"an IterableDataset \(got list\)"),
        ({"packer": Limits(100)}, TypeError, r"must be a GreedyPacker \(got Limits\)"),
        ({"packer": GreedyPacker(100, method="tight")}, ValueError, r"'ffd' \(got 'tight'\)"),
        ({"buffer_size": 0}, ValueError, "buffer_size must be at least 1"),
        ({"max_open": -1}, ValueError, "max_open must be at least 0"),
        ({"rank": 0, "even": True}, ValueError, "given together"),
        ({"rank": 0, "world_size": 2}, ValueError, "need even=True"),
        ({"rank": 2, "world_size": 2, "even": True}, ValueError, "rank must be at most 1"),
    ],
)
def test_bad_parameters(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PackedStream(**{"dataset": Documents([1]), "packer": PACKER, **arguments})


@pytest.mark.parametrize(
    ("records", "error", "message"),
    [
        (
            [{"input_ids": [1]}, [2]],
            TypeError,
            r"row 1 must be a dict \(got list\); .*input_ids",
        ),
        ([{"input_ids": []}], ValueError, "record of row 0 has no tokens: pack with empty='drop'"),
        ([{"text": "MK"}], ValueError, "row 0 has no 'sequence' and no 'input_ids'"),
        ([{"input_ids": [1], "tokens": 3}], ValueError, "row 0 has a key 'tokens', which is added"),
        ([{"id": 1, "input_ids": [1]}, {"id": "a", "input_ids": [1]}], TypeError, "ID of row 1"),
    ],
)
def test_bad_records(records: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(PackedStream(Records(records), PACKER))


def test_nothing_is_added_to_token_ids() -> None:
    message = r"record 'd0' \(row 0\) has input_ids, .* special_tokens=0 \(got 2\)"
    with pytest.raises(ValueError, match=message):
        list(PackedStream(Documents([3]), GreedyPacker(100)))
    records = [{"input_ids": torch.arange(70), "labels": np.arange(70)}]
    ((record,),) = PackedStream(Records(records), PACKER)
    assert record["input_ids"].tolist() == record["labels"].tolist() == list(range(60))
    assert (record["truncated"], record["tokens"]) == (True, 60)


def test_the_packer_is_copied() -> None:
    packer = GreedyPacker(100, 60, special_tokens=0)
    packed = PackedStream(Documents([50, 50]), packer)
    packer.max_tokens_per_batch = 60
    assert len(list(packed)) == 1


@pytest.mark.parametrize("overlong", ["truncate", "error", "drop", "split"])
@pytest.mark.parametrize("number", [0, 5, 10, 11])
def test_streams_of_whole_buffers(overlong: str, number: int) -> None:
    packer = GreedyPacker(50, 20, special_tokens=0, overlong=overlong)
    batches = list(PackedStream(Documents([7] * number), packer, buffer_size=5))
    assert sum(map(len, batches)) == number


def test_records_that_may_come_several_times(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for even, world_size, warns in ((None, 2, True), (None, 1, False), (False, 2, False)):
        caplog.clear()
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        packed = stream([5, 6, 7], even=even)
        assert sum(map(len, packed)) == sum(map(len, packed)) == 3
        text = f"{world_size} processes read the data set, and each record comes as often unless"
        assert caplog.text.count(text) == warns
