"""Kills runs of `virnucpro pack` at random moments; what is left has to be a whole plan.

Usage: kill.py [RUNS [SEED]]
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from fasta import fasta


def command(path: Path, plan: Path, budget: int) -> list[str]:
    pack = [sys.executable, "-m", "virnucpro", "pack", "-q", str(path), "-o", str(plan)]
    return [*pack, "--max-tokens", str(budget)]


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    draw = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    found: Counter[str] = Counter()
    with TemporaryDirectory() as name:
        path, plan = Path(name, "a.fa"), Path(name, "plan.parquet")
        lengths = [draw.randrange(1, 1500) for _ in range(200_000)]
        path.write_bytes(fasta((f"s{i}", "M" * length) for i, length in enumerate(lengths)))
        whole = {}
        begin = time.monotonic()
        for kind, budget in (("new", 8192), ("old", 4096)):
            subprocess.run(command(path, plan, budget), check=True)
            whole[plan.read_bytes()] = kind
        took = (time.monotonic() - begin) / 2
        old = plan.read_bytes()
        for _ in range(runs):
            plan.write_bytes(old)
            with subprocess.Popen(command(path, plan, 8192)) as process:
                # Most of the time is before the end, where the plan is written.
                time.sleep(took * (draw.random() if draw.random() < 0.3 else draw.uniform(0.7, 1)))
                process.kill()
            kind = whole.get(plan.read_bytes(), "BROKEN")
            unfinished = len(list(Path(name).glob(".virnucpro.*.tmp")))
            found[f"{kind} plan{', killed while writing' if unfinished else ''}"] += 1
            for file in Path(name).glob(".virnucpro.*.tmp"):
                file.unlink()
    print(f"{runs} runs killed within {took:.2f} s:", dict(found))
    broken = any("BROKEN" in kind for kind in found)
    # Without one of these nothing was tried.
    while_writing = sum("killed" in kind for kind in found)
    sys.exit(broken or (runs >= 50 and not while_writing))


if __name__ == "__main__":
    main()
