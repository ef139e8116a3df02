"""What batches may hold, and the tokens of sequences."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernel.arguments import check_integer

# The kernel counts tokens in 64 bits; this leaves room to add two of them.
MOST_TOKENS = 2**62


@dataclass(frozen=True)
class Limits:
    """What a batch may hold, and how many tokens a sequence has.

    A sequence of n residues has ``min(n, max_residues) + special_tokens`` tokens. The kernel,
    plans on disk and loaders take this value whole.

    Args:
        max_tokens_per_batch: The token budget of a batch, special tokens included, at most 2**62.
        max_sequence_length: The most residues kept of a sequence, from its N-terminal end.
        special_tokens: Tokens added to each sequence; 2 for BOS and EOS.
        max_sequences_per_batch: The limit on sequences of a batch; None for no limit.

    Raises:
        ValueError: A limit is out of range, or the budget has no room for one residue.
        TypeError: A limit is not an integer.

    Example:
        >>> limits = Limits(max_tokens_per_batch=100)
        >>> limits.max_residues, limits.tokens(30), limits.tokens(5000)
        (98, 32, 100)
    """

    max_tokens_per_batch: int
    max_sequence_length: int = 1022
    special_tokens: int = 2
    max_sequences_per_batch: int | None = None

    def __post_init__(self) -> None:
        checked = {
            "special_tokens": check_integer(
                self.special_tokens, "special_tokens", 0, MOST_TOKENS - 1
            ),
            "max_sequence_length": check_integer(
                self.max_sequence_length, "max_sequence_length", 1
            ),
            "max_tokens_per_batch": check_integer(
                self.max_tokens_per_batch, "max_tokens_per_batch", 1, MOST_TOKENS
            ),
        }
        if self.max_sequences_per_batch is not None:
            checked["max_sequences_per_batch"] = check_integer(
                self.max_sequences_per_batch, "max_sequences_per_batch", 1, 2**63 - 1
            )
        if checked["max_tokens_per_batch"] <= checked["special_tokens"]:
            raise ValueError(
                f"max_tokens_per_batch must have room for one residue and "
                f"{self.special_tokens:,} special tokens (got {self.max_tokens_per_batch:,})"
            )
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def max_residues(self) -> int:
        """The most residues kept of a sequence; never more than fit with the special tokens."""
        return min(self.max_sequence_length, self.max_tokens_per_batch - self.special_tokens)

    @overload
    def tokens(self, lengths: int) -> int: ...
    @overload
    def tokens(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def tokens(self, lengths: Any) -> Any:
        """Return the tokens of sequences of these lengths, in residues: an int, or int64 [n]."""
        kept = min(lengths, self.max_residues) if isinstance(lengths, int) else None
        if kept is None:
            kept = np.minimum(lengths, self.max_residues)
        return kept + self.special_tokens

    def to_dict(self) -> dict[str, Any]:
        """Return the limits by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, limits: dict[str, Any]) -> Limits:
        """Return the limits that `to_dict` returned, here or in an earlier version.

        Raises:
            ValueError: A limit is unknown, out of range, or missing without a default.
            TypeError: A limit is not an integer.
        """
        if not isinstance(limits, dict):
            raise TypeError(f"limits must be a dict (got {type(limits).__name__})")
        unknown = limits.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown limit {sorted(unknown)[0]!r}")
        if "max_tokens_per_batch" not in limits:
            raise ValueError("limits have no 'max_tokens_per_batch'")
        return cls(**limits)

    def __reduce__(self) -> tuple[Any, ...]:
        return Limits.from_dict, (self.to_dict(),)
