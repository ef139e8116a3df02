"""The summary of embeddings, which each of their files stores in the metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

from virnucpro.files.fasta import ReadOptions
from virnucpro.files.sequences import InputFile
from virnucpro.kernel.limits import Limits
from virnucpro.text import quoted, shown

# The key of the summary in the metadata of Parquet files.
EMBEDDINGS_KEY = b"virnucpro.embeddings"
# The version of the summary's format.
VERSION = 1
# Input files that a summary names. Each part stores it, and there may be a file per sequence.
MAX_INPUTS = 1000
# What is not compared here: names say where a model is, not which it is.
INCIDENTAL = ("version", "totals", "model.name", "rows_sha256", "inputs", "num_inputs")
# What messages say of values that mean nothing to a reader.
WORDS = {
    "model.sha256": "the weights, configuration or vocabulary of the model have changed",
    "plan": "the plan has changed",
}


@dataclass(frozen=True)
class ModelInfo:
    """The model that made embeddings.

    Attributes:
        name: The folder or the name on the hub.
        kind: The class of the model.
        sha256: The hash of its weights, configuration and vocabulary.
        dtype: The type that it ran in.
        width: The width of its states.
    """

    name: str
    kind: str
    sha256: str
    dtype: str
    width: int


@dataclass(frozen=True)
class EmbeddingTotals:
    """The totals of embeddings and their input.

    Attributes:
        sequences: Sequences in the input.
        distinct: Sequences that the model runs; others are equal to one of them, empty or dropped.
        truncated: Sequences embedded from their first residues only.
        split: Sequences embedded from several windows.
        empty: Sequences without residues, which have no embedding.
        dropped: Sequences that were too long and have no embedding.
        residues: Residues in the input.
        residues_truncated: Residues removed from truncated sequences.
        residues_dropped: Residues of dropped sequences.
        tokens: Tokens that the model runs, with special tokens.
        batches: Number of batches.
        stops: Stops (``*``) removed when reading.
        lower_case: Lower-case letters converted to upper case when reading.
        gaps: Gaps removed when reading.
        insertions: Lower-case letters removed when reading.
    """

    sequences: int
    distinct: int
    truncated: int
    split: int
    empty: int
    dropped: int
    residues: int
    residues_truncated: int
    residues_dropped: int
    tokens: int
    batches: int
    stops: int
    lower_case: int
    gaps: int
    insertions: int


@dataclass(frozen=True)
class EmbeddingSummary:
    """The summary of embeddings, which each of their files stores in the metadata.

    Attributes:
        model: The model.
        limits: The limits on batches and sequences.
        method: The packing method, "ffd" or "tight"; None if a plan does not say.
        overlong: How sequences above the limit were handled: "truncate", "error", "drop" or
            "split".
        overlap: Residues that neighboring windows share.
        options: How the input was read.
        deduplicate: Whether equal sequences were embedded once.
        embedding_dtype: The type of the embeddings, "float32" or "float16".
        states: Whether there are the states of residues.
        inputs: The input files, in order, at most the first 1,000.
        num_inputs: The number of input files.
        inputs_sha256: The SHA-256 of what is known of all of them.
        plan: The SHA-256 of the summary of the plan that was given; None if none was.
        rows_sha256: The SHA-256 of the rows of all parts, in order.
        totals: The totals.
        versions: The versions of the libraries, by name.
    """

    model: ModelInfo
    limits: Limits
    method: str | None
    overlong: str
    overlap: int
    options: ReadOptions | None
    deduplicate: bool
    embedding_dtype: str
    states: bool
    inputs: list[InputFile]
    num_inputs: int
    inputs_sha256: str
    plan: str | None
    rows_sha256: str
    totals: EmbeddingTotals
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values, with a version."""
        return {"version": VERSION, **asdict(self), "limits": self.limits.to_dict()}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> EmbeddingSummary:
        """Return a summary from the result of `to_dict`.

        Raises:
            ValueError: The summary is of another version.
            KeyError, TypeError: A value is missing, or of another type.
        """
        if state["version"] != VERSION:
            raise ValueError(f"version {quoted(state['version'])} (this release reads {VERSION})")
        options = state["options"]
        return cls(
            **{field.name: state[field.name] for field in fields(cls)}
            | {
                "model": ModelInfo(**state["model"]),
                "limits": Limits.from_dict(state["limits"]),
                "options": None if options is None else ReadOptions(**options),
                "inputs": [InputFile(**file) for file in state["inputs"]],
                "totals": EmbeddingTotals(**state["totals"]),
            }
        )


def describe_inputs(files: list[InputFile]) -> dict[str, Any]:
    """Return what a summary says of input files, by the names of its attributes."""
    text = json.dumps([astuple(file) for file in files])
    return {
        "inputs": files[:MAX_INPUTS],
        "num_inputs": len(files),
        "inputs_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def encode_embeddings(summary: EmbeddingSummary) -> bytes:
    """Return a summary as the metadata of files has it."""
    return json.dumps(summary.to_dict()).encode()


def decode_embeddings(metadata: Any) -> EmbeddingSummary:
    """Return the summary in the metadata of a file.

    Raises:
        ValueError: There is none, or it is damaged or of another version.
    """
    try:
        return EmbeddingSummary.from_dict(json.loads((metadata or {})[EMBEDDINGS_KEY]))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("no summary of embeddings in its metadata") from error


def differences(stored: EmbeddingSummary, wanted: EmbeddingSummary) -> list[str]:
    """Return what would make the rows of two runs differ, in words."""
    if (stored.plan is None) != (wanted.plan is None):
        return [f"it was made of {'FASTA files' if stored.plan is None else 'a plan'}"]
    found = []
    if stored.num_inputs != wanted.num_inputs:
        found.append(f"it has {stored.num_inputs:,} inputs (got {wanted.num_inputs:,})")
    for file, given in zip(stored.inputs, wanted.inputs, strict=False):
        if file.name != given.name:
            found.append(f"an input was {shown(file.name)} (got {shown(given.name)})")
        elif file != given:
            name = "standard input" if given.name == "-" else shown(given.name)
            found.append(f"{name} has changed")
    if not found and stored.inputs_sha256 != wanted.inputs_sha256:
        found.append(f"an input after the first {MAX_INPUTS:,} has changed")
    flat_before, flat_now = (dict(flatten(each.to_dict())) for each in (stored, wanted))
    for name in dict.fromkeys((*flat_before, *flat_now)):
        before, now = flat_before.get(name), flat_now.get(name)
        if before != now and not name.startswith(INCIDENTAL):
            usual = f"{name.rpartition('.')[2]} was {quoted(before)} (got {quoted(now)})"
            found.append(WORDS.get(name, usual))
    if not found and stored.rows_sha256 != wanted.rows_sha256:
        found.append("its parts would have other rows, as another release may pack otherwise")
    return found


def flatten(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dicts by their path."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{before}{name}.")
        else:
            yield before + name, value
