"""Random access to the records of FASTA files."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from virnucpro.files.copies import LocalCopy
from virnucpro.files.fasta import (
    MAGIC_BYTES,
    CountingHash,
    ReadChanges,
    ReadOptions,
    decompress,
    find_decompressor,
    make_scanner,
    read_chunks,
    scan_fasta,
)
from virnucpro.files.places import as_local, is_uri, name_of, open_input
from virnucpro.text import quoted, shown


class RecordFile:
    """Random access to the records of a FASTA file; they are those of `read_fasta`.

    One scan of the file finds where each record begins. A compressed file is decompressed into a
    temporary copy, which is deleted with the object that made it. Picklable; if the copy is not
    found after unpickling, a new one is made.

    Args:
        path: A regular file in FASTA format, plain or compressed; its URI, or "-" for standard
            input, of which a temporary copy is made too.
        options: How to read the file.
        take: Called with the offsets of IDs, the concatenated IDs and the lengths of some records
            at a time, while the file is scanned, and with the number of bytes of the file read so
            far, as `num_read`.

    Attributes:
        path: The path or URI of the file.
        name: The same for messages, without secrets.
        num_bytes: Size of the file in bytes.
        sha256: The SHA-256 of its bytes.
        lengths: Residues of each record, int64.
        changes: Numbers of characters changed or removed by the options.

    Raises:
        ValueError: The file is empty, not FASTA, damaged or incomplete.
        OSError: The file cannot be read, or the copy cannot be written.
    """

    def __init__(
        self,
        path: str,
        options: ReadOptions,
        take: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self.path, self.name = as_local(path), name_of(path)
        self.options = options
        scanner = make_scanner(options, keep_residues=False)
        begins: list[NDArray[np.int64]] = []
        lengths: list[NDArray[np.int64]] = []

        def scan(digest: Any, copy: BinaryIO | None) -> None:
            for _ in scan_fasta(path, scanner, digest, copy):
                offsets, ids, some_lengths, some_begins = scanner.take_lengths()
                if len(some_lengths):
                    take(offsets, ids, some_lengths, num_read=digest.num_bytes)
                lengths.append(some_lengths)
                begins.append(some_begins)

        self._lock = threading.Lock()
        self._text: PlainText | None = self._find_text(scan)
        self.num_bytes, self.sha256 = self._text.num_bytes, self._text.sha256
        self.lengths = np.concatenate(lengths)
        self.changes = ReadChanges(*scanner.changes)
        self._begins = np.append(np.concatenate(begins), self._text.identity[2])

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, records: Sequence[int]) -> list[tuple[str, str]]:
        """Return the IDs and sequences of records, given their numbers (from 0).

        Raises:
            ValueError: The file has changed since it was scanned.
            OSError: The file cannot be read.

        Cost: one open, and one seek and read per record.
        """
        chosen = np.asarray(records, np.int64)
        begins = self._begins[chosen]
        sizes = self._begins[chosen + 1] - begins
        texts = []
        with self._open() as file:
            for begin, size in zip(begins.tolist(), sizes.tolist(), strict=True):
                file.seek(begin)
                texts.append(read_all(file, size))
            has_changed = self._text is None or file_identity(file) != self._text.identity
        scanner = make_scanner(self.options, keep_residues=True)
        # The last line of a file may lack a newline.
        scanner.feed(b"\n".join(texts))
        scanner.finish()
        found = scanner.take_records()
        expected = self.lengths[chosen].tolist()
        for record, length, (identifier, sequence) in zip(records, expected, found, strict=False):
            if len(sequence) != length:
                raise ValueError(
                    f"{shown(self.name)}: record {record + 1:,} ({quoted(identifier)}) has "
                    f"{len(sequence):,} residues (it had {length:,}): the file has changed since "
                    "it was scanned"
                )
        if has_changed or scanner.fault is not None or len(found) != len(records):
            raise ValueError(f"{shown(self.name)}: the file has changed since it was scanned")
        return found

    def _open(self) -> io.FileIO:
        """Open the text, or raise ValueError if the file has changed since it was scanned."""
        file = self._open_known()
        if file is None:
            with self._lock:
                # Another thread may have found it in the meantime.
                file = self._open_known()
                if file is None:
                    # The file may have been copied, or this may be another machine: compare hashes.
                    self._find_again()
                    file = self._open_known()
        if file is None:
            raise ValueError(f"{shown(self.name)}: the file has changed since it was scanned")
        return file

    def _open_known(self) -> io.FileIO | None:
        """Open the text if it is still the same file; otherwise return None."""
        text = self._text
        # Opening a pipe could block.
        if text is None or not Path(text.path).is_file():
            return None
        try:
            file = io.FileIO(text.path)
        except FileNotFoundError:
            return None
        if file_identity(file) == text.identity:
            return file
        file.close()
        return None

    def _find_again(self) -> None:
        """Find the text again if the bytes of the file are the same."""
        if not is_uri(self.path) and not Path(self.path).is_file():
            raise FileNotFoundError(f"{shown(self.name)}: no such file, or not a regular file")

        def read(digest: Any, copy: BinaryIO | None) -> None:
            with open_input(self.path) as file:
                for text in decompress(read_chunks(file, self.name, digest), self.name):
                    if copy is not None:
                        copy.write(text)

        found = self._find_text(read)
        self._text = found if found.sha256 == self.sha256 else None

    def _find_text(self, read: Callable[[Any, BinaryIO | None], None]) -> PlainText:
        """Call `read`, with a file for a copy unless the input is plain; return the text."""
        digest = CountingHash()
        is_plain = self.path != "-" and not is_uri(self.path)
        if is_plain:
            with open_input(self.path) as file:
                is_plain = find_decompressor(read_all(file, MAGIC_BYTES), self.name) is None
                identity = file_identity(file)
        if is_plain:
            read(digest, None)
            return PlainText(self.path, identity, digest.hexdigest(), digest.num_bytes)
        copy = LocalCopy(self.name)
        with copy.open() as file:
            read(digest, file)
            file.flush()
            identity = file_identity(file)
        return PlainText(str(copy.path), identity, digest.hexdigest(), digest.num_bytes, copy)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


@dataclass
class PlainText:
    """The decompressed text of a FASTA file: the file itself, or a copy deleted with this object.

    Attributes:
        path: The path of the text.
        identity: The `file_identity` of the text.
        sha256: The hash of the FASTA file, compressed or not.
        num_bytes: The size of the FASTA file.
        copy: The copy, in the process that made it.
    """

    path: str
    identity: tuple[int, ...]
    sha256: str
    num_bytes: int
    copy: LocalCopy | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PlainText, (self.path, self.identity, self.sha256, self.num_bytes)


def file_identity(file: Any) -> tuple[int, ...]:
    """Return device, inode, size and times of an open file, to tell whether it has changed."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_all(file: io.FileIO | io.BufferedReader, size: int) -> bytes:
    """Return `size` bytes, or fewer at the end of the file."""
    data = file.read(size)
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data
