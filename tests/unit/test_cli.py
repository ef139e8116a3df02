"""The command line from the outside: what it prints, writes and returns."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pysam
import pytest
from command import run

import virnucpro
from virnucpro.data import GreedyPacker

PROTEINS = [
    ("b", "MKTAYIAKQR" * 30),
    ("a", "MKTAYIAKQR" * 30),
    ("short", "MK"),
    ("long", "MKTAY" * 300),
]


def fasta(proteins: list[tuple[str, str]]) -> bytes:
    lines = []
    for name, sequence in proteins:
        lines.append(f">{name} some protein\n")
        lines += [sequence[i : i + 60] + "\n" for i in range(0, len(sequence), 60)]
    return "".join(lines).encode()


def bgzip(path: Path, content: bytes) -> Path:
    plain = path.with_suffix(".plain")
    plain.write_bytes(content)
    pysam.tabix_compress(str(plain), str(path), force=True)
    return path


def columns(path: Path) -> dict[str, list[Any]]:
    return dict(pq.read_table(path).to_pydict())


def test_pack_writes_the_plan(tmp_path: Path) -> None:
    (tmp_path / "first.fa").write_bytes(fasta(PROTEINS[:2]))
    (tmp_path / "second.fa.gz").write_bytes(gzip.compress(fasta(PROTEINS[2:3])))
    bgzip(tmp_path / "third.fa.gz", fasta(PROTEINS[3:]))
    plan = tmp_path / "plan.parquet"
    inputs = [tmp_path / name for name in ("first.fa", "second.fa.gz", "third.fa.gz")]
    result = run("pack", *inputs, "-o", plan, "--max-tokens", 1100)
    assert (result.returncode, result.stdout) == (0, "")
    assert columns(plan) == {
        "batch": [0, 0, 1, 1],
        "row": [3, 2, 1, 0],
        "id": ["long", "short", "a", "b"],
        "length": [1500, 2, 300, 300],
        "tokens": [1024, 4, 302, 302],
        "truncated": [True, False, False, False],
    }
    summary = {
        line.rsplit(maxsplit=1)[0].strip(): line.split()[-1]
        for line in result.stderr.splitlines()[:7]
    }
    assert summary == {
        "Sequences": "4",
        "Residues": "2,102",
        "Truncated": "1",
        "Residues lost": "478",
        "Batches": "2",
        "Efficiency": f"{(1028 + 604) / 2200:.6f}",
        "Lower bound": "2",
    }
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".tmp") == []


def test_max_length(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_bytes(fasta(PROTEINS))
    plan = tmp_path / "plan.parquet"
    assert run("pack", tmp_path / "a.fa", "-o", plan, "--max-length", 100).returncode == 0
    assert columns(plan)["tokens"] == [102, 102, 102, 4]
    assert columns(plan)["id"] == ["a", "b", "long", "short"]


CONTENT = fasta([(f"seq{i}", "MKTAYIAKQR" * 20) for i in range(5000)])


def cut_bgzip(path: Path) -> None:
    """Leave the first block alone, as a stopped download may."""
    content = bgzip(path, CONTENT).read_bytes()
    path.write_bytes(content[: int.from_bytes(content[16:18], "little") + 1])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("missing.fa", lambda _: None, "no such file"),
        ("empty.fa", lambda path: path.write_bytes(b""), "empty file"),
        ("directory.fa", lambda path: path.mkdir(), "is a directory"),
        ("text.fa", lambda path: path.write_text("hello\n"), "no FASTA record"),
        ("empty.fa.gz", lambda path: path.write_bytes(gzip.compress(b"")), "no FASTA record"),
        (
            "truncated.fa.gz",
            lambda path: path.write_bytes(gzip.compress(CONTENT)[:-100]),
            "damaged or cut off after record",
        ),
        ("cut.fa.gz", cut_bgzip, "the bgzip end-of-file block is missing"),
        ("latin.fa", lambda path: path.write_bytes(b">a\nMK\n>\xe9\nMK\n"), "record 2 is not text"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, name: str, make: Any, message: str) -> None:
    good = tmp_path / "good.fa"
    good.write_bytes(fasta(PROTEINS))
    make(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    result = run("pack", good, tmp_path / name, "-o", tmp_path / "plan.parquet")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"virnucpro: {tmp_path / name}: ")
    assert message in line
    assert sorted(tmp_path.iterdir()) == before


def test_failure_keeps_the_old_plan(tmp_path: Path) -> None:
    (tmp_path / "good.fa").write_bytes(fasta(PROTEINS))
    (tmp_path / "plan.parquet").write_bytes(b"old")
    assert run("pack", tmp_path / "no.fa", "-o", tmp_path / "plan.parquet").returncode == 1
    assert (tmp_path / "plan.parquet").read_bytes() == b"old"
    assert run("pack", tmp_path / "good.fa", "-o", tmp_path / "plan.parquet").returncode == 0
    assert columns(tmp_path / "plan.parquet")["batch"] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("good.fa", "is an input too"),
        (".", "is a directory"),
        ("missing/plan.parquet", "no such directory"),
    ],
)
def test_bad_output_is_one_line(tmp_path: Path, output: str, message: str) -> None:
    (tmp_path / "good.fa").write_bytes(fasta(PROTEINS))
    result = run("pack", tmp_path / "good.fa", "-o", tmp_path / output)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert message in line
    assert (tmp_path / "good.fa").read_bytes() == fasta(PROTEINS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack"],
        ["pack", "a.fa"],
        ["pack", "a.fa", "-o", "b", "--max-tokens", "2"],
        ["pack", "a.fa", "-o", "b", "--max-tokens", "many"],
        ["pack", "a.fa", "-o", "b", "--max-length", "0"],
        ["unpack"],
        ["--wrong"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Usage: virnucpro" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_and_version() -> None:
    for arguments in (["-h"], ["pack", "-h"], ["pack", "--help"]):
        result = run(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        assert "Usage: virnucpro" in result.stdout
    assert run("--version").stdout == f"virnucpro {virnucpro.__version__}\n"


def test_missing_extra_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None\nfrom virnucpro.__main__ import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr == ("virnucpro: typer is not installed: pip install 'virnucpro[cli]'\n")


def test_plan_equals_that_of_the_packer(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 1500, 500)
    ids = [f"seq{number}" for number in rng.permutation(500)]
    (tmp_path / "a.fa").write_bytes(
        fasta([(name, "M" * length) for name, length in zip(ids, lengths, strict=True)])
    )
    assert run("pack", tmp_path / "a.fa", "-o", tmp_path / "plan.parquet").returncode == 0
    written = columns(tmp_path / "plan.parquet")
    plan = GreedyPacker(4096).pack_lengths(lengths, ids)
    assert written["row"] == plan.indices.tolist()
    assert written["id"] == [ids[row] for row in plan.indices]
    assert written["batch"] == np.repeat(np.arange(len(plan)), np.diff(plan.offsets)).tolist()
