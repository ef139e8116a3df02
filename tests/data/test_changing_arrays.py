"""Arrays that another thread changes during the call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from proteins import short_lengths

from virnucpro.data import GreedyPacker

pytestmark = pytest.mark.slow

Array = NDArray[Any]


@contextmanager
def changing(array: Array, *contents: Array) -> Iterator[None]:
    """Fill an array with these contents in turn, over and over, on another thread."""
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for content in contents:
                array[:] = content

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# Below 4,096 residues a table counts while lengths are checked, above it a second pass does, and
# of so wide a range they are sorted.
@pytest.mark.parametrize("scale", [1, 100, 2**30])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_lengths_change_during_the_call(scale: int, num_threads: int) -> None:
    one, other = (short_lengths(200_000, seed).astype(np.int64) * scale for seed in (0, 1))
    packer = GreedyPacker(4096 * scale, 1022 * scale, num_threads=num_threads)
    plan, layout = packer.pack_lengths(one), packer.lay_out(packer.count(one))
    ids = np.arange(len(one)) % 1000
    expected = layout.assign(one)
    lengths = one.copy()
    with changing(lengths, other, one - 5 * scale, one):
        for _ in range(10):
            with suppress(ValueError):
                assert packer.count(lengths).num_sequences == len(lengths)
            with suppress(ValueError):
                batches = packer.assign_batches(lengths)
                assert 0 <= batches.min() <= batches.max() < len(lengths)
            for call in layout.assign, layout.slots:
                with suppress(ValueError):
                    places = call(lengths)
                    assert 0 <= places.min() <= places.max() < layout.num_batches
            for order in None, ids:
                with suppress(ValueError):
                    rows = packer.pack_lengths(lengths, order).indices
                    np.testing.assert_array_equal(np.sort(rows), np.arange(len(lengths)))
    lengths[:] = one
    assert packer.pack_lengths(lengths) == plan
    np.testing.assert_array_equal(layout.assign(lengths), expected)


@pytest.mark.parametrize("dtype", ["i8", "U12"])
def test_ids_change_during_the_call(dtype: str) -> None:
    lengths = short_lengths(200_000) % 50
    rng = np.random.default_rng(0)
    one, other = (rng.permutation(len(lengths)).astype(dtype) for _ in range(2))
    packer = GreedyPacker(4096, num_threads=2)
    plan = packer.pack_lengths(lengths, one)
    ids = one.copy()
    with changing(ids, other, one):
        for _ in range(5):
            spoilt = packer.pack_lengths(lengths, ids)
            np.testing.assert_array_equal(np.sort(spoilt.indices), np.arange(len(lengths)))
            np.testing.assert_array_equal(spoilt.offsets, plan.offsets)
    ids[:] = one
    assert packer.pack_lengths(lengths, ids) == plan


def test_out_changes_during_the_call() -> None:
    lengths = short_lengths(500_000)
    packer = GreedyPacker(4096, num_threads=2)
    expected = packer.assign_batches(lengths)
    out = np.zeros_like(expected)
    with changing(out, np.full_like(out, -1)):
        for _ in range(10):
            assert packer.assign_batches(lengths, out=out) is out
    np.testing.assert_array_equal(packer.assign_batches(lengths, out=out), expected)
