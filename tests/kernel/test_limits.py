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
from virnucpro.kernel.arguments import check_bool
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
    rounded = Limits(100, multiple_of=16)
    assert (rounded.max_residues, rounded.tokens(14), rounded.tokens(15)) == (94, 16, 32)
    assert rounded.tokens(np.array([0, 30, 31, 94, 95])).tolist() == [16, 32, 48, 96, 96]
    assert rounded.tokens(np.array([0, 95], np.uint64)).tolist() == [16, 96]
    # The length that the packer keeps may be less than what fits.
    assert (Limits(100, 50, multiple_of=16).max_residues, Limits(100, 50).max_residues) == (50, 50)


def test_limits_without_a_multiple_are_stored_as_before() -> None:
    assert "multiple_of" not in Limits(100).to_dict()
    assert Limits(100, multiple_of=8).to_dict()["multiple_of"] == 8
    limits = Limits(100, 50, 2, 3, 8)
    assert limits == Limits.from_dict(limits.to_dict()) == pickle.loads(pickle.dumps(limits))
    assert limits != Limits(100, 50, 2, 3)
    packer = GreedyPacker(100)
    assert list(packer.count([5]).to_dict()) == [
        "version",
        "limits",
        "tokens",
        "sequences",
        "num_truncated",
        "truncated_residues",
    ]


@given(cases())
def test_limits_count_as_the_kernel_does(case: Case) -> None:
    limits = Limits(**case.parameters)
    counts = virnucpro.kernel.count(np.array(case.lengths, np.int64), limits, 1)
    assert limits.max_residues == case.limit
    tokens, sequences = np.unique(
        limits.tokens(np.array(case.lengths, np.int64)), return_counts=True
    )
    assert counts.tokens.tolist() == tokens[::-1].tolist()
    assert counts.sequences.tolist() == sequences[::-1].tolist()


def test_bad_limits_in_a_dict() -> None:
    with pytest.raises(ValueError, match=r"unknown limit 'colour'"):
        Limits.from_dict({**Limits(100).to_dict(), "colour": 1})
    limits = Limits(100).to_dict()
    for name in limits:
        with pytest.raises(ValueError, match=rf"limits have no {name!r}"):
            Limits.from_dict({key: value for key, value in limits.items() if key != name})
    with pytest.raises(ValueError, match=r"at least 1 \(got 0\)"):
        Limits.from_dict({**limits, "max_tokens_per_batch": 0})


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


def test_parameters_are_those_of_the_moment() -> None:
    """However they were changed."""

    class Halved(GreedyPacker):
        @property
        def max_sequence_length(self) -> int:
            return self.max_tokens_per_batch // 2

        @max_sequence_length.setter
        def max_sequence_length(self, _: int) -> None:
            pass

    packer = GreedyPacker(100)
    vars(packer)["max_tokens_per_batch"] = 50
    assert packer.limits.max_residues == 48
    packer.max_tokens_per_batch = True
    with pytest.raises(TypeError, match=r"must be an integer \(got True\)"):
        packer.pack_lengths([1])
    halved = Halved(100)
    assert halved.limits.max_residues == 50
    halved.max_tokens_per_batch = 60
    assert halved.limits.max_residues == 30
    with pytest.raises(AttributeError):
        packer.limits = Limits(100)  # type: ignore[misc]


def test_equal_in_effect() -> None:
    """Limits on length that the budget makes equal, and budgets for counts, do not matter."""
    one, other = GreedyPacker(100), GreedyPacker(100, 500)
    assert one.limits != other.limits
    assert one.count([5, 200]) == other.count([5, 200])
    assert one.pack_lengths([5, 200]) == other.pack_lengths([5, 200])
    wider = GreedyPacker(200, 98)
    a, b = one.count([5]), wider.count([6])
    assert a + b == b + a
    # Of 96 tokens each.
    rounded, whole = GreedyPacker(100, multiple_of=16), GreedyPacker(96, multiple_of=16)
    assert rounded.count([5, 200]) == whole.count([5, 200]) != one.count([5, 200])
    assert one.pack_lengths([5]) != wider.pack_lengths([5])
    assert one.pack_lengths([5]) != GreedyPacker(100, max_sequences_per_batch=2).pack_lengths([5])


@pytest.mark.parametrize("multiple_of", [1, 16])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint64])
def test_tokens_of_narrow_integers(dtype: type[np.generic], multiple_of: int) -> None:
    limits = Limits(5000, 4000, multiple_of=multiple_of)
    lengths = np.array([0, 5, 255], dtype)
    assert limits.tokens(lengths).tolist() == [limits.tokens(int(n)) for n in lengths]


def test_truth_values_of_arguments() -> None:
    value: object
    for value in (True, 1, np.True_):
        assert check_bool(value, "even") is True
    for value in (False, 0, np.False_):
        assert check_bool(value, "even") is False
    for wrong in ("yes", None, 2, 1.0, np.array([True])):
        with pytest.raises(TypeError, match=r"^even must be True or False \(got "):
            check_bool(wrong, "even")
