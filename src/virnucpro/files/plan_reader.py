"""Read plans from Parquet files, folders of them, and Arrow files."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro.data.layout import Layout
from virnucpro.data.overlong import Fragments
from virnucpro.data.plan import PackingPlan
from virnucpro.files import old_plans, tables
from virnucpro.files.copies import fetch
from virnucpro.files.places import as_local, check_exists, is_uri, join, name_of
from virnucpro.files.plan_checks import as_numbers, check_numbers, compare_layout, make_fragments
from virnucpro.files.plan_schema import (
    FROM_FILES,
    IF_SPLIT,
    KINDS,
    NULLABLE,
    check_schema,
    explain_errors,
)
from virnucpro.files.plan_summary import (
    Summary,
    decode_checksums,
    decode_layout,
    decode_summary,
    not_a_plan,
)
from virnucpro.files.stored_rows import StoredRows
from virnucpro.files.tables import PLAN_KEY, open_source, read_arrow
from virnucpro.kernel.arrow import check_array
from virnucpro.memory import check_memory
from virnucpro.text import quoted, shown

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
        path: A plan file, or a folder of them, or the URI of one.

    Attributes:
        name: The path or URI for messages, without secrets.
        path: The path, that of a temporary copy for a URI.
        origin: The path or URI as given.
        copy: The copy, which is removed with this object; None for a path.
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
        self.origin, self.name = as_local(path), name_of(path)
        self.path, self.copy = Path(self.origin), None
        if is_uri(self.origin):
            self.copy = fetch(self.origin, lambda names: choose_parts(self.name, names))
            self.path = self.copy.path
        self.parts, self.is_arrow = find_parts(self.path, self.name)
        with explain_errors(self.name):
            if self.is_arrow:
                with open_source(self.path) as source:
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
                self.summary, self._state = decode_summary(self.name, self.schema.metadata)
                check_schema(self.name, self.schema)

    @functools.cached_property
    def layout(self) -> Layout:
        """The layout of the plan. May raise ValueError if it is damaged."""
        if self._state["version"] == 4:
            return old_plans.find_layout(self.name, self.summary, self.read(["batch", "tokens"]))
        layout = decode_layout(self.name, self._state)
        if layout.limits != self.summary.limits:
            raise not_a_plan(self.name, "its layout has other limits")
        return layout

    @functools.cached_property
    def num_rows(self) -> int:
        """The number of rows, which is read without the rows."""
        if self.is_arrow:
            return self.stored.buffers.num_rows
        with explain_errors(self.name):
            num_rows = 0
            for part in self.parts:
                with open_parquet(part) as file:
                    num_rows += file.metadata.num_rows
            return num_rows

    @functools.cached_property
    def stored(self) -> StoredRows:
        """The rows of an Arrow file."""
        with explain_errors(self.name):
            return StoredRows(self.path, self.name if is_uri(self.origin) else "")

    @functools.cached_property
    def checksums(self) -> dict[str, NDArray[np.int64]] | None:
        """The checksums of the rows, by column and block, if the file has them."""
        return decode_checksums(self.name, self._state)

    @property
    def has_stored_rows(self) -> bool:
        """Whether the rows can be read in parts: those of Arrow files that were not rewritten."""
        is_known = self.is_arrow and all(name in KINDS for name in self.schema.names)
        return is_known and bool(self.checksums) and not self.stored.buffers.is_compressed

    @property
    def metadata_hash(self) -> bytes:
        """The hash of the summary, which tells plans apart: it has their checksums."""
        return hash_metadata(self.schema)

    @property
    def expected_rows(self) -> int:
        """The number of rows that the file should have: sequences in batches, and dropped ones."""
        return self.layout.num_sequences + self.summary.totals.dropped

    def check_size(self) -> None:
        """Raise ValueError unless the file has the rows that it should have."""
        if self.num_rows != self.expected_rows:
            raise ValueError(
                f"{shown(self.name)}: damaged: it has {self.num_rows:,} rows, expected "
                f"{self.expected_rows:,}"
            )

    def name_of(self, part: Path) -> str:
        """Return what messages call one of the files."""
        return self.name if part == self.path else join(self.name, part.name)

    def read(self, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """Return columns of all rows, those that the file has, each in one chunk.

        Raises:
            ValueError: The file is damaged, or a column has nulls that should have none.
            OSError: The file cannot be read.
        """
        names = [name for name in self.schema.names if name in columns]
        schema = pa.schema([self.schema.field(name) for name in names])
        with explain_errors(self.name):
            check_memory(8 * len(names) * self.num_rows, f"{self.num_rows:,} rows")
            if self.is_arrow:
                # Not mapped, since the file might shrink while it is read.
                with open_source(self.path) as source:
                    self._check_part(self.path, pa.ipc.open_file(source).schema, names)
                    table = pa.Table.from_batches(read_arrow(source, names), schema)
            else:
                table = pa.concat_tables([self._read_part(part, schema) for part in self.parts])
            if len(table) != self.num_rows:
                raise pa.ArrowInvalid(f"it has {len(table):,} rows, expected {self.num_rows:,}")
            try:
                check_array(table, "its columns")
            except ValueError as error:
                raise not_a_plan(self.name, str(error)) from error
            check_memory(table.nbytes, f"a copy of {self.num_rows:,} rows")
            table = table.combine_chunks()
        for name in names:
            if name not in NULLABLE and table[name].null_count:
                raise not_a_plan(self.name, f"column {quoted(name)} contains nulls")
        return table

    def iterate(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield columns of some rows of a Parquet plan at a time, in order.

        Errors are those of `read`, but columns are not checked for nulls.
        """
        for part in self.parts:
            with explain_errors(self.name_of(part)), open_parquet(part) as file:
                self._check_part(part, file.schema_arrow, columns)
                groups = range(file.num_row_groups)
                yield from tables.read_groups(part, file, groups, columns, CHUNK)

    def _read_part(self, part: Path, schema: pa.Schema) -> pa.Table:
        """Return the columns of a schema from a Parquet file; raise ValueError for other types."""
        names = schema.names
        with open_parquet(part) as file:
            self._check_part(part, file.schema_arrow, names)
            if "id" not in names:
                return file.read(names)
            batches = tables.read_groups(part, file, range(file.num_row_groups), names)
            return pa.Table.from_batches(batches, schema)

    def _check_part(self, part: Path, schema: pa.Schema, names: Sequence[str]) -> None:
        """Raise ValueError if the plan has been replaced, or a part has other columns."""
        if part == self.path and hash_metadata(schema) != self.metadata_hash:
            raise ValueError(f"{shown(self.name)}: the plan has changed since its summary was read")
        found, expected = (
            [field for field in fields if field.name in names] for fields in (schema, self.schema)
        )
        if found != expected:
            raise not_a_plan(self.name_of(part), f"its columns are not those of {METADATA}")


def open_parquet(path: Path) -> AbstractContextManager[pq.ParquetFile]:
    """Open a Parquet file, with checksums, and with metadata as large as a summary may be."""
    return tables.open_parquet(path, thrift_string_size_limit=MAX_METADATA)


def choose_parts(name: str, files: list[str]) -> list[str]:
    """Return the names of files in the folder of a plan that are of use."""
    if METADATA not in files:
        raise not_a_plan(name, f"a folder without a file {METADATA}")
    return [file for file in files if file == METADATA or file[0] not in "._"]


def find_parts(path: Path, name: str) -> tuple[list[Path], bool]:
    """Return the files with the rows of a plan, in order, and whether they are Arrow files."""
    is_folder = False
    try:
        check_exists(path)
    except IsADirectoryError:
        is_folder = True
    if is_folder:
        if not (path / METADATA).is_file():
            raise not_a_plan(name, f"a folder without a file {METADATA}")
        parts = sorted(part for part in path.glob("*.parquet") if part.is_file())
        hidden = [part.name for part in parts if part.name[0] in "._"]
        if hidden:
            raise not_a_plan(name, f"{hidden[0]}, a name that other readers leave out")
        return parts, False
    if not path.is_file():
        raise not_a_plan(name, "not a regular file")
    with explain_errors(name), path.open("rb") as file:
        start = file.read(6)
    if start != b"ARROW1" and start[:4] != b"PAR1":
        raise not_a_plan(name, "neither Parquet nor Arrow")
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
            f"{shown(file.name)}: plan file of version 4, without a summary (PackingPlan.load "
            "reads it, and save writes it in the current format)"
        )
    return file


def load_plan(path: str | PathLike[str]) -> PackingPlan:
    """Return a plan; see `PackingPlan.load`."""
    file = PlanFile(path)
    if file.is_old_arrow:
        return old_plans.load_saved(file.path, file.schema, file.name)
    return plan_of(file)


def plan_of(file: PlanFile) -> PackingPlan:
    """Return the plan of a file whose summary has been read; raise if it has been replaced."""
    return open_rows(file) if file.has_stored_rows else read_plan(file)


def read_plan(file: PlanFile) -> PackingPlan:
    """Return a plan that is read into memory, with its rows validated."""
    layout, num_rows = file.layout, file.summary.totals.read
    file.check_size()
    for name in ("batch", "tokens"):
        for error in compare_layout(file.read([name]), layout):
            raise ValueError(f"{shown(file.name)}: damaged: {error}")
    table, end = file.read(["row", *IF_SPLIT]), layout.num_sequences
    rows = as_numbers(table["row"])
    numbers, fragments = rows[:end], None
    if "fragment" in table.schema.names:
        numbers, *columns = (
            as_numbers(table[name])[:end] for name in ("fragment", "row", "start", "stop")
        )
        fragments = make_fragments(file.name, layout, num_rows, rows[end:], numbers, *columns)
    else:
        check_numbers(file.name, "row", rows)
    integer = np.int32 if len(table) < 2**31 else np.int64
    numbers, dropped = (values.astype(integer, copy=False) for values in (numbers, rows[end:]))
    return PackingPlan(layout, numbers, None, dropped, fragments, file.summary)


class PlanRows:
    """The rows of the plan in an Arrow file, which are read when they are asked for.

    Args:
        file: The plan file.

    Raises:
        ValueError: The file is damaged.
        OSError: The file cannot be read.
    """

    def __init__(self, file: PlanFile) -> None:
        self._file = file
        self.name = "fragment" if "fragment" in file.schema.names else "row"
        self.stored = file.stored
        with explain_errors(file.name):
            num_dropped = file.summary.totals.dropped
            self.stored.choose(file.schema, file.checksums or {}, num_dropped)

    def read(self, begin: int, end: int | None) -> NDArray[Any]:
        """Return the numbers of the rows, or of the fragments, in a range of places.

        If there is no end, those are places of dropped rows, which have no fragments.

        Raises:
            ValueError: A number is out of range.
            OSError: The file has changed since it was opened, or cannot be read.
        """
        if end is None:
            return self.stored.read("row", begin, self.stored.buffers.num_rows)
        return self.stored.read(self.name, begin, end)

    def fragments(self) -> Fragments | None:
        """Return the fragments of the plan, validated; None if no sequence was split."""
        if self.name == "row":
            return None
        file, size = self._file, self._file.layout.num_sequences
        columns = (self.stored.read(name, 0, size) for name in ("fragment", "row", "start", "stop"))
        num_rows = file.summary.totals.read
        return make_fragments(file.name, file.layout, num_rows, self.read(size, None), *columns)

    def reduce(self, num_threads: int | None) -> tuple[Any, ...]:
        """Return what a pickle of the plan calls, and with which arguments."""
        origin = self._file.origin if is_uri(self._file.origin) else str(self.stored.path)
        return load_again, ((origin, self._file.metadata_hash), num_threads)


def load_again(key: tuple[str, bytes], num_threads: int | None) -> PackingPlan:
    """Return a plan that was pickled as the path of its file and the hash of its summary."""
    file = open_plan(key[0])
    if file.metadata_hash != key[1]:
        raise ValueError(f"{shown(file.name)}: not the plan that was pickled: the file has changed")
    plan = open_rows(file)
    plan.num_threads = num_threads
    return plan


def open_rows(file: PlanFile) -> PackingPlan:
    """Return the plan of an Arrow file, whose rows are read when they are asked for."""
    file.check_size()
    rows = PlanRows(file)
    fragments = rows.fragments if rows.name == "fragment" else None
    return PackingPlan(file.layout, None, None, None, fragments, file.summary, rows)


def hash_metadata(schema: pa.Schema) -> bytes:
    """Return the hash of a summary."""
    return hashlib.sha256((schema.metadata or {}).get(PLAN_KEY, b"")).digest()
