"""Residues that a vocabulary lacks are counted, reported or refused."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from collated import records_of, tokenizer_named
from models import (
    AMINO_ACIDS,
    byte_pairs,
    fair_esm_converter,
    word_pieces,
)
from transformers import PreTrainedTokenizerFast

from virnucpro.data import VarlenCollator


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


def test_number_of_distinct_unknown_texts_is_limited() -> None:
    """Counts take a bounded amount of memory."""
    collate = VarlenCollator(word_pieces(), 2**20, unknown="ignore")
    collate(records_of([f"J{i}" for i in range(1500)]))
    assert len(collate.unknown_residues) == 1001
    assert collate.unknown_residues[""] == 500


def test_unknown_must_be_one_of_three_values() -> None:
    with pytest.raises(ValueError, match=r"'warn', 'error' or 'ignore' \(got 'raise'\)"):
        VarlenCollator(fair_esm_converter(), unknown="raise")


def without_unknown(*, merges: bool) -> Any:
    """Letters that the vocabulary lacks become no token at all."""
    from tokenizers import Tokenizer, models

    letters = {letter: i for i, letter in enumerate([*AMINO_ACIDS, "MK"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(letters, [("M", "K")] if merges else []))
    )


@pytest.mark.parametrize("merges", [False, True])
def test_residues_without_a_token_are_counted(
    merges: bool, caplog: pytest.LogCaptureFixture
) -> None:
    collate = VarlenCollator(without_unknown(merges=merges))
    batch = collate(records_of(["MJK", "M-K.TA J", "MKTA"]))
    assert batch["num_unknown"] == 4
    assert collate.unknown_residues == {"J": 2, "-": 1, ".": 1}
    (message,) = caplog.messages
    assert "are skipped: J (2)" in message
    refusing = VarlenCollator(without_unknown(merges=merges), unknown="error")
    assert refusing(records_of(["MKTA"]))["num_unknown"] == 0
    with pytest.raises(ValueError, match="record 's1': 'J' at position 2"):
        refusing(records_of(["MK", "MKJ"]))
