"""Plans that PackingPlan.save writes and PackingPlan.load reads."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import (
    OVERLONG,
    SUFFIXES,
    forge,
    lengths_for,
    make_packer,
    read_table,
    rewrite,
    tokens_of,
    with_summary,
    with_values,
)
from strategies import Case, cases

from virnucpro.data import GreedyPacker, PackingPlan
from virnucpro.data.plan import as_plan
from virnucpro.files.output import write_file
from virnucpro.files.plan_reader import PlanFile
from virnucpro.files.plan_schema import make_schema
from virnucpro.files.plan_summary import summarize
from virnucpro.files.stored_rows import StoredRows
from virnucpro.files.verify import verify_plan


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


def test_the_rows_of_a_loaded_plan_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "plan.arrow"
    lengths = np.full(1_000_000, 100)
    lengths[::1000] = 5000
    plan = GreedyPacker(4096, overlong="drop").pack_lengths(lengths)
    plan.save(path)
    loaded = PackingPlan.load(path)
    for batch in (0, -1, 12_345):
        assert loaded[batch].tolist() == plan[batch].tolist()
    for begin, end in ((0, 0), (5, 5), (16_383, 16_385), (0, 50_000), (900_000, 2_000_000)):
        assert loaded.slice_indices(begin, end).tolist() == plan.indices[begin:end].tolist()
    for begin, end in ((0, -1), (-5, 2_000_000), (-5, -2), (7, 3), (-9_999_999, 4)):
        assert loaded.slice_indices(begin, end).tolist() == plan.indices[begin:end].tolist()
    # None of this reads all of them into memory.
    assert "indices" not in vars(loaded)
    for rows in (loaded.indices, loaded.dropped):
        with pytest.raises(ValueError, match="read-only"):
            rows[0] = 1
    assert loaded.dropped.tolist() == list(range(0, 1_000_000, 1000))
    loaded.num_threads = 3
    pickled = pickle.dumps(loaded)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert (again, again.num_threads) == (loaded, 3)


@given(
    columns=st.lists(st.sampled_from(["id", "row", "batch", "tokens", "file", "truncated"])),
    size=st.integers(0, 3),
    has_nulls=st.booleans(),
)
def test_buffers_are_found_where_pyarrow_writes_them(
    columns: list[str], size: int, has_nulls: bool
) -> None:
    schema = make_schema(False, False, True, False)
    arrays = {
        "id": pa.array([None if has_nulls else "abc"] * size, pa.large_string()),
        "file": pa.array([None if has_nulls else "f"] * size, pa.string()).dictionary_encode(),
        "truncated": pa.array([None if has_nulls else True] * size, pa.bool_()),
    }
    for name in ("row", "batch", "tokens"):
        values = [None if has_nulls and row else row * 7 for row in range(size)]
        arrays[name] = pa.array(values, schema.field(name).type)
    names = list(dict.fromkeys(["row", *columns]))
    table = pa.table({name: arrays[name] for name in names})
    with TemporaryDirectory() as folder:
        path = Path(folder, "x.arrow")
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
        whole = pa.py_buffer(path.read_bytes())
        file = pa.ipc.open_file(whole)
        expected = []
        for column in file.get_batch(0).columns if file.num_record_batches else ():
            part = column.indices if pa.types.is_dictionary(column.type) else column
            expected += part.buffers()
        found = StoredRows(path).buffers
    assert (found.num_rows, found.is_compressed) == (size, False)
    for (offset, num_bytes), buffer in zip(found.places, expected, strict=True):
        assert num_bytes == (0 if buffer is None else buffer.size)
        assert num_bytes == 0 or offset == buffer.address - whole.address


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 16)


def overwrite(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[::-1])
    # Some file systems tell times in steps.
    os.utime(path, ns=(0, 0))


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        for place in range(path.stat().st_size // 4, path.stat().st_size // 4 * 3, 30_000):
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1]))
    # With the time that it had, as a file system that tells times in steps may show.
    os.utime(path, ns=(0, 0))


def remove(path: Path) -> None:
    path.unlink()


USES: list[Callable[[PackingPlan], Any]] = [
    lambda plan: plan[0].tolist(),
    lambda plan: [rows.tolist() for rows in plan],
    lambda plan: [rows.tolist() for rows in plan.shard(0, 2)],
    lambda plan: plan.indices.tolist(),
    lambda plan: plan.dropped.tolist(),
    lambda plan: [values.tolist() for values in plan.fragments or ()],
    lambda plan: plan.num_rows,
    lambda plan: plan.reshuffle(1),
]


@pytest.mark.parametrize("change", [cut, overwrite, flip, remove])
def test_a_plan_whose_file_changes_stays_as_it_was_or_is_an_error(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "plan.arrow"
    plan = GreedyPacker(100, 50, overlong="split").pack_lengths([20, 70] * 50_000)
    plan.save(path)
    pickled = pickle.dumps(PackingPlan.load(path))
    errors: list[str] = []
    for use in USES:
        plan.save(path)
        loaded = PackingPlan.load(path)
        batches = iter(loaded)
        assert next(batches).tolist() == plan[0].tolist()
        change(path)
        try:
            assert use(loaded) == use(plan)
        except OSError as error:
            errors.append(str(error))
        # What was read from the summary stays.
        assert (len(loaded), loaded.tokens(0).tolist()) == (len(plan), plan.tokens(0).tolist())
    reason = f"{path}: the plan is damaged or has changed since it was loaded"
    assert all(error.startswith(reason) for error in errors)
    if change is remove:
        assert not errors
        with pytest.raises(FileNotFoundError, match=f"^{path}: no such file$"):
            pickle.loads(pickled)
    else:
        assert len(errors) > len(USES) // 2
        with pytest.raises(OSError, match="the plan is damaged or has changed"):
            loaded.save(tmp_path / "copy.arrow")


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
        with write_file(path) as unfinished:
            unfinished.write(b"new")
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
    with pytest.raises(IsADirectoryError, match=f"^{path}: is a folder$"):
        plan.save(path)
    path.rmdir()
    missing = tmp_path / "missing" / path.name
    with pytest.raises(FileNotFoundError, match=f"^{missing}: its folder does not exist$"):
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
    message = rf"^PackingPlan.{use} needs pyarrow: in a checkout .* pip install '\.\[cli\]' "
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
def test_loading_a_plan_reads_none_of_its_rows(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("row", [-1, 2, 2**31 - 1])
def test_rows_out_of_range_with_their_own_checksums(tmp_path: Path, row: int) -> None:
    path = tmp_path / "plan.arrow"
    GreedyPacker(100).pack_lengths([30, 60]).save(path)
    forge(path, with_values("row", lambda _: [0, row]))
    plan = PackingPlan.load(path)
    message = f"^{path}: damaged: a number in column row is out of range$"
    for use in (lambda: plan[0], lambda: plan.indices, lambda: plan.reshuffle(1)):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize("names", [["tokens"], ["row", "tokens"], ["row", "fragment"], []])
def test_checksums_of_other_columns(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "plan.arrow"
    GreedyPacker(100).pack_lengths([30, 60]).save(path)

    def change(state: dict[str, Any]) -> None:
        (values,) = state["checksums"].values()
        state["checksums"] = dict.fromkeys(names, values)

    rewrite(path, with_summary(change))
    if names:
        with pytest.raises(ValueError, match=f"^{path}: not a plan file .*checksums"):
            PackingPlan.load(path)
    assert any("checksums differ" in finding for finding in verify_plan(path, None))


def test_a_plan_that_is_replaced_while_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "plan.parquet", tmp_path / "other.parquet"
    GreedyPacker(100).pack_lengths([30, 60, 30]).save(path)
    GreedyPacker(100, 90).pack_lengths([60, 30, 30]).save(other)
    check = PlanFile.check_size

    def replace(file: PlanFile) -> None:
        check(file)
        other.replace(path)

    monkeypatch.setattr(PlanFile, "check_size", replace)
    with pytest.raises(ValueError, match=r"the plan has changed since its summary was read$"):
        PackingPlan.load(path)


def test_rows_after_the_end_of_the_file_are_refused(tmp_path: Path) -> None:
    """Where the body would begin at the end of the file, with checksums of zeros."""
    path = tmp_path / "plan.arrow"
    GreedyPacker(100).pack_lengths([30] * 1000).save(path)
    content = path.read_bytes()
    body = StoredRows(path).buffers.places[1][0]
    path.write_bytes(content[:body] + content[-(len(content) - body) // 4 :])
    with pytest.raises(ValueError, match=f"^{path}: not a plan file .damaged: "):
        PackingPlan.load(path)
