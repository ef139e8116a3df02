"""Batches of a plan for a data set of any kind, cut as the plan has them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from fasta import fasta
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from virnucpro.data import (
    GreedyPacker,
    PackedBatchSampler,
    PackedDataset,
    PackedFastaDataset,
    PackingPlan,
    ReadOptions,
    pack_files,
)

# Longer than any record, since a text that is as long as a record is cut with it.
SOURCE = "the name of a source, " * 3


def documents(lengths: list[int]) -> list[dict[str, Any]]:
    """Records of token IDs, with labels and a mask in other types."""
    return [
        {
            "id": f"document {row}",
            "input_ids": [1000 * row + place for place in range(length)],
            "labels": np.arange(length) + 1000 * row,
            "mask": torch.arange(length) + 1000 * row,
            "source": SOURCE,
        }
        for row, length in enumerate(lengths)
    ]


@settings(max_examples=100)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=20),
    overlong=st.sampled_from(["truncate", "drop", "split"]),
    limit=st.integers(1, 20),
    data=st.data(),
)
def test_records_are_cut_as_the_plan_has_them(
    lengths: list[int], overlong: str, limit: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, limit - 1)) if overlong == "split" else 0
    packer = GreedyPacker(24, limit, special_tokens=2, overlong=overlong, overlap=overlap)
    plan = packer.pack_lengths(lengths)
    records = documents(lengths)
    packed = PackedDataset(records, plan)
    assert len(packed) == len(plan)
    batches = [packed[batch] for batch in range(len(packed))]
    seen: dict[int, list[int]] = {}
    for batch, tokens in zip(batches, plan.batch_tokens.tolist(), strict=True):
        assert sum(record["tokens"] for record in batch) == tokens <= 24
        for record in batch:
            row, ids = record["row"], record["input_ids"]
            assert record["tokens"] == len(ids) + 2
            assert ids == record["labels"].tolist() == record["mask"].tolist()
            assert record["id"] == f"document {row}"
            assert record["source"] == SOURCE
            assert ("truncated" in record) == (overlong == "truncate" and lengths[row] > limit)
            start = record.get("start", 0)
            assert ids == records[row]["input_ids"][start : start + len(ids)]
            assert ("start" in record) == ("stop" in record) == (plan.fragments is not None)
            seen.setdefault(row, []).append(start)
    for row, length in enumerate(lengths):
        if overlong == "drop" and length > limit:
            assert row not in seen
        elif overlong == "split" and length > limit:
            step = limit - overlap
            assert sorted(seen[row]) == list(range(0, length - overlap, step))
        else:
            assert seen[row] == [0]
    # By number, as a sampler asks for them.
    loader = DataLoader(packed.records, batch_sampler=PackedBatchSampler(plan), collate_fn=list)
    for batch, expected in zip(loader, batches, strict=True):
        assert [record["input_ids"] for record in batch] == [r["input_ids"] for r in expected]


def test_data_sets_of_hugging_face() -> None:
    lengths = [5, 30, 12, 0, 50]
    columns = {
        "input_ids": [list(range(length)) for length in lengths],
        "labels": [list(range(length)) for length in lengths],
    }
    dataset = datasets.Dataset.from_dict(columns)
    plan = GreedyPacker.for_documents(32).pack_lengths(lengths)
    packed = PackedDataset(dataset, plan)
    found = [record for batch in range(len(packed)) for record in packed[batch]]
    for record in found:
        start = record.get("start", 0)
        assert record["input_ids"] == record["labels"]
        assert record["input_ids"] == list(range(start, start + record["tokens"]))
    assert sum(record["tokens"] for record in found) == sum(lengths)


def test_records_are_not_modified() -> None:
    records = documents([30, 4])
    PackedDataset(records, GreedyPacker(10, 10).pack_lengths([30, 4]))[0]
    assert [len(record["input_ids"]) for record in records] == [30, 4]
    assert all("tokens" not in record for record in records)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"sequence": "MKT"}, {"id": "b", "sequence": "MK"}], "record of row 0 has 5 tokens"),
        ([{"id": "a", "sequence": "MKTA"}, {"id": "b"}], "'b' .row 1. has no 'sequence' and"),
        ([{"id": "a", "sequence": "MKTA"}, "MK"], "row 1 must be a dict .got str.; .*sequence"),
        (
            [{"id": "a", "sequence": "MKTA"}, {"sequence": "MK", "tokens": 7}],
            "'tokens', .* rename",
        ),
        ([{"sequence": "MKTA"}, {"sequence": "MK", "row": 1}], "row 1 has a key 'row'"),
    ],
)
def test_records_that_the_plan_is_not_for_are_named(records: list[Any], message: str) -> None:
    packed = PackedDataset(records, GreedyPacker(20).pack_lengths([4, 2]))
    with pytest.raises((ValueError, TypeError), match=message):
        packed[0]


def test_items_that_are_longer_than_planned_never_exceed_the_budget() -> None:
    plan = GreedyPacker(12).pack_lengths([5, 3])
    packed = PackedDataset([{"sequence": "M" * 10}, {"sequence": "M" * 10}], plan)
    with pytest.raises(ValueError, match="plan is for other sequences: the record of row 0 has 12"):
        packed[0]
    with pytest.raises(ValueError, match="plan is for other sequences: the record of row 1 has 12"):
        packed.records[1]
    packed = PackedDataset([{"sequence": "M" * 5}, {"sequence": "M" * 3}], plan)
    assert [record["tokens"] for record in packed.records.__getitems__([1, 0])] == [5, 7]
    with pytest.raises(ValueError, match="3 records has 17 tokens, more than the budget of 12"):
        packed.records.__getitems__([0, 1, 1])


def test_items_that_the_plan_did_not_truncate() -> None:
    plan = GreedyPacker(52, overlong="error").pack_lengths([30, 50])
    packed = PackedDataset([{"sequence": "M" * 30}, {"sequence": "M" * 99}], plan)
    with pytest.raises(ValueError, match="length 99, and the plan has no truncated sequences"):
        packed[0]


def test_files_with_other_overlong_sequences(tmp_path: Path) -> None:
    path = tmp_path / "a.fasta"
    path.write_bytes(fasta([("a", "M" * 99), ("b", "M" * 30)]))
    for overlong, lengths in (("error", [50, 30]), ("drop", [99, 99])):
        plan = GreedyPacker(52, overlong=overlong).pack_lengths(lengths)
        with pytest.raises(ValueError, match="the files have 1 that are too long"):
            PackedFastaDataset(path, plan)


def test_numbers_out_of_range() -> None:
    plan = GreedyPacker(52, overlong="drop").pack_lengths([30, 99])
    packed = PackedDataset([{"sequence": "M" * 30}, {"sequence": "M" * 99}], plan)
    for number in (-1, 2):
        with pytest.raises(IndexError, match="numbers must be from 0 to 1"):
            packed.records[number]
    with pytest.raises(ValueError, match="row 1 was dropped, so it has no batch"):
        packed.records[1]


def test_loaders_that_would_make_batches_of_batches() -> None:
    plan = GreedyPacker(12).pack_lengths([5, 3])
    packed = PackedDataset([{"sequence": "M" * 5}, {"sequence": "M" * 3}], plan)
    options: list[dict[str, Any]] = [
        {},
        {"batch_size": 2},
        {"batch_sampler": PackedBatchSampler(plan)},
    ]
    for each in options:
        with pytest.raises(TypeError, match="whole batches: use a DataLoader with batch_size=None"):
            next(iter(DataLoader(packed, **each)))


def test_fragments_of_shorter_items_are_named() -> None:
    plan = GreedyPacker(10, overlong="split", special_tokens=0).pack_lengths([25])
    packed = PackedDataset([{"id": 7, "input_ids": list(range(24))}], plan)
    with pytest.raises(ValueError, match=r"record 7 .row 0. has length 24, .* end at 25"):
        [packed[batch] for batch in range(3)]


def test_plans_for_other_numbers_of_records() -> None:
    plan = GreedyPacker(100).pack_lengths([5, 3])
    with pytest.raises(ValueError, match="plan is for 2 sequences, the data set has 3"):
        PackedDataset(documents([5, 3, 3]), plan)
    with pytest.raises(TypeError, match=r"plan must be a PackingPlan or a path .got int"):
        PackedDataset(documents([5, 3]), 3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"none\.parquet: no such file"):
        PackedDataset(documents([5, 3]), "none.parquet")


def test_rows_outside_of_the_data_are_errors() -> None:
    plan = GreedyPacker(100).pack_lengths([5, 3])
    for rows in ([0, 7], [-1, 0]):
        damaged = PackingPlan(plan, np.array(rows, np.int32))
        packed = PackedDataset(documents([5, 3]), damaged)
        with pytest.raises(ValueError, match=r"the plan is damaged: row -?[17] is out of range"):
            packed[0]


@pytest.mark.process
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_open_a_mapped_plan_by_its_path(method: str, tmp_path: Path) -> None:
    lengths = np.random.default_rng(1).integers(1, 30, 20_000)
    GreedyPacker(64, 20, overlong="split").pack_lengths(lengths).save(tmp_path / "plan.arrow")
    plan = PackingPlan.load(tmp_path / "plan.arrow")
    assert len(pickle.dumps(plan)) < 1000
    assert pickle.loads(pickle.dumps(plan)) == plan
    records = documents(lengths[:2000].tolist())
    small = GreedyPacker(64, 20, overlong="split").pack_lengths(lengths[:2000])
    small.save(tmp_path / "small.arrow")
    packed = PackedDataset(records, tmp_path / "small.arrow")
    loader = DataLoader(
        packed, batch_size=None, num_workers=2, multiprocessing_context=method, collate_fn=list
    )
    for batch, rows in zip(loader, small, strict=True):
        assert small.fragments is not None
        assert [record["row"] for record in batch] == small.fragments.rows[rows].tolist()


def test_a_pickled_plan_is_not_another_one(tmp_path: Path) -> None:
    path = tmp_path / "plan.arrow"
    GreedyPacker(100).pack_lengths([5, 3]).save(path)
    pickled = pickle.dumps(PackingPlan.load(path))
    GreedyPacker(101).pack_lengths([5, 3]).save(path)
    with pytest.raises(ValueError, match="not the plan that was pickled"):
        pickle.loads(pickled)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"plan\.arrow: no such file"):
        pickle.loads(pickled)


def test_options_travel_with_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "a.fasta"
    path.write_bytes(fasta([("a", "MK-ta*"), ("b", "mk*")]))
    options = ReadOptions(strip_stop=False, uppercase=False, drop_gaps=True)
    for name in ("plan.parquet", "plan.arrow"):
        pack_files(path, tmp_path / name, GreedyPacker(100), options=options)
        packed = PackedFastaDataset(path, tmp_path / name)
        assert packed.options == options
        assert [record["sequence"] for record in packed[0]] == ["MK*", "*"]
        PackedFastaDataset(path, tmp_path / name, options)
        with pytest.raises(ValueError, match=r"made with uppercase=False \(got True\)"):
            PackedFastaDataset(path, tmp_path / name, ReadOptions(strip_stop=False, drop_gaps=True))
        # A copy that is saved keeps them.
        PackingPlan.load(tmp_path / name).save(tmp_path / "copy.arrow")
        assert PackedFastaDataset(path, tmp_path / "copy.arrow").options == options
