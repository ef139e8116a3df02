"""Damages plans in many ways; each must be named by `load` or `verify`, or change no batch.

Usage: damaged_plans.py [RUNS [SEED]], with RUNS damaged files of each plan. They are read in child
processes, since what is looked for includes a process that dies.
"""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from damages import NAMED, cut, extend, flip, overwrite
from fasta import fasta
from other_readers import find_lost_rows

from virnucpro.data import (
    GreedyPacker,
    PackedBatchSampler,
    PackedFastaDataset,
    PackedPlanDataset,
    PackingPlan,
    ReadOptions,
    pack_files,
)
from virnucpro.files.sequences import Sequences, read_files
from virnucpro.files.tables import PLAN_KEY
from virnucpro.files.verify import verify_plan

FASTA = "proteins.fasta"
# The plans that are damaged: how they are made.
PLANS: dict[str, dict[str, Any]] = {
    "truncated.parquet": {},
    "truncated.arrow": {},
    "dropped.arrow": {"overlong": "drop"},
    "split.arrow": {"overlong": "split", "overlap": 5},
    "sequences.parquet": {"overlong": "split"},
}


def make_plans(folder: Path) -> None:
    """Write the input and the plans."""
    draw = random.Random(1)
    lengths = [draw.choice([0, 5, 9, 12, 30, 31, 70]) for _ in range(80)]
    records = ((f"id{n % 60}", "".join(draw.choices("ACDE", k=n))) for n in lengths)
    (folder / FASTA).write_bytes(fasta(records))
    for name, overlong in PLANS.items():
        packer = GreedyPacker(64, 30, **overlong)
        has_sequences = name.startswith("sequences")
        with patch("virnucpro.files.plan_writer.ROW_GROUP_SIZE", 16):
            pack_files(folder / FASTA, folder / name, packer, sequences=has_sequences)


def change_table(data: bytes, draw: random.Random) -> bytes:
    """Write the table anew with a column changed, or a value in its summary."""
    is_arrow = data.startswith(b"ARROW1")
    source = pa.BufferReader(data)
    table = pa.ipc.open_file(source).read_all() if is_arrow else pq.read_table(source)
    table = draw.choice([change_type, change_columns, change_rows, change_summary])(table, draw)
    sink = pa.BufferOutputStream()
    if is_arrow:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
    else:
        pq.write_table(table, sink)
    return bytes(sink.getvalue())


def change_type(table: pa.Table, draw: random.Random) -> pa.Table:
    """Give a column another type."""
    at = draw.randrange(table.num_columns)
    name = table.schema.names[at]
    column = table[name].cast(draw.choice([pa.large_string(), pa.string()]))
    return table.set_column(at, name, column)


def change_columns(table: pa.Table, draw: random.Random) -> pa.Table:
    """Leave a column out, double it, or fill it with nulls."""
    at = draw.randrange(table.num_columns)
    field = table.schema.field(at)
    change = draw.randrange(3)
    if change == 0:
        return table.remove_column(at)
    if change == 1:
        return table.append_column(field, table.column(at))
    return table.set_column(at, field, pa.nulls(len(table), field.type))


def change_rows(table: pa.Table, draw: random.Random) -> pa.Table:
    """Exchange, repeat or leave out rows, of one column or of all."""
    rows = list(range(len(table)))
    one, other = draw.sample(rows, 2)
    change = draw.randrange(3)
    if change == 0:
        rows[one], rows[other] = other, one
    elif change == 1:
        rows[one] = other
    else:
        return table.take(rows[:one] + rows[one + 1 :])
    if draw.randrange(2):
        return table.take(rows)
    at = draw.randrange(table.num_columns)
    return table.set_column(at, table.schema.field(at), table.column(at).take(rows))


def change_summary(table: pa.Table, draw: random.Random) -> pa.Table:
    """Change a value in the summary or the layout."""
    metadata = dict(table.schema.metadata)
    state = json.loads(metadata[PLAN_KEY])
    places = [(state, key) for key in state]
    for part, key in places:
        if isinstance(part[key], (dict, list)):
            inner = part[key]
            places += [
                (inner, k) for k in (inner if isinstance(inner, dict) else range(len(inner)))
            ]
    part, key = draw.choice(places)
    values: list[Any] = [None, -1, 0, 1, 2, 30, 64, 2**31, 2**63, 1e300, "ffd", "", [], {}, True]
    value = draw.choice(values)
    if isinstance(part[key], int) and draw.randrange(2):
        value = part[key] + draw.choice([-1, 1])
    part[key] = value
    metadata[PLAN_KEY] = json.dumps(state).encode()
    return table.replace_schema_metadata(metadata)


def change_statistics(data: bytes, draw: random.Random) -> bytes:
    """Replace the minimum or the maximum of a column in a row group."""
    if not data.startswith(b"PAR1"):
        return flip(data, draw)
    metadata = pq.read_metadata(pa.BufferReader(data))
    ends = [
        end if isinstance(end, bytes) else end.to_bytes(size, "little", signed=True)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
        for chunk in [metadata.row_group(group).column(column)]
        for size in [{"INT32": 4, "INT64": 8}.get(chunk.physical_type, 1)]
        if chunk.statistics is not None and chunk.statistics.has_min_max
        for end in (chunk.statistics.min_raw, chunk.statistics.max_raw)
    ]
    # In the footer, the length of a text is before it.
    end = draw.choice([bytes([len(end)]) + end for end in ends if 0 < len(end) < 64])
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    places = [at for at in range(footer, len(data)) if data.startswith(end, at)]
    at = draw.choice(places) + 1
    size = len(end) - 1
    changed = draw.choice([bytes(size), draw.randbytes(size), flip(end[1:], draw)])
    return data[:at] + changed + data[at + size :]


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip,
    flip,
    cut,
    extend,
    overwrite,
    change_table,
    change_statistics,
)


def content(plan: PackingPlan) -> Any:
    """Return what a plan says."""
    fragments = [values.tolist() for values in plan.fragments or ()]
    return [rows.tolist() for rows in plan], plan.dropped.tolist(), fragments, plan.limits


def try_damaged(
    path: Path, sequences: Sequences, expected: Any, forward: Any, draw: random.Random
) -> str:
    """Read a damaged plan; return who named the damage."""
    try:
        found = content(PackingPlan.load(path))
    except NAMED:
        return "named by load"
    try:
        if verify_plan(path, sequences):
            return "named by verify"
        if forward is not None and list(PackedPlanDataset(path)) != forward:
            return "CHANGED RECORDS"
        if path.suffix == ".parquet" and (lost := find_lost_rows(path, draw)):
            return f"LOST ROWS for {lost}"
    except NAMED:
        return "named by verify"
    return "harmless" if found == expected else "CHANGED BATCHES"


def uses_of(plan: PackingPlan, path: Path, batch: int) -> list[Callable[[], Any]]:
    """Return ways to use a plan of a file, each of which returns what it found."""

    def save() -> Any:
        plan.save(path.parent / "copy.parquet")
        return content(PackingPlan.load(path.parent / "copy.parquet"))

    return [
        lambda: plan[batch].tolist(),
        lambda: plan.indices.tolist(),
        lambda: [rows.tolist() for rows in plan.shard(0, 2)],
        lambda: plan.reshuffle(3).indices.tolist(),
        lambda: plan.dropped.tolist(),
        lambda: pickle.loads(pickle.dumps(plan)).indices.tolist(),
        lambda: list(PackedBatchSampler(plan)),
        lambda: plan == PackingPlan.load(path),
        lambda: PackedFastaDataset(path.parent / FASTA, plan)[0],
        lambda: [values.tolist() for values in plan.fragments or ()],
        save,
    ]


def try_shrunk(path: Path, data: bytes, draw: random.Random) -> str:
    """Change the file of a plan that is loaded; using it must be an error, or change nothing."""
    path.write_bytes(data)
    plan, intact = PackingPlan.load(path), PackingPlan.load(path)
    batch = draw.randrange(len(plan))
    expected = [use() for use in uses_of(intact, path, batch)]
    in_order = list(PackedBatchSampler(intact))
    sampler = iter(PackedBatchSampler(plan))
    batches = [next(sampler) for _ in range(draw.randrange(2))]
    with path.open("r+b") as file:
        if draw.randrange(3):
            file.truncate(draw.choice([0, 100, draw.randrange(len(data))]))
        else:
            file.write(bytes(draw.randrange(100, len(data))))
    outcome = "harmless"
    uses: list[Callable[[], Any]] = [*uses_of(plan, path, batch), lambda: batches + list(sampler)]
    for use, right in zip(uses, [*expected, in_order], strict=True):
        try:
            if use() != right:
                return "NOT NOTICED"
        except NAMED:
            outcome = "named when used"
    return outcome


def all_tasks(runs: int, seed: int) -> list[tuple[str, int]]:
    """Return the plans to damage, each with the number of the damage."""
    return [(name, run) for name in PLANS for run in range(seed * runs, (seed + 1) * runs)]


def work(folder: Path, tasks: list[tuple[str, int]]) -> None:
    """Try damaged files; print the result of each, after its number."""
    for name, of_plan in groupby(tasks, itemgetter(0)):
        original = folder / name
        has_sequences = name.startswith("sequences")
        sequences = read_files([str(folder / FASTA)], ReadOptions(), keep_texts=has_sequences)
        data, expected = original.read_bytes(), content(PackingPlan.load(original))
        forward = list(PackedPlanDataset(original)) if has_sequences else None
        path = folder / f"damaged.{name}"
        for _, run in of_plan:
            print(run, end=" ", flush=True)
            draw = random.Random(f"{name} {run}")
            if name.endswith(".arrow") and draw.randrange(6) == 0:
                outcome = f"changed when loaded: {try_shrunk(path, data, draw)}"
            else:
                damage = draw.choice(DAMAGES)
                path.write_bytes(damage(data, draw))
                found = try_damaged(path, sequences, expected, forward, draw)
                outcome = f"{damage.__name__}: {found}"
            print(outcome, flush=True)


def try_plans(folder: Path, runs: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Return the number of each outcome, and the failures."""
    make_plans(folder)
    tasks = all_tasks(runs, seed)
    found: Counter[str] = Counter()
    failures = []
    done = 0
    while done < len(tasks):
        words = map(str, (folder, runs, seed, done))
        command = [sys.executable, __file__, "--work", *words]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = result.stdout.splitlines()
        if not lines:
            raise RuntimeError(result.stderr)
        # If the process died, the last line is a number without a result.
        for (name, run), line in zip(tasks[done:], lines, strict=False):
            outcome = line.partition(" ")[2]
            found[f"{name}: {outcome or 'CRASHED'}"] += 1
            if not outcome or outcome != outcome.lower():
                failures.append(f"{name} {run} {outcome}: {result.stderr[-2000:]}")
        done += len(lines)
    return found, failures


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with TemporaryDirectory() as name:
        found, failures = try_plans(Path(name), runs, seed)
    for outcome, number in sorted(found.items()):
        print(f"{number:6,} {outcome}")
    print(
        f"{sum(found.values()):,} damaged plans, {len(failures)} failures", *failures[:20], sep="\n"
    )
    sys.exit(bool(failures))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        num_runs, number, num_done = map(int, sys.argv[3:])
        work(Path(sys.argv[2]), all_tasks(num_runs, number)[num_done:])
    else:
        main()
