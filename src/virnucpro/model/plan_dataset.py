"""The batches of a plan file that has the residues too, read forward."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from virnucpro import kernel
from virnucpro.data.records import Record
from virnucpro.files.plan_reader import open_plan
from virnucpro.model.datasets import SharedDataset
from virnucpro.model.packed_datasets import PlannedBatch, kept_limits
from virnucpro.model.ranks import check_rank
from virnucpro.text import shown

# The columns that are read.
COLUMNS = (
    *("batch", "row", "fragment", "id", "start", "stop"),
    *("tokens", "truncated", "file", "sequence"),
)


class PackedPlanDataset(SharedDataset):
    r"""The batches of a plan that has the residues, as lists of records; read from start to end.

    For plans that ``virnucpro pack --sequences`` or ``pack_files(..., sequences=True)`` wrote. The
    records are those of `PackedFastaDataset`, but the FASTA files are not needed. Use a DataLoader
    with ``batch_size=None`` and a `VarlenCollator`.

    Rank r of n gets every n-th batch, so ranks get equally many batches or one fewer. The workers
    of a DataLoader share out those of their rank, in the same order as without workers.

    Args:
        plan: The path of the plan file, or its URI, of which a temporary copy is read.
        rank: The rank of this process. By default that of `torch.distributed`, if it is
            initialized.
        world_size: The number of ranks; given together with `rank`.

    Attributes:
        summary: The summary of the plan, with its limits, totals and inputs.

    Raises:
        ValueError: The file is not a plan, has no residues, or is damaged (some of which is found
            during iteration); or a rank is out of range.
        TypeError: A rank is not an integer.
        OSError: The file cannot be read.

    Cost: each rank and worker reads the whole file and keeps its share; memory for a row group,
    and a byte per row.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from virnucpro.data import GreedyPacker, PackedPlanDataset, pack_files
        >>> with TemporaryDirectory() as folder:
        ...     path, plan = Path(folder, "proteins.fasta"), Path(folder, "plan.parquet")
        ...     _ = path.write_text(">a\nMKTAY\n>b\nMKTAYIAK\n>c\nMK\n")
        ...     _ = pack_files(path, plan, GreedyPacker(12), sequences=True)
        ...     for records in PackedPlanDataset(plan):
        ...         print([(record["id"], record["sequence"]) for record in records])
        [('b', 'MKTAYIAK')]
        [('a', 'MKTAY'), ('c', 'MK')]
    """

    def __init__(
        self,
        plan: str | PathLike[str],
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if not isinstance(plan, (str, PathLike)):
            raise TypeError(f"plan must be the path of a plan file (got {type(plan).__name__})")
        self.path = plan
        file = open_plan(plan)
        # The copy of a URI lasts as long as the data set.
        self.name, self._copy = file.name, file.copy
        if file.is_arrow or "sequence" not in file.schema.names:
            raise ValueError(
                f"{shown(self.name)}: the plan has no sequences (make one with `virnucpro pack "
                "--sequences`, or read it with PackedFastaDataset and the FASTA files)"
            )
        self.summary = file.summary
        self.layout = file.layout
        self.limits = kept_limits(self.layout)
        file.check_size()
        self._num_numbers = file.num_rows
        self._metadata_hash = file.metadata_hash
        self._given = check_rank(rank, world_size)

    def find_rank(self) -> tuple[int, int]:
        """Return the rank of this process, and the number of ranks."""
        return self._given or super().find_rank()

    def __len__(self) -> int:
        """Return the number of batches of this rank."""
        rank, world_size = self.find_rank()
        return len(range(rank, self.layout.num_batches, world_size))

    def __iter__(self) -> Iterator[list[Record]]:
        share, num_shares = self.find_share()
        next_batch = num_numbers = 0
        seen = np.zeros(self._num_numbers, np.bool_)
        for table in self._tables():
            batches = table["batch"].to_numpy()
            numbers = table["fragment" if "fragment" in table.schema.names else "row"].to_numpy()
            self._require(0 <= numbers.min() <= numbers.max() < len(seen), next_batch)
            seen[numbers] = True
            num_numbers += len(numbers)
            starts = np.flatnonzero(np.append(True, np.diff(batches) != 0))
            ends = np.append(starts[1:], len(batches))
            for batch, start, end in zip(batches[starts].tolist(), starts, ends, strict=True):
                self._require(batch == next_batch, batch)
                next_batch += 1
                if batch % num_shares == share:
                    yield self._records(batch, table.slice(start, end - start))
        self._require(next_batch == self.layout.num_batches, next_batch)
        if np.count_nonzero(seen) != num_numbers:
            raise ValueError(f"{shown(self.name)}: damaged: a row occurs more than once")

    def _tables(self) -> Iterator[pa.Table]:
        """Yield tables of whole batches."""
        rest: list[pa.RecordBatch] = []
        file = open_plan(self.path)
        self._copy = file.copy
        if file.metadata_hash != self._metadata_hash:
            raise ValueError(
                f"{shown(self.name)}: the plan has changed since the data set was made"
            )
        for part in file.iterate([name for name in COLUMNS if name in file.schema.names]):
            rest.append(part.filter(pc.is_valid(part["batch"])))
            table = pa.Table.from_batches(rest).combine_chunks()
            if len(table) == 0:
                continue
            batches = table["batch"].to_numpy()
            end = int(np.searchsorted(batches, batches[-1]))
            if end:
                yield table.slice(0, end)
            rest = table.slice(end).to_batches()
        if rest:
            yield pa.Table.from_batches(rest).combine_chunks()

    def _records(self, batch: int, table: pa.Table) -> list[Record]:
        """Return the records of a batch, after checking that they are those of the layout."""
        planned = kernel.tokens_of_batches(self.layout.core, batch, batch + 1).tolist()
        records = []
        for row in table.to_pylist():
            record: Record = {
                name: row[name] for name in ("id", "sequence", "file", "row", "tokens")
            }
            if row["truncated"]:
                record["truncated"] = True
            if "start" in row:
                record.update(start=row["start"], stop=row["stop"])
            records.append(record)
        self._require(all(None not in record.values() for record in records), batch)
        for record, tokens in zip(records, planned, strict=False):
            length = len(record["sequence"])
            self._require(record.get("stop", length) - record.get("start", 0) == length, batch)
            self._require(self.limits.tokens(length) == record["tokens"] == tokens, batch)
        self._require(len(records) == len(planned), batch)
        return PlannedBatch(records, self.limits)

    def _require(self, holds: bool, batch: int) -> None:
        if not holds:
            raise ValueError(
                f"{shown(self.name)}: damaged: batch {batch:,} is not that of the layout"
            )
