"""Packed tensors of records, and per-sequence results of packed states."""

from __future__ import annotations

import itertools
import logging
import pickle
from typing import Any

import esm
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import AMINO_ACIDS, ESM2, byte_pairs, fair_esm_converter, huggingface_tokenizer
from transformers import BertTokenizer, PreTrainedTokenizerFast

from virnucpro.data import GreedyPacker, VarlenCollator, model_inputs, unpack

Record = dict[str, Any]
UNKNOWN = ESM2.index("<unk>")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return huggingface_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=["huggingface", "fair-esm"])
def batch_converter(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    return tokenizer if request.param == "huggingface" else fair_esm_converter()


def converted(batch_converter: Any, sequence: str) -> list[int]:
    """What the tokenizer itself says."""
    if hasattr(batch_converter, "alphabet"):
        tokens: list[int] = batch_converter([("", sequence)])[2][0].tolist()
        return tokens
    return list(batch_converter.encode(sequence))


def records_of(sequences: list[str]) -> list[Record]:
    return [{"id": f"s{i}", "sequence": sequence} for i, sequence in enumerate(sequences)]


def tokens_of(batch: dict[str, Any]) -> list[list[int]]:
    """Each sequence's tokens, cut out by the boundaries."""
    bounds = batch["cu_seqlens"].tolist()
    ids = batch["input_ids"].tolist()
    return [ids[a:b] for a, b in itertools.pairwise(bounds)]


def test_tokens_are_the_tokenizers(batch_converter: Any) -> None:
    known = AMINO_ACIDS + "XBZUO-."
    collate = VarlenCollator(batch_converter)
    sequences = [known, *known, known[::-1] * 20]
    batch = collate(records_of(sequences))
    assert tokens_of(batch) == [converted(batch_converter, s) for s in sequences]
    assert tokens_of(collate(records_of(["MK"]))) == [
        [ESM2.index(token) for token in ("<cls>", "M", "K", "<eos>")]
    ]


@pytest.mark.parametrize("token", ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", "<null_1>"])
def test_special_tokens_that_are_spelled_out(batch_converter: Any, token: str) -> None:
    sequences = [token, f"MK{token}TA", f"{token}{token}", "MKTA"]
    batch = VarlenCollator(batch_converter)(records_of(sequences))
    assert tokens_of(batch) == [converted(batch_converter, s) for s in sequences]


@pytest.mark.parametrize("letter", [*"J*mka?<> \t\0", "é", "\x80", "Ā", "\U0001f9ec", "\ud800"])
def test_unknown_residues_are_one_token_each(batch_converter: Any, letter: str) -> None:
    collate = VarlenCollator(batch_converter)
    m = ESM2.index("M")
    batch = collate(records_of([f"M{letter}{letter}M", letter]))
    assert tokens_of(batch) == [[0, m, UNKNOWN, UNKNOWN, m, 2], [0, UNKNOWN, 2]]


@given(st.lists(st.text(st.sampled_from([*ESM2[4:-2], "J", "é"]), max_size=30), max_size=12))
def test_layout(sequences: list[str]) -> None:
    batch = VarlenCollator(fair_esm_converter())(records_of(sequences))
    if not sequences:
        assert batch == {}
        return
    lengths = [len(sequence) + 2 for sequence in sequences]
    assert batch["cu_seqlens"].tolist() == [0, *np.cumsum(lengths)]
    assert batch["cu_seqlens"].dtype == torch.int32
    assert batch["input_ids"].dtype == batch["position_ids"].dtype == torch.int64
    assert batch["position_ids"].tolist() == [i for n in lengths for i in range(n)]
    assert batch["max_seqlen"] == max(lengths)
    assert batch["sequence_ids"] == [f"s{i}" for i in range(len(sequences))]
    assert (batch["num_sequences"], batch["token_budget"]) == (len(sequences), 4096)
    for sequence, tokens in zip(sequences, tokens_of(batch), strict=True):
        letters = [ESM2.index(letter) if letter in ESM2 else UNKNOWN for letter in sequence]
        assert tokens == [0, *letters, 2]
    inputs = model_inputs(batch)
    assert inputs["input_ids"].shape == inputs["position_ids"].shape == (1, sum(lengths))
    for side in "qk":
        assert inputs[f"cu_seq_lens_{side}"].equal(batch["cu_seqlens"])
        assert inputs[f"max_length_{side}"] == max(lengths)


def test_one_record_and_none() -> None:
    collate = VarlenCollator(fair_esm_converter())
    record = {"id": "a", "sequence": "MK"}
    one, listed = collate(record), collate([record])
    assert one["input_ids"].equal(listed["input_ids"])
    assert one["sequence_ids"] == ["a"]
    assert collate([]) == {}


def test_truncated_sequences_keep_their_eos(
    batch_converter: Any, caplog: pytest.LogCaptureFixture
) -> None:
    collate = VarlenCollator(batch_converter, max_sequence_length=3)
    sequences = records_of(["MKTAY", "MKT", "MK<mask>TAY"])
    batch = collate(sequences)
    # Residues are letters, as the packer counts them.
    expected = [converted(batch_converter, s) for s in ("MKT", "MKT")]
    expected.append([*expected[0][:3], UNKNOWN, expected[0][-1]])
    assert tokens_of(batch) == expected
    assert sequences == records_of(["MKTAY", "MKT", "MK<mask>TAY"])
    assert "2 of 3 sequences exceed max_length (3), truncating" in caplog.text
    # The budget limits them too.
    tight = VarlenCollator(batch_converter, max_tokens_per_batch=4)
    assert tokens_of(tight(records_of(["MKTAY"]))) == [converted(batch_converter, "MK")]


def test_budget_overrun_raises() -> None:
    collate = VarlenCollator(fair_esm_converter(), max_tokens_per_batch=10)
    assert collate(records_of(["MKT", "MKT"]))["input_ids"].shape == (10,)
    with pytest.raises(ValueError, match=r"2 records, the first 's0', has 11 tokens.*of 10"):
        collate(records_of(["MKT", "MKTA"]))
    assert collate(records_of(["MKT"]))["num_sequences"] == 1


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=40),
    st.integers(3, 80),
    st.integers(1, 50),
)
def test_no_batch_of_the_packer_overruns(lengths: list[int], budget: int, longest: int) -> None:
    collate = VarlenCollator(fair_esm_converter(), budget, longest)
    packer = GreedyPacker(budget, longest, special_tokens=collate.special_tokens)
    logging.disable()
    batches = [collate(b) for b in packer.pack_sequences(records_of(["M" * n for n in lengths]))]
    logging.disable(logging.NOTSET)
    assert sum(batch["num_sequences"] for batch in batches) == len(lengths)
    plan = packer.pack_lengths(lengths)
    assert [len(batch["input_ids"]) for batch in batches] == plan.batch_tokens.tolist()


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
    batch = collate(records_of(["MKTAY", "YMK", "TATATATA", ""]))
    assert tokens_of(batch) == [tokenizer.encode(s) for s in ("MKTAY", "YMK", "TATATA", "")]
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


def test_collators_are_picklable(batch_converter: Any) -> None:
    collate = pickle.loads(pickle.dumps(VarlenCollator(batch_converter)))
    assert tokens_of(collate(records_of(["MK"])))[0] == converted(batch_converter, "MK")


class Letterless:
    def get_vocab(self) -> dict[str, int]:
        return {"<unk>": 0}

    def encode(self, *_: Any, **__: Any) -> list[int]:
        return []

    def __call__(self, *_: Any, **__: Any) -> dict[str, list[int]]:
        return {"input_ids": [], "special_tokens_mask": []}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None,), TypeError, r"fair-esm or a Hugging Face tokenizer \(got NoneType\)"),
        ((fair_esm_converter(), 2), ValueError, "room for one residue"),
        ((fair_esm_converter(), 4096, 0), ValueError, "max_sequence_length must be at least 1"),
        ((fair_esm_converter(), 2**31), ValueError, "must be at most 2,147,483,647"),
        ((fair_esm_converter(), "4096"), TypeError, "must be an integer"),
        (
            (Letterless(),),
            ValueError,
            "no letter",
        ),
    ],
)
def test_bad_parameters(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        VarlenCollator(*arguments)


def test_bad_records() -> None:
    collate = VarlenCollator(fair_esm_converter())
    with pytest.raises(ValueError, match=r"records\[1\] has no 'sequence'"):
        collate([{"id": "a", "sequence": "M"}, {"id": "b"}])
    with pytest.raises(TypeError, match=r"records\[0\] must be a dict"):
        collate(["MK"])  # type: ignore[list-item]


def test_unpack_leaves_out_special_tokens() -> None:
    lengths = [4, 2, 7, 3]
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    states = torch.randn(sum(lengths), 5, dtype=torch.float64)
    for hidden in (states, states[None]):
        unpacked = unpack(hidden, bounds, list("abcd"))
        assert unpacked.sequence_ids == list("abcd")
        for i, n in enumerate(lengths):
            expected = states[bounds[i] + 1 : bounds[i] + n - 1]
            assert unpacked.states[i].equal(expected)
            assert torch.allclose(unpacked.embeddings[i], expected.mean(0), equal_nan=True)
    assert unpacked.embeddings[1].isnan().all()
    half = unpack(states.half(), bounds, list("abcd"))
    assert (half.states[0].dtype, half.embeddings.dtype) == (torch.float16, torch.float32)


def test_unpack_without_an_eos() -> None:
    states = torch.arange(7.0)[:, None]
    unpacked = unpack(states, torch.tensor([0, 4, 7]), ["a", "b"], num_after=0)
    assert [part[:, 0].tolist() for part in unpacked.states] == [[1, 2, 3], [5, 6]]
    assert unpacked.embeddings[:, 0].tolist() == [2.0, 5.5]


def test_unpack_has_gradients() -> None:
    states = torch.randn(9, 3, requires_grad=True)
    unpack(states, torch.tensor([0, 4, 9]), ["a", "b"]).embeddings.sum().backward()  # type: ignore[no-untyped-call]
    share = [0, 1 / 2, 1 / 2, 0, 0, 1 / 3, 1 / 3, 1 / 3, 0]
    assert states.grad is not None
    assert torch.allclose(states.grad, torch.tensor(share)[:, None].expand(9, 3))


@pytest.mark.parametrize(
    ("shape", "bounds", "ids", "message"),
    [
        ((2, 9, 3), [0, 9], "a", "hidden_states must be"),
        ((9, 3), [0, 4, 9], "a", r"one a sequence \(got 1 for 2\)"),
        ((9, 3), [0, 8], "a", "lead from 0 to the 9 tokens"),
        ((0, 3), [0], "", "at least one sequence"),
        ((9, 3), [1, 9], "a", "lead from 0 to the 9 tokens"),
        ((9, 3), [0, 1, 9], "ab", "with 2 special tokens in each"),
    ],
)
def test_unpack_refuses(shape: tuple[int, ...], bounds: list[int], ids: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack(torch.zeros(shape), torch.tensor(bounds), list(ids))
