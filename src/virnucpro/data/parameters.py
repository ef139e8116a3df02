"""The parameters of a packer, read and checked together."""

from __future__ import annotations

import operator
from dataclasses import fields
from typing import Any

from virnucpro.kernel.arguments import check_threads
from virnucpro.kernel.limits import Limits

LIMITS = tuple(field.name for field in fields(Limits))

# Returns the parameters of a packer as a tuple, in the order of `check_parameters`.
read_parameters = operator.attrgetter(*LIMITS, "overlong", "method", "num_threads")


def check_parameters(*parameters: Any) -> Limits:
    """Return the limits among a packer's parameters. Raise if any parameter is invalid."""
    *limits, overlong, method, num_threads = parameters
    checked = Limits(*limits)
    if overlong not in ("truncate", "error"):
        raise ValueError(f"overlong must be 'truncate' or 'error' (got {overlong!r})")
    if method not in ("ffd", "tight"):
        raise ValueError(f"method must be 'ffd' or 'tight' (got {method!r})")
    check_threads(num_threads)
    return checked
