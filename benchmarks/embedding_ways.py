"""Embeds the proteins of a FASTA file in one way, in its own process, and prints JSON."""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import EsmModel

MAX_RESIDUES = 1022


class Clock:
    """Times the calls of the model, and counts their tokens."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all calls."""
        self.seconds = 0.0
        self.tokens = 0
        self.padding = 0

    def watch(self, kind: Any) -> None:
        """Time the calls of all models of a class, also of models loaded later."""
        forward = kind.forward

        @functools.wraps(forward)
        def timed(model: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            states = forward(model, input_ids, *args, **kwargs)
            self.seconds += time.perf_counter() - begin
            self.tokens += input_ids.numel()
            self.padding += int((input_ids == model.config.pad_token_id).sum())
            return states

        kind.forward = timed


class Stages:
    """When each stage of `embed_files` begins; as its progress."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.begins: list[tuple[str, float]] = []

    def __call__(self, stage: str, *_: object) -> None:
        """Note the time if a stage begins; calls of the model before "embedding" are checks."""
        if not self.begins or self.begins[-1][0] != stage:
            self.begins.append((stage, time.perf_counter()))
            if stage == "embedding":
                self.clock.reset()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage until now."""
        ends = [*(begin for _, begin in self.begins[1:]), time.perf_counter()]
        taken: dict[str, float] = {}
        for (stage, begin), end in zip(self.begins, ends, strict=True):
            taken[stage] = taken.get(stage, 0.0) + end - begin
        return taken


class EnoughError(Exception):
    """Ends `embed_files` where the first batch would be computed."""


def embed_packed(clock: Clock, checkpoint: Path, fasta: Path, output: Path) -> float:
    """Embed by `embed_files`; return the seconds without loading the model."""
    from virnucpro.jobs.embed import embed_files

    stages = Stages(clock)
    begin = time.perf_counter()
    embed_files([fasta], output, checkpoint, device="cpu", progress=stages)
    return time.perf_counter() - begin - stages.seconds()["loading"]


def prepare(clock: Clock, checkpoint: Path, fasta: Path, output: Path) -> dict[str, float]:
    """Return the seconds of the stages of `embed_files` before the first batch."""
    from virnucpro.jobs.embed import embed_files

    stages = Stages(clock)

    def stop(stage: str, *_: object) -> None:
        stages(stage)
        if stage == "embedding":
            raise EnoughError

    try:
        embed_files([fasta], output, checkpoint, device="cpu", progress=stop)
    except EnoughError:
        return stages.seconds()
    raise AssertionError("no batch")


def embed_as_extract(_: Clock, checkpoint: Path, fasta: Path, output: Path) -> float:
    """Embed as extract.py of fair-esm: batches by length, a file for each protein."""
    from esm.data import Alphabet, FastaBatchedDataset

    model = EsmModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
    alphabet = Alphabet.from_architecture("ESM-1b")
    begin = time.perf_counter()
    output.mkdir()
    proteins = FastaBatchedDataset.from_file(fasta)
    loader = torch.utils.data.DataLoader(
        proteins,
        collate_fn=alphabet.get_batch_converter(MAX_RESIDUES),
        batch_sampler=proteins.get_batch_indices(4096, extra_toks_per_seq=1),
    )
    with torch.inference_mode():
        for labels, sequences, tokens in loader:
            mask = (tokens != alphabet.padding_idx).long()
            states = model(input_ids=tokens, attention_mask=mask).last_hidden_state
            for label, sequence, row in zip(labels, sequences, states, strict=True):
                mean = row[1 : min(len(sequence), MAX_RESIDUES) + 1].mean(0).clone()
                identifier = label.split()[0]
                result = {"label": identifier, "mean_representations": {6: mean}}
                torch.save(result, output / f"{identifier}.pt")
    return time.perf_counter() - begin


def embed_padded(
    _: Clock, checkpoint: Path, fasta: Path, output: Path, *, size: int, by_length: bool
) -> float:
    """Embed in padded batches of `size` proteins, into one matrix in the order of the input."""
    from Bio import SeqIO
    from transformers import AutoTokenizer

    model = EsmModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    begin = time.perf_counter()
    proteins = [str(record.seq) for record in SeqIO.parse(fasta, "fasta")]
    order = list(range(len(proteins)))
    if by_length:
        order.sort(key=lambda row: len(proteins[row]))
    vectors = np.empty((len(proteins), model.config.hidden_size), np.float32)
    with torch.inference_mode():
        for i in range(0, len(order), size):
            rows = order[i : i + size]
            tokens = tokenizer(
                [proteins[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=MAX_RESIDUES + 2,
                return_tensors="pt",
            )
            states = model(**tokens).last_hidden_state
            # Tokens other than <cls> and <eos>.
            mask = tokens["attention_mask"].roll(-1, 1)
            mask[:, 0], mask[:, -1] = 0, 0
            mask = mask.unsqueeze(-1)
            vectors[rows] = ((states * mask).sum(1) / mask.sum(1)).numpy()
    np.save(output, vectors)
    return time.perf_counter() - begin


def read_packed(output: Path, _: list[str]) -> NDArray[Any]:
    """Return the vectors of `embed_files` in the order of the input."""
    import pyarrow.dataset as ds

    table = ds.dataset(output).to_table(columns=["row", "embedding"]).sort_by("row")
    return np.stack(table["embedding"].to_numpy())


def read_extracted(output: Path, ids: list[str]) -> NDArray[Any]:
    """Return the vectors of a folder of one file for each protein."""
    files = (torch.load(output / f"{identifier}.pt") for identifier in ids)
    return np.stack([file["mean_representations"][6].numpy() for file in files])


def read_matrix(output: Path, _: list[str]) -> NDArray[Any]:
    """Return the vectors of a matrix."""
    matrix: NDArray[Any] = np.load(output.with_suffix(".npy"))
    return matrix


class Way(NamedTuple):
    """How to embed, how to read the vectors, and whether to run it once since it takes minutes."""

    embed: Callable[[Clock, Path, Path, Path], float]
    read: Callable[[Path, list[str]], NDArray[Any]]
    is_slow: bool = False


def padded(size: int, by_length: bool) -> Way:
    """Return the way with padded batches of `size` proteins."""
    embed = functools.partial(embed_padded, size=size, by_length=by_length)
    return Way(embed, read_matrix, is_slow=not by_length)


WAYS = {
    "`embed_files`": Way(embed_packed, read_packed),
    "fair-esm's `extract.py`, 4,096 tokens": Way(embed_as_extract, read_extracted),
    "transformers, batches of 8, as they come": padded(8, False),
    "transformers, batches of 16, as they come": padded(16, False),
    "transformers, batches of 8, by length": padded(8, True),
    "transformers, batches of 16, by length": padded(16, True),
}


def main(name: str, *paths: str) -> None:
    """Embed in one way, and print the seconds of work and of the model, tokens and padding."""
    # Warnings of truncation are the same for all.
    logging.disable()
    clock = Clock()
    clock.watch(EsmModel)
    if name == "prepare":
        print(json.dumps(prepare(clock, *map(Path, paths))))
        return
    checkpoint, fasta, output = map(Path, paths)
    work = WAYS[name].embed(clock, checkpoint, fasta, output)
    padding = clock.padding / clock.tokens
    print(json.dumps({"work": work, "model": clock.seconds, "padding": padding}))


if __name__ == "__main__":
    main(*sys.argv[1:])
