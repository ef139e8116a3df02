"""The command line: messages on stderr, plans only where `-o` says."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import virnucpro
from virnucpro.data import GreedyPacker, PackingPlan
from virnucpro.data.fasta import read_lengths
from virnucpro.data.plan_file import write_plan

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)


def print_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(f"virnucpro {virnucpro.__version__}")
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
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT", help="FASTA files, plain, gzip or bgzip."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="PLAN", help="The Parquet file to write.")
    ],
    max_tokens: Annotated[int, typer.Option(help="Tokens a batch.")] = 4096,
    max_length: Annotated[int, typer.Option(help="Residues kept of a sequence.")] = 1022,
) -> None:
    """Pack FASTA files and write the plan, one row a sequence in order of batches.

    Each sequence has two special tokens. Equally long ones are in order of their IDs.
    """
    try:
        packer = GreedyPacker(max_tokens, max_length)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    with failing_in_one_line():
        check_output(output, inputs)
        ids: list[str] = []
        lengths = array("q")
        with reading() as progress:
            task = progress.add_task("Reading")
            for path in inputs:
                for identifier, length in read_lengths(path):
                    ids.append(identifier)
                    lengths.append(length)
                    if len(ids) % 10_000 == 0:
                        progress.update(task, completed=len(ids))
        residues = np.frombuffer(lengths, np.int64)
        plan = packer.pack_lengths(residues, ids)
        write_plan(output, plan, ids, residues)
    print_summary(plan, int(residues.sum()), output)


@contextmanager
def failing_in_one_line() -> Iterator[None]:
    """Turn errors in the input into one line and exit status 1."""
    try:
        yield
    except (OSError, ValueError, OverflowError) as error:
        typer.echo(f"virnucpro: {error}", err=True)
        raise typer.Exit(1) from error


def check_output(output: Path, inputs: list[Path]) -> None:
    """Refuse before any work what could not be written after it."""
    if output.is_dir():
        raise IsADirectoryError(f"{output}: is a directory")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"{output}: no such directory")
    if output.exists() and any(path.exists() and path.samefile(output) for path in inputs):
        raise ValueError(f"{output}: is an input too")


def reading() -> Progress:
    """Show on a terminal how many sequences were read."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description} {task.completed:,.0f} sequences"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def print_summary(plan: PackingPlan, num_residues: int, output: Path) -> None:
    """Print what was packed."""
    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in {
        "Sequences": f"{plan.num_sequences:,}",
        "Residues": f"{num_residues:,}",
        "Truncated": f"{plan.num_truncated:,}",
        "Residues lost": f"{plan.truncated_tokens:,}",
        "Batches": f"{plan.num_batches:,}",
        "Efficiency": f"{plan.efficiency:.6f}",
        "Lower bound": f"{plan.lower_bound:,}",
    }.items():
        table.add_row(name, value)
    console.print(table)
    console.print(f"Plan written to {output}", highlight=False, soft_wrap=True, markup=False)
