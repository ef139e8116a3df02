#!/usr/bin/env python
"""Stands for `sbatch` and `srun`: runs the tasks of a job at once, one after another.

It knows `--array`, `--ntasks`, `--ntasks-per-node`, `--wrap` and `--parsable`, and `#SBATCH` lines
of scripts; it takes all other options as flags or as `--name=value`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def split(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the options and what follows them."""
    options: dict[str, str] = {}
    while words and words[0].startswith("-"):
        name, _, value = words.pop(0).lstrip("-").partition("=")
        options[name] = words.pop(0) if name == "wrap" and not value else value
    return options, words


def main() -> None:
    """Run the job, and give its tasks the variables that SLURM gives them."""
    program = Path(sys.argv[0]).name
    options, words = split(sys.argv[1:])
    command = words
    if program == "sbatch":
        if "wrap" in options:
            command = ["bash", "-euc", options["wrap"]]
        else:
            script = Path(words[0]).read_text(encoding="utf-8")
            lines = re.findall(r"^#SBATCH +(\S+)", script, re.MULTILINE)
            options = {**split(lines)[0], **options}
            command = ["bash", "-eu", *words]
    tasks = int(options.get("ntasks", options.get("ntasks-per-node", "1")))
    cpus = options.get("cpus-per-task", "1")
    environment = {
        **os.environ,
        "SLURM_JOB_ID": "1",
        "SLURM_NNODES": "1",
        "SLURM_NTASKS": str(tasks),
        "SLURM_CPUS_PER_TASK": cpus,
    }
    if program == "srun":
        running = [
            subprocess.Popen(
                command,
                env={**environment, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
            )
            for task in range(tasks)
        ]
        sys.exit(max(job.wait() for job in running))
    first, _, last = options.get("array", "0-0").partition("-")
    numbers = range(int(first), int(last or first) + 1)
    for number in numbers:
        if "array" in options:
            environment["SLURM_ARRAY_TASK_ID"] = str(number)
            environment["SLURM_ARRAY_TASK_COUNT"] = str(len(numbers))
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
    print("1" if "parsable" in options else "Submitted batch job 1")


if __name__ == "__main__":
    main()
