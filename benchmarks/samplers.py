"""Measures how samplers deal batches to ranks and epochs."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from data import log_normal
from numpy.typing import NDArray
from results import Result, console, median, percent, table

from virnucpro.data import GreedyPacker, PackedBatchSampler, PackingPlan

BUDGETS = (32_768, 131_072)
RANKS = (4, 8)
WINDOWS = (1_000, 10_000, 100_000)
EPOCHS = 4

# Costs of a sequence: attention takes the square of its tokens, the other layers its tokens.
COSTS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "attention": np.square,
    "other layers": np.asarray,
}


def documents(budget: int, number: int) -> NDArray[Any]:
    """Return the lengths of documents, log-normal, at most the budget."""
    return log_normal(number, 6.5, 1.2).clip(1, budget)


def steps_of(plan: PackingPlan, ranks: int, **options: Any) -> list[list[list[int]]]:
    """Return the batches of each rank in an epoch."""
    return [list(PackedBatchSampler(plan, rank, ranks, **options)) for rank in range(ranks)]


def idle_shares(lengths: NDArray[Any], batches: list[list[list[int]]]) -> list[float]:
    """Return the share of time that ranks wait for the slowest of each step, for each cost."""
    shares = []
    for cost in COSTS.values():
        costs = cost(lengths.astype(np.float64))
        steps = np.array([[costs[batch].sum() for batch in rank] for rank in batches])
        shares.append(1 - steps.sum() / (steps.max(axis=0).sum() * len(steps)))
    return shares


def one_by_one(batches: list[list[list[int]]]) -> list[list[list[int]]]:
    """Return the batches of all ranks, dealt to them in random order."""
    order = [batch for step in zip(*batches, strict=True) for batch in step]
    random = np.random.default_rng(0)
    order = [order[number] for number in random.permutation(len(order))]
    return [order[rank :: len(batches)] for rank in range(len(batches))]


def idle_rows(number: int) -> Iterator[list[str]]:
    """Yield the rows of the table of idle ranks."""
    for budget in BUDGETS:
        lengths = documents(budget, number)
        plan = GreedyPacker.for_documents(budget).pack_lengths(lengths)
        for ranks in RANKS:
            console.print(f"{budget:,} tokens, {ranks} ranks")
            in_order = steps_of(plan, ranks)
            dealt = [
                one_by_one(in_order),
                in_order,
                steps_of(plan, ranks, shuffle=True),
                steps_of(plan, ranks, shuffle=True, repack=10_000),
            ]
            shares = zip(*(idle_shares(lengths, batches) for batches in dealt), strict=True)
            for name, values in zip(COSTS, shares, strict=True):
                cells = [percent(value, 2) for value in values]
                yield [name, *cells, f"{budget:,}", f"{len(plan):,}", str(ranks)]


def epoch_rows(number: int) -> Iterator[list[str]]:
    """Yield the rows of the table of epochs."""
    for budget in BUDGETS:
        lengths = documents(budget, number)
        packer = GreedyPacker.for_documents(budget)
        plan = packer.pack_lengths(lengths)
        packing = median(lambda: packer.pack_lengths(lengths), 5)  # noqa: B023
        for window in (None, *WINDOWS):
            console.print(f"{budget:,} tokens, windows of {window}")
            sampler = PackedBatchSampler(plan, shuffle=True, repack=window)
            len(sampler)
            epochs, seconds = [], []
            for _ in range(EPOCHS):
                begin = time.perf_counter()
                batches = iter(sampler)
                first = next(batches)
                seconds.append(time.perf_counter() - begin)
                epochs.append({frozenset(batch) for batch in (first, *batches)})
            again = [len(first & second) / len(second) for first, second in pairwise(epochs)]
            name = "equal lengths exchanged" if window is None else f"repack={window:,}"
            ratio = statistics.median(seconds) / packing
            more = len(sampler) / len(plan) - 1
            cells = [percent(statistics.mean(again), 2), f"{100 * more:+.2f} %", f"{ratio:.1f}"]
            yield [name, *cells, f"{budget:,}", f"{len(sampler):,}"]


def measure(quick: bool, _: Path) -> Result:
    """Measure ranks and epochs."""
    logging.getLogger("virnucpro").setLevel(logging.ERROR)
    number = 5_000 if quick else 400_000
    lines = [
        f"{number:,} documents with log-normal lengths. Share of time that ranks wait for the "
        "slowest of each step:",
        "",
        *table(
            "cost | one by one | in order of the plan | `shuffle=True` | `repack=10_000` | "
            "budget | batches | ranks",
            idle_rows(number),
        ),
        "Batches that come again in the next epoch, batches per epoch against First-Fit "
        "Decreasing, and the time until the first batch of an epoch, relative to `pack_lengths`:",
        "",
        *table(
            "epochs | come again | more than the plan | times `pack_lengths` | budget | batches",
            epoch_rows(number),
        ),
    ]
    return Result(lines)
