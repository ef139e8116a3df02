"""First-Fit Decreasing with a tree, in Python and compiled by numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from data import Data
from numpy.typing import NDArray


def first_fit_tree(tokens: Any, room: Any, batch_of: Any) -> int:
    """First fit by a tree whose nodes have the most room of any batch below; O(log n) per sequence.

    `room` holds the tree, `2 * leaves` entries that start as the budget. The batch of each sequence
    is written to `batch_of`.
    """
    leaves = len(room) // 2
    num_batches = 0
    for row in range(len(tokens)):
        size = tokens[row]
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < size:
                node += 1
        batch_of[row] = node - leaves
        num_batches = max(num_batches, node - leaves + 1)
        room[node] -= size
        node //= 2
        while node:
            room[node] = max(room[2 * node], room[2 * node + 1])
            node //= 2
    return num_batches


def tree_nodes(tokens: Any) -> int:
    """Return the size of a tree with one leaf per sequence."""
    return 2 << (len(tokens) - 1).bit_length()


def in_python(tokens: NDArray[np.int32], data: Data) -> Callable[[], NDArray[Any]]:
    """Prepare First-Fit Decreasing in pure Python, with lists for speed."""
    sizes = tokens.tolist()
    nodes = tree_nodes(tokens)

    def pack() -> NDArray[Any]:
        order = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
        batch_of = [0] * len(sizes)
        room = [data.max_tokens_per_batch] * nodes
        first_fit_tree([sizes[row] for row in order], room, batch_of)
        return in_rows(order, batch_of)

    return pack


def in_rows(order: Any, batch_of: Any) -> NDArray[Any]:
    """Return batch numbers in the order of rows."""
    numbers = np.empty(len(order), np.int32)
    numbers[order] = batch_of
    return numbers


def with_numba(function: Callable[..., int]) -> Any:
    """Return what prepares First-Fit Decreasing with a loop that numba compiles."""

    def prepare(tokens: NDArray[np.int32], data: Data) -> Callable[[], NDArray[Any]]:
        import numba

        compiled = numba.njit(function)
        compiled(tokens[:1], np.full(4, data.max_tokens_per_batch, np.int32), np.empty(1, np.int32))

        def pack() -> NDArray[Any]:
            order = np.argsort(-tokens, kind="stable")
            room = np.full(tree_nodes(tokens), data.max_tokens_per_batch, np.int32)
            batch_of = np.empty(len(tokens), np.int32)
            compiled(tokens[order], room, batch_of)
            return in_rows(order, batch_of)

        return pack

    return prepare
