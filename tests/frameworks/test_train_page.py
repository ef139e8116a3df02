"""The scripts of the pages on training run as its readers start them, in two processes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from training_checks import launch, page_blocks

BLOCKS = page_blocks()
SCRIPTS = {
    found[1]: (block, shlex.split(found[2]))
    for block in BLOCKS
    if (found := re.match(r"# (train_\w+\.py): (.*)\n", block))
}
# The modules that the commands run.
PROGRAMS = {
    "torchrun": ["-m", "torch.distributed.run"],
    "accelerate": ["-m", "accelerate.commands.accelerate_cli"],
    "python": [],
}


def run(name: str, folder: Path, processes: int = 2) -> list[str]:
    """Return what the processes of a script print in the end, in order of ranks."""
    block, command = SCRIPTS[name]
    (folder / name).write_text(block, encoding="utf-8")
    words = [str(processes) if word == "2" else word for word in command[1:]]
    output = launch([*PROGRAMS[command[0]], *words], folder)
    # Lines of two processes may run together.
    return sorted(re.findall(r"rank \d: (?:epoch \d )?ended after step \d+", output))


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run_in_two_processes(name: str, tmp_path: Path) -> None:
    ends = run(name, tmp_path)
    steps = 36 if name == "train_trainer.py" else 35
    epochs = [""] if name == "train_trainer.py" else ["epoch 0 ", "epoch 1 "]
    assert ends == [
        f"rank {rank}: {epoch}ended after step {steps}" for rank in range(2) for epoch in epochs
    ]
    if name == "train_torch.py":
        # 30 of 35 steps were done, and 10 batches are left for one process.
        assert run(name, tmp_path, 1) == ["rank 0: epoch 1 ended after step 10"]


def test_parts_of_scripts_run() -> None:
    # Those of batches, of the sampler's state, of the Trainer's, a callback, which run_lightning.py
    # uses, and two on streams.
    parts = [block for block in BLOCKS if not block.startswith("# train_")]
    batches, _, of_trainer, _, _, stream = parts
    found: dict[str, Any] = {}
    exec(batches, found)
    assert f"# {found['batches']}\n" in batches
    assert found["plan"].num_sequences == 8
    exec(of_trainer, found)
    assert (found["state"]["epoch"], found["state"]["done"]) == (1, [[2, 4]])
    assert list(found["sampler"])
    exec(stream, found)
    # Nothing is lost, and the empty document is dropped.
    assert sum(found["sizes"]) == sum(range(500))
    assert sum(found["sizes"]) > 0.99 * 1024 * len(found["sizes"])
