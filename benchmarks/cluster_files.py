"""Measures packing of files on Ray beside packing on one machine, for cluster.py.

As a script, packs files in one way, and prints JSON.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from results import console, in_process, memory, table

from virnucpro.data import GreedyPacker, pack_dataset, pack_files, pack_files_on_ray
from virnucpro.files.plan_reader import PlanFile

REPEATS = 2
# Bytes of the object store: all rows fit in the first, and less than half of them in the second.
STORES = {"4 GiB": 2**32, "512 MiB": 2**29}


def write_tables(folder: Path, num_files: int, num_rows: int) -> None:
    """Write tables of proteins, with IDs of 20 characters in random order."""
    folder.mkdir()
    random = np.random.default_rng(0)
    numbers = random.permutation(num_files * num_rows)
    for file in range(num_files):
        of_file = numbers[file * num_rows : (file + 1) * num_rows].astype("U8")
        ids = np.char.add("UniRef100_A0", np.char.zfill(of_file, 8))
        lengths = random.lognormal(5.6, 0.75, num_rows).clip(1, 40_000).astype(np.int64)
        table = pa.table({"id": ids, "length": lengths})
        pq.write_table(table, folder / f"{file:04}.parquet")


class Watch(threading.Thread):
    """Keeps the peaks of the memory of Ray's workers and of what is spilled to disk, in bytes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.workers = self.spilled = 0
        self.is_done = False

    def run(self) -> None:
        """Look ten times a second."""
        while not self.is_done:
            self.workers = max(self.workers, sum(map(private_bytes, Path("/proc").glob("[0-9]*"))))
            files = [path for path in self.folder.rglob("*") if path.is_file()]
            sizes = [path.stat().st_size for path in files if path.exists()]
            self.spilled = max(self.spilled, sum(sizes))
            time.sleep(0.1)


def private_bytes(process: Path) -> int:
    """Return the memory of a worker of Ray without what it shares; 0 for other processes."""
    try:
        if not (process / "cmdline").read_bytes().startswith(b"ray::"):
            return 0
        lines = (process / "status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def start_ray(store: int, spilling: Path) -> None:
    """Start Ray with two workers, without output."""
    config = {"type": "filesystem", "params": {"directory_path": str(spilling)}}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=store,
        _system_config={"object_spilling_config": json.dumps(config)},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def measure(engine: str, tables: str, output: str, store: int) -> dict[str, Any]:
    """Pack files in this process; return seconds, and peaks of memory and spilling."""
    logging.getLogger("virnucpro").setLevel(logging.ERROR)
    packer = GreedyPacker(4096)
    with TemporaryDirectory() as spilling:
        pack: Callable[..., Any] = pack_files
        if engine == "ray":
            pack = pack_files_on_ray
            start_ray(store, Path(spilling))
        watch = Watch(Path(spilling))
        watch.start()
        begin = time.perf_counter()
        pack(tables, output, packer)
        seconds = time.perf_counter() - begin
        watch.is_done = True
        watch.join()
    peaks = {"workers": watch.workers, "spilled": watch.spilled, "process": memory("VmHWM")}
    return {"seconds": seconds, **peaks}


def same_rows(folder: Path, file: Path) -> bool:
    """Return whether two plans have the same rows in the same order, and the same summary."""
    one, other = PlanFile(folder), PlanFile(file)
    return one.summary == other.summary and one.read().equals(other.read())


def as_mib(number: float) -> str:
    """Return bytes as text."""
    return f"{number / 2**20:,.0f} MiB"


def run(engine: str, tables: Path, output: Path, store: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    found: dict[str, Any] = in_process("cluster_files.py", engine, tables, output, STORES[store])
    return found


def on_files(scale: int) -> Iterator[str]:
    """Yield lines on packing of files on Ray and on one machine."""
    repeats = REPEATS if scale == 1 else 1
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        kinds = {"large": (24, 1_000_000 // scale), "small": (2_000 // scale, 1_000)}
        for name, (num_files, num_rows) in kinds.items():
            console.print(f"{name} tables")
            write_tables(folder / name, num_files, num_rows)
        yield (
            f"Medians of {repeats} alternating runs, in processes of their own, on tables of IDs "
            "of 20 characters and lengths, without the start of Ray. The plans are equal, row by "
            "row."
        )
        yield ""
        rows = []
        for name, (num_files, num_rows) in kinds.items():
            local, on_ray = [], []
            for number in range(repeats):
                file, plan = folder / "plan.parquet", folder / f"{name}-{number}"
                local.append(run("local", folder / name, file, "4 GiB"))
                on_ray.append(run("ray", folder / name, plan, "4 GiB"))
                if number == 0 and not same_rows(plan, file):
                    raise SystemExit("the plans differ")
            rows.append(row(f"{num_files:,} files of {num_rows:,} rows", local, on_ray))
        console.print("spilling")
        spilled = [run("ray", folder / "large", folder / "spilling", "512 MiB")]
        rows.append(row("the first, with an object store of 512 MiB", [], spilled))
        yield from table(
            "input | ratio | `pack_files` | `pack_files_on_ray` | process | driver, workers | "
            "spilled",
            rows,
        )
        yield from on_batches(folder / "large")


def row(label: str, local: list[dict[str, Any]], on_ray: list[dict[str, Any]]) -> list[str]:
    """Return a row of the table."""
    ours = statistics.median(one["seconds"] for one in on_ray)
    cells = ["", "", f"{ours:.1f} s", ""]
    if local:
        alone = statistics.median(one["seconds"] for one in local)
        process = max(one["process"] for one in local)
        cells = [f"{ours / alone:.2f}", f"{alone:.1f} s", f"{ours:.1f} s", as_mib(process)]
    driver, workers, spilled = (
        max(one[name] for one in on_ray) for name in ("process", "workers", "spilled")
    )
    return [label, *cells, f"{as_mib(driver)}, {as_mib(workers)}", as_mib(spilled)]


def on_batches(tables: Path) -> Iterator[str]:
    """Yield lines on giving each batch to a function."""
    console.print("batches")
    with TemporaryDirectory() as spilling:
        start_ray(STORES["4 GiB"], Path(spilling))
        logging.getLogger("virnucpro").setLevel(logging.ERROR)
        paths = sorted(map(str, tables.iterdir()))[:1]
        ds = ray.data.read_parquet(paths).materialize()
        packer, idle = GreedyPacker(4096), {"batch_format": "pyarrow"}
        begin = time.perf_counter()
        batches, layout = pack_dataset(ds, packer, order="id", result="batches")
        packed = time.perf_counter() - begin
        batches.map_batches(lambda rows: rows, batch_size=64, **idle).materialize()
        seconds = time.perf_counter() - begin
        ray.shutdown()
    each = seconds / layout.num_batches * 1e3
    yield (
        f"{layout.num_sequences:,} rows with IDs, packed to one row per batch "
        f'(`order="id", result="batches"`): '
        f"{packed:.1f} s; and given to a function, 64 batches per call: {seconds:.1f} s for "
        f"{layout.num_batches:,} batches, {each:.2f} ms each."
    )
    yield ""


if __name__ == "__main__":
    engine_, tables_, output_, store_ = sys.argv[1:]
    print(json.dumps(measure(engine_, tables_, output_, int(store_))))
