"""The rank of this process among those that train or run a model together."""

from __future__ import annotations

import os

import torch.distributed

from virnucpro.kernel.arguments import check_integer
from virnucpro.text import quoted


def check_rank(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    """Return a rank and a number of ranks that were given together; None if neither was.

    Raises:
        ValueError: Only one was given, or one is out of range.
        TypeError: One is not an integer.
    """
    if (rank is None) != (world_size is None):
        raise ValueError("rank and world_size must be given together")
    if rank is None:
        return None
    size = check_integer(world_size, "world_size", 1)
    return check_integer(rank, "rank", 0, size - 1), size


def find_rank() -> tuple[int, int]:
    """Return the rank of this process, and the number of ranks.

    Those of `torch.distributed`, if it is initialized; otherwise those of the variables RANK and
    WORLD_SIZE of the environment, if both are set, as torchrun does; otherwise 0 and 1.

    Raises:
        ValueError: The variables are not a rank and a number of ranks.
    """
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if not rank or not world_size:
        return 0, 1
    if not rank.isdecimal() or not world_size.isdecimal() or int(rank) >= int(world_size):
        raise ValueError(
            "the environment variables RANK and WORLD_SIZE must be a rank and the number of ranks "
            f"(got RANK={quoted(rank)}, WORLD_SIZE={quoted(world_size)})"
        )
    return int(rank), int(world_size)
