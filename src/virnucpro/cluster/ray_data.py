"""Packing of a Ray data set: one First-Fit Decreasing over all its blocks."""

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

from virnucpro.data.packing import GreedyPacker, warn_of_truncation
from virnucpro.data.plan import Layout, TokenCounts
from virnucpro.files.tables import ids_of, lengths_of

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
            The first such block is named by its number, from 0. No sequence has been assigned.
        TypeError: IDs are not all strings, all int64 or all uint64.
        RuntimeError: Ray made blocks anew whose lengths are others than before.
        OverflowError: All tokens together need more than 64 bits.

    Cost: O(n) in tasks of a block each; Ray's sort under order="id". The driver holds O(blocks *
    distinct sizes). Tasks whose worker is lost are run again by Ray, and give the same.

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
    # Its parameters may have been changed.
    _ = packer.limits
    counting = ray.put(on_one_thread(packer))
    ties = id_column if order == "id" else None
    blocks, counts, kind = count_blocks(blocks_of(ds), counting, length_column, ties)
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
            raise RuntimeError("the data set is not what it was when it was counted")
    logger.info("Assigning %s blocks: %s", f"{len(blocks):,}", layout)
    packing = ray.put((on_one_thread(packer), on_one_thread(layout), length_column, order))
    before = itertools.chain([None], itertools.accumulate(counts))
    rest = ((packing, *pair) for pair in zip(before, counts, strict=False))
    return ray.data.from_arrow_refs(submit(assign_block, blocks, rest)), layout


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
        paths: Parquet files (`.parquet`) that all machines can read, or folders of them, of which
            names that begin with "." or "_" are left out.
        output: The folder to write, which all machines can write to.
        packer: What to pack with.
        id_column: The column with the IDs.
        length_column: The column with the residues of each sequence.

    Raises:
        FileExistsError: There is something at `output`.
        ValueError: A file is no such table, or is there twice; or see `pack_dataset`.
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
        as_text = {"id_column": id_column, "length_column": length_column}
        tables = tables.map_batches(plain_table, fn_kwargs=as_text, **WHOLE_BLOCKS)
        packed, layout = pack_dataset(tables, packer, order="id")
        if layout.num_sequences != num_rows:
            raise RuntimeError(f"{layout.num_sequences:,} of {num_rows:,} rows were read")
        logger.info("Writing")
        unfinished = Path(folder, "plan")
        limit = {"limit": layout.limits.max_residues}
        rows = packed.map_batches(plan_table, fn_kwargs=limit, **WHOLE_BLOCKS)
        rows.sort(["batch", "slot"]).write_parquet(str(unfinished))
        unfinished.rename(output)
    return layout


def list_tables(paths: list[str], output: Path, columns: list[str]) -> tuple[list[str], int]:
    """Return the Parquet files of paths and their rows; raise where one is bad, or `output` is."""
    if output.exists() or output.is_symlink():
        raise FileExistsError(f"{output}: is there already")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output}: no such directory")
    files: list[Path] = []
    for name in paths:
        path = Path(name).absolute()
        if path.is_dir():
            if output.resolve().is_relative_to(path.resolve()):
                raise ValueError(f"{output}: is in an input folder")
            found = sorted(file for file in path.rglob("*") if is_table(file.relative_to(path)))
        elif not path.exists():
            raise FileNotFoundError(f"{name}: no such file")
        else:
            found = [path] if path.suffix.lower() == ".parquet" else []
        if not found:
            raise ValueError(f"{name}: no Parquet tables (.parquet)")
        files += found
    known = set()
    num_rows = 0
    for file in files:
        if file.resolve() in known:
            raise ValueError(f"{file}: is there twice")
        known.add(file.resolve())
        if "?" in str(file):
            raise ValueError(f"{file}: Ray cannot read names with '?'")
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
    """Whether a file in a folder of tables is one: those that are hidden are not."""
    is_hidden = any(part.startswith((".", "_")) for part in path.parts)
    return path.suffix.lower() == ".parquet" and not is_hidden


def on_one_thread(value: Any) -> Any:
    """Return a packer or a layout for a task, which has one core."""
    value = copy.copy(value)
    value.num_threads = 1
    return value


def blocks_of(ds: ray.data.Dataset) -> list[Any]:
    """Execute a data set; return references to its blocks, in order."""
    options = ds.context.execution_options
    before = options.preserve_order
    options.preserve_order = True
    try:
        refs: list[Any] = ds.to_arrow_refs()
        return refs
    finally:
        options.preserve_order = before


def submit(
    function: Callable[..., Any], blocks: list[Any], rest: Iterable[tuple[Any, ...]]
) -> list[Any]:
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


def as_table(block: Any) -> pa.Table:
    """Return a block, which Ray may also keep as a DataFrame, as a table."""
    return BlockAccessor.for_block(block).to_arrow()


def count_blocks(
    blocks: list[Any], packer: Any, length_column: str, id_column: str | None
) -> tuple[list[Any], list[TokenCounts], pa.DataType]:
    """Return the blocks that have rows, their counts, and the type to sort IDs as.

    Raises what is wrong with the first bad block.
    """
    found = ray.get(submit(count_block, blocks, repeat((packer, length_column, id_column))))
    for each in found:
        if isinstance(each, Exception):
            raise each
    some = [(block, *each) for block, each in zip(blocks, found, strict=True) if each]
    kinds = {kind for _, _, kind in some}
    types = {
        ("text",): None,
        ("signed", "unsigned"): pa.int64(),
        ("unsigned", "large"): pa.uint64(),
    }
    fitting = [as_type for allowed, as_type in types.items() if kinds <= {*allowed, ""}]
    if not fitting:
        raise TypeError(f"column {id_column!r} must be all strings, all int64 or all uint64")
    return [block for block, _, _ in some], [counted for _, counted, _ in some], fitting[0]


def count_block(
    block: Any, number: int, packer: GreedyPacker, length_column: str, id_column: str | None
) -> tuple[TokenCounts, str] | Exception | None:
    """Return the counts of a block and the kind of its IDs; None for one without rows.

    What is wrong with it is returned too, as Ray says much about what is raised.
    """
    table = as_table(block)
    if table.num_rows == 0:
        # Columns may lack too.
        return None
    try:
        for name in ADDED if id_column is None else (*ADDED, ROW):
            if name in table.column_names:
                raise ValueError(f"there is a column {name!r} already")
        kind = "" if id_column is None else kind_of(ids_of(table, id_column), id_column)
        counted = packer.count_silently(lengths_of(table, length_column))
        # Raises where they are too many to be sent.
        _ = counted.total_tokens
        return counted, kind
    except TypeError as error:
        return TypeError(f"block {number:,}: {error}")
    except OverflowError as error:
        return OverflowError(f"block {number:,}: {error}")
    except (ValueError, pa.ArrowException) as error:
        return ValueError(f"block {number:,}: {error}")


def kind_of(ids: Any, column: str) -> str:
    """Return what IDs are: "text", or "signed", "unsigned" or "large" (from 2**63 on) integers."""
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        return "text"
    if pa.types.is_signed_integer(ids.type):
        return "signed"
    if pa.types.is_unsigned_integer(ids.type):
        return "large" if pc.max(ids).as_py() >= 2**63 else "unsigned"
    raise TypeError(f"column {column!r} must be strings or integers (it is {ids.type})")


def sort_by_id(
    blocks: list[Any], counts: list[TokenCounts], id_column: str, as_type: pa.DataType | None
) -> list[Any]:
    """Return blocks with the rows in order of IDs, equal ones in order of rows."""
    sizes = (counted.num_sequences for counted in counts)
    first_rows = itertools.accumulate(sizes, initial=0)
    numbered = submit(number_rows, blocks, ((id_column, as_type, row) for row in first_rows))
    return blocks_of(ray.data.from_arrow_refs(numbered).sort([id_column, ROW]))


def number_rows(
    block: Any, _: int, id_column: str, as_type: pa.DataType | None, first: int
) -> pa.Table:
    """Return a block with the number of each row; IDs in a form that Ray sorts right."""
    table = as_table(block)
    ids = ids_of(table, id_column)
    if as_type is not None:
        ids = ids.cast(as_type)
    table = table.set_column(table.column_names.index(id_column), id_column, ids)
    return table.append_column(ROW, pa.array(np.arange(first, first + table.num_rows)))


def assign_block(
    block: Any,
    number: int,
    packing: tuple[GreedyPacker, Layout, str, str],
    before: TokenCounts | None,
    counted: TokenCounts,
) -> pa.Table:
    """Return a block with batch, slot and tokens of each row."""
    packer, layout, length_column, order = packing
    table = as_table(block)
    lengths = lengths_of(table, length_column)
    if packer.count_silently(lengths) != counted:
        # Ray makes a block anew where its machine is lost.
        raise RuntimeError(f"block {number:,} is not what it was when it was counted")
    tokens = layout.limits.tokens(lengths)
    if order == "id":
        table = table.drop_columns([ROW])
    found = (layout.assign(lengths, before), layout.slots(lengths, before), tokens)
    for name, values in zip(ADDED, found, strict=True):
        table = table.append_column(name, pa.array(values))
    return table


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
