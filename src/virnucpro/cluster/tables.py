"""Parquet tables of lengths, and plans as folders of Parquet files, read and written by tasks."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from virnucpro.cluster.tasks import ROW_COLUMN, as_table, count_rows, map_blocks, spread
from virnucpro.files.errors import explain_errors
from virnucpro.files.fasta import CountingHash, open_file, read_chunks
from virnucpro.files.plan_reader import METADATA
from virnucpro.files.plan_schema import integer_of
from virnucpro.files.plan_writer import DICTIONARIES, ROW_GROUP_SIZE
from virnucpro.files.sequences import InputFile
from virnucpro.files.tables import (
    as_arrow,
    check_table,
    ids_of,
    lengths_of,
    open_parquet,
    read_groups,
    strings_as_arrow,
)
from virnucpro.text import shown

# Maximum rows of a block that is read, unless a single row group has more.
BLOCK_SIZE = 2**20
NO_LENGTHS = np.empty(0, np.int64)


class Table(NamedTuple):
    """A Parquet table.

    Attributes:
        name: Its path as given, or in the folder that was given.
        path: Its absolute path.
        group_sizes: The number of rows of each row group.
    """

    name: str
    path: Path
    group_sizes: list[int]

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return sum(self.group_sizes)


class RowGroup(NamedTuple):
    """A row group of a Parquet table.

    Attributes:
        name: The name of the table.
        path: The absolute path of the table.
        number: Its number.
        first: Its first row, counted in the table.
        num_rows: Its number of rows.
    """

    name: str
    path: Path
    number: int
    first: int
    num_rows: int


def list_tables(paths: list[str], output: Path, columns: list[str]) -> list[Table]:
    """Check `paths` and the absolute path `output`; return the Parquet tables, in order."""
    if output.exists() or output.is_symlink():
        raise FileExistsError(f"{shown(output)}: already exists")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{shown(output)}: its directory does not exist")
    files: list[tuple[str, Path]] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            if output.resolve().is_relative_to(path.resolve()):
                raise ValueError(f"{shown(output)}: is inside an input folder")
            inside = sorted(file for file in path.rglob("*") if is_table(file.relative_to(path)))
            found = [(str(file), file) for file in inside]
        elif not path.exists():
            raise FileNotFoundError(f"{shown(name)}: no such file")
        else:
            found = [(name, path)] if path.suffix.lower() == ".parquet" else []
        if not found:
            raise ValueError(f"{shown(name)}: no Parquet tables (.parquet)")
        files += found
    resolved = set()
    tables = []
    for name, path in files:
        if path.resolve() in resolved:
            raise ValueError(f"{shown(name)}: given twice")
        resolved.add(path.resolve())
        with explain_errors(name):
            with open_parquet(path) as file:
                metadata = file.metadata
            check_table(metadata.schema.to_arrow_schema(), columns)
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        tables.append(Table(name, path.absolute(), sizes))
    return tables


def is_table(path: Path) -> bool:
    """Return whether the name of a file in a folder is that of a Parquet table and not hidden."""
    is_hidden = any(part.startswith((".", "_")) for part in path.parts)
    return path.suffix.lower() == ".parquet" and not is_hidden


def hash_tables(tables: list[Table]) -> list[Any]:
    """Start a task per table; return references to the descriptions of the files."""
    return spread(describe_file, ((table.name, table.path, table.num_rows) for table in tables))


def describe_file(name: str, path: Path, num_rows: int) -> InputFile:
    """Return the description of a table for the summary of a plan."""
    digest = CountingHash()
    with open_file(path) as file:
        for _ in read_chunks(file, name, digest):
            pass
    return InputFile(name, digest.num_bytes, digest.hexdigest(), num_rows)


def read_tables(tables: list[Table], id_column: str, length_column: str) -> list[Any]:
    """Start tasks that read tables; return references to blocks, in order.

    A block has the columns `id` (text) and `length` of some row groups, whichever their tables are.
    """
    columns = (id_column, length_column)
    return spread(read_block, ((groups, *columns) for groups in split_tables(tables)))


def split_tables(tables: list[Table]) -> Iterator[list[RowGroup]]:
    """Yield the row groups of each block."""
    block: list[RowGroup] = []
    num_rows = 0
    for table in tables:
        firsts = itertools.accumulate(table.group_sizes, initial=0)
        for number, (first, size) in enumerate(zip(firsts, table.group_sizes, strict=False)):
            if block and num_rows + size > BLOCK_SIZE:
                yield block
                block, num_rows = [], 0
            block.append(RowGroup(table.name, table.path, number, first, size))
            num_rows += size
    if block:
        yield block


def read_block(groups: list[RowGroup], id_column: str, length_column: str) -> pa.Table:
    """Return the IDs and lengths of row groups.

    Raises:
        ValueError: A table is damaged or has changed, an ID is null, or a length is null, negative
            or not an integer.
        OSError: A table cannot be read.
    """
    columns = [id_column, length_column]
    parts = [pa.table({"id": strings_as_arrow([], is_large=True), "length": as_arrow(NO_LENGTHS)})]
    for (name, path), of_table in itertools.groupby(groups, key=lambda group: group[:2]):
        with explain_errors(name), open_parquet(path) as file:
            for group in of_table:
                row = group.first
                for rows in read_groups(path, file, [group.number], columns):
                    ids = ids_of(rows, id_column, row).cast(pa.large_string())
                    lengths = lengths_of(rows, length_column, row)
                    parts.append(pa.table({"id": ids, "length": as_arrow(lengths)}))
                    row += len(lengths)
                if row - group.first != group.num_rows:
                    raise ValueError("changed while it was read")
    return pa.concat_tables(parts).combine_chunks()


class Description(NamedTuple):
    """What all files of a plan have in common.

    Attributes:
        schema: Their schema.
        inputs: The names of the input files, an Arrow array.
        ends: The row after the last of each input file.
        max_residues: Residues kept per sequence.
    """

    schema: Any
    inputs: Any
    ends: NDArray[np.int64]
    max_residues: int


def write_parts(
    folder: Path, blocks: list[Any], schema: pa.Schema, tables: list[Table], max_residues: int
) -> None:
    """Write the rows of a plan, a task and a file per block that has rows.

    The blocks have the columns `batch`, `virnucpro.row`, `id`, `length` and `tokens`, and are in
    order of batches and slots. Beside the folder, there may be files that are not complete.

    Raises:
        RuntimeError: The blocks do not have the rows of the tables.
        OSError: A file cannot be written.
    """
    sizes = ray.get(map_blocks(count_rows, blocks, itertools.repeat(())))
    num_rows = sum(table.num_rows for table in tables)
    if sum(sizes) != num_rows:
        raise RuntimeError(f"{sum(sizes):,} of {num_rows:,} rows are left after sorting")
    blocks = [block for block, size in zip(blocks, sizes, strict=True) if size]
    inputs = strings_as_arrow([table.name for table in tables])
    ends = np.cumsum([table.num_rows for table in tables])
    description = ray.put(Description(schema, inputs, ends, max_residues))
    # Files are read in order of their names.
    digits = max(5, len(str(len(blocks) - 1)))
    names = (f"part-{number:0{digits}}.parquet" for number in range(len(blocks)))
    written = map_blocks(write_part, blocks, ((folder / name, description) for name in names))
    # If one fails, the others must not write to a folder that is being removed.
    ray.wait(written, num_returns=len(written), fetch_local=False)
    ray.get(written)


def write_part(block: Any, _: int, path: Path, description: Description) -> None:
    """Write the rows of a block to a file of a plan."""
    schema, inputs, ends, max_residues = description
    table = as_table(block)
    rows = table[ROW_COLUMN].to_numpy()
    files = np.searchsorted(ends, rows, side="right").astype(np.int32)
    columns = {
        "batch": table["batch"],
        "row": as_arrow(rows.astype(integer_of(schema.field("row").type))),
        "id": table["id"],
        "length": table["length"],
        "tokens": table["tokens"],
        "truncated": pc.greater(table["length"], max_residues),
        "file": pa.DictionaryArray.from_arrays(as_arrow(files), inputs),
    }
    table = pa.table([columns[name] for name in schema.names], schema=schema)
    # Ray may run a task again while a lost worker still writes.
    unfinished = path.parent.with_name(f"{path.name}.{uuid.uuid4().hex}")
    pq.write_table(
        table,
        unfinished,
        row_group_size=ROW_GROUP_SIZE,
        use_dictionary=DICTIONARIES,
        write_page_checksum=True,
    )
    sync(unfinished)
    unfinished.replace(path)


def write_metadata(folder: Path, schema: pa.Schema) -> None:
    """Write the file of a plan with its schema and metadata."""
    pq.write_metadata(schema, folder / METADATA)
    sync(folder / METADATA)


def sync(path: Path) -> None:
    """Write a file to its disk; otherwise, a crash could leave it incomplete."""
    with path.open("rb+") as file:
        os.fsync(file)
