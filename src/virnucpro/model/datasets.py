"""PyTorch data sets of streams, such as the records of FASTA files."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any

import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from virnucpro.data.records import Record
from virnucpro.files.fasta import (
    ReadChanges,
    ReadOptions,
    check_options,
    make_scanner,
    scan_fasta,
)
from virnucpro.files.places import check_regular
from virnucpro.kernel.arguments import check_integer
from virnucpro.model.ranks import find_rank
from virnucpro.text import quoted

logger = logging.getLogger(__name__)

Paths = str | PathLike[str] | Iterable[str | PathLike[str]]


class SharedDataset(IterableDataset[Any]):
    """A stream that ranks and the workers of their DataLoaders share out among themselves.

    If `is_shared` is set to False, each of them yields all items.
    """

    is_shared = True
    _rank: tuple[int, int] | None = None

    def find_share(self) -> tuple[int, int]:
        """Return i and n if this worker of this rank gets every n-th item, starting with item i."""
        return self.find_place() if self.is_shared else (0, 1)

    def find_place(self) -> tuple[int, int]:
        """Return the number of this worker among those of all ranks, and their number.

        The items of a rank are in the same order with any number of workers, since a DataLoader
        takes an item from each worker in turn.
        """
        rank, world_size = self.find_rank()
        worker = get_worker_info()
        if worker is None:
            return rank, world_size
        return rank + world_size * worker.id, world_size * worker.num_workers

    def find_rank(self) -> tuple[int, int]:
        """Return the rank of this process, and the number of ranks."""
        distributed = torch.distributed
        is_member = distributed.is_available() and distributed.is_initialized()
        if is_member or self._rank is None or self._rank == (0, 1):
            return find_rank()
        return self._rank

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker is not in the process group, so its copy carries the rank of the process
        # that started it.
        return {**self.__dict__, "_rank": self.find_rank()}


class SequenceDataset(SharedDataset):
    r"""The records of FASTA files, as dicts with `id`, `sequence` and `file`.

    The records are split among ranks, those of `torch.distributed` or torchrun, and among the
    workers of their DataLoaders: of n workers on all ranks together, each yields every n-th record,
    so even a single large file keeps all of them busy. Each record is yielded exactly once.

    Args:
        fasta_files: The paths of FASTA files, plain or compressed, or a single path.
        max_length: Maximum residues kept per sequence, from its N-terminus; unlimited if None. A
            truncated record has ``truncated=True``; each worker logs one WARNING per epoch with
            their number.
        options: How to read the files; the defaults of `ReadOptions` if None. One WARNING, from the
            first worker, reports the changes made.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: There are no files, or a file is not FASTA, damaged or incomplete. The content
            of the files is checked during iteration.

    Cost: each worker reads all files and keeps its share of the records.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from virnucpro.data import SequenceDataset
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "proteins.fasta")
        ...     _ = path.write_text(">a\nMKTAY\n>b\nMK\n")
        ...     for record in SequenceDataset(path, max_length=3):
        ...         print(record["id"], record["sequence"])
        a MKT
        b MK
    """

    def __init__(
        self,
        fasta_files: Paths,
        max_length: int | None = None,
        options: ReadOptions | None = None,
    ) -> None:
        self.fasta_files = check_paths(fasta_files, "fasta_files")
        self.options = check_options(options)
        if max_length is not None:
            max_length = check_integer(max_length, "max_length", 1)
        self.max_length = max_length
        self._has_warned = False

    def __iter__(self) -> Iterator[Record]:
        share, num_shares = self.find_share()
        num_truncated = truncated_residues = 0
        is_first = self.find_place()[0] == 0
        records = self._records(warns=is_first)
        for file, identifier, sequence in itertools.islice(records, share, None, num_shares):
            record: Record = {"id": identifier, "sequence": sequence, "file": file}
            if self.max_length is not None and len(sequence) > self.max_length:
                num_truncated += 1
                truncated_residues += len(sequence) - self.max_length
                record.update(sequence=sequence[: self.max_length], truncated=True)
            yield record
        if num_truncated and (self.is_shared or is_first):
            logger.warning(
                "%s sequences exceed max_length (%d), truncating: %s residues removed",
                f"{num_truncated:,}",
                self.max_length,
                f"{truncated_residues:,}",
            )

    def _records(self, warns: bool) -> Iterator[tuple[str, str, str]]:
        changes = ReadChanges()
        for path in self.fasta_files:
            scanner = make_scanner(self.options, keep_residues=True)
            for _ in scan_fasta(path, scanner):
                for identifier, sequence in scanner.take_records():
                    yield path, identifier, sequence
            changes += ReadChanges(*scanner.changes)
        if warns and not self._has_warned:
            self._has_warned = True
            warn_of_changes(changes)


def warn_of_changes(changes: ReadChanges) -> None:
    """Warn of changes made to sequences while reading, if any."""
    if changes != ReadChanges():
        logger.warning("sequences were changed while reading: %s", changes)


def check_paths(paths: Paths, name: str) -> list[str]:
    """Return the paths of one or more regular files as strings."""
    if isinstance(paths, (str, PathLike)):
        paths = [paths]
    if not isinstance(paths, Iterable):
        raise TypeError(f"{name} must be a path or a list of paths (got {quoted(paths)})")
    result = [os.fspath(path) for path in paths]
    if not result:
        raise ValueError(f"{name} must name at least one file")
    for path in result:
        check_regular(path)
    return result
