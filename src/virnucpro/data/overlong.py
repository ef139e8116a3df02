"""Sequences that exceed the limit on length, truncated, dropped or split; and empty sequences."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.layout import TokenCounts
from virnucpro.data.records import Record, check_sequence
from virnucpro.kernel.arguments import OrderedIds, take_ids
from virnucpro.kernel.limits import Limits
from virnucpro.text import percent

if TYPE_CHECKING:
    from virnucpro.data.plan import PackingPlan

# Messages are those of the packer, whichever module handles the sequences.
logger = logging.getLogger("virnucpro.data.packing")

# What can be done with sequences above the limit.
OVERLONG = ("truncate", "error", "drop", "split")
# What can be done with sequences without residues.
EMPTY = ("pack", "drop")


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


class Split(NamedTuple):
    """How much was split.

    Attributes:
        sequences: Sequences that are several fragments.
        fragments: Their fragments.
        residues_repeated: Residues that are in a fragment and in the one before it too.
    """

    sequences: int
    fragments: int
    residues_repeated: int


NO_SPLIT = Split(0, 0, 0)


def count_split(fragments: Fragments | None) -> Split:
    """Return how much was split."""
    if fragments is None:
        return NO_SPLIT
    times = np.bincount(fragments.rows)
    follows = fragments.rows[1:] == fragments.rows[:-1]
    repeated = (fragments.stops[:-1] - fragments.starts[1:])[follows].sum()
    return Split(int((times > 1).sum()), int(times[times > 1].sum()), int(repeated))


class Chosen(NamedTuple):
    """The sequences to pack.

    Attributes:
        lengths: Residues of each, [n].
        ids: Their IDs, in the form that the kernel sorts; None without IDs.
        rows: The row of each sequence or fragment, int32 or int64 [n]; None if no row was dropped
            or split.
        dropped: The rows that were dropped, of the same type; None if none was.
        fragments: The fragments, if any sequence was split.
    """

    lengths: NDArray[Any]
    ids: OrderedIds | None
    rows: NDArray[Any] | None = None
    dropped: NDArray[Any] | None = None
    fragments: Fragments | None = None

    def numbers(self, places: NDArray[Any]) -> NDArray[Any]:
        """Return the numbers in a plan of the sequences at these places."""
        if self.rows is None or self.fragments is not None:
            return places
        rows: NDArray[Any] = self.rows[places]
        return rows


def choose(
    lengths: NDArray[Any],
    ids: OrderedIds | None,
    limit: int,
    overlong: str,
    overlap: int,
    empty: str,
) -> Chosen:
    """Return the sequences to pack, after others were dropped, and those above the limit split."""
    is_dropped = find_dropped(lengths, limit, overlong, empty)
    is_split = overlong == "split" and lengths.max(initial=0) > limit
    if is_dropped is None and not is_split:
        return Chosen(lengths, ids)
    check_not_negative(lengths)
    rows, dropped, fragments = np.arange(len(lengths)), None, None
    if is_dropped is not None:
        rows, dropped = np.flatnonzero(~is_dropped), np.flatnonzero(is_dropped)
    packed = lengths[rows]
    if is_split:
        parts = split(packed, limit, overlap)
        rows = rows[parts.rows]
        packed, fragments = parts.stops - parts.starts, parts._replace(rows=rows)
    # Those of fragments may be more than those of rows.
    number = np.int32 if max(len(lengths), len(packed)) < 2**31 else np.int64
    return Chosen(
        packed,
        None if ids is None else take_ids(ids, rows),
        rows.astype(number),
        None if dropped is None else dropped.astype(number),
        fragments,
    )


def find_dropped(
    lengths: NDArray[Any], limit: int, overlong: str, empty: str
) -> NDArray[np.bool_] | None:
    """Return whether each sequence is dropped; None if none is.

    Raises:
        ValueError: Some are dropped, and a length is negative.
    """
    has_overlong = overlong == "drop" and lengths.max(initial=0) > limit
    has_empty = empty == "drop" and lengths.min(initial=1) < 1
    if not has_overlong and not has_empty:
        return None
    # Positions in messages must be those among all sequences.
    check_not_negative(lengths)
    is_dropped = np.zeros(len(lengths), np.bool_)
    if has_overlong:
        is_dropped |= lengths > limit
    if has_empty:
        is_dropped |= lengths == 0
    return is_dropped


def check_not_negative(lengths: NDArray[Any]) -> None:
    """Raise ValueError, with the position among all sequences, if a length is negative."""
    if lengths.min() < 0:
        position = np.argmax(lengths < 0)
        raise ValueError(f"lengths[{position}] is negative (got {lengths[position]})")


def take_records(
    records: list[Record], chosen: Chosen, lengths: NDArray[Any], limit: int
) -> list[Record]:
    """Return the records of the sequences to pack, given the lengths of all, and their limit.

    Fragments are copies of the record with a part of the `sequence`, from `start` to `stop`.
    """
    if chosen.rows is None:
        return records
    if chosen.fragments is None:
        return [records[row] for row in chosen.rows.tolist()]
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


def describe_overlong(name: str, lengths: NDArray[Any], limits: Limits) -> str:
    """Return the error message for lengths above the limit; `name` is the first such sequence."""
    limit = limits.max_residues
    overlong = lengths > limit
    return (
        f"{name} exceeds {limits.bound} ({lengths[np.argmax(overlong)]} > {limit}); "
        f"sequences above the limit: {np.count_nonzero(overlong):,} of {len(lengths):,}"
    )


def warn_of_truncation(counts: TokenCounts | PackingPlan, hint: str = "") -> None:
    """Log the number of truncated sequences of counts or a plan, if any; `hint` is the remedy."""
    if counts.num_truncated:
        limits, removed = counts.limits, counts.truncated_residues
        kept = counts.total_tokens - limits.special_tokens * counts.num_sequences
        logger.warning(
            "%s of %s sequences exceed %s (%d), truncating: %s residues removed, %s of all%s",
            f"{counts.num_truncated:,}",
            f"{counts.num_sequences:,}",
            limits.bound,
            limits.max_residues,
            f"{removed:,}",
            percent(removed / (kept + removed)),
            hint,
        )


class Dropped(NamedTuple):
    """The numbers of sequences that are dropped.

    Attributes:
        overlong: Sequences dropped because they are too long.
        residues: Their residues.
        empty: Sequences dropped because they have no residues.
    """

    overlong: int
    residues: int
    empty: int


def count_dropped(lengths: NDArray[Any], limit: int, overlong: str, empty: str) -> Dropped:
    """Return the numbers of sequences that are dropped."""
    dropped = lengths[lengths > limit] if overlong == "drop" else lengths[:0]
    num_empty = int(np.count_nonzero(lengths == 0)) if empty == "drop" else 0
    return Dropped(len(dropped), int(dropped.sum(dtype=object)), num_empty)


def warn_of_dropped(dropped: Dropped, num_sequences: int, limits: Limits) -> None:
    """Log the numbers of sequences dropped because they exceed the limit or are empty, if any."""
    if dropped.overlong:
        logger.warning(
            "%s of %s sequences exceed %s (%d), dropping: %s residues",
            f"{dropped.overlong:,}",
            f"{num_sequences:,}",
            limits.bound,
            limits.max_residues,
            f"{dropped.residues:,}",
        )
    if dropped.empty:
        logger.warning(
            "%s of %s sequences are empty, dropping", f"{dropped.empty:,}", f"{num_sequences:,}"
        )
