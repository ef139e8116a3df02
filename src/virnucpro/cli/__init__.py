"""The command line. Messages go to stderr, the output of `stats` and JSON to stdout."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from virnucpro.cli.embed import embed
from virnucpro.cli.pack import pack
from virnucpro.cli.plans import report, stats, verify

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Rich takes longer to import than everything else that --help needs.
    rich_markup_mode=None,
)


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
    """Pack protein sequences into token-budget batches, and embed them."""
    # Most log messages repeat what the summaries show.
    logging.getLogger("virnucpro").addHandler(logging.NullHandler())


for command in (pack, embed, stats, verify, report):
    app.command()(command)
