"""The states of values: dicts with a version, as `to_dict` returns them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernel.arguments import check_version
from virnucpro.text import quoted, shown


def are_equal(array: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    """Return whether both are None, or arrays with equal values."""
    if array is None or other is None:
        return array is other
    return np.array_equal(array, other)


def read_state(
    state: dict[str, Any],
    name: str,
    part: str,
    types: Mapping[str, tuple[type, ...]],
    version: int = 1,
) -> tuple[Any, dict[str, Any]]:
    """Split the state of a value into one part and its other fields, of the types given."""
    check_version(state, name, version)
    names = {"version", part, *types}
    if state.keys() != names:
        wrong = min(state.keys() ^ names, key=str)
        problem = "an unknown" if wrong in state else "no"
        raise ValueError(f"the state of a {name} has {problem} field {quoted(wrong)}")
    for key, kinds in types.items():
        value = state[key]
        found: Any = value.dtype.type if isinstance(value, np.ndarray) else type(value)
        if found not in kinds:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{key} in the state of a {name} must be {wanted} (got {found})")
        if found is int and not -(2**63) <= value < 2**63:
            raise ValueError(f"{key} in the state of a {name} exceeds 64 bits (got {shown(value)})")
    return state[part], {key: state[key] for key in types}
