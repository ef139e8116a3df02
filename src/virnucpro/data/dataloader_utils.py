"""A DataLoader of packed batches."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from virnucpro.data.arguments import check_integer
from virnucpro.data.collators import VarlenCollator, make_batch
from virnucpro.data.packing import GreedyPacker, calculate_token_budget

Record = dict[str, Any]


class PackedDataset(IterableDataset[list[Record]]):
    """The batches that a packer makes of each `buffer_size` records of a data set, and of the rest.

    Example:
        >>> records = [{"id": i, "sequence": "M" * (i + 1)} for i in range(5)]
        >>> packed = PackedDataset(records, GreedyPacker(10), buffer_size=3)
        >>> [[record["id"] for record in batch] for batch in packed]
        [[2, 1], [0], [4], [3]]
    """

    def __init__(
        self, dataset: IterableDataset[Record], packer: GreedyPacker, buffer_size: int
    ) -> None:
        self.dataset = dataset
        self.packer = packer
        self.buffer_size = buffer_size

    def __iter__(self) -> Iterator[list[Record]]:
        records = iter(self.dataset)
        while buffer := list(itertools.islice(records, self.buffer_size)):
            yield from self.packer.pack_sequences(buffer)


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
    r"""Return a DataLoader that yields the packed batches of all records, in `collate_fn`'s layout.

    Each worker packs every `buffer_size` of its records by First-Fit Decreasing, the last ones
    included, so nothing is left to be flushed. The budget of a batch is the same for packer and
    collator: `token_budget`; else, where CUDA is available, what `calculate_token_budget` says of
    the device; else that of the collator. The collator itself is not changed, but copied.

    Workers are spawned and see no CUDA device when they read. They live as long as the DataLoader,
    so the next epoch starts at once. A script that starts workers needs
    ``if __name__ == "__main__":``. Sending a batch takes longer than making it where tokens come
    from a table, so workers pay where this process has no time to spare.

    Args:
        dataset: Records, dicts with `id` and `sequence`, shared out among workers as
            `SequenceDataset` does.
        collate_fn: Makes tensors of a batch.
        batch_size: The most sequences of a batch, None for any number.
        num_workers: Processes that read, pack and tokenize; 0 for none, in this process.
        prefetch_factor: Batches that each worker prepares ahead.
        pin_memory: Put batches into pinned memory, where CUDA is available.
        timeout: Seconds to wait for a batch of a worker, 0 for any time.
        token_budget: Tokens of a batch.
        device_id: The CUDA device whose memory is the measure.
        model_memory_gb: Memory of the model's weights in GiB.
        buffer_size: Records packed together. More give fuller batches.

    Returns:
        A DataLoader of the dicts that `VarlenCollator` describes, without a length.

    Raises:
        ValueError: A parameter is out of range, the budget has no room for one residue, or the
            tokenizer has tokens of more than a letter.
        TypeError: A parameter has the wrong type.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from pathlib import Path
        >>> from transformers import EsmTokenizer
        >>> from virnucpro.data import SequenceDataset, VarlenCollator
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
    if not collate_fn.has_table:
        raise ValueError(
            "collate_fn's tokenizer has tokens of more than a letter, which residues do not count; "
            "tokenize first, and pack with pack_lengths and PackedBatchSampler"
        )
    if batch_size is not None:
        batch_size = check_integer(batch_size, "batch_size", 1)
    if not isinstance(timeout, (int, float, np.integer)):
        raise TypeError(f"timeout must be a number (got {timeout!r})")
    if not timeout >= 0:
        raise ValueError(f"timeout must be at least 0 (got {timeout})")
    num_workers = check_integer(num_workers, "num_workers", 0)
    prefetch_factor = check_integer(prefetch_factor, "prefetch_factor", 1)
    buffer_size = check_integer(buffer_size, "buffer_size", 1)
    has_cuda = torch.cuda.is_available()
    collator = copy.copy(collate_fn)
    if token_budget is not None:
        collator.max_tokens_per_batch = token_budget
    elif has_cuda:
        collator.max_tokens_per_batch = calculate_token_budget(device_id, model_memory_gb)
    packer = GreedyPacker(
        collator.max_tokens_per_batch,
        collator.max_sequence_length,
        special_tokens=collator.special_tokens,
        max_sequences_per_batch=batch_size,
    )
    workers: dict[str, Any] = {}
    if num_workers > 0:
        workers = {
            "multiprocessing_context": "spawn",
            "persistent_workers": True,
            "prefetch_factor": prefetch_factor,
            "timeout": timeout,
            "worker_init_fn": hide_cuda,
        }
    return DataLoader(
        PackedDataset(dataset, packer, buffer_size),
        batch_size=None,
        collate_fn=partial(collate_to_send, collator) if num_workers else collator,
        num_workers=num_workers,
        pin_memory=pin_memory and has_cuda,
        **workers,
    )


class SentBatch:
    """A batch in a worker; a dict of tensors again where the main process unpickles it.

    Tensors by themselves are sent in shared memory, with a file and a connection for each. Where
    they are as small as those of a batch, sending their bytes takes a fraction of that time.
    """

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        arrays = (self.batch["input_ids"].numpy(), self.batch["cu_seqlens"].numpy())
        return make_batch, (*arrays, self.batch["sequence_ids"], self.batch["token_budget"])


def collate_to_send(collator: VarlenCollator, records: list[Record]) -> SentBatch:
    """Collate in a worker."""
    return SentBatch(collator(records))


def hide_cuda(_worker: int) -> None:
    """Leave the GPU's memory to the process that has the model."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
