"""Ends workers and nodes of simulated clusters while they pack; the results must be the same.

Usage: cluster_faults.py [RUNS [SEED [WAY ...]]], with RUNS faults of each kind in each stage. They
strike while a task of the stage runs, at a random moment of it. A lost node is replaced at once in
some runs, in others only after the result was compared.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from simulated_cluster import SimulatedCluster, end, title_of, tree

from virnucpro.cluster import pack, ranges, reading
from virnucpro.data import GreedyPacker, pack_dataset, pack_files
from virnucpro.files.plan_reader import PlanFile

# The tasks of each way, in order, and the arguments of `pack_dataset`. "done" is when the result is
# returned and not yet read.
BY_SIZE = ["sample_ties", "split_sizes", "order_sizes", "gather_batches"]
FIND_DUPLICATES = ["split_hashes", "find_repeated", "split_ids", "count_repeated"]
WAYS: dict[str, tuple[list[str], dict[str, str]]] = {
    "files": (["read_source", "hash_table", *FIND_DUPLICATES, *BY_SIZE, "write_dropped"], {}),
    "row": (["read_rows", "count_group", "assign_blocks", "done"], {}),
    "id": (["read_rows", "count_group", *BY_SIZE, "done"], {"order": "id"}),
    "batches": (
        ["read_rows", "count_group", "split_blocks", "gather_batches", "done"],
        {"result": "batches"},
    ),
}
FAULTS = ["worker", "node"]
ROWS = {"a.arrow": 1_100_000, "b.parquet": 900_000, "c.parquet": 300_000}
# Rows of a block.
BLOCK_ROWS = 2**17
# An undisturbed run takes seconds; a node is known to be lost after two more.
MAX_SECONDS = 240
# What begins the lines of outcomes.
MARK = "outcome: "
# The columns of results that are compared.
SCHEMA = pa.schema(
    [("id", pa.large_string())] + [(n, pa.int64()) for n in ("length", "batch", "slot", "tokens")]
)


class Case(NamedTuple):
    """A run: how it packs, the stage in which the fault strikes, if any, and the fault."""

    way: str
    stage: str = ""
    fault: str = "none"
    run: int = 0


def list_cases(ways: list[str], runs: int) -> list[Case]:
    """Return all runs, the undisturbed one of each way first."""
    cases = []
    for way in ways:
        cases.append(Case(way))
        for stage in WAYS[way][0]:
            faults = FAULTS[stage == "done" :]
            cases += [Case(way, stage, fault, run) for fault in faults for run in range(runs)]
    return cases


def make_inputs(folder: Path, rows_of: Mapping[str, int]) -> None:
    """Write tables with IDs, of which some occur twice, and with one size that is too common."""
    random_numbers = np.random.default_rng(0)
    for name, rows in rows_of.items():
        numbers = random_numbers.integers(0, 10**9, rows)
        lengths = np.where(
            random_numbers.random(rows) < 0.4, 300, random_numbers.integers(1, 1500, rows)
        )
        ids = pa.array([f"protein of an organism|{number:09}" for number in numbers.tolist()])
        table = pa.table({"id": ids, "length": lengths})
        if name.endswith(".arrow"):
            with (
                pa.OSFile(str(folder / name), "wb") as sink,
                pa.ipc.new_file(sink, table.schema) as writer,
            ):
                writer.write_table(table, max_chunksize=100_000)
        else:
            pq.write_table(table, folder / name, row_group_size=50_000)


def inputs_of(folder: Path) -> list[str]:
    return [str(folder / name) for name in ROWS]


def pack_by(way: str, folder: Path, output: Path) -> Any:
    """Pack the tables on Ray; return the summary of the plan, or the data set."""
    packer = GreedyPacker(4096, overlong="drop")
    if way == "files":
        return pack.pack_files_on_ray(inputs_of(folder), output, packer)
    # Blocks of tasks, since Ray Data takes longer to start than all stages together.
    read = ray.remote(read_rows).options(scheduling_strategy="SPREAD")
    blocks = [
        read.remote(path, begin)
        for path, rows in zip(inputs_of(folder)[1:], [*ROWS.values()][1:], strict=True)
        for begin in range(0, rows, BLOCK_ROWS)
    ]
    return pack_dataset(ray.data.from_arrow_refs(blocks), packer, **WAYS[way][1])[0]


def read_rows(path: str, begin: int) -> pa.Table:
    """Return a block of a table."""
    return pq.read_table(path).slice(begin, BLOCK_ROWS).combine_chunks()


def expect(way: str, folder: Path) -> tuple[Any, ...]:
    """Return the summary and rows of the plan that one machine makes, or the rows of the result."""
    packer = GreedyPacker(4096, overlong="drop")
    if way == "files":
        path = folder / "local.parquet"
        if not path.exists():
            pack_files(inputs_of(folder), path, packer)
        return PlanFile(path).summary, PlanFile(path).read()
    table = pa.concat_tables([pq.read_table(path) for path in inputs_of(folder)[1:]])
    table = table.filter(pc.less_equal(table["length"], packer.limits.max_residues))
    lengths = table["length"].to_numpy()
    ids = table["id"].combine_chunks()
    plan = packer.pack_lengths(lengths, ids if way == "id" else None)
    sizes = np.diff(plan.offsets)
    batches = np.repeat(np.arange(len(sizes)), sizes)
    slots = np.arange(len(lengths)) - np.repeat(plan.offsets[:-1], sizes)
    order = np.asarray(plan.indices)
    if way == "row":
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        batches, slots, order = batches[places], slots[places], np.arange(len(order))
    table = table.take(pa.array(order))
    columns = {"batch": batches, "slot": slots, "tokens": lengths[order] + 2}
    return (as_rows(pa.table({"id": table["id"], "length": table["length"], **columns})),)


def as_rows(table: pa.Table) -> pa.Table:
    """Return the rows of a result, those of lists one by one, with the same types for all ways."""
    if pa.types.is_list(table["length"].type):
        sizes = pc.list_value_length(table["length"]).to_numpy()
        ends = np.cumsum(sizes)
        columns = {name: pc.list_flatten(table[name]) for name in ("id", "length", "tokens")}
        columns["batch"] = np.repeat(table["batch"].to_numpy(), sizes)
        columns["slot"] = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
        table = pa.table(columns)
    return table.select(SCHEMA.names).cast(SCHEMA)


class Packing(threading.Thread):
    """A run. Only the main thread can add nodes to a cluster."""

    def __init__(self, way: str, folder: Path, output: Path) -> None:
        super().__init__(daemon=True)
        self.arguments = way, folder, output
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = pack_by(*self.arguments)
        except BaseException as error:
            self.error = error


def strike(cluster: SimulatedCluster, case: Case, draw: random.Random) -> bool:
    """End a worker that runs a task of the stage, or its node; return whether there was one."""
    running = sorted(cluster.workers(case.stage).items(), key=lambda item: item[0])
    if not running:
        return False
    process, node = draw.choice(running)
    if case.fault == "worker":
        end(process)
        return True
    cluster.lose(node)
    if case.run % 2 == 0:
        cluster.fill()
    return True


def watch(
    packing: Packing, cluster: SimulatedCluster, case: Case, after: float, draw: random.Random
) -> tuple[bool, dict[str, float]]:
    """Strike some seconds after the stage began, until the run ends.

    Returns whether it was in time, and the seconds that tasks of each stage were seen.
    """
    seen: dict[str, tuple[float, float]] = {}
    is_struck = False
    while packing.is_alive():
        time.sleep(0.01)
        titles = [title_of(process) for process in cluster.workers()]
        now = time.monotonic()
        for stage in WAYS[case.way][0]:
            if any(title.startswith(f"ray::{stage}") for title in titles):
                seen[stage] = seen.get(stage, (now, now))[0], now
        first, last = seen.get(case.stage, (now, 0.0))
        if not is_struck and now == last and now >= first + after:
            is_struck = strike(cluster, case, draw)
    return is_struck, {stage: last - first for stage, (first, last) in seen.items()}


def try_case(
    cluster: SimulatedCluster,
    case: Case,
    folder: Path,
    expected: tuple[Any, ...],
    seed: int,
    share: float,
) -> tuple[str, float]:
    """Pack with a fault; return the outcome, in capitals if it is wrong, and the seconds."""
    draw = random.Random(f"{seed} {case}")
    known = folder / f"{case.way}.json"
    lengths = json.loads(known.read_text()) if known.exists() else {}
    # In the first, second or last third of the stage, or of a share of it.
    after = share * (case.run % 3 + draw.random()) / 3 * lengths.get(case.stage, 0)
    output = folder / "plan"
    # Of the run before.
    shutil.rmtree(output, ignore_errors=True)
    packing = Packing(case.way, folder, output)
    begin = time.monotonic()
    packing.start()
    is_struck, seen = watch(packing, cluster, case, after, draw)
    if case.stage == "done":
        cluster.lose(draw.choice(cluster.nodes))
        is_struck = True
    try:
        if packing.error is not None:
            raise packing.error
        *rows, digests = read_result(packing.result, output)
    except Exception as error:
        return f"FAILED {type(error).__name__}: {str(error)[:1000]!r}", time.monotonic() - begin
    seconds = time.monotonic() - begin
    cluster.fill()
    if case.fault == "none":
        known.write_text(json.dumps(seen))
    hashes = folder / f"{case.way}.hashes"
    if not hashes.exists():
        hashes.write_text(digests)
    if not all(one == other for one, other in zip(rows, expected, strict=True)):
        return "OTHER ROWS", seconds
    if hashes.read_text() != digests:
        return "OTHER FILES", seconds
    return "exact" if is_struck or case.fault == "none" else "missed", seconds


def read_result(result: Any, output: Path) -> tuple[Any, ...]:
    """Return what is compared: the summary and rows, or rows alone; and the hashes of files."""
    if not output.exists():
        tables = [ray.get(ref) for ref in result.to_arrow_refs()]
        return as_rows(pa.concat_tables(tables)), ""
    paths = sorted(output.iterdir())
    hashes = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in paths]
    return result, PlanFile(output).read(), "\n".join(hashes)


def work(folder: Path, cases: list[Case], first: int, seed: int) -> None:
    """Try the cases from the one numbered `first`; print the outcome of each."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # So that there are several tasks of each kind.
    ranges.TASK_BYTES, reading.MIN_BYTES, reading.BLOCK_ROWS = 2**23, 2**20, BLOCK_ROWS
    ray.data.DataContext.get_current().enable_progress_bars = False
    cluster = SimulatedCluster(3)
    print(f"{MARK}0 ready", flush=True)
    way, expected = "", ()
    for case in cases[first:]:
        if case.way != way:
            way, expected = case.way, expect(case.way, folder)
        # Earlier, if the stage ended before.
        for attempt in range(3):
            outcome, seconds = try_case(cluster, case, folder, expected, seed, 1 - attempt / 2)
            if outcome != "missed":
                break
        print(f"{MARK}{seconds:.1f} {outcome}", flush=True)


class Child:
    """A process that tries cases, in a cluster of its own."""

    def __init__(self, folder: Path, first: int, arguments: list[str]) -> None:
        command = [sys.executable, __file__, "--work", str(folder), str(first), *arguments]
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        """Put each line that the process prints, and an empty one at the end, into the queue."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # Ray prints messages too.
            if line.startswith(MARK):
                self.lines.put(line.removeprefix(MARK).strip())
        self.lines.put("")

    def outcome(self) -> tuple[str, float]:
        """Return the next outcome and the seconds that it took."""
        try:
            line = self.lines.get(timeout=MAX_SECONDS)
        except queue.Empty:
            return f"STUCK\n{self.describe()}", MAX_SECONDS
        seconds, _, outcome = line.partition(" ")
        return (outcome, float(seconds)) if line else (f"CRASHED {self.log.read_text()}", 0.0)

    def describe(self) -> str:
        """Return what the process and Ray's workers do."""
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(1)
        titles = Counter(title_of(process) for process in tree(self.process.pid))
        tasks = {title: number for title, number in titles.items() if title.startswith("ray::")}
        return f"{self.log.read_text()[-5000:]}\n{tasks}"

    def end(self) -> None:
        """End the process and its cluster."""
        for process in tree(self.process.pid):
            end(process)
        self.process.wait()


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    ways = sys.argv[3:] or list(WAYS)
    arguments = [str(runs), sys.argv[2] if len(sys.argv) > 2 else "0", *ways]
    cases = list_cases(ways, runs)
    found: dict[Case, tuple[str, float]] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, ROWS)
        while len(found) < len(cases):
            child = Child(folder, len(found), arguments)
            try:
                # Ray gives up on a node that a busy machine does not start in time.
                begun = child.outcome()[0]
                if begun != "ready":
                    print(begun, flush=True)
                    continue
                for case in cases[len(found) :]:
                    found[case] = child.outcome()
                    print(*case, *found[case], flush=True)
                    if found[case][0] not in ("exact", "missed"):
                        break
            finally:
                child.end()
    failures = print_table(found)
    sys.exit(failures)


def print_table(found: dict[Case, tuple[str, float]]) -> bool:
    """Print a row for each fault in each stage; return whether any run failed."""
    print(f"{'way':10}{'stage':18}{'fault':8}{'runs':>5}{'exact':>6}{'missed':>7}{'failed':>7}  s")
    by_kind: dict[Case, list[tuple[str, float]]] = {}
    for case, outcome in found.items():
        by_kind.setdefault(case._replace(run=0), []).append(outcome)
    failed = 0
    for (way, stage, fault, _), outcomes in by_kind.items():
        numbers = Counter(outcome for outcome, _ in outcomes)
        exact, missed = numbers["exact"], numbers["missed"]
        wrong = len(outcomes) - exact - missed
        failed += wrong + (exact == 0)
        times = " ".join(f"{seconds:.0f}" for _, seconds in outcomes)
        print(f"{way:10}{stage:18}{fault:8}{len(outcomes):5}{exact:6}{missed:7}{wrong:7}  {times}")
    return failed > 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        place, first, runs, seed, *ways = sys.argv[2:]
        work(Path(place), list_cases(ways, int(runs)), int(first), int(seed))
    else:
        main()
