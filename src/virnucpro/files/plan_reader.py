"""Read plans from Parquet files, folders of them, and Arrow files."""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.data.layout import Layout
from virnucpro.data.overlong import Fragments
from virnucpro.data.plan import PackingPlan
from virnucpro.files import old_plans
from virnucpro.files.fasta import check_exists
from virnucpro.files.plan_schema import (
    FROM_FILES,
    IF_SPLIT,
    NULLABLE,
    check_schema,
    explain_errors,
    integer_of,
)
from virnucpro.files.plan_summary import Summary, decode_layout, decode_summary, not_a_plan
from virnucpro.files.tables import PLAN_KEY

# The file of a folder with its schema and metadata, as written by Dask and others.
METADATA = "_common_metadata"
# Maximum bytes of the metadata of a Parquet file, which has the summary twice, once in Base64.
MAX_METADATA = 2**30
# Rows that are read at a time.
CHUNK = 2**14
# Columns that are read unless others are named: all but `sequence`.
COLUMNS = ("batch", "row", *IF_SPLIT, "tokens", *FROM_FILES)


class PlanFile:
    """A plan on disk, of which the schema and the summary have been read.

    Args:
        path: A plan file, or a folder of them.

    Attributes:
        path: The path.
        parts: The files with the rows, in order.
        is_arrow: Whether it is an Arrow file.
        schema: The schema of the columns.
        is_old_arrow: Whether it is an Arrow file of version 4, without a summary.
        summary: The summary.

    Raises:
        ValueError: The file is not a plan, or damaged, or of another version.
        OSError: The file cannot be read.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(os.fsdecode(path))
        self.parts, self.is_arrow = find_parts(self.path)
        with explain_errors(self.path):
            if self.is_arrow:
                with pa.OSFile(str(self.path)) as source:
                    file = pa.ipc.open_file(source)
                    self.schema = file.schema
                    if file.num_record_batches > 1:
                        raise pa.ArrowInvalid("more than one record batch")
            else:
                head = self.path / METADATA if self.path.is_dir() else self.parts[0]
                with open_parquet(head) as file:
                    self.schema = file.schema_arrow
            self.is_old_arrow = old_plans.is_old_arrow(self.schema)
            if not self.is_old_arrow:
                self.summary, self._state = decode_summary(self.path, self.schema.metadata)
                check_schema(self.path, self.schema)

    @functools.cached_property
    def layout(self) -> Layout:
        """The layout of the plan. May raise ValueError if it is damaged."""
        if self._state["version"] == 4:
            return old_plans.find_layout(self.path, self.summary, self.read(["batch", "tokens"]))
        layout = decode_layout(self.path, self._state)
        if layout.limits != self.summary.limits:
            raise not_a_plan(self.path, "its layout has other limits")
        return layout

    @functools.cached_property
    def num_rows(self) -> int:
        """The number of rows, which is read without the rows."""
        with explain_errors(self.path):
            if self.is_arrow:
                # A file that is mapped is not read for this, but it is with `included_fields`.
                with pa.memory_map(str(self.path)) as source:
                    file = pa.ipc.open_file(source)
                    batches = map(file.get_batch, range(file.num_record_batches))
                    return sum(batch.num_rows for batch in batches)
            num_rows = 0
            for part in self.parts:
                with open_parquet(part) as file:
                    num_rows += file.metadata.num_rows
            return num_rows

    @property
    def crc32(self) -> int | None:
        """The checksum of the rows, if the file has it."""
        return self._state.get("crc32")

    @property
    def expected_rows(self) -> int:
        """The number of rows that the file should have: sequences in batches, and dropped ones."""
        # No sequence is dropped if any was split.
        num_dropped = 0 if "fragment" in self.schema.names else self.summary.totals.dropped
        return self.layout.num_sequences + num_dropped

    def check_size(self) -> None:
        """Raise ValueError unless the file has the rows that it should have."""
        if self.num_rows != self.expected_rows:
            raise ValueError(
                f"{self.path}: damaged: it has {self.num_rows:,} rows, expected "
                f"{self.expected_rows:,}"
            )

    def read(self, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """Return columns of all rows, those that the file has, each in one chunk.

        Raises:
            ValueError: The file is damaged, or a column has nulls that should have none.
            OSError: The file cannot be read.
        """
        names = [name for name in columns if name in self.schema.names]
        with explain_errors(self.path):
            if self.is_arrow:
                # Not mapped, since the file might shrink while it is read.
                with pa.OSFile(str(self.path)) as source:
                    table = pa.ipc.open_file(source).read_all().select(names)
                table.validate(full=True)
            else:
                table = pa.concat_tables([self._read_part(part, names) for part in self.parts])
            table = table.combine_chunks()
        for name in names:
            if name not in NULLABLE and table[name].null_count:
                raise not_a_plan(self.path, f"column {name!r} contains nulls")
        return table

    def iterate(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield columns of some rows of a Parquet plan at a time, in order.

        Errors are those of `read`, but columns are not checked for nulls.
        """
        for part in self.parts:
            with explain_errors(part), open_parquet(part) as file:
                yield from file.iter_batches(CHUNK, columns=list(columns))

    def _read_part(self, part: Path, names: list[str]) -> pa.Table:
        with open_parquet(part) as file:
            table = file.read(names)
        found = table.schema
        if found.remove_metadata() != pa.schema([self.schema.field(name) for name in names]):
            raise not_a_plan(part, f"its columns are not those of {METADATA}")
        return table


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file, with checksums, and with metadata as large as a summary may be."""
    # An absolute path, since pyarrow takes names such as s3:x for URIs.
    return pq.ParquetFile(
        path.absolute(), thrift_string_size_limit=MAX_METADATA, page_checksum_verification=True
    )


def find_parts(path: Path) -> tuple[list[Path], bool]:
    """Return the files with the rows of a plan, in order, and whether they are Arrow files."""
    if path.is_dir():
        if not (path / METADATA).is_file():
            raise not_a_plan(path, f"a folder without a file {METADATA}")
        return sorted(part for part in path.glob("*.parquet") if part.is_file()), False
    check_exists(path)
    if not path.is_file():
        raise not_a_plan(path, "not a regular file")
    with explain_errors(path), path.open("rb") as file:
        start = file.read(6)
    if start != b"ARROW1" and start[:4] != b"PAR1":
        raise not_a_plan(path, "neither Parquet nor Arrow")
    return [path], start == b"ARROW1"


def read_summary(path: str | PathLike[str]) -> Summary:
    """Return the summary of a plan.

    Raises:
        ValueError: The file is not a plan, or damaged, or of another version.
        OSError: The file cannot be read.
    """
    return open_plan(path).summary


def open_plan(path: str | PathLike[str]) -> PlanFile:
    """Return a plan on disk that has a summary. Errors are those of `read_summary`."""
    file = PlanFile(path)
    if file.is_old_arrow:
        raise ValueError(
            f"{path}: plan file of version 4, without a summary (PackingPlan.load reads it, and "
            "save writes it in the current format)"
        )
    return file


def load_plan(path: str | PathLike[str]) -> PackingPlan:
    """Return a plan, of which an Arrow file is mapped; see `PackingPlan.load`."""
    file = PlanFile(path)
    if file.is_old_arrow:
        return old_plans.load_saved(file.path)
    return map_plan(file) if file.is_arrow else read_plan(file)


def read_plan(file: PlanFile) -> PackingPlan:
    """Return a plan that is read into memory, with its rows validated."""
    layout, totals = file.layout, file.summary.totals
    file.check_size()
    for name in ("batch", "tokens"):
        for error in compare_layout(file.read([name]), layout):
            raise ValueError(f"{file.path}: damaged: {error}")
    is_split = "fragment" in file.schema.names
    table = file.read(["row", *IF_SPLIT])
    name = "fragment" if is_split else "row"
    numbers = table[name].to_numpy()
    check_numbers(file.path, name, numbers)
    numbers = numbers.astype(np.int32 if len(table) < 2**31 else np.int64, copy=False)
    fragments = None
    if is_split:
        columns = (table[name].to_numpy() for name in ("row", "start", "stop"))
        fragments = make_fragments(file.path, layout, totals.read, numbers, *columns)
    end = layout.num_sequences
    return PackingPlan(layout, numbers[:end], None, numbers[end:], fragments, file.summary)


def compare_layout(table: pa.Table, layout: Layout) -> Iterator[str]:
    """Yield the differences between the columns `batch` and `tokens` and those of the layout."""
    offsets = kernel.batch_offsets(layout.core)
    for name in [name for name in ("batch", "tokens") if name in table.schema.names]:
        values = table[name]
        found = (pc.fill_null(values, -1) if values.null_count else values).to_numpy()
        # In pieces, since the numbers expected take as much memory as those found.
        for first in range(0, layout.num_batches, CHUNK):
            last = min(first + CHUNK, layout.num_batches)
            if name == "tokens":
                expected = kernel.tokens_of_batches(layout.core, first, last)
            else:
                expected = np.repeat(np.arange(first, last), np.diff(offsets[first : last + 1]))
            is_wrong = found[offsets[first] : offsets[last]] != expected
            if is_wrong.any():
                at = int(np.argmax(is_wrong))
                place = int(offsets[first]) + at
                yield f"{name} in place {place:,} is {found[place]:,}, expected {expected[at]:,}"
                break


def check_numbers(path: Path, name: str, numbers: NDArray[Any]) -> None:
    """Raise ValueError unless numbers are those from 0 to their number, each once."""
    seen = np.zeros(len(numbers), np.bool_)
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= len(numbers)):
        numbers = numbers[(numbers >= 0) & (numbers < len(numbers))]
    seen[numbers] = True
    if not seen.all():
        raise ValueError(
            f"{path}: damaged: {name} {np.argmin(seen):,} is missing "
            f"(missing numbers: {np.count_nonzero(~seen):,})"
        )


def make_fragments(
    path: Path,
    layout: Layout,
    num_rows: int,
    numbers: NDArray[Any],
    rows: NDArray[Any],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
) -> Fragments:
    """Return the fragments of a plan, given their numbers and their columns by slot.

    Raises:
        ValueError: They are not in order of rows and positions, or do not have the tokens of the
            layout.
    """
    tokens = kernel.tokens_of_batches(layout.core, 0, layout.num_batches)
    is_wrong = stops - starts + layout.special_tokens != tokens
    values = []
    for column in (rows, starts, stops):
        by_number = np.empty(len(numbers), np.int64)
        by_number[numbers] = column
        values.append(by_number)
    fragments = Fragments(*values)
    steps = np.diff(fragments.rows)
    is_first = np.append(True, steps > 0)
    follows = ~is_first[1:]
    if (
        len(numbers) == 0
        or is_wrong.any()
        or (steps < 0).any()
        or (steps > 1).any()
        or (fragments.rows[0], fragments.rows[-1]) != (0, num_rows - 1)
        or (fragments.starts[is_first] != 0).any()
        or (np.diff(fragments.starts)[follows] <= 0).any()
        or (fragments.starts[1:] > fragments.stops[:-1])[follows].any()
    ):
        raise ValueError(f"{path}: damaged: its fragments do not make up the sequences")
    return fragments


class MappedFile:
    """A plan file that is mapped into memory, to read parts of it without copying.

    Raises:
        ValueError: The file is empty.
        OSError: The file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self._identity = self._find_identity()
        self.buffer = pa.py_buffer(mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ))
        self.metadata_hash = b""

    def _find_identity(self) -> tuple[int, int]:
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns

    def check(self) -> None:
        """Raise OSError if the file has changed. Reading its memory may then kill the process."""
        if self._find_identity() != self._identity:
            raise OSError(f"{self.path}: the plan has changed since it was loaded")

    @property
    def key(self) -> tuple[str, int, bytes]:
        """The path, the size, and the hash of the summary, to find the same plan again."""
        return str(self.path), self._identity[0], self.metadata_hash

    def reduce(self, num_threads: int | None) -> tuple[Any, ...]:
        """Return what a pickle of the plan calls, and with which arguments."""
        return load_again, (self.key, num_threads)


def load_again(key: tuple[str, int, bytes], num_threads: int | None) -> PackingPlan:
    """Return a plan that was pickled as the path of its file."""
    plan = map_plan(open_plan(key[0]), key)
    plan.num_threads = num_threads
    return plan


def map_plan(file: PlanFile, key: tuple[str, int, bytes] | None = None) -> PackingPlan:
    """Return the plan of an Arrow file, mapped into memory.

    With the `key` that a plan was pickled with, raise ValueError if the file is another one.
    """
    mapped = MappedFile(file.path)
    names = ["row", *(IF_SPLIT if "fragment" in file.schema.names else ())]
    with explain_errors(file.path):
        content = pa.ipc.open_file(pa.BufferReader(mapped.buffer))
        mapped.metadata_hash = hash_metadata(content.schema)
        if mapped.metadata_hash != hash_metadata(file.schema):
            raise pa.ArrowInvalid("changed while it was read")
        columns = map_columns(content, names)
    if key is not None and mapped.key != key:
        raise ValueError(f"{file.path}: not the plan that was pickled: the file has changed")
    file.check_size()
    numbers = columns["fragment" if len(names) > 1 else "row"]
    if len(numbers) != file.num_rows:
        raise ValueError(f"{file.path}: changed while it was read")
    layout, num_rows = file.layout, file.summary.totals.read
    end = layout.num_sequences

    def fragments() -> Fragments:
        mapped.check()
        parts = (columns[name] for name in ("row", "start", "stop"))
        check_numbers(file.path, "fragment", numbers)
        return make_fragments(file.path, layout, num_rows, numbers, *parts)

    return PackingPlan(
        layout,
        numbers[:end],
        None,
        numbers[end:],
        fragments if len(names) > 1 else None,
        file.summary,
        mapped,
    )


def hash_metadata(schema: pa.Schema) -> bytes:
    """Return the hash of a summary."""
    return hashlib.sha256((schema.metadata or {}).get(PLAN_KEY, b"")).digest()


def map_columns(file: pa.ipc.RecordBatchFileReader, names: list[str]) -> dict[str, NDArray[Any]]:
    """Return columns of integers of an Arrow file in memory, without copying."""
    if file.num_record_batches == 0:
        return {name: np.empty(0, np.int32) for name in names}
    if file.num_record_batches > 1:
        raise pa.ArrowInvalid("more than one record batch")
    batch = file.get_batch(0)
    columns = {}
    for name in names:
        values = batch.column(name)
        kind = integer_of(values.type)
        begin, end = (n * kind.itemsize for n in (values.offset, values.offset + len(values)))
        data = np.frombuffer(values.buffers()[1] or b"", np.uint8)
        if len(data) < end:
            raise pa.ArrowInvalid(f"column {name!r} has {len(data):,} bytes, expected {end:,}")
        columns[name] = data[begin:end].view(kind)
    return columns
