"""`stats` of embeddings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command import run
from fasta import fasta


def test_stats_of_embeddings(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.fa").write_bytes(fasta([("a", "MKJJ"), ("b", "M" * 50), ("c", "")]))
    run("embed", "a.fa", "-o", "out", "--model", checkpoint, "--max-length", 40)
    result = run("stats", "out")
    assert (result.returncode, result.stderr) == (0, "")
    table = dict(re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines())
    assert table["Sequences"] == "3"
    assert table["Residues lost"] == "10 (18.52 %)"
    assert table["Unknown residues"] == "2"
    assert table["Failed sequences"] == "0"
    assert table["Parts"] == "2 of 2"
    found = json.loads(run("stats", "out", "--json").stdout)
    assert (found["complete"], found["parts"], found["unknown"]) == (2, 2, 2)
    assert found["summary"]["limits"]["max_sequence_length"] == 40
    values = dict(line.split("\t") for line in run("stats", "out", "--tsv").stdout.splitlines())
    assert values["summary.totals.truncated"] == "1"
    assert values["summary.model.width"] == "32"
    sorted(Path("out").iterdir())[0].unlink()
    assert "1 of 2" in run("stats", "out").stdout
    Path("out", "part-00000-of-00002.parquet").write_bytes(b"PAR1")
    result = run("stats", "out")
    assert result.returncode == 1
    assert "not a part of embeddings" in result.stderr
    assert "if it is removed, the same run makes it again" in result.stderr
