"""measure_token_budget, with a device of known memory and speed in place of a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from devices import Device, Model, linear
from hypothesis import example, given
from hypothesis import strategies as st
from models import tiny_esm2

import virnucpro.model.attention  # noqa: F401  (registers packed_sdpa)
from virnucpro.data import GreedyPacker, calculate_token_budget, measure_token_budget
from virnucpro.model import measure
from virnucpro.model.measure import MeasuredBudget, MeasuredSize, fill, fit_line


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Device], Any]:
    """Return a function that gives a device to all models, and a model that runs on it."""
    device: list[Device] = []

    def use(one: Device) -> Model:
        device[:] = [one]
        return Model(one)

    monkeypatch.setattr(measure, "open_meter", lambda _model: device[0])
    return use


def check(device: Device, result: MeasuredBudget, margin: int, max_tokens: int) -> None:
    """Check what holds for every device."""
    tokens = [size.tokens for size in result.sizes]
    assert tokens == sorted(set(tokens))
    failed = set(device.ran) - set(tokens)
    assert min(failed, default=None) == result.out_of_memory
    room = device.total - device.startup - margin
    assert result.available_bytes == room
    fitting = [size for size in result.sizes if size.reserved_bytes <= room]
    assert result.max_tokens == fitting[-1].tokens <= max_tokens
    best = max(size.tokens_per_second for size in fitting)
    fast = [size.tokens for size in fitting if size.tokens_per_second >= 0.95 * best]
    assert result.fast_tokens == fast[0]
    for size in result.sizes:
        assert size.reserved_bytes == device.memory(size.tokens)
        assert size.allocated_bytes == size.reserved_bytes // 2
        assert size.seconds == pytest.approx(device.seconds(size.tokens))
        line = result.fixed_bytes + result.bytes_per_token * size.tokens
        assert line >= size.reserved_bytes


def test_line_margin_and_speed(use: Any, caplog: pytest.LogCaptureFixture) -> None:
    device = Device(
        linear(1000, 5_000_000),
        total=80_000_000,
        seconds=lambda tokens: max(tokens, 6000) / 1e4,
        startup=3_000_000,
    )
    result = measure_token_budget(use(device), safety_margin_gb=2_000_000 / 2**30)
    check(device, result, 2_000_000, 65536)
    # 80 - 3 - 2 - 5 million bytes, for 1,000 bytes a token.
    assert (result.bytes_per_token, result.fixed_bytes) == (1000, 5_000_000)
    assert result.max_tokens == 65536
    assert result.available_bytes == 75_000_000
    assert device.sizes == [1024 * 2**i for i in range(7)]
    assert result.fast_tokens == 8192
    assert result.out_of_memory is None
    assert f"Measured token budget: {result}" in caplog.messages
    assert GreedyPacker(result.fast_tokens).max_tokens_per_batch == 8192
    assert calculate_token_budget(bytes_per_token=result.bytes_per_token) >= 1024
    assert repr(result) == (
        "MeasuredBudget(max_tokens=65536, fast_tokens=8192, bytes_per_token=1000, "
        "fixed_bytes=5000000, available_bytes=75000000, out_of_memory=None)"
    )


def test_fast_is_95_percent_of_the_best_speed(use: Any) -> None:
    """With a fixed time per batch, speeds are 80, 89, 94.2, 97 ... % of what they approach."""
    device = Device(linear(1000), 10**9, lambda tokens: (tokens + 250) / 1e4)
    result = measure_token_budget(use(device), safety_margin_gb=0)
    check(device, result, 0, 65536)
    assert result.fast_tokens == 8192


def test_margin_is_kept(use: Any) -> None:
    """The last size is the one that just fits, and none beyond the margin is run."""
    device = Device(linear(50_000, 10**8), total=10**9)
    result = measure_token_budget(use(device), safety_margin_gb=0.25)
    check(device, result, 2**28, 65536)
    assert result.max_tokens == (10**9 - 2**28 - 10**8) // 50_000 == 12631
    assert max(device.ran) == 12631
    assert device.sizes == [1024, 2048, 4096, 8192, 12631]
    # What is left is too little to be worth a run.
    device = Device(linear(50_000), total=50_000 * 8700)
    result = measure_token_budget(use(device), safety_margin_gb=0)
    assert (result.max_tokens, max(device.ran)) == (8192, 8192)


@given(
    per_token=st.integers(1, 10**6),
    fixed=st.integers(0, 10**9),
    quantum=st.sampled_from([1, 2**21]),
    room=st.integers(1100, 200_000),
    max_tokens=st.integers(1024, 10**5),
    cliff=st.none() | st.integers(1025, 10**5),
)
@example(52_000, 10**8, 2**21, 1100, 65536, None)
def test_any_device(
    per_token: int, fixed: int, quantum: int, room: int, max_tokens: int, cliff: int | None
) -> None:
    """With steps of memory, and with more memory taken from some size on."""

    def memory(tokens: int) -> int:
        extra = 3 * per_token * tokens if cliff is not None and tokens >= cliff else 0
        return -(-(fixed + per_token * tokens + extra) // quantum) * quantum

    device = Device(memory, total=memory(1100) + per_token * (room - 1100))

    def attempt(tokens: int) -> MeasuredSize | None:
        device.start()
        try:
            device.run(tokens)
        except torch.OutOfMemoryError:
            return None
        return MeasuredSize(tokens, 1, device.seconds(tokens), *device.peaks())

    margin = 10 * per_token
    available = device.total - margin
    if memory(1024) > available:
        with pytest.raises(MemoryError, match=r"a batch of 1,024 tokens, the smallest, takes"):
            measure.search(attempt, 1024, max_tokens, available, margin)
        return
    result = measure.search(attempt, 1024, max_tokens, available, margin)
    check(device, result, margin, max_tokens)
    assert len(device.ran) <= 30
    # Nothing much larger fits, if memory is a line, and the first batch leaves room for a second.
    if quantum == 1 and cliff is None and available > 1.1 * memory(1024):
        best = min(max_tokens, (available - fixed) // per_token)
        assert best <= result.max_tokens * 17 / 16 + 1


def test_running_out_of_memory_is_an_upper_end(use: Any) -> None:
    """A device that has less memory than it says."""
    device = Device(linear(1000), total=30_000_000)
    device.free = lambda: 100_000_000  # type: ignore[method-assign]
    result = measure_token_budget(use(device), safety_margin_gb=0)
    # 32,768 runs out, then the middle of what did and did not is tried.
    assert device.sizes == [1024, 2048, 4096, 8192, 16384, 32768, 24576, 28672, 30720]
    assert (result.max_tokens, result.out_of_memory) == (28672, 30720)
    assert [size.tokens for size in result.sizes] == [1024 * 2**i for i in range(5)] + [
        24576,
        28672,
    ]


def test_a_batch_that_does_not_fit_is_an_error(use: Any) -> None:
    gigabyte = 2**30
    model = use(Device(linear(2**20), total=gigabyte - 1))
    with pytest.raises(
        MemoryError,
        match=r"^a batch of 1,024 tokens, the smallest, runs out of memory: the device has "
        r"1\.0 GiB free, of which safety_margin_gb keeps 0\.5 GiB$",
    ):
        measure_token_budget(model, safety_margin_gb=0.5)
    model = use(Device(linear(2**20), total=2 * gigabyte))
    with pytest.raises(MemoryError, match=r"takes 1\.0 GiB: .* 2\.0 GiB free, .* keeps 1\.5 GiB"):
        measure_token_budget(model, safety_margin_gb=1.5)
    assert measure_token_budget(model, safety_margin_gb=0.5).max_tokens == 1536


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ({100: 700}, (7, 0)),
        ({100: 701}, (8, -99)),
        ({10: 130, 20: 160, 40: 220}, (3, 100)),
        ({10: 50, 20: 50}, (1, 40)),
        # Curved: the line lies above.
        ({10: 100, 20: 400, 30: 900}, (40, -300)),
    ],
)
def test_line_lies_on_or_above(sizes: dict[int, int], line: tuple[int, int]) -> None:
    measured = [MeasuredSize(tokens, 1, 1.0, 0, taken) for tokens, taken in sizes.items()]
    assert fit_line(measured) == line


@given(st.lists(st.tuples(st.integers(1, 2**31), st.integers(0, 2**45)), min_size=2, unique=True))
def test_slope_is_that_of_least_squares(points: list[tuple[int, int]]) -> None:
    tokens, taken = map(np.array, zip(*points, strict=True))
    measured = [MeasuredSize(x, 1, 1.0, 0, y) for x, y in points]
    per_token, fixed = fit_line(measured)
    assert (fixed + per_token * tokens.astype(object) >= taken).all()
    assert (fixed + per_token * tokens.astype(object) == taken).any()
    if len(set(tokens.tolist())) > 1:
        scale = tokens.max()
        slope = np.polyfit(tokens / scale, taken, 1)[0] / scale
        assert per_token == pytest.approx(max(1, slope), rel=1e-3, abs=1.01 + taken.max() * 1e-9)


def test_batches_are_full_packed_and_the_same(use: Any) -> None:
    batches: list[list[dict[str, Any]]] = []
    for _ in range(2):
        model = use(Device(linear(1), 10**9))
        measure_token_budget(model, safety_margin_gb=0, max_tokens=8192)
        batches.append(model.inputs)
    assert len(batches[0]) == len(batches[1])
    for one, other in zip(*batches, strict=True):
        assert one["input_ids"].equal(other["input_ids"])
        assert one["input_ids"].unique().tolist() == [0, 1, 2, 3, 4]
        bounds = one["cu_seq_lens_q"]
        assert bounds.equal(other["cu_seq_lens_q"])
        assert int(bounds[-1]) == one["input_ids"].shape[1]
        lengths = bounds.diff()
        # Lengths as proteins have them, the longest first.
        assert int(lengths[0]) == int(lengths.max()) == one["max_length_q"] == 1024
        assert (lengths > 0).all()
    assert 200 < float(batches[0][-1]["cu_seq_lens_q"].diff().float().median()) < 350


def lengths_of(model: Any) -> list[list[int]]:
    return [inputs["cu_seq_lens_q"].diff().tolist() for inputs in model.inputs]


def test_lengths_are_those_given(use: Any) -> None:
    device = Device(linear(1), 10**9)
    model = use(device)
    options: dict[str, Any] = {"safety_margin_gb": 0, "min_tokens": 10, "max_tokens": 640}
    measure_token_budget(
        model, lengths=[3, 50, 7], max_sequence_length=9, special_tokens=1, **options
    )
    assert device.sizes == [10, 20, 40, 80, 160, 320, 640]
    for lengths in lengths_of(model):
        assert lengths[0] == 10
        assert set(lengths[:-1]) <= {4, 8, 10}
        assert lengths[-1] <= 10
    # No more than the model has positions for, nor than the largest batch.
    model.config.max_position_embeddings = 40
    model.inputs.clear()
    measure_token_budget(model, lengths=np.array([1000]), **options)
    assert {max(lengths) for lengths in lengths_of(model)} == {40}
    device.ran.clear()
    measure_token_budget(model, safety_margin_gb=0, min_tokens=1, max_tokens=30)
    assert device.sizes == [30]


def test_fill() -> None:
    draw = SimpleNamespace(choice=lambda tokens: tokens[0])
    assert fill(10, [4, 6], draw) == [6, 4]  # type: ignore[arg-type]
    assert fill(13, [4, 6], draw) == [6, 4, 3]  # type: ignore[arg-type]
    assert fill(6, [4, 6], draw) == [6]  # type: ignore[arg-type]


def test_a_model_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one CUDA device \(got cpu\); without a GPU, .* 4,096"):
        measure_token_budget(tiny_esm2())
    with pytest.raises(ValueError, match=r"\(got no parameters\)"):
        measure_token_budget(torch.nn.Identity())
    parts = torch.nn.ModuleList([torch.nn.Linear(1, 1), torch.nn.Linear(1, 1, device="meta")])
    with pytest.raises(ValueError, match=r"\(got cpu, meta\)"):
        measure_token_budget(parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 2**31}, "max_tokens must be at most 2,147,483,647"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"min_tokens": 0}, "min_tokens must be at least 1"),
        ({"min_tokens": 70_000}, "min_tokens must be at most 65,536"),
        ({"max_tokens": 4096, "special_tokens": 4096}, "room for one residue"),
        ({"max_sequence_length": 0}, "max_sequence_length must be at least 1"),
        ({"lengths": []}, "at least one length"),
        ({"lengths": [5, 0]}, r"lengths must be at least 1 \(got 0\)"),
        ({"safety_margin_gb": -1}, r"safety_margin_gb must be at least 0 and finite \(got -1\)"),
        ({"safety_margin_gb": math.nan}, "safety_margin_gb must be at least 0 and finite"),
    ],
)
def test_bad_arguments(use: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_token_budget(use(Device(linear(1), 10**9)), **options)


def test_arguments_of_other_types(use: Any) -> None:
    model = use(Device(linear(1), 10**9))
    with pytest.raises(TypeError, match=r"safety_margin_gb must be a number \(got 'a'\)"):
        measure_token_budget(model, safety_margin_gb="a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="lengths must be integers"):
        measure_token_budget(model, lengths=np.array([1.5]))


def test_meter_reads_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls of torch.cuda, in place of a device."""
    calls: list[str] = []
    values = {
        "mem_get_info": (70, 100),
        "memory_allocated": 5,
        "memory_reserved": 8,
        "max_memory_allocated": 25,
        "max_memory_reserved": 38,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "synchronize": None,
    }

    def call(name: str, *arguments: Any) -> Any:
        calls.append(f"{name}{arguments}")
        return values[name]

    for name in values:
        monkeypatch.setattr(torch.cuda, name, partial(call, name))
    model = SimpleNamespace(
        parameters=lambda: [SimpleNamespace(device=torch.device("cuda", 1)) for _ in range(2)]
    )
    meter = measure.open_meter(model)
    assert meter.device == torch.device("cuda", 1)
    assert meter.free() == 70
    meter.start()
    assert meter.peaks() == (20, 30)
    assert meter.now() <= meter.now()
    assert f"synchronize({meter.device!r},)" in calls
    assert calls.index("empty_cache()") < calls.index(f"mem_get_info({meter.device!r},)")
    assert all(call == "empty_cache()" or repr(meter.device) in call for call in calls)
