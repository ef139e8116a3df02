"""Measures tokenizing and the DataLoader."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import esm
import numpy as np
from data import log_normal
from results import Result, console, median, percent, seconds_of, table
from transformers import EsmTokenizer

from virnucpro.data import GreedyPacker, SequenceDataset, VarlenCollator, create_async_dataloader
from virnucpro.files.fasta import read_fasta

REPEATS = 3
ALPHABET = esm.data.Alphabet.from_architecture("ESM-1b")


def make_proteins(number: int) -> list[dict[str, str]]:
    """Return proteins of random residues."""
    letters = np.frombuffer(b"LAGVSERTIDPKQNFYMHWC", np.uint8)
    random = np.random.default_rng(0)
    return [
        {"id": f"protein{i}", "sequence": random.choice(letters, length).tobytes().decode()}
        for i, length in enumerate(log_normal(number).tolist())
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


def tokenizing(proteins: list[dict[str, str]], tokenizer: Any) -> Iterator[list[str]]:
    """Yield the rows of the table of tokenizers."""
    packer = GreedyPacker(4096)
    converters: dict[str, tuple[Any, Callable[[Any, Any], Any]]] = {
        "transformers' EsmTokenizer": (tokenizer, unpad_huggingface),
        "fair-esm's batch converter": (ALPHABET.get_batch_converter(), unpad_fair_esm),
    }
    for name, (converter, unpad) in converters.items():
        console.print(name)
        collate = VarlenCollator(converter)
        batches = packer.pack_sequences(proteins)
        fast = median(lambda: [collate(batch) for batch in batches], REPEATS)  # noqa: B023
        slow = seconds_of(lambda: [unpad(converter, batch) for batch in batches])  # noqa: B023
        yield [name, f"{slow / fast:,.0f}", f"{slow:.2f}", f"{fast:.2f}"]


def loading(path: Path, number: int) -> Iterator[list[str]]:
    """Yield the rows of the table of loaders."""
    reading = median(lambda: sum(1 for _ in read_fasta(path)), REPEATS)
    yield ["reading alone", "1.0", f"{number / reading:,.0f}", "", ""]
    collate = VarlenCollator(ALPHABET.get_batch_converter())
    for num_workers, buffer_size in ((0, 2000), (2, 2000), (0, 64)):
        name = f"{num_workers} workers, buffers of {buffer_size:,}"
        console.print(name)
        loader = create_async_dataloader(
            SequenceDataset(path), collate, num_workers=num_workers, buffer_size=buffer_size
        )
        totals: list[tuple[int, int]] = []

        def epoch(loader: Any = loader, totals: list[tuple[int, int]] = totals) -> None:
            tokens = [len(batch["input_ids"]) for batch in loader]
            totals.append((sum(tokens), len(tokens)))

        first, later = seconds_of(epoch), median(epoch, REPEATS)
        tokens, batches = totals[0]
        padding = percent(1 - tokens / batches / 4096)
        times = f"{later / reading:.1f}"
        yield [name, times, f"{number / later:,.0f}", f"{first:.1f}", padding]


def measure(quick: bool, _: Path) -> Result:
    """Measure tokenizers and loaders."""
    # Warnings of truncation cost the same everywhere.
    logging.disable()
    some, number = (200, 1_000) if quick else (20_000, 100_000)
    proteins = make_proteins(number)
    with TemporaryDirectory() as folder:
        path = Path(folder, "proteins.fasta")
        with path.open("w") as file:
            file.writelines(f">{record['id']}\n{record['sequence']}\n" for record in proteins)
        tokens = list(tokenizing(proteins[:some], make_tokenizer(Path(folder))))
        rates = list(loading(path, number))
    lines = [
        f"{some:,} proteins of random residues (log-normal lengths, mu 5.6, sigma 0.75) in batches "
        "of 4,096 tokens, as tokens without padding: from the table of `VarlenCollator`, and from "
        "the tokenizer itself with the padding removed afterwards, which ran once.",
        "",
        *table("tokenizer | times the table | tokenizer, s | table, s", tokens),
        f"`create_async_dataloader` over one FASTA file of {number:,} proteins. The first epoch "
        f"starts the workers, which all read the whole file. Medians of {REPEATS} epochs.",
        "",
        *table(
            "loader | times reading | sequences per second | first epoch, s | unused budget", rates
        ),
    ]
    return Result(lines)
