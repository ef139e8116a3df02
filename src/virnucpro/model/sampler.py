"""Samplers of the batches of a plan."""

from __future__ import annotations

import functools
import heapq
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from virnucpro.data.plan import PackingPlan
from virnucpro.kernel.arguments import check_integer


class PackedBatchSampler(Sampler[list[int]]):
    """The batches of a plan, as lists of rows, for a data set that gives a sequence by its row.

    For ``DataLoader(dataset, batch_sampler=...)``. Rank r of n gets every n-th batch. The ranks
    together get every row once.

    Args:
        plan: The plan.
        rank: This process's rank.
        world_size: Number of ranks.
        shuffle: Draw anew in each epoch in which order batches come, and which of the sequences of
            equally many tokens share a batch (`PackingPlan.reshuffle`).
        seed: From 0 to 2**64 - 1; together with the epoch and the plan, decides all that is drawn.
        even: Give all ranks equally many batches, as training with collectives needs: where the
            ranks' number does not divide that of the batches, those of the most sequences are
            halved until it does. Otherwise some ranks may get one batch more than others.

    Raises:
        ValueError: A parameter is out of range; or, where `even`, there are not enough sequences
            for equally many batches a rank.
        TypeError: A parameter has the wrong type.

    `len` is the number of batches of an epoch on this rank. Training that was stopped goes on
    where it was after `load_state_dict`, at no cost for the batches before.

    Cost: where `shuffle`, one `PackingPlan.reshuffle` an epoch, O(n).

    Example:
        >>> from virnucpro.data import GreedyPacker
        >>> plan = GreedyPacker(100).pack_lengths([60, 60, 30, 30, 30])
        >>> list(PackedBatchSampler(plan))
        [[0, 2], [1, 3], [4]]
        >>> [list(PackedBatchSampler(plan, rank, world_size=2)) for rank in range(2)]
        [[[0], [1, 3]], [[2], [4]]]
    """

    def __init__(
        self,
        plan: PackingPlan,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        even: bool = True,
    ) -> None:
        if not isinstance(plan, PackingPlan):
            raise TypeError(f"plan must be a PackingPlan (got {type(plan).__name__})")
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
        indices = self.plan.indices
        order: NDArray[np.int64] | range = range(len(self._offsets) - 1)
        if self.shuffle:
            random = np.random.default_rng(
                np.random.SeedSequence(self.seed, spawn_key=(self.epoch,))
            )
            indices = self.plan.reshuffle(int(random.integers(2**64, dtype=np.uint64))).indices
            order = random.permutation(len(order))
        share = order[self.rank :: self.world_size]
        for step in range(first, len(share)):
            batch = share[step]
            self._step = step + 1
            yield indices[self._offsets[batch] : self._offsets[batch + 1]].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, from 0; the one that a loaded state is in goes on where it was.

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
        """Return where this epoch is.

        Args:
            step: Batches of the epoch that are done; by default, those that were taken from this
                sampler. A DataLoader with workers takes some ahead, so training counts its own.

        Raises:
            ValueError: The epoch has fewer batches.
        """
        if step is None:
            step = self._step
        return {
            **self._identity(),
            "epoch": self.epoch,
            "step": check_integer(step, "step", 0, len(self)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken: the next iteration yields the rest of its epoch.

        Raises:
            ValueError: The state is of another plan, or of a sampler with other parameters.
            TypeError: It is no state.

        Example:
            >>> from virnucpro.data import GreedyPacker
            >>> plan = GreedyPacker(100).pack_lengths([60, 60, 30, 30, 30])
            >>> sampler = PackedBatchSampler(plan)
            >>> next(iter(sampler))
            [0, 2]
            >>> later = PackedBatchSampler(plan)
            >>> later.load_state_dict(sampler.state_dict())
            >>> list(later)
            [[1, 3], [4]]
        """
        if not isinstance(state, dict) or not {"epoch", "step"} <= state.keys():
            raise TypeError(f"state must be what state_dict returned (got {state!r})")
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(
                    f"the state is of a sampler with {name}={state.get(name)!r}, not {value!r}"
                )
        self.epoch = check_integer(state["epoch"], "epoch", 0)
        self._step = self._first_step = check_integer(state["step"], "step", 0, len(self))

    @functools.cached_property
    def _rows_crc32(self) -> int:
        """Tells plans apart."""
        rows = zlib.crc32(np.ascontiguousarray(self.plan.indices).data)
        return zlib.crc32(np.ascontiguousarray(self.plan.offsets).data, rows)

    def _identity(self) -> dict[str, Any]:
        """What decides which batches come when, beside the epoch."""
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
    """Return offsets with so many more batches, halving each time one of the most sequences."""
    num_batches = len(offsets) - 1
    num_sequences = int(offsets[-1])
    if num_batches + num_splits > num_sequences:
        raise ValueError(
            f"{num_sequences:,} sequences in {num_batches:,} batches cannot be split into "
            f"{num_batches + num_splits:,}, equally many a rank; even=False leaves them as they are"
        )
    if num_splits == 0:
        return offsets
    # No other batches can come to be halved.
    sizes = np.diff(offsets)
    largest = np.argsort(-sizes, kind="stable")[:num_splits]
    heap = [(-int(sizes[batch]), int(offsets[batch])) for batch in largest]
    heapq.heapify(heap)
    cuts = []
    for _ in range(num_splits):
        size, start = heap[0][0], heap[0][1]
        half = (1 - size) // 2
        cuts.append(start + half)
        heapq.heapreplace(heap, (-half, start))
        heapq.heappush(heap, (size + half, start + half))
    return np.sort(np.append(offsets, cuts))
