"""Read IDs and lengths of sequences from FASTA files and tables of lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from virnucpro.data.packing import GreedyPacker
from virnucpro.files.errors import explain_errors
from virnucpro.files.fasta import (
    BGZIP_END,
    MAGIC_BYTES,
    CountingHash,
    ReadChanges,
    ReadOptions,
    check_bgzip_end,
    make_scanner,
    read_chunks,
    scan_fasta,
)
from virnucpro.files.inputs import table_kind
from virnucpro.files.places import check_regular, name_of, open_input, stamp_of
from virnucpro.files.record_file import RecordFile
from virnucpro.files.tables import as_arrow, ids_of, lengths_of, open_table, strings_as_arrow
from virnucpro.kernel.arrow import IdLoader
from virnucpro.memory import SMALL, check_memory
from virnucpro.text import shown

# IDs compared at a time.
CHUNK = 2**16


@dataclass(frozen=True)
class InputFile:
    """An input file that was read.

    Attributes:
        name: The path as given; "-" for standard input.
        bytes: Size in bytes.
        sha256: SHA-256 of the bytes.
        sequences: Number of sequences.
    """

    name: str
    bytes: int
    sha256: str
    sequences: int

    @property
    def text(self) -> str:
        """The name as valid Unicode, with escapes for bytes that are not UTF-8."""
        return self.name.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Sequences:
    """The IDs and lengths of the sequences of one or more files.

    Attributes:
        ids: The ID of each sequence, an Arrow array of large strings.
        lengths: Residues of each sequence, int64.
        inputs: The files, in the order of their sequences.
        changes: Numbers of characters changed or removed by the options.
        texts: The files for random access, if they were read for this; otherwise empty.
    """

    ids: Any
    lengths: NDArray[np.int64]
    inputs: list[InputFile]
    changes: ReadChanges
    texts: list[RecordFile] = field(default_factory=list)

    def file_of(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        """Return the index of the file of each row, int64."""
        return file_of_rows(self.inputs, rows)

    def read(self, rows: NDArray[Any]) -> list[str]:
        """Return the residues of rows, which may repeat, from `texts`.

        Raises:
            ValueError: A file has changed since it was read.
            OSError: A file cannot be read.
        """
        # Each record is read once, in order of the file.
        distinct, places = np.unique(rows, return_inverse=True)
        numbers = self.file_of(distinct)
        ends = np.cumsum([file.sequences for file in self.inputs])
        found: list[str] = []
        for number in np.unique(numbers).tolist():
            first = int(ends[number]) - self.inputs[number].sequences
            records = (distinct[numbers == number] - first).tolist()
            found += [sequence for _, sequence in self.texts[number].read(records)]
        return [found[place] for place in places.tolist()]

    def find_duplicates(self, max_examples: int = 3) -> tuple[int, list[str]]:
        """Return the number of sequences that repeat an earlier ID, and the first of these IDs."""
        return find_duplicates(self.ids, max_examples)


def file_of_rows(inputs: list[InputFile], rows: NDArray[Any]) -> NDArray[np.int64]:
    """Return the index of the file of each row, int64, given the files in order of rows."""
    ends = np.cumsum([file.sequences for file in inputs])
    return np.searchsorted(ends, rows, side="right")


def find_duplicates(ids: Any, max_examples: int) -> tuple[int, list[str]]:
    """Return the number of IDs of an array that repeat another, and the first of them in order."""
    # A plan for sequences without tokens has a single batch, in order of IDs.
    order = GreedyPacker(1, special_tokens=0).pack_lengths(np.zeros(len(ids), np.int8), ids).indices
    num_duplicates = 0
    examples: list[str] = []
    for begin in range(0, len(order), CHUNK):
        some = ids.take(as_arrow(order[begin : begin + CHUNK + 1]))
        repeated = some.slice(1).filter(pc.equal(some.slice(1), some.slice(0, len(some) - 1)))
        num_duplicates += len(repeated)
        if len(examples) < max_examples:
            names = pc.unique(repeated).to_pylist()
            examples += [name for name in names if name not in examples]
    return num_duplicates, examples[:max_examples]


def read_files(
    paths: Sequence[str],
    options: ReadOptions | None = None,
    progress: Callable[[int], None] = lambda _: None,
    keep_texts: bool = False,
) -> Sequences:
    """Return the IDs and lengths of the sequences of files, in order.

    Files with the suffix `.fai`, `.parquet` (or `.pq`), `.arrow` (or `.feather`, `.ipc`), `.tsv` or
    `.tsv.gz` are tables of lengths. All others are FASTA, plain or compressed; "-" is FASTA from
    standard input.

    Args:
        paths: The files, or URIs of files.
        options: How to read them; None for the defaults of `ReadOptions`.
        progress: Called from time to time with the number of bytes of the files read so far.
        keep_texts: Whether to keep the files for random access, which needs regular files: a
            compressed file and standard input are written to a temporary copy. FASTA only.

    Raises:
        ValueError: A file is empty, damaged or not in its format, a table lacks a column, or a
            length is null, negative or not an integer.
        OverflowError: The total number of residues does not fit in 64 bits.
        MemoryError: The IDs and lengths need more memory than is available.
        OSError: A file cannot be read.

    Cost: one pass over FASTA, two over tables, which are hashed first; about 40 bytes of memory
    per sequence for IDs of 12 characters.
    """
    options = options or ReadOptions()
    ids: list[Any] = []
    lengths: list[NDArray[np.int64]] = []
    inputs = []
    changes = ReadChanges()
    num_sequences = num_bytes = num_done = 0
    texts: list[RecordFile] = []

    def take(chunk_ids: Any, chunk_lengths: NDArray[np.int64], num_read: int) -> None:
        nonlocal num_sequences, num_bytes
        ids.append(chunk_ids)
        lengths.append(chunk_lengths)
        num_sequences += len(chunk_lengths)
        checked = num_bytes // SMALL
        num_bytes += chunk_ids.nbytes + chunk_lengths.nbytes
        if num_bytes // SMALL > checked:
            # They are copied when all have been read.
            check_memory(num_bytes, f"{shown(name_of(path))}: {num_sequences:,} IDs and lengths")
        progress(num_done + num_read)

    for path in paths:
        if keep_texts:
            name = name_of(path)
            if table_kind(path) is not None:
                raise ValueError(f"{shown(name)}: a table of lengths, which has no residues")
            if path != "-":
                check_regular(path)

            def take_from(*chunk: Any, num_read: int) -> None:
                text_ids, text_lengths = as_chunk(*chunk)
                take(text_ids, text_lengths, num_read)

            text = RecordFile(path, options, take_from)
            if len(text) == 0:
                raise ValueError(f"{shown(name)}: contains no sequences")
            texts.append(text)
            changes += text.changes
            inputs.append(InputFile(name, text.num_bytes, text.sha256, len(text)))
        else:
            reader = FileReader(path, options)
            for some_ids, some_lengths in reader:
                take(some_ids, some_lengths, reader.num_read)
            changes += reader.changes
            inputs.append(reader.input)
        num_done += inputs[-1].bytes
    if num_sequences == 0:
        raise ValueError(f"{shown(name_of(paths[-1]))}: contains no sequences")
    # Free the chunks of lengths before the IDs are copied.
    all_lengths = np.concatenate(lengths)
    lengths.clear()
    if all_lengths.sum(dtype=np.float64) > 2.0**62:
        raise OverflowError("the total number of residues does not fit in 64 bits")
    all_ids = pa.chunked_array(ids, pa.large_string()).combine_chunks()
    ids.clear()
    return Sequences(all_ids, all_lengths, inputs, changes, texts)


# IDs and lengths.
Chunk = tuple[Any, NDArray[np.int64]]


def as_chunk(
    offsets: NDArray[np.int64], id_bytes: NDArray[np.uint8], lengths: NDArray[np.int64]
) -> Chunk:
    """Return what a FASTA scanner found, with the IDs as an Arrow array."""
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(id_bytes)]
    return pa.Array.from_buffers(pa.large_string(), len(lengths), buffers), lengths


def read_length_table(
    path: str, kind: str, options: ReadOptions, digest: CountingHash
) -> Iterator[tuple[Any, NDArray[np.int64], float]]:
    """Yield IDs and lengths of a table, and the share of it that has been read."""
    columns = ["id", "length"] if kind == "fai" else [options.id_column, options.length_column]
    check_regular(path)
    name, stamp = name_of(path), stamp_of(path)
    with open_input(path) as file:
        start = file.read(MAGIC_BYTES) or b""
        file.seek(0)
        for _ in read_chunks(file, name, digest):
            pass
        file.seek(max(0, digest.num_bytes - len(BGZIP_END)))
        check_bgzip_end(start, file.read(), name)
    num_rows = 0
    loader = IdLoader()
    with explain_errors(path):
        for batch, share in open_table(path, kind, columns):
            ids = ids_of(batch, columns[0], num_rows, loader).cast(pa.large_string())
            lengths = lengths_of(batch, columns[1], num_rows)
            # Copies, since parts of a batch would keep all of it in memory.
            yield pa.concat_arrays([ids, ids[:0]]), lengths.copy(), share
            num_rows += batch.num_rows
    if stamp_of(path) != stamp:
        raise OSError(f"{shown(name)}: changed while it was read")


def check_have_residues(paths: Sequence[str]) -> None:
    """Raise ValueError if a file is a table of lengths."""
    for path in paths:
        if table_kind(path) is not None:
            raise ValueError(
                f"{shown(name_of(path))}: a table of lengths has no sequences to store in the plan"
            )


class FileReader:
    """Reads the IDs and lengths of the sequences of one file, and on request their residues.

    Iterate over it once, and then use its attributes.

    Args:
        path: The file or its URI, of any kind that `read_files` reads.
        options: How to read it.
        keep_residues: Whether to read the residues too, of FASTA only.

    Attributes:
        num_read: About the number of bytes of the file read so far.
        input: What was read.
        changes: Numbers of characters changed or removed by the options.

    Raises:
        ValueError, MemoryError, OSError: As `read_files`.
    """

    input: InputFile
    changes: ReadChanges

    def __init__(self, path: str, options: ReadOptions, keep_residues: bool = False) -> None:
        self.path, self.options, self.keep_residues = path, options, keep_residues
        self.num_read = 0

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yield IDs, lengths, and with `keep_residues` an Arrow array of residues."""
        digest, num_sequences, name = CountingHash(), 0, name_of(self.path)
        self.changes = ReadChanges()
        kind = table_kind(self.path)
        chunks = self._read_fasta(digest) if kind is None else self._read_table(kind, digest)
        for chunk in chunks:
            num_sequences += len(chunk[1])
            yield chunk
        # Of the parts of a table, some may be empty.
        if num_sequences == 0 and kind is None:
            raise ValueError(f"{shown(name)}: contains no sequences")
        self.input = InputFile(name, digest.num_bytes, digest.hexdigest(), num_sequences)

    def _read_table(self, kind: str, digest: CountingHash) -> Iterator[Chunk]:
        for ids, lengths, share in read_length_table(self.path, kind, self.options, digest):
            self.num_read = int(share * digest.num_bytes)
            yield ids, lengths

    def _read_fasta(self, digest: CountingHash) -> Iterator[tuple[Any, ...]]:
        scanner = make_scanner(self.options, self.keep_residues)
        for _ in scan_fasta(self.path, scanner, digest):
            self.num_read = digest.num_bytes
            if not self.keep_residues:
                offsets, id_bytes, lengths, _ = scanner.take_lengths()
                if len(lengths):
                    yield as_chunk(offsets, id_bytes, lengths)
                continue
            records = scanner.take_records()
            if records:
                ids, texts = zip(*records, strict=True)
                residues = strings_as_arrow(texts, is_large=True)
                lengths = np.array(list(map(len, texts)), np.int64)
                yield strings_as_arrow(ids, is_large=True), lengths, residues
        self.changes = ReadChanges(*scanner.changes)
