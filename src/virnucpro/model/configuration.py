"""What the configuration of a Hugging Face model says of its attention and its layers."""

from __future__ import annotations

from typing import Any

import torch

# Names under which configurations say what kind each layer is.
LAYER_TYPES = ("layer_types", "layers_block_type", "block_types")

# Kinds of layers whose tokens see all of their sequence, or themselves alone.
PLAIN_LAYERS = frozenset({"attention", "full_attention", "mlp", "moe"})

# Rotary frequencies that depend on the longest sequence of a batch, once it is longer than these.
GROWING_ROPES = {
    "dynamic": "max_position_embeddings",
    "longrope": "original_max_position_embeddings",
}


def text_config(model: Any) -> Any:
    """Return a model's configuration, of its text part where it has several."""
    config = getattr(model, "config", None)
    get_part = getattr(config, "get_text_config", None)
    return config if get_part is None else get_part()


def attention_of(model: Any) -> str | None:
    """Return the name of a model's attention implementation."""
    name = getattr(text_config(model), "_attn_implementation", None)
    return None if name is None else str(name)


def setting(config: Any, name: str) -> Any:
    """Return an attribute of a configuration, None where it lacks it.

    Every layer asks this, and attributes of transformers' configurations take microseconds.
    """
    if torch.compiler.is_compiling():
        return getattr(config, name, None)
    held = object.__getattribute__(config, "__dict__")
    if name in held:
        return held[name]
    return getattr(config, name, None) if hasattr(type(config), name) else None


def other_layers(config: Any) -> list[str]:
    """Return the kinds of a model's layers that are no plain attention, sorted."""
    if config is None:
        return []
    kinds = {kind for name in LAYER_TYPES for kind in setting(config, name) or ()}
    return sorted(kinds - PLAIN_LAYERS)


def is_attention(kind: str) -> bool:
    """Whether a layer of a kind sees tokens, and carries no state from one to the next."""
    return kind.endswith("_attention") and not kind.startswith("linear")


def is_encoder_decoder(config: Any) -> bool:
    """Whether a model attends to another's states."""
    names = ("is_encoder_decoder", "add_cross_attention")
    return config is not None and any(setting(config, name) for name in names)


def find_unserved(config: Any, longest: int | None) -> str | None:
    """Return what `packed_sdpa` does not do of what a configuration asks for, None if nothing."""
    if config is None:
        return None
    others = other_layers(config)
    if others:
        return f"layers of type {others[0]!r} (layer_types of the model's config)"
    if is_encoder_decoder(config):
        return "cross-attention (is_encoder_decoder or add_cross_attention of the model's config)"
    if setting(config, "attn_temperature_tuning"):
        return "attn_temperature_tuning, as it scales by places in the row"
    rope = setting(config, "rope_parameters") or {}
    for kind, name in GROWING_ROPES.items():
        if rope.get("rope_type") != kind:
            continue
        limit = rope.get(name) or getattr(config, name, None)
        if longest is None or limit is None or longest > limit:
            return f"rope_type {kind!r} beyond {limit} tokens, as it depends on neighbours"
    return None
