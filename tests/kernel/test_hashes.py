"""Hashes of texts: equal for equal ones, and different for all others that occur."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from virnucpro import kernel

# By SplitMix64's finalizer, computed in Python.
KNOWN = [5197578548964807871, 4490210150949542640, 9374087764525767340, 12749696287829079611]


def hashes(texts: list[bytes]) -> NDArray[np.uint64]:
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int64)
    return kernel.hash_texts(offsets, np.frombuffer(b"".join(texts), np.uint8))


@given(st.lists(st.binary(max_size=20)), st.lists(st.sampled_from([b"", b"\0", b"a" * 8])))
def test_equal_texts_alone_have_equal_hashes(some: list[bytes], others: list[bytes]) -> None:
    texts = [*some, *others, *some]
    by_text = dict(zip(texts, hashes(texts).tolist(), strict=True))
    assert [by_text[text] for text in texts] == hashes(texts).tolist()
    assert len(set(by_text.values())) == len(by_text)


def test_many_similar_texts() -> None:
    """Of 200,000 IDs, none collide, and the high bits are spread evenly."""
    found = hashes([b"UniRef100_A0A%d" % number for number in range(200_000)])
    assert len(np.unique(found)) == len(found)
    shares = np.bincount((found >> np.uint64(60)).astype(int), minlength=16) / len(found)
    assert abs(shares * 16 - 1).max() < 0.05


def test_hashes_do_not_depend_on_the_machine() -> None:
    found = hashes([b"", b"a", b"12345678", b"123456789"]).tolist()
    assert found == KNOWN


def test_parts_of_longer_arrays() -> None:
    texts = np.frombuffer(b"xxabcabcyy", np.uint8)
    offsets = np.array([2, 5, 8], np.int64)
    assert len(set(kernel.hash_texts(offsets, texts).tolist())) == 1
    for bad in ([2, 5, 11], [-1, 5], [5, 2]):
        with pytest.raises(ValueError, match="the offsets of ids are out of range"):
            kernel.hash_texts(np.array(bad, np.int64), texts)
