"""The rank of this process among those that train or run a model together."""

from __future__ import annotations

import os

import torch.distributed


def find_rank() -> tuple[int, int]:
    """Return the rank of this process, and the number of ranks.

    Those of `torch.distributed`, if it is initialized; otherwise those of the variables RANK and
    WORLD_SIZE of the environment, if both are set, as torchrun does; otherwise 0 and 1.
    """
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    return (int(rank), int(world_size)) if rank and world_size else (0, 1)
