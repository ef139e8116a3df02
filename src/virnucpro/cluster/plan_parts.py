"""Write plans as folders of Parquet files, each by a task."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from virnucpro.files.output_folder import write_into
from virnucpro.files.plan_reader import METADATA
from virnucpro.files.plan_writer import DICTIONARIES, ROW_GROUP_SIZE, split_batches
from virnucpro.files.sequences import InputFile
from virnucpro.files.tables import as_arrow, strings_as_arrow
from virnucpro.kernel.limits import Limits


class PlanFolder(NamedTuple):
    """What all files of a plan have in common.

    Attributes:
        folder: The folder to write into.
        name: What errors call the plan.
        schema: Their schema.
        inputs: The input files.
        limits: The limits of the plan.
    """

    folder: str
    name: str
    schema: Any
    inputs: Sequence[InputFile]
    limits: Limits

    def describe(self, table: pa.Table) -> pa.Table:
        """Return rows with the columns of the plan, given those of an exchange."""
        rows = table["row"].to_numpy()
        ends = np.cumsum([file.sequences for file in self.inputs])
        files = np.searchsorted(ends, rows, side="right").astype(np.int32)
        names = strings_as_arrow([file.text for file in self.inputs])
        is_dropped, is_split = "batch" not in table.column_names, "fragment" in self.schema.names
        is_overlong = pc.greater(table["length"], self.limits.max_residues)
        columns = {name: table[name] for name in table.column_names}
        columns["file"] = pa.DictionaryArray.from_arrays(as_arrow(files), names)
        columns["truncated"] = pc.and_(is_overlong, not is_split and not is_dropped)
        for field in self.schema:
            if field.name not in columns or (field.name == "sequence" and is_dropped):
                columns[field.name] = pa.nulls(len(rows), field.type)
            elif pa.types.is_integer(field.type):
                columns[field.name] = columns[field.name].cast(field.type)
        return pa.table([columns[name] for name in self.schema.names], schema=self.schema)


def write_part(table: pa.Table, number: int, plan: PlanFolder) -> None:
    """Write rows in order of batches and slots to the file of a number, in groups of batches."""
    batches = table["batch"].to_numpy()
    offsets = np.append(np.flatnonzero(np.diff(batches, prepend=-1)), len(batches))
    has_residues = "sequence" in plan.schema.names
    groups = split_batches(offsets, plan.limits.max_tokens_per_batch, has_residues)
    ends = [int(offsets[end]) for _, end in groups]
    write_groups(plan.describe(table), [0, *ends], plan, number)


def write_dropped(
    plan: PlanFolder, number: int, first: int, num_rows: int, *tables: pa.Table
) -> None:
    """Write some of the dropped rows of tables to the file of a number."""
    table = plan.describe(pa.concat_tables(tables).slice(first, num_rows))
    write_groups(table, [*range(0, len(table), ROW_GROUP_SIZE), len(table)], plan, number)


def write_groups(table: pa.Table, edges: Sequence[int], plan: PlanFolder, number: int) -> None:
    """Write a file of the plan, with a row group between two edges each."""
    options = {"use_dictionary": [name for name in DICTIONARIES if name in plan.schema.names]}
    # Files are read in order of their names.
    with (
        write_into(plan.folder, f"part-{number:05}.parquet", plan.name) as path,
        pq.ParquetWriter(path, plan.schema, write_page_checksum=True, **options) as writer,
    ):
        for begin, end in itertools.pairwise(edges):
            writer.write_table(table.slice(begin, end - begin), row_group_size=end - begin)


def write_metadata(plan: PlanFolder, metadata: Any) -> None:
    """Write the file of a plan with its schema and metadata."""
    with write_into(plan.folder, METADATA, plan.name) as path:
        pq.write_metadata(plan.schema.with_metadata(metadata), path)
