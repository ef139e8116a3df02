"""Read the metadata of Arrow files, which pyarrow does not give.

The structures are those of Message.fbs and File.fbs (Arrow columnar format, IPC), encoded as
FlatBuffers. A structure out of bounds raises `struct.error`.
"""

from __future__ import annotations

import struct

# The last bytes of a file: the size of its footer, and the magic string.
END = struct.Struct("<i6s")
# Messages: an offset, the size of a message's metadata, the size of its body.
MESSAGE = struct.Struct("<qi4xq")
# Buffers: an offset, a size. Nodes of columns: a number of rows, a number of nulls.
BUFFER = NODE = struct.Struct("<qq")


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


def values(table: FlatTable, field: int, kind: struct.Struct) -> list[tuple[int, ...]]:
    """Return the numbers of each element of a field that is a vector."""
    begin, number = table.vector(field)
    return [kind.unpack_from(table.data, begin + at * kind.size) for at in range(number)]


def root(data: bytes) -> FlatTable:
    """Return the root of a FlatBuffers buffer."""
    return FlatTable(data, struct.unpack_from("<I", data)[0])
