"""Reading FASTA where a process has little: descriptors, memory or threads; and from pipes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command import run

from virnucpro.files.fasta import read_fasta
from virnucpro.files.plan_reader import read_summary

PROTEINS = [(f"s{i}", "MKTAYIAKQR" * (i % 7 + 1)) for i in range(30_000)]
CONTENT = "".join(f">{name}\n{sequence}\n" for name, sequence in PROTEINS).encode()
# Sets a limit once everything has been imported, then runs the command.
LIMITED = """
import resource, sys
import concurrent.futures.thread, virnucpro.jobs.pack, virnucpro.terminal
from virnucpro.cli import app
name, value = sys.argv[1:3]
if name == "RLIMIT_AS":
    import pathlib
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    value = int(value) + pages * resource.getpagesize()
limit = getattr(resource, name)
resource.setrlimit(limit, (int(value), resource.getrlimit(limit)[1]))
app(sys.argv[3:], prog_name="virnucpro")
"""
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="limits as in Linux")


def num_open() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def run_limited(limit: str, value: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, limit, str(value), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@linux_only
@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("descriptors", [4, 5, 8])
def test_few_descriptors_are_enough_or_named(tmp_path: Path, descriptors: int) -> None:
    path, plan = tmp_path / "a.fa", tmp_path / "plan.parquet"
    path.write_bytes(CONTENT)
    result = run_limited("RLIMIT_NOFILE", descriptors, "pack", path, "-o", plan)
    if descriptors == 8:
        assert result.returncode == 0
        return
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("virnucpro: error: ")
    assert result.stderr.endswith("(Too many open files)\n")
    assert result.stderr.count("\n") == 1


@linux_only
@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--sequences"], []])
def test_records_that_do_not_fit_the_memory_are_an_error(
    tmp_path: Path, arguments: list[str]
) -> None:
    """Residues need memory for the longest record; their number alone does not."""
    path, plan = tmp_path / "a.fa", tmp_path / "plan.parquet"
    with path.open("wb") as file:
        file.write(b">small\nMK\n>large\n")
        for _ in range(100):
            file.write(b"MKTAYIAKQR" * 100_000 + b"\n")
    before = set(tmp_path.iterdir())
    command = ("pack", path, "-o", plan, "--threads", 1, "--quiet", *arguments)
    result = run_limited("RLIMIT_AS", 50 * 2**20, *command)
    if not arguments:
        assert result.returncode == 0
        return
    assert (result.returncode, result.stderr) == (1, "virnucpro: error: out of memory\n")
    assert set(tmp_path.iterdir()) == before


@contextmanager
def pipe(content: bytes) -> Iterator[str]:
    """Give the path of a pipe that another thread writes to."""
    reads, writes = os.pipe()

    def write() -> None:
        # The reader may be closed early.
        try:
            with os.fdopen(writes, "wb", buffering=0) as file:
                for begin in range(0, len(content), 50_000):
                    file.write(content[begin : begin + 50_000])
        except BrokenPipeError:
            pass

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield f"/dev/fd/{reads}"
    finally:
        os.close(reads)
        writer.join()


def test_pipes_are_read_in_turns() -> None:
    before = threading.active_count(), num_open()
    other = [(f"o{name}", sequence[::-1]) for name, sequence in PROTEINS]
    content = "".join(f">{name}\n{sequence}\n" for name, sequence in other).encode()
    hashes = [hashlib.sha256() for _ in range(3)]
    with pipe(CONTENT) as first, pipe(content) as second, pipe(CONTENT) as third:
        readers: list[Any] = [
            read_fasta(path, digest=digest)
            for path, digest in zip((first, second, third), hashes, strict=True)
        ]
        pairs = []
        for row, (one, two) in enumerate(zip(readers[0], readers[1], strict=True)):
            pairs.append((one, two))
            if row < 9:
                assert next(readers[2]) == one
            if row == 9:
                readers[2].close()
    assert pairs == list(zip(PROTEINS, other, strict=True))
    for digest, whole in zip(hashes, (CONTENT, content), strict=False):
        assert digest.hexdigest() == hashlib.sha256(whole).hexdigest()
    assert (threading.active_count(), num_open()) == before


def test_files_are_hashed_without_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plan = tmp_path / "a.fa", tmp_path / "plan.parquet"
    path.write_bytes(CONTENT)
    before = num_open()

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    digest = hashlib.sha256()
    assert list(read_fasta(path, digest=digest)) == PROTEINS
    assert digest.hexdigest() == hashlib.sha256(CONTENT).hexdigest()
    assert run("pack", path, "-o", plan).returncode == 0
    assert read_summary(plan).inputs[0].sha256 == digest.hexdigest()
    missing = run("pack", tmp_path / "missing.fa", "-o", plan)
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert num_open() == before
