"""PyTorch data sets of FASTA files: a stream of records, or the batches of a plan."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed
from numpy.typing import NDArray
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from virnucpro.data.plan import PackingPlan
from virnucpro.data.records import Record
from virnucpro.files.fasta import ReadChanges, ReadOptions, check_exists, make_scanner, scan_fasta
from virnucpro.files.record_file import RecordFile
from virnucpro.kernel.arguments import check_integer

logger = logging.getLogger(__name__)

Paths = str | PathLike[str] | Iterable[str | PathLike[str]]


class SequenceDataset(IterableDataset[Record]):
    r"""The records of FASTA files, as dicts with `id`, `sequence` and `file`.

    The records are split among the workers of a DataLoader and, if `torch.distributed` is
    initialized, among its ranks: of n workers on all ranks together, each yields every n-th record,
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
        self._rank: tuple[int, int] | None = None
        self._has_warned = False

    def __iter__(self) -> Iterator[Record]:
        rank, world_size = self._find_rank()
        worker = get_worker_info()
        if worker is not None:
            rank = rank * worker.num_workers + worker.id
            world_size *= worker.num_workers
        num_truncated = truncated_residues = 0
        records = self._records(warns=rank == 0)
        for file, identifier, sequence in itertools.islice(records, rank, None, world_size):
            record: Record = {"id": identifier, "sequence": sequence, "file": file}
            if self.max_length is not None and len(sequence) > self.max_length:
                num_truncated += 1
                truncated_residues += len(sequence) - self.max_length
                record.update(sequence=sequence[: self.max_length], truncated=True)
            yield record
        if num_truncated:
            logger.warning(
                "%s sequences exceed max_length (%d), truncating: %s residues removed",
                f"{num_truncated:,}",
                self.max_length,
                f"{truncated_residues:,}",
            )

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker is not in the process group, so its copy carries the rank of the process
        # that started it.
        return {**self.__dict__, "_rank": self._find_rank()}

    def _find_rank(self) -> tuple[int, int]:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return self._rank or (0, 1)

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


class PackedFastaDataset(Dataset[list[Record]]):
    r"""The batches of a plan for FASTA files; ``[i]`` reads the records of batch i.

    Records are as `GreedyPacker.pack_sequences` returns them, longest first and truncated to the
    plan's limit with ``truncated=True``. They are dicts with `id`, `sequence`, `file`, `row` (the
    number of the record across all files) and `tokens` (the number of tokens that the plan counted,
    which `VarlenCollator` checks). Items are whole batches, so use a DataLoader with
    ``batch_size=None`` and a `VarlenCollator`; the DataLoader may shuffle.

    Index files are neither read nor written. Compressed files are decompressed to temporary files,
    which workers share.

    Args:
        fasta: The paths of FASTA files, plain or compressed, or a single path.
        plan: A plan for the lengths of all their records, in the order of files and records.
        options: How to read the files, the same as when the plan was made; the defaults of
            `ReadOptions` if None. One WARNING reports the changes made.

    Raises:
        FileNotFoundError: A file does not exist.
        OSError: A file cannot be read, or there is no space for a temporary file.
        ValueError: A file is not FASTA, damaged or incomplete, or the plan is for other sequences.
            When a batch is read: a file has changed.

    Cost: each file is read once, and takes 16 bytes of memory per record; then one seek per record.
    Batches may be read from several threads and processes.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from virnucpro.data import GreedyPacker, PackedFastaDataset
        >>> plan = GreedyPacker(max_tokens_per_batch=12).pack_lengths([5, 8, 2])
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "proteins.fasta")
        ...     _ = path.write_text(">a\nMKTAY\n>b\nMKTAYIAK\n>c\nMK\n")
        ...     batches = PackedFastaDataset(path, plan)
        ...     [[record["id"] for record in batches[i]] for i in range(len(batches))]
        [['b'], ['a', 'c']]
    """

    def __init__(self, fasta: Paths, plan: PackingPlan, options: ReadOptions | None = None) -> None:
        self.fasta_files = check_paths(fasta, "fasta")
        if not isinstance(plan, PackingPlan):
            raise TypeError(f"plan must be a PackingPlan (got {type(plan).__name__})")
        self.plan = plan
        self.options = check_options(options)
        self._files = [RecordFile(path, self.options) for path in self.fasta_files]
        # Row of the first record of each file, and the number of rows.
        self._starts = np.cumsum([0, *map(len, self._files)])
        self._check_plan()
        warn_of_changes(sum((file.changes for file in self._files), ReadChanges()))

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, batch: int) -> list[Record]:
        """Return the records of a batch."""
        rows = self.plan[batch]
        limits = self.plan.limits
        records: list[Record] = [{}] * len(rows)
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            file = self._files[number]
            slots = np.flatnonzero(numbers == number)
            found = file.read((rows[slots] - self._starts[number]).tolist())
            for slot, (identifier, sequence) in zip(slots.tolist(), found, strict=True):
                record: Record = {
                    "id": identifier,
                    "sequence": sequence[: limits.max_residues],
                    "file": file.path,
                    "row": int(rows[slot]),
                    "tokens": limits.tokens(len(sequence)),
                }
                if len(sequence) > limits.max_residues:
                    record["truncated"] = True
                records[slot] = record
        return records

    def _check_plan(self) -> None:
        """Raise if the plan is not for the sequences of the files."""
        plan, rows = self.plan, self.plan.indices
        num_sequences = int(self._starts[-1])
        if num_sequences != plan.num_sequences:
            raise ValueError(
                f"the plan has {plan.num_sequences:,} sequences, the files have {num_sequences:,}"
            )
        if (rows < 0).any() or (rows >= num_sequences).any() or (np.bincount(rows) != 1).any():
            raise ValueError("the plan is damaged: it does not contain each row exactly once")
        lengths = np.concatenate([file.lengths for file in self._files])[rows]
        tokens = plan.limits.tokens(lengths)
        planned = tokens_by_slot(plan)
        wrong = np.flatnonzero(tokens != planned)
        if len(wrong):
            at = int(wrong[np.argmin(rows[wrong])])
            number = int(np.searchsorted(self._starts, rows[at], side="right")) - 1
            file, record = self._files[number], int(rows[at] - self._starts[number])
            raise ValueError(
                f"the plan is for other sequences: record {record + 1:,} of {file.path} "
                f"({file.read([record])[0][0]!r}, row {rows[at]:,}) has {lengths[at]:,} residues, "
                f"which is {tokens[at]:,} tokens; the plan has {planned[at]:,} "
                f"({len(wrong):,} such records)"
            )


def tokens_by_slot(plan: PackingPlan) -> NDArray[np.int64]:
    """Return the tokens that a plan counted for each sequence, in the order of its indices."""
    counts = plan.core.counts
    tokens = np.repeat(counts.tokens, counts.sequences)
    lengths = tokens - plan.special_tokens
    by_slot = np.empty_like(tokens)
    by_slot[plan.offsets[plan.assign(lengths)] + plan.slots(lengths)] = tokens
    return by_slot


def warn_of_changes(changes: ReadChanges) -> None:
    """Warn of changes made to sequences while reading, if any."""
    if changes != ReadChanges():
        logger.warning("sequences were changed while reading: %s", changes)


def check_options(options: ReadOptions | None) -> ReadOptions:
    """Return checked options; the defaults if None."""
    if options is not None and not isinstance(options, ReadOptions):
        raise TypeError(f"options must be ReadOptions (got {type(options).__name__})")
    return options or ReadOptions()


def check_paths(paths: Paths, name: str) -> list[str]:
    """Return the paths of one or more regular files as strings."""
    if isinstance(paths, (str, PathLike)):
        paths = [paths]
    if not isinstance(paths, Iterable):
        raise TypeError(f"{name} must be a path or a list of paths (got {paths!r})")
    result = [os.fspath(path) for path in paths]
    if not result:
        raise ValueError(f"{name} must name at least one file")
    for path in result:
        check_exists(Path(path))
        if not Path(path).is_file():
            raise ValueError(f"{path}: not a regular file, so it cannot be read more than once")
    return result
