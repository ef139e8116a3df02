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
from virnucpro.files.first_fit import check_first_fit
from virnucpro.files.plan_checks import compare_layout
from virnucpro.files.plan_reader import PlanFile, open_plan
from virnucpro.files.plan_schema import IF_SPLIT, checksums
from virnucpro.files.plan_summary import Summary
from virnucpro.files.sequences import InputFile, Sequences
from virnucpro.files.statistics import check_metadata
from virnucpro.files.tables import as_arrow, strings_as_arrow
from virnucpro.text import quoted, shown


def verify_plan(path: str | PathLike[str], sequences: Sequences | None) -> list[str]:
    """Return the errors found in a plan file, one sentence each; an empty list if it is correct.

    The hashes of the input files must match those in the plan. The plan must contain each sequence
    exactly once, as in the input, and truncated, dropped or split if it is too long. Batches must
    be numbered without gaps, be within the limits and those of the layout, and have their longest
    sequence first; sequences with the same number of tokens must be in order of their IDs, in each
    group if there are groups; and the totals of the summary must be correct. Residues in the plan
    must be those of the input. In a Parquet file, the statistics of each row group must be those of
    its rows. A plan of method "ffd" must be First-Fit Decreasing: each sequence is in the first
    batch that had room for it when it was placed. A plan of method "tight" must not have more
    batches than First-Fit Decreasing; its lower bound is not proven again.

    Args:
        path: The plan file, or a folder of them.
        sequences: The sequences of the input, read with the options of the plan, and with texts if
            the plan has residues. If None, the plan is checked without its input.

    Raises:
        ValueError: The file is not a plan file, or damaged.
        OSError: The file cannot be read.

    Cost: O(n log n) in the number of sequences.
    """
    file = open_plan(path)
    summary = file.summary
    if file.num_rows != file.expected_rows:
        # Anything else could take memory for rows that the file does not have.
        return [f"the plan has {file.num_rows:,} rows, expected {file.expected_rows:,}"]
    table = file.read()
    errors = [
        *check_columns(table, summary, sequences),
        *compare_layout(table, file.layout),
        *compare_checksums(table, file.checksums),
        *check_metadata(file),
        *check_batches(table, summary, file.layout.group_offsets),
        *compare_totals(table, file, sequences),
    ]
    if sequences is not None:
        errors[:0] = [
            *(compare_inputs(summary.inputs, sequences.inputs) if summary.inputs else ()),
            *compare_rows(table, summary, sequences),
        ]
        if not errors and "sequence" in file.schema.names:
            errors += compare_residues(file, sequences)
    return errors


def compare_inputs(recorded: list[InputFile], found: list[InputFile]) -> Iterator[str]:
    """Yield the differences between the input and the one recorded in the plan."""
    if len(recorded) != len(found):
        yield f"number of inputs is {len(found):,}, expected {len(recorded):,}"
    for old, new in zip(recorded, found, strict=False):
        if replace(old, name=new.name) != new:
            yield (
                f"input {shown(new.name)} has changed: {new.sequences:,} sequences in "
                f"{new.bytes:,} bytes (SHA-256 {new.sha256[:12]}...); {shown(old.name)} had "
                f"{old.sequences:,} in {old.bytes:,} bytes ({old.sha256[:12]}...)"
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


def is_split(table: Any) -> bool:
    """Return whether a plan has fragments."""
    return "fragment" in table.schema.names


def check_columns(table: Any, summary: Summary, sequences: Sequences | None) -> Iterator[str]:
    """Yield the errors in the numbers of rows and fragments."""
    rows = column(table, "row")
    # Each row of the input has at least one row in the plan.
    num_rows = min(summary.totals.read, len(rows))
    if sequences is not None:
        num_rows = len(sequences.lengths)
    is_known = (rows >= 0) & (rows < num_rows)
    if not is_known.all():
        number = (~is_known).sum()
        yield f"row {rows[~is_known][0]:,} is not in the input (affected rows: {number:,})"
    times = np.bincount(rows[is_known], minlength=num_rows)
    faults = [("is missing", times == 0)]
    if not is_split(table):
        faults.append(("occurs more than once", times > 1))
    for fault, is_wrong in faults:
        if is_wrong.any():
            row = int(np.argmax(is_wrong))
            name = f"row {row:,}"
            if sequences is not None:
                name = f"sequence {quoted(sequences.ids[row].as_py())} (row {row:,})"
            yield f"{name} {fault} (affected sequences: {is_wrong.sum():,})"
    if is_split(table):
        yield from check_fragments(table, summary, sequences)


def compare_checksums(table: Any, recorded: dict[str, NDArray[np.int64]] | None) -> Iterator[str]:
    """Yield an error if the rows are not those whose checksums were recorded."""
    if recorded is None:
        return
    found = checksums(table)
    for name in sorted(found.keys() | recorded.keys()):
        if not np.array_equal(found.get(name, [-1]), recorded.get(name, [-2])):
            yield f"column {quoted(name)} is not the one that was written (its checksums differ)"


def check_fragments(table: Any, summary: Summary, sequences: Sequences | None) -> Iterator[str]:
    """Yield an error if the fragments of a sequence do not make it up, in order of its residues."""
    is_packed = column(table, "batch") >= 0
    for name in IF_SPLIT:
        if (bools(pc.is_null(table[name])) == is_packed).any():
            yield f"column {quoted(name)} is null in a batch, or not for dropped sequences"
            return
    table = table.filter(as_arrow(is_packed))
    row, start, stop, number = (
        column(table, name) for name in ("row", "start", "stop", "fragment")
    )
    order = np.lexsort((start, row))
    row, start, stop, number = row[order], start[order], stop[order], number[order]
    is_first = np.append(True, np.diff(row) != 0)
    is_last = np.append(is_first[1:], True)
    place = np.arange(len(row)) - np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
    longest, size = summary.limits.max_residues, stop - start
    tokens = column(table, "tokens")[order]
    is_wrong = (number != np.arange(len(row))) | (summary.limits.tokens(size) != tokens)
    is_wrong |= (
        (size < 0) | (size > longest) | (~is_last & (size < longest)) | (is_first & (start != 0))
    )
    if summary.overlong is None:
        # The overlap is not known, but nothing may be missing between neighbors.
        is_wrong[1:] |= ~is_first[1:] & ((start[1:] > stop[:-1]) | (np.diff(start) <= 0))
    else:
        is_wrong |= start != place * (longest - summary.overlap)
    if sequences is not None:
        is_wrong |= is_last & (stop != sequences.lengths.take(row, mode="clip"))
    elif "length" in table.schema.names:
        is_wrong |= is_last & (stop != column(table, "length")[order])
    if is_wrong.any():
        at = int(np.argmax(is_wrong))
        yield (
            f"fragment {number[at]:,} of row {row[at]:,} has residues {start[at]:,} to "
            f"{stop[at]:,}, which is out of place (affected fragments: {is_wrong.sum():,})"
        )


def compare_rows(table: Any, summary: Summary, sequences: Sequences) -> Iterator[str]:
    """Yield the differences between the rows of a plan and those expected for the sequences."""
    rows = column(table, "row")
    is_known = (rows >= 0) & (rows < len(sequences.lengths))
    table, rows = table.filter(as_arrow(is_known)), rows[is_known]
    lengths = sequences.lengths[rows]
    is_overlong = lengths > summary.limits.max_residues
    is_dropped = is_overlong & (summary.overlong == "drop")
    is_dropped |= (lengths == 0) & (summary.empty == "drop")
    if summary.overlong is None:
        is_dropped = (is_overlong | (lengths == 0)) & (column(table, "batch") < 0)
    packed = summary.limits.tokens(lengths)
    if is_split(table):
        packed = summary.limits.tokens(column(table, "stop") - column(table, "start"))
    tokens = as_arrow(packed)
    names = strings_as_arrow([file.text for file in summary.inputs] or [""])
    files = np.minimum(sequences.file_of(rows), len(names) - 1)
    is_truncated = is_overlong & ~is_dropped & (not is_split(table))
    expected = {
        "id": sequences.ids.take(as_arrow(rows)),
        "length": as_arrow(lengths),
        "tokens": pc.if_else(as_arrow(is_dropped), pa.scalar(None, tokens.type), tokens),
        "truncated": as_arrow(is_truncated),
        "file": names.take(as_arrow(files)),
    }
    for name, values in expected.items():
        if name not in table.schema.names:
            continue
        found = table[name].combine_chunks().cast(values.type)
        differs = bools(pc.not_equal(found, values))
        differs |= bools(pc.is_null(found)) != bools(pc.is_null(values))
        if differs.any():
            at = int(np.argmax(differs))
            yield (
                f"{name} of row {rows[at]:,} is {quoted(found[at].as_py())}, expected "
                f"{quoted(values[at].as_py())} (affected rows: {differs.sum():,})"
            )
    for overlong, is_wrong in (
        ("error", is_overlong),
        ("split", is_overlong & (not is_split(table))),
    ):
        if summary.overlong == overlong and is_wrong.any():
            row = rows[int(np.argmax(is_wrong))]
            yield (
                f"row {row:,} has more than {summary.limits.max_residues:,} residues, but the plan "
                f"was made with --overlong {overlong} (affected rows: {is_wrong.sum():,})"
            )
    has_batch = column(table, "batch") >= 0
    for fault, is_wrong in (
        ("has no batch, but should not be dropped", ~has_batch & ~is_dropped),
        ("is in a batch, but should be dropped", has_batch & is_dropped),
    ):
        if is_wrong.any():
            row = rows[int(np.argmax(is_wrong))]
            yield f"row {row:,} {fault} (affected rows: {is_wrong.sum():,})"


def compare_residues(file: PlanFile, sequences: Sequences) -> Iterator[str]:
    """Yield an error if the residues in a plan are not those of the sequences."""
    limit = file.summary.limits.max_residues
    num_wrong, first = 0, ""
    names = ["row", "start", "stop", "batch", "sequence"]
    for batch in file.iterate([name for name in names if name in file.schema.names]):
        dropped = batch.filter(pc.is_null(batch["batch"]))
        packed = batch.filter(pc.is_valid(batch["batch"]))
        rows = packed["row"].to_numpy()
        starts, stops = [0] * len(rows), [limit] * len(rows)
        if "start" in packed.schema.names:
            starts, stops = packed["start"].to_pylist(), packed["stop"].to_pylist()
        texts = sequences.read(rows)
        expected = (text[a:b] for text, a, b in zip(texts, starts, stops, strict=True))
        found = packed["sequence"].to_pylist()
        wrong = [row for row, x, y in zip(rows.tolist(), found, expected, strict=True) if x != y]
        wrong += dropped.filter(pc.is_valid(dropped["sequence"]))["row"].to_pylist()
        if wrong:
            first = first or f"the residues of row {wrong[0]:,} are not those of the input"
            num_wrong += len(wrong)
    if num_wrong:
        yield f"{first} (affected rows: {num_wrong:,})"


def check_batches(
    table: Any, summary: Summary, group_offsets: NDArray[np.int64] | None
) -> Iterator[str]:
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
    groups = groups_of(batch, group_offsets)
    is_first = np.append(True, np.diff(batch) != 0)
    follows = np.diff(groups[is_first]) == 0
    is_longer = follows & (np.diff(tokens[is_first]) > 0)
    if is_longer.any():
        at = np.unique(batch)[1:][is_longer][0]
        yield f"batch {at:,} begins with a longer sequence than the previous batch"
    if summary.method == "ffd":
        for group in split_groups(groups):
            yield from check_first_fit(batch[group], tokens[group], budget, max_sequences)
    yield from check_ties(table, tokens, groups)


def groups_of(
    batch: NDArray[Any], group_offsets: NDArray[np.int64] | None
) -> NDArray[np.signedinteger[Any]]:
    """Return the group of each batch; 0 without groups."""
    if group_offsets is None:
        return np.zeros(len(batch), np.int64)
    return np.searchsorted(group_offsets, batch, side="right") - 1


def split_groups(groups: NDArray[Any]) -> Iterator[slice]:
    """Yield the places of each group, given those of batches in order."""
    ends = [*(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(groups)]
    yield from map(slice, [0, *ends[:-1]], ends)


def check_ties(table: Any, tokens: NDArray[Any], groups: NDArray[Any]) -> Iterator[str]:
    """Yield an error if sequences with the same number of tokens are not in order of ID and row."""
    if "id" not in table.schema.names:
        return
    order = np.lexsort((-tokens, groups))
    is_equal = (np.diff(tokens[order]) == 0) & (np.diff(groups[order]) == 0)
    ids = table["id"].combine_chunks().cast(pa.large_string()).take(as_arrow(order))
    rows = column(table, "fragment" if is_split(table) else "row")[order]
    before, after = ids.slice(0, max(0, len(ids) - 1)), ids.slice(1)
    is_greater, is_same = bools(pc.greater(before, after)), bools(pc.equal(before, after))
    wrong = is_equal & (is_greater | (is_same & (np.diff(rows) < 0)))
    if wrong.any():
        at = int(np.argmax(wrong))
        before, after = (quoted(ids[place].as_py()) for place in (at, at + 1))
        yield (
            f"sequence {after} comes after {before}, which has the same number of tokens: not in "
            f"order of IDs (cases: {wrong.sum():,})"
        )


def tokens_without_padding(table: Any, file: PlanFile, sequences: Sequences | None) -> int:
    """Return the tokens in batches without padding; if lengths are not known, as in the layout."""
    limits = file.summary.limits
    if is_split(table):
        residues = column(table, "stop") - column(table, "start")
    elif "length" in table.schema.names:
        residues = column(table, "length")
    elif sequences is not None and len(sequences.lengths):
        residues = sequences.lengths.take(column(table, "row"), mode="clip")
    else:
        return file.layout.total_tokens
    kept = np.minimum(residues, limits.max_residues)[column(table, "batch") >= 0]
    return int(kept.sum()) + limits.special_tokens * len(kept)


def compare_totals(table: Any, file: PlanFile, sequences: Sequences | None) -> Iterator[str]:
    """Yield an error for each total of the summary that differs from the rows and the input.

    Totals that are not known, and those that only the input tells if it is not given, are left out.
    """
    summary, limits = file.summary, file.summary.limits
    batch, tokens, row = (column(table, name) for name in ("batch", "tokens", "row"))
    is_packed = batch >= 0
    packed_rows, total = row[is_packed], int(tokens[is_packed].sum())
    if limits.multiple_of > 1:
        total = tokens_without_padding(table, file, sequences)
        if total != file.layout.total_tokens:
            yield f"the layout has {file.layout.total_tokens:,} tokens, expected {total:,}"
    num_batches = len(np.unique(batch[is_packed]))
    budget = limits.max_tokens_per_batch
    distinct, times = np.unique(packed_rows, return_counts=True)
    expected: dict[str, Any] = {
        "read": len(np.unique(row)),
        "packed": len(distinct),
        "dropped": int((~is_packed).sum()),
        "split": int((times > 1).sum()),
        "fragments": int(times[times > 1].sum()),
        "tokens": total,
        "batches": num_batches,
        "efficiency": total / (num_batches * budget) if num_batches else 0.0,
    }
    in_batches = total - limits.special_tokens * len(packed_rows)
    if sequences is not None and ((row >= 0) & (row < len(sequences.lengths))).all():
        lengths = sequences.lengths
        kept = lengths[distinct]
        if not is_split(table):
            kept = np.minimum(kept, limits.max_residues)
        expected.update(
            read=len(lengths),
            truncated=int((lengths[distinct] > kept).sum()),
            residues_kept=int(kept.sum()),
            residues_repeated=in_batches - int(kept.sum()),
            residues_truncated=int((lengths[distinct] - kept).sum()),
        )
        if summary.inputs:
            expected.update(
                asdict(sequences.changes),
                empty=int((lengths == 0).sum()),
                duplicate_ids=sequences.find_duplicates()[0],
                residues=int(lengths.sum()),
                residues_dropped=int(lengths.sum() - lengths[distinct].sum()),
            )
    packer = GreedyPacker(**{**limits.to_dict(), "max_sequence_length": limits.max_residues})
    residues = np.clip(tokens[is_packed] - limits.special_tokens, 0, limits.max_residues)
    order = np.argsort(batch[is_packed], kind="stable")
    groups = groups_of(batch[is_packed][order], file.layout.group_offsets)
    layouts = [
        packer.lay_out(packer.count_silently(residues[order][group]))
        for group in split_groups(groups)
    ]
    first_fit_batches = sum(layout.num_batches for layout in layouts)
    lower_bound = sum(layout.lower_bound for layout in layouts)
    expected["first_fit_batches"] = first_fit_batches
    if summary.method == "ffd":
        expected["lower_bound"] = lower_bound
    elif not lower_bound <= summary.totals.lower_bound <= num_batches:
        yield (
            f"lower_bound is {summary.totals.lower_bound:,} in the summary, expected at least "
            f"{lower_bound:,} and at most {num_batches:,}"
        )
    elif summary.method == "tight" and num_batches > first_fit_batches:
        yield (
            f"the plan has {num_batches:,} batches, more than First-Fit Decreasing makes "
            f"({first_fit_batches:,})"
        )
    for name, value in expected.items():
        recorded = getattr(summary.totals, name)
        if recorded is not None and recorded != value:
            yield f"{name} is {recorded:,} in the summary, expected {value:,}"
