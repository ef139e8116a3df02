"""Write and read plans as Parquet files, with a summary in the metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.data.plan import PackingPlan
from virnucpro.files.fasta import ReadOptions, check_exists
from virnucpro.files.output import atomic_write
from virnucpro.files.sequences import InputFile, Sequences
from virnucpro.files.tables import as_arrow, strings_as_arrow
from virnucpro.kernel.limits import Limits

# The key of the summary in the schema's metadata, and the version of its format.
KEY = b"virnucpro"
VERSION = 4
# Maximum rows per row group, unless a single batch has more.
ROW_GROUP_SIZE = 2**17
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
    """The totals of a plan and its input.

    Attributes:
        read: Sequences read, packed or dropped.
        packed: Sequences in batches.
        dropped: Sequences without a batch, because they were too long.
        truncated: Sequences packed with only their first residues.
        empty: Sequences without residues.
        stops: Stops (``*``) removed when reading; see `ReadChanges`.
        lower_case: Lower-case letters converted to upper case when reading.
        gaps: Gaps removed when reading.
        insertions: Lower-case letters removed when reading.
        duplicate_ids: Sequences with the ID of an earlier sequence.
        residues: Residues read, whether kept, truncated or dropped.
        residues_kept: Residues in batches.
        residues_truncated: Residues removed from truncated sequences.
        residues_dropped: Residues of dropped sequences.
        tokens: Tokens in batches, including special tokens.
        batches: Number of batches.
        first_fit_batches: Number of batches by First-Fit Decreasing for the same sequences.
        efficiency: `tokens` divided by the sum of the budgets of all batches.
        lower_bound: Lower bound on the number of batches of any packing.
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
    residues_truncated: int
    residues_dropped: int
    tokens: int
    batches: int
    first_fit_batches: int
    efficiency: float
    lower_bound: int


@dataclass(frozen=True)
class Summary:
    """The summary of a plan, which its file stores in the metadata.

    Attributes:
        limits: The limits on batches and sequences.
        method: The packing method, "ffd" or "tight".
        overlong: How sequences above the limit were handled: "truncate", "error" or "drop".
        options: How the input was read.
        totals: The totals of the plan and its input.
        inputs: The input files, in order.
    """

    limits: Limits
    method: str
    overlong: str
    options: ReadOptions
    totals: Totals
    inputs: list[InputFile]

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the plan by name, as plain values."""
        return {
            **self.limits.to_dict(),
            "method": self.method,
            "overlong": self.overlong,
            **asdict(self.options),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values, with a version."""
        return {"version": VERSION, **asdict(self)}


def write_plan(
    path: str | PathLike[str],
    plan: PackingPlan,
    sequences: Sequences,
    summary: Summary,
    rows: NDArray[np.int64] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a plan as a Parquet file with one row per sequence, in order of batches and slots.

    The columns are `batch` (int64; null for dropped sequences, which come last), `row` (int64,
    position among all sequences read), `id` (string), `length` (int64, residues in the input),
    `tokens` (int64, as packed; null for dropped sequences), `truncated` (bool) and `file` (string).
    Row groups hold whole batches, and their statistics give the range of batches. The summary is
    stored as JSON in the schema's metadata, under ``virnucpro``. The same arguments give the same
    bytes.

    Args:
        path: The file to write. An existing file is replaced only when the new one is complete.
        plan: The plan.
        sequences: All sequences that were read.
        summary: The summary to store.
        rows: The rows of `sequences` that were packed; None for all.
        progress: Called from time to time with the number of rows written so far.

    Raises:
        OSError: The file cannot be written.
    """
    schema = pa.schema(COLUMNS.items(), metadata={KEY: json.dumps(summary.to_dict())})
    names = strings_as_arrow([file.name for file in sequences.inputs])

    def table(batches: Any, chosen: NDArray[np.int64], tokens: Any, truncated: Any) -> Any:
        files = as_arrow(sequences.file_of(chosen).astype(np.int32))
        columns = [
            batches,
            as_arrow(chosen),
            sequences.ids.take(as_arrow(chosen)).cast(pa.string()),
            as_arrow(sequences.lengths[chosen]),
            tokens,
            as_arrow(truncated),
            pa.DictionaryArray.from_arrays(files, names),
        ]
        return pa.table(columns, schema=schema)

    with (
        atomic_write(path) as unfinished,
        pq.ParquetWriter(
            unfinished, schema, use_dictionary=["batch", "length", "tokens", "file"]
        ) as writer,
    ):
        num_written = 0
        for begin, end in split_batches(plan.offsets):
            slots = plan.indices[plan.offsets[begin] : plan.offsets[end]]
            chosen = slots.astype(np.int64) if rows is None else rows[slots]
            lengths = sequences.lengths[chosen]
            batches = np.repeat(np.arange(begin, end), np.diff(plan.offsets[begin : end + 1]))
            tokens = plan.limits.tokens(lengths)
            truncated = lengths > plan.limits.max_residues
            group = table(as_arrow(batches), chosen, as_arrow(tokens), truncated)
            writer.write_table(group, row_group_size=len(group))
            num_written += len(slots)
            progress(num_written)
        if rows is not None:
            is_dropped = np.ones(len(sequences.lengths), np.bool_)
            is_dropped[rows] = False
            dropped = np.flatnonzero(is_dropped)
            for begin in range(0, len(dropped), ROW_GROUP_SIZE):
                chosen = dropped[begin : begin + ROW_GROUP_SIZE]
                nulls = pa.nulls(len(chosen), pa.int64())
                writer.write_table(table(nulls, chosen, nulls, np.zeros(len(chosen), np.bool_)))


def split_batches(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the range of batches, begin and end, of each row group."""
    begin = 0
    while begin < len(offsets) - 1:
        end = int(np.searchsorted(offsets, offsets[begin] + ROW_GROUP_SIZE, side="right")) - 1
        end = max(end, begin + 1)
        yield begin, end
        begin = end


def read_summary(path: str | PathLike[str]) -> Summary:
    """Return the summary of a plan file.

    Raises:
        ValueError: The file is not a plan file, or of another version.
        OSError: The file cannot be read.
    """
    check_exists(Path(path))
    try:
        metadata = pq.read_schema(path).metadata
    except pa.ArrowException as error:
        raise not_a_plan(path, "not Parquet, or damaged") from error
    except OSError as error:
        raise OSError(f"{path}: cannot be read ({error.strerror or error})") from error
    state = parse_metadata(path, metadata)
    try:
        summary = Summary(
            limits=Limits.from_dict(state["limits"]),
            method=state["method"],
            overlong=state["overlong"],
            options=ReadOptions(**state["options"]),
            totals=Totals(**{field.name: state["totals"][field.name] for field in fields(Totals)}),
            inputs=[InputFile(**file) for file in state["inputs"]],
        )
        check_values(summary)
    except KeyError as error:
        raise not_a_plan(path, f"no {error} in its summary") from error
    except (TypeError, ValueError) as error:
        raise not_a_plan(path, str(error)) from error
    return summary


def parse_metadata(path: str | PathLike[str], metadata: Any) -> dict[str, Any]:
    """Return the JSON object in the metadata of a plan file of this version."""
    try:
        state: dict[str, Any] = json.loads((metadata or {})[KEY])
        version = state["version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise not_a_plan(path, "no summary in its metadata") from error
    if version != VERSION:
        raise ValueError(
            f"{path}: plan file of version {version!r} (this release reads version {VERSION})"
        )
    return state


def not_a_plan(path: str | PathLike[str], reason: str) -> ValueError:
    """Return the error for a file that is not a plan file."""
    return ValueError(f"{path}: not a plan file ({reason})")


# The types of the fields of `Totals` and `InputFile`; JSON may turn a float into an int.
FIELD_TYPES = {"int": (int,), "float": (float, int), "str": (str,)}


def check_values(summary: Summary) -> None:
    """Raise TypeError or ValueError if a value in a summary read from a file is not valid."""
    parts: list[Totals | InputFile] = [summary.totals, *summary.inputs]
    for part in parts:
        for field in fields(part):
            value = getattr(part, field.name)
            if type(value) not in FIELD_TYPES[str(field.type)]:
                raise TypeError(f"invalid {field.name} {value!r}")
    if summary.method not in ("ffd", "tight"):
        raise ValueError(f"invalid method {summary.method!r}")
    if summary.overlong not in ("truncate", "error", "drop"):
        raise ValueError(f"invalid overlong {summary.overlong!r}")
    if not summary.inputs:
        raise ValueError("no inputs")


def read_rows(path: str | PathLike[str]) -> Any:
    """Return the rows of a plan file, an Arrow table with the columns of `write_plan`.

    Raises:
        ValueError: A column is missing, of another type, or contains nulls; or the file is damaged.
        OSError: The file cannot be read.
    """
    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: damaged ({str(error).splitlines()[0]})") from error
    except OSError as error:
        raise OSError(f"{path}: cannot be read ({error.strerror or error})") from error
    for name, kind in COLUMNS.items():
        if table.schema.names.count(name) != 1:
            found = "more than one" if name in table.schema.names else "no"
            raise not_a_plan(path, f"{found} column {name!r}")
        if table.schema.field(name).type != kind:
            raise not_a_plan(path, f"column {name!r} has type {table.schema.field(name).type}")
        if name not in ("batch", "tokens") and table[name].null_count:
            raise not_a_plan(path, f"column {name!r} contains nulls")
    # 32-bit offsets cannot address the bytes of all IDs together.
    place = table.schema.get_field_index("id")
    table = table.set_column(place, "id", table["id"].cast(pa.large_string()))
    return table.combine_chunks()


def compute_totals(
    plan: PackingPlan, sequences: Sequences, rows: NDArray[np.int64] | None, duplicate_ids: int
) -> Totals:
    """Return the totals of a plan for the given rows of the sequences; None for all rows."""
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
        residues_truncated=plan.truncated_residues,
        residues_dropped=residues - packed,
        tokens=plan.total_tokens,
        batches=len(plan),
        first_fit_batches=kernel.first_fit_decreasing(plan.core.counts).num_batches,
        efficiency=plan.efficiency,
        lower_bound=plan.lower_bound,
    )
