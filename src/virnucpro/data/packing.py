"""Packing of sequences into token-budget batches, and estimation of a GPU's token budget."""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from virnucpro import kernel
from virnucpro.data.counting import Counter
from virnucpro.data.groups import number_groups, pack_groups
from virnucpro.data.layout import Layout, TokenCounts
from virnucpro.data.overlong import (
    choose,
    describe_overlong,
    take_records,
    warn_of_truncation,
)
from virnucpro.data.parameters import MAX_SEQUENCE_LENGTH
from virnucpro.data.plan import PackingPlan
from virnucpro.data.records import Record, compute_efficiency, read_records
from virnucpro.kernel.arguments import (
    check_ids,
    check_integer,
    check_lengths,
    check_list,
    check_threads,
)
from virnucpro.kernel.limits import MAX_TOKENS, Limits
from virnucpro.text import percent, quoted, shown

__all__ = ["GreedyPacker", "PackingPlan", "calculate_token_budget"]

logger = logging.getLogger(__name__)

# Truncated sequences that one packer logs by name at WARNING; later ones are logged at DEBUG.
MAX_WARNINGS = 100

NO_LIMITS = Limits(MAX_TOKENS, MAX_TOKENS, special_tokens=0)


class GreedyPacker(Counter):
    """Packs sequences into batches within a token budget, by exact First-Fit Decreasing.

    Sequences are placed in order of decreasing size, each in the first batch with enough room
    (D. S. Johnson, Near-Optimal Bin Packing Algorithms, 1973). `Limits` defines the size in tokens,
    which fits in a batch even if `max_sequence_length` does not. The same input gives the same
    batches for any number of threads and on any platform.

    Args:
        max_tokens_per_batch: Token budget per batch, including special tokens; at most 2**62.
        max_sequence_length: Maximum residues kept per sequence, from the N-terminal end. The
            default is for proteins: without special tokens it raises ValueError for sequences that
            exceed it and fit in a batch, so pass the limit, or use `for_documents`.
        special_tokens: Number of special tokens added to each sequence; 2 for BOS and EOS.
        overlong: How to handle sequences above the limit: "truncate"; "error" to raise ValueError;
            "drop" to leave them out; or "split" into fragments of at most the limit.
        overlap: Residues that neighboring fragments share, with overlong="split".
        max_sequences_per_batch: Maximum sequences per batch; None for unlimited.
        multiple_of: The tokens of each sequence are rounded up to a multiple of this, such as 8 or
            16 for FP8 or context parallelism. Those added count in batches, but not in efficiency.
        empty: How to handle sequences without residues: "pack", or "drop" to leave them out.
        num_threads: Maximum number of threads; None for the number of cores available.
        method: "ffd" for First-Fit Decreasing, or "tight" for patterns with reservation and column
            generation. The latter often makes fewer batches under a limit on sequences, or if
            sequences are large relative to the budget, never more, and may prove a better
            `Layout.lower_bound`. Its batches are in order of decreasing longest sequence. It takes
            seconds and needs highspy, which the extra `tight` installs.

    Raises:
        ValueError: A parameter is out of range, or the budget has no room for one residue.
        TypeError: A parameter has the wrong type.

    Parameters are plain attributes. They may be changed between calls and are checked on use.

    Example:
        >>> packer = GreedyPacker(max_tokens_per_batch=12)
        >>> sequences = [{"id": "b", "sequence": "MKTAYI"}, {"id": "a", "sequence": "MK"},
        ...              {"id": "c", "sequence": "MKT"}]
        >>> [[record["id"] for record in batch] for batch in packer.pack_sequences(sequences)]
        [['b', 'a'], ['c']]
    """

    def __init__(
        self,
        max_tokens_per_batch: int,
        max_sequence_length: int = MAX_SEQUENCE_LENGTH,
        *,
        special_tokens: int = 2,
        overlong: str = "truncate",
        overlap: int = 0,
        max_sequences_per_batch: int | None = None,
        multiple_of: int = 1,
        empty: str = "pack",
        num_threads: int | None = None,
        method: str = "ffd",
    ) -> None:
        super().__init__(
            max_tokens_per_batch=max_tokens_per_batch,
            max_sequence_length=max_sequence_length,
            special_tokens=special_tokens,
            max_sequences_per_batch=max_sequences_per_batch,
            multiple_of=multiple_of,
            overlong=overlong,
            overlap=overlap,
            empty=empty,
            method=method,
            num_threads=num_threads,
        )
        self._num_truncated = 0

    @classmethod
    def for_documents(
        cls,
        max_tokens_per_batch: int,
        *,
        max_sequence_length: int | None = None,
        overlong: str = "split",
        overlap: int = 0,
        max_sequences_per_batch: int | None = None,
        multiple_of: int = 1,
        empty: str = "drop",
        num_threads: int | None = None,
        method: str = "ffd",
    ) -> GreedyPacker:
        """Return a packer for tokenized documents, whose tokens are all in their lengths.

        Documents have no special tokens besides, and no limit but the budget unless
        `max_sequence_length` is given, such as a model's context: longer ones are split. Empty ones
        are dropped. Arguments and errors are those of the class.

        Example:
            >>> plan = GreedyPacker.for_documents(4096).pack_lengths([5000, 0, 3000])
            >>> [rows.tolist() for rows in plan], plan.fragments.stops, plan.dropped
            ([[0], [2, 1]], array([4096, 5000, 3000]), array([1], dtype=int32))
        """
        budget = check_integer(max_tokens_per_batch, "max_tokens_per_batch", 1, MAX_TOKENS)
        return cls(
            budget,
            budget if max_sequence_length is None else max_sequence_length,
            special_tokens=0,
            overlong=overlong,
            overlap=overlap,
            max_sequences_per_batch=max_sequences_per_batch,
            multiple_of=multiple_of,
            empty=empty,
            num_threads=num_threads,
            method=method,
        )

    def pack_sequences(self, sequences: Iterable[Record]) -> list[list[Record]]:
        """Return batches of the sequences.

        Args:
            sequences: Dicts with an `id` (all str or all int) and a `sequence` (str). The list and
                its dicts are not modified.

        Returns:
            The batches in order of placement. Within a batch, the largest size comes first;
            ties are broken by `id`, then by input order. A truncated sequence is a copy of its
            dict with the truncated `sequence` and ``truncated=True``; a fragment is a copy with a
            part of the `sequence`, and `start` and `stop`, its positions in the sequence, from 0.
            All others are the dicts passed in.

        Raises:
            ValueError: A dict has no `id` or no `sequence`, or a sequence exceeds the limit and
                overlong="error", or the default limit without special tokens.
            TypeError: A record is not a dict, a `sequence` is not a str, or IDs have mixed types.

        The first 100 sequences that a packer truncates are logged at WARNING, one message each;
        later ones at DEBUG, with their total at WARNING, as are the numbers of dropped sequences.

        Cost: O(n), plus sorting the IDs of equally long sequences.

        Example:
            >>> GreedyPacker(5).pack_sequences([{"id": 7, "sequence": "MKTAYI"}])
            [[{'id': 7, 'sequence': 'MKT', 'truncated': True}]]
        """
        limits, threads = self.limits, check_threads(self.num_threads)
        limit = limits.max_residues
        records = check_list(sequences, "sequences", "a list of dicts")
        is_truncating = self.overlong == "truncate"
        ids, lengths = read_records(records, "sequences", limit if is_truncating else None)
        self.check_documents(lengths, lambda row: f"Sequence {shown(records[row].get('id'))}")
        if is_truncating:
            self._warn_of_truncation(records, lengths, limit)
        elif self.overlong == "error" and lengths.max(initial=0) > limit:
            name = f"Sequence {shown(records[np.argmax(lengths > limit)].get('id'))}"
            raise ValueError(describe_overlong(name, lengths, limits))
        chosen = choose(lengths, ids, limit, self.overlong, self.overlap, self.empty)
        self._warn_of_dropped(lengths, limits)
        records = take_records(records, chosen, lengths, limit)
        layout = self.lay_out(TokenCounts(kernel.count(chosen.lengths, limits, threads), limits))
        places, offsets = kernel.list_rows(layout.core, chosen.lengths, chosen.ids, threads)
        return kernel.gather(records, places, offsets)

    def sort_by_length(self, sequences: Iterable[Record]) -> list[Record]:
        """Return the sequences in a new list, longest first, ties by `id`, then by input order.

        Sequences are sorted by their full lengths and not truncated; those above the limit are not
        errors. Otherwise, arguments and errors are those of `pack_sequences`.

        Cost: O(n), plus sorting the IDs of equally long sequences.

        Example:
            >>> records = [{"id": "b", "sequence": "MK"}, {"id": "a", "sequence": "MK"},
            ...            {"id": "c", "sequence": "MKT"}]
            >>> [record["id"] for record in GreedyPacker(4096).sort_by_length(records)]
            ['c', 'a', 'b']
        """
        records = check_list(sequences, "sequences", "a list of dicts")
        ids, lengths = read_records(records, "sequences")
        threads = check_threads(self.num_threads)
        # A single batch without limits holds all sequences in this order.
        layout = kernel.first_fit_decreasing(kernel.count(lengths, NO_LIMITS, threads))
        rows, _ = kernel.list_rows(layout, lengths, ids, threads)
        return kernel.gather(records, rows, np.array([0, len(records)], np.int64))[0]

    def compute_efficiency(self, batches: Iterable[Iterable[Record]]) -> float:
        """Return the tokens in all batches divided by the sum of their budgets, in [0, 1].

        Tokens are counted after truncation, including special tokens, but not those added by
        rounding up. 0.0 if there are no batches.

        Args:
            batches: Batches of dicts with a `sequence` (str), in any order.

        Raises:
            ValueError: A batch exceeds the budget, or a dict has no `sequence`.
            TypeError: A record is not a dict, or a `sequence` is not a str.

        Cost: O(n).

        Example:
            >>> GreedyPacker(10).compute_efficiency([[{"id": "a", "sequence": "MKT"}]])
            0.5
        """
        return compute_efficiency(batches, self.limits)

    def pack_lengths(
        self,
        lengths: ArrayLike,
        ids: Iterable[Any] | None = None,
        groups: Iterable[Any] | None = None,
    ) -> PackingPlan:
        """Return a plan for sequences of the given lengths.

        Args:
            lengths: Residues of each sequence, a 1-D array of any integer type and stride, or a
                list of int. A contiguous array is not copied.
            ids: ID of each sequence, to break ties between equal sizes: str or int, in a list, an
                array (fixed width, variable width or object) or an Arrow array. If None, ties are
                broken by row.
            groups: Group of each sequence: str or int, in a list or an array. Sequences of
                different groups share no batch, and each group is packed as if it were alone, in
                order of groups. For batches in order of rows, pass the number of a window of rows:
                ``np.arange(n) // window``.

        Returns:
            A plan of row numbers, from 0 in the order of `lengths`, or, if any sequence was split,
            of the numbers of `PackingPlan.fragments`. Batches are in order of placement. Within a
            batch, the largest size comes first; ties are broken by ID, then by row. With groups,
            `PackingPlan.group_offsets` has the first batch of each.

        Raises:
            ValueError: A length is negative, or exceeds the limit and overlong="error", or the
                default limit without special tokens; `lengths` is not one-dimensional; or `ids` or
                `groups` does not have one value per length.
            TypeError: Lengths are not integers, or IDs or groups have mixed types.
            OverflowError: The number of tokens or of truncated residues does not fit in 64 bits.

        Cost: O(n), and O(n log n) with IDs, which are compared only between equal sizes. With
        groups also O(n log n), and about 50 us per group, or seconds with method="tight".

        Example:
            >>> plan = GreedyPacker(100).pack_lengths([30, 60, 60], ids=["x", "z", "y"])
            >>> [rows.tolist() for rows in plan]
            [[2, 0], [1]]
            >>> plan = GreedyPacker(52, overlong="split").pack_lengths([30, 115])
            >>> [rows.tolist() for rows in plan]
            [[1], [2], [0, 3]]
            >>> plan.fragments.rows, plan.fragments.starts, plan.fragments.stops
            (array([0, 1, 1, 1]), array([  0,   0,  50, 100]), array([ 30,  50, 100, 115]))
            >>> plan = GreedyPacker(100).pack_lengths([30, 60, 60, 30], groups=["b", "a", "b", "b"])
            >>> [rows.tolist() for rows in plan], plan.group_offsets
            ([[1], [2, 0], [3]], array([0, 1, 3]))
        """
        lengths = check_lengths(lengths)
        plan = self.pack_silently(lengths, ids, groups)
        self._warn_of_dropped(lengths, plan.limits)
        warn_of_truncation(plan, self.describe_default())
        return plan

    def pack_silently(
        self,
        lengths: ArrayLike,
        ids: Iterable[Any] | None = None,
        groups: Iterable[Any] | None = None,
    ) -> PackingPlan:
        """Return the result of `pack_lengths` without a WARNING of what is truncated or dropped."""
        lengths = check_lengths(lengths)
        order = None if ids is None else check_ids(ids, len(lengths))
        numbers = None if groups is None else number_groups(groups, len(lengths))
        limits, threads = self.limits, check_threads(self.num_threads)
        self.check_overlong(lengths, limits)
        how = self.overlong, self.overlap, self.empty
        chosen = choose(lengths, order, limits.max_residues, *how)
        counts = TokenCounts(kernel.count(chosen.lengths, limits, threads), limits)
        if numbers is None:
            layout = self.lay_out(counts)
            places, offsets = kernel.list_rows(layout.core, chosen.lengths, chosen.ids, threads)
        else:
            core, places, group_offsets = pack_groups(
                counts.core, chosen, numbers, limits, self.method, threads
            )
            self._warn_of_limit(core, limits, has_groups=True)
            layout = Layout(core, limits, self.num_threads, group_offsets)
            offsets = None
        indices = chosen.numbers(places)
        return PackingPlan(layout, indices, offsets, chosen.dropped, chosen.fragments)

    def _tokenized_length(self, sequence: str) -> int:
        """Return the number of tokens that a sequence takes in a batch."""
        return self.limits.tokens(len(sequence))

    def _warn_of_truncation(
        self, records: list[Record], lengths: NDArray[np.int64], limit: int
    ) -> None:
        overlong = (lengths > limit).nonzero()[0]
        named = max(0, MAX_WARNINGS - self._num_truncated)
        self._num_truncated += len(overlong)
        truncating = "Sequence %s exceeds max_length (%d > %d), truncating to its first %d residues"
        for row in overlong[:named].tolist():
            logger.warning(truncating, shown(records[row].get("id")), lengths[row], limit, limit)
        for row in overlong[named:].tolist() if logger.isEnabledFor(logging.DEBUG) else ():
            logger.debug(truncating, shown(records[row].get("id")), lengths[row], limit, limit)
        if len(overlong) > named:
            removed = int(lengths[overlong].sum()) - limit * len(overlong)
            logger.warning(
                "%s sequences exceed %s (%d), truncating: %s residues removed, %s of all; "
                "%s sequences since this packer was created%s",
                f"{len(overlong):,}",
                self.limits.bound,
                limit,
                f"{removed:,}",
                percent(removed / int(lengths.sum())),
                f"{self._num_truncated:,}",
                self.describe_default(),
            )


def calculate_token_budget(
    device_id: int = 0,
    model_memory_gb: float = 5.0,
    safety_margin_gb: float = 2.0,
    bytes_per_token: int = 4096,
    min_tokens: int = 1024,
    max_tokens: int = 16384,
) -> int:
    """Estimate the token budget per batch that fits in GPU memory.

    The memory left after the model and the margin, at least 0.5 GiB, is divided by the memory per
    token, and the result is clamped to [`min_tokens`, `max_tokens`]. With the default of 4,096
    bytes per token every GPU reaches `max_tokens`: measure the memory per token of your model.

    Args:
        device_id: Index of the CUDA device.
        model_memory_gb: Memory of the model's weights in GiB.
        safety_margin_gb: Memory to keep free in GiB.
        bytes_per_token: Memory of the activations per token in bytes.
        min_tokens: Lower limit of the result.
        max_tokens: Upper limit of the result.

    Returns:
        The budget in tokens. Without CUDA, 4,096 clamped in the same way, with a WARNING.

    Raises:
        ValueError: The device does not exist, or a parameter is out of range.
        TypeError: `bytes_per_token`, `min_tokens` or `max_tokens` is not an integer, or
            `model_memory_gb` or `safety_margin_gb` is not a number.

    Example:
        >>> calculate_token_budget(max_tokens=2048)
        2048
    """
    bytes_per_token = check_integer(bytes_per_token, "bytes_per_token", 1)
    min_tokens = check_integer(min_tokens, "min_tokens", 1)
    max_tokens = check_integer(max_tokens, "max_tokens", min_tokens)
    for name, gb in ("model_memory_gb", model_memory_gb), ("safety_margin_gb", safety_margin_gb):
        if not isinstance(gb, numbers.Real):
            raise TypeError(f"{name} must be a number (got {quoted(gb)})")
        if not 0 <= gb < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite (got {gb})")
    try:
        import torch

        reason = "" if torch.cuda.is_available() else "CUDA not available"
    except ModuleNotFoundError:
        reason = "CUDA not available: torch is not installed"
    if reason:
        budget = max(min_tokens, min(max_tokens, 4096))
        logger.warning("%s, using a token budget of %d", reason, budget)
        return budget
    try:
        device = torch.cuda.get_device_properties(device_id)
    except Exception as error:
        raise ValueError(f"GPU {device_id} cannot be used: {shown(error)}") from error
    total_gb = device.total_memory / 1024**3
    available_gb = max(0.5, total_gb - model_memory_gb - safety_margin_gb)
    budget = max(min_tokens, min(max_tokens, int(available_gb * 1024**3) // bytes_per_token))
    message = "Token budget: %d (GPU %s: %.1fGB total, %.1fGB available)"
    logger.info(message, budget, device_id, total_gb, available_gb)
    return budget
