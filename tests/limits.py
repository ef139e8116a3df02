"""Runs each command under limits of memory, file size and open files, and on a full disk.

Usage: limits.py [LEVELS], with LEVELS limits of each kind for each command. A run must succeed, or
say in one line what is missing; the output is whole or as it was, and nothing else is left.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from fasta import fasta

COMMANDS = {
    "pack": "pack a.fa -o out.parquet -q",
    "pack .arrow": "pack a.fa.gz -o out.arrow -q",
    "pack --sequences": "pack a.fa.gz -o out.parquet --sequences -q",
    "pack of a table": "pack plan.arrow -o out.parquet -q",
    "verify": "verify plan.parquet -q",
    "verify .arrow": "verify plan.arrow -q",
    "stats": "stats plan.parquet",
    "report": "report plan.parquet -o out.html",
}
PYTHON = [sys.executable, "-m", "virnucpro"]
# Of files and descriptors with few sequences, of memory with so many that the highest suffices.
NUM_SEQUENCES = {"memory": 1_500_000, "size of files": 20_000, "open files": 20_000}
MEMORY = range(64 * 2**20, 1536 * 2**20)
# What the interpreter and its libraries say before any code of this package runs.
NOT_OURS = ("MemoryError", "OpenBLAS", "Fatal Python error", "jemalloc", "shared libraries")


def make_inputs(folder: Path, num_sequences: int) -> None:
    name = "of a protein with a long name " * 3
    records = (
        (f"s{n}_{name.replace(' ', '_')}", "MKTAYIAKQR" * (n % 30)) for n in range(1, num_sequences)
    )
    (folder / "a.fa").write_bytes(fasta(records))
    subprocess.run(["gzip", "-k1", folder / "a.fa"], check=True)
    for name in ("plan.parquet", "plan.arrow"):
        subprocess.run([*PYTHON, "pack", "-q", "a.fa", "-o", name], cwd=folder, check=True)


def run(words: str, folder: Path, limit: Callable[[], object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYTHON, *words.split()],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
        timeout=300,
    )


def judge(found: subprocess.CompletedProcess[str], folder: Path, inputs: set[str]) -> str:
    """Return what a run did, in capitals if it is wrong."""
    lines = found.stderr.splitlines()
    outcome = "succeeded" if found.returncode == 0 else "said what is missing"
    if found.returncode and any(word in found.stderr for word in NOT_OURS):
        outcome = "ended before it began"
    elif found.returncode not in (0, 1, 2):
        outcome = f"STATUS {found.returncode}: {found.stderr[-300:]}"
    elif found.returncode and (len(lines) != 1 or not lines[0].startswith("virnucpro: ")):
        outcome = f"MESSAGE {found.stderr[-1000:]}"
    words = found.args[3:]
    output = folder / (words[words.index("-o") + 1] if "-o" in words else "")
    if output != folder and found.returncode == 0 and output.read_bytes() == b"old":
        outcome += " WITHOUT OUTPUT"
    if output != folder and found.returncode > 0 and output.read_bytes() != b"old":
        outcome += " CHANGED OUTPUT"
    if output.is_file():
        output.unlink()
    for name in {path.name for path in folder.iterdir()} - inputs:
        outcome += f" LEFT {name}"
        shutil.rmtree(folder / name, ignore_errors=True)
    return outcome


def main() -> None:
    levels = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    limits = {
        "memory": (resource.RLIMIT_AS, MEMORY[:: len(MEMORY) // levels]),
        "size of files": (resource.RLIMIT_FSIZE, range(0, 4_000_000, 4_000_000 // levels)),
        "open files": (resource.RLIMIT_NOFILE, range(6, 6 + min(levels, 25))),
    }
    found: Counter[str] = Counter()
    for kind, (number, sizes) in limits.items():
        with TemporaryDirectory() as name:
            folder = Path(name)
            make_inputs(folder, NUM_SEQUENCES[kind])
            inputs = {path.name for path in folder.iterdir()}
            for command, words in COMMANDS.items():
                for size in sizes:
                    if "-o" in words:
                        (folder / words.split()[words.split().index("-o") + 1]).write_bytes(b"old")

                    def limit(number: int = number, size: int = size) -> None:
                        resource.setrlimit(number, (size, size))

                    outcome = judge(run(words, folder, limit), folder, inputs)
                    if any(char.isupper() for char in outcome):
                        outcome = f"{size}: {outcome}"
                        print(f"{command}: {kind}: {outcome}", flush=True)
                    found[f"{command}: {kind}: {outcome}"] += 1
    for outcome, times in sorted(found.items()):
        print(f"{times:5,} {outcome}")
    wrong = [text for text in found if any(char.isupper() for char in text)]
    print(f"{sum(found.values()):,} runs, {len(wrong)} failures")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
