"""The data that packers are measured on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.data import Limits
from virnucpro.files.fasta import read_fasta

REAL_DATA = os.environ.get("VIRNUCPRO_REAL_DATA")


@dataclass(frozen=True)
class Data:
    """A function that returns lengths, and the limits to pack them with."""

    make: Callable[[], NDArray[Any]]
    max_tokens_per_batch: int = 4096
    max_sequence_length: int = 1022
    special_tokens: int = 2

    def tokens(self) -> NDArray[np.int32]:
        """Return the tokens of each sequence, the input of other packers."""
        limits = Limits(self.max_tokens_per_batch, self.max_sequence_length, self.special_tokens)
        return limits.tokens(self.make()).astype(np.int32)


def log_normal(num: int, mu: float = 5.6, sigma: float = 0.75, dtype: str = "i4") -> NDArray[Any]:
    """Return log-normal lengths; by default those of a proteome."""
    rng = np.random.default_rng(0)
    lengths = np.empty(num, dtype)
    for begin in range(0, num, 2**24):
        piece = lengths[begin : begin + 2**24]
        piece[:] = np.exp(rng.normal(mu, sigma, len(piece))).clip(1, np.iinfo(dtype).max)
    return lengths


def real(name: str) -> NDArray[np.int32]:
    """Return the lengths of a file of real proteins."""
    path = Path(REAL_DATA or "", name)
    lengths = [len(sequence) for _, sequence in read_fasta(path)]
    return np.array(lengths, np.int32)


def thirds(num: int) -> NDArray[np.int32]:
    """Return sizes near a third of the budget, which leave most batches partly empty."""
    return np.random.default_rng(0).integers(4096 // 3 - 60, 4096 // 3 + 60, num).astype(np.int32)


def distinct(num: int) -> NDArray[np.int32]:
    """Return distinct sizes, in random order."""
    return (np.random.default_rng(0).permutation(num) + 1).astype(np.int32)


def wikipedia() -> NDArray[np.int32]:
    """Return as many lengths as Wikipedia tokenized for BERT has, truncated to 512 tokens."""
    rng = np.random.default_rng(0)
    return np.exp(rng.normal(5.5, 1.0, 16_279_552)).clip(1, 512).astype(np.int32)


DATA = {
    "proteins, 100 thousand": Data(lambda: log_normal(100_000)),
    "proteins, 1 million": Data(lambda: log_normal(1_000_000)),
    "proteins, 10 million": Data(lambda: log_normal(10_000_000)),
    "long documents, 1 million": Data(lambda: log_normal(1_000_000, 8, 1.3), 131_072, 131_072, 0),
    "all equal, 1 million": Data(lambda: np.full(1_000_000, 300, np.int32)),
    "all distinct, 1 million": Data(lambda: distinct(1_000_000), 2**21, 2**20, 0),
    "thirds, 1 million": Data(lambda: thirds(1_000_000), 4096, 4094),
}
if REAL_DATA:
    DATA = {
        "viral proteins, 4,450": Data(lambda: real("uniprot_viruses.faa.gz")),
        "E. coli proteins, 4,363": Data(lambda: real("ecoli_k12.faa.gz")),
    } | DATA
QUICK = ["viral proteins, 4,450", "proteins, 100 thousand"]
