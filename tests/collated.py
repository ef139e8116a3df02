"""Records to collate, and the tokens of batches and tokenizers."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from models import (
    byte_pairs,
    bytes_in_pairs,
    fair_esm_converter,
    huggingface_tokenizer,
    letter_pairs,
    unigrams,
    word_pieces,
)

Record = dict[str, Any]


def converted(batch_converter: Any, sequence: str) -> list[int]:
    """Return the tokens that the tokenizer itself makes."""
    if hasattr(batch_converter, "alphabet"):
        tokens: list[int] = batch_converter([("", sequence)])[2][0].tolist()
        return tokens
    return list(batch_converter.encode(sequence))


def slices(batch: dict[str, Any]) -> list[slice]:
    """Return the slice of the tokens of each sequence."""
    return [slice(a, b) for a, b in itertools.pairwise(batch["cu_seqlens"].tolist())]


def records_of(sequences: list[str]) -> list[Record]:
    return [{"id": f"s{i}", "sequence": sequence} for i, sequence in enumerate(sequences)]


def tokens_of(batch: dict[str, Any]) -> list[list[int]]:
    """Return the tokens of each sequence, as the boundaries delimit them."""
    return [batch["input_ids"][part].tolist() for part in slices(batch)]


TOKENIZERS = {
    "huggingface": lambda: huggingface_tokenizer(Path(mkdtemp())),
    "fair-esm": fair_esm_converter,
    "byte pairs": byte_pairs,
    "letter pairs": letter_pairs,
    "word pieces": word_pieces,
    "byte level": bytes_in_pairs,
    "unigrams": unigrams,
}


@cache
def tokenizer_named(name: str) -> Any:
    return TOKENIZERS[name]()
