"""Arguments and options of more than one command."""

from __future__ import annotations

import enum
from typing import Annotated

import typer


class Overlong(str, enum.Enum):
    """How to handle sequences longer than the maximum."""

    truncate = "truncate"
    error = "error"
    drop = "drop"
    # `split` is a method of str.
    split_up = "split"


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
OnOverlong = Annotated[
    Overlong, typer.Option(help="How to handle sequences longer than --max-length.")
]
KeepStop = Annotated[
    bool, typer.Option("--keep-stop", help="Keep stops (*) at the end of sequences.")
]
KeepCase = Annotated[
    bool, typer.Option("--keep-case", help="Do not convert residues to upper case.")
]
DropGaps = Annotated[
    bool,
    typer.Option(
        "--drop-gaps",
        help="Remove gaps (- and .). With --keep-case, also remove lower-case letters "
        "(A3M insertions).",
    ),
]
