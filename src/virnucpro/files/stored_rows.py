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

from virnucpro.files.flat_buffers import BUFFER, END, MESSAGE, NODE, root, values
from virnucpro.files.plan_schema import BLOCK, IF_SPLIT, TEXTS, integer_of
from virnucpro.memory import check_memory
from virnucpro.text import shown


class Buffers(NamedTuple):
    """Where the buffers of the record batch of an Arrow file are.

    Attributes:
        num_rows: The number of rows.
        num_nulls: The number of nulls of each column.
        places: Offset in the file, and size in bytes, of each buffer.
        is_compressed: Whether they are compressed.
    """

    num_rows: int
    num_nulls: list[int]
    places: list[tuple[int, int]]
    is_compressed: bool


class StoredRows:
    """Columns of integers of an Arrow file, of which only the parts that are asked for are read.

    Whatever happens to the file, what is read is what was written, or an error is raised: each
    block is compared with its checksum whenever it is read. The file stays open, so it may also be
    replaced or deleted. Threads and forked processes may read at the same time.

    Args:
        path: The file.
        name: What messages call it; by default its absolute path.

    Raises:
        ValueError: It is not an Arrow file with one record batch, or damaged.
        OSError: The file cannot be read.
    """

    def __init__(self, path: Path, name: str = "") -> None:
        self.path = path.absolute()
        self.name = name or str(self.path)
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self._lock = threading.Lock()
        self._last: tuple[str, int, NDArray[Any]] | None = None
        self.buffers = self._find_buffers()
        self._columns: dict[str, tuple[int, Any, NDArray[np.int64]]] = {}

    def choose(
        self, schema: pa.Schema, checksums: Mapping[str, NDArray[np.int64]], num_dropped: int
    ) -> None:
        """Choose the columns to read, those with checksums.

        Raises:
            ValueError: The file does not have these columns as plain integers, or they have other
                nulls than those of dropped rows.
        """
        num_rows, num_nulls, places, _ = self.buffers
        if checksums.keys() != {"row", *IF_SPLIT} & set(schema.names):
            raise pa.ArrowInvalid("its checksums are those of other columns")
        first = 0
        for number, field in enumerate(schema):
            if field.name in checksums:
                nulls = num_dropped if field.name in IF_SPLIT else 0
                if num_rows and (len(num_nulls) != len(schema) or num_nulls[number] != nulls):
                    raise pa.ArrowInvalid(f"column {field.name!r} contains nulls")
                kind, crc32s = integer_of(field.type), checksums[field.name]
                # Before the values is the bitmap of nulls.
                offset, num_bytes = places[first + 1] if first + 1 < len(places) else (0, 0)
                size = num_rows * kind.itemsize
                is_whole = size <= num_bytes and 0 <= offset <= self._size() - size
                if not is_whole or len(crc32s) != -(-num_rows // BLOCK):
                    raise pa.ArrowInvalid(f"column {field.name!r} is incomplete")
                self._columns[field.name] = offset, kind, crc32s
            first += 3 if field.type in TEXTS else 2

    def read(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Return the values of a range of rows in a new array.

        Raises:
            OSError: The file has changed since it was opened, or cannot be read.
            ValueError: The number of a row or fragment is out of range.

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
        check_memory(num_rows * kind.itemsize, f"{shown(self.name)}: {num_rows:,} rows")
        values = np.empty(num_rows, kind)
        if num_rows == 0:
            return values
        path, begin = shown(self.name), offset + first * BLOCK * kind.itemsize
        try:
            is_whole = self._read_into(memoryview(values.data).cast("B"), begin)
        except OSError as error:
            raise OSError(f"{path}: cannot be read ({error.strerror})") from error
        for block in range(first, last):
            begin = (block - first) * BLOCK
            if not is_whole or zlib.crc32(values[begin : begin + BLOCK].data) != crc32s[block]:
                raise OSError(
                    f"{path}: the plan is damaged or has changed since it was loaded "
                    f"(rows from {block * BLOCK:,} on)"
                )
        is_number = name in ("row", "fragment")
        if is_number and not 0 <= values.min() <= values.max() < self.buffers.num_rows:
            raise ValueError(f"{path}: damaged: a number in column {name} is out of range")
        return values

    def _read_bytes(self, offset: int, size: int) -> bytes:
        if not 0 <= size <= self._size():
            raise pa.ArrowInvalid("a size in its metadata is out of range")
        data = bytearray(size)
        if not self._read_into(memoryview(data), offset):
            raise pa.ArrowInvalid("it ends too early")
        return bytes(data)

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _read_into(self, view: memoryview, offset: int) -> bool:
        """Fill a buffer from a place in the file on; return False if the file ends before."""
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
                return False
            view, offset = view[size:], offset + size
        return True

    def _find_buffers(self) -> Buffers:
        """Read where the buffers are (Arrow columnar format, IPC file format)."""
        size = self._size()
        try:
            footer_size, _ = END.unpack(self._read_bytes(size - END.size, END.size))
            footer = root(self._read_bytes(size - END.size - footer_size, footer_size))
            blocks = values(footer, 3, MESSAGE)
            if not blocks:
                return Buffers(0, [], [], False)
            ((offset, metadata_size, _),) = blocks
            # After a mark and the size of the metadata.
            batch = root(self._read_bytes(offset + 8, metadata_size - 8)).table(2)
            body = offset + metadata_size
            places = [(body + at, num_bytes) for at, num_bytes in values(batch, 2, BUFFER)]
            num_nulls = [nulls for _, nulls in values(batch, 1, NODE)]
            return Buffers(batch.number(0), num_nulls, places, batch.place(3) is not None)
        except (struct.error, ValueError, OverflowError, OSError) as error:
            raise pa.ArrowInvalid("its metadata cannot be read") from error
