"""The benchmark of GPUs, run with a tiny model on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
MODES = (
    "packed, waits in each layer",
    "packed, eager",
    "captured",
    "captured and compiled",
    "compiled",
    "padded, by arrival",
    "padded, by length",
    "padded, by length, tokenized before",
)


def run(output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # Without a GPU, also on a machine that has one.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    script = ROOT / "benchmarks" / "gpu.py"
    command = [sys.executable, str(script), "--output", str(output), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_all_modes_run(tmp_path: Path) -> None:
    """Every mode gives a row, the checks pass, and the rest of the page is kept."""
    output = tmp_path / "gpu.md"
    result = run(output, "--tiny", "--gpu-tests")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAILED" not in result.stdout
    assert result.stdout.count(": passed") == 7
    page = output.read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| 128 | ")]
    assert tuple(row[1] for row in rows) == MODES
    assert all(float(row[2].replace(",", "")) > 0 for row in rows)
    assert "bit for bit in 9 of 9 batches" in page
    assert page.count("\n- ") == 1
    original = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    for mark in ("<!-- made by make bench-gpu -->", "<!-- end -->"):
        assert page.count(mark) == original.count(mark) == 1
    assert page.partition("<!--")[0] == original.partition("<!--")[0]
    assert page.rpartition("<!-- end -->")[2] == original.rpartition("<!-- end -->")[2]


def test_time_that_is_over_leaves_out_figures(tmp_path: Path) -> None:
    output = tmp_path / "gpu.md"
    result = run(output, "--tiny", "--seconds", "0")
    assert result.returncode == 0, result.stderr
    page = output.read_text(encoding="utf-8")
    assert page.count("left out, as 0 seconds were left") == len(MODES) + 2
    assert "- tiny, 128 tokens, captured: left out" in page


def test_a_gpu_is_needed(tmp_path: Path) -> None:
    result = run(tmp_path / "gpu.md")
    assert (result.returncode, result.stdout) == (1, "")
    assert "bench-gpu needs a CUDA device; --tiny runs a tiny model on a CPU" in result.stderr
