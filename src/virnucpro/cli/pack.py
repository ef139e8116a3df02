"""The command `pack`."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from virnucpro.cli import options as shared
from virnucpro.cli.hints import kind_of, naming_columns
from virnucpro.cli.options import BATCHES, INPUT, OUTPUT, PLACES, RUNNING
from virnucpro.cli.program import Helped, argument, count, option
from virnucpro.extras import needing
from virnucpro.terminal import (
    exit_on_error,
    log_to_stderr,
    make_table,
    print_message,
    print_output,
    print_warning,
    progress_display,
)
from virnucpro.text import shown

# Each command imports what it needs, so that --help and --version are fast.
if TYPE_CHECKING:
    from virnucpro.data.packing import GreedyPacker
    from virnucpro.files.plan_summary import Summary

EXAMPLES = """
virnucpro pack proteins.fasta -o plan.parquet

# All FASTA files in a folder, in batches of at most 64 sequences.
virnucpro pack proteomes/ -o plan.arrow --max-tokens 16k --max-sequences 64

# Lose no residues of long proteins.
virnucpro pack 'proteomes/*.gz' -o plan.parquet --overlong split --overlap 100

# From another program; the summary as JSON.
zcat proteomes/*.gz | virnucpro pack - -o plan.parquet --quiet --json
"""


@click.command(
    cls=Helped,
    examples=EXAMPLES,
    statuses=(
        "The plan is written.",
        "An input or the output is not valid. A plan that existed before is unchanged.",
        "The command is not valid.",
    ),
)
@argument(
    "inputs",
    nargs=-1,
    required=True,
    metavar="INPUT...",
    help="FASTA files, plain or compressed (gzip, bgzip, bzip2, xz, Zstandard), - for standard "
    f"input, or tables of lengths (.fai, .parquet, .arrow, .tsv). {PLACES}",
)
@shared.keep_stop
@shared.keep_case
@shared.drop_gaps
@option(
    "--id-column", metavar="NAME", default="id", group=INPUT, help="The column of IDs in tables."
)
@option(
    "--length-column",
    metavar="NAME",
    default="length",
    group=INPUT,
    help="The column of lengths in tables, in residues.",
)
@option(
    "--duplicates",
    type=click.Choice(["report", "error"]),
    metavar="HOW",
    default="report",
    group=INPUT,
    help="What to do with IDs that occur more than once: report (a warning) or error.",
)
@option(
    "--max-tokens",
    "max_tokens_per_batch",
    type=count,
    metavar="N",
    default=4096,
    group=BATCHES,
    help="Token budget per batch, special tokens included. 16k is 16,384.",
)
@option(
    "--max-length",
    "max_sequence_length",
    type=count,
    metavar="N",
    default=1022,
    group=BATCHES,
    help="Maximum residues kept per sequence.",
)
@shared.overlong
@shared.overlap
@option(
    "--max-sequences",
    "max_sequences_per_batch",
    type=count,
    metavar="N",
    group=BATCHES,
    help="Maximum sequences per batch. [default: unlimited]",
)
@option(
    "--multiple-of",
    type=count,
    metavar="N",
    default=1,
    group=BATCHES,
    help="Round the tokens of each sequence up to a multiple of this.",
)
@option(
    "--special-tokens",
    type=count,
    metavar="N",
    default=2,
    group=BATCHES,
    help="Special tokens added to each sequence.",
)
@option(
    "--method",
    type=click.Choice(["ffd", "tight"]),
    metavar="NAME",
    default="ffd",
    group=BATCHES,
    help="ffd is exact First-Fit Decreasing. tight (patterns with reservation and column "
    "generation) makes fewer batches and proves a better lower bound, but takes longer.",
)
@option(
    "-o",
    "--output",
    metavar="PLAN",
    required=True,
    group=OUTPUT,
    help="The plan to write, .parquet or .arrow, or its URI. With --engine ray, a folder.",
)
@option(
    "--sequences",
    is_flag=True,
    group=OUTPUT,
    help="Store the residues in the plan too (.parquet, from FASTA).",
)
@option(
    "--json",
    "as_json",
    is_flag=True,
    group=OUTPUT,
    help="Print the summary as JSON on stdout, like `virnucpro stats --json`.",
)
@option(
    "--threads",
    "num_threads",
    type=count,
    metavar="N",
    group=RUNNING,
    help="Maximum number of threads. [default: all cores]",
)
@option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    metavar="NAME",
    default="local",
    group=RUNNING,
    help="local is this process. ray is the Ray cluster at RAY_ADDRESS, or else one on this "
    "machine.",
)
@shared.quiet
def pack(
    inputs: tuple[str, ...],
    output: str,
    engine: str,
    duplicates: str,
    sequences: bool,
    id_column: str,
    length_column: str,
    keep_stop: bool,
    keep_case: bool,
    drop_gaps: bool,
    as_json: bool,
    quiet: bool,
    **parameters: Any,
) -> None:
    """Pack sequences into batches, and write the plan.

    The plan has one row per sequence, in order of batches. Sequences with the same number of tokens
    are in order of their IDs. Dropped sequences come last, without a batch. With --overlong split,
    there is one row per fragment.
    """
    from virnucpro.data.methods import column_generation
    from virnucpro.data.packing import GreedyPacker
    from virnucpro.files.fasta import ReadOptions

    check_output(output, engine)
    try:
        packer = GreedyPacker(**parameters)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if engine == "ray" and packer.num_threads is not None:
        raise click.UsageError("--threads has no effect with --engine ray: leave it out")
    if packer.method == "tight":
        with exit_on_error():
            # Fail before reading the input if highspy is missing.
            column_generation()
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
        "duplicates": duplicates,
        "sequences": sequences,
    }
    columns = {"--id-column": id_column, "--length-column": length_column}
    with exit_on_error(), naming_columns(columns):
        if engine == "ray":
            summary = pack_on_ray(inputs, output, packer, how, quiet)
        else:
            warn_of_plans(inputs, quiet)
            with log_to_stderr(quiet), progress_display(quiet) as progress:
                summary = pack_files(inputs, output, packer, progress=progress, **how)
        if not quiet:
            print_message(make_table(label_totals(summary.totals)))
            print_message(f"Plan written to {shown(name_of(output))}")
        if as_json:
            print_output(json.dumps(summary.to_dict(), indent=2))


def warn_of_plans(inputs: tuple[str, ...], quiet: bool) -> None:
    """Warn of inputs that are plans, which can be read as tables of lengths."""
    from virnucpro.files.inputs import table_kind
    from virnucpro.files.places import is_uri

    for name in inputs if not quiet else ():
        is_table = not is_uri(name) and table_kind(name) in ("parquet", "arrow")
        if is_table and kind_of(name) == "plan":
            print_warning(
                f"{shown(name)}: a plan, which is read as a table of lengths: the rows of the new "
                "plan are those of this one, not of its input"
            )


def check_output(output: str, engine: str) -> None:
    """Raise UsageError if a plan cannot have this name, whatever else there is."""
    from virnucpro.files.places import name_of
    from virnucpro.files.plan_writer import encoding_of

    shared.check_name(output, "a plan is a file, such as plan.parquet")
    if engine == "ray":
        return
    if output.endswith("/"):
        raise click.UsageError(f"{shown(name_of(output))}: a folder, which needs --engine ray")
    try:
        encoding_of(output)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def pack_on_ray(
    inputs: tuple[str, ...], output: str, packer: GreedyPacker, how: dict[str, Any], quiet: bool
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
