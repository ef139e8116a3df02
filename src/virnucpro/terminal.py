"""What the command line shows: errors, progress, log messages and tables."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

import click

from virnucpro.memory import describe, format_bytes
from virnucpro.text import printable

# Rich is imported when it is needed, so that --help and --version are fast.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# What a stage counts, if not sequences, or when reading bytes.
UNITS = {"writing": "rows", "embedding": "residues"}
# Modules whose warnings are shown.
LOGGERS = (
    "kernel.column_generation",
    "files.inputs",
    "files.losses",
    "model.check",
    "model.collator",
    "model.embedder",
    "cluster.ray_data",
    "jobs.embed",
    "jobs.pack",
)
# Options of commands by the arguments that messages name.
OPTIONS = {
    "max_tokens_per_batch": "--max-tokens",
    "max_tokens": "--max-tokens",
    "max_sequence_length": "--max-length",
    "max_sequences_per_batch": "--max-sequences",
    "special_tokens": "--special-tokens",
    "multiple_of": "--multiple-of",
    "num_threads": "--threads",
    "embedding_dtype": "--embedding-dtype",
    "overlong": "--overlong",
    "overlap": "--overlap",
    "method": "--method",
    "dtype": "--dtype",
    "device": "--device",
    "options": "--keep-stop, --keep-case or --drop-gaps",
}
# Options that are given or not, and the value of the argument if they are.
FLAGS = {
    "deduplicate": ("--no-dedup", "False"),
    "strip_stop": ("--keep-stop", "False"),
    "uppercase": ("--keep-case", "False"),
    "drop_gaps": ("--drop-gaps", "True"),
    "states": ("--states", "True"),
}
# Arguments in messages, only where no ID or name of a file is.
ARGUMENT = re.compile(
    rf"(?<![^\s(])(?:"
    rf"(?P<flag>{'|'.join(FLAGS)}) was (?P<value>True|False) \(got \w+\)"
    rf"|(?P<name>{'|'.join(OPTIONS)})=(?:'(?P<choice>\w+)'|(?P<number>\d+|\.\.\.))"
    rf"|(?:^|(?<=: )|(?<=; ))(?P<word>{'|'.join(OPTIONS)})(?= must | was )"
    rf"|(?:(?<=its own )|(?<=default ))(?P<own>{'|'.join(OPTIONS)})\b)"
)
# Seconds that a speed is measured over.
SPEED_PERIOD = 60.0
# The messages of `message_at_end`, and the processes that they are of.
_messages: list[tuple[int, Callable[[], str]]] = []


@contextmanager
def exit_on_error(status: int = 1) -> Iterator[None]:
    """Print an expected error as one line and exit with a status."""
    try:
        yield
    except BrokenPipeError:
        # The reader of the output wants no more. Otherwise, Python tries again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise click.exceptions.Exit(status) from None
    except MemoryError as error:
        # Otherwise, what the failed functions hold could leave none for the message.
        traceback.clear_frames(error.__traceback__)
        print_error(describe(error))
        raise click.exceptions.Exit(status) from error
    except (OSError, ValueError, OverflowError, ModuleNotFoundError) as error:
        print_error(str(error))
        raise click.exceptions.Exit(status) from error


class ShowProgress(Protocol):
    """A function that shows how much of a stage of a job is done."""

    def __call__(self, stage: str, done: int, total: int | None = None, /) -> None:
        """Show a stage; `total` is None if it is not known."""


@contextmanager
def progress_display(quiet: bool, interval: float | None = None) -> Iterator[ShowProgress]:
    """Yield a function that shows the stage of a job and how much of it is done.

    Args:
        quiet: Whether to show nothing.
        interval: Seconds between lines on stderr if it is not a terminal, of which each stage has
            one at least; None for no lines.
    """
    if quiet or (interval is None and not stderr().is_terminal):
        yield lambda _stage, _done, _total=None: None
        return
    speed = Speed()
    if not stderr().is_terminal:
        due, last = 0.0, ""

        def print_line(stage: str, done: int, total: int | None = None) -> None:
            nonlocal due, last
            rate = speed.update(stage, done)
            if stage != last or time.monotonic() >= due:
                due, last = time.monotonic() + (interval or 0), stage
                print_message(f"virnucpro: {describe_progress(stage, done, total, rate)}")

        yield print_line
        return
    from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.table import Column

    tasks: dict[str, TaskID] = {}
    display = Progress(
        SpinnerColumn(),
        # Wraps.
        TextColumn("{task.description}", table_column=Column()),
        TimeElapsedColumn(),
        console=stderr(),
        transient=True,
    )

    def show(stage: str, done: int, total: int | None = None) -> None:
        rate = speed.update(stage, done)
        text = describe_progress(stage, done, total, rate)
        # Not capitalize, which changes KiB.
        text = text[:1].upper() + text[1:]
        if stage not in tasks:
            for task in tasks.values():
                display.update(task, total=1, completed=1)
            tasks[stage] = display.add_task(text, total=None)
            # Not before, as a library may show its own progress until then.
            display.start()
        display.update(tasks[stage], description=text)

    try:
        yield show
    finally:
        if tasks:
            display.stop()


class Speed:
    """How much of a stage is done per second, of late."""

    def __init__(self) -> None:
        self._stage = ""
        # Times in seconds, and how much was done then.
        self._seen: deque[tuple[float, int]] = deque()

    def update(self, stage: str, done: int) -> float | None:
        """Return how much is done per second; None at the start, and if that is nothing.

        What was done before the first call for a stage does not count.
        """
        if stage != self._stage:
            self._stage = stage
            self._seen.clear()
        now = time.monotonic()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - SPEED_PERIOD:
            self._seen.popleft()
        begin, before = self._seen[0]
        return (done - before) / (now - begin) if done > before and now > begin else None


def describe_progress(stage: str, done: int, total: int | None, rate: float | None) -> str:
    """Return a stage and how much of it is done as text.

    Example:
        >>> describe_progress("reading", 3 * 2**29, 2**32, 2.0**28)
        'reading 37.5 % of 4.0 GiB, 256 MiB per second, 0:00:10 left'
        >>> describe_progress("embedding", 1_234, 10_000, 100.0)
        'embedding 12.3 % of 10,000 residues, 100 per second, 0:01:28 left'
    """
    unit = f" {UNITS.get(stage, 'sequences')}"

    def amount(number: float, unit: str) -> str:
        return format_bytes(int(number)) if stage == "reading" else f"{number:,.0f}{unit}"

    if not total:
        return f"{stage} {amount(done, unit)}" if done else stage
    # A file may have grown. Not rounded, as 100 % would be all.
    done = min(done, total)
    text = f"{stage} {1000 * done // total / 10} % of {amount(total, unit)}"
    if rate:
        left = timedelta(seconds=math.ceil((total - done) / rate))
        text += f", {amount(rate, '')} per second, {left} left"
    return text


@contextmanager
def log_to_stderr(quiet: bool) -> Iterator[None]:
    """Show the warnings of long-running modules on stderr; on a terminal, their progress too."""
    handler = MessageHandler()
    handler.setFormatter(PrintableFormatter())
    level = logging.INFO if stderr().is_terminal else logging.WARNING
    loggers = [] if quiet else [logging.getLogger(f"virnucpro.{name}") for name in LOGGERS]
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


class MessageHandler(logging.Handler):
    """A handler that prints log messages on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        show = print_warning if record.levelno >= logging.WARNING else print_note
        show(self.format(record))


def with_options(message: str) -> str:
    """Return a message about arguments with the names of options in their place.

    Example:
        >>> with_options("overlap must be 0 unless overlong='split' (got 5)")
        '--overlap must be 0 unless --overlong split (got 5)'
        >>> with_options("cannot be resumed: deduplicate was True (got False)")
        'cannot be resumed: it was made without --no-dedup'
    """

    def replace(found: re.Match[str]) -> str:
        if found["flag"]:
            option, value = FLAGS[found["flag"]]
            return f"it was made {'with' if found['value'] == value else 'without'} {option}"
        if found["name"]:
            return f"{OPTIONS[found['name']]} {found['choice'] or found['number']}"
        return OPTIONS[found["word"] or found["own"]]

    return ARGUMENT.sub(replace, message)


def print_note(message: str) -> None:
    """Print what a command is doing on stderr, in one line, with the names of options."""
    print_message(f"virnucpro: {with_options(message)}")


def print_warning(message: str) -> None:
    """Print a warning on stderr, in one line, with the names of options."""
    print_note(f"warning: {message}")


def print_error(message: str) -> None:
    """Print an error on stderr, in one line, with the names of options."""
    print_note(f"error: {message}")


@contextmanager
def message_at_end(make: Callable[[], str]) -> Iterator[None]:
    """Have a message printed on stderr if a signal ends this process in the context."""
    _messages.append((os.getpid(), make))
    try:
        yield
    finally:
        _messages.pop()


def print_at_end() -> None:
    """Print the messages of `message_at_end`; the process is about to end."""
    for process, make in _messages:
        # Workers have those of their parent.
        if process == os.getpid():
            with suppress(OSError):
                # Not by a stream, whose lock the signal may have interrupted.
                os.write(2, f"virnucpro: {printable(make())}\n".encode(errors="backslashreplace"))


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
            click.echo(output)
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
