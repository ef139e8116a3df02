"""What `embed_files` runs: the sequences of its input, their plan, and the parts of its output."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.overlong import Fragments, split
from virnucpro.data.packing import GreedyPacker
from virnucpro.data.plan import PackingPlan
from virnucpro.data.records import Record
from virnucpro.files.embeddings import EmbeddingTotals
from virnucpro.files.equal_sequences import find_equal
from virnucpro.files.plan_sequences import PlanSequences
from virnucpro.files.sequences import Sequences
from virnucpro.files.tables import as_arrow
from virnucpro.kernel import tokens_of_batches

# A part has this share of all residues, but at least so many. What a killed run loses is one part.
PART_SHARE = 1 / 1000
MIN_PART_RESIDUES = 2**16
# Bytes of a part, about, and of the rows of it that are written together.
PART_BYTES = 2**28
WRITTEN_BYTES = 2**25


class Part(NamedTuple):
    """A part of the output: the rows of neighboring batches, or some of those without a batch.

    Attributes:
        number: Its number.
        begin: The first batch, or the first of the dropped rows.
        end: The batch after the last, or the end of the dropped rows.
        is_dropped: Whether it has dropped rows.
    """

    number: int
    begin: int
    end: int
    is_dropped: bool


class Sizes(NamedTuple):
    """The bytes that the output takes.

    Attributes:
        per_row: Bytes per row, beside states.
        per_residue: Bytes per residue, for states; 0 without them.
    """

    per_row: int
    per_residue: int


@dataclass(frozen=True)
class Work:
    """The sequences to embed.

    Attributes:
        sequences: All sequences of the input.
        distinct: The row of each sequence of the plan in the input, int64 [m].
        copies: The rows that are equal to each of them, one after the other, int64 [n].
        offsets: The first of the copies of each sequence of the plan, and their number, [m + 1].
        plan: The plan of the distinct sequences.
        parts: The parts of the output, in order.
    """

    sequences: Sequences | PlanSequences
    distinct: NDArray[np.int64]
    copies: NDArray[np.int64]
    offsets: NDArray[np.int64]
    plan: PackingPlan
    parts: list[Part]

    def batch(self, batch: int) -> list[Record]:
        """Return the records of a batch, with the tokens that the plan counted.

        Those that are windows of a longer sequence have `weights`, float32 [residues]: 1 divided by
        the number of windows that have the residue.
        """
        plan = self.plan
        numbers = plan[batch]
        planned = tokens_of_batches(plan.core, batch, batch + 1).tolist()
        fragments = plan.fragments
        rows = numbers if fragments is None else fragments.rows[numbers]
        residues = self.sequences.read(self.distinct[rows])
        ids = self.sequences.ids.take(as_arrow(self.distinct[rows])).to_pylist()
        records: list[Record] = []
        for place, number in enumerate(numbers.tolist()):
            text = residues[place][: plan.limits.max_residues]
            record: Record = {"id": ids[place], "tokens": planned[place]}
            if fragments is not None:
                start, stop = int(fragments.starts[number]), int(fragments.stops[number])
                text = residues[place][start:stop]
                weights = weights_of(fragments, number)
                if weights is not None:
                    record["weights"] = weights
            record["sequence"] = text
            records.append(record)
        return records

    def rows_of(self, part: Part) -> NDArray[np.int64]:
        """Return the sequences of the plan in a part, each once.

        They are in order of batches, or in order of rows if any of the plan was split.
        """
        if part.is_dropped:
            return self.plan.dropped[part.begin : part.end].astype(np.int64)
        offsets = self.plan.offsets
        numbers = self.plan.slice_indices(offsets[part.begin], offsets[part.end])
        if self.plan.fragments is None:
            return numbers.astype(np.int64)
        return np.unique(self.plan.fragments.rows[numbers])

    def kept(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        """Return the residues of sequences of the plan that are embedded, int64."""
        lengths: NDArray[np.int64] = self.sequences.lengths[self.distinct[rows]]
        limit = self.plan.limits.max_residues
        return lengths if self.plan.fragments is not None else np.minimum(lengths, limit)

    def residues_of(self, part: Part) -> int:
        """Return the residues that the model runs for a part."""
        if part.is_dropped:
            return 0
        tokens = tokens_of_batches(self.plan.core, part.begin, part.end)
        return int(tokens.sum()) - self.plan.limits.special_tokens * len(tokens)

    def bytes_of(self, part: Part, sizes: Sizes) -> int:
        """Return the bytes that a part takes, about."""
        rows = self.rows_of(part)
        numbers = self.offsets[rows + 1] - self.offsets[rows]
        residues = 0 if part.is_dropped else int((numbers * self.kept(rows)).sum())
        return sizes.per_row * int(numbers.sum()) + sizes.per_residue * residues

    def copies_of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of the input that are equal to sequences of the plan, in their order.

        Returns:
            The rows, and for each the place in `rows` of the sequence that it is equal to.
        """
        numbers = self.offsets[rows + 1] - self.offsets[rows]
        places = np.repeat(np.arange(len(rows)), numbers)
        moved = np.repeat(self.offsets[rows] - (np.cumsum(numbers) - numbers), numbers)
        return self.copies[np.arange(len(places)) + moved], places

    def hash_rows(self) -> str:
        """Return the SHA-256 of the rows of all parts, in order."""
        digest = hashlib.sha256()
        for part in self.parts:
            rows = self.copies_of(self.rows_of(part))[0]
            digest.update(f"{part.number} {len(rows)}\n".encode())
            digest.update(rows.astype("<i8", copy=False).data)
        return digest.hexdigest()

    def totals(self) -> EmbeddingTotals:
        """Return the totals."""
        plan, lengths = self.plan, self.sequences.lengths
        limit = plan.limits.max_residues
        is_dropped = np.zeros(len(lengths), np.bool_)
        is_dropped[self.copies_of(plan.dropped.astype(np.int64))[0]] = True
        is_overlong = (lengths > limit) & ~is_dropped
        is_split = plan.fragments is not None
        return EmbeddingTotals(
            sequences=len(lengths),
            distinct=len(self.distinct) - len(plan.dropped),
            truncated=0 if is_split else int(is_overlong.sum()),
            split=int(is_overlong.sum()) if is_split else 0,
            empty=int((lengths == 0).sum()),
            dropped=int((is_dropped & (lengths > 0)).sum()),
            residues=int(lengths.sum()),
            residues_truncated=0 if is_split else int((lengths[is_overlong] - limit).sum()),
            residues_dropped=int(lengths[is_dropped].sum()),
            tokens=plan.total_tokens,
            batches=plan.num_batches,
            **asdict(self.sequences.changes),
        )


def weights_of(fragments: Fragments, number: int) -> NDArray[np.float32] | None:
    """Return the share of a fragment in each of its residues; None if its sequence is not split."""
    row = fragments.rows[number]
    begin, end = np.searchsorted(fragments.rows, [row, row + 1])
    if end - begin == 1:
        return None
    positions = np.arange(fragments.starts[number], fragments.stops[number])
    started = np.searchsorted(fragments.starts[begin:end], positions, side="right")
    stopped = np.searchsorted(fragments.stops[begin:end], positions, side="right")
    return (1 / (started - stopped)).astype(np.float32)


def plan_work(
    sequences: Sequences,
    packer: GreedyPacker,
    deduplicate: bool,
    sizes: Sizes,
    progress: Callable[[str, int, int | None], None],
) -> Work:
    """Return the work for sequences of files, which are packed."""
    num_rows = len(sequences.lengths)
    distinct = copies = np.arange(num_rows)
    offsets = np.arange(num_rows + 1)
    if deduplicate:
        firsts = find_equal(sequences, lambda done: progress("comparing", done, num_rows))
        distinct = np.flatnonzero(firsts == distinct)
        # The first of equal rows is the first of its copies, since the sort is stable.
        copies = np.argsort(firsts, kind="stable")
        numbers = np.bincount(firsts, minlength=num_rows)[distinct]
        offsets = np.append(0, np.cumsum(numbers))
    progress("packing", 0, None)
    lengths = sequences.lengths[distinct]
    groups = None
    limit = packer.limits.max_residues
    if packer.overlong == "split" and lengths.max(initial=0) > limit:
        groups = group_split(lengths, np.diff(offsets), limit, int(packer.overlap), sizes)
    ids = sequences.ids.take(as_arrow(distinct))
    plan = packer.pack_silently(lengths, ids, groups)
    return with_parts(Work(sequences, distinct, copies, offsets, plan, []), sizes)


def group_split(
    lengths: NDArray[np.int64],
    numbers: NDArray[np.int64],
    limit: int,
    overlap: int,
    sizes: Sizes,
) -> NDArray[np.int64]:
    """Return a group for each sequence: 0 unless it is split, else one for about a part each.

    So the windows of a sequence are in neighboring batches, and in one part.
    """
    is_split = lengths > limit
    fragments = split(lengths[is_split], limit, overlap)
    run = np.bincount(fragments.rows, fragments.stops - fragments.starts)
    stored = numbers * (sizes.per_row + sizes.per_residue * lengths)
    share = share_of_part(run, stored[is_split], int(lengths.sum()))
    groups = np.zeros(len(lengths), np.int64)
    groups[is_split] = 1 + number_shares(share)
    return groups


def share_of_part(
    residues: NDArray[Any], num_bytes: NDArray[Any], total: int
) -> NDArray[np.float64]:
    """Return which share of a part each item takes, given what it runs and what it writes."""
    size = max(MIN_PART_RESIDUES, PART_SHARE * total)
    return np.maximum(residues / size, num_bytes / PART_BYTES)


def number_shares(shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the number of the part of each item, from 0 without gaps."""
    numbers = np.floor(np.cumsum(shares) - shares)
    return np.cumsum(np.diff(numbers, prepend=0) > 0)


def with_parts(work: Work, sizes: Sizes) -> Work:
    """Return work with its parts."""
    plan = work.plan
    offsets = plan.offsets
    numbers = plan.indices if plan.fragments is None else plan.fragments.rows[plan.indices]
    rows = (work.offsets[1:] - work.offsets[:-1])[numbers]
    tokens = plan.batch_tokens
    run = tokens - plan.limits.special_tokens * np.diff(offsets)
    stored = rows * sizes.per_row
    if sizes.per_residue:
        stored = stored + rows * work.kept(numbers) * sizes.per_residue
    stored = np.add.reduceat(stored, offsets[:-1]) if len(stored) else stored
    total = int(work.sequences.lengths[work.distinct].sum())
    parts_of = number_shares(share_of_part(run, stored, total))
    groups = plan.group_offsets
    if groups is not None and plan.fragments is not None:
        # The batches of a group of split sequences are one part. The first group has the others.
        has_others = work.sequences.lengths[work.distinct] <= plan.limits.max_residues
        groups = groups[int(has_others.any()) :]
        first = int(groups[0])
        after = np.repeat(np.arange(1, len(groups)), np.diff(groups))
        parts_of[first:] = parts_of[:first].max(initial=-1) + after
    begins = np.flatnonzero(np.diff(parts_of, prepend=-1) != 0)
    bounds = [*begins.tolist(), plan.num_batches]
    parts = [
        Part(number, begin, end, is_dropped=False)
        for number, (begin, end) in enumerate(itertools.pairwise(bounds))
    ]
    most = max(1, PART_BYTES // sizes.per_row)
    for begin in range(0, len(plan.dropped), most):
        end = min(begin + most, len(plan.dropped))
        parts.append(Part(len(parts), begin, end, is_dropped=True))
    return replace(work, parts=parts)


def chunks_of(
    work: Work, places: NDArray[np.int64], rows: NDArray[Any], sizes: Sizes
) -> Iterator[slice]:
    """Yield ranges of the rows of a part that are written together."""
    stored = np.full(len(places), sizes.per_row)
    if sizes.per_residue:
        stored = stored + work.kept(rows)[places] * sizes.per_residue
    chunks = np.cumsum(stored) // WRITTEN_BYTES
    bounds = [*np.flatnonzero(np.diff(chunks, prepend=-1)).tolist(), len(places)]
    yield from (slice(begin, end) for begin, end in itertools.pairwise(bounds))
