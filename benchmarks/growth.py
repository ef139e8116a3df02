"""Plots of time against the number of sequences and the number of distinct sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from data import Data, log_normal
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from packers import ours
from rich.console import Console
from targets import median

from virnucpro import kernel
from virnucpro.data import GreedyPacker

console = Console(stderr=True)
matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "virnucpro"


def save(path: Path, figure: Figure, axes: Axes) -> None:
    """Finish a plot and write it."""
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def by_sequences(path: Path, max_sequences: int = 1_000_000_000) -> str:
    """Plot nanoseconds per sequence for 10 thousand sequences and more; return a Markdown table."""
    lengths = log_normal(max_sequences, dtype="u2")
    packer = ours(Data(lambda: lengths))
    numbers = [10**power for power in range(4, 10) if 10**power <= max_sequences]
    nanoseconds: dict[str, list[float]] = {"pack_lengths": [], "assign_batches": []}
    for number in numbers:
        piece = lengths[:number]
        for name, times in nanoseconds.items():
            call = getattr(packer, name)
            repeats = 2 if number > 10**8 else 5 if number > 10**7 else 25
            times.append(median(lambda: call(piece), repeats) / number * 1e9)  # noqa: B023
            console.print(f"{number:,} sequences: {name} {times[-1]:.2f} ns per sequence")
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, times in nanoseconds.items():
        axes.plot(numbers, times, marker="o", label=name)
    flat = nanoseconds["pack_lengths"][numbers.index(10**7) if 10**7 in numbers else -1]
    axes.plot(numbers, [flat] * len(numbers), "--", color="gray", label="theory: O(n)")
    axes.set(
        xscale="log",
        xlabel="sequences (uint16 lengths, log-normal, budget 4,096)",
        ylabel="nanoseconds per sequence",
        ylim=(0, None),
    )
    save(path, figure, axes)
    lines = [
        "| sequences | `pack_lengths`, ns per sequence | `assign_batches`, ns per sequence |",
        "| ---: | ---: | ---: |",
    ]
    for number, packed, assigned in zip(numbers, *nanoseconds.values(), strict=True):
        lines.append(f"| {number:,} | {packed:.2f} | {assigned:.2f} |")
    return "\n".join(lines)


def by_sizes(path: Path, num: int = 10_000_000) -> str:
    """Plot seconds for increasing numbers of distinct sizes; return a Markdown table."""
    random = np.random.default_rng(0)
    numbers = [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
    reserving = "the layout with reservation, at most 64 per batch"
    seconds: dict[str, list[float]] = {"pack_lengths": [], "the layout alone": [], reserving: []}
    runs = []
    for number in numbers:
        lengths = random.integers(1, number + 1, num).astype(np.int32)
        packer = GreedyPacker(2 * number, number, special_tokens=0)
        counts = packer.count(lengths).core
        layout: Any = kernel.first_fit_decreasing(counts)
        runs.append(len(layout.runs["first_batch"]))
        seconds["pack_lengths"].append(median(lambda: packer.pack_lengths(lengths), 3))  # noqa: B023
        seconds["the layout alone"].append(
            median(lambda: kernel.first_fit_decreasing(counts), 3)  # noqa: B023
        )
        limited = counts.with_limits(replace(packer.limits, max_sequences_per_batch=64))
        seconds[reserving].append(
            median(lambda: kernel.patterns_with_reservation(limited), 1)  # noqa: B023
        )
        console.print(f"{number:,} sizes: {seconds['pack_lengths'][-1]:.3f} s, {runs[-1]:,} runs")
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, times in seconds.items():
        axes.plot(numbers, times, marker="o", label=name)
    theory = np.array(runs) * np.log2(runs)
    theory *= seconds["the layout alone"][-1] / theory[-1]
    axes.plot(numbers, theory, "--", color="gray", label="theory of the layout: O(runs log runs)")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=f"distinct sizes (uniform, {num:,} sequences, budget twice the largest)",
        ylabel="seconds",
    )
    save(path, figure, axes)
    lines = [
        "| distinct sizes | runs | layout, ms | `pack_lengths`, ms | layout with reservation, ms |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for number, run, packed, layout, reserved in zip(numbers, runs, *seconds.values(), strict=True):
        lines.append(
            f"| {number:,} | {run:,} | {layout * 1e3:.1f} | {packed * 1e3:.1f} | "
            f"{reserved * 1e3:.1f} |"
        )
    return "\n".join(lines)


def by_limits() -> str:
    """Return a Markdown table of milliseconds for increasing limits on sequences."""
    lines = [
        "| sequences | sizes | limit on sequences | FFD, ms | with reservation, ms |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, packer, lengths in (
        ("10 million proteins, budget 65,536", GreedyPacker(65_536), log_normal(10_000_000)),
        (
            "1 million documents, budget 131,072",
            GreedyPacker(131_072, 131_072, special_tokens=0),
            log_normal(1_000_000, 8, 1.3),
        ),
    ):
        counts = packer.count_silently(lengths).core
        for limit in (4, 16, 64, 256, 1024, 4096):
            limited = counts.with_limits(replace(packer.limits, max_sequences_per_batch=limit))
            first_fit = median(lambda: kernel.first_fit_decreasing(limited), 3)  # noqa: B023
            reserved = median(lambda: kernel.patterns_with_reservation(limited), 3)  # noqa: B023
            lines.append(
                f"| {name} | {len(counts.tokens):,} | {limit:,} | {first_fit * 1e3:.1f} | "
                f"{reserved * 1e3:.1f} |"
            )
            console.print(lines[-1])
    return "\n".join(lines)
