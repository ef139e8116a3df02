"""Packing plans on disk: written, read, and checked against their input."""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro.data import _core
from virnucpro.data.fasta import ReadOptions
from virnucpro.data.inputs import Sequences, Source
from virnucpro.data.limits import Limits
from virnucpro.data.packing import GreedyPacker
from virnucpro.data.plan import Layout, PackingPlan
from virnucpro.data.tables import as_arrow, texts_as_arrow

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


def check_place(path: Path) -> None:
    """Refuse a path that no file can be written to."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory")
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: is no regular file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: no such directory")


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """Give a path to write to; what is there takes the place of `path` when all went well."""
    # What a link points to is replaced, not the link.
    path = Path(path).resolve()
    check_place(path)
    unfinished = path.with_name(f".virnucpro.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            # Else the name could be on disk before what it names.
            os.fsync(file)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


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
    return _core.first_fit_decreasing(layout.core.counts).num_batches


def verify_plan(path: str | PathLike[str], sequences: Sequences) -> list[str]:
    """Return what is wrong with a plan file, given its input read anew; nothing if all is well.

    Checked are the input's hashes; that each sequence is there once, as it is in the input, and
    truncated or dropped as it should be; that batches are numbered through, keep their limits and
    have their longest sequence first; that the totals are right; and that equal sequences are in
    order of their IDs. A plan of method "ffd" has to be First-Fit Decreasing: no sequence stands in
    a batch while one before it had room for it when its turn came. One of "tight" has at most as
    many batches. This is found from the batches alone, by another way than plans are made; only the
    bound of "tight" is believed.

    Raises:
        ValueError: The file is no plan.

    Cost: O(n log n) in the number of sequences.
    """
    summary = read_summary(path)
    table = read_table(path)
    return [
        *compare_sources(summary.inputs, sequences.sources),
        *compare_rows(table, summary, sequences),
        *check_batches(table, summary),
        *compare_totals(table, summary, sequences),
    ]


def compare_sources(recorded: list[Source], found: list[Source]) -> Iterator[str]:
    """Yield how the input differs from what was recorded of it."""
    if len(recorded) != len(found):
        yield f"the plan is of {len(recorded):,} inputs, {len(found):,} were given"
    for old, new in zip(recorded, found, strict=False):
        if replace(old, name=new.name) != new:
            yield (
                f"input {new.name} has changed: {new.sequences:,} sequences in {new.bytes:,} bytes "
                f"(SHA-256 {new.sha256[:12]}...), {old.name} had {old.sequences:,} in "
                f"{old.bytes:,} ({old.sha256[:12]}...)"
            )


def column(table: Any, name: str) -> NDArray[Any]:
    """Return a column of numbers; -1 where it is null."""
    values = table[name].combine_chunks()
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    filled: NDArray[Any] = pc.fill_null(values, -1).to_numpy(zero_copy_only=False)
    return filled


def compare_rows(table: Any, summary: Summary, sequences: Sequences) -> Iterator[str]:
    """Yield how the rows of a plan differ from the sequences."""
    num_sequences = len(sequences.lengths)
    rows = column(table, "row")
    is_known = (rows >= 0) & (rows < num_sequences)
    if not is_known.all():
        yield f"row {rows[~is_known][0]:,} is not in the input ({(~is_known).sum():,} such rows)"
    times = np.bincount(rows[is_known], minlength=num_sequences)
    for what, wrong in (("missing", times == 0), ("there more than once", times > 1)):
        if wrong.any():
            row = int(np.argmax(wrong))
            name = sequences.ids[row].as_py()
            yield f"sequence {name!r} (row {row:,}) is {what} ({wrong.sum():,} such sequences)"
    table, rows = table.filter(pa.array(is_known)), rows[is_known]
    lengths = sequences.lengths[rows]
    is_overlong = lengths > summary.limits.max_residues
    is_dropped = is_overlong & (summary.overlong == "drop")
    names = pa.array([source.name for source in summary.inputs], pa.string())
    files = np.minimum(sequences.file_of(rows), len(names) - 1)
    expected = {
        "id": sequences.ids.take(pa.array(rows)),
        "length": pa.array(lengths),
        "tokens": pa.array(summary.limits.tokens(lengths), mask=is_dropped),
        "truncated": pa.array(is_overlong & ~is_dropped),
        "file": names.take(pa.array(files)),
    }
    for name, values in expected.items():
        found = table[name].combine_chunks().cast(values.type)
        differs = pc.fill_null(pc.not_equal(found, values), False).to_numpy(zero_copy_only=False)
        differs = differs | (
            pc.is_null(found).to_numpy(zero_copy_only=False)
            != pc.is_null(values).to_numpy(zero_copy_only=False)
        )
        if differs.any():
            at = int(np.argmax(differs))
            yield (
                f"{name} of row {rows[at]:,} is {found[at].as_py()!r}, not "
                f"{values[at].as_py()!r} ({differs.sum():,} such rows)"
            )
    if summary.overlong == "error" and is_overlong.any():
        row = rows[int(np.argmax(is_overlong))]
        yield f"row {row:,} is too long, which should have been an error"
    wrong = (column(table, "batch") < 0) != is_dropped
    if wrong.any():
        row = rows[int(np.argmax(wrong))]
        yield f"row {row:,} is dropped, or should be ({wrong.sum():,} such rows)"


def check_batches(table: Any, summary: Summary) -> Iterator[str]:
    """Yield what is wrong with the batches of a plan, whatever their sequences are."""
    budget = summary.limits.max_tokens_per_batch
    most = summary.limits.max_sequences_per_batch or len(table)
    batch = column(table, "batch")
    if (np.diff(column(table, "row")[batch < 0]) < 0).any():
        yield "sequences that were dropped are not in order of rows"
    if (np.diff((batch < 0).astype(np.int8)) < 0).any():
        yield "sequences that were dropped do not come last"
    table, batch = table.filter(pa.array(batch >= 0)), batch[batch >= 0]
    if len(batch) == 0:
        return
    if (np.diff(batch) < 0).any():
        yield f"rows are not in order of batches (batch {batch[:-1][np.diff(batch) < 0][0]:,})"
        order = np.argsort(batch, kind="stable")
        table, batch = table.take(pa.array(order)), batch[order]
    present = np.unique(batch)
    missing = int(present[-1]) + 1 - len(present)
    if missing:
        first = int(np.argmax(present != np.arange(len(present))))
        yield f"batch {first:,} is missing ({missing:,} such batches)"
    tokens = column(table, "tokens")
    starts = np.flatnonzero(np.append(True, np.diff(batch) != 0))
    limits = {
        "tokens": (np.add.reduceat(tokens, starts), budget),
        "sequences": (np.diff(np.append(starts, len(batch))), most),
    }
    for what, (totals, limit) in limits.items():
        if totals.max() > limit:
            worst = int(np.argmax(totals))
            yield (
                f"batch {present[worst]:,} has {totals[worst]:,} {what}, more than {limit:,} "
                f"({(totals > limit).sum():,} such batches)"
            )
    rises = (np.diff(batch) == 0) & (np.diff(tokens) > 0)
    if rises.any():
        yield f"batch {batch[:-1][rises][0]:,} does not have its longest sequence first"
        order = np.lexsort((-tokens, batch))
        table, batch, tokens = table.take(pa.array(order)), batch[order], tokens[order]
    opened = tokens[np.append(True, np.diff(batch) != 0)]
    if (np.diff(opened) > 0).any():
        at = np.unique(batch)[1:][np.diff(opened) > 0][0]
        yield f"batch {at:,} begins with a longer sequence than the batch before it"
    if summary.method == "ffd":
        yield from check_first_fit(batch, tokens, budget, most)
    yield from check_ties(table, tokens)


def check_first_fit(
    batch: NDArray[Any], tokens: NDArray[Any], budget: int, most: int
) -> Iterator[str]:
    """Yield where a sequence is not in the first batch that had room, of rows in order of slots.

    A batch that has room for a size, after its own sequences of that size or more, has to come
    after all batches that sequences of this size are in.
    """
    is_last = np.append((np.diff(batch) != 0) | (np.diff(tokens) != 0), True)
    ends = np.flatnonzero(is_last)
    # For each batch and size in it: the room left by sequences of this size and larger ones.
    in_batch, size = batch[ends], tokens[ends]
    is_first = np.append(True, np.diff(in_batch) != 0)
    begin = np.append(0, ends[:-1] + 1)[is_first]
    number = np.cumsum(is_first) - 1
    sums = np.append(0, np.cumsum(tokens))
    room = budget - (sums[ends + 1] - sums[begin][number])
    room[ends + 1 - begin[number] >= most] = -1
    # Sizes from large to small, and the last batch of each.
    sizes, place = np.unique(-size, return_inverse=True)
    last_batch = np.full(len(sizes), -1, np.int64)
    np.maximum.at(last_batch, place, in_batch)
    # The room is there for sizes down to the next one of the batch, that one left out.
    lowest = np.append(np.where(is_first[1:], len(sizes), place[1:]), len(sizes))
    largest = np.maximum(place, np.searchsorted(sizes, -room))
    has_room = largest < lowest
    latest = range_max(last_batch, largest[has_room], lowest[has_room])
    too_late = latest > in_batch[has_room]
    if too_late.any():
        at = int(np.argmax(too_late))
        yield (
            f"batch {in_batch[has_room][at]:,} had room for a sequence that is in batch "
            f"{latest[at]:,}: the plan is not First-Fit Decreasing ({too_late.sum():,} such places)"
        )


def range_max(
    values: NDArray[np.int64], begin: NDArray[Any], end: NDArray[Any]
) -> NDArray[np.int64]:
    """Return the maxima of values[begin:end], by maxima of stretches of powers of two."""
    levels = [values]
    while 2 ** len(levels) <= len(values):
        half = levels[-1]
        levels.append(np.maximum(half[: -(2 ** (len(levels) - 1))], half[2 ** (len(levels) - 1) :]))
    result = np.empty(len(begin), np.int64)
    level = np.frexp(end - begin)[1] - 1
    for number, maxima in enumerate(levels):
        of_level = level == number
        first, last = begin[of_level], end[of_level] - 2**number
        result[of_level] = np.maximum(maxima[first], maxima[last])
    return result


def check_ties(table: Any, tokens: NDArray[Any]) -> Iterator[str]:
    """Yield where sequences of equally many tokens are not in order of ID and row."""
    order = np.argsort(-tokens, kind="stable")
    is_equal = np.diff(tokens[order]) == 0
    ids = table["id"].combine_chunks().cast(pa.large_string()).take(pa.array(order))
    rows = column(table, "row")[order]
    before, after = ids.slice(0, max(0, len(ids) - 1)), ids.slice(1)
    is_greater = pc.greater(before, after).to_numpy(zero_copy_only=False)
    is_same = pc.equal(before, after).to_numpy(zero_copy_only=False)
    wrong = is_equal & (is_greater | (is_same & (np.diff(rows) < 0)))
    if wrong.any():
        at = int(np.argmax(wrong))
        yield (
            f"{ids[at + 1].as_py()!r} comes after {ids[at].as_py()!r}, which has as many tokens: "
            f"not in order of IDs ({wrong.sum():,} such places)"
        )


def compare_totals(table: Any, summary: Summary, sequences: Sequences) -> Iterator[str]:
    """Yield the totals in a plan's metadata that its rows and its input do not give."""
    limits = summary.limits
    batch, tokens, length = (column(table, name) for name in ("batch", "tokens", "length"))
    is_packed = batch >= 0
    kept = np.minimum(length[is_packed], limits.max_residues)
    num_batches = len(np.unique(batch[is_packed]))
    total = int(tokens[is_packed].sum())
    budget = limits.max_tokens_per_batch
    found = {
        "read": len(sequences.lengths),
        "packed": int(is_packed.sum()),
        "dropped": int((~is_packed).sum()),
        "truncated": int(column(table, "truncated").sum()),
        "empty": int((length == 0).sum()),
        **asdict(sequences.changes),
        "duplicate_ids": sequences.find_duplicates()[0],
        "residues": int(length.sum()),
        "residues_kept": int(kept.sum()),
        "residues_cut": int((length[is_packed] - kept).sum()),
        "residues_dropped": int(length[~is_packed].sum()),
        "tokens": total,
        "batches": num_batches,
        "efficiency": total / (num_batches * budget) if num_batches else 0.0,
    }
    packer = GreedyPacker(**limits.to_dict())
    first_fit = packer.lay_out(packer.count_silently(length[is_packed]))
    found["first_fit_batches"] = first_fit.num_batches
    if summary.method == "ffd":
        found["lower_bound"] = first_fit.lower_bound
    elif not first_fit.lower_bound <= summary.totals.lower_bound <= num_batches:
        yield f"the metadata says lower_bound {summary.totals.lower_bound:,}, which cannot be"
    elif num_batches > first_fit.num_batches:
        yield f"First-Fit Decreasing needs {first_fit.num_batches:,} batches, not {num_batches:,}"
    for name, value in found.items():
        recorded = getattr(summary.totals, name)
        if recorded != value:
            yield f"the metadata says {name} {recorded:,}, it is {value:,}"


def save_arrays(path: str | PathLike[str], plan: PackingPlan) -> None:
    """Write a plan as an Arrow IPC file, one row a batch; see `PackingPlan.save`."""
    rows = pa.LargeListArray.from_arrays(
        as_arrow(plan.offsets.astype(np.int64, copy=False)), as_arrow(plan.indices)
    )
    tokens = as_arrow(plan.batch_tokens)
    metadata = {KEY: json.dumps({"version": VERSION, "layout": encode(plan.to_dict())})}
    schema = pa.schema([("rows", rows.type), ("tokens", pa.int64())], metadata=metadata)
    with replacing(path) as unfinished, pa.ipc.new_file(str(unfinished), schema) as writer:
        writer.write_batch(pa.record_batch([rows, tokens], schema=schema))


def load_arrays(path: str | PathLike[str]) -> PackingPlan:
    """Return a plan whose arrays lie in a file that `save_arrays` wrote."""
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
