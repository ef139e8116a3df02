"""Writes FASTA files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pysam


def fasta(proteins: Iterable[tuple[str, str]]) -> bytes:
    """FASTA with lines of 60 letters."""
    lines = []
    for name, sequence in proteins:
        lines.append(f">{name} some protein\n")
        lines += [sequence[i : i + 60] + "\n" for i in range(0, len(sequence), 60)]
    return "".join(lines).encode()


def bgzip(path: Path, content: bytes) -> Path:
    """Write a file in bgzip."""
    plain = path.with_suffix(".plain")
    plain.write_bytes(content)
    pysam.tabix_compress(str(plain), str(path), force=True)
    plain.unlink()
    return path
