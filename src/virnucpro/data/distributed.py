"""Packing of a Ray data set: one First-Fit Decreasing over all its blocks."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterable
from functools import cache
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import ray.exceptions

from virnucpro.data.packing import GreedyPacker, warn_of_truncation
from virnucpro.data.plan import Layout, TokenCounts
from virnucpro.data.tables import ids_of, lengths_of

logger = logging.getLogger(__name__)

ADDED = ("batch", "slot", "tokens")
# The rows' numbers, while the rows are sorted.
ROW = "virnucpro.row"
# What may go well when it is tried again.
RETRIED = [MemoryError, OSError]
WHOLE_BLOCKS: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}


def pack_dataset(
    ds: ray.data.Dataset,
    packer: GreedyPacker,
    *,
    length_column: str = "length",
    order: str = "row",
    id_column: str = "id",
) -> tuple[ray.data.Dataset, Layout]:
    """Return a data set with the batch of each row, packed as a whole, and the layout.

    Sequences are packed exactly as `packer` packs all lengths as one array on one machine, for any
    blocks and any number of workers: each block is counted, the counts added up and laid out, and
    each block assigned alone. Between the two passes a few kilobytes a block are moved.

    Args:
        ds: A row for each sequence. It is executed once; its blocks, and those of the result, lie
            in the object store, which spills to disk.
        packer: What to pack with. A task uses one thread.
        length_column: The column with the residues of each sequence, integers.
        order: The order of equally long sequences: "row" for that of the data set, "id" for that of
            their IDs, by which Ray sorts all rows then; equal IDs stay in order of rows.
        id_column: The column with the IDs under order="id", all strings or all integers.

    Returns:
        The data set with columns `batch` and `slot`, the place within the batch (int32, or int64
        from 2**31 sequences on), and `tokens` (int64, as packed, with special tokens); its rows are
        in the order that `order` says. The layout tells `num_batches`, `efficiency`,
        `num_truncated` and the rest.

    Raises:
        ValueError: There are no rows; a column is missing, or has nulls, or one of the new ones is
            there already; lengths are no integers, negative, or too long under overlong="error".
            Blocks are named by their number, from 0. No sequence has been assigned by then.
        TypeError: IDs are neither strings nor integers, or both.
        OverflowError: All tokens together need more than 64 bits.

    Cost: O(n) in tasks of a block each. The driver holds O(blocks * distinct sizes). Tasks whose
    worker is lost are run again by Ray, and give the same.

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
    packer._parameters()
    shared = ray.put(on_one_thread(packer))
    columns = (length_column, id_column if order == "id" else None)
    blocks, counts = count_blocks(blocks_of(ds), shared, columns)
    if not counts:
        raise ValueError("the data set has no rows")
    total = sum(counts[1:], counts[0])
    layout = packer.lay_out(total)
    warn_of_truncation(total)
    logger.info("Counted %s blocks: %s", f"{len(blocks):,}", total)
    if order == "id":
        logger.info("Sorting by %s", id_column)
        blocks, counts = count_blocks(sort_by_id(blocks, counts, id_column), shared, columns)
    shared = ray.put((on_one_thread(packer), on_one_thread(layout), length_column))
    logger.info("Assigning %s blocks: %s", f"{len(blocks):,}", layout)
    before = itertools.chain([None], itertools.accumulate(counts))
    rest = ((shared, *pair) for pair in zip(before, counts, strict=False))
    return ray.data.from_arrow_refs(run(assign_block, blocks, rest)), layout


def pack_tables(
    paths: list[str],
    output: str | PathLike[str],
    packer: GreedyPacker,
    *,
    id_column: str = "id",
    length_column: str = "length",
) -> Layout:
    """Pack Parquet tables of lengths; write the plan as a folder of Parquet files.

    The files, in order of their names, have one row a sequence in order of `batch` and `slot`, the
    place within it, with its `id` (text), `length`, `tokens` and whether it was `truncated`.
    Equally long sequences are in order of their IDs. The folder appears when it is complete.

    Args:
        paths: Parquet files, or folders of them, that all machines can read.
        output: The folder to write, which all machines can write to.
        packer: What to pack with.
        id_column: The column with the IDs.
        length_column: The column with the residues of each sequence.

    Raises:
        FileExistsError: There is something at `output`.
        ValueError: See `pack_dataset`.
        OSError: A file cannot be read or written.
    """
    output = Path(output).absolute()
    if output.exists():
        raise FileExistsError(f"{output}: is there already")
    logger.info("Reading")
    tables = ray.data.read_parquet(paths, columns=[id_column, length_column])
    as_text = {"id_column": id_column, "length_column": length_column}
    tables = tables.map_batches(plain_table, fn_kwargs=as_text, **WHOLE_BLOCKS)
    packed, layout = pack_dataset(tables, packer, order="id")
    logger.info("Writing")
    limit = {"limit": layout.max_sequence_length}
    with TemporaryDirectory(prefix=".virnucpro.", dir=output.parent) as folder:
        unfinished = Path(folder, "plan")
        rows = packed.map_batches(plan_table, fn_kwargs=limit, **WHOLE_BLOCKS)
        rows.sort(["batch", "slot"]).write_parquet(str(unfinished))
        unfinished.rename(output)
    return layout


def on_one_thread(value: Any) -> Any:
    """Return a packer or a layout for a task, which has one core."""
    value = copy.copy(value)
    name = "num_threads" if isinstance(value, GreedyPacker) else "_num_threads"
    setattr(value, name, 1)
    return value


def blocks_of(ds: ray.data.Dataset) -> list[Any]:
    """Execute a data set; return references to its blocks, in order, as Arrow tables."""
    options = ds.context.execution_options
    before = options.preserve_order
    options.preserve_order = True
    try:
        refs: list[Any] = ds.to_arrow_refs()
        return refs
    finally:
        options.preserve_order = before


def run(function: Callable[..., Any], blocks: list[Any], rest: Iterable[tuple[Any, ...]]) -> Any:
    """Return references to the results of tasks: a function of a block, its number and the rest.

    Ray starts a task where its block lies, and again where its worker is lost.
    """
    task = task_of(function)
    arguments = zip(blocks, rest, strict=False)
    return [task.remote(block, number, *more) for number, (block, more) in enumerate(arguments)]


@cache
def task_of(function: Callable[..., Any]) -> Any:
    """Return the function as a task; made once, as Ray sends each to all workers."""
    return ray.remote(retry_exceptions=RETRIED)(function)


def count_blocks(
    blocks: list[Any], packer: Any, columns: tuple[str, str | None]
) -> tuple[list[Any], list[TokenCounts]]:
    """Return the blocks that have rows, and their counts; raise what the first bad block raises."""
    try:
        counts = ray.get(run(count_block, blocks, itertools.repeat((packer, *columns))))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    some = [(block, *found) for block, found in zip(blocks, counts, strict=True) if found]
    if len({kind for _, _, kind in some}) > 1:
        raise TypeError(f"column {columns[1]!r} must be all strings or all integers")
    return [block for block, _, _ in some], [counted for _, counted, _ in some]


def count_block(
    block: pa.Table, number: int, packer: GreedyPacker, length_column: str, id_column: str | None
) -> tuple[TokenCounts, str] | None:
    """Return counts and the kind of IDs of a block; None without rows, where columns may lack."""
    if block.num_rows == 0:
        return None
    try:
        for name in ADDED:
            if name in block.column_names:
                raise ValueError(f"there is a column {name!r} already")
        kind = "" if id_column is None else kind_of(ids_of(block, id_column).type, id_column)
        counted = packer._count_checked(lengths_of(block, length_column))
        # Raises where they are too many to be sent.
        _ = counted.total_tokens
        return counted, kind
    except (ValueError, TypeError, OverflowError) as error:
        raise type(error)(f"block {number:,}: {error}") from None


def kind_of(of_ids: pa.DataType, column: str) -> str:
    """Return whether IDs of a type are text or integers."""
    if pa.types.is_string(of_ids) or pa.types.is_large_string(of_ids):
        return "text"
    if pa.types.is_integer(of_ids):
        return "integer"
    raise TypeError(f"column {column!r} must be strings or integers (it is {of_ids})")


def sort_by_id(blocks: list[Any], counts: list[TokenCounts], id_column: str) -> list[Any]:
    """Return blocks with the rows in order of IDs, equal ones in order of rows."""
    sizes = (counted.num_sequences for counted in counts)
    first_rows = itertools.accumulate(sizes, initial=0)
    numbered = run(number_rows, blocks, ((id_column, first) for first in first_rows))
    return blocks_of(ray.data.from_arrow_refs(numbered).sort([id_column, ROW]))


def number_rows(block: pa.Table, _: int, id_column: str, first: int) -> pa.Table:
    """Return a block with the number of each row; IDs not as a dictionary, as Ray sorts them."""
    place = block.column_names.index(id_column)
    block = block.set_column(place, id_column, ids_of(block, id_column))
    return block.append_column(ROW, pa.array(np.arange(first, first + block.num_rows)))


def assign_block(
    block: pa.Table,
    number: int,
    shared: tuple[GreedyPacker, Layout, str],
    before: TokenCounts | None,
    counted: TokenCounts,
) -> pa.Table:
    """Return a block with batch, slot and tokens of each row."""
    packer, layout, length_column = shared
    lengths = lengths_of(block, length_column)
    if packer._count_checked(lengths) != counted:
        # Ray makes a block anew where its machine is lost.
        raise RuntimeError(f"block {number:,} is not what it was when it was counted")
    tokens = np.minimum(lengths, layout.max_sequence_length) + layout.special_tokens
    if ROW in block.column_names:
        block = block.drop_columns([ROW])
    found = (layout.assign(lengths, before), layout.slots(lengths, before), tokens)
    for name, values in zip(ADDED, found, strict=True):
        block = block.append_column(name, pa.array(values))
    return block


def plain_table(table: pa.Table, *, id_column: str, length_column: str) -> pa.Table:
    """Return IDs, as text, and lengths."""
    ids = table[id_column]
    if pa.types.is_dictionary(ids.type):
        ids = ids.cast(ids.type.value_type)
    return pa.table({"id": ids.cast(pa.large_string()), "length": table[length_column]})


def plan_table(table: pa.Table, *, limit: int) -> pa.Table:
    """Return the rows of a plan."""
    table = table.append_column("truncated", pc.greater(table["length"], limit))
    return table.select(["batch", "slot", "id", "length", "tokens", "truncated"])
