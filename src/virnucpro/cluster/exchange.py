"""Order all rows of a data set by batch, by two exchanges of rows between tasks.

The layout tells how many sequences of each size there are and where each of them goes, so nothing
has to be sorted as a whole. In the first exchange, all sequences of a range of sizes meet in one
task, which orders them by ID and gives each its batch and slot. In the second exchange, all
sequences of a range of batches meet in one task.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.cluster.blocks import Counted, Job, Position, Rows, choose_table
from virnucpro.cluster.ranges import (
    SAMPLES,
    SizeRange,
    Tie,
    choose_ties,
    count_ranges,
    divide_batches,
    divide_sizes,
    find_ties,
    parted_sizes,
    rows_before,
)
from virnucpro.cluster.tasks import concatenate, join_parts, slices, split_parts, start, take
from virnucpro.data.layout import Layout, TokenCounts
from virnucpro.data.packing import NO_LIMITS
from virnucpro.kernel.arguments import OrderedIds, check_ids


class Group(NamedTuple):
    """Consecutive blocks of a data set, the work of one task.

    Attributes:
        blocks: References to the blocks.
        number: The number of the first block.
        counted: What they have together.
        details: What each block has, or a reference to it.
    """

    blocks: list[Any]
    number: int
    counted: Counted
    details: Any


class Exchange(NamedTuple):
    """What the tasks of an exchange know.

    Attributes:
        job: The job.
        layout: The layout, with one thread.
        id_type: The type of IDs; None to break ties by row.
        has_fragments: Whether rows have the positions of fragments.
        sizes: The ranges of sizes.
        ties: The first tie of each part but the first of the sizes that have parts.
        batches: The first batch of each range of batches, and the end of the last.
    """

    job: Job
    layout: Layout
    id_type: pa.DataType | None
    has_fragments: bool
    sizes: list[SizeRange]
    ties: dict[int, list[Tie]]
    batches: NDArray[np.int64]


class Start(NamedTuple):
    """What comes before a group of blocks.

    Attributes:
        block: The number of the first block.
        row: The number of the first sequence.
        fragment: The number of the first fragment.
    """

    block: int
    row: int
    fragment: int


def starts_of(groups: Sequence[Group]) -> Iterator[Start]:
    """Yield what comes before each group."""
    row = fragment = 0
    for group in groups:
        yield Start(group.number, row, fragment)
        row += group.counted.rows
        fragment += group.counted.num_packed


def make_exchange(
    job: Job,
    layout: Layout,
    total: Counted,
    id_type: pa.DataType | None,
    has_fragments: bool,
) -> Exchange:
    """Return an exchange of rows between about as many tasks as there are 128 MiB."""
    num_ranges = count_ranges(total.num_bytes)
    sizes = []
    if id_type is not None and total.num_packed:
        sizes = divide_sizes(total.counts, total.num_bytes, num_ranges)
    batches = divide_batches(layout, total.num_bytes, num_ranges)
    return Exchange(job, layout, id_type, has_fragments, sizes, {}, batches)


def exchange_rows(
    exchange: Exchange, groups: list[Group], finish: Callable[..., Any], context: Any
) -> tuple[list[Any], list[Any]]:
    """Bring together the rows of each range of batches, in order of batches and slots.

    Args:
        exchange: The exchange.
        groups: The blocks, which are removed from this list, so that Ray frees them once they were
            used.
        finish: Called in a task per range, with its table, its number, and the context.
        context: What `finish` needs to know.

    Returns:
        References to the results of `finish`, and to a table of dropped rows per group.
    """
    starts = list(starts_of(groups))
    if exchange.sizes:
        exchange = exchange._replace(ties=draw_ties(exchange, groups, starts))
    known = ray.put(exchange)
    num_sizes, num_batches = len(exchange.sizes), len(exchange.batches) - 1
    calls: Any = [
        (known, begin, group.details, *group.blocks)
        for begin, group in zip(starts, groups, strict=True)
    ]
    if exchange.sizes:
        groups.clear()
        parts = split_parts(split_sizes, calls, num_sizes + 2)
        calls.clear()
        numbers = [of_task.pop() for of_task in parts]
        dropped = [of_task.pop() for of_task in parts]
        # Of the parts of one size, each begins with the rank at which the one before ends.
        ranks = find_first_ranks(exchange.sizes, sum(ray.get(numbers)))
        calls = join_parts([(known, rank) for rank in ranks], parts)
        parts = split_parts(order_sizes, calls, num_batches)
    else:
        before = sums_before(groups)
        calls = [
            (*call[:2], of_group, *call[2:]) for call, of_group in zip(calls, before, strict=False)
        ]
        groups.clear()
        parts = split_parts(split_blocks, calls, num_batches + 1)
        dropped = [of_task.pop() for of_task in parts]
    calls.clear()
    num_rows = np.diff(rows_before(exchange.layout, exchange.batches)).tolist()
    of_finish = ray.put(context)
    values = [(known, number, rows, finish, of_finish) for number, rows in enumerate(num_rows)]
    return start(gather_batches, join_parts(values, parts)), dropped


def sums_before(groups: Sequence[Group]) -> Iterator[TokenCounts | None]:
    """Yield the counts of all blocks before each group."""
    counts = (group.counted.counts for group in groups)
    return itertools.chain([None], itertools.accumulate(counts))


def find_first_ranks(sizes: Sequence[SizeRange], num_rows: NDArray[np.int64]) -> list[int]:
    """Return how many sequences of the same size are in the parts before each range."""
    ranks, rank = [], 0
    for of_size, rows in zip(sizes, num_rows.tolist(), strict=True):
        rank = rank if of_size.part else 0
        ranks.append(rank)
        rank += rows
    return ranks


def draw_ties(
    exchange: Exchange, groups: Sequence[Group], starts: Sequence[Start]
) -> dict[int, list[Tie]]:
    """Return the first tie of each part but the first of the sizes that have parts."""
    num_parts = parted_sizes(exchange.sizes)
    if not num_parts:
        return {}
    known = ray.put((exchange, num_parts))
    calls = (
        (known, begin, group.details, *group.blocks)
        for begin, group in zip(starts, groups, strict=True)
    )
    drawn: list[dict[int, list[Tie]]] = ray.get(start(sample_ties, calls))
    return {
        size: choose_ties([tie for some in drawn for tie in some[size]], parts)
        for size, parts in num_parts.items()
    }


def read_group(
    exchange: Exchange, begin: Start, details: Sequence[Counted | None], blocks: Sequence[Any]
) -> Iterator[Rows]:
    """Yield the rows of each block of a group that has any."""
    row, fragment = begin.row, begin.fragment
    for number, (counted, block) in enumerate(zip(details, blocks, strict=True), begin.block):
        if counted is not None:
            position = Position(number, row, fragment, counted)
            yield choose_table(
                block, position, exchange.job, exchange.id_type, exchange.has_fragments
            )
            row, fragment = row + counted.rows, fragment + counted.num_packed


def sample_ties(
    known: tuple[Exchange, dict[int, int]],
    begin: Start,
    details: Sequence[Counted | None],
    *blocks: Any,
) -> dict[int, list[Tie]]:
    """Return some ties of each size that is divided, which are the same for any blocks."""
    exchange, num_parts = known
    found: dict[int, list[Tie]] = {size: [] for size in num_parts}
    number = begin.fragment
    counts = exchange.layout.core.counts
    num_sequences = dict(zip(counts.tokens.tolist(), counts.sequences.tolist(), strict=True))
    for rows in read_group(exchange, begin, details, blocks):
        tokens = rows.packed["tokens"].to_numpy()
        numbers = np.arange(number, number + len(tokens))
        for size, parts in num_parts.items():
            step = max(1, num_sequences[size] // (SAMPLES * parts))
            places = np.flatnonzero((tokens == size) & (scatter(numbers) % np.uint64(step) == 0))
            ids = rows.packed[exchange.job.id_column].take(pa.array(places)).to_pylist()
            found[size] += zip(ids, numbers[places].tolist(), strict=True)
        number += len(tokens)
    return found


def split_sizes(
    exchange: Exchange, begin: Start, details: Sequence[Counted | None], *blocks: Any
) -> list[Any]:
    """Return the rows of blocks by ranges of sizes, those dropped, and the number in each range."""
    rows = list(read_group(exchange, begin, details, blocks))
    packed = concatenate(of_block.packed for of_block in rows)
    tokens = packed["tokens"].to_numpy()
    order = order_rows(tokens, None)
    ordered = -tokens[order]
    ends_of_parts: dict[int, list[int]] = {}
    parts_of_size = parted_sizes(exchange.sizes)
    for size, ties in exchange.ties.items():
        first, end = (int(np.searchsorted(ordered, -size, side)) for side in ("left", "right"))
        places = order[first:end]
        ids = packed[exchange.job.id_column].take(pa.array(places)).combine_chunks()
        places = places[order_rows(np.zeros(len(places), np.int8), check_ids(ids, len(ids)))]
        order[first:end] = places
        by_id = Ties(packed[exchange.job.id_column], places, begin.fragment)
        ends_of_parts[size] = [first + place for place in find_ties(ties, by_id)]
        ends_of_parts[size] += [end] * (parts_of_size[size] - len(ties))
    ends = [
        ends_of_parts[largest][part]
        if largest in ends_of_parts
        else int(np.searchsorted(ordered, -smallest, side="right"))
        for largest, smallest, part in exchange.sizes
    ]
    dropped = concatenate(of_block.dropped for of_block in rows)
    return [*slices(take(packed, order), ends), dropped, np.diff(ends, prepend=0)]


def scatter(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return numbers that look random, equal for equal ones (multiplicative hashing)."""
    return (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)


class Ties(Sequence[Tie]):
    """The IDs of rows, and their numbers counted from a first one."""

    def __init__(self, ids: Any, places: NDArray[Any], first: int) -> None:
        self.ids, self.places, self.first = ids, places, first

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: Any) -> Any:
        place = int(self.places[number])
        return self.ids[place].as_py(), self.first + place


def order_rows(tokens: NDArray[Any], ids: OrderedIds | None) -> NDArray[Any]:
    """Return the rows in order of sizes, largest first; ties in order of IDs, then of rows."""
    # A single batch without limits holds all sequences in this order.
    layout = kernel.first_fit_decreasing(kernel.count(tokens, NO_LIMITS, 1))
    rows, _ = kernel.list_rows(layout, tokens, ids, 1)
    return rows


def order_sizes(exchange: Exchange, first_rank: int, *parts: Any) -> list[pa.Table]:
    """Return the rows of a range of sizes, with batch and slot, by ranges of batches."""
    table = concatenate(parts)
    tokens = table["tokens"].to_numpy()
    ids = table[exchange.job.id_column].combine_chunks()
    order = order_rows(tokens, check_ids(ids, len(ids)))
    tokens = tokens[order]
    begins = np.flatnonzero(np.diff(tokens, prepend=-1))
    ranks = np.arange(len(tokens)) - np.repeat(begins, np.diff(begins, append=len(tokens)))
    batches, slots = exchange.layout.place(tokens, ranks + first_rank)
    return divide_rows(exchange, table, order, batches, slots)


def split_blocks(
    exchange: Exchange,
    begin: Start,
    before: TokenCounts | None,
    details: Sequence[Counted | None],
    *blocks: Any,
) -> list[pa.Table]:
    """Return the rows of blocks, with batch and slot, by ranges of batches; and those dropped."""
    rows = list(read_group(exchange, begin, details, blocks))
    lengths = np.concatenate([of_block.lengths for of_block in rows])
    batches = exchange.layout.assign(lengths, before)
    slots = exchange.layout.slots(lengths, before)
    table = concatenate(of_block.packed for of_block in rows)
    dropped = concatenate(of_block.dropped for of_block in rows)
    return [*divide_rows(exchange, table, np.arange(len(table)), batches, slots), dropped]


def divide_rows(
    exchange: Exchange,
    table: pa.Table,
    order: NDArray[Any],
    batches: NDArray[Any],
    slots: NDArray[Any],
) -> list[pa.Table]:
    """Return rows of a table, in an order, by ranges of their batches."""
    num_ranges = len(exchange.batches) - 1
    number = np.searchsorted(exchange.batches[1:-1], batches, side="right").astype(np.int16)
    by_range = np.argsort(number, kind="stable")
    table = take(table, order[by_range])
    table = table.append_column("batch", pa.array(batches[by_range]))
    table = table.append_column("slot", pa.array(slots[by_range]))
    return slices(table, np.cumsum(np.bincount(number, minlength=num_ranges)))


def gather_batches(
    exchange: Exchange,
    number: int,
    num_rows: int,
    finish: Callable[..., Any],
    context: Any,
    *parts: Any,
) -> Any:
    """Call `finish` with the rows of a range of batches, in order of batches and slots.

    Raises:
        RuntimeError: Rows are missing, or there is more than one in a place.
    """
    table = concatenate(parts)
    batches, slots = (table[name].to_numpy() for name in ("batch", "slot"))
    numbers = batches - exchange.batches[number]
    places = np.append(0, np.cumsum(np.bincount(numbers)))[numbers] + slots
    order = np.full(num_rows, -1)
    if len(places) == num_rows and (not num_rows or places.max() < num_rows):
        order[places] = np.arange(num_rows)
    if num_rows and order.min() < 0:
        raise RuntimeError(f"rows of batches from {exchange.batches[number]:,} on are missing")
    return finish(take(table, order), number, context)
