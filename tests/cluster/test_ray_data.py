"""A data set packed in blocks by Ray is what it is packed as a whole."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
from command import run, run_program
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Case, cases

from virnucpro.cluster.ray_data import assign_block, pack_tables
from virnucpro.data import GreedyPacker, Layout, pack_dataset

pytestmark = pytest.mark.process

pytestmark = pytest.mark.usefixtures("local_ray")


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
        "tokens": [min(length, limit) + layout.special_tokens for length in lengths],
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


ids = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=40, max_size=40),
    st.lists(st.integers(0, 5), min_size=40, max_size=40),
    st.lists(st.text(max_size=4), min_size=40, max_size=40),
    st.lists(
        st.sampled_from(["a", "b", "é", "\uffff", "\U00010000", ""]), min_size=40, max_size=40
    ),
)


@settings(max_examples=8)
@given(
    st.lists(st.integers(0, 6), min_size=40, max_size=40),
    ids,
    st.lists(st.integers(0, 40), max_size=4),
)
def test_ties_by_id(lengths: list[int], names: list[Any], cuts: list[int]) -> None:
    packer = GreedyPacker(14)
    columns = {"name": names, "length": lengths, "number": list(range(40))}
    ds, layout = pack_dataset(cut(columns, cuts), packer, order="id", id_column="name")
    found = columns_of(ds)
    plan = packer.pack_lengths(lengths, names)
    assert layout == Layout(plan.core, plan.limits)
    assert list(found) == ["name", "length", "number", "batch", "slot", "tokens"]
    assert found["name"] == sorted(names)
    order = np.lexsort((found["slot"], found["batch"]))
    assert np.array(found["number"])[order].tolist() == plan.indices.tolist()
    assert np.bincount(found["batch"], found["tokens"]).tolist() == plan.batch_tokens.tolist()
    assert np.array(found["batch"])[order].tolist() == sorted(found["batch"])


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


def test_column_of_our_own() -> None:
    ds = cut({"length": [1, 2], "id": ["a", "b"], "virnucpro.row": [8, 9]}, [])
    packed, _ = pack_dataset(ds, GreedyPacker(8))
    assert columns_of(packed)["virnucpro.row"] == [8, 9]
    with pytest.raises(ValueError, match=r"column 'virnucpro\.row' already exists"):
        pack_dataset(ds, GreedyPacker(8), order="id")


def test_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    pack_dataset(cut({"length": [2000] * 10}, [2, 4]), GreedyPacker(4096))
    (message,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert (
        message == "10 of 10 sequences exceed max_length (1022), truncating: 9,780 residues removed"
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
        def count_silently(self, lengths: Any) -> Any:
            # Only one worker makes each folder.
            number = next(n for n in itertools.count() if is_made(tmp_path / str(n)))
            if number == call:
                if is_killed:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError("no disk")
            return super().count_silently(lengths)

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
    with pytest.raises(ValueError, match=r"block 1: lengths\[0\] exceeds max_length \(9 > 6\)"):
        pack_dataset(ds, GreedyPacker(8, overlong="error"))
    for empty in (ray.data.from_items([]), cut({"length": np.array([], np.int64)}, [])):
        with pytest.raises(ValueError, match="the data set has no rows"):
            pack_dataset(empty, GreedyPacker(8))


def test_block_that_changed() -> None:
    packer = GreedyPacker(100)
    counts = packer.count([5, 6])
    packing = (packer, packer.lay_out(counts), "length", "row")
    with pytest.raises(RuntimeError, match="block 3 changed after"):
        assign_block(pa.table({"length": [5, 7]}), 3, packing, None, counts)


def test_command(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.parquet" for name in "ba"]
    for path in paths:
        names = pa.array([f"s{number}" for number in random.integers(0, 900, 1000)])
        columns = {"name": names.dictionary_encode(), "size": random.integers(0, 1500, 1000)}
        pq.write_table(pa.table({**columns, "more": names}), path, row_group_size=300)
    of_columns = ("--id-column", "name", "--length-column", "size")
    local = run("pack", *paths, "-o", tmp_path / "plan.parquet", *of_columns)
    assert local.returncode == 0
    on_ray = (*of_columns, "--engine", "ray")
    result = run_program("pack", *paths, "-o", tmp_path / "plan", *on_ray)
    assert (result.returncode, result.stdout) == (0, "")
    for name in ("Sequences", "Residues truncated", "Batches", "Lower bound"):
        (line,) = (line for line in local.stderr.splitlines() if line.strip().startswith(name))
        assert line.split() in [line.split() for line in result.stderr.splitlines()]
    files = sorted((tmp_path / "plan").iterdir())
    plan = pa.concat_tables(pq.read_table(file) for file in files).to_pydict()
    whole = pq.read_table(tmp_path / "plan.parquet").to_pydict()
    for name in ("batch", "id", "length", "tokens", "truncated"):
        assert plan[name] == whole[name]
    assert list(zip(plan["batch"], plan["slot"], strict=True)) == sorted(
        zip(plan["batch"], plan["slot"], strict=True)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.parquet",
        "b.parquet",
        "plan",
        "plan.parquet",
    ]


def spoilt(path: Path) -> None:
    path.write_bytes(b"PAR1PAR1PAR1")


def table(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


BAD_COMMANDS: list[tuple[str, Callable[[Path], Any], tuple[str, ...], int, str]] = [
    ("none.parquet", lambda _: None, (), 1, "none.parquet: no such file"),
    ("a.fa", lambda path: path.write_text(">a\nM\n"), (), 1, "a.fa: no Parquet tables"),
    ("folder", lambda path: path.mkdir(), (), 1, "folder: no Parquet tables"),
    ("a.parquet", spoilt, (), 1, "a.parquet: "),
    ("a.parquet", table(id=["a"], size=[1]), (), 1, "no column 'length' (it has id, size)"),
    ("a.parquet", table(id=["a"], length=["1"]), (), 1, "'length' must contain integers"),
    ("a.parquet", table(id=["a"], length=[2000]), ("--overlong", "error"), 1, "exceeds max_length"),
    ("a.parquet", table(id=["a"], length=[1]), ("--overlong", "drop"), 2, "--overlong drop"),
    ("a.parquet", table(id=["a"], length=[1]), ("--threads", "2"), 2, "--threads"),
]


@pytest.mark.parametrize(
    ("name", "make", "options", "status", "message"),
    BAD_COMMANDS,
    ids=lambda value: str(value)[:30],
)
def test_bad_commands(
    tmp_path: Path,
    name: str,
    make: Callable[[Path], Any],
    options: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    make(tmp_path / name)
    on_ray = ("--engine", "ray", *options)
    result = run_program("pack", tmp_path / name, "-o", tmp_path / "plan", *on_ray)
    assert (result.returncode, result.stdout) == (status, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert status == 2 or len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != name] == []


def test_folders(tmp_path: Path) -> None:
    """Every Parquet file in them counts that is not hidden, whatever its name is."""
    names = ("a.parquet", "C.PARQUET", "what.parquet", "k=3/b %2é*[0]#.parquet", "_u.parquet")
    for number, name in enumerate(names):
        path = tmp_path / "tables" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": [f"s{number}"], "length": [number]}), path)
    (tmp_path / "tables" / "README").touch()
    layout = pack_tables([str(tmp_path / "tables")], tmp_path / "plan", GreedyPacker(4096))
    assert layout.num_sequences == 4
    assert pq.read_table(tmp_path / "plan")["length"].to_pylist() == [3, 2, 1, 0]

    one, plan = str(tmp_path / "tables/a.parquet"), tmp_path / "new"
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "b?.parquet").touch()
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "tables/z.parquet")
    for paths, output, message in (
        ([one, one], plan, "given twice"),
        ([one, str(tmp_path / "tables")], plan, "given twice"),
        ([str(tmp_path / "tables")], tmp_path / "tables/plan", "is inside an input folder"),
        ([str(tmp_path / "tables")], plan, r"z\.parquet: no column 'length'"),
        ([str(tmp_path / "b?.parquet")], plan, r"names with '\?'"),
        ([one], tmp_path / "plan", "already exists"),
        ([one], tmp_path / "link", "already exists"),
        ([one], tmp_path / "no/plan", "its directory does not exist"),
    ):
        with pytest.raises((OSError, ValueError), match=message):
            pack_tables(paths, output, GreedyPacker(4096))
