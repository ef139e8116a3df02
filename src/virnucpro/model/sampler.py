"""`PackedBatchSampler`: the batches of a plan, split among ranks."""

from __future__ import annotations

import functools
import heapq
import zlib
from collections.abc import Iterator
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from virnucpro.data.plan import PackingPlan, as_plan
from virnucpro.kernel.arguments import check_integer, plain
from virnucpro.text import quoted

# The version of states. Increase it if the same state would yield other batches.
STATE_VERSION = 1
# Rows that are hashed at a time.
CHUNK = 2**20


class PackedBatchSampler(Sampler[list[int]]):
    """The batches of a plan as lists of rows, for a data set indexed by row.

    For a plan with fragments, the numbers are those of fragments: use `PackedDataset.records` as
    the data set.

    For ``DataLoader(dataset, batch_sampler=...)``. Rank r of n gets every n-th batch. All ranks
    together get every row that has a batch exactly once per epoch. `len` is the number of batches
    per epoch on this rank.

    `state_dict` and `load_state_dict` resume training within an epoch, without reading earlier
    batches again.

    Args:
        plan: The plan, or the path of its file.
        rank: The rank of this process.
        world_size: The number of ranks.
        shuffle: Whether to shuffle the batches in each epoch, and to exchange sequences with
            equally many tokens between them (`PackingPlan.reshuffle`).
        seed: From 0 to 2**64 - 1. Seed, epoch and plan determine the order.
        even: Whether all ranks get equally many batches, as training with collectives requires. If
            the number of batches is not divisible by the number of ranks, the batches with the most
            sequences are halved until it is. If False, some ranks may get one batch more.

    Raises:
        ValueError: A parameter is out of range, or there are too few sequences for equally many
            batches per rank (with `even`).
        TypeError: A parameter has the wrong type.

    Cost: with `shuffle`, one `PackingPlan.reshuffle` per epoch, O(n).

    Example:
        >>> from virnucpro.data import GreedyPacker, PackedBatchSampler
        >>> plan = GreedyPacker(100).pack_lengths([60, 60, 30, 30, 30])
        >>> list(PackedBatchSampler(plan))
        [[0, 2], [1, 3], [4]]
        >>> [list(PackedBatchSampler(plan, rank, world_size=2)) for rank in range(2)]
        [[[0], [1, 3]], [[2], [4]]]
    """

    def __init__(
        self,
        plan: PackingPlan | str | PathLike[str],
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        even: bool = True,
    ) -> None:
        plan = as_plan(plan)
        self.plan = plan
        self.world_size = check_integer(world_size, "world_size", 1)
        self.rank = check_integer(rank, "rank", 0, self.world_size - 1)
        self.shuffle = shuffle
        self.seed = check_integer(seed, "seed", 0, 2**64 - 1)
        self.even = even
        self.epoch = 0
        self._offsets = plan.offsets
        if even:
            self._offsets = split_batches(plan.offsets, -len(plan) % self.world_size)
        self._step = 0
        self._first_step = 0

    def __len__(self) -> int:
        return len(range(self.rank, len(self._offsets) - 1, self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        self._step, self._first_step = self._first_step, 0
        return self._batches(self._step)

    def _batches(self, first: int) -> Iterator[list[int]]:
        plan = self.plan
        order: NDArray[np.int64] | range = range(len(self._offsets) - 1)
        if self.shuffle:
            random = np.random.default_rng(
                np.random.SeedSequence(self.seed, spawn_key=(self.epoch,))
            )
            plan = plan.reshuffle(int(random.integers(2**64, dtype=np.uint64)))
            order = random.permutation(len(order))
        share = order[self.rank :: self.world_size]
        for step in range(first, len(share)):
            batch = share[step]
            self._step = step + 1
            yield plan.slice_indices(*self._offsets[batch : batch + 2]).tolist()

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch, from 0. Without it, each epoch is in the same order.

        Setting the epoch of a loaded state keeps its position.

        Raises:
            ValueError: The number is negative.
            TypeError: It is not an integer.
        """
        epoch = check_integer(epoch, "epoch", 0)
        if epoch != self.epoch:
            self._first_step = 0
        self.epoch = epoch
        self._step = self._first_step

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """Return the position in this epoch, for `load_state_dict`.

        Args:
            step: Number of batches of the epoch that this rank has processed. If None, the number
                taken from this sampler. A DataLoader with workers takes some ahead, so pass the
                number that training has processed.

        Raises:
            ValueError: The epoch has fewer batches.
        """
        if step is None:
            step = self._step
        return {
            "version": STATE_VERSION,
            **self._parameters(),
            "epoch": self.epoch,
            "step": check_integer(step, "step", 0, len(self)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state: the next iteration yields the rest of its epoch.

        Raises:
            ValueError: The state has another version, or is for another plan or other parameters.
            TypeError: `state` is not a state.

        Example:
            >>> from virnucpro.data import GreedyPacker, PackedBatchSampler
            >>> plan = GreedyPacker(100).pack_lengths([60, 60, 30, 30, 30])
            >>> sampler = PackedBatchSampler(plan)
            >>> next(iter(sampler))
            [0, 2]
            >>> resumed = PackedBatchSampler(plan)
            >>> resumed.load_state_dict(sampler.state_dict())
            >>> list(resumed)
            [[1, 3], [4]]
        """
        if not isinstance(state, dict) or not {"epoch", "step"} <= state.keys():
            raise TypeError(f"state must be a dict returned by state_dict (got {quoted(state)})")
        version = state.get("version")
        if version != STATE_VERSION:
            raise ValueError(
                f"the state must have version {STATE_VERSION} (got {quoted(version)}): it was "
                "saved by another version of virnucpro"
            )
        for name, value in self._parameters().items():
            if state.get(name) != value:
                raise ValueError(
                    f"the state is for a sampler with {name}={quoted(state.get(name))}, but this "
                    f"sampler has {name}={quoted(value)}"
                )
        self.epoch = check_integer(state["epoch"], "epoch", 0)
        self._step = self._first_step = check_integer(state["step"], "step", 0, len(self))

    @functools.cached_property
    def _rows_crc32(self) -> int:
        """The checksum that identifies the plan in states."""
        crc32 = 0
        for begin in range(0, self.plan.num_sequences, CHUNK):
            # In pieces, since a plan that is in a file need not be read into memory.
            crc32 = zlib.crc32(plain(self.plan.slice_indices(begin, begin + CHUNK)).data, crc32)
        for values in (self.plan.offsets, *(self.plan.fragments or ())):
            crc32 = zlib.crc32(plain(values).data, crc32)
        return crc32

    def _parameters(self) -> dict[str, Any]:
        """Return the values that determine the batches of each epoch and their order."""
        return {
            "num_sequences": self.plan.num_sequences,
            "num_batches": self.plan.num_batches,
            "rows_crc32": self._rows_crc32,
            "rank": self.rank,
            "world_size": self.world_size,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "even": self.even,
        }


def split_batches(offsets: NDArray[np.int64], num_splits: int) -> NDArray[np.int64]:
    """Return the offsets after halving, `num_splits` times, the batch with the most sequences."""
    num_batches = len(offsets) - 1
    num_sequences = int(offsets[-1])
    if num_batches + num_splits > num_sequences:
        raise ValueError(
            f"{num_sequences:,} sequences in {num_batches:,} batches cannot be split into "
            f"{num_batches + num_splits:,}, equally many per rank; use even=False to keep them"
        )
    if num_splits == 0:
        return offsets
    # Only these batches and their halves can be split.
    sizes = np.diff(offsets)
    largest = np.argsort(-sizes, kind="stable")[:num_splits]
    heap = [(-int(sizes[batch]), int(offsets[batch])) for batch in largest]
    heapq.heapify(heap)
    splits = []
    for _ in range(num_splits):
        size, start = heap[0][0], heap[0][1]
        half = (1 - size) // 2
        splits.append(start + half)
        heapq.heapreplace(heap, (-half, start))
        heapq.heappush(heap, (size + half, start + half))
    return np.sort(np.append(offsets, splits))
