"""Packing plans on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro.data.plan import PackingPlan


def write_plan(
    path: str | PathLike[str], plan: PackingPlan, ids: Sequence[str], lengths: NDArray[Any]
) -> None:
    """Write a plan as Parquet, one row a sequence in order of batches and places.

    The columns are `batch` (int64), `row` (int64, the place in the input), `id` (string), `length`
    (int64, residues in the input), `tokens` (int64, as packed) and `truncated` (bool).

    Args:
        path: The file to write. It appears when it is complete; one that is there already stays
            as it is until then.
        plan: The plan for `lengths`.
        ids: The ID of each sequence.
        lengths: Residues of each sequence.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(path)
    batch = np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
    length = np.asarray(lengths, dtype=np.int64)[plan.indices]
    table = pa.table(
        {
            "batch": batch,
            "row": plan.indices.astype(np.int64, copy=False),
            "id": pa.array(ids, pa.large_string()).take(pa.array(plan.indices)),
            "length": length,
            "tokens": np.minimum(length, plan.max_sequence_length) + plan.special_tokens,
            "truncated": length > plan.max_sequence_length,
        }
    )
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
