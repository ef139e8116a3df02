"""Token budgets from the memory of GPUs, with a stand-in for torch."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from virnucpro.data import calculate_token_budget

LOGGER = "virnucpro.data.packing"


class FakeDevice:
    def __init__(self, gibibytes: float) -> None:
        self.total_memory = int(gibibytes * 1024**3)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """The module torch.cuda, with a GPU of 16 GiB."""
    cuda = mock.Mock(spec_set=["is_available", "get_device_properties"])
    cuda.is_available.return_value = True
    cuda.get_device_properties.return_value = FakeDevice(16)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    return cuda


@pytest.mark.parametrize(
    ("gibibytes", "arguments", "expected"),
    [
        pytest.param(16, {}, 16384, id="defaults"),
        pytest.param(16, {"bytes_per_token": 2**20}, 9216, id="neither clamp at work"),
        pytest.param(4, {"bytes_per_token": 2**20}, 1024, id="floor"),
        pytest.param(4, {"bytes_per_token": 2**20, "min_tokens": 100}, 512, id="half a GiB"),
        pytest.param(80, {"bytes_per_token": 2**20}, 16384, id="ceiling"),
        pytest.param(16, {"max_tokens": 10**9}, 9 * 2**30 // 4096, id="bytes of a token"),
        pytest.param(16, {"bytes_per_token": 2**20 + 1}, 9215, id="no part of a token"),
        pytest.param(
            3,
            {"model_memory_gb": 0, "safety_margin_gb": 0, "bytes_per_token": 2**20},
            3072,
            id="nothing beside it",
        ),
        pytest.param(
            16, {"bytes_per_token": 1, "min_tokens": 1, "max_tokens": 1}, 1, id="least of all"
        ),
        pytest.param(
            24,
            {"model_memory_gb": 1, "safety_margin_gb": 1.5, "bytes_per_token": 2**21},
            11008,
            id="all arguments",
        ),
    ],
)
def test_calculate_token_budget(
    gibibytes: float,
    arguments: dict[str, Any],
    expected: int,
    cuda: mock.Mock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cuda.get_device_properties.return_value = FakeDevice(gibibytes)
    with caplog.at_level(logging.INFO, LOGGER):
        assert calculate_token_budget(0, **arguments) == expected
    cuda.get_device_properties.assert_called_once_with(0)
    (entry,) = caplog.records
    assert entry.levelname == "INFO"
    assert entry.getMessage().startswith(f"Token budget: {expected} (GPU 0: {gibibytes:.1f}GB")


@pytest.mark.usefixtures("cuda")
def test_calculate_token_budget_message(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        calculate_token_budget()
    assert caplog.messages == ["Token budget: 16384 (GPU 0: 16.0GB total, 9.0GB available)"]


def test_calculate_token_budget_bad_device(cuda: mock.Mock) -> None:
    cuda.get_device_properties.side_effect = AssertionError("Invalid id")
    with pytest.raises(ValueError, match="GPU 7 cannot be used: Invalid id"):
        calculate_token_budget(7)


def test_calculate_token_budget_no_cuda(cuda: mock.Mock, caplog: pytest.LogCaptureFixture) -> None:
    cuda.is_available.return_value = False
    with caplog.at_level(logging.WARNING, LOGGER):
        assert calculate_token_budget() == 4096
        assert calculate_token_budget(max_tokens=2048) == 2048
        assert calculate_token_budget(min_tokens=8192) == 8192
    assert caplog.messages == [
        f"CUDA not available, using a token budget of {budget}" for budget in (4096, 2048, 8192)
    ]


def test_calculate_token_budget_no_torch(caplog: pytest.LogCaptureFixture) -> None:
    with mock.patch.dict(sys.modules, {"torch": None}), caplog.at_level(logging.WARNING, LOGGER):
        assert calculate_token_budget() == 4096
    assert caplog.messages == [
        "CUDA not available: torch is not installed, using a token budget of 4096"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bytes_per_token": 0}, r"bytes_per_token must be at least 1 \(got 0\)"),
        ({"min_tokens": 0}, r"min_tokens must be at least 1 \(got 0\)"),
        ({"model_memory_gb": float("nan")}, r"model_memory_gb must be at least 0 and finite"),
        ({"model_memory_gb": float("inf")}, r"model_memory_gb must be .* finite \(got inf\)"),
        ({"safety_margin_gb": -1}, r"safety_margin_gb must be at least 0 and finite \(got -1\)"),
        ({"min_tokens": 9, "max_tokens": 8}, r"max_tokens must be at least 9 \(got 8\)"),
    ],
)
def test_calculate_token_budget_bad_arguments(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calculate_token_budget(**arguments)


@pytest.mark.parametrize("name", ["model_memory_gb", "safety_margin_gb"])
def test_memory_must_be_a_number(name: str, cuda: mock.Mock) -> None:
    cuda.is_available.return_value = False
    with pytest.raises(TypeError, match=rf"{name} must be a number \(got '5'\)"):
        calculate_token_budget(**{name: "5"})  # type: ignore[arg-type]
    assert calculate_token_budget(**{name: np.float32(5)}) == 4096  # type: ignore[arg-type]
