"""Plans: layouts with rows."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.data.layout import Layout, read_state
from virnucpro.extras import needing
from virnucpro.kernel.arguments import check_integer, check_threads, plain

# The types of the fields in the state of a plan.
PLAN_FIELDS = {"indices": (np.int32, np.int64), "offsets": (np.int64,)}


class PackingPlan(Layout):
    """A layout with rows: a sequence of batches, each an array of row numbers.

    Returned by `GreedyPacker.pack_lengths`. ``plan[i]`` is a view of the rows of batch i, and
    ``len(plan)`` is the number of batches.

    Attributes:
        indices: Row numbers, batch by batch, the longest sequence of each batch first. int32
            [num_sequences], or int64 for 2**31 rows or more.
        offsets: Start of each batch in `indices`, and the end of the last. int64
            [num_batches + 1].

    Example:
        >>> from virnucpro.data import GreedyPacker
        >>> plan = GreedyPacker(100).pack_lengths([30, 60, 60])
        >>> [rows.tolist() for rows in plan]
        [[1, 0], [2]]
        >>> plan.offsets
        array([0, 2, 3])
    """

    def __init__(self, layout: Layout, indices: NDArray[Any], offsets: NDArray[np.int64]) -> None:
        super().__init__(layout.core, layout.limits, layout.num_threads)
        self.indices = indices
        self.offsets = offsets

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, batch: int) -> NDArray[Any]:
        """Return a view of the rows of a batch; negative numbers count from the end.

        Raises:
            IndexError: The number is out of range.
        """
        batch = operator.index(batch)
        if not -len(self) <= batch < len(self):
            raise IndexError(f"batch {batch} is out of range for {len(self):,} batches")
        batch %= len(self)
        return self.indices[self.offsets[batch] : self.offsets[batch + 1]]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return iter(BatchRows(self, range(len(self))))

    def shard(self, rank: int, world_size: int) -> BatchRows:
        """Return the batches of one rank: every `world_size`-th, starting with batch `rank`.

        Batches are in order of decreasing sequence length, so shards have similar numbers of
        tokens and similar sums of squared lengths. Their numbers of batches differ by at most one.

        Args:
            rank: Rank of this process, from 0.
            world_size: Number of ranks.

        Raises:
            ValueError: `rank` or `world_size` is out of range.
            TypeError: An argument is not an integer.

        Cost: O(1), and O(1) per batch during iteration.

        Example:
            >>> from virnucpro.data import GreedyPacker
            >>> plan = GreedyPacker(100).pack_lengths([90, 80, 70])
            >>> [rows.tolist() for rows in plan.shard(0, 2)]
            [[0], [2]]
        """
        world_size = check_integer(world_size, "world_size", 1)
        rank = check_integer(rank, "rank", 0, world_size - 1)
        return BatchRows(self, range(rank, len(self), world_size))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the plan as an Arrow IPC file.

        The file has one row per batch, with the columns `rows` (list of row numbers) and `tokens`
        (int64). An existing file is replaced only when the new one is complete. Needs pyarrow.

        Raises:
            OSError: The file cannot be written, or the path exists and is not a file.
            ModuleNotFoundError: pyarrow is not installed.

        Cost: O(n).

        Example:
            >>> from pathlib import Path
            >>> from tempfile import TemporaryDirectory
            >>> from virnucpro.data import GreedyPacker
            >>> plan = GreedyPacker(100).pack_lengths([30, 60, 60])
            >>> with TemporaryDirectory() as folder:
            ...     plan.save(Path(folder, "plan.arrow"))
            ...     PackingPlan.load(Path(folder, "plan.arrow")) == plan
            True
        """
        with needing("PackingPlan.save", "cli"):
            from virnucpro.files.saved_plan import save_plan
        save_plan(path, self)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PackingPlan:
        """Return a plan written by `save`.

        Its arrays are read-only and memory-mapped: opening takes constant time, and pages are read
        when they are used. The file must not change while the plan is in use. Row numbers are not
        validated. Needs pyarrow.

        Raises:
            ValueError: The file is not a plan written by `save`.
            OSError: The file cannot be read.
            ModuleNotFoundError: pyarrow is not installed.

        Example:
            >>> from pathlib import Path
            >>> from tempfile import TemporaryDirectory
            >>> from virnucpro.data import GreedyPacker
            >>> with TemporaryDirectory() as folder:
            ...     GreedyPacker(100).pack_lengths([30, 60, 60]).save(Path(folder, "plan.arrow"))
            ...     PackingPlan.load(Path(folder, "plan.arrow"))[0].tolist()
            [1, 0]
        """
        with needing("PackingPlan.load", "cli"):
            from virnucpro.files.saved_plan import load_plan
        return load_plan(path)

    def reshuffle(self, seed: int) -> PackingPlan:
        """Return a plan with the same layout, and sequences of equal size permuted at random.

        All permutations of sequences with the same number of tokens are equally likely. Batch sizes
        and efficiency do not change. The same plan and seed give the same rows on any platform and
        for any number of threads.

        Args:
            seed: An integer from 0 to 2**64 - 1.

        Raises:
            ValueError: The seed is out of range.
            TypeError: The seed is not an integer.

        Cost: O(n), and memory for the new `indices` and a temporary array of the same size.

        Example:
            >>> from virnucpro.data import GreedyPacker
            >>> plan = GreedyPacker(100).pack_lengths([60, 60, 30, 30])
            >>> new = plan.reshuffle(seed=2)
            >>> [rows.tolist() for rows in plan], [rows.tolist() for rows in new]
            ([[0, 2], [1, 3]], [[1, 2], [0, 3]])
        """
        seed = check_integer(seed, "seed", 0, 2**64 - 1)
        num_threads = check_threads(self.num_threads)
        indices = kernel.shuffle_rows(self.core, plain(self.indices), seed, num_threads)
        return PackingPlan(self, indices, self.offsets)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PackingPlan)
            and super().__eq__(other)
            and np.array_equal(self.indices, other.indices)
        )

    __hash__ = None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a dict: the dict of its layout, `indices` and `offsets`."""
        return {
            "version": 1,
            "layout": super().to_dict(),
            "indices": self.indices,
            "offsets": self.offsets,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any], num_threads: int | None = None) -> PackingPlan:
        """Return a plan from the result of `to_dict`. Row numbers are not validated.

        Raises:
            ValueError: The version is not supported, or the layout is inconsistent.
            TypeError: A value has the wrong type.
        """
        state_of_layout, rows = read_state(state, cls.__name__, "layout", PLAN_FIELDS)
        layout = Layout.from_dict(state_of_layout, num_threads)
        check_rows(layout, **rows)
        return cls(layout, **rows)


def check_rows(layout: Layout, indices: NDArray[Any], offsets: NDArray[np.int64]) -> None:
    """Raise ValueError unless arrays have the shape of a plan with this layout."""
    shapes = ((layout.num_sequences,), (layout.num_batches + 1,))
    if (indices.shape, offsets.shape) != shapes or (
        (offsets[0], offsets[-1]) != (0, layout.num_sequences) or (np.diff(offsets) < 1).any()
    ):
        raise ValueError("the rows of a plan do not match its layout")


class BatchRows:
    """Some batches of a plan: a sized iterable of views of their rows."""

    def __init__(self, plan: PackingPlan, batches: range) -> None:
        self._plan = plan
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self._plan[batch] for batch in self._batches)
