"""What packing results in: counts of sequences, a layout of batches, a plan with rows."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from virnucpro import data, kernel
from virnucpro.extras import needing
from virnucpro.kernel.arguments import (
    check_integer,
    check_lengths,
    check_out,
    check_threads,
    check_version,
    plain,
)
from virnucpro.kernel.limits import Limits


class TokenCounts:
    """How many sequences have each number of tokens: all that packing needs to know of them.

    Made by `GreedyPacker.count`. Counts of parts of a data set add up to the counts of the whole:
    they are small (one entry a distinct size), picklable, and comparable with ``==``.

    Example:
        >>> from virnucpro.data import GreedyPacker
        >>> packer = GreedyPacker(4096)
        >>> counts = packer.count([30, 500]) + packer.count([30])
        >>> counts.tokens, counts.sequences
        (array([502,  32]), array([1, 2]))
    """

    def __init__(self, core: kernel.TokenCounts, limits: Limits) -> None:
        self.core = core
        self.limits = limits

    @property
    def tokens(self) -> NDArray[np.int64]:
        """The distinct numbers of tokens a sequence, int64, largest first."""
        return self.core.tokens

    @property
    def sequences(self) -> NDArray[np.int64]:
        """How many sequences have each number of tokens, int64, in the order of `tokens`."""
        return self.core.sequences

    @property
    def num_sequences(self) -> int:
        """Number of sequences."""
        return self.core.num_sequences

    @property
    def total_tokens(self) -> int:
        """Tokens of all sequences, truncated, special tokens included."""
        return self.core.total_tokens

    @property
    def num_truncated(self) -> int:
        """Number of sequences that were too long."""
        return self.core.num_truncated

    @property
    def truncated_residues(self) -> int:
        """Residues cut off the sequences that were too long."""
        return self.core.truncated_residues

    def __add__(self, other: TokenCounts) -> TokenCounts:
        """Return counts of the sequences of both.

        Raises:
            ValueError: They were made with different limits or special tokens.
            OverflowError: All sequences together, or the residues cut off, need more than 64 bits.

        Cost: O(distinct sizes).
        """
        if not isinstance(other, TokenCounts):
            return NotImplemented
        return TokenCounts(self.core + other.core, self.limits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenCounts) and self.core == other.core

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain values and int64 arrays by name, with a version."""
        return {
            "version": 1,
            "limits": self.limits.to_dict(),
            "tokens": self.tokens,
            "sequences": self.sequences,
            "num_truncated": self.num_truncated,
            "truncated_residues": self.truncated_residues,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> TokenCounts:
        """Return the counts that `to_dict` returned.

        Raises:
            ValueError: They are of another version, or contradict themselves.
            TypeError: A value has the wrong type.
        """
        limits, fields = read_state(state, "TokenCounts", "limits")
        limits = Limits.from_dict(limits)
        return cls(kernel.make_counts(limits=limits, **fields), limits)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenCounts.from_dict, (self.to_dict(),)

    def __repr__(self) -> str:
        return f"TokenCounts({self.num_sequences:,} sequences of {len(self.tokens):,} sizes)"


class Layout:
    """A plan without rows: how many sequences of each size every batch holds, and where.

    Made by `GreedyPacker.lay_out` from counts. Together with the lengths, and the counts of the
    rows before them, it tells each row its batch (`assign`) and its place there (`slots`), so that
    one layout serves data that comes in pieces or lies on many machines. Picklable, and
    comparable with ``==``.

    Example:
        >>> from virnucpro.data import GreedyPacker
        >>> packer = GreedyPacker(100)
        >>> counts = packer.count([60, 30, 60])
        >>> layout = packer.lay_out(counts)
        >>> layout
        Layout(3 sequences in 2 batches of at most 100 tokens, efficiency 0.7800, lower bound 2)
        >>> layout.assign([60, 30]), layout.assign([60], before=packer.count([60, 30]))
        (array([0, 0], dtype=int32), array([1], dtype=int32))
    """

    def __init__(self, core: kernel.Layout, limits: Limits, num_threads: int | None = None) -> None:
        self.core = core
        self.limits = limits
        self.num_threads = num_threads

    @property
    def max_tokens_per_batch(self) -> int:
        """The budget in tokens."""
        return self.limits.max_tokens_per_batch

    @property
    def max_sequence_length(self) -> int:
        """Residues kept of a sequence; never more than fit a batch with the special tokens."""
        return self.limits.max_residues

    @property
    def special_tokens(self) -> int:
        """Tokens added to each sequence."""
        return self.limits.special_tokens

    @property
    def max_sequences_per_batch(self) -> int | None:
        """The most sequences of a batch, None for any number."""
        return self.limits.max_sequences_per_batch

    @property
    def num_batches(self) -> int:
        """Number of batches."""
        return self.core.num_batches

    @property
    def num_sequences(self) -> int:
        """Number of sequences."""
        return self.core.counts.num_sequences

    @property
    def num_truncated(self) -> int:
        """Number of sequences that were too long."""
        return self.core.counts.num_truncated

    @property
    def truncated_residues(self) -> int:
        """Residues cut off the sequences that were too long."""
        return self.core.counts.truncated_residues

    @property
    def total_tokens(self) -> int:
        """Tokens in all batches, special tokens included."""
        return self.core.counts.total_tokens

    @property
    def efficiency(self) -> float:
        """Tokens in all batches by the tokens they have room for, in [0, 1]; 0.0 without any."""
        if self.num_batches == 0:
            return 0.0
        return self.total_tokens / (self.num_batches * self.max_tokens_per_batch)

    @property
    def lower_bound(self) -> int:
        """A number of batches that no packing can go below.

        The bound L2 of Martello and Toth (Lower Bounds and Reduction Procedures for the Bin
        Packing Problem, Discrete Applied Mathematics 28, 1990), at least
        ``ceil(total_tokens / max_tokens_per_batch)`` and, with a limit on the sequences of a
        batch, at least ``ceil(num_sequences / max_sequences_per_batch)``; and for layouts of
        method="tight" what column generation has proven (A. A. Farley, A Note on Bounding a Class
        of Linear Programming Problems, Including Cutting Stock Problems, Operations Research 38,
        1990).
        """
        return kernel.lower_bound(self.core)

    @property
    def proven_optimal(self) -> bool:
        """Whether it is proven that no packing needs fewer batches."""
        return self.num_batches == self.lower_bound

    @property
    def batch_tokens(self) -> NDArray[np.int64]:
        """Tokens of each batch, int64 [num_batches], made anew at each use in O(num_batches)."""
        return kernel.batch_tokens(self.core)

    def assign(
        self,
        lengths: ArrayLike,
        before: TokenCounts | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[np.signedinteger[Any]]:
        """Return the batch number of each row.

        Rows of equal size take their places in row order, so the rows of all pieces together get
        what they would get as one array.

        Args:
            lengths: Residues of each row, a 1-D array of any integer type or a list of int.
            before: Counts of all rows that come before these in the data set.
            out: Where to write: an int32 or int64 array of the shape of `lengths` that does not
                overlap it, ``np.memmap`` included. It stays as it is where an error is raised,
                unless `lengths` are changed meanwhile.

        Returns:
            `out`, or a new array [n] of int32, or of int64 where the layout has 2**31 sequences or
            more.

        Raises:
            ValueError: `lengths` and `before` hold more sequences of a size than the layout does,
                or `out` does not fit.
            TypeError: An argument has the wrong type.

        Cost: two passes over `lengths`, O(1) a row.

        Example:
            >>> from virnucpro.data import GreedyPacker
            >>> packer = GreedyPacker(100)
            >>> packer.lay_out(packer.count([30, 60, 60])).assign([30, 60, 60])
            array([0, 0, 1], dtype=int32)
        """
        return self._assign(kernel.assign_batches, lengths, before, out)

    def slots(
        self,
        lengths: ArrayLike,
        before: TokenCounts | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[np.signedinteger[Any]]:
        """Return the place of each row within its batch, from 0, the longest sequence first.

        Arguments, result, errors and cost are those of `assign`.

        Example:
            >>> from virnucpro.data import GreedyPacker
            >>> packer = GreedyPacker(100)
            >>> packer.lay_out(packer.count([30, 60, 60])).slots([30, 60, 60])
            array([1, 0, 0], dtype=int32)
        """
        return self._assign(kernel.assign_slots, lengths, before, out)

    def _assign(
        self, assign: Any, lengths: ArrayLike, before: TokenCounts | None, out: NDArray[Any] | None
    ) -> NDArray[np.signedinteger[Any]]:
        lengths = check_lengths(lengths)
        if before is not None and not isinstance(before, TokenCounts):
            raise TypeError(f"before must be TokenCounts (got {type(before).__name__})")
        out = check_out(out, lengths, self.num_sequences)
        counted = self._no_counts() if before is None else before.core
        assign(self.core, lengths, counted, out, check_threads(self.num_threads))
        return out

    def _no_counts(self) -> kernel.TokenCounts:
        return kernel.count(np.empty(0, np.int8), self.limits, 1)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.core == other.core

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """Return the layout, without rows, as plain values and int64 arrays by name."""
        return {
            "version": 1,
            "counts": TokenCounts(self.core.counts, self.limits).to_dict(),
            "num_batches": self.num_batches,
            "proven_bound": self.core.proven_bound,
            "first_run": self.core.first_run,
            "runs": self.core.runs,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any], num_threads: int | None = None) -> Layout:
        """Return the layout that `to_dict` returned.

        Raises:
            ValueError: It is of another version, or contradicts itself.
            TypeError: A value has the wrong type.
        """
        counts, fields = read_state(state, "Layout", "counts")
        counts = TokenCounts.from_dict(counts)
        return Layout(kernel.make_layout(counts=counts.core, **fields), counts.limits, num_threads)

    def __reduce__(self) -> tuple[Any, ...]:
        return Layout.from_dict, (self.to_dict(), self.num_threads)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.num_sequences:,} sequences in {self.num_batches:,} "
            f"batches of at most {self.max_tokens_per_batch:,} tokens, "
            f"efficiency {self.efficiency:.4f}, lower bound {self.lower_bound:,})"
        )


class PackingPlan(Layout):
    """A layout with rows: a sequence of batches, each an array of row numbers.

    Made by `GreedyPacker.pack_lengths`. ``plan[i]`` is a view of the rows of batch i, ``len(plan)``
    the number of batches.

    Attributes:
        indices: The rows grouped by batch in order of placement, so the longest sequence of a
            batch comes first. int32 [num_sequences], int64 from 2**31 rows on.
        offsets: Where each batch begins in `indices`, and the end. int64 [num_batches + 1].

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
        core: kernel.Layout,
        limits: Limits,
        indices: NDArray[Any],
        offsets: NDArray[np.int64],
        num_threads: int | None = None,
    ) -> None:
        super().__init__(core, limits, num_threads)
        self.indices = indices
        self.offsets = offsets

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, batch: int) -> NDArray[Any]:
        """Return the rows of a batch, a view; of one from the end where its number is negative.

        Raises:
            IndexError: There is no such batch.
        """
        batch = operator.index(batch)
        if not -len(self) <= batch < len(self):
            raise IndexError(f"batch {batch} is out of range for {len(self):,} batches")
        batch %= len(self)
        return self.indices[self.offsets[batch] : self.offsets[batch + 1]]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return iter(BatchRows(self, range(len(self))))

    def shard(self, rank: int, world_size: int) -> BatchRows:
        """Return the batches of one rank: every `world_size`-th, from batch `rank` on.

        Batches come in order of falling sequence length, so shards are alike in tokens and in the
        sum of squared lengths. Their numbers of batches differ by at most one.

        Args:
            rank: This process's rank, from 0.
            world_size: Number of ranks.

        Raises:
            ValueError: There is no such rank.
            TypeError: An argument is not an integer.

        Cost: none until the batches are iterated over, each then a view.

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
        """Write the plan as an Arrow IPC file, one row a batch: `rows` (list) and `tokens` (int64).

        The file appears when it is complete. Needs pyarrow.

        Raises:
            OSError: The file cannot be written, or what is there is no file.
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
            data.save_plan(path, self)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PackingPlan:
        """Return the plan that `save` wrote.

        Its arrays are read-only and lie in the file, mapped into memory: opening takes no time,
        and only what is used is read. The file must stay as it is meanwhile, and its row numbers
        are taken as they are. Needs pyarrow.

        Raises:
            ValueError: The file is no such plan.
            OSError: It cannot be read.
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
            return data.load_plan(path)

    def reshuffle(self, seed: int) -> PackingPlan:
        """Return a plan of the same batches in which other sequences keep each other company.

        Sequences of equally many tokens change places at random, every way equally likely, so
        batches, their tokens and the efficiency stay as they are. The same plan and seed give the
        same rows on any platform and for any number of threads.

        Args:
            seed: From 0 to 2**64 - 1.

        Raises:
            ValueError: The seed is out of range.
            TypeError: It is not an integer.

        Cost: O(n), and memory for two more arrays of `indices`' size, one of them only meanwhile.

        Example:
            >>> import numpy as np
            >>> from virnucpro.data import GreedyPacker
            >>> plan = GreedyPacker(100).pack_lengths([60, 60, 30, 30])
            >>> new = plan.reshuffle(seed=2)
            >>> [rows.tolist() for rows in plan], [rows.tolist() for rows in new]
            ([[0, 2], [1, 3]], [[1, 2], [0, 3]])
        """
        seed = check_integer(seed, "seed", 0, 2**64 - 1)
        num_threads = check_threads(self.num_threads)
        indices = kernel.shuffle_rows(self.core, plain(self.indices), seed, num_threads)
        return PackingPlan(self.core, self.limits, indices, self.offsets, self.num_threads)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PackingPlan)
            and super().__eq__(other)
            and np.array_equal(self.indices, other.indices)
        )

    __hash__ = None

    def __reduce__(self) -> tuple[Any, ...]:
        state = {
            "version": 1,
            "layout": super().to_dict(),
            "indices": self.indices,
            "offsets": self.offsets,
        }
        return make_plan, (state, self.num_threads)


def make_plan(state: dict[str, Any], num_threads: int | None) -> PackingPlan:
    """Return the plan of a pickle."""
    layout, fields = read_state(state, "PackingPlan", "layout")
    layout = Layout.from_dict(layout)
    return PackingPlan(layout.core, layout.limits, **fields, num_threads=num_threads)


def read_state(state: dict[str, Any], name: str, part: str) -> tuple[Any, dict[str, Any]]:
    """Return a part of a value's state, and all else but the version."""
    check_version(state, name, 1)
    rest = {key: value for key, value in state.items() if key not in ("version", part)}
    if part not in state:
        raise ValueError(f"the state of a {name} has no {part!r}")
    return state[part], rest


class BatchRows:
    """Some batches of a plan: a sized iterable of views of their rows."""

    def __init__(self, plan: PackingPlan, batches: range) -> None:
        self._plan = plan
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self._plan[batch] for batch in self._batches)
