"""Starts the scripts of tests/frameworks as users do, and checks what the ranks trained on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from training import NUM_DOCUMENTS

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/how-to/resume.md"
Batches = list[list[int]]
# The runs of each rank.
Runs = list[dict[str, Any]]

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node")
# Without --multi_gpu, `accelerate launch` starts a single process; the script chooses the CPU.
ACCELERATE = (
    *("accelerate.commands.launch", "--num_machines=1", "--mixed_precision=no"),
    *("--dynamo_backend=no", "--num_processes"),
)


def page_blocks() -> list[str]:
    """Return the blocks of Python code of the page on resuming."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def launch(command: Iterable[object], folder: Path | None = None) -> str:
    """Run Python with arguments, and return its output; it must end without an error."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def read_runs(log: Path, num_ranks: int) -> Runs:
    """Return what the ranks have logged."""
    paths = [Path(f"{log}.{rank}") for rank in range(num_ranks)]
    assert not Path(f"{log}.{num_ranks}").exists()
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def check_epochs(runs: Runs, name: str, num_epochs: int, num_left_out: int = 0) -> None:
    """Each epoch has every row once, equally many batches per rank, and another order."""
    epochs = [[run[name][epoch] for run in runs] for epoch in range(num_epochs)]
    assert all(len(run[name]) == num_epochs for run in runs)
    for epoch in epochs:
        assert len({len(share) for share in epoch}) == 1
        rows = sorted(rows_of(*epoch))
        assert len(rows) == len(set(rows)) >= NUM_DOCUMENTS - num_left_out
        assert num_left_out or rows == list(range(NUM_DOCUMENTS))
    for earlier, later in pairwise(epochs):
        assert len(earlier[0]) == len(later[0])
        assert earlier != later


def check_resumed(runs: Runs, name: str, stop: int, reference: str = "plain") -> None:
    """A run that began after some steps of epoch 1 goes on like one that was not interrupted."""
    for run in runs:
        assert run[name][0] == run[reference][1][stop:]
        assert run[name][1] == run[reference][2]


def check_stopped(runs: Runs, name: str, stop: int, reference: str = "plain") -> None:
    for run in runs:
        assert run[name] == [run[reference][0], run[reference][1][:stop]]


def check_changed(earlier: Runs, stop: int, later: Runs, name: str) -> None:
    """What other ranks did of epoch 1, and what these did after it, is every row once."""
    done = rows_of(*(run["plain"][1][:stop] for run in earlier))
    left = rows_of(*(run[name][0] for run in later))
    assert sorted(done + left) == list(range(NUM_DOCUMENTS))
    assert sorted(rows_of(*(run[name][1] for run in later))) == list(range(NUM_DOCUMENTS))
    for epoch in range(2):
        assert len({len(run[name][epoch]) for run in later}) == 1


def rows_of(*shares: Batches) -> list[int]:
    return [row for share in shares for batch in share for row in batch]
