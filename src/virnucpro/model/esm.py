"""Embeddings of ESM models for rows of several sequences."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from transformers.models.esm.modeling_esm import EsmEmbeddings


def count_masks_by_sequence() -> None:
    """Make ESM's embeddings scale each sequence of a row by its own share of mask tokens.

    This changes the class in transformers, once, for every attention implementation.
    """
    if not getattr(EsmEmbeddings.forward, "counts_masks_by_sequence", False):
        EsmEmbeddings.forward = by_sequence(EsmEmbeddings.forward)


def by_sequence(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return `EsmEmbeddings.forward` that scales each sequence of a row by its own mask tokens.

    A sequence begins where positions begin again at the first of the row.
    """
    names = tuple(inspect.signature(forward).parameters)[1:]

    @wraps(forward)
    def embed(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        input_ids, position_ids = given.get("input_ids"), given.get("position_ids")
        if input_ids is None or position_ids is None or given.get("attention_mask") is not None:
            return forward(self, *args, **kwargs)
        if getattr(self, "position_embedding_type", None) == "absolute":
            check_first_position(position_ids, self.padding_idx)
        if not self.token_dropout:
            return forward(self, *args, **kwargs)
        embeddings = given.get("inputs_embeds")
        if embeddings is None:
            embeddings = self.word_embeddings(input_ids)
        is_mask = input_ids == self.mask_token_id
        share = share_by_sequence(is_mask, position_ids.expand_as(input_ids))
        embeddings = embeddings.masked_fill(is_mask[..., None], 0.0)
        # What ESM's models had masked in training, as in EsmEmbeddings.
        scaled = (embeddings * (1 - 0.15 * 0.8) / (1 - share)[..., None]).to(embeddings.dtype)
        return forward(self, **{**given, "input_ids": None, "inputs_embeds": scaled})

    embed.counts_masks_by_sequence = True  # type: ignore[attr-defined]
    return embed


def share_by_sequence(is_mask: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Return for each token the share of mask tokens in its sequence; all are [rows, tokens]."""
    sequence = (position_ids == position_ids[:, :1]).cumsum(1) - 1
    none = torch.zeros_like(sequence)
    masks = none.scatter_add(1, sequence, is_mask.to(sequence.dtype))
    tokens = none.scatter_add(1, sequence, torch.ones_like(sequence))
    return masks.gather(1, sequence).float() / tokens.gather(1, sequence)


def check_first_position(position_ids: torch.Tensor, padding_idx: int) -> None:
    """Refuse positions from 0 where a model counts them from its padding token's number + 1.

    This reads a value, so it waits for the device.
    """
    if torch.compiler.is_compiling() or not position_ids.numel():
        return
    if position_ids.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    first = int(position_ids[0, 0])
    if first <= padding_idx:
        raise ValueError(
            f"the model counts positions from {padding_idx + 1} (got {first}): "
            "pass model_inputs(batch, model) to it"
        )
