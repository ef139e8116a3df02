"""What the steps of the benchmarks share: medians, tables, and results with their origin."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

ROOT = Path(__file__).parents[1]
# What results depend on: a commit of other files leaves them valid.
MEASURED = ("src", "cpp", "benchmarks", "CMakeLists.txt", "pyproject.toml", "requirements-dev.txt")

console = Console(stderr=True, soft_wrap=True)


@dataclass
class Result:
    """What a step returns: Markdown for the page, and lines for the README."""

    lines: list[str]
    figures: list[str] = field(default_factory=list)


@dataclass
class Stored(Result):
    """A result as it is kept: with the step, and where and when it was measured."""

    step: str = ""
    quick: bool = False
    machine: str = ""
    commit: str = ""
    date: str = ""
    seconds: float = 0.0

    def save(self, folder: Path) -> None:
        """Write this into a folder, complete or not at all."""
        path = folder / f"{self.step}.json"
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        unfinished.replace(path)

    @classmethod
    def load(cls, folder: Path, step: str) -> Stored | None:
        """Return the result of a step in a folder; None without one that can be read."""
        try:
            return cls(**json.loads(Path(folder, f"{step}.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def origin(self) -> str:
        """Return the line that says where the figures come from."""
        command = "bench-quick" if self.quick else f"bench STEP={self.step}"
        return (
            f"`make {command}`, {self.seconds:,.0f} s on {self.date}, commit {self.commit}: "
            f"{self.machine}."
        )


def machine() -> str:
    """Describe this machine."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"{platform.system()}, Python {platform.python_version()}, NumPy {np.__version__}"
    )


def commit() -> str:
    """Return the last commit of what is measured, with " and changes" if files differ from it."""
    try:
        last = git("log", "-1", "--format=%h", "--", *MEASURED)
        return f"{last} and changes" if git("status", "--porcelain", "--", *MEASURED) else last
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*arguments: str) -> str:
    """Return what git prints."""
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def table(head: str, rows: Iterable[Sequence[object]], left: int = 1) -> list[str]:
    """Return the lines of a table whose columns are numbers, but for the first `left` ones."""
    names = head.split(" | ")
    marks = ["---" if i < left else "---:" for i in range(len(names))]
    return [as_row(names), as_row(marks), *map(as_row, rows), ""]


def as_row(cells: Sequence[object]) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def percent(share: float, digits: int = 1) -> str:
    """Return a share as text."""
    return f"{100 * share:.{digits}f} %"


def seconds_of(call: Callable[[], Any]) -> float:
    """Return the seconds of a call, including the release of its result."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def median(call: Callable[[], Any], repeats: int) -> float:
    """Return the median seconds of a call."""
    return statistics.median(seconds_of(call) for _ in range(repeats))


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


def in_process(script: str, *arguments: object) -> Any:
    """Run a script of this folder in a new process; return the last line it prints, from JSON."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
