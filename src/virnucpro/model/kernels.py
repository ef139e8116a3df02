"""Attention within the sequences of a packed row: varlen kernels, and SDPA for all else."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

# Imported here and looked up by `find_function`: torch.compile cannot trace a failing import.
for name in ("flash_attn", "torch.nn.attention.varlen"):
    with suppress(ImportError):
        import_module(name)

# Results of `parameters_of`; torch.compile cannot trace functools.cache.
PARAMETERS: dict[Callable[..., Any], frozenset[str]] = {}

# Boundaries of queries and of keys.
Boundaries = tuple[torch.Tensor, torch.Tensor]


def attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: Boundaries,
    max_seqlen: int,
    dropout: float,
    scale: float | None,
    is_causal: bool,
) -> torch.Tensor | None:
    """Return attention computed by a varlen kernel; None if no installed kernel supports it.

    Args:
        query: [1, heads, tokens, head_dim].
        key: [1, key_heads, tokens, head_dim], with as many heads or fewer.
        value: Same shape as `key`.
        boundaries: Boundaries of the n sequences, int32 [n + 1], for queries and for keys.
        max_seqlen: Number of tokens of the longest sequence, or more.
        dropout: Dropout probability of attention weights.
        scale: Factor for the attention scores; 1 / sqrt(head_dim) if None.
        is_causal: Whether tokens attend only to themselves and the tokens before them.

    Returns:
        The output, [1, tokens, heads, head_dim].
    """
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    flash_attn_varlen_func = find_function("flash_attn", "flash_attn_varlen_func")
    if flash_attn_varlen_func is not None:
        output: torch.Tensor = flash_attn_varlen_func(
            query,
            key,
            value,
            *boundaries,
            max_seqlen,
            max_seqlen,
            dropout_p=dropout,
            softmax_scale=scale,
            causal=is_causal,
        )
        return output[None]
    varlen_attn = find_function("torch.nn.attention.varlen", "varlen_attn")
    if dropout > 0 or varlen_attn is None:
        return None
    # torch 2.10 has no scale, 2.11 no enable_gqa; tests/varlen_signatures.py lists all releases.
    parameters = parameters_of(varlen_attn)
    options: dict[str, Any] = {}
    if is_causal and "window_size" in parameters:
        options["window_size"] = (-1, 0)
    elif is_causal and "is_causal" in parameters:
        options["is_causal"] = True
    elif is_causal:
        return None
    if scale is not None and "scale" in parameters:
        options["scale"] = scale
    elif scale is not None:
        query = query * (scale * math.sqrt(query.shape[-1]))
    if key.shape[1] != query.shape[1] and "enable_gqa" in parameters:
        options["enable_gqa"] = True
    elif key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    output = varlen_attn(query, key, value, *boundaries, max_seqlen, max_seqlen, **options)
    assert isinstance(output, torch.Tensor)
    return output[None]


def find_function(module_name: str, name: str) -> Callable[..., Any] | None:
    """Return a function of a module; None if the module could not be imported."""
    return getattr(sys.modules.get(module_name), name, None)


def parameters_of(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of a function's parameters."""
    if function not in PARAMETERS:
        PARAMETERS[function] = frozenset(inspect.signature(function).parameters)
    return PARAMETERS[function]


def attend_one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    dropout: float,
    scale: float | None,
    is_causal: bool,
) -> torch.Tensor:
    """Return attention computed sequence by sequence; arguments as for `attend_varlen`.

    Reads the boundaries, so it waits for a device and cannot be compiled.

    Raises:
        ValueError: The boundaries do not match the tokens.
    """
    num_tokens = query.shape[2]
    bounds = boundaries.tolist()
    if bounds[0] != 0 or bounds[-1] != num_tokens or sorted(bounds) != bounds:
        raise ValueError(f"cu_seq_lens_q must increase from 0 to {num_tokens:,} (got {bounds})")
    lengths = [end - begin for begin, end in pairwise(bounds) if end > begin]
    options: dict[str, Any] = {"enable_gqa": True} if key.shape[1] != query.shape[1] else {}
    outputs = [
        scaled_dot_product_attention(
            one_query,
            one_key,
            one_value,
            dropout_p=dropout,
            scale=scale,
            is_causal=is_causal,
            **options,
        )
        for one_query, one_key, one_value in zip(
            query.split_with_sizes(lengths, dim=2),
            key.split_with_sizes(lengths, dim=2),
            value.split_with_sizes(lengths, dim=2),
            strict=True,
        )
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def attend_in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: Boundaries,
    max_seqlen: int,
    dropout: float,
    scale: float | None,
    is_causal: bool,
) -> torch.Tensor:
    """Return attention computed block by block; arguments as for `attend_varlen`.

    Tokens of a block of `max_seqlen` tokens attend to those of their own sequence in the same
    block, the block before and, unless `is_causal`, the block after. All shapes follow from those
    of the arguments, so it needs no values and can be compiled and captured.
    """
    num_tokens = query.shape[2]
    is_one_block = num_tokens <= 2 * max_seqlen
    block = num_tokens if is_one_block else max_seqlen
    before = 0 if is_one_block else block
    after = 0 if is_one_block or is_causal else block
    window = before + block + after
    num_blocks = -(-num_tokens // block)
    num_added = num_blocks * block - num_tokens
    # Numbers of tokens, and of what is added before the first and after the last.
    numbers = torch.arange(-before, num_blocks * block + after, device=query.device)

    def blocks(values: torch.Tensor) -> torch.Tensor:
        return values[before : before + num_blocks * block].view(num_blocks, block, 1)

    def windows(values: torch.Tensor) -> torch.Tensor:
        return values.unfold(0, window, block)[:, None]

    def states_of_windows(states: torch.Tensor) -> torch.Tensor:
        padded = pad(states[0], (0, 0, before, num_added + after))
        return padded.unfold(1, window, block).permute(1, 0, 3, 2)

    # A token is in the sequence that has as many boundaries at or before it; what is added in none.
    sequence_q, sequence_k = (torch.bucketize(numbers, each, right=True) for each in boundaries)
    mask = blocks(sequence_q) == windows(sequence_k)
    if is_causal:
        mask = mask & (blocks(numbers) >= windows(numbers))
    queries = pad(query[0], (0, 0, 0, num_added)).reshape(-1, num_blocks, block, query.shape[3])
    options: dict[str, Any] = {"enable_gqa": True} if key.shape[1] != query.shape[1] else {}
    output = scaled_dot_product_attention(
        queries.transpose(0, 1),
        states_of_windows(key),
        states_of_windows(value),
        attn_mask=mask[:, None],
        dropout_p=dropout,
        scale=scale,
        **options,
    )
    return output.transpose(1, 2).flatten(0, 1)[None, :num_tokens]
