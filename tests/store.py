"""The values that tests/stored holds, and a program that stores those of a new version.

Usage: store.py, which writes the files that are missing and changes none that exists.

Files are named after what they hold and its version, as in layout-1.pickle. A file that has been
stored is never rewritten: later code must read it, and find in it what it makes of the same input.
After a version is raised, run this program and add the new files beside the old ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from virnucpro.data import GreedyPacker, PackingPlan

STORED = Path(__file__).parent / "stored"
FASTA = "proteins.fasta"
LENGTHS = [320, 45, 700, 120, 0, 120, 501, 33, 500, 120, 8, 260]
OPTIONS = ("--max-tokens", 600, "--max-length", 500, "--max-sequences", 3)
SPLIT = ("--max-tokens", 600, "--max-length", 200, "--overlong", "split", "--overlap", 30)
DROP = ("--max-tokens", 600, "--max-length", 300, "--overlong", "drop")


def make_packer() -> GreedyPacker:
    return GreedyPacker(600, 500, max_sequences_per_batch=3)


def make_plan() -> PackingPlan:
    return make_packer().pack_lengths(LENGTHS)


def make_split_plan() -> PackingPlan:
    return GreedyPacker(600, 200, overlong="split", overlap=30).pack_lengths(LENGTHS)


def make_dropping_plan() -> PackingPlan:
    return GreedyPacker(600, 300, overlong="drop").pack_lengths(LENGTHS)


def make_grouped_plan() -> PackingPlan:
    return make_packer().pack_lengths(LENGTHS, groups=[row // 5 for row in range(len(LENGTHS))])


def make_document_plan() -> PackingPlan:
    packer = GreedyPacker(600, 200, overlong="split", overlap=30, empty="drop")
    return packer.pack_lengths(LENGTHS)


def make_values() -> dict[str, Any]:
    """Return the values that need NumPy alone, by name."""
    packer = make_packer()
    counts = packer.count(LENGTHS)
    return {
        "greedy_packer": packer,
        "layout": packer.lay_out(counts),
        "limits": packer.limits,
        "packing_plan": make_plan(),
        "split_plan": make_split_plan(),
        "dropping_plan": make_dropping_plan(),
        "grouped_plan": make_grouped_plan(),
        "document_plan": make_document_plan(),
        "token_counts": counts,
    }


def make_read_options() -> Any:
    from virnucpro.files.fasta import ReadOptions

    return ReadOptions(id_column="name", strip_stop=False, drop_gaps=True)


def make_sampler() -> Any:
    from virnucpro.data import PackedBatchSampler

    return PackedBatchSampler(make_plan(), shuffle=True, seed=5, rank=1, world_size=2)


# Plans in files: as a value, and the options that `pack` makes them with.
PLANS: dict[str, tuple[Callable[[], PackingPlan], tuple[object, ...]]] = {
    "plan": (make_plan, OPTIONS),
    "split_plan": (make_split_plan, (*SPLIT, "--sequences")),
    "dropping_plan": (make_dropping_plan, DROP),
}
# Plans in files of the newer version, which no options of `pack` make.
NEWER_PLANS: dict[str, Callable[[], PackingPlan]] = {
    "grouped_plan": make_grouped_plan,
    "document_plan": make_document_plan,
}


def make_embeddings() -> tuple[Any, Any]:
    """Return a summary of embeddings, and the rows of their only part."""
    import numpy as np

    from virnucpro.files import tables
    from virnucpro.files.embedding_parts import Rows
    from virnucpro.files.embeddings import (
        EmbeddingSummary,
        EmbeddingTotals,
        ModelInfo,
        describe_inputs,
    )
    from virnucpro.files.sequences import InputFile

    totals = EmbeddingTotals(3, 2, 1, 0, 1, 0, 14, 2, 0, 16, 1, 1, 4, 0, 0)
    summary = EmbeddingSummary(
        model=ModelInfo("model", "EsmModel", "0" * 64, "float32", 2),
        limits=make_packer().limits,
        method="ffd",
        overlong="truncate",
        overlap=0,
        options=make_read_options(),
        deduplicate=True,
        embedding_dtype="float32",
        states=True,
        **describe_inputs([InputFile("a.fasta", 30, "1" * 64, 3)]),
        plan=None,
        rows_sha256="2" * 64,
        totals=totals,
        versions={"virnucpro": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    )
    rows = Rows(
        ids=tables.strings_as_arrow(["a", "b", "c"]),
        embeddings=np.array([[0, 1], [2, 3], [0, 0]], np.float32),
        missing=np.array([False, False, True]),
        lengths=np.array([12, 2, 0]),
        truncated=np.array([True, False, False]),
        files=np.array([0, 0, 0]),
        rows=np.array([0, 1, 2]),
        states=[np.full((10, 2), 4, np.float32), np.full((2, 2), 5, np.float32), None],
    )
    return summary, rows


def write_embeddings(folder: Path) -> None:
    """Write a folder of one part."""
    from virnucpro.files.embedding_parts import FailedSequence, write_part

    summary, rows = make_embeddings()
    folder.mkdir()
    failed = [FailedSequence(2, "c", "no residues")]
    write_part(str(folder), 0, 1, summary, summary.inputs, failed, 3, [rows])


def write_fasta(path: Path) -> None:
    """Write sequences of the lengths above, one of them in lower case and with a stop."""
    residues = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ" * 30
    for row, length in enumerate(LENGTHS):
        sequence = residues[row : row + length]
        if row == 3:
            sequence = sequence.lower() + "*"
        lines = [sequence[begin : begin + 60] for begin in range(0, len(sequence), 60)]
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("\n".join([f">seq{row:02d} protein of {length} residues", *lines, ""]))


def write_pickle(value: Any, path: Path) -> None:
    """Write a pickle that NumPy 1 reads too, which has no numpy._core."""
    find_module = pickle.whichmodule  # type: ignore[attr-defined]

    def older_name(value: Any, name: str) -> str:
        return str(find_module(value, name)).replace("numpy._core", "numpy.core")

    content = io.BytesIO()
    with mock.patch("pickle.whichmodule", older_name):
        pickle._Pickler(content, 4).dump(value)  # noqa: SLF001
    path.write_bytes(content.getvalue())


def version_of(value: Any) -> str:
    """Return the suffix of a file's name: the version of the value's state, if it has one."""
    with contextlib.suppress(AttributeError, KeyError):
        state = value.__getstate__() if isinstance(value, GreedyPacker) else value.to_dict()
        return f"-{state['version']}"
    return ""


def main() -> None:
    from command import run

    from virnucpro.files.embeddings import VERSION as EMBEDDINGS_VERSION
    from virnucpro.files.plan_summary import NEWER_VERSION, VERSION

    STORED.mkdir(exist_ok=True)
    os.chdir(STORED)
    if not Path(FASTA).exists():
        write_fasta(Path(FASTA))
    for name, value in {**make_values(), "read_options": make_read_options()}.items():
        path = Path(f"{name}{version_of(value)}.pickle")
        if not path.exists():
            write_pickle(value, path)
    sampler = make_sampler()
    list(sampler)
    sampler.set_epoch(3)
    state = sampler.state_dict(1)
    path = Path(f"sampler-{state['version']}.json")
    if not path.exists():
        path.write_text(json.dumps(state, indent=2) + "\n")
    for name, (make, options) in PLANS.items():
        path = Path(f"{name}-{VERSION}.parquet")
        if not path.exists():
            result = run("pack", FASTA, "-o", path, *options)
            assert result.returncode == 0, result.stderr
        path = Path(f"{name}-{VERSION}.arrow")
        if not path.exists():
            make().save(path)
    for name, make in NEWER_PLANS.items():
        for suffix in ("parquet", "arrow"):
            path = Path(f"{name}-{NEWER_VERSION}.{suffix}")
            if not path.exists():
                make().save(path)
    folder = Path(f"embeddings-{EMBEDDINGS_VERSION}")
    if not folder.exists():
        write_embeddings(folder)


if __name__ == "__main__":
    main()
