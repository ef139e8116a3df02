"""Pack the sequences of files on Ray and write the plan."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from os import PathLike
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray

from virnucpro.cluster.blocks import Counted, Job, merge_counts
from virnucpro.cluster.duplicates import count_duplicates
from virnucpro.cluster.exchange import Group, exchange_rows, make_exchange
from virnucpro.cluster.plan_parts import PlanFolder, write_dropped, write_metadata, write_part
from virnucpro.cluster.ray_data import lay_out
from virnucpro.cluster.reading import list_inputs, read_on_ray
from virnucpro.cluster.tasks import raise_causes, single_threaded, start
from virnucpro.data.layout import Layout
from virnucpro.data.methods import column_generation
from virnucpro.data.packing import GreedyPacker
from virnucpro.files.fasta import ReadOptions, check_options
from virnucpro.files.inputs import Input
from virnucpro.files.losses import warn_of_losses
from virnucpro.files.output_folder import check_folder, write_folder
from virnucpro.files.places import name_of
from virnucpro.files.plan_schema import make_schema
from virnucpro.files.plan_summary import Summary, Totals, encode_summary, totals_of
from virnucpro.text import quoted, shown

logger = logging.getLogger(__name__)

# Dropped rows per file, at most.
DROPPED_ROWS = 2**20


def pack_files_on_ray(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    output: str | PathLike[str],
    packer: GreedyPacker,
    *,
    options: ReadOptions | None = None,
    duplicates: str = "report",
    sequences: bool = False,
) -> Summary:
    """Pack the sequences of files on a Ray cluster; write the plan as a folder of Parquet files.

    The rows, and the summary, are those that `pack_files` writes for the same arguments, in order
    of the names of the files. `PackingPlan.load`, ``virnucpro verify`` and others read the folder.
    No batch is in two row groups. `_common_metadata` has the summary. The same inputs give the same
    bytes on any cluster, and the folder appears only when it is complete.

    Args:
        inputs: Files that all machines can read, as for `pack_files`, but not standard input.
        output: The folder to write, to which all machines can write. It must not exist.
        packer: The packer. Each task uses one thread.
        options: How to read the files; None for the defaults of `ReadOptions`.
        duplicates: How to handle IDs that occur more than once: "report" (one WARNING) or "error".
        sequences: Whether to store the residues too; for FASTA only.

    Returns:
        The summary that the plan stores.

    Raises:
        FileExistsError: `output` already exists.
        ValueError, TypeError, OSError: As for `pack_files`.
        RuntimeError: A file changed, and Ray read it again because a machine was lost.

    Cost: each file is read once, by one task, or a large Parquet table by several and once more to
    hash it. Hashes of the IDs are moved once, and all rows twice, in tasks of about 128 MiB of them
    (a 512th of the rows from 64 GiB on). They are in the object store, which spills to disk. The
    driver needs O(distinct sizes) memory per million sequences.
    """
    files = check_arguments(inputs, output, packer, options, duplicates, sequences)
    return pack_inputs(files, output, packer, options, duplicates, sequences)


def pack_inputs(
    files: list[Input],
    output: str | PathLike[str],
    packer: GreedyPacker,
    options: ReadOptions | None = None,
    duplicates: str = "report",
    sequences: bool = False,
) -> Summary:
    """Pack the files that `check_arguments` returned for the same arguments."""
    options, limits = check_options(options), packer.limits
    # Sequences above the limit are named, with their file.
    counting = single_threaded(packer)
    if packer.overlong == "error":
        counting.overlong = "truncate"
    job = Job(counting, "length", "id", makes_plan=True)
    with write_folder(output) as folder, raise_causes():
        logger.info("Reading")
        read = read_on_ray(files, job, options, sequences)
        total = merge_counts(group.counted for group in read.groups)
        if packer.overlong == "error" and read.overlong is not None:
            raise overlong_error(read.overlong, limits.max_residues, total)
        layout = lay_out(packer, total)
        logger.info("Looking for duplicate IDs")
        num_duplicates, examples = count_duplicates(read.groups)
        warning = (
            f"duplicate IDs: {num_duplicates:,} (for example {', '.join(map(shown, examples))})"
        )
        if num_duplicates and duplicates == "error":
            raise ValueError(warning)
        summary = Summary(
            limits=limits,
            method=packer.method,
            overlong=packer.overlong,
            overlap=int(packer.overlap),
            empty=packer.empty,
            options=options,
            totals=replace(find_totals(layout, total, num_duplicates), **asdict(read.changes)),
            inputs=read.inputs,
        )
        is_split = total.split.sequences > 0
        is_wide = total.num_packed + total.num_dropped >= 2**31
        schema = make_schema(is_wide, is_split, True, sequences)
        plan = PlanFolder(folder, shown(name_of(output)), schema, read.inputs, limits)
        logger.info("Writing %s", layout)
        write_rows(plan, job, layout, total, read.groups)
        write_metadata(plan, encode_summary(summary, layout))
    if num_duplicates:
        logger.warning("%s", warning)
    warn_of_losses(limits, summary.totals)
    return summary


def check_arguments(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    output: str | PathLike[str],
    packer: GreedyPacker,
    options: ReadOptions | None = None,
    duplicates: str = "report",
    sequences: bool = False,
) -> list[Input]:
    """Return the files to read, if `pack_files_on_ray` can have its arguments."""
    if not isinstance(packer, GreedyPacker):
        raise TypeError(f"packer must be a GreedyPacker (got {type(packer).__name__})")
    if duplicates not in ("report", "error"):
        raise ValueError(f"duplicates must be 'report' or 'error' (got {quoted(duplicates)})")
    check_options(options)
    _ = packer.limits
    if packer.method == "tight":
        # Raises if highspy is missing.
        column_generation()
    paths = [inputs] if isinstance(inputs, (str, PathLike)) else list(inputs)
    files = list_inputs(paths, sequences)
    check_folder(output, [*paths, *(file.path for file in files)])
    return files


def overlong_error(first: tuple[str, str, int], max_residues: int, total: Counted) -> ValueError:
    """Return the error for sequences above the limit, given the first."""
    name, identifier, length = first
    return ValueError(
        f"{shown(name)}: sequence '{shown(identifier)}' has {length:,} residues, more than "
        f"{max_residues:,} (affected sequences: {total.counts.num_truncated:,})"
    )


def find_totals(layout: Layout, total: Counted, duplicate_ids: int) -> Totals:
    """Return the totals of a plan, but for the changes made when reading."""
    return replace(
        totals_of(layout, total.num_dropped, total.split),
        empty=total.empty,
        duplicate_ids=duplicate_ids,
        residues=total.residues,
        residues_dropped=total.dropped.residues,
    )


def write_rows(
    plan: PlanFolder, job: Job, layout: Layout, total: Counted, groups: list[Group]
) -> None:
    """Write all rows, those dropped last, in files with consecutive numbers."""
    num_dropped = [group.counted.num_dropped for group in groups]
    has_fragments = total.split.sequences > 0
    exchange = make_exchange(job, single_threaded(layout), total, pa.large_string(), has_fragments)
    num_parts = len(exchange.batches) - 1
    known = ray.put(plan)
    written, dropped = exchange_rows(exchange, groups, write_part, plan)
    calls = (
        (known, number, part.first, part.num_rows, *(dropped[group] for group in part.groups))
        for number, part in enumerate(divide_dropped(num_dropped), num_parts)
    )
    written += start(write_dropped, calls)
    # If one fails, the others must not write to a folder that is being removed.
    ray.wait(written, num_returns=len(written), fetch_local=False)
    ray.get(written)


class DroppedRows(NamedTuple):
    """The dropped rows of a file.

    Attributes:
        groups: The groups that have them.
        first: The first of them, counted in these groups.
        num_rows: Their number.
    """

    groups: range
    first: int
    num_rows: int


def divide_dropped(num_dropped: list[int]) -> Iterator[DroppedRows]:
    """Yield the dropped rows of each file, given their number in each group."""
    ends = np.cumsum([0, *num_dropped])
    total = int(ends[-1])
    for begin in range(0, total, DROPPED_ROWS):
        end = min(begin + DROPPED_ROWS, total)
        low = int(np.searchsorted(ends, begin, side="right")) - 1
        high = int(np.searchsorted(ends, end, side="left"))
        yield DroppedRows(range(low, high), begin - int(ends[low]), end - begin)
