"""Checks of what only a GPU shows; on a CPU, those that a CPU can run."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gpu_modes import draw_proteins, make_model, make_tokenizer, make_work, move
from torch.utils.data import DataLoader

from virnucpro.data import (
    CapturedModel,
    Embedder,
    VarlenCollator,
    check_packed,
    measure_token_budget,
    model_inputs,
    unpack,
)
from virnucpro.model.batches import take_real
from virnucpro.model.inputs import run_model

# On a CPU, small batches.
BUDGET = 4096 if torch.cuda.is_available() else 256
Batch = dict[str, Any]


def make_batches(number: int = 6, **options: Any) -> list[Batch]:
    """Return packed batches of random proteins."""
    tokenizer = make_tokenizer()
    work = make_work(draw_proteins(number * BUDGET, BUDGET // 4), BUDGET, tokenizer)
    collate = VarlenCollator(tokenizer, BUDGET, **options)
    return [collate(records) for records in work.packed[:number]]


def plain(model: Any, batch: Batch) -> torch.Tensor:
    """Return the states of a batch's tokens, without a graph."""
    inputs = move(model_inputs(batch, model), model.device)
    return run_model(model, inputs)[: batch["num_tokens"]]


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Make anything that waits for the device an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def packing_changes_nothing(device: torch.device) -> None:
    """`check_packed` passes in each type."""
    model = make_model("tiny", device)
    types = (
        [torch.float32] if device.type == "cpu" else [torch.float32, torch.bfloat16, torch.float16]
    )
    for dtype in types:
        check_packed(model.to(dtype), make_tokenizer())


def attention_does_not_wait(device: torch.device) -> None:
    """No layer waits for the device, with one object as boundaries and with two."""
    model = make_model("tiny", device)
    for batch in make_batches(2):
        for inputs in (
            move(model_inputs(batch, model), device),
            model_inputs(move(batch, device), model),
        ):
            with torch.no_grad(), no_waiting(device):
                model(**inputs)


def captured_states_are_the_same(device: torch.device) -> None:
    """Graphs give the states of padded batches bit for bit, also after weights have changed."""
    model = make_model("tiny", device)
    batches = make_batches(6)
    captured = CapturedModel(model, BUDGET, max(batch["num_sequences"] for batch in batches))
    padded = make_batches(6, pad_to_budget=True, max_sequences=captured.max_sequences)
    with torch.no_grad():
        for _ in range(2):
            for batch, same in zip(batches[::-1], padded[::-1], strict=True):
                states = captured(batch)
                assert states.equal(plain(model, same)), "states differ"
                assert states.equal(captured(same)), "padding changes states"
            for weight in model.parameters():
                weight.mul_(0.9)
    assert captured.num_plain_calls == 0, "batches did not fit"


def graphs_follow_the_model(device: torch.device) -> None:
    """Another autocast and replaced parameters give a new graph, and inference mode does not."""
    if device.type != "cuda":
        return
    model = make_model("tiny", device)
    (batch,) = make_batches(1, pad_to_budget=True, max_sequences=64, multiple_of=8)
    captured = CapturedModel(model, BUDGET, 64)

    def check(num_captures: int) -> None:
        with torch.no_grad():
            expected = take_real(run_model(model, move(model_inputs(batch, model), device)), batch)
        assert captured(batch).equal(expected), f"states differ after {num_captures} captures"
        assert captured.num_captures == num_captures, f"{captured.num_captures} captures"

    with torch.inference_mode():
        check(1)
    check(1)
    model.to(torch.float32)
    check(2)
    with torch.autocast("cuda", torch.bfloat16):
        check(3)
        check(3)
    state = {name: tensor * 0.9 for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    check(4)
    same: Any = [batch] * 8
    loader: DataLoader[Any] = DataLoader(same, batch_size=None, pin_memory=True)
    for pinned in loader:
        assert captured(pinned).equal(captured(batch)), "states of pinned batches differ"


def captured_states_are_close(device: torch.device) -> None:
    """Compiled graphs give the model's states within rounding."""
    if device.type != "cuda":
        return
    model = make_model("tiny", device)
    batches = make_batches(2)
    captured = CapturedModel(model, BUDGET, 64, compile=True)
    with torch.no_grad():
        for batch in batches:
            states, other = captured(batch).float(), plain(model, batch).float()
            difference = float((states - other).norm(dim=1).max() / other.norm(dim=1).mean())
            assert difference < 0.05, f"states differ by {difference:.1g} of the mean norm"


def measured_budget_holds(device: torch.device) -> None:
    """Running out of memory ends the sizes, memory is freed, and the budget runs again."""
    if device.type != "cuda":
        return
    model = make_model("8M", device)
    measure_token_budget(model, max_tokens=2048)
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    total = torch.cuda.get_device_properties(device).total_memory
    # The device says that it has more than PyTorch may take.
    torch.cuda.set_per_process_memory_fraction((reserved + 2**29) / total)
    try:
        budget = measure_token_budget(model, max_tokens=2**20)
        print(f"  {budget}")
        assert budget.out_of_memory is not None, "nothing ran out of memory"
        assert torch.cuda.memory_allocated() == allocated, "tensors were kept"
        assert torch.cuda.memory_reserved() <= reserved + 2**26, "memory was kept"
        size = budget.max_tokens
        measure_token_budget(model, min_tokens=size, max_tokens=size)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def embeddings_are_those_of_the_model(device: torch.device) -> None:
    """`Embedder` gives the means of the model's states, also after it ran out of memory."""
    model, tokenizer = make_model("tiny", device), make_tokenizer()
    work = make_work(draw_proteins(6 * BUDGET, BUDGET // 4), BUDGET, tokenizer)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        embedder = Embedder(folder, BUDGET, max(map(len, work.packed)), device=device)
    collate = VarlenCollator(tokenizer, BUDGET)
    expected = []
    with torch.no_grad():
        for records in work.packed:
            batch = move(collate(records), device)
            expected.append(unpack(plain(model, batch), batch).embeddings.cpu().numpy())
    tolerance = 1e-4 if device.type == "cpu" else 2e-2
    for _ in range(2):
        for found, wanted in zip(embedder.run(work.packed), expected, strict=True):
            assert not found.failed, f"failed: {found.failed}"
            vectors = found.sums / found.lengths[:, None]
            difference = np.linalg.norm(vectors - wanted, axis=1).max()
            scale = np.linalg.norm(wanted, axis=1).mean()
            assert difference <= tolerance * scale, f"embeddings differ by {difference / scale:.1g}"
        # Smaller batches from here on, as after a batch ran out of memory.
        embedder._lower(BUDGET)  # noqa: SLF001


CHECKS: tuple[Callable[[torch.device], None], ...] = (
    packing_changes_nothing,
    attention_does_not_wait,
    captured_states_are_the_same,
    graphs_follow_the_model,
    captured_states_are_close,
    measured_budget_holds,
    embeddings_are_those_of_the_model,
)


def run(device: torch.device) -> int:
    """Run all checks and return how many failed."""
    failed = 0
    for check in CHECKS:
        begin = time.perf_counter()
        try:
            check(device)
            outcome = "passed"
        except Exception:
            traceback.print_exc()
            outcome = "FAILED"
            failed += 1
        print(f"{check.__name__}: {outcome}, {time.perf_counter() - begin:.1f} s", flush=True)
    return failed
