"""The job from files of sequences to a plan on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.packing import GreedyPacker
from virnucpro.files.fasta import ReadOptions
from virnucpro.files.output import check_output
from virnucpro.files.plan_file import Summary, sum_up, write_plan
from virnucpro.files.sequences import Sequences, read_files

logger = logging.getLogger(__name__)

# Called with the name of a stage, gives what is called with the number of sequences done.
Progress = Callable[[str], Callable[[int], None]]


def no_progress(_stage: str) -> Callable[[int], None]:
    """Show nothing."""
    return lambda _done: None


def pack_files(
    inputs: list[str],
    output: Path,
    packer: GreedyPacker,
    *,
    overlong: str = "truncate",
    options: ReadOptions | None = None,
    duplicates: str = "report",
    progress: Progress = no_progress,
) -> Summary:
    """Pack the sequences of files and write the plan.

    Args:
        inputs: FASTA files or tables of lengths, as `read_files` takes them.
        output: The Parquet file to write. It appears when it is complete.
        packer: What to pack with.
        overlong: How to handle sequences with more residues than are kept: "truncate", "error" or
            "drop".
        options: How to read the files; None for the defaults of `ReadOptions`.
        duplicates: How to handle IDs that occur more than once: "report" logs a WARNING, "error"
            refuses them.
        progress: Called with the name of each stage; what it returns is called with the number of
            sequences done so far.

    Returns:
        The summary that the plan file holds.

    Raises:
        ValueError: An input is not valid, a sequence is too long under overlong="error", or an ID
            occurs more than once under duplicates="error".
        OSError: A file cannot be read or written.
    """
    options = options or ReadOptions()
    check_output(output, inputs)
    sequences = read_files(inputs, options, progress("Reading"))
    repeated, some = sequences.find_duplicates()
    if repeated and duplicates == "error":
        raise ValueError(f"{repeated:,} duplicate IDs, such as {', '.join(some)}")
    rows = choose(sequences, packer.limits.max_residues, overlong)
    lengths, ids = sequences.lengths, sequences.ids
    if rows is not None:
        lengths, ids = lengths[rows], ids.take(rows)
    progress("Packing")(0)
    plan = packer.pack_lengths(lengths, ids)
    summary = Summary(
        limits=packer.limits,
        method=packer.method,
        overlong=overlong,
        options=options,
        totals=sum_up(plan, sequences, rows, repeated),
        inputs=sequences.sources,
    )
    write_plan(output, plan, sequences, summary, rows, progress("Writing"))
    if repeated:
        logger.warning("%s duplicate IDs, such as %s", f"{repeated:,}", ", ".join(some))
    return summary


def choose(sequences: Sequences, max_residues: int, overlong: str) -> NDArray[np.int64] | None:
    """Return the rows to pack, None for all."""
    is_overlong = sequences.lengths > max_residues
    if overlong == "error" and is_overlong.any():
        row = int(np.argmax(is_overlong))
        name = sequences.sources[int(sequences.file_of(np.array([row]))[0])].name
        raise ValueError(
            f"{name}: sequence {sequences.ids[row].as_py()} has {sequences.lengths[row]:,} "
            f"residues, more than {max_residues:,} ({is_overlong.sum():,} such sequences)"
        )
    return np.flatnonzero(~is_overlong) if overlong == "drop" else None
