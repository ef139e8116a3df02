"""The solver within a process and behind the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import highspy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import run
from instances import triplets

from virnucpro.data import GreedyPacker
from virnucpro.files.sequences import read_files
from virnucpro.files.verify import verify_plan


def tight(packer: GreedyPacker) -> GreedyPacker:
    packer.method = "tight"
    return packer


def test_command(tmp_path: Path) -> None:
    table, plan = tmp_path / "a.parquet", tmp_path / "plan.parquet"
    sizes = triplets(501, 501)
    pq.write_table(pa.table({"id": [str(i) for i in range(501)], "length": sizes}), table)
    options = ("--max-tokens", 1000, "--max-length", 1000, "--special-tokens", 0)
    result = run("pack", table, "-o", plan, "--method", "tight", *options)
    assert (result.returncode, result.stdout) == (0, "")
    lines = [line.split() for line in result.stderr.splitlines()]
    assert ["Lower", "bound", "167"] in lines
    (first_fit,) = (int(line[-1]) for line in lines if line[:3] == ["Batches", "by", "FFD"])
    assert first_fit > 180
    totals = json.loads(run("stats", "--json", plan).stdout)["totals"]
    assert totals["first_fit_batches"] == first_fit
    assert totals["lower_bound"] == 167 <= totals["batches"] <= 168
    assert run("verify", plan, table).returncode == 0
    assert run("report", plan, "-o", tmp_path / "a.html").returncode == 0
    assert "Batches by FFD" in (tmp_path / "a.html").read_text()

    def findings(**totals: Any) -> list[str]:
        found = pq.read_table(plan)
        metadata = json.loads(found.schema.metadata[b"virnucpro"])
        metadata["totals"].update(totals)
        changed = found.replace_schema_metadata({b"virnucpro": json.dumps(metadata)})
        pq.write_table(changed, tmp_path / "changed.parquet")
        return verify_plan(tmp_path / "changed.parquet", read_files([str(table)]))

    assert findings() == []
    (finding,) = findings(lower_bound=169)
    assert finding.startswith("lower_bound is 169 in the summary, expected at least ")
    assert findings(first_fit_batches=190)[0].startswith("first_fit_batches is 190 in the summary")


@pytest.mark.process
def test_command_asks_for_the_solver_before_it_reads() -> None:
    code = (
        "import sys; sys.modules['highspy'] = None; "
        "sys.argv = ['virnucpro', 'pack', 'none.fa', '-o', 'plan.parquet', '--method', 'tight']\n"
        "from virnucpro.__main__ import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr == (
        "virnucpro: error: --method tight needs highspy: in a checkout of virnucpro, run "
        "pip install '.[tight]' (with a wheel: pip install 'FILE.whl[tight]')\n"
    )


def test_the_solver_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    tight(GreedyPacker(1000, 1000, special_tokens=0)).pack_lengths(triplets(60, 0))
    assert tuple(capfd.readouterr()) == ("", "")


def test_another_use_of_the_solver_may_have_more_threads() -> None:
    packer = tight(GreedyPacker(1000, 1000, special_tokens=0))
    alone = packer.pack_lengths(triplets(60, 0))
    highspy.Highs.resetGlobalScheduler(True)
    try:
        other = highspy.Highs()  # type: ignore[no-untyped-call]
        other.setOptionValue("threads", 2)
        other.minimize(other.addBinary() + other.addBinary())
        plan = packer.pack_lengths(triplets(60, 0))
    finally:
        highspy.Highs.resetGlobalScheduler(True)
    assert plan == alone
    assert len(plan) == 20


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
    "parameters",
    [
        "2**62, 2**62, special_tokens=0, max_sequences_per_batch=2**31 - 1",
        "100, special_tokens=0, max_sequences_per_batch=2**31 - 1",
        "100, special_tokens=0, max_sequences_per_batch=2**20",
    ],
)
def test_memory_is_bounded_under_high_limits(parameters: str) -> None:
    code = (
        "import resource, numpy as np\n"
        "from virnucpro.data import GreedyPacker\n"
        f"packer = GreedyPacker({parameters}, method='tight')\n"
        "lengths = np.append(np.zeros(3_000_000, np.int8), np.repeat([34, 35], 50))\n"
        "counts = packer.count(lengths)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "layout = packer.lay_out(counts)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        "print(layout.lower_bound, layout.num_batches)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    kilobytes, bound, batches = map(int, result.stdout.split())
    assert kilobytes < 400_000
    assert 1 <= bound <= batches <= 50
