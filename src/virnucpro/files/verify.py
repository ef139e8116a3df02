"""Verify plan files against their input, independently of the code that makes plans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from virnucpro.data.packing import GreedyPacker
from virnucpro.files.plan_file import Summary, read_rows, read_summary
from virnucpro.files.sequences import InputFile, Sequences
from virnucpro.files.tables import as_arrow, strings_as_arrow


def verify_plan(path: str | PathLike[str], sequences: Sequences) -> list[str]:
    """Return the errors found in a plan file, one sentence each; an empty list if it is correct.

    The hashes of the input files must match those in the plan. The plan must contain each sequence
    exactly once, as in the input, and truncated or dropped if it is too long. Batches must be
    numbered without gaps, be within the limits, and have their longest sequence first; sequences
    with the same number of tokens must be in order of their IDs; and the totals of the summary must
    be correct. A plan of method "ffd" must be First-Fit Decreasing: each sequence is in the first
    batch that had room for it when it was placed. A plan of method "tight" must not have more
    batches than First-Fit Decreasing; its lower bound is not proven again.

    Args:
        path: The plan file.
        sequences: The sequences of the input, read with the options of the plan.

    Raises:
        ValueError: The file is not a plan file, or damaged.
        OSError: The file cannot be read.

    Cost: O(n log n) in the number of sequences.
    """
    summary = read_summary(path)
    table = read_rows(path)
    return [
        *compare_inputs(summary.inputs, sequences.inputs),
        *compare_rows(table, summary, sequences),
        *check_batches(table, summary),
        *compare_totals(table, summary, sequences),
    ]


def compare_inputs(recorded: list[InputFile], found: list[InputFile]) -> Iterator[str]:
    """Yield the differences between the input and the one recorded in the plan."""
    if len(recorded) != len(found):
        yield f"number of inputs is {len(found):,}, expected {len(recorded):,}"
    for old, new in zip(recorded, found, strict=False):
        if replace(old, name=new.name) != new:
            yield (
                f"input {new.name} has changed: {new.sequences:,} sequences in {new.bytes:,} bytes "
                f"(SHA-256 {new.sha256[:12]}...); {old.name} had {old.sequences:,} in "
                f"{old.bytes:,} bytes ({old.sha256[:12]}...)"
            )


def column(table: Any, name: str) -> NDArray[Any]:
    """Return a column of integers or bools, with -1 for nulls."""
    values = table[name].combine_chunks()
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    filled: NDArray[Any] = pc.fill_null(values, -1).to_numpy(zero_copy_only=False)
    return filled


def bools(values: Any) -> NDArray[np.bool_]:
    """Return an Arrow array of bools as NumPy bools, False for nulls."""
    filled: NDArray[np.bool_] = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return filled


def compare_rows(table: Any, summary: Summary, sequences: Sequences) -> Iterator[str]:
    """Yield the differences between the rows of a plan and those expected for the sequences."""
    num_sequences = len(sequences.lengths)
    rows = column(table, "row")
    is_known = (rows >= 0) & (rows < num_sequences)
    if not is_known.all():
        number = (~is_known).sum()
        yield f"row {rows[~is_known][0]:,} is not in the input (affected rows: {number:,})"
    times = np.bincount(rows[is_known], minlength=num_sequences)
    for fault, is_wrong in (("is missing", times == 0), ("occurs more than once", times > 1)):
        if is_wrong.any():
            row = int(np.argmax(is_wrong))
            name = sequences.ids[row].as_py()
            number = is_wrong.sum()
            yield f"sequence {name!r} (row {row:,}) {fault} (affected sequences: {number:,})"
    table, rows = table.filter(as_arrow(is_known)), rows[is_known]
    lengths = sequences.lengths[rows]
    is_overlong = lengths > summary.limits.max_residues
    is_dropped = is_overlong & (summary.overlong == "drop")
    tokens = as_arrow(summary.limits.tokens(lengths))
    names = strings_as_arrow([file.name for file in summary.inputs])
    files = np.minimum(sequences.file_of(rows), len(names) - 1)
    expected = {
        "id": sequences.ids.take(as_arrow(rows)),
        "length": as_arrow(lengths),
        "tokens": pc.if_else(as_arrow(is_dropped), pa.scalar(None, tokens.type), tokens),
        "truncated": as_arrow(is_overlong & ~is_dropped),
        "file": names.take(as_arrow(files)),
    }
    for name, values in expected.items():
        found = table[name].combine_chunks().cast(values.type)
        differs = bools(pc.not_equal(found, values))
        differs |= bools(pc.is_null(found)) != bools(pc.is_null(values))
        if differs.any():
            at = int(np.argmax(differs))
            yield (
                f"{name} of row {rows[at]:,} is {found[at].as_py()!r}, expected "
                f"{values[at].as_py()!r} (affected rows: {differs.sum():,})"
            )
    if summary.overlong == "error" and is_overlong.any():
        row = rows[int(np.argmax(is_overlong))]
        yield (
            f"row {row:,} has more than {summary.limits.max_residues:,} residues, which "
            f"--overlong error does not allow (affected rows: {is_overlong.sum():,})"
        )
    has_batch = column(table, "batch") >= 0
    for fault, is_wrong in (
        ("has no batch, but should not be dropped", ~has_batch & ~is_dropped),
        ("is in a batch, but should be dropped", has_batch & is_dropped),
    ):
        if is_wrong.any():
            row = rows[int(np.argmax(is_wrong))]
            yield f"row {row:,} {fault} (affected rows: {is_wrong.sum():,})"


def check_batches(table: Any, summary: Summary) -> Iterator[str]:
    """Yield the errors in the batches of a plan, regardless of the input."""
    budget = summary.limits.max_tokens_per_batch
    max_sequences = summary.limits.max_sequences_per_batch or len(table)
    batch = column(table, "batch")
    if (np.diff(column(table, "row")[batch < 0]) < 0).any():
        yield "dropped sequences are not in order of rows"
    if (np.diff((batch < 0).astype(np.int8)) < 0).any():
        yield "dropped sequences do not come last"
    table, batch = table.filter(as_arrow(batch >= 0)), batch[batch >= 0]
    if len(batch) == 0:
        return
    if (np.diff(batch) < 0).any():
        at = batch[:-1][np.diff(batch) < 0][0]
        yield f"rows are not in order of batches (first after batch {at:,})"
        order = np.argsort(batch, kind="stable")
        table, batch = table.take(as_arrow(order)), batch[order]
    present = np.unique(batch)
    missing = int(present[-1]) + 1 - len(present)
    if missing:
        first = int(np.argmax(present != np.arange(len(present))))
        yield f"batch {first:,} is missing (missing batches: {missing:,})"
    tokens = column(table, "tokens")
    starts = np.flatnonzero(np.append(True, np.diff(batch) != 0))
    limits = {
        "tokens": (np.add.reduceat(tokens, starts), budget),
        "sequences": (np.diff(np.append(starts, len(batch))), max_sequences),
    }
    for unit, (totals, limit) in limits.items():
        if totals.max() > limit:
            worst = int(np.argmax(totals))
            yield (
                f"batch {present[worst]:,} has {totals[worst]:,} {unit}, more than {limit:,} "
                f"(affected batches: {(totals > limit).sum():,})"
            )
    rises = (np.diff(batch) == 0) & (np.diff(tokens) > 0)
    if rises.any():
        at = batch[:-1][rises][0]
        yield f"the sequences of batch {at:,} are not in order of decreasing length"
        order = np.lexsort((-tokens, batch))
        table, batch, tokens = table.take(as_arrow(order)), batch[order], tokens[order]
    opened = tokens[np.append(True, np.diff(batch) != 0)]
    if (np.diff(opened) > 0).any():
        at = np.unique(batch)[1:][np.diff(opened) > 0][0]
        yield f"batch {at:,} begins with a longer sequence than the previous batch"
    if summary.method == "ffd":
        yield from check_first_fit(batch, tokens, budget, max_sequences)
    yield from check_ties(table, tokens)


def check_first_fit(
    batch: NDArray[Any], tokens: NDArray[Any], budget: int, max_sequences: int
) -> Iterator[str]:
    """Yield an error if a sequence is not in the first batch with room; rows are in batch order.

    In First-Fit Decreasing, if a batch has room for a size after its own sequences of this size
    and of larger ones, then no later batch has a sequence of this size.
    """
    is_last = np.append((np.diff(batch) != 0) | (np.diff(tokens) != 0), True)
    ends = np.flatnonzero(is_last)
    # For each batch and each size in it: the room left by sequences of this size or larger.
    in_batch, size = batch[ends], tokens[ends]
    is_first = np.append(True, np.diff(in_batch) != 0)
    begin = np.append(0, ends[:-1] + 1)[is_first]
    number = np.cumsum(is_first) - 1
    sums = np.append(0, np.cumsum(tokens))
    room = budget - (sums[ends + 1] - sums[begin][number])
    room[ends + 1 - begin[number] >= max_sequences] = -1
    # The distinct sizes in decreasing order, and the last batch with each.
    sizes, place = np.unique(-size, return_inverse=True)
    last_batch = np.full(len(sizes), -1, np.int64)
    np.maximum.at(last_batch, place, in_batch)
    # This room exists for all sizes that fit and are larger than the next size of the batch.
    lowest = np.append(np.where(is_first[1:], len(sizes), place[1:]), len(sizes))
    largest = np.maximum(place, np.searchsorted(sizes, -room))
    has_room = largest < lowest
    latest = range_maxima(last_batch, largest[has_room], lowest[has_room])
    too_late = latest > in_batch[has_room]
    if too_late.any():
        at = int(np.argmax(too_late))
        yield (
            f"batch {in_batch[has_room][at]:,} had room for a sequence that is in batch "
            f"{latest[at]:,}: the plan is not First-Fit Decreasing (cases: {too_late.sum():,})"
        )


def range_maxima(
    values: NDArray[np.int64], begin: NDArray[Any], end: NDArray[Any]
) -> NDArray[np.int64]:
    """Return ``values[b:e].max()`` for each b and e of `begin` and `end`.

    Uses a sparse table: the maxima of all ranges whose length is a power of two. Each range is the
    union of two of them.
    """
    levels = [values]
    while 2 ** len(levels) <= len(values):
        half, shift = levels[-1], 2 ** (len(levels) - 1)
        levels.append(np.maximum(half[:-shift], half[shift:]))
    result = np.empty(len(begin), np.int64)
    level = np.frexp(end - begin)[1] - 1
    for number, maxima in enumerate(levels):
        of_level = level == number
        first, last = begin[of_level], end[of_level] - 2**number
        result[of_level] = np.maximum(maxima[first], maxima[last])
    return result


def check_ties(table: Any, tokens: NDArray[Any]) -> Iterator[str]:
    """Yield an error if sequences with the same number of tokens are not in order of ID and row."""
    order = np.argsort(-tokens, kind="stable")
    is_equal = np.diff(tokens[order]) == 0
    ids = table["id"].combine_chunks().cast(pa.large_string()).take(as_arrow(order))
    rows = column(table, "row")[order]
    before, after = ids.slice(0, max(0, len(ids) - 1)), ids.slice(1)
    is_greater, is_same = bools(pc.greater(before, after)), bools(pc.equal(before, after))
    wrong = is_equal & (is_greater | (is_same & (np.diff(rows) < 0)))
    if wrong.any():
        at = int(np.argmax(wrong))
        yield (
            f"sequence {ids[at + 1].as_py()!r} comes after {ids[at].as_py()!r}, which has the "
            f"same number of tokens: not in order of IDs (cases: {wrong.sum():,})"
        )


def compare_totals(table: Any, summary: Summary, sequences: Sequences) -> Iterator[str]:
    """Yield an error for each total of the summary that differs from the rows and the input."""
    limits = summary.limits
    batch, tokens, length = (column(table, name) for name in ("batch", "tokens", "length"))
    is_packed = batch >= 0
    kept = np.minimum(length[is_packed], limits.max_residues)
    num_batches = len(np.unique(batch[is_packed]))
    total = int(tokens[is_packed].sum())
    budget = limits.max_tokens_per_batch
    expected = {
        "read": len(sequences.lengths),
        "packed": int(is_packed.sum()),
        "dropped": int((~is_packed).sum()),
        "truncated": int(column(table, "truncated").sum()),
        "empty": int((length == 0).sum()),
        **asdict(sequences.changes),
        "duplicate_ids": sequences.find_duplicates()[0],
        "residues": int(length.sum()),
        "residues_kept": int(kept.sum()),
        "residues_truncated": int((length[is_packed] - kept).sum()),
        "residues_dropped": int(length[~is_packed].sum()),
        "tokens": total,
        "batches": num_batches,
        "efficiency": total / (num_batches * budget) if num_batches else 0.0,
    }
    packer = GreedyPacker(**limits.to_dict())
    first_fit = packer.lay_out(packer.count_silently(length[is_packed]))
    expected["first_fit_batches"] = first_fit.num_batches
    if summary.method == "ffd":
        expected["lower_bound"] = first_fit.lower_bound
    elif not first_fit.lower_bound <= summary.totals.lower_bound <= num_batches:
        yield (
            f"lower_bound is {summary.totals.lower_bound:,} in the summary, expected at least "
            f"{first_fit.lower_bound:,} and at most {num_batches:,}"
        )
    elif num_batches > first_fit.num_batches:
        yield (
            f"the plan has {num_batches:,} batches, more than First-Fit Decreasing makes "
            f"({first_fit.num_batches:,})"
        )
    for name, value in expected.items():
        recorded = getattr(summary.totals, name)
        if recorded != value:
            yield f"{name} is {recorded:,} in the summary, expected {value:,}"
