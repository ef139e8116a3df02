"""Measures packing on Ray and layouts of trillions of rows; writes docs/explanation/scale.md."""

from __future__ import annotations

import datetime
import itertools
import json
import logging
import math
import pickle
import statistics
import subprocess
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
from measure import peak_of
from rich.console import Console
from run import ROOT, machine

from virnucpro.cluster.ray_data import ASSIGNED_TOGETHER, MAX_GROUPS
from virnucpro.data import GreedyPacker, Layout, pack_dataset

REPEATS = 5
NUM_BLOCKS = 50
NUM_ROWS = 50_000_000
BLOCK = 1_000_000
# The cluster and the blocks of the estimates.
CORES = 1000
ROWS_OF_BLOCK = 10_000_000
console = Console(stderr=True)


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


def seconds_of(call: Callable[[], Any]) -> float:
    """Return the seconds of a call, including the release of its result."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


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


def on_ray() -> Iterator[str]:
    """Yield lines on packing with Ray."""
    console.print("Ray")
    start_ray()
    ds = make_dataset(NUM_ROWS)
    whole = np.concatenate([lengths_of(block, BLOCK) for block in range(NUM_BLOCKS)])
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
    yield f"{NUM_ROWS:,} rows (one int32 column) in {NUM_BLOCKS} blocks, two Ray workers;"
    yield f"medians of {REPEATS} runs. Every row has the same batch as on one machine."
    yield ""
    yield "| | seconds | times the idle `map_batches` |"
    yield "| --- | ---: | ---: |"
    yield f"| `map_batches` that does nothing, materialized | {idle_time:.2f} | 1.0 |"
    yield (
        f"| `pack_dataset`: both passes, {layout.num_batches:,} batches | {time_of_ray:.2f} | "
        f"{time_of_ray / idle_time:.1f} |"
    )
    yield f"| `assign_batches` on one machine | {one:.2f} | {one / idle_time:.2f} |"
    yield ""
    console.print("memory of the driver")
    yield f"| rows, in {NUM_BLOCKS} blocks | memory that packing takes in the driver |"
    yield "| ---: | ---: |"
    for num_rows in (1_000_000, 5_000_000, 50_000_000):
        command = [sys.executable, __file__, "driver", str(num_rows)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        yield f"| {num_rows:,} | {json.loads(done.stdout) / 2**20:.1f} MiB |"
    yield ""


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
    yield (
        f"| sequences | batches | layout | blocks of {ROWS_OF_BLOCK // 10**6} million | groups | "
        "counts added up, in a group | in the driver | sums before the blocks of a group "
        f"| counts moved | driver | passes, {CORES:,} cores |"
    )
    yield "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
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
        yield (
            f"| {layout.num_sequences:,} | {layout.num_batches:,} | {laid_out:.1f} ms | "
            f"{num_blocks:,} | {groups:,} | {in_task * 1e3:.1f} ms | "
            f"{in_driver * 1e3:.1f} ms | {of_blocks * 1e3:.1f} ms | {as_bytes(moved)} | "
            f"{as_bytes(2 * groups * num_bytes)} | {passes:.2f} s |"
        )
    yield ""


def as_bytes(number: float) -> str:
    """Return bytes as text."""
    power = min(3, int(math.log(number, 1024)))
    return f"{number / 1024**power:,.0f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def main() -> None:
    """Measure, and write the tables into the document."""
    logging.getLogger("virnucpro").setLevel(logging.ERROR)
    if sys.argv[1:2] == ["driver"]:
        print(driver(int(sys.argv[2])))
        return
    lines = [f"Made by `make bench-cluster` on {datetime.date.today()}: {machine()}.", ""]
    lines += [*on_ray(), *on_files(), *on_paper()]
    path = Path(ROOT, "docs", "explanation", "scale.md")
    begin, end = "<!-- made by make bench-cluster -->\n", "<!-- end -->\n"
    text = path.read_text()
    before, after = text.partition(begin)[0], text.partition(end)[2]
    table = "\n".join(lines).rstrip()
    path.write_text(f"{before}{begin}\n{table}\n\n{end}{after}")
    console.print(f"Written to {path}")


if __name__ == "__main__":
    main()
