"""Save plans as Arrow files, and memory-map them."""

from __future__ import annotations

import base64
import json
import os
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from virnucpro.data.layout import Layout
from virnucpro.data.plan import PackingPlan, check_rows
from virnucpro.files.fasta import check_exists
from virnucpro.files.output import atomic_write
from virnucpro.files.plan_file import KEY, VERSION, not_a_plan, parse_metadata
from virnucpro.files.tables import as_arrow


def save_plan(path: str | PathLike[str], plan: PackingPlan) -> None:
    """Write a plan as an Arrow IPC file, one row per batch; see `PackingPlan.save`."""
    rows = pa.LargeListArray.from_arrays(
        as_arrow(plan.offsets.astype(np.int64, copy=False)), as_arrow(plan.indices)
    )
    tokens = as_arrow(plan.batch_tokens)
    metadata = {
        KEY: json.dumps({"version": VERSION, "layout": encode_arrays(Layout.to_dict(plan))})
    }
    schema = pa.schema([("rows", rows.type), ("tokens", pa.int64())], metadata=metadata)
    with atomic_write(path) as unfinished, pa.ipc.new_file(str(unfinished), schema) as writer:
        writer.write_batch(pa.record_batch([rows, tokens], schema=schema))


def load_plan(path: str | PathLike[str]) -> PackingPlan:
    """Return a plan written by `save_plan`, with memory-mapped arrays.

    Raises:
        ValueError: The file is not a saved plan, damaged, or of another version.
        OSError: The file cannot be read.
    """
    check_exists(Path(os.fsdecode(path)))
    try:
        with pa.memory_map(os.fspath(path)) as source:
            file = pa.ipc.open_file(source)
            rows = file.get_batch(0).column("rows")
    except (KeyError, ValueError, pa.ArrowException) as error:
        raise not_a_plan(path, "not an Arrow file with a plan, or damaged") from error
    state = parse_metadata(path, file.schema.metadata)
    try:
        layout = Layout.from_dict(decode_arrays(state["layout"]))
        indices, offsets = as_numpy(rows.values), as_numpy(rows.offsets)
        check_rows(layout, indices, offsets)
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise not_a_plan(path, str(error)) from error
    except RecursionError as error:
        raise not_a_plan(path, "its layout is nested too deeply") from error
    return PackingPlan(layout, indices, offsets)


def as_numpy(values: Any) -> NDArray[Any]:
    """Return an Arrow array of integers without nulls, without copying."""
    kind = {pa.int32(): np.int32, pa.int64(): np.int64}[values.type]
    size = np.dtype(kind).itemsize
    buffer = values.buffers()[1] or b""
    return np.frombuffer(buffer, kind, len(values), values.offset * size if buffer else 0)


def encode_arrays(value: Any) -> Any:
    """Return a dict for JSON, with its int64 arrays encoded in Base64."""
    if isinstance(value, np.ndarray):
        return {"int64": base64.b64encode(value.astype("<i8").tobytes()).decode()}
    if isinstance(value, dict):
        return {name: encode_arrays(part) for name, part in value.items()}
    return value


def decode_arrays(value: Any) -> Any:
    """Return the dict that `encode_arrays` encoded."""
    if isinstance(value, dict) and value.keys() == {"int64"}:
        return np.frombuffer(base64.b64decode(value["int64"]), "<i8").astype(np.int64)
    if isinstance(value, dict):
        return {name: decode_arrays(part) for name, part in value.items()}
    return value
