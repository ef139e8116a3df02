"""The command line: messages on stderr, tables on stdout, plans only where `-o` says."""

from __future__ import annotations

import enum
import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from virnucpro.extras import needing

# Commands import what they need themselves, so that help and the version come at once.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from virnucpro.data.packing import GreedyPacker
    from virnucpro.data.plan import Layout
    from virnucpro.files.plan_file import Totals

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Rich would take longer than all the rest to show help.
    rich_markup_mode=None,
)


class Engine(str, enum.Enum):
    """What does the work."""

    local = "local"
    ray = "ray"


class Method(str, enum.Enum):
    """How batches are found."""

    ffd = "ffd"
    tight = "tight"


class Overlong(str, enum.Enum):
    """What becomes of sequences above the limit."""

    truncate = "truncate"
    error = "error"
    drop = "drop"


class Duplicates(str, enum.Enum):
    """What becomes of sequences with the ID of another."""

    report = "report"
    error = "error"


Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="FASTA files, plain or compressed (gzip, bgzip, bzip2, xz, Zstandard), or - for "
        "standard input; or tables of lengths: .fai, .parquet, .arrow, .tsv.",
        show_default=False,
    ),
]
Plan = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan that `pack` wrote.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]


def print_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"virnucpro {version('virnucpro')}")
        raise typer.Exit


@app.callback()
def describe(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Pack sequences into token-budget batches by exact First-Fit Decreasing."""
    # Summaries tell what the library would log.
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
            help="The Parquet file to write; with --engine ray, the folder of them.",
        ),
    ],
    max_tokens: Annotated[int, typer.Option(help="Tokens a batch.")] = 4096,
    max_length: Annotated[int, typer.Option(help="Residues kept of a sequence.")] = 1022,
    max_sequences: Annotated[
        int | None, typer.Option(help="Sequences a batch; any number without.")
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="First-Fit Decreasing, or column generation: fewer batches, and a proof of how "
            "few there can be, for some seconds."
        ),
    ] = Method.ffd,
    special_tokens: Annotated[int, typer.Option(help="Tokens added to each sequence.")] = 2,
    overlong: Annotated[
        Overlong, typer.Option(help="What becomes of longer sequences.")
    ] = Overlong.truncate,
    duplicates: Annotated[
        Duplicates, typer.Option(help="What becomes of IDs that are there more than once.")
    ] = Duplicates.report,
    keep_stop: Annotated[
        bool, typer.Option("--keep-stop", help="Keep each * at the end of a sequence as a residue.")
    ] = False,
    keep_case: Annotated[
        bool, typer.Option("--keep-case", help="Keep lower-case letters as they are.")
    ] = False,
    drop_gaps: Annotated[
        bool,
        typer.Option(
            "--drop-gaps",
            help="Leave out gaps (- and .); with --keep-case also lower-case letters, the "
            "insertions of A3M files.",
        ),
    ] = False,
    id_column: Annotated[str, typer.Option(help="The column of tables with the IDs.")] = "id",
    length_column: Annotated[
        str, typer.Option(help="The column of tables with the residues of each sequence.")
    ] = "length",
    threads: Annotated[int | None, typer.Option(help="Threads; as many as cores without.")] = None,
    engine: Annotated[
        Engine,
        typer.Option(
            help="This process, or Ray: for Parquet tables, on the cluster of RAY_ADDRESS."
        ),
    ] = Engine.local,
    quiet: Quiet = False,
) -> None:
    """Pack sequences and write the plan, one row a sequence in order of batches.

    Equally long sequences are in order of their IDs. The plan has every sequence that was read,
    those that were dropped without a batch.
    """
    from virnucpro.data.packing import GreedyPacker, column_generation
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
        with failing_in_one_line():
            # Before any work, which would be lost without it.
            column_generation()
    if engine is Engine.ray:
        unknown = {
            "--overlong drop": overlong is Overlong.drop,
            "--duplicates error": duplicates is Duplicates.error,
            "--keep-stop": keep_stop,
            "--keep-case": keep_case,
            "--drop-gaps": drop_gaps,
            "--threads": threads is not None,
        }
        if any(unknown.values()):
            names = ", ".join(name for name, is_given in unknown.items() if is_given)
            raise typer.BadParameter(f"--engine ray does not know {names}")
        pack_on_ray(inputs, output, packer, id_column, length_column, quiet)
        return
    from virnucpro.jobs.pack import pack_files

    options = ReadOptions(
        id_column,
        length_column,
        strip_stop=not keep_stop,
        uppercase=not keep_case,
        drop_gaps=drop_gaps,
    )
    with failing_in_one_line(), showing_log(quiet), showing_progress(quiet) as progress:
        summary = pack_files(
            inputs,
            output,
            packer,
            overlong=overlong.value,
            options=options,
            duplicates=duplicates.value,
            progress=progress,
        )
    if quiet:
        return
    stderr().print(table_of_totals(summary.totals))
    print_line(f"Plan written to {output}")


def pack_on_ray(
    inputs: list[str],
    output: Path,
    packer: GreedyPacker,
    id_column: str,
    length_column: str,
    quiet: bool,
) -> None:
    """Pack Parquet tables on Ray."""
    with failing_in_one_line(), needing("--engine ray", "ray"):
        import ray

        from virnucpro.cluster.ray_data import list_tables, pack_tables
    is_shown = stderr().is_terminal and not quiet
    # Messages of Ray go where ours do.
    with failing_in_one_line(), showing_log(quiet), redirect_stdout(sys.stderr):
        list_tables(inputs, output.absolute(), [id_column, length_column])
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = is_shown
        # What fails is raised too.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        columns = {"id_column": id_column, "length_column": length_column}
        try:
            layout = pack_tables(inputs, output, packer, **columns)
        except (ray.exceptions.RayError, TypeError, RuntimeError) as error:
            # What Ray tells ends with what happened.
            raise OSError(str(error).strip().splitlines()[-1]) from error
    if not quiet:
        stderr().print(table_of_layout(layout))
        print_line(f"Plan written to {output}")


@app.command()
def stats(
    plan: Plan,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, parameters included.")] = False,
    as_tsv: Annotated[bool, typer.Option("--tsv", help="As lines of name, tab, value.")] = False,
) -> None:
    """Print the summary of a plan, which stands in the file itself."""
    if as_json and as_tsv:
        raise typer.BadParameter("--json and --tsv exclude each other")
    from rich.console import Console

    from virnucpro.files.plan_file import read_summary

    with failing_in_one_line():
        summary = read_summary(plan)
        found = summary.as_dict()
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        elif as_tsv:
            values = {**summary.parameters, **found["totals"]}
            typer.echo("\n".join(f"{name}\t{text_of(value)}" for name, value in values.items()))
        else:
            Console().print(table_of_totals(summary.totals))


@app.command()
def verify(plan: Plan, inputs: Inputs, quiet: Quiet = False) -> None:
    """Check a plan against its input, read anew; exit with 1 where anything is wrong.

    Each sequence has to be there once, as it is in the input; batches have to keep their limits
    and, but for --method tight, to be what First-Fit Decreasing gives; and the totals in the file
    have to be right.
    """
    from virnucpro.files.plan_file import read_summary
    from virnucpro.files.sequences import read_files
    from virnucpro.files.verify import verify_plan

    with failing_in_one_line():
        options = read_summary(plan).options
        with showing_progress(quiet) as show:
            sequences = read_files(inputs, options, show("Reading"))
        findings = verify_plan(plan, sequences)
    for finding in findings:
        typer.echo(f"virnucpro: {plan}: {finding}", err=True)
    if findings:
        raise typer.Exit(1)
    if not quiet:
        print_line(f"{plan}: right, {len(sequences.lengths):,} sequences")


@app.command()
def report(
    plan: Plan,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="HTML", help="The page to write.")
    ],
) -> None:
    """Write a page about a plan: its numbers, and plots of lengths and batches."""
    from virnucpro.files.output import check_output
    from virnucpro.jobs.report import write_report

    with failing_in_one_line():
        check_output(output, [str(plan)])
        write_report(plan, output)
    print_line(f"Report written to {output}")


@contextmanager
def failing_in_one_line() -> Iterator[None]:
    """Turn errors in the input into one line and exit status 1."""
    try:
        yield
    except (OSError, ValueError, OverflowError, MemoryError, ModuleNotFoundError) as error:
        typer.echo(f"virnucpro: {str(error) or 'out of memory'}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def showing_progress(quiet: bool) -> Iterator[Callable[[str], Callable[[int], None]]]:
    """Give what begins a stage of work, and returns what shows its progress on a terminal."""
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
def showing_log(quiet: bool) -> Iterator[None]:
    """Show on stderr what modules whose work takes long log: on a terminal, how far it is too."""
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
        for logger, before in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(before)


@functools.cache
def stderr() -> Console:
    """Return the terminal's standard error."""
    from rich.console import Console

    return Console(stderr=True)


def print_line(text: str) -> None:
    """Print a line on stderr as it is."""
    stderr().print(text, highlight=False, soft_wrap=True, markup=False, emoji=False)


def text_of(value: object) -> str:
    """Return a value as scripts read it."""
    return "" if value is None else json.dumps(value) if isinstance(value, bool) else str(value)


def table_of_totals(totals: Totals) -> Table:
    """Return a table for readers, without what did not occur."""
    rows = {
        "Sequences": totals.read,
        "Packed": totals.packed,
        "Dropped": totals.dropped,
        "Empty": totals.empty,
        "Stops (*) left out": totals.stops,
        "Lower case made upper": totals.lower_case,
        "Gaps left out": totals.gaps,
        "Insertions left out": totals.insertions,
        "Duplicate IDs": totals.duplicate_ids,
        "Residues": totals.residues,
        "Residues kept": totals.residues_kept,
        "Residues dropped": totals.residues_dropped,
        "Truncated": totals.truncated,
        "Residues lost": totals.residues_cut,
        "Batches by FFD": totals.first_fit_batches,
        "Batches": totals.batches,
    }
    rare = {"Dropped", "Empty", "Duplicate IDs", "Residues dropped", "Stops (*) left out"}
    rare |= {"Lower case made upper", "Gaps left out", "Insertions left out"}
    occurred = {name: value for name, value in rows.items() if value or name not in rare}
    if totals.first_fit_batches == totals.batches:
        del occurred["Batches by FFD"]
    return as_table(occurred, totals.efficiency, totals.lower_bound)


def table_of_layout(layout: Layout) -> Table:
    """Return a table for readers of what a layout knows."""
    kept = layout.total_tokens - layout.special_tokens * layout.num_sequences
    rows = {
        "Sequences": layout.num_sequences,
        "Residues": kept + layout.truncated_residues,
        "Residues kept": kept,
        "Truncated": layout.num_truncated,
        "Residues lost": layout.truncated_residues,
        "Batches": layout.num_batches,
    }
    return as_table(rows, layout.efficiency, layout.lower_bound)


def as_table(rows: dict[str, int], efficiency: float, lower_bound: int) -> Table:
    """Return a table of names and numbers."""
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, f"{value:,}")
    table.add_row("Efficiency", f"{efficiency:.6f}")
    table.add_row("Lower bound", f"{lower_bound:,}")
    return table
