"""A device of known memory and speed, in place of a GPU, and a model that takes of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch


@dataclass
class Device:
    """A device, and the meter of it: a batch of n tokens takes ``memory(n)`` bytes."""

    memory: Callable[[int], int]
    total: int
    seconds: Callable[[int], float] = lambda tokens: tokens / 1e4
    startup: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    ran: list[int] = field(default_factory=list)
    clock: float = 0.0
    peak: int = 0
    num_freed: int = 0

    def run(self, tokens: int) -> None:
        self.ran.append(tokens)
        if self.startup + self.memory(tokens) > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.peak = max(self.peak, self.memory(tokens))
        self.clock += self.seconds(tokens)

    def free(self) -> int:
        self.num_freed += 1
        return self.total - (self.startup if self.ran else 0)

    def start(self) -> None:
        self.peak = 0

    def peaks(self) -> tuple[int, int]:
        return self.peak // 2, self.peak

    def now(self) -> float:
        return self.clock

    @property
    def sizes(self) -> list[int]:
        """The sizes that ran, without repeats."""
        return list(dict.fromkeys(self.ran))


class Model(torch.nn.Module):
    """A model that does nothing but take memory and time."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(vocab_size=5, max_position_embeddings=None)
        self.device = device
        self.inputs: list[dict[str, Any]] = []

    def forward(self, **inputs: Any) -> None:
        self.inputs.append(inputs)
        self.device.run(inputs["input_ids"].shape[1])


def linear(per_token: int, fixed: int = 0) -> Callable[[int], int]:
    return lambda tokens: fixed + per_token * tokens
