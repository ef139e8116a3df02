"""Rows of data sets that are read twice: the file of each, and its number there.

Ray neither keeps the order of rows nor that of blocks from one read to the next: which row groups a
task reads depends on the columns. What a row is known by must therefore come with the row.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from virnucpro.files.tables import check_length_type, check_nulls, find_column
from virnucpro.kernel.arrow import check_array, is_text
from virnucpro.text import quoted, shown

# The columns of ray.data.read_parquet(include_paths=True, include_row_hash=True).
PATH_COLUMN = "path"
HASH_COLUMN = "row_hash"
# A file has fewer rows; a hash made in another way gives such a number once in 2**24 times.
MAX_ROWS = 2**40
# Ray's hash of a row is the finalizer of splitmix64 (Steele, Lea & Flood, OOPSLA 2014) applied to
# the seed of its path plus its number: exclusive ors with itself shifted, and products.
SHIFTS = (31, 27, 30)
INVERSES = (pow(0x94D049BB133111EB, -1, 2**64), pow(0xBF58476D1CE4E5B9, -1, 2**64))


def key_columns(row_column: str | None) -> list[str]:
    """Return the names of the columns that a row is known by."""
    return [PATH_COLUMN, HASH_COLUMN] if row_column is None else [row_column]


def find_rows(
    table: pa.Table, row_column: str | None
) -> tuple[list[tuple[str, int, int]], NDArray[np.int64]]:
    """Return the runs of rows of a file, as (path, begin, end), and the number of each row there.

    With a `row_column`, all rows are those of one file without a path.

    Raises:
        ValueError: A column is missing, damaged, has another type or nulls; row numbers are
            negative; or hashes are not those of Ray.
    """
    for name in key_columns(row_column):
        find_column(table.column_names, name)
        check_array(table[name], f"column {quoted(name)}")
        check_nulls(table[name], f"column {quoted(name)}", 0)
    if row_column is not None:
        check_length_type(table[row_column].type, row_column)
        rows = as_numpy(table[row_column].cast(pa.int64()))
        if len(rows) and rows.min() < 0:
            raise ValueError(f"column {quoted(row_column)} is negative (got {rows.min()})")
        return [("", 0, len(rows))] if len(rows) else [], rows
    for name, wanted, fits in (
        (PATH_COLUMN, "strings", is_text(table[PATH_COLUMN].type)),
        (HASH_COLUMN, "uint64", pa.types.is_uint64(table[HASH_COLUMN].type)),
    ):
        if not fits:
            kind = shown(table[name].type)
            raise ValueError(f"column {quoted(name)} must be {wanted} (got {kind})")
    runs = find_runs(table[PATH_COLUMN].cast(pa.string()))
    keys = invert_hashes(as_numpy(table[HASH_COLUMN]))
    for path, begin, end in runs:
        keys[begin:end] -= seed_of(path)
        if keys[begin:end].max() >= MAX_ROWS:
            raise ValueError(
                f"{quoted(path)}: column {quoted(HASH_COLUMN)} is not what Ray's read_parquet adds"
            )
    return runs, keys.view(np.int64)


def find_runs(paths: pa.ChunkedArray) -> list[tuple[str, int, int]]:
    """Return the runs of equal paths, as (path, begin, end)."""
    runs: list[tuple[str, int, int]] = []
    begin = 0
    for chunk in paths.chunks:
        encoded = pc.run_end_encode(chunk)
        ends = begin + encoded.run_ends.to_numpy()
        for path, end in zip(encoded.values.to_pylist(), ends.tolist(), strict=True):
            if runs and runs[-1][0] == path:
                begin = runs.pop()[1]
            runs.append((path, begin, end))
            begin = end
    return runs


def seed_of(path: str) -> np.uint64:
    """Return what Ray adds to the number of each row of a file before it hashes the sum."""
    digest = hashlib.md5(path.encode(), usedforsecurity=False).digest()
    return np.uint64(int.from_bytes(digest[:8], "little"))


def invert_hashes(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return what Ray hashed, as a new array."""
    keys = hashes.copy()
    for shift, inverse in zip(SHIFTS, (*INVERSES, None), strict=True):
        # One more shift, since those used take less than half of the 64 bits.
        keys ^= (keys >> np.uint64(shift)) ^ (keys >> np.uint64(2 * shift))
        if inverse is not None:
            keys *= np.uint64(inverse)
    return keys


def as_numpy(values: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of numbers without nulls as an array."""
    array: NDArray[Any] = values.to_numpy()
    return array
