"""Arrays of lengths and IDs of every type, and the arrays that results are written to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from proteins import random_lengths
from reference import batches_of, places_of

from virnucpro.data import GreedyPacker
from virnucpro.kernel.arguments import check_lengths


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u2"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_every_integer_type_and_layout_in_memory(dtype: str, num_threads: int) -> None:
    lengths = np.random.default_rng(2).integers(0, 127, 200_000).astype(dtype)
    packer = GreedyPacker(300, 100, num_threads=num_threads)
    expected = packer.pack_lengths(lengths.tolist())
    misaligned = np.frombuffer(b"x" + lengths.tobytes(), dtype, offset=1)
    strided = np.repeat(lengths, 3)[::3]
    backwards = lengths[::-1].copy()[::-1]
    read_only = lengths.copy()
    read_only.flags.writeable = False
    for same in (lengths, misaligned, strided, backwards, read_only):
        plan = packer.pack_lengths(same)
        assert plan == expected
        np.testing.assert_array_equal(packer.assign_batches(same), expected.assign(lengths))


def test_contiguous_lengths_are_not_copied() -> None:
    for dtype in (np.int8, np.uint16, np.int32, np.uint64):
        lengths = np.zeros(10, dtype)
        assert check_lengths(lengths) is lengths


def test_wide_lengths_and_budgets_need_no_memory() -> None:
    lengths = [2**40, 2**40 - 1, 1, 0, 2**39]
    for budget in (2**41 + 7, 2**62):
        plan = GreedyPacker(budget, 2**62).pack_lengths(lengths)
        assert batches_of(plan) == reference.first_fit_decreasing(lengths, budget, 2**62)
        assert plan.assign(lengths).tolist() == places_of(batches_of(plan), 5)[0]


@pytest.mark.slow
def test_many_wide_sizes() -> None:
    lengths = np.random.default_rng(3).integers(0, 2**40, 300_000)
    packer = GreedyPacker(2**41, 2**40, num_threads=2)
    plan = packer.pack_lengths(lengths)
    order = np.lexsort((np.arange(len(lengths)), -lengths))
    np.testing.assert_array_equal(np.sort(plan.indices), np.arange(len(lengths)))
    np.testing.assert_array_equal(
        plan.batch_tokens, np.add.reduceat(lengths[plan.indices] + 2, plan.offsets[:-1])
    )
    assert plan.indices[0] == order[0]
    np.testing.assert_array_equal(
        plan.assign(lengths)[plan.indices], np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
    )


def test_sums_beyond_64_bits_are_refused() -> None:
    with pytest.raises(OverflowError, match="number of tokens does not fit"):
        GreedyPacker(2**62, 2**62).pack_lengths([2**62, 2**62, 2**62])
    with pytest.raises(OverflowError, match="truncated residues does not fit"):
        GreedyPacker(4096).pack_lengths(np.full(2, 2**63 + 1022, np.uint64))
    half = GreedyPacker(4096).count(np.full(1, 2**62 + 5000, np.uint64))
    with pytest.raises(OverflowError, match="truncated residues does not fit"):
        half + half


def test_lengths_of_64_bits_are_truncated() -> None:
    plan = GreedyPacker(4096).pack_lengths(np.array([2**63, 5], np.uint64))
    assert plan.truncated_residues == 2**63 - 1022
    assert plan.batch_tokens.tolist() == [1024 + 7]


def test_out_is_written_and_returned(tmp_path: Any) -> None:
    lengths = random_lengths(1000)
    packer = GreedyPacker(4096)
    layout = packer.lay_out(packer.count(lengths))
    expected = packer.assign_batches(lengths)
    assert expected.dtype == np.int32
    for out in (
        np.full(1000, -1, np.int32),
        np.full(1000, -1, np.int64),
        np.memmap(tmp_path / "batches", np.int32, "w+", shape=(1000,)),
    ):
        assert packer.assign_batches(lengths, out=out) is out
        np.testing.assert_array_equal(out, expected)
        assert layout.slots(lengths, out=out) is out
        np.testing.assert_array_equal(out, layout.slots(lengths))


def test_failed_assignment_leaves_out_unchanged() -> None:
    packer = GreedyPacker(4096)
    layout = packer.lay_out(packer.count([10, 20]))
    out = np.full(2, -1, np.int32)
    with pytest.raises(ValueError, match=r"2 sequences of 12 tokens \(the layout has 1\)"):
        layout.assign([10, 10], out=out)
    with pytest.raises(ValueError, match=r"a size that the layout does not have"):
        layout.assign([10, 11], out=out)
    with pytest.raises(ValueError, match=r"2 sequences of 22 tokens \(the layout has 1\)"):
        layout.slots([20, 10], before=packer.count([20]), out=out)
    with pytest.raises(ValueError, match=r"`before` has more sequences of 12 tokens"):
        layout.assign([20, 10], before=packer.count([10, 10]), out=out)
    with pytest.raises(ValueError, match=r"`before` has more sequences of 13 tokens"):
        layout.assign([20, 10], before=packer.count([11]), out=out)
    with pytest.raises(ValueError, match=r"`before` and the layout .* different limits"):
        layout.assign([20, 10], before=GreedyPacker(100).count([10]), out=out)
    assert out.tolist() == [-1, -1]


def test_empty_input_gives_an_empty_plan() -> None:
    empty: list[Any]
    for empty in ([], np.empty(0, np.uint8), np.array([])):  # type: ignore[assignment]
        plan = GreedyPacker(4096).pack_lengths(empty, ids=empty)
        assert (len(plan), plan.num_sequences, plan.efficiency, plan.lower_bound) == (0, 0, 0.0, 0)
        assert plan.offsets.tolist() == [0]
        assert list(plan) == []
        assert GreedyPacker(4096).assign_batches(empty).shape == (0,)
    assert GreedyPacker(4096).pack_sequences([]) == []


@pytest.mark.parametrize(
    "ids",
    [
        ["b", "a", "\ud800", "\uffff", "\U00010000"],
        np.array(["b", "a", "", "é", "\U00010000"]),
        np.array(["b", "a", "", "é", "\U00010000"], dtype=object),
        np.array(["b", "a", "", "é", "\U00010000"], dtype=">U9"),
        np.array(["b", "x", "a", "x", "c"])[::2].repeat(2)[:5],
        np.array([3, -1, 2, 2, 0], np.int16),
        np.array([3, 2**64 - 1, 2**63, 2, 0], np.uint64),
        [3, 2**80, -(2**80), 2, 0],
        [np.int64(3), np.uint8(1), 2, 5, 4],
        np.array([3, 2, 1, 1, 0], dtype=object),
    ],
    ids=str,
)
def test_kinds_of_ids(ids: Any) -> None:
    lengths = [7] * 5
    plan = GreedyPacker(20).pack_lengths(lengths, ids)
    assert batches_of(plan) == reference.first_fit_decreasing(lengths, 20, ids=list(ids))


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy 2 has StringDType")
def test_ids_of_variable_width() -> None:
    texts = ["b", "a", "", "é", "\U00010000"]
    ids = np.array(texts, dtype=np.dtypes.StringDType())
    packer = GreedyPacker(20)
    assert packer.pack_lengths([7] * 5, ids) == packer.pack_lengths([7] * 5, texts)
