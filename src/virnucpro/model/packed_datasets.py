"""PyTorch data sets of the batches of a plan."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from virnucpro import kernel
from virnucpro.data.layout import Layout
from virnucpro.data.plan import PackingPlan, as_plan
from virnucpro.data.records import Record
from virnucpro.files.fasta import ReadChanges, ReadOptions, check_options
from virnucpro.files.record_file import RecordFile
from virnucpro.kernel.limits import Limits
from virnucpro.model.cut_records import check_record, cut_record, describe
from virnucpro.model.datasets import Paths, check_paths, warn_of_changes
from virnucpro.text import quoted, shown


class MapDataset(Protocol):
    """A data set whose records are dicts, by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


class PlannedBatch(list[Record]):
    """The records of a batch, with the limits that all batches of its plan keep."""

    def __init__(self, records: Iterable[Record], limits: Limits) -> None:
        super().__init__(records)
        self.limits = limits

    def __reduce__(self) -> tuple[Any, ...]:
        return PlannedBatch, (list(self), self.limits)


def kept_limits(layout: Layout) -> Limits:
    """Return limits that all batches of a layout keep, with the sequences of the fullest batch."""
    return replace(layout.limits, max_sequences_per_batch=layout.max_sequences or None)


class PlannedRecords(Dataset[Record]):
    """The sequences or fragments of a plan by number, cut from the records of a data set.

    The attribute `records` of `PackedDataset`. Numbers are those that `PackedBatchSampler` yields.
    """

    def __init__(self, dataset: MapDataset, plan: PackingPlan) -> None:
        self.dataset = dataset
        self.plan = plan
        self.limits = kept_limits(plan)

    def __len__(self) -> int:
        return len(self.planned_tokens)

    def __getitem__(self, number: int) -> Record:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Record]:
        """Return the records of a batch, given their numbers.

        Raises:
            ValueError: They have more tokens than the budget, or a record is not as long as the
                plan says.
        """
        chosen = np.asarray(numbers, np.int64)
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"numbers must be from 0 to {len(self) - 1:,} (got {list(numbers)})")
        planned = self.planned_tokens[chosen]
        if (planned < 0).any():
            raise ValueError(f"row {chosen[planned < 0][0]:,} was dropped, so it has no batch")
        records = self.cut(chosen, planned)
        total = sum(record["tokens"] for record in records)
        if total > self.plan.max_tokens_per_batch:
            raise ValueError(
                f"a batch of {len(records):,} records has {total:,} tokens, more than the budget "
                f"of {self.plan.max_tokens_per_batch:,}"
            )
        return records

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a pickle, without what can be computed again."""
        return {name: value for name, value in vars(self).items() if name != "planned_tokens"}

    @functools.cached_property
    def planned_tokens(self) -> NDArray[np.int64]:
        """The tokens that the plan counted for each number; -1 for rows that were dropped."""
        plan = self.plan
        numbers = plan.indices
        size = plan.num_rows if plan.fragments is None else plan.num_sequences
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < size:
            raise ValueError("the plan is damaged: a row is out of range")
        tokens = np.full(size, -1, np.int64)
        tokens[numbers] = kernel.tokens_of_batches(plan.core, 0, plan.num_batches)
        return tokens

    def cut(self, numbers: NDArray[np.int64], planned: NDArray[np.int64]) -> list[Record]:
        """Return the records with these numbers, each truncated or reduced to its fragment.

        Raises:
            ValueError: A record does not have the tokens that the plan counted, `planned`.
        """
        fragments, limits = self.plan.fragments, self.plan.limits
        rows = numbers if fragments is None else fragments.rows[numbers]
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.dataset):
            wrong = rows[(rows < 0) | (rows >= len(self.dataset))][0]
            raise ValueError(f"the plan is damaged: row {wrong:,} is out of range")
        items = get_items(self.dataset, rows.tolist())
        records = []
        chosen = zip(numbers.tolist(), rows.tolist(), items, planned.tolist(), strict=True)
        for number, row, item, expected in chosen:
            length = check_record(item, row, is_split=fragments is not None)
            start, stop = 0, min(length, limits.max_residues)
            added: Record = {}
            if fragments is not None:
                start, stop = int(fragments.starts[number]), int(fragments.stops[number])
                added = {"start": start, "stop": stop}
                last = int(np.searchsorted(fragments.rows, row, side="right")) - 1
                if length != fragments.stops[last]:
                    raise ValueError(
                        f"the plan is for other sequences: {describe(item, row)} has length "
                        f"{length:,}, the fragments of the plan end at {fragments.stops[last]:,}"
                    )
            elif stop < length:
                if self.plan.num_truncated == 0:
                    raise ValueError(
                        f"the plan is for other sequences: {describe(item, row)} has length "
                        f"{length:,}, and the plan has no truncated sequences"
                    )
                added = {"truncated": True}
            tokens = limits.tokens(stop - start)
            if tokens == 0 and "sequence" not in item:
                # Collators that join `input_ids` shift the labels of an empty record.
                raise ValueError(
                    f"{describe(item, row)} has no tokens: pack with empty='drop', or remove it"
                )
            if tokens != expected:
                raise ValueError(
                    f"the plan is for other sequences: {describe(item, row)} has {tokens:,} "
                    f"tokens, the plan has {expected:,}"
                )
            record = cut_record(item, row, start, stop, length)
            records.append({**record, **added, "row": row, "tokens": tokens})
        return PlannedBatch(records, self.limits)


class PackedDataset(Dataset[list[Record]]):
    r"""The batches of a plan for a data set; ``[i]`` returns the records of batch i.

    Records are dicts with a `sequence` or `input_ids`, of any data set that has a length and
    returns the record of a row: a list, or a data set of Hugging Face. Each is cut as the plan has
    it, so that no batch exceeds its budget: `sequence`, `input_ids` and every other list, array,
    tensor or text that is as long as they are, such as `labels`, are truncated to the plan's limit,
    with ``truncated=True``, or reduced to a fragment (`id` and `file` are never cut). If the plan
    has fragments, all records have their positions, `start` and `stop`. `row` is the number of the
    record, and `tokens` the number of tokens that the plan counted, which `VarlenCollator` checks.
    Within a batch, the longest record comes first.

    Items are whole batches, so use a DataLoader with ``batch_size=None`` and a collate function for
    a list of records; the DataLoader may shuffle. For another order of sequences in each epoch,
    use ``DataLoader(packed.records, batch_sampler=PackedBatchSampler(plan, shuffle=True))``.

    Args:
        dataset: The data set. Its records are not modified.
        plan: The plan for the lengths of its records, in order; or the path of its file.

    Attributes:
        plan: The plan.
        records: The sequences of the plan by number, a data set of single records.

    Raises:
        ValueError: The plan is for another number of records. When a batch is read: a record is not
            as long as the plan says, or its `labels` or `attention_mask` are not as long as the
            record; it has no `sequence` and no `input_ids`, has a key that is added, or has no
            tokens in its `input_ids` (pack with empty="drop").
        TypeError: `plan` is not a plan or a path. When a batch is read: a record is not a dict.
        OSError: The file of the plan cannot be read.

    Cost: O(distinct sizes) per batch, beside reading its records. `records` takes 8 bytes of memory
    per sequence. A plan of an `.arrow` file is pickled as its path, as for spawned workers.

    Example:
        >>> from virnucpro.data import GreedyPacker, PackedDataset
        >>> records = [{"id": "a", "sequence": "MKTAY"}, {"id": "b", "sequence": "MKTAYIAKQR"}]
        >>> plan = GreedyPacker(10).pack_lengths([5, 10])
        >>> PackedDataset(records, plan)[0]
        [{'id': 'b', 'sequence': 'MKTAYIAK', 'truncated': True, 'row': 1, 'tokens': 10}]
    """

    def __init__(self, dataset: MapDataset, plan: PackingPlan | str | PathLike[str]) -> None:
        self.plan = as_plan(plan)
        num_rows = self.plan.num_rows
        if len(dataset) != num_rows:
            raise ValueError(
                f"the plan is for {num_rows:,} sequences, the data set has {len(dataset):,}"
            )
        self.records = PlannedRecords(dataset, self.plan)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, batch: int) -> list[Record]:
        """Return the records of a batch."""
        return self.records.cut(self.plan[batch], self.plan.tokens(batch))

    def __getitems__(self, _numbers: Sequence[int]) -> list[Record]:
        """Raise TypeError. A DataLoader calls this to make a batch of several items."""
        raise TypeError(
            f"{type(self).__name__} returns whole batches: use a DataLoader with batch_size=None, "
            "or its attribute `records` with a batch_sampler; with the Trainer of transformers, "
            "return such a DataLoader from get_train_dataloader (see "
            "docs/how-to/train-with-the-trainer.md)"
        )


class PackedFastaDataset(PackedDataset):
    r"""The batches of a plan for FASTA files; ``[i]`` reads the records of batch i.

    A `PackedDataset` of the records of the files: dicts with `id`, `sequence`, `file`, `row` (the
    number of the record across all files), `tokens`, and `truncated` or `start` and `stop`.

    Index files are neither read nor written. Compressed files are decompressed to temporary files,
    which workers share.

    Args:
        fasta: The paths of FASTA files, plain or compressed, or a single path.
        plan: A plan for the lengths of all their records, in the order of files and records; or the
            path of its file.
        options: How to read the files, the same as when the plan was made: by default those that
            are stored in a plan that was loaded, and the defaults of `ReadOptions` for other plans.
            One WARNING reports the changes made.

    Raises:
        FileNotFoundError: A file does not exist.
        OSError: A file cannot be read, or there is no space for a temporary file.
        ValueError: A file is not FASTA, damaged or incomplete; the plan is for other sequences; or
            the options are not those of the plan. When a batch is read: a file has changed.

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

    def __init__(
        self,
        fasta: Paths,
        plan: PackingPlan | str | PathLike[str],
        options: ReadOptions | None = None,
    ) -> None:
        self.fasta_files = check_paths(fasta, "fasta")
        plan = as_plan(plan)
        self.options = choose_options(options, plan)
        files = FastaRecords(self.fasta_files, self.options)
        super().__init__(files, plan)
        files.check_plan(plan)
        warn_of_changes(sum((file.changes for file in files.files), ReadChanges()))


class FastaRecords:
    """The records of FASTA files by row, read when they are asked for."""

    def __init__(self, paths: list[str], options: ReadOptions) -> None:
        self.files = [RecordFile(path, options) for path in paths]
        # Row of the first record of each file, and the number of rows.
        self.starts = np.cumsum([0, *map(len, self.files)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, row: int) -> Record:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Record]:
        """Return the records of rows, in their order."""
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        records: list[Record] = [{}] * len(rows)
        for number in np.unique(numbers).tolist():
            file = self.files[number]
            places = np.flatnonzero(numbers == number).tolist()
            found = file.read([rows[place] - int(self.starts[number]) for place in places])
            for place, (identifier, sequence) in zip(places, found, strict=True):
                records[place] = {"id": identifier, "sequence": sequence, "file": file.path}
        return records

    def check_plan(self, plan: PackingPlan) -> None:
        """Raise ValueError if a plan is not for these sequences."""
        numbers, fragments, limits = plan.indices, plan.fragments, plan.limits
        rows = numbers
        if fragments is not None:
            check_once(numbers)
            is_last = np.append(np.diff(fragments.rows) != 0, True)
            rows = fragments.rows[is_last]
        check_once(np.append(rows, plan.dropped))
        lengths = np.concatenate([file.lengths for file in self.files])
        is_overlong, is_empty = lengths > limits.max_residues, lengths == 0
        num_truncated = 0 if fragments is not None else np.count_nonzero(is_overlong[rows])
        may_be_dropped = is_overlong | is_empty
        if num_truncated != plan.num_truncated or not may_be_dropped[plan.dropped].all():
            raise ValueError(
                f"the plan is for other sequences: it has {plan.num_truncated:,} truncated and "
                f"{len(plan.dropped):,} dropped sequences, the files have "
                f"{np.count_nonzero(is_overlong):,} that are too long and "
                f"{np.count_nonzero(is_empty):,} that are empty"
            )
        if fragments is None:
            tokens = limits.tokens(lengths[rows])
            planned = kernel.tokens_of_batches(plan.core, 0, plan.num_batches)
            words = "which is {:,} tokens; the plan has {:,}"
        else:
            # The last fragment of a sequence ends where the sequence ends.
            tokens, planned = lengths[rows], fragments.stops[is_last]
            words = "of {:,} residues; the fragments of the plan end at {:,}"
        wrong = np.flatnonzero(tokens != planned)
        if len(wrong):
            at = int(wrong[np.argmin(rows[wrong])])
            number = int(np.searchsorted(self.starts, rows[at], side="right")) - 1
            file, record = self.files[number], int(rows[at] - self.starts[number])
            raise ValueError(
                f"the plan is for other sequences: record {record + 1:,} of "
                f"{shown(file.path)} ({quoted(file.read([record])[0][0])}, row {rows[at]:,}) has "
                f"{lengths[rows[at]]:,} residues, {words.format(tokens[at], planned[at])} "
                f"({len(wrong):,} such records)"
            )


def check_once(numbers: NDArray[Any]) -> None:
    """Raise ValueError unless numbers are those from 0 to their number, each once."""
    is_known = (numbers >= 0) & (numbers < len(numbers))
    if not is_known.all() or (np.bincount(numbers) != 1).any():
        raise ValueError("the plan is damaged: it does not contain each row exactly once")


def get_items(dataset: MapDataset, rows: list[int]) -> list[Any]:
    """Return the items of rows, read together if the data set supports it."""
    get_together = getattr(dataset, "__getitems__", None)
    if get_together is None:
        return [dataset[row] for row in rows]
    items: list[Any] = list(get_together(rows))
    return items


def choose_options(options: ReadOptions | None, plan: PackingPlan) -> ReadOptions:
    """Return the options to read FASTA with; raise if they are not those of the plan."""
    stored = None if plan.summary is None else plan.summary.options
    if options is None:
        return stored or ReadOptions()
    check_options(options)
    for name in ("strip_stop", "uppercase", "drop_gaps"):
        value = getattr(options, name)
        if stored is not None and value != getattr(stored, name):
            raise ValueError(f"options: the plan was made with {name}={not value} (got {value})")
    return options
