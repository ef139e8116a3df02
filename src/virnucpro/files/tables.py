"""Read tables with the IDs and lengths of sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

# The key of the summary in the metadata of plan files.
PLAN_KEY = b"virnucpro"
# Rows read at a time.
CHUNK = 2**17
# The last bytes of an Arrow stream (Arrow columnar format, IPC streaming format).
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def open_table(path: str, kind: str, columns: list[str]) -> Iterator[Any]:
    """Yield the record batches of a table, which may have other columns too.

    `kind` is "parquet", "arrow", "tsv" or "fai".
    """
    # pyarrow takes names such as s3:x for URIs.
    path = str(Path(path).absolute())
    if kind == "parquet":
        with pq.ParquetFile(path) as file:
            check_table(file.schema_arrow)
            known = [name for name in columns if name in file.schema_arrow.names]
            if len(known) < len(columns):
                known = file.schema_arrow.names
            yield from file.iter_batches(CHUNK, columns=known)
    elif kind == "arrow":
        with pa.memory_map(path) as source:
            try:
                file = pa.ipc.open_file(source)
                check_table(file.schema)
            except pa.ArrowInvalid:
                source.seek(0)
                yield from pa.ipc.open_stream(source)
                if source.read(1) or source.size() < 8:
                    raise ValueError("more than one Arrow stream") from None
                source.seek(source.size() - 8)
                if source.read(8) != END_OF_STREAM:
                    raise ValueError("incomplete: the end-of-stream mark is missing") from None
            else:
                for number in range(file.num_record_batches):
                    yield file.get_batch(number)
    else:
        names = ["id", "length", "offset", "line_bases", "line_bytes"] if kind == "fai" else None
        compression = "gzip" if path.lower().endswith(".gz") else None
        yield from pyarrow.csv.open_csv(
            pa.input_stream(path, compression=compression),
            pyarrow.csv.ReadOptions(column_names=names, block_size=2**24),
            pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
            # Otherwise, IDs such as 007 and NA would become numbers and nulls.
            pyarrow.csv.ConvertOptions(column_types={columns[0]: pa.string()}, null_values=[]),
        )


def check_table(schema: pa.Schema) -> None:
    """Raise ValueError for a plan in which a sequence has several rows, with its whole length."""
    if PLAN_KEY in (schema.metadata or {}) and "fragment" in schema.names:
        raise ValueError("a plan with fragments, not a table of lengths")


def lengths_of(table: Any, column: str, num_before: int = 0) -> NDArray[np.int64]:
    """Return the lengths in a column of an Arrow table or record batch, int64.

    Raises:
        ValueError: The column is missing, does not contain integers, or contains nulls or negative
            numbers. Rows in the message are numbered from `num_before`.
    """
    values = column_of(table, column, num_before)
    if not pa.types.is_integer(values.type):
        raise ValueError(f"column {column!r} must contain integers (got {values.type})")
    try:
        lengths: NDArray[np.int64] = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise ValueError(f"column {column!r}: {error}") from error
    if len(lengths) and lengths.min() < 0:
        row = int(np.argmax(lengths < 0))
        raise ValueError(
            f"column {column!r} is negative in row {num_before + row:,} (got {lengths[row]})"
        )
    return lengths


def ids_of(table: Any, column: str, num_before: int = 0) -> Any:
    """Return the IDs in a column of an Arrow table or record batch, without dictionary encoding.

    Raises:
        ValueError: The column is missing or contains nulls. Rows in the message are numbered from
            `num_before`.
    """
    ids = column_of(table, column, num_before)
    return ids.cast(ids.type.value_type) if pa.types.is_dictionary(ids.type) else ids


def column_of(table: Any, column: str, num_before: int) -> Any:
    """Return a column; raise ValueError if it is missing or contains nulls."""
    names = table.schema.names
    if names.count(column) != 1:
        found = "more than one" if column in names else "no"
        raise ValueError(f"{found} column {column!r} (it has {', '.join(names)})")
    values = table.column(column)
    if values.null_count:
        row = num_before + int(pc.index(pc.is_null(values), True).as_py())
        raise ValueError(f"column {column!r} is null in row {row:,}")
    return values


def as_arrow(values: NDArray[Any]) -> Any:
    """Return an Arrow array of numbers or bools, without copying contiguous numbers.

    Used instead of `pyarrow.array`, which imports pandas. The import takes longer than a small job.
    """
    kind = pa.from_numpy_dtype(values.dtype)
    packed = np.packbits(values, bitorder="little") if values.dtype == np.bool_ else values
    buffer = pa.py_buffer(np.ascontiguousarray(packed))
    return pa.Array.from_buffers(kind, len(values), [None, buffer])


def strings_as_arrow(strings: Sequence[str], is_large: bool = False) -> Any:
    """Return an Arrow array of strings, with 64-bit offsets if `is_large`; see `as_arrow`."""
    encoded = [string.encode() for string in strings]
    offsets = np.cumsum([0, *map(len, encoded)]).astype(np.int64 if is_large else np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    kind = pa.large_string() if is_large else pa.string()
    return pa.Array.from_buffers(kind, len(encoded), buffers)
