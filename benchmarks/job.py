"""Measures `virnucpro pack` on large inputs."""

from __future__ import annotations

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
from results import Result, console, table

REPEATS = 3

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
from first_fit import first_fit_tree, tree_nodes
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


def proteins(folder: Path, number: int) -> tuple[list[str], str]:
    """Return lines on packing a FASTA file, and one for the README."""
    path, plan = folder / "proteins.fasta", folder / "plan.parquet"
    write_fasta(path, number)
    size = path.stat().st_size / 1e6
    console.print("pysam and pack")
    taken: dict[str, list[float]] = {"loop": [], "pack": [], "loop, gzip": [], "pack, gzip": []}
    stages = []
    compressed = path.with_suffix(".gz")
    with gzip.open(compressed, "wb", 1) as file:
        file.write(path.read_bytes())
    for _ in range(REPEATS):
        taken["loop"].append(run(sys.executable, "-c", BARE, path)[0])
        taken["pack"].append(pack(path, plan)[0])
        taken["loop, gzip"].append(run(sys.executable, "-c", BARE, compressed)[0])
        taken["pack, gzip"].append(pack(compressed, plan)[0])
        stages.append(np.diff(json.loads(run(sys.executable, "-c", STAGES, path, plan)[1])))
    console.print("Biopython")
    slow = run(sys.executable, "-c", BIOPYTHON, path, Path(__file__).parent)[0]
    of = {name: statistics.median(times) for name, times in taken.items()}
    rows = [
        ("`virnucpro pack`", of["pack"], of["loop"]),
        ("`virnucpro pack`, file in gzip", of["pack, gzip"], of["loop, gzip"]),
        ("Biopython's `SeqIO.parse` and FFD in Python", slow, of["loop"]),
    ]
    names = ("read, check and hash", "duplicate IDs", "pack", "write", "(verify)")
    lines = [
        f"{number:,} proteins of random residues, a FASTA file of {size:,.0f} MB, from the file to "
        f"the plan on disk, beside a loop of pysam that only adds up lengths. Medians of {REPEATS} "
        "alternating runs, each in a new process; Biopython ran once.",
        "",
        *table(
            "command | times pysam | seconds | pysam, s",
            ([name, f"{x / y:.2f}", f"{x:.2f}", f"{y:.2f}"] for name, x, y in rows),
        ),
        *table(
            "stage of `pack` | seconds",
            zip(names, (f"{x:.2f}" for x in np.median(stages, axis=0)), strict=True),
        ),
    ]
    figure = (
        f"- {number / 1e6:g} million proteins, from {size:,.0f} MB of FASTA to a plan on disk: "
        f"{of['pack']:.1f} s with `virnucpro pack`, {slow:.0f} s with Biopython and First-Fit "
        "Decreasing in Python."
    )
    return lines, figure


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
    medians = {name: statistics.median(times) for name, times in taken.items()}
    first = next(iter(medians.values()))
    rows = ([f"`{name}`", f"{x / first:.1f}", f"{x:.2f}"] for name, x in medians.items())
    yield from table("start of a command | times NumPy's | seconds", rows)


def memory(folder: Path, numbers: tuple[int, int]) -> Iterator[str]:
    """Yield a line on memory per sequence."""
    path, plan = folder / "some.fasta", folder / "plan.parquet"
    peaks = []
    for number in numbers:
        console.print(f"memory of {number:,}")
        write_fasta(path, number)
        peaks.append(pack(path, plan)[1])
    growth = (peaks[1] - peaks[0]) / (numbers[1] - numbers[0])
    yield (
        f"Peak memory from {numbers[0]:,} to {numbers[1]:,} sequences: {peaks[0] / 2**20:,.0f} MiB "
        f"to {peaks[1] / 2**20:,.0f} MiB, {growth:.0f} bytes per sequence."
    )
    yield ""


def lengths(folder: Path, number: int) -> Iterator[str]:
    """Yield a line on packing a table of lengths."""
    console.print("table of lengths")
    path, plan = folder / "lengths.parquet", folder / "plan.parquet"
    schema = pa.schema([("id", pa.string()), ("length", pa.int32())])
    every = log_normal(number)
    with pq.ParquetWriter(path, schema) as writer:
        for begin in range(0, number, 2**20):
            some = every[begin : begin + 2**20]
            ids = [f"UPI{i:010X}" for i in range(begin, begin + len(some))]
            writer.write_table(pa.table([ids, some], schema=schema))
    seconds, peak = pack(path, plan)
    yield (
        f"{number:,} rows of a Parquet length table: {seconds:.1f} s, peak memory "
        f"{peak / 2**30:.1f} GiB."
    )


def measure(quick: bool, _: Path) -> Result:
    """Measure the command on generated files."""
    scale = 1000 if quick else 1
    with TemporaryDirectory() as name:
        folder = Path(name)
        lines, figure = proteins(folder, 1_500_000 // scale)
        lines += [
            *start(),
            *memory(folder, (500_000 // scale, 2_000_000 // scale)),
            *lengths(folder, 20_000_000 // scale),
        ]
    return Result(lines, [figure])
