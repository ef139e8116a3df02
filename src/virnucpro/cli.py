"""The command line. Messages go to stderr, the output of `stats` to stdout."""

from __future__ import annotations

import enum
import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from virnucpro.extras import needing

# Each command imports what it needs, so that --help and --version are fast.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from virnucpro.data.packing import GreedyPacker

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


class Duplicates(str, enum.Enum):
    """How to handle IDs that occur more than once."""

    report = "report"
    error = "error"


Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="FASTA files, plain or compressed (gzip, bgzip, bzip2, xz, Zstandard), - for "
        "standard input, or tables of lengths (.fai, .parquet, .arrow, .tsv).",
        show_default=False,
    ),
]
Plan = Annotated[Path, typer.Argument(metavar="PLAN", help="Plan file written by `pack`.")]
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
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="PLAN",
            help="Parquet file to write (a folder with --engine ray).",
        ),
    ],
    max_tokens: Annotated[int, typer.Option(help="Token budget per batch.")] = 4096,
    max_length: Annotated[int, typer.Option(help="Maximum residues kept per sequence.")] = 1022,
    max_sequences: Annotated[
        int | None, typer.Option(help="Maximum sequences per batch.  [default: unlimited]")
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="Exact First-Fit Decreasing, or column generation: fewer batches and a tighter "
            "lower bound, but slower."
        ),
    ] = Method.ffd,
    special_tokens: Annotated[int, typer.Option(help="Special tokens added to each sequence.")] = 2,
    overlong: Annotated[
        Overlong, typer.Option(help="How to handle sequences longer than --max-length.")
    ] = Overlong.truncate,
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
            help="Run in this process, or on the Ray cluster at RAY_ADDRESS (Parquet tables only)."
        ),
    ] = Engine.local,
    quiet: Quiet = False,
) -> None:
    """Pack sequences and write the plan.

    The plan has one row per sequence, in order of batches. Sequences with the same number of tokens
    are in order of their IDs. Dropped sequences come last, without a batch.
    """
    from virnucpro.data.methods import column_generation
    from virnucpro.data.packing import GreedyPacker
    from virnucpro.files.fasta import ReadOptions

    try:
        packer = GreedyPacker(
            max_tokens,
            max_length,
            special_tokens=special_tokens,
            overlong="error" if overlong is Overlong.error else "truncate",
            max_sequences_per_batch=max_sequences,
            num_threads=threads,
            method=method.value,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if method is Method.tight:
        with exit_on_error():
            # Fail before reading the input if highspy is missing.
            column_generation()
    if engine is Engine.ray:
        unsupported = {
            "--overlong drop": overlong is Overlong.drop,
            "--duplicates error": duplicates is Duplicates.error,
            "--keep-stop": keep_stop,
            "--keep-case": keep_case,
            "--drop-gaps": drop_gaps,
            "--threads": threads is not None,
        }
        if any(unsupported.values()):
            names = ", ".join(name for name, is_given in unsupported.items() if is_given)
            raise typer.BadParameter(f"--engine ray does not support {names}")
        pack_on_ray(inputs, output, packer, id_column, length_column, quiet)
        return
    from virnucpro.jobs.labels import label_totals
    from virnucpro.jobs.pack import pack_files

    options = ReadOptions(
        id_column,
        length_column,
        strip_stop=not keep_stop,
        uppercase=not keep_case,
        drop_gaps=drop_gaps,
    )
    with exit_on_error(), log_to_stderr(quiet), progress_display(quiet) as progress:
        summary = pack_files(
            inputs,
            output,
            packer,
            overlong=overlong.value,
            options=options,
            duplicates=duplicates.value,
            progress=progress,
        )
    if not quiet:
        stderr().print(make_table(label_totals(summary.totals)))
        print_line(f"Plan written to {output}")


def pack_on_ray(
    inputs: list[str],
    output: Path,
    packer: GreedyPacker,
    id_column: str,
    length_column: str,
    quiet: bool,
) -> None:
    """Pack Parquet tables on a Ray cluster."""
    with exit_on_error(), needing("--engine ray", "ray"):
        import ray

        from virnucpro.cluster.ray_data import list_tables, pack_tables
    from virnucpro.jobs.labels import label_layout

    shows_progress = stderr().is_terminal and not quiet
    # Ray prints to stdout.
    with exit_on_error(), log_to_stderr(quiet), redirect_stdout(sys.stderr):
        list_tables(inputs, output.absolute(), [id_column, length_column])
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = shows_progress
        # The errors that Ray Data logs are also raised.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        columns = {"id_column": id_column, "length_column": length_column}
        try:
            layout = pack_tables(inputs, output, packer, **columns)
        except (ray.exceptions.RayError, TypeError, RuntimeError) as error:
            # The last line of Ray's message gives the cause.
            raise OSError(str(error).strip().splitlines()[-1]) from error
    if not quiet:
        stderr().print(make_table(label_layout(layout)))
        print_line(f"Plan written to {output}")


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
    from rich.console import Console

    from virnucpro.files.plan_file import read_summary
    from virnucpro.jobs.labels import label_totals

    with exit_on_error():
        summary = read_summary(plan)
    if as_json:
        typer.echo(json.dumps(summary.to_dict(), indent=2))
    elif as_tsv:
        values = {**summary.parameters, **asdict(summary.totals)}
        typer.echo("\n".join(f"{name}\t{format_value(value)}" for name, value in values.items()))
    else:
        Console().print(make_table(label_totals(summary.totals)))


@app.command()
def verify(plan: Plan, inputs: Inputs, quiet: Quiet = False) -> None:
    """Verify a plan against its input.

    Re-reads the input and checks that the plan contains each sequence exactly once, as in the
    input; that batches are within the limits and, with --method ffd, are those of First-Fit
    Decreasing; and that the totals are correct. Prints one line per error found, and exits with
    status 1 if there are any.
    """
    from virnucpro.files.plan_file import read_summary
    from virnucpro.files.sequences import read_files
    from virnucpro.files.verify import verify_plan

    with exit_on_error():
        options = read_summary(plan).options
        with progress_display(quiet) as progress:
            sequences = read_files(inputs, options, progress("Reading"))
        findings = verify_plan(plan, sequences)
    for finding in findings:
        typer.echo(f"virnucpro: {plan}: {finding}", err=True)
    if findings:
        raise typer.Exit(1)
    if not quiet:
        print_line(f"{plan}: OK ({len(sequences.lengths):,} sequences)")


@app.command()
def report(
    plan: Plan,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="HTML", help="HTML file to write.")
    ],
) -> None:
    """Write an HTML report on a plan.

    The report contains the summary, and plots of sequence lengths, batch fill and sequences per
    batch.
    """
    from virnucpro.files.output import check_output
    from virnucpro.jobs.report import write_report

    with exit_on_error():
        check_output(output, [str(plan)])
        write_report(plan, output)
    print_line(f"Report written to {output}")


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print an expected error as one line and exit with status 1."""
    try:
        yield
    except (OSError, ValueError, OverflowError, MemoryError, ModuleNotFoundError) as error:
        typer.echo(f"virnucpro: {str(error) or 'out of memory'}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def progress_display(quiet: bool) -> Iterator[Callable[[str], Callable[[int], None]]]:
    """Yield a function that begins a stage and returns a function that shows its progress.

    Shows nothing if stderr is not a terminal.
    """
    if quiet or not stderr().is_terminal:
        yield lambda _: lambda _: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description} {task.completed:,.0f} sequences"),
        TimeElapsedColumn(),
        console=stderr(),
        transient=True,
    ) as progress:

        def begin(stage: str) -> Callable[[int], None]:
            task = progress.add_task(stage)
            return lambda done: progress.update(task, completed=done)

        yield begin


@contextmanager
def log_to_stderr(quiet: bool) -> Iterator[None]:
    """Show the warnings of long-running modules on stderr; on a terminal, their progress too."""
    is_terminal = not quiet and stderr().is_terminal
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("virnucpro: %(message)s"))
    if is_terminal:
        from rich.logging import RichHandler

        handler = RichHandler(console=stderr(), show_level=False, show_path=False)
    level = logging.INFO if is_terminal else logging.WARNING
    names = () if quiet else ("kernel.column_generation", "cluster.ray_data", "jobs.pack")
    loggers = [logging.getLogger(f"virnucpro.{name}") for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, previous in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(previous)


@functools.cache
def stderr() -> Console:
    """Return a console on stderr."""
    from rich.console import Console

    return Console(stderr=True)


def print_line(text: str) -> None:
    """Print a line on stderr, without markup or wrapping."""
    stderr().print(text, highlight=False, soft_wrap=True, markup=False, emoji=False)


def format_value(value: object) -> str:
    """Return a value as text for scripts: None as the empty string, bools as true or false."""
    return "" if value is None else json.dumps(value) if isinstance(value, bool) else str(value)


def make_table(rows: dict[str, str]) -> Table:
    """Return a table of labels and values."""
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for label, value in rows.items():
        table.add_row(label, value)
    return table
