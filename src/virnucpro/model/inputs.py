"""The arguments of Hugging Face models for packed batches."""

from __future__ import annotations

import inspect
import logging
from functools import cache
from typing import Any

import torch

from virnucpro.model.configuration import (
    attention_implementation,
    is_attention_layer,
    is_encoder_decoder,
    text_config,
    unsupported_layers,
)
from virnucpro.model.positions import first_position
from virnucpro.text import quoted

logger = logging.getLogger(__name__)

# Attention implementations of transformers that ignore boundaries.
IGNORE_BOUNDARIES = frozenset({"eager", "flex_attention", "sdpa"})

# What a batch must have; the first two as rows.
INPUTS = (
    *("input_ids", "position_ids"),
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
)


def model_inputs(batch: dict[str, Any], model: Any = None) -> dict[str, Any]:
    """Return the arguments of a Hugging Face model for a batch of packed sequences.

    They are ``input_ids`` and ``position_ids``, int64 [1, tokens], and the boundaries
    ``cu_seq_lens_q``, ``cu_seq_lens_k``, ``max_length_q`` and ``max_length_k``.

    Without `model`, the positions of each sequence start from 0, as rotary embeddings and BERT
    require. With `model`, they start from the model's first position: for RoBERTa and ESM-1b, the
    ID of the padding token + 1. Models whose layers carry a state from token to token (Mamba and
    similar) also get ``seq_idx``, the number of each token's sequence, int32 [1, tokens];
    `check_packed` checks whether they use it. If the model's attention ignores boundaries, one
    WARNING says so.

    Args:
        batch: A batch of `VarlenCollator`, or of transformers'
            ``DataCollatorWithFlattening(return_flash_attn_kwargs=True)``.
        model: The model that will run the batch.

    Raises:
        KeyError: The batch is empty, or lacks boundaries or positions.
        ValueError: The model is an encoder-decoder, or has layers with a state but does not accept
            ``seq_idx``.

    Cost: the tensors are views. With `model`, its modules are searched once.

    Example:
        >>> from types import SimpleNamespace
        >>> from virnucpro.data import VarlenCollator, model_inputs
        >>> alphabet = SimpleNamespace(
        ...     tok_to_idx={"<cls>": 0, "<eos>": 2, "<unk>": 3, "M": 20}, unk_idx=3, cls_idx=0,
        ...     eos_idx=2, prepend_bos=True, append_eos=True, use_msa=False, encode=None)
        >>> collate = VarlenCollator(SimpleNamespace(alphabet=alphabet))
        >>> batch = collate([{"id": "a", "sequence": "M"}])
        >>> model_inputs(batch)["input_ids"].shape
        torch.Size([1, 3])
    """
    inputs = packed_inputs(batch, model)
    if model is not None and not find_stateful(model):
        attention = attention_implementation(model)
        if attention in IGNORE_BOUNDARIES:
            warn_of_attention(type(model).__name__, attention)
    return inputs


def packed_inputs(batch: dict[str, Any], model: Any) -> dict[str, Any]:
    """Return the result of `model_inputs` without a WARNING of the model's attention."""
    for name in INPUTS:
        if name not in batch:
            raise KeyError(
                f"the batch has no {name}: model_inputs takes batches of VarlenCollator, or of "
                "DataCollatorWithFlattening(return_flash_attn_kwargs=True)"
            )
    inputs = {name: batch[name] for name in INPUTS}
    for name in INPUTS[:2]:
        # Batches of transformers are rows already.
        if inputs[name].ndim == 1:
            inputs[name] = inputs[name][None]
    if model is None:
        return inputs
    config = text_config(model)
    if is_encoder_decoder(config):
        raise ValueError("model_inputs does not support encoder-decoder models")
    if getattr(config, "token_dropout", False):
        from virnucpro.model.esm import patch_esm_embeddings

        patch_esm_embeddings()
    first = first_position(model)
    if first:
        inputs["position_ids"] = inputs["position_ids"] + first
    stateful = find_stateful(model)
    accepts_seq_idx = accepts(model, "seq_idx", or_kwargs=bool(stateful))
    if stateful and not accepts_seq_idx:
        raise ValueError(
            f"model_inputs does not support layers of type {quoted(stateful[0])}: they carry a "
            f"state from token to token, and {type(model).__name__} does not accept seq_idx"
        )
    if accepts_seq_idx:
        inputs["seq_idx"] = make_seq_idx(inputs)
    return inputs


def find_stateful(model: Any) -> list[str]:
    """Return the types of a model's layers that carry a state from token to token."""
    layer_types = unsupported_layers(text_config(model))
    return [kind for kind in layer_types if not is_attention_layer(kind)]


@cache
def warn_of_attention(model_name: str, attention: str) -> None:
    """Warn once that an attention implementation ignores boundaries."""
    logger.warning(
        "%s uses the attention implementation %r, which lets tokens attend to other sequences of a "
        "packed row unless the model tells sequences apart by their positions; use "
        '"packed_sdpa" or FlashAttention, or run check_packed',
        model_name,
        attention,
    )


def make_seq_idx(inputs: dict[str, Any]) -> torch.Tensor:
    """Return the number of each token's sequence, int32 [1, tokens]."""
    tokens, boundaries = inputs["input_ids"], inputs["cu_seq_lens_q"]
    indices = torch.arange(tokens.shape[1], dtype=boundaries.dtype, device=boundaries.device)
    seq_idx = torch.bucketize(indices, boundaries[1:], right=True, out_int32=True)
    return seq_idx.to(tokens.device)[None]


def accepts(model: Any, name: str, or_kwargs: bool) -> bool:
    """Return whether a model's forward has a parameter, or, if `or_kwargs`, takes ``**kwargs``."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or (
        or_kwargs and any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    )


def run_model(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the states that a model gives for the tokens of one row, [tokens, width].

    Raises:
        ValueError: The model returns no states for each token.
    """
    output = model(**inputs)
    for name in ("last_hidden_state", "logits"):
        states = getattr(output, name, None)
        if states is not None:
            break
    else:
        states = output
    tokens = inputs["input_ids"].shape[1]
    if not isinstance(states, torch.Tensor) or states.ndim != 3 or states.shape[1] != tokens:
        shape = list(states.shape) if isinstance(states, torch.Tensor) else type(states).__name__
        raise ValueError(
            f"{type(model).__name__} does not return last_hidden_state or logits for each of the "
            f"{tokens} tokens (got {shape})"
        )
    return states[0]
