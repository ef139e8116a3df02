"""Limits as a value."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from proteins import make_records
from strategies import Case, cases

import virnucpro.data
import virnucpro.data.packing
from virnucpro.data import GreedyPacker
from virnucpro.kernel.limits import Limits


def test_limits_are_a_value() -> None:
    limits = Limits(100, 50, 2, 3)
    assert limits == Limits.from_dict(limits.to_dict()) == pickle.loads(pickle.dumps(limits))
    assert hash(limits) == hash(Limits(100, 50, 2, 3))
    assert limits != Limits(100, 50, 2)
    assert list(limits.to_dict()) == [
        "max_tokens_per_batch",
        "max_sequence_length",
        "special_tokens",
        "max_sequences_per_batch",
    ]
    with pytest.raises(FrozenInstanceError):
        limits.special_tokens = 3  # type: ignore[misc]
    assert type(Limits(np.int32(100)).max_tokens_per_batch) is int  # type: ignore[arg-type]


def test_limits_know_residues_and_tokens() -> None:
    limits = Limits(100)
    assert (limits.max_residues, limits.tokens(5), limits.tokens(5000)) == (98, 7, 100)
    assert limits.tokens(np.array([0, 98, 99])).tolist() == [2, 100, 100]
    assert Limits(100, 10**30).max_residues == 98


@given(cases())
def test_limits_count_as_the_kernel_does(case: Case) -> None:
    limits = Limits(**case.parameters)
    counts = virnucpro.kernel.count(np.array(case.lengths, np.int64), limits, 1)
    tokens, sequences = np.unique(
        limits.tokens(np.array(case.lengths, np.int64)), return_counts=True
    )
    assert counts.tokens.tolist() == tokens[::-1].tolist()
    assert counts.sequences.tolist() == sequences[::-1].tolist()


def test_bad_limits_in_a_dict() -> None:
    with pytest.raises(ValueError, match=r"unknown limit 'colour'"):
        Limits.from_dict({"max_tokens_per_batch": 100, "colour": 1})
    with pytest.raises(ValueError, match=r"limits have no 'max_tokens_per_batch'"):
        Limits.from_dict({})
    with pytest.raises(ValueError, match=r"at least 1 \(got 0\)"):
        Limits.from_dict({"max_tokens_per_batch": 0})
    # A limit that is newer than the dict has its default.
    assert Limits.from_dict({"max_tokens_per_batch": 100}) == Limits(100)


def test_parameters_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    check = Limits.__post_init__

    def note(limits: Limits) -> None:
        made.append(limits)
        check(limits)

    monkeypatch.setattr(Limits, "__post_init__", note)
    packer = GreedyPacker(100)
    for _ in range(3):
        packer.pack_lengths([60, 30])
        packer.pack_sequences(make_records([60, 30]))
    assert len(made) == 1
    packer.max_tokens_per_batch = 50
    assert packer.limits.max_residues == 48
    assert len(made) == 2
    packer.special_tokens = 50
    for _ in range(2):
        with pytest.raises(ValueError, match="room for one residue"):
            packer.pack_lengths([60, 30])
