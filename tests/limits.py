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
# What the interpreter and its libraries say before any code of this package runs.
NOT_OURS = ("MemoryError", "OpenBLAS", "Fatal Python error", "jemalloc", "shared libraries")


def make_inputs(folder: Path) -> None:
    records = ((f"s{number}", "MKTAYIAKQR" * (number % 90)) for number in range(1, 20_000))
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
    for name in {path.name for path in folder.iterdir()} - inputs - {output.name}:
        outcome += f" LEFT {name}"
        shutil.rmtree(folder / name, ignore_errors=True)
    return outcome


def limits_of_memory(words: str, folder: Path, levels: int) -> list[int]:
    """Return limits from what the interpreter needs to what the command needs."""

    def needs(command: str, kibibytes: int) -> bool:
        size = kibibytes * 1024
        limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size))  # noqa: E731
        words = [sys.executable, "-c", "import virnucpro.__main__"] if not command else None
        if words:
            return subprocess.run(words, preexec_fn=limit, stderr=subprocess.DEVNULL).returncode > 0
        return run(command, folder, limit).returncode != 0

    bounds = []
    for command in ("", words):
        low, high = 0, 2**23
        while high - low > high // 50:
            middle = (low + high) // 2
            low, high = (middle, high) if needs(command, middle) else (low, middle)
        bounds.append(high)
    first, last = bounds
    return [(first + (last - first) * n // levels) * 1024 for n in range(levels)]


def main() -> None:
    levels = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    found: Counter[str] = Counter()
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        inputs = {path.name for path in folder.iterdir()}
        for command, words in COMMANDS.items():
            kinds = {
                "memory": (resource.RLIMIT_AS, limits_of_memory(words, folder, levels)),
                "size of files": (
                    resource.RLIMIT_FSIZE,
                    [n * 200_000 // levels for n in range(levels)],
                ),
                "open files": (resource.RLIMIT_NOFILE, list(range(6, 6 + min(levels, 25)))),
            }
            for kind, (number, sizes) in kinds.items():
                for size in sizes:
                    if "-o" in words:
                        (folder / words.split()[words.split().index("-o") + 1]).write_bytes(b"old")

                    def limit(number: int = number, size: int = size) -> None:
                        resource.setrlimit(number, (size, size))

                    outcome = judge(run(words, folder, limit), folder, inputs)
                    if any(char.isupper() for char in outcome):
                        outcome = f"{size}: {outcome}"
                    found[f"{command}: {kind}: {outcome}"] += 1
    for outcome, times in sorted(found.items()):
        print(f"{times:5,} {outcome}")
    wrong = [text for text in found if any(char.isupper() for char in text)]
    print(f"{sum(found.values()):,} runs, {len(wrong)} failures")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
