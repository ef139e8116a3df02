"""What a file is that a command cannot use, and which command can."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from virnucpro.text import quoted, shown

# Suffixes of single files, which no folder of embeddings has.
FILES = {
    *(".parquet", ".pq", ".arrow", ".feather", ".csv", ".tsv", ".txt", ".json", ".html"),
    *(".h5", ".hdf5", ".npy", ".npz", ".pt", ".pkl", ".fa", ".faa", ".fasta"),
}


def kind_of(name: str) -> str:
    """Return what a file or folder is: fasta, table, plan or embeddings; "" for anything else.

    What a URI names is not read for this.
    """
    from virnucpro.files.embedding_parts import is_embeddings
    from virnucpro.files.inputs import FASTA, find_inputs, input_suffix
    from virnucpro.files.places import is_regular, is_uri
    from virnucpro.files.plan_reader import PlanFile

    if is_uri(name):
        return ""
    with suppress(ValueError, OSError):
        if is_embeddings(name):
            return "embeddings"
    with suppress(ValueError, OSError):
        PlanFile(name)
        return "plan"
    with suppress(ValueError, OSError):
        found = find_inputs([name])
        suffix = input_suffix(found[0].name)
        if suffix is not None:
            return "fasta" if suffix in FASTA else "table"
        if is_regular(found[0].path):
            with Path(found[0].path).open("rb") as file:
                return "fasta" if file.read(1) == b">" else ""
    return ""


def did_you_mean(name: str) -> str:
    """Return the command that can use a file, as the end of a message; "" if none can."""
    word = shown(shlex.quote(name))
    command = {
        "fasta": f"virnucpro pack {word} -o plan.parquet",
        "table": f"virnucpro pack {word} -o plan.parquet",
        "plan": f"virnucpro stats {word}",
        "embeddings": f"virnucpro stats {word}",
    }.get(kind_of(name))
    return f"; did you mean `{command}`?" if command else ""


@contextmanager
def naming_columns(columns: dict[str, str]) -> Iterator[None]:
    """Have the error that a table has no such column say which option names it.

    Args:
        columns: Names of columns by option.
    """
    try:
        yield
    except ValueError as error:
        for option, name in columns.items():
            if f"no column {quoted(name)}" in str(error):
                raise ValueError(f"{error}; name it with {option}") from error
        raise


@contextmanager
def hinting(plan: str) -> Iterator[None]:
    """Have the error that a file is not a plan say which command can use it."""
    try:
        yield
    except (ValueError, IsADirectoryError) as error:
        kind = kind_of(plan)
        # A file that cannot be read may have been a plan.
        is_damaged = kind == "plan" or (kind == "table" and "(no summary" not in str(error))
        raise ValueError(f"{error}{'' if is_damaged else did_you_mean(plan)}") from error
