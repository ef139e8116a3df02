"""Known answers on real proteins, in the folder that VIRNUCPRO_REAL_DATA names."""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
from command import run
from numpy.typing import NDArray

from virnucpro.data import (
    GreedyPacker,
    PackingPlan,
    TokenCounts,
    count_dataset,
    pack_dataset,
    pack_files_on_ray,
)
from virnucpro.files.fasta import read_fasta

FOLDER = os.environ.get("VIRNUCPRO_REAL_DATA")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="VIRNUCPRO_REAL_DATA is not set")

# Batches, efficiency, and the SHA-256 of the batches' tokens and of the rows' batches, both int32.
KNOWN = {
    "uniprot_viruses.faa.gz": (
        477,
        0.998209,
        "6feed875869d7f20e085525b7948f9832f7064279f38fa391941f24781e4c9e7",
        "8d510ec7bd3d7b8d3720c3e26e247c3e1727d80b9301f77c3f58cad8e1d896d5",
    ),
    "ecoli_k12.faa.gz": (
        331,
        0.999813,
        "338e4f33f5c0794b11bc184bfdff421f11069e3bce1d948132b3c1db127f4178",
        "47bbe606cc85819274ce4ef9eab65a9918e8cab02684c340dbd34a4101ad3368",
    ),
}


def path_of(name: str) -> Path:
    return Path(FOLDER or "", name)


def lengths_of(name: str) -> NDArray[np.int64]:
    return np.array([len(sequence) for _, sequence in read_fasta(path_of(name))])


def digest(numbers: Any) -> str:
    return hashlib.sha256(np.asarray(numbers).astype("<i4").tobytes()).hexdigest()


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(name: str) -> None:
    batches, efficiency, tokens, rows = KNOWN[name]
    lengths = lengths_of(name)
    packer = GreedyPacker(4096)
    plan = packer.pack_lengths(lengths)
    assert len(plan) == plan.lower_bound == batches
    assert round(plan.efficiency, 6) == efficiency
    assert digest(plan.batch_tokens) == tokens
    assert digest(packer.assign_batches(lengths)) == rows


@pytest.mark.parametrize("num_blocks", [1, 7, 100])
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.usefixtures("local_ray")
def test_known_answers_in_blocks(name: str, num_blocks: int) -> None:
    batches, efficiency, tokens, rows = KNOWN[name]
    blocks = np.array_split(lengths_of(name), num_blocks)
    ds = ray.data.from_arrow([pa.table({"length": block}) for block in blocks])
    assert ds.num_blocks() == num_blocks
    packed, layout = pack_dataset(ds, GreedyPacker(4096))
    assert (layout.num_batches, round(layout.efficiency, 6)) == (batches, efficiency)
    assert digest(layout.batch_tokens) == tokens
    assert digest(packed.to_pandas()["batch"]) == rows


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.usefixtures("local_ray")
def test_known_answers_of_every_way_on_ray(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ties by ID and by row, as rows and as batches, from files, and read twice."""
    batches, efficiency, tokens, rows = KNOWN[name]
    monkeypatch.setattr("virnucpro.cluster.ranges.TASK_BYTES", 2**16)
    packer, lengths = GreedyPacker(4096), lengths_of(name)
    table = pa.table({"length": lengths, "id": [f"s{row}" for row in range(len(lengths))]})
    ds = ray.data.from_arrow([table.slice(row, 999) for row in range(0, len(table), 999)])
    for order, result in itertools.product(("row", "id"), ("rows", "batches")):
        packed, layout = pack_dataset(ds, packer, order=order, result=result)
        found = packed.to_pandas()
        if result == "batches":
            sums = [sum(of_batch) for of_batch in found["tokens"]]
        else:
            sums = found.groupby("batch")["tokens"].sum().tolist()
        assert (len(sums), digest(sums)) == (batches, tokens)
        assert round(layout.efficiency, 6) == efficiency
    pack_files_on_ray(path_of(name), tmp_path / "plan", packer)
    plan = PackingPlan.load(tmp_path / "plan")
    assert digest(plan.batch_tokens) == tokens
    assert plan == packer.pack_lengths(lengths, [name for name, _ in read_fasta(path_of(name))])
    table = table.append_column("row", pa.array(np.arange(len(table))))
    numbered = ray.data.from_arrow([table.slice(row, 999) for row in range(0, len(table), 999)])
    counted = count_dataset(numbered, packer, row_column="row")
    streamed = numbered.map_batches(
        counted.assigner(packer.lay_out(counted.total)), batch_format="pyarrow"
    ).to_pandas()
    assert digest(streamed.sort_values("row")["batch"]) == rows


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers_of_counts_and_ranks(name: str) -> None:
    """As other engines pack: by a histogram, and the rank of each row among those of its size."""
    batches, _, tokens, rows = KNOWN[name]
    sizes = np.minimum(lengths_of(name), 1022) + 2
    layout = GreedyPacker(4096).lay_out(
        TokenCounts.from_pairs(*np.unique(sizes, return_counts=True))
    )
    assert layout.num_batches == batches
    assert digest(layout.batch_tokens) == tokens
    order = np.argsort(sizes, kind="stable")
    _, begins, numbers = np.unique(sizes[order], return_index=True, return_counts=True)
    ranks = np.empty(len(sizes), np.int64)
    ranks[order] = np.arange(len(sizes)) - np.repeat(begins, numbers)
    assert digest(layout.place(sizes, ranks)[0]) == rows


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers_of_the_command(name: str, tmp_path: Path) -> None:
    batches, _, tokens, _ = KNOWN[name]
    assert run("pack", path_of(name), "-o", tmp_path / "plan.parquet").returncode == 0
    plan = pq.read_table(tmp_path / "plan.parquet")
    in_batch = np.bincount(plan["batch"].to_numpy(), plan["tokens"].to_numpy())
    assert len(in_batch) == batches
    assert digest(in_batch) == tokens


def test_both_in_one_call(tmp_path: Path) -> None:
    result = run("pack", *map(path_of, KNOWN), "-o", tmp_path / "plan.parquet")
    assert result.returncode == 0
    plan = pq.read_table(tmp_path / "plan.parquet")
    assert plan["batch"].to_numpy().max() + 1 == 808
    assert sorted(plan["row"].to_pylist()) == list(range(4450 + 4363))


def test_dicts_give_the_same_batches_as_the_command(tmp_path: Path) -> None:
    name = "uniprot_viruses.faa.gz"
    records = [
        {"id": identifier, "sequence": sequence}
        for identifier, sequence in read_fasta(path_of(name))
    ]
    assert run("pack", path_of(name), "-o", tmp_path / "plan.parquet").returncode == 0
    packer = GreedyPacker(4096)
    batches = packer.pack_sequences(records)
    assert [record["id"] for batch in batches for record in batch] == (
        pq.read_table(tmp_path / "plan.parquet")["id"].to_pylist()
    )
    assert round(packer.compute_efficiency(batches), 6) == KNOWN[name][1]


def test_buffers_of_2000_sequences_are_full() -> None:
    lengths = lengths_of("uniprot_viruses.faa.gz")
    plans = [
        GreedyPacker(4096).pack_lengths(lengths[begin : begin + 2000])
        for begin in range(0, len(lengths), 2000)
    ]
    tokens = sum(plan.total_tokens for plan in plans)
    assert tokens / (4096 * sum(map(len, plans))) > 0.99
