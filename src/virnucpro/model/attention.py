"""`packed_sdpa`: attention within each sequence of a packed batch, for Hugging Face models.

Importing it registers ``"packed_sdpa"`` with transformers::

    from virnucpro.data import model_inputs, packed_sdpa  # registers "packed_sdpa"

    model.set_attn_implementation("packed_sdpa")
    model(**model_inputs(batch, model))

It supports models in which every token attends to all tokens of its sequence, or to all tokens
before it, such as ESM-2, BERT and Llama, with or without FlashAttention. It refuses sliding
windows, masks, biases, sinks, caches, cross-attention and attention weights as output, and models
with layers that carry a state from token to token. `virnucpro.data.check_packed` checks whether
packing changes the output of a model.

ESM-2 scales embeddings by the share of mask tokens in a row (``token_dropout``). After this import,
each sequence is scaled by its own share, for every attention implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers import __version__ as transformers_version

from virnucpro.model.configuration import find_unsupported, unsupported_layers
from virnucpro.model.esm import patch_esm_embeddings
from virnucpro.model.kernels import (
    Boundaries,
    attend_in_blocks,
    attend_one_by_one,
    attend_varlen,
)
from virnucpro.model.positions import check_layer_positions

try:
    from transformers.utils import output_capturing
except ImportError as error:
    raise ImportError(
        f"packed_sdpa needs transformers 5.17 or newer (got {transformers_version})"
    ) from error

# Arguments that would change the result and are not supported.
UNSUPPORTED = (
    "alibi",
    "attention_bias",
    "block_mask",
    "cache",
    "encoder_hidden_states",
    "head_mask",
    "indices",
    "output_attentions",
    "past_key_values",
    "position_bias",
    "s_aux",
    "sinks",
    "sliding_window",
    "softcap",
    "softmax_cap",
    "window_size",
)

# Tensors that layers pass on and that do not change the result. All others are refused.
HARMLESS = frozenset(
    {
        "cache_position",
        "cu_seq_lens_k",
        "input_ids",
        "labels",
        "num_items_in_batch",
        "position_ids",
        "seq_idx",
        "token_type_ids",
    }
)

# Mask functions of transformers.masking_utils that boundaries replace.
PLAIN_MASKS = frozenset(
    {
        "add_offsets_to_mask_function",
        "and_masks",
        "bidirectional_mask_function",
        "causal_mask_function",
        "packed_sequence_mask_function",
        "remap_positions_for_packed_sequence",
    }
)


def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute scaled dot-product attention within each sequence of a packed row.

    Half-precision tensors on CUDA use the varlen kernel of FlashAttention or PyTorch, if available.
    All others use `torch.nn.functional.scaled_dot_product_attention`: on CPUs sequence by sequence,
    on other devices and in compiled models in blocks of `max_length_q` tokens.

    Beyond CPUs, it neither waits for the device nor reads values of tensors, so it can be part of
    ``torch.compile(fullgraph=True)`` and of CUDA graphs. For boundaries of one length and a
    constant `max_length_q` (``VarlenCollator(pad_to_budget=True)``), nothing is compiled twice.

    Args:
        module: The attention layer. Its ``is_causal`` is used if `is_causal` is None.
        query: [1, heads, tokens, head_dim].
        key: [1, key_heads, tokens, head_dim]; `key_heads` is `heads` or a divisor of it.
        value: Same shape as `key`.
        attention_mask: Must be None; the boundaries separate the sequences.
        dropout: Dropout probability of attention weights.
        scaling: Factor for the attention scores; 1 / sqrt(head_dim) if None.
        is_causal: Whether tokens attend only to themselves and the tokens before them.
        cu_seq_lens_q: Boundaries of the n sequences, int32 [n + 1], on the device of `query`.
            Sequences may be empty.
        max_length_q: Number of tokens of the longest sequence, or more; all tokens if None.
        **kwargs: Other arguments of attention layers. Arguments that would change the result are
            refused.

    Returns:
        The output, [1, tokens, heads, head_dim], and None in place of attention weights.

    Raises:
        ValueError: The boundaries are missing or, on a CPU, do not match the tokens, or the
            arguments or the layer's configuration request a feature that is not supported.

    Cost: O(sum of squared lengths), as only tokens of the same sequence interact; in blocks, three
    times O(tokens times `max_length_q`), and a mask of that size in memory.

    Example:
        >>> import torch
        >>> from virnucpro.data import packed_sdpa
        >>> query = key = value = torch.ones(1, 1, 3, 2)
        >>> boundaries = torch.tensor([0, 2, 3], dtype=torch.int32)
        >>> output, _ = packed_sdpa(
        ...     torch.nn.Identity(), query, key, value, None, cu_seq_lens_q=boundaries)
        >>> output.shape
        torch.Size([1, 3, 1, 2])
    """
    num_tokens = query.shape[2]
    if cu_seq_lens_q is None:
        raise ValueError(
            "packed_sdpa needs cu_seq_lens_q: pass model_inputs(batch, model) to the model, or "
            "make its batches with DataCollatorWithFlattening(return_flash_attn_kwargs=True)"
        )
    if query.shape[0] != 1 or key.shape[2] != num_tokens:
        raise ValueError(
            "packed_sdpa takes one row of concatenated sequences, without a cache or "
            f"cross-attention (got query {list(query.shape)}, key {list(key.shape)})"
        )
    if attention_mask is not None:
        raise ValueError("packed_sdpa does not support attention_mask")
    boundaries_k = kwargs.get("cu_seq_lens_k")
    boundaries = cu_seq_lens_q, cu_seq_lens_q if boundaries_k is None else boundaries_k
    check_arguments(module, boundaries, max_length_q, kwargs)
    if num_tokens == 0:
        raise ValueError("packed_sdpa needs at least one token")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    if query.is_cpu and not torch.compiler.is_compiling():
        return attend_one_by_one(
            query, key, value, cu_seq_lens_q, dropout, scaling, is_causal
        ), None
    max_seqlen = num_tokens if max_length_q is None else min(max_length_q, num_tokens)
    on_device = move_boundaries(boundaries, query.device)
    arguments = query, key, value, on_device, max_seqlen, dropout, scaling, is_causal
    output = None
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        output = attend_varlen(*arguments)
    if output is None:
        output = attend_in_blocks(*arguments)
    return output, None


def move_boundaries(boundaries: Boundaries, device: torch.device) -> Boundaries:
    """Return boundaries as varlen kernels take them; those on another device are copied."""
    boundaries_q, boundaries_k = boundaries
    moved = boundaries_q.to(device, torch.int32, non_blocking=True)
    if boundaries_k is boundaries_q:
        return moved, moved
    return moved, boundaries_k.to(device, torch.int32, non_blocking=True)


def check_arguments(
    module: torch.nn.Module,
    boundaries: Boundaries,
    max_seqlen: int | None,
    arguments: dict[str, Any],
) -> None:
    """Raise if a layer requests more than attention within sequences."""
    for name in UNSUPPORTED:
        if arguments.get(name) is not None and arguments[name] is not False:
            raise ValueError(f"packed_sdpa does not support {name}")
    for name, argument in arguments.items():
        if isinstance(argument, torch.Tensor) and name not in HARMLESS:
            raise ValueError(
                f"packed_sdpa does not support the tensor {name}, which may change the scores"
            )
    boundaries_q, boundaries_k = boundaries
    # Comparing values would wait for a device; there, both are passed on.
    has_values = boundaries_q.is_cpu and boundaries_k.is_cpu and not torch.compiler.is_compiling()
    if boundaries_q.shape != boundaries_k.shape or (
        has_values and not torch.equal(boundaries_k, boundaries_q)
    ):
        raise ValueError("packed_sdpa needs cu_seq_lens_k to equal cu_seq_lens_q")
    config = getattr(module, "config", None)
    if getattr(config, "output_attentions", False) or is_capturing_attentions():
        raise ValueError("packed_sdpa does not support output_attentions")
    check_layer_positions(module, config, arguments.get("position_ids"))
    unsupported = find_unsupported(config, max_seqlen)
    if unsupported is not None:
        raise ValueError(f"packed_sdpa does not support {unsupported}")


def is_capturing_attentions() -> bool:
    """Return whether the running model collects attention weights with hooks on its layers."""
    collector = getattr(output_capturing, "_active_collector", None)
    if collector is None or torch.compiler.is_compiling():
        return False
    return "attentions" in (collector.get() or ())


def refuse_masks(
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    mask_function: Callable[..., Any] | None = None,
    config: Any = None,
    **_: Any,
) -> None:
    """Return None, since boundaries suffice; raise for masks that boundaries cannot replace."""
    if attention_mask is not None:
        raise ValueError("packed_sdpa does not support attention_mask")
    # Models with several types of layers request the masks of all types, even unused ones.
    has_layer_types = getattr(config, "layer_types", None)
    if local_size is not None and has_layer_types and not unsupported_layers(config):
        return
    if local_size is not None:
        raise ValueError(f"packed_sdpa does not support local attention ({local_size} tokens)")
    if mask_function is None or torch.compiler.is_compiling():
        return
    for name in mask_names(mask_function):
        if name not in PLAIN_MASKS:
            raise ValueError(f"packed_sdpa does not support the mask function {name}")


def mask_names(function: Callable[..., Any]) -> Iterator[str]:
    """Yield the names of a mask function and of all functions it combines."""
    yield getattr(function, "__qualname__", repr(function)).partition(".<locals>")[0]
    for cell in getattr(function, "__closure__", None) or ():
        value = cell.cell_contents
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if callable(part):
                yield from mask_names(part)


AttentionInterface.register("packed_sdpa", packed_sdpa)
AttentionMaskInterface.register("packed_sdpa", refuse_masks)
patch_esm_embeddings()
