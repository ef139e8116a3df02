"""Blocks of a data set: how many sequences of each size they have, and which rows are packed."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.cluster.tasks import as_table, take
from virnucpro.data.layout import TokenCounts
from virnucpro.data.overlong import (
    Chosen,
    Dropped,
    Split,
    choose,
    count_dropped,
    count_split,
    warn_of_dropped,
    warn_of_truncation,
)
from virnucpro.data.packing import GreedyPacker
from virnucpro.files.tables import ids_of, lengths_of
from virnucpro.kernel.arrow import check_array, is_text, text_buffers
from virnucpro.text import quoted

# The columns that packing adds to those of a data set, and those added if sequences are split.
NEW_COLUMNS = ("batch", "slot", "tokens")
IF_SPLIT = ("start", "stop")
# Bytes of the numbers of a row of a plan.
BYTES_OF_NUMBERS = 48


class Job(NamedTuple):
    """What all tasks know.

    Attributes:
        packer: The packer, with one thread.
        length_column: The column with the length of each sequence.
        id_column: The column with the IDs; None to break ties by row.
        makes_plan: Whether the rows are those of a plan file, with the number of each.
    """

    packer: GreedyPacker
    length_column: str
    id_column: str | None
    makes_plan: bool = False

    @property
    def new_columns(self) -> tuple[str, ...]:
        """The columns that packing adds to those of a data set."""
        return (*NEW_COLUMNS, *(IF_SPLIT if self.packer.overlong == "split" else ()))


class Counted(NamedTuple):
    """What a block or several of them have.

    Attributes:
        counts: The sequences or fragments that are packed.
        rows: Sequences, packed or dropped.
        dropped: Those that are dropped.
        split: How much is split.
        empty: Sequences without residues.
        residues: Residues of all sequences.
        kinds: The kinds of IDs (see `id_kind`).
        num_bytes: The size of the rows.
        checksum: The CRC-32 of lengths, IDs and, in a plan, residues.
    """

    counts: TokenCounts
    rows: int
    dropped: Dropped
    split: Split
    empty: int
    residues: int
    kinds: frozenset[str]
    num_bytes: int
    checksum: int

    @property
    def num_packed(self) -> int:
        """Sequences or fragments that are packed."""
        return self.counts.num_sequences

    @property
    def num_dropped(self) -> int:
        """Sequences that are dropped."""
        return self.dropped.overlong + self.dropped.empty

    def merge(self, other: Counted) -> Counted:
        """Return what two have together, without a checksum."""
        return Counted(
            self.counts + other.counts,
            self.rows + other.rows,
            Dropped(*map(add, self.dropped, other.dropped)),
            Split(*map(add, self.split, other.split)),
            self.empty + other.empty,
            self.residues + other.residues,
            self.kinds | other.kinds,
            self.num_bytes + other.num_bytes,
            0,
        )


def merge_counts(counted: Iterable[Counted]) -> Counted:
    """Return what several blocks have together.

    Raises:
        OverflowError: A number of tokens or residues does not fit in 64 bits.
    """
    return reduce(Counted.merge, counted)


def warn_of_limits(total: Counted, hint: str) -> None:
    """Log the numbers of sequences that are truncated, with a hint, or dropped, if any."""
    warn_of_truncation(total.counts, hint)
    warn_of_dropped(total.dropped, total.rows, total.counts.limits)


def count_block(block: Any, number: int, job: Job) -> Counted | Exception | None:
    """Return what a block of a data set has; None if it has no rows.

    Errors are returned, since Ray adds long tracebacks to raised errors.
    """
    try:
        table = as_table(block)
        check_array(table, "its columns")
        if table.num_rows == 0:
            # An empty block may lack the columns.
            return None
        for name in job.new_columns:
            if name in table.column_names:
                raise ValueError(f"column {quoted(name)} already exists")
        return count_table(table, job)
    except TypeError as error:
        return TypeError(f"block {number:,}: {error}")
    except OverflowError as error:
        return OverflowError(f"block {number:,}: {error}")
    except (ValueError, pa.ArrowException) as error:
        return ValueError(f"block {number:,}: {error}")


class Read(NamedTuple):
    """What is read of a block.

    Attributes:
        lengths: The length of each sequence, int64.
        ids: Their IDs, an Arrow array of integers or large strings; None to break ties by row.
        chosen: What is packed of them.
    """

    lengths: NDArray[np.int64]
    ids: Any
    chosen: Chosen


def read_table(table: pa.Table, job: Job) -> Read:
    """Return the lengths and IDs of a table, and what is packed."""
    lengths = lengths_of(table, job.length_column)
    packer, limits = job.packer, job.packer.limits
    packer.check_overlong(lengths, limits)
    chosen = choose(
        lengths, None, limits.max_residues, packer.overlong, packer.overlap, packer.empty
    )
    ids = None if job.id_column is None else ids_of(table, job.id_column)
    return Read(lengths, ids, chosen)


def count_table(table: pa.Table, job: Job) -> Counted:
    """Return what a table has."""
    return count_read(table, read_table(table, job), job)


def count_read(table: pa.Table, read: Read, job: Job) -> Counted:
    """Return what a table has, given what was read of it."""
    lengths, ids, chosen = read
    packer, limits = job.packer, job.packer.limits
    counts = TokenCounts(kernel.count(chosen.lengths, limits, 1), limits)
    # Raises OverflowError here, rather than when the counts are sent.
    _ = counts.total_tokens
    return Counted(
        counts,
        rows=len(lengths),
        dropped=count_dropped(lengths, limits.max_residues, packer.overlong, packer.empty),
        split=count_split(chosen.fragments),
        empty=int(np.count_nonzero(lengths == 0)),
        residues=sum_of(lengths),
        kinds=frozenset() if ids is None else frozenset([id_kind(ids)]),
        num_bytes=count_bytes(table, job, ids),
        checksum=checksum_of(table, read, job),
    )


def sum_of(lengths: NDArray[np.int64]) -> int:
    """Return the sum of lengths, which may not fit in 64 bits."""
    is_small = int(lengths.max(initial=0)) * len(lengths) < 2**63
    return int(lengths.sum() if is_small else lengths.sum(dtype=object))


def count_bytes(table: pa.Table, job: Job, ids: Any) -> int:
    """Return the size of the rows; that of a plan's rows does not depend on their blocks."""
    if not job.makes_plan:
        return int(table.nbytes)
    offsets, _ = text_buffers(ids)
    num_bytes = BYTES_OF_NUMBERS * len(table) + int(offsets[-1] - offsets[0])
    if "sequence" in table.column_names:
        num_bytes += pc.sum(pc.binary_length(table["sequence"])).as_py()
    return num_bytes


def checksum_of(table: pa.Table, read: Read, job: Job) -> int:
    """Return the CRC-32 of lengths and IDs, and of the residues of a plan."""
    checksum = zlib.crc32(read.lengths.data)
    columns = [] if read.ids is None else [read.ids]
    if job.makes_plan and "sequence" in table.column_names:
        columns += table["sequence"].chunks
    for values in columns:
        if is_text(values.type):
            offsets, texts = text_buffers(values)
            checksum = zlib.crc32(np.diff(offsets).data, checksum)
            checksum = zlib.crc32(texts[offsets[0] : offsets[-1]].data, checksum)
        else:
            checksum = zlib.crc32(np.ascontiguousarray(values.to_numpy()).data, checksum)
    return checksum


def id_kind(ids: Any) -> str:
    """Return the kind of IDs: "text", "signed", "unsigned", or "large" (with 2**63 or more)."""
    if pa.types.is_signed_integer(ids.type):
        return "signed"
    if pa.types.is_unsigned_integer(ids.type):
        return "large" if pc.max(ids).as_py() >= 2**63 else "unsigned"
    return "text"


def common_id_type(kinds: frozenset[str], id_column: str | None) -> pa.DataType:
    """Return the type of all IDs.

    Raises:
        TypeError: They have none.
    """
    types = {
        ("text",): pa.large_string(),
        ("signed", "unsigned"): pa.int64(),
        ("unsigned", "large"): pa.uint64(),
    }
    for allowed, kind in types.items():
        if kinds <= {*allowed}:
            return kind
    raise TypeError(f"column {quoted(id_column)} must be all strings, all int64 or all uint64")


class Position(NamedTuple):
    """Where a block is in its data set.

    Attributes:
        number: The number of the block.
        first_row: The sequences before it.
        first_fragment: The fragments before it.
        counted: What it had when it was counted.
    """

    number: int
    first_row: int
    first_fragment: int
    counted: Counted


class Rows(NamedTuple):
    """The rows of a block.

    Attributes:
        packed: Those that are packed, sequences or fragments, with the column `tokens`.
        dropped: Those that are dropped.
        lengths: Residues of those packed, int64.
    """

    packed: pa.Table
    dropped: pa.Table
    lengths: NDArray[np.int64]


def choose_table(
    block: Any, position: Position, job: Job, id_type: pa.DataType | None, has_fragments: bool
) -> Rows:
    """Return the rows of a block that are packed, and those that are dropped.

    Raises:
        RuntimeError: The block is not what it was when it was counted.
    """
    table = as_table(block)
    read = read_table(table, job)
    lengths, ids, chosen = read
    found, before = count_read(table, read, job), position.counted
    if (found.counts, found.checksum) != (before.counts, before.checksum):
        # Ray recomputes a block if its machine is lost.
        raise RuntimeError(f"block {position.number:,} changed after it was counted")
    if job.id_column is not None:
        # Ordered alike, whatever the type of each block is.
        place = table.column_names.index(job.id_column)
        table = table.set_column(place, job.id_column, ids.cast(id_type))
    if job.makes_plan:
        rows = np.arange(position.first_row, position.first_row + len(lengths))
        table = table.append_column("row", pa.array(rows))
    packed, dropped = table, table.slice(0, 0)
    if chosen.rows is not None:
        packed = take(table, chosen.rows)
    if chosen.dropped is not None:
        dropped = take(table, chosen.dropped)
    limits, kept = job.packer.limits, chosen.lengths.astype(np.int64, copy=False)
    packed = packed.append_column("tokens", pa.array(limits.tokens(kept)))
    starts, stops = np.zeros(len(kept), np.int64), kept
    if chosen.fragments is not None:
        _, starts, stops = chosen.fragments
    if job.makes_plan and "sequence" in packed.column_names:
        packed = keep_residues(packed, starts, np.minimum(stops, starts + limits.max_residues))
    if has_fragments:
        if job.makes_plan:
            numbers = np.arange(len(kept)) + position.first_fragment
            packed = packed.append_column("fragment", pa.array(numbers))
        for name, values in zip(IF_SPLIT, (starts, stops), strict=True):
            packed = packed.append_column(name, pa.array(values))
    return Rows(packed, dropped, kept)


def keep_residues(table: pa.Table, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> pa.Table:
    """Return a table with the part of each sequence that is packed."""
    texts = table["sequence"].to_pylist()
    ranges = zip(texts, starts.tolist(), stops.tolist(), strict=True)
    kept = pa.array([text[start:stop] for text, start, stop in ranges], pa.large_string())
    return table.set_column(table.column_names.index("sequence"), "sequence", kept)
