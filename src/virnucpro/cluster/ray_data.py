"""Packing of a Ray data set or of Parquet tables, as a whole, with tasks on its blocks."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import repeat
from os import PathLike, fsdecode
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from virnucpro.cluster.tables import (
    hash_tables,
    list_tables,
    read_tables,
    write_metadata,
    write_parts,
)
from virnucpro.cluster.tasks import (
    ROW_COLUMN,
    as_table,
    execute,
    map_blocks,
    raise_causes,
    single_threaded,
)
from virnucpro.data.layout import Layout, TokenCounts
from virnucpro.data.overlong import warn_of_truncation
from virnucpro.data.packing import GreedyPacker
from virnucpro.files.fasta import ReadChanges, ReadOptions
from virnucpro.files.output import write_folder
from virnucpro.files.plan_schema import make_schema
from virnucpro.files.plan_summary import Summary, encode_summary, totals_of
from virnucpro.files.tables import ids_of, lengths_of
from virnucpro.kernel.arrow import check_array
from virnucpro.text import quoted, shown

logger = logging.getLogger(__name__)

NEW_COLUMNS = ("batch", "slot", "tokens")


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
        (int64), including special tokens and padding; and the layout, with `num_batches`,
        `efficiency`, `num_truncated` and others.

    Raises:
        ValueError: The packer has overlong="drop" or "split", or empty="drop"; there are no rows; a
            column is missing, has nulls or has the name of a new column; or lengths are not
            integers, negative, or too long with overlong="error". The message gives the number of
            the first such block, from 0. Raised before the second pass.
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
        raise ValueError(f"order must be 'row' or 'id' (got {quoted(order)})")
    check_packer(packer)
    ties = id_column if order == "id" else None
    blocks, layout = pack_blocks(execute(ds), packer, length_column, ties)
    return ray.data.from_arrow_refs(blocks), layout


def pack_tables(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]],
    output: str | PathLike[str],
    packer: GreedyPacker,
    *,
    id_column: str = "id",
    length_column: str = "length",
) -> Summary:
    """Pack Parquet tables of lengths as a whole; write the plan as a folder of Parquet files.

    The plan is the one that `pack_files` makes of the same tables: equally long sequences are in
    order of their IDs. `PackingPlan.load`, ``virnucpro verify`` and others read the folder. Its
    files, in order of their names, have the rows in order of batches; `_common_metadata` has the
    summary. The folder appears only when it is complete.

    Args:
        paths: Parquet files (`.parquet`) that all machines can read, or folders of them, in which
            names that start with "." or "_" are ignored. Or a single path.
        output: The folder to write, to which all machines can write.
        packer: The packer. Each task uses one thread.
        id_column: The column with the IDs, which are read as text.
        length_column: The column with the length of each sequence in residues.

    Returns:
        The summary that the plan stores.

    Raises:
        FileExistsError: `output` already exists.
        ValueError: A file is not a Parquet table with these columns or is given twice, or as for
            `pack_dataset`.
        OSError: A file cannot be read or written.

    Cost: as for `pack_dataset` with order="id", plus another sort by Ray, by batch. The tables are
    read twice, since they are hashed.
    """
    check_packer(packer)
    output = Path(fsdecode(output)).absolute()
    options = ReadOptions(id_column, length_column)
    names = [paths] if isinstance(paths, (str, PathLike)) else list(paths)
    tables = list_tables([fsdecode(name) for name in names], output, [id_column, length_column])
    with write_folder(output) as folder, raise_causes():
        hashed = hash_tables(tables)
        logger.info("Reading %s files", f"{len(tables):,}")
        blocks, layout = pack_blocks(
            read_tables(tables, id_column, length_column), packer, "length", "id", keeps_rows=True
        )
        num_duplicates = count_duplicates(blocks)
        logger.info("Sorting by batch")
        blocks = execute(ray.data.from_arrow_refs(blocks).sort(["batch", "slot"]))
        summary = Summary(
            limits=packer.limits,
            method=packer.method,
            overlong=packer.overlong,
            overlap=int(packer.overlap),
            options=options,
            totals=replace(
                totals_of(layout), **asdict(ReadChanges()), duplicate_ids=num_duplicates
            ),
            inputs=ray.get(hashed),
        )
        logger.info("Writing")
        schema = make_schema(layout.num_sequences >= 2**31, False, True, False)
        write_parts(folder, blocks, schema, tables, packer.limits.max_residues)
        write_metadata(folder, schema.with_metadata(encode_summary(summary, layout)))
    if num_duplicates:
        logger.warning("duplicate IDs: %s", f"{num_duplicates:,}")
    return summary


def check_packer(packer: GreedyPacker) -> None:
    """Raise ValueError or TypeError unless blocks can be packed with a packer."""
    # Check the parameters, which may have been changed.
    _ = packer.limits
    if packer.overlong in ("drop", "split"):
        raise ValueError(
            f"overlong={quoted(packer.overlong)} is not supported on Ray; use pack_files, or "
            "'virnucpro pack' without --engine ray"
        )
    if packer.empty != "pack":
        raise ValueError(
            f"empty={quoted(packer.empty)} is not supported on Ray; use pack_files, or filter the "
            "rows"
        )


def pack_blocks(
    blocks: list[Any],
    packer: GreedyPacker,
    length_column: str,
    id_column: str | None,
    *,
    keeps_rows: bool = False,
) -> tuple[list[Any], Layout]:
    """Return blocks with the batch, slot and tokens of each row, and the layout.

    With an `id_column`, rows are sorted by ID; `keeps_rows` then leaves their numbers in the column
    `virnucpro.row`. Blocks without rows are left out.
    """
    counting = ray.put(single_threaded(packer))
    blocks, counts, kind = count_blocks(blocks, counting, length_column, id_column)
    if not counts:
        raise ValueError("the data set has no rows")
    total = sum(counts[1:], counts[0])
    layout = packer.lay_out(total)
    warn_of_truncation(total)
    logger.info("Counted %s blocks: %s", f"{len(blocks):,}", total)
    if id_column is not None:
        logger.info("Sorting by %s", shown(id_column))
        blocks = sort_by_id(blocks, counts, id_column, kind)
        blocks, counts, _ = count_blocks(blocks, counting, length_column, None)
        if sum(counts[1:], counts[0]) != total:
            raise RuntimeError("the data set changed after it was counted")
    logger.info("Assigning %s blocks: %s", f"{len(blocks):,}", layout)
    unwanted = [] if id_column is None or keeps_rows else [ROW_COLUMN]
    packing = ray.put((single_threaded(packer), single_threaded(layout), length_column, unwanted))
    before = itertools.chain([None], itertools.accumulate(counts))
    arguments = ((packing, *pair) for pair in zip(before, counts, strict=False))
    return map_blocks(assign_block, blocks, arguments), layout


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
        raise TypeError(f"column {quoted(id_column)} must be all strings, all int64 or all uint64")
    return [block for block, _, _ in counted], [counts for _, counts, _ in counted], common[0]


def count_block(
    block: Any, number: int, packer: GreedyPacker, length_column: str, id_column: str | None
) -> tuple[TokenCounts, str] | Exception | None:
    """Return the counts of a block and the kind of its IDs; None if it has no rows.

    Errors are returned, since Ray adds long tracebacks to raised errors.
    """
    try:
        table = as_table(block)
        check_array(table, "its columns")
        if table.num_rows == 0:
            # An empty block may lack the columns.
            return None
        for name in NEW_COLUMNS if id_column is None else (*NEW_COLUMNS, ROW_COLUMN):
            if name in table.column_names:
                raise ValueError(f"column {quoted(name)} already exists")
        kind = "" if id_column is None else id_kind(ids_of(table, id_column))
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


def id_kind(ids: Any) -> str:
    """Return the kind of IDs: "text", "signed", "unsigned", or "large" (with 2**63 or more)."""
    if pa.types.is_signed_integer(ids.type):
        return "signed"
    if pa.types.is_unsigned_integer(ids.type):
        return "large" if pc.max(ids).as_py() >= 2**63 else "unsigned"
    return "text"


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
    packing: tuple[GreedyPacker, Layout, str, list[str]],
    before: TokenCounts | None,
    counts: TokenCounts,
) -> pa.Table:
    """Return a block with the batch, slot and tokens of each row, without unwanted columns."""
    packer, layout, length_column, unwanted = packing
    table = as_table(block)
    lengths = lengths_of(table, length_column)
    if packer.count_silently(lengths) != counts:
        # Ray recomputes a block if its machine is lost.
        raise RuntimeError(f"block {number:,} changed after it was counted")
    tokens = layout.limits.tokens(lengths)
    table = table.drop_columns(unwanted)
    columns = (layout.assign(lengths, before), layout.slots(lengths, before), tokens)
    for name, values in zip(NEW_COLUMNS, columns, strict=True):
        table = table.append_column(name, pa.array(values))
    return table


def count_duplicates(blocks: list[Any]) -> int:
    """Return the number of rows with the ID of an earlier row; blocks are sorted by `id`."""
    found: list[tuple[int, str, str]]
    found = ray.get(map_blocks(find_duplicates, blocks, repeat(())))
    across = (before[2] == after[1] for before, after in itertools.pairwise(found))
    return sum(number for number, _, _ in found) + sum(across)


def find_duplicates(block: Any, _: int) -> tuple[int, str, str]:
    """Return the number of rows of a block with the ID of the row before, its first and last ID."""
    ids = as_table(block)["id"].combine_chunks()
    repeated = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1))
    return repeated.true_count, ids[0].as_py(), ids[-1].as_py()
