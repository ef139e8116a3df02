"""Plans of random cases, with each way to handle sequences above the limit, and their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from strategies import Case

from virnucpro.data import GreedyPacker, PackingPlan
from virnucpro.files.fasta import ReadChanges, ReadOptions
from virnucpro.files.output import write_file
from virnucpro.files.plan_schema import checksums
from virnucpro.files.plan_summary import Summary, compute_totals, encode_arrays
from virnucpro.files.plan_writer import encoding_of, write_plan
from virnucpro.files.sequences import InputFile, Sequences
from virnucpro.files.tables import PLAN_KEY

OVERLONG = ["truncate", "drop", "split"]
SUFFIXES = [".parquet", ".arrow"]


def make_packer(case: Case, overlong: str, **options: Any) -> GreedyPacker:
    """Return the packer of a case; fragments overlap by a third of the limit."""
    packer = GreedyPacker(**case.parameters, overlong=overlong, **options)
    if overlong == "split":
        packer.overlap = packer.limits.max_residues // 3
    return packer


def lengths_for(packer: GreedyPacker, case: Case) -> list[int]:
    """Return the lengths of a case, none of which is split into many fragments."""
    if packer.overlong != "split":
        return case.lengths
    return [min(length, 5 * packer.limits.max_residues) for length in case.lengths]


def tokens_of(plan: PackingPlan) -> list[list[int]]:
    """Return the tokens of the sequences of each batch."""
    return [plan.tokens(batch).tolist() for batch in range(len(plan))]


def sequences_of(lengths: list[int], ids: list[str]) -> Sequences:
    """Return sequences as if they were read from two files."""
    half = len(lengths) // 2
    sources = [
        InputFile("first", 10, "00", half),
        InputFile("second", 20, "11", len(lengths) - half),
    ]
    array = np.array(lengths, np.int64)
    return Sequences(pa.array(ids, pa.large_string()), array, sources, ReadChanges())


def write(path: Path, sequences: Sequences, packer: GreedyPacker) -> PackingPlan:
    """Pack sequences and write the plan."""
    plan = packer.pack_lengths(sequences.lengths, sequences.ids)
    summary = Summary(
        limits=packer.limits,
        method=packer.method,
        overlong=packer.overlong,
        overlap=packer.overlap,
        empty=packer.empty,
        options=ReadOptions(),
        totals=compute_totals(plan, sequences, sequences.find_duplicates()[0]),
        inputs=sequences.inputs,
    )
    with write_file(path) as file:
        write_plan(file, encoding_of(path), plan, sequences, summary)
    return plan


def read_table(path: Path) -> pa.Table:
    """Return the columns of a plan file."""
    if path.suffix == ".parquet":
        return pq.read_table(path)
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def write_table(path: Path, table: pa.Table) -> None:
    """Write columns as a plan file, in one record batch."""
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table.combine_chunks())


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the columns or the metadata of a plan file."""
    write_table(path, change(read_table(path)))


def forge(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the columns or the metadata of a plan file, with checksums of the new columns."""
    table = change(read_table(path))
    state = json.loads(table.schema.metadata[PLAN_KEY])
    if "checksums" in state:
        state["checksums"] = encode_arrays(checksums(table))
    write_table(path, table.replace_schema_metadata({PLAN_KEY: json.dumps(state)}))


def with_values(name: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Change a column, given as a list."""

    def changed(table: Any) -> Any:
        place = table.schema.get_field_index(name)
        values = pa.array(change(table[name].to_pylist()), table.schema.field(name).type)
        return table.set_column(place, table.schema.field(name), values)

    return changed


def with_summary(change: Callable[[dict[str, Any]], Any]) -> Callable[[Any], Any]:
    """Change what is stored in the metadata, given as a dict, in place."""

    def changed(table: Any) -> Any:
        state = json.loads(table.schema.metadata[PLAN_KEY])
        change(state)
        return table.replace_schema_metadata({PLAN_KEY: json.dumps(state)})

    return changed


def with_totals(**totals: Any) -> Callable[[Any], Any]:
    """Change totals in the metadata."""
    return with_summary(lambda state: state["totals"].update(totals))
