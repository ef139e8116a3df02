"""Plan files that `pack` writes: what they hold, and how they are read by others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import run
from fasta import fasta
from hypothesis import given
from hypothesis import strategies as st
from plans import (
    OVERLONG,
    SUFFIXES,
    lengths_for,
    make_packer,
    read_table,
    rewrite,
    sequences_of,
    with_summary,
    with_totals,
    with_values,
    write,
)
from reference import round_up
from strategies import Case, cases

from virnucpro.data import GreedyPacker, PackingPlan, Totals
from virnucpro.files import plan_summary, plan_writer
from virnucpro.files.plan_reader import read_summary
from virnucpro.files.plan_schema import make_schema
from virnucpro.files.plan_summary import VERSION
from virnucpro.files.sequences import read_files
from virnucpro.files.tables import PLAN_KEY

MAX_LENGTH = 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


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


@given(
    case=cases(),
    overlong=st.sampled_from(OVERLONG),
    suffix=st.sampled_from(SUFFIXES),
    data=st.data(),
)
def test_columns(folder: Path, case: Case, overlong: str, suffix: str, data: st.DataObject) -> None:
    """The columns that come from the input are those of each row; both encodings are alike."""
    packer = make_packer(case, overlong)
    lengths = lengths_for(packer, case)
    names = st.lists(st.text(max_size=3), min_size=len(lengths), max_size=len(lengths))
    ids = data.draw(names)
    path = folder / f"plan{suffix}"
    plan = write(path, sequences_of(lengths, ids), packer)
    table = read_table(path)
    limit, special = packer.limits.max_residues, packer.special_tokens
    multiple_of = packer.multiple_of
    half = len(lengths) // 2
    for row in table.to_pylist():
        length = lengths[row["row"]]
        kept = min(length, limit)
        is_dropped = overlong == "drop" and length > limit
        if "start" in row:
            kept = row["stop"] - row["start"]
        assert row["id"] == ids[row["row"]]
        assert row["length"] == length
        assert row["file"] == ("first" if row["row"] < half else "second")
        assert row["truncated"] == (overlong == "truncate" and length > limit)
        tokens = round_up(kept + special, multiple_of)
        assert row["tokens"] == (None if is_dropped else tokens)
        assert (row["batch"] is None) == is_dropped
    assert ("fragment" in table.schema.names) == (plan.fragments is not None)
    assert table.schema.names[0:2] == ["batch", "row"]
    assert PackingPlan.load(path) == plan


@given(case=cases(), overlong=st.sampled_from(OVERLONG))
def test_totals(folder: Path, case: Case, overlong: str) -> None:
    packer = make_packer(case, overlong)
    lengths = lengths_for(packer, case)
    limit, overlap = packer.limits.max_residues, packer.overlap
    path = folder / "plan.parquet"
    ids = ["ab"[row % 2] for row in range(len(lengths))]
    plan = write(path, sequences_of(lengths, ids), packer)
    totals = read_summary(path).totals
    long = [length for length in lengths if length > limit]
    dropped = long if overlong == "drop" else []
    split = long if overlong == "split" else []
    numbers = [1 + -(-(length - limit) // (limit - overlap)) for length in split]
    truncated = long if overlong == "truncate" else []
    repeated = sum(overlap * (number - 1) for number in numbers)
    assert totals == Totals(
        read=len(lengths),
        packed=len(lengths) - len(dropped),
        dropped=len(dropped),
        truncated=len(truncated),
        split=len(split),
        fragments=sum(numbers),
        empty=lengths.count(0),
        stops=0,
        lower_case=0,
        gaps=0,
        insertions=0,
        duplicate_ids=max(0, len(lengths) - 2),
        residues=sum(lengths),
        residues_kept=sum(lengths) - sum(dropped) - sum(truncated) + limit * len(truncated),
        residues_repeated=repeated,
        residues_truncated=sum(truncated) - limit * len(truncated),
        residues_dropped=sum(dropped),
        tokens=int(plan.batch_tokens.sum()) - plan.padding_tokens,
        batches=len(plan),
        first_fit_batches=len(plan),
        efficiency=plan.efficiency,
        lower_bound=plan.lower_bound,
    )
    parts = (totals.residues_kept, totals.residues_truncated, totals.residues_dropped)
    assert totals.residues == sum(map(int, filter(None, parts)))
    # What was saved without its input has the same totals, as far as it can know them.
    plan.save(path)
    saved = read_summary(path).totals
    for field in fields(Totals):
        value = getattr(saved, field.name)
        assert value is None or value == getattr(totals, field.name)
    unknown = {field.name for field in fields(Totals) if getattr(saved, field.name) is None}
    changes = {"stops", "lower_case", "gaps", "insertions", "duplicate_ids"}
    of_dropped = {"residues", "residues_dropped"} if dropped else set()
    # Empty sequences may have as many tokens as others, or may have been dropped.
    is_unknown = packer.limits.tokens(0) == packer.limits.tokens(1) or (
        dropped and not lengths.count(0)
    )
    empty = {"empty"} if is_unknown else set()
    assert unknown == changes | of_dropped | empty


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(1, 1500, 3000).tolist()
    sequences = sequences_of(lengths, [f"s{i}" for i in range(3000)])
    for suffix in SUFFIXES:
        written = []
        for threads in (1, 2, 7):
            path = tmp_path / f"{threads}{suffix}"
            packer = GreedyPacker(4096, MAX_LENGTH, overlong="split", num_threads=threads)
            write(path, sequences, packer)
            written.append(path.read_bytes())
        assert written[0] == written[1] == written[2]


def test_row_groups_hold_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_writer, "ROW_GROUP_SIZE", 50)
    lengths = np.random.default_rng(0).integers(1, 1500, 600).tolist()
    sequences = sequences_of(lengths, [f"s{i}" for i in range(600)])
    path = tmp_path / "plan.parquet"
    plan = write(path, sequences, GreedyPacker(4096, overlong="drop"))
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


def test_a_batch_of_many_rows_is_one_group(tmp_path: Path) -> None:
    sequences = sequences_of([0] * 1_100_000, ["x"] * 1_100_000)
    path = tmp_path / "plan.parquet"
    write(path, sequences, GreedyPacker(10**7))
    assert pq.ParquetFile(path).num_row_groups == 1


def test_row_groups_with_residues_are_small(
    packed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have few tokens, but whole batches."""
    monkeypatch.setattr(plan_writer, "ROW_GROUP_TOKENS", 10_000)
    plan, path = packed
    assert run("pack", path, "-o", plan, "--sequences").returncode == 0
    file = pq.ParquetFile(plan)
    groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
    assert max(sum(map(len, group["sequence"].to_pylist())) for group in groups) <= 10_000
    batches = [sorted(set(group["batch"].to_pylist())) for group in groups]
    assert [batch for some in batches for batch in some] == list(
        range(read_summary(plan).totals.batches)
    )
    assert pa.types.is_large_string(file.schema_arrow.field("sequence").type)


def test_damaged_pages_are_found(packed: tuple[Path, Path]) -> None:
    """Pages have checksums."""
    plan, _ = packed
    column = pq.read_metadata(plan).row_group(0).column(1)
    assert column.path_in_schema == "row"
    content = bytearray(plan.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    plan.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{plan}: not a plan file .damaged: .*CRC"):
        PackingPlan.load(plan)


def test_row_numbers_are_64_bits_wide_for_many_rows() -> None:
    """As many rows as need them do not fit in a test."""
    for is_wide, kind in ((False, pa.int32()), (True, pa.int64())):
        schema = make_schema(is_wide, True, True, True)
        assert {schema.field(name).type for name in ("batch", "row", "fragment")} == {kind}
        for name in ("length", "start", "stop", "tokens"):
            assert schema.field(name).type == pa.int64()
        names = "batch row fragment id length start stop tokens truncated file sequence"
        assert schema.names == names.split()


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


def without(name: str) -> Callable[[Any], Any]:
    """Leave out a part of the metadata."""
    return with_summary(lambda state: state.pop(name))


def put(**values: Any) -> Callable[[Any], Any]:
    """Put other values into the metadata."""
    return with_summary(lambda state: state.update(values))


DAMAGES: list[tuple[Callable[[Any], Any], str]] = [
    (lambda table: table.drop_columns(["tokens"]), "not a plan file (no column 'tokens')"),
    (lambda table: table.drop_columns(["file"]), "not a plan file (no column 'file')"),
    (lambda table: table.append_column("start", table["length"]), "(no column 'fragment')"),
    (with_values("id", lambda v: [None, *v[1:]]), "column 'id' contains nulls"),
    (lambda table: table.cast(table.schema.set(0, pa.field("batch", pa.float64()))), "double"),
    (lambda table: table.replace_schema_metadata(None), "not a plan file (no summary"),
    (
        lambda table: table.replace_schema_metadata({PLAN_KEY: b"null"}),
        "not a plan file (no summary",
    ),
    (lambda table: table.replace_schema_metadata({PLAN_KEY: b"[" * 10**6}), "(no summary"),
    (
        lambda table: table.replace_schema_metadata({PLAN_KEY: b"\xff"}),
        "not a plan file (no summary",
    ),
    (with_totals(read="many"), "not a plan file (invalid read 'many')"),
    (with_totals(read=True), "not a plan file (invalid read True)"),
    (with_totals(dropped=-1), "not a plan file (invalid dropped -1)"),
    (with_totals(tokens=2**63), f"not a plan file (invalid tokens {2**63})"),
    (with_totals(efficiency=float("nan")), "not a plan file (invalid efficiency nan)"),
    (with_totals(packed=None), "not a plan file (invalid packed None)"),
    (put(totals={}), "not a plan file (no 'read' in its summary)"),
    (put(totals=[]), "not a plan file ("),
    (put(method="best"), "not a plan file (invalid method 'best')"),
    (put(overlong="cut"), "not a plan file (invalid overlong 'cut')"),
    (put(overlap=-1), "not a plan file (invalid overlap -1)"),
    (put(overlap=1022), "not a plan file (invalid overlap 1022)"),
    (put(options={"trim": True}), "not a plan file ("),
    (put(options={"strip_stop": 1}), "not a plan file ("),
    (put(inputs=[{"name": "a"}]), "not a plan file ("),
    (put(inputs=5), "not a plan file ("),
    (put(limits={}), "not a plan file (limits have no"),
    (without("limits"), "not a plan file (no 'limits' in its summary)"),
    (without("layout"), "not a plan file (its layout: 'layout')"),
    (put(layout=5), "not a plan file (its layout: "),
    (put(layout={"version": 2}), "not a plan file (its layout: "),
    (put(version=99), "plan file of version 99 (this release reads versions 4 to 6)"),
    (put(version=True), "plan file of version True"),
    (put(version="5"), "plan file of version '5'"),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("change", "message"), DAMAGES, ids=[damage[1] for damage in DAMAGES])
def test_damaged_plans_are_reported_in_one_line(
    tmp_path: Path, change: Callable[[Any], Any], message: str, suffix: str
) -> None:
    plan, path = tmp_path / f"plan{suffix}", tmp_path / "a.fa"
    path.write_bytes(fasta([("a", "MKT" * 500), ("b", "MK")]))
    assert run("pack", path, "-o", plan).returncode == 0
    rewrite(plan, change)
    for arguments, status in (
        (["verify", plan, path], 2),
        (["report", plan, "-o", path.with_suffix(".html")], 1),
    ):
        result = run(*arguments)
        assert result.returncode == status
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"virnucpro: error: {plan}: ")
        assert message in line


def test_a_giant_summary_is_not_parsed(
    packed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_summary, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"its summary has [0-9,]+ bytes, more than 1,000\)$"):
        read_summary(packed[0])


def test_summary_is_what_was_written(packed: tuple[Path, Path]) -> None:
    summary = read_summary(packed[0])
    assert summary.inputs == read_files([str(packed[1])]).inputs
    totals = summary.totals
    assert totals.packed == totals.read == 400
    assert replace(totals, packed=1) != totals
    state = json.loads(pq.read_schema(packed[0]).metadata[PLAN_KEY])
    assert state["version"] == summary.to_dict()["version"] == VERSION
    del state["layout"]
    assert state == json.loads(json.dumps(summary.to_dict()))
