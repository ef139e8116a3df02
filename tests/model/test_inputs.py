"""What models are given for packed batches, and which are found to serve them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import (
    fair_esm_converter,
    huggingface_tokenizer,
    letter_pairs,
    tiny_esm2,
    tiny_model,
)
from transformers.models.esm.modeling_esm import EsmEmbeddings

import virnucpro.model.attention  # noqa: F401  (registers packed_sdpa)
from virnucpro.data import VarlenCollator, check_packed, model_inputs
from virnucpro.model.configuration import find_unserved
from virnucpro.model.inputs import first_position, warn_of_attention

GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}
LINEAR = ["linear_attention", "full_attention", "linear_attention"]

SERVED: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 32},
    "bert": {},
    "electra": {"embedding_size": 32},
    "esmc": {},
    "eurobert": GROUPED,
    "gemma": {**GROUPED, "head_dim": 8},
    "gpt2": {},
    "gpt_neox": {},
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": None},
    "mixtral": {**GROUPED, "num_local_experts": 2, "sliding_window": None},
    "modernbert": {"global_attn_every_n_layers": 1, "cls_token_id": 0, "sep_token_id": 2},
    "nomic_bert": {},
    "olmo2": GROUPED,
    "phi3": {**GROUPED, "sliding_window": None},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "roberta": {"max_position_embeddings": 40},
    "xlm-roberta": {},
}

STATEFUL: dict[str, dict[str, Any]] = {
    "bamba": {**GROUPED, **MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**GROUPED, **MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        **GROUPED,
        **MAMBA,
        "layer_types": LINEAR,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 32,
    },
    "jamba": {
        **GROUPED,
        **EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "lfm2": {
        **GROUPED,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_multiple_of": 8,
    },
    "minimax": {
        **GROUPED,
        "layer_types": LINEAR,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "block_size": 16,
        "head_dim": 8,
    },
    "nemotron_h": {
        **GROUPED,
        "head_dim": 8,
        "hybrid_override_pattern": "M*-",
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 16,
        "use_mamba_kernels": False,
    },
    "qwen3_next": {
        **GROUPED,
        **EXPERTS,
        "head_dim": 8,
        "layer_types": LINEAR,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "recurrent_gemma": {
        "num_key_value_heads": 1,
        "lru_width": 32,
        "attention_window_size": 64,
        "block_types": ("recurrent", "recurrent", "attention"),
    },
    "zamba2": {
        "num_key_value_heads": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "mamba_d_state": 8,
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
        "mamba_ngroups": 1,
        "chunk_size": 16,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
        "use_mamba_kernels": False,
    },
}

WINDOWED: dict[str, dict[str, Any]] = {
    "gemma3_text": {**GROUPED, "head_dim": 8, "sliding_window": 4},
    "llama4_text": {
        **GROUPED,
        "head_dim": 8,
        "attention_chunk_size": 8,
        "intermediate_size_mlp": 64,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },
    "mistral": {**GROUPED, "sliding_window": 4},
    "modernbert": {
        "global_attn_every_n_layers": 3,
        "local_attention": 8,
        "cls_token_id": 0,
        "sep_token_id": 2,
    },
}

# Their attention is their own, whatever they are set to.
UNAWARE: dict[str, dict[str, Any]] = {
    "bloom": {"n_head": 4, "n_layer": 3},
    "deberta-v2": {},
    "falcon": {},
    "gpt_neo": {
        "attention_types": [[["global", "local", "local"], 1]],
        "num_heads": 4,
        "window_size": 4,
    },
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads would only wait for each other, with models so small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def packing(model: Any) -> Any:
    model.set_attn_implementation("packed_sdpa")
    return model


def a_batch(**parameters: Any) -> dict[str, Any]:
    records = [{"id": "a", "sequence": "MKTAY"}, {"id": "b", "sequence": "MK"}]
    return VarlenCollator(fair_esm_converter(), **parameters)(records)


@pytest.mark.parametrize("name", SERVED)
def test_served_models_pass(name: str) -> None:
    check_packed(packing(tiny_model(name, **SERVED[name])), fair_esm_converter())


@pytest.mark.parametrize("positions", ["rotary", "absolute"])
@pytest.mark.parametrize("norm_before", [False, True])
def test_esm_passes_with_masks(positions: str, norm_before: bool, tmp_path: Path) -> None:
    model = tiny_model(
        "esm",
        position_embedding_type=positions,
        emb_layer_norm_before=norm_before,
        token_dropout=True,
        mask_token_id=32,
        max_position_embeddings=70,
    )
    check_packed(packing(model), fair_esm_converter())
    check_packed(model, huggingface_tokenizer(tmp_path))
    check_packed(model, VarlenCollator(fair_esm_converter(), 64, 30))


def test_models_pass_without_a_tokenizer() -> None:
    for model in (tiny_esm2(), tiny_model("roberta"), tiny_model("llama", vocab_size=5000)):
        with pytest.raises(ValueError, match='attention is "sdpa"'):
            check_packed(model)
        check_packed(packing(model))


def test_heads_and_types_pass() -> None:
    for head in ("AutoModelForCausalLM", "AutoModelForTokenClassification"):
        check_packed(packing(tiny_model("llama", head, **GROUPED)), fair_esm_converter())
    check_packed(packing(tiny_esm2()).to(torch.bfloat16), fair_esm_converter())
    check_packed(packing(tiny_esm2()).double(), fair_esm_converter())


@pytest.mark.parametrize("name", STATEFUL)
def test_models_with_a_state_are_found(name: str) -> None:
    model = tiny_model(name, **STATEFUL[name])
    message = "layer_types has '(linear_attention|conv|hybrid|recurrent)'"
    with pytest.raises(ValueError, match=message):
        check_packed(model, fair_esm_converter())
    with pytest.raises(ValueError, match=message):
        check_packed(packing(model), fair_esm_converter())
    # Layers without attention may have refused first, as they are told of sequences; in any case
    # attention does.
    with pytest.raises(ValueError, match=r"does not support|can't keep packed sequences"):
        model(**model_inputs(a_batch()))


@pytest.mark.parametrize("name", ["mamba", "rwkv"])
def test_models_without_attention_are_found(name: str) -> None:
    size = "state_size" if name == "mamba" else "attention_hidden_size"
    parameters: dict[str, Any] = {size: 32}
    with pytest.raises(ValueError, match="gives 6 of 7 sequences packed something else than"):
        check_packed(tiny_model(name, **parameters), fair_esm_converter())


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_are_refused(name: str) -> None:
    model = tiny_model(name, **WINDOWED[name])
    with pytest.raises(ValueError, match=r"a window of [48] tokens"):
        check_packed(model, fair_esm_converter())
    with pytest.raises(ValueError, match="packed_sdpa does not support local attention"):
        check_packed(packing(model), fair_esm_converter())


@pytest.mark.parametrize("name", UNAWARE)
@pytest.mark.filterwarnings("ignore")
def test_models_that_ignore_the_setting_are_found(name: str) -> None:
    model = packing(tiny_model(name, **UNAWARE[name]))
    with pytest.raises(ValueError, match=r'attention is "(eager|sdpa)", not "packed_sdpa"'):
        check_packed(model, fair_esm_converter())


def test_attention_that_crosses_sequences_is_found() -> None:
    for model in (tiny_esm2(), tiny_model("bert"), tiny_model("llama")):
        with pytest.raises(ValueError, match=r'1 \(3 tokens\) by .*attention is "sdpa", not'):
            check_packed(model, fair_esm_converter())
    # Trained models differ more, those just initialized less.
    with pytest.raises(ValueError, match="7 of 7"):
        check_packed(tiny_model("bert", initializer_range=0.02), fair_esm_converter())


def test_masks_that_change_neighbours_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EsmEmbeddings, "forward", inspect.unwrap(EsmEmbeddings.forward))
    with pytest.raises(ValueError, match="7 of 7 sequences packed something else than"):
        check_packed(packing(tiny_esm2()), fair_esm_converter())
    check_packed(packing(tiny_model("esm", mask_token_id=32, token_dropout=False)))


def test_positions_and_single_sequences_that_differ_are_found() -> None:
    class Shifted(torch.nn.Module):
        """Moves all positions but the first sequence's."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model, self.config = model, model.config

        def forward(self, position_ids: torch.Tensor, **kwargs: Any) -> Any:
            bounds = kwargs["cu_seq_lens_q"].tolist()
            position_ids = position_ids.clone()
            if len(bounds) > 3:
                position_ids[0, bounds[2] : bounds[3]] += 1
            return self.model(position_ids=position_ids, **kwargs)

    model = Shifted(packing(tiny_model("bert")))
    with (
        replaced(model, "forward", plain_or(model.forward, model.model)),
        pytest.raises(ValueError, match=r"1 of 7 .*: sequence 2 \(15 tokens\) .* positions"),
    ):
        check_packed(model, fair_esm_converter())


def plain_or(packed: Any, plain: Any) -> Any:
    def forward(**inputs: Any) -> Any:
        return packed(**inputs) if "position_ids" in inputs else plain(**inputs)

    return forward


@contextmanager
def replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    object.__setattr__(holder, name, value)
    try:
        yield
    finally:
        object.__delattr__(holder, name)


def test_the_model_stays_as_it_was() -> None:
    model = packing(tiny_esm2()).train()
    model.encoder.layer[1].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert check_packed(model, fair_esm_converter()) is None  # type: ignore[func-returns-value]
    with pytest.raises(ValueError, match="more than 1e-12"):
        check_packed(model, fair_esm_converter(), tolerance=1e-12)
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == "packed_sdpa"  # noqa: SLF001
    assert torch.get_rng_state().equal(state)
    assert all(weight.grad is None for weight in model.parameters())
    assert all(weights[name].equal(weight) for name, weight in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_a_window_is_passed_by_a_longer_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    model = packing(tiny_model("llama", **GROUPED))
    model.config.sliding_window = 100
    forward = model.forward

    def watch(**inputs: Any) -> Any:
        lengths.append(inputs["input_ids"].shape[1])
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", watch)
    check_packed(model, fair_esm_converter())
    assert sorted(set(lengths))[-2:] == [118, sum({3, 4, 15, 22, 29, 42, 64, 118})]
    # Alone by two kinds of attention, and all packed.
    assert len(lengths) == 17


def test_what_cannot_be_checked_is_refused() -> None:
    model = packing(tiny_esm2())
    with pytest.raises(ValueError, match="room for two sequences"):
        check_packed(model, VarlenCollator(fair_esm_converter(), 3))
    with pytest.raises(TypeError, match="batch_converter must be"):
        check_packed(model, object())
    with pytest.raises(ValueError, match="tokens that the model lacks: 23 of 20"):
        check_packed(packing(tiny_model("bert", vocab_size=20)), fair_esm_converter())
    whole = packing(tiny_model("bert", "AutoModelForSequenceClassification"))
    with pytest.raises(ValueError, match=r"no last_hidden_state or logits for each .*\[1, 2\]"):
        check_packed(whole, fair_esm_converter())
    with pytest.raises(ValueError, match="does not support an encoder-decoder"):
        check_packed(tiny_model("bart", d_model=32), fair_esm_converter())


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
    assert "EsmModel has the attention 'sdpa'" in record.getMessage()
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

    with pytest.raises(ValueError, match=r"layers of type 'recurrent': .* Closed takes no seq_idx"):
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
def test_configurations_that_packing_does_not_serve(
    config: dict[str, Any], longest: int | None, message: str | None
) -> None:
    found = find_unserved(SimpleNamespace(**config), longest)
    assert (found is None) == (message is None)
    assert message is None or message in str(found)


def test_a_collator_is_left_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    """Also where the vocabulary lacks some of the residues that a model is checked with."""
    for unknown in ("warn", "error"):
        collate = VarlenCollator(letter_pairs(), unknown=unknown)
        check_packed(packing(tiny_model("llama", vocab_size=500)), collate)
        assert (collate.unknown_residues, collate.num_residues) == ({}, 0)
    assert caplog.messages == []
    model = packing(tiny_esm2())
    model.embeddings.register_forward_pre_hook(lambda *_: print(torch.rand(1)))
    state = torch.get_rng_state()
    check_packed(model, fair_esm_converter())
    assert torch.get_rng_state().equal(state)
