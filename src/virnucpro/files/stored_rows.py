"""The numbers of an Arrow plan file, read in blocks that are compared with their checksums."""

from __future__ import annotations

import os
import struct
import threading
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from virnucpro.files.plan_schema import BLOCK, NUMBERS, TEXTS, integer_of
from virnucpro.text import shown

# The end of an Arrow file: the size of the footer, and the magic string.
END = struct.Struct("<i6s")
# Blocks and buffers in metadata: an offset, the size of a message's metadata, the size of its body;
# an offset, a size.
MESSAGE = struct.Struct("<qi4xq")
BUFFER = struct.Struct("<qq")


class Buffers(NamedTuple):
    """Where the buffers of the record batch of an Arrow file are.

    Attributes:
        num_rows: The number of rows.
        places: Offset in the file, and size in bytes, of each buffer.
        is_compressed: Whether they are compressed.
    """

    num_rows: int
    places: list[tuple[int, int]]
    is_compressed: bool


class StoredRows:
    """Columns of integers of an Arrow file, of which only the parts that are asked for are read.

    Whatever happens to the file, what is read is what was written, or an error is raised: each
    block is compared with its checksum whenever it is read. The file stays open, so it may also be
    replaced or deleted. Threads and forked processes may read at the same time.

    Args:
        path: The file.

    Raises:
        ValueError: It is not an Arrow file with one record batch, or damaged.
        OSError: The file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self._lock = threading.Lock()
        self._last: tuple[str, int, NDArray[Any]] | None = None
        self.buffers = self._find_buffers()
        self._columns: dict[str, tuple[int, Any, NDArray[np.int64]]] = {}

    def choose(self, schema: pa.Schema, checksums: Mapping[str, NDArray[np.int64]]) -> None:
        """Choose the columns to read, those with checksums.

        Raises:
            ValueError: The file does not have these columns as plain integers.
        """
        num_rows, places, _ = self.buffers
        first = 0
        for field in schema:
            if field.name in checksums and field.type in NUMBERS:
                kind, crc32s = integer_of(field.type), checksums[field.name]
                # Before the values is the bitmap of nulls.
                offset, num_bytes = places[first + 1] if first + 1 < len(places) else (0, 0)
                is_whole = offset >= 0 and num_bytes >= num_rows * kind.itemsize
                if not is_whole or len(crc32s) != -(-num_rows // BLOCK):
                    raise pa.ArrowInvalid(f"column {field.name!r} is incomplete")
                self._columns[field.name] = offset, kind, crc32s
            first += 3 if field.type in TEXTS else 2
        if self._columns.keys() != checksums.keys():
            raise pa.ArrowInvalid("its checksums are those of other columns")

    def read(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Return the values of a range of rows in a new array.

        Raises:
            OSError: The file has changed since it was opened, or cannot be read.

        Cost: one read of the blocks with these rows, of 64 or 128 KiB each.
        """
        first, last = begin // BLOCK, -(-end // BLOCK)
        if last - first == 1:
            known = self._last
            if known is None or known[:2] != (name, first):
                known = self._last = name, first, self._read_blocks(name, first, last)
            return known[2][begin - first * BLOCK : end - first * BLOCK].copy()
        values = self._read_blocks(name, first, last)
        return values[begin - first * BLOCK : end - first * BLOCK]

    def _read_blocks(self, name: str, first: int, last: int) -> NDArray[Any]:
        offset, kind, crc32s = self._columns[name]
        num_rows = max(0, min(last * BLOCK, self.buffers.num_rows) - first * BLOCK)
        values = np.empty(num_rows, kind)
        if num_rows == 0:
            return values
        self._read_into(memoryview(values.data).cast("B"), offset + first * BLOCK * kind.itemsize)
        for block in range(first, last):
            begin = (block - first) * BLOCK
            if zlib.crc32(values[begin : begin + BLOCK].data) != crc32s[block]:
                raise OSError(
                    f"{shown(self.path)}: the plan is damaged or has changed since it "
                    f"was loaded (rows from {block * BLOCK:,} on)"
                )
        return values

    def _read_bytes(self, offset: int, size: int) -> bytes:
        if not 0 <= size <= os.fstat(self._descriptor).st_size:
            raise pa.ArrowInvalid("a size in its metadata is out of range")
        data = bytearray(size)
        self._read_into(memoryview(data), offset)
        return bytes(data)

    def _read_into(self, view: memoryview, offset: int) -> None:
        """Fill a buffer; bytes after the end of the file are left as they are."""
        while view:
            if hasattr(os, "preadv"):
                size = os.preadv(self._descriptor, [view], offset)
            else:
                with self._lock:
                    os.lseek(self._descriptor, offset, os.SEEK_SET)
                    data = os.read(self._descriptor, min(len(view), 2**24))
                size = len(data)
                view[:size] = data
            if size == 0:
                return
            view, offset = view[size:], offset + size

    def _find_buffers(self) -> Buffers:
        """Read where the buffers are (Arrow columnar format, IPC file format)."""
        size = os.fstat(self._descriptor).st_size
        try:
            footer_size, _ = END.unpack(self._read_bytes(size - END.size, END.size))
            footer = root(self._read_bytes(size - END.size - footer_size, footer_size))
            begin, number = footer.vector(3)
            if number == 0:
                return Buffers(0, [], False)
            offset, metadata_size, _ = MESSAGE.unpack_from(footer.data, begin)
            # After a mark and the size of the metadata.
            message = root(self._read_bytes(offset + 8, metadata_size - 8))
            batch = message.table(2)
            begin, number = batch.vector(2)
            places = BUFFER.iter_unpack(message.data[begin : begin + number * BUFFER.size])
            body = offset + metadata_size
            found = [(body + at, num_bytes) for at, num_bytes in places]
            return Buffers(batch.number(0), found, batch.place(3) is not None)
        except (struct.error, OverflowError, OSError) as error:
            raise pa.ArrowInvalid("its metadata cannot be read") from error


class FlatTable:
    """A table in a FlatBuffers buffer; its fields are found by number."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self._at = at
        self._fields = at - self._integer("<i", at)

    def _integer(self, kind: str, at: int) -> int:
        if not 0 <= at < len(self.data):
            raise struct.error("out of range")
        return int(struct.unpack_from(kind, self.data, at)[0])

    def place(self, field: int) -> int | None:
        """Return where the value of a field is; None if it is absent."""
        at = 4 + 2 * field
        if at >= self._integer("<H", self._fields):
            return None
        offset = self._integer("<H", self._fields + at)
        return self._at + offset if offset else None

    def number(self, field: int) -> int:
        """Return a field of 64 bits; 0 if it is absent."""
        at = self.place(field)
        return 0 if at is None else self._integer("<q", at)

    def table(self, field: int) -> FlatTable:
        """Return a field that is a table."""
        at = self.place(field)
        if at is None:
            raise struct.error("no such field")
        return FlatTable(self.data, at + self._integer("<I", at))

    def vector(self, field: int) -> tuple[int, int]:
        """Return where the values of a vector begin, and their number."""
        at = self.place(field)
        if at is None:
            return 0, 0
        at += self._integer("<I", at)
        return at + 4, self._integer("<I", at)


def root(data: bytes) -> FlatTable:
    """Return the root of a FlatBuffers buffer."""
    return FlatTable(data, struct.unpack_from("<I", data)[0])
