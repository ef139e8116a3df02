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
from checkpoints import save_checkpoint

from virnucpro.data import GreedyPacker, SequenceDataset, embed_files

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parents[2] / "examples"
PROTEINS = EXAMPLES / "proteins.fasta"


def run(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_embed_on_ray(tmp_path: Path) -> None:
    """Actors give what one process gives, in the batches of the packer."""
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    run(EXAMPLES / "embed_on_ray.py", PROTEINS, "-o", tmp_path / "on_ray", "--model", checkpoint)
    found = pq.read_table(tmp_path / "on_ray").to_pydict()
    embed_files(PROTEINS, tmp_path / "alone", checkpoint)
    expected = pq.read_table(tmp_path / "alone").to_pydict()
    vectors = dict(zip(expected["id"], expected["embedding"], strict=True))
    assert sorted(found["id"]) == sorted(vectors)
    for name, vector in zip(found["id"], found["embedding"], strict=True):
        assert np.allclose(vector, vectors[name], atol=1e-5)
    batches = GreedyPacker(4096).pack_sequences(list(SequenceDataset(PROTEINS)))
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


def test_train_llm() -> None:
    output = run(EXAMPLES / "train_llm.py")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", output)]
    assert len(losses) > 4
    assert losses[0] > 4
    assert losses[-1] < 0.5 * losses[0]
