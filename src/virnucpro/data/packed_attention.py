"""Attention inside each sequence of a packed batch, for Hugging Face models without FlashAttention.

Importing this module registers ``"packed_sdpa"`` with transformers::

    import virnucpro.data.packed_attention
    model.set_attn_implementation("packed_sdpa")
    model(**model_inputs(batch))

It serves models with rotary or relative positions in which every token attends to all others of
its sequence, or to all before it, such as ESM-2 and Llama. Where a model scales embeddings
by the share of mask tokens (``token_dropout`` of ESM-2), that share is the batch's and no longer
the sequence's, so sequences with ``<mask>`` come out as if unpacked only where it is off.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

# What would change the result and is not done here.
UNSUPPORTED = (
    "alibi",
    "attention_bias",
    "block_mask",
    "cache",
    "head_mask",
    "indices",
    "position_bias",
    "s_aux",
    "sinks",
    "sliding_window",
    "softcap",
    "softmax_cap",
    "window_size",
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
    """Return scaled-dot-product attention of each sequence with itself.

    Half-precision tensors on CUDA go to FlashAttention's varlen kernel, or PyTorch's, where one is
    there; all others to `torch.nn.functional.scaled_dot_product_attention`, sequence by sequence.

    Args:
        module: The attention layer; says whether attention is causal where `is_causal` is None.
        query: [1, heads, tokens, dimension].
        key: The same, with as many heads or a divisor of their number.
        value: Like `key`.
        attention_mask: None; sequences are told apart by their boundaries.
        dropout: Probability to drop an attention weight.
        scaling: Factor of the scores, None for 1 / sqrt(dimension).
        is_causal: Whether a token sees none after it.
        cu_seq_lens_q: Where each sequence begins, and the end: int32 [n + 1].
        max_length_q: Tokens of the longest sequence.
        **kwargs: Other arguments of attention layers. What would change the result is refused.

    Returns:
        [1, tokens, heads, dimension], and None in place of attention weights.

    Raises:
        ValueError: Boundaries are missing or do not fit, or more is asked for than is done here.

    Cost: that of attention within each sequence, O(sum of squared lengths).

    Example:
        >>> query = key = value = torch.ones(1, 1, 3, 2)
        >>> boundaries = torch.tensor([0, 2, 3], dtype=torch.int32)
        >>> attended, _ = packed_sdpa(
        ...     torch.nn.Identity(), query, key, value, None, cu_seq_lens_q=boundaries)
        >>> attended.shape
        torch.Size([1, 3, 1, 2])
    """
    num_tokens = query.shape[2]
    if cu_seq_lens_q is None:
        raise ValueError("packed_sdpa needs cu_seq_lens_q: pass model_inputs(batch) to the model")
    if query.shape[0] != 1 or key.shape[2] != num_tokens:
        raise ValueError(
            "packed_sdpa takes one row of sequences end to end "
            f"(got query {list(query.shape)}, key {list(key.shape)})"
        )
    if attention_mask is not None:
        raise ValueError("packed_sdpa takes no attention_mask")
    for name in UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(f"packed_sdpa does not support {name}")
    boundaries_k = kwargs.get("cu_seq_lens_k")
    if boundaries_k is not None and not torch.equal(boundaries_k, cu_seq_lens_q):
        raise ValueError("packed_sdpa needs the same cu_seq_lens_k as cu_seq_lens_q")
    if num_tokens == 0:
        raise ValueError("packed_sdpa needs at least one token")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        longest = max_length_q or int(cu_seq_lens_q.diff().max())
        output = attend_varlen(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            cu_seq_lens_q.to(query.device, torch.int32),
            longest,
            dropout,
            scaling,
            is_causal,
        )
        if output is not None:
            return output[None], None
    boundaries = cu_seq_lens_q.tolist()
    if boundaries[0] != 0 or boundaries[-1] != num_tokens or sorted(boundaries) != boundaries:
        raise ValueError(f"cu_seq_lens_q must rise from 0 to {num_tokens:,} (got {boundaries})")
    lengths = [end - begin for begin, end in pairwise(boundaries)]
    outputs = [
        torch.nn.functional.scaled_dot_product_attention(
            one_query,
            one_key,
            one_value,
            dropout_p=dropout,
            scale=scaling,
            is_causal=is_causal,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        for one_query, one_key, one_value in zip(
            query.split_with_sizes(lengths, dim=2),
            key.split_with_sizes(lengths, dim=2),
            value.split_with_sizes(lengths, dim=2),
            strict=True,
        )
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    longest: int,
    dropout: float,
    scale: float | None,
    is_causal: bool,
) -> torch.Tensor | None:
    """Return attention by a varlen kernel, None where no kernel is there that can do it.

    `query` is [tokens, heads, dimension], `key` and `value` are with as many heads or fewer.
    """
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        pass
    else:
        output: torch.Tensor = flash_attn_varlen_func(
            query,
            key,
            value,
            boundaries,
            boundaries,
            longest,
            longest,
            dropout_p=dropout,
            softmax_scale=scale,
            causal=is_causal,
        )
        return output
    if dropout > 0:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    attended = varlen_attn(
        query,
        key,
        value,
        boundaries,
        boundaries,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0) if is_causal else (-1, -1),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    assert isinstance(attended, torch.Tensor)
    return attended


def refuse_masks(
    attention_mask: torch.Tensor | None = None, local_size: int | None = None, **_: Any
) -> None:
    """Make no mask, as boundaries are enough; refuse those that they do not replace."""
    if attention_mask is not None:
        raise ValueError("packed_sdpa takes no attention_mask")
    if local_size is not None:
        raise ValueError(f"packed_sdpa does not support local attention (of {local_size} tokens)")


AttentionInterface.register("packed_sdpa", packed_sdpa)
AttentionMaskInterface.register("packed_sdpa", refuse_masks)
