"""Runs the parts of `embed_files`, and writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.files.embedding_parts import (
    FailedSequence,
    Rows,
    StoredPart,
    check_space,
    find_parts,
    make_folder,
    write_part,
)
from virnucpro.files.embeddings import EmbeddingSummary
from virnucpro.files.tables import as_arrow
from virnucpro.jobs.embed_work import Part, Sizes, Work, chunks_of, weights_of
from virnucpro.model.embedder import Embedder, Pooled

# Called with the stage, what is done, and the total or None.
Progress = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True)
class EmbeddingRun:
    """What `embed_files` did.

    Attributes:
        summary: The summary that each part stores.
        parts: Number of parts of the whole output.
        complete: Number of parts that are in the folder.
        written: Number of parts that this run wrote.
        failed: The sequences of the parts written that have no embedding because the model failed.
        unknown: Number of occurrences of each residue that is not in the model's vocabulary, in
            what the model ran.
    """

    summary: EmbeddingSummary
    parts: int
    complete: int
    written: int
    failed: list[FailedSequence]
    unknown: dict[str, int]


class Job:
    """Runs the parts of some work, and writes them."""

    def __init__(
        self,
        folder: str,
        embedder: Embedder,
        work: Work,
        summary: EmbeddingSummary,
        sizes: Sizes,
        progress: Progress,
    ) -> None:
        self.folder = folder
        self.embedder = embedder
        self.work = work
        self.summary = summary
        self.sizes = sizes
        self.progress = progress
        self.dtype = summary.embedding_dtype

    def run(self, stored: list[StoredPart], share: tuple[int, int]) -> EmbeddingRun:
        """Run the parts of a share that are left, and return what was done."""
        work, plan = self.work, self.work.plan
        mine = work.parts[share[0] - 1 :: share[1]]
        done = {part.number for part in stored if not part.failed}
        left = [part for part in mine if part.number not in done]
        check_space(self.folder, sum(work.bytes_of(part, self.sizes) for part in left))
        residues = [work.residues_of(part) for part in mine]
        self.total = sum(residues)
        self.done = self.total - sum(work.residues_of(part) for part in left)
        self.progress("embedding", self.done, self.total)
        failed: list[FailedSequence] = []
        if left:
            make_folder(self.folder)
            if plan.num_batches:
                self.embedder.set_shape(plan.limits.usable_tokens, plan.max_sequences)
            batches = (
                work.batch(batch)
                for part in left
                if not part.is_dropped
                for batch in range(part.begin, part.end)
            )
            states = self.dtype if self.summary.states else None
            results = self.embedder.run(batches, states)
            with closing(results), ThreadPoolExecutor(1) as writer:
                writing: Future[None] | None = None
                for part in left:
                    some_rows, failed_here, num_unknown = self._embed(part, results)
                    failed += failed_here
                    if writing is not None:
                        # At most two parts are in memory.
                        writing.result()
                    writing = writer.submit(
                        write_part,
                        self.folder,
                        part.number,
                        len(work.parts),
                        self.summary,
                        work.sequences.inputs,
                        failed_here,
                        num_unknown,
                        some_rows,
                    )
                if writing is not None:
                    writing.result()
        # Those of other shards may have been written meanwhile.
        complete = len(find_parts(self.folder)) if share[1] > 1 else len(done) + len(left)
        unknown = dict(self.embedder.collator.unknown_residues)
        return EmbeddingRun(self.summary, len(work.parts), complete, len(left), failed, unknown)

    def _embed(
        self, part: Part, results: Iterator[Pooled]
    ) -> tuple[Iterator[Rows], list[FailedSequence], int]:
        """Return the rows of a part, what failed, and the number of unknown residues."""
        work, plan = self.work, self.work.plan
        rows = work.rows_of(part)
        kept = work.kept(rows)
        width = self.embedder.width
        sums = np.zeros((len(rows), width), np.float32)
        values: list[NDArray[Any] | None] = [None] * len(rows)
        reasons: dict[int, str] = {}
        num_unknown = num_done = 0
        for batch in range(part.begin, part.end) if not part.is_dropped else ():
            numbers = plan[batch]
            fragments = plan.fragments
            if fragments is None:
                places = np.arange(num_done, num_done + len(numbers))
            else:
                places = np.searchsorted(rows, fragments.rows[numbers])
            num_done += len(numbers)
            pooled = next(results)
            num_unknown += pooled.num_unknown
            np.add.at(sums, places, pooled.sums)
            for number, reason in pooled.failed.items():
                reasons.setdefault(int(places[number]), reason)
            if self.summary.states:
                self._add_states(values, places, pooled, numbers, kept)
            self.done += int(plan.tokens(batch).sum()) - plan.special_tokens * len(numbers)
            self.progress("embedding", self.done, self.total)
        is_missing = np.full(len(rows), part.is_dropped) | (kept == 0)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            embeddings = (sums / kept[:, None]).astype(self.dtype)
        wrong = ~np.isfinite(embeddings).all(axis=1) & ~is_missing
        for place in np.flatnonzero(wrong).tolist():
            reasons.setdefault(place, f"its embedding does not fit in {self.dtype}")
        for place, value in enumerate(values):
            if value is not None:
                with np.errstate(over="ignore"):
                    values[place] = value = value.astype(self.dtype, copy=False)
                if not np.isfinite(value).all():
                    reasons.setdefault(place, f"its states do not fit in {self.dtype}")
        is_missing[list(reasons)] = True
        embeddings[is_missing] = 0
        for place in np.flatnonzero(is_missing).tolist():
            values[place] = None
        failed = []
        for place, reason in sorted(reasons.items()):
            row = int(work.distinct[rows[place]])
            failed.append(FailedSequence(row, work.sequences.ids[row].as_py(), reason))
        some_rows = self._rows(part, rows, embeddings, is_missing, values)
        return some_rows, failed, num_unknown

    def _add_states(
        self,
        values: list[NDArray[Any] | None],
        places: NDArray[np.int64],
        pooled: Pooled,
        numbers: NDArray[Any],
        kept: NDArray[np.int64],
    ) -> None:
        """Add the states of a batch to those of the sequences of a part."""
        fragments = self.work.plan.fragments
        for number, place, states in zip(
            numbers.tolist(), places.tolist(), pooled.states, strict=True
        ):
            if fragments is None or states is None or len(states) == kept[place]:
                values[place] = states
                continue
            total = values[place]
            if total is None:
                total = values[place] = np.zeros((kept[place], states.shape[1]), np.float32)
            start, stop = fragments.starts[number], fragments.stops[number]
            weights = weights_of(fragments, number)
            assert weights is not None
            total[start:stop] += weights[:, None] * states

    def _rows(
        self,
        part: Part,
        rows: NDArray[np.int64],
        embeddings: NDArray[Any],
        is_missing: NDArray[np.bool_],
        values: list[NDArray[Any] | None],
    ) -> Iterator[Rows]:
        """Yield rows of the output, those equal to a sequence after it."""
        work = self.work
        copies, places = work.copies_of(rows)
        sequences = work.sequences
        # Dropped ones are not truncated.
        is_whole = part.is_dropped or work.plan.fragments is not None
        limit = work.plan.limits.max_residues
        for chosen in chunks_of(work, places, rows, self.sizes):
            some, of = copies[chosen], places[chosen]
            lengths = sequences.lengths[some]
            yield Rows(
                sequences.ids.take(as_arrow(some)),
                embeddings[of],
                is_missing[of],
                lengths,
                np.zeros(len(some), np.bool_) if is_whole else lengths > limit,
                sequences.file_of(some),
                some,
                [values[place] for place in of.tolist()] if self.summary.states else None,
            )
