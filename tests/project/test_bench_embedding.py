"""The benchmark of embeddings, run with a tiny model on a few proteins."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "embedding.md"
WAYS = (
    "`embed_files`",
    "fair-esm's `extract.py`, 4,096 tokens",
    "transformers, batches of 8, as they come",
    "transformers, batches of 16, as they come",
    "transformers, batches of 8, by length",
    "transformers, batches of 16, by length",
)


def test_all_ways_agree(tmp_path: Path) -> None:
    """Every way gives the same vectors and a row, and the rest of the page is kept."""
    output = tmp_path / "page.md"
    shutil.copy(PAGE, output)
    script, fasta = ROOT / "benchmarks" / "embedding.py", ROOT / "examples" / "proteins.fasta"
    options = ["--size", "tiny", "--fasta", fasta, "--number", "20", "--repeats", "1"]
    command = [sys.executable, script, *options, "--many", "500", "--output", output]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    page = output.read_text(encoding="utf-8")
    assert "\n20 proteins (proteins.fasta, " in page
    table = page.partition("padding |\n")[2].partition("\n\n")[0].splitlines()[1:]
    rows = [line.strip("| ").split(" | ") for line in table]
    assert tuple(row[0] for row in rows) == WAYS
    # The model takes time in each, and `embed_files` has no padding; batches in order have most.
    shares = [[float(share.removesuffix(" %")) for share in row[5:]] for row in rows]
    assert all(0 < later < whole < 100 for whole, later, _ in shares)
    padding = [share[2] for share in shares]
    assert padding[0] == 0.0 < padding[4] < padding[2]
    stages = page.partition("of the model's time |\n")[2].splitlines()[1:]
    assert [line.split(" | ")[0] for line in stages][:3] == [
        "| reading",
        "| comparing",
        "| packing",
    ]
    original = PAGE.read_text(encoding="utf-8")
    assert page.partition("<!--")[0] == original.partition("<!--")[0]
    assert page.rpartition("<!-- end -->")[2] == original.rpartition("<!-- end -->")[2]
