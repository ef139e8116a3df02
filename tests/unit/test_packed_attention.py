"""Packed equals unpacked: models give each sequence what they give it alone."""

from __future__ import annotations

import inspect
import logging
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from models import AMINO_ACIDS, fair_esm_converter, huggingface_tokenizer, tiny_esm2
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from virnucpro.data import GreedyPacker, VarlenCollator, model_inputs, packed_attention, unpack
from virnucpro.data.packed_attention import packed_sdpa

Record = dict[str, Any]


def proteins(number: int, longest: int = 120) -> list[Record]:
    draw = random.Random(0)
    lengths = [1, 2, longest, *(draw.randrange(1, longest) for _ in range(number - 3))]
    return [
        {"id": f"s{i}", "sequence": "".join(draw.choices(AMINO_ACIDS + "XB-.", k=length))}
        for i, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def model() -> Any:
    model = tiny_esm2()
    model.set_attn_implementation("packed_sdpa")
    return model


def states_packed(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        states = model(**model_inputs(batch)).last_hidden_state
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
            states = model(**model_inputs(batch)).last_hidden_state
        unpacked = unpack(states, batch["cu_seqlens"], batch["sequence_ids"])
        for name, embedding in zip(unpacked.sequence_ids, unpacked.embeddings, strict=True):
            assert torch.allclose(embedding, alone[name][1:-1].mean(0), atol=1e-5)


@pytest.mark.parametrize("fault", ["a boundary moved by one", "no boundary"])
def test_a_planted_fault_is_seen(model: Any, tmp_path: Path, fault: str) -> None:
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


def attend(**arguments: Any) -> torch.Tensor:
    """Call with what fits, but for the arguments given."""
    tensors = torch.randn(3, 1, 2, 7, 4)
    given: dict[str, Any] = {
        "query": tensors[0],
        "key": tensors[1],
        "value": tensors[2],
        "attention_mask": None,
        "is_causal": False,
        "cu_seq_lens_q": torch.tensor([0, 3, 7], dtype=torch.int32),
    }
    return packed_sdpa(torch.nn.Identity(), **{**given, **arguments})[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cu_seq_lens_q": None}, "needs cu_seq_lens_q"),
        ({"cu_seq_lens_q": torch.tensor([0, 3, 8])}, r"rise from 0 to 7 \(got \[0, 3, 8\]\)"),
        ({"cu_seq_lens_q": torch.tensor([1, 7])}, "rise from 0"),
        ({"cu_seq_lens_q": torch.tensor([0, 5, 3, 7])}, "rise from 0"),
        ({"query": torch.randn(2, 2, 7, 4)}, "one row of sequences"),
        ({"key": torch.randn(1, 2, 8, 4)}, "one row of sequences"),
        ({"attention_mask": torch.ones(1, 1, 7, 7)}, "no attention_mask"),
        ({"cu_seq_lens_k": torch.tensor([0, 4, 7])}, "same cu_seq_lens_k"),
        ({"sinks": torch.zeros(2)}, "does not support sinks"),
        ({"softcap": 30.0}, "does not support softcap"),
        ({"sliding_window": 4}, "does not support sliding_window"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    assert attend().shape == (1, 7, 2, 4)
    with pytest.raises(ValueError, match=message):
        attend(**arguments)


def test_masks_of_models_are_refused(model: Any) -> None:
    batch = VarlenCollator(fair_esm_converter())(proteins(4))
    inputs = model_inputs(batch)
    with pytest.raises(ValueError, match="packed_sdpa takes no attention_mask"):
        model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))
    with pytest.raises(ValueError, match="does not support local attention"):
        packed_attention.refuse_masks(local_size=8)


def test_dropout_is_done() -> None:
    torch.manual_seed(0)
    given = {"query": torch.randn(1, 2, 7, 4), "key": torch.randn(1, 2, 7, 4)}
    value = torch.ones(1, 2, 7, 4)
    assert torch.allclose(attend(**given, value=value), value.transpose(1, 2))
    dropped = attend(**given, value=value, dropout=0.5)
    assert not torch.allclose(dropped, value.transpose(1, 2))


@pytest.fixture
def _flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the signature of flash_attn_varlen_func."""

    def flash_attn_varlen_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> torch.Tensor:
        assert cu_seqlens_q.equal(cu_seqlens_k)
        assert (max_seqlen_q, max_seqlen_k, dropout_p) == (4, 4, 0.0)
        assert cu_seqlens_q.dtype == torch.int32
        return by_definition(q, k, v, cu_seqlens_q, softmax_scale, causal)

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)


def by_definition(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    scale: float | None,
    causal: bool,
) -> torch.Tensor:
    """Attention over all tokens, those of other sequences masked; [tokens, heads, dimension]."""
    sequence = torch.bucketize(torch.arange(len(query)), bounds[1:].long(), right=True)
    mask = sequence[:, None] == sequence[None, :]
    if causal:
        mask = mask.tril()
    output = scaled_dot_product_attention(
        query.transpose(0, 1),
        key.transpose(0, 1),
        value.transpose(0, 1),
        attn_mask=mask,
        scale=scale,
        enable_gqa=True,
    )
    return output.transpose(0, 1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.usefixtures("_flash_attn")
def test_kernels_do_the_same(causal: bool, scale: float | None, key_heads: int) -> None:
    query = torch.randn(1, 4, 7, 8)
    key, value = torch.randn(2, 1, key_heads, 7, 8)
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    expected = by_definition(q, k, v, bounds, scale, causal)
    output = attend(
        query=query, key=key, value=value, cu_seq_lens_q=bounds, scaling=scale, is_causal=causal
    )
    assert torch.allclose(output[0], expected, atol=1e-6)
    kernel = packed_attention.attend_varlen(q, k, v, bounds, 4, 0.0, scale, causal)
    assert kernel is not None
    assert torch.allclose(kernel, expected, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_torch_kernel_is_called_as_it_is_declared(
    monkeypatch: pytest.MonkeyPatch, causal: bool
) -> None:
    from torch.nn.attention import varlen

    declared = inspect.signature(varlen.varlen_attn)
    calls: list[dict[str, Any]] = []

    def varlen_attn(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(declared.bind(*args, **kwargs).arguments)
        return torch.zeros(())

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    q, k, v = torch.randn(3, 7, 2, 4)
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)
    assert packed_attention.attend_varlen(q, k, v, bounds, 4, 0.1, None, causal) is None
    assert packed_attention.attend_varlen(q, k, v, bounds, 4, 0.0, 0.5, causal) is not None
    (call,) = calls
    assert (call["max_q"], call["max_k"], call["scale"]) == (4, 4, 0.5)
    assert call["window_size"] == ((-1, 0) if causal else (-1, -1))


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
