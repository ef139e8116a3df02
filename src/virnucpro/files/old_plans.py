"""Read plan files of version 4: Parquet without a layout, and Arrow with one row per batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from virnucpro import kernel
from virnucpro.data.layout import Layout
from virnucpro.data.plan import PackingPlan
from virnucpro.files.plan_schema import explain_errors
from virnucpro.files.plan_summary import Summary, decode_layout, not_a_plan
from virnucpro.files.tables import PLAN_KEY, open_source, read_arrow
from virnucpro.kernel.arrow import check_array


def is_old_arrow(schema: pa.Schema) -> bool:
    """Return whether a schema is that of an Arrow file of version 4."""
    return bool(schema.names == ["rows", "tokens"])


def load_saved(path: Path, schema: pa.Schema, name: str) -> PackingPlan:
    """Return the plan of an Arrow file of version 4, with its schema, read into memory.

    Messages have the name.

    Raises:
        ValueError: The file is damaged.
        OSError: The file cannot be read.
    """
    with explain_errors(name), open_source(path) as source:
        table = pa.Table.from_batches(read_arrow(source, schema.names), schema)
        check_array(table, "its columns")
        table = table.combine_chunks()
    if table.schema.field("rows").type not in (
        pa.large_list(pa.int32()),
        pa.large_list(pa.int64()),
    ):
        raise not_a_plan(name, f"column 'rows' has type {table.schema.field('rows').type}")
    try:
        state = json.loads((table.schema.metadata or {})[PLAN_KEY])
    except (KeyError, ValueError, RecursionError) as error:
        raise not_a_plan(name, "no summary in its metadata") from error
    layout = decode_layout(name, state)
    rows = pa.concat_arrays([pa.array([], table["rows"].type), *table["rows"].chunks])
    if rows.null_count or rows.flatten().null_count:
        raise not_a_plan(name, "column 'rows' contains nulls")
    indices = rows.flatten().to_numpy()
    offsets = np.append(0, np.cumsum(rows.value_lengths().to_numpy()))
    if not np.array_equal(offsets, kernel.batch_offsets(layout.core)):
        raise not_a_plan(name, "the rows of a plan do not match its layout")
    if len(indices) and (indices.min() < 0 or (np.bincount(indices) > 1).any()):
        raise not_a_plan(name, "a row is negative or occurs more than once")
    return PackingPlan(layout, indices)


def find_layout(path: str, summary: Summary, table: pa.Table) -> Layout:
    """Return the layout of the batches of a Parquet file of version 4.

    Args:
        path: The file, for messages.
        summary: Its summary.
        table: Its columns `batch` and `tokens`.

    Raises:
        ValueError: The batches do not make a layout.
    """
    table = table.filter(pc.is_valid(table["batch"])).combine_chunks()
    if table["tokens"].null_count:
        raise not_a_plan(path, "column 'tokens' contains nulls")
    batch, tokens = (table[name].to_numpy().astype(np.int64) for name in ("batch", "tokens"))
    is_first = np.append(True, (np.diff(batch) != 0) | (np.diff(tokens) != 0))[: len(batch)]
    # The sequences of one size in one batch: their number, and the slot of the first.
    begins = np.flatnonzero(is_first)
    batch, tokens = batch[begins], tokens[begins]
    per_batch = np.diff(np.append(begins, len(is_first)))
    opens = np.append(True, np.diff(batch) != 0)[: len(batch)]
    slots = begins - begins[opens][np.cumsum(opens) - 1]
    order = np.lexsort((batch, -tokens))
    columns = (tokens[order], batch[order], per_batch[order], slots[order])
    tokens, batch, per_batch, slots = columns
    # A run begins where anything but the number of the batch, which increases by one, differs.
    steps = [np.diff(values) for values in columns]
    differs = (steps[0] != 0) | (steps[1] != 1) | (steps[2] != 0) | (steps[3] != 0)
    runs = np.flatnonzero(np.append(True, differs)[: len(order)])
    sizes, first_of_size = np.unique(-tokens, return_index=True)
    before = np.cumsum(per_batch) - per_batch
    in_size = before - before[first_of_size][np.searchsorted(sizes, -tokens)]
    totals = summary.totals
    try:
        counts = kernel.make_counts(
            limits=summary.limits,
            tokens=-sizes,
            sequences=np.add.reduceat(per_batch, first_of_size) if len(sizes) else sizes,
            num_truncated=totals.truncated,
            truncated_residues=totals.residues_truncated,
        )
        core = kernel.make_layout(
            counts=counts,
            num_batches=totals.batches,
            proven_bound=totals.lower_bound if summary.method == "tight" else 0,
            first_run=np.searchsorted(runs, np.append(first_of_size, len(order))),
            runs={
                "first_sequence": in_size[runs],
                "first_batch": batch[runs],
                "num_batches": np.diff(np.append(runs, len(order))),
                "per_batch": per_batch[runs],
                "first_slot": slots[runs],
            },
        )
    except ValueError as error:
        raise not_a_plan(path, str(error)) from error
    return Layout(core, summary.limits)
