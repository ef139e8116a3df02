"""What Hugging Face models are given for packed batches; whether packing changes what they give."""

from __future__ import annotations

import inspect
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from virnucpro.data.collators import VarlenCollator, make_batch

logger = logging.getLogger(__name__)

# Names under which configurations say what kind each layer is.
LAYER_TYPES = ("layer_types", "layers_block_type", "block_types")

# Kinds of layers whose tokens see all of their sequence, or themselves alone.
PLAIN_LAYERS = frozenset({"attention", "full_attention", "mlp", "moe"})

# Names under which configurations say how many tokens a token sees.
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")

# Rotary frequencies that depend on the longest sequence of a batch, once it is longer than these.
GROWING_ROPES = {
    "dynamic": "max_position_embeddings",
    "longrope": "original_max_position_embeddings",
}

# Attention implementations of transformers that do not read boundaries.
UNPACKED = frozenset({"eager", "flex_attention", "sdpa"})

# The largest difference between states, as a share of their size, that rounding explains.
TOLERANCES = {
    torch.float64: 1e-4,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}

# What `first_position` has found, since a walk over a model's modules takes milliseconds.
FIRST_POSITIONS: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"

# Residues of the sequences that models are checked with, and of the longest one beyond a window.
LENGTHS = (40, 1, 13, 62, 2, 27, 20)
LONGEST = 1024


def model_inputs(batch: dict[str, Any], model: Any = None) -> dict[str, Any]:
    """Return the arguments of a Hugging Face model for a batch of `VarlenCollator`.

    They are ``input_ids`` and ``position_ids``, int64 [1, tokens], and the boundaries
    ``cu_seq_lens_q``, ``cu_seq_lens_k``, ``max_length_q`` and ``max_length_k``.

    Without `model`, positions are from 0, as rotary embeddings and BERT count them. With it, they
    are from where the model counts: RoBERTa and ESM-1b do from their padding token's number + 1.
    Models whose layers carry a state from token to token (Mamba's kin) get ``seq_idx`` too, the
    number of each token's sequence, int32 [1, tokens]. `check_packed` tells whether they heed it.
    A model whose attention does not read boundaries gets a WARNING, once.

    Args:
        batch: What a `VarlenCollator` gives.
        model: The model that will run the batch.

    Raises:
        KeyError: The batch is of another collator, or empty.
        ValueError: The model is an encoder-decoder, or has layers with a state and takes no
            ``seq_idx``.

    Cost: none without `model`, as tensors are views; else a walk over the model's modules, once.

    Example:
        >>> import numpy as np
        >>> from virnucpro.data import model_inputs
        >>> from virnucpro.data.collators import make_batch
        >>> batch = make_batch(np.array([0, 20, 2]), np.array([0, 3], np.int32), ["a"], 4096)
        >>> model_inputs(batch)["input_ids"].shape
        torch.Size([1, 3])
    """
    boundaries = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    inputs = {
        "input_ids": batch["input_ids"][None],
        "position_ids": batch["position_ids"][None],
        **{name: batch[name] for name in boundaries},
    }
    if model is None:
        return inputs
    config = text_config(model)
    if is_encoder_decoder(config):
        raise ValueError("model_inputs does not support an encoder-decoder")
    if getattr(config, "token_dropout", False):
        # Makes the share of mask tokens that of each sequence.
        import virnucpro.data.packed_attention  # noqa: F401
    first = first_position(model)
    if first:
        inputs["position_ids"] = inputs["position_ids"] + first
    stateful = [kind for kind in other_layers(config) if not is_attention(kind)]
    attention = attention_of(model)
    if attention in UNPACKED and not stateful:
        warn_of_attention(type(model).__name__, attention)
    takes_seq_idx = takes(model, "seq_idx", or_any=bool(stateful))
    if stateful and not takes_seq_idx:
        raise ValueError(
            f"model_inputs does not support layers of type {stateful[0]!r}: they carry a state "
            f"from token to token, and {type(model).__name__} takes no seq_idx"
        )
    if takes_seq_idx:
        inputs["seq_idx"] = number_sequences(batch)[None]
    return inputs


@cache
def warn_of_attention(model_name: str, attention: str) -> None:
    """Say once that an attention implementation does not read boundaries."""
    logger.warning(
        "%s has the attention %r, which lets tokens see other sequences of a packed row unless "
        'positions tell it not to; set "packed_sdpa" or flash_attention, or see check_packed',
        model_name,
        attention,
    )


def number_sequences(batch: dict[str, Any]) -> torch.Tensor:
    """Return the number of each token's sequence, int32 [tokens]."""
    tokens, boundaries = batch["input_ids"], batch["cu_seq_lens_q"]
    places = torch.arange(len(tokens), dtype=boundaries.dtype, device=boundaries.device)
    numbers = torch.bucketize(places, boundaries[1:], right=True, out_int32=True)
    return numbers.to(tokens.device)


def text_config(model: Any) -> Any:
    """Return a model's configuration, of its text part where it has several."""
    config = getattr(model, "config", None)
    get_part = getattr(config, "get_text_config", None)
    return config if get_part is None else get_part()


def takes(model: Any, name: str, or_any: bool) -> bool:
    """Whether a model's forward has a parameter of a name, or takes any."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or (
        or_any and any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    )


def first_position(model: Any) -> int:
    """Return the position that a model gives to the first token of a sequence."""
    if model not in FIRST_POSITIONS:
        found = (getattr(module, "position_embeddings", None) for module in model.modules())
        paddings = (getattr(embeddings, "padding_idx", None) for embeddings in found)
        padding = next((padding for padding in paddings if padding is not None), -1)
        FIRST_POSITIONS[model] = int(padding) + 1
    return FIRST_POSITIONS[model]


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
    rope = setting(config, "rope_parameters") or {}
    for kind, name in GROWING_ROPES.items():
        if rope.get("rope_type") != kind:
            continue
        limit = rope.get(name) or getattr(config, name, None)
        if longest is None or limit is None or longest > limit:
            return f"rope_type {kind!r} beyond {limit} tokens, as it depends on neighbours"
    return None


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
        >>> import virnucpro.data.packed_attention
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
    with evaluating(model), torch.no_grad():
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
    collate = batch_converter
    if not isinstance(batch_converter, VarlenCollator):
        collate = VarlenCollator(
            batch_converter, max_tokens_per_batch=16 * LONGEST, max_sequence_length=LONGEST
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
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        yield any(name != "eager" for _, name in before)
    finally:
        for config, name in before:
            config._attn_implementation = name


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
    except (ValueError, TypeError, NotImplementedError) as error:
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


def attention_of(model: Any) -> str | None:
    """Return the name of a model's attention implementation."""
    name = getattr(text_config(model), "_attn_implementation", None)
    return None if name is None else str(name)


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
    if attention is not None and attention != "packed_sdpa" and "flash" not in attention:
        yield f'the model\'s attention is "{attention}", not "packed_sdpa" or flash_attention'
    for kind in other_layers(config):
        yield f"layer_types has {kind!r}"
    for name, size in windows(config):
        yield f"a window of {size} tokens ({name})"
    if any(hasattr(module, "position_embeddings") for module in model.modules()):
        yield f"positions, counted from {first_position(model)}"
