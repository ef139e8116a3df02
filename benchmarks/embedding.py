"""Measures ways from FASTA to embeddings."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from data import REAL_DATA
from embedding_ways import WAYS
from gpu_modes import VOCABULARY, make_model
from job import write_fasta
from numpy.typing import NDArray
from results import ROOT, Result, console, percent, table

from virnucpro.files.fasta import read_fasta

OURS = next(iter(WAYS))
TOLERANCE = 1e-4
# Ways of the README.
FELT = {
    "fair-esm's `extract.py`, 4,096 tokens": "with fair-esm's `extract.py`",
    "transformers, batches of 8, as they come": "with transformers in batches of 8 as they come",
}
# What a run that only reads and packs prints, beside the stages that grow with the input.
NO_STAGES = ("all", "cpu", "loading", "embedding")


def run(way: str, checkpoint: Path, fasta: Path, output: Path) -> dict[str, float]:
    """Run a way in a new process; return what it prints, and its seconds and CPU seconds."""
    script = ROOT / "benchmarks" / "embedding_ways.py"
    command = [sys.executable, str(script), way, str(checkpoint), str(fasta), str(output)]
    # With more threads, those that wait for others use CPU time too.
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **settings, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    begin, used = time.perf_counter(), cpu_of_children()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    seconds = {"all": time.perf_counter() - begin, "cpu": cpu_of_children() - used}
    return {**seconds, **json.loads(done.stdout)}


def cpu_of_children() -> float:
    """Return the seconds of processors that processes which ended have used."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def save_checkpoint(folder: Path, size: str) -> Path:
    """Save an ESM-2 model of random weights with its tokenizer; return its folder."""
    checkpoint = folder / "checkpoint"
    make_model(size, torch.device("cpu")).save_pretrained(checkpoint)
    vocabulary = checkpoint / "vocab.txt"
    vocabulary.write_text("\n".join(VOCABULARY))
    transformers.EsmTokenizer(str(vocabulary)).save_pretrained(checkpoint)
    return checkpoint


def take(source: Path, number: int, fasta: Path) -> None:
    """Write the first proteins of a FASTA file."""
    with fasta.open("w") as file:
        file.writelines(f">{name}\n{text}\n" for name, text in islice(read_fasta(source), number))


def compare(vectors: dict[str, NDArray[Any]]) -> float:
    """Return the largest difference of the vectors of the ways; fail if it is not small."""
    ours = vectors[OURS]
    differences = {way: float(np.abs(theirs - ours).max()) for way, theirs in vectors.items()}
    for way, difference in differences.items():
        if not difference <= TOLERANCE:
            raise SystemExit(f"{way}: vectors differ from those of {OURS} by {difference:.1e}")
    return max(differences.values())


def run_all(
    checkpoint: Path, fasta: Path, folder: Path, repeats: int
) -> tuple[dict[str, list[dict[str, float]]], float]:
    """Return what the ways print in alternating runs, and the largest difference of vectors."""
    ids = [name for name, _ in read_fasta(fasta)]
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    difference = 0.0
    for repeat in range(repeats):
        vectors = {}
        for i, (way, (_, read, is_slow)) in enumerate(WAYS.items()):
            if repeat and is_slow:
                continue
            output = folder / f"{repeat}-{i}"
            runs[way].append(run(way, checkpoint, fasta, output))
            vectors[way] = read(output, ids)
            console.print(f"{way}: {runs[way][-1]}")
        difference = max(difference, compare(vectors))
    return runs, difference


def median(runs: list[dict[str, float]], name: str) -> float:
    """Return the median of what runs print."""
    return statistics.median(run[name] for run in runs)


def rows(runs: dict[str, list[dict[str, float]]]) -> Iterator[list[str]]:
    """Yield the rows of the table of ways."""
    for way, some in runs.items():
        share = statistics.median(1 - run["model"] / run["all"] for run in some)
        later = statistics.median(1 - run["model"] / run["work"] for run in some)
        yield [
            way,
            f"{times_ours(runs, way):.2f}",
            percent(median(some, "padding")),
            *(f"{median(some, name):.1f}" for name in ("all", "model", "cpu")),
            percent(share),
            percent(later),
        ]


def times_ours(runs: dict[str, list[dict[str, float]]], way: str) -> float:
    """Return how many times the CPU seconds of `embed_files` a way takes."""
    pairs = zip(runs[way], runs[OURS], strict=False)
    return statistics.median(run["cpu"] / ours["cpu"] for run, ours in pairs)


def preparing(
    checkpoint: Path, folder: Path, number: int, repeats: int, model: float
) -> Iterator[str]:
    """Yield lines on the stages before the model; `model` is its seconds per protein."""
    fasta = folder / "many.fasta"
    write_fasta(fasta, number)
    runs = [run("prepare", checkpoint, fasta, folder / f"many-{i}") for i in range(repeats)]
    stages = [stage for stage in runs[0] if stage not in NO_STAGES]
    seconds = {stage: median(runs, stage) for stage in stages}
    total = statistics.median(sum(run[stage] for stage in stages) for run in runs)
    yield f"Before the first batch, `embed_files` reads and packs all proteins; {number:,} of them:"
    yield ""
    cells = (
        [stage, percent(taken / (model * number), 4), f"{taken:.2f}"]
        for stage, taken in {**seconds, "all": total}.items()
    )
    yield from table("stage | of the model's time | seconds", cells)


def measure(quick: bool, _: Path) -> Result:
    """Measure all ways on some proteins of E. coli, or on those of the examples if `quick`."""
    number, size, repeats, many = (20, "tiny", 1, 500) if quick else (200, "8M", 2, 1_000_000)
    fasta = ROOT / "examples" / "proteins.fasta"
    if REAL_DATA and not quick:
        fasta = Path(REAL_DATA, "ecoli_k12.faa.gz")
    with TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = save_checkpoint(folder, size)
        proteins = folder / "proteins.fasta"
        take(fasta, number, proteins)
        lengths = np.array([len(sequence) for _, sequence in read_fasta(proteins)])
        runs, difference = run_all(checkpoint, proteins, folder, repeats)
        model = median(runs[OURS], "model") / len(lengths)
        prepared = list(preparing(checkpoint, folder, many, repeats, model))
    spread = max(max(run["cpu"] for run in some) / median(some, "cpu") for some in runs.values())
    lines = [
        f"The first {len(lengths):,} proteins of {fasta.name} ({lengths.mean():.0f} residues on "
        f"average, at most {lengths.max():,}); ESM-2 {size} with random weights in float32, one "
        f"thread for the model, torch {torch.__version__}, transformers "
        f"{transformers.__version__}. Medians of {repeats} alternating runs, each in a new "
        f"process; one run for batches as they come. The slowest run took {spread:.2f} times the "
        f"median CPU seconds. Vectors of all ways differ by at most {difference:.0e}.",
        "",
        *table(
            f"way | times {OURS} | padding | seconds | model, s | CPU, s | not the model | "
            "after start-up",
            rows(runs),
        ),
        *prepared,
    ]
    taken = [f"{median(runs[OURS], 'all'):.0f} s with `virnucpro embed`"]
    for way, label in FELT.items():
        taken.append(f"{median(runs[way], 'all'):.0f} s {label}")
    figure = f"- {len(lengths)} proteins through ESM-2 {size} on one CPU core: {', '.join(taken)}."
    return Result(lines, [figure])
