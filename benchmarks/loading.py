"""Measures tokenizing and the DataLoader and writes docs/explanation/loading.md."""

from __future__ import annotations

import datetime
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import esm
import numpy as np
from data import log_normal
from rich.console import Console
from run import ROOT, machine
from transformers import EsmTokenizer

from virnucpro.data import GreedyPacker, SequenceDataset, VarlenCollator, create_async_dataloader
from virnucpro.files.fasta import read_fasta

NUM_PROTEINS = 100_000
REPEATS = 5
ALPHABET = esm.data.Alphabet.from_architecture("ESM-1b")
console = Console(stderr=True)


def seconds(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Return the median seconds of a call."""
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def make_proteins() -> list[dict[str, str]]:
    """Return proteins of random residues."""
    letters = np.frombuffer(b"LAGVSERTIDPKQNFYMHWC", np.uint8)
    random = np.random.default_rng(0)
    return [
        {"id": f"protein{i}", "sequence": random.choice(letters, length).tobytes().decode()}
        for i, length in enumerate(log_normal(NUM_PROTEINS).tolist())
    ]


def make_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of transformers for ESM-2's vocabulary."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(ALPHABET.all_toks))
    return EsmTokenizer(str(path))


def unpad_huggingface(tokenizer: Any, batch: list[dict[str, str]]) -> Any:
    """Tokenize into a padded tensor and remove the padding."""
    padded = tokenizer(
        [record["sequence"] for record in batch],
        padding=True,
        truncation=True,
        max_length=1024,
        return_tensors="pt",
    )
    return padded["input_ids"][padded["attention_mask"].bool()]


def unpad_fair_esm(batch_converter: Any, batch: list[dict[str, str]]) -> Any:
    """Tokenize into a padded tensor and remove the padding."""
    _, _, padded = batch_converter([(record["id"], record["sequence"]) for record in batch])
    return padded[padded != ALPHABET.padding_idx]


def tokenizing(proteins: list[dict[str, str]], tokenizer: Any) -> list[str]:
    """Return the rows of the table of tokenizers."""
    packer = GreedyPacker(4096)
    converters: dict[str, tuple[Any, Callable[[Any, Any], Any]]] = {
        "transformers' EsmTokenizer": (tokenizer, unpad_huggingface),
        "fair-esm's batch converter": (ALPHABET.get_batch_converter(), unpad_fair_esm),
    }
    rows = []
    for name, (converter, unpad) in converters.items():
        console.print(name)
        collate = VarlenCollator(converter)

        def ours(collate: VarlenCollator = collate) -> None:
            for batch in packer.pack_sequences(proteins):
                collate(batch)

        def theirs(converter: Any = converter, unpad: Any = unpad) -> None:
            for batch in packer.pack_sequences(proteins):
                unpad(converter, batch)

        fast, slow = seconds(ours), seconds(theirs, repeats=1)
        rows.append(f"| {name} | {slow:.2f} | {fast:.2f} | {slow / fast:,.0f} |")
    return rows


def loading(path: Path) -> list[str]:
    """Return the rows of the table of loaders."""
    reading = seconds(lambda: sum(1 for _ in read_fasta(path)))
    rows = [f"| reading alone | {NUM_PROTEINS / reading:,.0f} | | |"]
    collate = VarlenCollator(ALPHABET.get_batch_converter())
    for num_workers, buffer_size in ((0, 2000), (1, 2000), (2, 2000), (0, 256), (0, 64)):
        name = f"{num_workers} workers, buffers of {buffer_size:,}"
        console.print(name)
        loader = create_async_dataloader(
            SequenceDataset(path), collate, num_workers=num_workers, buffer_size=buffer_size
        )
        totals: list[tuple[int, int]] = []

        def epoch(loader: Any = loader, totals: list[tuple[int, int]] = totals) -> None:
            tokens = [len(batch["input_ids"]) for batch in loader]
            totals.append((sum(tokens), len(tokens)))

        first = seconds(epoch, repeats=1)
        rate = NUM_PROTEINS / seconds(epoch)
        tokens, batches = totals[0]
        rows.append(f"| {name} | {rate:,.0f} | {first:.1f} | {tokens / batches / 4096:.4f} |")
    return rows


def main() -> None:
    """Measure and write."""
    # Warnings of truncation cost the same everywhere.
    logging.disable()
    proteins = make_proteins()
    with TemporaryDirectory() as folder:
        path = Path(folder, "proteins.fasta")
        with path.open("w") as file:
            file.writelines(f">{record['id']}\n{record['sequence']}\n" for record in proteins)
        tokens = tokenizing(proteins, make_tokenizer(Path(folder)))
        rates = loading(path)
    text = [
        "# Loading",
        "",
        f"Made by `make bench-loading` on {datetime.date.today()}: {machine()}.",
        "",
        f"{NUM_PROTEINS:,} proteins of random residues (log-normal lengths, mu 5.6, sigma 0.75), "
        f"4,096 tokens per batch. Medians of {REPEATS} runs, one run for tokenizers with padding.",
        "",
        "## Packing and tokenizing",
        "",
        "The same batches, as tokens without padding: from the table of `VarlenCollator`, and from",
        "the tokenizer itself with the padding removed afterwards.",
        "",
        "| tokenizer | with padding, s | table, s | times |",
        "| --- | ---: | ---: | ---: |",
        *tokens,
        "",
        "## Loader, end to end",
        "",
        "`create_async_dataloader` over one FASTA file. The first epoch starts the workers, which",
        "all read the whole file.",
        "",
        "| | sequences per second | first epoch, s | efficiency |",
        "| --- | ---: | ---: | ---: |",
        *rates,
        "",
    ]
    output = ROOT / "docs" / "explanation" / "loading.md"
    output.write_text("\n".join(text))
    console.print(f"Written to {output}")


if __name__ == "__main__":
    main()
