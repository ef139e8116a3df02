"""Plan files and options that earlier versions wrote are read as they were meant."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import run
from hypothesis import example, given
from hypothesis import strategies as st
from plans import tokens_of
from store import FASTA, LENGTHS, NEWER_PLANS, PLANS, STORED, make_plan, make_read_options
from strategies import Case, cases

from virnucpro.data import GreedyPacker, PackingPlan
from virnucpro.files.fasta import ReadOptions, read_fasta
from virnucpro.files.plan_reader import read_summary
from virnucpro.files.plan_summary import NEWER_VERSION, VERSION
from virnucpro.files.tables import PLAN_KEY

PATHS = sorted(path for path in STORED.glob("*plan-*") if path.suffix != ".pickle")
OLD_ARROW = STORED / "plan-4.arrow"


def name_of(path: Path) -> str:
    """Return the name of a stored plan, by which the program that stored it knows it."""
    return path.stem.split("-")[0]


PARQUET = [path for path in PATHS if path.suffix == ".parquet" and name_of(path) in PLANS]
MAKE = {**{name: make for name, (make, _) in PLANS.items()}, **NEWER_PLANS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@pytest.mark.parametrize("name", PLANS)
def test_the_version_that_is_written_is_stored(name: str) -> None:
    assert STORED / f"{name}-{VERSION}.parquet" in PATHS
    assert STORED / f"{name}-{VERSION}.arrow" in PATHS
    for newer in NEWER_PLANS:
        assert STORED / f"{newer}-{NEWER_VERSION}.parquet" in PATHS
        assert STORED / f"{newer}-{NEWER_VERSION}.arrow" in PATHS
    records = list(read_fasta(STORED / FASTA))
    assert [len(sequence) for _, sequence in records] == LENGTHS
    assert [name for name, _ in records] == [f"seq{row:02d}" for row in range(len(LENGTHS))]


@pytest.mark.parametrize("path", PARQUET, ids=lambda path: path.name)
def test_stored_plans_are_those_of_the_same_input(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The plan names its input relative to this folder.
    monkeypatch.chdir(STORED)
    _, options = PLANS[name_of(path)]
    assert run("pack", FASTA, "-o", tmp_path / "plan.parquet", *options).returncode == 0
    stored, made = pq.read_table(path), pq.read_table(tmp_path / "plan.parquet")
    bare = stored.replace_schema_metadata(None)
    assert bare.equals(made.select(stored.column_names).cast(bare.schema))
    if path.stem.endswith(f"-{VERSION}"):
        assert stored.schema.equals(made.schema)
    found, expected = (
        json.loads(run("stats", "--json", plan).stdout)
        for plan in (path, tmp_path / "plan.parquet")
    )
    assert found == expected
    assert run("stats", path).returncode == 0


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_stored_plans_pass_verification(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(STORED)
    for arguments in ([path.name], [path.name, FASTA]):
        verified = run("verify", *arguments)
        if path == OLD_ARROW:
            assert verified.returncode == 2
            assert "plan-4.arrow: plan file of version 4, without a summary" in verified.stderr
            continue
        assert (verified.returncode, verified.stdout) == (0, "")
        assert verified.stderr.startswith(f"{path.name}: OK (12 sequences")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_stored_plans_are_loaded(path: Path) -> None:
    loaded, plan = PackingPlan.load(path), MAKE[name_of(path)]()
    assert loaded == plan
    assert loaded.limits == plan.limits
    assert loaded.lower_bound == plan.lower_bound
    assert loaded.num_rows == len(LENGTHS)
    assert tokens_of(loaded) == tokens_of(plan)


def test_stored_options_are_read() -> None:
    paths = sorted(STORED.glob("read_options*.pickle"))
    assert paths
    for path in paths:
        assert pickle.loads(path.read_bytes()) == make_read_options()


def write_version_4(path: Path, plan: PackingPlan) -> pa.Table:
    """Write a plan as version 4 did: with wider numbers, and without its layout."""
    plan.save(path)
    table = pq.read_table(path)
    for place, name in enumerate(("batch", "row")):
        table = table.set_column(place, name, table[name].cast(pa.int64()))
    state = json.loads(table.schema.metadata[PLAN_KEY])
    del state["layout"], state["overlap"]
    totals = {name: value or 0 for name, value in state["totals"].items()}
    for name in ("split", "fragments", "residues_repeated"):
        del totals[name]
    overlong = "drop" if len(plan.dropped) else "truncate"
    options = asdict(ReadOptions())
    state.update(version=4, method="ffd", overlong=overlong, options=options, totals=totals)
    table = table.replace_schema_metadata({PLAN_KEY: json.dumps(state)})
    pq.write_table(table, path)
    return table


# The smallest size is in batches that do not follow each other.
@example(case=Case([7, 6, 5, 4, 3, 3], 10, 10, 0, None), overlong="truncate")
@given(case=cases(multiples=[1]), overlong=st.sampled_from(["truncate", "drop"]))
def test_layouts_of_version_4_are_found_from_its_rows(
    folder: Path, case: Case, overlong: str
) -> None:
    plan = GreedyPacker(**case.parameters, overlong=overlong).pack_lengths(case.lengths)
    path = folder / "old.parquet"
    write_version_4(path, plan)
    loaded = PackingPlan.load(path)
    # The same batches, though their runs may be fewer.
    for found in (loaded, loaded.reshuffle(7)):
        expected = plan if found is loaded else plan.reshuffle(7)
        assert found.indices.tolist() == expected.indices.tolist()
        assert found.offsets.tolist() == expected.offsets.tolist()
        assert tokens_of(found) == tokens_of(expected)
        assert found.dropped.tolist() == expected.dropped.tolist()
        assert found.core.counts == expected.core.counts
        assert found.limits == expected.limits
        assert found.lower_bound == expected.lower_bound
    assert loaded.summary == read_summary(path)
    loaded.save(folder / "new.arrow")
    assert PackingPlan.load(folder / "new.arrow") == loaded


@given(
    case=cases(max_size=12, multiples=[1]),
    name=st.sampled_from(["batch", "tokens"]),
    change=st.sampled_from([-(2**62), -1, 1, 2, 2**62]),
    data=st.data(),
)
def test_batches_of_version_4_that_make_no_layout_are_refused(
    folder: Path, case: Case, name: str, change: int, data: st.DataObject
) -> None:
    """Those that make one have that of the changed rows."""
    plan = GreedyPacker(**case.parameters).pack_lengths(case.lengths)
    if plan.num_sequences == 0:
        return
    path = folder / "old.parquet"
    table = write_version_4(path, plan)
    values = table[name].to_pylist()
    values[data.draw(st.integers(0, len(values) - 1))] += change
    if not -(2**63) <= min(values) <= max(values) < 2**63:
        return
    place = table.schema.get_field_index(name)
    table = table.set_column(place, name, pa.array(values))
    pq.write_table(table, path)
    try:
        loaded = PackingPlan.load(path)
    except ValueError:
        return
    assert list(chain(*tokens_of(loaded))) == table["tokens"].to_pylist()
    batches = np.repeat(np.arange(len(loaded)), np.diff(loaded.offsets))
    assert batches.tolist() == table["batch"].to_pylist()


def change_rows(rows: Any) -> Any:
    """Return lists of rows whose offsets overlap."""
    offsets = rows.offsets.to_pylist()
    offsets[1] += 1
    offsets[2] -= 1
    return type(rows).from_arrays(pa.array(offsets, rows.offsets.type), rows.values)


def with_rows(change: Callable[[int], int]) -> Callable[[Any], Any]:
    """Change each row."""
    return lambda rows: pa.array(
        [[change(row) for row in batch] for batch in rows.to_pylist()], rows.type
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_rows, "the rows of a plan do not match its layout"),
        (lambda rows: rows[:-1], "the rows of a plan do not match its layout"),
        (lambda rows: rows[:0], "the rows of a plan do not match its layout"),
        (with_rows(lambda row: -1 - row), "a row is negative or occurs more than once"),
        (with_rows(lambda _: 0), "a row is negative or occurs more than once"),
        (lambda rows: rows.cast(pa.large_list(pa.int64())), None),
    ],
)
def test_damaged_arrow_files_of_version_4(tmp_path: Path, change: Any, message: Any) -> None:
    table = pa.ipc.open_file(str(OLD_ARROW)).read_all().combine_chunks()
    rows = change(table["rows"].chunk(0))
    tokens = table["tokens"].combine_chunks()[: len(rows)]
    changed = pa.table({"rows": rows, "tokens": tokens}, metadata=table.schema.metadata)
    path = tmp_path / "plan.arrow"
    with pa.ipc.new_file(str(path), changed.schema) as writer:
        writer.write_table(changed)
    if message is None:
        assert PackingPlan.load(path) == make_plan()
        return
    with pytest.raises(ValueError, match=f"^{path}: not a plan file .{message}"):
        PackingPlan.load(path)


@pytest.mark.parametrize(
    "metadata", [None, {PLAN_KEY: b"5"}, {PLAN_KEY: b"{}"}, {PLAN_KEY: b"[" * 10**6}]
)
def test_arrow_files_of_version_4_without_a_layout(tmp_path: Path, metadata: Any) -> None:
    table = pa.ipc.open_file(str(OLD_ARROW)).read_all().replace_schema_metadata(metadata)
    path = tmp_path / "plan.arrow"
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=f"^{path}: not a plan file "):
        PackingPlan.load(path)
