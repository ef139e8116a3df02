"""Plans that PackingPlan.save writes and PackingPlan.load reads."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from strategies import Case, cases

from virnucpro.data import GreedyPacker, PackingPlan
from virnucpro.files.output import atomic_write


@given(case=cases())
def test_saved_plans_are_loaded(tmp_path_factory: pytest.TempPathFactory, case: Case) -> None:
    plan = GreedyPacker(**case.parameters).pack_lengths(case.lengths)
    path = tmp_path_factory.getbasetemp() / "plan.arrow"
    plan.save(path)
    loaded = PackingPlan.load(path)
    assert loaded == plan
    assert loaded.indices.dtype == plan.indices.dtype
    assert loaded.offsets.tolist() == plan.offsets.tolist()
    assert loaded.batch_tokens.tolist() == plan.batch_tokens.tolist()
    assert [rows.tolist() for rows in loaded] == [rows.tolist() for rows in plan]
    assert loaded.reshuffle(3) == plan.reshuffle(3)
    assert pickle.loads(pickle.dumps(loaded)) == plan
    with pa.memory_map(str(path)) as source:
        columns = pa.ipc.open_file(source).read_all()
    assert columns["rows"].to_pylist() == [rows.tolist() for rows in plan]
    assert columns["tokens"].to_pylist() == plan.batch_tokens.tolist()


def test_loaded_plans_are_memory_mapped(tmp_path: Path) -> None:
    path = tmp_path / "plan.arrow"
    GreedyPacker(4096).pack_lengths(np.full(1_000_000, 100)).save(path)
    loaded = PackingPlan.load(path)
    assert not loaded.indices.flags.owndata
    assert not loaded.indices.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        loaded.indices[0] = 1


def test_saved_batches_that_overlap_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.arrow"
    GreedyPacker(100).pack_lengths([90, 90, 90]).save(path)
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        batch, schema = file.get_batch(0), file.schema
    offsets = pa.array([0, 2, 1, 3], batch.column("rows").offsets.type)
    rows = type(batch.column("rows")).from_arrays(offsets, batch.column("rows").values)
    with (
        pa.OSFile(str(tmp_path / "other.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, schema) as to,
    ):
        to.write_batch(pa.record_batch([rows, batch.column("tokens")], schema=schema))
    with pytest.raises(ValueError, match="do not match its layout"):
        PackingPlan.load(tmp_path / "other.arrow")


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"x" * 5000, "table", "batch"])
def test_files_that_are_not_saved_plans_are_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "plan.arrow"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        GreedyPacker(4096).pack_lengths([1, 2]).save(path)
        table = pa.ipc.open_file(str(path)).read_all()
        bare = table.replace_schema_metadata(None)
        table = bare if content == "table" else table.slice(0, 0)
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
            if content == "batch":
                writer.write_batch(pa.record_batch([[[1]], [5]], schema=table.schema))
    with pytest.raises(ValueError, match=r"plan.arrow: "):
        PackingPlan.load(path)
    with pytest.raises(FileNotFoundError, match=r"none.arrow"):
        PackingPlan.load(tmp_path / "none.arrow")


def test_saving_keeps_the_old_file_until_complete(tmp_path: Path) -> None:
    path = tmp_path / "plan.arrow"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_write(path) as unfinished:
            unfinished.write_bytes(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_paths_where_a_plan_cannot_be_saved(tmp_path: Path) -> None:
    plan = GreedyPacker(100).pack_lengths([1])
    with pytest.raises(IsADirectoryError, match=f"^{tmp_path}: is a directory$"):
        plan.save(tmp_path)
    path = tmp_path / "missing" / "plan.arrow"
    with pytest.raises(FileNotFoundError, match=f"^{path}: its directory does not exist$"):
        plan.save(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=f"^{tmp_path}/pipe: not a regular file$"):
        plan.save(tmp_path / "pipe")
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("missing", ["pyarrow", "pyarrow.parquet"])
def test_saving_without_pyarrow_says_so(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("plan_file", "saved_plan"):
        monkeypatch.delitem(sys.modules, f"virnucpro.files.{name}", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    message = r"^PackingPlan.save needs pyarrow: pip install 'virnucpro\[cli\]'$"
    with pytest.raises(ModuleNotFoundError, match=message) as found:
        GreedyPacker(100).pack_lengths([1]).save(tmp_path / "plan.arrow")
    assert found.value.name == missing
