"""The numbers of a report, compared with naive ways to find them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.jobs.report_numbers import (
    count_next_fit_decreasing,
    count_padded,
    count_sorted,
    even_edges,
    log_edges,
    ticks,
)
from virnucpro.kernel.limits import Limits

SIZES = st.lists(st.integers(0, 20), max_size=40)
LIMITS = st.builds(
    Limits,
    st.integers(20, 60),
    special_tokens=st.just(0),
    max_sequences_per_batch=st.none() | st.integers(1, 5),
)


@given(SIZES, LIMITS)
def test_next_fit_decreasing_is_counted(sizes: list[int], limits: Limits) -> None:
    batches: list[list[int]] = []
    for size in sorted(sizes, reverse=True):
        if (
            not batches
            or sum(batches[-1]) + size > limits.max_tokens_per_batch
            or len(batches[-1]) == limits.max_sequences_per_batch
        ):
            batches.append([])
        batches[-1].append(size)
    counted = np.unique(np.array(sizes, np.int64), return_counts=True)
    assert count_next_fit_decreasing(*counted, limits) == len(batches)


@given(SIZES, LIMITS)
def test_sorted_padded_batches_are_counted(sizes: list[int], limits: Limits) -> None:
    batches: list[list[int]] = []
    for size in sorted(sizes):
        if (
            not batches
            or size * (len(batches[-1]) + 1) > limits.max_tokens_per_batch
            or len(batches[-1]) == limits.max_sequences_per_batch
        ):
            batches.append([])
        batches[-1].append(size)
    counted = np.unique(np.array(sizes, np.int64), return_counts=True)
    tokens = sum(len(batch) * max(batch) for batch in batches)
    assert count_sorted(*counted, limits) == (len(batches), tokens)


@given(SIZES, st.integers(1, 9))
def test_padded_batches_are_counted(sizes: list[int], number: int) -> None:
    batches = [sizes[i : i + number] for i in range(0, len(sizes), number)]
    tokens = sum(len(batch) * max(batch) for batch in batches)
    assert count_padded(np.array(sizes, np.int64), number) == (len(batches), tokens)


LENGTHS = st.integers(1, 2**63 - 1)


@given(LENGTHS, LENGTHS, st.integers(0, 2**63 - 1))
def test_bins_have_all_values(first: int, last: int, split: int) -> None:
    low, high = sorted([first, last])
    for edges in (log_edges(low, max(high, 2 * low + 1), split), even_edges(low, high, split)):
        assert edges[0] <= low
        assert edges[-1] > high
        assert split in edges or not low < split <= high
        widths = np.diff(np.array(edges, object))
        assert (widths > 0).all()
        # The first may be cut off.
        assert (np.diff(widths[1:]) >= 0).all()
        assert len(edges) < 150
    assert len(set(widths)) == 1


@given(st.floats(1, 1e18), st.floats(1.2, 1e6), st.booleans())
def test_ticks_are_in_range(low: float, factor: float, is_log: bool) -> None:
    found = ticks(low, low * factor, 4, is_log)
    assert found == sorted(set(found))
    assert all(low <= value <= low * factor for value in found)
    assert len(found) <= 60
