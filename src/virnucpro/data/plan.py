"""Plans: layouts with rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.data.batch_rows import BatchRows
from virnucpro.data.groups import separate
from virnucpro.data.joined import join_plans
from virnucpro.data.layout import Layout
from virnucpro.data.overlong import Fragments
from virnucpro.data.states import read_state
from virnucpro.extras import needing
from virnucpro.kernel.arguments import (
    check_index,
    check_integer,
    check_list,
    check_threads,
    plain,
)

if TYPE_CHECKING:
    from virnucpro.files.plan_reader import PlanRows
    from virnucpro.files.plan_summary import Summary

# The types of the fields in the state of a plan, and in that of version 1.
ROWS = (np.int32, np.int64)
PLAN_FIELDS = {
    "indices": ROWS,
    "dropped": ROWS,
    "rows": (np.int64,),
    "starts": (np.int64,),
    "stops": (np.int64,),
}
OLD_PLAN_FIELDS = {"indices": ROWS, "offsets": (np.int64,)}


class PackingPlan(Layout):
    """A layout with rows: a sequence of batches, each an array of row numbers.

    Returned by `GreedyPacker.pack_lengths`. ``plan[i]`` is a view of the rows of batch i, and
    ``len(plan)`` is the number of batches. If a sequence was split, the numbers are those of
    `fragments` instead of rows.

    Attributes:
        summary: How the plan was made, and from which files: the `Summary` of a plan that was
            loaded; otherwise None.
        group_offsets: The number of the first batch of each group, in order of groups, and the
            number of batches, int64 [groups + 1]; None without groups. A group of which all rows
            were dropped has no batches.

    Example:
        >>> from virnucpro.data import GreedyPacker
        >>> plan = GreedyPacker(100).pack_lengths([30, 60, 60])
        >>> [rows.tolist() for rows in plan]
        [[1, 0], [2]]
        >>> plan.offsets
        array([0, 2, 3])
    """

    def __init__(
        self,
        layout: Layout,
        indices: NDArray[Any] | None,
        offsets: NDArray[np.int64] | None = None,
        dropped: NDArray[Any] | None = None,
        fragments: Fragments | Callable[[], Fragments | None] | None = None,
        summary: Summary | None = None,
        file: PlanRows | None = None,
    ) -> None:
        super().__init__(layout.core, layout.limits, layout.num_threads, layout.group_offsets)
        self.summary = summary
        self._fragments = fragments
        # The file to read the rows from when they are asked for.
        self._file = file
        if indices is not None:
            self.indices = indices
        if dropped is not None:
            self.dropped = dropped
        if offsets is not None:
            self.offsets = offsets

    @functools.cached_property
    def indices(self) -> NDArray[Any]:
        """Row numbers, batch by batch, the longest sequence of each batch first.

        int32 [num_sequences], or int64 for 2**31 rows or more. The numbers are those of fragments
        if the plan has `fragments`. If the plan was loaded from an `.arrow` file, they are read on
        first use, and kept.

        Raises:
            OSError: The plan was loaded from an `.arrow` file, and the file has changed since.
            ValueError: A number in this file is out of range.
        """
        return self._read(0, self.num_sequences)

    @functools.cached_property
    def dropped(self) -> NDArray[Any]:
        """Rows that were dropped because they exceed the limit or are empty, in increasing order.

        Their type is that of `indices`, and errors are the same.
        """
        if self._file is None:
            return np.empty(0, self.indices.dtype)
        return self._read(self.num_sequences, None)

    def _read(self, begin: int, end: int | None) -> NDArray[Any]:
        assert self._file is not None
        rows = self._file.read(begin, end)
        rows.flags.writeable = False
        return rows

    @functools.cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Start of each batch in `indices`, and the end of the last, int64 [num_batches + 1]."""
        return kernel.batch_offsets(self.core)

    @property
    def fragments(self) -> Fragments | None:
        """The row and positions of each fragment; None if no sequence was split.

        Computed on first use, in O(n), if the plan was loaded from an `.arrow` file.
        """
        if callable(self._fragments):
            self._fragments = self._fragments()
        return self._fragments

    @property
    def num_rows(self) -> int:
        """Number of rows of the data that the plan is for, packed or dropped."""
        if self.fragments is None:
            return self.num_sequences + len(self.dropped)
        return 1 + int(max(self.fragments.rows[-1], self.dropped.max(initial=-1)))

    def __len__(self) -> int:
        return self.num_batches

    def __repr__(self) -> str:
        text = super().__repr__()
        return text if self._fragments is None else text.replace(" sequences ", " fragments ", 1)

    def __getitem__(self, batch: int) -> NDArray[Any]:
        """Return the rows of a batch; negative numbers count from the end.

        Raises:
            IndexError: The number is out of range.
            OSError: As for `indices`.
        """
        batch = self._check_batch(batch)
        return self.slice_indices(self.offsets[batch], self.offsets[batch + 1])

    def slice_indices(self, begin: int, end: int) -> NDArray[Any]:
        """Return ``indices[begin:end]``; of an `.arrow` file, only the parts with these are read.

        Raises:
            OSError: As for `indices`.

        Example:
            >>> from virnucpro.data import GreedyPacker
            >>> GreedyPacker(100).pack_lengths([30, 60, 60]).slice_indices(1, 3)
            array([0, 2], dtype=int32)
        """
        if self._file is None or "indices" in self.__dict__:
            return self.indices[begin:end]
        begin, end, _ = slice(begin, end).indices(self.num_sequences)
        return self._file.read(begin, max(begin, end))

    def tokens(self, batch: int) -> NDArray[np.int64]:
        """Return the tokens that each sequence of a batch takes in it, longest first.

        They include special tokens, and the padding up to a multiple of `multiple_of`.

        Raises:
            IndexError: The number is out of range.

        Cost: O(distinct sizes).

        Example:
            >>> from virnucpro.data import GreedyPacker
            >>> GreedyPacker(100).pack_lengths([30, 60, 60]).tokens(0)
            array([62, 32])
        """
        batch = self._check_batch(batch)
        return kernel.tokens_of_batches(self.core, batch, batch + 1)

    def _check_batch(self, batch: int) -> int:
        batch, num_batches = check_index(batch, "batch"), len(self)
        if not -num_batches <= batch < num_batches:
            raise IndexError(f"batch {batch} is out of range for {num_batches:,} batches")
        return batch % num_batches

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return iter(BatchRows(self, range(len(self))))

    def shard(self, rank: int, world_size: int) -> BatchRows:
        """Return the batches of one rank: every `world_size`-th, starting with batch `rank`.

        Batches are in order of decreasing sequence length, at least within each group, so shards
        have similar numbers of tokens and similar sums of squared lengths. Their numbers of batches
        differ by at most one.

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
        """Write the plan to a file, `.parquet` or `.arrow`, or to its URI, such as ``s3://bucket/a.arrow``.

        The file has one row per sequence, in order of batches, with the columns `batch`, `row` and
        `tokens`. It has no IDs and lengths, which a plan does not keep: `pack_files` writes those
        too. An existing file is replaced only when the new one is complete. Needs pyarrow.

        Raises:
            ValueError: The path has another suffix.
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
            from virnucpro.files.plan_writer import save_plan
        save_plan(path, self)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PackingPlan:
        """Return a plan that was written by `save`, by `pack_files` or by ``virnucpro pack``.

        The rows of an `.arrow` file are read when they are asked for, those of a batch at a time:
        opening it takes no longer for more rows, and a plan that is only iterated takes no memory
        for them. The plan is pickled as the path of the file. Each part of the file has a checksum,
        which is verified whenever the part is read. So whatever happens to the file after it was
        opened, the plan gives the rows that were saved, or raises OSError. A file that is replaced
        by another one, as `save` and `pack_files` do, stays as it was for those who have opened it.
        ``virnucpro verify`` checks the whole file.

        A `.parquet` file, a folder of them that ``virnucpro pack --engine ray`` wrote, or an
        `.arrow` file that another program wrote, is read into memory, and its rows are validated.
        Of a URI, a temporary copy is read, which is removed with the plan. Needs pyarrow.

        Raises:
            ValueError: The file is not a plan, or damaged.
            OSError: The file cannot be read.
            ModuleNotFoundError: pyarrow is not installed.

        Cost: O(runs) for `.arrow` (see `GreedyPacker.lay_out`), O(n) for `.parquet`.

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
            from virnucpro.files.plan_reader import load_plan
        return load_plan(path)

    def reshuffle(self, seed: int) -> PackingPlan:
        """Return a plan with the same layout, and sequences of equal size permuted at random.

        All permutations of sequences with the same number of tokens, and of the same group if there
        are groups, are equally likely. Batch sizes and efficiency do not change. The same plan and
        seed give the same rows on any platform and for any number of threads.

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
        groups = self.group_offsets
        core = self.core if groups is None else separate(self.core, groups)
        indices = kernel.shuffle_rows(core, plain(self.indices), seed, num_threads)
        fragments = None if self._fragments is None else lambda: self.fragments
        return PackingPlan(self, indices, self.offsets, self.dropped, fragments, self.summary)

    @classmethod
    def concatenate(cls, plans: Iterable[PackingPlan]) -> PackingPlan:
        """Return one plan for several data sets, one after the other.

        Its batches are those of the first plan, then those of the second, and so on. The numbers of
        rows, also of those dropped and of fragments, continue from plan to plan, as in
        `torch.utils.data.ConcatDataset` and ``datasets.concatenate_datasets``. The groups are those
        of the plans, or a plan's whole if it has none. If any plan has fragments, the sequences of
        the others become a fragment each. `summary` is None.

        Args:
            plans: The plans, whose limits must be equal.

        Raises:
            ValueError: There are no plans; their limits differ; or some have fragments, but the
                lengths of a plan without fragments are not known, since `multiple_of` is not 1 or
                it has truncated sequences.
            TypeError: A value is not a plan.
            OverflowError: The number of tokens does not fit in 64 bits.

        Cost: O(n), and memory for all `indices`.

        Example:
            >>> from virnucpro.data import GreedyPacker
            >>> packer = GreedyPacker(100)
            >>> plans = [packer.pack_lengths([60, 90]), packer.pack_lengths([70])]
            >>> plan = PackingPlan.concatenate(plans)
            >>> [rows.tolist() for rows in plan], plan.group_offsets
            ([[1], [0], [2]], array([0, 2, 3]))
        """
        plans = check_list(plans, "plans", "a list of plans")
        for place, plan in enumerate(plans):
            if not isinstance(plan, PackingPlan):
                raise TypeError(f"plans[{place}] must be a PackingPlan (got {type(plan).__name__})")
        layout, indices, dropped, fragments = join_plans(plans)
        return cls(layout, indices, None, dropped, fragments)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PackingPlan)
            and super().__eq__(other)
            and np.array_equal(self.indices, other.indices)
            and np.array_equal(self.dropped, other.dropped)
            and np.array_equal(self.fragments or (), other.fragments or ())
        )

    __hash__ = None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a dict: its layout as a dict, and the arrays of its rows.

        The arrays are `indices` and `dropped`, and `rows`, `starts` and `stops` of `fragments`,
        which are empty if no sequence was split.
        """
        fragments = self.fragments or Fragments(*(np.empty(0, np.int64) for _ in range(3)))
        return {
            "version": 2,
            "layout": super().to_dict(),
            "indices": self.indices,
            "dropped": self.dropped,
            **fragments._asdict(),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any], num_threads: int | None = None) -> PackingPlan:
        """Return a plan from the result of `to_dict`. Row numbers are not validated.

        Raises:
            ValueError: The version is not supported, or the values are inconsistent.
            TypeError: A value has the wrong type.
        """
        if isinstance(state, dict) and state.get("version") == 1:
            state_of_layout, fields = read_state(state, cls.__name__, "layout", OLD_PLAN_FIELDS)
        else:
            state_of_layout, fields = read_state(state, cls.__name__, "layout", PLAN_FIELDS, 2)
        layout = Layout.from_dict(state_of_layout, num_threads)
        indices, offsets = fields["indices"], kernel.batch_offsets(layout.core)
        if indices.shape != (layout.num_sequences,) or not np.array_equal(
            fields.get("offsets", offsets), offsets
        ):
            raise ValueError("the rows of a plan do not match its layout")
        parts = [fields[name] for name in Fragments._fields if name in fields]
        fragments = Fragments(*parts) if any(map(len, parts)) else None
        if fragments is not None and any(part.shape != indices.shape for part in parts):
            raise ValueError("the fragments of a plan do not match its layout")
        return cls(layout, indices, offsets, fields.get("dropped"), fragments)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._file is not None:
            return self._file.reduce(self.num_threads)
        return unpickle, (self.to_dict(), self.num_threads, self.summary)


def as_plan(plan: PackingPlan | str | PathLike[str]) -> PackingPlan:
    """Return a plan, which may be given as the path of its file.

    Raises:
        TypeError: It is neither.
        ValueError, OSError: As for `PackingPlan.load`.
    """
    if isinstance(plan, (str, PathLike)):
        return PackingPlan.load(plan)
    if not isinstance(plan, PackingPlan):
        raise TypeError(f"plan must be a PackingPlan or a path (got {type(plan).__name__})")
    return plan


def unpickle(
    state: dict[str, Any], num_threads: int | None, summary: Summary | None
) -> PackingPlan:
    """Return a plan from its pickled state."""
    plan = PackingPlan.from_dict(state, num_threads)
    plan.summary = summary
    return plan
