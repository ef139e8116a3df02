"""Tokenizers whose tokens are not ESM-2's."""

from __future__ import annotations

import esm
import pytest
from collated import records_of, tokens_of
from models import (
    AMINO_ACIDS,
    byte_pairs,
)
from transformers import BertTokenizer, PreTrainedTokenizerFast

from virnucpro.data import VarlenCollator


def test_special_tokens_of_other_alphabets() -> None:
    esm1 = esm.data.Alphabet.from_architecture("ESM-1").get_batch_converter()
    collate = VarlenCollator(esm1)
    assert collate.special_tokens == 1
    assert tokens_of(collate(records_of(["MKT", "K"]))) == [
        esm1([("", s)])[2][0].tolist() for s in ("MKT", "K")
    ]
    alignments = esm.data.Alphabet.from_architecture("MSA Transformer").get_batch_converter()
    with pytest.raises(ValueError, match="alignments"):
        VarlenCollator(alignments)


def test_single_letters_of_another_tokenizer() -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *AMINO_ACIDS]
    bert = BertTokenizer({token: i for i, token in enumerate(vocabulary)}, do_lower_case=False)
    collate = VarlenCollator(bert)
    # It takes residues apart by blanks; here they are letters.
    assert tokens_of(collate(records_of(["MKJA"]))) == [bert.encode("M K J A")]


def test_other_vocabularies_go_through_the_tokenizer() -> None:
    tokenizer = byte_pairs()
    collate = VarlenCollator(tokenizer, max_sequence_length=6)
    sequences = ["MKTAY", "YMK", "TATATATA", ""]
    batch = collate(records_of(sequences))
    assert tokens_of(batch) == [tokenizer.encode(s) for s in sequences]
    assert tokens_of(batch)[0] == [0, 23, 24, tokenizer.get_vocab()["Y"], 1]


@pytest.mark.parametrize("split", [True, False])
def test_tokenizers_that_prepend_a_blank(split: bool) -> None:
    """A letter by itself is not what it is within a sequence."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {t: i for i, t in enumerate(["<s>", "</s>", "<unk>", "▁", *AMINO_ACIDS])}
    if not split:
        vocabulary |= {f"▁{letter}": len(vocabulary) + i for i, letter in enumerate(AMINO_ACIDS)}
    merges = [] if split else [("▁", letter) for letter in AMINO_ACIDS]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    collate = VarlenCollator(fast)
    assert not collate.has_table
    assert tokens_of(collate(records_of(["MKTAY"]))) == [fast.encode("MKTAY")]


def test_vocabularies_without_bare_letters() -> None:
    """ProtT5 has each letter as a word of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {token: i for i, token in enumerate(["</s>", "<unk>", *(f"▁{a}" for a in AMINO_ACIDS)])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    collate = VarlenCollator(fast)
    assert collate.special_tokens == 1
    assert collate(records_of(["A"]))["special_tokens"] == (0, 1)
    assert tokens_of(collate(records_of(["M K T", "A"]))) == [
        fast.encode("M K T"),
        fast.encode("A"),
    ]


def test_special_tokens_are_found_in_any_order_of_the_vocabulary() -> None:
    """Some letters have no token, and vocabularies have no order."""
    from tokenizers import Tokenizer, models, normalizers, processors

    found = set()
    for order in ("MKmk", "kmKM", "mMkK"):
        vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *"MKmk"])}
        tokens = {token: vocabulary[token] for token in ["</s>", *order, "<s>"]}
        tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[]))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
        collate = VarlenCollator(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
        found.add(tuple(tokens_of(collate(records_of(["MK"])))[0]))
    assert found == {(0, 4, 5, 1)}
