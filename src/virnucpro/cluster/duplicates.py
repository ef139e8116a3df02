"""IDs that occur more than once in a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.cluster.exchange import Group
from virnucpro.cluster.ranges import count_ranges
from virnucpro.cluster.tasks import join_parts, slices, split_parts, start, take
from virnucpro.files.sequences import find_duplicates
from virnucpro.kernel.arrow import text_buffers

# Bytes of a hash.
HASH_BYTES = 8
# Hashes that several sequences have, of which each task gets a copy; if there are more, all IDs
# are exchanged.
MAX_REPEATED = 2**22


def count_duplicates(groups: Sequence[Group], max_examples: int = 3) -> tuple[int, list[str]]:
    """Return the number of sequences that repeat an earlier ID, and the first of these IDs.

    Tasks exchange the hashes of all IDs, and then the IDs whose hashes occur more than once.
    """
    num_rows = sum(group.counted.rows for group in groups)
    num_parts = count_ranges(num_rows * HASH_BYTES)
    parts = split_parts(split_hashes, ((num_parts, *group.blocks) for group in groups), num_parts)
    found = start(find_repeated, join_parts([()] * num_parts, parts), num_returns=3)
    distinct = sum(ray.get([of_part[1] for of_part in found]))
    if distinct == 0:
        return 0, []
    repeated = None
    num_bytes = sum(group.counted.num_bytes for group in groups)
    if distinct <= MAX_REPEATED:
        repeated = np.concatenate(ray.get([of_part[0] for of_part in found]))
        num_bytes = num_bytes * sum(ray.get([of_part[2] for of_part in found])) // num_rows
    num_parts = count_ranges(num_bytes)
    known = ray.put(repeated)
    calls = ((known, num_parts, *group.blocks) for group in groups)
    parts = split_parts(split_ids, calls, num_parts)
    counts = ray.get(start(count_repeated, join_parts([(max_examples,)] * num_parts, parts)))
    examples = sorted(name for _, names in counts for name in names)
    return sum(number for number, _ in counts), examples[:max_examples]


def hash_ids(ids: Any) -> NDArray[np.uint64]:
    """Return a hash of each ID of a column of large strings."""
    hashes = [kernel.hash_texts(*text_buffers(chunk)) for chunk in ids.chunks]
    return np.concatenate([np.empty(0, np.uint64), *hashes])


def split_hashes(num_parts: int, *blocks: Any) -> list[NDArray[np.uint64]]:
    """Return the hashes of the IDs of blocks by ranges of hashes."""
    hashes = np.sort(np.concatenate([hash_ids(block["id"]) for block in blocks]))
    edges = [2**64 * part // num_parts for part in range(1, num_parts)]
    return np.split(hashes, np.searchsorted(hashes, np.array(edges, np.uint64)))


def find_repeated(*parts: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], int, int]:
    """Return the hashes that occur more than once, in order, their number, and that of all rows."""
    hashes = np.sort(np.concatenate(parts))
    begins = np.flatnonzero(np.diff(hashes, prepend=hashes[:1] ^ np.uint64(1)))
    numbers = np.diff(begins, append=len(hashes))
    is_repeated = numbers > 1
    return hashes[begins[is_repeated]], int(is_repeated.sum()), int(numbers[is_repeated].sum())


def split_ids(repeated: NDArray[np.uint64] | None, num_parts: int, *blocks: Any) -> list[pa.Table]:
    """Return the IDs of blocks that may occur more than once, in parts by their hashes."""
    table = pa.concat_tables([block.select(["id"]) for block in blocks])
    hashes = hash_ids(table["id"])
    if repeated is not None:
        places = np.minimum(np.searchsorted(repeated, hashes), len(repeated) - 1)
        rows = np.flatnonzero(repeated[places] == hashes)
        table, hashes = take(table, rows), hashes[rows]
    numbers = (hashes % np.uint64(num_parts)).astype(np.int16)
    order = np.argsort(numbers, kind="stable")
    return slices(take(table, order), np.cumsum(np.bincount(numbers, minlength=num_parts)))


def count_repeated(max_examples: int, *parts: pa.Table) -> tuple[int, list[str]]:
    """Return the number of IDs that repeat an earlier one, and the first of these IDs."""
    return find_duplicates(pa.concat_tables(parts)["id"].combine_chunks(), max_examples)
