"""Measures packing on Ray and layouts of trillions of rows.

As a script, measures the memory of the driver, and prints JSON.
"""

from __future__ import annotations

import itertools
import logging
import math
import pickle
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from cluster_files import on_files
from results import Result, console, in_process, peak_of, seconds_of, table

from virnucpro.cluster.ray_data import ASSIGNED_TOGETHER, MAX_GROUPS
from virnucpro.data import GreedyPacker, Layout, pack_dataset

REPEATS = 5
NUM_BLOCKS = 50
BLOCK = 1_000_000
# The cluster and the blocks of the estimates.
CORES = 1000
ROWS_OF_BLOCK = 10_000_000


def lengths_of(block: int, num_rows: int) -> Any:
    """Return lengths distributed like those of proteins, int32."""
    random = np.random.default_rng(block)
    return random.lognormal(5.6, 0.75, num_rows).clip(1, 40_000).astype(np.int32)


def make_block(block: int, num_rows: int) -> pa.Table:
    """Return a table of lengths."""
    return pa.table({"length": lengths_of(block, num_rows)})


def make_dataset(num_rows: int) -> ray.data.Dataset:
    """Return a data set in the object store, whose rows were never in this process."""
    task = ray.remote(make_block)
    blocks = [task.remote(block, num_rows // NUM_BLOCKS) for block in range(NUM_BLOCKS)]
    ray.wait(blocks, num_returns=NUM_BLOCKS)
    return ray.data.from_arrow_refs(blocks)


def same(table: pa.Table) -> pa.Table:
    """Return a block as it is."""
    return table


def start_ray() -> None:
    """Start Ray with two workers, without output."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=6 * 2**30,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    logging.getLogger("virnucpro").setLevel(logging.ERROR)


def pack(ds: ray.data.Dataset) -> Layout:
    """Pack a data set and wait for all results."""
    packed, layout = pack_dataset(ds, GreedyPacker(4096))
    packed.materialize()
    refs = packed.to_arrow_refs()
    ray.wait(refs, num_returns=len(refs), fetch_local=False)
    return layout


def driver(num_rows: int) -> int:
    """Return the peak memory in bytes that packing takes in this process, the driver."""
    start_ray()
    pack(make_dataset(NUM_BLOCKS * 1000))
    ds = make_dataset(num_rows)
    _, peak = peak_of(lambda: pack(ds))
    return peak


def on_ray(num_rows: int) -> Iterator[str]:
    """Yield lines on packing with Ray."""
    console.print("Ray")
    start_ray()
    ds = make_dataset(num_rows)
    in_block = num_rows // NUM_BLOCKS
    whole = np.concatenate([lengths_of(block, in_block) for block in range(NUM_BLOCKS)])
    packer = GreedyPacker(4096)
    nothing: list[float] = []
    ours: list[float] = []
    alone: list[float] = []
    idle = {"batch_size": None, "batch_format": "pyarrow"}
    for number in range(REPEATS + 1):
        taken = (
            seconds_of(lambda: ds.map_batches(same, **idle).materialize()),
            seconds_of(lambda: pack(ds)),
            seconds_of(lambda: packer.assign_batches(whole)),
        )
        # The first repeat starts workers.
        if number > 0:
            for times, seconds in zip((nothing, ours, alone), taken, strict=True):
                times.append(seconds)
    packed, layout = pack_dataset(ds, packer)
    found = np.concatenate(
        [ray.get(ref)["batch"].to_numpy() for ref in packed.to_arrow_refs()], dtype=np.int32
    )
    assert np.array_equal(found, packer.assign_batches(whole))
    ray.shutdown()
    idle_time, time_of_ray, one = map(statistics.median, (nothing, ours, alone))
    yield (
        f"{num_rows:,} rows (one int32 column) in {NUM_BLOCKS} blocks, two Ray workers; medians of "
        f"{REPEATS} runs. Every row has the same batch as on one machine."
    )
    yield ""
    rows = [
        ("`map_batches` that does nothing, materialized", idle_time),
        (f"`pack_dataset`: both passes, {layout.num_batches:,} batches", time_of_ray),
        ("`assign_batches` on one machine", one),
    ]
    cells = ([name, f"{x / idle_time:.2f}", f"{x:.2f}"] for name, x in rows)
    yield from table("call | times the idle `map_batches` | seconds", cells)
    console.print("memory of the driver")
    peaks = [
        [f"{rows:,}", f"{in_process('cluster.py', rows) / 2**20:.1f} MiB"]
        for rows in sorted({max(num_rows // 10, 50_000), num_rows})
    ]
    yield from table(
        f"rows, in {NUM_BLOCKS} blocks | memory that packing takes in the driver", peaks, left=0
    )


def in_nanoseconds(call: Callable[[], Any], rows: int) -> float:
    """Return the median nanoseconds of a call per row."""
    return statistics.median(seconds_of(call) for _ in range(9)) / rows * 1e9


def on_paper() -> Iterator[str]:
    """Yield lines on the cost of more sequences, estimated from rates measured here."""
    console.print("rates")
    lengths = lengths_of(0, BLOCK)
    packer = GreedyPacker(4096, num_threads=1)
    counts = packer.count(lengths)
    layout = packer.lay_out(counts)
    none = packer.count([])
    count = in_nanoseconds(lambda: packer.count(lengths), BLOCK)
    assign = in_nanoseconds(
        lambda: (layout.assign(lengths, none), layout.slots(lengths, none)), BLOCK
    )
    yield (
        f"One core counts a row in {count:.1f} ns and finds its batch and slot in {assign:.1f} ns; "
        f"counts of {len(counts.tokens):,} sizes are {len(pickle.dumps(counts)) / 2**10:.0f} KiB."
    )
    yield ""
    rows = []
    # Every block is assumed to have the counts of this one.
    block = sum((packer.count(lengths_of(i, BLOCK)) for i in range(10)), packer.count([]))
    for num_blocks in (10**2, 10**4, 10**6):
        size = -(-num_blocks // MAX_GROUPS)
        num_groups, rest = divmod(num_blocks, size)
        begin = time.perf_counter()
        group = sum(itertools.repeat(block, size - 1), block)
        in_task = time.perf_counter() - begin
        last = [sum(itertools.repeat(block, rest - 1), block)] if rest else []
        begin = time.perf_counter()
        *_, total = itertools.accumulate([*itertools.repeat(group, num_groups), *last])
        in_driver = time.perf_counter() - begin
        begin = time.perf_counter()
        *_, before = itertools.accumulate(itertools.repeat(block, size), initial=total)
        of_blocks = time.perf_counter() - begin
        assert before.num_sequences == total.num_sequences + size * block.num_sequences
        layout = packer.lay_out(total)
        assert layout.num_sequences == num_blocks * ROWS_OF_BLOCK
        assert layout.total_tokens == num_blocks * block.total_tokens
        assert layout.num_batches * 4096 >= layout.total_tokens
        laid_out = in_nanoseconds(lambda total=total: packer.lay_out(total), 1) / 1e6  # type: ignore[misc]
        num_bytes = len(pickle.dumps(total))
        groups = num_groups + len(last)
        # To the driver and back for each group, and those of all its blocks to each of its tasks.
        tasks = num_blocks / min(size, ASSIGNED_TOGETHER)
        moved = (2 * groups + tasks * size) * num_bytes
        passes = layout.num_sequences * (count + assign) / 1e9 / CORES
        rows.append(
            [
                *(f"{number:,}" for number in (layout.num_sequences, layout.num_batches)),
                f"{laid_out:.1f} ms",
                f"{num_blocks:,}",
                f"{groups:,}",
                *(f"{x * 1e3:.1f} ms" for x in (in_task, in_driver, of_blocks)),
                as_bytes(moved),
                as_bytes(2 * groups * num_bytes),
                f"{passes:.2f} s",
            ]
        )
    yield from table(
        f"sequences | batches | layout | blocks of {ROWS_OF_BLOCK // 10**6} million | groups | "
        "counts added up, in a group | in the driver | sums before the blocks of a group | "
        f"counts moved | driver | passes, {CORES:,} cores",
        rows,
        left=0,
    )


def as_bytes(number: float) -> str:
    """Return bytes as text."""
    power = min(3, int(math.log(number, 1024)))
    return f"{number / 1024**power:,.0f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def measure(quick: bool, _: Path) -> Result:
    """Measure data sets and files, and extrapolate."""
    logging.getLogger("virnucpro").setLevel(logging.ERROR)
    scale = 1000 if quick else 1
    return Result([*on_ray(50_000_000 // scale), *on_files(scale), *on_paper()])


if __name__ == "__main__":
    print(driver(int(sys.argv[1])))
