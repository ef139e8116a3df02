"""What a layout tells of all its batches: limits, totals, shape and bounds."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.data.shape import BatchShape, fullest, warn_of_fullest
from virnucpro.kernel.limits import Limits


class BatchTotals:
    """The properties of a layout that need neither rows nor lengths."""

    core: kernel.Layout
    limits: Limits
    group_offsets: NDArray[np.int64] | None

    @property
    def max_tokens_per_batch(self) -> int:
        """Token budget per batch, including special tokens."""
        return self.limits.max_tokens_per_batch

    @property
    def max_sequence_length(self) -> int:
        """Maximum residues kept per sequence; at most what fits in a batch."""
        return self.limits.max_residues

    @property
    def special_tokens(self) -> int:
        """Number of special tokens added to each sequence."""
        return self.limits.special_tokens

    @property
    def max_sequences_per_batch(self) -> int | None:
        """Maximum sequences per batch, or None if unlimited."""
        return self.limits.max_sequences_per_batch

    @property
    def multiple_of(self) -> int:
        """Number to a multiple of which the tokens of each sequence are rounded up."""
        return self.limits.multiple_of

    @property
    def num_batches(self) -> int:
        """Number of batches."""
        return self.core.num_batches

    @property
    def num_sequences(self) -> int:
        """Number of sequences."""
        return self.core.counts.num_sequences

    @property
    def max_sequences(self) -> int:
        """Sequences of the fullest batch; 0 without batches. Computed on each access in O(runs)."""
        return fullest(self.core)

    @functools.cached_property
    def shape(self) -> BatchShape:
        """The budget and `max_sequences`, the shape that every batch fits in.

        The budget is rounded down to a multiple of `multiple_of`.

        Batches padded to this shape run in one captured CUDA graph. If there is no limit on
        sequences and the fullest batch has more than twice as many as the mean, as for First-Fit
        Decreasing on proteins, one WARNING proposes a limit, and, unless the plan has groups, says
        how many batches method="tight" makes at most under this limit. For proteins, the mean,
        rounded up, is a limit that costs at most a tenth of a percent.

        Raises:
            ValueError: There are no batches.

        Cost: O(runs). The WARNING takes milliseconds for proteins of up to 1,022 residues, however
        many; at most seconds for a hundred thousand sizes.

        Example:
            >>> from virnucpro.data import GreedyPacker
            >>> packer = GreedyPacker(100)
            >>> layout = packer.lay_out(packer.count([30, 60, 60]))
            >>> layout.shape
            BatchShape(tokens=100, sequences=2)
        """
        max_sequences = self.max_sequences
        if max_sequences == 0:
            raise ValueError(f"a {type(self).__name__} without batches has no shape")
        has_groups = self.group_offsets is not None
        warn_of_fullest(self.core, self.limits, max_sequences, has_groups)
        return BatchShape(self.limits.usable_tokens, max_sequences)

    @property
    def num_truncated(self) -> int:
        """Number of truncated sequences."""
        return self.core.counts.num_truncated

    @property
    def truncated_residues(self) -> int:
        """Number of residues removed by truncation."""
        return self.core.counts.truncated_residues

    @property
    def total_tokens(self) -> int:
        """Tokens in all batches, including special tokens, not padding."""
        return self.core.counts.total_tokens

    @property
    def padding_tokens(self) -> int:
        """Number of tokens in all batches added by rounding up to a multiple of `multiple_of`."""
        return self.core.counts.padding_tokens

    @property
    def efficiency(self) -> float:
        """`total_tokens` divided by the sum of the budgets of all batches; 0.0 without batches."""
        if self.num_batches == 0:
            return 0.0
        return self.total_tokens / (self.num_batches * self.max_tokens_per_batch)

    @property
    def lower_bound(self) -> int:
        """Lower bound on the number of batches of any packing.

        The bound L2 of Martello and Toth (Lower Bounds and Reduction Procedures for the Bin
        Packing Problem, Discrete Applied Mathematics 28, 1990). At least
        ``ceil((total_tokens + padding_tokens) / max_tokens_per_batch)`` and, with a limit on
        sequences, ``ceil(num_sequences / max_sequences_per_batch)``. With method="tight", also at
        least the bound proven by column generation (A. A. Farley, A Note on Bounding a Class of
        Linear Programming Problems, Including Cutting Stock Problems, Operations Research 38,
        1990). For a plan with groups, the sum of the bounds of its groups, so a bound for packings
        in which groups share no batch.
        """
        return kernel.lower_bound(self.core)

    @property
    def proven_optimal(self) -> bool:
        """Whether the number of batches equals the lower bound."""
        return self.num_batches == self.lower_bound

    @property
    def batch_tokens(self) -> NDArray[np.int64]:
        """Tokens of each batch with padding, int64 [num_batches]; computed on each access.

        Cost: O(num_batches).
        """
        return kernel.batch_tokens(self.core)
