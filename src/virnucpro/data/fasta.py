"""The records of FASTA files, and their IDs and lengths."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import pysam

# The empty block that ends every complete bgzip file (SAM specification, section 4.1.2).
BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def read_fasta(path: str | PathLike[str]) -> Iterator[tuple[str, str]]:
    r"""Yield the ID (the header up to the first blank) and the sequence of each record.

    Args:
        path: A FASTA file, plain, gzip or bgzip.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a directory.
        ValueError: The file is empty, has no record, or is damaged or cut off. Records before the
            damage have been yielded by then.
        OSError: The file cannot be read.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "proteins.fasta")
        ...     _ = path.write_text(">a first\nMKTAY\nIAK\n>b\nMK\n")
        ...     list(read_fasta(path))
        [('a', 'MKTAYIAK'), ('b', 'MK')]
    """
    path = Path(path)
    check_complete(path)
    num_records = 0
    # The library's own messages do not name the file.
    verbosity = pysam.set_verbosity(0)
    try:
        with pysam.FastxFile(str(path), persist=False) as records:
            for record in records:
                yield record.name or "", record.sequence or ""
                num_records += 1
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: record {num_records + 1:,} is not text in UTF-8") from error
    except ValueError as error:
        raise ValueError(f"{path}: damaged or cut off after record {num_records:,}") from error
    finally:
        pysam.set_verbosity(verbosity)
    if num_records == 0:
        raise ValueError(f"{path}: no FASTA record")


def read_lengths(path: str | PathLike[str]) -> Iterator[tuple[str, int]]:
    """Yield the ID and the number of residues of each record, with the errors of `read_fasta`."""
    for identifier, sequence in read_fasta(path):
        yield identifier, len(sequence)


def check_complete(path: Path) -> None:
    """Raise for what the library reads without a word, or not at all."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory")
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(14)
        if not start:
            raise ValueError(f"{path}: empty file")
        is_bgzip = start[:4] == BGZIP_END[:4] and start[12:14] == BGZIP_END[12:14]
        file.seek(max(0, path.stat().st_size - len(BGZIP_END)))
        if is_bgzip and file.read() != BGZIP_END:
            raise ValueError(f"{path}: cut off: the bgzip end-of-file block is missing")
