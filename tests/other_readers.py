"""Reads plans with pandas, Polars and DuckDB, which leave out row groups by their statistics."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "<=": operator.le,
    ">=": operator.ge,
}


def with_pandas(path: Path, name: str, symbol: str, value: Any) -> list[int]:
    """Return the rows with a value in a column, by pandas."""
    import pandas as pd

    # With threads, pyarrow may wait forever once a damaged file has been an error.
    options: dict[str, Any] = {"use_threads": False, "pre_buffer": False}
    return list(pd.read_parquet(path, filters=[(name, symbol, value)], **options)["row"])


def with_polars(path: Path, name: str, symbol: str, value: Any) -> list[int]:
    """Return the same, by Polars."""
    import polars as pl

    source = path / "*.parquet" if path.is_dir() else path
    rows = pl.scan_parquet(source).filter(OPERATORS[symbol](pl.col(name), value))
    return list(rows.collect()["row"])


def with_duckdb(path: Path, name: str, symbol: str, value: Any) -> list[int]:
    """Return the same, by DuckDB."""
    import duckdb

    source = path / "*.parquet" if path.is_dir() else path
    query = f"SELECT row FROM read_parquet(?) WHERE {name} {symbol.replace('==', '=')} ?"
    return [row for (row,) in duckdb.execute(query, [str(source), value]).fetchall()]


READERS = (with_pandas, with_polars, with_duckdb)


def find_lost_rows(path: Path, draw: random.Random, searches: int = 10) -> str:
    """Return a reader that does not find all rows of a plan, and where; "" if all do.

    Rows are searched by the least and the greatest values of columns in row groups. A reader that
    refuses the file loses no rows in silence.
    """
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    table: list[dict[str, Any]] = []
    ends = set()
    for part in parts:
        with pq.ParquetFile(part) as file:
            for number in range(file.num_row_groups):
                rows = file.read_row_group(number).to_pylist()
                table += rows
                for name in rows[0]:
                    values = sorted({row[name] for row in rows} - {None})
                    ends |= {(name, value) for value in values[:1] + values[-1:]}
    chosen = draw.sample(sorted(ends, key=str), min(searches, len(ends)))
    for name, value in chosen:
        symbol = draw.choice([*OPERATORS])
        is_found = OPERATORS[symbol]
        expected = [
            row["row"] for row in table if row[name] is not None and is_found(row[name], value)
        ]
        for read in READERS:
            try:
                found = read(path, name, symbol, value)
            except Exception:
                continue
            if sorted(found) != sorted(expected):
                return f"{read.__name__} where {name} {symbol} {value!r}"
    return ""
