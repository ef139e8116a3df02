"""The memory that the messages of Arrow files and streams take, found before they are read.

pyarrow allocates and decompresses whatever a message says. This reads the fields that tell how much
(Arrow columnar format: Message.fbs, File.fbs).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from virnucpro.files.flat_buffers import BUFFER, END, MESSAGE, root, values
from virnucpro.memory import check_memory

MAGIC = b"ARROW1"
CONTINUATION = 0xFFFFFFFF
# Kinds of messages with columns.
DICTIONARY, RECORDS = 2, 3
# In the metadata of compressed messages of version 4.
OLD_COMPRESSION = b"ARROW:experimental_compression"


def check_messages(source: Any) -> bool:
    """Check a random access file of pyarrow; return whether it is an Arrow file, not a stream.

    Raises:
        ValueError: It is damaged.
        MemoryError: A message needs more memory than there is.
    """
    source.seek(0)
    is_file = bool(source.read(len(MAGIC)) == MAGIC)
    try:
        for start in list_blocks(source) if is_file else list_messages(source):
            check_memory(decompressed_size(source, start), "compressed columns")
    except (struct.error, IndexError) as error:
        raise ValueError("damaged: neither an Arrow file nor a stream") from error
    return is_file


def list_blocks(source: Any) -> Iterator[int]:
    """Yield the position of each message with columns of a file."""
    end = source.size() - END.size
    length, magic = END.unpack(read_at(source, end, END.size))
    if magic != MAGIC:
        raise ValueError("incomplete: it does not end as an Arrow file")
    footer = root(read_at(source, end - length, length))
    for number in (2, 3):
        for start, *_ in values(footer, number, MESSAGE):
            yield start


def list_messages(source: Any) -> Iterator[int]:
    """Yield the position of each message of a stream."""
    start = 0
    while start < source.size():
        metadata, body = read_metadata(source, start)
        if not metadata:
            break
        yield start
        start = body + root(metadata).number(3)
        if start < body:
            raise struct.error


def decompressed_size(source: Any, start: int) -> int:
    """Return the bytes of the columns of a message if they are compressed, else 0."""
    metadata, body = read_metadata(source, start)
    message = root(metadata)
    kind = message.place(1)
    if kind is None or metadata[kind] not in (DICTIONARY, RECORDS):
        return 0
    batch = message.table(2)
    if metadata[kind] == DICTIONARY:
        batch = batch.table(1)
    if batch.place(3) is None and OLD_COMPRESSION not in metadata:
        return 0
    total = 0
    for offset, length in values(batch, 2, BUFFER):
        if length >= 8:
            (size,) = struct.unpack("<q", read_at(source, body + offset, 8))
            # -1 marks a buffer that is not compressed.
            total += length if size < 0 else size
    return total


def read_metadata(source: Any, start: int) -> tuple[bytes, int]:
    """Return the metadata of a message, none at the end of a stream, and where its body begins."""
    (length,) = struct.unpack("<I", read_at(source, start, 4))
    start += 4
    if length == CONTINUATION:
        (length,) = struct.unpack("<I", read_at(source, start, 4))
        start += 4
    return read_at(source, start, length), start + length


def read_at(source: Any, start: int, length: int) -> bytes:
    """Return a range of a file."""
    if min(start, length) < 0 or start + length > source.size():
        raise struct.error
    source.seek(start)
    return bytes(source.read(length))
