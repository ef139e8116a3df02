"""The page on embedding runs as it stands there, commands and Python, with a tiny model."""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from checkpoints import save_checkpoint
from command import run
from numpy.typing import NDArray

from virnucpro.files.fasta import read_fasta

ROOT = Path(__file__).parents[2]
CHECKPOINT = Path("facebook/esm2_t33_650M_UR50D")
WIDTH = 32
FASTA = ["proteins.fasta.gz", "more.fasta.gz"]
# Writes the arguments of each command, with a line between commands; sbatch runs its tasks.
SHELL = r"""
virnucpro() { printf '%s\0' "$@" $'\n' >> commands; }
sbatch() {
  for SLURM_ARRAY_TASK_ID in 0 1 2 3; do SLURM_ARRAY_TASK_COUNT=4; eval "${!#}"; done
}
"""


def commands(code: str) -> Iterator[list[str]]:
    """Yield the arguments with which a shell would call virnucpro."""
    written = Path("commands")
    written.write_bytes(b"")
    subprocess.run(["bash", "-euc", SHELL + code], check=True)
    for command in written.read_text().split("\0\n\0")[:-1]:
        yield command.split("\0")


def vectors(folder: str) -> dict[int, NDArray[Any]]:
    """Return the embeddings in a folder by row; those that are null as NaN."""
    table = pq.read_table(folder, columns=["row", "embedding"])
    embeddings = table["embedding"].to_pylist()
    return {
        row: np.full(WIDTH, np.nan) if vector is None else np.array(vector, np.float64)
        for row, vector in zip(table["row"].to_pylist(), embeddings, strict=True)
    }


def assert_near(folder: str, expected: dict[int, NDArray[Any]], atol: float = 1e-5) -> None:
    """Check that a folder has these embeddings."""
    found = vectors(folder)
    assert found.keys() == expected.keys()
    for row, vector in expected.items():
        np.testing.assert_allclose(found[row], vector, atol=atol)


@pytest.mark.slow
@pytest.mark.process
def test_the_page_on_embedding_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = (ROOT / "examples/proteins.fasta").read_bytes()
    Path(FASTA[0]).write_bytes(gzip.compress(example))
    more = b">again\nMKTAYIAK\n>twice\nMKTAYIAK\n>none\n>long\n" + b"MKV" * 700 + b"\n"
    Path(FASTA[1]).write_bytes(gzip.compress(more))
    CHECKPOINT.parent.mkdir()
    save_checkpoint(CHECKPOINT)

    text = (ROOT / "docs/how-to/embed.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    shards: list[str] = []
    for language, code in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        if language == "python":
            exec(code, names)
        else:
            for command in commands(code):
                if "--shard" in command:
                    shards.append(command[command.index("--shard") + 1])
                result = run(*command)
                assert result.returncode == 0, result.stderr

    records = [record for name in FASTA for record in read_fasta(name)]
    rows = range(len(records))
    # The library underneath gives the same.
    expected = {row: names["embeddings"][row].numpy() for row in rows}
    assert_near("embeddings", expected)
    of_first = {row: expected[row] for row in range(example.count(b">"))}
    assert_near("sharded", of_first)
    assert_near("from_plan", of_first)
    assert_near("states", of_first, atol=1e-2)
    whole = vectors("whole")
    lengths = [len(sequence) for _, sequence in records]
    long = {row for row in rows if lengths[row] > 1022}
    for row, vector in of_first.items():
        assert np.allclose(whole[row], vector, atol=1e-5) == (row not in long)
    assert long & whole.keys()

    assert sorted(shards) == ["1/2", "1/4", "2/2", "2/4", "3/4", "4/4"]

    # What the blocks of Python read.
    np.testing.assert_allclose(names["matrix"], np.stack(list(expected.values())), atol=1e-5)
    assert np.isnan(names["matrix"]).any(axis=1).tolist() == [not length for length in lengths]
    assert names["frame"]["row"].to_list() == list(rows)
    ids = [identifier for identifier, _ in records]
    assert sorted(names["truncated"]["id"].to_pylist()) == sorted(ids[row] for row in long)
    assert names["nearest"][0] == (ids[0], pytest.approx(1))
    assert names["residues"].shape[1] == WIDTH
    job = names["run"]
    assert (job.complete, job.written, job.failed) == (job.parts, 0, [])
    assert job.summary.totals.truncated == len(long)
    assert not list(Path().glob("*/.*"))
