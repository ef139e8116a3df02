"""Read structs of Thrift's compact protocol, in which Parquet files store their metadata."""

from __future__ import annotations

import struct
from typing import Any

import pyarrow as pa

# Structs and lists inside one another; Parquet's have fewer.
MAX_DEPTH = 16


class CompactReader:
    r"""Reads structs from bytes, as dicts of their fields by ID.

    Integers are int, text and bytes are bytes, sets are lists. Maps, which Parquet does not use,
    are not read.

    Args:
        data: The bytes.
        at: Where the first struct begins.

    Attributes:
        at: Where the last struct that was read ends.

    Example:
        >>> CompactReader(b"\x15\x06\x18\x02ab\x00").read_struct()
        {1: 3, 2: b'ab'}
    """

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    def read_struct(self, depth: int = 0) -> dict[int, Any]:
        """Return the fields of the next struct.

        Raises:
            ArrowInvalid: The bytes are not a struct, or end in it.
        """
        if depth > MAX_DEPTH:
            raise pa.ArrowInvalid("its metadata is nested too deeply")
        fields: dict[int, Any] = {}
        field = 0
        while (head := self._take(1)[0]) != 0:
            field = field + (head >> 4) if head >> 4 else self._integer()
            if field in fields:
                raise pa.ArrowInvalid(f"field {field} occurs twice in its metadata")
            # A field of type bool is its type.
            fields[field] = head & 15 == 1 if head & 15 in (1, 2) else self._value(head & 15, depth)
        return fields

    def skip(self, size: int) -> None:
        """Leave out bytes before the next struct."""
        if size < 0 or self.at + size > len(self.data):
            raise pa.ArrowInvalid("its metadata has a size that is out of range")
        self.at += size

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):
            return self._take(1)[0]
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 7:
            return struct.unpack("<d", self._take(8))[0]
        if kind == 8:
            return self._take(self._unsigned())
        if kind in (9, 10):
            return self._list(depth + 1)
        if kind == 12:
            return self.read_struct(depth + 1)
        raise pa.ArrowInvalid(f"its metadata has a value of unknown type {kind}")

    def _list(self, depth: int) -> list[Any]:
        head = self._take(1)[0]
        size = head >> 4 if head >> 4 < 15 else self._unsigned()
        if size > len(self.data) - self.at:
            raise pa.ArrowInvalid("its metadata ends in a list")
        return [self._value(head & 15, depth) for _ in range(size)]

    def _integer(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise pa.ArrowInvalid("its metadata has an integer of more than 64 bits")

    def _take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise pa.ArrowInvalid("its metadata ends too early")
        self.at, begin = end, self.at
        return self.data[begin:end]
