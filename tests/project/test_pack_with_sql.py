"""The page on SQL and data frames runs as it stands there, and packs as the package does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from proteins import random_lengths

from virnucpro.data import GreedyPacker, PackingPlan, pack_files

PAGE = Path(__file__).parents[2] / "docs/how-to/pack-with-sql.md"
# Which collations, lower case or UTF-16 would put in another order.
ODD = ["", "a", "B", "b", "É", "é", "z", "Z", "_", "\uffff", "\U00010000", "e\u0301", "10", "9"]


def write_lengths(num_files: int, rows_of_each: int) -> tuple[list[str], list[int]]:
    """Write tables of lengths and return all IDs and lengths."""
    num = num_files * rows_of_each
    names = [f"p{name}" for name in np.random.default_rng(1).permutation(num - len(ODD))]
    ids = [*names, *ODD]
    lengths = random_lengths(num)
    # All odd IDs tie, as do most truncated sequences.
    lengths[-len(ODD) :] = 300
    Path("lengths").mkdir()
    for i in range(num_files):
        rows = slice(i * rows_of_each, (i + 1) * rows_of_each)
        table = pa.table({"id": ids[rows], "length": lengths[rows]})
        pq.write_table(table, f"lengths/part-{i}.parquet")
    return ids, lengths.tolist()


def blocks() -> list[str]:
    """Return the code of the page."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ids, lengths = write_lengths(3, 7000)
    duckdb_code, polars_code = blocks()
    found: dict[str, Any] = {}
    exec(duckdb_code, found)
    of_duckdb = found["layout"]
    exec(polars_code, found)
    plan = GreedyPacker(4096).pack_lengths(lengths, ids)
    layout = GreedyPacker(4096).lay_out(GreedyPacker(4096).count(lengths))
    assert of_duckdb == found["layout"] == layout
    assert layout.num_truncated > 500
    expected = {
        "batch": np.repeat(np.arange(len(plan)), np.diff(plan.offsets)).tolist(),
        "slot": [slot for rows in plan for slot in range(len(rows))],
        "id": [ids[row] for row in plan.indices],
        "length": [lengths[row] for row in plan.indices],
        "tokens": [min(lengths[row], 1022) + 2 for row in plan.indices],
    }
    files = sorted(str(path) for path in Path("lengths").iterdir())
    pack_files(files, "local.parquet", GreedyPacker(4096))
    assert PackingPlan.load("local.parquet") == plan
    for name in ("duckdb.parquet", "polars.parquet"):
        table = pq.read_table(name)
        assert table.column_names == list(expected)
        assert table.to_pydict() == expected


def test_multiples_as_the_page_rounds_them() -> None:
    import duckdb

    (rounding,) = re.findall(r"`(ceil\(.*?)`", PAGE.read_text(encoding="utf-8"))
    found = duckdb.sql(f"SELECT {rounding} AS rounded, tokens FROM range(1, 2000) t(tokens)")
    for rounded, tokens in found.fetchall():
        assert rounded == -(-tokens // 16) * 16


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([40, 40, 7], "InvalidInputException", "is a size that the layout does not have"),
        ([40, 40, 40], "InvalidInputException", r"rank\[.*\] must be from 0 to 1"),
        ([40], "AssertionError", ""),
    ],
)
def test_changes_between_the_passes_are_errors(
    lengths: list[int], error: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import duckdb

    def write(lengths: list[int]) -> None:
        table = pa.table({"id": [f"p{i}" for i in range(len(lengths))], "length": lengths})
        pq.write_table(table, "lengths/part-0.parquet")

    monkeypatch.chdir(tmp_path)
    Path("lengths").mkdir()
    counting, placing = re.split(r"(?=\n\ndef place)", blocks()[0], maxsplit=1)
    found: dict[str, Any] = {}
    write([40, 40, 30])
    exec(counting, found)
    write(lengths)
    with pytest.raises((duckdb.Error, AssertionError)) as raised:
        exec(placing, found)
    found["db"].close()
    assert type(raised.value).__name__ == error
    assert re.search(message, str(raised.value))


@pytest.mark.parametrize(
    ("length", "error", "message"),
    [(None, TypeError, "tokens must"), (-1, ValueError, r"tokens\[\d\] must be from 2 to 1024")],
)
def test_nulls_and_negative_lengths_are_errors(
    length: int | None,
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lengths").mkdir()
    for number in (length, 3):
        pq.write_table(
            pa.table({"id": ["a", "b"], "length": [2000, number]}), "lengths/one.parquet"
        )
        found: dict[str, Any] = {}
        for code in blocks():
            if number == 3:
                exec(code, found)
                continue
            with pytest.raises(error, match=message):
                exec(code, found)
        found["db"].close()
