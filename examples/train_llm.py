"""Train a causal language model on packed documents, without padding.

    python examples/train_llm.py

Documents of very different lengths are packed into batches of at most 512 tokens, and longer ones
are split. The model is a tiny Llama with random weights, and each document counts up in constant
steps, so its next token can be learned. Requires transformers besides virnucpro[torch].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM

from virnucpro.data import (
    GreedyPacker,
    PackedBatchSampler,
    PackedDataset,
    check_packed,
    packed_sdpa,  # noqa: F401  (registers "packed_sdpa")
)

VOCABULARY_SIZE = 64
MAX_TOKENS = 512


def make_documents(number: int) -> list[dict[str, list[int]]]:
    """Return tokenized documents that count from a random token in random steps."""
    random = np.random.default_rng(0)
    documents = []
    for _ in range(number):
        length = int(np.clip(random.lognormal(4, 1), 2, 4 * MAX_TOKENS))
        first, step = random.integers(VOCABULARY_SIZE), random.integers(1, 4)
        tokens = (first + step * np.arange(length)) % VOCABULARY_SIZE
        documents.append({"input_ids": tokens.tolist()})
    return documents


def main() -> None:
    """Pack the documents, train the model and print the loss."""
    documents = make_documents(1000)
    packer = GreedyPacker.for_documents(MAX_TOKENS)
    plan = packer.pack_lengths([len(document["input_ids"]) for document in documents])
    print(plan)

    sampler = PackedBatchSampler(plan, shuffle=True)
    loader: DataLoader[Any] = DataLoader(
        # Documents above the limit are split as planned, which raw documents would not be.
        PackedDataset(documents, plan).records,
        batch_sampler=sampler,
        collate_fn=DataCollatorWithFlattening(return_flash_attn_kwargs=True),
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=MAX_TOKENS,
        use_cache=False,
        attn_implementation="packed_sdpa",
    )
    model = LlamaForCausalLM(config).train()
    check_packed(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(2):
        for step, batch in enumerate(loader):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 20 == 0:
                print(f"epoch {epoch} step {step}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
