"""What is read from FASTA files, in a stream and by random access."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pyarrow.parquet as pq
import pysam
import pytest
from Bio import SeqIO
from command import run
from compressed import COMPRESSIONS, zstd
from fasta import fasta
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.files.fasta import ReadChanges, ReadOptions, read_fasta
from virnucpro.files.record_file import RecordFile
from virnucpro.files.sequences import read_files

CONTENT = fasta([(f"seq{i}", "MKTAYIAKQR" * 20) for i in range(5000)])


READ = ReadOptions()


Records = list[tuple[str, str]]


needs_real_data = pytest.mark.skipif(
    "VIRNUCPRO_REAL_DATA" not in os.environ, reason="VIRNUCPRO_REAL_DATA names no folder"
)


def read_every_way(path: Path, **options: Any) -> Records:
    """Return the records of a file, after checking that every way to read it gives the same."""
    how = ReadOptions(**options)
    records = list(read_fasta(path, how))
    sequences = read_files([str(path)], how)
    lengths = [len(sequence) for _, sequence in records]
    assert sequences.ids.to_pylist() == [name for name, _ in records]
    assert sequences.lengths.tolist() == lengths
    file = RecordFile(str(path), how)
    assert file.lengths.tolist() == lengths
    assert file.changes == sequences.changes
    order = random.Random(0).sample(range(len(records)), len(records))
    expected = [records[i] for i in order]
    assert file.read(order) == expected
    assert [file.read([i])[0] for i in order] == expected
    assert pickle.loads(pickle.dumps(file)).read(order) == expected
    flags = {"strip_stop": "--keep-stop", "uppercase": "--keep-case", "drop_gaps": "--drop-gaps"}
    given = [flags[name] for name, value in options.items() if value != getattr(ReadOptions, name)]
    plan = path.with_name("plan.parquet")
    assert run("pack", path, "-o", plan, *given).returncode == 0
    rows = pq.read_table(plan, columns=["row", "id", "length"]).sort_by("row")
    assert rows["id"].to_pylist() == [name for name, _ in records]
    assert rows["length"].to_pylist() == lengths
    verified = run("verify", plan, path)
    assert (verified.returncode, verified.stdout) == (0, "")
    plan.unlink()
    return records


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b">a x\nMKT\nAY\n>b\nMK\n", [("a", "MKTAY"), ("b", "MK")]),
        (b">a x\r\nMKT\r\nAY\r\n>b\r\n>c\r\nMK\r\n", [("a", "MKTAY"), ("b", ""), ("c", "MK")]),
        (b">a\nMKT", [("a", "MKT")]),
        (b">a\nMKT\n>b", [("a", "MKT"), ("b", "")]),
        (b">a\nMKT\n>b\n", [("a", "MKT"), ("b", "")]),
        (b"\n\n>a\n\nMK\n\n\nT\n\n>b\n\n", [("a", "MKT"), ("b", "")]),
        (b">a\n MK T A\tY\n K \n>b\nM\n", [("a", "MKTAYK"), ("b", "M")]),
        (b">a\nM\vK\f\n   \n>b\n \n>c\nT", [("a", "MK"), ("b", ""), ("c", "T")]),
        (b">a\nMKTAYI\nAK\nQRLLG\nE\n>b\nMW\n", [("a", "MKTAYIAKQRLLGE"), ("b", "MW")]),
        (b"> a x\nMKT\n>\t b\nMW\n", [("a", "MKT"), ("b", "MW")]),
        (b">a\n>b\n>\nMK\n", [("a", ""), ("b", ""), ("", "MK")]),
        (b">a>b x > y\nMKT\n>b@c+d\nMA\n", [("a>b", "MKT"), ("b@c+d", "MA")]),
        ("\ufeff>é ü\nMK\n".encode(), [("é", "MK")]),
        (b">a \xe9 in Latin-1\nMK\n", [("a", "MK")]),
        (b">a\nMK\n>a\nMKT\n", [("a", "MK"), ("a", "MKT")]),
        (b">P1;X\n\nMK*\n", [("P1;X", "MK")]),
        (b">a\nMKTAY", [("a", "MKTAY")]),
    ],
)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_fasta_records(tmp_path: Path, compression: str, content: bytes, expected: Records) -> None:
    path = tmp_path / "a.fa"
    written = COMPRESSIONS[compression](content)
    path.write_bytes(written)
    digest = hashlib.sha256()
    assert list(read_fasta(path, digest=digest)) == expected
    assert digest.hexdigest() == hashlib.sha256(written).hexdigest()
    assert read_every_way(path) == expected


@pytest.mark.parametrize(
    ("content", "options", "expected", "changes"),
    [
        (b">a\nMKT*\n>b\n**\n>c\nM*K\n", {}, ["MKT", "", "M*K"], ReadChanges(stops=3)),
        (b">a\nMKT\n*\n", {}, ["MKT"], ReadChanges(stops=1)),
        (b">a\nMKT*-\n", {}, ["MKT*-"], ReadChanges()),
        (b">a\nMKT*-\n", {"drop_gaps": True}, ["MKT"], ReadChanges(stops=1, gaps=1)),
        (b">a\nMKT*\n", {"strip_stop": False}, ["MKT*"], ReadChanges()),
        (b">a\nmkTAy\n", {}, ["MKTAY"], ReadChanges(lower_case=3)),
        (b">a\nmkTAy\n", {"uppercase": False}, ["mkTAy"], ReadChanges()),
        (b">a\nMK--TAY..\n>b\nMK\n", {}, ["MK--TAY..", "MK"], ReadChanges()),
        (b">a\nMK--TAY..\n>b\nMK\n", {"drop_gaps": True}, ["MKTAY", "MK"], ReadChanges(gaps=4)),
        (b">q\nMKTAY\n>h\nMK-aaAY\n", {}, ["MKTAY", "MK-AAAY"], ReadChanges(lower_case=2)),
        (
            b">q\nMKTAY\n>h\nMK-aaAY\n",
            {"drop_gaps": True, "uppercase": False},
            ["MKTAY", "MKAY"],
            ReadChanges(gaps=1, insertions=2),
        ),
    ],
)
def test_read_options(
    tmp_path: Path, content: bytes, options: Any, expected: list[str], changes: ReadChanges
) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(content)
    assert [sequence for _, sequence in read_every_way(path, **options)] == expected
    assert read_files([str(path)], ReadOptions(**options)).changes == changes


@needs_real_data
def test_odd_files(tmp_path: Path) -> None:
    folder = Path(os.environ["VIRNUCPRO_REAL_DATA"], "odd")
    known = json.loads((folder / "expected.json").read_text())
    assert len(known) >= 28
    for name, expected in known.items():
        path = tmp_path / name
        path.write_bytes((folder / name).read_bytes())
        if "records" in expected:
            assert read_every_way(path) == [tuple(record) for record in expected["records"]], name
            continue
        message = f"{name}: (line [0-9]+, record 1 |cut off|incomplete)"
        for read in (lambda path: list(read_fasta(path)), partial(RecordFile, options=READ)):
            with pytest.raises(ValueError, match=message):
                read(str(path))
        packed = run("pack", path, "-o", tmp_path / "plan.parquet")
        assert (packed.returncode, packed.stdout) == (1, "")
        assert re.search(message, packed.stderr)


@needs_real_data
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", ["uniprot_viruses", "ecoli_k12"])
def test_real_proteins_as_other_readers_read_them(
    tmp_path: Path, name: str, compression: str
) -> None:
    text = gzip.decompress(Path(os.environ["VIRNUCPRO_REAL_DATA"], f"{name}.faa.gz").read_bytes())
    plain = tmp_path / "plain.faa"
    plain.write_bytes(text)
    path = tmp_path / "a.faa"
    path.write_bytes(COMPRESSIONS[compression](text))
    records = list(read_fasta(path))
    with plain.open() as lines:
        assert records == [(r.id, str(r.seq).upper()) for r in SeqIO.parse(lines, "fasta")]
    with pysam.FastxFile(str(plain)) as file:
        assert records == [(r.name, r.sequence.upper()) for r in file]
    assert RecordFile(str(path), ReadOptions()).read(range(len(records))) == records
    sequences = read_files([str(path)])
    assert sequences.ids.to_pylist() == [name for name, _ in records]
    assert sequences.lengths.tolist() == [len(sequence) for _, sequence in records]


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "xz", "zstd"])
def test_concatenated_members(tmp_path: Path, compression: str) -> None:
    compress = COMPRESSIONS[compression]
    path = tmp_path / "a.fa"
    first, second = compress(b">a\nMK\n"), compress(b"T\n>b\nMK\n")
    for between in (b"", b"\0" * 512):
        path.write_bytes(first + between + second + between)
        assert list(read_fasta(path)) == [("a", "MKT"), ("b", "MK")]
    for damaged in (b"X" + second[1:], second[:-1], second + b"X"):
        path.write_bytes(first + damaged)
        with pytest.raises(ValueError, match=r"a\.fa: (damaged|incomplete)"):
            list(read_fasta(path))


def test_skippable_frames(tmp_path: Path) -> None:
    """Parallel compressors write them first."""
    path = tmp_path / "a.fa.zst"
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0rest"
    path.write_bytes(skipped + zstd(b">a\nMK\n") + skipped + zstd(b"T\n"))
    assert list(read_fasta(path)) == [("a", "MKT")]


def test_a_line_of_100_million_residues(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(b">a\n" + b"M" * 100_000_000 + b"\n>b\nMK\n")
    sequences = read_files([str(path)])
    assert sequences.lengths.tolist() == [100_000_000, 2]
    assert [len(sequence) for _, sequence in read_fasta(path)] == [100_000_000, 2]


@given(st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject) -> None:
    """Records that are read have every residue of the file."""
    piece = st.sampled_from([b">", b"a", b"\n", b"\r\n", b" ", b"M", b"@", b"+", b"\0", b"\xe9"])
    content = b">a\n" + b"".join(data.draw(st.lists(piece, max_size=30)))
    with NamedTemporaryFile(suffix=".fa") as file:
        Path(file.name).write_bytes(content)
        try:
            records = list(read_fasta(file.name, ReadOptions(uppercase=False)))
        except ValueError:
            return
    assert b"\0" not in content
    lines = content.decode(errors="replace").replace("\r\n", "\n").split("\n")
    residues = Counter("".join("".join(x.split()) for x in lines if not x.startswith(">")))
    assert Counter("".join(sequence for _, sequence in records)) == residues
    assert len(records) == sum(line.startswith(">") for line in lines)


def test_errors_of_the_hash_are_raised(tmp_path: Path) -> None:
    class Failing:
        def update(self, data: bytes) -> None:
            if data:
                raise MemoryError

    path = tmp_path / "a.fa"
    path.write_bytes(CONTENT)
    with pytest.raises(MemoryError):
        list(read_fasta(path, digest=Failing()))


def num_open() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def test_readers_closed_early_release_threads_and_files(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(CONTENT * 3)
    before = threading.active_count(), num_open()
    readers = [read_fasta(path, digest=hashlib.sha256()) for _ in range(5)]
    firsts = {next(reader) for reader in readers}
    assert len(firsts) == 1
    for reader in readers:
        reader.close()  # type: ignore[attr-defined]
    assert (threading.active_count(), num_open()) == before


@pytest.mark.process
def test_few_descriptors_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(CONTENT)
    code = (
        "import hashlib, resource, sys\n"
        "from virnucpro.files.fasta import read_fasta\n"
        "import concurrent.futures.thread\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))\n"
        "print(sum(1 for _ in read_fasta(sys.argv[1], digest=hashlib.sha256())))"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("5000\n", "")


def test_pipes_that_deliver_few_bytes_at_first(tmp_path: Path) -> None:
    fifo = tmp_path / "a.fa"
    os.mkfifo(fifo)
    for compress in COMPRESSIONS.values():
        content = compress(CONTENT)

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


def test_changes_as_text() -> None:
    assert str(ReadChanges()) == ""
    assert str(ReadChanges(stops=2, gaps=1_000)) == "2 stops (*) removed, 1,000 gaps removed"
    assert ReadChanges(stops=1) + ReadChanges(1, 2, 3, 4) == ReadChanges(2, 2, 3, 4)
    assert re.search("insertions", str(ReadChanges(insertions=1)))
