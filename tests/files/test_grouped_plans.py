"""Files of plans with groups, and of plans with both fragments and dropped rows."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import run
from grouped import labels
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
    sequences_of,
    tokens_of,
    with_summary,
    with_values,
    write,
)
from strategies import Case, cases

from virnucpro.data import GreedyPacker, PackingPlan, pack_files
from virnucpro.files.output import write_file
from virnucpro.files.plan_reader import read_summary
from virnucpro.files.plan_summary import encode_arrays, summarize
from virnucpro.files.plan_writer import write_plan
from virnucpro.files.tables import PLAN_KEY
from virnucpro.files.verify import verify_plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


def state_of(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(read_table(path).schema.metadata[PLAN_KEY])
    return state


@given(
    case=cases(),
    overlong=st.sampled_from(OVERLONG),
    empty=st.sampled_from(["pack", "drop"]),
    suffix=st.sampled_from(SUFFIXES),
    data=st.data(),
)
def test_saved_plans_are_loaded(
    folder: Path, case: Case, overlong: str, empty: str, suffix: str, data: st.DataObject
) -> None:
    packer = make_packer(case, overlong, empty=empty)
    lengths = lengths_for(packer, case)
    groups = data.draw(st.none() | labels(len(lengths)))
    plan = packer.pack_lengths(lengths, groups=groups)
    path = folder / f"plan{suffix}"
    plan.save(path)
    loaded = PackingPlan.load(path)
    for found in (loaded, pickle.loads(pickle.dumps(loaded))):
        assert found == plan
        assert found.indices.dtype == found.dropped.dtype == plan.indices.dtype
        assert found.num_rows == plan.num_rows
        assert tokens_of(found) == tokens_of(plan)
        assert found.reshuffle(3) == plan.reshuffle(3)
        assert found.lower_bound == plan.lower_bound
        assert found.summary == summarize(plan)
        assert found.dropped.tolist() == plan.dropped.tolist()
    ids = [str(row) for row in range(len(lengths))]
    assert verify_plan(path, None) == verify_plan(path, sequences_of(lengths, ids)) == []
    # Earlier versions read all plans that have nothing that they do not know.
    is_newer = groups is not None or (plan.fragments is not None and len(plan.dropped) > 0)
    state = state_of(path)
    assert state["version"] == (6 if is_newer else 5)
    assert ("group_offsets" in state["layout"]) == (groups is not None)
    assert "empty" not in state
    # A copy of what was loaded.
    loaded.save(folder / "copy.arrow")
    assert PackingPlan.load(folder / "copy.arrow") == plan


@given(case=cases(), overlong=st.sampled_from(OVERLONG), suffix=st.sampled_from(SUFFIXES))
def test_plans_of_files_without_empty_sequences(
    folder: Path, case: Case, overlong: str, suffix: str
) -> None:
    packer = make_packer(case, overlong, empty="drop")
    lengths = lengths_for(packer, case)
    sequences = sequences_of(lengths, ["ab"[row % 2] for row in range(len(lengths))])
    path = folder / f"plan{suffix}"
    plan = write(path, sequences, packer)
    assert verify_plan(path, sequences) == verify_plan(path, None) == []
    assert PackingPlan.load(path) == plan
    summary = read_summary(path)
    assert summary.empty == summary.parameters["empty"] == "drop"
    assert (summary.totals.empty, summary.totals.read) == (lengths.count(0), len(lengths))
    assert summary.totals.dropped == len(plan.dropped)
    is_split = overlong == "split" and plan.fragments is not None
    in_batches = set(range(len(lengths))) - set(plan.dropped.tolist())
    assert summary.totals.packed == len(in_batches)
    assert {"fragment", "start", "stop"} <= set(read_table(path).schema.names) or not is_split


def test_columns_are_null_for_dropped_rows(tmp_path: Path) -> None:
    path = tmp_path / "plan.parquet"
    GreedyPacker.for_documents(10).pack_lengths([25, 0, 5]).save(path)
    assert pq.read_table(path).to_pydict() == {
        "batch": [0, 1, 2, 2, None],
        "row": [0, 0, 0, 2, 1],
        "fragment": [0, 1, 2, 3, None],
        "start": [0, 10, 20, 0, None],
        "stop": [10, 20, 25, 5, None],
        "tokens": [10, 10, 5, 5, None],
    }


def test_documents_in_tables_are_packed(tmp_path: Path) -> None:
    table, output = tmp_path / "lengths.parquet", tmp_path / "plan.parquet"
    lengths = [5000, 0, 300, 4096, 0]
    pq.write_table(pa.table({"id": list("abcde"), "length": lengths}), table)
    packer = GreedyPacker.for_documents(4096)
    summary = pack_files(table, output, packer)
    assert (summary.totals.dropped, summary.totals.empty, summary.totals.split) == (2, 2, 1)
    assert PackingPlan.load(output) == packer.pack_lengths(lengths, list("abcde"))
    assert run("verify", output, table).returncode == 0
    assert run("stats", output).returncode == 0
    report = tmp_path / "report.html"
    assert run("report", output, "-o", report).returncode == 0
    with pytest.raises(ValueError, match=r"exceeds the default max_sequence_length, which is for"):
        pack_files(table, output, GreedyPacker(8192, special_tokens=0))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reports_count_batches_of_groups(tmp_path: Path, suffix: str) -> None:
    """By First-Fit and Next-Fit Decreasing, which would make fewer without groups."""
    path, page = tmp_path / f"plan{suffix}", tmp_path / "report.html"
    lengths = [30, 30, 30, 30]
    plan = GreedyPacker(100).pack_lengths(lengths, groups=[0, 1, 2, 3])
    plan.save(path)
    totals = read_summary(path).totals
    assert (totals.batches, totals.first_fit_batches, totals.lower_bound) == (4, 4, 4)
    assert run("stats", path).returncode == 0
    assert run("report", path, "-o", page).returncode == 0
    text = page.read_text(encoding="utf-8")
    assert re.search("Next-Fit Decreasing</td><td [^>]*>4</td>", text)


def test_joined_plans_are_saved(tmp_path: Path) -> None:
    packer = GreedyPacker.for_documents(10)
    for name, lengths in (("a.arrow", [25, 0, 5]), ("b.parquet", [7, 3, 3])):
        packer.pack_lengths(lengths).save(tmp_path / name)
    parts = [PackingPlan.load(tmp_path / name) for name in ("a.arrow", "b.parquet")]
    plan = PackingPlan.concatenate(parts)
    assert plan.summary is None
    plan.save(tmp_path / "plan.arrow")
    loaded = PackingPlan.load(tmp_path / "plan.arrow")
    assert loaded == plan
    assert loaded.group_offsets is not None
    assert loaded.group_offsets.tolist() == [0, 3, 5]
    assert (loaded.num_rows, loaded.dropped.tolist()) == (6, [1])
    assert verify_plan(tmp_path / "plan.arrow", None) == []


def offsets(values: Any) -> Callable[[Any], Any]:
    """Change the offsets of groups."""
    return with_summary(lambda state: state["layout"].update(group_offsets=values))


def encoded(*numbers: int) -> Any:
    return encode_arrays(np.array(numbers, np.int64))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "values",
    [
        *(encoded(*numbers) for numbers in ((), (0,), (1, 4), (0, 5), (0, -1, 4), (0, 3, 2, 4))),
        encoded(2**63 - 1),
        encoded(0, -(2**63), 4),
        None,
        4,
        [0, 4],
        "0, 4",
        {"int64": 3},
        {"int64": "AAAA"},
        {"int32": "AAAA"},
    ],
    ids=str,
)
def test_forged_groups_are_refused(tmp_path: Path, suffix: str, values: Any) -> None:
    path = tmp_path / f"plan{suffix}"
    GreedyPacker(100).pack_lengths([90, 80, 70, 60], groups=[0, 0, 1, 1]).save(path)
    forge(path, offsets(values))
    message = f"^{path}: not a plan file .its layout: "
    with pytest.raises(ValueError, match=message):
        PackingPlan.load(path)
    with pytest.raises(ValueError, match=message):
        verify_plan(path, None)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_verify_finds_wrong_groups(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plan{suffix}"
    lengths = [90, 80, 85, 60]
    plan = GreedyPacker(100).pack_lengths(lengths, groups=[0, 0, 1, 1])
    assert [rows.tolist() for rows in plan] == [[0], [1], [2], [3]]
    plan.save(path)
    assert verify_plan(path, None) == []
    with_other = [
        (encoded(0, 4), "batch 2 begins with a longer sequence than the previous batch"),
        (encoded(0, 1, 4), "batch 2 begins with a longer sequence than the previous batch"),
        (encoded(0, 3, 4), "batch 2 begins with a longer sequence than the previous batch"),
    ]
    for values, error in with_other:
        forge(path, offsets(values))
        assert error in verify_plan(path, None)
    rewrite(path, with_summary(lambda state: state["layout"].pop("group_offsets")))
    assert PackingPlan.load(path).group_offsets is None
    assert "batch 2 begins with a longer sequence than the previous batch" in verify_plan(
        path, None
    )


def test_verify_compares_each_group_with_first_fit(tmp_path: Path) -> None:
    path = tmp_path / "plan.arrow"
    packer = GreedyPacker(100)
    lengths = [30, 30, 30]
    packer.pack_lengths(lengths, groups=[0, 1, 1]).save(path)
    method = with_summary(lambda state: state.update(method="ffd", overlong="truncate"))
    forge(path, method)
    assert verify_plan(path, sequences_of(lengths, list("abc"))) == []
    # The sequences of the second group would have fitted in the batch of the first.
    forge(path, offsets(encoded(0, 2)))
    errors = "; ".join(verify_plan(path, None))
    assert "batch 0 had room for a sequence that is in batch 1: the plan is not First" in errors
    assert "first_fit_batches is 2 in the summary, expected 1" in errors
    assert "lower_bound is 2 in the summary, expected 1" in errors


def test_verify_compares_ties_of_each_group(tmp_path: Path) -> None:
    path = tmp_path / "plan.arrow"
    lengths, ids = [30, 30, 30, 30], ["d", "c", "b", "a"]
    plan = GreedyPacker(100).pack_lengths(lengths, ids, groups=[0, 0, 1, 1])
    sequences = sequences_of(lengths, ids)
    summary = replace(summarize(plan), inputs=sequences.inputs)
    with write_file(path) as file:
        write_plan(file, "arrow", plan, sequences, summary)
    assert verify_plan(path, None) == []
    rewrite(path, with_summary(lambda state: state["layout"].pop("group_offsets")))
    assert any("not in order of IDs" in error for error in verify_plan(path, None))


SPLIT_AND_DROPPED: list[tuple[Callable[[Any], Any], str]] = [
    (with_values("fragment", lambda v: [None, *v[1:]]), "fragment"),
    (with_values("start", lambda v: [None, *v[1:]]), "start in a batch"),
    (with_values("fragment", lambda v: [*v[:-1], 4]), "fragment of a dropped row"),
    (with_values("start", lambda v: [*v[:-1], 0]), "start of a dropped row"),
    (with_values("row", lambda v: [*v[:-1], 2]), "row"),
    (with_values("row", lambda v: [*v[:-1], 7]), "row"),
    (with_values("row", lambda v: [*v[:-1], 0]), "row"),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("change", "name"), SPLIT_AND_DROPPED)
def test_damaged_fragments_beside_dropped_rows(
    tmp_path: Path, suffix: str, change: Callable[[Any], Any], name: str
) -> None:
    path = tmp_path / f"plan{suffix}"
    lengths = [25, 0, 5]
    GreedyPacker.for_documents(10).pack_lengths(lengths).save(path)
    forge(path, change)
    assert verify_plan(path, sequences_of(lengths, list("abc"))) != []
    assert verify_plan(path, None) != []

    def load() -> Any:
        plan = PackingPlan.load(path)
        return plan.fragments, plan.dropped

    # Parquet files are read whole, but what they have for dropped rows is not used.
    if suffix == ".arrow" or not name.endswith("dropped row"):
        reasons = (
            "damaged: its fragments|damaged: (a number in column row|fragment . is)|contains n"
        )
        with pytest.raises(ValueError, match=reasons):
            load()


@pytest.mark.parametrize(
    ("lengths", "empty", "error"),
    [
        ([5, 3, 0], "pack", "row 2 has no batch, but should not be dropped (affected rows: 1)"),
        ([5, 3, 4], "drop", "row 2 has no batch, but should not be dropped (affected rows: 1)"),
        ([5, 3, 4], None, "row 2 has no batch, but should not be dropped (affected rows: 1)"),
        ([5, 0, 0], "drop", "row 1 is in a batch, but should be dropped (affected rows: 1)"),
    ],
)
def test_verify_names_rows_that_were_wrongly_dropped(
    tmp_path: Path, lengths: list[int], empty: str | None, error: str
) -> None:
    path = tmp_path / "plan.parquet"
    packer = GreedyPacker(100, special_tokens=0, empty="drop")
    packer.pack_lengths([5, 3, 0]).save(path)

    def change(state: dict[str, Any]) -> None:
        if empty is not None:
            state.update(overlong="truncate", empty=empty)

    rewrite(path, with_summary(change))
    assert error in verify_plan(path, sequences_of(lengths, list("abc")))


@pytest.mark.parametrize("value", ["keep", 3, ["drop"], True])
def test_forged_parameters_are_refused(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "plan.parquet"
    GreedyPacker(100).pack_lengths([5]).save(path)
    rewrite(path, with_summary(lambda state: state.update(empty=value)))
    with pytest.raises(ValueError, match=r"not a plan file .invalid empty"):
        PackingPlan.load(path)
