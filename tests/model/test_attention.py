"""Packed equals unpacked: models give each sequence what they give it alone."""

from __future__ import annotations

import importlib
import inspect
import logging
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.masking_utils as masking
from models import (
    AMINO_ACIDS,
    ESM2,
    fair_esm_converter,
    huggingface_tokenizer,
    tiny_esm2,
    tiny_model,
)
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.esm.modeling_esm import EsmEmbeddings
from varlen_signatures import SIGNATURES, by_definition, check, stand_in

from virnucpro.data import GreedyPacker, VarlenCollator, model_inputs, unpack
from virnucpro.model import attention
from virnucpro.model.attention import packed_sdpa

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
        ({"output_attentions": True}, "does not support output_attentions"),
        ({"relative_bias": torch.zeros(1, 2, 7, 7)}, "does not know the tensor relative_bias"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    assert attend().shape == (1, 7, 2, 4)
    with pytest.raises(ValueError, match=message):
        attend(**arguments)


def with_config(**settings: Any) -> torch.nn.Module:
    layer = torch.nn.Identity()
    layer.config = SimpleNamespace(**settings)  # type: ignore[assignment]
    return layer


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


def test_masks_of_models_are_refused(model: Any) -> None:
    batch = VarlenCollator(fair_esm_converter())(proteins(4))
    inputs = model_inputs(batch)
    with pytest.raises(ValueError, match="packed_sdpa takes no attention_mask"):
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
        with pytest.raises(ValueError, match=f"does not support the mask of {name}"):
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
    message = "does not support output_attentions" + ("|takes no attention_mask" * (name == "opt"))
    with pytest.raises(ValueError, match=f"packed_sdpa {message}"):
        model(**model_inputs(batch, model), **wanted)


def test_positions_from_elsewhere_are_noticed() -> None:
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


def test_nothing_breaks_a_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a varlen kernel, as on a GPU; elsewhere boundaries are read."""

    def varlen_attn(
        query: torch.Tensor, *_: Any, scale: float, enable_gqa: bool = False
    ) -> torch.Tensor:
        assert enable_gqa
        return query * scale

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    layer = with_config(layer_types=["full_attention"], rope_parameters={"rope_type": "default"})
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)

    def attend_on_a_gpu(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
        attention.refuse(layer, bounds, 4, {"position_ids": bounds, "use_cache": False})
        return attention.attend_varlen(query, key, key, bounds, 4, 0.0, 0.5, False)

    def compiled(function: Any) -> Any:
        return torch.compile(function, backend="eager", fullgraph=True)

    query, key = torch.randn(7, 4, 8), torch.randn(7, 2, 8)
    assert compiled(attend_on_a_gpu)(query, key).equal(query * 0.5)
    embeddings = tiny_esm2().embeddings
    inputs = {
        "input_ids": torch.tensor([[0, 32, 4, 5]]),
        "position_ids": torch.tensor([[0, 1, 0, 1]]),
    }
    assert compiled(embeddings)(**inputs).equal(embeddings(**inputs))


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
    kernel = attention.attend_varlen(q, k, v, bounds, 4, 0.0, scale, causal)
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
        bound = declared.bind(*args, **kwargs)
        bound.apply_defaults()
        calls.append(bound.arguments)
        return torch.zeros(())

    varlen_attn.__signature__ = declared  # type: ignore[attr-defined]
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    q, k, v = torch.randn(3, 7, 2, 4)
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)
    assert attention.attend_varlen(q, k, v, bounds, 4, 0.1, None, causal) is None
    assert attention.attend_varlen(q, k, v, bounds, 4, 0.0, 0.5, causal) is not None
    (call,) = calls
    assert (call["max_q"], call["max_k"], call["scale"]) == (4, 4, 0.5)
    assert tuple(call["window_size"]) == ((-1, 0) if causal else (-1, -1))


@pytest.mark.parametrize("release", SIGNATURES)
def test_torch_kernel_of_each_release(release: str) -> None:
    check(SIGNATURES[release])


def test_a_kernel_that_cannot_be_causal_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import varlen

    bare = stand_in("query, key, value, cu_seq_q, cu_seq_k, max_q, max_k")
    monkeypatch.setattr(varlen, "varlen_attn", bare)
    q, k, v = torch.randn(3, 7, 2, 4)
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)
    assert attention.attend_varlen(q, k, v, bounds, 4, 0.0, None, True) is None
    assert attention.attend_varlen(q, k, v, bounds, 4, 0.0, None, False) is not None


def test_grouped_heads_alone_are_said_to_be_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[set[str]] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def watch(*args: Any, **kwargs: Any) -> torch.Tensor:
        given.append(set(kwargs))
        return attention(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    attend()
    assert all("enable_gqa" not in names for names in given)
    attend(query=torch.randn(1, 4, 7, 4))
    assert "enable_gqa" in given[-1]


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
