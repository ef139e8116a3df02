"""Loss and gradients of packed batches, compared with those of single documents.

tests/frameworks compares those of several processes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from training import make_records
from training_llama import gradients, largest_difference, single_gradients, tiny_llama
from transformers import DataCollatorWithFlattening

from virnucpro.data import PackedBatchSampler


def make_batches(**options: Any) -> list[Any]:
    records = make_records()
    loader: Any = DataLoader(
        records,
        batch_sampler=PackedBatchSampler(records.plan, **options),
        collate_fn=DataCollatorWithFlattening(return_flash_attn_kwargs=True),
    )
    batches = list(loader)
    assert len(batches) > 10
    return batches


@pytest.mark.parametrize("options", [{}, {"shuffle": True, "repack": 30}])
def test_accumulated_batches_have_the_gradients_of_single_documents(
    options: dict[str, Any],
) -> None:
    expected_loss, expected = single_gradients()
    batches = make_batches(**options)
    num_labels = sum((batch["labels"] != -100).sum() for batch in batches)
    model = tiny_llama()
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=num_labels).loss
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(expected_loss, abs=1e-5)
    assert largest_difference(gradients(model), expected) < 1e-5


def test_means_of_batches_are_not_the_mean_of_labels() -> None:
    _, expected = single_gradients()
    batches = make_batches()
    model = tiny_llama()
    for batch in batches:
        (model(**batch).loss / len(batches)).backward()
    assert largest_difference(gradients(model), expected) > 1e-3


def test_documents_of_a_batch_do_not_see_each_other() -> None:
    _, expected = single_gradients()
    batches = make_batches()
    num_labels = sum((batch["labels"] != -100).sum() for batch in batches)
    model = tiny_llama("sdpa")
    for batch in batches:
        inputs = {name: batch[name] for name in ("input_ids", "labels")}
        torch.autograd.backward(model(**inputs, num_items_in_batch=num_labels).loss)
    # Without the boundaries they do, and the comparison above would show it.
    assert largest_difference(gradients(model), expected) > 1e-2
