"""Batches of one shape, and what a model gives for them."""

from __future__ import annotations

from typing import Any

import torch
from models import fair_esm_converter, proteins
from torch.utils.data import DataLoader

import virnucpro.model.attention  # noqa: F401 (registers packed_sdpa)
from virnucpro.data import (
    GreedyPacker,
    PackedDataset,
    VarlenCollator,
    model_inputs,
    unpack,
)

BUDGET = 160
PROTEINS = proteins(60)


def batches(pad_to_budget: bool = True, multiple_of: int = 1) -> list[dict[str, Any]]:
    """Return the batches of a plan for the proteins."""
    lengths = [len(record["sequence"]) for record in PROTEINS]
    plan = GreedyPacker(BUDGET, multiple_of=multiple_of).pack_lengths(lengths)
    collate = VarlenCollator(fair_esm_converter(), pad_to_budget=pad_to_budget)
    return list(DataLoader(PackedDataset(PROTEINS, plan), batch_size=None, collate_fn=collate))


def shapes(batch: dict[str, Any]) -> dict[str, Any]:
    tensors = ("input_ids", "position_ids", "cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k")
    numbers = ("max_seqlen", "max_length_q", "max_length_k")
    return {**{name: batch[name].shape for name in tensors}, **{n: batch[n] for n in numbers}}


def states_of(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        hidden = model(**model_inputs(batch, model)).last_hidden_state
    unpacked = unpack(hidden, batch)
    return dict(zip(unpacked.sequence_ids, unpacked.states, strict=True))
