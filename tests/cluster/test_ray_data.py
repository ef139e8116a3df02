"""A data set packed in blocks by Ray is what it is packed as a whole."""

from __future__ import annotations

import itertools
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import round_up
from strategies import Case, cases

from virnucpro.data import GreedyPacker, Layout, pack_dataset

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("local_ray")]


def cut(columns: dict[str, Any], cuts: list[int]) -> ray.data.Dataset:
    """A data set in blocks; equal cuts give empty ones."""
    table = pa.table(columns)
    ends = [0, *sorted(cuts), len(table)]
    pairs = itertools.pairwise(ends)
    return ray.data.from_arrow([table.slice(begin, end - begin) for begin, end in pairs])


def columns_of(ds: ray.data.Dataset) -> dict[str, list[Any]]:
    tables = [ray.get(ref) for ref in ds.to_arrow_refs()]
    columns: dict[str, list[Any]] = pa.concat_tables(
        tables, promote_options="permissive"
    ).to_pydict()
    return columns


def expected(packer: GreedyPacker, lengths: list[int]) -> dict[str, list[int]]:
    array = np.array(lengths, np.int64)
    layout = packer.lay_out(packer.count(array))
    limit = layout.max_sequence_length
    return {
        "batch": layout.assign(array).tolist(),
        "slot": layout.slots(array).tolist(),
        "tokens": [
            round_up(min(length, limit) + layout.special_tokens, layout.multiple_of)
            for length in lengths
        ],
    }


@settings(max_examples=60)
@given(cases(), st.data())
def test_any_blocks_equal_the_whole(case: Case, data: st.DataObject) -> None:
    lengths = case.lengths or [1]
    cuts = data.draw(st.lists(st.integers(0, len(lengths)), max_size=6))
    packer = GreedyPacker(**case.parameters)
    numbers = list(range(len(lengths)))
    ds, layout = pack_dataset(cut({"length": lengths, "number": numbers}, cuts), packer)
    assert layout == packer.lay_out(packer.count(lengths))
    found = columns_of(ds)
    assert found == {"length": lengths, "number": numbers, **expected(packer, lengths)}


@pytest.mark.parametrize("task_bytes", [2**27, 2000])
@pytest.mark.parametrize("order", ["row", "id"])
@pytest.mark.parametrize("overlong", ["truncate", "split"])
def test_order_of_batches(
    monkeypatch: pytest.MonkeyPatch, task_bytes: int, order: str, overlong: str
) -> None:
    """Blocks have whole batches in order, as rows and as lists."""
    monkeypatch.setattr("virnucpro.cluster.ranges.TASK_BYTES", task_bytes)
    random = np.random.default_rng(0)
    lengths, names = random.integers(0, 60, 300), [f"s{n}" for n in random.integers(0, 99, 300)]
    columns = {"name": names, "length": lengths, "number": np.arange(300)}
    ds = cut(columns, [10, 10, 150, 220])
    packer = GreedyPacker(44, overlong=overlong)
    plan = packer.pack_lengths(lengths, names if order == "id" else None)
    rows = plan.indices if plan.fragments is None else plan.fragments.rows[plan.indices]
    batches, layout = pack_dataset(ds, packer, order=order, id_column="name", result="batches")
    assert layout == Layout(plan.core, plan.limits)
    found = columns_of(batches)
    new = ["tokens"] if overlong == "truncate" else ["tokens", "start", "stop"]
    assert list(found) == ["batch", "name", "length", "number", *new]
    assert found["batch"] == list(range(len(plan)))
    assert [number for batch in found["number"] for number in batch] == rows.tolist()
    assert [sum(batch) for batch in found["tokens"]] == plan.batch_tokens.tolist()
    assert (len(batches.to_arrow_refs()) > 1) == (task_bytes < 2**27)
    if order == "id":
        packed, _ = pack_dataset(ds, packer, order=order, id_column="name")
        as_rows = columns_of(packed)
        assert list(as_rows)[3:6] == ["batch", "slot", "tokens"]
        assert as_rows["number"] == rows.tolist()
        assert as_rows["batch"] == np.repeat(found["batch"], np.diff(plan.offsets)).tolist()
        assert as_rows["slot"] == [n for batch in found["number"] for n in range(len(batch))]


def test_dropped_rows_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    ds = cut({"length": [200, 5, 0, 300, 7], "number": range(5)}, [2, 3])
    packer = GreedyPacker(20, overlong="drop", empty="drop")
    for order in ("rows", "batches"):
        caplog.clear()
        packed, layout = pack_dataset(ds, packer, result=order)
        assert layout.num_sequences == 2
        found = columns_of(packed)["number"]
        assert found == ([1, 4] if order == "rows" else [[4, 1]])
        assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
            "2 of 5 sequences exceed the room of a batch (18), dropping: 500 residues",
            "1 of 5 sequences are empty, dropping",
        ]
    everything = GreedyPacker(20, 1, overlong="drop", empty="drop")
    for order in ("rows", "batches"):
        packed, layout = pack_dataset(ds, everything, result=order)
        assert (packed.count(), layout.num_batches) == (0, 0)


def test_tensors_and_lists_move_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virnucpro.cluster.ranges.TASK_BYTES", 500)
    rows = [
        {"id": f"s{n % 7}", "length": n % 5, "tensor": np.full((2, 2), n), "list": [n] * (n % 3)}
        for n in range(40)
    ]
    ds = ray.data.from_items(rows, override_num_blocks=4)
    packed, _ = pack_dataset(ds, GreedyPacker(12), order="id")
    plan = GreedyPacker(12).pack_lengths(
        [n % 5 for n in range(40)], [f"s{n % 7}" for n in range(40)]
    )
    found = packed.take_all()
    assert [row["tensor"].tolist() for row in found] == [
        [[n, n], [n, n]] for n in plan.indices.tolist()
    ]
    assert [list(row["list"]) for row in found] == [[n] * (n % 3) for n in plan.indices.tolist()]


def test_whole_batches_for_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank of a training gets other batches, all of them together each one once."""
    monkeypatch.setattr("virnucpro.cluster.ranges.TASK_BYTES", 2000)
    lengths = np.random.default_rng(0).integers(1, 60, 300)
    packer = GreedyPacker(128)
    batches, layout = pack_dataset(
        cut({"length": lengths, "number": range(300)}, [99]), packer, result="batches"
    )

    def read(shard: Any) -> list[tuple[int, list[int]]]:
        loader = shard.iter_torch_batches(batch_size=1, collate_fn=lambda batch: batch)
        return [(int(batch["batch"][0]), batch["number"][0].tolist()) for batch in loader]

    # Each waits until all of them read.
    with ThreadPoolExecutor(2) as ranks:
        of_ranks = list(ranks.map(read, batches.streaming_split(2, equal=False)))
    found = [batch for of_rank in of_ranks for batch in of_rank]
    plan = packer.pack_lengths(lengths)
    assert sorted(found) == [(number, rows.tolist()) for number, rows in enumerate(plan)]
    assert layout.num_batches == len(plan)


def test_files_are_read_in_order(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(0, 1500, (9, 500))
    paths = [str(tmp_path / f"{name}.parquet") for name in "hgbcaifde"]
    for path, some in zip(paths, lengths, strict=True):
        pq.write_table(pa.table({"length": some}), path, row_group_size=100)
    ds, _ = pack_dataset(ray.data.read_parquet(paths, override_num_blocks=9), GreedyPacker(4096))
    found = columns_of(ds)
    assert found["length"] == lengths.ravel().tolist()
    assert found["batch"] == GreedyPacker(4096).assign_batches(lengths.ravel()).tolist()


def test_blocks_of_pandas_and_without_columns() -> None:
    parts = [
        ray.data.from_pandas(pd.DataFrame({"length": [5, 1]})),
        ray.data.from_arrow(pa.table({})),
        ray.data.from_arrow(pa.table({"length": [3]})),
        ray.data.from_items([9]).map_batches(lambda table: table[:0], batch_format="pyarrow"),
    ]
    ds, layout = pack_dataset(parts[0].union(*parts[1:]), GreedyPacker(8))
    assert columns_of(ds)["batch"] == [0, 1, 1]
    assert layout.num_sequences == 3


def test_blocks_of_tables_and_frames() -> None:
    """Ray keeps both where they are put together."""
    table, frame = pa.table({"length": [5], "id": ["b"]}), pd.DataFrame({"length": [5], "id": "a"})
    ds = ray.data.from_arrow([table]).union(ray.data.from_pandas(frame))
    for order, expected in (("row", ["b", "a"]), ("id", ["a", "b"])):
        packed, _ = pack_dataset(ds, GreedyPacker(8), order=order)
        found = columns_of(packed)
        assert (found["id"], found["batch"]) == (expected, [0, 1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([2**60 + 3, -1, 2**60 + 1]), pa.array([2**60 + 2, 0, 2**60], pa.uint64())),
        (pa.array([2**64 - 1, 2**63], pa.uint64()), pa.array([2**64 - 2, 7], pa.uint64())),
        (pa.array([3, -1], pa.int8()), pa.array([2**40, -(2**40)])),
        (pa.array(["b", "a"], pa.large_string()), pa.array(["c", ""]).dictionary_encode()),
    ],
)
def test_ids_of_two_types(one: Any, other: Any) -> None:
    blocks = [pa.table({"id": ids, "length": [1] * len(ids)}) for ids in (one, other)]
    packed, _ = pack_dataset(ray.data.from_arrow(blocks), GreedyPacker(4), order="id")
    found = columns_of(packed)
    assert found["id"] == sorted(one.to_pylist() + other.to_pylist())
    assert found["batch"] == list(range(len(found["id"])))


def test_first_bad_block_is_named() -> None:
    for _ in range(5):
        ds = ray.data.from_arrow([pa.table({"length": [n]}) for n in (1, -1, 2, -2, -3, -4)])
        with pytest.raises(ValueError, match="block 1: column 'length' is negative in row 0"):
            pack_dataset(ds, GreedyPacker(4))


def test_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    pack_dataset(cut({"length": [2000] * 10}, [2, 4]), GreedyPacker(4096))
    (message,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert message == (
        "10 of 10 sequences exceed max_sequence_length (1022), truncating: 9,780 residues removed, "
        "48.90 % of all; this default is for proteins: for the tokens of documents, use "
        "GreedyPacker.for_documents(4096)"
    )


@pytest.mark.parametrize("is_killed", [True, False])
@pytest.mark.parametrize("call", [0, 2, 5, 7])
def test_failed_and_killed_tasks_change_nothing(tmp_path: Path, is_killed: bool, call: int) -> None:
    """Calls 0 to 3 count the four blocks, the next ones assign them."""

    # Pickled whole, as workers cannot import this file.
    def is_made(folder: Path) -> bool:
        try:
            folder.mkdir()
            return True
        except FileExistsError:
            return False

    class Unlucky(GreedyPacker):
        def check_overlong(self, lengths: Any, limits: Any) -> None:
            # Only one worker makes each folder.
            number = next(n for n in itertools.count() if is_made(tmp_path / str(n)))
            if number == call:
                if is_killed:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError("no disk")
            super().check_overlong(lengths, limits)

    lengths = np.random.default_rng(0).integers(0, 1500, 1000).tolist()
    ds, _ = pack_dataset(cut({"length": lengths}, [100, 500, 700]), Unlucky(4096))
    assert columns_of(ds) == {"length": lengths, **expected(GreedyPacker(4096), lengths)}
    assert len(list(tmp_path.iterdir())) == 9


LARGE = pa.array([2**63], pa.uint64())
BAD: list[tuple[dict[str, Any], str, type[Exception], str]] = [
    ({"length": [1, None]}, "row", ValueError, "block 1: column 'length' is null in row 1"),
    ({"length": ["1"]}, "row", ValueError, "block 1: column 'length' must contain integers"),
    ({"length": [1.0]}, "row", ValueError, "block 1: column 'length' must contain integers"),
    ({"length": [4, -3]}, "row", ValueError, "block 1: column 'length' is negative in row 1"),
    ({"size": [1]}, "row", ValueError, "block 1: no column 'length' (it has size)"),
    ({"length": [1], "slot": [1]}, "row", ValueError, "block 1: column 'slot' already exists"),
    ({"length": [1]}, "id", ValueError, "block 1: no column 'id' (it has length)"),
    ({"length": [1], "id": [None]}, "id", ValueError, "block 1: column 'id' is null in row 0"),
    ({"length": [1], "id": [1.5]}, "id", TypeError, "block 1: column 'id' must be strings or"),
    (
        {"length": [1], "id": pa.array([2**63], pa.uint64())},
        "id",
        TypeError,
        "must be all strings, all int64 or all",
    ),
    (
        {"length": pa.array([2**63], pa.uint64())},
        "row",
        ValueError,
        "block 1: column 'length': Integer value",
    ),
    ({"length": [1], "id": [1]}, "id", TypeError, "must be all strings, all int64 or all uint64"),
    ({"length": [2**62] * 3, "id": ["a"] * 3}, "row", OverflowError, "64 bits"),
    ({"length": [1]}, "size", ValueError, "order must be 'row' or 'id' (got 'size')"),
]


@pytest.mark.parametrize(("block", "order", "kind", "message"), BAD)
def test_bad_blocks_are_named(
    block: dict[str, Any], order: str, kind: type[Exception], message: str
) -> None:
    good = pa.table({"length": [1], "id": ["a"]})
    ds = ray.data.from_arrow([good, pa.table(block)])
    with pytest.raises(kind) as caught:
        pack_dataset(ds, GreedyPacker(2**62, 2**62), order=order)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overlong_and_empty_data_sets() -> None:
    ds = cut({"length": [3, 9, 1]}, [1])
    with pytest.raises(ValueError, match=r"block 1: lengths\[0\] exceeds the room .* \(9 > 6\)"):
        pack_dataset(ds, GreedyPacker(8, overlong="error"))
    for empty in (ray.data.from_items([]), cut({"length": np.array([], np.int64)}, [])):
        with pytest.raises(ValueError, match="the data set has no rows"):
            pack_dataset(empty, GreedyPacker(8))
