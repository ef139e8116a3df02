"""Read the records of FASTA files, plain or compressed."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from itertools import chain
from os import PathLike
from typing import Any, BinaryIO, Protocol

from virnucpro import kernel
from virnucpro.extras import needing
from virnucpro.files.places import name_of, open_input
from virnucpro.text import quoted, shown

# The empty block at the end of a complete bgzip file (SAM specification, section 4.1.2).
BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
# The magic numbers of Zstandard frames and skippable frames (RFC 8878, section 3.1).
ZSTD_MAGIC = (b"\x28\xb5\x2f\xfd", *(bytes([i]) + b"\x2a\x4d\x18" for i in range(0x50, 0x60)))
# Maximum bytes read at a time, and decompressed at a time.
CHUNK = 2**20
MAX_DECOMPRESSED = 2**22
# Bytes at the start of a file that identify its compression, and tell bgzip from gzip.
MAGIC_BYTES = 14


@dataclass(frozen=True)
class ReadOptions:
    """How to read sequences from FASTA files and tables of lengths.

    In FASTA, the ID is the first word of the header. Whitespace within a sequence is ignored; any
    other character that is not an ASCII letter, ``*``, ``-`` or ``.`` is an error. Characters
    changed or removed by the options are counted and reported.

    Args:
        id_column: The table column with the IDs, which are read as text.
        length_column: The table column with the length of each sequence, in residues.
        strip_stop: Remove each ``*`` at the end of a sequence, which is a stop, not a residue.
        uppercase: Convert lower-case letters, such as soft-masked residues, to upper case.
        drop_gaps: Remove ``-`` and ``.``. With ``uppercase=False``, also remove lower-case
            letters, the insertions of an A3M alignment.

    Raises:
        TypeError: A column name is not a str, or another option is not a bool.

    Example:
        >>> ReadOptions(drop_gaps=True)
        ReadOptions(id_column='id', length_column='length', strip_stop=True, uppercase=True, \
drop_gaps=True)
    """

    id_column: str = "id"
    length_column: str = "length"
    strip_stop: bool = True
    uppercase: bool = True
    drop_gaps: bool = False

    def __post_init__(self) -> None:
        for name in ("id_column", "length_column"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a str (got {quoted(getattr(self, name))})")
        for name in ("strip_stop", "uppercase", "drop_gaps"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool (got {quoted(getattr(self, name))})")


def check_options(options: ReadOptions | None) -> ReadOptions:
    """Return checked options; the defaults if None."""
    if options is not None and not isinstance(options, ReadOptions):
        raise TypeError(f"options must be ReadOptions (got {type(options).__name__})")
    return options or ReadOptions()


def make_scanner(options: ReadOptions, keep_residues: bool) -> kernel.FastaScanner:
    """Return a new FASTA scanner that applies the options."""
    return kernel.make_scanner(
        options.strip_stop, options.uppercase, options.drop_gaps, keep_residues
    )


@dataclass(frozen=True)
class ReadChanges:
    """The numbers of characters that were changed or removed when reading FASTA.

    Attributes:
        stops: Number of ``*`` removed from the ends of sequences.
        lower_case: Number of lower-case letters converted to upper case.
        gaps: Number of ``-`` and ``.`` removed.
        insertions: Number of lower-case letters removed.
    """

    stops: int = 0
    lower_case: int = 0
    gaps: int = 0
    insertions: int = 0

    def __add__(self, other: ReadChanges) -> ReadChanges:
        return ReadChanges(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        parts = {
            "stops (*) removed": self.stops,
            "lower-case residues converted to upper case": self.lower_case,
            "gaps removed": self.gaps,
            "lower-case insertions removed": self.insertions,
        }
        return ", ".join(f"{count:,} {change}" for change, count in parts.items() if count)


class Digest(Protocol):
    """A `hashlib` hash."""

    def update(self, data: Any, /) -> None:
        """Add bytes."""


class CountingHash:
    """SHA-256 and the number of bytes hashed."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._hash = hashlib.sha256()

    def update(self, data: Any, /) -> None:
        """Add bytes."""
        self.num_bytes += len(data)
        self._hash.update(data)

    def hexdigest(self) -> str:
        """Return the SHA-256 of the bytes so far."""
        return self._hash.hexdigest()


def read_fasta(
    path: str | PathLike[str],
    options: ReadOptions | None = None,
    digest: Digest | None = None,
) -> Iterator[tuple[str, str]]:
    r"""Yield the ID and the sequence of each record.

    Args:
        path: A FASTA file, plain or compressed (gzip, bgzip, bzip2, xz or Zstandard); its URI,
            such as ``s3://bucket/a.fa``; or "-" for standard input.
        options: How to read the file; None for the defaults of `ReadOptions`.
        digest: A `hashlib` hash to update with the bytes of the file.

    Raises:
        FileNotFoundError: The file does not exist.
        IsADirectoryError: The path is a folder.
        ValueError: The file is empty, not FASTA, damaged or incomplete. If its text is not FASTA,
            the message names the line and the record. Earlier records have been yielded.
        ModuleNotFoundError: The library needed to decompress the file is not installed.
        OSError: The file cannot be read.

    Cost: one pass; memory for the longest record and a few MiB.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "proteins.fasta")
        ...     _ = path.write_text(">a first\nMKTAY\nIAK*\n>b\nmk\n")
        ...     list(read_fasta(path))
        [('a', 'MKTAYIAK'), ('b', 'MK')]
    """
    scanner = make_scanner(options or ReadOptions(), keep_residues=True)
    for _ in scan_fasta(path, scanner, digest):
        yield from scanner.take_records()


def scan_fasta(
    path: str | PathLike[str],
    scanner: kernel.FastaScanner,
    digest: Digest | None = None,
    copy: BinaryIO | None = None,
) -> Iterator[None]:
    """Feed a file to a scanner; yield whenever it may have complete records to take.

    If `copy` is not None, the decompressed text is also written to it. The other arguments and
    the errors are those of `read_fasta`.
    """
    name = "standard input" if os.fspath(path) == "-" else name_of(path)
    with open_input(path) as file:
        for text in decompress(read_chunks(file, name, digest), name):
            try:
                scanner.feed(text)
            except MemoryError as error:
                raise MemoryError(f"{shown(name)}: out of memory, in a record too long") from error
            if copy is not None:
                copy.write(text)
            yield
            check_fault(scanner, name)
    scanner.finish()
    yield
    check_fault(scanner, name)


def check_fault(scanner: kernel.FastaScanner, name: str) -> None:
    """Raise ValueError if a scanner has found a fault in its text."""
    if scanner.fault is None:
        return
    line, record, identifier, reason = scanner.fault
    where = f"line {line:,}: " if line else ""
    if record > 0:
        text = identifier.decode("utf-8", "backslashreplace")
        where = f"line {line:,}, record {record:,} ({quoted(text)}): "
    elif reason.endswith("not with '>'"):
        reason += " (tables of lengths need the suffix .tsv, .parquet, .arrow or .fai)"
    prefix = "" if record > 0 else "not FASTA: "
    raise ValueError(f"{shown(name)}: {prefix}{where}{reason}")


def read_chunks(
    file: io.FileIO | io.BufferedReader, name: str, digest: Digest | None = None
) -> Iterator[bytes]:
    """Yield the bytes of a file in chunks, each hashed while the caller works on it."""

    def read() -> bytes:
        try:
            chunk = file.read(CHUNK)
        except OSError as error:
            if error.strerror is None:
                raise
            raise OSError(f"{shown(name)}: cannot be read ({error.strerror})") from error
        if chunk is None:
            raise BlockingIOError(f"{shown(name)}: cannot be read (non-blocking input)")
        return chunk

    if digest is None:
        yield from iter(read, b"")
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as hashing:
        last = None
        # A process may be unable to start a thread; then it hashes each chunk first.
        with suppress(RuntimeError):
            last = hashing.submit(digest.update, b"")
        for chunk in iter(read, b""):
            if last is None:
                digest.update(chunk)
            else:
                last.result()
                last = hashing.submit(digest.update, chunk)
            yield chunk
        if last is not None:
            last.result()


class Decompressor(Protocol):
    """The interface that the decompressors of all formats share."""

    @property
    def eof(self) -> bool:
        """Whether the end of a member has been reached."""

    @property
    def needs_input(self) -> bool:
        """Whether more input is needed for more output."""

    @property
    def unused_data(self) -> bytes:
        """The bytes after the end of the member."""

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        """Return at most `max_length` decompressed bytes."""


def decompress(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Yield the text of a file, decompressed if its first bytes are those of a known format."""
    chunks = iter(chunks)
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) >= MAGIC_BYTES:
            break
    make = find_decompressor(start, name)
    chunks = chain([start], chunks)
    return chunks if make is None else decompress_members(chunks, make, name)


def find_decompressor(start: bytes, name: str) -> Callable[[], Decompressor] | None:
    """Return the decompressor factory for the first bytes of a file; None for plain text."""
    with needing(f"{shown(name)}: reading this compression format", "fasta"):
        if start.startswith(b"\x1f\x8b"):
            from isal import igzip_lib

            return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        if start.startswith(b"BZh"):
            import bz2

            return bz2.BZ2Decompressor
        if start.startswith(b"\xfd7zXZ\0"):
            import lzma

            return lzma.LZMADecompressor
        if start.startswith(ZSTD_MAGIC):
            try:
                from compression import zstd
            except ModuleNotFoundError:
                from backports import zstd

            make: Callable[[], Decompressor] = zstd.ZstdDecompressor
            return make
    return None


def decompress_members(
    chunks: Iterable[bytes], make: Callable[[], Decompressor], name: str
) -> Iterator[bytes]:
    """Yield the text of all members of a compressed file.

    `bz2.open` and `lzma.open` ignore damaged data after the first member; here it is an error.
    """
    member: Decompressor | None = None
    start = end = b""
    for data in chunks:
        start = start or data[:MAGIC_BYTES]
        end = (end + data)[-len(BGZIP_END) :]
        while data or (member is not None and not member.needs_input):
            if member is None:
                # Members may be padded with zeros.
                data = data.lstrip(b"\0")
                if not data:
                    break
                member = make()
            try:
                text = member.decompress(data, MAX_DECOMPRESSED)
            except MemoryError:
                raise
            except Exception as error:
                raise ValueError(f"{shown(name)}: damaged ({shown(error)})") from error
            data = b""
            if member.eof:
                data, member = member.unused_data, None
            if text:
                yield text
    if member is not None:
        raise ValueError(f"{shown(name)}: incomplete: the compressed data ends early")
    check_bgzip_end(start, end, name)


def check_bgzip_end(start: bytes, end: bytes, name: str) -> None:
    """Raise ValueError if a file starts as bgzip but lacks the end-of-file block."""
    is_bgzip = start[:4] == BGZIP_END[:4] and start[12:14] == BGZIP_END[12:14]
    if is_bgzip and end[-len(BGZIP_END) :] != BGZIP_END:
        raise ValueError(f"{shown(name)}: incomplete: the bgzip end-of-file block is missing")
