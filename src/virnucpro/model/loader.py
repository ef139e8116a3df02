"""`create_async_dataloader`: packs records as they are read, in the workers of a DataLoader."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from virnucpro.data.packing import GreedyPacker, calculate_token_budget
from virnucpro.data.records import Record
from virnucpro.kernel.arguments import check_integer
from virnucpro.model.collator import VarlenCollator
from virnucpro.model.open_batches import Batch
from virnucpro.model.stream import MAX_OPEN, Measured, PackedStream
from virnucpro.model.tokenized_records import TokenizedRecords, check_keys, check_records
from virnucpro.model.workers import PickledBatch, WatchedLoader, hide_cuda
from virnucpro.text import quoted


class PackedBatches(PackedStream):
    """The records of a stream in packed batches of tensors.

    They are packed by their number of tokens, which a table gives without tokenizing if letters are
    tokens. Otherwise, each record is tokenized once, when it is read.

    Args:
        dataset: Records, dicts with `id` and `sequence`.
        collator: Tokenizes the records.
        token_budget: Tokens per batch; the collator's budget if None.
        max_sequences: Maximum sequences per batch; the collator's if None.
        buffer_size, max_open, even: As for `PackedStream`.

    Example:
        >>> from types import SimpleNamespace
        >>> alphabet = SimpleNamespace(
        ...     tok_to_idx={"<cls>": 0, "<eos>": 2, "<unk>": 3, "M": 20}, unk_idx=3, cls_idx=0,
        ...     eos_idx=2, prepend_bos=True, append_eos=True, use_msa=False, encode=None)
        >>> collator = VarlenCollator(SimpleNamespace(alphabet=alphabet))
        >>> class Records(IterableDataset):
        ...     def __iter__(self):
        ...         return ({"id": i, "sequence": "M" * (i + 1)} for i in range(5))
        >>> packed = PackedBatches(Records(), collator, token_budget=10, buffer_size=3)
        >>> [batch["sequence_ids"] for batch in packed]
        [[2, 1], [4, 0], [3]]
    """

    def __init__(
        self,
        dataset: IterableDataset[Any],
        collator: VarlenCollator,
        token_budget: int | None = None,
        max_sequences: int | None = None,
        buffer_size: int = 2000,
        max_open: int = MAX_OPEN,
        even: bool | None = None,
    ) -> None:
        limits = collator.limits(token_budget)
        if max_sequences is not None:
            limits = replace(limits, max_sequences_per_batch=max_sequences)
        packer = GreedyPacker(**limits.to_dict())
        super().__init__(dataset, packer, buffer_size=buffer_size, max_open=max_open, even=even)
        self.collator = collator
        self.limits = limits

    def measure(self, records: list[Any], _first_row: int) -> Measured:
        """Return the numbers of tokens of records, and what tokenizing them gave."""
        ids = check_records(records)
        check_keys(records)
        if self.collator.has_table:
            sequences = [record["sequence"] for record in records]
            return Measured(self.collator.vocabulary.count(sequences), ids)
        tokenized = self.collator.tokenize(records, self.limits)
        rows = np.arange(len(records))
        extras = [tokenized.take(rows[row : row + 1]) for row in rows]
        return Measured(tokenized.full_lengths, ids, extras)

    def make(self, batch: Batch) -> dict[str, Any]:
        """Return the tensors of a batch."""
        extras = [part.extra for part in batch]
        if None in extras:
            records = [part.record for part in batch]
            keys = list(dict.fromkeys(itertools.chain.from_iterable(records)))
            tokenized = self.collator.tokenize_checked(records, keys, self.limits)
        else:
            tokenized = TokenizedRecords.concatenate(extras)
        return self.collator.to_batch(tokenized, self.limits)


def create_async_dataloader(
    dataset: IterableDataset[Record],
    collate_fn: VarlenCollator,
    batch_size: int | None = None,
    num_workers: int = 4,
    prefetch_factor: int = 4,
    pin_memory: bool = True,
    timeout: float = 600.0,
    token_budget: int | None = None,
    device_id: int = 0,
    model_memory_gb: float = 5.0,
    buffer_size: int = 2000,
    max_open: int = MAX_OPEN,
    even: bool | None = None,
) -> DataLoader[Any]:
    r"""Return a DataLoader of packed batches, which contain all records.

    Records are packed by their number of tokens, for any tokenizer, as described for
    `PackedStream`: `buffer_size` at a time, with open batches that are carried from buffer to
    buffer. Batches are those described for `VarlenCollator`. All records are packed, so nothing is
    left to flush. The token budget is `token_budget`; if None, the budget passed to the collator;
    if that is also None, `calculate_token_budget` for the device if CUDA is available, and 4,096
    otherwise. Truncated sequences are logged once per epoch and unknown residues by the process
    that tokenizes them, and every batch reports its own (``truncated``, ``num_unknown``).

    With `even`, all ranks have equally many batches, and a rank has the same batches in the same
    order with any number of workers. Each worker then reads all records, and counts their tokens.
    If letters are tokens, as for ESM-2, it tokenizes only those of its own batches; with other
    tokenizers it tokenizes all records, so more workers are not faster: tokenize beforehand and use
    `PackedStream`, or use ``even=False``.

    Workers are spawned and do not see CUDA devices. They live as long as the DataLoader, so later
    epochs start at once. A script that starts workers needs ``if __name__ == "__main__":``. If
    residues are tokens, sending a batch takes longer than producing it, so workers help only if
    this process is busy or the tokenizer is slow.

    Args:
        dataset: Records, dicts with `id` and `sequence`. Without `even`, it must split them among
            ranks and workers itself (`torch.utils.data.get_worker_info`), as `SequenceDataset`
            does; otherwise each worker yields all of them.
        collate_fn: Tokenizes the records. Its counts include only records tokenized in this
            process; workers have their own copies.
        batch_size: Maximum sequences per batch; the collator's `max_sequences` if None.
        num_workers: Number of processes that read, pack and tokenize; 0 to do so in this process.
        prefetch_factor: Number of batches that each worker prepares ahead.
        pin_memory: Whether to copy batches to pinned memory, if CUDA is available.
        timeout: Seconds to wait for a batch from a worker; 0 to wait without limit.
        token_budget: Tokens per batch.
        device_id: The CUDA device whose memory determines the budget.
        model_memory_gb: Memory of the model's weights in GiB.
        buffer_size: Number of records that are read at a time. Larger buffers give slightly fuller
            batches.
        max_open: Number of batches that stay open after a buffer.
        even: Whether all ranks have equally many batches. If None, True for `SequenceDataset`, and
            False for other data sets, with a WARNING if several ranks or workers read it.

    Returns:
        A DataLoader without a length, of the dicts described for `VarlenCollator`.

    Raises:
        ValueError: A parameter is out of range, the budget is too small for one residue, or there
            are several ranks, `even` and a GPU, but no budget was given. During iteration, the
            errors of `VarlenCollator`, and the last batches have too few sequences for all ranks.
        TypeError: A parameter has the wrong type. During iteration, IDs are of mixed types.
        RuntimeError: During iteration, a worker died, or sent nothing within the timeout; the
            message has its process ID. Errors of the data set and the collator in a worker are
            raised with its number and their traceback.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from pathlib import Path
        >>> from transformers import EsmTokenizer
        >>> from virnucpro.data import SequenceDataset, VarlenCollator, create_async_dataloader
        >>> with TemporaryDirectory() as folder:
        ...     vocabulary, path = Path(folder, "vocab.txt"), Path(folder, "proteins.fasta")
        ...     _ = vocabulary.write_text("<cls> <pad> <eos> <unk> M K T".replace(" ", "\n"))
        ...     _ = path.write_text(">a\nMK\n>b\nMKTK\n>c\nMKT\n")
        ...     collator = VarlenCollator(EsmTokenizer(str(vocabulary)), max_tokens_per_batch=10)
        ...     loader = create_async_dataloader(SequenceDataset(path), collator, num_workers=0)
        ...     [batch["sequence_ids"] for batch in loader]
        [['b', 'a'], ['c']]
    """
    if not isinstance(dataset, IterableDataset):
        raise TypeError(f"dataset must be an IterableDataset (got {type(dataset).__name__})")
    if not isinstance(collate_fn, VarlenCollator):
        raise TypeError(f"collate_fn must be a VarlenCollator (got {type(collate_fn).__name__})")
    if batch_size is not None:
        batch_size = check_integer(batch_size, "batch_size", 1)
    if not isinstance(timeout, (int, float, np.integer)):
        raise TypeError(f"timeout must be a number (got {quoted(timeout)})")
    if not timeout >= 0:
        raise ValueError(f"timeout must be at least 0 (got {timeout})")
    num_workers = check_integer(num_workers, "num_workers", 0)
    prefetch_factor = check_integer(prefetch_factor, "prefetch_factor", 1)
    has_cuda = torch.cuda.is_available()
    if token_budget is None:
        token_budget = collate_fn.token_budget
    is_measured = token_budget is None and has_cuda
    if is_measured:
        token_budget = calculate_token_budget(device_id, model_memory_gb)
    packed = PackedBatches(
        dataset, collate_fn, token_budget, batch_size, buffer_size, max_open, even
    )
    if is_measured and packed.even and packed.find_rank()[1] > 1:
        raise ValueError(
            "token_budget must be given if several ranks have equally many batches (even): their "
            "GPUs may differ in memory, and then they would pack differently"
        )
    collate: Callable[[Any], Any] = PickledBatch if num_workers else identity
    workers: dict[str, Any] = {}
    if num_workers > 0:
        workers = {
            "multiprocessing_context": "spawn",
            "persistent_workers": True,
            "prefetch_factor": prefetch_factor,
            "timeout": timeout,
            "worker_init_fn": hide_cuda,
        }
    return WatchedLoader(
        packed,
        batch_size=None,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory and has_cuda,
        **workers,
    )


def identity(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch unchanged; by default, DataLoader converts its values to tensors."""
    return batch
