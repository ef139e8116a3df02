"""`create_async_dataloader`: packs records as they are read, in the workers of a DataLoader."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from virnucpro.data.packing import GreedyPacker, calculate_token_budget
from virnucpro.data.records import Record
from virnucpro.kernel.arguments import check_integer
from virnucpro.model.collator import VarlenCollator
from virnucpro.model.workers import PickledBatch, WatchedLoader, hide_cuda, sendable_errors
from virnucpro.text import quoted


class PackedBatches(IterableDataset[dict[str, Any]]):
    """The packed batches of a data set, as tensors. Packs `buffer_size` records at a time.

    Records are tokenized once and packed by their number of tokens, so no batch exceeds the budget.

    Args:
        dataset: Records, dicts with `id` and `sequence`.
        collator: Tokenizes the records.
        token_budget: Tokens per batch; the collator's budget if None.
        max_sequences: Maximum sequences per batch; the collator's if None.
        buffer_size: Number of records packed together.

    Example:
        >>> from types import SimpleNamespace
        >>> alphabet = SimpleNamespace(
        ...     tok_to_idx={"<cls>": 0, "<eos>": 2, "<unk>": 3, "M": 20}, unk_idx=3, cls_idx=0,
        ...     eos_idx=2, prepend_bos=True, append_eos=True, use_msa=False, encode=None)
        >>> collator = VarlenCollator(SimpleNamespace(alphabet=alphabet))
        >>> records = [{"id": i, "sequence": "M" * (i + 1)} for i in range(5)]
        >>> packed = PackedBatches(records, collator, token_budget=10, buffer_size=3)
        >>> [batch["sequence_ids"] for batch in packed]
        [[2, 1], [0], [4], [3]]
    """

    def __init__(
        self,
        dataset: IterableDataset[Record],
        collator: VarlenCollator,
        token_budget: int | None = None,
        max_sequences: int | None = None,
        buffer_size: int = 2000,
    ) -> None:
        self.dataset = dataset
        self.collator = collator
        limits = collator.limits(token_budget)
        if max_sequences is not None:
            limits = replace(limits, max_sequences_per_batch=max_sequences)
        self.packer = GreedyPacker(**limits.to_dict(), overlong="error")
        self.buffer_size = buffer_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        packer, limits = self.packer, self.packer.limits
        with sendable_errors():
            records = iter(self.dataset)
            while buffer := list(itertools.islice(records, self.buffer_size)):
                tokenized = self.collator.tokenize(buffer, limits)
                ids = [record["id"] for record in buffer]
                for rows in packer.pack_lengths(tokenized.lengths, ids):
                    yield self.collator.to_batch(tokenized.take(rows), limits)


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
) -> DataLoader[Any]:
    r"""Return a DataLoader of packed batches, which contain all records.

    Each worker tokenizes `buffer_size` of its records at a time, packs them by First-Fit Decreasing
    on their number of tokens, for any tokenizer, and yields batches as described for
    `VarlenCollator`. The last, smaller buffer is packed too, so nothing is left to flush. The token
    budget is `token_budget`; if None, the budget passed to the collator; if that is also None,
    `calculate_token_budget` for the device if CUDA is available, and 4,096 otherwise. Truncated
    sequences and unknown residues are logged by the process that tokenizes them, and every batch
    reports its own (``truncated``, ``num_unknown``).

    Workers are spawned and do not see CUDA devices. They live as long as the DataLoader, so later
    epochs start at once. A script that starts workers needs ``if __name__ == "__main__":``. If
    residues are tokens, sending a batch takes longer than producing it, so workers help only if
    this process is busy or the tokenizer is slow.

    Args:
        dataset: Records, dicts with `id` and `sequence`. It must split them among workers itself
            (`torch.utils.data.get_worker_info`), as `SequenceDataset` does; otherwise each worker
            yields all of them.
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
        buffer_size: Number of records packed together. Larger buffers give fuller batches.

    Returns:
        A DataLoader without a length, of the dicts described for `VarlenCollator`.

    Raises:
        ValueError: A parameter is out of range, or the budget is too small for one residue. During
            iteration, the errors of `VarlenCollator`.
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
    buffer_size = check_integer(buffer_size, "buffer_size", 1)
    has_cuda = torch.cuda.is_available()
    if token_budget is None:
        token_budget = collate_fn.token_budget
    if token_budget is None and has_cuda:
        token_budget = calculate_token_budget(device_id, model_memory_gb)
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
        PackedBatches(dataset, collate_fn, token_budget, batch_size, buffer_size),
        batch_size=None,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory and has_cuda,
        **workers,
    )


def identity(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch unchanged; by default, DataLoader converts its values to tensors."""
    return batch
