"""Data sets whose workers fail, and what a process has, to find what a DataLoader leaves behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info


def letters_converter() -> Any:
    """A tokenizer that is made without a library."""
    letters = {"<cls>": 0, "<eos>": 2, "<unk>": 3, "M": 20, "K": 15}
    alphabet = SimpleNamespace(
        tok_to_idx=letters,
        unk_idx=3,
        cls_idx=0,
        eos_idx=2,
        prepend_bos=True,
        append_eos=True,
        use_msa=False,
        encode=None,
    )
    return SimpleNamespace(alphabet=alphabet)


def fail() -> None:
    raise ValueError("the original error")


def fail_with_local_class() -> None:
    class LocalError(Exception):
        pass

    raise LocalError("the original error")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# How a worker fails; what a function returns becomes a value of the record.
FAULTS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: 0,
    "raises": fail,
    "raises a local class": fail_with_local_class,
    "decodes": lambda: b"\xff".decode(),
    "cannot be sent": lambda: lambda: None,
    "exits": lambda: os._exit(3),
    "exits as if all were well": lambda: os._exit(0),
    "ends": lambda: sys.exit(),
    "is killed": kill,
    "stalls": lambda: time.sleep(1000),
}


class Faulty(IterableDataset[dict[str, Any]]):
    """Records of which worker 1 does not yield all; the others do."""

    def __init__(self, fault: str, number: int = 60) -> None:
        self.fault = fault
        self.number = number

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        share, num_shares = (worker.id, worker.num_workers) if worker else (0, 1)
        for row in range(share, self.number, num_shares):
            record = {"id": f"s{row}", "sequence": "MK" * 10, "value": 0}
            if share == 1 and row > self.number // 2:
                record["value"] = FAULTS[self.fault]()
            yield record


def possessions() -> dict[str, Any]:
    """Return the child processes, threads, open files and temporary files of this process."""
    files = "/proc/self/fd"
    return {
        "children": sorted(str(child.pid) for child in multiprocessing.active_children()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "open files": len(os.listdir(files)) if os.path.exists(files) else 0,  # noqa: PTH208, PTH110
        "temporary files": sorted(os.listdir(tempfile.gettempdir())),  # noqa: PTH208
    }


def left(before: dict[str, Any], seconds: float = 10) -> dict[str, Any]:
    """Return what this process has that it did not have before, once its threads have ended."""
    end = time.monotonic() + seconds
    while (now := possessions()) != before and time.monotonic() < end:
        time.sleep(0.01)
    return {name: (before[name], value) for name, value in now.items() if value != before[name]}


def memory() -> int:
    """Return the bytes of memory of this process."""
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
