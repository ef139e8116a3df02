"""Read files of sequences with tasks: small files together, large tables in parts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import ray.data

from virnucpro.cluster.blocks import Counted, Job, count_table, merge_counts
from virnucpro.cluster.exchange import Group
from virnucpro.cluster.ranges import MAX_RANGES
from virnucpro.cluster.tasks import raise_causes, start, start_spread
from virnucpro.data.packing import GreedyPacker
from virnucpro.files.errors import explain_errors
from virnucpro.files.fasta import (
    CountingHash,
    ReadChanges,
    ReadOptions,
    check_options,
    read_chunks,
)
from virnucpro.files.inputs import Input, find_inputs, names_of, table_kind
from virnucpro.files.places import open_input, stamp_of
from virnucpro.files.sequences import FileReader, InputFile, check_have_residues
from virnucpro.files.tables import (
    as_arrow,
    check_table,
    ids_of,
    lengths_of,
    open_parquet,
    read_groups,
)
from virnucpro.text import shown

logger = logging.getLogger(__name__)

# Rows and bytes of a block, at most, unless a single row group of a table has more.
BLOCK_ROWS = 2**20
BLOCK_BYTES = 2**26
# Bytes of files that a task reads, at least where there are cores for more tasks, and at most.
MIN_BYTES = 2**22
MAX_BYTES = 2**26


class Source(NamedTuple):
    """What one task reads: whole files, or row groups of a Parquet table.

    Attributes:
        inputs: The files.
        groups: The numbers of the row groups; None for all of each file.
        first_row: The first row of the first group.
        num_rows: The rows of the groups.
        stamp: The `stamp_of` the table when it was divided.
    """

    inputs: list[Input]
    groups: range | None = None
    first_row: int = 0
    num_rows: int = 0
    stamp: tuple[int, ...] = ()


class BlockRead(NamedTuple):
    """What is known of a block that was read.

    Attributes:
        counted: What it has; None if it has no rows.
        inputs: The files that end with it.
        changes: Characters changed or removed in these files.
        overlong: The file, ID and length of the first sequence above the limit.
    """

    counted: Counted | None
    inputs: list[InputFile]
    changes: ReadChanges
    overlong: tuple[str, str, int] | None


@dataclass(frozen=True)
class ReadFiles:
    """What was read.

    Attributes:
        groups: The blocks, with the columns `id` and `length`, and `sequence` on request.
        inputs: The files, in order.
        changes: Characters changed or removed in all of them.
        overlong: The file, ID and length of the first sequence above the limit.
    """

    groups: list[Group]
    inputs: list[InputFile]
    changes: ReadChanges
    overlong: tuple[str, str, int] | None


def read_dataset(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    *,
    options: ReadOptions | None = None,
    sequences: bool = False,
) -> ray.data.Dataset:
    r"""Read FASTA files or tables of lengths as a Ray data set, for `pack_dataset`.

    Logs one message with the numbers of characters that the options changed or removed, if any.

    Args:
        inputs: Files that all machines can read, as for `pack_files`, but not standard input.
        options: How to read the files; None for the defaults of `ReadOptions`.
        sequences: Whether to read the residues too; for FASTA only.

    Returns:
        A row per sequence, in order of the files, with the columns `id` (large_string), `length`
        (int64, residues) and, on request, `sequence` (large_string). It is in the object store.

    Raises:
        ValueError: A file is empty, damaged or not in its format, or a length is not valid.
        OSError: A file cannot be found or read.

    Cost: one pass, a task per file; small files are read together, and large Parquet tables by
    several tasks.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from virnucpro.data import read_dataset
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "proteins.fasta")
        ...     _ = path.write_text(">a first\nMKTAY\nIAK*\n>b\nmk\n")
        ...     read_dataset(path, sequences=True).take_all()[1]
        {'id': 'b', 'length': 2, 'sequence': 'MK'}
    """
    files = list_inputs(inputs, sequences)
    job = Job(GreedyPacker(2**32, 2**31), "length", "id", makes_plan=True)
    with raise_causes():
        read = read_on_ray(files, job, check_options(options), sequences)
    if changes := str(read.changes):
        logger.info("%s", changes)
    return ray.data.from_arrow_refs([block for group in read.groups for block in group.blocks])


def list_inputs(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]], sequences: bool
) -> list[Input]:
    """Return the files that inputs stand for, which must have residues if they are asked for."""
    names = names_of(inputs)
    if "-" in names:
        raise ValueError("standard input cannot be read on Ray")
    files = find_inputs(names)
    if sequences:
        check_have_residues([file.path for file in files])
    return files


def read_on_ray(
    inputs: Sequence[Input], job: Job, options: ReadOptions, sequences: bool
) -> ReadFiles:
    """Read files into the object store.

    Raises:
        ValueError: A file is empty, damaged or not in its format, or a length is not valid.
        OSError: A file cannot be read.
    """
    folder = str(Path.cwd())
    # Starts Ray, if nothing has.
    known = ray.put((job, options, sequences, folder))
    sources = list(divide_files(inputs, options, int(ray.cluster_resources().get("CPU", 1))))
    tables = {
        source.inputs[0]: (source.inputs[0], source.stamp, folder)
        for source in sources
        if source.groups is not None
    }
    hashes = dict(zip(tables, start(hash_table, tables.values()), strict=True))
    readers = start_spread(read_source, ((known, source) for source in sources))
    blocks: list[Any] = []
    counted: list[Counted] = []
    read: dict[str, InputFile] = {}
    changes, overlong = ReadChanges(), None
    for reader in readers:
        for block in reader:
            # The error of a task comes in place of a block, and nothing after it.
            found: BlockRead = ray.get(next(reader, block))
            changes += found.changes
            overlong = overlong or found.overlong
            for file in found.inputs:
                before = read.get(file.name)
                num_before = before.sequences if before else 0
                read[file.name] = replace(file, sequences=num_before + file.sequences)
            if found.counted is not None:
                blocks.append(block)
                counted.append(found.counted)
    for table, (size, sha256) in zip(hashes, ray.get(list(hashes.values())), strict=True):
        read[table.name] = replace(read[table.name], bytes=size, sha256=sha256)
    if not blocks:
        raise ValueError(f"{shown(inputs[-1].name)}: contains no sequences")
    size = -(-len(blocks) // MAX_RANGES)
    groups = [
        Group(
            blocks[first : first + size],
            first,
            merge_counts(counted[first : first + size]),
            counted[first : first + size],
        )
        for first in range(0, len(blocks), size)
    ]
    return ReadFiles(groups, list(read.values()), changes, overlong)


def divide_files(inputs: Sequence[Input], options: ReadOptions, num_cores: int) -> Iterator[Source]:
    """Yield what each task reads, in order of the files."""
    total = sum(file.size or 0 for file in inputs)
    most = max(MIN_BYTES, min(MAX_BYTES, total // (4 * num_cores)))
    bundle: list[Input] = []
    num_bytes = 0
    for file in inputs:
        size = most if file.size is None else file.size
        is_divided = table_kind(file.path) == "parquet" and size > most
        if bundle and (is_divided or num_bytes + size > most):
            yield Source(bundle)
            bundle, num_bytes = [], 0
        if is_divided:
            yield from divide_table(file, options)
        else:
            bundle.append(file)
            num_bytes += size
    if bundle:
        yield Source(bundle)


def divide_table(table: Input, options: ReadOptions) -> Iterator[Source]:
    """Yield row groups of a Parquet table that together have about the rows of a block."""
    stamp = stamp_of(table.path)
    with explain_errors(table.path), open_parquet(table.path) as file:
        check_table(file.schema_arrow, [options.id_column, options.length_column])
        metadata = file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    begin = first_row = num_rows = 0
    for group, size in enumerate(sizes):
        if num_rows and num_rows + size > BLOCK_ROWS:
            yield Source([table], range(begin, group), first_row, num_rows, stamp)
            begin, first_row, num_rows = group, first_row + num_rows, 0
        num_rows += size
    yield Source([table], range(begin, len(sizes)), first_row, num_rows, stamp)


@contextmanager
def working_folder(folder: str) -> Iterator[None]:
    """Run a task in a folder, if this machine has it, so that paths are those of the driver."""
    before = Path.cwd()
    with suppress(OSError):
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def hash_table(table: Input, stamp: tuple[int, ...], folder: str) -> tuple[int, str]:
    """Return the size and the SHA-256 of a table that is read in parts."""
    digest = CountingHash()
    with working_folder(folder):
        with open_input(table.path) as source:
            for _ in read_chunks(source, table.name, digest):
                pass
        check_stamp(table, stamp)
    return digest.num_bytes, digest.hexdigest()


def read_source(known: tuple[Job, ReadOptions, bool, str], source: Source) -> Iterator[Any]:
    """Yield blocks, each followed by what is known of it."""
    job, options, sequences, folder = known
    with working_folder(folder):
        yield from read_blocks(job, options, sequences, source)


def read_blocks(job: Job, options: ReadOptions, sequences: bool, source: Source) -> Iterator[Any]:
    """Yield blocks, each followed by what is known of it."""
    read: list[InputFile] = []
    changes = ReadChanges()
    tables: list[pa.Table] = []
    overlong: tuple[str, str, int] | None = None

    def take_block() -> Iterator[Any]:
        nonlocal overlong, changes
        block = pa.concat_tables(tables).combine_chunks() if tables else pa.table({})
        yield block
        counted = count_table(block, job) if block.num_rows else None
        yield BlockRead(counted, read.copy(), changes, overlong)
        read.clear()
        tables.clear()
        overlong, changes = None, ReadChanges()

    readers: list[FileReader | GroupReader]
    if source.groups is None:
        readers = [FileReader(file.path, options, sequences) for file in source.inputs]
    else:
        readers = [GroupReader(source, options, source.groups)]
    for file, reader in zip(source.inputs, readers, strict=True):
        for ids, lengths, *texts in reader:
            columns = {"id": ids, "length": as_arrow(lengths)}
            tables.append(pa.table({**columns, **({"sequence": texts[0]} if texts else {})}))
            limit = job.packer.limits.max_residues
            if overlong is None and lengths.max(initial=0) > limit:
                row = int((lengths > limit).argmax())
                overlong = file.name, ids[row].as_py(), int(lengths[row])
            if (
                sum(len(table) for table in tables) >= BLOCK_ROWS
                or sum(table.nbytes for table in tables) >= BLOCK_BYTES
            ):
                yield from take_block()
        read.append(reader.input)
        changes += reader.changes
    yield from take_block()


class GroupReader:
    """Reads row groups of a Parquet table; see `FileReader`, but without size and hash."""

    changes = ReadChanges()

    def __init__(self, source: Source, options: ReadOptions, groups: range) -> None:
        self.source, self.options, self.groups = source, options, groups

    @property
    def input(self) -> InputFile:
        """The rows read."""
        return InputFile(self.source.inputs[0].name, 0, "", self.source.num_rows)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        columns = [self.options.id_column, self.options.length_column]
        path, row = self.source.inputs[0].path, self.source.first_row
        end = row + self.source.num_rows
        with explain_errors(path), open_parquet(path) as file:
            if file.num_row_groups < self.groups.stop:
                raise ValueError("changed while it was read")
            for batch in read_groups(path, file, self.groups, columns):
                ids = ids_of(batch, columns[0], row).cast(pa.large_string())
                lengths = lengths_of(batch, columns[1], row)
                row += len(lengths)
                yield ids, lengths
            if row != end:
                raise ValueError("changed while it was read")
        check_stamp(self.source.inputs[0], self.source.stamp)


def check_stamp(table: Input, stamp: tuple[int, ...]) -> None:
    """Raise ValueError if a table is not what it was when it was divided."""
    if stamp_of(table.path) != stamp:
        raise ValueError(f"{shown(table.name)}: changed while it was read")
