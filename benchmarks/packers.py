"""The packers that are compared, each with the input that suits it best.

`prepare` takes the tokens of each sequence and the data, runs outside the time measured, and
returns a function without arguments that packs. `count_batches` takes what this function returns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from data import Data
from numpy.typing import NDArray

from virnucpro.data import GreedyPacker

Tokens = NDArray[np.int32]
Prepared = Callable[[], Any]


@dataclass(frozen=True)
class Packer:
    """A packer, or a reference operation. It is run with `at_most` sequences or fewer."""

    prepare: Callable[[Tokens, Data], Prepared]
    count_batches: Callable[[Any], int] | None = len
    at_most: int = 10_000_000
    padded: bool = False


def ours(data: Data) -> GreedyPacker:
    """Return this project's packer, with a log handler that formats nothing."""
    logging.getLogger("virnucpro").addHandler(logging.NullHandler())
    return GreedyPacker(
        data.max_tokens_per_batch, data.max_sequence_length, special_tokens=data.special_tokens
    )


def pack_lengths(_: Tokens, data: Data) -> Prepared:
    """Prepare this project's plan with rows."""
    packer, lengths = ours(data), data.make()
    return lambda: packer.pack_lengths(lengths)


def assign_batches(_: Tokens, data: Data) -> Prepared:
    """Prepare this project's batch number per row."""
    packer, lengths = ours(data), data.make()
    return lambda: packer.assign_batches(lengths)


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


def first_fit_loop(tokens: Any, room: Any, batch_of: Any) -> int:
    """First fit by trying one batch after the other; O(batches) per sequence.

    `room` has one entry per possible batch, which starts as the budget.
    """
    num_batches = 0
    for row in range(len(tokens)):
        size = tokens[row]
        batch = 0
        while batch < num_batches and room[batch] < size:
            batch += 1
        num_batches = max(num_batches, batch + 1)
        room[batch] -= size
        batch_of[row] = batch
    return num_batches


def tree_nodes(tokens: Any) -> int:
    """Return the size of a tree with one leaf per sequence."""
    return 2 << (len(tokens) - 1).bit_length()


def python_tree(tokens: Tokens, data: Data) -> Prepared:
    """Prepare First-Fit Decreasing in pure Python, with lists for speed."""
    sizes = tokens.tolist()
    nodes = tree_nodes(tokens)

    def pack() -> int:
        order = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
        room = [data.max_tokens_per_batch] * nodes
        return first_fit_tree([sizes[row] for row in order], room, [0] * len(sizes))

    return pack


def with_numba(function: Callable[..., int], slots_for: Callable[[Tokens], int]) -> Any:
    """Return a `prepare` for First-Fit Decreasing with a loop that numba compiles."""

    def prepare(tokens: Tokens, data: Data) -> Prepared:
        import numba

        compiled = numba.njit(function)
        slots = slots_for(tokens)
        compiled(tokens[:1], np.full(4, data.max_tokens_per_batch, np.int32), np.empty(1, np.int32))

        def pack() -> int:
            order = np.argsort(-tokens, kind="stable")
            room = np.full(slots, data.max_tokens_per_batch, np.int32)
            batch_of = np.empty(len(tokens), np.int32)
            return int(compiled(tokens[order], room, batch_of))

        return pack

    return prepare


def next_fit_decreasing(tokens: Tokens, data: Data) -> Prepared:
    """Prepare next-fit decreasing in Python: one open batch, as common in protein pipelines."""
    sizes = tokens.tolist()

    def pack() -> list[list[int]]:
        batches: list[list[int]] = []
        batch: list[int] = []
        free = data.max_tokens_per_batch
        for row in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
            if sizes[row] > free:
                batches.append(batch)
                batch, free = [], data.max_tokens_per_batch
            batch.append(row)
            free -= sizes[row]
        return [*batches, batch]

    return pack


def padded_by_length(tokens: Tokens, data: Data) -> Prepared:
    """Prepare padded batches of sorted sequences: longest times number fits in the budget."""
    sizes = tokens.tolist()

    def pack() -> list[list[int]]:
        batches: list[list[int]] = []
        batch: list[int] = []
        for row in sorted(range(len(sizes)), key=sizes.__getitem__):
            if (len(batch) + 1) * sizes[row] > data.max_tokens_per_batch:
                batches.append(batch)
                batch = []
            batch.append(row)
        return [*batches, batch]

    return pack


def light_bin_pack(name: str) -> Any:
    """Return a `prepare` for a function of lightbinpack, which takes a list."""

    def prepare(tokens: Tokens, data: Data) -> Prepared:
        import lightbinpack

        function, sizes = getattr(lightbinpack, name), tokens.tolist()
        return lambda: function(sizes, data.max_tokens_per_batch)

    return prepare


def bin_packing(tokens: Tokens, data: Data) -> Prepared:
    """Prepare binpacking, which takes a dict."""
    import binpacking

    sizes = dict(enumerate(tokens.tolist()))
    return lambda: binpacking.to_constant_volume(sizes, data.max_tokens_per_batch)


def trl(tokens: Tokens, data: Data) -> Prepared:
    """Prepare best-fit decreasing of TRL, which packs the tokens themselves."""
    import datasets
    import pyarrow as pa
    from trl.data_utils import pack_dataset

    datasets.disable_progress_bars()
    offsets = np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)]).astype(np.int32)
    values = np.zeros(offsets[-1], np.int32)
    table = pa.table({"input_ids": pa.ListArray.from_arrays(offsets, values)})
    dataset = datasets.Dataset(table)
    everything = {"batch_size": len(tokens), "load_from_cache_file": False}
    return lambda: pack_dataset(dataset, data.max_tokens_per_batch, "bfd", everything)


def argsort(tokens: Tokens, _: Data) -> Prepared:
    """Prepare the stable argsort of the lengths, for reference."""
    return lambda: np.argsort(tokens, kind="stable")


def copy(tokens: Tokens, _: Data) -> Prepared:
    """Prepare a copy of the lengths, for reference."""
    return tokens.copy


def returned(result: int) -> int:
    """Count batches if the packer returns their number."""
    return result


def numbered(result: NDArray[Any]) -> int:
    """Count batches if the packer returns a batch number per row."""
    return int(result.max()) + 1


PACKERS = {
    "virnucpro pack_lengths": Packer(pack_lengths),
    "virnucpro assign_batches": Packer(assign_batches, numbered),
    "FFD with a tree, Python": Packer(python_tree, returned, at_most=1_000_000),
    "FFD with a tree, numba": Packer(with_numba(first_fit_tree, tree_nodes), returned),
    "FFD with a loop, numba": Packer(with_numba(first_fit_loop, len), returned, at_most=100_000),
    "next-fit decreasing, Python": Packer(next_fit_decreasing, at_most=1_000_000),
    "padded batches by length, Python": Packer(padded_by_length, at_most=1_000_000, padded=True),
    "lightbinpack ffd": Packer(light_bin_pack("ffd")),
    "lightbinpack bfd": Packer(light_bin_pack("bfd")),
    "lightbinpack obfd": Packer(light_bin_pack("obfd")),
    "lightbinpack obfdp": Packer(light_bin_pack("obfdp")),
    "lightbinpack nf": Packer(light_bin_pack("nf")),
    "binpacking": Packer(bin_packing, at_most=10_000),
    "TRL pack_dataset bfd": Packer(trl, at_most=100_000),
    "np.argsort(kind='stable')": Packer(argsort, None),
    "lengths.copy()": Packer(copy, None),
}
