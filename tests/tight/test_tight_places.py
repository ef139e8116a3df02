"""Places by size and rank in layouts of patterns."""

from __future__ import annotations

import numpy as np
from proteins import short_lengths

from virnucpro.data import GreedyPacker


def test_places_are_those_of_rows() -> None:
    lengths = short_lengths(3000)
    packer = GreedyPacker(2048, max_sequences_per_batch=6, method="tight")
    layout = packer.lay_out(packer.count(lengths))
    assert (
        layout.num_batches
        < GreedyPacker(2048, max_sequences_per_batch=6).lay_out(packer.count(lengths)).num_batches
    )
    tokens = lengths + 2
    ranks = [int((tokens[:row] == size).sum()) for row, size in enumerate(tokens)]
    batches, slots = layout.place(tokens, ranks)
    np.testing.assert_array_equal(batches, layout.assign(lengths))
    np.testing.assert_array_equal(slots, layout.slots(lengths))
