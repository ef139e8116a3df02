"""Packed tensors of records."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from collated import TOKENIZERS, Record, converted, records_of, slices, tokenizer_named, tokens_of
from hypothesis import given
from hypothesis import strategies as st
from models import (
    AMINO_ACIDS,
    ESM2,
    byte_pairs,
    fair_esm_converter,
)

from virnucpro.data import GreedyPacker, VarlenCollator, model_inputs
from virnucpro.model.tokenized_records import BATCH_KEYS

UNKNOWN = ESM2.index("<unk>")


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
    """Return the tokens that the tokenizer itself keeps of a sequence."""
    if hasattr(batch_converter, "alphabet"):
        return converted(batch_converter.alphabet.get_batch_converter(limit), sequence)
    special = batch_converter.num_special_tokens_to_add()
    kept = batch_converter(sequence, truncation=True, max_length=limit + special)
    return list(kept["input_ids"])


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
    assert caplog.messages == ["2 of 4 sequences exceed max_sequence_length (3), truncating"]
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


def test_labels_are_aligned_with_tokens() -> None:
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
    assert BATCH_KEYS - set(batch) == {"labels"}
    assert set(batch) - BATCH_KEYS == {"row", "file"}
    # As another collator would count them.
    with pytest.raises(ValueError, match="record 'a' has 6 tokens, but its plan counted 5"):
        VarlenCollator(fair_esm_converter())(records)


def test_explicit_budget() -> None:
    collate = VarlenCollator(fair_esm_converter())
    assert (collate.max_tokens_per_batch, collate.token_budget) == (4096, None)
    collate.max_tokens_per_batch = 4096
    assert collate.token_budget == 4096
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
def test_batches_of_the_packer_fit_the_budget(
    lengths: list[int], budget: int, longest: int
) -> None:
    collate = VarlenCollator(fair_esm_converter(), budget, longest)
    packer = GreedyPacker(budget, longest, special_tokens=collate.special_tokens)
    logging.disable()
    batches = [collate(b) for b in packer.pack_sequences(records_of(["M" * n for n in lengths]))]
    logging.disable(logging.NOTSET)
    assert sum(batch["num_sequences"] for batch in batches) == len(lengths)
    plan = packer.pack_lengths(lengths)
    assert [len(batch["input_ids"]) for batch in batches] == plan.batch_tokens.tolist()


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


def test_bad_records() -> None:
    collate = VarlenCollator(fair_esm_converter())
    with pytest.raises(ValueError, match=r"records\[1\] has no 'sequence'"):
        collate([{"id": "a", "sequence": "M"}, {"id": "b"}])
    with pytest.raises(TypeError, match=r"records\[0\] must be a dict"):
        collate(["MK"])  # type: ignore[list-item]


def test_labels_that_do_not_fit_are_refused() -> None:
    labels = np.array([2**64 - 1, 2**64 - 100, 2], np.uint64)
    with pytest.raises(ValueError, match="labels of record 'a' do not fit in int64"):
        VarlenCollator(fair_esm_converter())({"id": "a", "sequence": "MKT", "labels": labels})
    small = np.array([1, 2, 3], np.uint64)
    batch = VarlenCollator(fair_esm_converter())({"id": "a", "sequence": "MKT", "labels": small})
    assert batch["labels"].tolist() == [-100, 1, 2, 3, -100]
