"""Compresses FASTA files."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile

from fasta import bgzip


def zstd(content: bytes) -> bytes:
    try:
        from compression import zstd
    except ModuleNotFoundError:
        from backports import zstd
    # As the program `zstd` does.
    options = {zstd.CompressionParameter.checksum_flag: 1}
    compressed: bytes = zstd.compress(content, options=options)
    return compressed


def bgzipped(content: bytes) -> bytes:
    with NamedTemporaryFile(suffix=".gz") as file:
        return bgzip(Path(file.name), content).read_bytes()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bgzip": bgzipped,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
}
