"""Damages the bytes of files."""

from __future__ import annotations

import random

# The errors that name a damage.
NAMED = (ValueError, OSError, OverflowError, MemoryError)


def flip(data: bytes, draw: random.Random) -> bytes:
    """Flip a few bits."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    """Leave out the end, or a piece."""
    begin = draw.randrange(len(data))
    return data[:begin] + data[draw.choice([len(data), begin + draw.randrange(64)]) :]


def extend(data: bytes, draw: random.Random) -> bytes:
    """Insert bytes, mostly at the end."""
    at = draw.choice([len(data), draw.randrange(len(data))])
    return data[:at] + draw.choice([bytes(64), draw.randbytes(40), data[-100:]]) + data[at:]


def overwrite(data: bytes, draw: random.Random) -> bytes:
    """Replace a range by zeros, ones, or another range."""
    size = draw.choice([1, 4, 8, 64, 512])
    at, other = draw.randrange(len(data)), draw.randrange(len(data))
    piece = draw.choice([bytes(size), b"\xff" * size, data[other : other + size]])
    return data[:at] + piece + data[at + len(piece) :]
