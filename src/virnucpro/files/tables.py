"""Read tables with the IDs and lengths of sequences."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro.files.arrow_messages import check_messages
from virnucpro.files.places import as_local, file_name, is_uri, resolve
from virnucpro.kernel.arrow import (
    IdLoader,
    check_array,
    is_id_type,
    is_text,
    num_decoded_bytes,
    text_buffers,
)
from virnucpro.memory import SMALL, available_memory, check_memory
from virnucpro.text import quoted, shown

# The key of the summary in the metadata of plan files.
PLAN_KEY = b"virnucpro"
# Rows read at a time, fewer if their IDs might need more than this part of the memory available.
CHUNK = 2**16
MEMORY_SHARE = 1 / 4
# The memory available where it is not known.
UNKNOWN_MEMORY = 2**32
# Bytes of memory per row, at least, until a plan is made.
ROW_BYTES = 40
# Maximum bytes of the first line of a text table, with the names of its columns.
MAX_HEADER = 2**20
# The last bytes of an Arrow stream (Arrow columnar format, IPC streaming format).
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def open_table(path: str, kind: str, columns: list[str]) -> Iterator[tuple[Any, float]]:
    """Yield the record batches of a table, which may have other columns too.

    Each comes with about the share of the file that has been read, from 0 to 1.

    Args:
        path: The table.
        kind: "parquet", "arrow", "tsv" or "fai".
        columns: The names of the columns with IDs and with lengths.

    Raises:
        ValueError: A column is missing or has another type; or the errors of pyarrow.
        MemoryError: It needs more memory than there is.
    """
    if kind == "parquet":
        with open_parquet(path) as file:
            check_table(file.schema_arrow, columns)
            total = file.metadata.num_rows
            check_rows(total)
            num_rows = 0
            for batch in read_groups(path, file, range(file.num_row_groups), columns):
                num_rows += batch.num_rows
                yield batch, num_rows / max(1, total)
    elif kind == "arrow":
        # Not mapped, since the file might shrink while it is read.
        with open_source(path) as source:
            yield from read_arrow_parts(source, columns, check_table)
    else:
        yield from read_text(path, kind, columns)


def open_source(path: str | PathLike[str]) -> pa.NativeFile:
    """Open a file or a URI; pyarrow takes names such as s3:x for URIs, and bytes for any name."""
    path = as_local(path)
    if is_uri(path):
        system, inside = resolve(path)
        return system.open_input_file(inside)
    return pa.OSFile(os.fsencode(path))


@contextmanager
def open_parquet(path: str | PathLike[str], **options: Any) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, whose checksums, if it has any, are verified."""
    # pyarrow closes only what it has opened itself.
    with (
        open_source(path) as source,
        pq.ParquetFile(source, page_checksum_verification=True, **options) as file,
    ):
        yield file


def check_rows(num_rows: int, num_bytes: int = 0) -> None:
    """Raise MemoryError if rows with columns of `num_bytes` do not fit in memory."""
    check_memory(num_bytes + ROW_BYTES * num_rows, f"{num_rows:,} rows")


def read_groups(
    path: str | PathLike[str],
    file: Any,
    groups: Iterable[int],
    columns: Sequence[str],
    max_rows: int = CHUNK,
) -> Iterator[Any]:
    """Yield the record batches of row groups of a Parquet file, so small that they fit in memory.

    Of small pages, pyarrow may make long texts: those of a dictionary repeat, as prefixes do.
    """
    names = list(dict.fromkeys(columns))
    texts = [name for name in names if is_text(file.schema_arrow.field(name).type)]
    with ExitStack() as opened:
        coded: Any = None
        for group in groups:
            check_rows(file.metadata.row_group(group).num_rows)
            longest = 0
            for name in texts:
                chunk = find_chunk(file, group, name)
                if "DELTA_BYTE_ARRAY" in chunk.encodings:
                    longest += chunk.total_uncompressed_size
                elif any("DICTIONARY" in encoding for encoding in chunk.encodings):
                    coded = coded or opened.enter_context(open_parquet(path, read_dictionary=texts))
                    longest += check_dictionary(coded, group, name)
            num_rows = max_rows
            if longest * max_rows >= SMALL:
                max_bytes = int(MEMORY_SHARE * (available_memory() or UNKNOWN_MEMORY))
                num_rows = max(1, min(max_rows, max_bytes // longest))
            yield from file.iter_batches(num_rows, row_groups=[group], columns=names)


def read_column(path: str | PathLike[str], file: Any, group: int, name: str) -> pa.ChunkedArray:
    """Return a column of a row group of a Parquet file."""
    batches = list(read_groups(path, file, [group], [name]))
    kind = file.schema_arrow.field(name).type
    return pa.chunked_array([batch.column(0) for batch in batches], kind)


def find_chunk(file: Any, group: int, name: str) -> Any:
    """Return the metadata of a column in a row group, which must have room in memory."""
    # If it is damaged, reading a row is an error, but asking for it ends the process.
    next(file.iter_batches(1, row_groups=[group], columns=[name]), None)
    metadata = file.metadata.row_group(group)
    places = (file.schema.column(place).path for place in range(metadata.num_columns))
    chunk = metadata.column(next(place for place, path in enumerate(places) if path == name))
    check_rows(metadata.num_rows, chunk.total_uncompressed_size)
    return chunk


def check_dictionary(coded: Any, group: int, column: str) -> int:
    """Return the bytes of the longest text in the dictionary of a column of Parquet.

    Raises MemoryError if the texts of the row group do not fit in memory once they are decoded.

    Args:
        coded: The file, of which dictionaries are not decoded.
        group: The row group.
        column: The column.
    """
    longest = total = 0
    num_rows = coded.metadata.row_group(group).num_rows
    for batch in coded.iter_batches(CHUNK, row_groups=[group], columns=[column]):
        values = batch.column(0)
        name = f"column {quoted(column)}"
        check_array(values, name)
        offsets, _ = text_buffers(values.dictionary.cast(pa.large_string()))
        sizes = np.diff(offsets)
        longest = int(sizes.max(initial=0))
        if longest * num_rows < SMALL:
            break
        total += num_decoded_bytes(sizes, values.indices.drop_null().to_numpy())
        check_memory(total, f"{name}: texts")
    return longest


def read_arrow(
    source: Any,
    columns: list[str],
    check: Callable[[pa.Schema, list[str]], None] = lambda *_: None,
) -> Iterator[Any]:
    """Yield some columns of an Arrow file or stream, in its order, once its schema is checked."""
    for batch, _ in read_arrow_parts(source, columns, check):
        yield batch


def read_arrow_parts(
    source: Any, columns: list[str], check: Callable[[pa.Schema, list[str]], None]
) -> Iterator[tuple[Any, float]]:
    """Yield what `read_arrow` does, with about the share that has been read."""
    is_file = check_messages(source)
    open_source = pa.ipc.open_file if is_file else pa.ipc.open_stream
    source.seek(0)
    schema = open_source(source).schema
    check(schema, columns)
    # Other columns are neither decompressed nor looked at.
    fields = sorted({schema.get_field_index(name) for name in columns})
    source.seek(0)
    reader = open_source(source, options=pa.ipc.IpcReadOptions(included_fields=fields))
    if is_file:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number), (number + 1) / reader.num_record_batches
        return
    for batch in reader:
        yield batch, source.tell() / source.size()
    if source.read(1) or source.size() < 8:
        raise ValueError("more than one Arrow stream")
    source.seek(source.size() - 8)
    if source.read(8) != END_OF_STREAM:
        raise ValueError("incomplete: the end-of-stream mark is missing")


def read_text(path: str, kind: str, columns: list[str]) -> Iterator[tuple[Any, float]]:
    """Yield what `open_table` does of a table in text, with tabs between its columns."""
    compression = "gzip" if file_name(path).lower().endswith(".gz") else None

    names = ["id", "length", "offset", "line_bases", "line_bytes"] if kind == "fai" else None
    with pa.input_stream(open_source(path), compression=compression) as source:
        start = source.read(MAX_HEADER).lstrip(b"\r\n")
    first, *rest = re.split(b"[\r\n]", start, maxsplit=1)
    if len(first) == MAX_HEADER and not rest:
        raise ValueError(f"its first line has {MAX_HEADER:,} bytes or more")
    if names is None and first:
        for name in columns:
            find_column(first.decode("utf-8-sig").split("\t"), name)
    file = open_source(path)
    batches = pyarrow.csv.open_csv(
        pa.input_stream(file, compression=compression),
        pyarrow.csv.ReadOptions(column_names=names, block_size=2**24),
        pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
        # Otherwise, IDs such as 007 and NA would become numbers and nulls.
        pyarrow.csv.ConvertOptions(
            column_types={columns[0]: pa.string()},
            null_values=[],
            include_columns=list(dict.fromkeys(columns)) if first else None,
        ),
    )
    for batch in batches:
        # Blocks are read ahead.
        yield batch, file.tell() / file.size()


def check_table(schema: pa.Schema, columns: list[str]) -> None:
    """Raise ValueError unless a table has columns of IDs and lengths, with a row per sequence."""
    if PLAN_KEY in (schema.metadata or {}) and "fragment" in schema.names:
        raise ValueError("a plan with fragments, not a table of lengths")
    for name in columns:
        find_column(schema.names, name)
    id_column, length_column = columns
    for name, check in ((id_column, check_id_type), (length_column, check_length_type)):
        try:
            check(schema.field(name).type, name)
        except TypeError as error:
            raise ValueError(str(error)) from error


def find_column(names: list[str], column: str) -> None:
    """Raise ValueError unless there is one column of a name."""
    if names.count(column) != 1:
        found = "more than one" if column in names else "no"
        raise ValueError(f"{found} column {quoted(column)} (it has {shown(', '.join(names))})")


def check_id_type(kind: Any, column: str) -> None:
    """Raise TypeError unless a type is one of IDs."""
    if not is_id_type(kind):
        raise TypeError(f"column {quoted(column)} must be strings or integers (got {shown(kind)})")


def check_length_type(kind: Any, column: str) -> None:
    """Raise ValueError unless a type is one of lengths."""
    if not pa.types.is_integer(kind):
        raise ValueError(f"column {quoted(column)} must contain integers (got {shown(kind)})")


def lengths_of(table: Any, column: str, num_before: int = 0) -> NDArray[np.int64]:
    """Return the lengths in a column of an Arrow table or record batch, int64.

    Raises:
        ValueError: The column is missing, damaged, does not contain integers, or contains nulls or
            negative numbers. Rows in the message are numbered from `num_before`.
    """
    find_column(table.schema.names, column)
    values = table.column(column)
    check_length_type(values.type, column)
    name = f"column {quoted(column)}"
    check_array(values, name)
    check_nulls(values, name, num_before)
    try:
        lengths: NDArray[np.int64] = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{name}: {shown(error)}") from error
    if len(lengths) and lengths.min() < 0:
        row = int(np.argmax(lengths < 0))
        raise ValueError(f"{name} is negative in row {num_before + row:,} (got {lengths[row]})")
    return lengths


def ids_of(table: Any, column: str, num_before: int = 0, loader: IdLoader | None = None) -> Any:
    """Return the IDs in a column of an Arrow table or record batch, integers or large strings.

    A `loader` that other parts of the table are given too need not load their dictionary again.

    Raises:
        ValueError: The column is missing, damaged, or contains nulls. Rows in the message are
            numbered from `num_before`.
        TypeError: It contains neither strings nor integers.
        MemoryError: The IDs take more memory than there is.
    """
    find_column(table.schema.names, column)
    values = table.column(column)
    name = f"column {quoted(column)}"
    if pa.types.is_null(values.type):
        check_nulls(values, name, num_before)
    check_id_type(values.type, column)
    ids = (loader or IdLoader()).load(values, name)
    check_nulls(ids, name, num_before)
    return ids


def check_nulls(values: Any, name: str, num_before: int) -> None:
    """Raise ValueError if a column contains nulls."""
    if values.null_count:
        row = num_before + int(pc.index(pc.is_null(values), True).as_py())
        raise ValueError(f"{name} is null in row {row:,}")


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
