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
from results import Result, console, median, table

from virnucpro import kernel
from virnucpro.data import GreedyPacker

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "virnucpro"


def save(path: Path, figure: Figure, axes: Axes) -> None:
    """Finish a plot and write it."""
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def by_sequences(path: Path, max_sequences: int) -> list[str]:
    """Plot nanoseconds per sequence for 10 thousand sequences and more; return a Markdown table."""
    lengths = log_normal(max_sequences, dtype="u2")
    packer = ours(Data(lambda: lengths))
    numbers = [10**power for power in range(4, 10) if 10**power <= max_sequences]
    nanoseconds: dict[str, list[float]] = {"pack_lengths": [], "assign_batches": []}
    for number in numbers:
        piece = lengths[:number]
        for name, times in nanoseconds.items():
            call = getattr(packer, name)
            call(piece)
            repeats = 3 if number > 10**7 else 15
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
    return table(
        "sequences | `pack_lengths`, ns per sequence | `assign_batches`, ns per sequence",
        (
            [f"{number:,}", f"{packed:.2f}", f"{assigned:.2f}"]
            for number, packed, assigned in zip(numbers, *nanoseconds.values(), strict=True)
        ),
        left=0,
    )


def by_sizes(path: Path, num: int, max_sizes: int) -> list[str]:
    """Plot seconds for increasing numbers of distinct sizes; return a Markdown table."""
    random = np.random.default_rng(0)
    every = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
    numbers = [number for number in every if number <= max_sizes]
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
    names = ("`pack_lengths`, ms", "layout, ms", "layout with reservation, ms")
    return table(
        " | ".join(["distinct sizes", "runs", *names]),
        (
            [f"{number:,}", f"{run:,}", *(f"{x * 1e3:.1f}" for x in times)]
            for number, run, *times in zip(numbers, runs, *seconds.values(), strict=True)
        ),
        left=0,
    )


def by_limits(scale: int) -> list[str]:
    """Return a Markdown table of milliseconds for increasing limits on sequences."""
    rows = []
    proteins, documents = log_normal(10_000_000 // scale), log_normal(1_000_000 // scale, 8, 1.3)
    for name, packer, lengths in (
        ("proteins, budget 65,536", GreedyPacker(65_536), proteins),
        ("documents, budget 131,072", GreedyPacker(131_072, 131_072, special_tokens=0), documents),
    ):
        counts = packer.count_silently(lengths).core
        for limit in (16, 256, 4096):
            limited = counts.with_limits(replace(packer.limits, max_sequences_per_batch=limit))
            calls = kernel.first_fit_decreasing, kernel.patterns_with_reservation
            times = [median(lambda: call(limited), 3) for call in calls]  # noqa: B023
            numbers = [f"{len(lengths):,} {name}", f"{len(counts.tokens):,}", f"{limit:,}"]
            rows.append([*numbers, *(f"{x * 1e3:.1f}" for x in times)])
            console.print(*rows[-1])
    return table("sequences | sizes | limit on sequences | FFD, ms | with reservation, ms", rows)


def measure(quick: bool, folder: Path) -> Result:
    """Measure and plot growth; the plots are written into the folder."""
    scale = 1000 if quick else 1
    lines = [
        *by_sequences(folder / "growth-sequences.svg", 100_000_000 // scale),
        "![Time per sequence by number of sequences](growth-sequences.svg)",
        "",
        *by_sizes(folder / "growth-sizes.svg", 10_000_000 // scale, 1_000_000 // scale),
        "![Time by number of distinct sizes](growth-sizes.svg)",
        "",
        "The layout alone, under limits on sequences:",
        "",
        *by_limits(scale),
    ]
    return Result(lines)
