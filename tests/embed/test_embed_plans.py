"""Embeddings of plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoints import OneByOne
from embeddings import LIMIT, SEQUENCES, check_rows, check_vectors, clean, read, truncated, write

from virnucpro.data import GreedyPacker, PackingPlan, embed_files, pack_files


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("multiple_of", [1, 8])
def test_plan(
    tmp_path: Path,
    checkpoint: Path,
    alone: OneByOne,
    sequences: bool,
    multiple_of: int,
) -> None:
    """The batches are those of the plan."""
    fasta, plan = write(tmp_path), tmp_path / "plan.parquet"
    packer = GreedyPacker(96, LIMIT, multiple_of=multiple_of)
    pack_files(fasta, plan, packer, sequences=sequences)
    if sequences:
        fasta.unlink()
    run = embed_files(plan, tmp_path / "out", checkpoint)
    table = read(tmp_path / "out")
    check_rows(table, fasta)
    check_vectors(table, truncated(alone))
    assert run.summary.limits == PackingPlan.load(plan).limits
    assert run.summary.totals.truncated == 4
    parts = pa.concat_tables(map(pq.read_table, sorted((tmp_path / "out").iterdir())))
    assert parts["row"].to_pylist() == PackingPlan.load(plan).indices.tolist()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("sequences", [True, False])
def test_plan_with_split_sequences(
    tmp_path: Path, checkpoint: Path, alone: OneByOne, sequences: bool
) -> None:
    """They are packed anew, so that the windows of each are in one part."""
    fasta, plan = write(tmp_path), tmp_path / "plan.parquet"
    packer = GreedyPacker(100, LIMIT, overlong="split", overlap=7)
    summary = pack_files(fasta, plan, packer, sequences=sequences)
    run = embed_files(plan, tmp_path / "out", checkpoint)
    assert run.parts > 2
    assert run.summary.overlap == 7
    assert run.summary.totals.split == summary.totals.split
    texts = list(map(clean, SEQUENCES))
    states = [alone.windows(text, LIMIT, 7).mean(axis=0) if text else None for text in texts]
    check_rows(read(tmp_path / "out"), fasta)
    check_vectors(read(tmp_path / "out"), states)


def test_plan_with_dropped_rows(tmp_path: Path, checkpoint: Path) -> None:
    plan = tmp_path / "plan.parquet"
    pack_files(write(tmp_path), plan, GreedyPacker(90, LIMIT, overlong="drop"), sequences=True)
    embed_files(plan, tmp_path / "out", checkpoint)
    found = read(tmp_path / "out")["embedding"].to_pylist()
    lengths = [len(clean(text)) for text in SEQUENCES]
    assert [vector is None for vector in found] == [not 0 < length <= LIMIT for length in lengths]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"max_tokens": 90}, "max_tokens"),
        ({"max_sequence_length": 90}, "max_sequence_length"),
        ({"overlong": "split"}, "overlong"),
    ],
)
def test_a_plan_has_its_own(
    tmp_path: Path, checkpoint: Path, arguments: dict[str, Any], name: str
) -> None:
    plan = tmp_path / "plan.parquet"
    pack_files(write(tmp_path), plan, GreedyPacker(90, LIMIT))
    with pytest.raises(ValueError, match=f"is a plan, which has its own {name}"):
        embed_files(plan, tmp_path / "out", checkpoint, **arguments)


def test_plans_that_cannot_be_run(tmp_path: Path, checkpoint: Path) -> None:
    fasta, plan = write(tmp_path), tmp_path / "plan.parquet"
    pack_files(fasta, plan, GreedyPacker(90, LIMIT, special_tokens=1))
    with pytest.raises(ValueError, match="has 1 special tokens per sequence, the tokenizer of"):
        embed_files(plan, tmp_path / "out", checkpoint)
    GreedyPacker(90).pack_lengths([5, 6]).save(plan)
    with pytest.raises(ValueError, match="does not have the names of its input"):
        embed_files(plan, tmp_path / "out", checkpoint)
    pack_files(fasta, plan, GreedyPacker(90, LIMIT))
    fasta.write_text(fasta.read_text().replace(">s1\n", ">s1 \n"))
    with pytest.raises(ValueError, match=r"has changed since .*plan\.parquet was made"):
        embed_files(plan, tmp_path / "out", checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.parquet", "proteins.fasta"]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("when", "sequences"), [("loading", False), ("loading", True), ("embedding", True)]
)
def test_a_plan_that_is_replaced_meanwhile(
    tmp_path: Path, checkpoint: Path, when: str, sequences: bool
) -> None:
    plan = tmp_path / "plan.parquet"
    packer = GreedyPacker(100, LIMIT)
    pack_files(write(tmp_path), plan, packer, sequences=sequences)
    other = tmp_path / "other.parquet"
    reversed_ones = [text[::-1].strip("*") for text in SEQUENCES]
    pack_files(
        write(tmp_path, reversed_ones, "b.fa"), other, GreedyPacker(100, LIMIT), sequences=sequences
    )

    def progress(stage: str, _done: int, _total: int | None) -> None:
        if stage == when and other.exists():
            other.replace(plan)

    with pytest.raises(ValueError, match="changed"):
        embed_files(plan, tmp_path / "out", checkpoint, progress=progress)


def test_plans_and_files_are_different_runs(tmp_path: Path, checkpoint: Path) -> None:
    fasta, plan = write(tmp_path), tmp_path / "plan.parquet"
    pack_files(fasta, plan, GreedyPacker(4096))
    embed_files(plan, tmp_path / "plan", checkpoint)
    embed_files(fasta, tmp_path / "files", checkpoint)
    with pytest.raises(ValueError, match="cannot be resumed: it was made of a plan; give a new"):
        embed_files(fasta, tmp_path / "plan", checkpoint)
    with pytest.raises(ValueError, match="cannot be resumed: it was made of FASTA files; give a"):
        embed_files(plan, tmp_path / "files", checkpoint)
