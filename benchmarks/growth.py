"""Plots of time against the number of sequences and the number of distinct sizes."""

from __future__ import annotations

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
    seconds: dict[str, list[float]] = {"pack_lengths": [], "the layout alone": []}
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
        "| distinct sizes | runs | layout, ms | `pack_lengths`, ms |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for number, run, layout, packed in zip(
        numbers, runs, seconds["the layout alone"], seconds["pack_lengths"], strict=True
    ):
        lines.append(f"| {number:,} | {run:,} | {layout * 1e3:.1f} | {packed * 1e3:.1f} |")
    return "\n".join(lines)
