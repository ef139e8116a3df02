"""The benchmark of embeddings, run with a tiny model on a few proteins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
WAYS = (
    "`embed_files`",
    "fair-esm's `extract.py`, 4,096 tokens",
    "transformers, batches of 8, as they come",
    "transformers, batches of 16, as they come",
    "transformers, batches of 8, by length",
    "transformers, batches of 16, by length",
)


def test_all_ways_agree(tmp_path: Path) -> None:
    """Every way gives the same vectors and a row."""
    script = ROOT / "benchmarks" / "bench.py"
    command = [sys.executable, script, "embedding", "--quick", "--folder", tmp_path]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert "\nThe first 20 proteins of proteins.fasta (" in page
    table = page.partition("after start-up |\n")[2].partition("\n\n")[0].splitlines()[1:]
    rows = [line.strip("| ").split(" | ") for line in table]
    assert tuple(row[0] for row in rows) == WAYS
    # The model takes time in each, and `embed_files` has no padding; batches in order have most.
    shares = [[float(row[i].removesuffix(" %")) for i in (2, 6, 7)] for row in rows]
    assert all(0 < later < whole < 100 for _, whole, later in shares)
    assert shares[0][0] == 0.0 < shares[4][0] < shares[2][0]
    stages = page.partition("| stage | of the model's time | seconds |\n")[2].splitlines()[1:]
    names = ["| reading", "| comparing", "| packing"]
    assert [line.split(" | ")[0] for line in stages][:3] == names
