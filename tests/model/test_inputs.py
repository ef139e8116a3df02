"""What models are given for packed batches, and configurations that packing does not serve."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import STATEFUL
from models import (
    a_batch,
    packing,
    tiny_esm2,
    tiny_model,
)

import virnucpro.model.attention  # noqa: F401  (registers packed_sdpa)
from virnucpro.data import model_inputs
from virnucpro.model.configuration import find_unsupported
from virnucpro.model.inputs import warn_of_attention
from virnucpro.model.positions import first_position


@pytest.mark.parametrize(
    ("name", "first"), [("bert", 0), ("roberta", 2), ("llama", 0), ("esm", 2), ("gpt2", 0)]
)
def test_positions_begin_where_the_model_counts_from(name: str, first: int) -> None:
    parameters: dict[str, Any] = {"mask_token_id": 32} if name == "esm" else {}
    model = tiny_model(name, **parameters)
    assert first_position(model) == first
    batch = a_batch()
    inputs = model_inputs(batch, model)
    assert inputs["position_ids"].tolist() == [[*range(first, first + 7), *range(first, first + 4)]]
    assert model_inputs(batch)["position_ids"].tolist() == [[*range(7), *range(4)]]
    assert inputs["position_ids"].dtype == torch.int64
    assert "seq_idx" not in inputs


def test_attention_without_boundaries_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_attention.cache_clear()
    model = tiny_esm2()
    for _ in range(2):
        model_inputs(a_batch(), model)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "EsmModel uses the attention implementation 'sdpa'" in record.getMessage()
    model_inputs(a_batch(), packing(model))
    model_inputs(a_batch(), tiny_model("mamba", state_size=8))
    assert len(caplog.records) == 1


def test_models_with_a_state_get_numbers_of_sequences() -> None:
    inputs = model_inputs(a_batch(), tiny_model("bamba", **STATEFUL["bamba"]))
    assert inputs["seq_idx"].dtype == torch.int32
    assert inputs["seq_idx"].tolist() == [[0] * 7 + [1] * 4]
    from transformers import DataCollatorWithFlattening

    flatten = DataCollatorWithFlattening(return_seq_idx=True)
    flat = flatten([{"input_ids": [0] * 7}, {"input_ids": [0] * 4}])
    assert inputs["seq_idx"].equal(flat["seq_idx"])
    assert inputs["seq_idx"].dtype == flat["seq_idx"].dtype


def test_models_with_a_state_that_take_no_numbers_are_refused() -> None:
    class Closed(torch.nn.Module):
        config = SimpleNamespace(layer_types=["full_attention", "recurrent"])

        def forward(self, input_ids: torch.Tensor) -> None: ...

    with pytest.raises(ValueError, match=r"type 'recurrent': .* Closed does not accept seq_idx"):
        model_inputs(a_batch(), Closed())


@pytest.mark.parametrize(
    ("config", "longest", "message"),
    [
        ({"layer_types": ["full_attention", "new"]}, 5, "layers of type 'new'"),
        ({"block_types": ["attention", "recurrent"]}, 5, "layers of type 'recurrent'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, 5, "'sliding_attention'"),
        ({"is_encoder_decoder": True}, 5, "cross-attention"),
        ({"add_cross_attention": True}, 5, "cross-attention"),
        (
            {"rope_parameters": {"rope_type": "dynamic"}, "max_position_embeddings": 8},
            9,
            "beyond 8",
        ),
        ({"rope_parameters": {"rope_type": "dynamic"}, "max_position_embeddings": 8}, 8, None),
        ({"rope_parameters": {"rope_type": "longrope"}}, None, "rope_type 'longrope'"),
        ({"rope_parameters": {"rope_type": "default"}}, 9, None),
        ({"layer_types": ["full_attention", "moe", "mlp"]}, 5, None),
    ],
)
def test_configurations_that_packing_does_not_support(
    config: dict[str, Any], longest: int | None, message: str | None
) -> None:
    found = find_unsupported(SimpleNamespace(**config), longest)
    assert (found is None) == (message is None)
    assert message is None or message in str(found)


def test_batches_of_transformers() -> None:
    from transformers import DataCollatorWithFlattening

    records = [{"input_ids": [5] * 7}, {"input_ids": [6] * 4}]
    flat = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(records)
    model = tiny_model("bamba", **STATEFUL["bamba"])
    for inputs in (model_inputs(flat), model_inputs(flat, model)):
        assert inputs["input_ids"].tolist() == [[5] * 7 + [6] * 4]
        assert inputs["position_ids"].tolist() == [[*range(7), *range(4)]]
        assert inputs["cu_seq_lens_q"].tolist() == [0, 7, 11]
    assert inputs["seq_idx"].tolist() == [[0] * 7 + [1] * 4]
    flat = DataCollatorWithFlattening()(records)
    with pytest.raises(KeyError, match=r"no cu_seq_lens_q: .*return_flash_attn_kwargs=True"):
        model_inputs(flat)
    with pytest.raises(KeyError, match="the batch has no input_ids: "):
        model_inputs({})
