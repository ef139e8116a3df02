"""One rank of several: prints the IDs that each of its loaders yields, as JSON.

Those of create_async_dataloader are lists, one per batch.

Usage: shares.py RANK WORLD_SIZE STORE NUM_WORKERS... -- FASTA...
NUM_WORKERS followed by "s" is that of create_async_dataloader, else of a forking DataLoader.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import torch.distributed
from models import fair_esm_converter
from torch.utils.data import DataLoader

from virnucpro.data import SequenceDataset, VarlenCollator, create_async_dataloader


def main() -> None:
    rank, world_size, store, *rest = sys.argv[1:]
    divide = rest.index("--")
    numbers, files = rest[:divide], rest[divide + 1 :]
    dataset = SequenceDataset(files)
    # After the data set was made, as in many training scripts.
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world_size)
    )
    logging.disable()
    found: dict[str, list[Any]] = {}
    for number in numbers:
        if number.endswith("s"):
            packed = create_async_dataloader(
                dataset, VarlenCollator(fair_esm_converter()), num_workers=int(number[:-1])
            )
            found[number] = [batch["sequence_ids"] for batch in packed]
            continue
        loader: DataLoader[Any] = DataLoader(
            dataset,
            # In lists of records, which pass between processes much faster than one at a time.
            batch_size=64,
            collate_fn=list,
            num_workers=int(number),
            multiprocessing_context="fork" if int(number) else None,
        )
        found[number] = [record["id"] for records in loader for record in records]
    print(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
