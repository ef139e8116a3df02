"""The records of FASTA files as PyTorch data sets: in a stream, or batch by batch of a plan."""

from __future__ import annotations

import bisect
import itertools
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pysam
import torch.distributed
from numpy.typing import NDArray
from pysam.utils import SamtoolsError
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from virnucpro.data.arguments import check_integer
from virnucpro.data.fasta import check_exists, read_fasta
from virnucpro.data.plan import PackingPlan

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Paths = str | PathLike[str] | Iterable[str | PathLike[str]]


class SequenceDataset(IterableDataset[Record]):
    r"""The records of FASTA files, as dicts with `id`, `sequence` and `file`.

    The workers of a DataLoader, and the ranks of `torch.distributed` where it is initialised, share
    the records: of n workers on all ranks together, each gets every n-th record, so one large file
    keeps all of them busy. All records come, each once, for any number of workers and ranks.

    Args:
        fasta_files: The paths of FASTA files, plain, gzip or bgzip; or one path.
        max_length: Residues to keep of a sequence, from its N-terminal end; None for all. A record
            cut has ``truncated=True`` besides, and one WARNING tells how many were cut.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There are no files, one of them is no FASTA file, or damaged or cut off; what
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

    def __init__(self, fasta_files: Paths, max_length: int | None = None) -> None:
        self.fasta_files = check_paths(fasta_files, "fasta_files")
        if max_length is not None:
            max_length = check_integer(max_length, "max_length", 1)
        self.max_length = max_length
        self._rank: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Record]:
        rank, world_size = self._find_rank()
        worker = get_worker_info()
        if worker is not None:
            rank = rank * worker.num_workers + worker.id
            world_size *= worker.num_workers
        num_truncated = residues_lost = 0
        for file, identifier, sequence in itertools.islice(self._records(), rank, None, world_size):
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

    def _records(self) -> Iterator[tuple[str, str, str]]:
        for path in self.fasta_files:
            for identifier, sequence in read_fasta(path):
                yield path, identifier, sequence


class PackedFastaDataset(Dataset[list[Record]]):
    r"""The batches of a plan for FASTA files: ``[i]`` reads the records of batch i, and no others.

    Records are as `GreedyPacker.pack_sequences` gives them, with their `file`: dicts with `id`,
    `sequence` and `file`, longest first, cut at the plan's limit with ``truncated=True``. Batches
    are whole, so a DataLoader is given ``batch_size=None`` and a `VarlenCollator`; it may shuffle.

    Args:
        fasta: The paths of FASTA files, plain or bgzip, or one path. An index (``.fai``) is made
            beside each that has none.
        plan: A plan for the lengths of all their records, in order of files and records.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: A file cannot be indexed, such as one in gzip or with lines of uneven length.
        ValueError: An ID is there twice in a file, which leaves open what it names; the plan is for
            other sequences, or an index older than its file.

    Cost: each file is read once through, to see that its index has all of it; then one seek a
    record. Batches may be read from several threads and processes.

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

    def __init__(self, fasta: Paths, plan: PackingPlan) -> None:
        self.fasta_files = check_paths(fasta, "fasta")
        if not isinstance(plan, PackingPlan):
            raise TypeError(f"plan must be a PackingPlan (got {type(plan).__name__})")
        self.plan = plan
        self._handles = threading.local()
        for path in self.fasta_files:
            make_index(path)
        files = self._open_files()
        # Where each file's records begin, among those that have residues.
        num_indexed = [len(file.references) for file in files]
        self._starts = list(itertools.accumulate(num_indexed, initial=0))
        # The path and ID of records without residues, which indexes lack, by row.
        self._empty: dict[int, tuple[str, str]] = {}
        row = 0
        for path, file in zip(self.fasta_files, files, strict=True):
            row = self._find_empty(path, len(file.references), row)
        self._empty_rows = list(self._empty)
        lengths = np.concatenate([np.array(file.lengths, np.int64) for file in files])
        places = np.array(self._empty_rows, np.int64) - np.arange(len(self._empty))
        check_plan(plan, np.insert(lengths, places, 0))

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, batch: int) -> list[Record]:
        """Records of a batch."""
        files = self._open_files()
        return [self._read(files, row) for row in self.plan[batch].tolist()]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_handles"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._handles = threading.local()

    def _find_empty(self, path: str, num_indexed: int, row: int) -> int:
        """Add the records of a file that its index lacks; return the row after its last."""
        first = row
        empty = {}
        for identifier, sequence in read_fasta(path):
            if not sequence:
                empty[row] = (path, identifier)
            row += 1
        if row - first != num_indexed + len(empty):
            check_unique(path)
            raise ValueError(f"{path}.fai: not the index of {path}; remove it")
        self._empty.update(empty)
        return row

    def _read(self, files: list[pysam.FastaFile], row: int) -> Record:
        if row in self._empty:
            path, identifier = self._empty[row]
            return {"id": identifier, "sequence": "", "file": path}
        indexed = row - bisect.bisect_left(self._empty_rows, row)
        number = bisect.bisect_right(self._starts, indexed) - 1
        path, file = self.fasta_files[number], files[number]
        limit = self.plan.max_sequence_length
        identifier = file.references[indexed - self._starts[number]]
        sequence = file.fetch(identifier, 0, min(limit, 2**31 - 1))
        record: Record = {"id": identifier, "sequence": sequence, "file": path}
        if file.get_reference_length(identifier) > limit:
            record["truncated"] = True
        return record

    def _open_files(self) -> list[pysam.FastaFile]:
        # A file is shared neither with threads nor with a process that was forked: all would move
        # its position.
        handles = self._handles
        if getattr(handles, "process", None) != os.getpid():
            handles.files = [pysam.FastaFile(path) for path in self.fasta_files]
            handles.process = os.getpid()
        files: list[pysam.FastaFile] = handles.files
        return files


def check_paths(paths: Paths, name: str) -> list[str]:
    """Return the paths of files, of which there is at least one and each can be read."""
    if isinstance(paths, (str, PathLike)):
        paths = [paths]
    result = [os.fspath(path) for path in paths]
    if not result:
        raise ValueError(f"{name} must name at least one file")
    for path in result:
        check_exists(Path(path))
        if not Path(path).is_file():
            raise ValueError(f"{path}: no regular file, so it cannot be read more than once")
    return result


def make_index(path: str) -> None:
    """Make the index of a FASTA file where there is none, all of it at once."""
    index = Path(f"{path}.fai")
    if index.exists():
        if index.stat().st_mtime < Path(path).stat().st_mtime:
            raise ValueError(f"{index}: older than {path}; remove it, and a new one is made")
        return
    # The library's own warnings do not name the file.
    verbosity = pysam.set_verbosity(0)
    try:
        with TemporaryDirectory(prefix=".virnucpro.", dir=Path(path).absolute().parent) as folder:
            gzi, fai = Path(folder, "gzi"), Path(folder, "fai")
            pysam.faidx(path, "--fai-idx", str(fai), "--gzi-idx", str(gzi))
            # The other one first: with the `.fai`, the index is there.
            if gzi.exists():
                gzi.replace(f"{path}.gzi")
            fai.replace(index)
    except (OSError, SamtoolsError) as error:
        raise OSError(
            f"{path}: cannot be indexed; there must be room for the index beside it, and no gzip "
            "(bgzip will do), blank lines, lines of uneven length or empty last record in it"
        ) from error
    finally:
        pysam.set_verbosity(verbosity)


def check_unique(path: str) -> None:
    """Require that a file has no ID twice."""
    seen: set[str] = set()
    for identifier, _ in read_fasta(path):
        if identifier in seen:
            raise ValueError(f"{path}: more than one record has the ID {identifier!r}")
        seen.add(identifier)


def check_plan(plan: PackingPlan, lengths: NDArray[np.int64]) -> None:
    """Require that a plan is one for sequences of these lengths."""
    if len(lengths) != plan.num_sequences:
        raise ValueError(
            f"the plan has {plan.num_sequences:,} sequences, the files have {len(lengths):,}"
        )
    tokens = np.minimum(lengths, plan.max_sequence_length) + plan.special_tokens
    ends = np.cumsum(tokens[plan.indices])[plan.offsets[1:] - 1]
    wrong = np.flatnonzero(np.diff(ends, prepend=0) != plan.batch_tokens)
    if len(wrong):
        raise ValueError(
            f"the plan is for other sequences: those of its batch {wrong[0]:,} have other lengths"
        )
