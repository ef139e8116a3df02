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


def real(*names: str) -> NDArray[np.int32]:
    """Return the lengths of files of real proteins, one after the other."""
    lengths = [
        len(sequence) for name in names for _, sequence in read_fasta(Path(REAL_DATA or "", name))
    ]
    return np.array(lengths, np.int32)


def wikipedia(num: int) -> NDArray[np.int32]:
    """Return lengths like those of Wikipedia tokenized for BERT, truncated to 512 tokens."""
    return np.exp(np.random.default_rng(0).normal(5.5, 1.0, num)).clip(1, 512).astype(np.int32)


DATA = {
    "20 thousand": Data(lambda: log_normal(20_000)),
    "1 million": Data(lambda: log_normal(1_000_000)),
}
if REAL_DATA:
    DATA |= {
        "E. coli": Data(lambda: real("ecoli_k12.faa.gz")),
        "viruses": Data(lambda: real("uniprot_viruses.faa.gz")),
        "both": Data(lambda: real("ecoli_k12.faa.gz", "uniprot_viruses.faa.gz")),
    }
