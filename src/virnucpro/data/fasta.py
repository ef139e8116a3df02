"""The records of FASTA files."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import io
import os
import select
import signal
import socket
import stat
import threading
import zlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import pysam

# The empty block that ends every complete bgzip file (SAM specification, section 4.1.2).
BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
CHUNK = 2**20
# The ends of pipes that text is being written to.
WRITING_ENDS: set[int] = set()


def close_writing_ends() -> None:
    """Leave the pipes to the process that was forked from, or they would never end there."""
    for end in WRITING_ENDS:
        with contextlib.suppress(OSError):
            os.close(end)
    WRITING_ENDS.clear()


os.register_at_fork(after_in_child=close_writing_ends)


class Digest(Protocol):
    """A hash of `hashlib`."""

    def update(self, data: Any, /) -> None:
        """Add bytes."""


def read_fasta(
    path: str | PathLike[str], digest: Digest | None = None
) -> Iterator[tuple[str, str]]:
    r"""Yield the ID (the header up to the first blank) and the sequence of each record.

    Line ends and blanks within a sequence are no part of it; all other characters are, as they
    stand there.

    Args:
        path: A FASTA file, plain, gzip or bgzip; "-" for standard input.
        digest: A hash of `hashlib` to update with the bytes of the file.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a directory.
        ValueError: The file is empty, no FASTA, damaged or cut off, or has a NUL byte. Records
            before the damage have been yielded by then.
        OSError: The file cannot be read.

    Cost: one pass; decompression and checks run on a thread of their own.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "proteins.fasta")
        ...     _ = path.write_text(">a first\nMKTAY\nIAK\n>b\nMK\n")
        ...     list(read_fasta(path))
        [('a', 'MKTAYIAK'), ('b', 'MK')]
    """
    name = "standard input" if os.fspath(path) == "-" else str(path)
    file = open_file(path)
    reading_end, writing_end = os.pipe()
    with contextlib.suppress(AttributeError, OSError):
        # Larger where the system lets it be, so that both sides wait less for each other.
        fcntl.fcntl(writing_end, fcntl.F_SETPIPE_SZ, CHUNK)
    num_records = 0
    # Only what is no regular file may make a reader wait for long.
    signals = None if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else SignalWatch()
    text = PlainText(Digested(file, digest, signals), writing_end, name)
    # The library's own messages do not name the file.
    verbosity = pysam.set_verbosity(0)
    try:
        text.start()
        try:
            records = pysam.FastxFile(f"/dev/fd/{reading_end}", persist=False)
        finally:
            os.close(reading_end)
        with records:
            for record in records:
                sequence = record.sequence or ""
                # What is no residue; spelt out, as a loop over it takes as long as the rest.
                if (
                    " " in sequence
                    or "\t" in sequence
                    or "\r" in sequence
                    or "\v" in sequence
                    or "\f" in sequence
                ):
                    sequence = "".join(sequence.split())
                if ">" in sequence:
                    raise MergedRecordsError(
                        f"{name}: record {num_records + 1:,} ({record.name}) has a '>' in its "
                        "sequence; does a line end before it lack?"
                    )
                yield record.name or "", sequence
                num_records += 1
    except MergedRecordsError:
        raise
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: record {num_records + 1:,} is not text in UTF-8") from error
    except ValueError as error:
        text.join()
        raise text.error or ValueError(
            f"{name}: damaged or cut off after record {num_records:,}"
        ) from error
    finally:
        pysam.set_verbosity(verbosity)
        if signals is not None:
            signals.end()
    text.join()
    if text.error is not None:
        raise text.error
    if not text.is_complete:
        raise OSError(f"{name}: was not read to its end")


class MergedRecordsError(ValueError):
    """Two records look like one."""


def open_file(path: str | PathLike[str]) -> io.FileIO:
    """Open a file, or standard input, for reading."""
    if os.fspath(path) == "-":
        return io.FileIO(0, closefd=False)
    check_exists(Path(path))
    return io.FileIO(path)


def is_cut_bgzip(start: bytes, end: bytes) -> bool:
    """Whether bytes at the start of a file are of bgzip, and those at its end are not."""
    is_bgzip = start[:4] == BGZIP_END[:4] and start[12:14] == BGZIP_END[12:14]
    return is_bgzip and end[-len(BGZIP_END) :] != BGZIP_END


def check_exists(path: Path) -> None:
    """Raise where there is no file."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory")


class PlainText(threading.Thread):
    """Sends the plain text of a FASTA file through a pipe to the library that takes it apart.

    What the library would read without a word, or not at all, is found on the way and becomes the
    `error`.
    """

    def __init__(self, file: Digested, writing_end: int, name: str) -> None:
        super().__init__(daemon=True)
        self.error: BaseException | None = None
        self.is_complete = False
        self._file = file
        self._writing_end = writing_end
        WRITING_ENDS.add(writing_end)
        self._name = name

    def run(self) -> None:
        """Send all, then close the pipe."""
        try:
            with self._file, os.fdopen(self._writing_end, "wb", buffering=0) as pipe:
                for chunk in self._checked():
                    left = memoryview(chunk)
                    while left:
                        left = left[pipe.write(left) :]
                WRITING_ENDS.discard(self._writing_end)
            self.is_complete = True
        except BrokenPipeError:
            # Nobody reads any more.
            pass
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self.error = ValueError(f"{self._name}: damaged or cut off ({error})")
        except BaseException as error:
            self.error = error
        finally:
            WRITING_ENDS.discard(self._writing_end)

    def _checked(self) -> Iterator[bytes]:
        """The text in chunks."""
        position = 0
        last = b"\n"
        for chunk in self._plain():
            if position == 0:
                self._check_start(chunk)
            if 0 in chunk:
                self._refuse(f"has a NUL byte at {position + chunk.index(0):,}")
            for mark in (b"@", b"+"):
                if mark in chunk and b"\n" + mark in last + chunk:
                    self._refuse(f"has a line that begins with {mark.decode()!r}; is it FASTQ?")
            if b"\r" in chunk or last[-1:] == b"\r":
                # A CR at the end of a chunk is looked at with the next one.
                lines = (last[-1:] + chunk).removesuffix(b"\r")
                if lines.count(b"\r") != lines.count(b"\r\n"):
                    self._refuse("has lines that end with CR alone")
            yield chunk
            position += len(chunk)
            last = (last + chunk[-2:])[-2:]
        if last == b"\n>":
            self._refuse("cut off: it ends with '>'")
        if position == 0:
            self._refuse("empty file")

    def _plain(self) -> Iterator[bytes]:
        """The text in chunks, decompressed."""
        start = self._file.begin()
        file = io.BufferedReader(self._file, CHUNK)
        if start[:2] != BGZIP_END[:2]:
            while chunk := file.read(CHUNK):
                yield chunk
            return
        with gzip.GzipFile(fileobj=file) as plain:
            while chunk := plain.read(CHUNK):
                yield chunk
        if is_cut_bgzip(start, self._file.end):
            self._refuse("cut off: the bgzip end-of-file block is missing")

    def _check_start(self, chunk: bytes) -> None:
        start = chunk.removeprefix(b"\xef\xbb\xbf").lstrip()
        if not start.startswith(b">"):
            kind = "FASTQ" if start.startswith(b"@") else "no FASTA"
            tables = "; tables of lengths are known by .tsv, .parquet, .arrow and .fai"
            self._refuse(
                f"{kind}: it begins with {start[:20]!r}, not with '>'"
                + ("" if kind == "FASTQ" else tables)
            )

    def _refuse(self, why: str) -> None:
        raise ValueError(f"{self._name}: {why}")


class SignalWatch:
    """Tells a thread that waits for input of a signal, such as that of Ctrl-C.

    Python acts on a signal once the main thread is back from the library, which waits for the
    thread.
    """

    def __init__(self) -> None:
        self.came, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._before: int | None = None
        # Signals are the main thread's: elsewhere this is refused.
        with contextlib.suppress(ValueError):
            woken = self._woken.fileno()
            self._before = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)

    def end(self) -> None:
        """Leave signals as they were; a thread that still waits goes on."""
        if self._before is not None:
            with contextlib.suppress(ValueError):
                signal.set_wakeup_fd(self._before)
        self._woken.close()


class Digested(io.RawIOBase):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: io.FileIO, digest: Digest | None, signals: SignalWatch | None) -> None:
        self._file = file
        self._digest = digest
        self._signals = signals
        # The last bytes read, as many as end a bgzip file.
        self.end = b""
        self._ahead = b""

    def readable(self) -> bool:
        """True."""
        return True

    def begin(self) -> bytes:
        """Return the first bytes, which tell the file's kind, and have them read again."""
        start = b""
        while len(start) < 14 and (more := self.read(CHUNK)):
            start += more
        self._ahead = start
        return start

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer."""
        if self._ahead:
            size = min(len(buffer), len(self._ahead))
            buffer[:size], self._ahead = self._ahead[:size], self._ahead[size:]
            return size
        if self._signals is not None:
            file, came = self._file.fileno(), self._signals.came.fileno()
            if file not in select.select([file, came], [], [])[0]:
                raise InterruptedError("interrupted")
        size = self._file.readinto(buffer)
        if size is None:
            raise BlockingIOError("input that does not wait cannot be read")
        read = memoryview(buffer)[:size]
        if self._digest is not None:
            self._digest.update(read)
        self.end = (self.end + bytes(read[-len(BGZIP_END) :]))[-len(BGZIP_END) :]
        return size

    def close(self) -> None:
        """Close the file, and the watch for signals."""
        self._file.close()
        if self._signals is not None:
            self._signals.came.close()
        super().close()
