"""Random access to the records of FASTA files."""

from __future__ import annotations

import hashlib
import io
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.fasta import (
    Changes,
    ReadOptions,
    find_decompressor,
    make_scanner,
    open_file,
    plain_text,
    read_chunks,
    scan_fasta,
)


class RecordFile:
    """The records of a FASTA file by their numbers, the same as `read_fasta` gives them.

    The file is scanned once, which tells where each record lies. A compressed file is expanded into
    a temporary copy, which goes when the object that made it does. Picklable; where the copy is not
    found, another one is made.

    Args:
        path: A FASTA file, plain or compressed, that is a regular file.
        options: How to read it.

    Attributes:
        path: The file.
        lengths: Residues of each record, int64.
        changes: What the options changed.

    Raises:
        ValueError: The file is empty, not FASTA, damaged or cut off.
        OSError: It cannot be read, or there is no room for the copy.
    """

    def __init__(self, path: str, options: ReadOptions) -> None:
        self.path = path
        self.options = options
        scanner = make_scanner(options, keep_residues=False)
        begins: list[NDArray[np.int64]] = []
        lengths: list[NDArray[np.int64]] = []

        def scan(digest: Any, copy: BinaryIO | None) -> None:
            for _ in scan_fasta(path, scanner, digest, copy):
                _, _, some_lengths, some_begins = scanner.take_lengths()
                lengths.append(some_lengths)
                begins.append(some_begins)

        self._sha256 = self._prepare(scan)
        self.lengths = np.concatenate(lengths)
        self.changes = Changes(*scanner.changes)
        self._begins = np.append(np.concatenate(begins), self._identity[2])

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, records: Sequence[int]) -> list[tuple[str, str]]:
        """Return the IDs and sequences of records by their numbers, from 0.

        Raises:
            ValueError: The file is no longer the one that was scanned.
            OSError: It cannot be read.

        Cost: the file is opened once, and each record read whole.
        """
        chosen = np.asarray(records, np.int64)
        begins = self._begins[chosen]
        sizes = self._begins[chosen + 1] - begins
        texts = []
        with self._open() as file:
            for begin, size in zip(begins.tolist(), sizes.tolist(), strict=True):
                file.seek(begin)
                texts.append(read_all(file, size))
        scanner = make_scanner(self.options, keep_residues=True)
        # The last line of a file may have no end.
        scanner.feed(b"\n".join(texts))
        scanner.finish()
        found = scanner.take_records()
        expected = self.lengths[chosen].tolist()
        for record, length, (identifier, sequence) in zip(records, expected, found, strict=False):
            if len(sequence) != length:
                raise ValueError(
                    f"{self.path}: record {record + 1:,} ({identifier!r}) has {len(sequence):,} "
                    f"residues, it had {length:,}: the file has changed"
                )
        if scanner.fault is not None or len(found) != len(records):
            raise ValueError(f"{self.path}: the file has changed since its records were found")
        return found

    def _open(self) -> io.FileIO:
        """Open the text, if it is still the one that was scanned."""
        for _ in range(2):
            try:
                file = io.FileIO(self._text)
                if identify(file) == self._identity:
                    return file
                file.close()
            except FileNotFoundError:
                if self._text == self.path:
                    raise
            # A copy of the file, or another machine: what it holds decides.
            if self._prepare(self._hash) != self._sha256:
                break
        raise ValueError(f"{self.path}: the file has changed since its records were found")

    def _hash(self, digest: Any, copy: BinaryIO | None) -> None:
        with open_file(self.path) as file:
            for text in plain_text(read_chunks(file, digest), self.path):
                if copy is not None:
                    copy.write(text)

    def _prepare(self, read: Any) -> str:
        """Have the file read, and expanded if it is compressed; return its SHA-256."""
        digest = hashlib.sha256()
        with open_file(self.path) as file:
            is_compressed = find_decompressor(read_all(file, 14), self.path) is not None
            self._text, self._identity = self.path, identify(file)
        if not is_compressed:
            read(digest, None)
            return digest.hexdigest()
        with NamedTemporaryFile(prefix="virnucpro.", suffix=".fasta", delete=False) as copy:
            self._copy = weakref.finalize(self, remove, copy.name, os.getpid())
            try:
                read(digest, copy)
            except BaseException:
                self._copy()
                raise
            copy.flush()
            self._text, self._identity = copy.name, identify(copy)
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_copy"}


def identify(file: Any) -> tuple[int, int, int, int]:
    """Return what changes with an open file, almost certainly: device, inode, size and time."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def remove(path: str, process: int) -> None:
    """Remove a temporary file, but not in a process that was forked from the one it belongs to."""
    if os.getpid() == process:
        Path(path).unlink(missing_ok=True)


def read_all(file: io.FileIO, size: int) -> bytes:
    """Return so many bytes, fewer only at the end of the file."""
    data = file.read(size)
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data
