"""The position that a model gives to the first token of a sequence, 0 for most models."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch

from virnucpro.model.configuration import text_config

# Results of `first_position`, since a walk over a model's modules takes milliseconds.
FIRST_POSITIONS: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

# Modules whose positions have been checked once on a device.
CHECKED: WeakSet[torch.nn.Module] = WeakSet()


def first_position(model: Any) -> int:
    """Return the position that a model gives to the first token of a sequence."""
    if model not in FIRST_POSITIONS:
        modules = (getattr(module, "position_embeddings", None) for module in model.modules())
        paddings = (getattr(embeddings, "padding_idx", None) for embeddings in modules)
        padding = next((padding for padding in paddings if padding is not None), -1)
        FIRST_POSITIONS[model] = int(padding) + 1
    return FIRST_POSITIONS[model]


def max_positions(model: Any) -> int | None:
    """Return the tokens per sequence that a model has positions for; None for rotary positions."""
    config = text_config(model)
    is_rotary = getattr(config, "position_embedding_type", None) == "rotary"
    if is_rotary or getattr(config, "rope_parameters", None) is not None:
        return None
    positions = getattr(config, "max_position_embeddings", None)
    return None if positions is None else int(positions) - first_position(model)


def check_layer_positions(layer: torch.nn.Module, config: Any, position_ids: Any) -> None:
    """Check positions in the first attention layer of models that count them as RoBERTa does."""
    if torch.compiler.is_compiling() or getattr(layer, "layer_idx", None) != 0:
        return
    if isinstance(position_ids, torch.Tensor):
        padding_idx = getattr(config, "pad_token_id", None)
        is_rotary = getattr(config, "rope_parameters", None) is not None
        if (
            padding_idx is not None
            and not is_rotary
            and counts_from_padding(type(layer).__module__)
        ):
            check_first_position(layer, position_ids, padding_idx)


def check_first_position(
    module: torch.nn.Module, position_ids: torch.Tensor, padding_idx: int
) -> None:
    """Raise if positions start before `padding_idx` + 1, for models that count from there.

    Only the first batch of a module is checked on a device other than a CPU, since reading a value
    waits for the device.
    """
    if torch.compiler.is_compiling() or not position_ids.numel() or module in CHECKED:
        return
    if position_ids.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    first = int(position_ids[0, 0])
    if first <= padding_idx:
        raise ValueError(
            f"the model counts positions from {padding_idx + 1} (got {first}): "
            "pass model_inputs(batch, model) to it"
        )
    if not position_ids.is_cpu:
        CHECKED.add(module)


@cache
def counts_from_padding(module_name: str) -> bool:
    """Return whether the embeddings in a module of transformers count positions as RoBERTa does."""
    values = vars(sys.modules[module_name]).values()
    name = "create_position_ids_from_input_ids"
    return any(isinstance(value, type) and hasattr(value, name) for value in values)
