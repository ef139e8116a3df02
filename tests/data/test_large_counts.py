"""Counts and totals beyond 31, 63 and 64 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from proteins import short_records, times

from virnucpro.data import GreedyPacker


@pytest.mark.parametrize("number", [2**31 - 1, 2**31, 2**31 + 1, 2**40, 2**62 + 3])
def test_layouts_of_more_rows_than_any_array(number: int) -> None:
    packer = GreedyPacker(2, special_tokens=0)
    counts = times(packer.count([1]), number)
    layout = packer.lay_out(counts)
    assert (layout.num_sequences, layout.total_tokens) == (number, number)
    assert layout.num_batches == layout.lower_bound == (number + 1) // 2
    assert layout.efficiency == number / (2 * layout.num_batches)
    before = times(packer.count([1]), number - 3)
    batches = layout.assign([1] * 3, before=before)
    slots = layout.slots([1] * 3, before=before)
    assert batches.dtype == slots.dtype == (np.int32 if number < 2**31 else np.int64)
    last = range(number - 3, number)
    assert (batches.tolist(), slots.tolist()) == ([n // 2 for n in last], [n % 2 for n in last])
    if number >= 2**31:
        narrow = np.zeros(3, np.int32)
        with pytest.raises(ValueError, match=rf"int64 for {number:,} sequences \(got int32\)"):
            layout.assign([1] * 3, before=before, out=narrow)
        assert narrow.tolist() == [0] * 3
    with pytest.raises(ValueError, match="the layout has"):
        layout.assign([1] * 4, before=before)
    if number > 2**60:
        with pytest.raises((ValueError, MemoryError)):
            layout.batch_tokens  # noqa: B018


def test_counts_beyond_63_bits_are_refused() -> None:
    packer = GreedyPacker(10, special_tokens=0)
    small, large = (times(packer.count([length]), 2**62) for length in (1, 11))
    for counts, what in (
        (small, "the number of sequences"),
        (large, "the number of sequences"),
        (times(packer.count([2**31]), 2**32 + 4), "the number of truncated residues"),
    ):
        before = counts.sequences.tolist()
        with pytest.raises(OverflowError, match=f"{what} does not fit in 64 bits"):
            counts + counts
        assert counts.sequences.tolist() == before
    with pytest.raises(OverflowError, match="the number of sequences does not fit in 64 bits"):
        small + times(packer.count([2]), 2**62)
    most = small + times(packer.count([1]), 2**62 - 1)
    assert most.num_sequences == most.total_tokens == 2**63 - 1
    assert packer.lay_out(most).num_batches == -(-(2**63 - 1) // 10)
    for more in packer.count([1]), packer.count([5]):
        with pytest.raises(OverflowError, match="the number of sequences does not fit in 64 bits"):
            most + more


def test_totals_beyond_63_bits_are_refused() -> None:
    packer = GreedyPacker(10, special_tokens=0)
    counts = times(packer.count([9]), (2**63 - 1) // 9)
    counts += packer.count([(2**63 - 1) % 9])
    assert counts.total_tokens == packer.lay_out(counts).total_tokens == 2**63 - 1
    for more in packer.count([1]), packer.count([9]), counts:
        beyond = counts + more
        with pytest.raises(OverflowError, match="the number of tokens does not fit in 64 bits"):
            beyond.total_tokens  # noqa: B018
        with pytest.raises(OverflowError, match="the number of tokens does not fit in 64 bits"):
            packer.lay_out(beyond)
    with pytest.raises(OverflowError, match="the number of tokens does not fit in 64 bits"):
        GreedyPacker(2**62, special_tokens=2**62 - 1).pack_sequences(short_records(3))


@pytest.mark.long
def test_more_rows_than_31_bits_number(tmp_path: Path) -> None:
    large, small = 2**31 + 2**20, 7
    num = large + small
    lengths = np.memmap(tmp_path / "lengths", np.uint8, "w+", shape=(num,))
    lengths[:large], lengths[large:] = 60, 40
    out = np.memmap(tmp_path / "batches", np.int64, "w+", shape=(num,))
    # Else pytest would keep 20 GB for some runs.
    for path in tmp_path.iterdir():
        path.unlink()
    packer = GreedyPacker(100, special_tokens=0)
    assert packer.assign_batches(lengths, out=out) is out
    # Each batch has a sequence of 60, the first ones one of 40 as well.
    step = 2**24
    for begin in range(0, large, step):
        end = min(begin + step, large)
        np.testing.assert_array_equal(out[begin:end], np.arange(begin, end))
    assert out[large:].tolist() == list(range(small))
    with pytest.raises(ValueError, match=rf"int64 for {num:,} sequences \(got int32\)"):
        packer.assign_batches(lengths, out=out.view(np.int32)[:num])
