"""What measure_token_budget does to models, and to their state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from devices import Device, linear
from models import packing, tiny_model

import virnucpro.model.attention  # noqa: F401  (registers packed_sdpa)
from virnucpro.data import measure_token_budget, model_inputs
from virnucpro.model import measure


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """More threads slow small models down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """The device of all models."""
    device = Device(linear(1000), 10**9, lambda _: 0.2)
    monkeypatch.setattr(measure, "open_meter", lambda _model: device)
    return device


def masked_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    loss: torch.Tensor = model(**model_inputs(batch, model), labels=batch["labels"][None]).loss
    return loss


def state_of(model: Any) -> list[Any]:
    """What measuring leaves unchanged."""
    return [
        [module.training for module in model.modules()],
        [weight.requires_grad for weight in model.parameters()],
        [(name, tensor.clone()) for name, tensor in model.state_dict().items()],
        [None if weight.grad is None else weight.grad.clone() for weight in model.parameters()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    ]


def assert_same(model: Any, before: list[Any], gradients: list[Any]) -> None:
    after = state_of(model)
    assert after[:2] == before[:2]
    assert all(name == same for (name, _), (same, _) in zip(after[2], before[2], strict=True))
    assert all(one.equal(other) for (_, one), (_, other) in zip(after[2], before[2], strict=True))
    assert all(w.grad is grad for w, grad in zip(model.parameters(), gradients, strict=True))
    assert all(a is b is None or a.equal(b) for a, b in zip(after[3], before[3], strict=True))
    assert after[4].equal(before[4])
    assert after[5] is before[5]


class Trained(torch.nn.Module):
    """ESM-2 with dropout, a buffer that training changes, and a weight that is not trained."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        heads = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.1}
        self.model = packing(tiny_model("esm", "AutoModelForMaskedLM", **heads))
        self.config = self.model.config
        self.norm = torch.nn.BatchNorm1d(33)
        self.model.esm.embeddings.word_embeddings.weight.requires_grad_(False)
        self.device = device
        self.modes: set[tuple[bool, bool]] = set()

    def forward(self, labels: Any = None, **inputs: Any) -> Any:
        self.modes.add((self.training, torch.is_grad_enabled()))
        output = self.model(**inputs, labels=labels)
        self.norm(output.logits[0])
        self.device.run(inputs["input_ids"].shape[1])
        return output


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("total", [10**9, 1000 * 100, 1000 * 50])
def test_model_is_left_unchanged(device: Device, training: bool, total: int) -> None:
    device.total = total
    for has_gradients in (False, True):
        model = Trained(device)
        model.model.esm.encoder.layer[1].train()
        if has_gradients:
            for weight in model.parameters():
                weight.grad = torch.ones_like(weight) if weight.requires_grad else None
        gradients = [weight.grad for weight in model.parameters()]
        before = state_of(model)
        loss = masked_loss if training else None
        options: dict[str, Any] = {"lengths": [12, 30], "min_tokens": 64, "max_tokens": 256}
        if total < 64_000:
            with pytest.raises(MemoryError):
                measure_token_budget(model, loss, safety_margin_gb=0, **options)
        else:
            result = measure_token_budget(model, loss, safety_margin_gb=0, **options)
            assert result.max_tokens == min(256, total // 1000)
        assert model.modes == {(training, training)}
        assert_same(model, before, gradients)
    assert device.num_freed


def test_errors_of_a_model_leave_it_unchanged(device: Device) -> None:
    model = Trained(device).train()
    gradients = [weight.grad for weight in model.parameters()]
    before = state_of(model)
    options: dict[str, Any] = {"lengths": [12], "min_tokens": 64, "max_tokens": 128}

    def fails(model: Any, batch: dict[str, Any]) -> Any:
        masked_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        raise RuntimeError("an illegal memory access")

    with pytest.raises(RuntimeError, match="an illegal memory access"):
        measure_token_budget(model, fails, **options)
    assert_same(model, before, gradients)
    model.config.attn_temperature_tuning = True
    with pytest.raises(ValueError, match="packed_sdpa does not support attn_temperature_tuning"):
        measure_token_budget(model, **options)
    assert_same(model, before, gradients)
    assert device.num_freed == 2


def test_loss_may_call_backward_itself(device: Device) -> None:
    model = Trained(device)
    graded: set[tuple[bool, ...]] = set()

    def loss(model: Any, batch: dict[str, Any]) -> None:
        assert all(weight.grad is None for weight in model.parameters())
        assert batch["labels"].equal(batch["input_ids"])
        masked_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        graded.add(tuple(weight.grad is not None for weight in model.parameters()))

    options: dict[str, Any] = {"lengths": [12], "min_tokens": 64, "max_tokens": 128}
    result = measure_token_budget(model, loss, safety_margin_gb=0, **options)
    assert result.max_tokens == 128
    assert len(graded) == 1
    assert any(*graded)
    with torch.no_grad():
        other = measure_token_budget(model, masked_loss, safety_margin_gb=0, **options)
    assert other.sizes[-1][:2] == (128, result.sizes[-1].sequences)
