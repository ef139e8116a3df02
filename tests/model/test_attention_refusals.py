"""What packed_sdpa refuses, since it would give other states."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.masking_utils as masking
from models import (
    attend,
    fair_esm_converter,
    proteins,
    tiny_esm2,
    tiny_model,
    with_config,
)

from virnucpro.data import VarlenCollator, model_inputs
from virnucpro.model import attention
from virnucpro.model.attention import packed_sdpa


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cu_seq_lens_q": None}, "needs cu_seq_lens_q: .*return_flash_attn_kwargs=True"),
        ({"cu_seq_lens_q": torch.tensor([0, 3, 8])}, r"increase from 0 to 7 \(got \[0, 3, 8\]\)"),
        ({"cu_seq_lens_q": torch.tensor([1, 7])}, "increase from 0"),
        ({"cu_seq_lens_q": torch.tensor([0, 5, 3, 7])}, "increase from 0"),
        ({"query": torch.randn(2, 2, 7, 4)}, "one row of concatenated sequences"),
        ({"key": torch.randn(1, 2, 8, 4)}, "one row of concatenated sequences"),
        ({"attention_mask": torch.ones(1, 1, 7, 7)}, "does not support attention_mask"),
        ({"cu_seq_lens_k": torch.tensor([0, 4, 7])}, "cu_seq_lens_k to equal cu_seq_lens_q"),
        ({"sinks": torch.zeros(2)}, "does not support sinks"),
        ({"softcap": 30.0}, "does not support softcap"),
        ({"sliding_window": 4}, "does not support sliding_window"),
        ({"output_attentions": True}, "does not support output_attentions"),
        ({"relative_bias": torch.zeros(1, 2, 7, 7)}, "does not support the tensor relative_bias"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    assert attend().shape == (1, 7, 2, 4)
    with pytest.raises(ValueError, match=message):
        attend(**arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_attentions": True}, "output_attentions"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "type 'linear_attention'"),
        ({"layers_block_type": ["mamba", "attention"]}, "type 'mamba'"),
        ({"layer_types": ["chunked_attention"]}, "type 'chunked_attention'"),
        ({"is_encoder_decoder": True}, "cross-attention"),
        ({"rope_parameters": {"rope_type": "dynamic"}, "max_position_embeddings": 3}, "'dynamic'"),
    ],
)
def test_layers_of_other_models_are_refused(settings: dict[str, Any], message: str) -> None:
    q, k, v = torch.randn(3, 1, 2, 7, 4)
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)
    plain = with_config(layer_types=["full_attention", "moe"], output_attentions=False)
    packed_sdpa(plain, q, k, v, None, cu_seq_lens_q=bounds, max_length_q=4)
    with pytest.raises(ValueError, match=f"packed_sdpa does not support .*{message}"):
        packed_sdpa(with_config(**settings), q, k, v, None, cu_seq_lens_q=bounds, max_length_q=4)


def test_unused_arguments_change_nothing() -> None:
    tensor = torch.zeros(1, 7)
    harmless = {"position_ids": tensor, "seq_idx": tensor, "output_attentions": False}
    torch.manual_seed(0)
    plain = attend()
    torch.manual_seed(0)
    assert attend(**harmless, cu_seq_lens_k=torch.tensor([0, 3, 7]), sinks=None).equal(plain)


def test_masks_of_models_are_refused() -> None:
    model = tiny_esm2()
    model.set_attn_implementation("packed_sdpa")
    batch = VarlenCollator(fair_esm_converter())(proteins(4))
    inputs = model_inputs(batch)
    with pytest.raises(ValueError, match="packed_sdpa does not support attention_mask"):
        model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))
    with pytest.raises(ValueError, match="does not support local attention"):
        attention.refuse_masks(local_size=8)
    full = SimpleNamespace(layer_types=["full_attention"])
    assert attention.refuse_masks(local_size=8, config=full) is None  # type: ignore[func-returns-value]


def test_masks_of_a_models_own_are_refused() -> None:
    plain, own = masking.causal_mask_function, masking.chunked_overlay(4, torch.zeros(1))
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    same_sequence = masking.packed_sequence_mask_function(positions)
    packed = masking.and_masks(plain, same_sequence)
    for mask in (plain, masking.bidirectional_mask_function, packed):
        attention.refuse_masks(mask_function=mask)
    nested = masking.and_masks(masking.and_masks(plain, own), same_sequence)
    window = masking.sliding_window_causal_mask_function(4)
    for mask, name in (
        (own, "chunked_overlay"),
        (nested, "chunked_overlay"),
        (window, "sliding_window_overlay"),
        (masking.or_masks(plain, plain), "or_masks"),
        (lambda *_: True, "test_masks_of_a_models_own_are_refused"),
    ):
        with pytest.raises(ValueError, match=f"does not support the mask function {name}"):
            attention.refuse_masks(mask_function=mask)


@pytest.mark.parametrize("name", ["esm", "bert", "llama", "gpt2", "opt"])
@pytest.mark.parametrize("how", ["in the call", "in the config"])
def test_attention_weights_are_refused(name: str, how: str) -> None:
    parameters: dict[str, Any] = {"mask_token_id": 32} if name == "esm" else {}
    if name == "opt":
        parameters |= {"ffn_dim": 64, "word_embed_proj_dim": 32}
    model = tiny_model(name, **parameters)
    wanted = {"output_attentions": True}
    if how == "in the config":
        model.set_attn_implementation("eager")
        model.config.output_attentions = True
        wanted = {}
    model.set_attn_implementation("packed_sdpa")
    batch = VarlenCollator(fair_esm_converter())(proteins(4))
    # OPT makes a mask of its own in older releases.
    features = "output_attentions" + ("|attention_mask" * (name == "opt"))
    with pytest.raises(ValueError, match=f"packed_sdpa does not support ({features})"):
        model(**model_inputs(batch, model), **wanted)
