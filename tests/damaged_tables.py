"""Damages tables of lengths in many ways; each must be named, or read without harm.

Usage: damaged_tables.py [RUNS [SEED]], with RUNS damaged files of each table. They are read in
child processes, since what is looked for includes a process that dies.
"""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from damages import NAMED, cut, extend, flip, overwrite

from virnucpro.data import GreedyPacker, pack_files
from virnucpro.files.inputs import table_kind
from virnucpro.files.sequences import read_files

DRAW = random.Random(1)
IDS = [f"protein|{number % 300}|é" for number in range(350)]
LENGTHS = [DRAW.choice([0, 5, 9, 12, 30, 31, 70]) for _ in IDS]
# Enough for the IDs many times over, and less than what a damaged file may ask for.
MAX_MEMORY = 8 * 2**30


def write_arrow(
    kind: Any, new: Callable[..., Any] = pa.ipc.new_file, compression: str | None = None
) -> Callable[[Path], None]:
    """Return a function that writes an Arrow table with IDs of a type."""

    def write(path: Path) -> None:
        ids = pa.array(IDS)
        ids = ids.dictionary_encode() if kind is None else ids.cast(kind)
        table = pa.table({"more": IDS, "id": ids, "length": pa.array(LENGTHS, pa.int32())})
        options = pa.ipc.IpcWriteOptions(compression=compression, unify_dictionaries=True)
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=200)

    return write


def write_parquet(**options: Any) -> Callable[[Path], None]:
    """Return a function that writes a Parquet table."""
    table = pa.table({"more": IDS, "id": IDS, "length": LENGTHS})
    return lambda path: pq.write_table(table, path, row_group_size=200, **options)


def write_text(header: str = "", end: str = "") -> Callable[[Path], None]:
    """Return a function that writes a table in text."""
    rows = zip(IDS, LENGTHS, strict=True)
    content = (header + "".join(f"{name}\t{length}{end}\n" for name, length in rows)).encode()
    compress = gzip.compress
    return lambda path: void(
        path.write_bytes(compress(content) if path.suffix == ".gz" else content)
    )


def void(_: object) -> None:
    """Return nothing."""


# The tables that are damaged: how they are written.
TABLES: dict[str, Callable[[Path], None]] = {
    "dictionary.arrow": write_arrow(None),
    "string.arrow": write_arrow(pa.string()),
    "large.arrow": write_arrow(pa.large_string()),
    "lz4.arrow": write_arrow(pa.string(), compression="lz4"),
    "zstd.arrow": write_arrow(None, compression="zstd"),
    "stream.ipc": write_arrow(None, pa.ipc.new_stream),
    "zstd_stream.ipc": write_arrow(pa.string(), pa.ipc.new_stream, "zstd"),
    "plain.parquet": write_parquet(use_dictionary=False, compression="none"),
    "dictionary.parquet": write_parquet(compression="zstd", data_page_version="2.0"),
    "delta.parquet": write_parquet(
        use_dictionary=False, column_encoding=dict.fromkeys(("more", "id"), "DELTA_BYTE_ARRAY")
    ),
    "table.fai": write_text(end="\t7\t60\t61"),
    "table.tsv": write_text("id\tlength\n"),
    "table.tsv.gz": write_text("id\tlength\n"),
}
if hasattr(pa, "string_view"):
    TABLES["view.arrow"] = write_arrow(pa.string_view())
    TABLES["view_stream.ipc"] = write_arrow(pa.string_view(), pa.ipc.new_stream)
DAMAGES = (flip, flip, cut, extend, overwrite)
# What pyarrow does not read, or says has more rows than are worth trying.
REFUSED = "refused by pyarrow"


def open_column(path: Path) -> Any:
    """Return the IDs of a table as pyarrow reads them, mapped into memory if it is Arrow."""
    if path.suffix == ".parquet":
        return pq.ParquetFile(path).read(["id"])["id"]
    source = pa.memory_map(str(path))
    is_stream = path.suffix == ".ipc"
    table = (pa.ipc.open_stream if is_stream else pa.ipc.open_file)(source).read_all()
    return table["id"]


def read(path: Path) -> Any:
    """Return the IDs and lengths of a table."""
    sequences = read_files([str(path)])
    return sequences.ids.to_pylist(), sequences.lengths.tolist()


def pack(path: Path) -> Any:
    """Return the plan of a table."""
    plan = path.parent / "plan.arrow"
    return pack_files(path, plan, GreedyPacker(64)).totals


def pack_column(path: Path) -> Any:
    """Return the plan for IDs that pyarrow reads."""
    try:
        ids = open_column(path)
        size = len(ids)
    except (pa.ArrowException, KeyError, *NAMED):
        return REFUSED
    if size > 10**6:
        return REFUSED
    return list(map(list, GreedyPacker(64).pack_lengths([5] * size, ids)))


def try_damaged(path: Path, use: Callable[[Path], Any], expected: Any) -> str:
    """Use a damaged table; return what comes of it."""
    try:
        found = use(path)
    except NAMED as error:
        message = str(error)
        # An array does not know its file.
        name = "ids" if use is pack_column else str(path)
        is_complete = message.startswith(name) and message.isprintable() and len(message) < 5000
        if is_complete or isinstance(error, OverflowError):
            return "named"
        return f"BADLY NAMED {type(error).__name__}: {message[:1000]!r}"
    except Exception as error:
        if use is pack_column and isinstance(error, TypeError):
            # Damage may change the type of a column.
            return "another type"
        return f"ESCAPED {type(error).__name__}: {str(error)[:300]!r}"
    if found == REFUSED:
        return REFUSED
    return "harmless" if found == expected else "other data"


def limit_memory() -> None:
    """Make what takes too much memory an error, or a process that dies."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def work(folder: Path, first: int, runs: int, seed: int) -> None:
    """Try the damaged files from the one numbered `first`; print each number and its result."""
    limit_memory()
    for at, name in enumerate(TABLES):
        if first >= (at + 1) * runs:
            continue
        path = folder / name
        TABLES[name](path)
        data = path.read_bytes()
        is_text = table_kind(name) in ("tsv", "fai")
        uses = [read, read, pack] if is_text else [read, pack, pack_column]
        expected = {use: use(path) for use in uses}
        for number in range(max(first, at * runs), (at + 1) * runs):
            print(number, name, end=": ", flush=True)
            draw = random.Random(f"{name} {seed * runs + number % runs}")
            damage, use = draw.choice(DAMAGES), draw.choice(uses)
            path.write_bytes(damage(data, draw))
            print(f"{use.__name__}: {try_damaged(path, use, expected[use])}", flush=True)


def try_tables(folder: Path, runs: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Return the number of each outcome, and the failures."""
    found: Counter[str] = Counter()
    failures = []
    first = 0
    while first < runs * len(TABLES):
        command = [sys.executable, __file__, "--work", str(folder), *map(str, (first, runs, seed))]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = result.stdout.splitlines()
        if not lines:
            raise RuntimeError(result.stderr)
        for line in lines:
            number, _, outcome = line.partition(" ")
            if outcome.endswith(": "):
                outcome += "CRASHED"
            found[outcome] += 1
            if outcome != outcome.lower():
                failures.append(f"{number} {outcome} {result.stderr[-2000:]}")
        first = int(number) + 1
    return found, failures


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with TemporaryDirectory() as name:
        found, failures = try_tables(Path(name), runs, seed)
    for outcome, number in sorted(found.items()):
        print(f"{number:6,} {outcome}")
    print(f"{found.total():,} damaged tables, {len(failures)} failures", *failures[:20], sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]), *map(int, sys.argv[3:]))
    else:
        main()
