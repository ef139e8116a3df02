"""Performance targets, as ratios to reference operations timed in alternation."""

from __future__ import annotations

import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from data import Data, log_normal, wikipedia
from measure import memory, peak_of
from packers import first_fit_tree, ours, tree_nodes
from rich.console import Console

from virnucpro import kernel
from virnucpro.data import GreedyPacker
from virnucpro.data.records import Record

console = Console(stderr=True, soft_wrap=True)
Call = Callable[[], Any]


def alternate(ours: Call, other: Call, repeats: int) -> tuple[float, float]:
    """Return the median seconds of two alternating calls, after eight warm-up turns.

    Eight, since memory that a virtual machine has returned to its host is slow on first use.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(-8, repeats):
        for call, times in zip((ours, other), seconds, strict=True):
            begin = time.perf_counter()
            call()
            if turn >= 0:
                times.append(time.perf_counter() - begin)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def median(call: Call, repeats: int) -> float:
    """Return the median seconds of a call."""
    return alternate(call, lambda: None, repeats)[0]


class Table:
    """A Markdown table of requirements, aims and measurements."""

    def __init__(self) -> None:
        self.lines = [
            "| work | must | aim | measured | |",
            "| --- | --- | --- | --- | --- |",
        ]

    def add(self, work: str, must: str, aim: str, measured: str, holds: bool) -> None:
        """Add a row; `holds` says whether the requirement is met."""
        self.lines.append(f"| {work} | {must} | {aim} | {measured} | {'✓' if holds else '✗'} |")
        console.print(self.lines[-1])

    def within(
        self, work: str, must: float, aim: str, call: Call, other: Call, repeats: int
    ) -> float:
        """Add a row for a call that may take `must` times as long as another; return its time."""
        mine, others = alternate(call, other, repeats)
        ratio = mine / others
        measured = f"{ratio:.2f} times ({mine * 1e3:,.2f} ms, {others * 1e3:,.2f} ms)"
        self.add(work, f"{must:g} times", aim, measured, ratio <= must)
        return mine

    def faster(
        self, work: str, must: float, aim: float, call: Call, other: Call, repeats: int
    ) -> None:
        """Add a row for a call that should be `must` and `aim` times faster than another."""
        mine, others = alternate(call, other, repeats)
        ratio = others / mine
        measured = f"1/{ratio:.1f} ({mine * 1e3:,.2f} ms, {others * 1e3:,.1f} ms)"
        self.add(work, f"1/{must:g}", f"1/{aim:g}", measured, ratio >= must)


def accessions(num: int) -> list[str]:
    """Return random IDs such as NC_004718.3_12."""
    digits = np.random.default_rng(0).integers(0, 10, (num, 9))
    return ["NC_{}{}{}{}{}{}.{}_{}{}".format(*row) for row in digits.tolist()]


def truncated(record: Record) -> Record:
    """Return a record as `pack_sequences` returns it."""
    sequence = record["sequence"]
    if len(sequence) <= 1022:
        return record
    return {**record, "sequence": sequence[:1022], "truncated": True}


def pack_in_python(records: list[Record]) -> list[list[Record]]:
    """Pack records with `sorted` and a tree."""
    kept = map(truncated, records)
    in_order = sorted(kept, key=lambda record: (-len(record["sequence"]), record["id"]))
    tokens = [len(record["sequence"]) + 2 for record in in_order]
    batch_of = [0] * len(tokens)
    num_batches = first_fit_tree(tokens, [4096] * tree_nodes(tokens), batch_of)
    batches: list[list[Record]] = [[] for _ in range(num_batches)]
    for batch, record in zip(batch_of, in_order, strict=True):
        batches[batch].append(record)
    return batches


def make_records(names: list[str], lengths: list[int]) -> list[Record]:
    """Return records of random residues."""
    rng = np.random.default_rng(0)
    residues = "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 2**20 + max(lengths)))
    starts = rng.integers(0, 2**20, len(lengths)).tolist()
    return [
        {"id": name, "sequence": residues[start : start + length]}
        for name, start, length in zip(names, starts, lengths, strict=True)
    ]


def read(records: list[Record]) -> list[tuple[int, str]]:
    """Read records in a loop, with which packing them is compared."""
    return [(len(d["sequence"]), d["id"]) for d in records]


def in_a_process(what: str) -> list[float]:
    """Run this file in a new process for one measurement; return the numbers that it prints."""
    command = [sys.executable, str(Path(__file__)), what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(map(float, done.stdout.split()))


def records_rows(rows: Table, names: list[str], lengths: list[int]) -> None:
    """Add the rows for lists of dicts."""
    records = make_records(names, lengths)
    packer = GreedyPacker(4096)
    num_truncated = sum(length > 1022 for length in lengths)
    share = f"{100 * num_truncated / len(lengths):.1f} % truncated"
    mine = rows.within(
        f"`pack_sequences`, 1 M dicts, {share}, "
        "against `[(len(d['sequence']), d['id']) for d in s]`",
        1.2,
        "0.9 times",
        lambda: packer.pack_sequences(records),
        lambda: read(records),
        7,
    )
    begin = time.perf_counter()
    expected = pack_in_python(records)
    seconds = time.perf_counter() - begin
    if packer.pack_sequences(records) != expected:
        raise AssertionError("batches differ from those packed in Python")
    del expected
    rows.add(
        "the same, against the same result in pure Python (`sorted` and a tree)",
        "1/10",
        "1/20",
        f"1/{seconds / mine:.1f} ({mine * 1e3:.0f} ms, {seconds * 1e3:,.0f} ms)",
        seconds / mine >= 10,
    )
    rows.faster(
        "`sort_by_length`, 1 M dicts, against `sorted(s, key=...)`",
        8,
        15,
        lambda: packer.sort_by_length(records),
        lambda: sorted(records, key=lambda record: (-len(record["sequence"]), record["id"])),
        3,
    )
    buffer = make_records(names[:2000], lengths[:2000])
    for _ in range(100):
        packer.pack_sequences(buffer)
    rows.within(
        "`pack_sequences`, 2,000 records, after the first 100 warnings, against the same loop",
        1.1,
        "",
        lambda: packer.pack_sequences(buffer),
        lambda: read(buffer),
        500,
    )
    (extra,) = in_a_process("dicts")
    rows.add(
        "`pack_sequences`, 1 M dicts: extra memory beyond the result",
        "80 bytes per record",
        "40 bytes per record",
        f"{extra:.0f} bytes per record",
        extra <= 80,
    )


def table(quick: bool) -> str:
    """Return the targets as a Markdown table; without the largest if `quick`."""
    # Warnings are made, as for users, but not shown.
    logging.getLogger("virnucpro").addHandler(logging.NullHandler())
    rows = Table()
    protein = Data(lambda: log_normal(10_000_000))
    packer = ours(protein)
    lengths = protein.make()
    clipped = protein.tokens().astype(np.uint16)
    rows.faster(
        "`pack_lengths`, 10 M int32, against `np.argsort(lengths, kind='stable')`",
        15,
        30,
        lambda: packer.pack_lengths(lengths),
        lambda: np.argsort(lengths, kind="stable"),
        11,
    )
    rows.faster(
        "the same, against the stable argsort of the clipped uint16 array",
        4,
        8,
        lambda: packer.pack_lengths(lengths),
        lambda: np.argsort(clipped, kind="stable"),
        25,
    )
    million, sizes = log_normal(1_000_000), protein.tokens()[:1_000_000].tolist()
    try:
        import lightbinpack

        packs = {name: getattr(lightbinpack, name) for name in ("ffd", "bfd", "obfd", "obfdp")}
        fastest = min(packs, key=lambda name: median(lambda: packs[name](sizes, 4096), 3))
        rows.faster(
            f"`pack_lengths`, 1 M int32, against `lightbinpack.{fastest}` with a list",
            20,
            40,
            lambda: packer.pack_lengths(million),
            lambda: packs[fastest](sizes, 4096),
            9,
        )
    except ModuleNotFoundError:
        rows.add("`pack_lengths`, 1 M int32, against lightbinpack", "", "", "not installed", False)
    mine, copies = alternate(lambda: packer.assign_batches(lengths), lengths.copy, 51)
    rows.add(
        "`assign_batches`, 10 M int32, against `lengths.copy()`",
        "8 times",
        "4 times",
        f"{mine / copies:.1f} times ({mine * 1e3:.1f} ms, {copies * 1e3:.1f} ms)",
        mine / copies <= 8,
    )
    buffer = lengths[:2000].copy()
    seconds = rows.within(
        "`pack_lengths`, 2,000 int32, against `np.argsort(lengths, kind='stable')`",
        1.5,
        "",
        lambda: packer.pack_lengths(buffer),
        lambda: np.argsort(buffer, kind="stable"),
        1000,
    )
    rows.add(
        "`pack_lengths`, 2,000 lengths",
        "200 µs",
        "60 µs",
        f"{seconds * 1e6:.0f} µs",
        seconds <= 200e-6,
    )
    documents = GreedyPacker(131_072, 131_072, special_tokens=0)
    counts = documents.count(log_normal(5_000_000, 8, 1.3)).core
    seconds = median(lambda: kernel.first_fit_decreasing(counts), 9)
    rows.add(
        "the layout alone, 5 M log-normal lengths (mu 8, sigma 1.3), budget 131,072",
        "150 ms",
        "50 ms",
        f"{seconds * 1e3:.1f} ms",
        seconds <= 0.15,
    )
    names = accessions(1_000_000)
    ids = np.array(names)
    rows.faster(
        "`pack_lengths` with string `ids` of 1 M sequences, against `np.argsort(ids)`",
        3,
        8,
        lambda: packer.pack_lengths(million, ids),
        lambda: np.argsort(ids),
        3,
    )
    records_rows(rows, names, million.tolist())
    words = wikipedia()
    bert = GreedyPacker(512, 512, special_tokens=0)
    seconds = median(lambda: bert.pack_lengths(words), 5)
    rows.add(
        "`pack_lengths`, 16,279,552 lengths of at most 512, budget 512",
        "200 ms",
        "",
        f"{seconds * 1e3:.0f} ms",
        seconds <= 0.2,
    )
    if not quick:
        del lengths, clipped, words, ids
        seconds, gibibytes = in_a_process("billion")
        rows.add(
            "1 billion uint16 lengths, `pack_lengths`, second call",
            "15 s, 13 GiB",
            "4 s, 10 GiB",
            f"{seconds:.2f} s, {gibibytes:.1f} GiB",
            seconds <= 15 and gibibytes <= 13,
        )
    return "\n".join(rows.lines)


def billion() -> tuple[float, float]:
    """Return the seconds of a second call on a billion lengths, and the total memory in GiB."""
    lengths = log_normal(1_000_000_000, dtype="u2")
    packer = ours(Data(lambda: lengths))
    packer.pack_lengths(lengths)
    begin = time.perf_counter()
    _, peak = peak_of(lambda: packer.pack_lengths(lengths))
    return time.perf_counter() - begin, (peak + lengths.nbytes) / 2**30


def dicts() -> tuple[float]:
    """Return the peak bytes per record that packing records needs beyond its result."""
    records = make_records(accessions(1_000_000), log_normal(1_000_000).tolist())
    logging.getLogger("virnucpro").addHandler(logging.NullHandler())
    packer = GreedyPacker(4096)
    before = memory("VmRSS")
    packed, peak = peak_of(lambda: packer.pack_sequences(records))
    kept = memory("VmRSS") - before
    del packed
    return ((peak - kept) / len(records),)


if __name__ == "__main__" and sys.argv[1:]:
    print(*{"billion": billion, "dicts": dicts}[sys.argv[1]]())
