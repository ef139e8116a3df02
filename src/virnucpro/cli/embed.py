"""The command `embed`."""

from __future__ import annotations

import enum
import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from virnucpro.cli.options import DropGaps, KeepCase, KeepStop, OnOverlong, Overlong, Quiet
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


class Dtype(str, enum.Enum):
    """The type that a model runs in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class EmbeddingDtype(str, enum.Enum):
    """The type of what is written."""

    float32 = "float32"
    float16 = "float16"


def parse_shard(text: str) -> tuple[int, int]:
    """Return the number of a shard and that of all shards, as of 2/4."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    shard = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= shard[0] <= shard[1]:
        raise typer.BadParameter(
            f"must be I/N, with I from 1 to N, such as 2/4 (got {quoted(text)})",
            param_hint="'--shard'",
        )
    return shard


def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="FASTA files, plain or compressed (gzip, bgzip, bzip2, xz, Zstandard), or - for "
            "standard input. Also folders, patterns in quotes (*, ?, [], **) and URIs "
            "(s3://bucket/folder). Or one plan written by `pack`.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option("-o", "--output", metavar="FOLDER", help="Folder of Parquet files to write."),
    ],
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Folder of a checkpoint, or name of a model on the hub of Hugging Face "
            "(facebook/esm2_t33_650M_UR50D).",
        ),
    ],
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Token budget per batch.  [default: that of parts that exist; else measured on a "
            "GPU, 4096 on the CPU]"
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Maximum residues kept per sequence.  [default: 1022, or as many as the model has "
            "positions for]",
        ),
    ] = None,
    overlong: OnOverlong = Overlong.truncate,
    overlap: Annotated[
        int, typer.Option(help="Residues that neighboring windows share (--overlong split).")
    ] = 0,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="Type that the model runs in.  [default: bfloat16 on a GPU, float32 on the CPU]"
        ),
    ] = None,
    embedding_dtype: Annotated[
        EmbeddingDtype, typer.Option(help="Type of the embeddings that are written.")
    ] = EmbeddingDtype.float32,
    states: Annotated[
        bool, typer.Option("--states", help="Also write the state of each residue.")
    ] = False,
    no_dedup: Annotated[
        bool,
        typer.Option("--no-dedup", help="Embed equal sequences each time, instead of once."),
    ] = False,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Do the I-th of N shares of the parts. Runs of all N write to the same folder.",
        ),
    ] = "1/1",
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE", help="cpu, cuda or cuda:1.  [default: cuda if there is one, else cpu]"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of threads of a model on the CPU; fewer are faster if other processes use "
            "the cores.  [default: all cores]",
        ),
    ] = None,
    keep_stop: KeepStop = False,
    keep_case: KeepCase = False,
    drop_gaps: DropGaps = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary and what was done as JSON.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Embed sequences with a protein language model.

    Writes a folder of Parquet files with a row per sequence, in order of batches; sort by the
    column `row` for the order of the input. An embedding is the mean of the states of the residues.

    Each file appears when it is complete. The same command again does what is left, and tries
    failed sequences again. Their embeddings are null, and the exit status is 1 if there are any.
    """
    from virnucpro.data.packing import GreedyPacker

    part_of = parse_shard(shard)
    try:
        # As `embed_files` does, later.
        GreedyPacker(
            2**31 - 1 if max_tokens is None else max_tokens,
            1022 if max_length is None else max_length,
            overlong=overlong.value,
            overlap=overlap,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
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
                max_sequence_length=max_length,
                overlong=overlong.value,
                overlap=overlap,
                options=options,
                deduplicate=not no_dedup,
                states=states,
                dtype=dtype and dtype.value,
                embedding_dtype=embedding_dtype.value,
                device=device,
                shard=part_of,
                progress=show,
            )
        if not quiet:
            labels = label_totals(run.summary.totals)
            if run.unknown:
                # Of the parts that this run wrote.
                labels["Unknown residues"] = f"{sum(run.unknown.values()):,}"
            print_message(make_table(labels))
            parts = f"{run.complete:,} of {run.parts:,} parts are in {shown(name_of(output))}"
            print_message(f"Shard {shard} is done: {parts}" if part_of[1] > 1 else parts)
        if as_json:
            print_output(json.dumps(to_json(run), indent=2))
    for failed in run.failed[:MAX_NAMED]:
        print_error(f"{quoted(failed.id)} (row {failed.row:,}) failed: {failed.reason}")
    if len(run.failed) > MAX_NAMED:
        print_error(f"{len(run.failed) - MAX_NAMED:,} more sequences failed")
    if run.failed:
        raise typer.Exit(1)


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
