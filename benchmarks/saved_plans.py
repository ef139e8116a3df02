"""Measures how plans are saved and loaded, beside what NumPy and pyarrow need for the row numbers.

Usage: saved_plans.py [ROWS], by default 100 million.
"""

from __future__ import annotations

import json
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from data import log_normal
from measure import peak_of
from rich.console import Console
from rich.table import Table

from virnucpro.data import GreedyPacker, PackingPlan

REPEATS = 5


def read_parquet(path: Path) -> Any:
    """Return the column of rows as pyarrow reads it."""
    import pyarrow.parquet as pq

    return pq.read_table(path, columns=["row"])["row"].to_numpy()


def take_batches(path: Path) -> int:
    """Load a plan and read 100 batches of it."""
    plan = PackingPlan.load(path)
    return sum(len(plan[batch]) for batch in range(0, len(plan), max(1, len(plan) // 100)))


CALLS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "np.load, mapped": ("rows.npy", lambda path: np.load(path, mmap_mode="r")),
    "PackingPlan.load .arrow": ("plan.arrow", PackingPlan.load),
    "PackingPlan.load .arrow, 100 batches": ("plan.arrow", take_batches),
    "PackingPlan.load .arrow, all rows": (
        "plan.arrow",
        lambda path: PackingPlan.load(path).indices,
    ),
    "np.load": ("rows.npy", np.load),
    "pyarrow: column `row` of .parquet": ("plan.parquet", read_parquet),
    "PackingPlan.load .parquet": ("plan.parquet", PackingPlan.load),
}


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Return the seconds and the peak memory in bytes of a call, in this process."""
    file, call = CALLS[name]
    # What the first call imports is not measured.
    import pyarrow.parquet  # noqa: F401

    GreedyPacker(100).pack_lengths([30]).save(folder / "small.arrow")
    PackingPlan.load(folder / "small.arrow")
    _, peak = peak_of(lambda: call(folder / file))
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        call(folder / file)
        seconds.append(time.perf_counter() - begin)
    return {"seconds": statistics.median(seconds), "peak": peak}


def main() -> None:
    """Save a plan, and measure each call in its own process."""
    num_rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000_000
    table = Table("", "seconds", "peak MiB", title=f"Plan of {num_rows:,} rows")
    with TemporaryDirectory() as name:
        folder = Path(name)
        plan = GreedyPacker(4096).pack_lengths(log_normal(num_rows))
        np.save(folder / "rows.npy", plan.indices)
        for path in (folder / "plan.arrow", folder / "plan.parquet"):
            begin = time.perf_counter()
            plan.save(path)
            seconds = time.perf_counter() - begin
            table.add_row(
                f"save {path.suffix}: {path.stat().st_size:,} bytes", f"{seconds:.2f}", ""
            )
        table.add_row(f"pickle of a plan in an .arrow file: {pickled_size(folder):,} bytes", "", "")
        del plan
        for call in CALLS:
            command = [sys.executable, __file__, "--measure", call, name]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            table.add_row(call, f"{found['seconds']:.4f}", f"{found['peak'] / 2**20:,.1f}")
    Console().print(table)


def pickled_size(folder: Path) -> int:
    """Return the bytes of the pickle of a plan in an Arrow file."""
    return len(pickle.dumps(PackingPlan.load(folder / "plan.arrow")))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]))))
    else:
        main()
