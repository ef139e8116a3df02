"""Attention inside each sequence of a packed batch, for Hugging Face models without FlashAttention.

Importing this module registers ``"packed_sdpa"`` with transformers::

    import virnucpro.model.attention
    model.set_attn_implementation("packed_sdpa")
    model(**model_inputs(batch, model))

It serves models in which every token attends to all others of its sequence, or to all before it,
such as ESM-2, BERT and Llama. Windows, masks, biases, sinks, caches, cross-attention and attention
weights as output are refused. So are models with layers that carry a state from token to token.
`virnucpro.data.check_packed` runs a model to see whether packing changes what it gives.

ESM-2 scales embeddings by the share of mask tokens in a row (``token_dropout``). Importing this
module makes that the share in each sequence, for every attention implementation.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers import __version__ as transformers_version

from virnucpro.model.configuration import find_unserved, other_layers
from virnucpro.model.esm import check_first_position, count_masks_by_sequence

try:
    from transformers.utils import output_capturing
except ImportError as error:
    raise ImportError(
        f"packed_sdpa needs transformers 5.17 or newer (got {transformers_version})"
    ) from error

# Imported here and looked up by `find`, since an import that fails cannot be compiled.
for name in ("flash_attn", "torch.nn.attention.varlen"):
    with suppress(ImportError):
        import_module(name)

# What would change the result and is not done here.
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

# The tensors that layers pass on and that change nothing here. All others are refused.
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

# The functions of transformers.masking_utils whose masks boundaries replace.
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


# What `parameters_of` has read; functools.cache cannot be compiled.
PARAMETERS: dict[Callable[..., Any], frozenset[str]] = {}


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
        ValueError: Boundaries are missing or do not fit, or more is asked for than is done here,
            by the arguments or by the configuration of the layer.

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
        raise ValueError(
            "packed_sdpa needs cu_seq_lens_q: pass model_inputs(batch, model) to the model"
        )
    if query.shape[0] != 1 or key.shape[2] != num_tokens:
        raise ValueError(
            "packed_sdpa takes one row of sequences end to end, without a cache or cross-attention "
            f"(got query {list(query.shape)}, key {list(key.shape)})"
        )
    if attention_mask is not None:
        raise ValueError("packed_sdpa takes no attention_mask")
    refuse(module, cu_seq_lens_q, max_length_q, kwargs)
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
    grouped: dict[str, Any] = {"enable_gqa": True} if key.shape[1] != query.shape[1] else {}
    outputs = [
        torch.nn.functional.scaled_dot_product_attention(
            one_query,
            one_key,
            one_value,
            dropout_p=dropout,
            scale=scaling,
            is_causal=is_causal,
            **grouped,
        )
        for one_query, one_key, one_value in zip(
            query.split_with_sizes(lengths, dim=2),
            key.split_with_sizes(lengths, dim=2),
            value.split_with_sizes(lengths, dim=2),
            strict=True,
        )
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def refuse(
    module: torch.nn.Module,
    boundaries: torch.Tensor,
    longest: int | None,
    arguments: dict[str, Any],
) -> None:
    """Raise for what a layer asks for beyond attention inside sequences."""
    for name in UNSUPPORTED:
        if arguments.get(name) is not None and arguments[name] is not False:
            raise ValueError(f"packed_sdpa does not support {name}")
    for name, argument in arguments.items():
        if isinstance(argument, torch.Tensor) and name not in HARMLESS:
            raise ValueError(
                f"packed_sdpa does not know the tensor {name}, which may change scores"
            )
    boundaries_k = arguments.get("cu_seq_lens_k")
    if boundaries_k is None:
        boundaries_k = boundaries
    if boundaries_k is not boundaries and not torch.equal(boundaries_k, boundaries):
        raise ValueError("packed_sdpa needs the same cu_seq_lens_k as cu_seq_lens_q")
    config = getattr(module, "config", None)
    if getattr(config, "output_attentions", False) or is_capturing_attentions():
        raise ValueError("packed_sdpa does not support output_attentions")
    check_positions(module, config, arguments.get("position_ids"))
    unserved = find_unserved(config, longest)
    if unserved is not None:
        raise ValueError(f"packed_sdpa does not support {unserved}")


def is_capturing_attentions() -> bool:
    """Whether the model that runs collects attention weights, which some do without telling."""
    collector = getattr(output_capturing, "_active_collector", None)
    if collector is None or torch.compiler.is_compiling():
        return False
    return "attentions" in (collector.get() or ())


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
    flash_attn_varlen_func = find("flash_attn", "flash_attn_varlen_func")
    if flash_attn_varlen_func is not None:
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
    varlen_attn = find("torch.nn.attention.varlen", "varlen_attn")
    if dropout > 0 or varlen_attn is None:
        return None
    # Each release of torch takes other arguments: 2.10 no scale, 2.11 no grouped heads.
    takes = parameters_of(varlen_attn)
    options: dict[str, Any] = {}
    if is_causal and "window_size" in takes:
        options["window_size"] = (-1, 0)
    elif is_causal and "is_causal" in takes:
        options["is_causal"] = True
    elif is_causal:
        return None
    if scale is not None and "scale" in takes:
        options["scale"] = scale
    elif scale is not None:
        query = query * (scale * math.sqrt(query.shape[-1]))
    if key.shape[1] != query.shape[1] and "enable_gqa" in takes:
        options["enable_gqa"] = True
    elif key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    attended = varlen_attn(query, key, value, boundaries, boundaries, longest, longest, **options)
    assert isinstance(attended, torch.Tensor)
    return attended


def find(module_name: str, name: str) -> Callable[..., Any] | None:
    """Return a function of a module, None where the module could not be imported."""
    return getattr(sys.modules.get(module_name), name, None)


def parameters_of(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of a function's parameters, read once."""
    if function not in PARAMETERS:
        PARAMETERS[function] = frozenset(inspect.signature(function).parameters)
    return PARAMETERS[function]


def refuse_masks(
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    mask_function: Callable[..., Any] | None = None,
    config: Any = None,
    **_: Any,
) -> None:
    """Make no mask, as boundaries are enough; refuse those that they do not replace."""
    if attention_mask is not None:
        raise ValueError("packed_sdpa takes no attention_mask")
    # Models with layers of several kinds make the masks of all, also of those that they lack.
    if local_size is not None and getattr(config, "layer_types", None) and not other_layers(config):
        return
    if local_size is not None:
        raise ValueError(f"packed_sdpa does not support local attention (of {local_size} tokens)")
    if mask_function is None or torch.compiler.is_compiling():
        return
    for name in names_of_masks(mask_function):
        if name not in PLAIN_MASKS:
            raise ValueError(f"packed_sdpa does not support the mask of {name}")


def names_of_masks(function: Callable[..., Any]) -> Iterator[str]:
    """Yield the names of a mask function and of all that it is made from."""
    yield getattr(function, "__qualname__", repr(function)).partition(".<locals>")[0]
    for cell in getattr(function, "__closure__", None) or ():
        held = cell.cell_contents
        for part in held if isinstance(held, (tuple, list)) else (held,):
            if callable(part):
                yield from names_of_masks(part)


def check_positions(module: torch.nn.Module, config: Any, position_ids: Any) -> None:
    """Check the positions that the first layer of a model of RoBERTa's kind is told."""
    if torch.compiler.is_compiling() or getattr(module, "layer_idx", None) != 0:
        return
    if isinstance(position_ids, torch.Tensor):
        padding_idx = getattr(config, "pad_token_id", None)
        is_rotary = getattr(config, "rope_parameters", None) is not None
        if (
            padding_idx is not None
            and not is_rotary
            and counts_from_padding(type(module).__module__)
        ):
            check_first_position(position_ids, padding_idx)


@cache
def counts_from_padding(module_name: str) -> bool:
    """Whether embeddings in a Python module of transformers count positions as RoBERTa does."""
    parts = vars(sys.modules[module_name]).values()
    name = "create_position_ids_from_input_ids"
    return any(isinstance(part, type) and hasattr(part, name) for part in parts)


AttentionInterface.register("packed_sdpa", packed_sdpa)
AttentionMaskInterface.register("packed_sdpa", refuse_masks)
count_masks_by_sequence()
