"""Packing of sequences into token-budget batches, and the budget that a GPU has room for."""

from __future__ import annotations

import functools
import logging
import math
import numbers
from collections.abc import Iterable
from dataclasses import fields
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from virnucpro import kernel
from virnucpro.data.plan import Layout, PackingPlan, TokenCounts
from virnucpro.data.records import Record, check_sequence, count_tokens, read_records
from virnucpro.extras import needing
from virnucpro.kernel.arguments import (
    OrderedIds,
    check_ids,
    check_integer,
    check_lengths,
    check_list,
    check_threads,
    check_version,
)
from virnucpro.kernel.limits import MOST_TOKENS, Limits

__all__ = ["GreedyPacker", "PackingPlan", "calculate_token_budget"]

logger = logging.getLogger(__name__)

# Truncated sequences that a packer names one by one at WARNING.
MOST_WARNINGS = 100


class GreedyPacker:
    """Packs sequences into batches of at most so many tokens, by exact First-Fit Decreasing.

    Sequences are taken longest first, and each goes to the first batch that has room for it
    (D. S. Johnson, Near-Optimal Bin Packing Algorithms, 1973). A sequence of n residues has
    ``min(n, limit) + special_tokens`` tokens, where ``limit = min(max_sequence_length,
    max_tokens_per_batch - special_tokens)``, so no batch ever exceeds the budget. The same input
    gives the same batches for any number of threads and on any platform.

    Args:
        max_tokens_per_batch: The budget of a batch in tokens, at most 2**62.
        max_sequence_length: Residues kept of a sequence, from its N-terminal end.
        special_tokens: Tokens added to each sequence; 2 for BOS and EOS.
        overlong: "truncate" cuts sequences above the limit, "error" refuses them.
        max_sequences_per_batch: The most sequences of a batch, None for any number.
        num_threads: The most threads to use, None for as many as the cores of this process.
        method: "ffd" for First-Fit Decreasing; "tight" for layouts by column generation, which need
            fewer batches where sequences are large against the budget, never more, and come with
            the proof of how close they are (`Layout.lower_bound`). Batches come in order of falling
            longest sequence, all else is the same. Takes seconds, and highspy
            (``pip install 'virnucpro[tight]'``).

    Raises:
        ValueError: A parameter is out of range, or the budget has no room for one residue.
        TypeError: A parameter has the wrong type.

    Parameters are plain attributes. They may be changed between calls and are checked when used.

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
        max_sequence_length: int = 1022,
        *,
        special_tokens: int = 2,
        overlong: str = "truncate",
        max_sequences_per_batch: int | None = None,
        num_threads: int | None = None,
        method: str = "ffd",
    ) -> None:
        self.max_tokens_per_batch = max_tokens_per_batch
        self.max_sequence_length = max_sequence_length
        self.special_tokens = special_tokens
        self.overlong = overlong
        self.max_sequences_per_batch = max_sequences_per_batch
        self.num_threads = num_threads
        self.method = method
        self._num_truncated = 0
        _ = self.limits

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if not name.startswith("_"):
            # To be checked again when it is used.
            vars(self).pop("limits", None)

    @functools.cached_property
    def limits(self) -> Limits:
        """The limits of batches and sequences, checked together with all other parameters.

        Raises:
            ValueError: A parameter is out of range, or the budget has no room for one residue.
            TypeError: A parameter has the wrong type.
        """
        limits = Limits(**{field.name: getattr(self, field.name) for field in fields(Limits)})
        if self.overlong not in ("truncate", "error"):
            raise ValueError(f"overlong must be 'truncate' or 'error' (got {self.overlong!r})")
        if self.method not in ("ffd", "tight"):
            raise ValueError(f"method must be 'ffd' or 'tight' (got {self.method!r})")
        check_threads(self.num_threads)
        return limits

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != "limits"}
        return {"version": 1, **state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_version(state, "GreedyPacker", 1)
        vars(self).update({name: value for name, value in state.items() if name != "version"})

    def __repr__(self) -> str:
        return (
            f"GreedyPacker({self.max_tokens_per_batch}, {self.max_sequence_length}, "
            f"special_tokens={self.special_tokens}, overlong={self.overlong!r}, "
            f"max_sequences_per_batch={self.max_sequences_per_batch}, "
            f"num_threads={self.num_threads}, method={self.method!r})"
        )

    def pack_sequences(self, sequences: Iterable[Record]) -> list[list[Record]]:
        """Return batches of the sequences.

        Args:
            sequences: Dicts with an `id` (all str or all int) and a `sequence` (str). Neither the
                list nor its dicts are changed.

        Returns:
            The batches in order of placement; within a batch the longest sequence comes first,
            equal ones in order of `id`, then of input. A truncated sequence is a copy of its dict
            with the short `sequence` and ``truncated=True``; all others are the dicts passed in.

        Raises:
            ValueError: A dict lacks `id` or `sequence`, or is too long under overlong="error".
            TypeError: A record is not a dict, a `sequence` not a str, or IDs are of mixed types.

        The first 100 sequences that a packer truncates are named at WARNING, one by one. Later
        ones are named at DEBUG, with their number at WARNING once a call.

        Cost: O(n) and a sort of the IDs of equally long sequences.

        Example:
            >>> GreedyPacker(5).pack_sequences([{"id": 7, "sequence": "MKTAYI"}])
            [[{'id': 7, 'sequence': 'MKT', 'truncated': True}]]
        """
        limit = self.limits.max_residues
        records = check_list(sequences, "sequences", "a list of dicts")
        ids, lengths = read_records(records, "sequences")
        overlong = np.flatnonzero(lengths > limit)
        if len(overlong) > 0:
            if self.overlong == "error":
                row = overlong[0]
                raise ValueError(
                    f"Sequence {records[row].get('id')} exceeds max_length "
                    f"({lengths[row]} > {limit}); "
                    f"{len(overlong):,} of {len(records):,} sequences do"
                )
            self._warn_of_truncation(records, lengths, overlong, limit)
            for row in overlong.tolist():
                # Read a second time, of a record that may have changed.
                sequence = check_sequence(records[row], "sequences", row)
                records[row] = {**records[row], "sequence": sequence[:limit], "truncated": True}
        plan = self._list_rows(self.lay_out(self._count(lengths)), lengths, ids)
        return kernel.gather(records, plan.indices, plan.offsets)

    def sort_by_length(self, sequences: Iterable[Record]) -> list[Record]:
        """Return the sequences in a new list, longest first, ties by `id`, then by input order.

        Lengths are those before truncation, and no sequence is too long. Argument and errors are
        else those of `pack_sequences`.

        Cost: O(n) and a sort of the IDs of equally long sequences.

        Example:
            >>> records = [{"id": "b", "sequence": "MK"}, {"id": "a", "sequence": "MK"},
            ...            {"id": "c", "sequence": "MKT"}]
            >>> [record["id"] for record in GreedyPacker(4096).sort_by_length(records)]
            ['c', 'a', 'b']
        """
        records = check_list(sequences, "sequences", "a list of dicts")
        ids, lengths = read_records(records, "sequences")
        # One batch without limits holds all sequences in this order.
        whole = GreedyPacker(
            MOST_TOKENS, MOST_TOKENS, special_tokens=0, num_threads=self.num_threads
        )
        plan = whole._list_rows(whole.lay_out(whole._count(lengths)), lengths, ids)
        everything = np.array([0, len(records)], np.int64)
        return kernel.gather(records, plan.indices, everything)[0]

    def compute_efficiency(self, batches: Iterable[Iterable[Record]]) -> float:
        """Return the tokens in all batches by the tokens they have room for, in [0, 1].

        Sequences count as they would be packed: truncated, with special tokens. 0.0 without
        batches.

        Args:
            batches: Batches of dicts with a `sequence` (str), in any order.

        Raises:
            ValueError: A batch holds more tokens than the budget, or a dict lacks its `sequence`.
            TypeError: A record is not a dict, or a `sequence` not a str.

        Cost: O(n).

        Example:
            >>> GreedyPacker(10).compute_efficiency([[{"id": "a", "sequence": "MKT"}]])
            0.5
        """
        limits = self.limits
        budget = limits.max_tokens_per_batch
        total = 0
        num_batches = 0
        for num_batches, batch in enumerate(batches, start=1):
            name = f"batches[{num_batches - 1}]"
            tokens = count_tokens(check_list(batch, name, "a list of dicts"), name, limits)
            if tokens > budget:
                raise ValueError(
                    f"{name} has {tokens:,} tokens, more than the budget of {budget:,}"
                )
            total += tokens
        return total / (num_batches * budget) if num_batches else 0.0

    def pack_lengths(self, lengths: ArrayLike, ids: Iterable[Any] | None = None) -> PackingPlan:
        """Return a plan for sequences of these lengths.

        Args:
            lengths: Residues of each sequence, a 1-D array of any integer type and stride, or a
                list of int. A contiguous array is not copied.
            ids: The ID of each sequence, by which equal ones are put in order: str or int, in a
                list, an array (fixed width, variable width or object) or an Arrow array. Row order
                without them.

        Returns:
            Rows, numbered from 0 in the order of `lengths`, in batches in order of placement;
            within a batch the most tokens come first, equal ones in order of ID, then of row.

        Raises:
            ValueError: A length is negative, above the limit under overlong="error", or not in
                one dimension; or there is not one ID a length.
            TypeError: Lengths are not integers, or IDs of mixed types.
            OverflowError: All tokens together, or the residues cut off, need more than 64 bits.

        Cost: O(n), and O(n log n) for IDs, which are only compared between equal sizes.

        Example:
            >>> plan = GreedyPacker(100).pack_lengths([30, 60, 60], ids=["x", "z", "y"])
            >>> [rows.tolist() for rows in plan]
            [[2, 0], [1]]
        """
        lengths = check_lengths(lengths)
        order = None if ids is None else check_ids(ids, len(lengths))
        return self._list_rows(self.lay_out(self.count(lengths)), lengths, order)

    def assign_batches(
        self, lengths: ArrayLike, out: NDArray[Any] | None = None
    ) -> NDArray[np.signedinteger[Any]]:
        """Return the batch number of every row, in row order; ties by row.

        The same as `count`, `lay_out` and `Layout.assign` in one call, with their arguments and
        errors.

        Args:
            lengths: Residues of each row, a 1-D array of any integer type and stride, or a list of
                int.
            out: Where to write: an int32 or int64 array of the shape of `lengths` that does not
                overlap it, ``np.memmap`` included.

        Returns:
            `out`, or a new array [n] of int32, or of int64 from 2**31 rows on.

        Cost: O(n).

        Example:
            >>> GreedyPacker(100).assign_batches([30, 60, 60])
            array([0, 0, 1], dtype=int32)
        """
        lengths = check_lengths(lengths)
        return self.lay_out(self.count(lengths)).assign(lengths, out=out)

    def count(self, lengths: ArrayLike) -> TokenCounts:
        """Return how many sequences have each number of tokens.

        One WARNING tells how many sequences are too long.

        Args:
            lengths: Residues of each sequence, a 1-D array of any integer type and stride, or a
                list of int.

        Raises:
            ValueError: A length is negative, above the limit under overlong="error", or not in
                one dimension.
            TypeError: Lengths are not integers.
            OverflowError: The residues cut off need more than 64 bits. `lay_out` tells whether all
                tokens do.

        Cost: O(n), memory for a table of all lengths up to the longest one or the limit; where
        that were larger than `lengths`, a sorted copy of these.

        Example:
            >>> GreedyPacker(4096).count([30, 30, 500])
            TokenCounts(3 sequences of 2 sizes)
        """
        counts = self.count_silently(lengths)
        warn_of_truncation(counts)
        return counts

    def lay_out(self, counts: TokenCounts) -> Layout:
        """Return the layout of counted sequences.

        Args:
            counts: What `count` returned, by a packer with the same limit and special tokens, or
                the sum of such counts.

        Raises:
            ValueError: The counts were made with another limit or other special tokens.
            TypeError: The argument is no `TokenCounts`.
            ModuleNotFoundError: method="tight" without highspy.
            OverflowError: All tokens together need more than 64 bits.

        Cost: O(runs * log(runs)) with a run for each stretch of batches that a size goes to; no
        term in the number of sequences. For method="tight" a linear program and knapsack problems
        of O(distinct sizes * budget), some hundred times; where there are more than 4,096 sizes, or
        2**27 steps in each, the layout is that of First-Fit Decreasing, with a WARNING.

        Example:
            >>> packer = GreedyPacker(100)
            >>> packer.lay_out(packer.count([30, 60, 60])).num_batches
            2
        """
        limits = self.limits
        if not isinstance(counts, TokenCounts):
            raise TypeError(f"counts must be TokenCounts (got {type(counts).__name__})")
        made_with = counts.limits
        if (made_with.max_residues, made_with.special_tokens) != (
            limits.max_residues,
            limits.special_tokens,
        ):
            raise ValueError(
                f"counts were made for at most {made_with.max_residues:,} residues and "
                f"{made_with.special_tokens:,} special tokens, not for {limits.max_residues:,} "
                f"and {limits.special_tokens:,}"
            )
        core = counts.core.with_limits(limits)
        if self.method == "tight":
            laid_out = column_generation().lay_out(core, limits.max_tokens_per_batch)
        else:
            laid_out = kernel.first_fit_decreasing(core)
        return Layout(laid_out, limits, self.num_threads)

    def _tokenized_length(self, sequence: str) -> int:
        """Tokens of a sequence: its residues, at most the limit, and the special tokens."""
        return self.limits.tokens(len(sequence))

    def count_silently(self, lengths: ArrayLike) -> TokenCounts:
        """Count as `count` does, without its WARNING."""
        limit = self.limits.max_residues
        lengths = check_lengths(lengths)
        if self.overlong == "error" and lengths.max(initial=0) > limit:
            row = int(np.argmax(lengths > limit))
            raise ValueError(
                f"lengths[{row}] exceeds max_length ({lengths[row]} > {limit}); "
                f"{np.count_nonzero(lengths > limit):,} of {len(lengths):,} sequences do"
            )
        return self._count(lengths)

    def _count(self, lengths: NDArray[Any]) -> TokenCounts:
        limits = self.limits
        return TokenCounts(kernel.count(lengths, limits, check_threads(self.num_threads)), limits)

    def _list_rows(
        self,
        layout: Layout,
        lengths: NDArray[Any],
        order: OrderedIds | None,
    ) -> PackingPlan:
        num_threads = check_threads(self.num_threads)
        indices, offsets = kernel.list_rows(layout.core, lengths, order, num_threads)
        return PackingPlan(layout.core, layout.limits, indices, offsets, self.num_threads)

    def _warn_of_truncation(
        self,
        records: list[Record],
        lengths: NDArray[np.int64],
        overlong: NDArray[np.intp],
        limit: int,
    ) -> None:
        named = max(0, MOST_WARNINGS - self._num_truncated)
        self._num_truncated += len(overlong)
        truncating = "Sequence %s exceeds max_length (%d > %d), truncating to its first %d residues"
        for position, row in enumerate(overlong.tolist()):
            details = (records[row].get("id"), lengths[row], limit, limit)
            if position < named:
                logger.warning(truncating, *details)
            elif logger.isEnabledFor(logging.DEBUG):
                logger.debug(truncating, *details)
            else:
                break
        if len(overlong) > named:
            logger.warning(
                "%s sequences exceed max_length (%d), truncating: %s residues lost; "
                "%s sequences since this packer was made",
                f"{len(overlong):,}",
                limit,
                f"{int((lengths[overlong] - limit).sum()):,}",
                f"{self._num_truncated:,}",
            )


def column_generation() -> ModuleType:
    """Return the module of method="tight", which needs more than NumPy."""
    with needing("method='tight'", "tight"):
        from virnucpro.kernel import column_generation
    return column_generation


def warn_of_truncation(counts: TokenCounts) -> None:
    """Log how many of counted sequences are too long."""
    if counts.num_truncated:
        logger.warning(
            "%s of %s sequences exceed max_length (%d), truncating: %s residues lost",
            f"{counts.num_truncated:,}",
            f"{counts.num_sequences:,}",
            counts.limits.max_residues,
            f"{counts.truncated_residues:,}",
        )


def calculate_token_budget(
    device_id: int = 0,
    model_memory_gb: float = 5.0,
    safety_margin_gb: float = 2.0,
    bytes_per_token: int = 4096,
    min_tokens: int = 1024,
    max_tokens: int = 16384,
) -> int:
    """Return the tokens a batch that a GPU's memory has room for.

    The memory left beside the model and the margin, at least 0.5 GiB, is divided by the bytes that
    a token needs; the result is clamped to `min_tokens` and `max_tokens`. At the default of 4,096
    bytes a token every card reaches `max_tokens`: measure the bytes of your model and pass them.

    Args:
        device_id: The CUDA device.
        model_memory_gb: Memory of the model's weights in GiB.
        safety_margin_gb: Memory to leave alone in GiB.
        bytes_per_token: Memory of a token's activations in bytes.
        min_tokens: The least tokens to return.
        max_tokens: The most tokens to return.

    Returns:
        Tokens a batch. Without CUDA, 4,096, clamped in the same way, with a WARNING.

    Raises:
        ValueError: The device does not exist, or a parameter is out of range.
        TypeError: `bytes_per_token`, `min_tokens` or `max_tokens` is not an integer, or the memory
            or the margin not a number.

    Example:
        >>> calculate_token_budget(max_tokens=2048)
        2048
    """
    bytes_per_token = check_integer(bytes_per_token, "bytes_per_token", 1)
    min_tokens = check_integer(min_tokens, "min_tokens", 1)
    max_tokens = check_integer(max_tokens, "max_tokens", min_tokens)
    for name, gb in ("model_memory_gb", model_memory_gb), ("safety_margin_gb", safety_margin_gb):
        if not isinstance(gb, numbers.Real):
            raise TypeError(f"{name} must be a number (got {gb!r})")
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
        raise ValueError(f"GPU {device_id} cannot be used: {error}") from error
    total_gb = device.total_memory / 1024**3
    available_gb = max(0.5, total_gb - model_memory_gb - safety_margin_gb)
    budget = max(min_tokens, min(max_tokens, int(available_gb * 1024**3) // bytes_per_token))
    logger.info(
        "Token budget: %d (GPU %s: %.1fGB total, %.1fGB available)",
        budget,
        device_id,
        total_gb,
        available_gb,
    )
    return budget
