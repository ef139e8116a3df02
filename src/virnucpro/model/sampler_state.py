"""Validation of the states of `PackedBatchSampler`."""

from __future__ import annotations

from typing import Any

from virnucpro.kernel.arguments import check_integer
from virnucpro.text import quoted

# The version of states. Increase it if the same state would yield other batches.
STATE_VERSION = 2


def check_state(state: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return a state of this version, whose `done` are pairs of positive integers.

    Raises:
        ValueError: The state has another version, or is for a sampler with other parameters.
        TypeError: It is not a state.
    """
    if not isinstance(state, dict) or "epoch" not in state:
        raise TypeError(f"state must be a dict returned by state_dict (got {quoted(state)})")
    version = state.get("version")
    if version == 1:
        state = upgrade(state)
    elif version != STATE_VERSION:
        raise ValueError(
            f"the state must have version {STATE_VERSION} (got {quoted(version)}): it was "
            "saved by another version of virnucpro"
        )
    for name, value in parameters.items():
        if state.get(name) != value:
            raise ValueError(
                f"the state is for a sampler with {name}={quoted(state.get(name))}, but this "
                f"sampler has {name}={quoted(value)}"
            )
    pairs = state.get("done")
    if not isinstance(pairs, (list, tuple)):
        raise TypeError(f"'done' in the state must be a list (got {quoted(pairs)})")
    done = []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise TypeError(f"'done' in the state must have pairs (got {quoted(pair)})")
        ranks = check_integer(pair[0], "the number of ranks in the state", 1)
        done.append((ranks, check_integer(pair[1], "the number of batches done in the state", 0)))
    return {**state, "done": done}


def upgrade(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state of version 1, which has the steps of one rank, as one of this version."""
    if state.get("shuffle"):
        raise ValueError(
            "the state has version 1, which shuffled batches one by one: this version has other "
            f"batches in its epoch; use set_epoch({state['epoch']}) to start this epoch anew"
        )
    ranks = check_integer(state.get("world_size"), "the number of ranks in the state", 1)
    step = check_integer(state.get("step"), "step", 0)
    number = check_integer(state.get("num_batches"), "num_batches", 0)
    if state.get("even"):
        number += -number % ranks
    done = [(ranks, min(step * ranks, number))]
    return {**state, "drop_last": False, "repack": None, "done": done}
