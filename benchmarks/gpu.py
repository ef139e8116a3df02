"""Measures ways to run ESM-2 on a GPU and writes the tables of docs/gpu.md."""

from __future__ import annotations

import datetime
import gc
import logging
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import gpu_checks
import numpy as np
import torch
import transformers
import typer
from gpu_modes import (
    MAX_RESIDUES,
    MODES,
    Mode,
    Work,
    draw_proteins,
    make_model,
    make_tokenizer,
    make_work,
    measure,
    read_proteins,
    run_captured,
    run_packed,
)

import virnucpro
from virnucpro.data import measure_token_budget, model_inputs
from virnucpro.model.measure import MeasuredBudget

DOCUMENT = Path(__file__).parents[1] / "docs" / "gpu.md"
BEGIN, END = "<!-- made by make bench-gpu -->\n", "<!-- end -->\n"

WAITS, EAGER, CAPTURED, BOTH, COMPILED, ARRIVAL, SORTED, READY = MODES
# Tokens to run for each figure, at least; and batches, at least.
MIN_TOKENS, MIN_BATCHES = 120_000, 6


class Step(NamedTuple):
    """What to measure of a model: modes for a budget, or its memory if the budget is None."""

    model: str
    budget: int | None
    modes: tuple[str, ...] = ()


# What matters most comes first, as time may run out.
STEPS = (
    Step("650M", 4096, (WAITS, EAGER, CAPTURED, BOTH)),
    Step("650M", 16384, (WAITS, EAGER, CAPTURED, BOTH)),
    Step("650M", 4096, (ARRIVAL, SORTED, READY)),
    Step("650M", 16384, (SORTED, READY)),
    Step("650M", None),
    Step("150M", 4096, (WAITS, EAGER, CAPTURED, BOTH, SORTED)),
    Step("150M", 16384, (WAITS, EAGER, CAPTURED, SORTED)),
    Step("150M", 65536, (WAITS, EAGER, CAPTURED)),
    Step("150M", None),
    Step("8M", 4096, (WAITS, EAGER, CAPTURED, BOTH, SORTED)),
    Step("8M", 16384, (WAITS, EAGER, CAPTURED, SORTED)),
    Step("8M", 65536, (WAITS, EAGER, CAPTURED)),
    Step("8M", None),
    Step("3B", 4096, (WAITS, EAGER, CAPTURED)),
    Step("3B", 16384, (WAITS, EAGER, CAPTURED)),
    Step("3B", None),
    Step("650M", 65536, (WAITS, EAGER, CAPTURED)),
    Step("150M", 16384, (BOTH,)),
    Step("8M", 16384, (BOTH,)),
    Step("3B", 4096, (BOTH,)),
    Step("650M", 4096, (COMPILED,)),
)
TINY = (Step("tiny", 128, tuple(MODES)), Step("tiny", None))


class Bench:
    """Runs steps until the time is over, and writes the tables after each figure."""

    def __init__(self, device: torch.device, end: float, fasta: list[Path], output: Path) -> None:
        self.device = device
        self.end = end
        self.fasta = fasta
        self.output = output
        self.tokenizer = make_tokenizer()
        self.speeds: dict[tuple[str, int], dict[str, str]] = {}
        # Tokens per second of the first mode of each model and budget.
        self.first: dict[tuple[str, int], float] = {}
        self.memory: list[str] = []
        self.notes: list[str] = []
        self.model: tuple[str, Any] = "", None

    def run(self, steps: Iterable[Step]) -> None:
        """Run steps, each with what time is left."""
        for step in steps:
            name = f"{step.model}, {'memory' if step.budget is None else f'{step.budget:,} tokens'}"
            if step.budget is None:
                self.attempt(name, 15, partial(self.measure_memory, step.model))
                continue
            work = self.work(step.budget)
            for mode in map(MODES.__getitem__, step.modes):
                call = partial(self.measure_mode, step.model, mode, work)
                self.attempt(f"{name}, {mode.name}", mode.seconds, call)
            if CAPTURED in step.modes:
                self.attempt(f"{name}, equality", 5, partial(self.compare, step.model, work))

    def attempt(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """Call a function if it can end in time; note what was left out or failed, and write."""
        begin = time.perf_counter()
        left = self.end - begin
        if left < seconds:
            self.notes.append(f"- {name}: left out, as {max(left, 0):.0f} seconds were left")
        else:
            try:
                call()
            except Exception as error:
                traceback.print_exc()
                message = str(error).partition("\n")[0][:200]
                self.notes.append(f"- {name}: {type(error).__name__}: {message}")
        print(f"{name}: {time.perf_counter() - begin:.1f} s", flush=True)
        self.write()

    def free(self) -> None:
        """Free the memory of the device, and what was compiled."""
        torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def work(self, budget: int) -> Work:
        """Return the proteins for a budget."""
        is_tiny = budget < MAX_RESIDUES
        num_tokens = MIN_BATCHES * budget if is_tiny else max(MIN_TOKENS, MIN_BATCHES * budget)
        if self.fasta:
            proteins = read_proteins(self.fasta, num_tokens)
        else:
            proteins = draw_proteins(num_tokens, budget // 3 if is_tiny else 3000)
        return make_work(proteins, budget, self.tokenizer)

    def load(self, name: str) -> Any:
        """Return a model, which stays until another one is loaded."""
        if self.model[0] != name:
            self.model = "", None
            self.free()
            self.model = name, make_model(name, self.device)
        return self.model[1]

    def measure_mode(self, name: str, mode: Mode, work: Work) -> None:
        """Measure one mode, and add its row."""
        self.free()
        model = self.load(name)
        batches = mode.batches(work)
        speed = measure(mode.make(model, work), batches, self.device)
        rate = work.num_tokens / speed.seconds
        key = name, work.budget
        first = self.first.setdefault(key, rate)
        waits = "" if speed.busy is None else f"{max(0.0, 1 - speed.busy / speed.seconds):.0%}"
        row = (
            f"| {work.budget:,} | {mode.name} | {rate:,.0f} | {rate / first:.2f} | {waits} "
            f"| {len(batches):,} |"
        )
        self.speeds.setdefault(key, {})[mode.name] = row
        print(row, flush=True)

    def compare(self, name: str, work: Work) -> None:
        """Note whether states from a graph equal those of the model on the same padded batches."""
        model = self.load(name)
        batches = work.even[:: max(1, len(work.even) // 8)]
        plain = run_packed(model, work, "packed_sdpa", pad=True)
        captured = run_captured(model, work, compiled=False)
        unpadded = run_packed(model, work, "packed_sdpa")
        with torch.no_grad():
            triples = zip(captured(batches), plain(batches), unpadded(batches), strict=True)
            equal, largest = 0, 0.0
            for states, same, other in triples:
                equal += bool(torch.equal(states, same))
                difference = (states.float() - other.float()).norm(dim=1)
                largest = max(largest, float(difference.max() / other.float().norm(dim=1).mean()))
        self.notes.append(
            f"- {name}, {work.budget:,} tokens: states from the graph equal those of the "
            f"model on the same padded batch bit for bit in {equal} of {len(batches)} batches; "
            f"without padding they differ by at most {largest:.1g} of the mean norm"
        )

    def measure_memory(self, name: str) -> None:
        """Measure the memory per token, and add its rows."""
        model = self.load(name)
        if self.device.type != "cuda":
            self.memory.append(f"| {name} | a CPU has no such limit | | | | |")
            return
        self.add_memory(name, "inference", measure_token_budget(model))
        if name == "650M":
            budget = measure_token_budget(model, squares, max_tokens=16384)
            self.add_memory(name, "training", budget)

    def add_memory(self, name: str, what: str, budget: MeasuredBudget) -> None:
        """Add the row of a measured budget, and a note of its speeds."""
        last = budget.sizes[-1]
        self.memory.append(
            f"| {name} | {what} | {budget.bytes_per_token:,} "
            f"| {last.allocated_bytes / last.tokens:,.0f} | {budget.max_tokens:,} "
            f"| {budget.fast_tokens:,} |"
        )
        speeds = ", ".join(
            f"{size.tokens_per_second:,.0f} at {size.tokens:,}" for size in budget.sizes
        )
        self.notes.append(f"- {name}, {what}, eager, tokens per second by budget: {speeds}")

    def write(self) -> None:
        """Write the document with the tables so far."""
        before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
        text = "\n".join(self.tables())
        self.output.write_text(
            f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8"
        )

    def tables(self) -> list[str]:
        """Return the lines of the tables."""
        lines = [
            f"Made by `make bench-gpu` on {datetime.date.today()}: {describe(self.device)}.",
            "",
        ]
        for name in dict.fromkeys(model for model, _ in self.speeds):
            lines += [
                f"## ESM-2 {name}",
                "",
                "| budget | mode | tokens per second | times | card waits | batches |",
                "| ---: | --- | ---: | ---: | ---: | ---: |",
            ]
            for key in sorted(key for key in self.speeds if key[0] == name):
                lines += [self.speeds[key][mode] for mode in MODES if mode in self.speeds[key]]
            lines.append("")
        if self.memory:
            lines += [
                "## Memory",
                "",
                "| model | | bytes per token | allocated per token | fits | fast from |",
                "| --- | --- | ---: | ---: | ---: | ---: |",
                *self.memory,
                "",
            ]
        if self.notes:
            lines += ["## Notes", "", *self.notes, ""]
        return lines


def squares(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Return a loss of states."""
    states: torch.Tensor = model(**model_inputs(batch, model)).last_hidden_state
    return states.float().square().mean()


def describe(device: torch.device) -> str:
    """Describe the device and the versions."""
    versions = (
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"virnucpro {virnucpro.__version__}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}"
    )
    if device.type != "cuda":
        return f"a CPU; {versions}"
    properties = torch.cuda.get_device_properties(device)
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        driver = ["unknown"]
    return (
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, driver {driver[0]}, "
        f"CUDA {torch.version.cuda}; {versions}"
    )


def main(
    seconds: Annotated[float, typer.Option(help="time for all figures")] = 330,
    output: Annotated[Path, typer.Option(help="where to write the document")] = DOCUMENT,
    fasta: Annotated[list[Path] | None, typer.Option(help="proteins to run")] = None,
    models: Annotated[str, typer.Option(help="models to run, separated by commas")] = "",
    gpu_tests: Annotated[bool, typer.Option(help="run the checks of a GPU first")] = False,
    tiny: Annotated[bool, typer.Option(help="run a tiny model, on a CPU too")] = False,
) -> None:
    """Measure what fits in the time and write."""
    begin = time.perf_counter()
    # Warnings of truncation cost the same everywhere.
    logging.disable()
    if not torch.cuda.is_available() and not tiny:
        sys.exit("bench-gpu needs a CUDA device; --tiny runs a tiny model on a CPU")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    print(describe(device), flush=True)
    if device.type == "cpu":
        # More threads slow a tiny model down; compiling takes a minute and shows nothing of a GPU.
        torch.set_num_threads(1)
        torch.compiler.set_stance("force_eager")
    failed = gpu_checks.run(device) if gpu_tests else 0
    chosen = models.split(",") if models else []
    steps = [step for step in (TINY if tiny else STEPS) if not chosen or step.model in chosen]
    bench = Bench(device, begin + seconds, fasta or [], output)
    bench.run(steps)
    print("\n".join(bench.tables()))
    print(f"Written to {output} in {time.perf_counter() - begin:.0f} s")
    if failed:
        sys.exit(f"{failed} checks failed")


if __name__ == "__main__":
    typer.run(main)
