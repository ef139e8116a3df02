"""ESM's scaling of embeddings by the share of mask tokens, per sequence of a packed row."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from transformers.models.esm.modeling_esm import EsmEmbeddings

from virnucpro.model.positions import check_first_position


def patch_esm_embeddings() -> None:
    """Make `EsmEmbeddings` scale each sequence of a row by its own share of mask tokens.

    Patches the class in transformers, once, for every attention implementation.
    """
    if not getattr(EsmEmbeddings.forward, "scales_by_sequence", False):
        EsmEmbeddings.forward = scale_by_sequence(EsmEmbeddings.forward)


def scale_by_sequence(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return an `EsmEmbeddings.forward` that scales each sequence of a row separately.

    A sequence starts wherever the first position of the row occurs again.
    """
    names = tuple(inspect.signature(forward).parameters)[1:]

    @wraps(forward)
    def embed(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        input_ids, position_ids = given.get("input_ids"), given.get("position_ids")
        if input_ids is None or position_ids is None or given.get("attention_mask") is not None:
            return forward(self, *args, **kwargs)
        if getattr(self, "position_embedding_type", None) == "absolute":
            check_first_position(self, position_ids, self.padding_idx)
        if not self.token_dropout:
            return forward(self, *args, **kwargs)
        embeddings = given.get("inputs_embeds")
        if embeddings is None:
            embeddings = self.word_embeddings(input_ids)
        is_mask = input_ids == self.mask_token_id
        share = mask_share(is_mask, position_ids.expand_as(input_ids))
        embeddings = embeddings.masked_fill(is_mask[..., None], 0.0)
        # The share of tokens masked in training, as in EsmEmbeddings.
        scaled = (embeddings * (1 - 0.15 * 0.8) / (1 - share)[..., None]).to(embeddings.dtype)
        return forward(self, **{**given, "input_ids": None, "inputs_embeds": scaled})

    embed.scales_by_sequence = True  # type: ignore[attr-defined]
    return embed


def mask_share(is_mask: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Return for each token the share of mask tokens in its sequence; all are [rows, tokens]."""
    sequence = (position_ids == position_ids[:, :1]).cumsum(1) - 1
    zeros = torch.zeros_like(sequence)
    masks = zeros.scatter_add(1, sequence, is_mask.to(sequence.dtype))
    tokens = zeros.scatter_add(1, sequence, torch.ones_like(sequence))
    return masks.gather(1, sequence).float() / tokens.gather(1, sequence)
