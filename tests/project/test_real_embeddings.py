"""Embeddings of real proteins, in the folder that VIRNUCPRO_REAL_DATA names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from checkpoints import OneByOne, save_checkpoint

from virnucpro.data import embed_files
from virnucpro.files.fasta import read_fasta

FOLDER = os.environ.get("VIRNUCPRO_REAL_DATA")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="VIRNUCPRO_REAL_DATA is not set")
VIRUSES, COLI = "uniprot_viruses.faa.gz", "ecoli_k12.faa.gz"
# Every so many rows are compared; EVERY=1 compares all.
EVERY = int(os.environ.get("EVERY", "20"))


@pytest.mark.parametrize(("names", "overlong"), [((VIRUSES, COLI), "truncate"), ((COLI,), "split")])
def test_one_at_a_time(tmp_path: Path, names: tuple[str, ...], overlong: str) -> None:
    """Every row is there once, as a model gives it that runs one sequence at a time."""
    checkpoint = save_checkpoint(tmp_path / "tiny")
    paths = [Path(FOLDER or "", name) for name in names]
    overlap = 128 if overlong == "split" else 0
    run = embed_files(paths, tmp_path / "out", checkpoint, overlong=overlong, overlap=overlap)
    table = pq.read_table(tmp_path / "out").sort_by("row")
    records = [(path, *record) for path in paths for record in read_fasta(path)]
    assert table["row"].to_pylist() == list(range(len(records)))
    assert table["id"].to_pylist() == [name for _, name, _ in records]
    assert table["file"].to_pylist() == [str(path) for path, _, _ in records]
    lengths = np.array([len(sequence) for *_, sequence in records])
    assert table["length"].to_pylist() == lengths.tolist()
    is_long = (lengths > 1022) & (overlong == "truncate")
    assert table["truncated"].to_pylist() == is_long.tolist()
    assert run.summary.totals.residues_truncated == (663_185 if overlong == "truncate" else 0)
    assert run.summary.totals.distinct == len({sequence for *_, sequence in records})
    alone = OneByOne(checkpoint)
    differences = []
    for row in sorted({*range(0, len(records), EVERY), *np.flatnonzero(lengths > 4000).tolist()}):
        sequence = records[row][2]
        if overlong == "split":
            states = alone.windows(sequence, 1022, overlap)
        else:
            states = alone.states(sequence[:1022])
        found = np.array(table["embedding"][row].as_py())
        differences.append(np.abs(found - states.mean(axis=0)).max())
    print(f"{overlong}: {len(differences):,} rows differ by at most {max(differences):.1e}")
    assert max(differences) < 1e-5
