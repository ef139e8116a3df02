"""The command `embed`."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from virnucpro.cli import options as shared
from virnucpro.cli.hints import FILES
from virnucpro.cli.options import BATCHES, MODEL, OUTPUT, PLACES, RUNNING
from virnucpro.cli.program import Helped, argument, count, option
from virnucpro.extras import needing
from virnucpro.terminal import (
    exit_on_error,
    log_to_stderr,
    make_table,
    message_at_end,
    print_error,
    print_message,
    print_output,
    progress_display,
    stderr,
)
from virnucpro.text import quoted, shown

if TYPE_CHECKING:
    from virnucpro.jobs.embed_job import EmbeddingRun

# Seconds between lines of progress where stderr is not a terminal.
INTERVAL = 60.0
# Failed sequences that are named.
MAX_NAMED = 10

EXAMPLES = """
virnucpro embed proteins.fasta -o out --model facebook/esm2_t33_650M_UR50D

# The checkpoint in the folder esm2; embeddings that take half the space.
virnucpro embed proteomes/ -o half --model esm2 --embedding-dtype float16

# All residues of long proteins, in windows; the states of residues too.
virnucpro embed proteins.fasta -o long --model esm2 --overlong split --states

# The second of four jobs that share a folder.
virnucpro embed proteins.fasta -o out --model esm2 --max-tokens 8k --shard 2/4

# The batches of a plan.
virnucpro embed plan.parquet -o planned --model esm2
"""


def parse_shard(text: str) -> tuple[int, int]:
    """Return the number of a shard and that of all shards, as of 2/4.

    Raises:
        click.BadParameter: It is none.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    shard = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= shard[0] <= shard[1]:
        raise click.BadParameter(
            f"must be I/N, with I from 1 to N, such as 2/4 (got {quoted(text)})"
        )
    return shard


@click.command(
    cls=Helped,
    examples=EXAMPLES,
    statuses=(
        "All sequences are embedded, or all of a shard.",
        "The model failed for some sequences, which are named; or an input, the model or the "
        "output is not valid. Parts that are complete stay.",
        "The command is not valid.",
    ),
)
@argument(
    "inputs",
    nargs=-1,
    required=True,
    metavar="INPUT...",
    help="FASTA files, plain or compressed (gzip, bgzip, bzip2, xz, Zstandard), or - for standard "
    f"input. {PLACES} Or one plan that `virnucpro pack` wrote.",
)
@shared.keep_stop
@shared.keep_case
@shared.drop_gaps
@option(
    "--model",
    metavar="MODEL",
    required=True,
    group=MODEL,
    help="The folder of a checkpoint, or the name of a model on the hub of Hugging Face, such as "
    "facebook/esm2_t33_650M_UR50D.",
)
@option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    metavar="TYPE",
    group=MODEL,
    help="The type that the model runs in: float32, bfloat16 or float16. [default: bfloat16 on a "
    "GPU, float32 on the CPU]",
)
@option(
    "--device",
    metavar="DEVICE",
    group=MODEL,
    help="cpu, cuda or cuda:1. [default: cuda if there is one, else cpu]",
)
@option(
    "--max-tokens",
    type=count,
    metavar="N",
    group=BATCHES,
    help="Token budget per batch, special tokens included. 16k is 16,384. [default: that of parts "
    "that exist; else measured on a GPU, 4096 on the CPU]",
)
@option(
    "--max-length",
    "max_sequence_length",
    type=count,
    metavar="N",
    group=BATCHES,
    help="Maximum residues kept per sequence. [default: 1022, or as many as the model has "
    "positions for]",
)
@shared.overlong
@shared.overlap
@option(
    "--no-dedup",
    is_flag=True,
    group=BATCHES,
    help="Run the model for equal sequences each time, instead of once.",
)
@option(
    "-o",
    "--output",
    metavar="FOLDER",
    required=True,
    group=OUTPUT,
    help="The folder of Parquet files to write, or its URI.",
)
@option(
    "--embedding-dtype",
    type=click.Choice(["float32", "float16"]),
    metavar="TYPE",
    default="float32",
    group=OUTPUT,
    help="The type of the embeddings that are written: float32 or float16.",
)
@option("--states", is_flag=True, group=OUTPUT, help="Also write the state of each residue.")
@option(
    "--json",
    "as_json",
    is_flag=True,
    group=OUTPUT,
    help="Print the summary and what was done as JSON on stdout.",
)
@option(
    "--shard",
    type=parse_shard,
    metavar="I/N",
    default="1/1",
    group=RUNNING,
    help="Do the I-th of N shares of the parts. Runs of all N write to the same folder.",
)
@option(
    "--threads",
    type=count,
    metavar="N",
    group=RUNNING,
    help="Number of threads of a model on the CPU. Fewer are faster if other processes use the "
    "cores. [default: all cores]",
)
@shared.quiet
def embed(
    inputs: tuple[str, ...],
    output: str,
    model: str,
    dtype: str | None,
    device: str | None,
    max_tokens: int | None,
    max_sequence_length: int | None,
    overlong: str,
    overlap: int,
    no_dedup: bool,
    embedding_dtype: str,
    states: bool,
    shard: tuple[int, int],
    threads: int | None,
    keep_stop: bool,
    keep_case: bool,
    drop_gaps: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Embed sequences with a protein language model.

    Writes a folder of Parquet files with one row per sequence, in order of batches; sort by the
    column `row` for the order of the input. An embedding is the mean of the states of the residues.

    Each file appears when it is complete. The same command again does what is left, and tries
    failed sequences again. Their embeddings are null, and the exit status is 1 if there are any.
    """
    from virnucpro.data.packing import GreedyPacker

    check_output(output)
    try:
        # As `embed_files` does, later.
        GreedyPacker(
            2**31 - 1 if max_tokens is None else max_tokens,
            1022 if max_sequence_length is None else max_sequence_length,
            overlong=overlong,
            overlap=overlap,
            num_threads=threads,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    shows_downloads = stderr().is_terminal and not (quiet or Path(model).is_dir())
    with exit_on_error():
        with needing("virnucpro embed", "cli,esm"):
            import torch

            quieten_transformers(shows_downloads)
            from virnucpro.files.fasta import ReadOptions
            from virnucpro.files.places import name_of
            from virnucpro.jobs.embed import embed_files
            from virnucpro.jobs.labels import label_totals

        def show(stage: str, done: int, total: int | None) -> None:
            # Both would write to the same line.
            if stage != "loading" or not shows_downloads:
                progress(stage, done, total)

        # A plan has its own.
        is_default = not (keep_stop or keep_case or drop_gaps)
        options = (
            None
            if is_default
            else ReadOptions("id", "length", not keep_stop, not keep_case, drop_gaps)
        )
        if threads is not None:
            torch.set_num_threads(threads)
        with (
            log_to_stderr(quiet),
            nullcontext() if quiet else message_at_end(lambda: describe_parts(output)),
            progress_display(quiet, INTERVAL) as progress,
        ):
            run = embed_files(
                inputs,
                output,
                model,
                max_tokens=max_tokens,
                max_sequence_length=max_sequence_length,
                overlong=overlong,
                overlap=overlap,
                options=options,
                deduplicate=not no_dedup,
                states=states,
                dtype=dtype,
                embedding_dtype=embedding_dtype,
                device=device,
                shard=shard,
                progress=show,
            )
        if not quiet:
            labels = label_totals(run.summary.totals)
            if run.unknown:
                # Of the parts that this run wrote.
                labels["Unknown residues"] = f"{sum(run.unknown.values()):,}"
            print_message(make_table(labels))
            parts = f"{run.complete:,} of {run.parts:,} parts are in {shown(name_of(output))}"
            if shard[1] > 1:
                parts = f"Shard {shard[0]}/{shard[1]} is done: {parts}"
            print_message(parts)
        if as_json:
            print_output(json.dumps(to_json(run), indent=2))
    for failed in run.failed[:MAX_NAMED]:
        print_error(f"{quoted(failed.id)} (row {failed.row:,}) failed: {failed.reason}")
    if len(run.failed) > MAX_NAMED:
        print_error(f"{len(run.failed) - MAX_NAMED:,} more sequences failed")
    if run.failed:
        raise click.exceptions.Exit(1)


def check_output(output: str) -> None:
    """Raise UsageError if a folder cannot have this name."""
    from virnucpro.files.places import file_name, name_of

    shared.check_name(output, "embeddings are a folder of Parquet files")
    name = shown(name_of(output))
    suffix = Path(file_name(output)).suffix.lower()
    # One that exists may have parts of an earlier run.
    if suffix in FILES and not Path(output).is_dir():
        raise click.UsageError(
            f"{name}: embeddings are a folder of Parquet files, so leave out {suffix}"
        )


def quieten_transformers(shows_downloads: bool) -> None:
    """Have transformers print errors only, and perhaps the progress of downloads."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    shows_downloads = shows_downloads and not are_progress_bars_disabled()
    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    # Also those of downloads.
    logging.disable_progress_bar()
    if shows_downloads:
        enable_progress_bars()


def to_json(run: EmbeddingRun) -> dict[str, Any]:
    """Return a run as plain values."""
    return {
        "summary": run.summary.to_dict(),
        "parts": run.parts,
        "complete": run.complete,
        "written": run.written,
        "failed": [failed._asdict() for failed in run.failed],
        "unknown": run.unknown,
    }


def describe_parts(output: str) -> str:
    """Return what a run that is stopped has in its output folder."""
    from virnucpro.files.embedding_parts import PART_NAME

    # No store of objects is asked by a process that has to end.
    names = [path.name for path in Path(output).iterdir()] if Path(output).is_dir() else []
    found = [match for match in map(PART_NAME.fullmatch, names) if match]
    parts = (
        f", {len(found):,} of {int(found[0][2]):,} parts are in {shown(output)}" if found else ""
    )
    return f"stopped{parts}; the same command does the rest"
