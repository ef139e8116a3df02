"""Counting of lengths, and layouts: packing without rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from virnucpro import kernel
from virnucpro.data.layout import Layout, TokenCounts
from virnucpro.data.methods import lay_out
from virnucpro.data.overlong import (
    count_dropped,
    describe_overlong,
    find_dropped,
    warn_of_dropped,
    warn_of_truncation,
)
from virnucpro.data.parameters import Parameters
from virnucpro.data.shape import warn_of_limit
from virnucpro.kernel.arguments import check_lengths, check_out, check_threads
from virnucpro.kernel.limits import Limits


class Counter(Parameters):
    """The methods of a packer that need lengths alone, and make no plan."""

    _has_warned_of_limit = False

    def assign_batches(
        self, lengths: ArrayLike, out: NDArray[Any] | None = None
    ) -> NDArray[np.signedinteger[Any]]:
        """Return the batch number of each row, with ties broken by row.

        Equivalent to `count`, `lay_out` and `Layout.assign`, with their arguments and errors, but
        -1 for dropped rows.

        Args:
            lengths: Residues of each row, a 1-D array of any integer type and stride, or a list of
                int.
            out: Array for the result, int32 or int64, of the shape of `lengths` and not
                overlapping it; may be a ``np.memmap``.

        Returns:
            `out`, or a new array [n] of int32, or of int64 for 2**31 rows or more.

        Cost: O(n).

        Example:
            >>> from virnucpro.data import GreedyPacker
            >>> GreedyPacker(100).assign_batches([30, 60, 60])
            array([0, 0, 1], dtype=int32)
        """
        lengths = check_lengths(lengths)
        layout = self.lay_out(self.count(lengths))
        is_dropped = self._find_dropped(lengths, layout.limits)
        if is_dropped is None:
            return layout.assign(lengths, out=out)
        out = check_out(out, lengths, len(lengths))
        out[~is_dropped] = layout.assign(lengths[~is_dropped])
        out[is_dropped] = -1
        return out

    def count(self, lengths: ArrayLike) -> TokenCounts:
        """Return the number of sequences of each size, without those that are dropped.

        Logs one WARNING with the number of sequences that are truncated, dropped because they are
        too long, or dropped because they are empty, if any.

        Args:
            lengths: Residues of each sequence, a 1-D array of any integer type and stride, or a
                list of int.

        Raises:
            ValueError: A length is negative, or exceeds the limit and overlong="error", or the
                default limit without special tokens; `lengths` is not one-dimensional; or
                overlong="split", which only `pack_sequences`, `pack_lengths` and `pack_files`
                support.
            TypeError: Lengths are not integers.
            OverflowError: The number of truncated residues or of tokens added by rounding up does
                not fit in 64 bits. `lay_out` checks the number of all tokens.

        Cost: O(n), and memory for a table of all lengths up to the longest or the limit, or for a
        sorted copy of `lengths` if the table would be larger.

        Example:
            >>> from virnucpro.data import GreedyPacker
            >>> GreedyPacker(4096).count([30, 30, 500])
            TokenCounts(3 sequences of 2 sizes)
        """
        lengths = check_lengths(lengths)
        counts = self.count_silently(lengths)
        warn_of_truncation(counts, self.describe_default())
        self._warn_of_dropped(lengths, counts.limits)
        return counts

    def count_silently(self, lengths: ArrayLike) -> TokenCounts:
        """Return the result of `count` without logging the WARNING."""
        lengths = check_lengths(lengths)
        if self.overlong == "split":
            raise ValueError(
                "overlong='split', the default of GreedyPacker.for_documents, needs pack_lengths, "
                "pack_sequences or pack_files; for count and assign_batches, pass "
                "overlong='truncate', 'drop' or 'error'"
            )
        limits = self.limits
        self.check_overlong(lengths, limits)
        is_dropped = self._find_dropped(lengths, limits)
        kept = lengths if is_dropped is None else lengths[~is_dropped]
        return TokenCounts(kernel.count(kept, limits, check_threads(self.num_threads)), limits)

    def _find_dropped(self, lengths: NDArray[Any], limits: Limits) -> NDArray[np.bool_] | None:
        """Return whether each sequence is dropped; None if none is."""
        return find_dropped(lengths, limits.max_residues, self.overlong, self.empty)

    def _warn_of_dropped(self, lengths: NDArray[Any], limits: Limits) -> None:
        """Log the numbers of sequences that are dropped, if any."""
        if "drop" in (self.overlong, self.empty):
            dropped = count_dropped(lengths, limits.max_residues, self.overlong, self.empty)
            warn_of_dropped(dropped, len(lengths), limits)

    def check_overlong(self, lengths: NDArray[Any], limits: Limits) -> None:
        """Raise ValueError if a length exceeds a limit and is neither truncated nor dropped."""
        self.check_documents(lengths)
        limit = limits.max_residues
        if self.overlong == "error" and lengths.max(initial=0) > limit:
            name = f"lengths[{np.argmax(lengths > limit)}]"
            raise ValueError(describe_overlong(name, lengths, limits))

    def lay_out(self, counts: TokenCounts) -> Layout:
        """Return the layout of counted sequences.

        Args:
            counts: The result of `count`, or a sum of such counts, by packers whose limits have the
                same `max_residues`, `special_tokens` and `multiple_of`.

        Raises:
            ValueError: The counts were made with other such limits.
            TypeError: `counts` is not a `TokenCounts`.
            ModuleNotFoundError: method="tight" and highspy is not installed.
            OverflowError: The number of tokens does not fit in 64 bits.

        If method="ffd" makes over 2 % more batches than the lower bound under a limit on sequences,
        and patterns with reservation make fewer, a packer logs one WARNING with their number.

        Cost: O(runs * log(runs)), where a run is a range of batches with equally many sequences of
        one size; independent of the number of sequences. method="tight" takes seconds if First-Fit
        Decreasing and patterns with reservation do not reach the bound: it solves linear programs
        and pricing problems, the latter in O(distinct sizes * budget), times the limit on sequences
        if there is one. Its work is limited in steps, not in seconds.

        Example:
            >>> from virnucpro.data import GreedyPacker
            >>> packer = GreedyPacker(100)
            >>> packer.lay_out(packer.count([30, 60, 60])).num_batches
            2
        """
        if not isinstance(counts, TokenCounts):
            raise TypeError(f"counts must be TokenCounts (got {type(counts).__name__})")
        limits = self.limits
        of_limits = counts.core if counts.limits is limits else counts.core.with_limits(limits)
        core = lay_out(of_limits, self.method)
        self._warn_of_limit(core, limits)
        return Layout(core, limits, self.num_threads)

    def _warn_of_limit(
        self, layout: kernel.Layout, limits: Limits, has_groups: bool = False
    ) -> None:
        """Log the first layout that has far more batches because of a limit on sequences."""
        is_limited = limits.max_sequences_per_batch is not None and self.method == "ffd"
        if is_limited and not self._has_warned_of_limit:
            self._has_warned_of_limit = warn_of_limit(layout, has_groups)
