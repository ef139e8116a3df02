"""`PackedStream`: the records of a stream in packed batches."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from virnucpro.data.packing import GreedyPacker
from virnucpro.data.records import Record
from virnucpro.kernel.arguments import OrderedIds, check_bool, check_ids, check_integer
from virnucpro.model.cut_records import check_record, cut_record, describe
from virnucpro.model.datasets import SharedDataset
from virnucpro.model.open_batches import Batch, Part
from virnucpro.model.packed_datasets import PlannedBatch
from virnucpro.model.ranks import check_rank
from virnucpro.model.sharing import check_stream_reader
from virnucpro.model.stream_epoch import NOTHING, Buffered, Epoch, Segment
from virnucpro.text import quoted

logger = logging.getLogger(__name__)

# The version of states. Increase it if the same state would yield other batches.
STATE_VERSION = 1
# The maximum number of workers of a DataLoader.
MAX_WORKERS = 4096
# By default, so many batches stay open: with more, batches are hardly fuller.
MAX_OPEN = 8


class Measured(NamedTuple):
    """What must be known of records to pack them.

    Attributes:
        lengths: Residues or tokens of each record, without special tokens, int64 [n].
        ids: Their IDs, in the form that the kernel sorts; None if a record has none.
        extras: The tokens of each record, if it was tokenized to measure it; otherwise None.
    """

    lengths: NDArray[np.int64]
    ids: OrderedIds | None
    extras: list[Any] | None = None


class PackedStream(SharedDataset):
    r"""The records of a stream in packed batches, as lists of records.

    For ``DataLoader(stream, batch_size=None, collate_fn=...)``. `buffer_size` records are read at a
    time. Their sequences are placed in order of decreasing size, each in the first open batch with
    room, or in a new one. After each buffer, batches without room are closed, and of the others the
    fullest ones, until at most `max_open` stay open for the next buffer. So small buffers give full
    batches too, and no batch exceeds the budget. A stream of fewer records than a buffer is packed
    as by `GreedyPacker`.

    Records are dicts with a `sequence` or `input_ids`. They are cut as `PackedDataset` cuts them:
    those above the limit are truncated, with ``truncated=True``, split into fragments, dropped, or
    an error, as the packer's `overlong` says; `labels` and whatever else is as long as the sequence
    is cut with it. With overlong="split", all records have their positions, `start` and `stop`.
    `row` is the number of the record in the stream, and `tokens` its number of tokens, which
    `VarlenCollator` checks. To `input_ids`, nothing is added, so the packer must have
    ``special_tokens=0`` for them. In a batch, the longest sequence comes first; ties between equal
    sizes of a buffer are broken by `id`, if all its records have one, and then by order.

    Training with collectives requires that all ranks have equally many batches. With `even`, each
    rank and each worker of a DataLoader reads and packs all records, by their lengths alone, and
    takes its own batches: batch b belongs to rank ``b % world_size``. A step, the batches
    ``step * world_size`` to ``(step + 1) * world_size - 1``, is given out when its last batch is
    closed. At the end of the stream, the batches that are left are split, those with the most
    sequences into halves, until all ranks have equally many. The batches of a rank are the same,
    in the same order, with any number of workers. Without `even`, the data set shares out its
    records among ranks and workers itself; each packs those that it gets.

    `state_dict` and `load_state_dict` resume a pass over the stream. torchdata's
    ``StatefulDataLoader`` calls them; with a number of steps, they also work with a DataLoader. If
    the data set has a state, resuming is as exact as this state: data sets of Hugging Face that
    are shuffled lose what is in their shuffle buffer.

    Args:
        dataset: The records, an ``IterableDataset``. With `even`, it must yield the same records in
            the same order in each process; `torch.utils.data.get_worker_info` returns None while it
            is read, so that it does not share them out among workers. It must not share them out
            among ranks.
        packer: The limits, and how to handle sequences that exceed them. It is copied.
        buffer_size: Number of records that are read at a time.
        max_open: Number of batches that stay open after a buffer.
        even: Whether all ranks have equally many batches. If None, True for `SequenceDataset`, and
            False for other data sets, with a WARNING if several ranks or workers read it.
        rank: The rank of this process. If None, that of `torch.distributed` or torchrun.
        world_size: The number of ranks; given together with `rank`.

    Raises:
        ValueError: A parameter is out of range. During iteration: a record has no `sequence` and no
            `input_ids`, has a key that is added, has no tokens in its `input_ids` (pack with
            empty="drop"), or exceeds the limit with overlong="error", or the default limit without
            special tokens; or the last batches have too few sequences for all ranks (with `even`).
        TypeError: A parameter has the wrong type. During iteration: a record is not a dict, or IDs
            have mixed types.

    At the end of a pass, a WARNING each reports the sequences that were truncated and those that
    were dropped in it, by the first worker of the first rank or, without `even`, by each worker.

    Cost: O(log n) per sequence, for buffers of n records. Memory for a buffer, the open batches,
    and the batches of a step. With `even`, each worker reads all records.

    Example:
        >>> from torch.utils.data import IterableDataset
        >>> from virnucpro.data import GreedyPacker, PackedStream
        >>> class Documents(IterableDataset):
        ...     def __iter__(self):
        ...         for length in (3, 6, 4, 5, 2):
        ...             yield {"input_ids": list(range(length))}
        >>> stream = PackedStream(Documents(), GreedyPacker.for_documents(10))
        >>> [[len(record["input_ids"]) for record in batch] for batch in stream]
        [[6, 4], [5, 3, 2]]
    """

    def __init__(
        self,
        dataset: IterableDataset[Any],
        packer: GreedyPacker,
        *,
        buffer_size: int = 2000,
        max_open: int = MAX_OPEN,
        even: bool | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if not isinstance(dataset, IterableDataset):
            raise TypeError(f"dataset must be an IterableDataset (got {type(dataset).__name__})")
        if not isinstance(packer, GreedyPacker):
            raise TypeError(f"packer must be a GreedyPacker (got {type(packer).__name__})")
        _ = packer.limits
        if packer.method != "ffd":
            raise ValueError(
                f"a stream needs a packer with method='ffd' (got {quoted(packer.method)})"
            )
        self.packer = copy.copy(packer)
        self.buffer_size = check_integer(buffer_size, "buffer_size", 1)
        self.max_open = check_integer(max_open, "max_open", 0)
        self.even = isinstance(dataset, SharedDataset) if even is None else check_bool(even, "even")
        # Whether to warn that records may come several times.
        self._warns = even is None and not self.even
        self._given = check_rank(rank, world_size)
        if self._given is not None and not self.even:
            raise ValueError(
                "rank and world_size need even=True: otherwise, the data set shares out its "
                "records itself"
            )
        if self.even and isinstance(dataset, SharedDataset):
            shared = copy.copy(dataset)
            shared.is_shared = False
            dataset = shared
        self.dataset = dataset
        self.epoch: int | None = None
        self._epoch: Epoch | None = None
        self._loaded: dict[str, Any] | None = None
        self._begun: torch.Tensor | None = None
        self._has_sought = False

    def find_rank(self) -> tuple[int, int]:
        """Return the rank of this process, and the number of ranks."""
        return self._given or super().find_rank()

    def set_epoch(self, epoch: int) -> None:
        """Call `set_epoch` of the data set, if it has it, such as one that is shuffled.

        A state keeps the epoch. Workers that live on from pass to pass do not see it, unless the
        data set tells them.
        """
        self.epoch = check_integer(epoch, "epoch", 0)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        rank, world_size = self.find_rank()
        if world_size > 1:
            check_stream_reader(self)
        worker, num_workers = find_worker() or (0, 1)
        if self._warns and (rank, worker) == (0, 0) and world_size * num_workers > 1:
            self._warns = False
            logger.warning(
                "%d processes read the data set, and each record comes as often unless the data "
                "set shares out its records among them; pass even=True if it does not, or "
                "even=False if it does",
                world_size * num_workers,
            )
        self._epoch = self._start(self._take_loaded())
        return self._epoch.run()

    def measure(self, records: list[Any], first_row: int) -> Measured:
        """Return the lengths and IDs of records, of which the first has this row."""
        packer = self.packer
        lengths = np.empty(len(records), np.int64)
        for row, record in enumerate(records, start=first_row):
            length = check_record(record, row, is_split=packer.overlong == "split")
            if "sequence" not in record:
                check_token_ids(record, row, length, packer)
            lengths[row - first_row] = length
        if not all("id" in record for record in records):
            return Measured(lengths, None)
        ids = [record["id"] for record in records]
        return Measured(
            lengths, check_ids(ids, len(ids), lambda i: f"the ID of row {first_row + i:,}")
        )

    def make(self, batch: Batch) -> Any:
        """Return the records of a batch."""
        return PlannedBatch(map(self._cut, batch), self.packer.limits)

    def _cut(self, part: Part) -> Record:
        record = cut_record(part.record, part.row, part.start, part.stop, part.length)
        if self.packer.overlong == "split":
            record.update(start=part.start, stop=part.stop)
        elif part.stop < part.length:
            record["truncated"] = True
        return {**record, "row": part.row, "tokens": part.tokens}

    def seek(self, state: Any) -> None:
        """Let the data set begin at a state that it had; None for its beginning."""
        dataset: Any = self.dataset
        if state is not None:
            dataset.load_state_dict(copy.deepcopy(state))
            self._has_sought = True
        elif self._has_sought and type(dataset).__module__.startswith("datasets."):
            # Data sets of Hugging Face would begin each later pass at a state once loaded.
            dataset.load_state_dict({})

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """Return the position in this pass over the stream, for `load_state_dict`.

        Args:
            step: Number of batches that this rank has processed, since the pass began or a state
                was loaded. If None, the number taken from this data set in this process. The
                workers of a DataLoader take batches in other processes and ahead, so pass the
                number that training has processed; with torchdata's ``StatefulDataLoader``, use the
                loader's `state_dict`.

        Returns:
            The number of batches given out on all ranks. If `step` is None and the data set has
            `state_dict` and `load_state_dict`, also its state, and the records of the batches that
            are open or wait for their step; otherwise, records are read and packed again from the
            beginning of the stream to resume.

        Raises:
            ValueError: No batches were taken in this process, and `step` is None; or `step` is
                negative, or given without `even`.
        """
        if step is None:
            epoch = self._epoch
            if epoch is None and self._loaded is not None:
                return self._loaded
            if epoch is None:
                raise ValueError(
                    "no batches were taken from the stream in this process: pass step, the number "
                    "of batches that this rank has processed"
                )
        else:
            if not self.even:
                raise ValueError("step needs even=True, or the state of a StatefulDataLoader")
            step = check_integer(step, "step", 0)
            has_resumed = self._begun is not None and self._begun[:-1].max() <= 1
            epoch = self._start(self._loaded if has_resumed else None)
            epoch.num_given = epoch.segments[-1].first + step * epoch.segments[-1].world_size
            epoch.buffered = NOTHING
        return {
            "version": STATE_VERSION,
            **self._parameters(),
            "rank": None if self.even else list(self.find_rank()),
            "worker": find_worker(),
            "epoch": self.epoch,
            "segments": [list(segment) for segment in epoch.segments],
            "num_given": epoch.num_given,
            "buffered": None if epoch.buffered is NOTHING else epoch.buffered.to_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state: the next pass gives out what is left of that of the state.

        The number of ranks may be another one, if `even`, and so may the number of workers, unless
        the state is one of a ``StatefulDataLoader`` with workers.

        Raises:
            ValueError: The state has another version, or is for other parameters or another worker.
            TypeError: `state` is not a state.
        """
        keys = {"rank", "worker", "epoch", "segments", "num_given", "buffered"}
        if not isinstance(state, dict) or not keys <= state.keys():
            raise TypeError(f"state must be a dict returned by state_dict (got {quoted(state)})")
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"the state must have version {STATE_VERSION} (got {quoted(state.get('version'))}):"
                " it was saved by another version of virnucpro"
            )
        for name, value in self._parameters().items():
            if state.get(name) != value:
                raise ValueError(
                    f"the state is for a stream with {name}={quoted(state.get(name))}, but this "
                    f"stream has {name}={quoted(value)}"
                )
        worker = find_worker()
        if state["worker"] != worker or (
            worker is not None and self.even and state["segments"][-1][1] != self.find_rank()[1]
        ):
            raise ValueError(
                f"the state is for worker {name_worker(state['worker'])} of a DataLoader with "
                f"{state['segments'][-1][1]:,} ranks: for other workers or ranks, load the result "
                "of PackedStream.state_dict(step) into the stream before making the loader"
            )
        if state["epoch"] is not None:
            self.set_epoch(state["epoch"])
        self._loaded, self._epoch = state, None
        # In shared memory, since workers take the state.
        begun: Any = torch.zeros(MAX_WORKERS + 1, dtype=torch.int32)
        self._begun = begun.share_memory_()

    def _take_loaded(self) -> dict[str, Any] | None:
        """Return the state that was loaded, if this is the first pass since."""
        if self._loaded is None or self._begun is None:
            return None
        worker = get_worker_info()
        place, num_places = (0, 1) if worker is None else (worker.id, worker.num_workers)
        is_first = self._begun[place] == 0 and self._begun[-1] in (0, num_places)
        self._begun[place] += 1
        if self._begun[-1] == 0:
            self._begun[-1] = num_places
        return self._loaded if is_first else None

    def _start(self, state: dict[str, Any] | None) -> Epoch:
        """Return a pass over the stream that begins at a state; None for its beginning."""
        world_size = self.find_rank()[1] if self.even else 1
        if state is None:
            return Epoch(self, [Segment(0, world_size)], 0, NOTHING)
        if not self.even and [state["worker"], state["rank"]] != [
            find_worker(),
            list(self.find_rank()),
        ]:
            raise ValueError(
                "without even, a state is for the same rank and worker: its rank is "
                f"{state['rank']} and its worker {state['worker']}, this rank is "
                f"{list(self.find_rank())} and this worker {find_worker()}"
            )
        segments = [Segment(*segment) for segment in state["segments"]]
        if state["worker"] is None:
            segments.append(Segment(state["num_given"], world_size))
        saved = state["buffered"]
        buffered = NOTHING if saved is None else Buffered.from_dict(saved)
        return Epoch(self, segments, state["num_given"], buffered)

    def _parameters(self) -> dict[str, Any]:
        """Return the values that determine the batches."""
        return {
            "limits": self.packer.limits.to_dict(),
            "overlong": self.packer.overlong,
            "overlap": self.packer.overlap,
            "empty": self.packer.empty,
            "buffer_size": self.buffer_size,
            "max_open": self.max_open,
            "even": self.even,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_epoch": None}


def check_token_ids(record: Record, row: int, length: int, packer: GreedyPacker) -> None:
    """Raise ValueError if a record of `input_ids` cannot be packed as it is."""
    if packer.special_tokens:
        raise ValueError(
            f"{describe(record, row)} has input_ids, to which nothing is added: the packer must "
            f"have special_tokens=0 (got {packer.special_tokens})"
        )
    if length == 0 and packer.empty == "pack":
        # Collators that join `input_ids` shift the labels of an empty record.
        raise ValueError(
            f"{describe(record, row)} has no tokens: pack with empty='drop', or remove it"
        )


def find_worker() -> list[int] | None:
    """Return the number of this worker of a DataLoader, and the number of its workers."""
    worker = get_worker_info()
    return None if worker is None else [worker.id, worker.num_workers]


def name_worker(worker: list[int] | None) -> str:
    """Return words for a worker."""
    return "none" if worker is None else f"{worker[0]} of {worker[1]}"
