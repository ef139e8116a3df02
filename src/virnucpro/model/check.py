"""Whether packing changes what a model gives."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from virnucpro.model.collator import VarlenCollator, make_batch
from virnucpro.model.configuration import attention_of, other_layers, text_config
from virnucpro.model.inputs import first_position, model_inputs

# Names under which configurations say how many tokens a token sees.
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")

# The largest difference between states, as a share of their size, that rounding explains.
TOLERANCES = {
    torch.float64: 1e-4,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"

# Residues of the sequences that models are checked with, and of the longest one beyond a window.
LENGTHS = (40, 1, 13, 62, 2, 27, 20)
LONGEST = 1024


def check_packed(
    model: Any, batch_converter: Any = None, *, tolerance: float | None = None
) -> None:
    """Raise where a model gives a packed sequence something else than it gives it alone.

    Seven short sequences of random residues, some with mask tokens, go through the model one by
    one and packed in one row. A model with ``"packed_sdpa"`` or FlashAttention is compared with
    its own attention (``"eager"``) too. The model is left as it was, and so are all random states.

    Args:
        model: A Hugging Face model that gives ``last_hidden_state`` or ``logits`` for each token,
            on any device and in any floating-point type.
        batch_converter: Its tokenizer, a batch converter of fair-esm, or a `VarlenCollator`. None
            for random tokens in place of residues and special tokens.
        tolerance: The largest difference between the states of a token that is allowed, as a share
            of their mean size (Euclidean norm). None for 1e-4 in float32, 1e-2 in float16 and
            5e-2 in bfloat16.

    Raises:
        ValueError: Sequences differ, with the likely cause; or the model refuses packed batches.
        TypeError: `batch_converter` is none of these.

    Cost: at most twenty runs with one sequence of at most 64 tokens, or of 1,024 where the model
    sees less than that at once; one run with all.

    Example:
        >>> from transformers import LlamaConfig, LlamaModel
        >>> import virnucpro.model.attention
        >>> from virnucpro.data import check_packed
        >>> config = LlamaConfig(
        ...     vocab_size=24, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...     intermediate_size=8, attn_implementation="packed_sdpa")
        >>> check_packed(LlamaModel(config))
    """
    batch = make_check(model, batch_converter)
    parameter = next(model.parameters())
    if tolerance is None:
        tolerance = TOLERANCES.get(parameter.dtype, 5e-2)
        if parameter.is_cuda and torch.get_float32_matmul_precision() != "highest":
            tolerance = max(tolerance, 1e-2)
    batch = {
        name: value.to(parameter.device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
    devices = [parameter.device] if parameter.is_cuda else []
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices):
        packed = run_packed(model, batch)
        worst: dict[str, list[float]] = {}
        for reference, alone in run_alone(model, batch):
            worst[reference] = compare(packed, alone, batch)
    for reference, differences in worst.items():
        # Not `>`, which is False for NaN.
        wrong = [i for i, difference in enumerate(differences) if not difference <= tolerance]
        if wrong:
            raise ValueError(explain(model, batch, reference, differences, wrong, tolerance))


def make_check(model: Any, batch_converter: Any) -> dict[str, Any]:
    """Return a batch of the sequences that a model is checked with."""
    draw = random.Random(0)
    if batch_converter is None:
        batch = draw_tokens(model, draw)
    else:
        batch = draw_residues(model, batch_converter, draw)
    if batch.get("num_sequences", 0) < 2:
        raise ValueError("max_tokens_per_batch must have room for two sequences to check a model")
    batch["input_ids"] = input_ids = batch["input_ids"].clone()
    put_masks(batch, find_mask(model, batch_converter), draw)
    known = vocabulary_size(model)
    if int(input_ids.max()) >= known:
        raise ValueError(
            f"the tokenizer has tokens that the model lacks: {int(input_ids.max())} of {known:,}"
        )
    return batch


def draw_tokens(model: Any, draw: random.Random) -> dict[str, Any]:
    """Return a batch of random tokens, but padding."""
    known = vocabulary_size(model)
    padding = getattr(text_config(model), "pad_token_id", None)
    tokens = [token for token in range(min(known, 1000)) if token != padding]
    longest = longest_sequence(model)
    lengths = [min(length, longest) for length in (*LENGTHS, *beyond_windows(model))]
    input_ids = np.array(draw.choices(tokens, k=sum(lengths)), np.int64)
    boundaries = np.append(0, np.cumsum(lengths)).astype(np.int32)
    return make_batch(input_ids, boundaries, list(range(len(lengths))), len(input_ids))


def draw_residues(model: Any, batch_converter: Any, draw: random.Random) -> dict[str, Any]:
    """Return a batch of random residues, as many sequences as the collator has room for."""
    if isinstance(batch_converter, VarlenCollator):
        # What it has counted, and has yet to warn of, stays.
        collate = copy.copy(batch_converter)
        collate.unknown_residues = Counter()
        collate.unknown = "ignore"
    else:
        collate = VarlenCollator(
            batch_converter, 16 * LONGEST, max_sequence_length=LONGEST, unknown="ignore"
        )
    longest = longest_sequence(model) - collate.special_tokens
    longest = max(1, min(longest, collate.max_sequence_length))
    room = collate.max_tokens_per_batch
    records: list[dict[str, Any]] = []
    for length in (*LENGTHS, *beyond_windows(model)):
        kept = min(length, longest, room - collate.special_tokens)
        if kept > 0:
            sequence = "".join(draw.choices(AMINO_ACIDS, k=kept))
            records.append({"id": len(records), "sequence": sequence})
            room -= kept + collate.special_tokens
    batch: dict[str, Any] = collate(records)
    return batch


def put_masks(batch: dict[str, Any], mask: int | None, draw: random.Random) -> None:
    """Put a mask token into a sequence, and many into another."""
    bounds = batch["cu_seqlens"].tolist()
    for number, share in ((0, 0.0), (3, 0.5)):
        if mask is None or number + 1 >= len(bounds):
            continue
        inner = range(bounds[number] + 1, bounds[number + 1] - 1)
        for place in draw.sample(inner, min(len(inner), 1 + int(share * len(inner)))):
            batch["input_ids"][place] = mask


def find_mask(model: Any, batch_converter: Any) -> int | None:
    """Return the number of the mask token, None where there is none."""
    alphabet = getattr(batch_converter, "alphabet", None)
    found = (
        getattr(batch_converter, "mask_token_id", None),
        getattr(alphabet, "mask_idx", None),
        getattr(text_config(model), "mask_token_id", None),
    )
    known = vocabulary_size(model)
    return next((mask for mask in found if mask is not None and 0 <= mask < known), None)


def vocabulary_size(model: Any) -> int:
    """Return the number of tokens that a model knows, a large one where it does not say."""
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return int(getattr(embeddings, "num_embeddings", 2**31))


def longest_sequence(model: Any) -> int:
    """Return how many tokens of a sequence a model has positions for, at most `LONGEST`."""
    positions = getattr(text_config(model), "max_position_embeddings", None) or LONGEST
    return max(1, min(positions - first_position(model), LONGEST))


def windows(config: Any) -> Iterator[tuple[str, int]]:
    """Yield what a configuration says of tokens that are seen at once, and how many."""
    for name in WINDOWS:
        size = getattr(config, name, None)
        if isinstance(size, int) and size > 0:
            yield name, size


def beyond_windows(model: Any) -> list[int]:
    """Return the residues of a sequence that is longer than a model's largest small window."""
    sizes = [size for _, size in windows(text_config(model)) if max(LENGTHS) < size < LONGEST - 16]
    return [max(sizes) + 16] if sizes else []


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Make all modules of a model evaluate, and leave each as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def own_attention(model: Any) -> Iterator[bool]:
    """Give a model its own attention, and leave it as it was; says if that changes anything."""
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
    """Return what a model gives for each token of one row, [tokens, width]."""
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
            f"{type(model).__name__} gives no last_hidden_state or logits for each of the "
            f"{tokens} tokens (got {shape})"
        )
    return states[0].float()


def run_packed(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Return what a model gives for each token of a batch; what it refuses is a ValueError."""
    try:
        return run(model, model_inputs(batch, model))
    except (ValueError, TypeError, RuntimeError) as error:
        causes = [cause for cause in likely_causes(model) if cause not in str(error)]
        name = type(model).__name__
        raise ValueError(
            f"{name} does not run packed sequences: {'; '.join([str(error), *causes])}"
        ) from error


def run_alone(model: Any, batch: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what a model gives for sequences one by one, by its own attention and as it is set."""
    bounds = batch["cu_seqlens"].tolist()
    parts = [batch["input_ids"][begin:end] for begin, end in pairwise(bounds)]
    with own_attention(model) as differs:
        own = [run(model, {"input_ids": part[None]}) for part in parts]
    yield "by the model's own attention, alone", torch.cat(own)
    if differs:
        alone = [run(model, inputs_alone(model, part)) for part in parts]
        yield "alone", torch.cat(alone)


def inputs_alone(model: Any, tokens: torch.Tensor) -> dict[str, Any]:
    """Return what a model is given for one sequence; `packed_sdpa` needs boundaries."""
    if attention_of(model) != "packed_sdpa":
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
    return model_inputs(batch, model)


def compare(packed: torch.Tensor, alone: torch.Tensor, batch: dict[str, Any]) -> list[float]:
    """Return the largest difference of each sequence's tokens, as a share of the states' size."""
    bounds = batch["cu_seqlens"].tolist()
    difference = (packed[: len(alone)] - alone).norm(dim=1) / alone.norm(dim=1).mean()
    return [float(part.max()) for part in difference.split_with_sizes(lengths_between(bounds))]


def lengths_between(bounds: list[int]) -> list[int]:
    """Return the lengths that boundaries stand for."""
    return [end - begin for begin, end in pairwise(bounds)]


def explain(
    model: Any,
    batch: dict[str, Any],
    reference: str,
    differences: list[float],
    wrong: list[int],
    tolerance: float,
) -> str:
    """Return what differs, by how much, and the likely cause."""
    lengths = lengths_between(batch["cu_seqlens"].tolist())
    named = ", ".join(f"{i} ({lengths[i]} tokens) by {differences[i]:.1g}" for i in wrong)
    causes = list(likely_causes(model)) or ["positions or attention that cross sequences"]
    return (
        f"{type(model).__name__} gives {len(wrong)} of {len(lengths)} sequences packed something "
        f"else than {reference}: sequence {named} of the states' size, more than {tolerance:g}; "
        f"the likely cause: {'; '.join(causes)}"
    )


def likely_causes(model: Any) -> Iterator[str]:
    """Yield what may make packed sequences differ."""
    config = text_config(model)
    attention = attention_of(model)
    if getattr(config, "num_attention_heads", None) is None:
        yield "layers without attention, which carry a state from token to token"
    elif attention is not None and attention != "packed_sdpa" and "flash" not in attention:
        yield f'the model\'s attention is "{attention}", not "packed_sdpa" or flash_attention'
    for kind in other_layers(config):
        yield f"layer_types has {kind!r}"
    for name, size in windows(config):
        yield f"a window of {size} tokens ({name})"
    if any(hasattr(module, "position_embeddings") for module in model.modules()):
        yield f"positions, counted from {first_position(model)}"
