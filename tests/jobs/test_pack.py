"""The pack job as a function."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fasta import fasta

from virnucpro.data import GreedyPacker, PackingPlan, ReadOptions, pack_files
from virnucpro.files.plan_reader import read_summary
from virnucpro.files.sequences import read_files

RECORDS = [("a", "MKTAYIAK"), ("b", "mk*"), ("c", ""), ("a", "M-"), ("d", "MKTAY")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.fa"
    path.write_bytes(fasta(RECORDS))
    return path


def test_the_summary_is_that_of_the_plan_file(path: Path, tmp_path: Path) -> None:
    packer = GreedyPacker(6, overlong="drop")
    for plan in (tmp_path / "plan.arrow", tmp_path / "plan.parquet"):
        stages: list[tuple[str, int, int | None]] = []
        summary = pack_files([path], plan, packer, progress=lambda *s, to=stages: to.append(s))
        assert summary == read_summary(plan)
        # Later numbers of a stage replace earlier ones.
        last = {stage: (done, total) for stage, done, total in stages}
        size = path.stat().st_size
        expected = {"reading": (size, size), "packing": (0, None), "writing": (5, 5)}
        assert list(last.items()) == list(expected.items())
        assert stages == sorted(stages, key=lambda stage: (list(last).index(stage[0]), stage[1]))
    assert (summary.totals.dropped, summary.totals.duplicate_ids) == (2, 1)
    assert (summary.limits, summary.overlong) == (packer.limits, "drop")
    assert (summary.method, summary.overlap, summary.options) == ("ffd", 0, ReadOptions())
    # One path need not be in a list.
    assert pack_files(str(path), str(plan), packer) == summary


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("overlong", "overlap"), [("truncate", 0), ("drop", 0), ("split", 0), ("split", 3)]
)
def test_the_plan_is_that_of_the_lengths_and_ids(
    path: Path, tmp_path: Path, suffix: str, overlong: str, overlap: int
) -> None:
    plan = tmp_path / f"plan{suffix}"
    other = tmp_path / "b.fa.gz"
    other.write_bytes(gzip.compress(fasta(RECORDS[::-1])))
    packer = GreedyPacker(8, 4, overlong=overlong, overlap=overlap, max_sequences_per_batch=3)
    summary = pack_files(iter([path, other]), plan, packer)
    sequences = read_files([str(path), str(other)])
    expected = packer.pack_lengths(sequences.lengths, sequences.ids)
    loaded = PackingPlan.load(plan)
    assert loaded == expected
    assert loaded.summary == summary
    assert [file.name for file in summary.inputs] == [str(path), str(other)]
    assert summary.overlap == overlap


def test_options_are_those_of_the_plan(path: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.parquet"
    options = ReadOptions(strip_stop=False, uppercase=False, drop_gaps=True)
    summary = pack_files(path, plan, GreedyPacker(100), options=options)
    assert summary.options == options == read_summary(plan).options
    assert summary.parameters["drop_gaps"]
    totals = summary.totals
    assert (totals.stops, totals.lower_case, totals.gaps, totals.insertions) == (0, 0, 1, 2)


def test_residues_are_those_that_are_packed(path: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.parquet"
    pack_files(path, plan, GreedyPacker(6, overlong="split", overlap=1), sequences=True)
    residues = ["MKTAYIAK", "MK", "", "M-", "MKTAY"]
    for row in pq.read_table(plan).to_pylist():
        assert row["sequence"] == residues[row["row"]][row["start"] : row["stop"]]
    plain = tmp_path / "plain.parquet"
    pack_files(path, plain, GreedyPacker(6, overlong="split", overlap=1))
    assert pq.read_table(plan).drop_columns(["sequence"]).equals(pq.read_table(plain))


def test_duplicates(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = tmp_path / "plan.parquet"
    pack_files(path, plan, GreedyPacker(100))
    assert caplog.record_tuples == [
        ("virnucpro.jobs.pack", logging.WARNING, "duplicate IDs: 1 (for example a)")
    ]
    plan.unlink()
    with pytest.raises(ValueError, match=r"^duplicate IDs: 1 \(for example a\)$"):
        pack_files(path, plan, GreedyPacker(100), duplicates="error")
    assert not plan.exists()


def test_overlong_sequences_are_named(path: Path, tmp_path: Path) -> None:
    message = r"a.fa: sequence 'a' has 8 residues, more than 4 \(affected sequences: 2\)$"
    with pytest.raises(ValueError, match=message):
        pack_files(path, tmp_path / "plan.parquet", GreedyPacker(6, overlong="error"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"duplicates": "drop"}, ValueError, r"^duplicates must be 'report' or 'error' \(got 'dro"),
        ({"packer": 4096}, TypeError, r"^packer must be a GreedyPacker \(got int\)$"),
        ({"options": {}}, TypeError, r"^options must be ReadOptions \(got dict\)$"),
        ({"inputs": []}, ValueError, "^inputs must name at least one file$"),
        ({"output": "plan.csv"}, ValueError, "^plan.csv: a plan file must have the suffix"),
        ({"output": "no/plan.arrow"}, FileNotFoundError, "plan.arrow: its folder does not exi"),
        (
            {"output": "plan.arrow", "sequences": True},
            ValueError,
            r"^plan.arrow: sequences can be stored in Parquet files only",
        ),
        (
            {"inputs": "a.fai", "sequences": True},
            ValueError,
            "^a.fai: a table of lengths has no sequences to store in the plan$",
        ),
    ],
)
def test_arguments_are_checked_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    good = {"inputs": ["missing.fa"], "output": "plan.parquet", "packer": GreedyPacker(6)}
    with pytest.raises(error, match=message):
        pack_files(**{**good, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_tables_are_packed(tmp_path: Path) -> None:
    path, plan = tmp_path / "a.parquet", tmp_path / "plan.arrow"
    pq.write_table(pa.table({"name": ["b", "a", "c"], "size": [5, 5, 9]}), path)
    options = ReadOptions(id_column="name", length_column="size")
    pack_files(path, plan, GreedyPacker(20), options=options)
    assert [rows.tolist() for rows in PackingPlan.load(plan)] == [[2, 1], [0]]


def test_an_overlap_of_numpy_is_stored(tmp_path: Path) -> None:
    path, plan = tmp_path / "a.fasta", tmp_path / "plan.parquet"
    path.write_text(f">a\n{'MK' * 50}\n")
    overlap: Any = np.int64(3)
    packer = GreedyPacker(52, overlong="split", overlap=overlap)
    assert pack_files(path, plan, packer).overlap == read_summary(plan).overlap == 3
