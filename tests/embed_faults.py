"""Kills runs of `virnucpro embed` at random moments; resumed, they must make the same parts.

Usage: embed_faults.py [KILLS [SEED]], with KILLS kills of the first job, a third as many of each
other. Then runs lack disk space, and are resumed. Each part must be whole from the moment it
appears, and must not be written again. If VIRNUCPRO_REAL_DATA names a folder, its FASTA files are
the input.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from checkpoints import save_checkpoint
from fasta import fasta
from models import tiny_model

from virnucpro.files.fasta import read_fasta

EXAMPLES = Path(__file__).parents[1] / "examples" / "proteins.fasta"
# The options of each job, and how many shards run at the same time.
JOBS = {
    "plain": ("", 1),
    "split": ("--overlong split --overlap 128", 1),
    "states": ("--states --embedding-dtype float16", 1),
    "two shards": ("", 2),
}
# When to kill, and how often: at the start, at any time between parts, while a part is written.
STAGES = {"start": 1, "parts": 3, "writing": 3}
# When a part has begun to be written, the run is killed within this time.
WRITING_SECONDS = 0.01
# A run that does nothing visible for as long hangs.
MAX_SECONDS = 300


class Moment(NamedTuple):
    """A moment of a run: some seconds after it has made some parts, perhaps while it writes one."""

    stage: str
    parts: int
    seconds: float


class Job:
    """A job in a folder, which has its inputs, and the parts that an undisturbed run makes."""

    def __init__(self, folder: Path, options: str, num_shards: int) -> None:
        self.folder, self.options, self.num_shards = folder, options.split(), num_shards
        self.processes: list[subprocess.Popen[str]] = []
        self.output, self.copies = folder / "out", folder / "copies"
        self.inputs = {path.name for path in folder.iterdir()}
        self.found: Counter[str] = Counter()
        self.parts_of_runs: list[int] = []
        self.whole: dict[str, bytes] = {}
        self.clear()

    def measure(self) -> None:
        """Do an undisturbed run, whose parts the others must make."""
        begin = time.monotonic()
        process = self.start("1/1")
        self.watch({1: process}, lambda: bool(self.seen))
        self.start_seconds = time.monotonic() - begin
        self.watch({1: process})
        if process.returncode:
            sys.exit(process.communicate()[1])
        self.part_seconds = (time.monotonic() - begin - self.start_seconds) / len(self.seen)
        self.end(process)
        self.whole = {name: (self.output / name).read_bytes() for name in self.seen}
        self.check()
        rows = sorted(pq.read_table(self.output)["row"].to_pylist())
        if rows != list(range(len(rows))):
            self.note("MISSING ROWS")

    def clear(self) -> None:
        """Remove the output."""
        shutil.rmtree(self.output, ignore_errors=True)
        self.seen: dict[str, tuple[int, int, int]] = {}

    def start(self, shard: str, **options: Any) -> subprocess.Popen[str]:
        output = str(self.output.relative_to(self.folder))
        words = ["embed", "in", "-o", output, "--model", "model", "--device", "cpu", "-q"]
        self.copies.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "virnucpro", *words, "--shard", shard, *self.options],
            cwd=self.folder,
            env={**os.environ, "TMPDIR": str(self.copies)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        self.processes.append(process)
        return process

    def close(self) -> None:
        """End runs that an error of this script, or Ctrl-C, has left."""
        for process in self.processes:
            process.kill()
            process.wait()

    def end(self, process: subprocess.Popen[str]) -> None:
        """Check a run that was not killed."""
        _, printed = process.communicate()
        if process.returncode or printed:
            self.note(f"STATUS {process.returncode}: {printed[-1000:]}")

    def note(self, outcome: str) -> None:
        """Count what happened, in capitals if it is wrong."""
        self.found[outcome] += 1
        if is_wrong(outcome):
            print(outcome, flush=True)

    def look(self) -> None:
        """Check the parts that are visible."""
        found = self.output.iterdir() if self.output.exists() else ()
        names = {path.name for path in found if not path.name.startswith(".")}
        for name in sorted(names | set(self.seen)):
            path = self.output / name
            if not path.exists():
                self.note(f"REMOVED {name}")
                continue
            stat = path.stat()
            identity = stat.st_ino, stat.st_mtime_ns, stat.st_size
            if name in self.seen:
                if self.seen[name] != identity:
                    self.note(f"WRITTEN AGAIN {name}")
            elif self.whole and path.read_bytes() != self.whole.get(name):
                self.note(f"BROKEN OR CHANGED {name}")
            self.seen[name] = identity

    def unfinished(self) -> set[Path]:
        """Return the files that are not yet parts."""
        return set(self.output.glob(".virnucpro.*/*"))

    def watch(
        self,
        running: dict[int, subprocess.Popen[str]],
        has_come: Callable[[], bool] = lambda: False,
    ) -> int | None:
        """Wait for a moment; return None then, or the shard whose run ended before."""
        last, num_seen = time.monotonic(), len(self.seen)
        while True:
            ended = [shard for shard, process in running.items() if process.poll() is not None]
            self.look()
            if ended or has_come():
                return ended[0] if ended else None
            if len(self.seen) > num_seen:
                last, num_seen = time.monotonic(), len(self.seen)
            if time.monotonic() > last + MAX_SECONDS:
                self.note("HANGS")
                for process in running.values():
                    process.kill()
            time.sleep(0.002)

    def check(self) -> None:
        """Check a complete output, and that nothing else is left."""
        self.look()
        if missing := set(self.whole) - set(self.seen):
            self.note(f"MISSING {sorted(missing)}")
        left = {path.name for path in self.folder.iterdir()} - self.inputs - {"out", "copies"}
        left |= {path.name for path in [*self.copies.iterdir(), *self.output.iterdir()]}
        left -= set(self.whole)
        if left:
            self.note(f"LEFT {sorted(left)}")

    def parts_of(self, shard: int) -> int:
        """Return how many parts of a shard are visible."""
        names = sorted(self.whole)
        return len(set(names[shard - 1 :: self.num_shards]) & set(self.seen))

    def draw_moment(self, draw: random.Random, kills: int) -> Moment:
        """Draw when to kill a run that has started, so that all kills are spread over the job."""
        stage = draw.choices(list(STAGES), list(STAGES.values()))[0]
        if stage == "start":
            return Moment(stage, 0, draw.uniform(0, self.start_seconds))
        left = (len(self.whole) - len(self.seen)) / self.num_shards
        parts = draw.randint(0, round(2 * left / (kills + 1)))
        if stage == "parts":
            return Moment(stage, max(parts, 1), draw.uniform(0, self.part_seconds))
        return Moment(stage, parts, draw.uniform(0, WRITING_SECONDS))

    def reach(self, shard: int, moment: Moment) -> Callable[[], bool]:
        """Return a function that tells whether a moment of the run of a shard has come."""
        parts = self.parts_of(shard) + moment.parts
        left = self.unfinished()
        since: float | None = None

        def has_come() -> bool:
            nonlocal since
            if since is None and self.parts_of(shard) >= parts:
                is_writing = moment.stage == "writing" and self.unfinished() - left
                if is_writing or moment.stage != "writing":
                    since = time.monotonic()
            return since is not None and time.monotonic() >= since + moment.seconds

        return has_come

    def kill(self, draw: random.Random, kills: int) -> None:
        """Kill runs so often, whose next run goes on, until the job is complete."""
        while kills:
            self.clear()
            shards = range(1, self.num_shards + 1)
            running = {shard: self.start(f"{shard}/{self.num_shards}") for shard in shards}
            before = dict.fromkeys(shards, 0)
            while running:
                shard = draw.choice(sorted(running))
                moment = self.draw_moment(draw, kills)
                has_come = self.reach(shard, moment) if kills else None
                ended = self.watch(running, has_come or (lambda: False))
                if ended is not None:
                    self.end(running.pop(ended))
                    continue
                running[shard].kill()
                running[shard].communicate()
                kills -= 1
                self.look()
                self.parts_of_runs.append(self.parts_of(shard) - before[shard])
                before[shard] = self.parts_of(shard)
                at = "while writing" if self.unfinished() else "otherwise"
                self.note(f"killed {at}")
                running[shard] = self.start(f"{shard}/{self.num_shards}")
            self.check()

    def fail(self, process: subprocess.Popen[str], kind: str) -> None:
        """Check a run that may lack disk space, and a run with enough of it."""
        self.watch({1: process})
        _, printed = process.communicate()
        lines = printed.splitlines()
        if process.returncode == 0 and not lines:
            outcome = "succeeded"
        elif process.returncode == 1 and len(lines) == 1 and lines[0].startswith("virnucpro: "):
            outcome = "said what is missing"
        else:
            outcome = f"STATUS {process.returncode}: {printed[-1000:]}"
        self.note(f"{kind}: {outcome}")
        if process.returncode and self.unfinished():
            self.note(f"{kind}: LEFT {self.unfinished()}")

    def limit_files(self, levels: int) -> None:
        """Run with limits on the size of files, of which some are below the size of parts."""
        sizes = sorted(map(len, self.whole.values()))
        for level in range(levels):
            size = sizes[level * len(sizes) // levels] - 1 if level else 0

            def limit(size: int = size) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

            self.clear()
            self.fail(self.start("1/1", preexec_fn=limit), "size of files")
        self.go_on()

    def fill_disk(self, draw: random.Random, levels: int) -> None:
        """Run on a disk that another file fills meanwhile; what it said before may not be true."""
        disk = self.folder / "disk"
        disk.mkdir()
        size = 2 * sum(map(len, self.whole.values())) + 2**20
        mounted = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(mounted, capture_output=True).returncode:
            disk.rmdir()
            print("no disk can be mounted, so that none is full", flush=True)
            return
        self.inputs.add("disk")
        output, self.output = self.output, disk / "out"
        try:
            for _ in range(levels):
                self.clear()
                process = self.start("1/1")
                parts = draw.randrange(1, len(self.whole))
                self.watch({1: process}, self.reach(1, Moment("parts", parts, 0)))
                ballast = disk / "ballast"
                free = shutil.disk_usage(disk).free
                # The run may need the rest first.
                with suppress(OSError):
                    ballast.write_bytes(bytes(draw.randrange(max(free - 2**16, 0), free)))
                self.fail(process, "full disk")
                ballast.unlink()
                self.go_on()
        finally:
            self.close()
            subprocess.run(["umount", str(disk)], check=True)
            self.output = output

    def go_on(self) -> None:
        """Do what is left, and check all."""
        process = self.start("1/1")
        self.watch({1: process})
        self.end(process)
        self.check()


def is_wrong(outcome: str) -> bool:
    return any(char.isupper() for char in outcome)


def make_inputs(folder: Path) -> None:
    """Write a checkpoint and FASTA files into a folder."""
    # Small, since most of the time of a run should not be the model's.
    model = tiny_model("esm", num_hidden_layers=1, position_embedding_type="rotary")
    save_checkpoint(folder / "model", model)
    inputs = folder / "in"
    inputs.mkdir()
    real = os.environ.get("VIRNUCPRO_REAL_DATA")
    for path in sorted(Path(real).glob("*.fa*")) if real else []:
        shutil.copy(path, inputs)
    if not real:
        records = list(read_fasta(EXAMPLES))
        rotated = (
            (f"{name}_{n}", text[n:] + text[:n]) for n in range(16) for name, text in records
        )
        (inputs / "proteins.fa").write_bytes(fasta(rotated))


def main() -> None:
    # So that runs and disks are ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    draw = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    wrong = total = 0
    for name, (options, num_shards) in JOBS.items():
        with TemporaryDirectory() as place:
            make_inputs(Path(place))
            with closing(Job(Path(place), options, num_shards)) as job:
                job.measure()
                job.kill(draw, kills if name == "plain" else -(-kills // 3))
                if name == "plain":
                    job.limit_files(4)
                    job.fill_disk(draw, 2)
        runs = job.parts_of_runs
        print(
            f"{name}: {len(job.whole):,} parts of {job.part_seconds:.2f} s after "
            f"{job.start_seconds:.1f} s; runs that were killed wrote {min(runs)} to {max(runs)} "
            f"parts, the median {statistics.median(runs):g}"
        )
        for outcome, times in sorted(job.found.items()):
            print(f"{times:5,} {outcome}", flush=True)
        wrong += sum(map(is_wrong, job.found))
        total += len(runs)
    print(f"{total:,} kills, {wrong} failures")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
