"""The page on SQL and data frames rounds and refuses as the package does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pages import ROOT, read_blocks

PAGE = ROOT / "docs/how-to/pack-with-sql.md"


def blocks() -> list[str]:
    """Return the code of the page."""
    return [block.code for block in read_blocks("docs/how-to/pack-with-sql.md") if block.is_run]


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
