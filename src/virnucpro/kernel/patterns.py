"""Patterns, ways to fill a batch, and layouts that are made of them."""

from __future__ import annotations

import itertools
import operator

import numpy as np
from numpy.typing import NDArray

from virnucpro import kernel

# Sizes, as indices into the counts, and the number of sequences of each.
Pattern = tuple[NDArray[np.int64], NDArray[np.int64]]
# Concatenated patterns: the start of each, sizes, and the number of sequences of each size.
Patterns = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class Batches:
    """Patterns with a number of batches of each."""

    def __init__(self, counts: kernel.TokenCounts) -> None:
        self.counts = counts
        self.parts: list[tuple[Patterns, NDArray[np.int64]]] = []

    def add(
        self, patterns: Patterns, sizes: NDArray[np.int64], num_batches: NDArray[np.int64]
    ) -> None:
        """Add patterns, whose sizes are those at these indices of the counts."""
        offsets, indices, sequences = patterns
        self.parts.append(((offsets, sizes[indices], sequences), num_batches))

    def complete(self, remaining: NDArray[np.int64]) -> kernel.Layout:
        """Return a layout with these batches and the remaining sequences.

        Those are packed beside the others by first fit, or by themselves with reservation.
        """
        beside = self.layout(self.parts)
        of_remaining = kernel.subset(self.counts, remaining)
        alone = kernel.patterns_with_reservation(of_remaining)
        (offsets, indices, sequences), numbers = kernel.patterns_of(alone)
        last = (offsets, np.flatnonzero(remaining)[indices], sequences), numbers
        return fewest(beside, self.layout([*self.parts, last]))

    def layout(self, parts: list[tuple[Patterns, NDArray[np.int64]]]) -> kernel.Layout:
        """Return a layout with these batches; first fit adds the remaining sequences."""
        lengths = [np.diff(offsets) for (offsets, _, _), _ in parts]
        return kernel.layout_from_patterns(
            self.counts,
            np.append(0, np.cumsum(np.concatenate(lengths))),
            np.concatenate([sizes for (_, sizes, _), _ in parts]),
            np.concatenate([sequences for (_, _, sequences), _ in parts]),
            np.concatenate([numbers for _, numbers in parts]),
        )


def fewest(*layouts: kernel.Layout) -> kernel.Layout:
    """Return the first layout with the fewest batches."""
    return min(layouts, key=operator.attrgetter("num_batches"))


def split_patterns(arrays: Patterns, sizes: NDArray[np.int64]) -> list[Pattern]:
    """Split concatenated patterns, and look up their sizes in `sizes`."""
    offsets, indices, sequences = arrays
    ranges = itertools.pairwise(offsets.tolist())
    return [(sizes[indices[begin:end]], sequences[begin:end]) for begin, end in ranges]
