"""The records of FASTA files."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from virnucpro import kernel
from virnucpro.extras import needing

# The empty block that ends every complete bgzip file (SAM specification, section 4.1.2).
BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
# What a frame of Zstandard begins with, and one to skip, of which parallel programs write some
# (RFC 8878, section 3.1).
ZSTD_STARTS = (b"\x28\xb5\x2f\xfd", *(bytes([i]) + b"\x2a\x4d\x18" for i in range(0x50, 0x60)))
# Bytes that are read, and bytes that they are expanded to, at once.
CHUNK = 2**20
EXPANDED = 2**22


@dataclass(frozen=True)
class ReadOptions:
    """How sequences are read, for files of every kind.

    In FASTA the ID is the first word of the header; blanks, blank lines and line ends are no part
    of a sequence, and what is neither a letter nor ``*``, ``-`` or ``.`` is an error. What the
    options change is counted and reported.

    Args:
        id_column: The column of tables with the IDs, which are taken as text.
        length_column: The column of tables with the residues of each sequence.
        strip_stop: Leave out each ``*`` at the end of a sequence: a stop, not a residue.
        uppercase: Read lower-case letters, such as soft-masked residues, as upper case.
        drop_gaps: Leave out ``-`` and ``.``. With ``uppercase=False`` lower-case letters are left
            out too, as the insertions of an A3M alignment.

    Raises:
        TypeError: A column is not a str, or another option not a bool.

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
                raise TypeError(f"{name} must be a str (got {getattr(self, name)!r})")
        for name in ("strip_stop", "uppercase", "drop_gaps"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool (got {getattr(self, name)!r})")


def make_scanner(options: ReadOptions, keep_residues: bool) -> kernel.FastaScanner:
    """Return a new scanner of FASTA that obeys the options."""
    return kernel.make_scanner(
        options.strip_stop, options.uppercase, options.drop_gaps, keep_residues
    )


@dataclass(frozen=True)
class Changes:
    """How many characters of FASTA were changed or left out.

    Attributes:
        stops: Each ``*`` left out at the end of a sequence.
        lower_case: Lower-case letters read as upper case.
        gaps: Each ``-`` and ``.`` left out.
        insertions: Lower-case letters left out.
    """

    stops: int = 0
    lower_case: int = 0
    gaps: int = 0
    insertions: int = 0

    def __add__(self, other: Changes) -> Changes:
        return Changes(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        parts = {
            "stops (*) left out": self.stops,
            "lower-case residues read as upper case": self.lower_case,
            "gaps left out": self.gaps,
            "lower-case insertions left out": self.insertions,
        }
        return ", ".join(f"{number:,} {what}" for what, number in parts.items() if number)


class Digest(Protocol):
    """A hash of `hashlib`."""

    def update(self, data: Any, /) -> None:
        """Add bytes."""


def read_fasta(
    path: str | PathLike[str],
    options: ReadOptions | None = None,
    digest: Digest | None = None,
) -> Iterator[tuple[str, str]]:
    r"""Yield the ID and the sequence of each record.

    Args:
        path: A FASTA file, plain, gzip, bgzip, bzip2, xz or Zstandard; "-" for standard input.
        options: How to read it; None for the defaults of `ReadOptions`.
        digest: A hash of `hashlib` to update with the bytes of the file.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a directory.
        ValueError: The file is empty, not FASTA, damaged or cut off; the message names the line and
            the record. Records before it have been yielded by then.
        ModuleNotFoundError: A library that decompresses the file is not installed.
        OSError: The file cannot be read.

    Cost: one pass; a few MiB of memory, and the longest record.

    Example:
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
    """Feed a file to a scanner; yield whenever it may have complete records to be taken.

    The decompressed text is written to `copy` too. All else is as `read_fasta` has it.
    """
    name = "standard input" if os.fspath(path) == "-" else str(path)
    with open_file(path) as file:
        for text in plain_text(read_chunks(file, name, digest), name):
            scanner.feed(text)
            if copy is not None:
                copy.write(text)
            yield
            check_fault(scanner, name)
    scanner.finish()
    yield
    check_fault(scanner, name)


def check_fault(scanner: kernel.FastaScanner, name: str) -> None:
    """Raise if a scanner found that its text is not FASTA."""
    if scanner.fault is None:
        return
    line, record, identifier, reason = scanner.fault
    where = f"line {line:,}: " if line else ""
    if record > 0:
        shown = identifier.decode("utf-8", "backslashreplace")[:80]
        where = f"line {line:,}, record {record:,} ({shown!r}): "
    elif reason.endswith("not with '>'"):
        reason += " (`virnucpro pack` knows tables of lengths by .tsv, .parquet, .arrow and .fai)"
    kind = "" if record > 0 else "not FASTA: "
    raise ValueError(f"{name}: {kind}{where}{reason}")


def open_file(path: str | PathLike[str]) -> io.FileIO:
    """Open a file, or standard input, for reading."""
    if os.fspath(path) == "-":
        try:
            return io.FileIO(0, closefd=False)
        except OSError as error:
            raise OSError(f"standard input: cannot be read ({error.strerror})") from error
    check_exists(Path(path))
    return io.FileIO(path)


def check_exists(path: Path) -> None:
    """Raise where there is no file."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory")


def read_chunks(file: io.FileIO, name: str, digest: Digest | None = None) -> Iterator[bytes]:
    """Yield the bytes of a file; each chunk is hashed while the caller works on it."""

    def read() -> bytes:
        try:
            chunk = file.read(CHUNK)
        except OSError as error:
            raise OSError(f"{name}: cannot be read ({error.strerror})") from error
        if chunk is None:
            raise BlockingIOError(f"{name}: input that does not wait cannot be read")
        return chunk

    if digest is None:
        yield from iter(read, b"")
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as hashing:
        last = hashing.submit(digest.update, b"")
        for chunk in iter(read, b""):
            last.result()
            last = hashing.submit(digest.update, chunk)
            yield chunk
        last.result()


class Decompressor(Protocol):
    """What the libraries of all formats have."""

    @property
    def eof(self) -> bool:
        """Whether a member has ended."""

    @property
    def needs_input(self) -> bool:
        """Whether there is no more text without more bytes."""

    @property
    def unused_data(self) -> bytes:
        """The bytes behind the member that has ended."""

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        """Return decompressed bytes, at most so many."""


def plain_text(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Yield text from the bytes of a file that may be compressed, which they tell themselves."""
    chunks = iter(chunks)
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) >= 14:
            break
    make = find_decompressor(start, name)
    chunks = chain([start], chunks)
    return chunks if make is None else decompress(chunks, make, name)


def find_decompressor(start: bytes, name: str) -> Callable[[], Decompressor] | None:
    """Return what makes a decompressor for a file that begins with these bytes, None for plain."""
    with needing(f"{name}: reading this compression", "fasta"):
        if start.startswith(b"\x1f\x8b"):
            from isal import igzip_lib

            return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        if start.startswith(b"BZh"):
            import bz2

            return bz2.BZ2Decompressor
        if start.startswith(b"\xfd7zXZ\0"):
            import lzma

            return lzma.LZMADecompressor
        if start.startswith(ZSTD_STARTS):
            try:
                from compression import zstd
            except ModuleNotFoundError:
                from backports import zstd

            make: Callable[[], Decompressor] = zstd.ZstdDecompressor
            return make
    return None


def decompress(
    chunks: Iterable[bytes], make: Callable[[], Decompressor], name: str
) -> Iterator[bytes]:
    """Yield the text of all members of a compressed file, each of which has to be complete.

    Files opened by `bz2` and `lzma` take a damaged member for the end; here it is an error.
    """
    member: Decompressor | None = None
    start = end = b""
    for data in chunks:
        start = start or data[:14]
        end = (end + data)[-len(BGZIP_END) :]
        while data or (member is not None and not member.needs_input):
            if member is None:
                # Zeros between members are padding.
                data = data.lstrip(b"\0")
                if not data:
                    break
                member = make()
            try:
                text = member.decompress(data, EXPANDED)
            except MemoryError:
                raise
            except Exception as error:
                raise ValueError(f"{name}: damaged ({error})") from error
            data = b""
            if member.eof:
                data, member = member.unused_data, None
            if text:
                yield text
    if member is not None:
        raise ValueError(f"{name}: cut off in the middle of its compressed data")
    if is_cut_bgzip(start, end):
        raise ValueError(f"{name}: cut off: the bgzip end-of-file block is missing")


def is_cut_bgzip(start: bytes, end: bytes) -> bool:
    """Whether bytes at the start of a file are of bgzip, and those at its end are not."""
    is_bgzip = start[:4] == BGZIP_END[:4] and start[12:14] == BGZIP_END[12:14]
    return is_bgzip and end[-len(BGZIP_END) :] != BGZIP_END
