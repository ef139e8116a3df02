"""IDs as Arrow arrays are those as lists."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.data import GreedyPacker


@given(st.lists(st.tuples(st.integers(0, 9), st.text(max_size=4)), max_size=40), st.data())
def test_arrow_ids(sequences: list[tuple[int, str]], data: st.DataObject) -> None:
    lengths, ids = [n for n, _ in sequences], [name for _, name in sequences]
    packer = GreedyPacker(20)
    expected = packer.pack_lengths(lengths, ids)
    plain = pa.array(ids, pa.string())
    cut = data.draw(st.integers(0, len(ids)))
    for arrow in (
        plain,
        plain.cast(pa.large_string()),
        plain.dictionary_encode(),
        pa.chunked_array([plain[:cut], plain[cut:]]),
        pa.array(["x", *ids, "y"], pa.string()).slice(1, len(ids)),
    ):
        assert packer.pack_lengths(lengths, arrow) == expected
    numbers = [len(name) for name in ids]
    assert packer.pack_lengths(lengths, pa.array(numbers, pa.uint8())) == packer.pack_lengths(
        lengths, numbers
    )


@given(
    st.lists(st.tuples(st.integers(0, 30), st.text(max_size=4)), max_size=20),
    st.sampled_from([("drop", 0), ("split", 0), ("split", 3)]),
    st.data(),
)
def test_arrow_ids_of_some_rows(
    sequences: list[tuple[int, str]], handling: tuple[str, int], data: st.DataObject
) -> None:
    """Those that are left when others are dropped, and those of fragments."""
    lengths, ids = [n for n, _ in sequences], [name for _, name in sequences]
    packer = GreedyPacker(20, 7, overlong=handling[0], overlap=handling[1])
    expected = packer.pack_lengths(lengths, ids)
    cut = data.draw(st.integers(0, len(ids)))
    plain = pa.array(ids, pa.string())
    for arrow in (
        plain,
        plain.dictionary_encode(),
        pa.chunked_array([plain[:cut], plain[cut:]]),
        pa.array(["x", *ids, "y"], pa.large_string()).slice(1, len(ids)),
    ):
        assert packer.pack_lengths(lengths, arrow) == expected
    numbers = [len(name) for name in ids]
    assert packer.pack_lengths(lengths, pa.array(numbers, pa.int8())) == packer.pack_lengths(
        lengths, numbers
    )


def test_arrow_ids_of_no_rows() -> None:
    plan = GreedyPacker(20, 5, overlong="drop").pack_lengths([6, 7], pa.array(["b", "a"]))
    assert (len(plan), plan.dropped.tolist()) == (0, [0, 1])


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (pa.array(["a", None, "c"]), ValueError, r"ids must not be null \(got 1 nulls\)"),
        (pa.array(["a"]), ValueError, r"one ID per sequence \(got 1 for 3 sequences\)"),
        (pa.array([]), ValueError, r"one ID per sequence \(got 0 for 3 sequences\)"),
        (pa.array([1.5, 2.5, 3.5]), TypeError, r"ids must be str or int \(got double\)"),
        (pa.array([b"a", b"b", b"c"]), TypeError, r"ids must be str or int \(got binary\)"),
    ],
)
def test_bad_arrow_ids(ids: pa.Array, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        GreedyPacker(4096).pack_lengths([5, 6, 7], ids)


@pytest.mark.parametrize("kind", [pa.large_string(), getattr(pa, "string_view", pa.string)()])
def test_buffers_may_be_longer_than_needed(kind: Any) -> None:
    ids = pa.array(["c", "a", "a longer ID than fits in a view"], pa.string()).cast(kind)
    buffers = [buffer and pa.py_buffer(buffer.to_pybytes() + b"xyz") for buffer in ids.buffers()]
    longer = pa.Array.from_buffers(kind, len(ids), buffers)
    plan = GreedyPacker(100).pack_lengths([5, 5, 5], ids=longer)
    assert plan.indices.tolist() == [1, 2, 0]
