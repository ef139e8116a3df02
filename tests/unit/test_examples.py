"""The examples, run as a user runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from models import huggingface_tokenizer, tiny_esm2

from virnucpro.data import SequenceDataset

EXAMPLES = Path(__file__).parents[2] / "examples"
PROTEINS = EXAMPLES / "proteins.fasta"


def run(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("workers", [0, 1])
def test_embed(tmp_path: Path, workers: int) -> None:
    output = tmp_path / "embeddings.parquet"
    run(EXAMPLES / "embed.py", PROTEINS, "-o", output, "--workers", workers)
    table = pq.read_table(output)
    assert sorted(table["id"].to_pylist()) == sorted(r["id"] for r in SequenceDataset(PROTEINS))
    vectors = np.array(table["embedding"].to_pylist())
    assert vectors.shape == (200, 64)
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors.round(4), axis=0)) == 200


def test_embed_with_a_checkpoint(tmp_path: Path) -> None:
    """The vectors are those of the model run on one protein at a time."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    model = tiny_esm2()
    model.save_pretrained(checkpoint)
    tokenizer = huggingface_tokenizer(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    output = tmp_path / "embeddings.parquet"
    run(
        *(EXAMPLES / "embed.py", PROTEINS, "-o", output, "--workers", 0),
        *("--model", checkpoint, "--max-tokens", 2048),
    )
    vectors = dict(
        zip(*(pq.read_table(output)[c].to_pylist() for c in ("id", "embedding")), strict=True)
    )
    for record in list(SequenceDataset(PROTEINS, max_length=1022))[:20]:
        with torch.no_grad():
            inputs = tokenizer(record["sequence"], return_tensors="pt")
            alone = model(**inputs).last_hidden_state[0, 1:-1].mean(0)
        assert torch.allclose(torch.tensor(vectors[record["id"]]), alone, atol=1e-5)


def test_train_llm() -> None:
    output = run(EXAMPLES / "train_llm.py")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", output)]
    assert len(losses) > 4
    assert losses[0] > 4
    assert losses[-1] < 0.5 * losses[0]
