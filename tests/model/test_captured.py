"""Models that run from a graph of one shape."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from models import fair_esm_converter, packing, tiny_esm2, tiny_model
from shaped import BUDGET, batches, states_of
from torch import _dynamo

import virnucpro.model.attention  # noqa: F401 (registers packed_sdpa)
from virnucpro.data import (
    CapturedModel,
    VarlenCollator,
    check_packed,
    unpack,
)
from virnucpro.model import captured
from virnucpro.model.inputs import run_model


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    _dynamo.reset()
    yield
    _dynamo.reset()


def test_captured_model_counts_what_does_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    model = packing(tiny_esm2())
    graphs = CapturedModel(model, 100, 2)
    collate = VarlenCollator(fair_esm_converter())
    fits = [{"id": "a", "sequence": "MKTAY"}]
    with caplog.at_level(logging.WARNING):
        for records in (fits, fits * 3, [{"id": "a", "sequence": "M" * 120}], fits * 2):
            batch = collate(records)
            expected = states_of(model, batch)["a"]
            assert torch.allclose(unpack(graphs(batch), batch).states[-1], expected, atol=1e-5)
    assert graphs.num_plain_calls == 2
    (record,) = caplog.records
    assert "21 tokens and 3 sequences (4 boundaries) does not fit" in record.getMessage()
    assert (graphs.num_captures, graphs.num_bytes) == (0, 0)


# torch.compile imports modules that use them.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_captured_model_compiles_layers_and_leaves_the_model_alone(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = packing(tiny_esm2())
    before = [dict(vars(module)) for module in model.modules()]
    graphs = CapturedModel(model, BUDGET, 30, compile=True)
    for batch in batches(pad_to_budget=False)[:3]:
        expected = torch.cat(list(states_of(model, batch).values()))
        found = torch.cat(unpack(graphs(batch), batch).states)
        assert torch.allclose(found, expected, atol=1e-4)
    assert [vars(module).keys() for module in model.modules()] == [each.keys() for each in before]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    changed = states_of(model, batch)
    found = torch.cat(unpack(graphs(batch), batch).states)
    assert torch.allclose(found, torch.cat(list(changed.values())), atol=1e-4)
    assert not torch.allclose(found, expected, atol=1e-2)


class Recorded:
    """In place of a CUDA graph: runs the model on the inputs that it keeps."""

    def __init__(self, model: Any, inputs: dict[str, Any]) -> None:
        self.model = model
        self.inputs = {
            name: value.clone() if isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }
        self.states = run_model(model, self.inputs)

    def replay(self) -> None:
        self.states.copy_(run_model(self.model, self.inputs))


def test_graphs_are_captured_again_when_they_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """With graphs that are recorded, since a CPU has none: their inputs, states and number."""

    def capture(model: Any, inputs: dict[str, Any], _autocast: Any, key: Any) -> Any:
        graph: Any = Recorded(model, inputs)
        return captured.Graph(graph, graph.inputs, graph.states, key, 5)

    monkeypatch.setattr(captured, "capture", capture)
    monkeypatch.setattr(captured, "has_graphs", lambda _: True)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    model = packing(tiny_esm2())
    graphs = CapturedModel(model, BUDGET, 30)
    found = sorted(batches(pad_to_budget=False), key=lambda batch: batch["max_seqlen"])

    def check(number: int, chosen: list[dict[str, Any]], atol: float = 1e-5) -> None:
        states = [graphs(batch) for batch in chosen]
        for batch, own in zip(chosen, states, strict=True):
            expected = torch.cat(list(states_of(model, batch).values()))
            assert torch.allclose(torch.cat(unpack(own, batch).states), expected, atol=atol)
        assert (graphs.num_captures, graphs.num_plain_calls) == (number, 0)
        assert graphs.num_bytes == 5

    with torch.inference_mode():
        check(1, found[:1])
    check(1, found[:1])
    check(2, found)
    check(2, found[::-1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    check(2, found[:2])
    model.load_state_dict(
        {name: tensor * 0.9 for name, tensor in model.state_dict().items()}, assign=True
    )
    check(3, found[:2])
    model.double()
    check(4, found[:2])
    # Padded, all have the same longest sequence, also a batch of few tokens that comes first.
    graphs = CapturedModel(model, BUDGET, 30)
    check(1, sorted(batches(), key=lambda batch: batch["num_tokens"]))


def test_positions_of_padding_are_those_of_a_model() -> None:
    """A model with as many positions as its longest sequence has tokens."""
    model = packing(tiny_model("bert", max_position_embeddings=42))
    graphs = CapturedModel(model, BUDGET, 8)
    for length, multiple_of in ((25, 1), (40, 1), (40, 64)):
        for pad_to_budget in (False, True):
            collate = VarlenCollator(
                fair_esm_converter(), BUDGET, pad_to_budget=pad_to_budget, multiple_of=multiple_of
            )
            batch = collate([{"id": "a", "sequence": "M" * length}])
            plain = VarlenCollator(fair_esm_converter())([{"id": "a", "sequence": "M" * length}])
            expected = states_of(model, plain)["a"]
            assert torch.allclose(states_of(model, batch)["a"], expected, atol=1e-5)
            assert torch.allclose(unpack(graphs(batch), batch).states[0], expected, atol=1e-5)


@pytest.mark.parametrize("options", [{"pad_to_budget": True}, {"multiple_of": 16}])
def test_check_packed_takes_collators_that_pad(options: dict[str, Any]) -> None:
    check_packed(packing(tiny_esm2()), VarlenCollator(fair_esm_converter(), 512, **options))


def test_captured_model_takes_batches_padded_to_another_shape() -> None:
    """Full ones too, and those of which only the padding exceeds the shape."""
    model = packing(tiny_esm2())
    graphs = CapturedModel(model, 64, 4)
    for budget, lengths in ((64, [20, 38]), (64, [20, 40]), (160, [20, 12]), (160, [62])):
        collate = VarlenCollator(fair_esm_converter(), budget, pad_to_budget=True)
        batch = collate([{"id": n, "sequence": "M" * n} for n in lengths])
        expected = torch.cat(list(states_of(model, batch).values()))
        found = torch.cat(unpack(graphs(batch), batch).states)
        assert torch.allclose(found, expected, atol=1e-5)
    assert graphs.num_plain_calls == 0


def test_captured_model_needs_no_padding_token() -> None:
    model = packing(tiny_model("llama"))
    model.config.pad_token_id = -1
    batch = batches(pad_to_budget=False)[0]
    assert len(CapturedModel(model, BUDGET, 30)(batch)) == batch["num_tokens"]


def test_captured_model_takes_rope_that_depends_on_the_longest_sequence() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = packing(tiny_model("llama", max_position_embeddings=64, rope_parameters=rope))
    graphs = CapturedModel(model, BUDGET, 8)
    for length in (38, 40, 62):
        batch = VarlenCollator(fair_esm_converter())([{"id": "a", "sequence": "M" * length}])
        expected = states_of(model, batch)["a"]
        assert torch.allclose(unpack(graphs(batch), batch).states[0], expected, atol=1e-5)


def test_captured_model_checks_its_arguments() -> None:
    model = packing(tiny_esm2())
    for arguments, message in (((0, 1), "max_tokens must be"), ((5, 0), "max_sequences must be")):
        with pytest.raises(ValueError, match=message):
            CapturedModel(model, *arguments)
    with pytest.raises(ValueError, match=r"or FlashAttention \(got 'sdpa'\)$"):
        CapturedModel(tiny_esm2(attn_implementation="sdpa"), 5, 5)
    with pytest.raises(ValueError, match=r"of VarlenCollator \(its keys are none\)$"):
        CapturedModel(model, 5, 5)({})
    with pytest.raises(ValueError, match=r"one device \(got none\)"):
        CapturedModel(torch.nn.Identity(), 5, 5)
    with pytest.raises(ValueError, match=r"list of layers \(got Linear\)"):
        CapturedModel(torch.nn.Linear(2, 2), 5, 5, compile=True)
    graphs = CapturedModel(model.train(), BUDGET, 5)
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        graphs(batches()[0])
