"""Threads of the packer and threads that call it."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from proteins import make_records, random_lengths, short_lengths, short_records

import virnucpro.data
import virnucpro.data.packing
from virnucpro.data import GreedyPacker
from virnucpro.kernel.arguments import check_threads
from virnucpro.kernel.limits import Limits


@pytest.mark.slow
@pytest.mark.parametrize("num_threads", [2, 3, 7])
def test_threads_give_the_same_bytes(num_threads: int) -> None:
    lengths = random_lengths(600_000)
    ids = np.random.default_rng(1).integers(0, 1000, len(lengths)).astype(str)
    one, many = (GreedyPacker(4096, num_threads=threads) for threads in (1, num_threads))
    assert one.count(lengths) == many.count(lengths)
    assert one.pack_lengths(lengths) == many.pack_lengths(lengths)
    assert one.pack_lengths(lengths, ids) == many.pack_lengths(lengths, ids)
    np.testing.assert_array_equal(one.assign_batches(lengths), many.assign_batches(lengths))
    plan = many.pack_lengths(lengths)
    np.testing.assert_array_equal(
        plan.assign(lengths)[plan.indices], np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
    )
    starts = np.repeat(plan.offsets[:-1], np.diff(plan.offsets))
    np.testing.assert_array_equal(
        plan.slots(lengths)[plan.indices], np.arange(len(lengths)) - starts
    )


@pytest.mark.slow
def test_other_threads_run_during_a_call() -> None:
    lengths = random_lengths(5_000_000)
    core: Any = virnucpro.kernel
    layout = core.first_fit_decreasing(core.count(lengths, Limits(4096, 4094), 1))
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.0005):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    core.list_rows(layout, lengths, None, 1)
    end = time.perf_counter()
    stop.set()
    thread.join()
    # While the interpreter is held, one tick at most comes at either end.
    assert sum(begin < tick_time < end for tick_time in ticks) > 3


def test_threads_are_those_of_the_cores_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert check_threads(None) == 2
    # Not every system tells which they are, or even how many.
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, expected in (5, 5), (None, 1):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert check_threads(None) == expected
    assert check_threads(3) == 3


def test_threads_are_those_of_the_packer(monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()
    core: Any = virnucpro.kernel
    for name in ("count", "list_rows", "assign_batches", "assign_slots", "shuffle_rows"):
        kernel = getattr(core, name)

        def note(*arguments: Any, name: str = name, kernel: Any = kernel) -> Any:
            used.add((name, arguments[-1]))
            return kernel(*arguments)

        monkeypatch.setattr(core, name, note)
    packer = GreedyPacker(100, num_threads=7)
    plan = packer.pack_lengths([60, 30])
    packer.sort_by_length(packer.pack_sequences(make_records([60, 30]))[0])
    plan.reshuffle(1).reshuffle(2).assign([60, 30])
    packer.assign_batches([60, 30])
    layout = packer.lay_out(packer.count([60, 30]))
    assert layout.assign([60]).tolist() == layout.slots([60]).tolist() == [0]
    assert used == {
        ("count", 7),
        ("list_rows", 7),
        ("assign_batches", 7),
        ("assign_slots", 7),
        ("shuffle_rows", 7),
    }


Array = NDArray[Any]


Record = dict[str, Any]


@pytest.mark.slow
def test_eight_threads_at_once_equal_one() -> None:
    packer = GreedyPacker(4096, num_threads=2)
    inputs = []
    for seed in (0, 1, 2, 3, 0, 0, 1, 1):
        lengths = short_lengths(150_000, seed)
        names = np.random.default_rng(seed).permutation(len(lengths)) % 1000
        inputs.append((lengths, names, names.astype(str), short_records(3000, seed)))
    # Some of them share their arrays and dicts.
    inputs[4], inputs[6] = inputs[0], inputs[1]
    layout = packer.lay_out(packer.count(inputs[0][0]))

    def pack(own: tuple[Array, Array, Array, list[Record]]) -> list[Any]:
        lengths, numbers, texts, records = own
        batches = packer.pack_sequences(records)
        return [
            packer.pack_lengths(lengths),
            packer.pack_lengths(lengths, numbers),
            packer.pack_lengths(lengths, texts),
            packer.assign_batches(lengths).tolist(),
            packer.count(lengths),
            layout.slots(inputs[0][0]).tolist(),
            batches,
            packer.sort_by_length(records),
            packer.compute_efficiency(batches),
        ]

    expected = [pack(own) for own in inputs]
    barrier = threading.Barrier(len(inputs))

    def pack_at_once(own: tuple[Array, Array, Array, list[Record]]) -> list[Any]:
        barrier.wait()
        return pack(own)

    with ThreadPoolExecutor(len(inputs)) as pool:
        for _ in range(2):
            assert list(pool.map(pack_at_once, inputs)) == expected
