"""The parameters of a packer, read and checked together."""

from __future__ import annotations

import operator
from dataclasses import fields
from typing import Any

from virnucpro.data.overlong import OVERLONG
from virnucpro.kernel.arguments import check_integer, check_threads, check_version
from virnucpro.kernel.limits import NEWER_LIMITS, Limits
from virnucpro.text import quoted

LIMITS = tuple(field.name for field in fields(Limits))

# Returns the parameters of a packer as a tuple, in the order of `check_parameters`.
read_parameters = operator.attrgetter(*LIMITS, "overlong", "overlap", "method", "num_threads")

# Parameters that packers saved by earlier versions do not have, with their defaults.
NEWER_PARAMETERS = {**NEWER_LIMITS, "overlap": 0}


class Parameters:
    """The parameters of a packer, plain attributes that are checked whenever they have changed."""

    max_tokens_per_batch: int
    max_sequence_length: int
    special_tokens: int
    max_sequences_per_batch: int | None
    multiple_of: int
    overlong: str
    overlap: int
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

    def __getstate__(self) -> dict[str, Any]:
        attributes = {name: value for name, value in vars(self).items() if name != "_checked"}
        return {"version": 1, "attributes": attributes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_version(state, "GreedyPacker", 1)
        vars(self).update({**NEWER_PARAMETERS, **state["attributes"], "_checked": ((), None)})

    def __repr__(self) -> str:
        return (
            f"GreedyPacker({self.max_tokens_per_batch}, {self.max_sequence_length}, "
            f"special_tokens={self.special_tokens}, overlong={self.overlong!r}, "
            f"overlap={self.overlap}, max_sequences_per_batch={self.max_sequences_per_batch}, "
            f"multiple_of={self.multiple_of}, num_threads={self.num_threads}, "
            f"method={self.method!r})"
        )


def check_parameters(*parameters: Any) -> Limits:
    """Return the limits among a packer's parameters. Raise if any parameter is invalid."""
    *limits, overlong, overlap, method, num_threads = parameters
    checked = Limits(*limits)
    if overlong not in OVERLONG:
        raise ValueError(
            f"overlong must be 'truncate', 'error', 'drop' or 'split' (got {quoted(overlong)})"
        )
    overlap = check_integer(overlap, "overlap", 0, checked.max_residues - 1)
    if overlap and overlong != "split":
        raise ValueError(f"overlap must be 0 unless overlong='split' (got {overlap:,})")
    if method not in ("ffd", "tight"):
        raise ValueError(f"method must be 'ffd' or 'tight' (got {quoted(method)})")
    check_threads(num_threads)
    return checked
