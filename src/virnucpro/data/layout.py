"""Counts of sequences by size, and layouts: batches without rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from virnucpro import kernel
from virnucpro.data.batch_totals import BatchTotals
from virnucpro.data.groups import check_group_offsets
from virnucpro.data.states import are_equal, read_state
from virnucpro.kernel.arguments import (
    check_integer,
    check_lengths,
    check_out,
    check_pairs,
    check_threads,
)
from virnucpro.kernel.limits import MAX_TOKENS, Limits

# The widest budget, with the other defaults of GreedyPacker.
WIDEST = Limits(MAX_TOKENS)


class TokenCounts:
    """The number of sequences of each size, in tokens; all that packing needs to know.

    Returned by `GreedyPacker.count`. Counts of the parts of a data set add up to the counts of the
    whole. They are small (one entry per distinct size), picklable, and comparable with ``==``. A
    size is what a sequence takes in a batch, with padding if `multiple_of` is not 1.

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

    @classmethod
    def from_pairs(
        cls,
        tokens: ArrayLike,
        sequences: ArrayLike,
        limits: Limits = WIDEST,
        *,
        num_truncated: int = 0,
        truncated_residues: int = 0,
        padding_tokens: int | None = None,
    ) -> TokenCounts:
        """Return counts from a histogram that another program made, such as DuckDB or Polars.

        They equal what `GreedyPacker.count` returns for the lengths of these sequences.

        Args:
            tokens: Sizes in tokens, including special tokens and padding, after truncation: those
                that ``limits.tokens(lengths)`` returns. In any order; a size may repeat.
            sequences: Number of sequences of each size, at least 1, an array or list as long as
                `tokens`. Both are 1-D arrays of any integer type and stride, or lists of int.
            limits: The `limits` of the packer that lays the counts out; by default those of
                ``GreedyPacker(max_tokens_per_batch)``, for any budget of at least 1,024 tokens.
            num_truncated: Number of truncated sequences, which sizes do not tell.
            truncated_residues: Number of residues removed by truncation.
            padding_tokens: Number of tokens of all sequences that are padding. Required if
                `multiple_of` is not 1, and otherwise 0.

        Raises:
            ValueError: A size is one that no sequence has under the limits, a number of sequences
                is not positive, an array is not one-dimensional, their lengths differ, or one of
                the last three arguments does not fit the sizes or is missing.
            TypeError: An argument has the wrong type. Floats are refused: in DuckDB, ``count(*)``
                is an integer, and ``sum(n)`` is one after ``::BIGINT``.
            OverflowError: The number of sequences or of tokens does not fit in 64 bits.

        Cost: O(n log(n)).

        Example:
            >>> from virnucpro.data import GreedyPacker, TokenCounts
            >>> counts = TokenCounts.from_pairs([32, 502, 32], [1, 1, 2])
            >>> counts == GreedyPacker(4096).count([30, 30, 500, 30])
            True
        """
        if not isinstance(limits, Limits):
            raise TypeError(f"limits must be Limits (got {type(limits).__name__})")
        sizes, numbers = check_pairs(tokens, sequences, ("tokens", "sequences"))
        if padding_tokens is None:
            if limits.multiple_of > 1:
                raise ValueError(
                    "padding_tokens must be given, as sizes do not tell it "
                    f"(got multiple_of={limits.multiple_of:,})"
                )
            padding_tokens = 0
        totals = {
            "num_truncated": num_truncated,
            "truncated_residues": truncated_residues,
            "padding_tokens": padding_tokens,
        }
        core = kernel.counts_from_pairs(
            limits=limits,
            tokens=sizes.astype(np.int64, copy=False),
            sequences=numbers.astype(np.int64, copy=False),
            **{name: check_integer(total, name, 0, 2**63 - 1) for name, total in totals.items()},
        )
        return cls(core, limits)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Distinct sizes in tokens, int64, largest first."""
        return self.core.tokens

    @property
    def sequences(self) -> NDArray[np.int64]:
        """Number of sequences of each size, int64, in the order of `tokens`."""
        return self.core.sequences

    @property
    def num_sequences(self) -> int:
        """Number of sequences."""
        return self.core.num_sequences

    @property
    def total_tokens(self) -> int:
        """Tokens of all sequences after truncation, including special tokens, not padding."""
        return self.core.total_tokens

    @property
    def padding_tokens(self) -> int:
        """Number of tokens added by rounding up to a multiple of `multiple_of`."""
        return self.core.padding_tokens

    @property
    def num_truncated(self) -> int:
        """Number of truncated sequences."""
        return self.core.num_truncated

    @property
    def truncated_residues(self) -> int:
        """Number of residues removed by truncation."""
        return self.core.truncated_residues

    def __add__(self, other: TokenCounts) -> TokenCounts:
        """Return the combined counts of two sets of sequences.

        Raises:
            ValueError: The counts were made with a different `max_residues`, `special_tokens` or
                `multiple_of`.
            OverflowError: A sum does not fit in 64 bits.

        Cost: O(distinct sizes).
        """
        if not isinstance(other, TokenCounts):
            return NotImplemented
        return TokenCounts(self.core + other.core, self.limits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenCounts) and self.core == other.core

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as a dict of plain values and int64 arrays.

        Without `padding_tokens` if there are none, so that earlier versions read it.
        """
        return {
            "version": 1,
            "limits": self.limits.to_dict(),
            "tokens": self.tokens,
            "sequences": self.sequences,
            "num_truncated": self.num_truncated,
            "truncated_residues": self.truncated_residues,
            **({"padding_tokens": self.padding_tokens} if self.padding_tokens else {}),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> TokenCounts:
        """Return counts from the result of `to_dict`.

        Raises:
            ValueError: The version is not supported, or the values are inconsistent.
            TypeError: A value has the wrong type.
        """
        types = COUNTS_FIELDS
        if isinstance(state, dict) and "padding_tokens" in state:
            types = {**types, "padding_tokens": (int,)}
        limits, fields = read_state(state, cls.__name__, "limits", types)
        limits = Limits.from_dict(limits)
        return cls(kernel.make_counts(limits=limits, **fields), limits)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_dict, (self.to_dict(),)

    def __repr__(self) -> str:
        return f"TokenCounts({self.num_sequences:,} sequences of {len(self.tokens):,} sizes)"


class Layout(BatchTotals):
    """Batches without rows: the number of sequences of each size in each batch.

    Returned by `GreedyPacker.lay_out`. Given lengths, and the counts of the rows before them, a
    layout returns the batch of each row (`assign`) and its place in the batch (`slots`). One layout
    therefore serves a data set that is read in parts or distributed over machines.
    Picklable, and comparable with ``==``.

    Attributes:
        group_offsets: The number of the first batch of each group, in order of groups, and the
            number of batches, int64 [groups + 1]; None unless it is a plan with groups.

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

    def __init__(
        self,
        core: kernel.Layout,
        limits: Limits,
        num_threads: int | None = None,
        group_offsets: NDArray[np.int64] | None = None,
    ) -> None:
        self.core = core
        self.limits = limits
        self.num_threads = num_threads
        self.group_offsets = group_offsets

    def assign(
        self,
        lengths: ArrayLike,
        before: TokenCounts | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[np.signedinteger[Any]]:
        """Return the batch number of each row.

        Rows of equal size are assigned in row order, so the parts of a data set get the same
        batches as the whole in one array.

        Args:
            lengths: Residues of each row, a 1-D array of any integer type or a list of int.
            before: Counts of all rows that precede these in the data set; None if there are none.
            out: Array for the result, int32 or int64, of the shape of `lengths` and not
                overlapping it; may be a ``np.memmap``. Unchanged if an error is raised, unless
                `lengths` change during the call.

        Returns:
            `out`, or a new array [n] of int32, or of int64 if the layout has 2**31 sequences or
            more.

        Raises:
            ValueError: `lengths` and `before` together have more sequences of a size than the
                layout; the layout is that of a plan with groups, which lengths do not tell; or
                `out` has the wrong shape, is not contiguous, aligned and writeable, is
                too narrow, or overlaps `lengths`.
            TypeError: An argument has the wrong type.

        Cost: two passes over `lengths`, O(1) per row.

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
        """Return the place of each row in its batch, from 0, the longest sequence first.

        Arguments, result, errors and cost are those of `assign`.

        Example:
            >>> from virnucpro.data import GreedyPacker
            >>> packer = GreedyPacker(100)
            >>> packer.lay_out(packer.count([30, 60, 60])).slots([30, 60, 60])
            array([1, 0, 0], dtype=int32)
        """
        return self._assign(kernel.assign_slots, lengths, before, out)

    def place(
        self, tokens: ArrayLike, rank: ArrayLike
    ) -> tuple[NDArray[np.signedinteger[Any]], NDArray[np.signedinteger[Any]]]:
        """Return the batch and the slot of sequences, each given by its size and its rank.

        The rank of a sequence is its number among all sequences of its size, from 0, in the order
        of ties. With ranks in row order, the places are those that `assign` and `slots` return;
        with ranks by ID, those of a plan with IDs. Rows may come in any order and in any parts, so
        a database that numbers the rows of each size can place them.

        Args:
            tokens: Size of each sequence in tokens, one of `TokenCounts.tokens`.
            rank: Its rank, an array or list as long as `tokens`. Both are 1-D arrays of any integer
                type and stride, or lists of int.

        Returns:
            The batch of each sequence, and its slot in the batch from 0, the longest sequence
            first: two new arrays [n] of int32, or of int64 if the layout has 2**31 sequences or
            more.

        Raises:
            ValueError: The layout has no sequence of such a size or rank; an array is not
                one-dimensional, or their lengths differ; or the layout is that of a plan with
                groups, which sizes do not tell.
            TypeError: An argument has the wrong type.

        Cost: one pass, O(1) per row if the ranks of each size increase, and otherwise O(log(runs)).
        Arrays of other types than int32 and int64 are copied.

        Example:
            >>> from virnucpro.data import GreedyPacker
            >>> packer = GreedyPacker(100)
            >>> packer.lay_out(packer.count([30, 60, 60])).place([32, 62, 62], [0, 0, 1])
            (array([0, 0, 1], dtype=int32), array([1, 0, 0], dtype=int32))
        """
        if self.group_offsets is not None:
            raise ValueError("a plan with groups cannot place sequences by their sizes")
        sizes, ranks = check_pairs(tokens, rank, ("tokens", "rank"))
        return kernel.place_ranks(self.core, sizes, ranks, check_threads(self.num_threads))

    def _assign(
        self, assign: Any, lengths: ArrayLike, before: TokenCounts | None, out: NDArray[Any] | None
    ) -> NDArray[np.signedinteger[Any]]:
        if self.group_offsets is not None:
            raise ValueError("a plan with groups cannot assign rows by their lengths")
        lengths = check_lengths(lengths)
        if before is not None and not isinstance(before, TokenCounts):
            raise TypeError(f"before must be TokenCounts (got {type(before).__name__})")
        out = check_out(out, lengths, self.num_sequences)
        preceding = None if before is None else before.core
        assign(self.core, lengths, preceding, out, check_threads(self.num_threads))
        return out

    def __eq__(self, other: object) -> bool:
        return (
            type(other) is type(self)
            and self.core == other.core
            and are_equal(self.group_offsets, other.group_offsets)
        )

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as a dict of plain values, int64 arrays and dicts of them.

        Without `group_offsets` if there are no groups, so that earlier versions read it.
        """
        return {
            "version": 1,
            "counts": TokenCounts(self.core.counts, self.limits).to_dict(),
            "num_batches": self.num_batches,
            "proven_bound": self.core.proven_bound,
            "first_run": self.core.first_run,
            "runs": self.core.runs,
            **({} if self.group_offsets is None else {"group_offsets": self.group_offsets}),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any], num_threads: int | None = None) -> Layout:
        """Return a layout from the result of `to_dict`.

        Raises:
            ValueError: The version is not supported, or the values are inconsistent.
            TypeError: A value has the wrong type.
        """
        types = LAYOUT_FIELDS
        if isinstance(state, dict) and "group_offsets" in state:
            types = {**types, "group_offsets": (np.int64,)}
        counts, fields = read_state(state, cls.__name__, "counts", types)
        counts, group_offsets = TokenCounts.from_dict(counts), fields.pop("group_offsets", None)
        core = kernel.make_layout(counts=counts.core, **fields)
        if group_offsets is not None:
            check_group_offsets(core, group_offsets)
        return cls(core, counts.limits, num_threads, group_offsets)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_dict, (self.to_dict(), self.num_threads)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.num_sequences:,} sequences in {self.num_batches:,} "
            f"batches of at most {self.max_tokens_per_batch:,} tokens, "
            f"efficiency {self.efficiency:.4f}, lower bound {self.lower_bound:,})"
        )


# The types of the fields in the state of a value; that of an array's elements.
COUNTS_FIELDS = {
    "tokens": (np.int64,),
    "sequences": (np.int64,),
    "num_truncated": (int,),
    "truncated_residues": (int,),
}
LAYOUT_FIELDS = {
    "num_batches": (int,),
    "proven_bound": (int,),
    "first_run": (np.int64,),
    "runs": (dict,),
}
