"""Limits on batches and sequences."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernel.arguments import check_integer
from virnucpro.text import quoted

# The kernel counts tokens in 64 bits; this leaves room for the sum of two sizes.
MAX_TOKENS = 2**62

# Limits that values saved by earlier versions do not have, with the defaults to read them with.
NEWER_LIMITS: dict[str, Any] = {"multiple_of": 1}


@dataclass(frozen=True)
class Limits:
    """The limits on batches and sequences, which determine the tokens of each sequence.

    A sequence of n residues has ``min(n, max_residues) + special_tokens`` tokens, rounded up to a
    multiple of `multiple_of`: what it takes in a batch. Packers, layouts and plans have one such
    value as their `limits`. It is immutable, hashable, picklable, and comparable with ``==``.

    Args:
        max_tokens_per_batch: Token budget per batch, including special tokens; at most 2**62.
        max_sequence_length: Maximum residues kept per sequence, from the N-terminal end.
        special_tokens: Number of special tokens added to each sequence; 2 for BOS and EOS.
        max_sequences_per_batch: Maximum sequences per batch; None for unlimited.
        multiple_of: The tokens of each sequence are rounded up to a multiple of this; those added
            are padding.

    Raises:
        ValueError: A limit is out of range, or the budget has no room for one residue.
        TypeError: A limit is not an integer.

    Example:
        >>> limits = Limits(max_tokens_per_batch=100)
        >>> limits.max_residues, limits.tokens(30), limits.tokens(5000)
        (98, 32, 100)
        >>> limits = Limits(max_tokens_per_batch=100, multiple_of=16)
        >>> limits.max_residues, limits.tokens(31), limits.tokens(5000)
        (94, 48, 96)
    """

    max_tokens_per_batch: int
    max_sequence_length: int = 1022
    special_tokens: int = 2
    max_sequences_per_batch: int | None = None
    multiple_of: int = 1

    def __post_init__(self) -> None:
        self._check("special_tokens", 0, MAX_TOKENS - 1)
        self._check("max_sequence_length", 1)
        self._check("max_tokens_per_batch", 1, MAX_TOKENS)
        if self.max_sequences_per_batch is not None:
            self._check("max_sequences_per_batch", 1, 2**63 - 1)
        self._check("multiple_of", 1)
        if self.usable_tokens <= self.special_tokens:
            rounded = f", rounded up to a multiple of {self.multiple_of:,}"
            raise ValueError(
                f"max_tokens_per_batch must leave room for one residue and "
                f"{self.special_tokens:,} special tokens{rounded if self.multiple_of > 1 else ''} "
                f"(got {self.max_tokens_per_batch:,})"
            )

    def _check(self, name: str, minimum: int, maximum: int | None = None) -> None:
        """Replace an integer of any type by an int within bounds."""
        object.__setattr__(self, name, check_integer(getattr(self, name), name, minimum, maximum))

    @property
    def usable_tokens(self) -> int:
        """The token budget, rounded down to a multiple of `multiple_of`."""
        return self.max_tokens_per_batch - self.max_tokens_per_batch % self.multiple_of

    @property
    def max_residues(self) -> int:
        """Maximum residues kept per sequence, `max_sequence_length` or fewer to fit in a batch."""
        return min(self.max_sequence_length, self.usable_tokens - self.special_tokens)

    @property
    def bound(self) -> str:
        """What sets `max_residues`, for messages."""
        room = self.usable_tokens - self.special_tokens
        return "max_sequence_length" if self.max_sequence_length < room else "the room of a batch"

    @overload
    def tokens(self, lengths: int) -> int: ...
    @overload
    def tokens(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def tokens(self, lengths: Any) -> Any:
        """Return the number of tokens of sequences.

        Args:
            lengths: Residues, an int or an integer array.

        Returns:
            The tokens after truncation, including special tokens and padding, an int or an array.

        Example:
            >>> Limits(100).tokens(np.array([5, 5000]))
            array([  7, 100])
        """
        if isinstance(lengths, int):
            tokens: Any = min(lengths, self.max_residues) + self.special_tokens
        else:
            # Narrow integers might not hold the tokens.
            lengths = np.asarray(lengths, np.int64)
            tokens = np.minimum(lengths, self.max_residues) + self.special_tokens
        if self.multiple_of == 1:
            return tokens
        return (tokens + (self.multiple_of - 1)) // self.multiple_of * self.multiple_of

    def to_dict(self) -> dict[str, Any]:
        """Return the limits as a dict, without `multiple_of` if it is 1.

        So earlier versions read it unless it has a limit that they do not know.
        """
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in NEWER_LIMITS or value != NEWER_LIMITS[name]
        }

    @classmethod
    def from_dict(cls, limits: dict[str, Any]) -> Limits:
        """Return limits from the result of `to_dict`, of this or an earlier version.

        Raises:
            ValueError: A limit is unknown, missing or out of range.
            TypeError: A limit is not an integer.
        """
        if not isinstance(limits, dict):
            raise TypeError(f"limits must be a dict (got {type(limits).__name__})")
        unknown = limits.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown limit {quoted(sorted(unknown)[0])}")
        missing = {field.name for field in fields(cls)} - limits.keys() - NEWER_LIMITS.keys()
        if missing:
            raise ValueError(f"limits have no {quoted(min(missing))}")
        return cls(**{**NEWER_LIMITS, **limits})

    def __reduce__(self) -> tuple[Any, ...]:
        return Limits.from_dict, (self.to_dict(),)
