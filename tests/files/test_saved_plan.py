"""Plans that PackingPlan.save writes and PackingPlan.load reads."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import OVERLONG, SUFFIXES, lengths_for, make_packer, read_table, tokens_of
from strategies import Case, cases

from virnucpro.data import GreedyPacker, PackingPlan
from virnucpro.data.plan import as_plan
from virnucpro.files.output import atomic_write
from virnucpro.files.plan_summary import summarize


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@given(case=cases(), overlong=st.sampled_from(OVERLONG), suffix=st.sampled_from(SUFFIXES))
def test_saved_plans_are_loaded(folder: Path, case: Case, overlong: str, suffix: str) -> None:
    packer = make_packer(case, overlong)
    plan = packer.pack_lengths(lengths_for(packer, case))
    path = folder / f"plan{suffix}"
    plan.save(path)
    loaded = PackingPlan.load(path)
    assert loaded == plan == as_plan(path)
    assert loaded.indices.dtype == loaded.dropped.dtype == plan.indices.dtype
    assert loaded.offsets.tolist() == plan.offsets.tolist()
    assert tokens_of(loaded) == tokens_of(plan)
    assert [rows.tolist() for rows in loaded] == [rows.tolist() for rows in plan]
    assert (loaded.num_rows, loaded.limits) == (plan.num_rows, plan.limits)
    assert (loaded.fragments is None) == (plan.fragments is None)
    assert loaded.reshuffle(3) == plan.reshuffle(3)
    assert loaded.summary == summarize(plan)
    again = pickle.loads(pickle.dumps(loaded))
    assert again == plan
    assert again.summary == loaded.summary


@given(case=cases(), overlong=st.sampled_from(OVERLONG), suffix=st.sampled_from(SUFFIXES))
def test_files_have_a_row_per_sequence(
    folder: Path, case: Case, overlong: str, suffix: str
) -> None:
    packer = make_packer(case, overlong)
    plan = packer.pack_lengths(lengths_for(packer, case))
    path = folder / f"plan{suffix}"
    plan.save(path)
    table = read_table(path)
    number = pa.int32()
    expected: dict[str, tuple[Any, list[Any]]] = {
        "batch": (number, [batch for batch, rows in enumerate(plan) for _ in rows]),
        "row": (number, plan.indices.tolist()),
        "tokens": (pa.int64(), list(itertools.chain(*tokens_of(plan)))),
    }
    if plan.fragments is not None:
        expected["fragment"] = expected["row"]
        for name, part in zip(("row", "start", "stop"), plan.fragments, strict=True):
            kind = number if name == "row" else pa.int64()
            expected[name] = kind, part[plan.indices].tolist()
    for name, (_, values) in expected.items():
        values += plan.dropped.tolist() if name == "row" else [None] * len(plan.dropped)
    assert {field.name: field.type for field in table.schema} == {
        name: kind for name, (kind, _) in expected.items()
    }
    assert table.to_pydict() == {name: values for name, (_, values) in expected.items()}


@given(case=cases(), overlong=st.sampled_from(OVERLONG))
def test_a_loaded_plan_is_saved_as_it_was(folder: Path, case: Case, overlong: str) -> None:
    packer = make_packer(case, overlong)
    plan = packer.pack_lengths(lengths_for(packer, case))
    paths = [folder / name for name in ("1.arrow", "2.parquet", "3.arrow", "4.parquet")]
    for path in paths:
        plan.save(path)
        plan = PackingPlan.load(path)
    assert paths[0].read_bytes() == paths[2].read_bytes()
    assert paths[1].read_bytes() == paths[3].read_bytes()


def test_loaded_plans_are_memory_mapped(tmp_path: Path) -> None:
    path = tmp_path / "plan.arrow"
    lengths = np.full(1_000_000, 100)
    lengths[::1000] = 5000
    GreedyPacker(4096, overlong="drop").pack_lengths(lengths).save(path)
    loaded = PackingPlan.load(path)
    for rows in (loaded.indices, loaded.dropped):
        assert not rows.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            rows[0] = 1
    assert loaded.dropped.tolist() == list(range(0, 1_000_000, 1000))
    # Not a part of the file, which might shrink.
    assert loaded[0].flags.owndata
    loaded.num_threads = 3
    pickled = pickle.dumps(loaded)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert not again.indices.flags.owndata
    assert (again, again.num_threads) == (loaded, 3)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[::-1])
    # Some file systems tell times in steps.
    os.utime(path, ns=(0, 0))


USES: list[Callable[[PackingPlan], Any]] = [
    lambda plan: plan.indices,
    lambda plan: plan.dropped,
    lambda plan: plan.fragments,
    lambda plan: plan.num_rows,
    lambda plan: plan[0],
    lambda plan: list(plan),
    lambda plan: list(plan.shard(0, 2)),
    lambda plan: plan.reshuffle(1),
    lambda plan: plan.to_dict(),
    lambda plan: plan == plan,
]


@pytest.mark.parametrize("change", [cut, overwrite])
def test_a_mapped_plan_that_changed_is_not_used(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "plan.arrow"
    plan = GreedyPacker(100, 50, overlong="split").pack_lengths([20, 70] * 5000)
    plan.save(path)
    loaded = PackingPlan.load(path)
    batches = iter(loaded)
    assert next(batches).tolist() == plan[0].tolist()
    pickled = pickle.dumps(loaded)
    change(path)
    for use in USES:
        with pytest.raises(OSError, match=f"^{path}: the plan has changed since it was loaded$"):
            use(loaded)
    with pytest.raises(OSError, match="the plan has changed"):
        next(batches)
    with pytest.raises(OSError, match="the plan has changed"):
        loaded.save(tmp_path / "copy.arrow")
    with pytest.raises(ValueError, match=f"^{path}: not a"):
        pickle.loads(pickled)
    # What was read from the summary stays.
    assert (len(loaded), loaded.tokens(0).tolist()) == (len(plan), plan.tokens(0).tolist())


def test_a_plan_whose_file_was_replaced_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "plan.arrow"
    plan = GreedyPacker(100).pack_lengths([20, 70] * 5000)
    plan.save(path)
    loaded = PackingPlan.load(path)
    pickled = pickle.dumps(loaded)
    GreedyPacker(100).pack_lengths([20, 60] * 5000).save(path)
    assert loaded == plan
    with pytest.raises(ValueError, match=f"^{path}: not the plan that was pickled: the file has"):
        pickle.loads(pickled)
    plan.save(path)
    assert pickle.loads(pickled) == plan
    path.unlink()
    assert loaded == plan
    with pytest.raises(FileNotFoundError, match=f"^{path}: no such file"):
        pickle.loads(pickled)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"ARROW1", b"PAR1", b"x" * 5000, "bare", "two", "part"])
def test_files_that_are_not_plans_are_refused(tmp_path: Path, suffix: str, content: Any) -> None:
    """The encoding is known by the bytes, not by the suffix."""
    path = tmp_path / f"plan{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        made = tmp_path / "made.arrow"
        GreedyPacker(4096).pack_lengths([1, 2]).save(made)
        table = read_table(made)
        if content == "bare":
            table = table.replace_schema_metadata(None)
        elif content == "part":
            table = table.slice(0, 1)
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=1 if content == "two" else None)
    with pytest.raises(ValueError, match=f"^{path}: "):
        PackingPlan.load(path)


def test_paths_that_are_not_plans_are_refused(tmp_path: Path) -> None:
    none = tmp_path / "none.arrow"
    with pytest.raises(FileNotFoundError, match=f"^{none}: no such file"):
        PackingPlan.load(none)
    with pytest.raises(ValueError, match=f"^{tmp_path}: not a plan file .a folder without a file"):
        PackingPlan.load(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=f"^{tmp_path}/pipe: not a plan file .not a regular file"):
        PackingPlan.load(tmp_path / "pipe")
    for value in (None, 5, [[0]]):
        with pytest.raises(TypeError, match=r"plan must be a PackingPlan or a path \(got "):
            as_plan(value)  # type: ignore[arg-type]
    plan = GreedyPacker(100).pack_lengths([5])
    assert as_plan(plan) is plan


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


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_paths_where_a_plan_cannot_be_saved(tmp_path: Path, suffix: str) -> None:
    plan = GreedyPacker(100).pack_lengths([1])
    path = tmp_path / f"plan{suffix}"
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=f"^{path}: is a directory$"):
        plan.save(path)
    path.rmdir()
    missing = tmp_path / "missing" / path.name
    with pytest.raises(FileNotFoundError, match=f"^{missing}: its directory does not exist$"):
        plan.save(missing)
    os.mkfifo(path)
    with pytest.raises(OSError, match=f"^{path}: not a regular file$"):
        plan.save(path)
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("name", ["plan", "plan.txt", "plan.arrow.gz", ".arrow", "plan.pq"])
def test_the_suffix_tells_the_encoding(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    plan = GreedyPacker(100).pack_lengths([1])
    with pytest.raises(ValueError, match=f"^{path}: a plan file must have the suffix .parquet or"):
        plan.save(path)
    assert list(tmp_path.iterdir()) == []
    plan.save(tmp_path / "PLAN.ARROW")
    assert (tmp_path / "PLAN.ARROW").read_bytes().startswith(b"ARROW1")
    assert PackingPlan.load(tmp_path / "PLAN.ARROW") == plan


@pytest.mark.parametrize("missing", ["pyarrow", "pyarrow.parquet"])
@pytest.mark.parametrize("use", ["save", "load"])
def test_files_without_pyarrow_say_so(
    use: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("plan_reader", "plan_writer"):
        monkeypatch.delitem(sys.modules, f"virnucpro.files.{name}", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    message = rf"^PackingPlan.{use} needs pyarrow: pip install 'virnucpro\[cli\]'$"
    plan = GreedyPacker(100).pack_lengths([1])
    with pytest.raises(ModuleNotFoundError, match=message) as found:
        getattr(plan, use)(tmp_path / "plan.arrow")
    assert found.value.name == missing


LOAD = """
import subprocess
import sys
from pathlib import Path
from virnucpro.data import PackingPlan


def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


PackingPlan.load(sys.argv[1])
before = peak()
plan = PackingPlan.load(sys.argv[2])
print(peak() - before, len(plan))
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_a_mapped_plan_reads_none_of_its_rows(tmp_path: Path) -> None:
    small, large = tmp_path / "small.arrow", tmp_path / "large.arrow"
    GreedyPacker(4096).pack_lengths([30]).save(small)
    plan = GreedyPacker(4096).pack_lengths(np.arange(4_000_000) % 1000)
    plan.save(large)
    command = [sys.executable, "-c", LOAD, str(small), str(large)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kibibytes, batches = map(int, printed.split())
    assert batches == len(plan)
    # The column of rows alone has 15,625.
    assert kibibytes < 4096
