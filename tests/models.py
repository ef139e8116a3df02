"""Small models of random weights, tokenizers from vocabularies written here, a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import esm
import torch
from torch.utils.data import IterableDataset

# What takes seconds to import is imported where it is used: workers that are spawned import this
# file too.

AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWC"
ESM2 = [
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *AMINO_ACIDS,
    *("X", "B", "U", "Z", "O", ".", "-", "<null_1>", "<mask>"),
]


def huggingface_tokenizer(folder: Path) -> Any:
    """ESM-2's tokenizer, as transformers has it."""
    from transformers import EsmTokenizer

    (folder / "vocab.txt").write_text("\n".join(ESM2))
    return EsmTokenizer(str(folder / "vocab.txt"))


def fair_esm_converter() -> Any:
    """ESM-2's batch converter, as fair-esm has it."""
    return esm.data.Alphabet.from_architecture("ESM-1b").get_batch_converter()


def byte_pairs() -> Any:
    """A tokenizer whose tokens have more than one letter."""
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(["<s>", "</s>", "<unk>", *AMINO_ACIDS])}
    vocabulary = {**letters, "MK": len(letters), "TA": len(letters) + 1}
    model = models.BPE(vocab=vocabulary, merges=[("M", "K"), ("T", "A")], unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def tiny_esm2(**parameters: Any) -> Any:
    """ESM-2 with three layers."""
    from transformers import EsmConfig, EsmModel

    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=len(ESM2),
        pad_token_id=1,
        mask_token_id=ESM2.index("<mask>"),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=True,
        # Larger than what is trained, so that neighbours would be seen.
        initializer_range=0.2,
        **parameters,
    )
    return EsmModel(config, add_pooling_layer=False).eval()


def tiny_model(model_type: str, head: str = "AutoModel", **parameters: Any) -> Any:
    """A model of random weights and any type that transformers knows, for ESM-2's vocabulary."""
    import transformers

    torch.manual_seed(0)
    common = {
        "vocab_size": len(ESM2),
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        # Larger than what is trained, so that neighbours would be seen.
        "initializer_range": 0.2,
    }
    config = transformers.AutoConfig.for_model(model_type, **{**common, **parameters})
    return getattr(transformers, head).from_config(config).eval()


class ShowsEnvironment(IterableDataset[dict[str, Any]]):
    """A record whose ID is what the process that reads it sees as CUDA devices."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield {"id": repr(os.environ.get("CUDA_VISIBLE_DEVICES")), "sequence": "M"}
