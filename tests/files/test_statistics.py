"""The metadata of Parquet files agrees with their rows, so that no reader leaves rows out."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command import run
from other_readers import READERS, find_lost_rows, with_duckdb, with_pandas, with_polars
from plans import read_table, sequences_of, write

from virnucpro.data import GreedyPacker
from virnucpro.files.statistics import SCHEMA_KEY
from virnucpro.files.tables import PLAN_KEY
from virnucpro.files.verify import verify_plan


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan of three row groups."""
    monkeypatch.setattr("virnucpro.files.plan_writer.ROW_GROUP_SIZE", 10)
    lengths = np.random.default_rng(0).integers(1, 60, 30).tolist()
    path = tmp_path / "plan.parquet"
    write(path, sequences_of(lengths, [f"s{i:02}" for i in range(30)]), GreedyPacker(62))
    assert pq.read_metadata(path).num_row_groups >= 3
    assert verify_plan(path, None) == []
    return path


def statistics_of(path: Path, group: int, name: str) -> Any:
    metadata = pq.read_metadata(path)
    return metadata.row_group(group).column(metadata.schema.names.index(name)).statistics


def zero_maximum(path: Path) -> None:
    """Set the greatest batch of the first row group to 0, in both its copies in the footer."""
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    found = b"\x04" + statistics_of(path, 0, "batch").max_raw.to_bytes(4, "little")
    path.write_bytes(data[:footer] + data[footer:].replace(found, b"\x04" + bytes(4), 2))
    assert statistics_of(path, 0, "batch").max == 0


@pytest.mark.parametrize("read", READERS)
def test_a_zeroed_maximum_loses_rows(plan: Path, read: Callable[..., list[int]]) -> None:
    table = read_table(plan)
    last = statistics_of(plan, 0, "batch").max
    right = [row["row"] for row in table.to_pylist() if row["batch"] == last]
    assert sorted(read(plan, "batch", "==", last)) == sorted(right)
    zero_maximum(plan)
    assert read_table(plan).equals(table)
    assert read(plan, "batch", "==", last) == []
    assert find_lost_rows(plan, random.Random(0), 100) != ""
    (error,) = verify_plan(plan, None)
    assert error == (
        f"column 'batch' of row group 0: max is 0 in its statistics, expected {last} "
        "(errors in this column: 2)"
    )


def test_a_changed_page_header_loses_rows(plan: Path) -> None:
    """DuckDB leaves out pages by the statistics in their headers, which pyarrow does not read."""
    table = read_table(plan)
    last = statistics_of(plan, 0, "id").max_raw
    content = plan.read_bytes()
    at = content.index(b"\x03" + last)
    assert at < len(content) // 2
    plan.write_bytes(content[: at + 1] + b"a" + content[at + 2 :])
    assert read_table(plan).equals(table)
    assert statistics_of(plan, 0, "id").max_raw == last
    (error,) = verify_plan(plan, None)
    assert "column 'id' of row group 0: in a page, max is b'a" in error
    assert with_duckdb(plan, "id", "==", last.decode()) == []


def test_a_changed_bool_loses_rows(plan: Path) -> None:
    """pyarrow takes every even number for false, Polars only 0."""
    content = plan.read_bytes()
    found, other = b"(\x01\x00\x18\x01\x00", b"(\x01\x02\x18\x01\x02"
    at = content.rindex(found)
    plan.write_bytes(content[:at] + other + content[at + len(found) :])
    (error,) = verify_plan(plan, None)
    assert "column 'truncated' of row group" in error
    assert "max is b'\\x02' in its statistics, expected False" in error
    assert len(with_polars(plan, "truncated", "<=", False)) < 30


def test_a_part_of_a_folder(plan: Path) -> None:
    folder = plan.with_name("plan")
    folder.mkdir()
    pq.write_metadata(pq.read_schema(plan), folder / "_common_metadata")
    plan.rename(folder / "part-0.parquet")
    assert verify_plan(folder, None) == []
    assert find_lost_rows(folder, random.Random(0)) == ""
    zero_maximum(folder / "part-0.parquet")
    (error,) = verify_plan(folder, None)
    assert error.startswith("file 'part-0.parquet': column 'batch' of row group 0: max is 0")
    # pandas takes each file in a folder for a part of it.
    (folder / "more").mkdir()
    (folder / "more" / "part-1.pq").write_bytes((folder / "part-0.parquet").read_bytes())
    (folder / "_SUCCESS").touch()
    assert "the folder has another file, 'more/part-1.pq' (other files: 1)" in verify_plan(
        folder, None
    )


def test_text_is_compared_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "plan.parquet"
    ids = ["é", "z", "\U0001f9ec", "a" * 5000, "", "ab"]
    write(path, sequences_of([1] * 6, ids), GreedyPacker(62))
    assert verify_plan(path, None) == []
    assert find_lost_rows(path, random.Random(0), 100) == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"write_page_index": True}, "has an index, which is not checked"),
        (
            {"sorting_columns": [pq.SortingColumn(0)]},
            "its row groups have an order of rows, which is not checked",
        ),
    ],
)
def test_what_plans_do_not_have(plan: Path, options: dict[str, Any], message: str) -> None:
    pq.write_table(read_table(plan), plan, **options)
    assert any(message in error for error in verify_plan(plan, None))
    assert run("verify", plan).returncode != 0


@pytest.mark.parametrize("is_schema", [False, True])
def test_copies_of_the_summary_differ(plan: Path, is_schema: bool) -> None:
    content = plan.read_bytes()
    found, other = b'"lower_case": 0', b'"lower_case": 1'
    if is_schema:
        schema = pq.read_metadata(plan).metadata[SCHEMA_KEY]
        found, other = schema, base64.b64encode(base64.b64decode(schema).replace(found, other))
    assert found != other
    assert content.count(found) == 1
    plan.write_bytes(content.replace(found, other))
    assert verify_plan(plan, None) == ["the copies of the summary in its metadata differ"]


@pytest.mark.parametrize("change", ["without", "other"])
def test_one_copy_of_the_summary(plan: Path, change: str) -> None:
    """Metadata that another program wrote may have one copy."""
    table = read_table(plan)
    metadata = dict(table.schema.metadata)
    if change == "other":
        metadata[b"more"] = b"1"
    pq.write_table(table.replace_schema_metadata(metadata), plan, store_schema=change == "other")
    if change == "without":
        # The types that Arrow restores from its schema are lost.
        with pytest.raises(ValueError, match="not a plan file"):
            verify_plan(plan, None)
    else:
        assert verify_plan(plan, None) == []
        assert PLAN_KEY in pq.read_schema(plan).metadata


def test_correct_plans_are_read_completely(plan: Path) -> None:
    assert find_lost_rows(plan, random.Random(0), 30) == ""
    rows = sorted(read_table(plan)["row"].to_pylist())
    for read in (with_pandas, with_polars, with_duckdb):
        assert sorted(read(plan, "batch", ">=", 0)) == rows
