"""The parameters of a packer, read and checked together."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.overlong import EMPTY, OVERLONG
from virnucpro.kernel.arguments import check_integer, check_threads, check_version
from virnucpro.kernel.limits import NEWER_LIMITS, Limits
from virnucpro.text import quoted

LIMITS = tuple(field.name for field in fields(Limits))

# Returns the parameters of a packer as a tuple, in the order of `check_parameters`.
read_parameters = operator.attrgetter(
    *LIMITS, "overlong", "overlap", "empty", "method", "num_threads"
)

# Parameters that packers saved by earlier versions do not have, with their defaults.
NEWER_PARAMETERS = {**NEWER_LIMITS, "overlap": 0, "empty": "pack"}


class DefaultLength(int):
    """The default of `max_sequence_length`, by which a packer knows that none was passed."""

    __slots__ = ()


MAX_SEQUENCE_LENGTH = DefaultLength(1022)


class Parameters:
    """The parameters of a packer, plain attributes that are checked whenever they have changed."""

    max_tokens_per_batch: int
    max_sequence_length: int
    special_tokens: int
    max_sequences_per_batch: int | None
    multiple_of: int
    overlong: str
    overlap: int
    empty: str
    method: str
    num_threads: int | None
    _checked: tuple[tuple[Any, ...], Limits | None]

    def __init__(self, **parameters: Any) -> None:
        vars(self).update(parameters, _checked=((), None))
        _ = self.limits

    @property
    def limits(self) -> Limits:
        """The limits on batches and sequences. Raises if any parameter is invalid."""
        parameters = read_parameters(self)
        checked, limits = self._checked
        # The same objects need no second check; equal ones might be of another type.
        if limits is None or not all(map(operator.is_, parameters, checked)):
            limits = check_parameters(*parameters)
            self._checked = parameters, limits
        return limits

    def describe_default(self) -> str:
        """Return the remedy, for a WARNING, if the limit is the default that nobody chose."""
        limits = self.limits
        is_default = isinstance(self.max_sequence_length, DefaultLength)
        if not is_default or limits.bound != "max_sequence_length":
            return ""
        return (
            "; this default is for proteins: for the tokens of documents, use "
            f"GreedyPacker.for_documents({limits.max_tokens_per_batch})"
        )

    def check_documents(
        self, lengths: NDArray[Any], describe: Callable[[int], str] = "lengths[{}]".format
    ) -> None:
        """Raise ValueError if sequences without special tokens exceed the default limit.

        Those are documents, of which nothing must be lost to a limit that nobody chose. Does
        nothing if a `max_sequence_length` was passed, or if the budget is the lower limit. Errors
        refer to the sequence at position i by ``describe(i)``.
        """
        if self.special_tokens or not isinstance(self.max_sequence_length, DefaultLength):
            return
        limits = self.limits
        limit = limits.max_residues
        if limit == limits.usable_tokens:
            return
        if lengths.max(initial=0) > limit:
            is_longer = lengths > limit
            at = int(np.argmax(is_longer))
            raise ValueError(
                f"{describe(at)} exceeds the default max_sequence_length, which is for proteins "
                f"({lengths[at]} > {limit}); sequences above the limit: "
                f"{np.count_nonzero(is_longer):,} of {len(lengths):,}; without special tokens, "
                "pass max_sequence_length=..., such as the budget, or use "
                f"GreedyPacker.for_documents({limits.max_tokens_per_batch})"
            )

    def __getstate__(self) -> dict[str, Any]:
        attributes = {name: value for name, value in vars(self).items() if name != "_checked"}
        state = {"version": 1, "attributes": attributes}
        if isinstance(self.max_sequence_length, DefaultLength):
            # Earlier versions read the attribute as an int.
            attributes["max_sequence_length"] = int(self.max_sequence_length)
            state["has_default_length"] = True
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_version(state, "GreedyPacker", 1)
        vars(self).update({**NEWER_PARAMETERS, **state["attributes"], "_checked": ((), None)})
        if state.get("has_default_length"):
            self.max_sequence_length = MAX_SEQUENCE_LENGTH

    def __repr__(self) -> str:
        return (
            f"GreedyPacker({self.max_tokens_per_batch}, {self.max_sequence_length}, "
            f"special_tokens={self.special_tokens}, overlong={self.overlong!r}, "
            f"overlap={self.overlap}, max_sequences_per_batch={self.max_sequences_per_batch}, "
            f"multiple_of={self.multiple_of}, empty={self.empty!r}, "
            f"num_threads={self.num_threads}, method={self.method!r})"
        )


def check_parameters(*parameters: Any) -> Limits:
    """Return the limits among a packer's parameters. Raise if any parameter is invalid."""
    *limits, overlong, overlap, empty, method, num_threads = parameters
    checked = Limits(*limits)
    if overlong not in OVERLONG:
        raise ValueError(
            f"overlong must be 'truncate', 'error', 'drop' or 'split' (got {quoted(overlong)})"
        )
    overlap = check_integer(overlap, "overlap", 0, checked.max_residues - 1)
    if overlap and overlong != "split":
        raise ValueError(f"overlap must be 0 unless overlong='split' (got {overlap:,})")
    if empty not in EMPTY:
        raise ValueError(f"empty must be 'pack' or 'drop' (got {quoted(empty)})")
    if method not in ("ffd", "tight"):
        raise ValueError(f"method must be 'ffd' or 'tight' (got {quoted(method)})")
    check_threads(num_threads)
    return checked
