"""One pass over a stream in one process: what it gives out, and where it is."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch.utils.data import get_worker_info
from torch.utils.data._utils import worker as torch_worker

from virnucpro.data.overlong import describe_overlong, find_dropped, split
from virnucpro.kernel.arguments import take_ids
from virnucpro.model.cut_records import describe
from virnucpro.model.datasets import SharedDataset
from virnucpro.model.open_batches import Batch, OpenBatches, Part, largest_first, split_evenly
from virnucpro.model.stream_totals import Totals
from virnucpro.model.workers import sendable_errors

if TYPE_CHECKING:
    from virnucpro.model.stream import PackedStream


class Segment(NamedTuple):
    """Batches that are given out in steps of one per rank, until a state is loaded.

    Attributes:
        first: The number of its first batch.
        world_size: The number of ranks.
    """

    first: int
    world_size: int

    def find_tail(self, num_closed: int) -> int:
        """Return the number of the first closed batch whose step has too few to be given out."""
        behind = max(0, num_closed - self.first)
        return self.first + behind - behind % self.world_size


class Buffered(NamedTuple):
    """What was read of a stream and may be needed again, at the beginning of a buffer.

    Attributes:
        dataset: The state of the data set; None at its beginning.
        opened: The batches that have room.
        kept: Batches that were closed.
        first_kept: The number of the first of them.
        num_rows: The number of records that were read.
    """

    dataset: Any
    opened: list[Batch]
    kept: list[Batch]
    first_kept: int
    num_rows: int

    def to_dict(self) -> dict[str, Any]:
        """Return the value as plain lists and numbers."""
        opened, kept = (
            [[list(part[:-1]) for part in batch] for batch in batches]
            for batches in (self.opened, self.kept)
        )
        return {**self._asdict(), "opened": opened, "kept": kept}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Buffered:
        """Return the value from the result of `to_dict`."""
        opened, kept = (
            [[Part(*part) for part in batch] for batch in state[name]]
            for name in ("opened", "kept")
        )
        return cls(**{**state, "opened": opened, "kept": kept})


NOTHING = Buffered(None, [], [], 0, 0)


class Epoch:
    """One pass over a stream in one process.

    Batches are numbered over all ranks. Each step of a segment has a batch of every rank, and the
    steps of a rank go to its workers in turn.

    Args:
        stream: The stream.
        segments: Those of the pass up to now; the batches of the last one are given out here.
        num_given: The number of batches in steps that were given out before.
        buffered: Where to begin to read.

    Attributes:
        num_given: The number of batches in steps up to the last one that was given out here.
        buffered: Where to begin to read, to give out the next step.
    """

    def __init__(
        self, stream: PackedStream, segments: list[Segment], num_given: int, buffered: Buffered
    ) -> None:
        self.stream = stream
        self.segments = segments
        self.num_given = num_given
        self.buffered = buffered
        self.totals = Totals()
        self.rank, self.place, self.num_places = 0, 0, 1
        if stream.even:
            self.rank = stream.find_rank()[0]
            worker = get_worker_info()
            if worker is not None:
                self.place, self.num_places = worker.id, worker.num_workers
        self._open = OpenBatches(stream.packer.limits, list(map(list, buffered.opened)))
        self._kept = list(buffered.kept)
        self._first_kept = buffered.first_kept
        self._num_rows = buffered.num_rows

    @property
    def num_closed(self) -> int:
        """The number of batches that were closed, on all ranks."""
        return self._first_kept + len(self._kept)

    def run(self) -> Iterator[Any]:
        """Yield the batches of this rank and worker."""
        with sendable_errors():
            try:
                yield from self._complete_steps()
                yield from self._last_steps()
            finally:
                if self.rank == self.place == 0:
                    self.totals.log(self.stream.packer)

    def _complete_steps(self) -> Iterator[Any]:
        segment = self.segments[-1]
        for closed in self._read():
            for batch in closed:
                self._kept.append(batch)
                if self.num_closed >= segment.first:
                    # No earlier step was split, since the stream goes on.
                    self.segments = [segment]
                end = segment.find_tail(self.num_closed)
                if end == self.num_closed > segment.first:
                    yield from self._give(end - segment.world_size)
                # The steps at the end of a segment may have been split at the first of these.
                first = min(other.find_tail(self.num_closed) for other in self.segments)
                num_done = min(first, self.num_closed) - self._first_kept
                if num_done > 0:
                    del self._kept[:num_done]
                    self._first_kept += num_done

    def _last_steps(self) -> Iterator[Any]:
        num_closed = self.num_closed
        self._kept += self._open.close(max_open=0)
        for segment, following in itertools.pairwise([*self.segments, None]):
            assert segment is not None
            begin = segment.find_tail(num_closed)
            if following is None or following.first > begin:
                if begin > self.num_closed:
                    break
                place = begin - self._first_kept
                self._kept[place:] = split_evenly(self._kept[place:], segment.world_size)
        if self.num_given > self.num_closed:
            raise ValueError(
                f"the state is for another stream: {self.num_given:,} batches were given out, this "
                f"one has {self.num_closed:,}"
            )
        for step in range(begin, self.num_closed, self.segments[-1].world_size):
            yield from self._give(step)

    def _give(self, begin: int) -> Iterator[Any]:
        """Yield the batch of the step that begins with a batch, if it is given out here."""
        first, world_size = self.segments[-1]
        is_next = begin + world_size > self.num_given
        if is_next and (begin - first) // world_size % self.num_places == self.place:
            self.num_given = begin + world_size
            yield self.stream.make(self._kept[begin + self.rank - self._first_kept])

    def _read(self) -> Iterator[list[Batch]]:
        """Yield the batches that are closed after each buffer but the last."""
        stream = self.stream
        dataset: Any = stream.dataset
        is_stateful = hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")
        # A data set must not share out records, of which each worker needs all.
        is_hidden = stream.even and not isinstance(dataset, SharedDataset)
        stream.seek(self.buffered.dataset)
        with hidden_worker() if is_hidden else nullcontext():
            records = iter(dataset)
        for number in itertools.count():
            if is_stateful and number > 0:
                self.buffered = Buffered(
                    copy.deepcopy(dataset.state_dict()),
                    list(map(list, self._open.batches)),
                    list(self._kept),
                    self._first_kept,
                    self._num_rows,
                )
            with hidden_worker() if is_hidden else nullcontext():
                buffer = list(itertools.islice(records, stream.buffer_size))
            self._open.add(self._choose(buffer))
            if len(buffer) < stream.buffer_size:
                return
            yield self._open.close(stream.max_open)

    def _choose(self, records: list[Any]) -> list[Part]:
        """Return the sequences of a buffer that are packed, in the order in which they are."""
        packer = self.stream.packer
        limits, overlong, empty = packer.limits, packer.overlong, packer.empty
        limit = limits.max_residues
        lengths, ids, extras = self.stream.measure(records, self._num_rows)

        def name(row: int) -> str:
            return describe(records[row], self._num_rows + row)

        packer.check_documents(lengths, name)
        if overlong == "error" and lengths.max(initial=0) > limit:
            row = int(np.argmax(lengths > limit))
            raise ValueError(describe_overlong(name(row), lengths, limits))
        is_dropped = find_dropped(lengths, limit, overlong, empty)
        rows = np.arange(len(records)) if is_dropped is None else np.flatnonzero(~is_dropped)
        starts, stops = np.zeros(len(rows), np.int64), np.minimum(lengths[rows], limit)
        if overlong == "split":
            places, starts, stops = split(lengths[rows], limit, packer.overlap)
            rows = rows[places]
        self.totals.add(lengths, limit, overlong, empty)
        tokens = limits.tokens(stops - starts)
        order = largest_first(
            tokens, None if ids is None else take_ids(ids, rows), packer.num_threads
        )
        rows, starts, stops, tokens = (values[order] for values in (rows, starts, stops, tokens))
        chosen = rows.tolist()
        parts = map(
            Part,
            [records[row] for row in chosen],
            (self._num_rows + rows).tolist(),
            starts.tolist(),
            stops.tolist(),
            lengths[rows].tolist(),
            tokens.tolist(),
            itertools.repeat(None) if extras is None else [extras[row] for row in chosen],
        )
        self._num_rows += len(records)
        return list(parts)


@contextmanager
def hidden_worker() -> Iterator[None]:
    """Let `torch.utils.data.get_worker_info` return None, as outside of workers."""
    names = vars(torch_worker)
    worker = names["_worker_info"]
    names["_worker_info"] = None
    try:
        yield
    finally:
        names["_worker_info"] = worker
