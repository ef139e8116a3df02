"""Write plans as Parquet or Arrow files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.data.overlong import Fragments
from virnucpro.data.plan import PackingPlan
from virnucpro.files.output import write_file
from virnucpro.files.places import file_name, name_of
from virnucpro.files.plan_schema import FROM_FILES, checksums, integer_of, make_schema
from virnucpro.files.plan_summary import Summary, encode_summary, summarize
from virnucpro.files.sequences import Sequences
from virnucpro.files.tables import as_arrow, strings_as_arrow
from virnucpro.text import shown

# Maximum rows per row group, and tokens if it has the residues, unless a single batch has more.
ROW_GROUP_SIZE = 2**17
ROW_GROUP_TOKENS = 2**22
# Columns with few distinct values, or ranges of them, which dictionary encoding makes small.
DICTIONARIES = ["batch", "length", "tokens", "file"]

# Takes rows, and the positions of fragments in them (None if no sequence was split); returns the
# residues of each that are packed.
ReadResidues = Callable[[NDArray[Any], "Fragments | None"], list[str]]


def encoding_of(path: str | PathLike[str]) -> str:
    """Return the encoding of a plan file by its suffix.

    Raises:
        ValueError: The suffix is neither `.parquet` nor `.arrow`.
    """
    suffix = Path(file_name(path)).suffix.lower()
    if suffix not in (".parquet", ".arrow"):
        raise ValueError(
            f"{shown(name_of(path))}: a plan file must have the suffix .parquet or .arrow"
        )
    return suffix[1:]


def save_plan(path: str | PathLike[str], plan: PackingPlan) -> None:
    """Write a plan without the IDs and lengths of its sequences; see `PackingPlan.save`."""
    encoding = encoding_of(path)
    with write_file(path) as file:
        write_plan(file, encoding, plan, None, summarize(plan))


def write_plan(
    file: BinaryIO,
    encoding: str,
    plan: PackingPlan,
    sequences: Sequences | None,
    summary: Summary,
    read_residues: ReadResidues | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a plan with one row per sequence or fragment, in order of batches and slots.

    The columns are

    - `batch` (int32, or int64 for 2**31 sequences or more; null for dropped sequences, which come
      last);
    - `row` (of the same type): the position among all sequences read;
    - `fragment` (of the same type), `start` and `stop` (int64), if some sequence was split: the
      number of the fragment and its positions in the sequence (null for dropped sequences);
    - `id` (large_string), `length` (int64, residues in the input), `truncated` (bool) and `file`
      (a dictionary of strings), unless `sequences` is None;
    - `tokens` (int64; null for dropped sequences): what the sequence or fragment takes in its
      batch, with padding;
    - `sequence` (large_string), with `read_residues`: the residues that are packed.

    Arrow files have a single record batch, so that `row` or `fragment` is one array. The row groups
    of Parquet files hold whole batches, and their pages have checksums. The summary, the layout and
    the groups are stored as JSON in the schema's metadata, under ``virnucpro``. The same arguments
    give the same bytes.

    Args:
        file: The file to write to.
        encoding: "parquet" or "arrow".
        plan: The plan.
        sequences: All sequences that were read; None if they are not known.
        summary: The summary to store.
        read_residues: Reads residues for the column `sequence`, in Parquet files only.
        progress: Called from time to time with the number of rows written so far.

    Raises:
        ValueError: The layout is too large for a plan file.
        OSError: The file cannot be written.

    Cost: O(n); memory for a row group, or for all columns of an Arrow file.
    """
    schema = make_schema(
        plan.num_sequences + len(plan.dropped) >= 2**31,
        plan.fragments is not None,
        sequences is not None,
        read_residues is not None,
    )
    if encoding == "arrow":
        dropped = dropped_tables(plan, sequences, schema, max(1, len(plan.dropped)))
        table = pa.concat_tables([make_table(plan, sequences, schema, 0, len(plan)), *dropped])
        table = table.combine_chunks()
        table = table.replace_schema_metadata(encode_summary(summary, plan, checksums(table)))
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
            progress(len(table))
        return
    schema = schema.with_metadata(encode_summary(summary, plan))
    options = {"use_dictionary": [name for name in DICTIONARIES if name in schema.names]}
    with pq.ParquetWriter(file, schema, write_page_checksum=True, **options) as writer:
        num_written = 0
        budget, has_residues = plan.max_tokens_per_batch, read_residues is not None
        for begin, end in split_batches(plan.offsets, budget, has_residues):
            group = make_table(plan, sequences, schema, begin, end, read_residues)
            writer.write_table(group, row_group_size=len(group))
            num_written += len(group)
            progress(num_written)
        for group in dropped_tables(plan, sequences, schema, ROW_GROUP_SIZE):
            writer.write_table(group)
            num_written += len(group)
            progress(num_written)


def make_table(
    plan: PackingPlan,
    sequences: Sequences | None,
    schema: pa.Schema,
    begin: int,
    end: int,
    read_residues: ReadResidues | None = None,
) -> pa.Table:
    """Return the table of a range of batches."""
    offsets = plan.offsets[begin : end + 1]
    integer = integer_of(schema.field("row").type)
    numbers = plan.indices[offsets[0] : offsets[-1]].astype(integer, copy=False)
    batches = np.repeat(np.arange(begin, end, dtype=integer), np.diff(offsets))
    columns = {
        "batch": as_arrow(batches),
        "tokens": as_arrow(kernel.tokens_of_batches(plan.core, begin, end)),
    }
    rows, part = numbers, None
    if plan.fragments is not None:
        part = Fragments(*(values[numbers] for values in plan.fragments))
        rows = part.rows.astype(integer)
        columns["fragment"] = as_arrow(numbers)
        columns["start"] = as_arrow(part.starts)
        columns["stop"] = as_arrow(part.stops)
    columns["row"] = as_arrow(rows)
    if sequences is not None:
        is_overlong = sequences.lengths[rows] > plan.limits.max_residues
        is_truncated = is_overlong & (part is None)
        columns.update(describe(sequences, rows, is_truncated))
    if read_residues is not None:
        columns["sequence"] = strings_as_arrow(read_residues(rows, part), is_large=True)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def dropped_tables(
    plan: PackingPlan, sequences: Sequences | None, schema: pa.Schema, size: int
) -> Iterator[pa.Table]:
    """Yield tables of the dropped rows, with at most `size` of them."""
    for begin in range(0, len(plan.dropped), size):
        rows = plan.dropped[begin : begin + size].astype(integer_of(schema.field("row").type))
        columns = {"row": as_arrow(rows)}
        if sequences is not None:
            columns.update(describe(sequences, rows, np.zeros(len(rows), np.bool_)))
        for field in schema:
            if field.name not in columns:
                columns[field.name] = pa.nulls(len(rows), field.type)
        yield pa.table([columns[name] for name in schema.names], schema=schema)


def describe(
    sequences: Sequences, rows: NDArray[Any], is_truncated: NDArray[np.bool_]
) -> dict[str, Any]:
    """Return the columns `FROM_FILES` of rows."""
    files = as_arrow(sequences.file_of(rows).astype(np.int32))
    names = strings_as_arrow([file.text for file in sequences.inputs])
    columns = (
        sequences.ids.take(as_arrow(rows)),
        as_arrow(sequences.lengths[rows]),
        as_arrow(is_truncated),
        pa.DictionaryArray.from_arrays(files, names),
    )
    return dict(zip(FROM_FILES, columns, strict=True))


def split_batches(
    offsets: NDArray[np.int64], max_tokens_per_batch: int, has_residues: bool
) -> Iterator[tuple[int, int]]:
    """Yield the range of batches, begin and end, of each row group, given the rows before each."""
    num_batches, begin = len(offsets) - 1, 0
    # No batch has more tokens than the budget.
    most = max(1, ROW_GROUP_TOKENS // max_tokens_per_batch) if has_residues else num_batches
    while begin < num_batches:
        end = int(np.searchsorted(offsets, offsets[begin] + ROW_GROUP_SIZE, side="right")) - 1
        end = min(max(end, begin + 1), begin + most)
        yield begin, end
        begin = end
