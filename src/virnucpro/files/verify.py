"""Plans on disk checked against their input, by another way than plans are made."""

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
from virnucpro.files.plan_file import Summary, read_summary, read_table
from virnucpro.files.sequences import Sequences, Source


def verify_plan(path: str | PathLike[str], sequences: Sequences) -> list[str]:
    """Return what is wrong with a plan file, given its input read anew; nothing if all is well.

    Checked are the input's hashes; that each sequence is there once, as it is in the input, and
    truncated or dropped as it should be; that batches are numbered through, keep their limits and
    have their longest sequence first; that the totals are right; and that equal sequences are in
    order of their IDs. A plan of method "ffd" has to be First-Fit Decreasing: no sequence stands in
    a batch while one before it had room for it when its turn came. One of "tight" has at most as
    many batches. This is found from the batches alone, by another way than plans are made; only the
    bound of "tight" is believed.

    Raises:
        ValueError: The file is no plan.

    Cost: O(n log n) in the number of sequences.
    """
    summary = read_summary(path)
    table = read_table(path)
    return [
        *compare_sources(summary.inputs, sequences.sources),
        *compare_rows(table, summary, sequences),
        *check_batches(table, summary),
        *compare_totals(table, summary, sequences),
    ]


def compare_sources(recorded: list[Source], found: list[Source]) -> Iterator[str]:
    """Yield how the input differs from what was recorded of it."""
    if len(recorded) != len(found):
        yield f"the plan is of {len(recorded):,} inputs, {len(found):,} were given"
    for old, new in zip(recorded, found, strict=False):
        if replace(old, name=new.name) != new:
            yield (
                f"input {new.name} has changed: {new.sequences:,} sequences in {new.bytes:,} bytes "
                f"(SHA-256 {new.sha256[:12]}...), {old.name} had {old.sequences:,} in "
                f"{old.bytes:,} ({old.sha256[:12]}...)"
            )


def column(table: Any, name: str) -> NDArray[Any]:
    """Return a column of numbers; -1 where it is null."""
    values = table[name].combine_chunks()
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    filled: NDArray[Any] = pc.fill_null(values, -1).to_numpy(zero_copy_only=False)
    return filled


def compare_rows(table: Any, summary: Summary, sequences: Sequences) -> Iterator[str]:
    """Yield how the rows of a plan differ from the sequences."""
    num_sequences = len(sequences.lengths)
    rows = column(table, "row")
    is_known = (rows >= 0) & (rows < num_sequences)
    if not is_known.all():
        yield f"row {rows[~is_known][0]:,} is not in the input ({(~is_known).sum():,} such rows)"
    times = np.bincount(rows[is_known], minlength=num_sequences)
    for what, wrong in (("missing", times == 0), ("there more than once", times > 1)):
        if wrong.any():
            row = int(np.argmax(wrong))
            name = sequences.ids[row].as_py()
            yield f"sequence {name!r} (row {row:,}) is {what} ({wrong.sum():,} such sequences)"
    table, rows = table.filter(pa.array(is_known)), rows[is_known]
    lengths = sequences.lengths[rows]
    is_overlong = lengths > summary.limits.max_residues
    is_dropped = is_overlong & (summary.overlong == "drop")
    names = pa.array([source.name for source in summary.inputs], pa.string())
    files = np.minimum(sequences.file_of(rows), len(names) - 1)
    expected = {
        "id": sequences.ids.take(pa.array(rows)),
        "length": pa.array(lengths),
        "tokens": pa.array(summary.limits.tokens(lengths), mask=is_dropped),
        "truncated": pa.array(is_overlong & ~is_dropped),
        "file": names.take(pa.array(files)),
    }
    for name, values in expected.items():
        found = table[name].combine_chunks().cast(values.type)
        differs = pc.fill_null(pc.not_equal(found, values), False).to_numpy(zero_copy_only=False)
        differs = differs | (
            pc.is_null(found).to_numpy(zero_copy_only=False)
            != pc.is_null(values).to_numpy(zero_copy_only=False)
        )
        if differs.any():
            at = int(np.argmax(differs))
            yield (
                f"{name} of row {rows[at]:,} is {found[at].as_py()!r}, not "
                f"{values[at].as_py()!r} ({differs.sum():,} such rows)"
            )
    if summary.overlong == "error" and is_overlong.any():
        row = rows[int(np.argmax(is_overlong))]
        yield f"row {row:,} is too long, which should have been an error"
    wrong = (column(table, "batch") < 0) != is_dropped
    if wrong.any():
        row = rows[int(np.argmax(wrong))]
        yield f"row {row:,} is dropped, or should be ({wrong.sum():,} such rows)"


def check_batches(table: Any, summary: Summary) -> Iterator[str]:
    """Yield what is wrong with the batches of a plan, whatever their sequences are."""
    budget = summary.limits.max_tokens_per_batch
    most = summary.limits.max_sequences_per_batch or len(table)
    batch = column(table, "batch")
    if (np.diff(column(table, "row")[batch < 0]) < 0).any():
        yield "sequences that were dropped are not in order of rows"
    if (np.diff((batch < 0).astype(np.int8)) < 0).any():
        yield "sequences that were dropped do not come last"
    table, batch = table.filter(pa.array(batch >= 0)), batch[batch >= 0]
    if len(batch) == 0:
        return
    if (np.diff(batch) < 0).any():
        yield f"rows are not in order of batches (batch {batch[:-1][np.diff(batch) < 0][0]:,})"
        order = np.argsort(batch, kind="stable")
        table, batch = table.take(pa.array(order)), batch[order]
    present = np.unique(batch)
    missing = int(present[-1]) + 1 - len(present)
    if missing:
        first = int(np.argmax(present != np.arange(len(present))))
        yield f"batch {first:,} is missing ({missing:,} such batches)"
    tokens = column(table, "tokens")
    starts = np.flatnonzero(np.append(True, np.diff(batch) != 0))
    limits = {
        "tokens": (np.add.reduceat(tokens, starts), budget),
        "sequences": (np.diff(np.append(starts, len(batch))), most),
    }
    for what, (totals, limit) in limits.items():
        if totals.max() > limit:
            worst = int(np.argmax(totals))
            yield (
                f"batch {present[worst]:,} has {totals[worst]:,} {what}, more than {limit:,} "
                f"({(totals > limit).sum():,} such batches)"
            )
    rises = (np.diff(batch) == 0) & (np.diff(tokens) > 0)
    if rises.any():
        yield f"batch {batch[:-1][rises][0]:,} does not have its longest sequence first"
        order = np.lexsort((-tokens, batch))
        table, batch, tokens = table.take(pa.array(order)), batch[order], tokens[order]
    opened = tokens[np.append(True, np.diff(batch) != 0)]
    if (np.diff(opened) > 0).any():
        at = np.unique(batch)[1:][np.diff(opened) > 0][0]
        yield f"batch {at:,} begins with a longer sequence than the batch before it"
    if summary.method == "ffd":
        yield from check_first_fit(batch, tokens, budget, most)
    yield from check_ties(table, tokens)


def check_first_fit(
    batch: NDArray[Any], tokens: NDArray[Any], budget: int, most: int
) -> Iterator[str]:
    """Yield where a sequence is not in the first batch that had room, of rows in order of slots.

    A batch that has room for a size, after its own sequences of that size or more, has to come
    after all batches that sequences of this size are in.
    """
    is_last = np.append((np.diff(batch) != 0) | (np.diff(tokens) != 0), True)
    ends = np.flatnonzero(is_last)
    # For each batch and size in it: the room left by sequences of this size and larger ones.
    in_batch, size = batch[ends], tokens[ends]
    is_first = np.append(True, np.diff(in_batch) != 0)
    begin = np.append(0, ends[:-1] + 1)[is_first]
    number = np.cumsum(is_first) - 1
    sums = np.append(0, np.cumsum(tokens))
    room = budget - (sums[ends + 1] - sums[begin][number])
    room[ends + 1 - begin[number] >= most] = -1
    # Sizes from large to small, and the last batch of each.
    sizes, place = np.unique(-size, return_inverse=True)
    last_batch = np.full(len(sizes), -1, np.int64)
    np.maximum.at(last_batch, place, in_batch)
    # The room is there for sizes down to the next one of the batch, that one left out.
    lowest = np.append(np.where(is_first[1:], len(sizes), place[1:]), len(sizes))
    largest = np.maximum(place, np.searchsorted(sizes, -room))
    has_room = largest < lowest
    latest = range_max(last_batch, largest[has_room], lowest[has_room])
    too_late = latest > in_batch[has_room]
    if too_late.any():
        at = int(np.argmax(too_late))
        yield (
            f"batch {in_batch[has_room][at]:,} had room for a sequence that is in batch "
            f"{latest[at]:,}: the plan is not First-Fit Decreasing ({too_late.sum():,} such places)"
        )


def range_max(
    values: NDArray[np.int64], begin: NDArray[Any], end: NDArray[Any]
) -> NDArray[np.int64]:
    """Return the maxima of values[begin:end], by maxima of stretches of powers of two."""
    levels = [values]
    while 2 ** len(levels) <= len(values):
        half = levels[-1]
        levels.append(np.maximum(half[: -(2 ** (len(levels) - 1))], half[2 ** (len(levels) - 1) :]))
    result = np.empty(len(begin), np.int64)
    level = np.frexp(end - begin)[1] - 1
    for number, maxima in enumerate(levels):
        of_level = level == number
        first, last = begin[of_level], end[of_level] - 2**number
        result[of_level] = np.maximum(maxima[first], maxima[last])
    return result


def check_ties(table: Any, tokens: NDArray[Any]) -> Iterator[str]:
    """Yield where sequences of equally many tokens are not in order of ID and row."""
    order = np.argsort(-tokens, kind="stable")
    is_equal = np.diff(tokens[order]) == 0
    ids = table["id"].combine_chunks().cast(pa.large_string()).take(pa.array(order))
    rows = column(table, "row")[order]
    before, after = ids.slice(0, max(0, len(ids) - 1)), ids.slice(1)
    is_greater = pc.greater(before, after).to_numpy(zero_copy_only=False)
    is_same = pc.equal(before, after).to_numpy(zero_copy_only=False)
    wrong = is_equal & (is_greater | (is_same & (np.diff(rows) < 0)))
    if wrong.any():
        at = int(np.argmax(wrong))
        yield (
            f"{ids[at + 1].as_py()!r} comes after {ids[at].as_py()!r}, which has as many tokens: "
            f"not in order of IDs ({wrong.sum():,} such places)"
        )


def compare_totals(table: Any, summary: Summary, sequences: Sequences) -> Iterator[str]:
    """Yield the totals in a plan's metadata that its rows and its input do not give."""
    limits = summary.limits
    batch, tokens, length = (column(table, name) for name in ("batch", "tokens", "length"))
    is_packed = batch >= 0
    kept = np.minimum(length[is_packed], limits.max_residues)
    num_batches = len(np.unique(batch[is_packed]))
    total = int(tokens[is_packed].sum())
    budget = limits.max_tokens_per_batch
    found = {
        "read": len(sequences.lengths),
        "packed": int(is_packed.sum()),
        "dropped": int((~is_packed).sum()),
        "truncated": int(column(table, "truncated").sum()),
        "empty": int((length == 0).sum()),
        **asdict(sequences.changes),
        "duplicate_ids": sequences.find_duplicates()[0],
        "residues": int(length.sum()),
        "residues_kept": int(kept.sum()),
        "residues_cut": int((length[is_packed] - kept).sum()),
        "residues_dropped": int(length[~is_packed].sum()),
        "tokens": total,
        "batches": num_batches,
        "efficiency": total / (num_batches * budget) if num_batches else 0.0,
    }
    packer = GreedyPacker(**limits.to_dict())
    first_fit = packer.lay_out(packer.count_silently(length[is_packed]))
    found["first_fit_batches"] = first_fit.num_batches
    if summary.method == "ffd":
        found["lower_bound"] = first_fit.lower_bound
    elif not first_fit.lower_bound <= summary.totals.lower_bound <= num_batches:
        yield f"the metadata says lower_bound {summary.totals.lower_bound:,}, which cannot be"
    elif num_batches > first_fit.num_batches:
        yield f"First-Fit Decreasing needs {first_fit.num_batches:,} batches, not {num_batches:,}"
    for name, value in found.items():
        recorded = getattr(summary.totals, name)
        if recorded != value:
            yield f"the metadata says {name} {recorded:,}, it is {value:,}"
