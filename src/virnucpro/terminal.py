"""What the command line shows: errors, progress, log messages and tables."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import typer

from virnucpro.memory import describe
from virnucpro.text import printable

# Rich is imported when it is needed, so that --help and --version are fast.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@contextmanager
def exit_on_error(status: int = 1) -> Iterator[None]:
    """Print an expected error as one line and exit with a status."""
    try:
        yield
    except BrokenPipeError:
        # The reader of the output wants no more, which typer knows.
        raise
    except MemoryError as error:
        # Otherwise, what the failed functions hold could leave none for the message.
        traceback.clear_frames(error.__traceback__)
        print_error(describe(error))
        raise typer.Exit(status) from error
    except (OSError, ValueError, OverflowError, ModuleNotFoundError) as error:
        print_error(str(error))
        raise typer.Exit(status) from error


@contextmanager
def progress_display(quiet: bool) -> Iterator[Callable[[str, int], None]]:
    """Yield a function that shows the stage of a job and the number of sequences done.

    Shows nothing if stderr is not a terminal.
    """
    if quiet or not stderr().is_terminal:
        yield lambda _stage, _done: None
        return
    from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    tasks: dict[str, TaskID] = {}
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description} {task.completed:,.0f} sequences"),
        TimeElapsedColumn(),
        console=stderr(),
        transient=True,
    ) as display:

        def show(stage: str, done: int) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage.capitalize())
            display.update(tasks[stage], completed=done)

        yield show


@contextmanager
def log_to_stderr(quiet: bool) -> Iterator[None]:
    """Show the warnings of long-running modules on stderr; on a terminal, their progress too."""
    is_terminal = not quiet and stderr().is_terminal
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("virnucpro: %(message)s"))
    if is_terminal:
        from rich.logging import RichHandler

        handler = RichHandler(console=stderr(), show_level=False, show_path=False)
        handler.setFormatter(PrintableFormatter())
    level = logging.INFO if is_terminal else logging.WARNING
    names = ("kernel.column_generation", "cluster.ray_data", "files.inputs", "jobs.pack")
    loggers = [] if quiet else [logging.getLogger(f"virnucpro.{name}") for name in names]
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


class PrintableFormatter(logging.Formatter):
    """A formatter of messages that may contain text from outside."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a message, in one line."""
        return printable(super().format(record))


def print_error(message: str) -> None:
    """Print an error on stderr, in one line."""
    print_message(f"virnucpro: {message}")


def print_message(message: str | Table) -> None:
    """Print a line or a table on stderr, without markup or wrapping, if it can be written."""
    if isinstance(message, str):
        message = printable(message)
    # Rich exits if nobody reads what it prints.
    with suppress(OSError, SystemExit):
        stderr().print(message, highlight=False, soft_wrap=True, markup=False, emoji=False)


@functools.cache
def stderr() -> Console:
    """Return a console on stderr."""
    from rich.console import Console

    return Console(stderr=True)


def print_output(output: str | Table) -> None:
    """Print the output of a command on stdout.

    Raises:
        OSError: It cannot be written; then nothing else is written there.
    """
    try:
        if isinstance(output, str):
            typer.echo(output)
        elif sys.stdout is not None:
            from rich.console import Console

            Console().print(output)
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # Otherwise, Python tries again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise OSError(f"standard output: cannot be written ({error.strerror})") from error


def format_value(value: object) -> str:
    """Return a value as text for scripts: None as the empty string, bools as true or false."""
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, bool) else printable(str(value))


def make_table(rows: dict[str, str]) -> Table:
    """Return a table of labels and values."""
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for label, value in rows.items():
        table.add_row(label, value)
    return table
