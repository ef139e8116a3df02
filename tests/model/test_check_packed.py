"""Models that check_packed passes, and those that it finds to give other states."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import GROUPED, STATEFUL, SUPPORTED, UNAWARE, WINDOWED
from models import (
    a_batch,
    fair_esm_converter,
    huggingface_tokenizer,
    letter_pairs,
    packing,
    tiny_esm2,
    tiny_model,
)
from transformers.models.esm.modeling_esm import EsmEmbeddings

import virnucpro.model.attention  # noqa: F401  (registers packed_sdpa)
from virnucpro.data import VarlenCollator, check_packed, measure_token_budget, model_inputs
from virnucpro.model.inputs import warn_of_attention


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """More threads slow small models down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", SUPPORTED)
def test_supported_models_pass(name: str) -> None:
    check_packed(packing(tiny_model(name, **SUPPORTED[name])), fair_esm_converter())


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
def test_models_with_a_state_are_detected(name: str) -> None:
    model = tiny_model(name, **STATEFUL[name])
    message = "layers of type '(linear_attention|conv|hybrid|recurrent)'"
    with pytest.raises(ValueError, match=message):
        check_packed(model, fair_esm_converter())
    with pytest.raises(ValueError, match=message):
        check_packed(packing(model), fair_esm_converter())
    # Layers without attention may have refused first, as they are told of sequences; in any case
    # attention does.
    with pytest.raises(ValueError, match=r"does not support|can't keep packed sequences"):
        model(**model_inputs(a_batch()))


@pytest.mark.parametrize("name", ["mamba", "rwkv"])
def test_models_without_attention_are_detected(name: str) -> None:
    size = "state_size" if name == "mamba" else "attention_hidden_size"
    parameters: dict[str, Any] = {size: 32}
    with pytest.raises(ValueError, match=r"changes the output of .* for 6 of 7 sequences"):
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
def test_models_that_ignore_the_setting_are_detected(name: str) -> None:
    model = packing(tiny_model(name, **UNAWARE[name]))
    with pytest.raises(ValueError, match=r'attention is "(eager|sdpa)", not "packed_sdpa"'):
        check_packed(model, fair_esm_converter())


def test_attention_across_sequences_is_detected() -> None:
    for model in (tiny_esm2(), tiny_model("bert"), tiny_model("llama")):
        with pytest.raises(ValueError, match=r'1 \(3 tokens\) by .*attention is "sdpa", not'):
            check_packed(model, fair_esm_converter())
    # Trained models differ more, those just initialized less.
    with pytest.raises(ValueError, match="7 of 7"):
        check_packed(tiny_model("bert", initializer_range=0.02), fair_esm_converter())


def test_masks_that_change_neighbours_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EsmEmbeddings, "forward", inspect.unwrap(EsmEmbeddings.forward))
    monkeypatch.setattr("virnucpro.model.esm.patch_esm_embeddings", lambda: None)
    with pytest.raises(ValueError, match="for 7 of 7 sequences, compared with"):
        check_packed(packing(tiny_esm2()), fair_esm_converter())
    check_packed(packing(tiny_model("esm", mask_token_id=32, token_dropout=False)))


def test_positions_and_single_sequences_that_differ_are_detected() -> None:
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


def test_model_is_left_unchanged() -> None:
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


def test_windows_are_checked_with_a_longer_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(ValueError, match=r"produces token 23, but .* has only 20 tokens"):
        check_packed(packing(tiny_model("bert", vocab_size=20)), fair_esm_converter())
    whole = packing(tiny_model("bert", "AutoModelForSequenceClassification"))
    with pytest.raises(ValueError, match=r"last_hidden_state or logits for each .*\[1, 2\]"):
        check_packed(whole, fair_esm_converter())
    with pytest.raises(ValueError, match="does not support encoder-decoder models"):
        check_packed(tiny_model("bart", d_model=32), fair_esm_converter())


def test_collator_is_left_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    """Also if the vocabulary lacks some of the residues that a model is checked with."""
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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_warning_advises_the_check_that_is_running(
    attention: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_attention.cache_clear()
    model = tiny_model("llama")
    model.set_attn_implementation(attention)
    # With it, the model does not tell sequences apart by their positions.
    model.config.use_cache = False
    check_packed(model)
    assert caplog.messages == []


def test_what_is_not_a_model() -> None:
    for check in (check_packed, measure_token_budget):
        with pytest.raises(TypeError, match=r"^model must be a torch.nn.Module \(got NoneType\)$"):
            check(None)
    with pytest.raises(ValueError, match=r"Linear refuses .*; it has no config") as error:
        check_packed(torch.nn.Linear(1, 1))
    assert "state" not in str(error.value)
