"""Measures how plans are saved and loaded, beside what NumPy and pyarrow need for the row numbers.

As a script, measures one call, and prints JSON.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from data import log_normal
from results import Result, console, in_process, median, peak_of, seconds_of, table

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


def measure_one(name: str, folder: Path) -> dict[str, Any]:
    """Return the seconds and the peak memory in bytes of a call, in this process."""
    file, call = CALLS[name]
    # What the first call imports is not measured.
    import pyarrow.parquet  # noqa: F401

    GreedyPacker(100).pack_lengths([30]).save(folder / "small.arrow")
    PackingPlan.load(folder / "small.arrow")
    _, peak = peak_of(lambda: call(folder / file))
    return {"seconds": median(lambda: call(folder / file), REPEATS), "peak": peak}


def measure(quick: bool, _: Path) -> Result:
    """Save a plan, and measure each call in its own process."""
    num_rows = 30_000 if quick else 30_000_000
    with TemporaryDirectory() as name:
        folder = Path(name)
        plan = GreedyPacker(4096).pack_lengths(log_normal(num_rows))
        np.save(folder / "rows.npy", plan.indices)
        saved = []
        for path in (folder / "plan.arrow", folder / "plan.parquet"):
            seconds = seconds_of(lambda: plan.save(path))  # noqa: B023
            saved.append([f"`plan.save` `{path.suffix}`", f"{seconds:.2f}", as_mib(path)])
        pickled = len(pickle.dumps(PackingPlan.load(folder / "plan.arrow")))
        found = {}
        for call in CALLS:
            console.print(call)
            found[call] = in_process("saved_plans.py", call, folder)
        base = found["np.load"]["seconds"]
        rows = [
            [call, f"{one['seconds'] / base:.3f}", f"{one['seconds']:.4f}", as_mib(one["peak"])]
            for call, one in found.items()
        ]
    lines = [
        f"A plan of {num_rows:,} rows in {len(plan):,} batches. Medians of {REPEATS} calls; the "
        "memory is that of the first. The pickle of the plan in the `.arrow` file, for a process "
        f"that maps it, is {pickled:,} bytes.",
        "",
        *table("call | times `np.load` of the rows | seconds | memory", rows),
        *table("call | seconds | file", saved),
    ]
    return Result(lines)


def as_mib(number: Path | int) -> str:
    """Return bytes, or the size of a file, as text."""
    size = number.stat().st_size if isinstance(number, Path) else number
    return f"{size / 2**20:,.1f} MiB"


if __name__ == "__main__":
    print(json.dumps(measure_one(sys.argv[1], Path(sys.argv[2]))))
