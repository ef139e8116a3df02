"""Sequences that exceed the limit on length: truncated, dropped or split."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.layout import TokenCounts
from virnucpro.data.records import Record, check_sequence
from virnucpro.kernel.arguments import OrderedIds, take_ids

# Messages are those of the packer, whichever module handles the sequences.
logger = logging.getLogger("virnucpro.data.packing")

# What can be done with sequences above the limit.
OVERLONG = ("truncate", "error", "drop", "split")


class Fragments(NamedTuple):
    """The fragments of a plan in which any sequence was split, in order of rows and positions.

    A sequence that was not split is one fragment.

    Attributes:
        rows: The row of the sequence that each fragment is part of, int64 [fragments].
        starts: The position of its first residue in the sequence, from 0, int64 [fragments].
        stops: The position after its last residue, int64 [fragments].
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]


def split(lengths: NDArray[Any], max_residues: int, overlap: int) -> Fragments:
    """Return the fragments of sequences.

    Each fragment but the last of a sequence has `max_residues` residues, and shares its last
    `overlap` residues with the next one. Cost: O(fragments).
    """
    longest = lengths.max(initial=0)
    if longest > 2**62:
        raise OverflowError(f"the number of fragments does not fit in 64 bits (longest: {longest})")
    lengths = lengths.astype(np.int64, copy=False)
    step = max_residues - overlap
    numbers = 1 + -(-np.maximum(0, lengths - max_residues) // step)
    if numbers.sum(dtype=np.float64) > 2.0**62:
        raise OverflowError("the number of fragments does not fit in 64 bits")
    rows = np.repeat(np.arange(len(lengths)), numbers)
    before = np.cumsum(numbers) - numbers
    starts = (np.arange(len(rows)) - before[rows]) * step
    return Fragments(rows, starts, np.minimum(starts + max_residues, lengths[rows]))


class Chosen(NamedTuple):
    """The sequences to pack.

    Attributes:
        lengths: Residues of each, [n].
        ids: Their IDs, in the form that the kernel sorts; None without IDs.
        rows: The row of each, int32 or int64 [n]; None if no row was dropped.
        dropped: The other rows, of the same type; None if no row was dropped.
        fragments: The fragments, if any sequence was split.
    """

    lengths: NDArray[Any]
    ids: OrderedIds | None
    rows: NDArray[Any] | None = None
    dropped: NDArray[Any] | None = None
    fragments: Fragments | None = None


def choose(
    lengths: NDArray[Any], ids: OrderedIds | None, limit: int, overlong: str, overlap: int
) -> Chosen:
    """Return the sequences to pack, after sequences above the limit were dropped or split."""
    if overlong not in ("drop", "split") or lengths.max(initial=0) <= limit:
        return Chosen(lengths, ids)
    check_not_negative(lengths)
    if overlong == "drop":
        warn_of_dropped(lengths, limit)
        kept = lengths <= limit
        rows = np.flatnonzero(kept)
        number = np.int32 if len(lengths) < 2**31 else np.int64
        return Chosen(
            lengths[rows],
            None if ids is None else take_ids(ids, rows),
            rows.astype(number),
            np.flatnonzero(~kept).astype(number),
        )
    fragments = split(lengths, limit, overlap)
    return Chosen(
        fragments.stops - fragments.starts,
        None if ids is None else take_ids(ids, fragments.rows),
        fragments=fragments,
    )


def check_not_negative(lengths: NDArray[Any]) -> None:
    """Raise ValueError, with the position among all sequences, if a length is negative."""
    if lengths.min() < 0:
        position = np.argmax(lengths < 0)
        raise ValueError(f"lengths[{position}] is negative (got {lengths[position]})")


def choose_records(
    records: list[Record], lengths: NDArray[Any], limit: int, overlong: str, overlap: int
) -> list[Record]:
    """Return records without those above the limit ("drop"), or with their fragments ("split").

    Fragments are copies of the record with a part of the `sequence`, from `start` to `stop`.
    """
    chosen = choose(lengths, None, limit, overlong, overlap)
    if chosen.fragments is None:
        return [records[row] for row in np.flatnonzero(lengths <= limit).tolist()]
    is_overlong = lengths > limit
    result = []
    columns = (values.tolist() for values in chosen.fragments)
    for row, start, stop in zip(*columns, strict=True):
        record = records[row]
        if is_overlong[row]:
            # The record may have changed since its length was read.
            part = check_sequence(record, "sequences", row)[start:stop]
            record = {**record, "sequence": part, "start": start, "stop": stop}
        result.append(record)
    return result


def describe_overlong(name: str, lengths: NDArray[Any], limit: int) -> str:
    """Return the error message for lengths above the limit; `name` is the first such sequence."""
    overlong = lengths > limit
    return (
        f"{name} exceeds max_length ({lengths[np.argmax(overlong)]} > {limit}); "
        f"sequences above the limit: {np.count_nonzero(overlong):,} of {len(lengths):,}"
    )


def warn_of_truncation(counts: TokenCounts) -> None:
    """Log the number of truncated sequences, if any."""
    if counts.num_truncated:
        logger.warning(
            "%s of %s sequences exceed max_length (%d), truncating: %s residues removed",
            f"{counts.num_truncated:,}",
            f"{counts.num_sequences:,}",
            counts.limits.max_residues,
            f"{counts.truncated_residues:,}",
        )


def warn_of_dropped(lengths: NDArray[Any], limit: int) -> None:
    """Log the number of sequences dropped because they exceed the limit, if any."""
    overlong = lengths > limit
    number = np.count_nonzero(overlong)
    if number:
        logger.warning(
            "%s of %s sequences exceed max_length (%d), dropping: %s residues",
            f"{number:,}",
            f"{len(lengths):,}",
            limit,
            f"{int(lengths[overlong].sum(dtype=object)):,}",
        )
