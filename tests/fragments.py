"""The parts of sequences that are packed, by the obvious algorithm."""

from __future__ import annotations

from collections.abc import Sequence


def split(length: int, limit: int, overlap: int) -> list[tuple[int, int]]:
    """Return the positions of a sequence's fragments, one after another."""
    fragments = [(0, min(length, limit))]
    while fragments[-1][1] < length:
        start = fragments[-1][1] - overlap
        fragments.append((start, min(start + limit, length)))
    return fragments


def parts_of(
    lengths: Sequence[int], limit: int, overlong: str, overlap: int
) -> list[tuple[int, int, int]]:
    """Return the row, start and stop of what is packed of each sequence, in order."""
    parts = []
    for row, length in enumerate(lengths):
        if overlong == "split":
            parts += [(row, start, stop) for start, stop in split(length, limit, overlap)]
        elif overlong == "truncate" or length <= limit:
            parts.append((row, 0, min(length, limit)))
    return parts
