"""The folder of embeddings: Parquet files, each of which appears only when it is complete."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro.files import tables
from virnucpro.files.embeddings import (
    EMBEDDINGS_KEY,
    EmbeddingSummary,
    decode_embeddings,
    differences,
    encode_embeddings,
)
from virnucpro.files.errors import explain_errors
from virnucpro.files.inputs import find, list_folder
from virnucpro.files.output import (
    TemporaryFolder,
    check_not_input,
    find_parent,
    name_errors,
    write_file,
)
from virnucpro.files.places import as_local, is_uri, join, name_of, reading
from virnucpro.files.sequences import InputFile
from virnucpro.memory import format_bytes
from virnucpro.text import quoted, shown

logger = logging.getLogger(__name__)

# The key of what is known of a part alone, in the metadata.
PART_KEY = b"virnucpro.part"
# Files of a folder that are left alone: those that begin with these.
HIDDEN = (".", "_")
PART_NAME = re.compile(r"part-(\d{5,})-of-(\d{5,})\.parquet")
# Columns with few distinct values, which dictionary encoding makes small.
DICTIONARIES = ["file", "truncated"]
# Bytes that a row takes beside its embedding and states, about.
ROW_BYTES = 48


class FailedSequence(NamedTuple):
    """A sequence that has no embedding because the model failed, nor have those equal to it.

    Attributes:
        row: Its position among all sequences of the input, the first if some are equal.
        id: Its ID.
        reason: Why it failed.
    """

    row: int
    id: str
    reason: str


class Rows(NamedTuple):
    """Rows of a part.

    Attributes:
        ids: The ID of each, an Arrow array of large strings.
        embeddings: The embedding of each, [n, width]; those of `missing` ones are ignored.
        missing: Whether each has no embedding, bool [n].
        lengths: Residues of each, int64 [n].
        truncated: Whether each is truncated, bool [n].
        files: The index of the file of each, int64 [n].
        rows: The position of each among all sequences of the input, int64 [n].
        states: The states of the residues of each, [residues, width], or None; None without states.
    """

    ids: Any
    embeddings: NDArray[Any]
    missing: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    files: NDArray[np.int64]
    rows: NDArray[np.int64]
    states: list[NDArray[Any] | None] | None


def part_name(number: int, num_parts: int) -> str:
    """Return the name of a part, counted from 0."""
    return f"part-{number:05}-of-{num_parts:05}.parquet"


def make_schema(summary: EmbeddingSummary) -> pa.Schema:
    """Return the schema of all parts."""
    element = pa.field("element", pa.type_for_alias(summary.embedding_dtype))
    vector = pa.list_(element, summary.model.width)
    fields: list[Any] = [
        ("id", pa.string()),
        ("embedding", vector),
        ("length", pa.int64()),
        ("truncated", pa.bool_()),
        ("file", pa.dictionary(pa.int32(), pa.string())),
        ("row", pa.int64()),
    ]
    if summary.states:
        fields.append(("states", pa.list_(vector)))
    return pa.schema(fields)


def as_vectors(values: NDArray[Any], kind: pa.DataType, missing: Any = None) -> pa.Array:
    """Return an Arrow array of vectors, null for those missing."""
    flat = tables.as_arrow(np.ascontiguousarray(values).reshape(-1))
    mask = None if missing is None or not missing.any() else tables.as_arrow(missing)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=mask)


def make_table(
    rows: Rows, files: list[InputFile], summary: EmbeddingSummary, schema: pa.Schema
) -> pa.Table:
    """Return rows as a table."""
    numbers, places = np.unique(rows.files, return_inverse=True)
    names = tables.strings_as_arrow([files[number].text for number in numbers.tolist()])
    vector = schema.field("embedding").type
    columns = [
        rows.ids.cast(pa.string()),
        as_vectors(rows.embeddings, vector, rows.missing),
        tables.as_arrow(rows.lengths),
        tables.as_arrow(rows.truncated),
        pa.DictionaryArray.from_arrays(tables.as_arrow(places.astype(np.int32)), names),
        tables.as_arrow(rows.rows),
    ]
    if rows.states is not None:
        known = [each for each in rows.states if each is not None]
        lengths = [0 if each is None else len(each) for each in rows.states]
        offsets = np.cumsum([0, *lengths]).astype(np.int32)
        is_missing = np.array([each is None for each in rows.states], np.bool_)
        width, kind = summary.model.width, summary.embedding_dtype
        flat = np.concatenate(known) if known else np.empty((0, width), kind)
        mask = tables.as_arrow(is_missing) if is_missing.any() else None
        columns.append(
            pa.ListArray.from_arrays(
                tables.as_arrow(offsets),
                as_vectors(flat, vector),
                type=schema.field("states").type,
                mask=mask,
            )
        )
    return pa.Table.from_arrays(columns, schema=schema)


def write_part(
    folder: str,
    number: int,
    num_parts: int,
    summary: EmbeddingSummary,
    files: list[InputFile],
    failed: list[FailedSequence],
    num_unknown: int,
    some_rows: Iterable[Rows],
) -> None:
    """Write a part of embeddings, in one row group for some rows at a time.

    Raises:
        OSError: It cannot be written.
    """
    part = {
        "part": number,
        "parts": num_parts,
        "unknown": num_unknown,
        "failed": [each._asdict() for each in failed],
    }
    metadata = {EMBEDDINGS_KEY: encode_embeddings(summary), PART_KEY: json.dumps(part).encode()}
    schema = make_schema(summary).with_metadata(metadata)
    path = join(folder, part_name(number, num_parts))
    with (
        write_file(path) as file,
        pq.ParquetWriter(
            file,
            schema,
            compression="none",
            use_dictionary=DICTIONARIES,
            write_statistics=["length", "row", "truncated"],
            write_page_checksum=True,
        ) as writer,
    ):
        for rows in some_rows:
            writer.write_table(make_table(rows, files, summary, schema))


class StoredPart(NamedTuple):
    """A part in a folder.

    Attributes:
        number: Its number.
        num_parts: The number of parts that its name says.
        summary: The summary of the embeddings.
        failed: The sequences without an embedding because the model failed.
        num_unknown: Number of residues that are not in the model's vocabulary.
        text: The summary as the metadata has it.
    """

    number: int
    num_parts: int
    summary: EmbeddingSummary
    failed: list[FailedSequence]
    num_unknown: int
    text: bytes


def find_parts(folder: str) -> list[StoredPart]:
    """Return the parts in a folder, in order of their numbers.

    Raises:
        ValueError: A file in it is not a part, or damaged, or parts are of several runs.
        OSError: The folder or a part cannot be read.
    """
    if find(folder) is None:
        return []
    parts: list[StoredPart] = []
    for name in list_names(folder):
        match = PART_NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{shown(name_of(folder))}: has {shown(name)}, which is not a part of embeddings; "
                "give a new folder"
            )
        first = parts[0] if parts else None
        part = read_part(join(folder, name), int(match[1]), int(match[2]), first)
        if first is not None and part.summary is not first.summary:
            check_alike(folder, first, part)
        parts.append(part)
    return parts


def is_embeddings(path: str) -> bool:
    """Return whether a path is that of a folder with parts of embeddings."""
    found = find(path)
    return (
        found is not None
        and found.is_folder
        and any(PART_NAME.fullmatch(name) for name in list_names(path))
    )


def list_names(folder: str) -> list[str]:
    """Return the names in a folder that are not hidden, sorted."""
    if is_uri(folder):
        names = [found.name for found in list_folder(folder)]
    else:
        # Those of unfinished files, which other shards remove meanwhile, are not looked at.
        with reading(folder):
            names = [path.name for path in Path(folder).iterdir()]
    return sorted(name for name in names if not name.startswith(HIDDEN))


def check_alike(folder: str, first: StoredPart, part: StoredPart) -> None:
    """Raise ValueError if two parts are of different runs."""
    unlike = differences(first.summary, part.summary)
    if unlike:
        names = " and ".join(
            shown(part_name(each.number, each.num_parts)) for each in (first, part)
        )
        raise ValueError(
            f"{shown(name_of(folder))}: has parts of several runs, {names}: {unlike[0]}"
        )


def read_part(path: str, number: int, num_parts: int, first: StoredPart | None) -> StoredPart:
    """Return a part, given what its name says, and another one, whose summary may be the same.

    Raises:
        ValueError: It is not this part, or damaged.
        OSError: It cannot be read.
    """
    with explain_errors(path, not_a_part), tables.open_parquet(path) as file:
        metadata = file.schema_arrow.metadata
    try:
        text = metadata[EMBEDDINGS_KEY]
        is_same = first is not None and text == first.text
        summary = first.summary if first is not None and is_same else decode_embeddings(metadata)
        state = json.loads(metadata[PART_KEY])
        failed = [FailedSequence(**each) for each in state["failed"]]
        found, num_unknown = (state["part"], state["parts"]), int(state["unknown"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise not_a_part(path, str(error)) from error
    if found != (number, num_parts):
        raise ValueError(f"{shown(name_of(path))}: is part {found[0]} of {found[1]}, renamed")
    return StoredPart(number, num_parts, summary, failed, num_unknown, text)


def not_a_part(path: str | PathLike[str], reason: str) -> ValueError:
    """Return the error for a file that is not a part of embeddings."""
    return ValueError(
        f"{shown(name_of(path))}: not a part of embeddings ({shown(reason)}); if it is removed, "
        "the same run makes it again"
    )


def check_resumable(folder: str, parts: list[StoredPart], summary: EmbeddingSummary) -> None:
    """Raise ValueError, saying what differs, if parts are not those of a run."""
    found = differences(parts[0].summary, summary) if parts else []
    if found:
        raise ValueError(
            f"{shown(name_of(folder))}: cannot be resumed: {'; '.join(found)}; give a new folder, "
            "or the same arguments"
        )
    if parts and parts[0].summary.versions != summary.versions:
        before, now = (
            ", ".join(f"{name} {version}" for name, version in each.versions.items())
            for each in (parts[0].summary, summary)
        )
        logger.warning("%s: has parts made with %s (now %s)", shown(name_of(folder)), before, now)


def check_output_folder(path: str | PathLike[str], inputs: Iterable[str]) -> str:
    """Return the path of a folder for parts, which need not exist, after trying to write there.

    Raises:
        ValueError: It is in an input folder, or not a name.
        NotADirectoryError: It is a file.
        OSError: It cannot be made, or nothing can be written there.
    """
    folder = as_local(path)
    name = shown(name_of(folder))
    if "\0" in folder or not folder:
        raise ValueError(f"{quoted(folder)}: not the name of a folder")
    found = find(folder)
    if found is None and not is_uri(folder) and Path(folder).is_symlink():
        raise NotADirectoryError(f"{name}: is a link that leads nowhere")
    if found is not None and not found.is_folder:
        raise NotADirectoryError(f"{name}: is not a folder")
    if found is not None or is_uri(folder):
        with contextlib.suppress(Rehearsal), write_file(join(folder, part_name(0, 1)), inputs):
            raise Rehearsal
        return folder
    with name_errors(name):
        place = Path(folder).absolute()
        check_not_input(find_parent(place) / place.name, name, inputs)
        TemporaryFolder(place.parent).remove()
    return folder


class Rehearsal(Exception):  # noqa: N818
    """Ends the writing of a file that is not to be written."""


def make_folder(folder: str) -> None:
    """Make a folder on this machine, unless it exists; another shard may have made it."""
    if not is_uri(folder):
        with name_errors(shown(folder)):
            Path(folder).mkdir(exist_ok=True)


def check_space(folder: str, num_bytes: int) -> None:
    """Raise OSError if a folder on this machine does not have the space for a number of bytes."""
    if is_uri(folder):
        return
    place = Path(folder) if Path(folder).is_dir() else Path(folder).absolute().parent
    with name_errors(shown(folder)):
        free = shutil.disk_usage(place).free
    if num_bytes > free:
        raise OSError(
            f"{shown(folder)}: not enough space: what is left needs about "
            f"{format_bytes(num_bytes)}, {format_bytes(free)} are free"
        )
