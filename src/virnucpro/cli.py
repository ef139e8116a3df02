"""The command line. Messages go to stderr, the output of `stats` to stdout."""

from __future__ import annotations

import enum
import json
import logging
import os
import signal
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from virnucpro.extras import needing
from virnucpro.terminal import (
    exit_on_error,
    format_value,
    log_to_stderr,
    make_table,
    print_error,
    print_message,
    print_output,
    progress_display,
)
from virnucpro.text import shown

# Each command imports what it needs, so that --help and --version are fast.
if TYPE_CHECKING:
    from virnucpro.data.packing import GreedyPacker
    from virnucpro.files.plan_summary import Summary

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Rich takes longer to import than everything else that --help needs.
    rich_markup_mode=None,
)


class Engine(str, enum.Enum):
    """The engine that packs."""

    local = "local"
    ray = "ray"


class Method(str, enum.Enum):
    """The packing method."""

    ffd = "ffd"
    tight = "tight"


class Overlong(str, enum.Enum):
    """How to handle sequences longer than the maximum."""

    truncate = "truncate"
    error = "error"
    drop = "drop"
    # `split` is a method of str.
    split_up = "split"


class Duplicates(str, enum.Enum):
    """How to handle IDs that occur more than once."""

    report = "report"
    error = "error"


Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="FASTA files, plain or compressed (gzip, bgzip, bzip2, xz, Zstandard), - for "
        "standard input, or tables of lengths (.fai, .parquet, .arrow, .tsv). Also folders, "
        "patterns in quotes (*, ?, [], **) and URIs (s3://bucket/folder).",
        show_default=False,
    ),
]
Plan = Annotated[
    str, typer.Argument(metavar="PLAN", help="Plan written by `pack`, or its URI (s3://...).")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Suppress all output except errors.")]


def print_version(is_given: bool) -> None:
    """Print the version and exit."""
    if is_given:
        from importlib.metadata import version

        typer.echo(f"virnucpro {version('virnucpro')}")
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Pack protein sequences into token-budget batches by exact First-Fit Decreasing."""
    # Most log messages repeat what the summaries show.
    logging.getLogger("virnucpro").addHandler(logging.NullHandler())


@app.command()
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
    overlong: Annotated[
        Overlong, typer.Option(help="How to handle sequences longer than --max-length.")
    ] = Overlong.truncate,
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
    keep_stop: Annotated[
        bool, typer.Option("--keep-stop", help="Keep stops (*) at the end of sequences.")
    ] = False,
    keep_case: Annotated[
        bool, typer.Option("--keep-case", help="Do not convert residues to upper case.")
    ] = False,
    drop_gaps: Annotated[
        bool,
        typer.Option(
            "--drop-gaps",
            help="Remove gaps (- and .). With --keep-case, also remove lower-case letters "
            "(A3M insertions).",
        ),
    ] = False,
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


@app.command()
def stats(
    plan: Plan,
    as_json: Annotated[bool, typer.Option("--json", help="Print all fields as JSON.")] = False,
    as_tsv: Annotated[
        bool, typer.Option("--tsv", help="Print parameters and totals as tab-separated values.")
    ] = False,
) -> None:
    """Print the summary of a plan.

    Reads only the metadata of the plan file.
    """
    if as_json and as_tsv:
        raise typer.BadParameter("--json and --tsv are mutually exclusive")
    from virnucpro.files.plan_reader import read_summary
    from virnucpro.jobs.labels import label_totals

    with exit_on_error():
        summary = read_summary(plan)
        if as_json:
            print_output(json.dumps(summary.to_dict(), indent=2))
        elif as_tsv:
            values = {**summary.parameters, **asdict(summary.totals)}
            lines = (f"{name}\t{format_value(value)}" for name, value in values.items())
            print_output("\n".join(lines))
        else:
            print_output(make_table(label_totals(summary.totals)))


@app.command()
def verify(
    plan: Plan,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT]...",
            help="The input of the plan, in the same order.  [default: the files it was made of]",
            show_default=False,
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Verify a plan against its input.

    Re-reads the input and checks that the plan contains each sequence exactly once, as in the
    input; that batches are within the limits and, with --method ffd, are those of First-Fit
    Decreasing; and that the totals are correct. A plan without names of its input, which
    `PackingPlan.save` wrote, is checked as far as it can be.

    Prints one line per error found. Exits with status 1 if there are any, and with status 2 if the
    plan or its input cannot be read.
    """
    from virnucpro.files.fasta import ReadOptions
    from virnucpro.files.inputs import find_inputs
    from virnucpro.files.places import is_regular, is_uri
    from virnucpro.files.plan_reader import open_plan
    from virnucpro.files.sequences import read_files
    from virnucpro.files.verify import verify_plan

    with exit_on_error(status=2):
        file = open_plan(plan)
        plan = file.name
        names = inputs or [recorded.name for recorded in file.summary.inputs]
        for name in names if not inputs else ():
            if name == "-" or not (is_uri(name) or is_regular(name)):
                found = "is standard input" if name == "-" else "is not found from this folder"
                raise FileNotFoundError(
                    f"{shown(name)}: an input of {shown(plan)}, {found}; give the inputs after PLAN"
                )
        sequences = None
        if names:
            has_residues = "sequence" in file.schema.names
            options = file.summary.options or ReadOptions()
            with log_to_stderr(quiet), progress_display(quiet) as progress:
                paths = [found.path for found in find_inputs(names)]
                sequences = read_files(
                    paths, options, lambda done: progress("reading", done), has_residues
                )
        findings = verify_plan(file.origin, sequences)
    for finding in findings:
        print_error(f"{shown(plan)}: {finding}")
    if findings:
        raise typer.Exit(1)
    if not quiet:
        number = f"{file.summary.totals.read:,} sequences"
        print_message(f"{shown(plan)}: OK ({number}{'' if names else ', without its input'})")


@app.command()
def report(
    plan: Plan,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="HTML", help="HTML file to write, or its URI.")
    ],
) -> None:
    """Write an HTML report on a plan.

    The report contains the summary, and plots of sequence lengths, batch fill and sequences per
    batch.
    """
    from virnucpro.files.places import name_of
    from virnucpro.jobs.report import write_report

    with exit_on_error():
        write_report(plan, output)
    print_message(f"Report written to {shown(name_of(output))}")
