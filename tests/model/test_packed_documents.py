"""Data sets of documents, which may be empty, of groups, and of joined plans."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fasta import fasta
from models import AMINO_ACIDS
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset
from transformers import DataCollatorWithFlattening

from virnucpro.data import (
    GreedyPacker,
    PackedBatchSampler,
    PackedDataset,
    PackedFastaDataset,
    PackedStream,
    PackingPlan,
    VarlenCollator,
    pack_files,
)


def documents(lengths: list[int], first: int = 0) -> list[dict[str, Any]]:
    return [
        {"name": first + row, "input_ids": [1000 * (first + row) + place for place in range(n)]}
        for row, n in enumerate(lengths)
    ]


def letters_without_special_tokens() -> Any:
    """A tokenizer for which each letter is a token, and nothing else is."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: place for place, token in enumerate(["<unk>", *AMINO_ACIDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


class Lazy:
    """A data set that makes its records."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input_ids": [row] * (1 + row % 50)}


def batches_of(packed: PackedDataset) -> list[list[dict[str, Any]]]:
    return [packed[batch] for batch in range(len(packed))]


def test_empty_documents_are_named() -> None:
    records = documents([5, 0, 3])
    packed = PackedDataset(records, GreedyPacker(10, 10, special_tokens=0).pack_lengths([5, 0, 3]))
    message = "^the record of row 1 has no tokens: pack with empty='drop', or remove it$"
    with pytest.raises(ValueError, match=message):
        packed[0]
    with pytest.raises(ValueError, match=message):
        packed.records[1]
    assert packed.records[0]["input_ids"] == records[0]["input_ids"]
    plan = GreedyPacker.for_documents(10).pack_lengths([5, 0, 3])
    packed = PackedDataset(records, plan)
    assert [record["row"] for record in packed[0]] == [0, 2]
    batch = DataCollatorWithFlattening()(packed[0])
    assert batch["input_ids"].shape == batch["labels"].shape
    with pytest.raises(ValueError, match="row 1 was dropped, so it has no batch"):
        packed.records[1]


@pytest.mark.parametrize("pad_to_budget", [False, True])
def test_empty_texts_are_sequences_without_tokens(pad_to_budget: bool) -> None:
    texts = ["MK", "", "MKT"]
    records = [
        {"id": row, "sequence": text, "labels": [row] * len(text)} for row, text in enumerate(texts)
    ]
    plan = GreedyPacker(10, 10, special_tokens=0).pack_lengths([2, 0, 3])
    collate = VarlenCollator(letters_without_special_tokens(), 10, 10, pad_to_budget=pad_to_budget)
    batch = collate(PackedDataset(records, plan)[0])
    assert batch["cu_seqlens"].tolist() == [0, 3, 5, 5, *([10] if pad_to_budget else [])]
    assert batch["sequence_ids"] == [2, 0, 1]
    assert batch["input_ids"].shape == batch["labels"].shape
    assert batch["labels"].tolist()[:5] == [2, 2, 2, 0, 0]


@pytest.mark.parametrize("overlong", ["drop", "split"])
def test_data_sets_of_documents(overlong: str) -> None:
    lengths = [0, 25, 3, 0, 10, 0]
    records = documents(lengths)
    plan = GreedyPacker.for_documents(10, overlong=overlong).pack_lengths(lengths)
    packed = PackedDataset(records, plan)
    found: dict[int, list[int]] = {}
    for batch in batches_of(packed):
        assert 0 < sum(record["tokens"] for record in batch) <= 10
        for record in sorted(batch, key=lambda record: record.get("start", 0)):
            found.setdefault(record["row"], []).extend(record["input_ids"])
    rows = [1, 2, 4] if overlong == "split" else [2, 4]
    assert {row: sorted(ids) for row, ids in found.items()} == {
        row: records[row]["input_ids"] for row in rows
    }
    loader = DataLoader(
        packed.records,
        batch_sampler=PackedBatchSampler(plan),
        collate_fn=list,
    )
    assert [[record["row"] for record in batch] for batch in loader] == [
        [record["row"] for record in batch] for batch in batches_of(packed)
    ]


def test_joined_plans_are_for_joined_data_sets() -> None:
    packer, parts = GreedyPacker.for_documents(10), ([25, 0, 3], [4, 4, 4], [0], [30])
    firsts = np.cumsum([0, *map(len, parts)]).tolist()
    sets: Any = [documents(part, first) for part, first in zip(parts, firsts, strict=False)]
    plan = PackingPlan.concatenate(packer.pack_lengths(part) for part in parts)
    joined: Any = ConcatDataset(sets)
    packed = PackedDataset(joined, plan)
    tokens = 0
    for batch in batches_of(packed):
        assert len({int(np.searchsorted(firsts, r["row"], side="right")) for r in batch}) == 1
        for record in batch:
            assert record["name"] == record["row"]
            ids = joined[record["row"]]["input_ids"][record["start"] : record["stop"]]
            assert record["input_ids"] == ids
            tokens += record["tokens"]
    assert tokens == sum(map(sum, parts))


def test_pickles_of_mapped_plans_are_small(tmp_path: Path) -> None:
    """Whatever was read from them before."""
    rows = 1_000_000
    packer = GreedyPacker(512, 40, special_tokens=0, overlong="split")
    plan = packer.pack_lengths(1 + np.arange(rows) % 50, groups=np.arange(rows) // 500_000)
    plan.save(tmp_path / "plan.arrow")
    packed = PackedDataset(Lazy(rows), tmp_path / "plan.arrow")
    assert len(pickle.dumps(packed)) < 1000
    assert sum(record["tokens"] for record in packed[7]) <= 512
    packed.records.__getitems__([1, 2, 3])
    assert len(packed.plan.indices) == len(packed.records) > rows
    assert len(pickle.dumps(packed)) < 1000
    assert len(pickle.dumps(packed.records)) < 1000
    again = pickle.loads(pickle.dumps(packed))
    assert again[7] == packed[7]
    assert again.records.__getitems__([1, 2, 3]) == packed.records.__getitems__([1, 2, 3])


def test_a_batch_of_batches_says_what_to_write() -> None:
    packed = PackedDataset(documents([3]), GreedyPacker.for_documents(10).pack_lengths([3]))
    message = "or its attribute `records` with a batch_sampler; with the Trainer of transformers, "
    with pytest.raises(TypeError, match=message + "return such a DataLoader from get_train_datal"):
        next(iter(DataLoader(packed, batch_size=2, collate_fn=list)))


SEQUENCES = [("a", "MKTAYIAKQRQISFVKSHFSR"), ("b", ""), ("c", "MKT"), ("d", ""), ("e", "MKTAYIA")]


@pytest.mark.parametrize("overlong", ["truncate", "drop", "split"])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_fasta_without_empty_proteins(tmp_path: Path, overlong: str, suffix: str) -> None:
    path, output = tmp_path / "a.fasta", tmp_path / f"plan{suffix}"
    path.write_bytes(fasta(SEQUENCES))
    pack_files(path, output, GreedyPacker(12, 10, overlong=overlong, empty="drop"))
    packed = PackedFastaDataset(path, output)
    records = [record for batch in batches_of(packed) for record in batch]
    expected = {0, 2, 4} if overlong != "drop" else {2, 4}
    assert {record["row"] for record in records} == expected
    for record in records:
        whole = SEQUENCES[record["row"]][1]
        start = record.get("start", 0)
        assert record["sequence"] == whole[start : start + len(record["sequence"])] != ""
    # Every row that is dropped is empty or too long.
    other = tmp_path / "b.fasta"
    other.write_bytes(fasta([(name, text or "MK") for name, text in SEQUENCES]))
    message = (
        r"the plan is for other sequences: it has \d truncated and [23] dropped sequences, the "
        r"files have 1 that are too long and 0 that are empty"
    )
    with pytest.raises(ValueError, match=message):
        PackedFastaDataset(other, output)


def test_damaged_plans_of_fasta_files(tmp_path: Path) -> None:
    path = tmp_path / "a.fasta"
    path.write_bytes(fasta(SEQUENCES))
    lengths = [len(text) for _, text in SEQUENCES]
    plan = GreedyPacker(12, 10, overlong="split", empty="drop").pack_lengths(lengths)
    assert plan.fragments is not None
    changes: list[dict[str, Any]] = [
        {"indices": plan.indices * 0},
        {"dropped": np.array([1, 1], np.int32)},
        {"dropped": np.array([0, 3], np.int32)},
        {"rows": plan.fragments.rows[::-1].copy()},
    ]
    PackedFastaDataset(path, PackingPlan.from_dict(plan.to_dict()))
    for change in changes:
        damaged = PackingPlan.from_dict({**plan.to_dict(), **change})
        with pytest.raises(ValueError, match=r"the plan is damaged|the plan is for"):
            PackedFastaDataset(path, damaged)


@pytest.mark.parametrize("overlong", ["truncate", "split", "error"])
@pytest.mark.parametrize("key", ["labels", "attention_mask"])
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_values_that_are_not_as_long_as_their_record_are_named(
    overlong: str, key: str, kind: Any
) -> None:
    """Also if another record of the batch makes up for the difference."""
    limit = 10 if overlong == "error" else 4
    packer = GreedyPacker.for_documents(10, max_sequence_length=limit, overlong=overlong)
    plan = packer.pack_lengths([5, 3])
    for first, wrong in ((4, 5), (6, 5)):
        records = documents([5, 3])
        records[0][key], records[1][key] = kind([7] * first), kind([7] * (8 - first))
        message = f"record of row 0 has {first} values in '{key}' for {wrong} tokens"
        with pytest.raises(ValueError, match=message):
            PackedDataset(records, plan)[0]
    records = documents([5, 3])
    records[0][key], records[1][key] = kind([7] * 5), kind([7] * 3)
    batches = batches_of(PackedDataset(records, plan))
    for record in [record for batch in batches for record in batch]:
        assert len(record[key]) == len(record["input_ids"])


def test_values_of_whole_records_are_left_as_they_are() -> None:
    records = documents([5, 3])
    for record in records:
        record.update(labels=torch.tensor(3), position_ids=None, tags=["a", "b"])
    found = PackedDataset(records, GreedyPacker.for_documents(4).pack_lengths([5, 3]))
    for record in [record for batch in batches_of(found) for record in batch]:
        assert (record["labels"], record["position_ids"]) == (torch.tensor(3), None)
        assert record["tags"] == ["a", "b"]


def test_labels_of_full_sequences_are_cut_with_their_fragment() -> None:
    """A record that was truncated elsewhere may have the labels of its full sequence."""
    record = {"id": 1, "sequence": "MKTAY", "labels": list(range(9)), "truncated": True}
    plan = GreedyPacker(5, 3, overlong="split").pack_lengths([5])
    found = [record for batch in batches_of(PackedDataset([record], plan)) for record in batch]
    assert [part["labels"] for part in found] == [[0, 1, 2], [3, 4]]


def test_sequences_that_are_also_tokens() -> None:
    """`input_ids` may have special tokens, unless the record is cut."""
    record = {"sequence": "MKT", "input_ids": [0, 5, 6, 7, 2], "labels": [1] * 5}
    assert PackedDataset([record], GreedyPacker(10).pack_lengths([3]))[0][0]["labels"] == [1] * 5
    with pytest.raises(ValueError, match="row 0 has 5 values in 'input_ids' for 3 tokens"):
        PackedDataset([record], GreedyPacker(4).pack_lengths([3]))[0]


def test_streams_name_labels_too() -> None:
    class Documents(IterableDataset[dict[str, Any]]):
        def __iter__(self) -> Any:
            return iter([{"input_ids": [1, 2, 3], "labels": [1, 2]}])

    stream = PackedStream(Documents(), GreedyPacker.for_documents(10))
    with pytest.raises(ValueError, match="row 0 has 2 values in 'labels' for 3 tokens"):
        list(stream)
