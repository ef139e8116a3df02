"""Sequences to embed, and checks of their embeddings."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from checkpoints import OneByOne
from models import AMINO_ACIDS

LIMIT = 40


def draw(lengths: list[int]) -> list[str]:
    source = random.Random(0)
    return ["".join(source.choices(AMINO_ACIDS, k=length)) for length in lengths]


SEQUENCES = draw([5, 30, 1, 90, 0, 40, 41, 17, 200, 3, 33])
# Some twice, one of them three times.
SEQUENCES += [SEQUENCES[1], SEQUENCES[3], SEQUENCES[1], "mktay", "MKTAY*"]


def write(folder: Path, sequences: list[str] = SEQUENCES, name: str = "proteins.fasta") -> Path:
    path = folder / name
    path.write_text("".join(f">s{i}\n{text}\n" for i, text in enumerate(sequences)))
    return path


def clean(text: str) -> str:
    return text.upper().removesuffix("*")


def read(folder: Path) -> pa.Table:
    return pq.read_table(folder).sort_by("row")


def check_rows(table: pa.Table, fasta: Path, sequences: list[str] = SEQUENCES) -> None:
    assert table["row"].to_pylist() == list(range(len(sequences)))
    assert table["id"].to_pylist() == [f"s{i}" for i in range(len(sequences))]
    assert table["length"].to_pylist() == [len(clean(text)) for text in sequences]
    assert set(table["file"].to_pylist()) == {str(fasta)}


def check_vectors(table: pa.Table, expected: list[Any], atol: float = 1e-5) -> None:
    found = table["embedding"].to_pylist()
    for row, (vector, wanted) in enumerate(zip(found, expected, strict=True)):
        if wanted is None:
            assert vector is None, row
        else:
            np.testing.assert_allclose(vector, wanted, atol=atol, err_msg=str(row))


def truncated(alone: OneByOne, limit: int = LIMIT) -> list[Any]:
    texts = [clean(text)[:limit] for text in SEQUENCES]
    return [alone.states(text).mean(axis=0) if text else None for text in texts]
