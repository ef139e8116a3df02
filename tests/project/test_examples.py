"""The examples, run as a user runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from models import huggingface_tokenizer, tiny_esm2

from virnucpro.data import GreedyPacker, SequenceDataset

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parents[2] / "examples"
PROTEINS = EXAMPLES / "proteins.fasta"


def run(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def embed(output: Path, workers: int) -> Path:
    run(EXAMPLES / "embed.py", PROTEINS, "-o", output, "--workers", workers)
    return output


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What embed.py writes without workers."""
    return embed(tmp_path_factory.mktemp("embedded") / "embeddings.parquet", 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_embed(embedded: Path, tmp_path: Path, workers: int) -> None:
    table = pq.read_table(embed(tmp_path / "one.parquet", workers) if workers else embedded)
    assert sorted(table["id"].to_pylist()) == sorted(r["id"] for r in SequenceDataset(PROTEINS))
    vectors = np.array(table["embedding"].to_pylist())
    assert vectors.shape == (200, 64)
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors.round(4), axis=0)) == 200


def test_embed_on_ray(embedded: Path, tmp_path: Path) -> None:
    """Actors give the same as one process, batch by batch."""
    records = list(SequenceDataset(PROTEINS))
    run(EXAMPLES / "embed_on_ray.py", PROTEINS, "-o", tmp_path / "on_ray")
    found = pq.read_table(tmp_path / "on_ray").to_pydict()
    expected = pq.read_table(embedded).to_pydict()
    expected = dict(zip(expected["id"], expected["embedding"], strict=True))
    assert sorted(found["id"]) == sorted(expected)
    for name, vector in zip(found["id"], found["embedding"], strict=True):
        assert np.allclose(vector, expected[name], atol=1e-5)
    batches = GreedyPacker(4096).pack_sequences(records)
    assert {r["id"]: number for number, batch in enumerate(batches) for r in batch} == dict(
        zip(found["id"], found["batch"], strict=True)
    )


def test_array_job(tmp_path: Path) -> None:
    """Tables of any size, one empty, in processes that share a folder, some of them run twice."""
    lengths = np.random.default_rng(0).integers(0, 1500, 5000)
    tables = []
    for number, part in enumerate(np.split(lengths, [100, 2000, 2000, 3500])):
        tables.append(tmp_path / f"{number}.parquet")
        pq.write_table(pa.table({"length": part}), tables[-1])
    work = tmp_path / "work"

    def array(step: str, tasks: list[int]) -> None:
        script = [sys.executable, *map(str, (EXAMPLES / "array_job.py", step, work, *tables))]
        jobs = [
            subprocess.Popen(script, env={**os.environ, "SLURM_ARRAY_TASK_ID": str(task)})
            for task in tasks
        ]
        assert [job.wait() for job in jobs] == [0] * len(jobs)

    array("count", [3, 0, 4, 1, 2, 2])
    run(EXAMPLES / "array_job.py", "lay-out", work, *tables)
    array("assign", [4, 4, 0, 2, 3, 1])
    found = pa.concat_tables([pq.read_table(work / f"{number}.parquet") for number in range(5)])
    packer = GreedyPacker(4096)
    assert found["batch"].to_pylist() == packer.assign_batches(lengths).tolist()
    layout = packer.lay_out(packer.count(lengths))
    assert found["slot"].to_pylist() == layout.slots(lengths).tolist()
    in_batch = np.bincount(found["batch"].to_numpy(), found["tokens"].to_numpy())
    assert in_batch.tolist() == layout.batch_tokens.tolist()
    assert not list(work.glob("*.tmp"))


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
