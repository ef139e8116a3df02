"""Measures method="tight" against FFD and the bound; writes docs/explanation/algorithm.md."""

from __future__ import annotations

import datetime
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from data import log_normal
from rich.console import Console
from run import machine, write_section

from virnucpro.data import GreedyPacker
from virnucpro.files.sequences import read_files

console = Console(stderr=True)


def triplets(number: int) -> list[int]:
    """Return sizes that fill `number` / 3 batches of 1,000 with exactly three each."""
    random = np.random.default_rng(number)
    sizes: list[int] = []
    while len(sizes) < number:
        first = int(random.integers(380, 491))
        second = int(random.integers(250, (1000 - first) // 2 + 1))
        sizes += [first, second, 1000 - first - second]
    return sizes


def cases() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield names, lengths and parameters."""
    random = np.random.default_rng(0)
    folder = os.environ.get("VIRNUCPRO_REAL_DATA")
    if folder is not None:
        for name in ("uniprot_viruses", "ecoli_k12"):
            lengths = read_files([str(Path(folder, f"{name}.faa.gz"))]).lengths
            for budget in (1024, 2048, 4096):
                yield name, lengths, {"max_tokens_per_batch": budget}
        yield (
            "uniprot_viruses, 8 per batch",
            read_files([str(Path(folder, "uniprot_viruses.faa.gz"))]).lengths,
            {"max_tokens_per_batch": 4096, "max_sequences_per_batch": 8},
        )
    plain = {"max_sequence_length": 1000, "special_tokens": 0}
    for number in (60, 120, 249, 501):
        yield f"triplets t{number}", triplets(number), {"max_tokens_per_batch": 1000, **plain}
    for number in (120, 250, 500, 1000):
        sizes = random.integers(20, 101, number)
        yield f"uniform u{number}", sizes, {"max_tokens_per_batch": 150, **plain}
    family = random.normal(1300, 150, 20_000).clip(300, 4094).astype(int)
    whole = {"max_tokens_per_batch": 4096, "max_sequence_length": 4094}
    yield "one family (normal, 1,300 ± 150)", family, whole
    questions = random.lognormal(5.0, 0.5, 100_000).clip(1, 382).astype(int)
    yield "questions (log-normal)", questions, {"max_tokens_per_batch": 384}
    yield "10 million proteins", log_normal(10_000_000), {"max_tokens_per_batch": 2048}


def main() -> None:
    """Measure, and write the table into the document."""
    logging.getLogger("virnucpro").setLevel(logging.ERROR)
    lines = [
        f"Made by `make bench-tight` on {datetime.date.today()}: {machine()}. Seconds are those of",
        "`pack_lengths`, from lengths to rows.",
        "",
        "| sequences | budget | FFD | tight | bound of FFD | bound of tight | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, lengths, parameters in cases():
        console.print(name)
        first_fit = GreedyPacker(**parameters).pack_lengths(lengths)
        begin = time.perf_counter()
        plan = GreedyPacker(**parameters, method="tight").pack_lengths(lengths)
        seconds = time.perf_counter() - begin
        lines.append(
            f"| {name} | {plan.max_tokens_per_batch:,} | {len(first_fit):,} | {len(plan):,} | "
            f"{first_fit.lower_bound:,} | {plan.lower_bound:,} | {seconds:.2f} |"
        )
    path = write_section("algorithm.md", "make bench-tight", lines)
    console.print(f"Written to {path}")


if __name__ == "__main__":
    main()
