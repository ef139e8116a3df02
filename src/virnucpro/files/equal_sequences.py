"""Find sequences with the same residues."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Sequences that are read at a time.
CHUNK = 1024
# Bytes of a hash. BLAKE2 of 16 bytes tells any number of sequences apart: none with the same hash
# are known, and none are expected among 2**64.
NUM_BYTES = 16


def find_equal(
    sequences: Any, progress: Callable[[int], None] = lambda _: None
) -> NDArray[np.int64]:
    """Return, for each row, the first row with the same residues, int64 [n].

    Args:
        sequences: The sequences, with `lengths`, and `read` for the residues of rows.
        progress: Called from time to time with the number of sequences compared.

    Raises:
        ValueError: A file has changed since it was read.
        OSError: A file cannot be read.

    Cost: reading all residues once, hashing them (three microseconds per sequence in all), and
    sorting the hashes; about 50 bytes of memory per sequence.
    """
    num_rows = len(sequences.lengths)
    digests = bytearray()
    for begin in range(0, num_rows, CHUNK):
        rows = np.arange(begin, min(begin + CHUNK, num_rows))
        for residues in sequences.read(rows):
            digests += hashlib.blake2b(residues.encode(), digest_size=NUM_BYTES).digest()
        progress(len(digests) // NUM_BYTES)
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    # Equal ones come in order of rows, since the sort is stable.
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    halves = halves[order]
    is_new = np.append(True, (halves[1:] != halves[:-1]).any(axis=1))[:num_rows]
    firsts = order[np.flatnonzero(is_new)]
    found = np.empty(num_rows, np.int64)
    found[order] = firsts[np.cumsum(is_new) - 1]
    return found
