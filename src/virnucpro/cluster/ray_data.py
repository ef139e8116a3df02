"""Packing of a Ray data set as a whole, with tasks on its blocks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from virnucpro.cluster.blocks import (
    Counted,
    Job,
    common_id_type,
    count_block,
    merge_counts,
    warn_of_limits,
)
from virnucpro.cluster.exchange import (
    Exchange,
    Group,
    Start,
    exchange_rows,
    make_exchange,
    read_group,
    starts_of,
    sums_before,
)
from virnucpro.cluster.ranges import MAX_RANGES
from virnucpro.cluster.tasks import execute, raise_causes, single_threaded, split_parts, start
from virnucpro.data.layout import Layout, TokenCounts
from virnucpro.data.packing import GreedyPacker
from virnucpro.text import quoted

logger = logging.getLogger(__name__)

# Maximum number of groups of blocks, of which the driver has the counts.
MAX_GROUPS = 4096
# Blocks of a group that one task assigns, since each task gets the counts of the whole group.
ASSIGNED_TOGETHER = 16


def pack_dataset(
    ds: ray.data.Dataset,
    packer: GreedyPacker,
    *,
    length_column: str = "length",
    order: str = "row",
    id_column: str = "id",
    result: str = "rows",
) -> tuple[ray.data.Dataset, Layout]:
    """Pack a Ray data set as a whole; return it with the batch of each row, and the layout.

    The batches are exactly those that `packer` makes of all lengths as one array on one machine,
    for any blocks and any number of workers. One pass counts the blocks, the counts are added up
    and laid out, and a second pass assigns batches block by block.

    Args:
        ds: The data set, one row per sequence. It is executed once. Its blocks and those of the
            result are kept in the object store, which spills to disk; `assigner` of a layout packs
            data sets without keeping them.
        packer: The packer. Each task uses one thread.
        length_column: The column with the length of each sequence in residues, integers.
        order: How equally long sequences are ordered: "row" by row, or "id" by ID, then by row.
        id_column: The column with the IDs, all strings or all integers. Used only with order="id",
            whose result has them as large strings, int64 or uint64.
        result: "rows" for one row per sequence, or "batches" for one row per batch, with a list in
            each column.

    Returns:
        The data set and its layout, with `num_batches`, `efficiency`, `num_truncated` and others.
        With result="rows", the data set has the columns `batch` and `slot`, the place within the
        batch (int32, or int64 from 2**31 sequences on), and `tokens` (int64), including special
        tokens and padding; it is in its own order, or with order="id" in order of batches and
        slots, with whole batches in each block. With result="batches", the rows are in order of
        batches: `batch` is the number of each, and all other columns, `tokens` among them, are
        lists in order of slots. If the packer has overlong="split", there is one row or item per
        fragment, with the positions `start` and `stop`. Rows that it drops are left out.

    Logs one WARNING each with the numbers of sequences that are truncated and dropped.

    Raises:
        ValueError: There are no rows; a column is missing, has nulls or has the
            name of a new column; or lengths are not integers, negative, or too long with
            overlong="error". The message gives the number of the first such block, from 0. Raised
            before the second pass.
        TypeError: IDs are not all strings, all int64 or all uint64.
        RuntimeError: Ray recomputed blocks, and their lengths or IDs changed.
        OverflowError: The total number of tokens does not fit in 64 bits.

    Cost: O(n) in tasks of one block each; a few kilobytes per block are moved. With order="id" or
    result="batches", rows are moved once more than needed for each of the two: in tasks of about
    128 MiB, or a 512th of the data if that is more. The driver needs O(distinct sizes) memory for
    each of at most 4,096 groups of blocks. Ray reruns tasks of lost workers, with the same result.

    Example:
        >>> import ray
        >>> from virnucpro.data import GreedyPacker, pack_dataset
        >>> ds = ray.data.from_items([{"length": length} for length in (30, 60, 60)])
        >>> packed, layout = pack_dataset(ds, GreedyPacker(100))
        >>> layout.num_batches
        2
        >>> packed.to_pandas()["batch"].tolist()
        [0, 0, 1]
        >>> batches, _ = pack_dataset(ds, GreedyPacker(100), result="batches")
        >>> [row["length"] for row in batches.take_all()]
        [[60, 30], [60]]
    """
    if order not in ("row", "id"):
        raise ValueError(f"order must be 'row' or 'id' (got {quoted(order)})")
    if result not in ("rows", "batches"):
        raise ValueError(f"result must be 'rows' or 'batches' (got {quoted(result)})")
    if not isinstance(packer, GreedyPacker):
        raise TypeError(f"packer must be a GreedyPacker (got {type(packer).__name__})")
    # Check the parameters, which may have been changed.
    _ = packer.limits
    job = Job(single_threaded(packer), length_column, id_column if order == "id" else None)
    is_exchanged = order == "id" or result == "batches"
    blocks = execute(ds)
    with raise_causes():
        logger.info("Counting")
        groups = count_groups(blocks, job, MAX_RANGES if is_exchanged else MAX_GROUPS)
        # The references of the groups alone, so that Ray frees blocks once they were used.
        blocks = []
        total = merge_counts(group.counted for group in groups)
        id_type = None if order == "row" else common_id_type(total.kinds, id_column)
        layout = lay_out(packer, total)
        has_fragments = packer.overlong == "split"
        exchange = make_exchange(job, single_threaded(layout), total, id_type, has_fragments)
        if not is_exchanged:
            logger.info("Assigning batches: %s", layout)
            blocks = assign_groups(exchange, groups)
        else:
            logger.info("Ordering by batch: %s", layout)
            finish = select_rows if result == "rows" else list_batches
            blocks, _ = exchange_rows(exchange, groups, finish, job.new_columns)
        return ray.data.from_arrow_refs(blocks), layout


def lay_out(packer: GreedyPacker, total: Counted) -> Layout:
    """Return the layout of all sequences, and log the numbers of those truncated and dropped."""
    layout = packer.lay_out(total.counts)
    warn_of_limits(total, packer.describe_default())
    logger.info("Counted: %s", total.counts)
    return layout


def count_groups(blocks: list[Any], job: Job, max_groups: int) -> list[Group]:
    """Return the blocks in groups, each with what it has. Groups without rows are left out.

    Raises the error of the first invalid block.
    """
    known = ray.put(job)
    size = -(-len(blocks) // max_groups) or 1
    firsts = range(0, len(blocks), size)
    of_groups = [blocks[first : first + size] for first in firsts]
    calls = ((known, first, *some) for first, some in zip(firsts, of_groups, strict=True))
    refs = start(count_group, calls, num_returns=2)
    counted = ray.get([of_group for of_group, _ in refs])
    for of_group in counted:
        if isinstance(of_group, Exception):
            raise of_group
    groups = [
        Group(some, first, of_group, details)
        for some, first, of_group, (_, details) in zip(
            of_groups, firsts, counted, refs, strict=True
        )
        if of_group is not None
    ]
    if not groups:
        raise ValueError("the data set has no rows")
    return groups


def count_group(
    job: Job, first: int, *blocks: Any
) -> tuple[Counted | Exception | None, list[Counted | None]]:
    """Return what some blocks have together, or the first error; and what each of them has."""
    found: list[Counted | None] = []
    for number, block in enumerate(blocks, first):
        counted = count_block(block, number, job)
        if isinstance(counted, Exception):
            return counted, []
        found.append(counted)
    with_rows = [counted for counted in found if counted is not None]
    return merge_counts(with_rows) if with_rows else None, found


def assign_groups(exchange: Exchange, groups: Sequence[Group]) -> list[Any]:
    """Return references to all blocks with the batch, slot and tokens of each row."""
    known = ray.put(exchange)
    refs: list[Any] = []
    for begin, before, group in zip(starts_of(groups), sums_before(groups), groups, strict=False):
        for first in range(0, len(group.blocks), ASSIGNED_TOGETHER):
            some = group.blocks[first : first + ASSIGNED_TOGETHER]
            call = (known, begin, before, group.details, first, *some)
            refs += split_parts(assign_blocks, [call], len(some))[0]
    return refs


def assign_blocks(
    exchange: Exchange,
    begin: Start,
    before: TokenCounts | None,
    details: Sequence[Counted | None],
    first: int,
    *blocks: Any,
) -> list[pa.Table]:
    """Return blocks with the batch, slot and tokens of each row, given the first one's number."""
    row, fragment = begin.row, begin.fragment
    found = []
    for number, counted in enumerate(details[: first + len(blocks)]):
        if number >= first:
            place = Start(begin.block + number, row, fragment)
            found.append(assign_block(exchange, place, before, counted, blocks[number - first]))
        if counted is not None:
            before = counted.counts if before is None else before + counted.counts
            row, fragment = row + counted.rows, fragment + counted.num_packed
    return found


def assign_block(
    exchange: Exchange,
    begin: Start,
    before: TokenCounts | None,
    counted: Counted | None,
    block: Any,
) -> pa.Table:
    """Return a block with the batch, slot and tokens of each row."""
    for rows in read_group(exchange, begin, [counted], [block]):
        table = rows.packed
        batches = exchange.layout.assign(rows.lengths, before)
        slots = exchange.layout.slots(rows.lengths, before)
        table = table.append_column("batch", pa.array(batches))
        table = table.append_column("slot", pa.array(slots))
        return select_rows(table, begin.block, exchange.job.new_columns)
    # Without rows, and perhaps without columns.
    return pa.table({})


def select_rows(table: pa.Table, _: int, new_columns: Sequence[str]) -> pa.Table:
    """Return rows with the new columns last."""
    names = [name for name in table.column_names if name not in new_columns]
    return table.select([*names, *new_columns])


def list_batches(table: pa.Table, number: int, new_columns: Sequence[str]) -> pa.Table:
    """Return a row per batch, with lists of what its rows have, given rows in order of batches."""
    batches = table["batch"].to_numpy()
    begins = np.flatnonzero(np.diff(batches, prepend=-1))
    offsets = pa.array(np.append(begins, len(batches)).astype(np.int32))
    columns = {"batch": pa.array(batches[begins])}
    for name in select_rows(table, number, new_columns).column_names:
        if name not in ("batch", "slot"):
            values = table[name].combine_chunks()
            columns[name] = pa.ListArray.from_arrays(offsets, values)
    return pa.table(columns)
