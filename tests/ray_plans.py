"""Inputs for plans that Ray writes, and their comparison with those of one machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from virnucpro.files.plan_reader import PlanFile, read_summary


def write_tables(folder: Path, sizes: dict[str, int]) -> list[str]:
    """Write a table of each size, with IDs that repeat; return their paths."""
    random = np.random.default_rng(0)
    for name, size in sizes.items():
        some_ids = [f"s{number}" for number in random.integers(0, 600, size)]
        columns = {
            "size": random.integers(0, 40, size) ** 2,
            "name": pa.array(some_ids, pa.string()),
        }
        pq.write_table(pa.table(columns), folder / name, row_group_size=70)
    return [str(folder / name) for name in sizes]


def write_fasta(folder: Path, names: str) -> list[str]:
    """Write FASTA files with stops, lower case and gaps, and long and empty sequences."""
    random = np.random.default_rng(1)
    for name in names:
        records = []
        for _ in range(60):
            letters = random.choice(list("MKTAYacd-"), random.integers(0, 90))
            records.append(f">s{random.integers(0, 150)} x\n{''.join(letters)}*\n")
        (folder / f"{name}.fa").write_text("".join(records))
    return [str(folder / f"{name}.fa") for name in names]


def same_plans(folder: Path, file: Path) -> list[Path]:
    """Check that a folder is the same plan as a file; return its parts."""
    assert read_summary(folder) == read_summary(file)
    of_folder, of_file = PlanFile(folder), PlanFile(file)
    assert of_folder.schema.equals(of_file.schema, check_metadata=True)
    parts = sorted(path for path in folder.iterdir() if path.name != "_common_metadata")
    assert [part.name for part in parts] == [f"part-{n:05}.parquet" for n in range(len(parts))]
    tables = [pq.read_table(part) for part in parts]
    assert pa.concat_tables(tables).equals(pq.read_table(file))
    seen: set[int] = set()
    for part in parts:
        metadata = pq.ParquetFile(part)
        for group in range(metadata.num_row_groups):
            batches = set(metadata.read_row_group(group, ["batch"])["batch"].to_pylist()) - {None}
            assert not batches & seen
            seen |= batches
    return parts
