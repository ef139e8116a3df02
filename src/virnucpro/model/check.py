"""`check_packed`: check that packing does not change the output of a model."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from virnucpro.model.batches import make_batch, to_device
from virnucpro.model.collator import VarlenCollator
from virnucpro.model.configuration import (
    attention_implementation,
    check_model,
    text_config,
    unsupported_layers,
)
from virnucpro.model.inputs import packed_inputs, run_model
from virnucpro.model.positions import first_position
from virnucpro.text import quoted

# Attributes of configurations that limit how many tokens a token attends to.
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")

# The largest difference between states, relative to their norm, that rounding can cause.
TOLERANCES = {
    torch.float64: 1e-4,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"

# Residues of each sequence that models are checked with.
LENGTHS = (40, 1, 13, 62, 2, 27, 20)
# Maximum tokens of the sequence that exceeds a window.
MAX_LENGTH = 1024


def check_packed(
    model: Any, batch_converter: Any = None, *, tolerance: float | None = None
) -> None:
    """Raise an error if packing changes the output of a model.

    Seven short sequences of random residues, two of them with mask tokens, go through the model one
    by one and packed in one row. If the model uses ``"packed_sdpa"`` or FlashAttention, the packed
    output is also compared with that of its own attention (``"eager"``). The model and all random
    states are left unchanged.

    Args:
        model: A Hugging Face model that returns ``last_hidden_state`` or ``logits`` for each token,
            on any device and of any floating-point type.
        batch_converter: Its tokenizer, a batch converter of fair-esm, or a `VarlenCollator`. If
            None, sequences are random tokens without special tokens.
        tolerance: The largest difference allowed between the states of a token, relative to the
            mean norm of all states. If None, 1e-4 in float32, 1e-2 in float16 and 5e-2 in bfloat16.

    Raises:
        ValueError: The outputs differ (the message names the likely cause), or the model refuses
            packed batches.
        TypeError: `model` is not a module of PyTorch, or `batch_converter` has another type.

    Cost: one run with all sequences, and up to sixteen with one sequence each, of at most 64
    tokens, or of 1,024 if the model has a shorter window.

    Example:
        >>> from transformers import LlamaConfig, LlamaModel
        >>> from virnucpro.data import check_packed, packed_sdpa
        >>> config = LlamaConfig(
        ...     vocab_size=24, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...     intermediate_size=8, attn_implementation="packed_sdpa")
        >>> check_packed(LlamaModel(config))
    """
    check_model(model)
    batch = make_check_batch(model, batch_converter)
    parameter = next(model.parameters())
    if tolerance is None:
        tolerance = TOLERANCES.get(parameter.dtype, 5e-2)
        if parameter.is_cuda and torch.get_float32_matmul_precision() != "highest":
            tolerance = max(tolerance, 1e-2)
    batch = to_device(batch, parameter.device)
    devices = [parameter.device] if parameter.is_cuda else []
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices):
        packed = run_packed(model, batch)
        differences_from: dict[str, list[float]] = {}
        for reference, alone in run_alone(model, batch):
            differences_from[reference] = compare(packed, alone, batch)
    for reference, differences in differences_from.items():
        # Not `> tolerance`, which is False for NaN.
        wrong = [i for i, difference in enumerate(differences) if not difference <= tolerance]
        if wrong:
            raise ValueError(explain(model, batch, reference, differences, wrong, tolerance))


def make_check_batch(model: Any, batch_converter: Any) -> dict[str, Any]:
    """Return the batch of sequences that a model is checked with."""
    draw = random.Random(0)
    if batch_converter is None:
        batch = draw_tokens(model, draw)
    else:
        batch = draw_residues(model, batch_converter, draw)
    if batch.get("num_sequences", 0) < 2:
        raise ValueError("check_packed needs a max_tokens_per_batch with room for two sequences")
    batch["input_ids"] = input_ids = batch["input_ids"].clone()
    insert_masks(batch, find_mask_token(model, batch_converter), draw)
    size = vocabulary_size(model)
    largest = int(input_ids.max())
    if largest >= size:
        raise ValueError(
            f"the tokenizer produces token {largest:,}, but the model's vocabulary has only "
            f"{size:,} tokens"
        )
    return batch


def draw_tokens(
    model: Any, draw: random.Random, lengths: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return a batch of random tokens other than padding; `lengths` are in tokens."""
    size = vocabulary_size(model)
    padding = getattr(text_config(model), "pad_token_id", None)
    tokens = [token for token in range(min(size, 1000)) if token != padding]
    if lengths is None:
        max_tokens = max_sequence_tokens(model)
        lengths = [min(length, max_tokens) for length in (*LENGTHS, *beyond_windows(model))]
    input_ids = np.array(draw.choices(tokens, k=sum(lengths)), np.int64)
    boundaries = np.append(0, np.cumsum(lengths)).astype(np.int32)
    return make_batch(input_ids, boundaries, list(range(len(lengths))), len(input_ids))


def draw_residues(model: Any, batch_converter: Any, draw: random.Random) -> dict[str, Any]:
    """Return a batch of random sequences, as many as fit the collator's budget."""
    if isinstance(batch_converter, VarlenCollator):
        # A copy, so that the counts of unknown residues and its warning are left unchanged. Without
        # padding, which could not run alone.
        collate = copy.copy(batch_converter)
        collate.pad_to_budget, collate.multiple_of = False, 1
        collate.unknown_residues = Counter()
        collate.unknown = "ignore"
    else:
        collate = VarlenCollator(
            batch_converter, 16 * MAX_LENGTH, max_sequence_length=MAX_LENGTH, unknown="ignore"
        )
    max_residues = max_sequence_tokens(model) - collate.special_tokens
    max_residues = max(1, min(max_residues, collate.max_sequence_length))
    room = collate.max_tokens_per_batch
    records: list[dict[str, Any]] = []
    for length in (*LENGTHS, *beyond_windows(model)):
        kept = min(length, max_residues, room - collate.special_tokens)
        if kept > 0:
            sequence = "".join(draw.choices(AMINO_ACIDS, k=kept))
            records.append({"id": len(records), "sequence": sequence})
            room -= kept + collate.special_tokens
    batch: dict[str, Any] = collate(records)
    return batch


def insert_masks(batch: dict[str, Any], mask: int | None, draw: random.Random) -> None:
    """Replace one token of a sequence, and half the tokens of another, with mask tokens."""
    bounds = batch["cu_seqlens"].tolist()
    for number, share in ((0, 0.0), (3, 0.5)):
        if mask is None or number + 1 >= len(bounds):
            continue
        inner = range(bounds[number] + 1, bounds[number + 1] - 1)
        for index in draw.sample(inner, min(len(inner), 1 + int(share * len(inner)))):
            batch["input_ids"][index] = mask


def find_mask_token(model: Any, batch_converter: Any) -> int | None:
    """Return the ID of the mask token; None if there is none."""
    alphabet = getattr(batch_converter, "alphabet", None)
    candidates = (
        getattr(batch_converter, "mask_token_id", None),
        getattr(alphabet, "mask_idx", None),
        getattr(text_config(model), "mask_token_id", None),
    )
    size = vocabulary_size(model)
    return next((mask for mask in candidates if mask is not None and 0 <= mask < size), None)


def vocabulary_size(model: Any) -> int:
    """Return the size of a model's vocabulary; a large number if unknown."""
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    declared = getattr(text_config(model), "vocab_size", 2**31)
    return int(getattr(embeddings, "num_embeddings", declared))


def max_sequence_tokens(model: Any, longest: int = MAX_LENGTH) -> int:
    """Return the maximum tokens per sequence that a model has positions for, up to `longest`."""
    positions = getattr(text_config(model), "max_position_embeddings", None) or longest
    return max(1, min(positions - first_position(model), longest))


def windows(config: Any) -> Iterator[tuple[str, int]]:
    """Yield the name and size of each attention window in a configuration."""
    for name in WINDOWS:
        size = getattr(config, name, None)
        if isinstance(size, int) and size > 0:
            yield name, size


def beyond_windows(model: Any) -> list[int]:
    """Return the length of a sequence that exceeds a model's largest window, if it has any."""
    small = range(max(LENGTHS) + 1, MAX_LENGTH - 16)
    sizes = [size for _, size in windows(text_config(model)) if size in small]
    return [max(sizes) + 16] if sizes else []


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put all modules of a model into evaluation mode, and restore their modes afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def own_attention(model: Any) -> Iterator[bool]:
    """Set a model to its own attention and restore it afterwards; yield whether that changes it."""
    configs = {
        id(module.config): module.config
        for module in model.modules()
        if getattr(getattr(module, "config", None), "_attn_implementation", None) is not None
    }
    before = [(config, config._attn_implementation) for config in configs.values()]  # noqa: SLF001
    try:
        for config, _ in before:
            config._attn_implementation = "eager"  # noqa: SLF001
        yield any(name != "eager" for _, name in before)
    finally:
        for config, name in before:
            config._attn_implementation = name  # noqa: SLF001


def run(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the output of a model for each token of one row, float32 [tokens, width]."""
    return run_model(model, inputs).float()


def run_packed(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Return the output of a model for each token of a batch; raise ValueError if it fails."""
    try:
        return run(model, packed_inputs(batch, model))
    except (ValueError, TypeError, RuntimeError) as error:
        causes = [cause for cause in likely_causes(model) if cause not in str(error)]
        name = type(model).__name__
        raise ValueError(
            f"{name} refuses packed sequences: {'; '.join([str(error), *causes])}"
        ) from error


def run_alone(model: Any, batch: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the output of a model for sequences one by one, with its own and its set attention."""
    bounds = batch["cu_seqlens"].tolist()
    parts = [batch["input_ids"][begin:end] for begin, end in pairwise(bounds)]
    with own_attention(model) as differs:
        own = [run(model, {"input_ids": part[None]}) for part in parts]
    yield "one by one with the model's own attention", torch.cat(own)
    if differs:
        alone = [run(model, inputs_alone(model, part)) for part in parts]
        yield "one by one", torch.cat(alone)


def inputs_alone(model: Any, tokens: torch.Tensor) -> dict[str, Any]:
    """Return the arguments of a model for one sequence; with boundaries for `packed_sdpa`."""
    if attention_implementation(model) != "packed_sdpa":
        return {"input_ids": tokens[None]}
    boundaries = torch.tensor([0, len(tokens)], dtype=torch.int32, device=tokens.device)
    batch = {
        "input_ids": tokens,
        "position_ids": torch.arange(len(tokens), device=tokens.device),
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": len(tokens),
        "max_length_k": len(tokens),
    }
    return packed_inputs(batch, model)


def compare(packed: torch.Tensor, alone: torch.Tensor, batch: dict[str, Any]) -> list[float]:
    """Return the largest difference of each sequence, relative to the mean norm of the states."""
    bounds = batch["cu_seqlens"].tolist()
    difference = (packed[: len(alone)] - alone).norm(dim=1) / alone.norm(dim=1).mean()
    return [float(part.max()) for part in difference.split_with_sizes(lengths_between(bounds))]


def lengths_between(bounds: list[int]) -> list[int]:
    """Return the lengths of sequences from their boundaries."""
    return [end - begin for begin, end in pairwise(bounds)]


def explain(
    model: Any,
    batch: dict[str, Any],
    reference: str,
    differences: list[float],
    wrong: list[int],
    tolerance: float,
) -> str:
    """Return a message with the sequences that differ, by how much, and the likely cause."""
    lengths = lengths_between(batch["cu_seqlens"].tolist())
    named = ", ".join(f"{i} ({lengths[i]} tokens) by {differences[i]:.1g}" for i in wrong)
    causes = list(likely_causes(model)) or ["positions or attention across sequences"]
    return (
        f"packing changes the output of {type(model).__name__} for {len(wrong)} of {len(lengths)} "
        f"sequences, compared with running them {reference}: sequence {named} of the mean norm, "
        f"more than {tolerance:g}; likely cause: {'; '.join(causes)}"
    )


def likely_causes(model: Any) -> Iterator[str]:
    """Yield reasons why the output for packed sequences may differ."""
    config = text_config(model)
    attention = attention_implementation(model)
    if config is None:
        yield "it has no config: only Hugging Face models take packed sequences"
    elif getattr(config, "num_attention_heads", None) is None:
        yield "layers without attention, which carry a state from token to token"
    elif attention is not None and attention != "packed_sdpa" and "flash" not in attention:
        yield f'the model\'s attention is "{attention}", not "packed_sdpa" or FlashAttention'
    for layer_type in unsupported_layers(config):
        yield f"layers of type {quoted(layer_type)}"
    for name, size in windows(config):
        yield f"a window of {size} tokens ({name})"
    if any(hasattr(module, "position_embeddings") for module in model.modules()):
        yield f"positions, which the model counts from {first_position(model)}"
