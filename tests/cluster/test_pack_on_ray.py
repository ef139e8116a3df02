"""The folder that Ray writes for files is the plan that pack_files makes of them."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inline import without_ray
from ray_plans import same_plans, write_fasta, write_tables

from virnucpro.cluster import reading
from virnucpro.cluster.blocks import Job, Position, choose_table, count_table
from virnucpro.cluster.pack import divide_dropped
from virnucpro.cluster.plan_parts import PlanFolder, write_part
from virnucpro.data import (
    GreedyPacker,
    PackingPlan,
    ReadOptions,
    pack_files,
    pack_files_on_ray,
    read_dataset,
)
from virnucpro.files.fasta import read_fasta
from virnucpro.files.inputs import Input
from virnucpro.files.plan_reader import PlanFile, read_summary
from virnucpro.files.plan_schema import make_schema
from virnucpro.files.plan_writer import ROW_GROUP_SIZE
from virnucpro.files.sequences import InputFile, read_files
from virnucpro.files.verify import verify_plan


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_tasks_write_the_plan(tmp_path: Path, data: st.DataObject) -> None:
    """In one process: any files, options, blocks and tasks."""
    folder = tmp_path / hashlib.sha256(repr(data).encode()).hexdigest()[:8]
    folder.mkdir(exist_ok=True)
    is_fasta = data.draw(st.booleans())
    names = "cab"[: data.draw(st.integers(1, 3))]
    paths = (
        write_fasta(folder, names)
        if is_fasta
        else write_tables(folder, {f"{name}.parquet": 150 for name in names})
    )
    options = ReadOptions("name", "size", uppercase=data.draw(st.booleans()))
    overlong = data.draw(st.sampled_from(["truncate", "drop", "split"]))
    packer = GreedyPacker(
        data.draw(st.sampled_from([40, 200, 2048])),
        data.draw(st.sampled_from([30, 1022])),
        overlong=overlong,
        overlap=data.draw(st.sampled_from([0, 7])) if overlong == "split" else 0,
        empty=data.draw(st.sampled_from(["pack", "drop"])),
        max_sequences_per_batch=data.draw(st.sampled_from([None, 3])),
    )
    sequences = is_fasta and data.draw(st.booleans())
    how: dict[str, Any] = {"options": options, "sequences": sequences}
    pack_files(paths, folder / "plan.parquet", packer, **how)
    target = folder / "plan"
    with (
        without_ray(data.draw(st.sampled_from([1500, 5000, 2**27]))),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(reading, "BLOCK_ROWS", data.draw(st.sampled_from([20, 100, 2**20])))
        patch.setattr(reading, "MIN_BYTES", data.draw(st.sampled_from([1, 2**22])))
        patch.setattr("virnucpro.cluster.pack.DROPPED_ROWS", data.draw(st.sampled_from([1, 2**20])))
        pack_files_on_ray(paths, target, packer, **how)
    same_plans(target, folder / "plan.parquet")
    for path in target.iterdir():
        path.unlink()
    target.rmdir()


@pytest.mark.process
@pytest.mark.usefixtures("local_ray")
def test_with_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative names, several tasks, and the same bytes again."""
    paths = write_tables(tmp_path, {f"{name}.parquet": 270 for name in "cab"})
    monkeypatch.chdir(tmp_path)
    names = ["./" + Path(path).name for path in paths]
    packer, options = GreedyPacker(2048, max_sequences_per_batch=9), ReadOptions("name", "size")
    expected = pack_files(names, "local.parquet", packer, options=options)
    monkeypatch.setattr("virnucpro.cluster.ranges.TASK_BYTES", 5000)
    assert pack_files_on_ray(names, "plan", packer, options=options) == expected
    assert len(same_plans(tmp_path / "plan", tmp_path / "local.parquet")) > 3
    plan = PackingPlan.load("plan")
    assert plan.summary == expected
    assert verify_plan("plan", read_files(names, options)) == []
    # Other tasks read, with the same result.
    monkeypatch.setattr(reading, "MIN_BYTES", 1)
    pack_files_on_ray(names, "again", packer, options=options)
    for path in Path("plan").iterdir():
        assert path.read_bytes() == Path("again", path.name).read_bytes()
    assert {path.name for path in Path("plan").iterdir()} == {
        path.name for path in Path("again").iterdir()
    }


@pytest.mark.process
@pytest.mark.usefixtures("local_ray")
def test_fasta_with_ray(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = write_fasta(tmp_path, "ba")
    packer = GreedyPacker(60, 50, overlong="split", overlap=5)
    how: dict[str, Any] = {"options": ReadOptions(drop_gaps=True), "sequences": True}
    expected = pack_files(paths, tmp_path / "plan.parquet", packer, **how)
    local = [record.message for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    assert pack_files_on_ray(paths, tmp_path / "plan", packer, **how) == expected
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == local
    same_plans(tmp_path / "plan", tmp_path / "plan.parquet")
    with pytest.raises(ValueError, match=r"^duplicate IDs: \d+ \(for example s"):
        pack_files_on_ray(paths, tmp_path / "new", packer, duplicates="error")
    assert not (tmp_path / "new").exists()


def test_empty_tables_and_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables without rows and row groups without rows have their place among the files."""
    lengths = {"a": [], "b": [3, 0], "c": [], "d": [5000, 2]}
    for name, some in lengths.items():
        ids = pa.array(["x"] * len(some), pa.large_string())
        columns = pa.table({"id": ids, "length": pa.array(some, pa.int64())})
        with pq.ParquetWriter(tmp_path / f"{name}.parquet", columns.schema) as writer:
            for row in range(len(columns)):
                writer.write_table(columns.slice(row, 1))
            writer.write_table(columns.slice(0, 0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "BLOCK_ROWS", 1)
    paths = [f"./{name}.parquet" for name in lengths]
    for number, least in enumerate((1, 2**22)):
        monkeypatch.setattr(reading, "MIN_BYTES", least)
        monkeypatch.setattr(reading, "MAX_BYTES", least)
        with without_ray(2**27):
            totals = pack_files_on_ray(paths, f"plan{number}", GreedyPacker(4096)).totals
        assert (totals.empty, totals.duplicate_ids, totals.truncated) == (1, 3, 1)
        assert totals.residues == totals.residues_kept + totals.residues_truncated == 5005
        rows = PlanFile(f"plan{number}").read()
        assert rows["row"].to_pylist() == [2, 0, 3, 1]
        assert rows["file"].to_pylist() == [paths[3], paths[1], paths[3], paths[1]]
        assert verify_plan(f"plan{number}", None) == []
        summary = read_summary(f"plan{number}")
        assert [(file.name, file.sequences) for file in summary.inputs] == [
            (path, len(some)) for path, some in zip(paths, lengths.values(), strict=True)
        ]
        for file in summary.inputs:
            assert file.sha256 == hashlib.sha256(Path(file.name).read_bytes()).hexdigest()
        with without_ray(2**27), pytest.raises(ValueError, match=r"c\.parquet: contains no seq"):
            pack_files_on_ray(["a.parquet", "c.parquet"], "none", GreedyPacker(4096))


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


def long_sequence(folder: Path, names: list[str]) -> None:
    pq.write_table(pa.table({"id": ["a", "b"], "length": [1, 99]}), folder / names[1])


@pytest.mark.process
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (null_id, "b.parquet: column 'id' is null in row 5"),
        (float_length, "b.parquet: column 'length' must contain integers (got double)"),
        (damaged_page, "b.parquet: damaged: "),
        (long_sequence, "b.parquet: sequence 'b' has 99 residues, more than 62 (affected seq"),
    ],
)
@pytest.mark.parametrize("least", [1, 2**22])
def test_bad_tables_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path, list[str]], None],
    message: str,
    least: int,
) -> None:
    names = ["a.parquet", "b.parquet"]
    for name in names:
        pq.write_table(pa.table({"id": ["a", "b"], "length": [1, 2]}), tmp_path / name)
    spoil(tmp_path, names)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "MIN_BYTES", least)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        pack_files_on_ray(names, "plan", GreedyPacker(64, overlong="error"))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_table_that_changed(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    table = pa.table({"id": ["a", "b"], "length": [1, 2]})
    pq.write_table(table, path)
    (source,) = reading.divide_table(Input("a.parquet", path, 1), ReadOptions())
    other = pa.table({"id": ["c", "d"], "length": [3, 4]})
    for changed in (table[:1], pa.concat_tables([table, table]), table[:0], other):
        pq.write_table(changed, path)
        assert source.groups is not None
        with pytest.raises(ValueError, match=r"a\.parquet: changed while it was read"):
            list(reading.GroupReader(source, ReadOptions(), source.groups))
    with pytest.raises(ValueError, match=r"a\.parquet: changed while it was read"):
        reading.hash_table(source.inputs[0], source.stamp, str(tmp_path))


@pytest.mark.process
@pytest.mark.usefixtures("local_ray")
def test_files_as_a_data_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = write_fasta(tmp_path, "ba")
    options = ReadOptions(drop_gaps=True)
    expected = [record for path in paths for record in read_fasta(path, options)]
    found = read_dataset(paths, options=options, sequences=True).take_all()
    assert [(row["id"], row["sequence"]) for row in found] == expected
    assert [row["length"] for row in found] == [len(sequence) for _, sequence in expected]
    assert "gaps removed" in caplog.text
    (tmp_path / "empty.fa").touch()
    with pytest.raises(ValueError, match=r"empty\.fa: not FASTA"):
        read_dataset(tmp_path)


def test_residues_that_changed() -> None:
    """With the same lengths and IDs, they are not those of the hash in the summary."""
    job = Job(GreedyPacker(100, num_threads=1), "length", "id", makes_plan=True)
    block = {"id": pa.array(["a"], pa.large_string()), "length": [2]}
    old, new = (
        pa.table({**block, "sequence": pa.array([text], pa.large_string())})
        for text in ("MK", "MW")
    )
    position = Position(0, 0, 0, count_table(old, job))
    assert choose_table(old, position, job, pa.large_string(), False).packed.num_rows == 1
    with pytest.raises(RuntimeError, match="block 0 changed after it was counted"):
        choose_table(new, position, job, pa.large_string(), False)


@given(st.lists(st.integers(0, 7), max_size=6), st.integers(1, 9))
def test_dropped_rows_are_divided(num_dropped: list[int], rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("virnucpro.cluster.pack.DROPPED_ROWS", rows)
        parts = list(divide_dropped(num_dropped))
    numbers = np.split(np.arange(sum(num_dropped)), np.cumsum(num_dropped)[:-1])
    found = [
        np.concatenate([numbers[group] for group in part.groups])[part.first :][: part.num_rows]
        for part in parts
    ]
    assert [len(some) for some in found[:-1]] == [rows] * (len(found) - 1)
    assert [number for some in found for number in some] == list(range(sum(num_dropped)))


def test_files_are_divided_among_tasks() -> None:
    """Small files are read together, and no task reads much more than the others."""
    sizes = [10, 30, 20, 5, 2**30, 10, None, 7]
    inputs = [Input(f"{n}.fa", f"{n}.fa", size) for n, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "MIN_BYTES", 40)
        patch.setattr(reading, "MAX_BYTES", 40)
        sources = list(reading.divide_files(inputs, ReadOptions(), 2))
    assert [[int(file.name[0]) for file in source.inputs] for source in sources] == [
        [0, 1],
        [2, 3],
        [4],
        [5],
        [6],
        [7],
    ]


def test_row_groups_and_checksums(tmp_path: Path) -> None:
    """Row groups have whole batches, and pages have checksums; a part may be written again."""
    n = 2**18 + 1
    random = np.random.default_rng(0)
    numbers = random.permutation(n)
    batches = np.sort(random.integers(0, 20_000, n))
    block = pa.table(
        {
            "batch": batches,
            "slot": np.zeros(n, np.int32),
            "row": numbers,
            "id": pa.array(["a"] * n, pa.large_string()),
            "length": numbers,
            "tokens": numbers + 2,
        }
    )
    schema = make_schema(False, False, True, False)
    inputs = [InputFile("a", 1, "", 5), InputFile("b", 1, "", n - 5)]
    (tmp_path / "plan").mkdir()
    plan = PlanFolder(str(tmp_path / "plan"), "plan", schema, inputs, GreedyPacker(12).limits)
    for _ in range(2):
        write_part(block, 0, plan)
    path = tmp_path / "plan/part-00000.parquet"
    assert list(tmp_path.rglob("*.*")) == [path]
    found = pq.read_table(path)
    assert found.schema.equals(schema)
    assert found["row"].to_pylist() == numbers.tolist()
    assert [name == "b" for name in found["file"].to_pylist()] == (numbers >= 5).tolist()
    assert found["truncated"].to_pylist() == (numbers > 10).tolist()
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert max(sizes) <= ROW_GROUP_SIZE
    assert len(sizes) == 3
    for edge in itertools.accumulate(sizes[:-1]):
        assert batches[edge - 1] < batches[edge]
    column = metadata.row_group(0).column(schema.names.index("row"))
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="checksum"):
        pq.read_table(path, page_checksum_verification=True)
