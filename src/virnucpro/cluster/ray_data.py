"""Packing of a Ray data set or of Parquet tables, as a whole, with tasks on its blocks."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterable
from functools import cache
from itertools import repeat
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.block import BlockAccessor

from virnucpro.data.layout import Layout, TokenCounts
from virnucpro.data.packing import GreedyPacker
from virnucpro.data.truncation import warn_of_truncation
from virnucpro.files.tables import ids_of, lengths_of

logger = logging.getLogger(__name__)

NEW_COLUMNS = ("batch", "slot", "tokens")
# Row numbers, while rows are sorted by ID.
ROW_COLUMN = "virnucpro.row"
# Errors that may not recur when a task is retried.
RETRY_EXCEPTIONS = [MemoryError, OSError]
WHOLE_BLOCKS: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}


def pack_dataset(
    ds: ray.data.Dataset,
    packer: GreedyPacker,
    *,
    length_column: str = "length",
    order: str = "row",
    id_column: str = "id",
) -> tuple[ray.data.Dataset, Layout]:
    """Pack a Ray data set as a whole; return it with the batch of each row, and the layout.

    The batches are exactly those that `packer` makes of all lengths as one array on one machine,
    for any blocks and any number of workers. One pass counts the blocks, the counts are added up
    and laid out, and a second pass assigns batches block by block. Between the passes, a few
    kilobytes per block are moved.

    Args:
        ds: The data set, one row per sequence. It is executed once. Its blocks and those of the
            result are kept in the object store, which spills to disk.
        packer: The packer. Each task uses one thread.
        length_column: The column with the length of each sequence in residues, integers.
        order: How equally long sequences are ordered: "row" by row, or "id" by ID, for which Ray
            sorts all rows; rows with equal IDs keep their order.
        id_column: The column with the IDs, all strings or all integers. Used only with order="id".

    Returns:
        The data set, in its own order or sorted by ID (order="id"), with the columns `batch` and
        `slot`, the place within the batch (int32, or int64 from 2**31 sequences on), and `tokens`
        (int64), including special tokens; and the layout, with `num_batches`, `efficiency`,
        `num_truncated` and others.

    Raises:
        ValueError: There are no rows; a column is missing, has nulls or has the name of a new
            column; or lengths are not integers, negative, or too long with overlong="error". The
            message gives the number of the first such block, from 0. Raised before the second pass.
        TypeError: IDs are not all strings, all int64 or all uint64.
        RuntimeError: Ray recomputed blocks, and their lengths changed.
        OverflowError: The total number of tokens does not fit in 64 bits.

    Cost: O(n) in tasks of one block each, plus Ray's sort with order="id". The driver needs
    O(blocks * distinct sizes) memory. Ray reruns tasks of lost workers, with the same result.

    Example:
        >>> import ray
        >>> from virnucpro.data import GreedyPacker, pack_dataset
        >>> ds = ray.data.from_items([{"length": length} for length in (30, 60, 60)])
        >>> packed, layout = pack_dataset(ds, GreedyPacker(100))
        >>> layout.num_batches
        2
        >>> packed.to_pandas()["batch"].tolist()
        [0, 0, 1]
    """
    if order not in ("row", "id"):
        raise ValueError(f"order must be 'row' or 'id' (got {order!r})")
    # Check the parameters, which may have been changed.
    _ = packer.limits
    counting = ray.put(single_threaded(packer))
    ties = id_column if order == "id" else None
    blocks, counts, kind = count_blocks(execute(ds), counting, length_column, ties)
    if not counts:
        raise ValueError("the data set has no rows")
    total = sum(counts[1:], counts[0])
    layout = packer.lay_out(total)
    warn_of_truncation(total)
    logger.info("Counted %s blocks: %s", f"{len(blocks):,}", total)
    if order == "id":
        logger.info("Sorting by %s", id_column)
        blocks = sort_by_id(blocks, counts, id_column, kind)
        blocks, counts, _ = count_blocks(blocks, counting, length_column, None)
        if sum(counts[1:], counts[0]) != total:
            raise RuntimeError("the data set changed after it was counted")
    logger.info("Assigning %s blocks: %s", f"{len(blocks):,}", layout)
    packing = ray.put((single_threaded(packer), single_threaded(layout), length_column, order))
    before = itertools.chain([None], itertools.accumulate(counts))
    arguments = ((packing, *pair) for pair in zip(before, counts, strict=False))
    return ray.data.from_arrow_refs(map_blocks(assign_block, blocks, arguments)), layout


def pack_tables(
    paths: list[str],
    output: str | PathLike[str],
    packer: GreedyPacker,
    *,
    id_column: str = "id",
    length_column: str = "length",
) -> Layout:
    """Pack Parquet tables of lengths as a whole; write the plan as a folder of Parquet files.

    Read in order of their names, the files have one row per sequence, sorted by `batch` and `slot`
    (the place within the batch), with `id` (text), `length`, `tokens` and `truncated`. Equally long
    sequences are in order of their IDs. The folder appears only when it is complete.

    Args:
        paths: Parquet files (`.parquet`) that all machines can read, or folders of them, in which
            names that start with "." or "_" are ignored.
        output: The folder to write, to which all machines can write.
        packer: The packer.
        id_column: The column with the IDs.
        length_column: The column with the length of each sequence in residues.

    Raises:
        FileExistsError: `output` already exists.
        ValueError: A file is not a Parquet table with these columns or is given twice, or as for
            `pack_dataset`.
        OSError: A file cannot be read or written.
    """
    output = Path(output).absolute()
    files, num_rows = list_tables(paths, output, [id_column, length_column])
    with TemporaryDirectory(prefix=".virnucpro.", dir=output.parent) as folder:
        logger.info("Reading %s files", f"{len(files):,}")
        tables = ray.data.read_parquet(
            files,
            partitioning=None,
            file_extensions=None,
        ).select_columns(sorted({id_column, length_column}))
        columns = {"id_column": id_column, "length_column": length_column}
        tables = tables.map_batches(lengths_table, fn_kwargs=columns, **WHOLE_BLOCKS)
        packed, layout = pack_dataset(tables, packer, order="id")
        if layout.num_sequences != num_rows:
            raise RuntimeError(f"{layout.num_sequences:,} of {num_rows:,} rows were read")
        logger.info("Writing")
        unfinished = Path(folder, "plan")
        limit = {"max_residues": layout.limits.max_residues}
        rows = packed.map_batches(plan_rows, fn_kwargs=limit, **WHOLE_BLOCKS)
        rows.sort(["batch", "slot"]).write_parquet(str(unfinished))
        unfinished.rename(output)
    return layout


def list_tables(paths: list[str], output: Path, columns: list[str]) -> tuple[list[str], int]:
    """Check `paths` and `output`; return the Parquet files and their total number of rows."""
    if output.exists() or output.is_symlink():
        raise FileExistsError(f"{output}: already exists")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output}: its directory does not exist")
    files: list[Path] = []
    for name in paths:
        path = Path(name).absolute()
        if path.is_dir():
            if output.resolve().is_relative_to(path.resolve()):
                raise ValueError(f"{output}: is inside an input folder")
            found = sorted(file for file in path.rglob("*") if is_table(file.relative_to(path)))
        elif not path.exists():
            raise FileNotFoundError(f"{name}: no such file")
        else:
            found = [path] if path.suffix.lower() == ".parquet" else []
        if not found:
            raise ValueError(f"{name}: no Parquet tables (.parquet)")
        files += found
    resolved = set()
    num_rows = 0
    for file in files:
        if file.resolve() in resolved:
            raise ValueError(f"{file}: given twice")
        resolved.add(file.resolve())
        if "?" in str(file):
            raise ValueError(f"{file}: Ray cannot read file names with '?'")
        try:
            metadata = pq.read_metadata(file)
        except pa.ArrowException as error:
            raise ValueError(f"{file}: {str(error).splitlines()[0]}") from error
        names = metadata.schema.to_arrow_schema().names
        for column in columns:
            if names.count(column) != 1:
                number = "more than one" if column in names else "no"
                raise ValueError(f"{file}: {number} column {column!r} (it has {', '.join(names)})")
        num_rows += metadata.num_rows
    return list(map(str, files)), num_rows


def is_table(path: Path) -> bool:
    """Return whether the name of a file in a folder is that of a Parquet table and not hidden."""
    is_hidden = any(part.startswith((".", "_")) for part in path.parts)
    return path.suffix.lower() == ".parquet" and not is_hidden


def single_threaded(value: Any) -> Any:
    """Return a copy of a packer or layout that uses one thread, since a task has one core."""
    value = copy.copy(value)
    value.num_threads = 1
    return value


def execute(ds: ray.data.Dataset) -> list[Any]:
    """Execute a data set and return references to its blocks, in order."""
    options = ds.context.execution_options
    before = options.preserve_order
    options.preserve_order = True
    try:
        refs: list[Any] = ds.to_arrow_refs()
        return refs
    finally:
        options.preserve_order = before


def map_blocks(
    function: Callable[..., Any], blocks: list[Any], arguments: Iterable[tuple[Any, ...]]
) -> list[Any]:
    """Start a task per block: a function of the block, its number and more arguments.

    Returns references to the results. Ray runs a task on the machine that has its block, and reruns
    it if its worker is lost.
    """
    task = remote_task(function)
    pairs = zip(blocks, arguments, strict=False)
    return [task.remote(block, number, *more) for number, (block, more) in enumerate(pairs)]


@cache
def remote_task(function: Callable[..., Any]) -> Any:
    """Return the function as a task; cached, since Ray sends each new task to all workers."""
    return ray.remote(retry_exceptions=RETRY_EXCEPTIONS)(function)


def as_table(block: Any) -> pa.Table:
    """Return a block as a table; Ray may also store blocks as DataFrames."""
    return BlockAccessor.for_block(block).to_arrow()


def count_blocks(
    blocks: list[Any], packer: Any, length_column: str, id_column: str | None
) -> tuple[list[Any], list[TokenCounts], pa.DataType]:
    """Return the blocks with rows, their counts, and the type to which IDs are cast for sorting.

    The type is None if IDs keep theirs. Raises the error of the first invalid block.
    """
    results = ray.get(map_blocks(count_block, blocks, repeat((packer, length_column, id_column))))
    for result in results:
        if isinstance(result, Exception):
            raise result
    counted = [(block, *result) for block, result in zip(blocks, results, strict=True) if result]
    kinds = {kind for _, _, kind in counted}
    types = {
        ("text",): None,
        ("signed", "unsigned"): pa.int64(),
        ("unsigned", "large"): pa.uint64(),
    }
    common = [as_type for allowed, as_type in types.items() if kinds <= {*allowed, ""}]
    if not common:
        raise TypeError(f"column {id_column!r} must be all strings, all int64 or all uint64")
    return [block for block, _, _ in counted], [counts for _, counts, _ in counted], common[0]


def count_block(
    block: Any, number: int, packer: GreedyPacker, length_column: str, id_column: str | None
) -> tuple[TokenCounts, str] | Exception | None:
    """Return the counts of a block and the kind of its IDs; None if it has no rows.

    Errors are returned, since Ray adds long tracebacks to raised errors.
    """
    table = as_table(block)
    if table.num_rows == 0:
        # An empty block may lack the columns.
        return None
    try:
        for name in NEW_COLUMNS if id_column is None else (*NEW_COLUMNS, ROW_COLUMN):
            if name in table.column_names:
                raise ValueError(f"column {name!r} already exists")
        kind = "" if id_column is None else id_kind(ids_of(table, id_column), id_column)
        counts = packer.count_silently(lengths_of(table, length_column))
        # Raises OverflowError here, rather than when the counts are sent.
        _ = counts.total_tokens
        return counts, kind
    except TypeError as error:
        return TypeError(f"block {number:,}: {error}")
    except OverflowError as error:
        return OverflowError(f"block {number:,}: {error}")
    except (ValueError, pa.ArrowException) as error:
        return ValueError(f"block {number:,}: {error}")


def id_kind(ids: Any, column: str) -> str:
    """Return the kind of IDs: "text", "signed", "unsigned", or "large" (with 2**63 or more)."""
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        return "text"
    if pa.types.is_signed_integer(ids.type):
        return "signed"
    if pa.types.is_unsigned_integer(ids.type):
        return "large" if pc.max(ids).as_py() >= 2**63 else "unsigned"
    raise TypeError(f"column {column!r} must be strings or integers (got {ids.type})")


def sort_by_id(
    blocks: list[Any], counts: list[TokenCounts], id_column: str, as_type: pa.DataType | None
) -> list[Any]:
    """Return blocks with the rows sorted by ID; rows with equal IDs keep their order."""
    num_rows = (block_counts.num_sequences for block_counts in counts)
    first_rows = itertools.accumulate(num_rows, initial=0)
    numbered = map_blocks(number_rows, blocks, ((id_column, as_type, row) for row in first_rows))
    return execute(ray.data.from_arrow_refs(numbered).sort([id_column, ROW_COLUMN]))


def number_rows(
    block: Any, _: int, id_column: str, as_type: pa.DataType | None, first: int
) -> pa.Table:
    """Return a block with the number of each row, and IDs as a type that Ray sorts correctly."""
    table = as_table(block)
    ids = ids_of(table, id_column)
    if as_type is not None:
        ids = ids.cast(as_type)
    table = table.set_column(table.column_names.index(id_column), id_column, ids)
    return table.append_column(ROW_COLUMN, pa.array(np.arange(first, first + table.num_rows)))


def assign_block(
    block: Any,
    number: int,
    packing: tuple[GreedyPacker, Layout, str, str],
    before: TokenCounts | None,
    counts: TokenCounts,
) -> pa.Table:
    """Return a block with the batch, slot and tokens of each row."""
    packer, layout, length_column, order = packing
    table = as_table(block)
    lengths = lengths_of(table, length_column)
    if packer.count_silently(lengths) != counts:
        # Ray recomputes a block if its machine is lost.
        raise RuntimeError(f"block {number:,} changed after it was counted")
    tokens = layout.limits.tokens(lengths)
    if order == "id":
        table = table.drop_columns([ROW_COLUMN])
    columns = (layout.assign(lengths, before), layout.slots(lengths, before), tokens)
    for name, values in zip(NEW_COLUMNS, columns, strict=True):
        table = table.append_column(name, pa.array(values))
    return table


def lengths_table(table: pa.Table, *, id_column: str, length_column: str) -> pa.Table:
    """Return a table of IDs, as text, and lengths."""
    ids = table[id_column]
    if pa.types.is_dictionary(ids.type):
        ids = ids.cast(ids.type.value_type)
    return pa.table({"id": ids.cast(pa.large_string()), "length": table[length_column]})


def plan_rows(table: pa.Table, *, max_residues: int) -> pa.Table:
    """Return the columns of a plan."""
    table = table.append_column("truncated", pc.greater(table["length"], max_residues))
    return table.select(["batch", "slot", "id", "length", "tokens", "truncated"])
