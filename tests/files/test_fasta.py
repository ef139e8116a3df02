"""What is read from FASTA files, in a stream and by random access, and what is refused."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import multiprocessing
import os
import pickle
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile, gettempdir
from typing import Any

import pyarrow.parquet as pq
import pysam
import pytest
from Bio import SeqIO
from command import run
from fasta import bgzip, fasta
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.files.fasta import Changes, ReadOptions, read_fasta
from virnucpro.files.record_file import RecordFile
from virnucpro.files.sequences import read_files

CONTENT = fasta([(f"seq{i}", "MKTAYIAKQR" * 20) for i in range(5000)])
READ = ReadOptions()
Records = list[tuple[str, str]]
needs_real_data = pytest.mark.skipif(
    "VIRNUCPRO_REAL_DATA" not in os.environ, reason="VIRNUCPRO_REAL_DATA names no folder"
)


def zstd(content: bytes) -> bytes:
    try:
        from compression import zstd
    except ModuleNotFoundError:
        from backports import zstd
    # As the program `zstd` does.
    options = {zstd.CompressionParameter.checksum_flag: 1}
    compressed: bytes = zstd.compress(content, options=options)
    return compressed


def bgzipped(content: bytes) -> bytes:
    with NamedTemporaryFile(suffix=".gz") as file:
        return bgzip(Path(file.name), content).read_bytes()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bgzip": bgzipped,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
}


def read_every_way(path: Path, **options: Any) -> Records:
    """Return the records of a file in a stream, once all ways have given the same."""
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
def test_what_fasta_holds(
    tmp_path: Path, compression: str, content: bytes, expected: Records
) -> None:
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
        (b">a\nMKT*\n>b\n**\n>c\nM*K\n", {}, ["MKT", "", "M*K"], Changes(stops=3)),
        (b">a\nMKT\n*\n", {}, ["MKT"], Changes(stops=1)),
        (b">a\nMKT*-\n", {}, ["MKT*-"], Changes()),
        (b">a\nMKT*-\n", {"drop_gaps": True}, ["MKT"], Changes(stops=1, gaps=1)),
        (b">a\nMKT*\n", {"strip_stop": False}, ["MKT*"], Changes()),
        (b">a\nmkTAy\n", {}, ["MKTAY"], Changes(lower_case=3)),
        (b">a\nmkTAy\n", {"uppercase": False}, ["mkTAy"], Changes()),
        (b">a\nMK--TAY..\n>b\nMK\n", {}, ["MK--TAY..", "MK"], Changes()),
        (b">a\nMK--TAY..\n>b\nMK\n", {"drop_gaps": True}, ["MKTAY", "MK"], Changes(gaps=4)),
        (b">q\nMKTAY\n>h\nMK-aaAY\n", {}, ["MKTAY", "MK-AAAY"], Changes(lower_case=2)),
        (
            b">q\nMKTAY\n>h\nMK-aaAY\n",
            {"drop_gaps": True, "uppercase": False},
            ["MKTAY", "MKAY"],
            Changes(gaps=1, insertions=2),
        ),
    ],
)
def test_options_change_what_they_say(
    tmp_path: Path, content: bytes, options: Any, expected: list[str], changes: Changes
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
        message = f"{name}: (line [0-9]+, record 1 |cut off)"
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
def test_members_follow_each_other(tmp_path: Path, compression: str) -> None:
    compress = COMPRESSIONS[compression]
    path = tmp_path / "a.fa"
    first, second = compress(b">a\nMK\n"), compress(b"T\n>b\nMK\n")
    for between in (b"", b"\0" * 512):
        path.write_bytes(first + between + second + between)
        assert list(read_fasta(path)) == [("a", "MKT"), ("b", "MK")]
    for damaged in (b"X" + second[1:], second[:-1], second + b"X"):
        path.write_bytes(first + damaged)
        with pytest.raises(ValueError, match=r"a\.fa: (damaged|cut off)"):
            list(read_fasta(path))


def test_frames_to_skip(tmp_path: Path) -> None:
    """Programs that compress in parallel put them first."""
    path = tmp_path / "a.fa.zst"
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0rest"
    path.write_bytes(skipped + zstd(b">a\nMK\n") + skipped + zstd(b"T\n"))
    assert list(read_fasta(path)) == [("a", "MKT")]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "virnucpro", "pack", "-", "-o", str(tmp_path / "p.parquet")]
    closed = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *command], capture_output=True, text=True, check=False
    )
    assert closed.returncode == 1
    assert closed.stderr == "virnucpro: standard input: cannot be read (Bad file descriptor)\n"


@pytest.mark.parametrize("compression", [name for name in COMPRESSIONS if name != "plain"])
def test_cuts_and_flips_are_noticed(tmp_path: Path, compression: str) -> None:
    """Wherever they are; what is read all the same is what there was."""
    whole = COMPRESSIONS[compression](CONTENT[:1000])
    path = tmp_path / "a.fa"
    path.write_bytes(whole)
    expected = list(read_fasta(path))
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"a\.fa: "):
            list(read_fasta(path))
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with suppress(ValueError):
            assert list(read_fasta(path)) == expected, bit


def test_a_compression_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.fa.gz"
    path.write_bytes(gzip.compress(CONTENT))
    code = (
        "import sys; sys.modules['isal'] = None\n"
        "from virnucpro.files.fasta import read_fasta\n"
        "try: list(read_fasta(sys.argv[1]))\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert result.stdout == (
        f"{path}: reading this compression needs isal: pip install 'virnucpro[fasta]'\n"
    )


def test_a_line_of_100_million_residues(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(b">a\n" + b"M" * 100_000_000 + b"\n>b\nMK\n")
    sequences = read_files([str(path)])
    assert sequences.lengths.tolist() == [100_000_000, 2]
    assert [len(sequence) for _, sequence in read_fasta(path)] == [100_000_000, 2]


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
    ("empty.fa", writes(b""), "not FASTA: an empty file"),
    ("blank.fa", writes(b"\n\n  \n"), "not FASTA: no record"),
    ("empty.fa.gz", writes(gzip.compress(b"")), "not FASTA: an empty file"),
    (
        "text.fa",
        writes(b"\nhello\n>a\nMK\n"),
        "not FASTA: line 2: it begins with 'h', not with '>'",
    ),
    ("a.fastq", writes(b"@a\nMK\n+\nII\n"), "line 1: it begins with '@', not with '>': FASTQ?"),
    ("first.fa", writes(b" >a\nMK\n"), "line 1: a '>' that does not begin its line"),
    ("mark.fa", writes(b"\xef\xbb>a\nMK\n"), "it begins with the byte 0xef, not with '>'"),
    ("nul.fa", writes(b">a\nMK\n>b\nM\0K\n"), "line 4, record 2 ('b'): a NUL byte"),
    ("nul.fa.gz", writes(gzip.compress(b">a\nMK\n>b\0\nMK\n")), "line 3, record 2 ('b'): a NUL"),
    ("later.fa", writes(b">a\nMK\n@b\nMK\n+\nII\n"), "line 3, record 1 ('a'): a line that begins"),
    ("end.fa", writes(b">a\nMK\n>"), "line 3, record 2 (''): cut off: it ends with '>'"),
    ("plus.fa", writes(b">a\nMK\n+\nMK\n"), "a line that begins with '+': FASTQ?"),
    ("mac.fa", writes(b">a\rMK\r>b\rMK\r"), "line 1, record 1 ('a'): lines that end with CR alone"),
    ("mixed.fa", writes(b">a\nMK\n>b\rMKT\r>c\rMK\r"), "line 3, record 2 ('b'): lines that end"),
    ("merged.fa", writes(b">a\nMKTAY>b\nMK\n"), "line 2, record 1 ('a'): a '>' in a sequence"),
    ("indented.fa", writes(b">a\nMK\n >b\nMK\n"), "line 3, record 1 ('a'): a '>' in a sequence"),
    ("latin.fa", writes(b">a\nMK\n>\xe9\nMK\n"), r"line 3, record 2 ('\\xe9'): an ID that is not"),
    ("comment.fa", writes(b">a\n;c\nMK\n"), "line 2, record 1 ('a'): a line that begins with ';'"),
    ("end.gb.fa", writes(b">a\nMK\n//\n"), "line 3, record 1 ('a'): a line that begins with '/'"),
    ("pir.fa", writes(b">P1;X\nTITLE\nMK*\n"), "line 2, record 1 ('P1;X'): the title of a record"),
    ("title.fa", writes(b">a\nSOME, TITLE\nMK*\n"), "a character that no sequence has (',')"),
    ("digits.fa", writes(b">a\n 1 mkt\n"), "line 2, record 1 ('a'): a digit in a sequence ('1')"),
    ("accent.fa", writes(">a\nMKé\n".encode()), "no sequence has (the byte 0xc3)"),
    ("marks.fa", writes(b">a\nM\n\xef\xbb\xbf>b\nM\n"), "no sequence has (the byte 0xef)"),
    ("mask.fa", writes(b">a\nMK<mask>\n"), "no sequence has ('<')"),
    ("escape.fa", writes(b">a\x1b[2J\nM1\n"), r"record 1 ('a\x1b[2J'): a digit"),
    ("binary.fa", binary, "not FASTA"),
    ("truncated.fa.gz", truncate_gzip, "cut off in the middle of its compressed data"),
    ("spoilt.fa.gz", spoil_gzip, "damaged"),
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
    with pytest.raises((OSError, ValueError), match=name):
        RecordFile(str(tmp_path / name), ReadOptions())


def test_records_before_a_fault_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(b">a\nMK\n>b\nMKT\n>c\nM1\n")
    records = read_fasta(path)
    assert [next(records), next(records)] == [("a", "MK"), ("b", "MKT")]
    with pytest.raises(ValueError, match=r"line 6, record 3 \('c'\)"):
        next(records)


@given(st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject) -> None:
    """What is read has every residue of the file."""
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


def test_a_hash_that_fails_is_not_the_end(tmp_path: Path) -> None:
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


def test_readers_left_early_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(CONTENT * 3)
    before = threading.active_count(), num_open()
    readers = [read_fasta(path, digest=hashlib.sha256()) for _ in range(5)]
    firsts = {next(reader) for reader in readers}
    assert len(firsts) == 1
    for reader in readers:
        reader.close()  # type: ignore[attr-defined]
    assert (threading.active_count(), num_open()) == before


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


def test_pipes_that_give_little_at_first(tmp_path: Path) -> None:
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


INDEXED: Records = [("a", "MKTAYIAKQR" * 9), ("b", "MW"), ("c", "MKT"), ("c", "")]


def test_no_index_is_trusted_or_made(tmp_path: Path) -> None:
    """One that lies beside the file may be of another text, and newer."""
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
def test_a_file_that_changed_is_not_read(
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
    """A data set that is unpickled where the file is another one of the same bytes."""
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
    return set(Path(gettempdir()).glob("virnucpro.*.fasta"))


def test_copies_go_with_what_made_them(tmp_path: Path) -> None:
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
    with pytest.raises(ValueError, match="cut off"):
        RecordFile(str(path), ReadOptions())
    assert expanded() == before


def test_a_file_that_is_none_any_more_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(fasta(INDEXED))
    file = RecordFile(str(path), ReadOptions())
    path.unlink()
    for is_pipe in (False, True):
        if is_pipe:
            os.mkfifo(path)
        with pytest.raises(FileNotFoundError, match=r"a\.fa: no such file, or no longer a regular"):
            file.read([1])
    path.unlink()
    path.write_bytes(fasta(INDEXED))
    assert file.read([1]) == [INDEXED[1]]


def test_times_put_back_hide_no_change(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(fasta(INDEXED))
    file = RecordFile(str(path), ReadOptions())
    before = path.stat()
    time.sleep(0.02)
    path.write_bytes(path.read_bytes().replace(b"MW", b"WM"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match=r"a\.fa: the file has changed"):
        file.read([1])


def test_workers_make_copies_of_their_own_and_remove_them(tmp_path: Path) -> None:
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


def test_changes_are_words() -> None:
    assert str(Changes()) == ""
    assert str(Changes(stops=2, gaps=1_000)) == "2 stops (*) left out, 1,000 gaps left out"
    assert Changes(stops=1) + Changes(1, 2, 3, 4) == Changes(2, 2, 3, 4)
    assert re.search("insertions", str(Changes(insertions=1)))
