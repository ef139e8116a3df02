"""What is read from FASTA files and tables, and what is refused with one line."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pysam
import pytest
from command import run
from fasta import bgzip, fasta
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.data import fasta as fasta_module
from virnucpro.data.fasta import read_fasta
from virnucpro.data.inputs import Reading

CONTENT = fasta([(f"seq{i}", "MKTAYIAKQR" * 20) for i in range(5000)])


def read(path: Path, **options: Any) -> list[tuple[str, int]]:
    sequences = Reading(**options).read([str(path)])
    return list(zip(sequences.ids.to_pylist(), sequences.lengths.tolist(), strict=True))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b">a x\nMKT\nAY\n>b\nMK\n", [("a", "MKTAY"), ("b", "MK")]),
        (b">a x\r\nMKT\r\nAY\r\n>b\r\n>c\r\nMK\r\n", [("a", "MKTAY"), ("b", ""), ("c", "MK")]),
        (b">a\nMKT", [("a", "MKT")]),
        (b">a\nmktAY\n", [("a", "mktAY")]),
        (b"\n\n>a\n\nMK\n\n\nT\n\n>b\n\n", [("a", "MKT"), ("b", "")]),
        (b">a\nMK T A\tY\n K \n", [("a", "MKTAYK")]),
        (b">a\nMKT*\n>b\n*\n", [("a", "MKT*"), ("b", "*")]),
        (b">a\n>b\n>\nMK\n", [("a", ""), ("b", ""), ("", "MK")]),
        (b">a>b\nMKT\n>b@c+d\nM@+\n", [("a>b", "MKT"), ("b@c+d", "M@+")]),
        (b">a\nM\vK\f\n", [("a", "MK")]),
        ("\ufeff>é\nMK\n".encode(), [("é", "MK")]),
        (b">a\nMK\n>a\nMKT\n", [("a", "MK"), ("a", "MKT")]),
    ],
)
def test_what_fasta_holds(tmp_path: Path, content: bytes, expected: list[Any]) -> None:
    path = tmp_path / "a.fa"
    for written in (content, gzip.compress(content), bgzip(path, content).read_bytes()):
        path.write_bytes(written)
        digest = hashlib.sha256()
        assert list(read_fasta(path, digest)) == expected
        assert digest.hexdigest() == hashlib.sha256(written).hexdigest()
        assert read(path) == [(name, len(sequence)) for name, sequence in expected]


def test_members_of_gzip_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.fa.gz"
    path.write_bytes(gzip.compress(b">a\nMK\n") + gzip.compress(b"T\n>b\nMK\n"))
    assert read(path) == [("a", 3), ("b", 2)]


def test_a_line_of_100_million_residues(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(b">a\n" + b"M" * 100_000_000 + b"\n>b\nMK\n")
    assert read(path) == [("a", 100_000_000), ("b", 2)]


def truncate_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(CONTENT)[:-100])


def cut_bgzip(path: Path) -> None:
    """Leave the first block alone, as a stopped download may."""
    content = bgzip(path, CONTENT).read_bytes()
    path.write_bytes(content[: int.from_bytes(content[16:18], "little") + 1])


def spoil_gzip(path: Path) -> None:
    content = bytearray(gzip.compress(CONTENT))
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def binary(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(100_000))


def writes(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


BAD_FASTA: list[tuple[str, Callable[[Path], Any], str]] = [
    ("missing.fa", lambda _: None, "no such file"),
    ("directory.fa", lambda path: path.mkdir(), "is a directory"),
    ("empty.fa", writes(b""), "empty file"),
    ("blank.fa", writes(b"\n\n  \n"), "no FASTA"),
    ("empty.fa.gz", writes(gzip.compress(b"")), "empty file"),
    ("text.fa", writes(b"hello\n>a\nMK\n"), "no FASTA: it begins with b'hello"),
    ("nul.fa", writes(b">a\nMK\n>b\nM\0K\n"), "has a NUL byte at 10"),
    ("nul.fa.gz", writes(gzip.compress(b">a\nMK\n>b\0\nMK\n")), "has a NUL byte at 8"),
    ("a.fastq", writes(b"@a\nMK\n+\nII\n"), "FASTQ: it begins with b'@a"),
    ("later.fa", writes(b">a\nMK\n@b\nMK\n+\nII\n"), "a line that begins with '@'; is it FASTQ?"),
    ("end.fa", writes(b">a\nMK\n>"), "cut off: it ends with '>'"),
    ("plus.fa", writes(b">a\nMK\n+\nMK\n"), "a line that begins with '+'; is it FASTQ?"),
    ("mac.fa", writes(b">a\rMK\r>b\rMK\r"), "lines that end with CR alone"),
    ("mixed.fa", writes(b">a\nMK\n>b\rMKT\r>c\rMK\r"), "lines that end with CR alone"),
    ("merged.fa", writes(b">a\nMKTAY>b\nMK\n"), "record 1 (a) has a '>' in its sequence"),
    ("indented.fa", writes(b">a\nMK\n >b\nMK\n"), "record 1 (a) has a '>' in its sequence"),
    ("latin.fa", writes(b">a\nMK\n>\xe9\nMK\n"), "record 2 is not text in UTF-8"),
    ("binary.fa", binary, "no FASTA"),
    ("truncated.fa.gz", truncate_gzip, "damaged or cut off"),
    ("spoilt.fa.gz", spoil_gzip, "damaged or cut off"),
    ("cut.fa.gz", cut_bgzip, "the bgzip end-of-file block is missing"),
]


@pytest.mark.parametrize(("name", "make", "message"), BAD_FASTA, ids=[bad[0] for bad in BAD_FASTA])
def test_bad_fasta_is_one_line(
    tmp_path: Path, name: str, make: Callable[[Path], Any], message: str
) -> None:
    good = tmp_path / "good.fa"
    good.write_bytes(b">a\nMK\n")
    make(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    result = run("pack", good, tmp_path / name, "-o", tmp_path / "plan.parquet")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"virnucpro: {tmp_path / name}: ")
    assert message in line
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises((OSError, ValueError), match=name):
        list(read_fasta(tmp_path / name))


@given(st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject) -> None:
    """What is read has every residue of the file."""
    piece = st.sampled_from([b">", b"a", b"\n", b"\r\n", b" ", b"M", b"@", b"+", b"\0", b"\xe9"])
    content = b">a\n" + b"".join(data.draw(st.lists(piece, max_size=30)))
    with NamedTemporaryFile(suffix=".fa") as file:
        Path(file.name).write_bytes(content)
        try:
            records = list(read_fasta(file.name))
        except ValueError:
            return
    assert b"\0" not in content
    lines = content.decode(errors="replace").replace("\r\n", "\n").split("\n")
    residues = Counter("".join("".join(x.split()) for x in lines if not x.startswith(">")))
    assert Counter("".join(sequence for _, sequence in records)) == residues
    assert len(records) == sum(line.startswith(">") for line in lines)


IDS = ["b", "a", "007", "", "x y"]
LENGTHS = [300, 2, 0, 5000, 1]


def test_tables(tmp_path: Path) -> None:
    table = pa.table({"name": IDS, "size": pa.array(LENGTHS, pa.uint16()), "other": [1.5] * 5})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    pyarrow.feather.write_feather(table, tmp_path / "a.arrow")
    with pa.ipc.new_stream(str(tmp_path / "stream.ipc"), table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    lines = ["name\tsize\tother", *(f"{n}\t{k}\tz" for n, k in zip(IDS, LENGTHS, strict=True))]
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "a.TSV.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    expected = list(zip(IDS, LENGTHS, strict=True))
    for name in ("a.parquet", "a.arrow", "stream.ipc", "a.tsv", "a.TSV.gz"):
        path = tmp_path / name
        assert read(path, id_column="name", length_column="size") == expected, name
        plan = tmp_path / "plan.parquet"
        columns = ("--id-column", "name", "--length-column", "size")
        assert run("pack", path, "-o", plan, *columns).returncode == 0
        assert run("verify", plan, path).returncode == 0
        assert pq.read_table(plan)["id"].to_pylist() == [
            "x y" if n == "x y" else n for n in ["", "b", "a", "x y", "007"]
        ]


def test_numbers_as_ids_and_dictionaries(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [10, 9], "length": [1, 1]}), path)
    assert read(path) == [("10", 1), ("9", 1)]
    names = pa.array(["x", "y", "x"]).dictionary_encode()
    pq.write_table(pa.table({"id": names, "length": [1, 2, 3]}), path)
    assert read(path) == [("x", 1), ("y", 2), ("x", 3)]


def test_a_read_that_fails_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(CONTENT)
    read_into = fasta_module.Digested.readinto

    def fail(file: Any, buffer: Any) -> int:
        if file.end:
            raise MemoryError
        return read_into(file, buffer)

    monkeypatch.setattr(fasta_module, "CHUNK", 2**16)
    monkeypatch.setattr(fasta_module.Digested, "readinto", fail)
    with pytest.raises(MemoryError):
        list(read_fasta(path))


def test_forks_do_not_hold_a_pipe_open(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(CONTENT * 3)
    records = read_fasta(path)
    next(records)
    child = os.fork()
    if child == 0:
        time.sleep(20)
        os._exit(0)
    begin = time.monotonic()
    assert sum(1 for _ in records) == 14_999
    assert time.monotonic() - begin < 10
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_signals_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(CONTENT * 10)
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    others = threading.enumerate()
    records = read_fasta(path)
    next(records)
    (reader,) = [thread for thread in threading.enumerate() if thread not in others]
    for _ in range(5):
        time.sleep(0.02)
        if reader.ident is not None and reader.is_alive():
            signal.pthread_kill(reader.ident, signal.SIGUSR1)
    assert sum(1 for _ in records) == 49_999
    signal.signal(signal.SIGUSR1, before)


def test_pipes_that_give_little_at_first(tmp_path: Path) -> None:
    fifo = tmp_path / "a.fa"
    os.mkfifo(fifo)
    for content in (gzip.compress(CONTENT), bgzip(tmp_path / "b.fa.gz", CONTENT).read_bytes()):

        def write(content: bytes = content) -> None:
            with fifo.open("wb", buffering=0) as file:
                for begin in range(4):
                    file.write(content[begin : begin + 1])
                    time.sleep(0.02)
                file.write(content[4:])

        writer = threading.Thread(target=write)
        writer.start()
        assert len(list(read_fasta(fifo))) == 5000
        writer.join()


def test_index_of_samtools(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_bytes(fasta([("b", "MKT" * 100), ("007", "MK")]))
    pysam.faidx(str(tmp_path / "a.fa"))
    assert read(tmp_path / "a.fa.fai") == [("b", 300), ("007", 2)]


def table(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


def cut_tsv(path: Path) -> None:
    content = bgzip(path, b"id\tlength\n" + b"abcdefgh\t12\n" * 20_000).read_bytes()
    path.write_bytes(content[: int.from_bytes(content[16:18], "little") + 1])


def cut_stream(path: Path) -> None:
    some = pa.table({"id": ["a"] * 9, "length": [1] * 9})
    with pa.ipc.new_stream(str(path), some.schema) as stream:
        stream.write_table(some, max_chunksize=3)
    path.write_bytes(path.read_bytes()[:-8])


BAD_TABLES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("missing.parquet", lambda _: None, "no such file"),
    ("name.parquet", table(name=["a"], length=[1]), "no column 'id' (it has name, length)"),
    ("size.parquet", table(id=["a"], size=[1]), "no column 'length' (it has id, size)"),
    ("null.parquet", table(id=["a", "b"], length=[1, None]), "column 'length' is null in row 1"),
    ("ids.parquet", table(id=[None, "b"], length=[1, 1]), "column 'id' is null in row 0"),
    ("text.parquet", table(id=["a"], length=["1"]), "must be integers (it is string)"),
    ("float.parquet", table(id=["a"], length=[1.0]), "must be integers (it is double)"),
    ("minus.parquet", table(id=["a", "b"], length=[1, -2]), "is negative in row 1 (-2)"),
    (
        "empty.parquet",
        table(id=pa.array([], "string"), length=pa.array([], "int64")),
        "no sequence",
    ),
    ("spoilt.parquet", writes(b"PAR1PAR1"), "Parquet"),
    ("spoilt.arrow", writes(b"ARROW1"), "."),
    ("twice.tsv", writes(b"id\tid\tlength\na\tb\t1\n"), "more than one column 'id'"),
    ("sum.parquet", table(id=["a", "b"], length=[2**62, 2**62]), "need more than 64 bits"),
    ("cut.tsv.gz", cut_tsv, "the bgzip end-of-file block is missing"),
    ("cut.ipc", cut_stream, "end-of-stream mark is missing"),
    ("empty.tsv", writes(b""), "Empty CSV file"),
    ("header.tsv", writes(b"id\tlength\n"), "no sequence"),
    ("letters.tsv", writes(b"id\tlength\na\tmany\n"), "must be integers (it is string)"),
    ("ragged.tsv", writes(b"id\tlength\na\t1\nb\n"), "Expected 2 columns, got 1"),
    ("a.fq.fai", writes(b"a\t2\t3\t2\t3\t9\n"), "Expected 5 columns, got 6"),
]


@pytest.mark.parametrize(
    ("name", "make", "message"), BAD_TABLES, ids=[bad[0] for bad in BAD_TABLES]
)
def test_bad_tables_are_one_line(
    tmp_path: Path, name: str, make: Callable[[Path], Any], message: str
) -> None:
    make(tmp_path / name)
    result = run("pack", tmp_path / name, "-o", tmp_path / "plan.parquet")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"virnucpro: {tmp_path / name}: ") or name == "sum.parquet"
    assert message in line
    assert not (tmp_path / "plan.parquet").exists()


@given(st.lists(st.sampled_from(["a", "b", "c", "dd", "é", ""]), min_size=1, max_size=20))
def test_duplicates_are_found(ids: list[str]) -> None:
    with NamedTemporaryFile(suffix=".parquet") as file:
        pq.write_table(pa.table({"id": ids, "length": np.arange(len(ids))}), file.name)
        number, some = Reading().read([file.name]).find_duplicates()
    assert number == len(ids) - len(set(ids))
    repeated = {name for name, count in Counter(ids).items() if count > 1}
    assert set(some) <= repeated
    assert len(some) == min(3, len(repeated))
