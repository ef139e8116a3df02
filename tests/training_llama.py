"""A tiny Llama, and its loss and gradients for documents that are not packed."""

from __future__ import annotations

from typing import Any

import torch
from training import MAX_LENGTH, VOCABULARY_SIZE, make_documents
from transformers import LlamaConfig, LlamaForCausalLM

from virnucpro.data import packed_sdpa  # noqa: F401  (registers "packed_sdpa")


def tiny_llama(attention: str = "packed_sdpa") -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        # Large enough that each token matters to the next.
        initializer_range=0.3,
        use_cache=False,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config)


def gradients(model: Any) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters()]


def single_gradients() -> tuple[float, list[torch.Tensor]]:
    """Return the loss per label and its gradients, of documents one by one."""
    model = tiny_llama("eager")
    documents = [
        {name: values[:MAX_LENGTH] for name, values in document.items()}
        for document in make_documents()
    ]
    # The first label has no token before it.
    num_labels = sum(len(document["labels"]) - 1 for document in documents)
    total = 0.0
    for document in documents:
        tokens = {name: torch.tensor([values]) for name, values in document.items()}
        logits = model(tokens["input_ids"]).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, tokens["labels"][0, 1:], reduction="sum")
        torch.autograd.backward(loss / num_labels)
        total += loss.item()
    return total / num_labels, gradients(model)


def largest_difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max((one - other).abs().max().item() for one, other in pairs)
