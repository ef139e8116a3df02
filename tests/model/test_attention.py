"""Packed equals unpacked: models give each sequence what they give it alone."""

from __future__ import annotations

import importlib
import inspect
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from models import (
    ESM2,
    fair_esm_converter,
    huggingface_tokenizer,
    proteins,
    tiny_esm2,
    tiny_model,
)
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.esm.modeling_esm import EsmEmbeddings

from virnucpro.data import GreedyPacker, VarlenCollator, model_inputs, unpack
from virnucpro.model import attention

Record = dict[str, Any]


@pytest.fixture(scope="module")
def model() -> Any:
    model = tiny_esm2()
    model.set_attn_implementation("packed_sdpa")
    return model


def states_packed(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        states = model(**model_inputs(batch, model)).last_hidden_state
    bounds = batch["cu_seqlens"].tolist()
    return {
        name: states[0, bounds[i] : bounds[i + 1]] for i, name in enumerate(batch["sequence_ids"])
    }


def states_alone(records: list[Record], tokenizer: Any) -> dict[str, torch.Tensor]:
    """As transformers itself computes them, one sequence at a time."""
    model = tiny_esm2(attn_implementation="eager")
    with torch.no_grad():
        return {
            record["id"]: model(
                **tokenizer(record["sequence"], return_tensors="pt")
            ).last_hidden_state[0]
            for record in records
        }


def differences(model: Any, batch: dict[str, Any], alone: dict[str, torch.Tensor]) -> list[float]:
    packed = states_packed(model, batch)
    return [float((packed[name] - alone[name]).abs().max()) for name in packed]


def test_packed_equals_one_at_a_time(model: Any, tmp_path: Path) -> None:
    records = proteins(40)
    tokenizer = huggingface_tokenizer(tmp_path)
    alone = states_alone(records, tokenizer)
    collate = VarlenCollator(tokenizer, max_tokens_per_batch=500)
    batches = GreedyPacker(500).pack_sequences(records)
    assert 1 < len(batches) < 20
    for batch in map(collate, batches):
        assert max(differences(model, batch, alone)) < 1e-5
        with torch.no_grad():
            states = model(**model_inputs(batch, model)).last_hidden_state
        unpacked = unpack(states, batch)
        for name, embedding in zip(unpacked.sequence_ids, unpacked.embeddings, strict=True):
            assert torch.allclose(embedding, alone[name][1:-1].mean(0), atol=1e-5)


@pytest.mark.parametrize("fault", ["a boundary moved by one", "no boundary"])
def test_planted_fault_is_detected(model: Any, tmp_path: Path, fault: str) -> None:
    records = proteins(12)
    tokenizer = huggingface_tokenizer(tmp_path)
    batch = VarlenCollator(tokenizer)(records)
    alone = states_alone(records, tokenizer)
    assert max(differences(model, batch, alone)) < 1e-5
    wrong = batch["cu_seqlens"].clone()
    if fault == "no boundary":
        wrong = wrong[[0, -1]]
    else:
        wrong[4] += 1
    found = differences(model, {**batch, "cu_seq_lens_q": wrong, "cu_seq_lens_k": wrong}, alone)
    assert max(found) > 1e-2
    if fault == "a boundary moved by one":
        assert [difference > 1e-5 for difference in found] == [i in (3, 4) for i in range(12)]


def test_neighbours_change_nothing(model: Any) -> None:
    collate = VarlenCollator(fair_esm_converter())
    records = proteins(6)
    before = states_packed(model, collate(records))
    changed = [{**record, "sequence": record["sequence"][::-1] + "W"} for record in records]
    changed[3] = records[3]
    after = states_packed(model, collate(changed))
    assert torch.allclose(before["s3"], after["s3"], atol=1e-6)
    assert not torch.allclose(before["s2"][:3], after["s2"][:3], atol=1e-3)


def tiny_llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        initializer_range=0.5,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval()


def test_causal_models_with_grouped_heads() -> None:
    model = tiny_llama()
    lengths = [5, 1, 17, 9]
    ids = torch.randint(50, (sum(lengths),))
    bounds = torch.tensor([0, 5, 6, 23, 32], dtype=torch.int32)
    with torch.no_grad():
        alone = torch.cat([model(part[None]).logits[0] for part in ids.split_with_sizes(lengths)])
        model.set_attn_implementation("packed_sdpa")
        packed = model(
            input_ids=ids[None],
            position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=17,
            max_length_k=17,
        ).logits[0]
    assert torch.allclose(packed, alone, atol=1e-5)


def test_gradients_are_those_of_one_at_a_time() -> None:
    model = tiny_esm2(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    records = proteins(5, longest=20)
    collate = VarlenCollator(fair_esm_converter())

    def gradient() -> torch.Tensor:
        found: torch.Tensor = model.embeddings.word_embeddings.weight.grad.clone()
        model.zero_grad()
        return found

    for record in records:
        batch = collate(record)
        model(input_ids=batch["input_ids"][None]).last_hidden_state.pow(2).sum().backward()
    alone = gradient()
    model.set_attn_implementation("packed_sdpa")
    model(**model_inputs(collate(records))).last_hidden_state.pow(2).sum().backward()
    assert torch.allclose(gradient(), alone, rtol=1e-3, atol=1e-3)


def test_positions_counted_from_zero_are_refused() -> None:
    batch = VarlenCollator(fair_esm_converter())(proteins(4))
    for model in (
        tiny_model("roberta"),
        tiny_model("esm", mask_token_id=32, position_embedding_type="absolute"),
    ):
        model.set_attn_implementation("packed_sdpa")
        with pytest.raises(
            ValueError, match=r"from 2 \(got 0\): pass model_inputs\(batch, model\)"
        ):
            model(**model_inputs(batch))
        model(**model_inputs(batch, model))


def masked(records: list[Record], mask: str = "<mask>") -> list[Record]:
    """Every other sequence with masks, ever more."""
    return [
        {**record, "sequence": mask * (i // 2) + record["sequence"] + mask * (i % 2)}
        for i, record in enumerate(records)
    ]


@pytest.mark.parametrize("positions", ["rotary", "absolute"])
@pytest.mark.parametrize("norm_before", [False, True])
def test_masks_of_neighbours_change_nothing(
    tmp_path: Path, positions: str, norm_before: bool
) -> None:
    parameters: dict[str, Any] = {
        "position_embedding_type": positions,
        "emb_layer_norm_before": norm_before,
    }
    model = tiny_model("esm", token_dropout=True, mask_token_id=ESM2.index("<mask>"), **parameters)
    tokenizer = huggingface_tokenizer(tmp_path)
    records = masked(proteins(12, longest=60))
    with torch.no_grad():
        alone = {
            record["id"]: model(**tokenizer(record["sequence"], return_tensors="pt"))[0][0]
            for record in records
        }
    model.set_attn_implementation("packed_sdpa")
    found = differences(model, VarlenCollator(tokenizer)(records), alone)
    assert len(found) == 12
    assert max(found) < 1e-5


def test_rows_that_are_not_packed_stay_the_same() -> None:
    forward = EsmEmbeddings.forward
    importlib.reload(attention)
    assert EsmEmbeddings.forward is forward
    own = inspect.unwrap(forward)
    assert own is not forward
    embeddings = tiny_esm2().embeddings
    ids = torch.randint(4, len(ESM2), (3, 20))
    ids[0, 3:9] = ESM2.index("<mask>")
    padded = torch.ones_like(ids)
    padded[0, 12:] = 0
    for given in (
        {"input_ids": ids},
        {"input_ids": ids, "position_ids": torch.arange(20)[None]},
        {"input_ids": ids, "position_ids": torch.arange(5, 25).expand(3, -1)},
        {"input_ids": ids, "attention_mask": padded, "position_ids": torch.arange(20)[None]},
        {"inputs_embeds": torch.randn(3, 20, 32)},
    ):
        assert forward(embeddings, **given).equal(own(embeddings, **given))
    assert forward(embeddings, ids, None, torch.arange(20)[None]).equal(own(embeddings, ids))


def test_masks_are_counted_without_reading_values() -> None:
    embeddings = tiny_esm2().embeddings.to("meta")
    ids = torch.zeros(1, 9, dtype=torch.int64, device="meta")
    assert embeddings(input_ids=ids, position_ids=ids).shape == (1, 9, 32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_equals_one_at_a_time_on_a_gpu(dtype: torch.dtype) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = tiny_esm2().to("cuda", dtype)
    model.set_attn_implementation("packed_sdpa")
    collate = VarlenCollator(fair_esm_converter())

    def run(records: list[Record]) -> dict[str, torch.Tensor]:
        batch = {
            key: value.cuda() if isinstance(value, torch.Tensor) else value
            for key, value in collate(records).items()
        }
        return states_packed(model, batch)

    records = proteins(20)
    packed = run(records)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for record in records:
        alone = run([record])[record["id"]]
        assert torch.allclose(packed[record["id"]], alone, atol=tolerance)
