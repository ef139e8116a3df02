"""Pack the sequences of files and write the plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from os import PathLike, fspath
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.packing import GreedyPacker
from virnucpro.files.fasta import ReadOptions
from virnucpro.files.output import check_output
from virnucpro.files.plan_file import Summary, compute_totals, write_plan
from virnucpro.files.sequences import Sequences, read_files

logger = logging.getLogger(__name__)

# Takes the name of a stage; returns a function that takes the number of sequences done.
Progress = Callable[[str], Callable[[int], None]]


def pack_files(
    inputs: Sequence[str | PathLike[str]],
    output: str | PathLike[str],
    packer: GreedyPacker,
    *,
    overlong: str = "truncate",
    options: ReadOptions | None = None,
    duplicates: str = "report",
    progress: Progress | None = None,
) -> Summary:
    r"""Pack the sequences of files and write the plan.

    Args:
        inputs: FASTA files, plain or compressed, or tables of lengths; "-" for FASTA from standard
            input.
        output: The Parquet file to write. An existing file is replaced only when the new one is
            complete.
        packer: The packer.
        overlong: How to handle sequences with more than `packer.limits.max_residues` residues:
            "truncate", "error" or "drop". Dropped sequences are in the plan without a batch.
        options: How to read the files; None for the defaults of `ReadOptions`.
        duplicates: How to handle IDs that occur more than once: "report" (one WARNING) or "error".
        progress: Called with the name of each stage: "Reading", "Packing" and "Writing". Must
            return a function, which is called from time to time with the number of sequences done.

    Returns:
        The summary that the plan file stores.

    Raises:
        ValueError: An argument or an input is not valid; a sequence is too long and
            overlong="error"; or an ID occurs more than once and duplicates="error".
        OSError: A file cannot be read or written.

    Cost: reading the files, sorting the IDs, and O(n) for packing n sequences.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "proteins.fasta")
        ...     _ = path.write_text(">a\nMKTAY\n>b\nMKTAYIAK\n>c\nMK\n")
        ...     summary = pack_files([path], Path(folder, "plan.parquet"), GreedyPacker(12))
        >>> summary.totals.batches, summary.totals.tokens
        (2, 21)
    """
    if overlong not in ("truncate", "error", "drop"):
        raise ValueError(f"overlong must be 'truncate', 'error' or 'drop' (got {overlong!r})")
    if duplicates not in ("report", "error"):
        raise ValueError(f"duplicates must be 'report' or 'error' (got {duplicates!r})")
    options = options or ReadOptions()
    progress = progress or no_progress
    paths = [fspath(path) for path in inputs]
    check_output(Path(output), paths)

    sequences = read_files(paths, options, progress("Reading"))
    num_duplicates, examples = sequences.find_duplicates()
    warning = f"duplicate IDs: {num_duplicates:,} (for example {', '.join(examples)})"
    if num_duplicates and duplicates == "error":
        raise ValueError(warning)
    rows = rows_to_pack(sequences, packer.limits.max_residues, overlong)
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
        totals=compute_totals(plan, sequences, rows, num_duplicates),
        inputs=sequences.inputs,
    )
    write_plan(output, plan, sequences, summary, rows, progress("Writing"))
    if num_duplicates:
        logger.warning("%s", warning)
    return summary


def no_progress(_stage: str) -> Callable[[int], None]:
    """Ignore progress."""
    return lambda _done: None


def rows_to_pack(
    sequences: Sequences, max_residues: int, overlong: str
) -> NDArray[np.int64] | None:
    """Return the rows to pack; None for all. May raise ValueError if overlong="error"."""
    is_overlong = sequences.lengths > max_residues
    if overlong == "error" and is_overlong.any():
        row = int(np.argmax(is_overlong))
        name = sequences.inputs[int(sequences.file_of(np.array([row]))[0])].name
        raise ValueError(
            f"{name}: sequence {sequences.ids[row].as_py()!r} has {sequences.lengths[row]:,} "
            f"residues, more than {max_residues:,} (affected sequences: {is_overlong.sum():,})"
        )
    return np.flatnonzero(~is_overlong) if overlong == "drop" else None
