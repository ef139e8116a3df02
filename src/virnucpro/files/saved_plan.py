"""Plans saved as Arrow files, which are mapped into memory when they are loaded."""

from __future__ import annotations

import base64
import json
import os
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from virnucpro.data.plan import Layout, PackingPlan
from virnucpro.files.output import replacing
from virnucpro.files.plan_file import KEY, VERSION
from virnucpro.files.tables import as_arrow


def save_plan(path: str | PathLike[str], plan: PackingPlan) -> None:
    """Write a plan as an Arrow IPC file, one row a batch; see `PackingPlan.save`."""
    rows = pa.LargeListArray.from_arrays(
        as_arrow(plan.offsets.astype(np.int64, copy=False)), as_arrow(plan.indices)
    )
    tokens = as_arrow(plan.batch_tokens)
    metadata = {KEY: json.dumps({"version": VERSION, "layout": encode(plan.to_dict())})}
    schema = pa.schema([("rows", rows.type), ("tokens", pa.int64())], metadata=metadata)
    with replacing(path) as unfinished, pa.ipc.new_file(str(unfinished), schema) as writer:
        writer.write_batch(pa.record_batch([rows, tokens], schema=schema))


def load_plan(path: str | PathLike[str]) -> PackingPlan:
    """Return a plan whose arrays lie in a file that `save_plan` wrote."""
    try:
        with pa.memory_map(os.fspath(path)) as source:
            file = pa.ipc.open_file(source)
            found = json.loads(file.schema.metadata[KEY])
            if found["version"] != VERSION:
                raise ValueError(f"a plan of version {found['version']!r}, not known here")
            layout = Layout.from_dict(decode(found["layout"]))
            rows = file.get_batch(0).column("rows")
        indices, offsets = as_numpy(rows.values), as_numpy(rows.offsets)
        num_sequences = layout.num_sequences
        if (len(indices), len(offsets)) != (num_sequences, layout.num_batches + 1) or (
            (offsets[0], offsets[-1]) != (0, num_sequences) or (np.diff(offsets) < 1).any()
        ):
            raise ValueError("its rows are not those of its layout")
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: not a plan that virnucpro saved") from error
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
    return PackingPlan(layout.core, layout.limits, indices, offsets)


def as_numpy(values: Any) -> NDArray[Any]:
    """Return an Arrow array of integers without nulls as it lies in memory."""
    kind = {pa.int32(): np.int32, pa.int64(): np.int64}[values.type]
    size = np.dtype(kind).itemsize
    buffer = values.buffers()[1] or b""
    return np.frombuffer(buffer, kind, len(values), values.offset * size if buffer else 0)


def encode(value: Any) -> Any:
    """Return a dict with its arrays of int64 in base 64."""
    if isinstance(value, np.ndarray):
        return {"int64": base64.b64encode(value.astype("<i8").tobytes()).decode()}
    if isinstance(value, dict):
        return {name: encode(part) for name, part in value.items()}
    return value


def decode(value: Any) -> Any:
    """Return what was encoded."""
    if isinstance(value, dict) and value.keys() == {"int64"}:
        return np.frombuffer(base64.b64decode(value["int64"]), "<i8").astype(np.int64)
    if isinstance(value, dict):
        return {name: decode(part) for name, part in value.items()}
    return value
