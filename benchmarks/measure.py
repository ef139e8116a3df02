"""Measures one packer on one data set, in its own process, and prints JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from data import DATA
from packers import PACKERS

# At least three repeats, then up to these limits.
MAX_REPEATS = 9
MAX_SECONDS = 10.0


def memory(field: str) -> int:
    """Return the memory of this process in bytes: current ("VmRSS") or peak ("VmHWM")."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {field}")


def peak_of(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a call returns, and its peak memory in bytes beyond that before."""
    # Resets the peak (Linux).
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    result = call()
    return result, memory("VmHWM") - before


def repeat(pack: Any) -> list[float]:
    """Return the seconds of each repeat."""
    seconds: list[float] = []
    while len(seconds) < MAX_REPEATS and (len(seconds) < 3 or sum(seconds) < MAX_SECONDS):
        begin = time.perf_counter()
        pack()
        seconds.append(time.perf_counter() - begin)
    return seconds


def measure(packer_name: str, data_name: str) -> dict[str, Any]:
    """Return seconds, batches, efficiency, padding and peak memory of a packer."""
    packer, data = PACKERS[packer_name], DATA[data_name]
    tokens = data.tokens()
    pack = packer.prepare(tokens, data)
    result, peak = peak_of(pack)
    batches = packer.count_batches(result) if packer.count_batches else None
    capacity = (batches or 0) * data.max_tokens_per_batch
    total = int(tokens.sum(dtype=np.int64))
    computed = sum(len(rows) * int(tokens[rows].max()) for rows in result) if packer.padded else 0
    del result
    return {
        "seconds": statistics.median(repeat(pack)),
        "batches": batches,
        "efficiency": total / capacity if capacity else None,
        "padding": 1 - total / computed if computed else 0.0,
        "memory": peak,
    }


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
