"""`embed_files`: from FASTA files or a plan to embeddings in Parquet files."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.overlong import split
from virnucpro.data.packing import GreedyPacker
from virnucpro.data.shape import FAR_ABOVE, propose_limit
from virnucpro.files.embedding_parts import (
    ROW_BYTES,
    StoredPart,
    check_output_folder,
    check_resumable,
    find_parts,
)
from virnucpro.files.embeddings import EmbeddingSummary, ModelInfo, describe_inputs
from virnucpro.files.fasta import ReadOptions, check_options, read_fasta
from virnucpro.files.inputs import find_inputs, names_of, table_kind, total_size
from virnucpro.files.losses import warn_of_losses
from virnucpro.files.places import as_local, is_regular, is_uri, name_of
from virnucpro.files.plan_reader import METADATA, PlanFile, open_plan, plan_of
from virnucpro.files.plan_sequences import PlanSequences
from virnucpro.files.recorded import find_recorded
from virnucpro.files.sequences import Sequences, read_files
from virnucpro.jobs.embed_job import EmbeddingRun, Job, Progress
from virnucpro.jobs.embed_work import Sizes, Work, plan_work, with_parts
from virnucpro.jobs.pack import check_lengths
from virnucpro.kernel.arguments import check_integer
from virnucpro.model.captured import has_graphs
from virnucpro.model.embedder import MAX_RESIDUES, Embedder
from virnucpro.model.measure import measure_token_budget
from virnucpro.text import quoted, shown

logger = logging.getLogger(__name__)

# The budget where memory does not limit it, and the largest that is measured.
DEFAULT_BUDGET = 4096
MAX_MEASURED = 65536
# The number of lengths that a budget is measured with.
NUM_MEASURED = 10_000
ITEM_BYTES = {"float32": 4, "float16": 2}


def embed_files(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    output: str | PathLike[str],
    model: str | PathLike[str],
    *,
    max_tokens: int | None = None,
    max_sequence_length: int | None = None,
    overlong: str = "truncate",
    overlap: int = 0,
    options: ReadOptions | None = None,
    deduplicate: bool = True,
    states: bool = False,
    dtype: str | None = None,
    embedding_dtype: str = "float32",
    device: str | None = None,
    shard: tuple[int, int] = (1, 1),
    progress: Progress | None = None,
) -> EmbeddingRun:
    r"""Embed the sequences of files with a protein language model, and write Parquet files.

    The embedding of a sequence is the mean of the model's last states over its residues, without
    special tokens. The output is a folder of parts, ``part-00000-of-00120.parquet`` and so on, in
    order of batches. Their columns are

    - `id` (string);
    - `embedding` (a list of float32 or float16, of the model's width); null for sequences without
      residues, that were dropped, or for which the model failed;
    - `length` (int64): residues in the input;
    - `truncated` (bool): whether only the first residues were embedded;
    - `file` (a dictionary of strings) and `row` (int64): the position among all sequences of the
      input, from 0;
    - `states` (a list of such lists), with `states`: one vector per residue embedded.

    Each part appears only when it is complete, and has the `EmbeddingSummary` in its metadata. A
    run that was interrupted, at any moment, does what is left when it is called again, and the rows
    are those of a run that never was. Parts with sequences for which the model failed are done
    again.

    Args:
        inputs: FASTA files, folders, patterns or URIs, as for `pack_files`; or a plan, whose
            limits, batches and reading options are used. If it has the residues, its inputs are not
            needed, unless sequences were split: those are packed anew under the same limits.
        output: The folder, or its URI. It may exist if it is empty or has parts of the same run.
        model: The folder of a checkpoint of Hugging Face transformers, or its name on the hub.
        max_tokens: Token budget per batch, with special tokens. If None, that of the parts that
            exist; else, on a CUDA device, measured (the smallest that is fast), and 4,096 on
            others.
        max_sequence_length: Maximum residues kept per sequence. If None, 1,022, or fewer if the
            model has positions for fewer.
        overlong: How to handle longer sequences: "truncate" keeps the first residues, with
            one WARNING; "split" embeds windows of the maximum length and takes the mean over all
            residues, and for a residue in several windows the mean of its states; "drop" gives
            them no embedding, with one WARNING; "error" raises an error.
        overlap: Residues that neighboring windows share.
        options: How to read FASTA; None for the defaults of `ReadOptions`.
        deduplicate: Whether to run the model once for equal sequences. Those of a plan are run as
            often as it has them.
        states: Whether to store the states of residues.
        dtype: The type of the model, "float32", "bfloat16" or "float16". If None, bfloat16 on CUDA
            devices and float32 on others.
        embedding_dtype: The type of the output, "float32" or "float16".
        device: The device, such as "cuda:1"; None for "cuda" if there is one, else "cpu".
        shard: (i, n) to do every n-th part, from the i-th on, i from 1 to n. Runs with the same n
            and all i share the output folder, in any order, at the same time or not.
        progress: Called from time to time with the stage, what is done, and the total or None:
            "loading" (the model), "reading" (bytes of the files), "comparing" (sequences),
            "packing", and "embedding" (residues that the model runs, those of parts that are
            complete included).

    Returns:
        The summary and what was done. Runs with failed sequences return, too.

    Raises:
        ValueError: An argument, an input or the model is not valid; packing changes the output of
            the model; the folder has parts of another run (the message says what differs) or other
            files; or the model fails for every sequence.
        TypeError: An argument has the wrong type.
        MemoryError: The model does not fit.
        OSError: A file cannot be read or written, or there is not enough space for the output.

    Cost: reading the files twice, packing them, and running the model once for each token. In
    memory, 250 bytes per sequence, the model and a batch, and two parts (each at most about 256 MiB
    and one batch).

    Example::

        run = embed_files("proteins.fasta", "embeddings", "facebook/esm2_t33_650M_UR50D")
        table = pyarrow.parquet.read_table("embeddings").sort_by("row")

    With a tiny model of random weights::

        >>> from tempfile import TemporaryDirectory
        >>> import pyarrow.parquet
        >>> from transformers import EsmConfig, EsmModel, EsmTokenizer
        >>> from virnucpro.data import embed_files
        >>> with TemporaryDirectory() as folder:
        ...     model, fasta, out = (Path(folder, name) for name in ("model", "a.fa", "out"))
        ...     config = EsmConfig(
        ...         vocab_size=7, pad_token_id=1, hidden_size=8, num_hidden_layers=1,
        ...         num_attention_heads=2, intermediate_size=8, position_embedding_type="rotary")
        ...     EsmModel(config).save_pretrained(model)
        ...     _ = (model / "vocab.txt").write_text("<cls>\n<pad>\n<eos>\n<unk>\nM\nK\nT")
        ...     _ = EsmTokenizer(str(model / "vocab.txt")).save_pretrained(model)
        ...     _ = fasta.write_text(">a\nMKT\n>b\nMK\n>c\nMKT\n")
        ...     run = embed_files(fasta, out, model)
        ...     table = pyarrow.parquet.read_table(out).sort_by("row")
        >>> run.complete, run.summary.totals.distinct
        (1, 2)
        >>> table["id"].to_pylist(), len(table["embedding"][0])
        (['a', 'b', 'c'], 8)
    """
    progress = progress or no_progress
    names = names_of(inputs)
    share = check_shard(shard)
    if embedding_dtype not in ITEM_BYTES:
        raise ValueError(
            f"embedding_dtype must be float32 or float16 (got {quoted(embedding_dtype)})"
        )
    # Raises if the limits are not valid.
    packer = GreedyPacker(
        2**31 - 1 if max_tokens is None else max_tokens,
        MAX_RESIDUES if max_sequence_length is None else max_sequence_length,
        overlong=overlong,
        overlap=overlap,
    )
    overlap = int(packer.overlap)
    check_options(options)
    folder = check_output_folder(output, names)
    plan = find_plan(names)
    if plan is not None:
        is_given = {
            "max_tokens": max_tokens is not None,
            "max_sequence_length": max_sequence_length is not None,
            "overlong": overlong != "truncate",
            "overlap": overlap != 0,
            "options": options is not None,
        }
        check_plan(plan, [name for name, given in is_given.items() if given])
        max_sequence_length = plan.summary.limits.max_residues
        overlong, overlap = plan.summary.overlong or "truncate", plan.summary.overlap
        options = plan.summary.options
        deduplicate = False
    else:
        found = find_inputs(names)
        names, size = [file.path for file in found], total_size(found)
        options = check_options(options)
        check_fasta(names, options)
    stored = find_parts(folder)
    if stored:
        # What can be compared before the model is loaded and the input is read.
        given = replace(
            stored[0].summary,
            overlong=overlong,
            overlap=overlap,
            options=options,
            deduplicate=bool(deduplicate),
            states=bool(states),
            embedding_dtype=embedding_dtype,
            plan=None if plan is None else plan.metadata_hash.hex(),
        )
        check_resumable(folder, stored, given)
    progress("loading", 0, None)
    embedder = Embedder(model, max_sequence_length=max_sequence_length, dtype=dtype, device=device)
    item_bytes = ITEM_BYTES[embedding_dtype]
    per_vector = embedder.width * item_bytes
    sizes = Sizes(ROW_BYTES + per_vector, per_vector if states else 0)
    if plan is not None:
        work = read_plan(plan, embedder, sizes, progress)
        method = plan.summary.method
    else:
        sequences = read_files(
            names, options, lambda done: progress("reading", done, size), keep_texts=True
        )
        packer = choose_packer(
            embedder, stored, share[1], sequences.lengths, max_tokens, overlong, overlap
        )
        if overlong == "error":
            check_lengths(sequences, packer.limits.max_residues)
        work = plan_work(sequences, packer, deduplicate, sizes, progress)
        method = packer.method
    checkpoint = embedder.checkpoint
    summary = EmbeddingSummary(
        model=ModelInfo(
            checkpoint.name,
            checkpoint.kind,
            checkpoint.sha256,
            embedder.dtype,
            embedder.width,
        ),
        limits=work.plan.limits,
        method=method,
        overlong=overlong,
        overlap=overlap,
        options=options,
        deduplicate=bool(deduplicate),
        embedding_dtype=embedding_dtype,
        states=bool(states),
        **describe_inputs(work.sequences.inputs),
        plan=None if plan is None else plan.metadata_hash.hex(),
        rows_sha256=work.hash_rows(),
        totals=work.totals(),
        versions={name: version(name) for name in ("virnucpro", "torch", "transformers")},
    )
    check_resumable(folder, stored, summary)
    warn_of_losses(summary.limits, summary.totals)
    return Job(folder, embedder, work, summary, sizes, progress).run(stored, share)


def no_progress(_stage: str, _done: int, _total: int | None) -> None:
    """Ignore progress."""


def check_shard(shard: tuple[int, int]) -> tuple[int, int]:
    """Return which parts a run does, (i, n); raise unless i is from 1 to n."""
    if not isinstance(shard, (tuple, list)) or len(shard) != 2:
        raise TypeError(f"shard must be a pair, such as (1, 4) (got {quoted(shard)})")
    number = check_integer(shard[1], "shard[1]", 1)
    return check_integer(shard[0], "shard[0]", 1, number), number


def find_plan(names: list[str]) -> PlanFile | None:
    """Return the plan that inputs are; None if they are FASTA files."""
    if len(names) != 1 or names[0] == "-":
        return None
    path = as_local(names[0])
    is_folder = not is_uri(path) and is_regular(Path(path, METADATA))
    if not is_folder and table_kind(path) not in ("parquet", "arrow"):
        return None
    try:
        return open_plan(path)
    except ValueError as error:
        raise ValueError(f"{error}; give FASTA files, or one plan alone") from error


def check_plan(plan: PlanFile, given: list[str]) -> None:
    """Raise ValueError unless a plan can be run as it is."""
    name = shown(plan.name)
    if given:
        raise ValueError(f"{name}: is a plan, which has its own {given[0]}: leave it out")
    if not plan.summary.inputs:
        raise ValueError(f"{name}: does not have the names of its input (see `pack_files`)")


def check_fasta(paths: list[str], options: ReadOptions) -> None:
    """Raise ValueError if an input is a table, or does not begin as FASTA."""
    for path in paths:
        if path != "-" and table_kind(path) is not None:
            raise ValueError(
                f"{shown(name_of(path))}: not FASTA; give FASTA files, or one plan alone"
            )
        if path != "-" and is_regular(path):
            next(read_fasta(path, options), None)


def read_plan(file: PlanFile, embedder: Embedder, sizes: Sizes, progress: Progress) -> Work:
    """Return the work for a plan."""
    name, summary = shown(file.name), file.summary
    if summary.limits.special_tokens != embedder.special_tokens:
        raise ValueError(
            f"{name}: the plan has {summary.limits.special_tokens} special tokens per sequence, "
            f"the tokenizer of {shown(embedder.checkpoint.name)} has {embedder.special_tokens}"
        )
    is_split = "fragment" in file.schema.names
    sequences: Sequences | PlanSequences
    if "sequence" in file.schema.names and not is_split:
        sequences = PlanSequences(file)
    else:
        found = find_inputs(find_recorded(file))
        paths, size = [each.path for each in found], total_size(found)
        check_fasta(paths, summary.options or ReadOptions())
        options = summary.options or ReadOptions()
        sequences = read_files(
            paths, options, lambda done: progress("reading", done, size), keep_texts=True
        )
        for before, now in zip(summary.inputs, sequences.inputs, strict=True):
            if before.sha256 != now.sha256:
                raise ValueError(f"{shown(now.name)}: has changed since {name} was made")
        # The names of the plan, from whichever folder it is run.
        sequences = replace(sequences, inputs=summary.inputs)
    # The tokens of the plan are those of the batches.
    embedder.collator.multiple_of = summary.limits.multiple_of
    if is_split:
        assert isinstance(sequences, Sequences)
        # Packed anew, so that the windows of a sequence are in one part.
        packer = GreedyPacker(
            **summary.limits.to_dict(),
            method=summary.method or "ffd",
            overlong="split",
            overlap=summary.overlap,
            empty=summary.empty or "pack",
        )
        return plan_work(sequences, packer, False, sizes, progress)
    plan = plan_of(file)
    rows = np.arange(len(sequences.lengths))
    return with_parts(Work(sequences, rows, rows, np.append(rows, len(rows)), plan, []), sizes)


def choose_packer(
    embedder: Embedder,
    stored: list[StoredPart],
    num_shards: int,
    lengths: NDArray[np.int64],
    max_tokens: int | None,
    overlong: str,
    overlap: int,
) -> GreedyPacker:
    """Return the packer, with the limits of the parts that exist if there are any.

    Where batches have one shape, few sequences per batch are better than the few more batches that
    a limit on them makes.
    """
    if max_tokens is None:
        max_tokens = choose_budget(embedder, stored, num_shards, lengths)
    make = functools.partial(
        GreedyPacker,
        max_tokens,
        embedder.max_sequence_length,
        special_tokens=embedder.special_tokens,
        overlong=overlong,
        overlap=overlap,
        empty="drop",
    )
    packer = make()
    max_sequences, method = None, packer.method
    if stored:
        summary = stored[0].summary
        max_sequences, method = summary.limits.max_sequences_per_batch, summary.method or method
    elif has_graphs(embedder.device):
        if overlong == "split":
            fragments = split(lengths, packer.limits.max_residues, overlap)
            lengths = fragments.stops - fragments.starts
            packer = make(overlong="truncate", overlap=0)
        layout = packer.lay_out(packer.count(lengths))
        if layout.max_sequences > FAR_ABOVE * layout.num_sequences / max(1, layout.num_batches):
            max_sequences = propose_limit(layout.core, layout.limits, layout.max_sequences)[1]
            method = "tight"
    return make(max_sequences_per_batch=max_sequences, method=method)


def choose_budget(
    embedder: Embedder, stored: list[StoredPart], num_shards: int, lengths: NDArray[np.int64]
) -> int:
    """Return the token budget, if none was given."""
    if stored:
        budget = stored[0].summary.limits.max_tokens_per_batch
        logger.info("The budget is %s tokens, as in the parts that exist", f"{budget:,}")
        return budget
    longest = embedder.max_sequence_length + embedder.special_tokens
    if not has_graphs(embedder.device):
        return max(DEFAULT_BUDGET, longest)
    if num_shards > 1:
        raise ValueError(
            "max_tokens must be given for several shards: their GPUs may differ in memory, and "
            "would then pack differently"
        )
    some = lengths[lengths > 0][:: 1 + len(lengths) // NUM_MEASURED]
    measured = measure_token_budget(
        embedder.model,
        lengths=some if len(some) else None,
        max_sequence_length=embedder.max_sequence_length,
        special_tokens=embedder.special_tokens,
        max_tokens=max(MAX_MEASURED, longest),
    )
    return max(measured.fast_tokens, longest)
