"""Files that are refused, each with one line that says where and why."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from command import run
from compressed import COMPRESSIONS
from fasta import bgzip, fasta

from virnucpro.files.fasta import ReadOptions, read_fasta
from virnucpro.files.record_file import RecordFile

CONTENT = fasta([(f"seq{i}", "MKTAYIAKQR" * 20) for i in range(5000)])


@pytest.mark.process
def test_unreadable_standard_input_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "virnucpro", "pack", "-", "-o", str(tmp_path / "p.parquet")]
    closed = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *command], capture_output=True, text=True, check=False
    )
    assert closed.returncode == 1
    assert (
        closed.stderr == "virnucpro: error: standard input: cannot be read (Bad file descriptor)\n"
    )


@pytest.mark.parametrize("compression", [name for name in COMPRESSIONS if name != "plain"])
def test_incomplete_and_corrupted_files_are_detected(tmp_path: Path, compression: str) -> None:
    """At any byte or bit; records that are read nevertheless are the right ones."""
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


@pytest.mark.process
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
        f"{path}: reading this compression format needs isal: in a checkout of virnucpro, run "
        "pip install '.[fasta]' (with a wheel: pip install 'FILE.whl[fasta]')\n"
    )


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
    ("directory.fa", lambda path: path.mkdir(), "is a folder"),
    ("empty.fa", writes(b""), "not FASTA: empty file"),
    ("blank.fa", writes(b"\n\n  \n"), "not FASTA: no records"),
    ("empty.fa.gz", writes(gzip.compress(b"")), "not FASTA: empty file"),
    (
        "text.fa",
        writes(b"\nhello\n>a\nMK\n"),
        "not FASTA: line 2: the text begins with 'h', not with '>'",
    ),
    ("a.fastq", writes(b"@a\nMK\n+\nII\n"), "text begins with '@', not with '>': FASTQ?"),
    ("first.fa", writes(b" >a\nMK\n"), "line 1: a '>' that does not begin its line"),
    ("mark.fa", writes(b"\xef\xbb>a\nMK\n"), "the text begins with the byte 0xef, not with '>'"),
    ("nul.fa", writes(b">a\nMK\n>b\nM\0K\n"), "line 4, record 2 ('b'): a NUL byte"),
    ("nul.fa.gz", writes(gzip.compress(b">a\nMK\n>b\0\nMK\n")), "line 3, record 2 ('b'): a NUL"),
    ("later.fa", writes(b">a\nMK\n@b\nMK\n+\nII\n"), "line 3, record 1 ('a'): a line that begins"),
    ("end.fa", writes(b">a\nMK\n>"), "line 3, record 2 (''): incomplete: the text ends with '>'"),
    ("plus.fa", writes(b">a\nMK\n+\nMK\n"), "a line that begins with '+': FASTQ?"),
    ("mac.fa", writes(b">a\rMK\r>b\rMK\r"), "line 1, record 1 ('a'): lines that end with CR alone"),
    ("mixed.fa", writes(b">a\nMK\n>b\rMKT\r>c\rMK\r"), "line 3, record 2 ('b'): lines that end"),
    ("merged.fa", writes(b">a\nMKTAY>b\nMK\n"), "line 2, record 1 ('a'): a '>' in a sequence"),
    ("indented.fa", writes(b">a\nMK\n >b\nMK\n"), "line 3, record 1 ('a'): a '>' in a sequence"),
    ("latin.fa", writes(b">a\nMK\n>\xe9\nMK\n"), r"line 3, record 2 ('\\xe9'): an ID that is not"),
    ("comment.fa", writes(b">a\n;c\nMK\n"), "line 2, record 1 ('a'): a line that begins with ';'"),
    ("end.gb.fa", writes(b">a\nMK\n//\n"), "line 3, record 1 ('a'): a line that begins with '/'"),
    ("pir.fa", writes(b">P1;X\nTITLE\nMK*\n"), "line 2, record 1 ('P1;X'): the title line of"),
    ("title.fa", writes(b">a\nSOME, TITLE\nMK*\n"), "an invalid character (',')"),
    ("digits.fa", writes(b">a\n 1 mkt\n"), "line 2, record 1 ('a'): a digit in a sequence ('1')"),
    ("accent.fa", writes(">a\nMKé\n".encode()), "invalid character (the byte 0xc3)"),
    ("marks.fa", writes(b">a\nM\n\xef\xbb\xbf>b\nM\n"), "invalid character (the byte 0xef)"),
    ("mask.fa", writes(b">a\nMK<mask>\n"), "invalid character ('<')"),
    ("escape.fa", writes(b">a\x1b[2J\nM1\n"), r"record 1 ('a\x1b[2J'): a digit"),
    ("binary.fa", binary, "not FASTA"),
    ("truncated.fa.gz", truncate_gzip, "incomplete: the compressed data ends early"),
    ("spoilt.fa.gz", spoil_gzip, "damaged"),
    ("cut.fa.gz", cut_bgzip, "the bgzip end-of-file block is missing"),
]


@pytest.mark.parametrize(("name", "make", "message"), BAD_FASTA, ids=[bad[0] for bad in BAD_FASTA])
def test_bad_fasta_is_reported_in_one_line(
    tmp_path: Path, name: str, make: Callable[[Path], Any], message: str
) -> None:
    good = tmp_path / "good.fa"
    good.write_bytes(b">a\nMK\n")
    make(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    result = run("pack", good, tmp_path / name, "-o", tmp_path / "plan.parquet")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"virnucpro: error: {tmp_path / name}: ")
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
