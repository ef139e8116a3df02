"""Attention and layers of a Hugging Face model, according to its configuration."""

from __future__ import annotations

from typing import Any

import torch

from virnucpro.text import quoted

# Attributes of configurations that list the type of each layer.
LAYER_TYPES = ("layer_types", "layers_block_type", "block_types")

# Types of layers in which a token depends on its whole sequence, or only on itself.
SUPPORTED_LAYERS = frozenset({"attention", "full_attention", "mlp", "moe"})

# Types of rotary embeddings whose frequencies depend on the longest sequence of a batch if it is
# longer than the value of this attribute.
LENGTH_DEPENDENT_ROPES = {
    "dynamic": "max_position_embeddings",
    "longrope": "original_max_position_embeddings",
}


def check_model(model: Any) -> None:
    """Raise TypeError unless a model is a module of PyTorch."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module (got {type(model).__name__})")


def text_config(model: Any) -> Any:
    """Return a model's configuration; that of the text part if the model has several parts."""
    config = getattr(model, "config", None)
    get_text_config = getattr(config, "get_text_config", None)
    return config if get_text_config is None else get_text_config()


def attention_implementation(model: Any) -> str | None:
    """Return the name of a model's attention implementation."""
    name = getattr(text_config(model), "_attn_implementation", None)
    return None if name is None else str(name)


def get_attribute(config: Any, name: str) -> Any:
    """Return an attribute of a configuration; None if it is missing.

    Called in every layer, where `getattr` on a configuration of transformers takes microseconds.
    """
    if torch.compiler.is_compiling():
        return getattr(config, name, None)
    attributes = object.__getattribute__(config, "__dict__")
    if name in attributes:
        return attributes[name]
    return getattr(config, name, None) if hasattr(type(config), name) else None


def unsupported_layers(config: Any) -> list[str]:
    """Return a model's types of layers that are neither full attention nor token-wise, sorted."""
    if config is None:
        return []
    types = {kind for name in LAYER_TYPES for kind in get_attribute(config, name) or ()}
    return sorted(types - SUPPORTED_LAYERS)


def is_attention_layer(layer_type: str) -> bool:
    """Return whether layers of a type attend to tokens instead of passing on a state."""
    return layer_type.endswith("_attention") and not layer_type.startswith("linear")


def is_encoder_decoder(config: Any) -> bool:
    """Return whether a model attends to the states of another model."""
    names = ("is_encoder_decoder", "add_cross_attention")
    return config is not None and any(get_attribute(config, name) for name in names)


def find_unsupported(config: Any, max_seqlen: int | None) -> str | None:
    """Return a setting of a configuration that `packed_sdpa` does not support; None if none."""
    if config is None:
        return None
    layers = unsupported_layers(config)
    if layers:
        return f"layers of type {quoted(layers[0])} (layer_types of the model's config)"
    if is_encoder_decoder(config):
        return "cross-attention (is_encoder_decoder or add_cross_attention of the model's config)"
    if get_attribute(config, "attn_temperature_tuning"):
        return "attn_temperature_tuning, which scales by position in the row"
    rope = get_attribute(config, "rope_parameters") or {}
    for rope_type, name in LENGTH_DEPENDENT_ROPES.items():
        if rope.get("rope_type") != rope_type:
            continue
        limit = rope.get(name) or getattr(config, name, None)
        if max_seqlen is None or limit is None or max_seqlen > limit:
            return (
                f"rope_type {quoted(rope_type)} beyond {limit} tokens, since it then depends on "
                "the other sequences of the batch"
            )
    return None
