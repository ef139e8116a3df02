"""Plans in files and folders: what is read from them, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import run
from hypothesis import given
from hypothesis import strategies as st
from plans import (
    SUFFIXES,
    forge,
    read_table,
    rewrite,
    sequences_of,
    tokens_of,
    with_summary,
    with_totals,
    with_values,
    write,
    write_table,
)

from virnucpro.data import GreedyPacker, PackingPlan
from virnucpro.files.plan_reader import METADATA, open_plan
from virnucpro.files.tables import PLAN_KEY
from virnucpro.files.verify import verify_plan

LENGTHS = np.random.default_rng(0).integers(0, 150, 60).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


def make_plan(path: Path, overlong: str) -> PackingPlan:
    """Write a plan that has sequences above the limit."""
    packer = GreedyPacker(122, 100, overlong=overlong, overlap=20 * (overlong == "split"))
    return write(path, sequences_of(LENGTHS, [f"s{i}" for i in range(60)]), packer)


def content_of(plan: PackingPlan) -> Any:
    """Return what a plan says, once everything in it is read."""
    fragments = [values.tolist() for values in plan.fragments or ()]
    return [rows.tolist() for rows in plan], plan.dropped.tolist(), fragments


def change_one(value: int) -> Callable[[list[int]], list[int]]:
    """Change the second of the values."""
    return lambda values: [values[0], value, *values[2:]]


def repeat(values: list[int]) -> list[int]:
    return [values[0], values[0], *values[2:]]


def exchange(values: list[int]) -> list[int]:
    return [values[1], values[0], *values[2:]]


def as_64_bits(name: str, change: Callable[[list[int]], list[int]]) -> Callable[[Any], Any]:
    def changed(table: Any) -> Any:
        place = table.schema.get_field_index(name)
        values = change(table[name].to_pylist())
        return table.set_column(place, name, pa.array(values, pa.int64()))

    return changed


NUMBERS: list[Callable[[str], Callable[[Any], Any]]] = [
    lambda name: with_values(name, repeat),
    lambda name: with_values(name, change_one(-1)),
    lambda name: with_values(name, change_one(10**6)),
    lambda name: as_64_bits(name, lambda v: [v[0] + 2**32, *v[1:]]),
]


@pytest.mark.parametrize("overlong", ["drop", "split"])
@pytest.mark.parametrize("change", NUMBERS)
def test_numbers_that_are_not_each_once_are_refused(
    tmp_path: Path, overlong: str, change: Callable[[str], Callable[[Any], Any]]
) -> None:
    path = tmp_path / "plan.parquet"
    make_plan(path, overlong)
    name = "fragment" if overlong == "split" else "row"
    rewrite(path, change(name))
    with pytest.raises(ValueError, match=rf"^{path}: damaged: {name} \d+ is missing \(missing num"):
        PackingPlan.load(path)


SIZES: list[Callable[[Any], Any]] = [
    lambda table: table.slice(1),
    lambda table: table.slice(0, 0),
    lambda table: pa.concat_tables([table, table.slice(0, 1)]),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("overlong", ["truncate", "drop", "split"])
@pytest.mark.parametrize("change", SIZES)
def test_other_numbers_of_rows_are_refused(
    tmp_path: Path, suffix: str, overlong: str, change: Callable[[Any], Any]
) -> None:
    path = tmp_path / f"plan{suffix}"
    make_plan(path, overlong)
    rewrite(path, change)
    with pytest.raises(ValueError, match=rf"^{path}: damaged: it has \d+ rows, expected \d+$"):
        PackingPlan.load(path)


FRAGMENTS: list[Callable[[Any], Any]] = [
    with_values("fragment", exchange),
    with_values("row", lambda v: [n + 1 for n in v]),
    with_values("row", lambda v: [max(0, n - 1) for n in v]),
    with_values("row", lambda v: [2 * n for n in v]),
    with_values("row", lambda v: [-n for n in v]),
    with_values("start", lambda v: [n + 1 for n in v]),
    with_values("stop", lambda v: [n + 1 for n in v]),
    with_totals(read=59),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("change", FRAGMENTS)
def test_fragments_that_do_not_make_up_sequences_are_refused(
    tmp_path: Path, suffix: str, change: Callable[[Any], Any]
) -> None:
    path = tmp_path / f"plan{suffix}"
    make_plan(path, "split")
    forge(path, change)

    def load() -> Any:
        return PackingPlan.load(path).fragments

    reason = "its fragments do not make up the sequences|a number in column row is out of range"
    with pytest.raises(ValueError, match=f"^{path}: damaged: ({reason})$"):
        load()


def replace_by(values: list[int]) -> Callable[[Any], list[int]]:
    return lambda _: values


PIECES = [(0, 0, 5), (1, 0, 100), (1, 80, 180), (1, 160, 250), (2, 0, 30)]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("changes", "num_rows"),
    [
        ({0: (0, 1, 6)}, 3),
        ({1: (1, 1, 101)}, 3),
        ({2: (1, 101, 201)}, 3),
        ({2: (1, 0, 100)}, 3),
        ({3: (1, 80, 170)}, 3),
        ({4: (3, 0, 30)}, 4),
        ({4: (0, 160, 190)}, 1),
        ({4: (0, 170, 200), 3: (1, 159, 249)}, 1),
        ({1: (0, 5, 105)}, 3),
    ],
)
def test_fragments_out_of_place_are_refused(
    tmp_path: Path, suffix: str, changes: dict[int, tuple[int, int, int]], num_rows: int
) -> None:
    """Those with the tokens of the layout, in order of their numbers."""
    path = tmp_path / f"plan{suffix}"
    packer = GreedyPacker(122, 100, overlong="split", overlap=20)
    plan = packer.pack_lengths([5, 250, 30])
    plan.save(path)
    assert list(zip(*(v.tolist() for v in plan.fragments or ()), strict=True)) == PIECES
    pieces = [changes.get(number, piece) for number, piece in enumerate(PIECES)]
    for place, name in enumerate(("row", "start", "stop")):
        values = [pieces[number][place] for number in plan.indices.tolist()]
        forge(path, with_values(name, replace_by(values)))
    forge(path, with_totals(read=num_rows))

    def load() -> Any:
        return PackingPlan.load(path).fragments

    with pytest.raises(ValueError, match=f"^{path}: damaged: its fragments do not make up the seq"):
        load()


@given(data=st.data())
def test_fragments_that_are_read_make_up_sequences(folder: Path, data: st.DataObject) -> None:
    """Whatever is changed in their columns."""
    path = folder / "plan.parquet"
    make_plan(path, "split")
    table = read_table(path)
    for _ in range(data.draw(st.integers(1, 3))):
        names = data.draw(st.sampled_from([["row"], ["fragment"], ["start"], ["start", "stop"]]))
        place = data.draw(st.integers(0, len(table) - 1))
        step = data.draw(st.sampled_from([-20, -1, 1, 20, 2**20]))

        def change(values: list[int], place: int = place, step: int = step) -> list[int]:
            return [*values[:place], values[place] + step, *values[place + 1 :]]

        for name in names:
            table = with_values(name, change)(table)
    write_table(path, table)
    try:
        plan = PackingPlan.load(path)
    except ValueError:
        return
    assert plan.fragments is not None
    ends = {0: 0}
    for row, start, stop in zip(*(v.tolist() for v in plan.fragments), strict=True):
        # Each begins in the one before it or at its end, or is the first of its row.
        assert 0 <= start <= ends.setdefault(row, 0)
        ends[row] = stop
    assert list(ends) == list(range(plan.num_rows))
    assert plan.fragments.rows.tolist() == sorted(plan.fragments.rows.tolist())
    stops, starts = plan.fragments.stops[plan.indices], plan.fragments.starts[plan.indices]
    assert (stops - starts + 2).tolist() == list(itertools.chain(*tokens_of(plan)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_columns_of_fragments_without_any(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plan{suffix}"
    GreedyPacker(100).pack_lengths([]).save(path)

    def add(table: Any) -> Any:
        for name in ("fragment", "start", "stop"):
            table = table.append_column(name, pa.array([], pa.int64()))
        return table

    forge(path, add)
    with pytest.raises(ValueError, match=f"^{path}: damaged: "):
        assert PackingPlan.load(path).fragments


def test_the_number_of_dropped_rows_is_checked(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        for overlong in ("truncate", "drop"):
            path = tmp_path / f"plan{suffix}"
            make_plan(path, overlong)
            rewrite(path, with_totals(dropped=7))
            with pytest.raises(ValueError, match=r"damaged: it has 60 rows, expected \d+$"):
                PackingPlan.load(path)


@pytest.mark.parametrize("name", ["batch", "tokens"])
@pytest.mark.parametrize("overlong", ["truncate", "drop", "split"])
def test_columns_that_differ_from_the_layout_are_refused(
    tmp_path: Path, name: str, overlong: str
) -> None:
    """In Parquet files, all of which is read."""
    path = tmp_path / "plan.parquet"
    make_plan(path, overlong)
    rewrite(path, with_values(name, lambda v: [v[0], v[1] + 1, *v[2:]]))
    with pytest.raises(ValueError, match=rf"^{path}: damaged: {name} in place 1 is \d+, expected"):
        PackingPlan.load(path)


def test_limits_of_the_summary_are_those_of_the_layout(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        path = tmp_path / f"plan{suffix}"
        make_plan(path, "truncate")
        rewrite(path, with_summary(lambda state: state["limits"].update(max_tokens_per_batch=123)))
        with pytest.raises(ValueError, match=r"not a plan file .its layout has other limits"):
            PackingPlan.load(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("overlong", ["truncate", "drop", "split"])
def test_other_types_and_columns_are_read(tmp_path: Path, suffix: str, overlong: str) -> None:
    path = tmp_path / f"plan{suffix}"
    plan = make_plan(path, overlong)

    def widen(table: Any) -> Any:
        kinds = {pa.int32(): pa.int64(), pa.large_string(): pa.string()}
        columns = [column.cast(kinds.get(column.type, column.type)) for column in table.columns]
        return pa.table(columns, table.schema.names, metadata=table.schema.metadata)

    def reverse(table: Any) -> Any:
        """In another order, with a column more."""
        names, columns = [*table.schema.names[::-1], "other"], table.columns[::-1]
        other = pa.array(["x"] * len(table))
        return pa.table([*columns, other], names, metadata=table.schema.metadata)

    rewrite(path, reverse)
    assert content_of(PackingPlan.load(path)) == content_of(plan)
    assert verify_plan(path, None) == []
    rewrite(path, widen)
    assert content_of(PackingPlan.load(path)) == content_of(plan)


def make_folder(path: Path, overlong: str, num_parts: int = 3) -> PackingPlan:
    """Write a plan as a folder of files, as a cluster does."""
    whole = path.with_suffix(".parquet")
    plan = make_plan(whole, overlong)
    table = pq.read_table(whole)
    path.mkdir()
    pq.write_metadata(table.schema, path / METADATA)
    step = -(-len(table) // num_parts)
    for part, begin in enumerate(range(0, len(table), step)):
        pq.write_table(table.slice(begin, step), path / f"part-{part:03d}.parquet")
    return plan


@pytest.mark.parametrize("overlong", ["truncate", "drop", "split"])
def test_folders_are_read_as_one_file(tmp_path: Path, overlong: str) -> None:
    path = tmp_path / "plan"
    plan = make_folder(path, overlong)
    # Not parts of the plan.
    (path / "_SUCCESS").write_bytes(b"")
    loaded = PackingPlan.load(path)
    assert loaded == plan
    assert loaded.summary == open_plan(path.with_suffix(".parquet")).summary
    sequences = sequences_of(LENGTHS, [f"s{i}" for i in range(60)])
    assert verify_plan(path, sequences) == []
    assert run("stats", path).stdout == run("stats", path.with_suffix(".parquet")).stdout
    assert run("report", path, "-o", tmp_path / "report.html").returncode == 0


def test_parts_of_a_folder_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    make_folder(path, "truncate")
    part = path / "part-001.parquet"
    table = pq.read_table(part)
    pq.write_table(table.set_column(1, "row", table["row"].cast(pa.int64())), part)
    with pytest.raises(ValueError, match=f"^{part}: not a plan file .its columns are not those of"):
        PackingPlan.load(path)
    part.unlink()
    with pytest.raises(ValueError, match=f"^{path}: damaged: it has 40 rows, expected 60$"):
        PackingPlan.load(path)
    for part in path.glob("*.parquet"):
        part.unlink()
    with pytest.raises(ValueError, match=f"^{path}: damaged: it has 0 rows, expected 60$"):
        PackingPlan.load(path)
    (path / METADATA).unlink()
    with pytest.raises(
        ValueError, match=f"^{path}: not a plan file .a folder without a file {METADATA}"
    ):
        PackingPlan.load(path)


@pytest.mark.parametrize("size", [1, 7, 60])
def test_rows_are_read_in_parts(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virnucpro.files.plan_reader.CHUNK", size)
    path = tmp_path / "plan.parquet"
    make_plan(path, "drop")
    table = read_table(path)
    found = list(open_plan(path).iterate(["row", "batch"]))
    assert max(part.num_rows for part in found) <= size
    assert pa.Table.from_batches(found).to_pydict() == {
        name: table[name].to_pylist() for name in ("row", "batch")
    }


def test_keys_of_the_metadata_that_others_wrote_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "plan.parquet"
    plan = make_plan(path, "truncate")
    rewrite(
        path,
        lambda t: t.replace_schema_metadata(
            {b"pandas": b"{", PLAN_KEY: t.schema.metadata[PLAN_KEY]}
        ),
    )
    assert PackingPlan.load(path) == plan


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_of_columns_that_differ_in_case_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plan{suffix}"
    GreedyPacker(100).pack_lengths([30, 60]).save(path)
    rewrite(path, lambda table: table.append_column("Batch", table["batch"]))
    with pytest.raises(ValueError, match=r"column 'Batch', which is not 'batch'\)$"):
        PackingPlan.load(path)


@pytest.mark.parametrize("name", ["_a.parquet", ".a.parquet"])
def test_parts_with_hidden_names_are_refused(tmp_path: Path, name: str) -> None:
    GreedyPacker(100).pack_lengths([30, 60]).save(tmp_path / name)
    pq.write_metadata(pq.read_schema(tmp_path / name), tmp_path / "_common_metadata")
    with pytest.raises(ValueError, match=f"{name}, a name that other readers leave out.$"):
        PackingPlan.load(tmp_path)


def test_nulls_of_stored_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.arrow"
    GreedyPacker(100).pack_lengths([30, 60]).save(path)
    rewrite(path, with_values("row", lambda values: [values[0], None]))
    with pytest.raises(ValueError, match=r"column 'row' contains nulls\)$"):
        PackingPlan.load(path)
    with pytest.raises(ValueError, match=f"^{path}: not a plan file .column 'row' contains nulls"):
        verify_plan(path, None)
