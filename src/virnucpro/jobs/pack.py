"""Pack the sequences of files and write the plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.methods import column_generation
from virnucpro.data.overlong import Fragments
from virnucpro.data.packing import GreedyPacker
from virnucpro.files.fasta import ReadOptions, check_options
from virnucpro.files.inputs import find_inputs, names_of, total_size
from virnucpro.files.losses import warn_of_losses
from virnucpro.files.output import check_output, write_file
from virnucpro.files.places import name_of
from virnucpro.files.plan_summary import Summary, compute_totals
from virnucpro.files.plan_writer import ReadResidues, encoding_of, write_plan
from virnucpro.files.sequences import Sequences, check_have_residues, read_files
from virnucpro.kernel.limits import Limits
from virnucpro.text import quoted, shown

logger = logging.getLogger(__name__)


def pack_files(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    output: str | PathLike[str],
    packer: GreedyPacker,
    *,
    options: ReadOptions | None = None,
    duplicates: str = "report",
    sequences: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Summary:
    r"""Pack the sequences of files and write the plan.

    The plan has one row per sequence, in order of batches. Sequences with the same number of tokens
    are in order of their IDs. `PackingPlan.load`, `PackedFastaDataset` and others read it.

    Args:
        inputs: FASTA files, plain or compressed, or tables of lengths; "-" for FASTA from standard
            input. Also folders of these, of which others are ignored with one WARNING; patterns,
            such as ``proteins/**/*.fa``; and URIs of all of them, such as ``s3://bucket/folder``,
            as str. Or a single one.
        output: The file to write, or its URI, `.parquet` or `.arrow` (which loads faster, but takes
            more space and memory when it is written). An existing file is replaced only when the
            new one is complete. For a URI, it is written to a temporary file first.
        packer: The packer. Its `overlong` tells how to handle sequences above its limit, and its
            `empty` those without residues. Dropped ones are in the plan without a batch.
        options: How to read the files; None for the defaults of `ReadOptions`. They are stored in
            the plan.
        duplicates: How to handle IDs that occur more than once: "report" (one WARNING) or "error".
        sequences: Whether to store the residues too, in order of batches, so that
            `PackedPlanDataset` needs the plan alone. For FASTA and `.parquet` only. The files are
            read twice; those that are compressed or remote, and standard input, are written to a
            temporary copy.
        progress: Called from time to time with the stage, what is done, and the total or None:
            "reading" (bytes of the files), "packing" and "writing" (rows of the plan).

    Returns:
        The summary that the plan file stores.

    Raises:
        ValueError: An argument or an input is not valid; a sequence is too long and
            overlong="error"; or an ID occurs more than once and duplicates="error".
        TypeError: An argument has the wrong type.
        OSError: A file cannot be found, read or written.

    Cost: reading the files, sorting the IDs, and O(n) for packing n sequences.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from virnucpro.data import GreedyPacker, PackingPlan, pack_files
        >>> with TemporaryDirectory() as folder:
        ...     path, output = Path(folder, "proteins.fasta"), Path(folder, "plan.parquet")
        ...     _ = path.write_text(">a\nMKTAY\n>b\nMKTAYIAK\n>c\nMK\n")
        ...     summary = pack_files(path, output, GreedyPacker(12))
        ...     [rows.tolist() for rows in PackingPlan.load(output)]
        [[1], [0, 2]]
        >>> summary.totals.batches, summary.totals.tokens
        (2, 21)
    """
    if not isinstance(packer, GreedyPacker):
        raise TypeError(f"packer must be a GreedyPacker (got {type(packer).__name__})")
    if duplicates not in ("report", "error"):
        raise ValueError(f"duplicates must be 'report' or 'error' (got {quoted(duplicates)})")
    options = check_options(options)
    progress = progress or no_progress
    names = names_of(inputs)
    encoding = encoding_of(output)
    if sequences:
        check_sequences(output, names)
    if packer.method == "tight":
        # Raises if highspy is missing.
        column_generation()
    limits = packer.limits

    with write_file(output, names) as file:
        inputs_found = find_inputs(names)
        files, size = [file.path for file in inputs_found], total_size(inputs_found)
        check_output(output, files)
        if sequences:
            check_sequences(output, files)
        found = read_files(files, options, lambda n: progress("reading", n, size), sequences)
        num_duplicates, examples = found.find_duplicates()
        names_of_some = ", ".join(map(shown, examples))
        warning = f"duplicate IDs: {num_duplicates:,} (for example {names_of_some})"
        if num_duplicates and duplicates == "error":
            raise ValueError(warning)
        if packer.overlong == "error":
            check_lengths(found, limits.max_residues)
        progress("packing", 0, None)
        plan = packer.pack_silently(found.lengths, found.ids)
        summary = Summary(
            limits=limits,
            method=packer.method,
            overlong=packer.overlong,
            overlap=int(packer.overlap),
            empty=packer.empty,
            options=options,
            totals=compute_totals(plan, found, num_duplicates),
            inputs=found.inputs,
        )
        read = residues_reader(found, limits) if sequences else None
        rows = plan.num_sequences + len(plan.dropped)
        write_plan(
            file, encoding, plan, found, summary, read, lambda n: progress("writing", n, rows)
        )
    if num_duplicates:
        logger.warning("%s", warning)
    warn_of_losses(limits, summary.totals)
    return summary


def no_progress(_stage: str, _done: int, _total: int | None) -> None:
    """Ignore progress."""


def check_sequences(output: str | PathLike[str], names: list[str]) -> None:
    """Raise ValueError unless the sequences of files can be stored in a plan."""
    if encoding_of(output) != "parquet":
        raise ValueError(
            f"{shown(name_of(output))}: sequences can be stored in Parquet files only (.parquet)"
        )
    check_have_residues(names)


def check_lengths(sequences: Sequences, max_residues: int) -> None:
    """Raise ValueError, naming the first such sequence, if any has more residues."""
    is_overlong = sequences.lengths > max_residues
    if is_overlong.any():
        row = int(is_overlong.argmax())
        name = sequences.inputs[int(sequences.file_of(np.array([row]))[0])].name
        raise ValueError(
            f"{shown(name)}: sequence '{shown(sequences.ids[row])}' has "
            f"{sequences.lengths[row]:,} residues, more than {max_residues:,} "
            f"(affected sequences: {is_overlong.sum():,})"
        )


def residues_reader(sequences: Sequences, limits: Limits) -> ReadResidues:
    """Return a function that reads the residues that are packed."""

    def read(rows: NDArray[Any], part: Fragments | None) -> list[str]:
        residues = sequences.read(rows)
        if part is None:
            return [text[: limits.max_residues] for text in residues]
        ranges = zip(residues, part.starts.tolist(), part.stops.tolist(), strict=True)
        return [text[start:stop] for text, start, stop in ranges]

    return read
