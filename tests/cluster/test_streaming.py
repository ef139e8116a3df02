"""A data set that is read twice is packed like one array, or an error says what changed."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from ray.data.expressions import col
from strategies import Case, cases

from virnucpro.cluster import row_keys, streaming, stretches
from virnucpro.cluster.streaming import CountedDataset, count_dataset
from virnucpro.data import GreedyPacker, TokenCounts

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("small_store")]

BITS = 2**64 - 1


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start Ray with the smallest object store; return the folder to which it spills objects."""
    spilled = tmp_path_factory.mktemp("spilled")
    spilling = {"type": "filesystem", "params": {"directory_path": str(spilled)}}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=80 * 10**6,
        _system_config={
            "num_workers_soft_limit": 8,
            "object_spilling_config": json.dumps(spilling),
        },
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    before = context.target_max_block_size
    context.target_max_block_size = 4 * 2**20
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patch:
        # Row groups of several files are read by one task, in another order than theirs.
        patch.setenv("RAY_DATA_PARQUET_BIN_PACKING_BYTES", str(16 * 2**20))
        # Ray starts 32 by default, for each read.
        patch.setenv("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
        yield spilled
    context.target_max_block_size = before
    ray.shutdown()


def hash_row(path: str, row: int) -> int:
    """Ray's row_hash, in integers."""
    key = int.from_bytes(hashlib.md5(path.encode()).digest()[:8], "little") + row & BITS
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & BITS
    key = (key ^ key >> 27) * 0x94D049BB133111EB & BITS
    return key ^ key >> 31


def make_table(files: dict[str, list[int]]) -> pa.Table:
    """The rows of files with these lengths, as read_parquet returns them."""
    keys = [(path, row) for path, lengths in files.items() for row in range(len(lengths))]
    return pa.table(
        {
            "length": pa.array([n for lengths in files.values() for n in lengths], pa.int64()),
            "path": pa.array([path for path, _ in keys], pa.string()),
            "row_hash": pa.array([hash_row(*key) for key in keys], pa.uint64()),
        }
    )


def cut(table: pa.Table, cuts: list[int]) -> ray.data.Dataset:
    ends = [0, *sorted(cuts), len(table)]
    pairs = itertools.pairwise(ends)
    return ray.data.from_arrow([table.slice(begin, end - begin) for begin, end in pairs])


def check(table: pa.Table, packer: GreedyPacker, counts: TokenCounts, order: Any) -> None:
    """Compare the rows of a table, of which `order` is the reader's, with those of one array."""
    lengths = table["length"].to_numpy()[order].astype(np.int64)
    layout = packer.lay_out(packer.count(lengths))
    assert counts == packer.count(lengths)
    assert table["batch"].to_numpy()[order].tolist() == layout.assign(lengths).tolist()
    assert table["slot"].to_numpy()[order].tolist() == layout.slots(lengths).tolist()
    assert table["tokens"].to_pylist() == layout.limits.tokens(table["length"].to_numpy()).tolist()


# Each example takes half a second.
@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
@given(cases(), st.data())
def test_any_blocks_and_order_equal_the_whole(case: Case, data: st.DataObject) -> None:
    lengths = case.lengths or [1]
    ends = sorted(data.draw(st.lists(st.integers(0, len(lengths)), max_size=4)))
    pairs = zip([0, *ends], [*ends, len(lengths)], strict=True)
    files = {f"{name}.parquet": lengths[begin:end] for name, (begin, end) in enumerate(pairs)}
    table = make_table(files)
    kept = data.draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table)))
    table = table.filter(pa.array(kept)) if any(kept) else table
    packer = GreedyPacker(**case.parameters)
    cuts = st.lists(st.integers(0, len(table)), max_size=4)
    blocks = cut(table, data.draw(cuts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "STRETCH_ROWS", data.draw(st.integers(1, 9)))
        patch.setattr(streaming, "GROUP_STRETCHES", data.draw(st.integers(1, 4)))
        counted = count_dataset(blocks, packer)
    assign = counted.assigner(packer.lay_out(counted.total))
    ends = [0, *sorted(data.draw(cuts)), len(table)]
    parts = [table.slice(begin, end - begin) for begin, end in itertools.pairwise(ends)]
    shuffled = data.draw(st.permutations(range(len(table))))
    check(assign(table.take(shuffled)), packer, counted.total, np.argsort(shuffled))
    whole = assign(pa.concat_tables(parts))
    check(whole, packer, counted.total, np.arange(len(table)))
    found = pa.concat_tables([assign(part) for part in data.draw(st.permutations(parts))])
    order = {key: row for row, key in enumerate(table["row_hash"].to_pylist())}
    places = np.argsort([order[key] for key in found["row_hash"].to_pylist()])
    check(found, packer, counted.total, places)


def write_files(folder: Path, num_rows: list[int], width: int) -> None:
    """Write files with `lengths`, a `number` that is the row in all of them, and texts."""
    random = np.random.default_rng(1)
    before = 0
    for name, size in enumerate(num_rows):
        table = pa.table(
            {
                "number": np.arange(before, before + size),
                "length": random.integers(0, 1500, size).astype(np.int32),
                "residues": [random.bytes(width) for _ in range(size)],
            }
        )
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=250)
        before += size


def read_files(folder: Path) -> ray.data.Dataset:
    return ray.data.read_parquet(str(folder), include_paths=True, include_row_hash=True)


def list_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_data_larger_than_the_object_store(tmp_path: Path, small_store: Path) -> None:
    """Twice as large, and Ray reads the files in another order than theirs."""
    write_files(tmp_path, [4200, 501, 3299, 7], 20_000)
    packer = GreedyPacker(4096)
    ds = read_files(tmp_path)
    counted = count_dataset(ds, packer)
    assert not list_files(small_store)
    layout = packer.lay_out(counted.total)
    packed = ds.map_batches(counted.assigner(layout), batch_format="pyarrow", batch_size=100)
    names = ["number", "length", "batch", "slot", "tokens"]
    parts = []
    for batch in packed.iter_batches(batch_size=None, batch_format="pyarrow"):
        # Copied, since a slice keeps its block.
        parts.append(pa.table({name: batch[name].to_numpy().copy() for name in names}))
        assert not list_files(small_store)
    found = pa.concat_tables(parts)
    assert len(found) == layout.num_sequences == 8007
    assert (np.diff(found["number"].to_numpy()) != 1).sum() > 3
    check(found, packer, counted.total, np.argsort(found["number"].to_numpy()))


def test_filtered_files_and_a_worker_that_dies(tmp_path: Path) -> None:
    write_files(tmp_path, [900, 1800], 10)
    packer = GreedyPacker(4096)
    ds = read_files(tmp_path).filter(expr=col("number") % 3 != 1)
    counted = count_dataset(ds, packer)
    assign = counted.assigner(packer.lay_out(counted.total))
    mark = tmp_path / "died"

    def assign_or_die(batch: Any) -> Any:
        found = assign(batch)
        if len(batch["number"]) and batch["number"][0] > 1200 and not mark.exists():
            mark.touch()
            os._exit(1)
        return found

    packed = ds.map_batches(assign_or_die, batch_size=300)
    table = pa.concat_tables(ray.get(packed.to_arrow_refs()))
    assert mark.exists()
    assert len(table) == 1800
    check(table, packer, counted.total, np.argsort(table["number"].to_numpy()))


def test_files_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of files lie in many blocks, and in stretches of six groups."""
    monkeypatch.setattr(streaming, "STRETCH_ROWS", 25)
    monkeypatch.setattr(streaming, "GROUP_STRETCHES", 2)
    random = np.random.default_rng(0)
    files = {name: random.integers(0, 20, 300).tolist() for name in ("a", "b/c", "b/d")}
    table, packer = make_table(files), GreedyPacker(100)
    cuts = np.sort(random.choice(900, 11, replace=False)).tolist()
    pairs = itertools.pairwise([0, *cuts, 900])
    parts = [table.slice(begin, end - begin) for begin, end in pairs]
    counted = count_dataset(ray.data.from_arrow(parts[::2] + parts[1::2]), packer)
    assert len(ray.get(counted.index).groups) == 6
    found = counted.assigner(packer.lay_out(counted.total))(table)
    check(found, packer, counted.total, np.arange(900))


def test_row_numbers_and_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers need not follow each other, and blocks may be in any order; there are six groups."""
    monkeypatch.setattr(streaming, "STRETCH_ROWS", 40)
    monkeypatch.setattr(streaming, "GROUP_STRETCHES", 2)
    random = np.random.default_rng(0)
    numbers = np.sort(random.choice(10**6, 900, replace=False))
    table = pa.table({"length": random.integers(0, 20, 900), "number": numbers})
    parts = [table.slice(begin, 300) for begin in (600, 0, 300)]
    ds, packer = ray.data.from_arrow(parts), GreedyPacker(100)
    counted = count_dataset(ds, packer, row_column="number")
    assert len(ray.get(counted.index).groups) == 6
    assign = counted.assigner(packer.lay_out(counted.total))
    found = pa.Table.from_pandas(ds.map_batches(assign, batch_format="pandas").to_pandas())
    check(found, packer, counted.total, np.argsort(found["number"].to_numpy()))
    assert assign(table.slice(0, 0))["batch"].to_pylist() == []


def count(files: dict[str, list[int]]) -> tuple[CountedDataset, Any]:
    counted = count_dataset(cut(make_table(files), []), GreedyPacker(100))
    return counted, counted.assigner(GreedyPacker(100).lay_out(counted.total))


def test_changes_are_errors() -> None:
    before = {"a": [5, 6, 7], "b": [7, 9]}
    _, assign = count(before)
    message = "the data set changed after it was counted: "
    for after, what in (
        ({"a": [5, 8, 7], "b": [7, 9]}, "'a': row 1 has length 8, but 6 was counted"),
        ({"a": [5, 6, 7, 7], "b": [7, 9]}, "'a': row 3 was not counted"),
        ({"a": [5, 6, 7], "b": [7, 9, 9]}, "'b': row 2 was not counted"),
        ({"a": [6, 7], "b": [7, 9]}, "'a': row 0 has length 6, but 5 was counted"),
        ({"a": [7, 9], "b": [5, 6, 7]}, "'a': row 0 has length 7, but 5 was counted"),
        ({"a": [5, 6, 7], "aa": [7]}, "'aa' was not read then"),
        ({"c": [7]}, "'c' was not read then"),
    ):
        with pytest.raises(RuntimeError) as caught:
            assign(make_table(after))
        assert str(caught.value) == message + what
    # Batches and slots come with the rows, so the order of files may change.
    moved = assign(make_table({"b": before["b"], "a": before["a"]}))
    assert moved["slot"].to_pylist() == [2, 0, 4, 3, 1]


def test_change_in_a_task() -> None:
    counted, assign = count({"a": [5, 6, 7]})
    ds = cut(make_table({"a": [5, 6, 8]}), [1])
    with pytest.raises(Exception, match="'a': row 2 has length 8, but 7 was counted"):
        ds.map_batches(assign, batch_format="pyarrow").materialize()
    other = GreedyPacker(100).lay_out(GreedyPacker(100).count([5, 6]))
    with pytest.raises(ValueError, match="the layout is not one of these counts"):
        counted.assigner(other)


def test_stretch_that_ray_recomputed() -> None:
    """Its rows are not those of the counts before others."""
    counted, assign = count({"a": [5, 6, 7]})
    index = ray.get(counted.index)
    base, summed, _ = ray.get(index.groups[0])
    rows = np.zeros(1, np.int64)
    other = stretches.Stretch(rows, rows, np.array([0, 3]), np.array([6, 5, 7], np.uint8))
    index.groups[0] = ray.put((base, summed, [ray.put(other)]))
    layout = assign.arguments[1]
    with pytest.raises(RuntimeError, match="is now read again"):
        streaming.RowAssigner(ray.put(index), layout, "length", None)(make_table({"a": [6, 5, 7]}))


GOOD = make_table({"a": [5, 6]})
BAD: list[tuple[Any, dict[str, Any], str]] = [
    (GOOD.append_column("slot", [[1, 2]]), {}, "column 'slot' already exists"),
    (GOOD.drop_columns(["row_hash"]), {}, "no column 'row_hash' (it has length, path); read Parq"),
    (GOOD, {"row_column": "row"}, "no column 'row' (it has length, path, row_hash)"),
    (GOOD, {"length_column": "size"}, "no column 'size' (it has length, path, row_hash)"),
    ({"row_hash": pa.array([1, 2], pa.uint64())}, {}, "'a': column 'row_hash' is not what Ray's"),
    ({"row_hash": pa.array([1, 2])}, {}, "column 'row_hash' must be uint64 (got int64)"),
    ({"length": pa.array([5, -6])}, {}, "'a': column 'length' is negative in row 1 (got -6)"),
    ({"length": pa.array([5, None])}, {}, "'a': column 'length' is null in row 1"),
    ({"length": pa.array([5.0, 6.0])}, {}, "'a': column 'length' must contain integers"),
    ({"path": pa.array(["a", None])}, {}, "column 'path' is null in row 1"),
    ({"path": pa.array([1, 2])}, {}, "column 'path' must be strings (got int64)"),
    (GOOD.take([0, 0]), {}, "'a': row 0 occurs twice"),
    (GOOD.slice(0, 0), {}, "the data set has no rows"),
    (pa.table({"length": [1, 2], "n": [-1, 2]}), {"row_column": "n"}, "column 'n' is negative"),
    (pa.table({"length": [1, 2], "n": ["0", "1"]}), {"row_column": "n"}, "must contain integers"),
    (pa.table({"length": [1, 2], "n": [3, 3]}), {"row_column": "n"}, "row 3 occurs twice"),
]


@pytest.mark.parametrize(("table", "options", "message"), BAD)
def test_bad_input(table: Any, options: dict[str, Any], message: str) -> None:
    if isinstance(table, dict):
        table = pa.table({name: table.get(name, GOOD[name]) for name in GOOD.column_names})
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        count_dataset(cut(table, []), GreedyPacker(100), **options)
    assert "\n" not in str(caught.value)


def test_bad_blocks_and_packers() -> None:
    table = make_table({"a": [5, 6, 7, 8]})
    packer = GreedyPacker(8, overlong="error")
    with pytest.raises(ValueError, match=r"'a': lengths\[1\] exceeds the room .* \(7 > 6\)"):
        count_dataset(cut(table.slice(1), []), packer)
    packer = GreedyPacker(8)
    twice = ray.data.from_arrow([table, table.slice(1, 2)])
    with pytest.raises(ValueError, match="'a': rows 0 to 3 and rows 1 to 2 occur in two blocks"):
        count_dataset(twice, packer)
    mixed = ray.data.from_arrow([table.take([0, 2]), table.take([3, 1])])
    assert count_dataset(mixed, packer).total == packer.count([5, 6, 7, 8])
    with pytest.raises(ValueError, match="overlong='drop' is not supported here; use pack_dataset"):
        count_dataset(cut(table, []), GreedyPacker(8, overlong="drop"))


@given(st.integers(0, BITS), st.text(max_size=5), st.integers(0, 2**40 - 1))
def test_hashes_are_inverted(key: int, path: str, row: int) -> None:
    hashes = pa.array([hash_row(path, row), hash_row(path, 0)], pa.uint64())
    hashed = pa.table({"path": pa.chunked_array([[path], [path]]), "row_hash": hashes})
    runs, rows = row_keys.find_rows(hashed, None)
    assert (runs, rows.tolist()) == ([(path, 0, 2)], [row, 0])
    mixed = np.array([hash_row("", key)], np.uint64)
    assert row_keys.invert_hashes(mixed) == np.uint64((key + int(row_keys.seed_of(""))) & BITS)


@given(st.sets(st.integers(0, 60), min_size=1), st.integers(1, 5), st.randoms())
def test_pieces_of_rows_with_gaps(numbers: set[int], limit: int, random: Any) -> None:
    rows = list(numbers)
    random.shuffle(rows)
    lengths = [row * 1000 for row in rows]
    table = pa.table({"length": lengths, "row": rows})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stretches, "MAX_PIECES", limit)
        pieces = stretches.list_pieces(table, GreedyPacker(10**6), "length", "row")
    assert len(pieces) <= limit
    assert pieces["error"].null_count == len(pieces)
    found = [stretches.read_piece(pieces, number) for number in range(len(pieces))]
    assert np.concatenate([found for found, _ in found]).tolist() == sorted(numbers)
    expected = [1000 * row for row in sorted(numbers)]
    assert np.concatenate([lengths for _, lengths in found]).tolist() == expected
    steps = sorted(np.diff(sorted(numbers)), reverse=True)
    firsts, lasts = pieces["first"].to_numpy()[1:], pieces["last"].to_numpy()[:-1]
    between = (firsts - lasts).tolist()
    assert sorted(between, reverse=True) == [step for step in steps if step > 1][: limit - 1]
