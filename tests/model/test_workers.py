"""The packer as the collate function of a DataLoader with workers."""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils.data import DataLoader

from virnucpro.data import GreedyPacker

pytestmark = pytest.mark.process


@pytest.mark.parametrize(("context", "num_workers"), [("fork", 2), ("spawn", 1)])
def test_packing_in_dataloader_workers(context: str, num_workers: int) -> None:
    # So many are packed on two threads.
    packer = GreedyPacker(4096, num_threads=2)
    rows = 140_000
    records = [
        {"id": f"seq{row % 1000}", "sequence": "M" * (row * row % 101)} for row in range(2 * rows)
    ]
    expected = [packer.pack_sequences(records[:rows]), packer.pack_sequences(records[rows:])]
    loader: DataLoader[dict[str, Any]] = DataLoader(
        records,  # type: ignore[arg-type]
        batch_size=rows,
        collate_fn=packer.pack_sequences,
        num_workers=num_workers,
        multiprocessing_context=context,
    )
    assert list(loader) == expected
