"""What Hugging Face models are given for packed batches, and what of them cannot be packed."""

from __future__ import annotations

import inspect
import logging
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch

from virnucpro.model.configuration import (
    attention_of,
    is_attention,
    is_encoder_decoder,
    other_layers,
    text_config,
)

logger = logging.getLogger(__name__)

# Attention implementations of transformers that do not read boundaries.
UNPACKED = frozenset({"eager", "flex_attention", "sdpa"})

# What `first_position` has found, since a walk over a model's modules takes milliseconds.
FIRST_POSITIONS: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def model_inputs(batch: dict[str, Any], model: Any = None) -> dict[str, Any]:
    """Return the arguments of a Hugging Face model for a batch of `VarlenCollator`.

    They are ``input_ids`` and ``position_ids``, int64 [1, tokens], and the boundaries
    ``cu_seq_lens_q``, ``cu_seq_lens_k``, ``max_length_q`` and ``max_length_k``.

    Without `model`, positions are from 0, as rotary embeddings and BERT count them. With it, they
    are from where the model counts: RoBERTa and ESM-1b do from their padding token's number + 1.
    Models whose layers carry a state from token to token (Mamba's kin) get ``seq_idx`` too, the
    number of each token's sequence, int32 [1, tokens]. `check_packed` tells whether they heed it.
    A model whose attention does not read boundaries gets a WARNING, once.

    Args:
        batch: What a `VarlenCollator` gives.
        model: The model that will run the batch.

    Raises:
        KeyError: The batch is of another collator, or empty.
        ValueError: The model is an encoder-decoder, or has layers with a state and takes no
            ``seq_idx``.

    Cost: none without `model`, as tensors are views; else a walk over the model's modules, once.

    Example:
        >>> import numpy as np
        >>> from virnucpro.data import model_inputs
        >>> from virnucpro.model.collator import make_batch
        >>> batch = make_batch(np.array([0, 20, 2]), np.array([0, 3], np.int32), ["a"], 4096)
        >>> model_inputs(batch)["input_ids"].shape
        torch.Size([1, 3])
    """
    boundaries = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    inputs = {
        "input_ids": batch["input_ids"][None],
        "position_ids": batch["position_ids"][None],
        **{name: batch[name] for name in boundaries},
    }
    if model is None:
        return inputs
    config = text_config(model)
    if is_encoder_decoder(config):
        raise ValueError("model_inputs does not support an encoder-decoder")
    if getattr(config, "token_dropout", False):
        # Makes the share of mask tokens that of each sequence.
        from virnucpro.model.esm import count_masks_by_sequence

        count_masks_by_sequence()
    first = first_position(model)
    if first:
        inputs["position_ids"] = inputs["position_ids"] + first
    stateful = [kind for kind in other_layers(config) if not is_attention(kind)]
    attention = attention_of(model)
    if attention in UNPACKED and not stateful:
        warn_of_attention(type(model).__name__, attention)
    takes_seq_idx = takes(model, "seq_idx", or_any=bool(stateful))
    if stateful and not takes_seq_idx:
        raise ValueError(
            f"model_inputs does not support layers of type {stateful[0]!r}: they carry a state "
            f"from token to token, and {type(model).__name__} takes no seq_idx"
        )
    if takes_seq_idx:
        inputs["seq_idx"] = number_sequences(batch)[None]
    return inputs


@cache
def warn_of_attention(model_name: str, attention: str) -> None:
    """Say once that an attention implementation does not read boundaries."""
    logger.warning(
        "%s has the attention %r, which lets tokens see other sequences of a packed row unless "
        'positions tell it not to; set "packed_sdpa" or flash_attention, or see check_packed',
        model_name,
        attention,
    )


def number_sequences(batch: dict[str, Any]) -> torch.Tensor:
    """Return the number of each token's sequence, int32 [tokens]."""
    tokens, boundaries = batch["input_ids"], batch["cu_seq_lens_q"]
    places = torch.arange(len(tokens), dtype=boundaries.dtype, device=boundaries.device)
    numbers = torch.bucketize(places, boundaries[1:], right=True, out_int32=True)
    return numbers.to(tokens.device)


def takes(model: Any, name: str, or_any: bool) -> bool:
    """Whether a model's forward has a parameter of a name, or takes any."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or (
        or_any and any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    )


def first_position(model: Any) -> int:
    """Return the position that a model gives to the first token of a sequence."""
    if model not in FIRST_POSITIONS:
        found = (getattr(module, "position_embeddings", None) for module in model.modules())
        paddings = (getattr(embeddings, "padding_idx", None) for embeddings in found)
        padding = next((padding for padding in paddings if padding is not None), -1)
        FIRST_POSITIONS[model] = int(padding) + 1
    return FIRST_POSITIONS[model]
