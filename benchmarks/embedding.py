"""Measures ways from FASTA to embeddings; writes a section of docs/explanation/embedding.md."""

from __future__ import annotations

import datetime
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
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer
from embedding_ways import WAYS
from gpu_modes import VOCABULARY, make_model
from job import write_fasta
from numpy.typing import NDArray
from rich.console import Console
from run import HERE, machine, write_section

from virnucpro.files.fasta import read_fasta

OURS = next(iter(WAYS))
TOLERANCE = 1e-4
# What a run that only reads and packs prints, beside the stages that grow with the input.
NO_STAGES = ("all", "cpu", "loading", "embedding")
console = Console(stderr=True)


def run(way: str, checkpoint: Path, fasta: Path, output: Path) -> dict[str, float]:
    """Run a way in a new process; return what it prints, and its seconds and CPU seconds."""
    script = HERE / "embedding_ways.py"
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


def measure(
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


def rows(runs: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """Yield the rows of the table of ways."""
    for way, some in runs.items():
        ratio = statistics.median(
            run["cpu"] / ours["cpu"] for run, ours in zip(some, runs[OURS], strict=False)
        )
        share = statistics.median(1 - run["model"] / run["all"] for run in some)
        later = statistics.median(1 - run["model"] / run["work"] for run in some)
        yield (
            f"| {way} | {median(some, 'all'):.1f} | {median(some, 'model'):.1f} | "
            f"{median(some, 'cpu'):.1f} | {ratio:.2f} | "
            f"{100 * share:.1f} % | {100 * later:.1f} % | {100 * median(some, 'padding'):.1f} % |"
        )


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
    yield "| stage | seconds | per million | of the model's time |"
    yield "| --- | ---: | ---: | ---: |"
    for stage, taken in {**seconds, "all": total}.items():
        share = 100 * taken / (model * number)
        yield f"| {stage} | {taken:.2f} | {taken / number * 1e6:.2f} | {share:.4f} % |"


def main(
    number: Annotated[int, typer.Option(help="Proteins to embed.")] = 300,
    fasta: Annotated[Path | None, typer.Option(help="Take them from this file.")] = None,
    size: Annotated[str, typer.Option(help="The size of the model, as in gpu_modes.py.")] = "8M",
    repeats: Annotated[int, typer.Option(help="Runs of each way.")] = 3,
    many: Annotated[int, typer.Option(help="Proteins to read and pack only.")] = 1_000_000,
    output: Annotated[str, typer.Option(help="The page to write into.")] = "embedding.md",
) -> None:
    """Measure, and write the tables into the page."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = save_checkpoint(folder, size)
        proteins = folder / "proteins.fasta"
        if fasta is None:
            write_fasta(proteins, number)
        else:
            take(fasta, number, proteins)
        lengths = np.array([len(sequence) for _, sequence in read_fasta(proteins)])
        runs, difference = measure(checkpoint, proteins, folder, repeats)
        model = median(runs[OURS], "model") / len(lengths)
        prepared = list(preparing(checkpoint, folder, many, repeats, model))
    spread = {
        name: max(max(run[name] for run in some) / median(some, name) for some in runs.values())
        for name in ("all", "cpu")
    }
    source = "random residues" if fasta is None else fasta.name
    lines = [
        f"Made by `make bench-embed` on {datetime.date.today()}: {machine()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}.",
        "",
        f"{len(lengths):,} proteins ({source}, {lengths.mean():.0f} residues on average, "
        f"at most {lengths.max():,}), ESM-2 {size} with random weights in float32, one thread "
        f"for the model. Medians of {repeats} alternating runs, each in a new process, one run for "
        "proteins as they come. The slowest run of a way took "
        f"{spread['all']:.2f} times the median seconds, and {spread['cpu']:.2f} times the median "
        f"CPU seconds. Vectors of all ways differ by at most {difference:.0e}.",
        "",
        f"| | seconds | model, s | CPU, s | times {OURS} | not the model | "
        "after start-up | padding |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows(runs),
        "",
        *prepared,
    ]
    path = write_section(output, "make bench-embed", lines)
    console.print(f"Written to {path}")


if __name__ == "__main__":
    typer.run(main)
