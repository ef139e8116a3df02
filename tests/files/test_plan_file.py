"""Plans on disk: what they hold, how they are read, and how faults in them are found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from command import run
from fasta import fasta
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, cases

from virnucpro.data import GreedyPacker, PackingPlan
from virnucpro.files import plan_file
from virnucpro.files.fasta import ReadChanges, ReadOptions
from virnucpro.files.plan_file import Summary, compute_totals, read_summary, write_plan
from virnucpro.files.sequences import InputFile, Sequences, read_files
from virnucpro.files.verify import check_first_fit, verify_plan


def sequences_of(lengths: list[int], ids: list[str]) -> Sequences:
    half = len(lengths) // 2
    sources = [
        InputFile("first", 10, "00", half),
        InputFile("second", 20, "11", len(lengths) - half),
    ]
    array = np.array(lengths, np.int64)
    return Sequences(pa.array(ids, pa.large_string()), array, sources, ReadChanges())


def write(path: Path, sequences: Sequences, packer: GreedyPacker, overlong: str) -> PackingPlan:
    is_kept = sequences.lengths <= packer.limits.max_residues
    rows = np.flatnonzero(is_kept) if overlong == "drop" else None
    lengths, ids = sequences.lengths, sequences.ids
    if rows is not None:
        lengths, ids = lengths[rows], ids.take(pa.array(rows))
    plan = packer.pack_lengths(lengths, ids)
    totals = compute_totals(plan, sequences, rows, sequences.find_duplicates()[0])
    summary = Summary(
        packer.limits, packer.method, overlong, ReadOptions(), totals, sequences.inputs
    )
    write_plan(path, plan, sequences, summary, rows)
    return plan


@given(cases(), st.sampled_from(["truncate", "drop"]), st.data())
def test_what_is_written_is_verified(case: Case, overlong: str, data: st.DataObject) -> None:
    """Other plans are not: any two sequences of different batches and sizes exchanged."""
    ids = data.draw(
        st.lists(st.sampled_from("abc"), min_size=len(case.lengths), max_size=len(case.lengths))
    )
    sequences = sequences_of(case.lengths, ids)
    path = Path(pytest_folder, "plan.parquet")
    write(path, sequences, GreedyPacker(**case.parameters), overlong)
    assert verify_plan(path, sequences) == []
    table = pq.read_table(path)
    batch = table["batch"].to_numpy(zero_copy_only=False)
    tokens = table["tokens"].to_numpy(zero_copy_only=False)
    if len(batch) < 2 or len(np.unique(batch[~np.isnan(batch)])) < 2:
        return
    one = data.draw(st.integers(0, len(batch) - 1))
    two = data.draw(st.integers(0, len(batch) - 1))
    if np.isnan(batch[[one, two]]).any() or batch[one] == batch[two] or tokens[one] == tokens[two]:
        return
    exchanged = np.arange(len(batch))
    exchanged[[one, two]] = two, one
    order = pa.array(exchanged)
    columns = [table[name].take(order) for name in table.column_names[1:]]
    spoilt = pa.table([table["batch"], *columns], schema=table.schema)
    pq.write_table(spoilt, path)
    assert verify_plan(path, sequences) != []


@given(cases(), st.sampled_from(["truncate", "drop"]))
def test_tight_plans_are_verified(case: Case, overlong: str) -> None:
    sequences = sequences_of(case.lengths, ["a"] * len(case.lengths))
    path = Path(pytest_folder, "plan.parquet")
    write(path, sequences, GreedyPacker(**case.parameters, method="tight"), overlong)
    assert verify_plan(path, sequences) == []


pytest_folder = ""


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    global pytest_folder
    pytest_folder = str(tmp_path_factory.mktemp("plans"))


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, Path]:
    """A plan and its input."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 1500, 400)
    path = tmp_path / "a.fa"
    path.write_bytes(fasta((f"s{i}", "M" * n) for i, n in enumerate(lengths.tolist())))
    plan = tmp_path / "plan.parquet"
    assert run("pack", path, "-o", plan, "--max-sequences", 20).returncode == 0
    return plan, path


def rewrite(plan: Path, change: Callable[[Any], Any]) -> None:
    pq.write_table(change(pq.read_table(plan)), plan)


def with_values(name: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Change a column."""

    def changed(table: Any) -> Any:
        place = table.schema.get_field_index(name)
        values = pa.array(change(table[name].to_pylist()), table.schema.field(name).type)
        return table.set_column(place, table.schema.field(name), values)

    return changed


def with_totals(**totals: Any) -> Callable[[Any], Any]:
    def changed(table: Any) -> Any:
        found = json.loads(table.schema.metadata[b"virnucpro"])
        found["totals"].update(totals)
        return table.replace_schema_metadata({b"virnucpro": json.dumps(found)})

    return changed


def exchange(values: list[Any], one: int, two: int) -> list[Any]:
    values[one], values[two] = values[two], values[one]
    return values


def move_to_last_batch(batches: list[int]) -> list[int]:
    """The shortest sequence of the first batch goes to the last."""
    batches[batches.index(1) - 1] = batches[-1]
    return batches


def reverse_last_batch(table: Any) -> Any:
    batches = table["batch"].to_pylist()
    begin = batches.index(batches[-1])
    order = [*range(begin), *range(begin, len(batches))[::-1]]
    return table.take(order)


def swap_equal(table: Any) -> Any:
    """Exchange two sequences of equally many tokens."""
    tokens = table["tokens"].to_pylist()
    one = next(i for i in range(len(tokens)) if tokens[i] in tokens[i + 1 :])
    order = exchange(list(range(len(tokens))), one, tokens.index(tokens[one], one + 1))
    columns = [table[name].take(pa.array(order)) for name in table.column_names[1:]]
    return pa.table([table["batch"], *columns], schema=table.schema)


FAULTS: list[tuple[Callable[[Any], Any], str]] = [
    (with_values("row", lambda v: [*v[:-1], v[0]]), "more than once (affected sequences: 1)"),
    (with_values("row", lambda v: [*v[:-1], 400]), "row 400 is not in the input (affected"),
    (lambda table: table.slice(0, 399), "is missing (affected sequences: 1)"),
    (lambda table: table.filter(pc.not_equal(table["batch"], 3)), "batch 3 is missing (missing ba"),
    (with_values("id", lambda v: ["other", *v[1:]]), "is 'other', expected 's"),
    (with_values("length", lambda v: [*v[:-1], v[-1] + 1]), "length of row "),
    (with_values("tokens", lambda v: [*v[:-1], v[-1] + 1]), "tokens of row "),
    (with_values("truncated", lambda v: [not v[0], *v[1:]]), "truncated of row "),
    (with_values("file", lambda v: ["b.fa", *v[1:]]), "file of row "),
    (
        with_values("batch", lambda v: [None, *v[1:]]),
        "has no batch, but should not be dropped (affected rows: 1)",
    ),
    (with_values("batch", lambda v: [0] * 40 + v[40:]), "more than 4,096"),
    (with_values("batch", lambda v: [b // 2 for b in v]), "more than 4,096"),
    (with_values("batch", lambda v: [v[-1]] * 21 + v[21:]), "sequences, more than 20"),
    (with_values("batch", lambda v: exchange(v, 0, 399)), "rows are not in order of batches"),
    (reverse_last_batch, "are not in order of decreasing length"),
    (with_values("batch", move_to_last_batch), "the plan is not First-Fit Decreasing"),
    (swap_equal, "not in order of IDs"),
    (with_values("batch", lambda v: [*v[:-1], 10**13]), "missing batches: 9,999,999,999,930)"),
    (with_totals(lower_bound=1), "lower_bound is 1 in the summary, expected"),
    (with_totals(batches=1), "batches is 1 in the summary, expected"),
    (with_totals(residues_truncated=0), "residues_truncated is 0 in the summary, expected"),
    (with_totals(efficiency=1.0), "efficiency is 1.0 in the summary, expected"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=[fault[1] for fault in FAULTS])
def test_faults_are_named(
    packed: tuple[Path, Path], change: Callable[[Any], Any], message: str
) -> None:
    plan, path = packed
    good = run("verify", plan, path)
    assert (good.returncode, good.stderr) == (0, f"{plan}: OK (400 sequences)\n")
    rewrite(plan, change)
    result = run("verify", plan, path)
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert all(line.startswith(f"virnucpro: {plan}: ") for line in lines)
    assert any(message in line for line in lines), result.stderr


def test_a_changed_input_is_named(packed: tuple[Path, Path]) -> None:
    plan, path = packed
    content = path.read_bytes()
    path.write_bytes(content.replace(b"some protein", b"same protein", 1))
    result = run("verify", plan, path)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert f"input {path} has changed: 400 sequences in {len(content):,} bytes" in line
    result = run("verify", plan, path, path)
    assert result.returncode == 1
    assert "number of inputs is 2, expected 1" in result.stderr


def test_next_fit_is_not_first_fit() -> None:
    """Next-Fit Decreasing, which some packers call First-Fit Decreasing, does not pass."""
    random = np.random.default_rng(0)
    sizes = -np.sort(-random.integers(3, 1024, 500))
    batch = np.zeros(500, np.int64)
    used = number = 0
    for i, size in enumerate(sizes.tolist()):
        if used + size > 4096:
            number, used = number + 1, 0
        batch[i] = number
        used += size
    assert list(check_first_fit(batch, sizes, 4096, 500)) != []
    plan = GreedyPacker(4096, 4096, special_tokens=0).pack_lengths(sizes)
    first_fit = np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
    assert list(check_first_fit(first_fit, sizes[plan.indices], 4096, 500)) == []


def test_row_groups_hold_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_file, "ROW_GROUP_SIZE", 50)
    lengths = np.random.default_rng(0).integers(1, 1500, 600).tolist()
    sequences = sequences_of(lengths, [f"s{i}" for i in range(600)])
    path = tmp_path / "plan.parquet"
    plan = write(path, sequences, GreedyPacker(4096), "drop")
    file = pq.ParquetFile(path)
    assert file.num_row_groups > 5
    seen: list[int] = []
    groups = [file.read_row_group(number)["batch"] for number in range(file.num_row_groups)]
    assert max(map(len, groups)) <= 50
    packed = [group for group in groups if not group.null_count]
    for number, group in enumerate(packed):
        batches = group.to_pylist()
        statistics = file.metadata.row_group(number).column(0).statistics
        assert (statistics.min, statistics.max) == (min(batches), max(batches))
        assert not set(batches) & set(seen)
        seen += batches
    assert sorted(set(seen)) == list(range(len(plan)))
    # Those that were dropped come last.
    dropped = groups[len(packed) :]
    assert len(dropped) > 1
    assert [group.null_count for group in dropped] == list(map(len, dropped))
    assert sum(map(len, dropped)) == 600 - len(seen)


def test_shares_of_ranks_in_other_libraries(packed: tuple[Path, Path]) -> None:
    path = str(packed[0])
    whole = pq.read_table(path).to_pydict()
    rank, world_size = 1, 3
    expected = [
        row
        for row, batch in zip(whole["row"], whole["batch"], strict=True)
        if batch % world_size == rank
    ]
    frame = pd.read_parquet(path)
    assert frame[frame["batch"] % world_size == rank]["row"].tolist() == expected
    lazy = pl.scan_parquet(path).filter(pl.col("batch") % world_size == rank)
    assert lazy.collect()["row"].to_list() == expected
    query = (
        f"SELECT row FROM '{path}' WHERE batch % {world_size} = {rank} ORDER BY batch, tokens DESC"
    )
    rows = [row for (row,) in duckdb.sql(query).fetchall()]
    assert sorted(rows) == sorted(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["tokens"]), "not a plan file (no column 'tokens')"),
        (with_values("id", lambda v: [None, *v[1:]]), "column 'id' contains nulls"),
        (lambda table: table.cast(table.schema.set(0, pa.field("batch", pa.float64()))), "double"),
        (with_totals(read="many"), "not a plan file (invalid read 'many')"),
        (
            lambda table: table.replace_schema_metadata({b"virnucpro": b"null"}),
            "not a plan file (no summary",
        ),
    ],
)
def test_damaged_plans_are_reported_in_one_line(
    packed: tuple[Path, Path], change: Callable[[Any], Any], message: str
) -> None:
    plan, path = packed
    rewrite(plan, change)
    for arguments in (["verify", plan, path], ["report", plan, "-o", path.with_suffix(".html")]):
        result = run(*arguments)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"virnucpro: {plan}: ")
        assert message in line


def test_a_batch_of_many_rows_is_one_group(tmp_path: Path) -> None:
    sequences = sequences_of([0] * 1_100_000, ["x"] * 1_100_000)
    path = tmp_path / "plan.parquet"
    write(path, sequences, GreedyPacker(10**7), "truncate")
    assert pq.ParquetFile(path).num_row_groups == 1


def test_plans_of_other_versions_are_refused(packed: tuple[Path, Path]) -> None:
    def later(table: Any) -> Any:
        found = json.loads(table.schema.metadata[b"virnucpro"])
        return table.replace_schema_metadata({b"virnucpro": json.dumps({**found, "version": 99})})

    rewrite(packed[0], later)
    with pytest.raises(ValueError, match=r"plan.parquet: plan file of version 99"):
        read_summary(packed[0])


def test_summary_is_what_was_written(packed: tuple[Path, Path]) -> None:
    summary = read_summary(packed[0])
    assert summary.inputs == read_files([str(packed[1])]).inputs
    totals = summary.totals
    assert totals.packed == totals.read == 400
    assert replace(totals, packed=1) != totals
