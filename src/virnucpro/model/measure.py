"""`measure_token_budget`: measure the memory and the speed of a model on packed batches."""

from __future__ import annotations

import gc
import logging
import math
import numbers
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from virnucpro.kernel.arguments import check_integer, check_lengths
from virnucpro.kernel.limits import Limits
from virnucpro.model.batches import MAX_TOKENS, to_device
from virnucpro.model.check import draw_tokens, evaluating, max_sequence_tokens
from virnucpro.model.configuration import check_model
from virnucpro.model.inputs import model_inputs
from virnucpro.text import quoted

logger = logging.getLogger(__name__)

# Speeds from this share of the best one on count as fast.
FAST = 0.95

# Each size is run three times after a first run, then up to these limits.
MIN_RUNS, MAX_RUNS = 3, 20
MAX_SECONDS = 0.3

# Sizes closer than this share of the largest one that fits are not tried.
STEP = 1 / 16
# After a batch that takes too much, the next is smaller by at least this share.
RETREAT = 1 / 64

# What errors say that are no `torch.OutOfMemoryError`, in lower case.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed", "not enough memory")

# Logarithms of the lengths of proteins: mean and standard deviation.
PROTEINS = (5.6, 0.75)


class MeasuredSize(NamedTuple):
    """What full batches of one size take.

    Attributes:
        tokens: Tokens of the batch.
        sequences: Sequences of the batch.
        seconds: Median time of a run.
        allocated_bytes: Peak of the bytes in tensors, beyond those before the run.
        reserved_bytes: Peak of the bytes that PyTorch took from the device, beyond those before.
    """

    tokens: int
    sequences: int
    seconds: float
    allocated_bytes: int
    reserved_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Speed in tokens per second."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class MeasuredBudget:
    """The result of `measure_token_budget`: token budgets for a model, and what they rest on.

    A batch of n tokens takes about ``fixed_bytes + n * bytes_per_token`` bytes of the device. This
    line lies on or above all sizes that were measured.

    Attributes:
        max_tokens: The largest budget that was run and fits in memory, with the margin.
        fast_tokens: The smallest budget measured that reaches 95 % of the best speed.
        bytes_per_token: Bytes that each further token takes, rounded up.
        fixed_bytes: Bytes that a batch takes besides; may be negative.
        available_bytes: Bytes of the device that were free for batches, without the margin.
        out_of_memory: Tokens of the smallest batch that ran out of memory; None if none did.
        sizes: The sizes measured, in order of tokens.
    """

    max_tokens: int
    fast_tokens: int
    bytes_per_token: int
    fixed_bytes: int
    available_bytes: int
    out_of_memory: int | None = None
    sizes: tuple[MeasuredSize, ...] = field(default=(), repr=False)


def measure_token_budget(
    model: Any,
    loss: Callable[[Any, dict[str, Any]], Any] | None = None,
    *,
    lengths: ArrayLike | None = None,
    max_sequence_length: int = 1022,
    special_tokens: int = 2,
    safety_margin_gb: float = 2.0,
    min_tokens: int | None = None,
    max_tokens: int = 65536,
) -> MeasuredBudget:
    """Measure which token budgets fit in the memory of a GPU, and how fast they are.

    The model runs full packed batches of random tokens, twice as many each time, until the next
    ones would not fit or `max_tokens` is reached. The batches are the same in every call. Memory is
    what PyTorch takes from the device (`reserved_bytes`), since this is what ends when a device is
    full; it exceeds the tensors (`allocated_bytes`) by what rounding and fragmentation waste. The
    weights are in memory before and are not counted.

    Without `loss`, the model runs in evaluation mode and without gradients, and its last output is
    kept during the next run, as in a loop over batches. With `loss`, it runs in training mode, and
    each run ends with gradients. Call it in the context in which the model will run, such as
    ``torch.autocast``. The memory of an optimizer counts if it exists already, after its first
    step; otherwise add it to the margin: 8 bytes per float32 weight for Adam.

    The model, its gradients and all random states are left unchanged. All memory taken is freed, as
    is other memory that PyTorch keeps without using it.

    Args:
        model: A model that takes `model_inputs`, on one CUDA device.
        loss: ``loss(model, batch)`` returns the loss of a batch of `VarlenCollator`, or calls
            ``backward`` itself and returns None. The batch is on the device and has `labels`, which
            are its tokens. None measures inference.
        lengths: Residues of sequences from which those of the batches are drawn, integers [n]. None
            draws lengths as proteins have them (log-normal, median 270). The first sequence of each
            batch is the longest one.
        max_sequence_length: Maximum tokens kept per sequence, without special tokens. Sequences
            are also no longer than the model has positions for.
        special_tokens: Number of special tokens of each sequence.
        safety_margin_gb: Memory to keep free in GiB.
        min_tokens: Tokens of the smallest batch, or more if the longest sequence has more; 1,024,
            or `max_tokens` if that is less, if None.
        max_tokens: Tokens of the largest batch; at most 2**31 - 1, since boundaries are int32.

    Returns:
        The budgets, for ``GreedyPacker(budget.max_tokens)`` and ``VarlenCollator``, and the bytes
        per token, for ``calculate_token_budget(bytes_per_token=budget.bytes_per_token)``, to whose
        `model_memory_gb` the `fixed_bytes` are to be added.

    Raises:
        ValueError: The model is not on one CUDA device, or a parameter is out of range.
        TypeError: A parameter has another type.
        MemoryError: The smallest batch does not fit.

    Cost: some ten sizes, with 4 to 21 runs each; seconds for a model of 650 million weights.

    Example::

        budget = measure_token_budget(model)
        packer = GreedyPacker(budget.fast_tokens)

        def loss(model, batch):
            return model(**model_inputs(batch, model), labels=batch["labels"][None]).loss

        budget = measure_token_budget(model, loss)

        >>> import torch
        >>> from virnucpro.data import measure_token_budget
        >>> measure_token_budget(torch.nn.Linear(1, 1))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: measure_token_budget needs a model on one CUDA device (got cpu); ...
    """
    check_model(model)
    check_integer(max_tokens, "max_tokens", 1, MAX_TOKENS)
    if min_tokens is None:
        min_tokens = min(1024, max_tokens)
    check_integer(min_tokens, "min_tokens", 1, max_tokens)
    limits = Limits(max_tokens, max_sequence_length, special_tokens)
    margin = check_margin(safety_margin_gb)
    meter = open_meter(model)
    tokens = tokens_of_sequences(model, lengths, limits)
    first = max(min_tokens, max(tokens))

    def attempt(size: int) -> MeasuredSize | None:
        draw = random.Random(0)
        batch = draw_tokens(model, draw, fill(size, tokens, draw))
        meter.start()
        return run_size(model, loss, batch, meter)

    with unchanged(model, meter.device, training=loss is not None):
        try:
            # Loads what the first run needs and then stays in memory.
            found = attempt(first)
            room = meter.free() - margin
            if found is None:
                raise MemoryError(describe(first, None, room, margin))
            return search(attempt, first, max_tokens, room, margin)
        finally:
            meter.free()


class Meter:
    """The memory and the time of a CUDA device, as seen from this process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = (0, 0)

    def free(self) -> int:
        """Free what PyTorch does not use, and return the free bytes of the device."""
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def start(self) -> None:
        """Free what PyTorch does not use, and measure the peaks of memory from now on."""
        self.free()
        torch.cuda.reset_peak_memory_stats(self.device)
        allocated = torch.cuda.memory_allocated(self.device)
        self.before = allocated, torch.cuda.memory_reserved(self.device)

    def peaks(self) -> tuple[int, int]:
        """Return the peaks of allocated and reserved bytes since the start, beyond those then."""
        allocated = torch.cuda.max_memory_allocated(self.device) - self.before[0]
        return allocated, torch.cuda.max_memory_reserved(self.device) - self.before[1]

    def now(self) -> float:
        """Wait for the device, and return the time in seconds."""
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


def open_meter(model: Any) -> Meter:
    """Return the meter of a model's device; raise ValueError unless it is one CUDA device."""
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) != 1 or not devices[0].startswith("cuda"):
        raise ValueError(
            "measure_token_budget needs a model on one CUDA device "
            f"(got {', '.join(devices) or 'no parameters'}); without a GPU, memory seldom limits a "
            "batch: choose a budget, such as 4,096 tokens"
        )
    return Meter(torch.device(devices[0]))


def check_margin(margin_gb: float) -> int:
    """Return the margin in bytes; raise if it is not a number, negative or infinite."""
    if not isinstance(margin_gb, numbers.Real):
        raise TypeError(f"safety_margin_gb must be a number (got {quoted(margin_gb)})")
    if not 0 <= margin_gb < math.inf:
        raise ValueError(f"safety_margin_gb must be at least 0 and finite (got {margin_gb})")
    return math.ceil(float(margin_gb) * 2**30)


def tokens_of_sequences(model: Any, lengths: ArrayLike | None, limits: Limits) -> list[int]:
    """Return the tokens of the sequences to draw from."""
    if lengths is None:
        lengths = np.random.default_rng(0).lognormal(*PROTEINS, 10_000).astype(np.int64)
    residues = check_lengths(lengths).astype(np.int64)
    if len(residues) == 0:
        raise ValueError("lengths must have at least one length")
    if residues.min() < 1:
        raise ValueError(f"lengths must be at least 1 (got {residues.min()})")
    tokens = limits.tokens(residues)
    longest = max_sequence_tokens(model, limits.max_tokens_per_batch)
    return [int(number) for number in np.minimum(tokens, longest)]


def fill(size: int, tokens: list[int], draw: random.Random) -> list[int]:
    """Return the tokens of sequences that fill a batch, the longest first."""
    chosen = [max(tokens)]
    left = size - chosen[0]
    while left > 0:
        chosen.append(min(left, draw.choice(tokens)))
        left -= chosen[-1]
    return chosen


@contextmanager
def unchanged(model: Any, device: torch.device, training: bool) -> Iterator[None]:
    """Set the mode of a model without gradients; restore both, buffers and random states."""
    gradients = [(weight, weight.grad) for weight in model.parameters()]
    # Training changes buffers, such as the means of batch normalization.
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if training else []
    devices = [] if device.type == "cpu" else [device]
    with evaluating(model), torch.random.fork_rng(devices):
        try:
            model.zero_grad(set_to_none=True)
            model.train(training)
            yield
        finally:
            for weight, gradient in gradients:
                weight.grad = gradient
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def run_size(
    model: Any, loss: Callable[..., Any] | None, batch: dict[str, Any], meter: Meter
) -> MeasuredSize | None:
    """Return what runs of a batch take; None if they run out of memory."""
    seconds: list[float] = []
    last = None
    try:
        batch = to_device(batch, meter.device)
        if loss is not None:
            batch["labels"] = batch["input_ids"].clone()
        while len(seconds) <= MIN_RUNS or (
            len(seconds) <= MAX_RUNS and sum(seconds[1:]) < MAX_SECONDS
        ):
            begin = meter.now()
            # The last output is kept until the next one is there.
            last = run(model, loss, batch)
            seconds.append(meter.now() - begin)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    del last
    # The first run compiles and loads.
    median = statistics.median(seconds[1:])
    return MeasuredSize(len(batch["input_ids"]), batch["num_sequences"], median, *meter.peaks())


def run(model: Any, loss: Callable[..., Any] | None, batch: dict[str, Any]) -> Any:
    """Run a model on a batch: forward, or with `loss` forward and backward; return its output."""
    if loss is None:
        # Not inference_mode: what the model keeps from it could not be used in training.
        with torch.no_grad():
            return model(**model_inputs(batch, model))
    try:
        with torch.enable_grad():
            value = loss(model, batch)
            if value is not None:
                value.backward()
        return None
    finally:
        model.zero_grad(set_to_none=True)


def search(
    attempt: Callable[[int], MeasuredSize | None],
    first: int,
    max_tokens: int,
    room: int,
    margin: int,
) -> MeasuredBudget:
    """Find the largest size that fits in `room` bytes, from sizes that double."""
    sizes: list[MeasuredSize] = []
    fitting = 0
    limit = max_tokens
    out_of_memory: int | None = None
    size = first
    while size > fitting and (size == max_tokens or size > fitting * (1 + STEP)):
        found = attempt(size)
        if found is None:
            out_of_memory = size
        else:
            sizes.append(found)
            if found.reserved_bytes <= room:
                fitting = size
            else:
                limit = size - 1 - int(size * RETREAT)
        if not fitting:
            raise MemoryError(describe(size, found, room, margin))
        per_token, fixed = fit_line(sizes)
        size = min(2 * fitting, limit, (room - fixed) // per_token)
        if out_of_memory is not None:
            size = min(size, (fitting + out_of_memory) // 2)
    sizes.sort()
    fastest = max(each.tokens_per_second for each in sizes if each.tokens <= fitting)
    fast = next(each.tokens for each in sizes if each.tokens_per_second >= FAST * fastest)
    budget = MeasuredBudget(fitting, fast, per_token, fixed, room, out_of_memory, tuple(sizes))
    logger.info("Measured token budget: %s", budget)
    return budget


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that a device or this machine has too little memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)


def fit_line(sizes: list[MeasuredSize]) -> tuple[int, int]:
    """Return the bytes per token and the fixed bytes of a line on or above all sizes.

    The slope is that of least squares, rounded up; for a single size, its bytes per token.
    """
    tokens = [size.tokens for size in sizes]
    taken = [size.reserved_bytes for size in sizes]
    num, total = len(sizes), sum(tokens)
    covariance = num * sum(x * y for x, y in zip(tokens, taken, strict=True)) - total * sum(taken)
    variance = num * sum(x * x for x in tokens) - total * total
    if variance == 0:
        covariance, variance = taken[0], tokens[0]
    per_token = max(1, -(-covariance // variance))
    return per_token, max(y - per_token * x for x, y in zip(tokens, taken, strict=True))


def describe(size: int, found: MeasuredSize | None, room: int, margin: int) -> str:
    """Return the message that the smallest batch does not fit."""
    if found is None:
        what = "runs out of memory"
    else:
        what = f"takes {found.reserved_bytes / 2**30:.1f} GiB"
    return (
        f"a batch of {size:,} tokens, the smallest, {what}: the device has "
        f"{(room + margin) / 2**30:.1f} GiB free, of which safety_margin_gb keeps "
        f"{margin / 2**30:.1f} GiB"
    )
