"""The command `pack`."""

from __future__ import annotations

import enum
import logging
import os
import signal
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer

from virnucpro.cli.options import (
    DropGaps,
    Inputs,
    KeepCase,
    KeepStop,
    OnOverlong,
    Overlong,
    Quiet,
)
from virnucpro.extras import needing
from virnucpro.terminal import (
    exit_on_error,
    log_to_stderr,
    make_table,
    print_message,
    progress_display,
)
from virnucpro.text import shown

# Each command imports what it needs, so that --help and --version are fast.
if TYPE_CHECKING:
    from virnucpro.data.packing import GreedyPacker
    from virnucpro.files.plan_summary import Summary


class Engine(str, enum.Enum):
    """The engine that packs."""

    local = "local"
    ray = "ray"


class Method(str, enum.Enum):
    """The packing method."""

    ffd = "ffd"
    tight = "tight"


class Duplicates(str, enum.Enum):
    """How to handle IDs that occur more than once."""

    report = "report"
    error = "error"


def pack(
    inputs: Inputs,
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="PLAN",
            help="File to write, or its URI, .parquet or .arrow (a folder with --engine ray).",
        ),
    ],
    max_tokens: Annotated[int, typer.Option(help="Token budget per batch.")] = 4096,
    max_length: Annotated[int, typer.Option(help="Maximum residues kept per sequence.")] = 1022,
    max_sequences: Annotated[
        int | None, typer.Option(help="Maximum sequences per batch.  [default: unlimited]")
    ] = None,
    multiple_of: Annotated[
        int, typer.Option(help="Round the tokens of each sequence up to a multiple of this.")
    ] = 1,
    method: Annotated[
        Method,
        typer.Option(
            help="Exact First-Fit Decreasing, or patterns with reservation and column generation: "
            "fewer batches and a tighter lower bound, but slower."
        ),
    ] = Method.ffd,
    special_tokens: Annotated[int, typer.Option(help="Special tokens added to each sequence.")] = 2,
    overlong: OnOverlong = Overlong.truncate,
    overlap: Annotated[
        int, typer.Option(help="Residues that neighboring fragments share (--overlong split).")
    ] = 0,
    sequences: Annotated[
        bool,
        typer.Option(
            "--sequences",
            help="Store the residues in the plan too (.parquet, from FASTA).",
        ),
    ] = False,
    duplicates: Annotated[
        Duplicates, typer.Option(help="How to handle IDs that occur more than once.")
    ] = Duplicates.report,
    keep_stop: KeepStop = False,
    keep_case: KeepCase = False,
    drop_gaps: DropGaps = False,
    id_column: Annotated[str, typer.Option(help="Column of IDs (tables only).")] = "id",
    length_column: Annotated[
        str, typer.Option(help="Column of lengths in residues (tables only).")
    ] = "length",
    threads: Annotated[
        int | None, typer.Option(help="Maximum number of threads.  [default: all cores]")
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(
            help="Run in this process, or on the Ray cluster at RAY_ADDRESS, else on this machine."
        ),
    ] = Engine.local,
    quiet: Quiet = False,
) -> None:
    """Pack sequences and write the plan.

    The plan has one row per sequence, in order of batches. Sequences with the same number of tokens
    are in order of their IDs. Dropped sequences come last, without a batch. With --overlong split,
    there is one row per fragment.
    """
    from virnucpro.data.methods import column_generation
    from virnucpro.data.packing import GreedyPacker
    from virnucpro.files.fasta import ReadOptions

    try:
        packer = GreedyPacker(
            max_tokens,
            max_length,
            special_tokens=special_tokens,
            overlong=overlong.value,
            overlap=overlap,
            max_sequences_per_batch=max_sequences,
            multiple_of=multiple_of,
            num_threads=threads,
            method=method.value,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if method is Method.tight:
        with exit_on_error():
            # Fail before reading the input if highspy is missing.
            column_generation()
    if engine is Engine.ray and threads is not None:
        raise typer.BadParameter("--engine ray does not support --threads")
    from virnucpro.files.places import name_of
    from virnucpro.jobs.labels import label_totals
    from virnucpro.jobs.pack import pack_files

    options = ReadOptions(
        id_column,
        length_column,
        strip_stop=not keep_stop,
        uppercase=not keep_case,
        drop_gaps=drop_gaps,
    )
    how: dict[str, Any] = {
        "options": options,
        "duplicates": duplicates.value,
        "sequences": sequences,
    }
    with exit_on_error():
        if engine is Engine.ray:
            summary = pack_on_ray(inputs, output, packer, how, quiet)
        elif output.endswith("/"):
            raise ValueError(f"{shown(name_of(output))}: a folder, which needs --engine ray")
        else:
            with log_to_stderr(quiet), progress_display(quiet) as progress:
                summary = pack_files(inputs, output, packer, progress=progress, **how)
        if not quiet:
            print_message(make_table(label_totals(summary.totals)))
            print_message(f"Plan written to {shown(name_of(output))}")


def pack_on_ray(
    inputs: list[str], output: str, packer: GreedyPacker, how: dict[str, Any], quiet: bool
) -> Summary:
    """Pack sequences on a Ray cluster."""
    with needing("--engine ray", "ray"):
        import ray

        from virnucpro.cluster.pack import check_arguments, pack_inputs

    # Ray prints to stdout.
    with log_to_stderr(quiet), redirect_stdout(sys.stderr):
        # Before Ray is started, which takes seconds.
        files = check_arguments(inputs, output, packer, **how)
        # Of several files with errors, Ray would print those of all but the first.
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        # Ray replaces it by one that leaves workers writing.
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        signal.signal(signal.SIGTERM, handler)
        try:
            return pack_inputs(files, output, packer, **how)
        except (ray.exceptions.RayError, RuntimeError) as error:
            # The last line of Ray's message gives the cause.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise OSError(shown(lines[-1])) from error
