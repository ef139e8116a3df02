"""Measures method="tight" against FFD and the bound."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from data import DATA, log_normal
from results import Result, console, percent, table

from virnucpro import kernel
from virnucpro.data import GreedyPacker, TokenCounts

LIMITS = (12, 24, 48)
# Parameters of proteins and of documents without special tokens, truncated to the budget.
PROTEINS: dict[str, Any] = {}
DOCUMENTS: dict[str, Any] = {"special_tokens": 0, "max_sequence_length": 2**20}


def triplets(number: int) -> list[int]:
    """Return sizes that fill `number` / 3 batches of 1,000 with exactly three each."""
    random = np.random.default_rng(number)
    sizes: list[int] = []
    while len(sizes) < number:
        first = int(random.integers(380, 491))
        second = int(random.integers(250, (1000 - first) // 2 + 1))
        sizes += [first, second, 1000 - first - second]
    return sizes


def unlimited_cases() -> Iterator[tuple[str, Any, int, dict[str, Any]]]:
    """Yield names, lengths, budgets and parameters of packings without a limit on sequences."""
    random = np.random.default_rng(0)
    for name, lengths in real_sets():
        for budget in (1024, 2048, 4096):
            yield name, lengths, budget, PROTEINS
    for number in (120, 501):
        yield f"triplets t{number}", triplets(number), 1000, DOCUMENTS
    for number in (120, 1000):
        yield f"uniform u{number}", random.integers(20, 101, number), 150, DOCUMENTS
    family = random.normal(1300, 150, 20_000).clip(300, 4094).astype(int)
    yield "one family (normal, 1,300 ± 150)", family, 4096, {"max_sequence_length": 4094}
    # Like genes of a function: a hundred families of nearly equal lengths.
    centers = random.integers(150, 480, 100)
    families = random.choice(centers, 10_000, p=random.dirichlet(np.full(100, 0.5)))
    yield "100 families", families + random.integers(-3, 4, 10_000), 1024, PROTEINS
    questions = random.lognormal(5.0, 0.5, 100_000).clip(1, 382).astype(int)
    yield "questions (log-normal)", questions, 384, PROTEINS
    yield "10 million proteins", log_normal(10_000_000), 2048, PROTEINS
    yield "documents, 1 million", log_normal(1_000_000, 8, 1.3), 32_768, DOCUMENTS
    yield "documents, 1 million", log_normal(1_000_000, 8, 1.3), 131_072, DOCUMENTS


def limited_cases() -> Iterator[tuple[str, Any, int, dict[str, Any]]]:
    """Yield names, lengths, budgets and parameters of packings under limits on sequences."""
    proteins = log_normal(1_000_000)
    yield "proteins, 1 million", proteins, 4096, PROTEINS
    yield "proteins, 1 million", proteins, 16_384, PROTEINS
    for budget in (32_768, 131_072):
        yield "documents, 1 million", log_normal(1_000_000, 8, 1.3), budget, DOCUMENTS
    for name, lengths in real_sets():
        for budget in (4096, 16_384):
            yield name, lengths, budget, PROTEINS


def real_sets() -> Iterator[tuple[str, Any]]:
    """Yield names and lengths of real proteins."""
    for name in ("E. coli", "viruses"):
        if name in DATA:
            yield name, DATA[name].make()


def row(name: str, lengths: Any, budget: int, limit: int | None, parameters: Any) -> list[str]:
    """Return the row of a packing under a limit on sequences."""
    packer = GreedyPacker(budget, max_sequences_per_batch=limit, **parameters)
    counts = packer.count_silently(lengths)
    first_fit = packer.lay_out(counts)
    begin = time.perf_counter()
    reserved = kernel.patterns_with_reservation(first_fit.core.counts).num_batches
    reserving = time.perf_counter() - begin
    packer.method = "tight"
    begin = time.perf_counter()
    layout = packer.lay_out(counts)
    seconds = time.perf_counter() - begin
    if not layout.lower_bound <= layout.num_batches <= min(first_fit.num_batches, reserved):
        raise AssertionError(f"{name}: worse than its bound allows, or than another method")
    found = (first_fit.num_batches, reserved, layout.num_batches)
    return [
        name,
        *(percent(batches / layout.lower_bound - 1, 2) for batches in found),
        f"{reserving:.3f}",
        f"{seconds:.2f}",
        f"{budget:,}",
        *(["no" if limit is None else str(limit)]),
        *(f"{batches:,}" for batches in (*found, layout.lower_bound)),
    ]


def fullest(counts: TokenCounts, budget: int) -> str:
    """Return a sentence on the fullest batch without a limit, and on the mean as a limit."""
    packer = GreedyPacker(budget)
    layout = packer.lay_out(counts)
    mean = -(-layout.num_sequences // layout.num_batches)
    packer.max_sequences_per_batch = mean
    first_fit = packer.lay_out(counts)
    packer.method = "tight"
    more = 100 * (first_fit.num_batches / layout.num_batches - 1)
    return (
        f"{layout.num_sequences:,} proteins at {budget:,} tokens have {mean} sequences per batch "
        f"on average, rounded up, and {layout.max_sequences:,} in the fullest batch. A limit of "
        f"{mean} costs FFD {more:.0f} % more batches ({first_fit.num_batches:,} instead of "
        f"{layout.num_batches:,}), and `tight` none ({packer.lay_out(counts).num_batches:,})."
    )


def measure(quick: bool, _: Path) -> Result:
    """Measure packings without and under limits on sequences."""
    logging.getLogger("virnucpro").setLevel(logging.ERROR)
    head = (
        "sequences | above the bound: FFD | reservation | tight | reservation, s | tight, s | "
        "budget | limit | FFD | reservation | tight | bound"
    )
    rows = []
    for name, lengths, budget, parameters in unlimited_cases():
        console.print(name, budget)
        if not quick or len(lengths) < 1_000:
            rows.append(row(name, lengths, budget, None, parameters))
    limited = []
    for name, lengths, budget, parameters in () if quick else limited_cases():
        for limit in LIMITS:
            console.print(name, budget, limit)
            limited.append(row(name, lengths, budget, limit, parameters))
    million = log_normal(10_000 if quick else 1_000_000)
    lines = [
        'Batches of First-Fit Decreasing, of patterns with reservation, and of `method="tight"`, '
        "above the bound that `tight` proves; seconds of the layout, from counts. Without a limit "
        "on sequences:",
        "",
        *table(head, rows),
        "Under limits on sequences per batch:",
        "",
        *table(head, limited),
        fullest(GreedyPacker(16_384).count_silently(million), 16_384),
    ]
    return Result(lines)
