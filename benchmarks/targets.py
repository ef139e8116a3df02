"""Performance targets, as ratios to reference operations timed in alternation.

As a script, measures one of those that need a process of their own, and prints JSON.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from data import Data, log_normal, wikipedia
from first_fit import first_fit_tree, tree_nodes
from packers import ours
from results import Result, console, in_process, memory, peak_of, seconds_of, table

from virnucpro import kernel
from virnucpro.data import GreedyPacker
from virnucpro.data.records import Record

Call = Callable[[], Any]


def alternate(ours: Call, other: Call, repeats: int) -> tuple[float, float]:
    """Return the median seconds of two alternating calls, after eight turns or a second to warm up.

    Since memory that a virtual machine has returned to its host is slow on first use.
    """
    begin, turns = time.perf_counter(), 0
    while turns < 1 or (turns < 8 and time.perf_counter() - begin < 1):
        ours(), other()
        turns += 1
    seconds = [(seconds_of(ours), seconds_of(other)) for _ in range(repeats)]
    mine, others = zip(*seconds, strict=True)
    return statistics.median(mine), statistics.median(others)


class Rows(list[list[str]]):
    """Rows of work, what is measured, and what it must be."""

    def add(self, work: str, measured: str, must: str, holds: bool, times: str = "") -> None:
        """Add a row; `holds` says whether the requirement is met."""
        self.append([work, measured, must, "yes" if holds else "no", times])
        console.print(*self[-1])

    def compare(self, work: str, must: float, call: Call, other: Call, repeats: int) -> float:
        """Add a row for a call that may take `must` times as long as another; return its time."""
        mine, others = alternate(call, other, repeats)
        times = f"{mine * 1e3:,.2f} ms, {others * 1e3:,.2f} ms"
        self.add(work, as_ratio(mine / others), as_ratio(must), mine <= must * others, times)
        return mine


def as_ratio(ratio: float) -> str:
    """Return a ratio as text: of whole numbers if it is small."""
    return f"{ratio:.2f}" if ratio > 0.5 else f"1/{1 / ratio:.1f}".removesuffix(".0")


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


def records_rows(rows: Rows, names: list[str], lengths: list[int], quick: bool) -> None:
    """Add the rows for lists of dicts."""
    records = make_records(names, lengths)
    packer = GreedyPacker(4096)
    share = 100 * sum(length > 1022 for length in lengths) / len(lengths)
    mine = rows.compare(
        f"`pack_sequences`, {len(names):,} dicts, {share:.1f} % truncated, against "
        "`[(len(d['sequence']), d['id']) for d in s]`",
        1.2,
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
        as_ratio(mine / seconds),
        "1/10",
        seconds / mine >= 10,
        f"{mine * 1e3:,.2f} ms, {seconds * 1e3:,.2f} ms",
    )
    rows.compare(
        f"`sort_by_length`, {len(names):,} dicts, against `sorted(s, key=...)`",
        1 / 8,
        lambda: packer.sort_by_length(records),
        lambda: sorted(records, key=lambda record: (-len(record["sequence"]), record["id"])),
        3,
    )
    buffer = make_records(names[:2000], lengths[:2000])
    for _ in range(100):
        packer.pack_sequences(buffer)
    rows.compare(
        "`pack_sequences`, 2,000 records, after the first 100 warnings, against the same loop",
        1.1,
        lambda: packer.pack_sequences(buffer),
        lambda: read(buffer),
        200,
    )
    if not quick:
        (extra,) = in_process("targets.py", "dicts")
        rows.add(
            "`pack_sequences`, 1 million dicts: extra memory beyond the result",
            f"{extra:.0f} bytes per record",
            "80 bytes per record",
            extra <= 80,
        )


def lengths_rows(rows: Rows, scale: int) -> None:
    """Add the rows for arrays of lengths."""
    protein = Data(lambda: log_normal(10_000_000 // scale))
    packer, lengths = ours(protein), protein.make()
    clipped = protein.tokens().astype(np.uint16)
    rows.compare(
        f"`pack_lengths`, {len(lengths):,} int32, against `np.argsort(lengths, kind='stable')`",
        1 / 15,
        lambda: packer.pack_lengths(lengths),
        lambda: np.argsort(lengths, kind="stable"),
        7,
    )
    rows.compare(
        "the same, against the stable argsort of the clipped uint16 array",
        1 / 4,
        lambda: packer.pack_lengths(lengths),
        lambda: np.argsort(clipped, kind="stable"),
        15,
    )
    rows.compare(
        f"`assign_batches`, {len(lengths):,} int32, against `lengths.copy()`",
        8,
        lambda: packer.assign_batches(lengths),
        lengths.copy,
        51,
    )
    million, sizes = lengths[: len(lengths) // 10], protein.tokens()[: len(lengths) // 10].tolist()
    try:
        from lightbinpack import obfdp
    except ModuleNotFoundError:
        rows.add("`pack_lengths` against lightbinpack", "not installed", "1/20", holds=False)
    else:
        rows.compare(
            f"`pack_lengths`, {len(million):,} int32, against `lightbinpack.obfdp` with a list",
            1 / 20,
            lambda: packer.pack_lengths(million),
            lambda: obfdp(sizes, 4096),
            7,
        )
    buffer = lengths[:2000].copy()
    rows.compare(
        "`pack_lengths`, 2,000 int32, against `np.argsort(lengths, kind='stable')`",
        1.5,
        lambda: packer.pack_lengths(buffer),
        lambda: np.argsort(buffer, kind="stable"),
        1000,
    )
    names = accessions(len(million))
    ids = np.array(names)
    rows.compare(
        f"`pack_lengths` with string `ids` of {len(ids):,} sequences, against `np.argsort(ids)`",
        1 / 3,
        lambda: packer.pack_lengths(million, ids),
        lambda: np.argsort(ids),
        3,
    )
    records_rows(rows, names, million.tolist(), scale > 1)


def measure(quick: bool, _: Path) -> Result:
    """Measure the targets; without the largest if `quick`."""
    # Warnings are made, as for users, but not shown.
    logging.getLogger("virnucpro").addHandler(logging.NullHandler())
    rows, scale = Rows(), 1000 if quick else 1
    lengths_rows(rows, scale)
    documents = GreedyPacker(131_072, 131_072, special_tokens=0)
    counts = documents.count(log_normal(5_000_000 // scale, 8, 1.3)).core
    seconds = alternate(lambda: kernel.first_fit_decreasing(counts), int, 9)[0]
    rows.add(
        f"the layout alone, {counts.num_sequences:,} log-normal lengths (mu 8, sigma 1.3), budget "
        "131,072",
        f"{seconds * 1e3:.1f} ms",
        "150 ms",
        seconds <= 0.15,
    )
    words = wikipedia(16_279_552 // scale)
    bert = GreedyPacker(512, 512, special_tokens=0)
    seconds = alternate(lambda: bert.pack_lengths(words), int, 5)[0]
    rows.add(
        f"`pack_lengths`, {len(words):,} lengths of at most 512, budget 512",
        f"{seconds * 1e3:.0f} ms",
        "200 ms",
        seconds <= 0.2,
    )
    if not quick:
        del words
        seconds, gibibytes = in_process("targets.py", "billion")
        rows.add(
            "1 billion uint16 lengths, `pack_lengths`, second call",
            f"{seconds:.2f} s, {gibibytes:.1f} GiB",
            "15 s, 13 GiB",
            seconds <= 15 and gibibytes <= 13,
        )
    lines = [
        "Ratios of medians of runs that alternate in one process, warm, with logging on; what they "
        "must be at most is what this project promises itself.",
        "",
        *table("work | ratio | at most | holds | times", rows),
    ]
    return Result(lines)


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


if __name__ == "__main__":
    print(json.dumps({"billion": billion, "dicts": dicts}[sys.argv[1]]()))
