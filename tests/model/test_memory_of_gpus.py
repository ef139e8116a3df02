"""What calculate_token_budget asks torch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from virnucpro.data import calculate_token_budget


def test_torch_is_asked_for_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get_device_properties(device: int) -> SimpleNamespace:
        asked.append(device)
        return SimpleNamespace(total_memory=16 * 2**30)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", get_device_properties)
    assert calculate_token_budget(3) == 16384
    assert asked == [3]
