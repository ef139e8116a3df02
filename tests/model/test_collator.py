"""Packed tensors of records, and per-sequence results of packed states."""

from __future__ import annotations

import itertools
import logging
import pickle
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import esm
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import (
    AMINO_ACIDS,
    ESM2,
    byte_pairs,
    bytes_in_pairs,
    fair_esm_converter,
    huggingface_tokenizer,
    letter_pairs,
    unigrams,
    word_pieces,
)
from transformers import BertTokenizer, PreTrainedTokenizerFast

from virnucpro.data import GreedyPacker, VarlenCollator, model_inputs, unpack
from virnucpro.model.tokenized_records import OWN

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


def slices(batch: dict[str, Any]) -> list[slice]:
    """Where each sequence is among the tokens."""
    return [slice(a, b) for a, b in itertools.pairwise(batch["cu_seqlens"].tolist())]


def records_of(sequences: list[str]) -> list[Record]:
    return [{"id": f"s{i}", "sequence": sequence} for i, sequence in enumerate(sequences)]


def tokens_of(batch: dict[str, Any]) -> list[list[int]]:
    """Each sequence's tokens, cut out by the boundaries."""
    return [batch["input_ids"][part].tolist() for part in slices(batch)]


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


def truncated(batch_converter: Any, sequence: str, limit: int) -> list[int]:
    """What the tokenizer itself keeps of a sequence."""
    if hasattr(batch_converter, "alphabet"):
        return converted(batch_converter.alphabet.get_batch_converter(limit), sequence)
    special = batch_converter.num_special_tokens_to_add()
    kept = batch_converter(sequence, truncation=True, max_length=limit + special)
    return list(kept["input_ids"])


TOKENIZERS = {
    "huggingface": lambda: huggingface_tokenizer(Path(mkdtemp())),
    "fair-esm": fair_esm_converter,
    "byte pairs": byte_pairs,
    "letter pairs": letter_pairs,
    "word pieces": word_pieces,
    "byte level": bytes_in_pairs,
    "unigrams": unigrams,
}


@cache
def tokenizer_named(name: str) -> Any:
    return TOKENIZERS[name]()


# Unknown letters are one token each here, but not all of them in transformers' and fair-esm's
# tokenizers of ESM-2.
STRANGE = {name: [] if name in ("huggingface", "fair-esm") else [*"J é🧬mk"] for name in TOKENIZERS}
SPELLED = {"word pieces": ["[MASK]", "[UNK]"], "huggingface": ["<mask>", "<unk>", "<eos>"]}


@given(st.sampled_from(list(TOKENIZERS)), st.integers(1, 12), st.data())
def test_truncation_is_the_tokenizers_own(name: str, limit: int, data: st.DataObject) -> None:
    words = [*AMINO_ACIDS, "MK", "TA", "TAY", *STRANGE[name]]
    words += SPELLED.get(name, SPELLED["huggingface"][:2] if name == "fair-esm" else ["<unk>"])
    texts = st.lists(st.sampled_from(words), max_size=20).map("".join)
    sequences = data.draw(st.lists(texts, min_size=1, max_size=4))
    tokenizer = tokenizer_named(name)
    collate = VarlenCollator(tokenizer, max_sequence_length=limit, unknown="ignore")
    logging.disable()
    batch = collate(records_of(sequences))
    logging.disable(logging.NOTSET)
    assert tokens_of(batch) == [truncated(tokenizer, s, limit) for s in sequences]
    whole = tokens_of(
        VarlenCollator(tokenizer, 2**20, 2**19, unknown="ignore")(records_of(sequences))
    )
    is_cut = [len(tokens) > limit + collate.special_tokens for tokens in whole]
    assert batch["truncated"].tolist() == is_cut


def test_truncated_sequences_keep_their_eos(
    batch_converter: Any, caplog: pytest.LogCaptureFixture
) -> None:
    collate = VarlenCollator(batch_converter, max_sequence_length=3)
    sequences = records_of(["MKTAY", "MKT", "MK<mask>TAY", "M<mask>K"])
    batch = collate(sequences)
    kept = ["MKT", "MKT", "MK<mask>", "M<mask>K"]
    assert tokens_of(batch) == [converted(batch_converter, sequence) for sequence in kept]
    assert batch["truncated"].tolist() == [True, False, True, False]
    assert batch["truncated"].dtype == torch.bool
    assert sequences == records_of(["MKTAY", "MKT", "MK<mask>TAY", "M<mask>K"])
    assert caplog.messages == ["2 of 4 sequences exceed max_length (3), truncating"]
    # The budget limits them too.
    tight = VarlenCollator(batch_converter, max_tokens_per_batch=4)
    assert tokens_of(tight(records_of(["MKTAY"]))) == [converted(batch_converter, "MK")]


def test_limits_are_in_tokens() -> None:
    """A token of two letters is one token, and none is split."""
    tokenizer = byte_pairs()
    collate = VarlenCollator(tokenizer, 4096, 4)
    assert tokens_of(collate(records_of(["MKMKTATA"]))) == [tokenizer.encode("MKMKTATA")]
    assert tokens_of(collate(records_of(["YMKTAMKTA"]))) == [tokenizer.encode("YMKTAMK")]


def test_tokenizers_that_keep_the_end_are_refused() -> None:
    tokenizer = byte_pairs()
    tokenizer.truncation_side = "left"
    with pytest.raises(ValueError, match="must truncate sequences at their end"):
        VarlenCollator(tokenizer)


def test_unknown_residues_are_counted(
    batch_converter: Any, caplog: pytest.LogCaptureFixture
) -> None:
    collate = VarlenCollator(batch_converter, max_sequence_length=8)
    caplog.set_level(logging.WARNING)
    assert collate(records_of(["MK<unk>", "X<mask>"]))["num_unknown"] == 0
    assert not caplog.messages
    # The last ones are not kept.
    batch = collate(records_of(["M<mask>J*", "MK", "J<unk>TAYTAYJJJ"]))
    assert batch["num_unknown"] == 3
    assert caplog.messages[0] == (
        "3 of 14 residues (21.43%) are not in the tokenizer's vocabulary and become <unk>: "
        "J (2), * (1); later ones are counted in each batch (num_unknown)"
    )
    assert collate(records_of(["J a"]))["num_unknown"] == 3
    assert len(caplog.messages) == 2
    assert collate.unknown_residues == {"J": 3, "*": 1, " ": 1, "a": 1}
    assert collate.num_residues == 5 + 14 + 3


def test_letters_of_messages_are_legible(caplog: pytest.LogCaptureFixture) -> None:
    VarlenCollator(fair_esm_converter())(records_of(["\n\n b  " + "acdefghi"]))
    assert "become <unk>: ' ' (3), '\\n' (2), b (1), a (1)" in caplog.text
    assert "(1), ...; later" in caplog.text


def test_unknown_residues_are_refused(
    batch_converter: Any, caplog: pytest.LogCaptureFixture
) -> None:
    collate = VarlenCollator(batch_converter, unknown="error")
    with pytest.raises(ValueError, match=r"record 's1': '\*' at position 14, counted from 0,"):
        collate(records_of(["M<unk>K", "<mask>K<mask>T*J", "J"]))
    quiet = VarlenCollator(batch_converter, unknown="ignore")
    assert quiet(records_of(["MJ"]))["num_unknown"] == 1
    assert quiet.unknown_residues == {"J": 1}
    assert not caplog.messages


@pytest.mark.parametrize(
    ("name", "sequence", "unknown"),
    [
        ("byte pairs", "MKJMK<unk>é", {"J": 1, "é": 1}),
        ("letter pairs", "MKJM<unk>A", {"JM": 1, "A": 1}),
        ("word pieces", "MKTAY MJT [UNK] M" + "J" * 40, {"MJT": 1, "M" + "J" * 19: 1}),
        ("byte level", "MKJé<unk>", {}),
        ("unigrams", "MKJ<unk>TA", {"J": 1}),
    ],
)
def test_unknown_tokens_of_other_vocabularies(
    name: str, sequence: str, unknown: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tokenizer_named(name)
    collate = VarlenCollator(tokenizer)
    batch = collate(records_of(["MK", sequence]))
    assert collate.unknown_residues == unknown
    assert batch["num_unknown"] == sum(unknown.values())
    assert len(caplog.messages) == bool(unknown)
    if unknown:
        place = sequence.index(next(iter(unknown)))
        refuse = VarlenCollator(tokenizer, unknown="error")
        with pytest.raises(ValueError, match=f"record 's1': .* at position {place}, counted"):
            refuse(records_of(["MK", sequence]))


def test_tokenizers_that_do_not_tell_what_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    class Slow(type(byte_pairs())):  # type: ignore[misc]
        is_fast = False

    tokenizer = byte_pairs()
    tokenizer.__class__ = Slow
    collate = VarlenCollator(tokenizer)
    assert collate(records_of(["MKJ<unk>", "JJ"]))["num_unknown"] == 3
    assert collate.unknown_residues == {"": 3}
    assert "3 of 5 tokens (60.00%) are not in the tokenizer's vocabulary and" in caplog.text
    assert "become <unk>; later" in caplog.text
    with pytest.raises(ValueError, match="record 's0': some text is not in the"):
        VarlenCollator(tokenizer, unknown="error")(records_of(["MKJ"]))


def test_unknown_texts_are_so_many() -> None:
    """Counts take a bounded amount of memory."""
    collate = VarlenCollator(word_pieces(), 2**20, unknown="ignore")
    collate(records_of([f"J{i}" for i in range(1500)]))
    assert len(collate.unknown_residues) == 1001
    assert collate.unknown_residues[""] == 500


def test_labels_come_along() -> None:
    collate = VarlenCollator(fair_esm_converter(), max_sequence_length=4)
    records: list[Record] = [
        {"id": "a", "sequence": "MKT", "labels": [1, 2, 3]},
        {"id": "b", "sequence": "MKTAYM", "labels": np.arange(6, dtype=np.uint8)},
        {"id": "c", "sequence": "MK", "labels": torch.tensor([7, -100])},
        {"id": "d", "sequence": "MK", "labels": [5, 6, 7], "truncated": True},
        {"id": "e", "sequence": "MK"},
        {"id": "f", "sequence": "", "labels": []},
    ]
    batch = collate(records)
    none = -100
    assert [batch["labels"][part].tolist() for part in slices(batch)] == [
        [none, 1, 2, 3, none],
        [none, 0, 1, 2, 3, none],
        [none, 7, none, none],
        [none, 5, 6, none],
        [none] * 4,
        [none] * 2,
    ]
    assert batch["labels"].dtype == torch.int64
    assert batch["truncated"].tolist() == [False, True, False, True, False, False]
    assert "labels" not in collate(records_of(["MK"]))
    # As many as tokens, whatever the letters are.
    pairs = VarlenCollator(byte_pairs(), max_sequence_length=2)
    record = {"id": "a", "sequence": "MKTAY", "labels": [1, 2, 3]}
    assert pairs([record])["labels"].tolist() == [none, 1, 2, none]


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"labels": [1, 2]}, ValueError, "record 'b' has 2 labels for 3 tokens"),
        ({"labels": [1, 2, 3, 4]}, ValueError, "record 'b' has 4 labels for 3 tokens"),
        ({"labels": [1], "truncated": True}, ValueError, "record 'b' has 1 labels for 3"),
        ({"labels": [0.5] * 3}, TypeError, "labels of record 'b' must be integers"),
        ({"labels": [[1, 2, 3]]}, TypeError, "labels of record 'b' must be .* one dimension"),
        ({"tokens": 6}, ValueError, r"record 'b' has 5 tokens, but its plan counted 6; the plan"),
        ({"input_ids": [1, 2, 3]}, ValueError, "record 'b' has a key 'input_ids', which"),
        ({"max_length_q": 3}, ValueError, "record 'b' has a key 'max_length_q', which"),
    ],
)
def test_records_that_contradict_themselves(
    more: Record, error: type[Exception], message: str
) -> None:
    collate = VarlenCollator(fair_esm_converter())
    with pytest.raises(error, match=message):
        collate([{"id": "a", "sequence": "MK"}, {"id": "b", "sequence": "MKT", **more}])


def test_other_keys_are_carried() -> None:
    collate = VarlenCollator(fair_esm_converter(), max_sequence_length=3)
    records: list[Record] = [
        {"id": "a", "sequence": "MKTA", "row": 7, "tokens": 5},
        {"id": "b", "sequence": "MK", "file": "x.fa", "tokens": np.int64(4)},
    ]
    batch = collate(records)
    assert (batch["row"], batch["file"]) == ([7, None], [None, "x.fa"])
    assert OWN - set(batch) == {"labels"}
    assert set(batch) - OWN == {"row", "file"}
    # As another collator would count them.
    with pytest.raises(ValueError, match="record 'a' has 6 tokens, but its plan counted 5"):
        VarlenCollator(fair_esm_converter())(records)


def test_what_is_given_as_budget() -> None:
    collate = VarlenCollator(fair_esm_converter())
    assert (collate.max_tokens_per_batch, collate.given_budget) == (4096, None)
    collate.max_tokens_per_batch = 4096
    assert collate.given_budget == 4096
    collate.max_tokens_per_batch = 10
    with pytest.raises(ValueError, match="more than the budget of 10"):
        collate(records_of(["MKT", "MKTA"]))


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
        ((byte_pairs(), 2), ValueError, "room for one residue"),
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


def test_unknown_has_three_values() -> None:
    with pytest.raises(ValueError, match=r"'warn', 'error' or 'ignore' \(got 'raise'\)"):
        VarlenCollator(fair_esm_converter(), unknown="raise")


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


def test_unpack_takes_a_batch_and_its_special_tokens() -> None:
    """ESM-1 has no EOS, ProtT5 no BOS: residues would be lost otherwise."""
    for vocabulary, num_special in (("ESM-1b", 2), ("ESM-1", 1)):
        converter = esm.data.Alphabet.from_architecture(vocabulary).get_batch_converter()
        batch = VarlenCollator(converter)(records_of(["MKT", "MK", "A"]))
        assert sum(batch["special_tokens"]) == num_special
        unpacked = unpack(torch.randn(len(batch["input_ids"]), 4), batch)
        assert [len(part) for part in unpacked.states] == [3, 2, 1]
        assert unpacked.sequence_ids == ["s0", "s1", "s2"]
    with pytest.raises(ValueError, match="sequence_ids must be given with boundaries"):
        unpack(torch.zeros(3, 2), torch.tensor([0, 3]))


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


def without_unknown(*, merges: bool) -> Any:
    """Letters that the vocabulary lacks become no token at all."""
    from tokenizers import Tokenizer, models

    letters = {letter: i for i, letter in enumerate([*AMINO_ACIDS, "MK"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(letters, [("M", "K")] if merges else []))
    )


@pytest.mark.parametrize("merges", [False, True])
def test_what_a_tokenizer_leaves_out_is_counted(
    merges: bool, caplog: pytest.LogCaptureFixture
) -> None:
    collate = VarlenCollator(without_unknown(merges=merges))
    batch = collate(records_of(["MJK", "M-K.TA J", "MKTA"]))
    assert batch["num_unknown"] == 4
    assert collate.unknown_residues == {"J": 2, "-": 1, ".": 1}
    (message,) = caplog.messages
    assert "are left out: J (2)" in message
    refusing = VarlenCollator(without_unknown(merges=merges), unknown="error")
    assert refusing(records_of(["MKTA"]))["num_unknown"] == 0
    with pytest.raises(ValueError, match="record 's1': 'J' at position 2"):
        refusing(records_of(["MK", "MKJ"]))


def test_labels_that_do_not_fit_are_refused() -> None:
    labels = np.array([2**64 - 1, 2**64 - 100, 2], np.uint64)
    with pytest.raises(ValueError, match="labels of record 'a' do not fit in int64"):
        VarlenCollator(fair_esm_converter())({"id": "a", "sequence": "MKT", "labels": labels})
    small = np.array([1, 2, 3], np.uint64)
    batch = VarlenCollator(fair_esm_converter())({"id": "a", "sequence": "MKT", "labels": small})
    assert batch["labels"].tolist() == [-100, 1, 2, 3, -100]
