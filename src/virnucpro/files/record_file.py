"""Random access to the records of FASTA files."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from virnucpro.files.fasta import (
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

        self._lock = threading.Lock()
        self._text: Text | None = self._find_text(scan)
        self._sha256 = self._text.sha256
        self.lengths = np.concatenate(lengths)
        self.changes = Changes(*scanner.changes)
        self._begins = np.append(np.concatenate(begins), self._text.identity[2])

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
        file = self._open_known()
        if file is None:
            with self._lock:
                # Another thread may have looked meanwhile.
                file = self._open_known()
                if file is None:
                    # A copy of the file, or another machine: what it holds decides.
                    self._look_again()
                    file = self._open_known()
        if file is None:
            raise ValueError(f"{self.path}: the file has changed since its records were found")
        return file

    def _open_known(self) -> io.FileIO | None:
        """Open the text if it is the file that was looked at, and None if it is not."""
        text = self._text
        # Others could make their reader wait.
        if text is None or not Path(text.path).is_file():
            return None
        try:
            file = io.FileIO(text.path)
        except FileNotFoundError:
            return None
        if identify(file) == text.identity:
            return file
        file.close()
        return None

    def _look_again(self) -> None:
        """Find the text once more, if the file holds the same bytes."""
        if not Path(self.path).is_file():
            raise FileNotFoundError(f"{self.path}: no such file, or no longer a regular one")

        def read(digest: Any, copy: BinaryIO | None) -> None:
            with open_file(self.path) as file:
                for text in plain_text(read_chunks(file, self.path, digest), self.path):
                    if copy is not None:
                        copy.write(text)

        found = self._find_text(read)
        self._text = found if found.sha256 == self._sha256 else None

    def _find_text(self, read: Callable[[Any, BinaryIO | None], None]) -> Text:
        """Have the file read, into a copy if it is compressed, and return where its text is."""
        digest = hashlib.sha256()
        with open_file(self.path) as file:
            is_compressed = find_decompressor(read_all(file, 14), self.path) is not None
            identity = identify(file)
        if not is_compressed:
            read(digest, None)
            return Text(self.path, identity, digest.hexdigest())
        with NamedTemporaryFile(prefix="virnucpro.", suffix=".fasta", delete=False) as copy:
            # Of this process alone, and also where a worker ends, which runs no other hooks.
            text = Text(copy.name, (), "")
            remove = Finalize(
                text, partial(Path(copy.name).unlink, missing_ok=True), exitpriority=0
            )
            try:
                read(digest, cast(BinaryIO, copy))
            except BaseException:
                remove()
                raise
            copy.flush()
            text.identity, text.sha256 = identify(copy), digest.hexdigest()
        return text

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


@dataclass
class Text:
    """A file with the text of a FASTA file: the file itself, or a copy that goes with this object.

    Attributes:
        path: The file.
        identity: What `identify` says of it.
        sha256: The hash of the FASTA file as it is, compressed or not.
    """

    path: str
    identity: tuple[int, ...]
    sha256: str


def identify(file: Any) -> tuple[int, ...]:
    """Return what changes with an open file: device, inode, size and times."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_all(file: io.FileIO, size: int) -> bytes:
    """Return so many bytes, fewer only at the end of the file."""
    data = file.read(size)
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data
