"""The sequences of a plan that has the residues, by row."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from virnucpro.files import tables
from virnucpro.files.fasta import ReadChanges
from virnucpro.files.places import stamp_of
from virnucpro.files.plan_checks import as_numbers, check_numbers
from virnucpro.files.plan_reader import PlanFile, open_parquet
from virnucpro.files.plan_schema import explain_errors
from virnucpro.files.sequences import InputFile, file_of_rows
from virnucpro.files.tables import as_arrow
from virnucpro.text import shown

# Row groups whose residues are kept: a batch may be in two of them.
KEPT = 2


class PlanSequences:
    """The sequences of a plan that has the residues, as `Sequences` has those of files.

    Args:
        file: The plan, which must have a column `sequence`, and no fragments.

    Attributes:
        ids: The ID of each row, an Arrow array of large strings.
        lengths: Residues of each row in the input, int64. The plan has no more than the limit.
        inputs: The files that the plan was made of.
        changes: Numbers of characters changed or removed when they were read.

    Raises:
        ValueError: The plan is damaged.
        OSError: It cannot be read.

    Cost: the IDs and lengths are read into memory; residues by row group, of which two are kept, so
    rows are best read in order of batches.
    """

    def __init__(self, file: PlanFile) -> None:
        self._file = file
        self.inputs: list[InputFile] = file.summary.inputs
        totals = asdict(file.summary.totals)
        # Unknown numbers are those of plans that were saved without their input.
        self.changes = ReadChanges(*(totals[field.name] or 0 for field in fields(ReadChanges)))
        file.check_size()
        self._stamps = [stamp_of(part) for part in file.parts]
        table = file.read(["row", "id", "length"])
        rows = as_numbers(table["row"])
        check_numbers(file.name, "row", rows)
        # The place of each row in the plan.
        self._places = np.empty(len(rows), np.int64)
        self._places[rows] = np.arange(len(rows))
        self.ids = table["id"].combine_chunks().cast(pa.large_string())
        self.ids = self.ids.take(as_arrow(self._places))
        self.lengths = as_numbers(table["length"]).astype(np.int64)[self._places]
        if sum(found.sequences for found in self.inputs) != len(rows):
            raise ValueError(f"{shown(file.name)}: damaged: its inputs do not have as many rows")
        self._groups: list[tuple[Path, int]] = []
        ends = [0]
        for part in file.parts:
            with explain_errors(file.name), open_parquet(part) as opened:
                metadata = opened.metadata
                for group in range(metadata.num_row_groups):
                    self._groups.append((part, group))
                    ends.append(ends[-1] + metadata.row_group(group).num_rows)
        self._ends = np.array(ends)
        self._kept: dict[int, Any] = {}

    def file_of(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        """Return the index of the file of each row, int64."""
        return file_of_rows(self.inputs, rows)

    def read(self, rows: NDArray[Any]) -> list[str]:
        """Return the residues of rows that were not dropped, as the plan has them.

        Raises:
            ValueError: The plan is damaged, or has changed.
            OSError: The plan cannot be read.
        """
        places = self._places[rows]
        numbers = np.searchsorted(self._ends, places, side="right") - 1
        found = [""] * len(places)
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            column = self._residues(number).take(as_arrow(places[here] - self._ends[number]))
            if column.null_count:
                raise ValueError(f"{shown(self._file.name)}: damaged: no sequence in a batch")
            for place, residues in zip(here.tolist(), column.to_pylist(), strict=True):
                found[place] = residues
        return found

    def _residues(self, number: int) -> pa.ChunkedArray:
        """Return the residues of a row group."""
        if number not in self._kept:
            while len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            part, group = self._groups[number]
            with explain_errors(self._file.name), open_parquet(part) as opened:
                column = tables.read_column(part, opened, group, "sequence")
            if [stamp_of(part) for part in self._file.parts] != self._stamps:
                raise ValueError(f"{shown(self._file.name)}: has changed while it was read")
            self._kept[number] = column
        return self._kept[number]
