"""Measures `virnucpro pack` on large inputs and writes docs/explanation/job.md."""

from __future__ import annotations

import datetime
import gzip
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from data import log_normal
from rich.console import Console
from run import ROOT, machine

REPEATS = 5
NUM_PROTEINS = 1_500_000
NUM_ROWS = 50_000_000
console = Console(stderr=True)

BARE = """
import sys, pysam
residues = 0
with pysam.FastxFile(sys.argv[1]) as records:
    for record in records:
        residues += len(record.sequence)
"""
BIOPYTHON = """
import sys; sys.path.insert(0, sys.argv[2])
from Bio import SeqIO
from packers import first_fit_tree, tree_nodes
ids, lengths = [], []
for record in SeqIO.parse(sys.argv[1], "fasta"):
    ids.append(record.id)
    lengths.append(len(record.seq))
tokens = [min(length, 1022) + 2 for length in lengths]
order = sorted(range(len(ids)), key=lambda row: (-tokens[row], ids[row]))
first_fit_tree([tokens[row] for row in order], [4096] * tree_nodes(tokens), [0] * len(tokens))
"""
STAGES = """
import json, sys, time
from dataclasses import asdict
from virnucpro.data import GreedyPacker
from virnucpro.files.fasta import ReadOptions
from virnucpro.files.sequences import read_files
from virnucpro.files.plan_summary import Summary, compute_totals
from virnucpro.files.output import write_file
from virnucpro.files.plan_writer import encoding_of, write_plan
from virnucpro.files.verify import verify_plan
import logging; logging.disable()
times = [time.perf_counter()]
sequences = read_files([sys.argv[1]])
times.append(time.perf_counter())
num_duplicates, _ = sequences.find_duplicates()
times.append(time.perf_counter())
plan = GreedyPacker(4096).pack_lengths(sequences.lengths, sequences.ids)
times.append(time.perf_counter())
totals = compute_totals(plan, sequences, num_duplicates)
summary = Summary(plan.limits, "ffd", "truncate", 0, ReadOptions(), totals, sequences.inputs)
with write_file(sys.argv[2]) as file:
    write_plan(file, encoding_of(sys.argv[2]), plan, sequences, summary)
times.append(time.perf_counter())
assert verify_plan(sys.argv[2], sequences) == []
times.append(time.perf_counter())
print(json.dumps(times))
"""


def write_fasta(path: Path, number: int) -> None:
    """Write proteins of random residues in lines of 60; the same number gives the same file."""
    random = np.random.default_rng(0)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
    pool = letters[random.integers(0, 20, 2**22)].tobytes().decode()
    lengths = log_normal(number).clip(1, 30_000)
    begins = random.integers(0, len(pool) - 30_000, number)
    with path.open("w") as file:
        for i, (begin, length) in enumerate(zip(begins.tolist(), lengths.tolist(), strict=True)):
            sequence = pool[begin : begin + length]
            lines = (sequence[k : k + 60] for k in range(0, length, 60))
            file.write(f">UPI{i:010X} protein {i}\n" + "\n".join(lines) + "\n")


COMMAND = """
import sys
from virnucpro.__main__ import main
try:
    main()
finally:
    # Read here, since the peak that a parent process sees starts from its own.
    print(*(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def run(*command: object) -> tuple[float, str]:
    """Run a command; return its seconds and what it printed."""
    begin = time.perf_counter()
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - begin, done.stdout


def pack(path: Path, plan: Path) -> tuple[float, int]:
    """Run `virnucpro pack`; return its seconds and its peak memory in bytes."""
    seconds, printed = run(sys.executable, "-c", COMMAND, "pack", "-q", path, "-o", plan)
    return seconds, int(printed.split()[1]) * 1024


def proteins(folder: Path) -> Iterator[str]:
    """Yield lines on packing a FASTA file."""
    path, plan = folder / "proteins.fasta", folder / "plan.parquet"
    write_fasta(path, NUM_PROTEINS)
    size = path.stat().st_size / 1e6
    console.print("bare loop and pack")
    bare, ours, stages = [], [], []
    for _ in range(REPEATS):
        bare.append(run(sys.executable, "-c", BARE, path)[0])
        ours.append(pack(path, plan)[0])
        stages.append(np.diff(json.loads(run(sys.executable, "-c", STAGES, path, plan)[1])))
    console.print("Biopython")
    slow = run(sys.executable, "-c", BIOPYTHON, path, Path(__file__).parent)[0]
    console.print("gzip")
    compressed = path.with_suffix(".gz")
    with gzip.open(compressed, "wb", 1) as file:
        file.write(path.read_bytes())
    bare_gzip, ours_gzip = [], []
    for _ in range(REPEATS):
        bare_gzip.append(run(sys.executable, "-c", BARE, compressed)[0])
        ours_gzip.append(pack(compressed, plan)[0])
    loop, command = statistics.median(bare), statistics.median(ours)
    loop_gzip, command_gzip = statistics.median(bare_gzip), statistics.median(ours_gzip)
    yield f"{NUM_PROTEINS:,} proteins of random residues, a FASTA file of {size:,.0f} MB."
    yield "Medians of alternating runs, each in a new process; Biopython ran once."
    yield ""
    yield "| | seconds | times the bare loop |"
    yield "| --- | ---: | ---: |"
    yield f"| a bare loop of pysam that adds up lengths | {loop:.2f} | 1.0 |"
    yield f"| `virnucpro pack` | {command:.2f} | {command / loop:.2f} |"
    yield f"| Biopython's `SeqIO.parse` and FFD in Python | {slow:.1f} | {slow / loop:.1f} |"
    yield f"| the bare loop on the file in gzip | {loop_gzip:.2f} | 1.0 |"
    yield f"| `virnucpro pack` of it | {command_gzip:.2f} | {command_gzip / loop_gzip:.2f} |"
    yield ""
    yield "| stage | seconds |"
    yield "| --- | ---: |"
    names = ("read, check and hash", "duplicate IDs", "pack", "write", "(verify)")
    for name, taken in zip(names, np.median(stages, axis=0).tolist(), strict=True):
        yield f"| {name} | {taken:.2f} |"
    yield ""


def start() -> Iterator[str]:
    """Yield lines on the start-up time of the command."""
    console.print("start")
    commands = {
        'python -c "import numpy"': (sys.executable, "-c", "import numpy"),
        "virnucpro --version": (sys.executable, "-m", "virnucpro", "--version"),
        "virnucpro -h": (sys.executable, "-m", "virnucpro", "-h"),
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(4 * REPEATS):
        for name, command in commands.items():
            taken[name].append(run(*command)[0])
    yield "| start | seconds | times NumPy's |"
    yield "| --- | ---: | ---: |"
    medians = {name: statistics.median(times) for name, times in taken.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        yield f"| `{name}` | {median:.2f} | {median / first:.1f} |"
    yield ""


def memory(folder: Path) -> Iterator[str]:
    """Yield a line on memory per sequence."""
    path, plan = folder / "some.fasta", folder / "plan.parquet"
    peaks = []
    for number in (500_000, 2_000_000):
        console.print(f"memory of {number:,}")
        write_fasta(path, number)
        peaks.append(pack(path, plan)[1])
    growth = (peaks[1] - peaks[0]) / 1_500_000
    yield (
        f"Peak memory from 500,000 to 2,000,000 sequences: {peaks[0] / 2**20:,.0f} MiB to "
        f"{peaks[1] / 2**20:,.0f} MiB, {growth:.0f} bytes per sequence."
    )
    yield ""


def lengths(folder: Path) -> Iterator[str]:
    """Yield a line on packing a table of lengths."""
    console.print("table of lengths")
    path, plan = folder / "lengths.parquet", folder / "plan.parquet"
    schema = pa.schema([("id", pa.string()), ("length", pa.int32())])
    every = log_normal(NUM_ROWS)
    with pq.ParquetWriter(path, schema) as writer:
        for begin in range(0, NUM_ROWS, 2**20):
            some = every[begin : begin + 2**20]
            ids = [f"UPI{i:010X}" for i in range(begin, begin + len(some))]
            writer.write_table(pa.table([ids, some], schema=schema))
    seconds, peak = pack(path, plan)
    yield (
        f"{NUM_ROWS:,} rows of a Parquet length table: {seconds:.0f} s, peak memory "
        f"{peak / 2**30:.1f} GiB."
    )
    yield ""


SAVED = """
import json, sys, time; sys.path.insert(0, sys.argv[2])
from measure import peak_of
from virnucpro.data import PackingPlan
from virnucpro.files import plan_reader
begin = time.perf_counter()
plan, memory = peak_of(lambda: PackingPlan.load(sys.argv[1]))
opened = time.perf_counter() - begin
print(json.dumps([opened, memory, len(plan)]))
"""
SAVE = """
import sys
import numpy as np
from data import log_normal
from virnucpro.data import GreedyPacker
import logging; logging.disable()
GreedyPacker(4096).pack_lengths(log_normal(100_000_000)).save(sys.argv[1])
"""


def saved(folder: Path) -> Iterator[str]:
    """Yield a line on loading a saved plan."""
    console.print("saved plan")
    path = folder / "plan.arrow"
    run("env", f"PYTHONPATH={Path(__file__).parent}", sys.executable, "-c", SAVE, path)
    seconds, peak, batches = json.loads(
        run(sys.executable, "-c", SAVED, path, Path(__file__).parent)[1]
    )
    yield (
        f"`PackingPlan.load` of 100,000,000 rows in {batches:,} batches "
        f"({path.stat().st_size / 2**20:,.0f} MiB): {seconds:.3f} s, {peak / 2**20:.1f} MiB."
    )


def main() -> None:
    """Measure and write."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        parts = [
            *proteins(folder),
            *start(),
            *memory(folder),
            *lengths(folder),
            *saved(folder),
        ]
    text = [
        "# The preprocessing job",
        "",
        f"Made by `make bench-job` on {datetime.date.today()}: {machine()}.",
        "",
        *parts,
        "",
    ]
    output = ROOT / "docs" / "explanation" / "job.md"
    output.write_text("\n".join(text))
    console.print(f"Written to {output}")


if __name__ == "__main__":
    main()
