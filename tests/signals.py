"""Ends each command by signals at random moments; what is left has to be whole, and nothing else.

Usage: signals.py [RUNS [SEED]], with RUNS signals for each command. After SIGKILL, which no process
can notice, a temporary folder may be left, which the next run removes.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from fasta import fasta

SIGNALS = [
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGXCPU,
    signal.SIGKILL,
]
# Arguments of each command, and what it writes, if anything.
COMMANDS = {
    "pack": ("pack a.fa -o out.parquet", "out.parquet"),
    "pack .arrow": ("pack a.fa.gz -o out.arrow", "out.arrow"),
    "pack --sequences": ("pack a.fa.gz -o out.parquet --sequences", "out.parquet"),
    "verify": ("verify plan.parquet", ""),
    "stats": ("stats plan.parquet", ""),
    "report": ("report plan.parquet -o out.html", "out.html"),
}


class Runs:
    """Runs of one command in a folder."""

    def __init__(self, name: str, folder: Path, copies: Path) -> None:
        self.words, output = COMMANDS[name]
        self.folder, self.copies = folder, copies
        self.output = folder / output if output else None
        self.inputs = {path.name for path in folder.iterdir()}
        begin = time.monotonic()
        self.run()
        self.took = time.monotonic() - begin
        self.whole = self.output.read_bytes() if self.output else b""

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "virnucpro", *self.words.split()]
        # In a session of its own, so that nothing else gets the signal of a terminal.
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "TMPDIR": str(self.copies)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self) -> None:
        with self.start() as process:
            process.wait()
        assert process.returncode == 0

    def left(self) -> set[str]:
        names = {path.name for path in self.folder.iterdir()} - self.inputs
        names |= {path.name for path in self.copies.iterdir()}
        return names - {self.output.name if self.output else ""}

    def stop(self, number: signal.Signals, after: float) -> str:
        """Send a signal after some seconds; return what was found, in capitals if it is wrong."""
        if self.output:
            self.output.write_bytes(b"old")
        with self.start() as process:
            time.sleep(after)
            process.send_signal(number)
            assert process.stderr is not None
            printed = process.stderr.read()
        found = [{0: "finished", -number: "ended"}.get(process.returncode, "OTHER STATUS")]
        if b"Traceback" in printed:
            # Until it runs the package, the interpreter itself handles Ctrl-C.
            has_begun = b"virnucpro/__main__.py" in printed
            found = ["TRACEBACK" if has_begun else "ended before it began"]
        content = self.output.read_bytes() if self.output else self.whole
        if content not in (b"old", self.whole):
            found.append("BROKEN OUTPUT")
        if process.returncode == 0 and content != self.whole:
            found.append("NO OUTPUT")
        if self.left() and number == signal.SIGKILL:
            found.append("left a folder")
            self.run()
        if self.left():
            found.append(f"LEFT {self.left()}")
            for name in self.left():
                shutil.rmtree(self.folder / name, ignore_errors=True)
                shutil.rmtree(self.copies / name, ignore_errors=True)
        return ", ".join(found)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    draw = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    found: Counter[str] = Counter()
    for name in COMMANDS:
        with TemporaryDirectory() as place, TemporaryDirectory() as copies:
            folder = Path(place)
            lengths = [draw.randrange(1, 1500) for _ in range(10_000)]
            (folder / "a.fa").write_bytes(fasta((f"s{i}", "M" * n) for i, n in enumerate(lengths)))
            subprocess.run(["gzip", "-k1", folder / "a.fa"], check=True)
            pack = [sys.executable, "-m", "virnucpro", "pack", "-q", "a.fa", "-o", "plan.parquet"]
            subprocess.run(pack, cwd=folder, check=True)
            command = Runs(name, folder, Path(copies))
            for _ in range(runs):
                number = draw.choice(SIGNALS)
                outcome = command.stop(number, draw.uniform(0, 1.1) * command.took)
                found[f"{name}: {number.name}: {outcome}"] += 1
    for outcome, times in sorted(found.items()):
        print(f"{times:5,} {outcome}")
    outcomes = {outcome: outcome.split(": ", 2)[2] for outcome in found}
    wrong = [outcome for outcome, text in outcomes.items() if any(c.isupper() for c in text)]
    print(f"{sum(found.values()):,} signals, {len(wrong)} failures", *wrong, sep="\n")
    # Unless some ended while a file was written, nothing was tried.
    sys.exit(bool(wrong) or not any("ended" in outcome for outcome in found))


if __name__ == "__main__":
    main()
