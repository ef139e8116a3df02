"""Arguments and options of more than one command, and headings of the help."""

from __future__ import annotations

import click

from virnucpro.cli.program import argument, count, option
from virnucpro.text import quoted

INPUT, BATCHES, MODEL, OUTPUT, RUNNING = "Input", "Batches", "Model", "Output", "Options"
PLACES = "Also folders, patterns in quotes (*, ?, [], **) and URIs (s3://bucket/folder)."

plan_argument = argument(
    "plan", metavar="PLAN", help="A plan that `virnucpro pack` wrote, or its URI."
)
keep_stop = option(
    "--keep-stop", is_flag=True, group=INPUT, help="Keep stops (*) at the end of sequences."
)
keep_case = option(
    "--keep-case", is_flag=True, group=INPUT, help="Do not convert residues to upper case."
)
drop_gaps = option(
    "--drop-gaps",
    is_flag=True,
    group=INPUT,
    help="Remove gaps (- and .). With --keep-case, also remove lower-case letters (A3M "
    "insertions).",
)
overlong = option(
    "--overlong",
    type=click.Choice(["truncate", "error", "drop", "split"]),
    metavar="HOW",
    default="truncate",
    group=BATCHES,
    help="What to do with sequences that have more residues than --max-length: truncate, error, "
    "drop or split.",
)
overlap = option(
    "--overlap",
    type=count,
    metavar="N",
    default=0,
    group=BATCHES,
    help="Residues that neighboring parts of a sequence share, with --overlong split.",
)
quiet = option(
    "-q", "--quiet", is_flag=True, group=RUNNING, help="Print nothing on stderr except errors."
)


def check_name(output: str, what: str) -> None:
    """Raise UsageError unless an output has a name; `what` says what it is."""
    if output in ("", "-"):
        raise click.UsageError(f"-o {output or quoted(output)} is not possible: {what}")
