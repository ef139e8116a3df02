"""IDs that occur more than once in a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from virnucpro.cluster.exchange import Group
from virnucpro.cluster.ranges import count_ranges
from virnucpro.cluster.tasks import join_parts, slices, split_parts, start, take
from virnucpro.files.sequences import find_duplicates
from virnucpro.kernel.arrow import text_buffers

# Weights of the bytes of an ID, by place; those further on have the weights of the first again.
WEIGHTS = np.random.default_rng(0).integers(0, 2**63, 64, np.uint64) * 2 + 1


def count_duplicates(groups: Sequence[Group], max_examples: int = 3) -> tuple[int, list[str]]:
    """Return the number of sequences that repeat an earlier ID, and the first of these IDs.

    The IDs are exchanged between tasks by their hashes, so that equal ones meet.
    """
    num_parts = count_ranges(sum(group.counted.num_bytes for group in groups))
    parts = split_parts(split_ids, ((num_parts, *group.blocks) for group in groups), num_parts)
    calls = join_parts(((max_examples,) for _ in range(num_parts)), parts)
    found: list[tuple[int, list[str]]] = ray.get(start(count_repeated, calls))
    examples = sorted(name for _, names in found for name in names)
    return sum(number for number, _ in found), examples[:max_examples]


def split_ids(num_parts: int, *blocks: Any) -> list[pa.Table]:
    """Return the IDs of blocks in parts, so that equal ones are in the same part."""
    ids = pa.chunked_array([chunk for block in blocks for chunk in block["id"].chunks])
    table = pa.table({"id": ids.combine_chunks()})
    if num_parts == 1:
        return [table]
    numbers = hash_texts(table["id"].combine_chunks()) % np.uint64(num_parts)
    order = np.argsort(numbers.astype(np.int16), kind="stable")
    ends = np.cumsum(np.bincount(numbers.astype(np.int16), minlength=num_parts))
    return slices(take(table, order), ends)


def hash_texts(ids: Any, chunk: int = 2**16) -> NDArray[np.uint64]:
    """Return a hash of each ID of an array of large strings: the weighted sum of its bytes."""
    hashes = np.zeros(len(ids), np.uint64)
    for begin in range(0, len(ids), chunk):
        offsets, texts = text_buffers(ids.slice(begin, chunk))
        lengths = np.diff(offsets)
        some = texts[offsets[0] : offsets[-1]].astype(np.uint64) + np.uint64(1)
        begins = offsets[:-1] - offsets[0]
        places = np.arange(len(some)) - np.repeat(begins, lengths)
        some *= WEIGHTS[places % len(WEIGHTS)]
        with_bytes = lengths > 0
        sums = np.add.reduceat(some, begins[with_bytes]) if len(some) else some
        hashes[begin : begin + chunk][with_bytes] = sums
    return hashes >> np.uint64(32)


def count_repeated(max_examples: int, *parts: pa.Table) -> tuple[int, list[str]]:
    """Return the number of IDs that repeat an earlier one, and the first of these IDs."""
    ids = pa.concat_tables(parts)["id"].combine_chunks()
    return find_duplicates(ids, max_examples)
