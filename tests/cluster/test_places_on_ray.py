"""Where Ray reads files and writes plans, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import run, run_program
from object_store import BUCKET, KEYS, ObjectStore
from ray_plans import same_plans, write_tables

from virnucpro.data import GreedyPacker, PackingPlan, ReadOptions, pack_files, pack_files_on_ray


@pytest.mark.process
@pytest.mark.usefixtures("local_ray")
def test_object_store(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from a store and written to it; the keys are in the URIs, and nowhere else."""
    monkeypatch.setattr("virnucpro.cluster.ranges.TASK_BYTES", 5000)
    paths = [Path(path) for path in write_tables(tmp_path, {"b.parquet": 200, "a.parquet": 99})]
    for path in paths:
        store.write(f"tables/{path.name}", path.read_bytes())
    store.write("tables/notes.txt", b"-")
    access, secret = (quote(key, "") for key in KEYS.values())
    place = f"s3://{access}:{secret}@{BUCKET}"
    options, packer = ReadOptions("name", "size"), GreedyPacker(2048)
    for inputs in (f"{place}/tables{store.query}", f"{place}/tables/*.parquet{store.query}"):
        target = f"{place}/plans/{len(inputs)}/{store.query}"
        summary = pack_files_on_ray(inputs, target, packer, options=options)
        assert secret not in str(summary)
        assert [file.name for file in summary.inputs] == [
            store.uri("tables/a.parquet"),
            store.uri("tables/b.parquet"),
        ]
        expected = pack_files(sorted(paths), tmp_path / "plan.parquet", packer, options=options)
        assert summary.totals == expected.totals
        found = PackingPlan.load(f"{place}/plans/{len(inputs)}{store.query}")
        assert found == PackingPlan.load(tmp_path / "plan.parquet")
        with pytest.raises(FileExistsError, match=r"^s3://proteins/plans/.*: already exists$"):
            pack_files_on_ray(inputs, target, packer, options=options)
        # What was written before an error is removed.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("virnucpro.cluster.pack.write_metadata", fail)
            with pytest.raises(OSError, match="no room"):
                pack_files_on_ray(inputs, f"{place}/new{store.query}", packer, options=options)
        assert store.files.get_file_info(f"{BUCKET}/new").type.name == "NotFound"
    with pytest.raises(FileNotFoundError, match="its bucket does not exist"):
        pack_files_on_ray(inputs, f"s3://{access}:{secret}@none/plan{store.query}", packer)


def fail(*_: Any) -> None:
    raise OSError("no room")


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
    """Several files, each so large that one task reads it."""
    path.mkdir()
    for name in ("a.tsv", "b.tsv", "c.tsv"):
        (path / name).write_text("id\tlength\n" + "a\tx\n" * 1_200_000)


def table(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


BAD_COMMANDS: list[tuple[str, Callable[[Path], Any], tuple[str, ...], int, str]] = [
    ("none.parquet", lambda _: None, (), 1, "none.parquet: no such file"),
    (
        "folder",
        lambda path: path.mkdir(),
        (),
        1,
        "folder: is a folder without FASTA files or tables",
    ),
    ("a.parquet", table(id=["a"], length=[1]), ("--sequences",), 1, "has no sequences to store"),
    ("a.parquet", table(id=["a"], length=[1]), ("--threads", "2"), 2, "--threads"),
    ("a.parquet", table(id=["a"], length=[2000]), ("--overlong", "error"), 1, "has 2,000 residues"),
    ("folder", spoilt, (), 1, "a.tsv: "),
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
    program = run_program if "residues" in message or make is spoilt else run
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
    cases: list[tuple[list[Any], Any, str]] = [
        ([one, one], new, "given twice"),
        ([one, folder], new, "given twice"),
        ([folder], tmp_path / "tables/plan", "is inside an input folder"),
        ([one], tmp_path / "old", "already exists"),
        ([one], tmp_path / "link", "already exists"),
        ([one], tmp_path / "no/plan", "its folder does not exist"),
        ([one], "", "not the name of a folder"),
        ([one], f"{one}/", "already exists"),
        ([one], one / "plan", "cannot be written|not a directory|its folder does not exist"),
        ([one], tmp_path / ("x" * 300), "cannot be written"),
        ([one], str(tmp_path / "a\0b"), "a\\\\x00b: not the name of a folder"),
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
