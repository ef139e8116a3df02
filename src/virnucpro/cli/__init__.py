"""The command line. Messages go to stderr, the output of `stats` and JSON to stdout."""

from __future__ import annotations

import logging

import click

from virnucpro.cli.embed import embed
from virnucpro.cli.pack import pack
from virnucpro.cli.plans import report, stats, verify
from virnucpro.cli.program import Program

EXAMPLES = """
# Embed a proteome.
virnucpro embed proteins.fasta -o out --model facebook/esm2_t33_650M_UR50D

# Pack it for your own training, and look at the result.
virnucpro pack proteins.fasta -o plan.parquet --max-tokens 16k
virnucpro report plan.parquet -o report.html
"""


@click.group(
    cls=Program,
    examples=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(
    None, "-V", "--version", package_name="virnucpro", message="%(package)s %(version)s"
)
def app() -> None:
    """Pack protein sequences into token-budget batches, and embed them."""
    # Most log messages repeat what the summaries show.
    logging.getLogger("virnucpro").addHandler(logging.NullHandler())


for command in (pack, embed, stats, verify, report):
    app.add_command(command)
