"""Lengths and records to pack."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.data import TokenCounts

Record = dict[str, Any]


def random_lengths(num_rows: int, seed: int = 0) -> NDArray[np.int32]:
    """Lengths distributed as in UniProt, some of them above 1,022 residues."""
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal(5.6, 0.75, num_rows)).astype(np.int32)


def short_lengths(num_rows: int, seed: int = 0) -> NDArray[np.int32]:
    """Random lengths of at most 1,022 residues, none of which is truncated."""
    return random_lengths(num_rows, seed).clip(0, 1022)


def make_records(lengths: list[int]) -> list[Record]:
    """One record per length, with IDs in order of rows."""
    return [{"id": f"seq{row:03d}", "sequence": "M" * length} for row, length in enumerate(lengths)]


def short_records(num: int, seed: int = 0) -> list[Record]:
    """Records of short lengths, with IDs in random order."""
    names = np.random.default_rng(seed).permutation(num).tolist()
    return [
        {"id": f"seq{name:06d}", "sequence": "M" * length}
        for name, length in zip(names, short_lengths(num, seed).tolist(), strict=True)
    ]


def times(counts: TokenCounts, number: int) -> TokenCounts:
    """Counts of the same sequences many times over."""
    if number == 1:
        return counts
    half = times(counts, number // 2)
    return half + half + counts if number % 2 else half + half
