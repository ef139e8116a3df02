"""Packing plans on disk: written, read, and checked against their input."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.data.plan import Layout, PackingPlan
from virnucpro.files.fasta import ReadOptions
from virnucpro.files.output import replacing
from virnucpro.files.sequences import Sequences, Source
from virnucpro.files.tables import as_arrow, texts_as_arrow
from virnucpro.kernel.limits import Limits

# The key of the schema's metadata, and the version of what stands there.
KEY = b"virnucpro"
VERSION = 4
# Rows of a row group: batches are not split between groups.
GROUP = 2**17
COLUMNS = {
    "batch": pa.int64(),
    "row": pa.int64(),
    "id": pa.string(),
    "length": pa.int64(),
    "tokens": pa.int64(),
    "truncated": pa.bool_(),
    "file": pa.dictionary(pa.int32(), pa.string()),
}


@dataclass(frozen=True)
class Totals:
    """What was read and what became of it.

    Sequences, residues and batches, but for `tokens`; `stops`, `lower_case`, `gaps` and
    `insertions` are the characters that reading changed (see `Changes`).
    """

    read: int
    packed: int
    dropped: int
    truncated: int
    empty: int
    stops: int
    lower_case: int
    gaps: int
    insertions: int
    duplicate_ids: int
    residues: int
    residues_kept: int
    residues_cut: int
    residues_dropped: int
    tokens: int
    batches: int
    first_fit_batches: int
    efficiency: float
    lower_bound: int


@dataclass(frozen=True)
class Summary:
    """What a plan file says of itself.

    Attributes:
        limits: The limits of its batches and sequences.
        method: "ffd" or "tight", as for `GreedyPacker`.
        overlong: How longer sequences were handled: "truncate", "error" or "drop".
        options: How the input was read.
        totals: What was read and what became of it.
        inputs: The files that were read.
    """

    limits: Limits
    method: str
    overlong: str
    options: ReadOptions
    totals: Totals
    inputs: list[Source]

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters by name, in plain values."""
        return {
            **self.limits.to_dict(),
            "method": self.method,
            "overlong": self.overlong,
            **asdict(self.options),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return it in plain values."""
        return {"version": VERSION, **asdict(self)}


def write_plan(
    path: str | PathLike[str],
    plan: PackingPlan,
    sequences: Sequences,
    summary: Summary,
    rows: NDArray[np.int64] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a plan as Parquet, one row a sequence in order of batches and places.

    The columns are `batch` (int64; null for sequences that were dropped, which come last), `row`
    (int64, the place among all sequences read), `id` (string), `length` (int64, residues in the
    input), `tokens` (int64, as packed; null where dropped), `truncated` (bool) and `file` (string).
    Row groups hold whole batches, and their statistics tell which. The summary stands in the
    schema's metadata under ``virnucpro``, as JSON. The same arguments give the same bytes.

    Args:
        path: The file to write. It appears when it is complete; one that is there already stays
            as it is until then.
        plan: The plan.
        sequences: All sequences that were read.
        summary: What to say of them.
        rows: Which of the sequences the plan's rows are; None for all.
        progress: Called with the number of rows written so far, now and then.

    Raises:
        OSError: The file cannot be written.
    """
    schema = pa.schema(COLUMNS.items(), metadata={KEY: json.dumps(summary.as_dict())})
    names = texts_as_arrow([source.name for source in sequences.sources])

    def table(batches: Any, of_rows: NDArray[np.int64], tokens: Any, truncated: Any) -> Any:
        files = as_arrow(sequences.file_of(of_rows).astype(np.int32))
        columns = [
            batches,
            as_arrow(of_rows),
            sequences.ids.take(as_arrow(of_rows)).cast(pa.string()),
            as_arrow(sequences.lengths[of_rows]),
            tokens,
            as_arrow(truncated),
            pa.DictionaryArray.from_arrays(files, names),
        ]
        return pa.table(columns, schema=schema)

    with (
        replacing(path) as unfinished,
        pq.ParquetWriter(
            unfinished, schema, use_dictionary=["batch", "length", "tokens", "file"]
        ) as writer,
    ):
        written = 0
        for first, last in group_batches(plan.offsets):
            slots = plan.indices[plan.offsets[first] : plan.offsets[last]]
            of_rows = slots.astype(np.int64) if rows is None else rows[slots]
            lengths = sequences.lengths[of_rows]
            batches = np.repeat(np.arange(first, last), np.diff(plan.offsets[first : last + 1]))
            tokens = plan.limits.tokens(lengths)
            truncated = lengths > plan.limits.max_residues
            group = table(as_arrow(batches), of_rows, as_arrow(tokens), truncated)
            writer.write_table(group, row_group_size=len(group))
            written += len(slots)
            progress(written)
        if rows is not None:
            is_dropped = np.ones(len(sequences.lengths), np.bool_)
            is_dropped[rows] = False
            dropped = np.flatnonzero(is_dropped)
            for first in range(0, len(dropped), GROUP):
                of_rows = dropped[first : first + GROUP]
                nulls = pa.nulls(len(of_rows), pa.int64())
                none = np.zeros(len(of_rows), np.bool_)
                writer.write_table(table(nulls, of_rows, nulls, none))


def group_batches(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield first and last batch of groups of about `GROUP` rows."""
    first = 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + GROUP, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def read_summary(path: str | PathLike[str]) -> Summary:
    """Return what a plan file says of itself.

    Raises:
        ValueError: The file is no plan, or one of a version that is not known here.
        OSError: It cannot be read.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        found = json.loads(metadata[KEY])
        version = found["version"]
        if version != VERSION:
            raise ValueError(f"a plan of version {version!r}, which is not known here")
        names = {field.name for field in fields(Totals)}
        summary = Summary(
            limits=Limits.from_dict(found["limits"]),
            method=found["method"],
            overlong=found["overlong"],
            options=ReadOptions(**found["options"]),
            totals=Totals(**{name: found["totals"][name] for name in names}),
            inputs=[Source(**source) for source in found["inputs"]],
        )
        check_types(summary)
        return summary
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a plan that virnucpro wrote") from error
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error


def check_types(summary: Summary) -> None:
    """Raise TypeError unless the values of a summary that was read are of their types."""
    kinds = {field.name: (int,) for field in fields(Totals)} | {"efficiency": (float, int)}
    for name, value in asdict(summary.totals).items():
        if type(value) not in kinds[name]:
            raise TypeError(f"{name} is {value!r}")
    if summary.method not in ("ffd", "tight"):
        raise TypeError(f"method is {summary.method!r}")
    if not isinstance(summary.overlong, str):
        raise TypeError(f"overlong is {summary.overlong!r}")
    for source in summary.inputs:
        if (type(source.name), type(source.sha256)) != (str, str):
            raise TypeError("an input has no name")
        if (type(source.bytes), type(source.sequences)) != (int, int):
            raise TypeError("an input has no size")
    if not summary.inputs:
        raise TypeError("there are no inputs")


def read_table(path: str | PathLike[str]) -> Any:
    """Return the rows of a plan file.

    Raises:
        ValueError: A column is missing or of another type, or the file is damaged.
    """
    try:
        table = pq.read_table(path)
        for name, kind in COLUMNS.items():
            if table.schema.names.count(name) != 1:
                raise ValueError(f"no column {name!r}, or more than one")
            if table.schema.field(name).type != kind:
                raise ValueError(f"column {name!r} is of type {table.schema.field(name).type}")
        for name in ("row", "id", "length", "truncated", "file"):
            if table[name].null_count:
                raise ValueError(f"column {name!r} has nulls")
        place = table.schema.get_field_index("id")
        # All IDs together may have more bytes than 32-bit offsets can tell.
        table = table.set_column(place, "id", table["id"].cast(pa.large_string()))
        return table.combine_chunks()
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise OSError(f"{path}: {error}") from error


def sum_up(
    plan: PackingPlan, sequences: Sequences, rows: NDArray[np.int64] | None, duplicate_ids: int
) -> Totals:
    """Return what became of sequences of which these rows were packed (None for all)."""
    lengths = sequences.lengths
    residues = int(lengths.sum())
    packed = residues if rows is None else int(lengths[rows].sum())
    return Totals(
        read=len(lengths),
        packed=plan.num_sequences,
        dropped=len(lengths) - plan.num_sequences,
        truncated=plan.num_truncated,
        empty=int(np.count_nonzero(lengths == 0)),
        **asdict(sequences.changes),
        duplicate_ids=duplicate_ids,
        residues=residues,
        residues_kept=packed - plan.truncated_residues,
        residues_cut=plan.truncated_residues,
        residues_dropped=residues - packed,
        tokens=plan.total_tokens,
        batches=len(plan),
        first_fit_batches=first_fit_batches(plan),
        efficiency=plan.efficiency,
        lower_bound=plan.lower_bound,
    )


def first_fit_batches(layout: Layout) -> int:
    """Return how many batches First-Fit Decreasing makes of the same sequences."""
    return kernel.first_fit_decreasing(layout.core.counts).num_batches
