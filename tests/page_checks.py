"""What the blocks of pages must have found, in the environment of each page; see `pages`.

A check gets the names of the session and what each block printed.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Names = dict[str, Any]
FASTA = ["proteins.fasta.gz", "more.fasta.gz"]
WIDTH = 32


def read_all(names: list[str]) -> list[tuple[str, str]]:
    """Return the IDs and sequences of FASTA files."""
    from virnucpro.files.fasta import read_fasta

    return [record for name in names for record in read_fasta(name)]


def vectors(folder: str) -> dict[int, NDArray[Any]]:
    """Return the embeddings in a folder by row; those that are null as NaN."""
    import pyarrow.parquet as pq

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


def check_embed(names: Names, _printed: list[str]) -> None:
    """All ways to embed give the same vectors."""
    records = read_all(FASTA)
    lengths = [len(sequence) for _, sequence in records]
    rows = range(len(records))
    expected = {row: names["embeddings"][row].numpy() for row in rows}
    assert_near("embeddings", expected)
    of_first = {row: expected[row] for row in range(len(read_all(FASTA[:1])))}
    assert_near("sharded", of_first)
    assert_near("from_plan", of_first)
    assert_near("states", of_first, atol=1e-2)
    whole = vectors("whole")
    long = {row for row in rows if lengths[row] > 1022}
    for row, vector in of_first.items():
        assert np.allclose(whole[row], vector, atol=1e-5) == (row not in long)
    assert long & whole.keys()
    np.testing.assert_allclose(names["matrix"], np.stack(list(expected.values())), atol=1e-5)
    assert np.isnan(names["matrix"]).any(axis=1).tolist() == [not length for length in lengths]
    assert names["frame"]["row"].to_list() == list(rows)
    ids = [identifier for identifier, _ in records]
    assert sorted(names["truncated"]["id"].to_pylist()) == sorted(ids[row] for row in long)
    nearest, similarity = names["nearest"][0]
    assert nearest == ids[0]
    assert abs(similarity - 1) < 1e-6
    assert names["residues"].shape[1] == WIDTH
    job = names["run"]
    assert (job.complete, job.written, job.failed) == (job.parts, 0, [])
    assert job.summary.totals.truncated == len(long)
    assert not list(Path().glob("*/.*"))


def check_use_a_plan(names: Names, _printed: list[str]) -> None:
    """Everything that a plan feeds has all its sequences, within the budget."""
    records = read_all(FASTA)
    assert names["embeddings"].keys() == names["same"].keys() == set(range(len(records)))
    assert all(
        (embedding == names["same"][row]).all() or not records[row][1]
        for row, embedding in names["embeddings"].items()
    )
    assert names["summary"].totals.read == len(records)
    split = set(names["frame"]["row"][names["frame"]["length"] > 1022])
    assert split
    assert split == set(names["dropped"]["row"])
    rows = Counter(names["fragments"].rows.tolist())
    assert rows.keys() == set(range(len(records)))
    assert {row for row, number in rows.items() if number > 1} == split
    record = names["record"]
    assert len(record["sequence"]) == record["stop"] - record["start"]
    plan, packed = names["plan"], names["packed"]
    assert sum(len(batch) for batch in packed) == plan.num_sequences
    for batch in packed:
        assert sum(len(record["input_ids"]) for record in batch) <= 1024
        for record in batch:
            start, stop = record["start"], record["stop"]
            assert record["input_ids"] == record["labels"] == list(range(start, stop))
    for batch in names["loader"]:
        assert batch["input_ids"].shape == batch["labels"].shape
        assert batch["cu_seq_lens_q"][-1] == batch["input_ids"].numel() <= 1024
    assert names["with_empty"].dropped.tolist() == [1]
    assert names["plan_of_sources"].group_offsets.tolist() == [0, 1, 2]
    assert [rows.tolist() for rows in names["plan_of_sources"]] == [[3, 1], [0, 2]]
    assert [rows.tolist() for rows in names["in_order"]] == [[0, 1], [2], [3]]
    both = names["both"]
    assert {record["row"] for batch in range(len(both)) for record in both[batch]} == set(range(5))
    assert [record["row"] for record in both[len(plan)]] == [3, 4]


def check_one_shape(names: Names, _printed: list[str]) -> None:
    """All batches have the shape of the plan, and run captured."""
    shapes = {
        (len(batch["input_ids"]), len(batch["cu_seqlens"]), batch["max_seqlen"])
        for batch in names["batches"]
    }
    (shape,) = shapes
    assert shape[0] == names["plan"].shape.tokens == 4096
    assert names["captured"].num_plain_calls == 0
    embeddings = names["embeddings"]
    assert embeddings.keys() == {identifier for identifier, _ in read_all(["proteins.fasta"])}
    assert all(embedding.isfinite().all() for embedding in embeddings.values())


def check_sql(names: Names, _printed: list[str]) -> None:
    """DuckDB and Polars write what the package packs."""
    import pyarrow.parquet as pq

    from virnucpro.data import GreedyPacker, PackingPlan, pack_files

    files = sorted(map(str, Path("lengths").iterdir()))
    ids, lengths = (
        [value for file in files for value in pq.read_table(file)[column].to_pylist()]
        for column in ("id", "length")
    )
    plan = GreedyPacker(4096).pack_lengths(lengths, ids)
    layout = GreedyPacker(4096).lay_out(GreedyPacker(4096).count(lengths))
    assert names["layout"] == layout
    assert layout.num_truncated > 500
    expected = {
        "batch": np.repeat(np.arange(len(plan)), np.diff(plan.offsets)).tolist(),
        "slot": [slot for rows in plan for slot in range(len(rows))],
        "id": [ids[row] for row in plan.indices],
        "length": [lengths[row] for row in plan.indices],
        "tokens": [min(lengths[row], 1022) + 2 for row in plan.indices],
    }
    pack_files(files, "local.parquet", GreedyPacker(4096))
    assert PackingPlan.load("local.parquet") == plan
    for name in ("duckdb.parquet", "polars.parquet"):
        table = pq.read_table(name)
        assert table.column_names == list(expected)
        assert table.to_pydict() == expected


def check_scripts(_names: Names, printed: list[str]) -> None:
    """All ranks of each script did equally many steps, which are as many as there are batches."""
    # Lines of two processes may run together.
    ends = [set(re.findall(r"rank (\d): (?:epoch \d )?ended after step (\d+)", p)) for p in printed]
    assert any(ends)
    for found in filter(None, ends):
        # With 35 batches per epoch; the Trainer counts updates of two batches in two epochs.
        assert found in ({("0", "35"), ("1", "35")}, {("0", "36"), ("1", "36")}, {("0", "10")})


def check_batches(names: Names, _printed: list[str]) -> None:
    """Groups are in order, and joined plans have all rows."""
    assert names["batches"] == [[2, 0, 1], [5, 4], [3]]
    assert names["plan"].num_sequences == 8


def check_resume(names: Names, _printed: list[str]) -> None:
    """What is left of an epoch has no row of what was done."""
    assert (names["of_trainer"]["epoch"], names["of_trainer"]["done"]) == (1, [[2, 4]])
    rows = [row for some in (names["done"], names["left"]) for batch in some for row in batch]
    assert sorted(rows) == list(range(len(names["lengths"])))


def check_stream(names: Names, _printed: list[str]) -> None:
    """Nothing is lost, and the empty document is dropped."""
    assert sum(names["sizes"]) == sum(range(500))
    assert sum(names["sizes"]) > 0.99 * 1024 * len(names["sizes"])
