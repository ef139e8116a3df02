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
from command import run, run_program
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inline import without_ray

from virnucpro.cluster import reading
from virnucpro.cluster.plan_parts import PlanFolder, write_part
from virnucpro.data import GreedyPacker, PackingPlan, ReadOptions, pack_files, pack_files_on_ray
from virnucpro.files.inputs import Input
from virnucpro.files.plan_reader import PlanFile, read_summary
from virnucpro.files.plan_schema import make_schema
from virnucpro.files.plan_writer import ROW_GROUP_SIZE
from virnucpro.files.sequences import InputFile, read_files
from virnucpro.files.verify import verify_plan


def write_tables(folder: Path, sizes: dict[str, int]) -> list[str]:
    """Write a table of each size, with IDs that repeat; return their paths."""
    random = np.random.default_rng(0)
    for name, size in sizes.items():
        some_ids = [f"s{number}" for number in random.integers(0, 600, size)]
        columns = {
            "size": random.integers(0, 40, size) ** 2,
            "name": pa.array(some_ids, pa.string()),
        }
        pq.write_table(pa.table(columns), folder / name, row_group_size=70)
    return [str(folder / name) for name in sizes]


def write_fasta(folder: Path, names: str) -> list[str]:
    """Write FASTA files with stops, lower case and gaps, and long and empty sequences."""
    random = np.random.default_rng(1)
    for name in names:
        records = []
        for _ in range(60):
            letters = random.choice(list("MKTAYacd-"), random.integers(0, 90))
            records.append(f">s{random.integers(0, 150)} x\n{''.join(letters)}*\n")
        (folder / f"{name}.fa").write_text("".join(records))
    return [str(folder / f"{name}.fa") for name in names]


def same_plans(folder: Path, file: Path) -> list[Path]:
    """Check that a folder is the same plan as a file; return its parts."""
    assert read_summary(folder) == read_summary(file)
    of_folder, of_file = PlanFile(folder), PlanFile(file)
    assert of_folder.schema.equals(of_file.schema, check_metadata=True)
    parts = sorted(path for path in folder.iterdir() if path.name != "_common_metadata")
    assert [part.name for part in parts] == [f"part-{n:05}.parquet" for n in range(len(parts))]
    tables = [pq.read_table(part) for part in parts]
    assert pa.concat_tables(tables).equals(pq.read_table(file))
    seen: set[int] = set()
    for part in parts:
        metadata = pq.ParquetFile(part)
        for group in range(metadata.num_row_groups):
            batches = set(metadata.read_row_group(group, ["batch"])["batch"].to_pylist()) - {None}
            assert not batches & seen
            seen |= batches
    return parts


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
    for changed in (table[:1], pa.concat_tables([table, table]), table[:0]):
        pq.write_table(changed, path)
        assert source.groups is not None
        with pytest.raises(ValueError, match=r"a\.parquet: changed while it was read"):
            list(reading.GroupReader(source, ReadOptions(), source.groups))


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
    plan = PlanFolder(str(tmp_path / "plan"), schema, inputs, GreedyPacker(12).limits)
    for _ in range(2):
        write_part(block, (plan, 0))
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


@pytest.mark.process
def test_command(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "tables").mkdir()
    for name in ("b.parquet", "c/a.parquet"):
        names = pa.array([f"s{number}" for number in random.integers(0, 900, 1000)])
        columns = {"name": names.dictionary_encode(), "size": random.integers(0, 1500, 1000)}
        path = tmp_path / "tables" / name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({**columns, "more": names}), path, row_group_size=300)
    options = ("--id-column", "name", "--length-column", "size", "--overlong", "drop")
    inputs = (tmp_path / "tables", *options)
    local = run("pack", *inputs, "-o", tmp_path / "plan.parquet")
    assert local.returncode == 0
    result = run_program("pack", *inputs, "-o", tmp_path / "plan", "--engine", "ray")
    assert (result.returncode, result.stdout) == (0, "")
    for name in ("Sequences", "Dropped", "Batches", "Efficiency"):
        (line,) = (
            line for line in local.stderr.splitlines() if line.strip().startswith(name + " ")
        )
        assert line.split() in [line.split() for line in result.stderr.splitlines()]
    same_plans(tmp_path / "plan", tmp_path / "plan.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan", "plan.parquet", "tables"]


def spoilt(path: Path) -> None:
    path.write_bytes(b"PAR1PAR1PAR1")


def table(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


BAD_COMMANDS: list[tuple[str, Callable[[Path], Any], tuple[str, ...], int, str]] = [
    ("none.parquet", lambda _: None, (), 1, "none.parquet: no such file"),
    ("folder", lambda path: path.mkdir(), (), 1, "folder: a folder without FASTA files or tables"),
    ("a.parquet", table(id=["a"], length=[1]), ("--sequences",), 1, "has no sequences to store"),
    ("a.parquet", table(id=["a"], length=[1]), ("--threads", "2"), 2, "--threads"),
    ("a.parquet", table(id=["a"], length=[2000]), ("--overlong", "error"), 1, "has 2,000 residues"),
    ("a.parquet", spoilt, (), 1, "a.parquet: "),
]


@pytest.mark.process
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
    program = run_program if "residues" in message or message == "a.parquet: " else run
    result = program("pack", tmp_path / name, "-o", tmp_path / "plan", *on_ray)
    assert (result.returncode, result.stdout) == (status, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert status == 2 or len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != name] == []


def test_bad_places(tmp_path: Path) -> None:
    """They are errors before anything is read or started."""
    (tmp_path / "tables").mkdir()
    one = tmp_path / "tables/a.parquet"
    pq.write_table(pa.table({"id": ["a"], "length": [1]}), one)
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "old").mkdir()
    folder, new = str(tmp_path / "tables"), tmp_path / "new"
    cases: list[tuple[list[Any], Path, str]] = [
        ([one, one], new, "given twice"),
        ([one, folder], new, "given twice"),
        ([folder], tmp_path / "tables/plan", "is inside an input folder"),
        ([one], tmp_path / "old", "already exists"),
        ([one], tmp_path / "link", "already exists"),
        ([one], tmp_path / "no/plan", "its directory does not exist"),
        (["-"], new, "standard input cannot be read on Ray"),
        ([], new, "inputs must name at least one file"),
    ]
    for paths, output, message in cases:
        with pytest.raises((OSError, ValueError), match=message):
            pack_files_on_ray(paths, output, GreedyPacker(4096))
    with pytest.raises(TypeError, match=r"packer must be a GreedyPacker \(got int\)"):
        pack_files_on_ray(one, new, 4096)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="duplicates must be 'report' or 'error'"):
        pack_files_on_ray(one, new, GreedyPacker(4096), duplicates="drop")
