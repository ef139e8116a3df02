"""Counts from histograms that other programs made."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, cases

from virnucpro.data import GreedyPacker, Limits, TokenCounts

Pairs = list[tuple[int, int]]


def pairs_of(lengths: list[int], limits: Limits, data: st.DataObject) -> Pairs:
    """A histogram of sizes in random order, some of them in several pairs."""
    sizes = Counter(limits.tokens(length) for length in lengths)
    pairs = []
    for size, number in sizes.items():
        cut = data.draw(st.integers(0, number - 1))
        pairs += [(size, n) for n in (cut, number - cut) if n]
    return data.draw(st.permutations(pairs))


@given(cases(), st.data())
def test_pairs_give_the_counts_of_lengths(case: Case, data: st.DataObject) -> None:
    packer = GreedyPacker(**case.parameters)
    lengths = [min(length, case.limit) for length in case.lengths]
    pairs = pairs_of(lengths, packer.limits, data)
    tokens, sequences = ([pair[i] for pair in pairs] for i in (0, 1))
    real = sum(length + case.special_tokens for length in lengths)
    padding = sum(size * number for size, number in pairs) - real
    counts = TokenCounts.from_pairs(tokens, sequences, packer.limits, padding_tokens=padding)
    expected = packer.count(lengths)
    assert counts == expected
    assert counts.limits == packer.limits
    assert packer.lay_out(counts) == packer.lay_out(expected)
    assert pickle.loads(pickle.dumps(counts)) == counts
    assert counts + counts == expected + expected
    if case.multiple_of == 1:
        assert TokenCounts.from_pairs(tokens, sequences, packer.limits) == expected


@given(cases(), st.data())
def test_pairs_and_totals_give_the_counts_of_truncated_sequences(
    case: Case, data: st.DataObject
) -> None:
    packer = GreedyPacker(**case.parameters)
    expected = packer.count(case.lengths)
    pairs = pairs_of(case.lengths, packer.limits, data)
    excess = [length - case.limit for length in case.lengths if length > case.limit]
    counts = TokenCounts.from_pairs(
        np.array([size for size, _ in pairs], np.int64),
        np.array([number for _, number in pairs], np.int64),
        packer.limits,
        num_truncated=len(excess),
        truncated_residues=sum(excess),
        padding_tokens=expected.padding_tokens,
    )
    assert counts == expected
    assert packer.lay_out(counts) == packer.lay_out(expected)


def test_two_arguments_suffice_for_the_defaults() -> None:
    counts = TokenCounts.from_pairs([1024, 30, 2], [3, 1, 4])
    for budget in (1024, 4096, 2**62):
        packer = GreedyPacker(budget, max_sequences_per_batch=5)
        assert packer.lay_out(counts) == packer.lay_out(packer.count([1022] * 3 + [28] + [0] * 4))
    with pytest.raises(ValueError, match=r"at most 1022 residues .* at most 98 residues"):
        GreedyPacker(100).lay_out(counts)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u2"])
def test_every_integer_type_and_stride(dtype: str) -> None:
    sizes, numbers = np.array([[9, 3], [2, 100], [9, 4]], dtype).T
    counts = TokenCounts.from_pairs(sizes, numbers)
    assert (counts.tokens.tolist(), counts.sequences.tolist()) == ([9, 2], [7, 100])


def test_what_engines_return() -> None:
    objects = np.array([9, 2], object)
    for wrong in (np.array([1.0, 2.0]), np.array([1.0, np.nan]), objects):
        with pytest.raises(TypeError, match=rf"sequences must be integers \(got {wrong.dtype}\)"):
            TokenCounts.from_pairs([9, 2], wrong)
        with pytest.raises(TypeError, match=rf"tokens must be integers \(got {wrong.dtype}\)"):
            TokenCounts.from_pairs(wrong, [9, 2])
    masked = np.ma.array([9, 2], mask=[False, True])
    with pytest.raises(TypeError, match="tokens must not be a masked array"):
        TokenCounts.from_pairs(masked, [9, 2])


def test_no_pairs() -> None:
    for none in (np.empty(0, np.int64), np.empty(0, np.uint16), np.empty(0)):
        counts = TokenCounts.from_pairs(none, none)
        assert counts == GreedyPacker(4096).count([])
        assert GreedyPacker(4096).lay_out(counts).num_batches == 0


BAD: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
    ([9, 1025], [1, 1], {}, ValueError, r"tokens\[1\] must be from 2 to 1024 \(got 1025\)"),
    ([9, 1], [1, 1], {}, ValueError, r"tokens\[1\] must be from 2 to 1024 \(got 1\)"),
    ([-9], [1], {}, ValueError, r"tokens\[0\] must be from 2 to 1024 \(got -9\)"),
    ([9, 8], [1, 0], {}, ValueError, r"sequences\[1\] must be at least 1 \(got 0\)"),
    ([9, 9], [-1, 5], {}, ValueError, r"sequences\[0\] must be at least 1 \(got -1\)"),
    ([9, 8], [1], {}, ValueError, r"tokens and sequences must have the same length .got 2 and 1."),
    ([9.0], [1], {}, TypeError, r"tokens\[0\] must be an integer \(got 9.0\)"),
    ([9], [None], {}, TypeError, r"sequences\[0\] must be an integer \(got None\)"),
    ([9], [True], {}, TypeError, r"sequences\[0\] must be an integer \(got True\)"),
    ([9], [2**63], {}, ValueError, r"sequences\[0\] does not fit in int64 \(got 92233"),
    (np.array([9, 2**63], np.uint64), [1, 1], {}, ValueError, r"tokens\[1\] does not fit in int64"),
    (np.array([[9]]), [1], {}, ValueError, r"tokens must be one-dimensional \(got 2 dimensions\)"),
    ([9], np.array(1), {}, ValueError, r"sequences must be one-dimensional \(got 0 dimensions\)"),
    ({9: 1}, [1], {}, TypeError, r"tokens must be a list or an array of integers \(got dict\)"),
    ([9, 9], [2**62, 2**62], {}, OverflowError, "number of sequences does not fit in 64 bits"),
    ([9, 8], [2**62, 2**62], {}, OverflowError, "number of sequences does not fit in 64 bits"),
    ([9], [2**62], {}, OverflowError, "number of tokens does not fit in 64 bits"),
    ([9], [1], {"limits": GreedyPacker(9)}, TypeError, r"limits must be Limits .got GreedyPacker."),
    ([9], [1], {"num_truncated": -1}, ValueError, r"num_truncated must be at least 0 \(got -1\)"),
    ([9], [1], {"num_truncated": 1.0}, TypeError, r"num_truncated must be an integer .got 1.0."),
    ([9], [1], {"truncated_residues": 2**63}, ValueError, "truncated_residues must be at most"),
    ([9], [1], {"truncated_residues": 3}, ValueError, "truncated sequences and residues are incon"),
    (
        [9],
        [1],
        {"num_truncated": 1, "truncated_residues": 3},
        ValueError,
        "more sequences are truncated than have the largest size",
    ),
    ([9], [1], {"padding_tokens": 1}, ValueError, "number of padding tokens is out of range"),
    ([9], [1], {"padding_tokens": "1"}, TypeError, "padding_tokens must be an integer .got '1'."),
]


@pytest.mark.parametrize(("tokens", "sequences", "more", "error", "message"), BAD)
def test_bad_pairs(
    tokens: Any, sequences: Any, more: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TokenCounts.from_pairs(tokens, sequences, **more)


def test_padding_is_asked_for() -> None:
    limits = Limits(4096, multiple_of=16)
    with pytest.raises(ValueError, match=r"padding_tokens must be given.*\(got multiple_of=16\)"):
        TokenCounts.from_pairs([32], [2], limits)
    with pytest.raises(ValueError, match=r"tokens\[0\] must be a multiple of 16 \(got 30\)"):
        TokenCounts.from_pairs([30], [2], limits, padding_tokens=0)
    counts = TokenCounts.from_pairs([32], [2], limits, padding_tokens=5)
    assert (counts.total_tokens, counts.padding_tokens) == (59, 5)
