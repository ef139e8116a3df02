"""What the scripts of tests/frameworks share: documents, a sampler, a model, a log of batches."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from virnucpro.data import GreedyPacker, PackedBatchSampler, PackedDataset

VOCABULARY_SIZE = 32
# Some documents are longer, and truncated.
MAX_LENGTH = 40
MAX_TOKENS = 64
NUM_DOCUMENTS = 107
SEED = 3


def make_documents() -> list[dict[str, Any]]:
    """Return documents whose labels follow from their tokens."""
    random = np.random.default_rng(0)
    documents = []
    for length in np.clip(random.lognormal(2.2, 0.8, NUM_DOCUMENTS), 2, 60).astype(int):
        tokens = random.integers(VOCABULARY_SIZE, size=length)
        documents.append({"input_ids": tokens.tolist(), "labels": label(tokens).tolist()})
    return documents


def label(tokens: Any) -> Any:
    return (5 * tokens + 1) % VOCABULARY_SIZE


@functools.cache
def make_records() -> Any:
    """Return the records that the batches consist of, cut as planned."""
    documents = make_documents()
    packer = GreedyPacker(MAX_TOKENS, MAX_LENGTH, special_tokens=0)
    plan = packer.pack_lengths([len(document["input_ids"]) for document in documents])
    return PackedDataset(documents, plan).records


def make_sampler(
    rank: int | None = None, world_size: int | None = None, **options: Any
) -> PackedBatchSampler:
    plan = make_records().plan
    return PackedBatchSampler(plan, rank, world_size, shuffle=True, seed=SEED, **options)


def flatten(records: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return a batch of records in one row, as DataCollatorWithFlattening does, and their rows."""
    names = ("input_ids", "labels")
    batch = {
        name: torch.tensor([[value for record in records for value in record[name]]])
        for name in names
    }
    return {**batch, "rows": torch.tensor([record["row"] for record in records])}


class Flattener:
    """A collator of transformers, which adds the rows of the records."""

    def __init__(self) -> None:
        from transformers import DataCollatorWithFlattening

        self.collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True)

    def __call__(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self.collate(records), "rows": torch.tensor([r["row"] for r in records])}


class TinyModel(nn.Module):
    """A model with a loss, which learns the label of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY_SIZE, 8)
        self.head = nn.Linear(8, VOCABULARY_SIZE)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.embed(input_ids))
        return nn.functional.cross_entropy(logits[0], labels[0])


class Log:
    """The rows of the batches that this rank trained on, by run and epoch, checked as they come."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.runs: dict[str, Any] = {}
        self.documents = make_documents()

    def begin(self, run: str) -> None:
        """Begin an epoch of a run."""
        self.runs.setdefault(run, []).append([])

    def add(self, run: str, batch: dict[str, Any], loss: torch.Tensor) -> None:
        """Add a batch; its tokens must be those of its rows, and its labels those of its tokens."""
        rows = batch["rows"].tolist()
        documents = [self.documents[row]["input_ids"][:MAX_LENGTH] for row in rows]
        tokens = batch["input_ids"][0]
        assert tokens.tolist() == [token for document in documents for token in document]
        assert len(tokens) <= MAX_TOKENS
        labels = batch["labels"][0]
        starts = np.cumsum([0, *map(len, documents)])[:-1]
        is_masked = labels == -100
        assert set(torch.nonzero(is_masked).flatten().tolist()) in ({*starts.tolist()}, set())
        assert torch.equal(labels[~is_masked], label(tokens)[~is_masked])
        assert math.isfinite(loss.item())
        self.runs[run][-1].append(rows)

    def note(self, name: str, value: Any) -> None:
        self.runs[name] = value

    def save(self, rank: int) -> None:
        Path(f"{self.path}.{rank}").write_text(json.dumps(self.runs), encoding="utf-8")


def error_of(function: Any, *values: Any) -> str:
    """Return the type and text of the error that a call raises."""
    try:
        function(*values)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"
