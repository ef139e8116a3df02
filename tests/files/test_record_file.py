"""Random access to files that change, move or are read by many."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import pickle
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pysam
import pytest
from compressed import COMPRESSIONS
from fasta import fasta

from virnucpro.files import record_file
from virnucpro.files.fasta import ReadOptions
from virnucpro.files.record_file import RecordFile

CONTENT = fasta([(f"seq{i}", "MKTAYIAKQR" * 20) for i in range(5000)])


Records = list[tuple[str, str]]


INDEXED: Records = [("a", "MKTAYIAKQR" * 9), ("b", "MW"), ("c", "MKT"), ("c", "")]


def test_index_files_are_neither_used_nor_written(tmp_path: Path) -> None:
    """An index beside the file may belong to another text, and be newer."""
    path = tmp_path / "a.fa"
    path.write_bytes(fasta([("x", "MWWW"), ("y", "MKTAYIAKQR" * 8)]))
    pysam.faidx(str(path))
    path.write_bytes(fasta(INDEXED))
    index = tmp_path / "a.fa.fai"
    os.utime(index, (time.time() + 1000, time.time() + 1000))
    before = index.read_bytes()
    tmp_path.chmod(0o500)
    try:
        assert RecordFile(str(path), ReadOptions()).read(range(4)) == INDEXED
    finally:
        tmp_path.chmod(0o700)
    assert index.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [path, index]


def replaced(path: Path) -> None:
    path.with_name("b.fa").write_bytes(fasta(INDEXED[::-1]))
    path.with_name("b.fa").replace(path)


def changed_in_place(path: Path) -> None:
    text = path.read_bytes()
    with path.open("rb+") as file:
        file.write(text.replace(b"MW", b"WM"))
    found = path.stat()
    # Some file systems tell times in steps.
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 10**7))


@pytest.mark.parametrize(
    "change",
    [replaced, changed_in_place, lambda p: os.truncate(p, 100), lambda p: p.write_text("")],
)
@pytest.mark.parametrize("compression", ["plain", "gzip"])
def test_changed_file_is_not_read(
    tmp_path: Path, compression: str, change: Callable[[Path], Any]
) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(fasta(INDEXED))
    if compression != "plain":
        path.write_bytes(COMPRESSIONS[compression](path.read_bytes()))
    file = RecordFile(str(path), ReadOptions())
    assert file.read([1]) == [INDEXED[1]]
    pickled = pickle.dumps(file)
    change(path)
    if compression == "plain":
        for reader in (file, pickle.loads(pickled)) * 2:
            with pytest.raises(ValueError, match=r"a\.fa: the file has changed"):
                reader.read([1])
    else:
        # The copy is of the file that was scanned.
        assert file.read([1]) == [INDEXED[1]]


@pytest.mark.parametrize("compression", ["plain", "gzip"])
def test_the_same_file_elsewhere_is_read(tmp_path: Path, compression: str) -> None:
    """A pickled reader accepts another file with the same bytes."""
    path = tmp_path / "a.fa"
    path.write_bytes(COMPRESSIONS[compression](fasta(INDEXED)))
    file = RecordFile(str(path), ReadOptions())
    pickled = pickle.dumps(file)
    del file
    other = tmp_path / "b.fa"
    other.write_bytes(path.read_bytes())
    other.replace(path)
    assert pickle.loads(pickled).read([3, 0]) == [INDEXED[3], INDEXED[0]]
    path.write_bytes(COMPRESSIONS[compression](fasta(INDEXED[::-1])))
    with pytest.raises(ValueError, match=r"a\.fa: the file has changed"):
        pickle.loads(pickled).read([3, 0])


def expanded() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(".virnucpro.*.tmp/*"))


@pytest.mark.process
def test_temporary_copies_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Other tests run at the same time.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path / "a.fa"
    path.write_bytes(gzip.compress(fasta(INDEXED)))
    before = expanded()
    file = RecordFile(str(path), ReadOptions())
    (copy,) = expanded() - before
    child = os.fork()
    if child == 0:
        del file
        os._exit(0)
    os.waitpid(child, 0)
    assert copy.exists()
    other = pickle.loads(pickle.dumps(file))
    del other
    assert file.read([1]) == [INDEXED[1]]
    del file
    assert expanded() == before
    path.write_bytes(gzip.compress(CONTENT)[:-9])
    with pytest.raises(ValueError, match="incomplete"):
        RecordFile(str(path), ReadOptions())
    assert expanded() == before


def test_file_that_disappeared_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(fasta(INDEXED))
    file = RecordFile(str(path), ReadOptions())
    path.unlink()
    for is_pipe in (False, True):
        if is_pipe:
            os.mkfifo(path)
        with pytest.raises(FileNotFoundError, match=r"a\.fa: no such file, or not a regular"):
            file.read([1])
    path.unlink()
    path.write_bytes(fasta(INDEXED))
    assert file.read([1]) == [INDEXED[1]]


def test_restored_times_do_not_hide_a_change(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(fasta(INDEXED))
    file = RecordFile(str(path), ReadOptions())
    before = path.stat()
    time.sleep(0.02)
    path.write_bytes(path.read_bytes().replace(b"MW", b"WM"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match=r"a\.fa: the file has changed"):
        file.read([1])


@pytest.mark.process
def test_workers_make_and_remove_their_own_copies(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(gzip.compress(fasta(INDEXED)))
    before = expanded()
    file = RecordFile(str(path), ReadOptions())
    for copy in expanded() - before:
        copy.unlink()
    with multiprocessing.get_context("fork").Pool(2) as workers:
        assert workers.map(file.read, [[i % 4] for i in range(6)]) == [
            [INDEXED[i % 4]] for i in range(6)
        ]
        workers.close()
        workers.join()
    assert expanded() == before
    # Of many threads one makes the new copy.
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(file.read, [[1]] * 40)) == [[INDEXED[1]]] * 40
    assert len(expanded() - before) == 1


@pytest.mark.parametrize("compression", ["plain", "zstd"])
def test_threads_read_at_once(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.fa"
    records = [(f"s{i}", "MKTAYIAKQR"[: i % 10] * (i % 7)) for i in range(500)]
    path.write_bytes(COMPRESSIONS[compression](fasta(records)))
    file = RecordFile(str(path), ReadOptions())

    def read(seed: int) -> bool:
        wanted = random.Random(seed).choices(range(500), k=50)
        return file.read(wanted) == [records[i] for i in wanted]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(100)))


def test_a_change_while_records_are_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(b">a\nMKMK\n>b\nTTTT\n")
    file = RecordFile(str(path), ReadOptions())
    read_all = record_file.read_all

    def change(opened: Any, size: int) -> bytes:
        path.write_bytes(b">a\nWWWW\n>b\nTTTT\n")
        os.utime(path, ns=(0, 0))
        return bytes(read_all(opened, size))

    monkeypatch.setattr(record_file, "read_all", change)
    with pytest.raises(ValueError, match=r"the file has changed since it was scanned$"):
        file.read([0])
