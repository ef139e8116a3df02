"""IDs and lengths of sequences, from FASTA files and from tables of lengths."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.data.packing import GreedyPacker
from virnucpro.files.fasta import (
    Changes,
    ReadOptions,
    check_exists,
    is_cut_bgzip,
    make_scanner,
    read_chunks,
    scan_fasta,
)
from virnucpro.files.tables import as_arrow, ids_of, lengths_of, open_table

# IDs that are compared at once.
CHUNK = 2**16
SUFFIXES = {
    ".fai": "fai",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".tsv": "tsv",
}


@dataclass(frozen=True)
class Source:
    """A file that was read.

    Attributes:
        name: Its path as it was given.
        bytes: Its size.
        sha256: The SHA-256 of its bytes.
        sequences: How many sequences it has.
    """

    name: str
    bytes: int
    sha256: str
    sequences: int


@dataclass(frozen=True)
class Sequences:
    """What packing needs of the sequences of some files.

    Attributes:
        ids: The ID of each sequence, an Arrow array of strings.
        lengths: Residues of each sequence, int64.
        sources: The files, whose sequences follow each other.
        changes: What the options changed.
    """

    ids: Any
    lengths: NDArray[np.int64]
    sources: list[Source]
    changes: Changes

    def file_of(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        """Return which of the files each row is from."""
        ends = np.cumsum([source.sequences for source in self.sources])
        return np.searchsorted(ends, rows, side="right")

    def find_duplicates(self, most: int = 3) -> tuple[int, list[str]]:
        """Return how many sequences have the ID of one before them, and some of these IDs."""
        # One batch of sequences without tokens holds them in order of their IDs.
        none = np.zeros(len(self.ids), np.int8)
        order = GreedyPacker(1, special_tokens=0).pack_lengths(none, self.ids).indices
        number = 0
        some: list[str] = []
        for begin in range(0, len(order), CHUNK):
            ids = self.ids.take(as_arrow(order[begin : begin + CHUNK + 1]))
            repeated = ids.slice(1).filter(pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1)))
            number += len(repeated)
            if len(some) < most:
                some += [name for name in pc.unique(repeated).to_pylist() if name not in some]
        return number, some[:most]


def read_files(
    paths: Sequence[str],
    options: ReadOptions | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Sequences:
    """Return the sequences of files: FASTA, or tables by their suffix.

    Tables are `.fai`, `.parquet`, `.arrow` (also `.feather`, `.ipc`) and `.tsv`, the last also
    with `.gz`. All else is FASTA, compressed or not; "-" is FASTA from standard input.

    Args:
        paths: The files.
        options: How to read them; None for the defaults of `ReadOptions`.
        progress: Called with the number of sequences read so far, now and then.

    Raises:
        ValueError: A file is empty, damaged or not of its kind, a table lacks a column, or a
            length is null, negative or no integer.
        OverflowError: All residues together need more than 64 bits.
        OSError: A file cannot be read.

    Cost: one pass, two of tables, which are hashed first; about 40 bytes of memory a sequence
    with IDs of 12 letters.
    """
    options = options or ReadOptions()
    ids: list[Any] = []
    lengths: list[NDArray[np.int64]] = []
    sources = []
    changes = Changes()
    num_sequences = 0
    for path in paths:
        before = num_sequences
        digest = Counted()
        kind = kind_of_table(path)
        scanner = make_scanner(options, keep_residues=False)
        if kind is None:
            chunks = scan_lengths(path, scanner, digest)
        else:
            chunks = read_table(path, kind, options, digest)
        for some_ids, some_lengths in chunks:
            ids.append(some_ids)
            lengths.append(some_lengths)
            num_sequences += len(some_lengths)
            progress(num_sequences)
        changes += Changes(*scanner.changes)
        if num_sequences == before:
            raise ValueError(f"{path}: no sequence")
        sources.append(Source(str(path), digest.bytes, digest.hexdigest(), num_sequences - before))
    # One after the other, as each is held twice meanwhile.
    every = np.concatenate(lengths)
    lengths.clear()
    if every.sum(dtype=np.float64) > 2.0**62:
        raise OverflowError("the residues of all sequences together need more than 64 bits")
    all_ids = pa.chunked_array(ids, pa.large_string()).combine_chunks()
    ids.clear()
    return Sequences(all_ids, every, sources, changes)


# IDs and lengths.
Chunk = tuple[Any, NDArray[np.int64]]


def scan_lengths(path: str, scanner: kernel.FastaScanner, digest: Counted) -> Iterator[Chunk]:
    """Yield IDs and lengths of a FASTA file."""
    for _ in scan_fasta(path, scanner, digest):
        offsets, ids, lengths, _ = scanner.take_lengths()
        if len(lengths):
            buffers = [None, pa.py_buffer(offsets), pa.py_buffer(ids)]
            yield pa.Array.from_buffers(pa.large_string(), len(lengths), buffers), lengths


def kind_of_table(path: str) -> str | None:
    """Return the kind of a table of lengths, None for FASTA."""
    name = str(path).lower()
    kind = SUFFIXES.get(Path(name.removesuffix(".gz")).suffix)
    return None if name.endswith(".gz") and kind != "tsv" else kind


def read_table(path: str, kind: str, options: ReadOptions, digest: Counted) -> Iterator[Chunk]:
    """Yield IDs and lengths of a table."""
    check_exists(Path(path))
    columns = ["id", "length"] if kind == "fai" else [options.id_column, options.length_column]
    num_rows = 0
    try:
        with Path(path).open("rb", buffering=0) as file:
            start = file.read(14)
            file.seek(0)
            for _ in read_chunks(file, path, digest):
                pass
            file.seek(max(0, digest.bytes - 28))
            if is_cut_bgzip(start, file.read()):
                raise ValueError("cut off: the bgzip end-of-file block is missing")
        for batch in open_table(path, kind, columns):
            ids = ids_of(batch, columns[0], num_rows).cast(pa.large_string())
            yield ids, lengths_of(batch, columns[1], num_rows)
            num_rows += batch.num_rows
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error


class Counted:
    """SHA-256 that knows how many bytes it had."""

    def __init__(self) -> None:
        self.bytes = 0
        self._hash = hashlib.sha256()

    def update(self, data: Any, /) -> None:
        """Add bytes."""
        self.bytes += len(data)
        self._hash.update(data)

    def hexdigest(self) -> str:
        """The hash so far."""
        return self._hash.hexdigest()
