"""The columns of plan files."""

from __future__ import annotations

import zlib
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from virnucpro.files import errors
from virnucpro.files.plan_summary import not_a_plan
from virnucpro.text import quoted

# Row numbers are int32, or int64 for 2**31 sequences or more.
NUMBERS = (pa.int32(), pa.int64())
TEXTS = (pa.large_string(), pa.string())
FILE = pa.dictionary(pa.int32(), pa.string())

# The types of each column; a file of this version has the first, or int64 for row numbers.
KINDS: dict[str, tuple[Any, ...]] = {
    "batch": NUMBERS,
    "row": NUMBERS,
    "fragment": NUMBERS,
    "id": TEXTS,
    "length": (pa.int64(),),
    "start": (pa.int64(),),
    "stop": (pa.int64(),),
    "tokens": (pa.int64(),),
    "truncated": (pa.bool_(),),
    "file": (FILE,),
    "sequence": TEXTS,
}
# Columns that a file has together: always; if some sequence was split; if the plan was made from
# files; and on request.
ALWAYS = ("batch", "row", "tokens")
IF_SPLIT = ("fragment", "start", "stop")
FROM_FILES = ("id", "length", "truncated", "file")
ON_REQUEST = ("sequence",)
# Rows of an Arrow file that have a checksum of their own.
BLOCK = 2**14
# Columns that are null for dropped sequences.
NULLABLE = ("batch", *IF_SPLIT, "tokens", "sequence")


def make_schema(is_wide: bool, is_split: bool, has_files: bool, has_sequences: bool) -> pa.Schema:
    """Return the schema of a plan file; `is_wide` for 2**31 sequences or more."""
    names = {
        *ALWAYS,
        *(IF_SPLIT if is_split else ()),
        *(FROM_FILES if has_files else ()),
        *(ON_REQUEST if has_sequences else ()),
    }
    fields = [(name, kinds[is_wide and kinds is NUMBERS]) for name, kinds in KINDS.items()]
    return pa.schema([field for field in fields if field[0] in names])


def integer_of(kind: pa.DataType) -> np.dtype[Any]:
    """Return the NumPy type of signed integers; `to_pandas_dtype` may need pandas."""
    return np.dtype(f"int{kind.bit_width}")


def checksums(table: pa.Table) -> dict[str, NDArray[np.int64]]:
    """Return the CRC-32 of each block of the numbers that tell which sequences are where.

    A null counts as 0.
    """
    found = {}
    for name in ("row", *IF_SPLIT):
        if name in table.schema.names:
            values = table[name].combine_chunks().fill_null(0).to_numpy()
            blocks = (values[begin : begin + BLOCK] for begin in range(0, len(values), BLOCK))
            found[name] = np.array([zlib.crc32(block) for block in blocks], np.int64)
    return found


def check_schema(path: str | PathLike[str], schema: pa.Schema) -> None:
    """Raise ValueError if a schema is not that of a plan file. Other columns are ignored."""
    for name in schema.names:
        if name not in KINDS and name.lower() in KINDS:
            # DuckDB does not tell upper from lower case.
            raise not_a_plan(path, f"column {quoted(name)}, which is not {name.lower()!r}")
    for name, kinds in KINDS.items():
        number = schema.names.count(name)
        if number > 1:
            raise not_a_plan(path, f"more than one column {name!r}")
        if number and schema.field(name).type not in kinds:
            raise not_a_plan(path, f"column {name!r} has type {schema.field(name).type}")
    for group in (ALWAYS, IF_SPLIT, FROM_FILES):
        present = [name for name in group if name in schema.names]
        if len(present) < len(group) and (present or group is ALWAYS):
            missing = next(name for name in group if name not in present)
            raise not_a_plan(path, f"no column {missing!r}")
    if "sequence" in schema.names and "id" not in schema.names:
        raise not_a_plan(path, "no column 'id'")


def explain_errors(path: str | PathLike[str]) -> AbstractContextManager[None]:
    """Raise ValueError, MemoryError or OSError with the path for the errors of pyarrow."""
    return errors.explain_errors(path, not_a_plan)
