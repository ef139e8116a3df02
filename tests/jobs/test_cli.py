"""The command line from the outside: what it prints, writes and returns."""

from __future__ import annotations

import gzip
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import read_terminal, run
from fasta import bgzip, fasta

from virnucpro.data import GreedyPacker

PROTEINS = [
    ("b", "MKTAYIAKQR" * 30),
    ("a", "MKTAYIAKQR" * 30),
    ("short", "MK"),
    ("long", "MKTAY" * 300),
]


def columns(path: Path) -> dict[str, list[Any]]:
    return dict(pq.read_table(path).to_pydict())


def summary_of(stderr: str) -> dict[str, str]:
    lines = [line.strip().rsplit("  ", 1) for line in stderr.splitlines()]
    return {line[0].strip(): line[1].strip() for line in lines if len(line) == 2}


def test_pack_writes_the_plan(tmp_path: Path) -> None:
    first = tmp_path / "first.fa"
    first.write_bytes(fasta(PROTEINS[:2]))
    second = tmp_path / "second.fa.gz"
    second.write_bytes(gzip.compress(fasta(PROTEINS[2:3])))
    third = bgzip(tmp_path / "third.fa.gz", fasta(PROTEINS[3:]))
    plan = tmp_path / "plan.parquet"
    result = run("pack", first, second, third, "-o", plan, "--max-tokens", 1100)
    assert (result.returncode, result.stdout) == (0, "")
    assert columns(plan) == {
        "batch": [0, 0, 1, 1],
        "row": [3, 2, 1, 0],
        "id": ["long", "short", "a", "b"],
        "length": [1500, 2, 300, 300],
        "tokens": [1024, 4, 302, 302],
        "truncated": [True, False, False, False],
        "file": [str(third), str(second), str(first), str(first)],
    }
    assert summary_of(result.stderr) == {
        "Sequences": "4",
        "Packed": "4",
        "Residues": "2,102",
        "Residues kept": "1,624",
        "Truncated": "1",
        "Residues lost": "478 (22.74 %)",
        "Batches": "2",
        "Efficiency": "74.18 %",
        "Lower bound": "2",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "first.fa",
        "plan.parquet",
        "second.fa.gz",
        "third.fa.gz",
    ]


def test_options_change_the_plan(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_bytes(fasta(PROTEINS))
    plan = tmp_path / "plan.parquet"

    def pack(*options: object) -> dict[str, list[Any]]:
        assert run("pack", tmp_path / "a.fa", "-o", plan, *options).returncode == 0
        return columns(plan)

    assert pack("--max-length", 100)["tokens"] == [102, 102, 102, 4]
    assert pack("--max-length", 100)["id"] == ["a", "b", "long", "short"]
    assert pack("--special-tokens", 0)["tokens"] == [1022, 300, 300, 2]
    assert pack("--max-sequences", 1)["batch"] == [0, 1, 2, 3]
    assert pack("--multiple-of", 16)["tokens"] == [1024, 304, 304, 16]


@pytest.mark.process
def test_standard_input(tmp_path: Path) -> None:
    for content in (fasta(PROTEINS), gzip.compress(fasta(PROTEINS))):
        plan = tmp_path / "plan.parquet"
        command = [sys.executable, "-m", "virnucpro", "pack", "-", "-q", "-o", str(plan)]
        for options in ([], ["--sequences"]):
            result = subprocess.run(
                [*command, *options], input=content, capture_output=True, check=False
            )
            assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
            assert columns(plan)["row"] == [3, 1, 0, 2]
            assert columns(plan)["file"] == ["-"] * 4
        expected = [residues[:1022] for _, residues in (PROTEINS[row] for row in (3, 1, 0, 2))]
        assert columns(plan)["sequence"] == expected


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_bytes(fasta(PROTEINS))
    (tmp_path / "link.parquet").symlink_to(tmp_path / "plan.parquet")
    assert run("pack", tmp_path / "a.fa", "-o", tmp_path / "link.parquet").returncode == 0
    assert (tmp_path / "link.parquet").is_symlink()
    assert columns(tmp_path / "plan.parquet")["row"] == [3, 1, 0, 2]


def test_overlong(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_bytes(fasta(PROTEINS))
    plan = tmp_path / "plan.parquet"
    result = run("pack", tmp_path / "a.fa", "-o", plan, "--overlong", "error")
    assert result.returncode == 1
    assert result.stderr == (
        f"virnucpro: error: {tmp_path / 'a.fa'}: sequence 'long' has 1,500 residues, more than "
        "1,022 (affected sequences: 1)\n"
    )
    assert not plan.exists()
    result = run("pack", tmp_path / "a.fa", "-o", plan, "--overlong", "drop")
    assert result.returncode == 0
    written = columns(plan)
    assert written["batch"] == [0, 0, 0, None]
    assert written["row"] == [1, 0, 2, 3]
    assert written["tokens"] == [302, 302, 4, None]
    assert written["truncated"] == [False] * 4
    found = summary_of(result.stderr)
    names = ("Sequences", "Packed", "Dropped", "Residues", "Residues kept", "Residues lost")
    expected = ["4", "3", "1", "2,102", "602", "1,500 (71.36 %)"]
    assert [found[name] for name in names] == expected
    limits = ("--max-length", 700, "--overlap", 100)
    result = run("pack", tmp_path / "a.fa", "-o", plan, "--overlong", "split", *limits)
    assert result.returncode == 0
    written = columns(plan)
    fragments = zip(*(written[name] for name in ("row", "start", "stop")), strict=True)
    assert sorted(fragments) == [
        *((0, 0, 300), (1, 0, 300), (2, 0, 2)),
        *((3, 0, 700), (3, 600, 1300), (3, 1200, 1500)),
    ]
    found = summary_of(result.stderr)
    names = ("Sequences", "Packed", "Split", "Fragments", "Residues kept", "Residues repeated")
    assert [found[name] for name in names] == ["4", "4", "1", "3", "2,102", "200"]


def test_arrow_files_and_residues(tmp_path: Path) -> None:
    """Both encodings have the same rows; the residues are those that are packed."""
    path, plan, arrow = (tmp_path / name for name in ("a.fa", "plan.parquet", "plan.arrow"))
    path.write_bytes(fasta(PROTEINS))
    assert run("pack", path, "-o", plan, "--sequences").returncode == 0
    assert run("pack", path, "-o", arrow).returncode == 0
    table = pq.read_table(plan)
    residues = dict(PROTEINS)
    assert table["sequence"].to_pylist() == [
        residues[name][:1022] for name in table["id"].to_pylist()
    ]
    with pa.OSFile(str(arrow)) as source:
        assert pa.ipc.open_file(source).read_all().equals(table.drop_columns(["sequence"]))
    assert run("stats", arrow).stdout == run("stats", plan).stdout
    result = run("pack", path, "-o", arrow, "--sequences")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"virnucpro: error: {arrow}: sequences can be stored in Parquet files only (.parquet)\n"
    )


def test_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(fasta([("a", "MK"), ("b", "MKT"), ("a", "MKTA"), ("a", "MK"), ("b", "MK")]))
    plan = tmp_path / "plan.parquet"
    result = run("pack", path, "-o", plan)
    assert result.returncode == 0
    assert summary_of(result.stderr)["Duplicate IDs"] == "3"
    assert "virnucpro: warning: duplicate IDs: 3 (for example a, b)\n" in result.stderr
    assert len(columns(plan)["id"]) == 5
    plan.unlink()
    result = run("pack", path, "-o", plan, "--duplicates", "error")
    assert result.returncode == 1
    assert result.stderr == "virnucpro: error: duplicate IDs: 3 (for example a, b)\n"
    assert not plan.exists()


def test_changes_by_reading_are_reported_and_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(fasta([("a", "MKT*"), ("b", "mk-"), ("c", "*"), ("d", "M*K")]))
    plan = tmp_path / "plan.parquet"
    names = ("Stops (*) removed", "Lower case converted", "Gaps removed", "Insertions removed")
    for options, lengths, counts in (
        ([], [3, 3, 3, 0], ["2", "2", None, None]),
        (["--keep-stop"], [4, 3, 3, 1], [None, "2", None, None]),
        (["--drop-gaps"], [3, 3, 2, 0], ["2", "2", "1", None]),
        (["--drop-gaps", "--keep-case"], [3, 3, 0, 0], ["2", None, "1", "2"]),
    ):
        result = run("pack", path, "-o", plan, *options)
        assert columns(plan)["length"] == lengths
        summary = summary_of(result.stderr)
        assert [summary.get(name) for name in names] == counts
        # The plan says how its input was read.
        assert run("verify", plan, path).returncode == 0
        lines = dict(line.split("\t") for line in run("stats", plan, "--tsv").stdout.splitlines())
        for option in ("strip_stop", "uppercase", "drop_gaps"):
            flag = {"strip_stop": "--keep-stop", "uppercase": "--keep-case"}.get(option)
            kept = flag not in options if flag else "--drop-gaps" in options
            assert lines[option] == str(kept).lower()
    assert summary["Empty"] == "2"


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
        ("good.parquet", "is also an input"),
        ("folder.arrow", "is a folder"),
        ("missing/plan.parquet", "its folder does not exist"),
        ("null.parquet", "not a regular file"),
    ],
)
def test_bad_output_is_reported_in_one_line(tmp_path: Path, output: str, message: str) -> None:
    (tmp_path / "good.fa").write_bytes(fasta(PROTEINS))
    pq.write_table(pa.table({"id": ["a"], "length": [5]}), tmp_path / "good.parquet")
    (tmp_path / "folder.arrow").mkdir()
    (tmp_path / "null.parquet").symlink_to("/dev/null")
    before = sorted(tmp_path.iterdir())
    contents = [path.read_bytes() for path in before if path.is_file()]
    inputs = [tmp_path / "good.fa", tmp_path / "good.parquet"]
    result = run("pack", *inputs, "-o", tmp_path / output)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"virnucpro: error: {tmp_path / output}: ")
    assert message in line
    assert sorted(tmp_path.iterdir()) == before
    assert [path.read_bytes() for path in before if path.is_file()] == contents


@pytest.mark.process
def test_missing_extra_says_what_to_install() -> None:
    code = "import sys; sys.modules['click'] = None\nfrom virnucpro.__main__ import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr == (
        "virnucpro: error: the command line needs click: in a checkout of virnucpro, run "
        "pip install '.[cli]' (with a wheel: pip install 'FILE.whl[cli]')\n"
    )


def many(tmp_path: Path, number: int = 500, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 1500, number)
    ids = [f"seq{place}" for place in rng.permutation(number)]
    path = tmp_path / f"{seed}.fa"
    path.write_bytes(fasta([(n, "M" * k) for n, k in zip(ids, lengths, strict=True)]))
    return path


def test_plan_equals_that_of_the_packer(tmp_path: Path) -> None:
    path = many(tmp_path)
    assert run("pack", path, "-o", tmp_path / "plan.parquet").returncode == 0
    written = columns(tmp_path / "plan.parquet")
    order = np.argsort(written["row"])
    lengths = np.array(written["length"])[order]
    ids = [written["id"][i] for i in order]
    plan = GreedyPacker(4096).pack_lengths(lengths, ids)
    assert written["row"] == plan.indices.tolist()
    assert written["batch"] == np.repeat(np.arange(len(plan)), np.diff(plan.offsets)).tolist()


def test_threads_give_the_same_bytes(tmp_path: Path) -> None:
    path = many(tmp_path, 3000)
    plans = []
    for threads in (1, 2, 7):
        plan = tmp_path / f"{threads}.parquet"
        assert run("pack", path, "-o", plan, "--threads", threads).returncode == 0
        plans.append(plan.read_bytes())
    assert plans[0] == plans[1] == plans[2]


def test_order_of_input_changes_rows_alone(tmp_path: Path) -> None:
    path = many(tmp_path, 3000)
    records = path.read_bytes().split(b">")[1:]
    plans = []
    for shuffled in (False, True):
        if shuffled:
            np.random.default_rng(1).shuffle(records)
        path.write_bytes(b"".join(b">" + record for record in records))
        assert run("pack", path, "-o", tmp_path / "plan.parquet").returncode == 0
        plans.append(columns(tmp_path / "plan.parquet"))
    rows = [plan.pop("row") for plan in plans]
    assert plans[0] == plans[1]
    assert rows[0] != rows[1]


def test_stats(tmp_path: Path) -> None:
    path = many(tmp_path)
    plan = tmp_path / "plan.parquet"
    packed = run("pack", path, "-o", plan, "--max-tokens", 2000)
    shown = run("stats", plan)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert summary_of(shown.stdout) == summary_of(packed.stderr)
    found = json.loads(run("stats", plan, "--json").stdout)
    assert found["version"] == 5
    totals = found["totals"]
    assert found["limits"]["max_tokens_per_batch"] == 2000
    assert found["inputs"][0]["bytes"] == path.stat().st_size
    assert totals["read"] == totals["packed"] + totals["dropped"] == 500
    parts = ("residues_kept", "residues_truncated", "residues_dropped")
    assert totals["residues"] == sum(totals[part] for part in parts)
    lines = dict(line.split("\t") for line in run("stats", plan, "--tsv").stdout.splitlines())
    for name, value in totals.items():
        assert float(lines[name]) == value
    assert lines["max_sequences_per_batch"] == ""
    assert lines["multiple_of"] == "1"
    assert lines["strip_stop"] == "true"


@pytest.mark.parametrize("content", [b"", b"PAR1", None, b"parquet"])
def test_files_that_are_not_plans_are_reported_in_one_line(
    tmp_path: Path, content: bytes | None
) -> None:
    plan = tmp_path / "plan.parquet"
    if content == b"parquet":
        pq.write_table(pa.table({"a": [1]}), plan)
    elif content is not None:
        plan.write_bytes(content)
    (tmp_path / "a.fa").write_bytes(fasta(PROTEINS))
    for arguments, status in (
        (["stats", plan], 1),
        (["verify", plan, tmp_path / "a.fa"], 2),
        (["verify", plan], 2),
        (["report", plan, "-o", tmp_path / "report.html"], 1),
    ):
        result = run(*arguments)
        assert (result.returncode, result.stdout) == (status, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith("virnucpro: error: ")
        assert str(plan) in line
    assert not (tmp_path / "report.html").exists()


@pytest.mark.process
def test_progress_is_shown_only_on_terminals(tmp_path: Path) -> None:
    path = many(tmp_path, 3000)
    plan = str(tmp_path / "plan.parquet")
    command = [sys.executable, "-m", "virnucpro", "pack", str(path), "-o", plan]
    for quiet in ([], ["--quiet"]):
        ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm"}
        with subprocess.Popen([*command, *quiet], stderr=theirs, env=environment) as process:
            os.close(theirs)
            seen = read_terminal(ours)
        os.close(ours)
        assert process.returncode == 0
        for shown in (b"Reading", b"Packing", b"Writing 100.0 % of 3,000 rows", b"Batches"):
            assert (shown in seen) == (not quiet)
    assert b"Reading" not in subprocess.run(command, capture_output=True, check=True).stderr


@pytest.mark.process
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_stopped_runs_leave_the_old_plan(tmp_path: Path, stop: signal.Signals) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    plan = tmp_path / "plan.parquet"
    plan.write_bytes(b"old")
    command = [sys.executable, "-m", "virnucpro", "pack", str(fifo), "-o", str(plan)]

    def heed_signal() -> None:
        """Undo what nohup does."""
        if stop != signal.SIGKILL:
            signal.signal(stop, signal.SIG_DFL)

    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_signal
    ) as process:
        with fifo.open("wb", buffering=0) as file:
            file.write(fasta(PROTEINS))
            time.sleep(0.3)
            process.send_signal(stop)
            process.wait(20)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == -stop
    assert plan.read_bytes() == b"old"
    left = {path.name for path in tmp_path.iterdir()} - {"fifo", "plan.parquet"}
    assert len(left) == (stop == signal.SIGKILL)
    # The next run removes what a killed one has left.
    path = tmp_path / "a.fa"
    path.write_bytes(fasta(PROTEINS))
    assert run("pack", path, "-o", plan).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.fa", "fifo", "plan.parquet"}
