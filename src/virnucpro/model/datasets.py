"""The records of FASTA files as PyTorch data sets: in a stream, or batch by batch of a plan."""

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
from virnucpro.files.fasta import Changes, ReadOptions, check_exists, make_scanner, scan_fasta
from virnucpro.files.record_file import RecordFile
from virnucpro.kernel.arguments import check_integer

logger = logging.getLogger(__name__)

Paths = str | PathLike[str] | Iterable[str | PathLike[str]]


class SequenceDataset(IterableDataset[Record]):
    r"""The records of FASTA files, as dicts with `id`, `sequence` and `file`.

    The workers of a DataLoader, and the ranks of `torch.distributed` where it is initialised, share
    the records: of n workers on all ranks together, each gets every n-th record, so one large file
    keeps all of them busy. All records come, each once, for any number of workers and ranks.

    Args:
        fasta_files: The paths of FASTA files, plain or compressed; or one path.
        max_length: Residues to keep of a sequence, from its N-terminal end; None for all. A record
            cut has ``truncated=True`` besides, and one WARNING tells how many were cut.
        options: How to read the files; None for the defaults of `ReadOptions`. One WARNING of the
            first worker tells what they changed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There are no files, one of them is not FASTA, or damaged or cut off; what
            reading alone can tell is raised where the records are iterated over.

    Cost: each worker reads all files and keeps its share.

    Example:
        >>> from tempfile import TemporaryDirectory
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
        self._has_told = False

    def __iter__(self) -> Iterator[Record]:
        rank, world_size = self._find_rank()
        worker = get_worker_info()
        if worker is not None:
            rank = rank * worker.num_workers + worker.id
            world_size *= worker.num_workers
        num_truncated = residues_lost = 0
        records = self._records(tells=rank == 0)
        for file, identifier, sequence in itertools.islice(records, rank, None, world_size):
            record: Record = {"id": identifier, "sequence": sequence, "file": file}
            if self.max_length is not None and len(sequence) > self.max_length:
                num_truncated += 1
                residues_lost += len(sequence) - self.max_length
                record.update(sequence=sequence[: self.max_length], truncated=True)
            yield record
        if num_truncated:
            logger.warning(
                "%s sequences exceed max_length (%d), truncated: %s residues lost",
                f"{num_truncated:,}",
                self.max_length,
                f"{residues_lost:,}",
            )

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned is in no process group: it gets the rank of the process whose
        # worker it is, as does any other copy that is used outside of a group.
        return {**self.__dict__, "_rank": self._find_rank()}

    def _find_rank(self) -> tuple[int, int]:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return self._rank or (0, 1)

    def _records(self, tells: bool) -> Iterator[tuple[str, str, str]]:
        changes = Changes()
        for path in self.fasta_files:
            scanner = make_scanner(self.options, keep_residues=True)
            for _ in scan_fasta(path, scanner):
                for identifier, sequence in scanner.take_records():
                    yield path, identifier, sequence
            changes += Changes(*scanner.changes)
        if tells and not self._has_told:
            self._has_told = True
            tell_changes(changes)


class PackedFastaDataset(Dataset[list[Record]]):
    r"""The batches of a plan for FASTA files: ``[i]`` reads the records of batch i, and no others.

    Records are as `GreedyPacker.pack_sequences` gives them, longest first and cut at the plan's
    limit with ``truncated=True``: dicts with `id`, `sequence`, `file`, `row` (the record's number
    through all files) and `tokens` (what the plan counted for it, which `VarlenCollator` checks).
    Batches are whole, so a DataLoader is given ``batch_size=None`` and a `VarlenCollator`; it may
    shuffle.

    No index is read or written. Compressed files are expanded into copies among the
    system's temporary files, which workers share.

    Args:
        fasta: The paths of FASTA files, plain or compressed, or one path.
        plan: A plan for the lengths of all their records, in order of files and records.
        options: How to read the files, as when the plan was made; None for the defaults of
            `ReadOptions`. One WARNING tells what they changed.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: A file cannot be read, or there is no room for a copy.
        ValueError: A file is not FASTA, damaged or cut off; the plan is for other sequences; or,
            where a batch is read, a file has changed since.

    Cost: each file is read once through, 16 bytes of memory a record; then one seek a record.
    Batches may be read from several threads and processes.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from virnucpro.data import GreedyPacker
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
        # The rows of each file, from one to the next.
        self._starts = np.cumsum([0, *map(len, self._files)])
        self._check_plan()
        tell_changes(sum((file.changes for file in self._files), Changes()))

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, batch: int) -> list[Record]:
        """Records of a batch."""
        rows = self.plan[batch]
        limits = self.plan.limits
        records: list[Record] = [{}] * len(rows)
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            file = self._files[number]
            places = np.flatnonzero(numbers == number)
            found = file.read((rows[places] - self._starts[number]).tolist())
            for place, (identifier, sequence) in zip(places.tolist(), found, strict=True):
                record: Record = {
                    "id": identifier,
                    "sequence": sequence[: limits.max_residues],
                    "file": file.path,
                    "row": int(rows[place]),
                    "tokens": limits.tokens(len(sequence)),
                }
                if len(sequence) > limits.max_residues:
                    record["truncated"] = True
                records[place] = record
        return records

    def _check_plan(self) -> None:
        """Require that the plan is one for the sequences of the files."""
        plan, rows = self.plan, self.plan.indices
        num_sequences = int(self._starts[-1])
        if num_sequences != plan.num_sequences:
            raise ValueError(
                f"the plan has {plan.num_sequences:,} sequences, the files have {num_sequences:,}"
            )
        if (rows < 0).any() or (rows >= num_sequences).any() or (np.bincount(rows) != 1).any():
            raise ValueError("the plan is damaged: it does not have each row once")
        lengths = np.concatenate([file.lengths for file in self._files])[rows]
        tokens = plan.limits.tokens(lengths)
        planned = slot_tokens(plan)
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


def slot_tokens(plan: PackingPlan) -> NDArray[np.int64]:
    """Return the tokens of each sequence in the order of a plan's indices, as its layout has it."""
    counts = plan.core.counts
    tokens = np.repeat(counts.tokens, counts.sequences)
    lengths = tokens - plan.special_tokens
    by_slot = np.empty_like(tokens)
    by_slot[plan.offsets[plan.assign(lengths)] + plan.slots(lengths)] = tokens
    return by_slot


def tell_changes(changes: Changes) -> None:
    """Log what reading changed, if anything."""
    if changes != Changes():
        logger.warning("sequences were changed as they were read: %s", changes)


def check_options(options: ReadOptions | None) -> ReadOptions:
    """Return options to read with."""
    if options is not None and not isinstance(options, ReadOptions):
        raise TypeError(f"options must be ReadOptions (got {type(options).__name__})")
    return options or ReadOptions()


def check_paths(paths: Paths, name: str) -> list[str]:
    """Return the paths of files, of which there is at least one and each can be read."""
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
            raise ValueError(f"{path}: no regular file, so it cannot be read more than once")
    return result
