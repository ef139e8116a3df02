"""Plan files and options that earlier versions wrote are read as they were meant."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command import run
from store import FASTA, LENGTHS, OPTIONS, STORED, make_plan, make_read_options

from virnucpro.data import PackingPlan
from virnucpro.files.fasta import read_fasta
from virnucpro.files.plan_file import VERSION

PARQUET = sorted(STORED.glob("plan-*.parquet"))
ARROW = sorted(STORED.glob("plan-*.arrow"))


def test_the_version_that_is_written_is_stored() -> None:
    assert STORED / f"plan-{VERSION}.parquet" in PARQUET
    assert STORED / f"plan-{VERSION}.arrow" in ARROW
    records = list(read_fasta(STORED / FASTA))
    assert [len(sequence) for _, sequence in records] == LENGTHS
    assert [name for name, _ in records] == [f"seq{row:02d}" for row in range(len(LENGTHS))]


@pytest.mark.parametrize("path", PARQUET, ids=lambda path: path.name)
def test_stored_plans_are_those_of_the_same_input(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The plan names its input relative to this folder.
    monkeypatch.chdir(STORED)
    assert run("pack", FASTA, "-o", tmp_path / "plan.parquet", *OPTIONS).returncode == 0
    stored, made = pq.read_table(path), pq.read_table(tmp_path / "plan.parquet")
    assert stored.equals(made.select(stored.column_names))
    rows = make_plan().indices.tolist()
    assert stored["row"].to_pylist() == rows
    found, expected = (
        json.loads(run("stats", "--json", plan).stdout)
        for plan in (path, tmp_path / "plan.parquet")
    )
    for name, value in found["totals"].items():
        assert expected["totals"][name] == value
    assert found["inputs"] == expected["inputs"]
    assert run("stats", path).returncode == 0


@pytest.mark.parametrize("path", PARQUET, ids=lambda path: path.name)
def test_stored_plans_pass_verification(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(STORED)
    verified = run("verify", path.name, FASTA)
    assert (verified.returncode, verified.stdout) == (0, "")


@pytest.mark.parametrize("path", ARROW, ids=lambda path: path.name)
def test_saved_plans_of_each_version_are_loaded(path: Path) -> None:
    loaded = PackingPlan.load(path)
    assert loaded == make_plan()
    assert loaded.limits == make_plan().limits
    assert loaded.lower_bound == make_plan().lower_bound


def test_stored_options_are_read() -> None:
    paths = sorted(STORED.glob("read_options*.pickle"))
    assert paths
    for path in paths:
        assert pickle.loads(path.read_bytes()) == make_read_options()
