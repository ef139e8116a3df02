"""The folder that Ray writes for tables is the plan that pack_files makes of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from command import run, run_program

from virnucpro.cluster import tables
from virnucpro.cluster.ray_data import pack_tables
from virnucpro.data import GreedyPacker, PackingPlan, ReadOptions, pack_files
from virnucpro.files.plan_reader import PlanFile, read_summary
from virnucpro.files.plan_schema import make_schema
from virnucpro.files.plan_writer import ROW_GROUP_SIZE
from virnucpro.files.sequences import read_files
from virnucpro.files.verify import verify_plan

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("local_ray")]


def write_tables(folder: Path, sizes: dict[str, int]) -> tuple[list[str], list[str], list[int]]:
    """Write a table of each size, with IDs that repeat; return their paths, all IDs and lengths."""
    random = np.random.default_rng(0)
    ids: list[str] = []
    lengths: list[int] = []
    for name, size in sizes.items():
        some_ids = [f"s{number}" for number in random.integers(0, 600, size)]
        some_lengths = random.integers(0, 40, size) ** 2
        columns = {"size": some_lengths, "name": pa.array(some_ids, pa.string())}
        pq.write_table(pa.table(columns), folder / name, row_group_size=70)
        ids += some_ids
        lengths += some_lengths.tolist()
    return [str(folder / name) for name in sizes], ids, lengths


@pytest.mark.parametrize("block_size", [1, 200, 2**20])
def test_folder_is_the_plan_of_pack_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_size: int
) -> None:
    """The order of the tables is the one given, and blocks end within tables or span several."""
    paths, ids, lengths = write_tables(tmp_path, {f"{name}.parquet": 270 for name in "cab"})
    packer = GreedyPacker(2048, max_sequences_per_batch=9)
    columns: dict[str, Any] = {"id_column": "name", "length_column": "size"}
    local, folder = tmp_path / "local.parquet", tmp_path / "plan"
    expected = pack_files(paths, local, packer, options=ReadOptions(**columns))
    monkeypatch.setattr(tables, "BLOCK_SIZE", block_size)
    assert pack_tables(paths, folder, packer, **columns) == expected
    assert read_summary(folder) == expected
    plan = PackingPlan.load(folder)
    assert plan == packer.pack_lengths(lengths, ids)
    assert plan.summary == expected
    rows, local_rows = PlanFile(folder).read(), PlanFile(local).read()
    assert rows.schema.equals(local_rows.schema)
    assert rows.equals(local_rows)
    assert verify_plan(folder, read_files(paths, ReadOptions(**columns))) == []
    names = [f"part-{number:05}.parquet" for number in range(len(list(folder.iterdir())) - 1)]
    assert sorted(path.name for path in folder.iterdir()) == ["_common_metadata", *names]
    assert (len(names) > 1) == (block_size < 2**20)


def test_empty_tables_and_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables without rows and row groups without rows have their place among the files."""
    lengths = {"a": [], "b": [3, 0], "c": [], "d": [5000, 2]}
    monkeypatch.setattr(tables, "BLOCK_SIZE", 1)
    for name, some in lengths.items():
        ids = pa.array(["x"] * len(some), pa.large_string())
        columns = pa.table({"id": ids, "length": pa.array(some, pa.int64())})
        with pq.ParquetWriter(tmp_path / f"{name}.parquet", columns.schema) as writer:
            for row in range(len(columns)):
                writer.write_table(columns.slice(row, 1))
            writer.write_table(columns.slice(0, 0))
    monkeypatch.chdir(tmp_path)
    paths = [f"./{name}.parquet" for name in lengths]
    totals = pack_tables(paths, "plan", GreedyPacker(4096)).totals
    assert (totals.empty, totals.duplicate_ids, totals.truncated) == (1, 3, 1)
    assert totals.residues == totals.residues_kept + totals.residues_truncated == 5005
    rows = PlanFile("plan").read()
    assert rows["row"].to_pylist() == [2, 0, 3, 1]
    assert rows["file"].to_pylist() == [paths[3], paths[1], paths[3], paths[1]]
    assert verify_plan("plan", None) == []
    summary = read_summary("plan")
    assert [(file.name, file.sequences) for file in summary.inputs] == [
        (path, len(some)) for path, some in zip(paths, lengths.values(), strict=True)
    ]
    with pytest.raises(ValueError, match="the data set has no rows"):
        pack_tables(["a.parquet", "c.parquet"], "none", GreedyPacker(4096))


def null_id(folder: Path, names: list[str]) -> None:
    ids = pa.array(["a"] * 5 + [None])
    pq.write_table(pa.table({"id": ids, "length": [1] * 6}), folder / names[1], row_group_size=2)


def float_length(folder: Path, names: list[str]) -> None:
    pq.write_table(pa.table({"id": ["a"], "length": [1.5]}), folder / names[1])


def damaged_page(folder: Path, names: list[str]) -> None:
    place = pq.read_metadata(folder / names[1]).row_group(0).column(0).data_page_offset
    data = bytearray((folder / names[1]).read_bytes())
    data[place : place + 8] = b"\xff" * 8
    (folder / names[1]).write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (null_id, "b.parquet: column 'id' is null in row 5"),
        (float_length, "b.parquet: column 'length' must contain integers (got double)"),
        (damaged_page, "b.parquet: damaged: "),
    ],
)
def test_bad_tables_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path, list[str]], None],
    message: str,
) -> None:
    names = ["a.parquet", "b.parquet"]
    for name in names:
        pq.write_table(pa.table({"id": ["a", "b"], "length": [1, 2]}), tmp_path / name)
    spoil(tmp_path, names)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        pack_tables(names, "plan", GreedyPacker(64))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_table_that_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "length": [1, 2]}), path)
    group = tables.RowGroup("a.parquet", path, 0, 0, 3)
    with pytest.raises(ValueError, match=r"a\.parquet: changed while it was read"):
        tables.read_block([group], "id", "length")


def test_blocks_without_rows(tmp_path: Path) -> None:
    """They give no file, and files have consecutive numbers; rows that are lost are an error."""
    block = pa.table(
        {
            "batch": pa.array([0], pa.int32()),
            "virnucpro.row": [0],
            "id": pa.array(["a"], pa.large_string()),
            "length": [1],
            "tokens": [3],
        }
    )
    schema = make_schema(False, False, True, False)
    blocks = [ray.put(table) for table in (block[:0], block, block[:0], pa.table({}), block)]
    whole = [tables.Table("a", tmp_path, [2, 0])]
    (tmp_path / "plan").mkdir()
    tables.write_parts(tmp_path / "plan", blocks, schema, whole, 10)
    names = sorted(path.name for path in (tmp_path / "plan").iterdir())
    assert names == ["part-00000.parquet", "part-00001.parquet"]
    with pytest.raises(RuntimeError, match="1 of 2 rows are left after sorting"):
        tables.write_parts(tmp_path / "plan", blocks[:4], schema, whole, 10)


def test_row_groups_and_checksums(tmp_path: Path) -> None:
    """A part is written under another name first, and once more if its task is run again."""
    n = 2**18 + 1
    numbers = np.random.default_rng(0).permutation(n)
    block = pa.table(
        {
            "batch": np.zeros(n, np.int32),
            "virnucpro.row": numbers,
            "id": pa.array(["a"] * n, pa.large_string()),
            "length": numbers,
            "tokens": numbers + 2,
        }
    )
    schema = make_schema(False, False, True, False)
    description = tables.Description(schema, pa.array(["a", "b"]), np.array([5, n]), 10)
    (tmp_path / "plan").mkdir()
    path = tmp_path / "plan/part-00000.parquet"
    for _ in range(2):
        tables.write_part(block, 0, path, description)
    assert list(tmp_path.rglob("*.*")) == [path]
    found = pq.read_table(path)
    assert found.schema.equals(schema)
    assert found["row"].to_pylist() == numbers.tolist()
    assert [name == "b" for name in found["file"].to_pylist()] == (numbers >= 5).tolist()
    assert found["truncated"].to_pylist() == (numbers > 10).tolist()
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert max(sizes) <= ROW_GROUP_SIZE
    column = metadata.row_group(0).column(schema.names.index("row"))
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="checksum"):
        pq.read_table(path, page_checksum_verification=True)


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
    plan, whole = PlanFile(tmp_path / "plan"), PlanFile(tmp_path / "plan.parquet")
    assert plan.summary == whole.summary
    assert plan.read().equals(whole.read())
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
    ids=lambda value: value if isinstance(value, str) else None,
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
    # Ray cannot be started twice in a process; the other errors are raised before.
    program = run_program if "exceeds" in message else run
    result = program("pack", tmp_path / name, "-o", tmp_path / "plan", *on_ray)
    assert (result.returncode, result.stdout) == (status, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert status == 2 or len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != name] == []


def test_folders(tmp_path: Path) -> None:
    """Every Parquet file in them counts that is not hidden, whatever its name is."""
    names = ("a.parquet", "C.PARQUET", "what?.parquet", "k=3/b %2é*[0]#.parquet", "_u.parquet")
    for number, name in enumerate(names):
        path = tmp_path / "tables" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": [f"s{number}"], "length": [number]}), path)
    (tmp_path / "tables" / "README").touch()
    pack_tables([str(tmp_path / "tables")], tmp_path / "plan", GreedyPacker(4096))
    rows = PlanFile(tmp_path / "plan").read()
    assert rows["length"].to_pylist() == [3, 2, 1, 0]
    assert rows["file"].to_pylist() == [
        str(tmp_path / "tables" / name) for name in (names[3], names[2], names[1], names[0])
    ]

    one, plan = str(tmp_path / "tables/a.parquet"), tmp_path / "new"
    (tmp_path / "link").symlink_to("nowhere")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "tables/z.parquet")
    for paths, output, message in (
        ([one, one], plan, "given twice"),
        ([one, str(tmp_path / "tables")], plan, "given twice"),
        ([str(tmp_path / "tables")], tmp_path / "tables/plan", "is inside an input folder"),
        ([str(tmp_path / "tables")], plan, r"z\.parquet: no column 'length'"),
        ([one], tmp_path / "plan", "already exists"),
        ([one], tmp_path / "link", "already exists"),
        ([one], tmp_path / "no/plan", "its directory does not exist"),
    ):
        with pytest.raises((OSError, ValueError), match=message):
            pack_tables(paths, output, GreedyPacker(4096))
