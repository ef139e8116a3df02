"""Small models of random weights, tokenizers from vocabularies written here, a data set."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
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
    from tokenizers import Tokenizer, models

    letters = {letter: i for i, letter in enumerate(["<s>", "</s>", "<unk>", *AMINO_ACIDS])}
    vocabulary = {**letters, "MK": len(letters), "TA": len(letters) + 1}
    merges = [("M", "K"), ("T", "A")]
    return wrap(Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>")))


def wrap(tokenizer: Any) -> Any:
    """A tokenizer of transformers that puts <s> and </s> around what another one makes."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    special = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=special
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def letter_pairs() -> Any:
    """A tokenizer whose tokens all have two letters; one letter by itself is unknown."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    pairs = [a + b for a in AMINO_ACIDS for b in AMINO_ACIDS]
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", *pairs])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("..?"), "isolated")
    return wrap(tokenizer)


def word_pieces() -> Any:
    """BERT's tokenizer, for which a word with a strange letter is unknown as a whole."""
    from transformers import BertTokenizer

    pieces = [*AMINO_ACIDS, "MK", *(f"##{letter}" for letter in AMINO_ACIDS), "##TAY"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: i for i, token in enumerate([*special, *pieces])}
    return BertTokenizer(vocabulary, do_lower_case=False)


def bytes_in_pairs() -> Any:
    """A byte-level tokenizer, which knows all text; letters beyond ASCII are several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", "<unk>", *letters, "MK", "TA", "MKTA"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("M", "K"), ("T", "A"), ("MK", "TA")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return wrap(tokenizer)


def unigrams() -> Any:
    """A tokenizer in the manner of SentencePiece, which takes the most likely pieces."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁MK", -3.0)]
    pieces += [(letter, -4.0) for letter in AMINO_ACIDS]
    pieces += [("MKT", -5.0), ("KTA", -4.5), ("AY", -6.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return wrap(tokenizer)


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


def proteins(number: int, longest: int = 120) -> list[dict[str, Any]]:
    """Return records of random sequences, letters that are no amino acids among them."""
    draw = random.Random(0)
    lengths = [1, 2, longest, *(draw.randrange(1, longest) for _ in range(number - 3))]
    return [
        {"id": f"s{i}", "sequence": "".join(draw.choices(AMINO_ACIDS + "XB-.", k=length))}
        for i, length in enumerate(lengths)
    ]


def packing(model: Any) -> Any:
    """Return the model with its attention set to packed_sdpa."""
    model.set_attn_implementation("packed_sdpa")
    return model


def a_batch(**parameters: Any) -> dict[str, Any]:
    """Return a batch of two sequences."""
    from virnucpro.data import VarlenCollator

    records = [{"id": "a", "sequence": "MKTAY"}, {"id": "b", "sequence": "MK"}]
    return VarlenCollator(fair_esm_converter(), **parameters)(records)


def attend(**arguments: Any) -> torch.Tensor:
    """Call packed_sdpa on two sequences, with other arguments if given."""
    from virnucpro.model.attention import packed_sdpa

    tensors = torch.randn(3, 1, 2, 7, 4)
    given: dict[str, Any] = {
        "query": tensors[0],
        "key": tensors[1],
        "value": tensors[2],
        "attention_mask": None,
        "is_causal": False,
        "cu_seq_lens_q": torch.tensor([0, 3, 7], dtype=torch.int32),
    }
    return packed_sdpa(torch.nn.Identity(), **{**given, **arguments})[0]


def with_config(**settings: Any) -> torch.nn.Module:
    """Return a layer with a configuration."""
    layer = torch.nn.Identity()
    layer.config = SimpleNamespace(**settings)  # type: ignore[assignment]
    return layer


class Records(IterableDataset[dict[str, Any]]):
    """Records in memory."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.records = records

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)


class ShowsEnvironment(IterableDataset[dict[str, Any]]):
    """A record whose ID is what the process that reads it sees as CUDA devices."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield {"id": repr(os.environ.get("CUDA_VISIBLE_DEVICES")), "sequence": "M"}
